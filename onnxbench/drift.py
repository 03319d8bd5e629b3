"""How far two tensors are apart: measured in blocks, so that memory stays bounded, and judged.

The order of judgement matters. Shapes and element types come first. Then values that are not finite: a NaN or an
infinity on one side only is a failure whatever the tolerance, since ``abs(nan) > tolerance`` is false and would
pass. (Two NaNs agree, as do two infinities of one sign.) Only then are finite elements measured:

    max, mean, p99 of |expected - actual|; the largest |difference| / |expected| where expected is not 0;
    distance in ULP (how many representable numbers lie between); cosine similarity;
    signal to quantization noise, 10 log10(sum expected^2 / sum difference^2), in dB

and an element fails when |difference| > atol + rtol * |expected|. Differences are computed in float64 (exactly, in
integers, for integer types), sums too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from onnxbench import elements

if TYPE_CHECKING:
    import numpy as np

    from onnxbench.elements import Array

_P99_BITS = 16


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far apart two tensors may be.

    Attributes:
        atol: Absolute part.
        rtol: Part relative to the expected value.
        bitwise: Every bit must agree: NaN payloads and the sign of zero too. The numbers above mean nothing then.
    """

    atol: float = 0.0
    rtol: float = 0.0
    bitwise: bool = False

    def __post_init__(self) -> None:
        if not (self.atol >= 0 and self.rtol >= 0):
            raise ValueError(f"a tolerance cannot be negative or NaN: atol={self.atol}, rtol={self.rtol}")

    @classmethod
    def for_rounding(cls) -> Tolerance:
        """Returns what rounding to float16 (11 bits) here and there within a network does to its values."""
        return cls(atol=1e-2, rtol=1e-2)


EXACT = Tolerance()
BITWISE = Tolerance(bitwise=True)
_DEFAULTS = {
    "float64": Tolerance(1e-9, 1e-7),
    "complex128": Tolerance(1e-9, 1e-7),
    "float32": Tolerance(1e-5, 1e-4),
    "complex64": Tolerance(1e-5, 1e-4),
    "float16": Tolerance(1e-3, 1e-2),
    "bfloat16": Tolerance(1e-2, 5e-2),
    "float8_e4m3fn": Tolerance(2**-6, 2**-3),
    "float8_e4m3fnuz": Tolerance(2**-6, 2**-3),
    "float8_e5m2": Tolerance(2**-5, 2**-2),
    "float8_e5m2fnuz": Tolerance(2**-5, 2**-2),
}


@cache
def default_tolerance(dtype: np.dtype[Any]) -> Tolerance:
    """Returns the tolerance that an element type has unless told otherwise; exact for integers and strings.

    They cover what two correct implementations of a network differ by, not what one operator does.
    """
    return _DEFAULTS.get(dtype.name, EXACT)


@dataclass(frozen=True, slots=True)
class TensorDrift:
    """How two tensors compare. Numbers are over the elements that are finite in both; None where undefined.

    Attributes:
        name: The tensor.
        passed: Whether they agree within the tolerance.
        reason: Why not, in words; ``""`` when passed.
        bitwise_equal: Whether they agree bit for bit (shape and element type too).
        expected_dtype: Element type of the expected tensor.
        actual_dtype: Element type of the actual one.
        expected_shape: Its shape.
        actual_shape: The other's.
        elements: How many elements were compared.
        tolerance: What was allowed.
        failing: How many elements are beyond it, those that are finite on one side only included.
        nonfinite: How many are NaN or infinite on one side only, or differ in that.
        first_nonfinite: The index of the first of those.
        both_nan: How many are NaN on both sides.
        max_abs: Largest absolute difference.
        max_abs_index: Where it is.
        expected_at: The expected value there.
        actual_at: The actual one.
        mean_abs: Mean absolute difference.
        p99_abs: 99 % of the absolute differences are at most this (within 1e-6 of it, relatively).
        max_rel: Largest relative difference, where the expected value is not 0.
        max_ulp: Largest distance in units of the last place, for equal floating types.
        cosine: Cosine similarity.
        sqnr_db: Signal to noise in dB; infinite when there is no difference.
    """

    name: str
    passed: bool
    reason: str
    bitwise_equal: bool
    expected_dtype: str
    actual_dtype: str
    expected_shape: tuple[int, ...]
    actual_shape: tuple[int, ...]
    elements: int
    tolerance: Tolerance
    failing: int = 0
    nonfinite: int = 0
    first_nonfinite: tuple[int, ...] | None = None
    both_nan: int = 0
    max_abs: float | None = None
    max_abs_index: tuple[int, ...] | None = None
    expected_at: Any = None
    actual_at: Any = None
    mean_abs: float | None = None
    p99_abs: float | None = None
    max_rel: float | None = None
    max_ulp: int | None = None
    cosine: float | None = None
    sqnr_db: float | None = None


