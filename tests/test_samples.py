"""Sets of values that do not fit in memory come back as they were, whole or in parts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from onnxbench.errors import FeedsError
from onnxbench.samples import Samples, hold_out


def _sets() -> list[dict[str, object]]:
    random = np.random.default_rng(0)
    return [
        {
            "x": random.standard_normal((4, at + 1)).astype(np.float32).T,
            "half": random.standard_normal(3).astype(ml_dtypes.bfloat16),
            "words": np.array(["a", "bc"], dtype=object),
            "empty": np.zeros((0, 2), np.int64),
            "sequence": [np.arange(at)],
        }
        for at in range(5)
    ]


@pytest.mark.parametrize("most", [0, 100, 1 << 20])
def test_sets_come_back_as_they_were(most: int):
    samples = Samples(_sets(), most=most)
    for expected, actual in zip(_sets(), samples, strict=True):
        for name, value in expected.items():
            if name != "sequence":
                assert actual[name].dtype == value.dtype
                np.testing.assert_array_equal(actual[name], value)
    seen, held = hold_out(samples, 2, "search")
    assert (len(seen), len(held)) == (3, 2)
    np.testing.assert_array_equal(held[1]["x"], samples[4]["x"])


def test_what_is_beyond_the_bound_lies_in_a_file_and_can_be_changed():
    samples = Samples(_sets(), most=0)
    samples[1]["x"][:] = 7
    np.testing.assert_array_equal(samples[1]["x"], _sets()[1]["x"])  # made anew each time


def test_at_least_one_is_left():
    with pytest.raises(FeedsError, match="5 samples are to be held out, and there are 5"):
        hold_out(Samples(_sets()), 5, "search")
