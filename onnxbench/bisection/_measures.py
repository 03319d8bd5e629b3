"""How far a value is from the reference's, in the two numbers that the search decides by, and cheaply.

``onnxbench.drift`` measures everything there is to know of two tensors, at half a microsecond an element. The search
looks at every tensor of two models, and at most twice, so it asks for less: whether they are equal, what is not
finite, and how large the difference is

* as a whole: ``rel``, the length of the difference over the length of the reference, both as vectors. Rounding is a
  few units of the element type's precision here, whatever the operator sums up;
* at its worst: ``peak``, the largest |difference| over |reference| + its typical size. A single wrong row, border or
  channel shows here, and also where a few huge values (a mask of -3e38) drown all others in ``rel``.

Arithmetic is in float32 where the values are at most that and stay in range, else in float64.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    import numpy as np

    from onnxbench.drift import Tolerance

    Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

_BLOCK = 1 << 17
"""Elements that are looked at in one go: few enough to stay in a processor's cache."""
_SAMPLE = 1 << 11
_RUN = 16
"""Elements of a sample that are neighbours: those that a processor fetches at once."""
_FIRST = 1 << 8
"""Elements that mostly tell already that two tensors are not the same."""
_EPSILONS = {
    "float64": 2.0**-52, "complex128": 2.0**-52, "float32": 2.0**-23, "complex64": 2.0**-23, "float16": 2.0**-10,
    "bfloat16": 2.0**-7, "float8_e4m3fn": 2.0**-3, "float8_e4m3fnuz": 2.0**-3, "float8_e5m2": 2.0**-2,
    "float8_e5m2fnuz": 2.0**-2, "float4_e2m1fn": 2.0**-1,
}  # fmt: skip


def epsilon(dtype: str) -> float:
    """Returns the distance from 1 to the next larger number of an element type, 0 for integers and the like."""
    return _EPSILONS.get(dtype, 0.0)


@dataclass(frozen=True, slots=True)
class Distance:
    """How far a value is from the reference's.

    Attributes:
        problem: ``shape``, ``kind`` (no tensor, or a text and a number) or ``nonfinite``; ``""`` for plain numbers.
        rel: Length of the difference over the length of the reference; infinite where the reference is all zero.
        peak: Largest |difference| over |reference| + its typical size.
        max_abs: Largest absolute difference of finite elements.
        at: Index of it, or of the first element that is finite on one side only.
        size: Length of the reference, as a vector.
        elements: How many elements there are.
        nonfinite: How many are NaN or infinite on one side only, or differ in that.
        missing: How many of these are finite in the value, and not in the reference.
        failing: How many are beyond the tolerance.
        equal: Whether all elements are equal, NaN to NaN too.
        dtypes: Element types of the reference and the value.
        shapes: Their shapes.
    """

    problem: str = ""
    rel: float = 0.0
    peak: float = 0.0
    max_abs: float = 0.0
    at: tuple[int, ...] = ()
    size: float = 0.0
    elements: int = 0
    nonfinite: int = 0
    missing: int = 0
    failing: int = 0
    equal: bool = False
    dtypes: tuple[str, str] = ("", "")
    shapes: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())

    @property
    def passed(self) -> bool:
        """Whether all elements are within the tolerance (which is not that of the search)."""
        return not self.problem and not self.failing

    @property
    def severity(self) -> float:
        """One number to sort by: what is wrong in kind comes before all numbers."""
        return math.inf if self.problem else self.rel

    @property
    def text(self) -> str:
        """The distance in a few words: ``3.1e-02``, ``12 NaN or Inf``, ``shape [2, 3], expected [3, 2]``."""
        if self.problem == "shape":
            return f"shape {list(self.shapes[1])}, expected {list(self.shapes[0])}"
        if self.problem == "kind":
            return f"{self.dtypes[1]}, expected {self.dtypes[0]}"
        if self.problem == "nonfinite":
            return f"{self.nonfinite:,} of {self.elements:,} NaN or Inf on one side"
        return "0" if self.equal else f"{self.rel:.1e}" if math.isfinite(self.rel) else f"{self.max_abs:.1e} from zero"

    def to_json(self) -> dict[str, Any]:
        """Returns the distance as plain values."""
        return {name: getattr(self, name) for name in self.__slots__}


