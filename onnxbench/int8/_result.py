"""What quantization made of a model, and how far that is from float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.drift import TensorDrift
    from onnxbench.graph import NodeRef
    from onnxbench.int8._measures import TensorError
    from onnxbench.model import Model
    from onnxbench.tuning import Candidate, Tuning
    from onnxbench.writer import Saved

_USELESS = 10.0
"""Signal to noise in dB below which a model is told to be another one."""


@dataclass(frozen=True, slots=True)
class OutputError:
    """How an output compares with that of the float model.

    Attributes:
        output: The output.
        sqnr_db: Signal to noise in dB on the sample that is worst; infinite without a difference, None where it cannot
            be measured.
        max_abs: The largest difference on any sample.
        cosine: The lowest cosine similarity.
        sample: The sample with the lowest signal to noise.
        reason: What is wrong in kind, in words: NaN, another shape.
    """

    output: str
    sqnr_db: float | None
    max_abs: float | None
    cosine: float | None
    sample: int
    reason: str = ""

    @classmethod
    def of(cls, output: str, drifts: Sequence[TensorDrift]) -> OutputError:
        """Returns the worst of what samples say."""
        broken = next((at for at, each in enumerate(drifts) if each.sqnr_db is None and not each.bitwise_equal), None)
        if broken is not None:
            reason = drifts[broken].reason or "nothing could be compared"
            return cls(output, None, None, None, broken, reason)
        told = [(each.sqnr_db, at) for at, each in enumerate(drifts) if each.sqnr_db is not None]
        worst, sample = min(told, default=(None, 0))
        largest = max((each.max_abs for each in drifts if each.max_abs is not None), default=None)
        cosine = min((each.cosine for each in drifts if each.cosine is not None), default=None)
        reason = next((each.reason for each in drifts if each.nonfinite), "")
        if all(each.elements and each.both_nan == each.elements for each in drifts):
            reason = "NaN throughout, as of the float model: that says nothing"
        return cls(output, worst, largest, cosine, sample, reason)

    @property
    def text(self) -> str:
        """The comparison in a few words."""
        if self.reason and self.sqnr_db is None:
            return self.reason
        if not self.max_abs:
            return "no difference"
        return f"signal to noise {self.sqnr_db:.1f} dB, largest difference {self.max_abs:.3g}"


@dataclass(frozen=True, slots=True)
class Quantization:
    """A model that was quantized, measured.

    Attributes:
        source: The name of the model file.
        target: What it is for: ``tensorrt`` or ``onnxruntime``.
        quantizer: What made it.
        method: How ranges were taken.
        per_channel: Whether weights have a scale for each channel.
        samples: With how many samples it was calibrated.
        sha256: The digest of these.
        nodes: The nodes that can be in int8, in the order of the graph; ``kept`` ones are in float.
        outputs: How the outputs compare with those of the float model, on all samples.
        weights: What quantization did to each weight, the worst first.
        activations: What it does to each activation, the worst first.
        search: What the search for nodes to leave in float found; None without one.
        choices: What was decided about inputs without being told.
        notes: What a user should know beyond that.
        refs: The nodes left in float, in the model as it was given.
        model: The quantized model; None where a search found none within the tolerance.
        saved: The file that was written.
    """

    source: str
    target: str
    quantizer: str
    method: str
    per_channel: bool
    samples: int
    sha256: str
    nodes: tuple[Candidate, ...]
    outputs: tuple[OutputError, ...]
    weights: tuple[TensorError, ...]
    activations: tuple[TensorError, ...]
    search: Tuning | None = None
    choices: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    refs: tuple[NodeRef, ...] = field(default=(), repr=False)
    model: Model | None = field(default=None, repr=False)
    saved: Saved | None = None

    @property
    def kept(self) -> tuple[Candidate, ...]:
        """The nodes left in float."""
        return tuple(each for each in self.nodes if each.kept)

    @property
    def passed(self) -> bool:
        """Whether there is a model, within the tolerance if one was given."""
        return self.search is None or self.search.passed

    @property
    def worst(self) -> OutputError:
        """The output that is furthest from float."""
        return min(self.outputs, key=lambda each: float("-inf") if each.sqnr_db is None else each.sqnr_db)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if self.search is not None:
            return self.search.verdict
        done = len(self.nodes) - len(self.kept)
        left = f", {len(self.kept):,} left in float" if self.kept else ""
        return f"{plural(done, 'node')} in int8{left}; output {self.worst.output!r}, the worst: {self.worst.text}"

    def warnings(self) -> list[str]:
        """Returns what speaks against the use of the model."""
        said = list(self.notes)
        lowest = self.worst.sqnr_db
        if lowest is not None and lowest < _USELESS:
            said.append(
                f"output {self.worst.output!r} has a signal to noise below {_USELESS:.0f} dB, so this is not the same "
                "model any more: calibrate with inputs like those that it will get, or leave nodes in float (--search)"
            )
        return said

    def to_json(self) -> dict[str, Any]:
        """Returns the result as plain values."""
        left_out = ("refs", "model")
        values = {name: getattr(self, name) for name in self.__slots__ if name not in left_out}
        return {**values, "passed": self.passed, "verdict": self.verdict, "kept": [each.node for each in self.kept]}
