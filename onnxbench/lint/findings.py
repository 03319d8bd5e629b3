"""What the linter reports: a finding, its place in the model, and all findings of one run."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from enum import StrEnum


class Severity(StrEnum):
    """How bad a finding is.

    ``error``: the model is not valid, or the target refuses it. ``warning``: it runs, and likely not as meant, or not
    everywhere. ``info``: worth knowing before the model is changed or deployed.
    """

    ERROR = "error"
    WARNING = "warning"
    INFO = "info"

    @property
    def rank(self) -> int:
        """0 for the worst."""
        return list(Severity).index(self)

    def at_least(self, other: Severity) -> bool:
        """Tells whether this is as bad as ``other`` or worse."""
        return self.rank <= other.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where in a model a finding is.

    Attributes:
        graph: Path of the graph (``If_3/then``, ``local::Block``); ``""`` for the main one.
        node: Label of the node in that graph, or None.
        op: The node's operator, or None.
        tensor: Name of the tensor in that graph, or None.
        module: Path of the PyTorch module that the node comes from, or None.
        source: The line that it comes from, ``model.py:12``, or None.
    """

    graph: str = ""
    node: str | None = None
    op: str | None = None
    tensor: str | None = None
    module: str | None = None
    source: str | None = None

    @property
    def path(self) -> str:
        """The node, else the tensor, else the graph, with its path: ``If_3/then/Add#2``; ``""`` for the model."""
        inner = self.node or self.tensor
        return "/".join(part for part in (self.graph, inner) if part)

    def to_json(self) -> dict[str, str | None]:
        """Returns the place as ``--json`` prints it, with its path."""
        return {"path": self.path, **asdict(self)}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that a rule found.

    Attributes:
        code: The rule's code, ``OB105``.
        name: The rule's name, ``unsorted-nodes``.
        severity: How bad it is for the target that was asked about.
        message: What is wrong, in one sentence.
        where: Its place.
        fix: What to do about it, or None where the rule's explanation says all there is to say.
        mendable: Whether writing the model with onnxbench mends it.
    """

    code: str
    name: str
    severity: Severity
    message: str
    where: Place
    fix: str | None = None
    mendable: bool = False


@dataclass(frozen=True, slots=True)
class NotRun:
    """Rules that could not be looked at, and why (their silence says nothing)."""

    codes: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class Findings:
    """All that a run of the linter found.

    Attributes:
        model: The model's file, or ``""`` for a model made in memory.
        target: The runtime that severities are for, or None for any.
        findings: Worst first, then by code, then in the order of the graph.
        checked: Codes of the rules that were looked at.
        not_run: Rules that were asked for and could not be looked at.
        notes: What the target itself was not asked, so that no finding is not taken for its word.
    """

    model: str
    target: str | None
    findings: tuple[Finding, ...]
    checked: tuple[str, ...]
    not_run: tuple[NotRun, ...] = ()
    notes: tuple[str, ...] = ()

    def count(self, severity: Severity) -> int:
        """Returns how many findings have this very severity."""
        return sum(finding.severity is severity for finding in self.findings)

    def fails(self, fail_on: Severity | None) -> bool:
        """Tells whether a finding is as bad as ``fail_on`` or worse; None never fails."""
        return fail_on is not None and any(finding.severity.at_least(fail_on) for finding in self.findings)

    def at_least(self, severity: Severity) -> Findings:
        """Returns the findings of this severity and worse alone."""
        kept = tuple(finding for finding in self.findings if finding.severity.at_least(severity))
        return replace(self, findings=kept)

    def to_json(self) -> dict[str, object]:
        """Returns the result as ``--json`` prints it, with counts."""
        return {
            "model": self.model,
            "target": self.target,
            "counts": {str(severity): self.count(severity) for severity in Severity},
            "findings": self.findings,
            "checked": self.checked,
            "not_run": self.not_run,
            "notes": self.notes,
        }
