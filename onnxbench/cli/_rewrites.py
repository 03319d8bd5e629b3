"""How rules, matches and explanations are shown."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench.cli._render import print_json
from onnxbench.cli._tables import Column, plain, print_table
from onnxbench.errors import UsageError

if TYPE_CHECKING:
    from onnxbench.operations import Effect, Rewrite
    from onnxbench.patterns import Explanation
    from onnxbench.recipe import Step
    from onnxbench.rewriting import RuleMatches

_SHOWN = 20


def operations(rules: Sequence[str], at: str | None, most: int | None) -> list[Rewrite]:
    """Returns the operations that the options mean."""
    from onnxbench.operations import Rewrite

    if not rules:
        raise UsageError("no rule is named", hint="--rule NAME; onnxbench rewrite --list shows what there is.")
    return [Rewrite(rule=rule, at=at, max=most) for rule in rules]


def guarded(operations: Sequence[Rewrite], expect: str | None) -> list[Step]:
    """Returns the operations as steps, each of which must match as many places as ``expect`` says.

    Each may change what its rules say: rules that change the numerics are not held to rounding.
    """
    from onnxbench import patterns
    from onnxbench.recipe import Step

    steps = []
    for operation in operations:
        rules = () if operation.is_script else patterns.find_rules(operation.rule)
        changes: Effect | None = "numerics" if any(rule.effect == "numerics" for rule in rules) else None
        steps.append(Step(operation, expect, changes, place=f"--rule {operation.rule}"))
    return steps


def required(model: Path | None) -> Path:
    """Returns the model file, which must be named."""
    if model is None:
        raise UsageError("no model is named", hint="onnxbench rewrite MODEL OUT --rule NAME")
    return model


def print_rules(references: Sequence[str], *, as_json: bool) -> None:
    """Prints the rules that come with onnxbench, or all that is said of those that are named."""
    from onnxbench import rewriting

    rules = rewriting.list_rules(references)
    if as_json:
        print_json("rewrite", {"rules": rules})
    elif references:
        for number, rule in enumerate(rules):
            print("\n" * bool(number) + plain(rule.name))
            for line in rule.doc.strip().splitlines():
                print(f"  {plain(line)}")
            needs = ", ".join(f"{domain} {version}" for domain, version in rule.needs.items())
            print(f"  Changes: {rule.effect}. Needs: {needs or 'no particular opset'}.")
    else:
        rows = [(rule.name, rule.effect, rule.summary) for rule in rules]
        print_table((Column("rule", "whole"), Column("changes", "whole"), Column("what it does", "whole")), rows)


def look(model: Path | None, steps: Sequence[Rewrite], why: str | None, *, allow_outside: bool, as_json: bool) -> None:
    """Prints where rules match, or why they do not match at a node."""
    from onnxbench import rewriting
    from onnxbench.model import load

    loaded = load(required(model), allow_outside=allow_outside)
    if why is not None:
        found = rewriting.explain_nodes(loaded, steps, why)
        if as_json:
            print_json("rewrite", {"explanations": found})
            return
        for explanation in found:
            _print_sentences(explanation)
        if any(explanation.matches for explanation in found):
            return
    counted = rewriting.find_rule_matches(loaded, steps)
    if as_json:
        print_json("rewrite", {"rules": counted})
        return
    for each in counted:
        _print_matches(each, with_near=why is None)


def _print_sentences(explanation: Explanation) -> None:
    for line in explanation.sentences():
        print(plain(line))


def _print_matches(found: RuleMatches, *, with_near: bool) -> None:
    """Prints where a rule matches, and where it nearly does if it matches nowhere."""
    print(f"{plain(found.rule)}: {len(found.nodes)} match{'' if len(found.nodes) == 1 else 'es'}")
    if found.refusal:
        print(f"  {plain(found.refusal)}")
    for path in found.nodes[:_SHOWN]:
        print(f"  {plain(path)}")
    if len(found.nodes) > _SHOWN:
        print(f"  ... and {len(found.nodes) - _SHOWN} more (--json lists all)")
    for near in found.near if with_near else ():
        for at, line in enumerate(near.sentences()):
            print(f"  {'  ' if at else ''}{plain(line)}")
