"""A rule, and how checks are registered.

A ``Rule`` is data: its code, how bad it is, and the texts that ``explain`` and docs/rules.md show. A check is a
function that looks at a model and yields findings of the rules that it is registered for. Checks of one theme are
collected in a ``Checks``; a set for another target is another ``Checks``, listed in ``onnxbench.lint.THEMES`` or
handed to ``onnxbench.lint.check``.

Codes are for good: one that is no longer used is not given to another rule.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from onnxbench.lint.findings import Finding, NotRun, Place, Severity

if TYPE_CHECKING:
    from onnxbench.lint.facts import Facts

CheckFunction = Callable[["Facts"], Iterator[Finding | NotRun]]

TARGETS = ("onnxruntime", "tensorrt")
"""Runtimes that severities can be asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        code: ``OB`` and three digits, of which the first is the theme.
        name: A few words joined by hyphens; as good as the code wherever one is asked for.
        severity: How bad a finding is, unless the target or the finding says otherwise.
        summary: What it finds, in one line.
        why: Why it matters.
        mend: How to mend it.
        example: A few lines that break it.
        severities: Severities for a certain target.
        only_for: Targets without which the rule is not looked at; empty for a rule that always is.
        mendable: Whether a save can mend it.
        needs: ``"values"`` or ``"session"`` for a rule that is looked at only when weights may be read, or a runtime
            is given; ``""`` for any other.
    """

    code: str
    name: str
    severity: Severity
    summary: str
    why: str
    mend: str
    example: str
    severities: Mapping[str, Severity] = field(default_factory=dict)
    only_for: tuple[str, ...] = ()
    mendable: bool = False
    needs: str = ""

    def severity_text(self) -> str:
        """Returns the severity, with those for certain targets: ``warning; error for onnxruntime``."""
        return "; ".join([str(self.severity), *(f"{worse} for {name}" for name, worse in self.severities.items())])

    def conditions(self) -> list[str]:
        """Returns when the rule is looked at, if not always."""
        needs = {"values": "only with --values", "session": "only with --ort or --trt"}  # in Python: values=, openers=
        found = [needs[self.needs]] if self.needs else []
        return found + [f"only with --target {target}" for target in self.only_for]

    def to_json(self) -> dict[str, object]:
        """Returns the rule as ``explain --json`` prints it."""
        return {
            "code": self.code,
            "name": self.name,
            "severity": self.severity,
            "severities": self.severities,
            "summary": self.summary,
            "why": self.why,
            "mend": self.mend,
            "example": self.example_text(),
            "mendable": self.mendable,
            "only_for": self.only_for,
            "needs": self.needs,
        }

    def example_text(self) -> str:
        """Returns the example without the indentation of the source."""
        return inspect.cleandoc(self.example)


@dataclass(frozen=True, slots=True)
class Check:
    """A function and the rules that it finds breaches of."""

    function: CheckFunction
    rules: tuple[Rule, ...]

    @property
    def needs(self) -> str:
        """What all its rules need (see ``Rule``)."""
        needs = {rule.needs for rule in self.rules}
        return needs.pop() if len(needs) == 1 else "values" if "values" in needs else ""


class Checks:
    """The checks of one theme, in the order in which they were registered.

    Attributes:
        title: What the theme is called in docs/rules.md.
        checks: What was registered.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self.checks: list[Check] = []

    def __call__(self, *rules: Rule) -> Callable[[CheckFunction], CheckFunction]:
        """Returns a decorator that registers a check for these rules."""

        def register(function: CheckFunction) -> CheckFunction:
            self.checks.append(Check(function, rules))
            return function

        return register

    @property
    def rules(self) -> list[Rule]:
        """The rules of the theme, by code."""
        unique = {rule.code: rule for check in self.checks for rule in check.rules}
        return [unique[code] for code in sorted(unique)]


__all__ = ["TARGETS", "Check", "CheckFunction", "Checks", "Finding", "NotRun", "Place", "Rule", "Severity"]
