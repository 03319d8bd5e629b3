"""The linter: what is wrong with a model, or will be where it is deployed.

``check`` looks at a model with every rule and returns ``Findings``. Rules are independent of each other: one broken
thing does not hide others, and a rule that could not be looked at is reported as such. Nothing here reads weights
unless asked to (``values=True``).

A set of rules for another target is a ``Checks`` of its own (``onnxbench.lint.rules``): list it in ``THEMES``, or hand
it to ``check`` as ``extra``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from onnxbench.errors import NotFoundError, UsageError, did_you_mean
from onnxbench.lint import (
    deployment,
    naming,
    operators,
    quantization,
    sessions,
    storage,
    structure,
    types,
    unused,
    values,
)
from onnxbench.lint.facts import Facts, Opener
from onnxbench.lint.findings import Finding, Findings, NotRun, Place, Severity
from onnxbench.lint.rules import TARGETS, Checks, Rule

if TYPE_CHECKING:
    from onnxbench.model import Model

THEMES: tuple[Checks, ...] = (
    structure.checks,
    types.checks,
    storage.checks,
    operators.checks,
    unused.checks,
    naming.checks,
    deployment.checks,
    quantization.checks,
    sessions.checks,
    values.checks,
)
"""All rules, by theme, in the order of their codes."""


def check(
    model: Model,
    *,
    select: Sequence[str] = (),
    ignore: Sequence[str] = (),
    target: str | None = None,
    values: bool = False,
    openers: Mapping[str, Opener] | None = None,
    extra: Sequence[Checks] = (),
) -> Findings:
    """Returns what the rules find in a model, worst first.

    Load the model with ``require_weights=False``, or missing external data is an error and not a finding.

    Args:
        model: The model; it is not changed.
        select: Rules to look at, by code, beginning of a code (``OB1``), or name; all by default.
        ignore: Rules to leave out, spelled alike.
        target: ``onnxruntime`` or ``tensorrt``: severities are for it, and rules only for it are looked at.
        values: Also read the weights, block by block, and look at their numbers.
        openers: By the name of a runtime, a function that makes a session of a model in it, or raises
            ``ExecutionError``.
        extra: Further checks.

    Raises:
        UsageError: A rule or target is not known.
    """
    if target is not None and target not in TARGETS:
        raise UsageError(
            f"{target!r} is not a target", hint=did_you_mean(target, TARGETS) or f"Targets: {', '.join(TARGETS)}."
        )
    themes = (*THEMES, *extra)
    able = {"": True, "values": values, "session": bool(openers)}
    asked = chosen_rules(select, ignore, themes)
    wanted = [rule for rule in asked if able[rule.needs] and (not rule.only_for or target in rule.only_for)]
    facts = Facts(model, target=target, openers=openers)
    codes = {rule.code for rule in wanted}
    found, not_run = _run(facts, themes, codes, able)
    if any(select):
        not_run += _conditions_unmet([rule for rule in asked if rule.code not in codes])
    order = {rule.code: at for at, rule in enumerate(all_rules(themes))}
    kept = [finding for finding in found if finding.code in codes]
    kept.sort(key=lambda finding: (finding.severity.rank, order[finding.code]))
    origin = facts.file_name() if model.origin is not None else ""
    return Findings(origin, target, tuple(kept), tuple(rule.code for rule in wanted), tuple(not_run))


def _run(
    facts: Facts, themes: Iterable[Checks], codes: set[str], able: Mapping[str, bool]
) -> tuple[list[Finding], list[NotRun]]:
    """Runs the checks of these rules, or all that can be, if what the onnx checker says is to be answered."""
    found: list[Finding] = []
    not_run: dict[str, dict[str, None]] = {}
    answers = operators.CHECKER.code in codes
    for theme in themes:
        for check_ in theme.checks:
            if not (answers or any(rule.code in codes for rule in check_.rules)) or not able[check_.needs]:
                continue
            for result in check_.function(facts):
                if isinstance(result, Finding):
                    found.append(result)
                elif codes.intersection(result.codes):
                    not_run.setdefault(result.reason, {}).update(dict.fromkeys(result.codes))
    if answers:
        found += operators.unanswered(facts, found)
    return found, [NotRun(tuple(code for code in of if code in codes), reason) for reason, of in not_run.items()]


def _conditions_unmet(rules: Iterable[Rule]) -> list[NotRun]:
    """Returns the rules that were asked for by name and have a condition that does not hold."""
    unmet: dict[str, list[str]] = {}
    for rule in rules:
        unmet.setdefault(" and ".join(rule.conditions()), []).append(rule.code)
    return [NotRun(tuple(codes), condition) for condition, codes in unmet.items()]


def all_rules(themes: Sequence[Checks] = THEMES) -> list[Rule]:
    """Returns every rule, by code."""
    unique = {rule.code: rule for theme in themes for rule in theme.rules}
    return [unique[code] for code in sorted(unique)]


def rules_by_theme(themes: Sequence[Checks] = THEMES) -> list[tuple[str, list[Rule]]]:
    """Returns the title of each theme and its rules, each rule once."""
    seen: set[str] = set()
    found = []
    for theme in themes:
        found.append((theme.title, [rule for rule in theme.rules if rule.code not in seen]))
        seen.update(rule.code for rule in theme.rules)
    return found


def chosen_rules(select: Sequence[str], ignore: Sequence[str], themes: Sequence[Checks] = THEMES) -> list[Rule]:
    """Returns the rules that are selected and not ignored, by code.

    Args:
        select: Codes, beginnings of codes, or names; commas separate several. Empty selects all.
        ignore: The same.
        themes: Where rules are looked for.

    Raises:
        UsageError: A word means no rule.
    """
    rules = all_rules(themes)
    wanted = _matching(select, rules) if any(select) else {rule.code for rule in rules}
    left_out = _matching(ignore, rules)
    return [rule for rule in rules if rule.code in wanted and rule.code not in left_out]


def _matching(words: Sequence[str], rules: list[Rule]) -> set[str]:
    found = set()
    for word in (part.strip() for given in words for part in given.split(",")):
        if not word:
            continue
        codes = {rule.code for rule in rules if rule.code.startswith(word.upper()) or rule.name == word.lower()}
        if not codes:
            raise UsageError(f"{word!r} is no rule", hint=_near_rule(word, rules))
        found |= codes
    return found


def find_rule(word: str, themes: Sequence[Checks] = THEMES) -> Rule:
    """Returns the rule with this code or name.

    Raises:
        NotFoundError: There is none; the hint has the nearest.
    """
    rules = all_rules(themes)
    for rule in rules:
        if word.strip().upper() == rule.code or word.strip().lower() == rule.name:
            return rule
    raise NotFoundError(f"there is no rule {word!r}", hint=_near_rule(word, rules))


def _near_rule(word: str, rules: list[Rule]) -> str:
    near = (
        did_you_mean(word.upper(), [rule.code for rule in rules]) if word[:1].isupper() or word[-1:].isdigit() else None
    )
    near = near or did_you_mean(word.lower(), [rule.name for rule in rules])
    return near or "'onnxbench explain' lists all rules."


def to_severity(word: Severity | str) -> Severity:
    """Returns the severity that a word means.

    Raises:
        UsageError: It means none.
    """
    aliases = {"warn": Severity.WARNING, "note": Severity.INFO, "err": Severity.ERROR}
    spelled = str(word).strip().lower()
    if spelled in aliases:
        return aliases[spelled]
    try:
        return Severity(spelled)
    except ValueError:
        names = [str(severity) for severity in Severity]
        hint = did_you_mean(spelled, names) or f"Severities: {', '.join(names)}."
        raise UsageError(f"{word!r} is not a severity", hint=hint) from None


__all__ = [
    "TARGETS",
    "THEMES",
    "Checks",
    "Finding",
    "Findings",
    "NotRun",
    "Opener",
    "Place",
    "Rule",
    "Severity",
    "all_rules",
    "check",
    "chosen_rules",
    "find_rule",
    "rules_by_theme",
    "to_severity",
]
