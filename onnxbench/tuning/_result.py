"""What a search for the smallest set of nodes found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from onnxbench.tuning._criteria import Score
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.graph import NodeRef
    from onnxbench.model import Model
    from onnxbench.precision import Converted
    from onnxbench.writer import Saved


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that can be in half precision, and what is known of it.

    Attributes:
        node: Its path.
        op_type: Its operator.
        kept: Whether it stays in float32.
        cost: What that costs.
        own: Its own error in half precision, 0 to 1; infinite where it overflows; None where it was not measured.
        gain: What becomes of an error of its outputs at the outputs of the model.
        effect: Its estimated effect there: own error times gain.
        inputs: The candidates whose outputs it reads, directly or through nodes that are none.
    """

    node: str
    op_type: str
    kept: bool
    cost: float
    own: float | None = None
    gain: float | None = None
    effect: float | None = None
    inputs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Point:
    """A set that was tried and than which no cheaper one had a smaller error.

    Attributes:
        nodes: How many nodes it keeps.
        cost: What it costs.
        score: Its error: that of the worst sample, or of the first that failed.
        passed: Whether it is within the tolerance on all samples.
    """

    nodes: int
    cost: float
    score: Score
    passed: bool


@dataclass(frozen=True, slots=True)
class Tuning:
    """What a search found.

    Attributes:
        model: The name of the model file.
        to: The half type: ``float16`` or ``bfloat16``.
        criterion: What outputs had to be like, in words.
        place: What ran the sets of nodes, in words.
        candidates: All nodes that can be in half precision, in the order of the graphs.
        found: Whether a set within the tolerance was found; without one nothing is written.
        score: Its error.
        plain: The error with nothing kept.
        cost: What the set costs.
        frontier: Sets than which no cheaper one had a smaller error, the cheapest first.
        ended: Why the search ended.
        interrupted: Whether that was Ctrl-C.
        untried: How many nodes of the set were not left out of it by themselves; with 0 the set is 1-minimal.
        runs: How often the model ran in this search, on one sample each.
        sets: How many sets were tried, those of an earlier search included.
        samples: How many samples the search saw.
        held_out: How many it did not.
        holdout: The error on these; None without any.
        casts: How many Casts the converted model has more.
        choices: What was decided about inputs without being told.
        notes: What a user should know beyond that.
        refs: The kept nodes, those that the caller named included.
        converted: The converted model; None without a set.
        saved: The file that was written.
    """

    model: str
    to: str
    criterion: str
    place: str
    candidates: tuple[Candidate, ...]
    found: bool
    score: Score
    plain: Score
    cost: float
    frontier: tuple[Point, ...]
    ended: str
    interrupted: bool
    untried: int
    runs: int
    sets: int
    samples: int
    held_out: int
    holdout: Score | None
    casts: int
    choices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refs: tuple[NodeRef, ...] = field(default=(), repr=False)
    converted: Converted | None = field(default=None, repr=False)
    saved: Saved | None = None

    @property
    def kept(self) -> tuple[Candidate, ...]:
        """The nodes that stay in float32."""
        return tuple(each for each in self.candidates if each.kept)

    @property
    def passed(self) -> bool:
        """Whether a set was found that is within the tolerance on held-out samples, too."""
        return self.found and (self.holdout is None or self.holdout.passed)

    @property
    def result(self) -> Model | None:
        """The converted model."""
        return None if self.converted is None else self.converted.model

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.found:
            return f"FAILED: no set of nodes within the tolerance was found: {self.ended}"
        kept = f"{len(self.kept):,} of {plural(len(self.candidates), 'node')} kept in float32"
        held = ""
        if self.holdout is not None:
            words = "within the tolerance" if self.holdout.passed else "beyond the tolerance"
            held = f"; {self.holdout.text} on {plural(self.held_out, 'held-out sample')}, {words}"
        state = "PASSED" if self.passed else "FAILED"
        return f"{state}: {kept}, {self.criterion.partition(' ')[0]} {self.score.text}{held}"

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values."""
        left_out = ("refs", "converted")
        values: Mapping[str, Any] = {name: getattr(self, name) for name in self.__slots__ if name not in left_out}
        return {**values, "passed": self.passed, "verdict": self.verdict, "kept": [each.node for each in self.kept]}

    def with_saved(self, saved: Saved) -> Tuning:
        """Returns it with the file that was written."""
        return replace(self, saved=saved)