def measure(reference: Any, value: Any, tolerance: Tolerance | None = None) -> Distance:
    """Returns how far a value is from the reference's; element types may differ.

    Args:
        reference: What should be: an array.
        value: What is.
        tolerance: What an element may be apart, for ``failing``; None counts none.
    """
    import numpy as np

    if not isinstance(reference, np.ndarray) or not isinstance(value, np.ndarray):
        same = reference is None and value is None
        return Distance("" if same else "kind", equal=same, dtypes=(_kind(reference), _kind(value)))
    found = Distance(
        dtypes=(_dtype(reference), _dtype(value)), shapes=(reference.shape, value.shape), elements=reference.size
    )
    if reference.shape != value.shape:
        return replace(found, problem="shape", rel=math.inf, peak=math.inf)
    texts = [array.dtype.kind in "OUS" for array in (reference, value)]
    if any(texts):
        if not all(texts):
            return replace(found, problem="kind", rel=math.inf, peak=math.inf)
        unlike = np.flatnonzero(reference.reshape(-1) != value.reshape(-1))
        share = unlike.size / max(1, reference.size)
        return replace(found, rel=share, peak=share, equal=not unlike.size, failing=unlike.size)
    if reference.dtype == value.dtype and _same_bytes(reference, value):
        return replace(found, equal=True)
    with np.errstate(all="ignore"):
        return _numbers(found, reference.reshape(-1), value.reshape(-1), tolerance)


def _same_bytes(one: Array, other: Array) -> bool:
    import numpy as np

    if one.dtype.itemsize > 8 or not (one.flags.c_contiguous and other.flags.c_contiguous):
        return False
    kind = np.dtype(f"u{one.dtype.itemsize}")
    bits = one.reshape(-1).view(kind), other.reshape(-1).view(kind)
    parts = [slice(_FIRST), *(slice(start, start + _BLOCK) for start in range(0, one.size, _BLOCK))]
    return all(np.array_equal(bits[0][part], bits[1][part]) for part in parts)


def _numbers(found: Distance, reference: Array, value: Array, tolerance: Tolerance | None) -> Distance:
    import numpy as np

    typical = _typical(reference)
    limit = _limit(reference, value)
    sums = _Sums()
    kind = _common_kind(reference, value)
    room = np.empty((3, 2 * min(_BLOCK, reference.size)), kind)  # complex numbers are two each
    for one, other in _blocks(reference, value, kind):
        e, a = one, other
        if limit:
            e = np.where(np.isfinite(e), np.clip(e, -limit, limit), e)
        difference = np.subtract(a, e, out=room[0, : e.size])
        dots = float(np.dot(difference, difference)), float(np.dot(e, e))
        if not (math.isfinite(dots[0]) and math.isfinite(dots[1])):
            e, a = e.astype(np.float64), a.astype(np.float64)
            finite = np.isfinite(e) & np.isfinite(a)
            if not finite.all():
                agree = finite | (e == a) | (np.isnan(e) & np.isnan(a))
                sums.add_nonfinite(np.flatnonzero(~agree), a)
                e, a = np.where(finite, e, 0.0), np.where(finite, a, 0.0)
            difference = a - e
            dots = float(np.dot(difference, difference)), float(np.dot(e, e))
        sums.squares += dots[0]
        sums.reference_squares += dots[1]
        if dots[0] > 0 or difference.any():
            rest = room[1:, : e.size] if e.dtype == kind else np.empty((2, e.size), e.dtype)
            sums.add_differences(difference, e, typical, tolerance, rest)
        sums.start += one.size
    length = math.sqrt(sums.reference_squares)
    apart = math.sqrt(sums.squares) or sums.most
    where = sums.first if sums.first >= 0 else sums.at
    if "c" in (reference.dtype.kind, value.dtype.kind) and where >= 0:
        where //= 2  # real and imaginary parts were taken apart
    return replace(
        found,
        problem="nonfinite" if sums.nonfinite else "",
        rel=0.0 if not apart else apart / length if length else math.inf,
        peak=sums.peak,
        max_abs=sums.most,
        at=tuple(int(i) for i in np.unravel_index(where, found.shapes[0])) if where >= 0 else (),
        size=length,
        nonfinite=sums.nonfinite,
        missing=sums.missing,
        failing=sums.failing + sums.nonfinite,
        equal=not sums.nonfinite and not sums.most,
    )