def are_nan(drifts: Sequence[TensorDrift]) -> bool:
    """Tells whether tensors are NaN throughout on both sides, so that nothing can be told of them."""
    return bool(drifts) and all(drift.elements and drift.both_nan == drift.elements for drift in drifts)


@dataclass(frozen=True, slots=True)
class DriftReport:
    """How many tensors compare.

    Attributes:
        tensors: One entry each, in the order of what was expected.
        missing: Expected tensors that there are none of.
    """

    tensors: tuple[TensorDrift, ...]
    missing: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all agree, none is missing, and there is one at all."""
        return bool(self.tensors) and not self.missing and all(drift.passed for drift in self.tensors)

    @property
    def bitwise_equal(self) -> bool:
        """Whether all agree bit for bit."""
        return self.passed and all(drift.bitwise_equal for drift in self.tensors)

    @property
    def worst(self) -> TensorDrift | None:
        """The tensor that fails most: by non-finite elements, then by the share of failing ones, then by SQNR."""
        return max(self.tensors, key=_badness, default=None)

    @property
    def verdict(self) -> str:
        """One sentence."""
        if not self.tensors:
            return "FAILED: nothing was compared"
        count = len(self.tensors)
        failed = sum(not drift.passed for drift in self.tensors) + len(self.missing)
        if failed:
            return f"FAILED: {failed} of {count + len(self.missing)} tensors differ"
        same = sum(drift.bitwise_equal for drift in self.tensors)
        if same == count:
            return f"PASSED: {count} {'tensor is' if count == 1 else 'tensors are'} equal bit for bit"
        return f"PASSED: {count} within tolerance, {same} of them equal bit for bit"

    def to_json(self) -> dict[str, Any]:
        """Returns the report as plain values."""
        return {
            "passed": self.passed,
            "bitwise_equal": self.bitwise_equal,
            "verdict": self.verdict,
            "missing": self.missing,
            "tensors": self.tensors,
        }


def _badness(drift: TensorDrift) -> tuple[bool, bool, float, float]:
    shapes_differ = drift.expected_shape != drift.actual_shape
    share = drift.failing / max(1, drift.elements)
    noise = -drift.sqnr_db if drift.sqnr_db is not None else math.inf if not drift.bitwise_equal else -math.inf
    return not drift.passed, shapes_differ or bool(drift.nonfinite), share, noise


def summarize(report: DriftReport, *, limit: int = 5) -> list[str]:
    """Returns lines that say what failed, worst first, at most ``limit`` tensors."""
    failed = sorted((drift for drift in report.tensors if not drift.passed), key=_badness, reverse=True)
    lines = [f"{name}: missing" for name in report.missing]
    lines += [f"{drift.name}: {drift.reason}" for drift in failed]
    return [*lines[:limit], *([f"and {len(lines) - limit} more"] if len(lines) > limit else [])]


def compare_all(
    expected: Mapping[str, Any],
    actual: Mapping[str, Any],
    *,
    tolerance: Tolerance | None = None,
    tolerances: Mapping[str, Tolerance] | None = None,
    check_dtype: bool = True,
) -> DriftReport:
    """Returns how values compare, tensor by tensor; the elements of sequences and maps are tensors of their own.

    Args:
        expected: What should be, by name. Values are taken one at a time, so it may be a file.
        actual: What is; further entries are not looked at.
        tolerance: For all; None: by element type (``default_tolerance``).
        tolerances: For single tensors.
        check_dtype: Whether another element type is a failure.
    """
    drifts: list[TensorDrift] = []
    missing: list[str] = []
    for name in expected:
        if name not in actual:
            missing.append(name)
            continue
        allowed = (tolerances or {}).get(name, tolerance)
        drifts += compare_values(name, expected[name], actual[name], tolerance=allowed, check_dtype=check_dtype)
    return DriftReport(tuple(drifts), tuple(missing))


def compare_values(
    name: str, expected: Any, actual: Any, *, tolerance: Tolerance | None = None, check_dtype: bool = True
) -> list[TensorDrift]:
    """Returns how two values compare: one entry for tensors, one per element (``name[0]``) for sequences and maps."""
    if isinstance(expected, (list, tuple)) and isinstance(actual, (list, tuple)) and len(expected) == len(actual):
        pairs = [(f"{name}[{i}]", *pair) for i, pair in enumerate(zip(expected, actual, strict=True))]
    elif isinstance(expected, Mapping) and isinstance(actual, Mapping) and set(expected) == set(actual):
        pairs = [(f"{name}[{key!r}]", *elements.as_in_runtime([expected[key], actual[key]])) for key in expected]
    else:
        plain = not any(isinstance(value, (list, tuple, Mapping)) or value is None for value in (expected, actual))
        return [
            compare(expected, actual, tolerance, name=name, check_dtype=check_dtype)
            if plain
            else _other_kinds(name, expected, actual)
        ]
    return [
        drift
        for inner, one, other in pairs
        for drift in compare_values(inner, one, other, tolerance=tolerance, check_dtype=check_dtype)
    ]


def _other_kinds(name: str, expected: Any, actual: Any) -> TensorDrift:
    words = [_kind(expected), _kind(actual)]
    same = expected is None and actual is None
    reason = "" if same else f"expected {words[0]}, got {words[1]}"
    return TensorDrift(name, same, reason, same, words[0], words[1], (), (), 0, EXACT)


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return f"a map of {len(value)}"
    return f"a sequence of {len(value)}" if isinstance(value, (list, tuple)) else "a tensor"


def compare(
    expected: Any,
    actual: Any,
    tolerance: Tolerance | None = None,
    *,
    name: str = "",
    check_dtype: bool = True,
) -> TensorDrift:
    """Returns how two arrays compare (see the module's text for what is measured and how it is judged).

    Args:
        expected: What should be: any element type, ``ml_dtypes`` and strings included.
        actual: What is.
        tolerance: What is allowed; None: by the expected element type, or the coarser of both if they may differ.
        name: The tensor's name, for the result.
        check_dtype: Whether another element type is a failure. Numbers are computed in either case.
    """
    import numpy as np

    expected, actual = np.asarray(expected), np.asarray(actual)
    allowed = tolerance or default_tolerance(expected.dtype)
    if tolerance is None and not check_dtype and actual.dtype.name in _DEFAULTS:
        coarser = default_tolerance(actual.dtype)
        allowed = Tolerance(max(allowed.atol, coarser.atol), max(allowed.rtol, coarser.rtol))
    heads = (elements.dtype_word(expected), elements.dtype_word(actual), tuple(expected.shape), tuple(actual.shape))
    if expected.shape != actual.shape:
        reason = f"the shape is {list(actual.shape)}, expected {list(expected.shape)}"
        return TensorDrift(name, False, reason, False, *heads, elements=0, tolerance=allowed)
    texts = [array.dtype.kind in "OUS" for array in (expected, actual)]
    same_dtype = heads[0] == heads[1]
    wrong_dtype = f"the element type is {heads[1]}, expected {heads[0]}" if check_dtype and not same_dtype else ""
    if any(texts):
        return _compare_texts(name, expected, actual, heads, all(texts), allowed)
    equal = same_dtype and _same_bits(expected, actual)
    if equal:
        measures = _of_equals(expected)
        return TensorDrift(name, True, "", True, *heads, elements=expected.size, tolerance=allowed, **measures)
    tally = _Tally(expected, actual, allowed)
    tally.run()
    failing = tally.failing
    if allowed.bitwise:
        failing = tally.bit_mismatches if same_dtype else expected.size
    reason = wrong_dtype or _reason(tally, allowed, failing)
    return TensorDrift(
        name=name,
        passed=not reason,
        reason=reason,
        bitwise_equal=False,
        expected_dtype=heads[0],
        actual_dtype=heads[1],
        expected_shape=heads[2],
        actual_shape=heads[3],
        elements=expected.size,
        tolerance=allowed,
        failing=failing,
        **tally.result(),
    )


def _reason(tally: _Tally, allowed: Tolerance, failing: int) -> str:
    total = tally.expected.size
    if allowed.bitwise:
        return f"{failing:,} of {total:,} elements differ in some bit"
    if tally.nonfinite:
        at = tally.first_nonfinite
        one, other = (elements.to_plain(flat[at]) for flat in tally.flat)
        return (
            f"{tally.nonfinite:,} of {total:,} elements are NaN or infinite on one side only "
            f"(first at {list(tally.index(at))}: {one} expected, {other} got)"
        )
    if tally.failing:
        return f"{tally.failing:,} of {total:,} elements are beyond atol {allowed.atol:g} + rtol {allowed.rtol:g}"
    return ""


def _of_equals(array: Array) -> dict[str, Any]:
    """Returns the measures of an array against itself, without measuring."""
    import numpy as np

    both_nan, first, start = 0, -1, 0
    for (block,) in elements.in_blocks(array.reshape(-1)):
        if elements.is_integral(array.dtype):
            first = 0
            break
        wide = elements.widen(block)
        both_nan += int(np.count_nonzero(np.isnan(wide)))
        finite = np.isfinite(wide)
        if first < 0 and finite.any():
            first = start + int(np.argmax(finite))
        start += block.size
    if first < 0:
        return {"both_nan": both_nan}
    value = elements.to_plain(array.reshape(-1)[first])
    ranked = not elements.is_integral(array.dtype) and array.dtype.kind != "c"
    return {
        "both_nan": both_nan,
        "max_abs": 0.0,
        "max_abs_index": tuple(int(i) for i in np.unravel_index(first, array.shape)),
        "expected_at": value,
        "actual_at": value,
        "mean_abs": 0.0,
        "p99_abs": 0.0,
        "max_rel": 0.0,
        "max_ulp": 0 if ranked else None,
        "cosine": 1.0,
        "sqnr_db": math.inf,
    }


def _compare_texts(
    name: str, expected: Array, actual: Array, heads: tuple[str, str, Any, Any], both: bool, allowed: Tolerance
) -> TensorDrift:
    import numpy as np

    if not both:
        reason = f"the element type is {heads[1]}, expected {heads[0]}"
        return TensorDrift(name, False, reason, False, *heads, elements=0, tolerance=allowed)
    differs = [i for i, (a, b) in enumerate(zip(expected.reshape(-1), actual.reshape(-1), strict=True)) if a != b]
    size = expected.size
    if not differs:
        return TensorDrift(name, True, "", True, *heads, elements=size, tolerance=allowed)
    where = tuple(int(i) for i in np.unravel_index(differs[0], expected.shape))
    return TensorDrift(
        name,
        False,
        f"{len(differs):,} of {size:,} strings differ (first at {list(where)})",
        False,
        *heads,
        elements=size,
        tolerance=allowed,
        failing=len(differs),
        max_abs_index=where,
        expected_at=expected[where],
        actual_at=actual[where],
    )


def _same_bits(expected: Array, actual: Array) -> bool:
    return all(bool((a == b).all()) for a, b in _bit_blocks(expected, actual))


def _bit_blocks(expected: Array, actual: Array) -> Iterator[tuple[Array, Array]]:
    for one, other in elements.in_blocks(expected.reshape(-1), actual.reshape(-1)):
        yield elements.bits_of(one), elements.bits_of(other)


class _Tally:
    """Adds up what is measured, block by block, over two arrays of one shape."""

    def __init__(self, expected: Array, actual: Array, allowed: Tolerance) -> None:
        self.expected = expected
        self.flat = (expected.reshape(-1), actual.reshape(-1))
        self.allowed = allowed
        self.integral = elements.is_integral(expected.dtype) and elements.is_integral(actual.dtype)
        self.ranked = expected.dtype == actual.dtype and not self.integral and expected.dtype.kind != "c"
        self.failing = self.nonfinite = self.both_nan = self.bit_mismatches = self.counted = 0
        self.first_nonfinite = -1
        self.max_abs = -1.0
        self.max_at = -1
        self.sum_abs = self.max_rel = 0.0
        self.max_ulp = 0
        self.dots = [0.0, 0.0, 0.0, 0.0]  # e.e, a.a, e.a, d.d

    def run(self) -> None:
        import numpy as np

        start = 0
        with np.errstate(all="ignore"):
            for one, other in elements.in_blocks(*self.flat):
                self._add(one, other, start)
                start += one.size
            self.p99 = self._percentile(0.99)

    def _add(self, one: Array, other: Array, start: int) -> None:
        import numpy as np

        if self.flat[0].dtype == self.flat[1].dtype:
            unlike = elements.bits_of(one) != elements.bits_of(other)
            self.bit_mismatches += int(np.count_nonzero(unlike if unlike.ndim == 1 else unlike.any(axis=1)))
        e, a = elements.widen(one), elements.widen(other)
        finite = np.isfinite(e) & np.isfinite(a)
        if not finite.all():
            odd = np.flatnonzero(~finite)
            nan_e, nan_a = np.isnan(e[odd]), np.isnan(a[odd])
            self.both_nan += int(np.count_nonzero(nan_e & nan_a))
            wrong = odd[~((nan_e & nan_a) | (e[odd] == a[odd]))]
            if wrong.size and self.first_nonfinite < 0:
                self.first_nonfinite = start + int(wrong[0])
            self.nonfinite += wrong.size
            self.failing += wrong.size
            e, a, one, other = e[finite], a[finite], one[finite], other[finite]
        if not e.size:
            return
        d = self._difference(one, other, e, a)
        size = np.abs(e)
        self.counted += e.size
        self.failing += int(np.count_nonzero(d > self.allowed.atol + self.allowed.rtol * size))
        largest = int(np.argmax(d))
        if d[largest] > self.max_abs:
            self.max_abs = float(d[largest])
            self.max_at = start + (largest if finite.all() else int(np.flatnonzero(finite)[largest]))
        self.sum_abs += float(d.sum())
        scaled = d[size > 0] / size[size > 0]
        self.max_rel = max(self.max_rel, float(scaled.max(initial=0.0)))
        if self.ranked:
            self.max_ulp = max(self.max_ulp, elements.steps_between(one, other))
        for at, (left, right) in enumerate(((e, e), (a, a), (e, a), (d, d))):
            self.dots[at] += float(np.vdot(left, right).real)

    def _difference(self, one: Array, other: Array, e: Array, a: Array) -> Array:
        """Returns |e - a| as float64; for integers the difference is exact before it is rounded to that."""
        import numpy as np

        mixed = "uint64" in (one.dtype.name, other.dtype.name) and one.dtype != other.dtype
        if not self.integral or mixed or max(one.dtype.itemsize, other.dtype.itemsize) < 8:
            apart: Array = np.abs(e - a)
            return apart
        kind = np.uint64 if one.dtype.name == "uint64" else np.int64
        left, right = one.astype(kind), other.astype(kind)
        low, high = np.minimum(left, right), np.maximum(left, right)
        return (high.view(np.uint64) - low.view(np.uint64)).astype(np.float64)

    def _percentile(self, share: float) -> float | None:
        """Returns the smallest difference that ``share`` of the differences do not exceed, of all blocks.

        Differences are not negative, so as float64 they sort like their bits taken as integers. Two passes over a
        histogram of 16 of these bits each bound the answer to 2**-20 of itself; one block needs no histogram.
        """
        import numpy as np

        if not self.counted:
            return None
        rank = max(1, math.ceil(share * self.counted))
        if self.flat[0].size <= elements.BLOCK:
            differences = next(self._differences())
            return float(np.partition(differences, rank - 1)[rank - 1])
        prefix, below = 0, 0
        for level in range(2):
            shift = 64 - _P99_BITS * (level + 1)
            counts = np.zeros(1 << _P99_BITS, dtype=np.int64)
            for block in self._differences():
                keys = block.view(np.uint64) >> np.uint64(shift)
                if level:
                    keys = keys[keys >> np.uint64(_P99_BITS) == prefix] & np.uint64((1 << _P99_BITS) - 1)
                counts += np.bincount(keys.astype(np.int64), minlength=1 << _P99_BITS)
            total = below + np.cumsum(counts)
            chosen = int(np.searchsorted(total, rank))
            below = int(total[chosen - 1]) if chosen else below
            prefix = prefix << _P99_BITS | chosen
        return float(np.array([prefix << 64 - 2 * _P99_BITS], dtype=np.uint64).view(np.float64)[0])

    def _differences(self) -> Iterator[Array]:
        import numpy as np

        for one, other in elements.in_blocks(*self.flat):
            e, a = elements.widen(one), elements.widen(other)
            finite = np.isfinite(e) & np.isfinite(a)
            if not finite.all():
                e, a, one, other = e[finite], a[finite], one[finite], other[finite]
            yield np.ascontiguousarray(self._difference(one, other, e, a), dtype=np.float64)

    def index(self, position: int) -> tuple[int, ...]:
        import numpy as np

        return tuple(int(i) for i in np.unravel_index(position, self.expected.shape))

    def result(self) -> dict[str, Any]:
        found: dict[str, Any] = {
            "nonfinite": self.nonfinite,
            "both_nan": self.both_nan,
            "first_nonfinite": self.index(self.first_nonfinite) if self.nonfinite else None,
        }
        if not self.counted:
            return found
        ee, aa, ea, dd = self.dots
        norm = math.sqrt(ee) * math.sqrt(aa)
        cosine = ea / norm if norm and math.isfinite(norm) else 1.0 if not ee and not aa else None
        if not dd:
            noise: float | None = math.inf
        else:
            noise = 10 * math.log10(ee / dd) if ee and math.isfinite(ee) and math.isfinite(dd) else None
        return found | {
            "max_abs": self.max_abs,
            "max_abs_index": self.index(self.max_at),
            "expected_at": elements.to_plain(self.flat[0][self.max_at]),
            "actual_at": elements.to_plain(self.flat[1][self.max_at]),
            "mean_abs": self.sum_abs / self.counted,
            "p99_abs": self.p99,
            "max_rel": self.max_rel,
            "max_ulp": self.max_ulp if self.ranked else None,
            "cosine": None if cosine is None else max(-1.0, min(1.0, cosine)),
            "sqnr_db": noise,
        }
