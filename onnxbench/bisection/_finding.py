"""What a search measures of one tensor, and when that is a fault.

How much is too much is told in ``_search`` (*Noise*). A tensor is *settled* where nothing needs to be measured of the
node that makes it: it is the reference's within rounding, and so is all that the node reads. An own error beyond
rounding would have to be taken back, to the last bits, by what is inherited from inputs that are right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from onnxbench.bisection._measures import Distance, epsilon
from onnxbench.bisection._sides import is_floating

if TYPE_CHECKING:
    from onnxbench.captures import Value
    from onnxbench.drift import TensorDrift, Tolerance

FACTOR, PEAK_FACTOR = 20.0, 200.0
TWIN, PEAK_TWIN = 4.0, 64.0
"""In units of precision: what the same node on the same kernels may be off."""
_GROWTH = 10.0


@dataclass(slots=True)
class Finding:
    """What was measured of one tensor, on the set of inputs where it is worst.

    Attributes:
        tensor: The suspect's tensor.
        partner: The reference's.
        maker: Position of the node that makes it.
        nodes: The region: the nodes between it and the matched tensors before it.
        inputs: These tensors.
        total: How far the suspect's value is from the reference's.
        own: The same, where the region is fed the reference's values; None where this could not be judged, or need not.
        inherited: How far the suspect's value is from what the region makes of the reference's values.
        before: The largest ``total`` among the region's inputs.
        noise: ``rel`` and ``peak`` of what the region makes of inputs that are moved by one unit of precision.
        precision: The coarsest unit of precision of both values and of inputs that are of another type in the suspect;
            0 for integers and the like.
        twin: Whether both sides run the same node on the same kernels.
        number: Which set of inputs this was on.
        settled: Whether its own error need not be measured: it is within rounding.
        note: Why it could not be judged, or ``""``.
        allowed: What an element may be off, for the verdict on outputs and for ``failing``.
        drift: All that there is to know of ``total``; None unless the search is thorough.
    """

    tensor: str
    partner: str
    maker: int
    nodes: tuple[int, ...] = ()
    inputs: tuple[str, ...] = ()
    total: Distance = field(default_factory=Distance)
    own: Distance | None = None
    inherited: Distance | None = None
    before: Distance | None = None
    noise: tuple[float, float] = (0.0, 0.0)
    precision: float = 0.0
    twin: bool = False
    number: int = 0
    settled: bool = False
    note: str = ""
    allowed: Tolerance | None = None
    drift: TensorDrift | None = None

    def excess(self, median: float) -> float:
        """Returns the own error over what is allowed: more than 1 is a fault, and infinite what is wrong in kind."""
        own = self.own
        if own is None or own.equal:
            return 0.0
        if own.problem:
            return math.inf
        if self.twin:
            return max(_over(own.rel, TWIN * self.precision), _over(own.peak, PEAK_TWIN * self.precision))
        steps = math.sqrt(len(self.nodes))  # rounding adds up over the nodes of a region
        return max(
            _over(own.rel, FACTOR * steps * max(self.precision, self.noise[0], median)),
            _over(own.peak, PEAK_FACTOR * steps * max(self.precision, self.noise[1], median)),
        )

    @property
    def is_unexplained(self) -> bool:
        """Whether it is further off than rounding explains, and so much more than its inputs, but not by its own."""
        before = self.before.severity if self.before is not None else 0.0
        return self.total.severity > _GROWTH * before and replace(self, own=self.total).excess(0.0) > 1

    @property
    def growth(self) -> float:
        """How many times larger the error is behind the region than before it; 0 where there is none before."""
        if self.before is None or not self.before.rel or self.total.problem:
            return 0.0
        return self.total.rel / self.before.rel if math.isfinite(self.total.rel) else 0.0


def is_settled(finding: Finding, total: Distance, before: Iterable[Distance]) -> bool:
    """Tells whether a tensor, and all that its region reads, are the reference's within rounding.

    Args:
        finding: What is known of the tensor.
        total: How far it is from the reference's value.
        before: How far what the region reads is.
    """
    return replace(finding, own=total).excess(0.0) <= 1 and all(map(is_right, before))


def is_right(distance: Distance) -> bool:
    """Tells whether a value is the reference's within rounding."""
    unit = max(map(epsilon, distance.dtypes))
    return distance.equal or (
        not distance.problem and distance.rel <= FACTOR * unit and distance.peak <= PEAK_FACTOR * unit
    )


def _over(value: float, allowed: float) -> float:
    return value / allowed if allowed else math.inf if value else 0.0


@dataclass(slots=True)
class Kept:
    """Values around tensors that look wrong, so that what they do to the outputs is told without another run.

    Attributes:
        number: The set of inputs.
        room: How many more bytes may be kept.
        worst: The largest excess seen, before noise is known.
        values: By tensor: the reference's value, the suspect's, and what the region makes of the reference's inputs.
        inputs: The reference's values of what these regions read, by the suspect's names.
        outputs: The suspect's outputs.
        reference_outputs: The reference's.
        mended: Tensors that were mended in a run of what depends on them; none if there was no such run.
        mended_outputs: The suspect's outputs then.
    """

    number: int = -1
    room: int = 0
    worst: float = 0.0
    values: dict[str, tuple[Value, Value, Value]] = field(default_factory=dict)
    outputs: dict[str, Value] = field(default_factory=dict)
    reference_outputs: dict[str, Value] = field(default_factory=dict)
    inputs: dict[str, Value] = field(default_factory=dict)
    mended: frozenset[str] = frozenset()
    mended_outputs: dict[str, Value] = field(default_factory=dict)

    def add(self, finding: Finding, held: Mapping[str, Value], plain: Value, forced: Value) -> None:
        """Keeps what was seen of a tensor if it looks wrong and there is room."""
        excess = finding.excess(0.0)
        if excess <= 1:
            return
        self.worst = max(self.worst, excess)
        given = (held[finding.tensor], plain, forced)
        inputs = {name: held[name] for name in finding.inputs if name not in self.inputs}
        size = sum(getattr(value, "nbytes", 0) for value in (*given, *inputs.values()))
        if size <= self.room:
            self.room -= size
            self.values[finding.tensor] = given
            self.inputs.update(inputs)


def mended(wanted: Value, plain: Value, forced: Value) -> Value:
    """Returns the suspect's value less its node's own error, so that what it inherits stays.

    Args:
        wanted: The reference's value, in the suspect's element type.
        plain: The suspect's value.
        forced: What the region makes of the reference's values.
    """
    import numpy as np

    if not is_floating(plain) or plain.shape != wanted.shape or forced.shape != wanted.shape:
        return wanted
    wide = np.float64 if plain.dtype.itemsize > 2 else np.float32
    with np.errstate(all="ignore"):
        inherited = plain.astype(wide) - forced.astype(wide)
        value = wanted.astype(wide) + np.where(np.isfinite(inherited), inherited, 0)
    return value.astype(plain.dtype)
