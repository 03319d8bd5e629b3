"""The numerics: what is in a tensor, and how far two are apart."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxbench import elements
from onnxbench.drift import (
    BITWISE,
    EXACT,
    DriftReport,
    Tolerance,
    compare,
    compare_all,
    compare_values,
    default_tolerance,
    summarize,
)
from onnxbench.tensorstats import Gathered, statistics

INF = math.inf
EVERYTHING = Tolerance(atol=INF)


def f32(*values):
    return np.array(values, dtype=np.float32)


# ---------------------------------------------------------------- judgement


def test_a_nan_fails_under_any_tolerance():
    found = compare(f32(1, 2, 3), f32(1, np.nan, 3), EVERYTHING)
    assert not found.passed
    assert (found.nonfinite, found.failing, found.first_nonfinite) == (1, 1, (1,))
    assert found.max_abs == 0
    assert "1 of 3 elements are NaN or infinite on one side only (first at [1]: 2.0 expected, nan got)" in found.reason


@pytest.mark.parametrize(
    ("expected", "actual", "passed"),
    [
        (np.nan, np.nan, True),
        (np.nan, 1, False),
        (np.nan, INF, False),
        (INF, INF, True),
        (INF, -INF, False),
        (INF, 3e38, False),
        (-INF, np.nan, False),
    ],
)
def test_values_that_are_not_finite(expected, actual, passed):
    for one, other in ((expected, actual), (actual, expected)):
        found = compare(f32(one, 0), f32(other, 0), EVERYTHING)
        assert found.passed is passed
        assert found.nonfinite == (0 if passed else 1)


def test_shape_before_type_before_values():
    assert compare(f32(1, 2), f32(1)).reason == "the shape is [1], expected [2]"
    other = compare(f32(1, 2), np.array([1, 2.5]))
    assert other.reason == "the element type is float64, expected float32"
    assert other.max_abs == 0.5
    assert compare(f32(1, 2), np.array([1, 2.0]), check_dtype=False).passed


def test_tolerance_is_absolute_plus_relative_to_the_expected():
    expected, actual = f32(100, 0.001), f32(101, 0.002)
    assert compare(expected, actual, Tolerance(atol=1.1)).passed
    assert not compare(expected, actual, Tolerance(rtol=0.011)).passed
    assert compare(expected, actual, Tolerance(rtol=0.011, atol=0.0011)).passed
    assert not compare(actual, expected, Tolerance(rtol=0.0099)).passed
    found = compare(expected, actual, Tolerance(atol=0.5))
    assert (found.failing, found.reason) == (1, "1 of 2 elements are beyond atol 0.5 + rtol 0")


def test_a_tolerance_is_a_number():
    for wrong in ({"atol": -1.0}, {"rtol": math.nan}):
        with pytest.raises(ValueError, match="cannot be negative or NaN"):
            Tolerance(**wrong)


def test_bit_for_bit_sees_signs_of_zero_and_payloads():
    zeros = compare(f32(0.0), f32(-0.0), EXACT)
    assert zeros.passed
    assert not zeros.bitwise_equal
    assert not compare(f32(0.0), f32(-0.0), BITWISE).passed
    payload = np.array([0x7FC00001], np.uint32).view(np.float32)
    assert compare(f32(np.nan), payload, EXACT).passed
    assert compare(f32(np.nan), payload, BITWISE).reason == "1 of 1 elements differ in some bit"
    assert compare(payload, payload.copy(), BITWISE).passed


def test_default_tolerances_are_exact_for_what_is_not_floating():
    for dtype in (np.int64, np.uint8, np.bool_, ml_dtypes.int4):
        assert default_tolerance(np.dtype(dtype)) == EXACT
    wide = [default_tolerance(np.dtype(d)).rtol for d in (np.float64, np.float32, np.float16, ml_dtypes.bfloat16)]
    assert wide == sorted(wide)
    assert wide[0] > 0


# ---------------------------------------------------------------- measures


def test_measures_by_hand():
    found = compare(f32(1, 2, -4), f32(1, 2.5, -3), Tolerance(atol=10))
    assert found.max_abs == 1
    assert found.max_abs_index == (2,)
    assert (found.expected_at, found.actual_at) == (-4, -3)
    assert found.mean_abs == pytest.approx(0.5)
    assert found.p99_abs == 1
    assert found.max_rel == 0.25
    assert found.sqnr_db == pytest.approx(10 * math.log10(21 / 1.25))
    assert found.cosine == pytest.approx(18 / math.sqrt(21 * (1 + 6.25 + 9)))
    assert found.elements == 3


def test_relative_error_leaves_zeros_out():
    found = compare(f32(0, 2), f32(1, 2.2), EVERYTHING)
    assert found.max_rel == pytest.approx(0.1, rel=1e-6)
    assert compare(f32(0), f32(1), EVERYTHING).max_rel == 0
    assert compare(f32(0), f32(1), EVERYTHING).sqnr_db is None


@pytest.mark.parametrize(
    ("one", "other", "steps"),
    [
        (1.0, np.nextafter(np.float32(1), np.float32(2)), 1),
        (0.0, -0.0, 0),
        (np.float32(1e-45), np.float32(-1e-45), 2),
        (1.0, 2.0, 1 << 23),
        (-1.0, 1.0, 2 * 0x3F800000),
    ],
)
def test_ulp(one, other, steps):
    assert compare(f32(one), f32(other), EVERYTHING).max_ulp == steps


@pytest.mark.parametrize(
    "dtype",
    [np.float64, np.float16, ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2,
     ml_dtypes.float8_e4m3fnuz, ml_dtypes.float8_e5m2fnuz, ml_dtypes.float8_e8m0fnu, ml_dtypes.float4_e2m1fn],
)  # fmt: skip
def test_neighbours_are_one_ulp_apart(dtype):
    info = ml_dtypes.finfo(dtype)
    one = np.array([1.0]).astype(dtype)
    after = np.array([2.0 if dtype is ml_dtypes.float8_e8m0fnu else 1.0 + float(info.eps)]).astype(dtype)
    found = compare(one, after, EVERYTHING)
    assert found.max_ulp == 1
    assert found.max_abs == pytest.approx(1.0 if dtype is ml_dtypes.float8_e8m0fnu else float(info.eps))


@pytest.mark.parametrize(
    "dtype",
    [np.int8, np.uint8, np.int64, np.uint64, np.bool_, ml_dtypes.int4, ml_dtypes.uint4, ml_dtypes.int2, np.complex64],
)
def test_other_types(dtype):
    one, other = np.array([0, 1, 1, 0]).astype(dtype), np.array([1, 1, 0, 1]).astype(dtype)
    found = compare(one, other)
    assert not found.passed
    assert (found.failing, found.max_abs, found.max_ulp) == (3, 1, None)
    assert compare(one, one.copy()).bitwise_equal


def test_integers_are_subtracted_exactly():
    low, high = np.array([-(2**63)]), np.array([2**63 - 1])
    assert compare(low, high).max_abs == float(2**64 - 1)
    big = np.array([2**64 - 1], np.uint64)
    assert compare(big, big - np.uint64(1)).max_abs == 1
    near = np.array([2**62], np.int64)
    assert not compare(near, near + 1).passed


def test_strings():
    one, other = np.array(["a", "b"], dtype=object), np.array(["a", "c"], dtype=object)
    assert compare(one, one.copy()).bitwise_equal
    found = compare(one, other)
    assert found.reason == "1 of 2 strings differ (first at [1])"
    assert (found.expected_at, found.actual_at) == ("b", "c")
    assert compare(one, f32(1, 2)).reason == "the element type is float32, expected string"


def test_nothing_agrees_with_nothing():
    found = compare(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32))
    assert found.passed
    assert found.bitwise_equal
    assert found.max_abs is None
    assert not compare(np.zeros((0, 3)), np.zeros((0, 4))).passed


# ---------------------------------------------------------------- blocks give what the whole gives

arrays = hnp.arrays(
    np.float32,
    st.integers(1, 60),
    elements=st.one_of(st.floats(width=32, allow_nan=True, allow_infinity=True), st.integers(-3, 3)),
)


@given(data=st.data(), expected=arrays, atol=st.sampled_from([0.0, 0.5, 10.0]), rtol=st.sampled_from([0.0, 0.1]))
def test_blocks_against_plain_numpy(monkeypatch, data, expected, atol, rtol):
    change = data.draw(hnp.arrays(np.float32, expected.shape, elements=st.sampled_from([0.0, 0.0, 1.0, -0.25, np.nan])))
    with np.errstate(all="ignore"):
        actual = (expected + change).astype(np.float32)
    monkeypatch.setattr(elements, "BLOCK", 7)
    found = compare(expected, actual, Tolerance(atol, rtol))
    e, a = expected.astype(np.float64), actual.astype(np.float64)
    finite = np.isfinite(e) & np.isfinite(a)
    with np.errstate(all="ignore"):
        wrong = ~finite & ~(np.isnan(e) & np.isnan(a)) & (e != a)
        d = np.abs(e - a)[finite]
    beyond = d > atol + rtol * np.abs(e[finite])
    assert found.nonfinite == wrong.sum()
    assert found.failing == wrong.sum() + beyond.sum()
    assert found.passed == (not found.failing)
    assert found.bitwise_equal == (expected.tobytes() == actual.tobytes())
    assert found.passed == np.allclose(a, e, rtol=rtol, atol=atol, equal_nan=True)
    if d.size:
        assert found.max_abs == d.max()
        assert found.mean_abs == pytest.approx(d.mean())
        exact = np.sort(d)[math.ceil(0.99 * d.size) - 1]
        assert found.p99_abs == pytest.approx(exact, rel=2e-6)
        assert d[np.flatnonzero(finite).tolist().index(found.max_abs_index[0])] == d.max()


@given(value=arrays)
def test_statistics_in_blocks(monkeypatch, value):
    monkeypatch.setattr(elements, "BLOCK", 7)
    found = statistics("x", value)
    wide = value.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    assert (found.nans, found.infs) == (np.isnan(wide).sum(), np.isinf(wide).sum())
    assert found.zeros == (wide == 0).sum()
    if finite.size:
        assert (found.min, found.max) == (finite.min(), finite.max())
        scale = max(1.0, float(np.abs(finite).max()))
        assert found.mean == pytest.approx(finite.mean(), abs=1e-9 * scale)
        assert found.std == pytest.approx(finite.std(), abs=1e-6 * scale)
    else:
        assert found.min is found.mean is None


def test_arrays_that_are_not_contiguous():
    one = np.arange(24, dtype=np.float32).reshape(4, 6)
    found = compare(one[:, ::2], one[:, 1::2], EVERYTHING)
    assert (found.max_abs, found.elements) == (1, 12)
    assert compare(one.T, np.ascontiguousarray(one.T)).bitwise_equal


def test_memory_of_big_arrays_is_bounded():
    import tracemalloc

    one = np.zeros(16 << 20, np.float32)
    other = one.copy()
    other[-1] = 1
    tracemalloc.start()
    found = compare(one, other)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert found.max_abs_index == (one.size - 1,)
    assert peak < 100 << 20  # the arrays have 64 MB each, and float64 copies of them would have 128


# ---------------------------------------------------------------- reports and statistics


def test_reports():
    expected = {"a": f32(1), "b": f32(1, 2), "s": [f32(1), f32(2)], "gone": f32(1)}
    actual = {"a": f32(1), "b": f32(1, 9), "s": [f32(1), f32(2)], "more": f32(0)}
    report = compare_all(expected, actual)
    assert [entry.name for entry in report.tensors] == ["a", "b", "s[0]", "s[1]"]
    assert report.missing == ("gone",)
    assert not report.passed
    assert report.verdict == "FAILED: 2 of 5 tensors differ"
    assert report.worst.name == "b"
    assert summarize(report)[0] == "gone: missing"
    assert compare_all({"a": f32(1)}, actual).verdict == "PASSED: 1 tensor is equal bit for bit"
    assert compare_all(expected, actual, tolerances={"b": Tolerance(atol=8)}).verdict == "FAILED: 1 of 5 tensors differ"
    near = compare_all({"a": f32(1), "b": f32(1)}, {"a": f32(1), "b": f32(1.00001)})
    assert near.verdict == "PASSED: 2 within tolerance, 1 of them equal bit for bit"


def test_comparing_nothing_is_no_success():
    assert not DriftReport(()).passed
    assert not compare_all({}, {"a": f32(1)}).passed


def test_values_of_other_kinds():
    def reasons(one, other):
        return [entry.reason for entry in compare_values("v", one, other)]

    assert reasons({0: 0.5}, {0: 0.5}) == [""]
    (entry,) = compare_values("v", {0: 0.5}, {0: 0.50001})
    assert (entry.name, entry.expected_dtype, entry.passed) == ("v[0]", "float64", False)
    (entry,) = compare_values("v", {0: 0.5}, {0: float(np.float32(0.50001))})
    assert (entry.expected_dtype, entry.passed) == ("float32", True)
    assert reasons({0: 1.0}, {1: 1.0}) == ["expected a map of 1, got a map of 1"]
    assert reasons([f32(1)], []) == ["expected a sequence of 1, got a sequence of 0"]
    assert reasons(None, f32(1)) == ["expected nothing, got a tensor"]
    assert reasons(None, None) == [""]


def test_statistics_of_every_kind():
    found = statistics("x", np.array([0, 1, np.nan, INF], dtype=ml_dtypes.bfloat16))
    assert (found.dtype, found.bytes, found.zeros, found.nans, found.infs) == ("bfloat16", 8, 1, 1, 1)
    assert (found.min, found.max, found.mean, found.std) == (0, 1, 0.5, 0.5)
    packed = statistics("x", np.array([-8, 7, 0], dtype=ml_dtypes.int4))
    assert (packed.bytes, packed.min, packed.max) == (2, -8, 7)
    assert statistics("x", np.zeros((2, 3))).bytes == 48
    assert statistics("x", np.array(["a"], dtype=object)).min is None
    assert statistics("x", None).dtype == "absent"
    sequence = statistics("x", [f32(1), f32(3)])
    assert (sequence.dtype, sequence.shape, sequence.mean) == ("sequence", (2,), 2)
    maps = statistics("x", [{0: 0.5, 1: 0.25}, {0: 1.0}])
    assert (maps.dtype, maps.shape, maps.elements, maps.bytes, maps.max) == ("sequence", (2,), 3, 12, 1)


def test_statistics_over_several_values():
    gathered = Gathered("x")
    for value in (f32(1, 2), f32(3), f32(1e9, 1e9 + 64)):
        gathered.add(value)
    found = gathered.stats()
    every = np.array([1, 2, 3, 1e9, np.float32(1e9 + 64)])
    assert found.elements == 5
    assert found.mean == pytest.approx(every.mean())
    assert found.std == pytest.approx(every.std())
    assert found.finite
