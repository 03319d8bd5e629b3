"""What the command rewrite does besides rewriting: listing rules, counting matches, saying why there is none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxbench import patterns
from onnxbench.draft import Draft
from onnxbench.errors import RefusedResultError, UnsupportedError
from onnxbench.graph import NodeRef
from onnxbench.model import Model
from onnxbench.operations import Rewrite
from onnxbench.patterns import Explanation, Facts, Match, Rule
from onnxbench.pieces import type_sources
from onnxbench.schemas import plain_domain

_MOST_EXPLAINED = 20


@dataclass(frozen=True, slots=True)
class ListedRule:
    """A rule that comes with onnxbench, or of a file.

    Attributes:
        name: Its name.
        summary: What it does, in a line.
        doc: All that is said of it: when it applies and when not.
        effect: What it may change: ``nothing``, ``rounding`` or ``numerics``.
        needs: The opsets that the replacement needs.
    """

    name: str
    summary: str
    doc: str
    effect: str
    needs: dict[str, int]


@dataclass(frozen=True, slots=True)
class RuleMatches:
    """Where a rule matches.

    Attributes:
        rule: The rule.
        nodes: The nodes that make the first output of each match.
        near: Where it nearly matches, if it matches nowhere: best first.
        refusal: Why it cannot be applied where it matches; empty if nothing speaks against it.
    """

    rule: str
    nodes: tuple[str, ...]
    near: tuple[Explanation, ...] = ()
    refusal: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns the matches as JSON values, with their number."""
        return {
            "rule": self.rule,
            "count": len(self.nodes),
            "nodes": self.nodes,
            "near": self.near,
            "refusal": self.refusal or None,
        }


def list_rules(references: Sequence[str] = ()) -> list[ListedRule]:
    """Returns what the rules are that come with onnxbench, or those that these words stand for."""
    rules = [rule for each in references for rule in patterns.find_rules(each)]
    if not references:
        rules = list(patterns.shipped_rules().values())
    return [
        ListedRule(
            rule.name, rule.summary, rule.doc, rule.effect,
            {plain_domain(o.domain) or "ai.onnx": o.version for o in rule.replacement.opset_import},
        )
        for rule in rules
    ]  # fmt: skip


def find_rule_matches(model: Model, operations: Sequence[Rewrite], *, folder: Path | None = None) -> list[RuleMatches]:
    """Returns where rules match in a model as it is, each rule for itself, and near misses of those that do not."""
    draft = Draft.of(model, folder=folder, sources=type_sources())
    found = []
    for operation in operations:
        among = frozenset(draft.nodes(operation.at)) if operation.at is not None else None
        if operation.is_script:
            nodes = operation.find_all(draft)
            found.append(RuleMatches(operation.rule, tuple(map(_path, nodes))))
            continue
        facts = Facts(draft)
        for rule in operation.rules(draft):
            matches = patterns.find_matches(rule, facts, among=among, limit=operation.max)
            near = () if matches else tuple(patterns.near_misses(rule, facts))
            paths = tuple(_path(NodeRef(match.scope, match.anchor)) for match in matches)
            found.append(RuleMatches(rule.name, paths, near, _refusal(draft, rule, matches)))
    return found


def _refusal(draft: Draft, rule: Rule, matches: Sequence[Match]) -> str:
    """Returns why a rule is refused in one of the graphs in which it matches: it needs a later opset."""
    for scope in dict.fromkeys(match.scope for match in matches):
        try:
            patterns.require_opsets(draft, rule, scope)
        except RefusedResultError as error:
            return f"{error.message}. {error.hint or ''}".strip()
    return ""


def explain_nodes(
    model: Model, operations: Sequence[Rewrite], node: str, *, folder: Path | None = None
) -> list[Explanation]:
    """Returns why rules match or do not match at the nodes that a selector stands for.

    Raises:
        NotFoundError: The selector stands for nothing, or there is no such rule.
        UnsupportedError: The rule is one of onnxscript, which cannot be looked into.
    """
    draft = Draft.of(model, folder=folder, sources=type_sources())
    refs = draft.nodes(node)[:_MOST_EXPLAINED]
    found = []
    for operation in operations:
        if operation.is_script:
            raise UnsupportedError(
                f"{operation.rule} is a rule of onnxscript, and --why looks into patterns of onnxbench alone",
                hint="onnxscript's MatchingTracer tells what its matcher did.",
            )
        facts = Facts(draft)
        found += [patterns.explain(rule, facts, ref) for rule in operation.rules(draft) for ref in refs]
    return found


def _path(ref: NodeRef) -> str:
    return f"{ref.path} ({ref.node.op_type})"