@dataclass(slots=True)
class _Sums:
    """What is known of the blocks so far (see ``Distance``).

    Attributes:
        start: Elements before the block at hand.
        squares: Sum of the squares of differences.
        reference_squares: Sum of the squares of the reference.
        most: The largest difference.
        at: Its index.
        first: Index of the first element that is finite on one side only.
    """

    start: int = 0
    squares: float = 0.0
    reference_squares: float = 0.0
    peak: float = 0.0
    most: float = 0.0
    at: int = -1
    first: int = -1
    nonfinite: int = 0
    missing: int = 0
    failing: int = 0

    def add_nonfinite(self, wrong: Array, value: Array) -> None:
        """Counts elements that are wrong in kind, given by their indices in a block."""
        import numpy as np

        if wrong.size and self.first < 0:
            self.first = self.start + int(wrong[0])
        self.nonfinite += int(wrong.size)
        self.missing += int(np.count_nonzero(np.isfinite(value[wrong])))

    def add_differences(
        self, difference: Array, reference: Array, typical: float, tolerance: Tolerance | None, room: Array
    ) -> None:
        """Takes the differences of a block into account, and uses their place and ``room`` for other things."""
        import numpy as np

        sizes, scratch = room
        np.abs(difference, out=difference)
        at = int(difference.argmax())
        largest = float(difference[at])
        if largest > self.most:
            self.most, self.at = largest, self.start + at
        size = np.abs(reference, out=sizes)
        ratios = np.add(size, typical, out=scratch)
        tiny = np.finfo(ratios.dtype).tiny
        if typical < tiny:
            np.maximum(ratios, tiny, out=ratios)
        np.divide(difference, ratios, out=ratios)
        peak = float(ratios.max())
        self.peak = max(self.peak, peak)
        if tolerance is None or largest <= tolerance.atol:
            return
        bound = 1.01 * peak  # no difference is beyond this times (|reference| + typical)
        if bound > tolerance.rtol or bound * typical > tolerance.atol or typical < tiny:
            allowed = np.multiply(size, tolerance.rtol, out=scratch)
            allowed += tolerance.atol
            self.failing += int(np.count_nonzero(difference > allowed))


def _limit(reference: Array, value: Array) -> float:
    """Returns the largest number of the value's element type if that is narrower than the reference's; 0 otherwise.

    A number beyond it (a mask of -3e38) is as right as can be if it is that largest number; infinity is not.
    """
    import ml_dtypes

    names = [array.dtype.name for array in (reference, value)]
    if names[0] == names[1] or not all(epsilon(name) and "complex" not in name for name in names):
        return 0.0
    largest = [float(ml_dtypes.finfo(array.dtype).max) for array in (reference, value)]  # type: ignore[no-untyped-call]  # ml_dtypes is not typed
    return largest[1] if largest[1] < largest[0] else 0.0


def _common_kind(reference: Array, value: Array) -> type[np.floating[Any]]:
    """Returns the type of floats that holds both."""
    import numpy as np

    narrow = all(
        array.dtype.itemsize <= 2 or (array.dtype.kind in "fV" and array.dtype.itemsize <= 4)
        for array in (reference, value)
    )
    return np.float32 if narrow else np.float64


def _blocks(reference: Array, value: Array, kind: type[np.floating[Any]]) -> Iterator[tuple[Array, Array]]:
    """Yields blocks as floats; of complex numbers both parts, in turns."""
    import numpy as np

    for start in range(0, reference.size, _BLOCK):
        one, other = reference[start : start + _BLOCK], value[start : start + _BLOCK]
        if one.dtype.kind == "c" or other.dtype.kind == "c":
            both = [array.astype(np.complex128).view(np.float64) for array in (one, other)]
            yield both[0], both[1]
        else:
            yield _as_floats(one, kind), _as_floats(other, kind)


def _as_floats(block: Array, kind: Any) -> Array:
    import numpy as np

    if block.dtype.kind == "V" or block.dtype.num >= 256:
        block = block.astype(np.float32)
    made: Array = block.astype(kind, copy=False)
    return made


def _typical(reference: Array) -> float:
    """Returns the median size of elements that are finite and not 0, of a sample spread over all; 0 without any."""
    import numpy as np

    runs = reference.size // _RUN
    step = max(1, reference.size // _SAMPLE)
    sample = reference[: runs * _RUN].reshape(-1, _RUN)[::step].reshape(-1) if runs >= step else reference[::step]
    if sample.dtype.kind == "c":
        sizes = np.abs(sample.astype(np.complex128))
    else:
        narrow = sample.dtype.kind in "fV" and sample.dtype.itemsize <= 4
        sizes = np.abs(_as_floats(sample, np.float32 if narrow else np.float64))
    sizes = sizes[(sizes > 0) & (sizes < np.inf)]
    if not sizes.size:
        return 0.0
    middle = (sizes.size - 1) // 2, sizes.size // 2
    sizes.partition(middle)
    return (float(sizes[middle[0]]) + float(sizes[middle[1]])) / 2  # the median, exactly


def _dtype(array: Array) -> str:
    return _dtype_name(array.dtype)


@cache
def _dtype_name(dtype: np.dtype[Any]) -> str:
    return "string" if dtype.kind in "OUS" else str(dtype.newbyteorder("=").name)


def _kind(value: Any) -> str:
    import numpy as np

    if value is None:
        return "nothing"
    if isinstance(value, np.ndarray):
        return "a tensor"
    return "a sequence" if isinstance(value, (list, tuple)) else "a map"
