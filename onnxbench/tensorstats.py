"""What is in a tensor, in blocks, so that memory stays bounded: extremes, mean, zeros, and what is not finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import elements

if TYPE_CHECKING:
    from onnxbench.elements import Array


@dataclass(frozen=True, slots=True)
class TensorStats:
    """What is in a value. Numbers are over the finite elements, in float64; None where there are none.

    Attributes:
        name: The tensor.
        dtype: Its element type; ``sequence``, ``map`` or ``absent`` for what is no tensor.
        shape: Its shape (of a sequence: its length).
        elements: How many elements it has (in all sets of inputs together).
        bytes: The memory that they take.
        min: Smallest element.
        max: Largest element.
        mean: Mean.
        std: Standard deviation (of the population).
        zeros: How many elements are zero.
        nans: How many are NaN.
        infs: How many are infinite.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    elements: int
    bytes: int
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    zeros: int = 0
    nans: int = 0
    infs: int = 0

    @property
    def finite(self) -> bool:
        """Whether no element is NaN or infinite."""
        return not self.nans and not self.infs


def statistics(name: str, value: Any) -> TensorStats:
    """Returns what is in a value; the elements of a sequence are taken together."""
    gathered = Gathered(name)
    gathered.add(value)
    return gathered.stats()


def _numbers(value: Mapping[Any, Any]) -> list[Any]:
    return elements.as_in_runtime(list(value.values()))


class Gathered:
    """Statistics of one tensor over several values of it (one per set of inputs)."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._dtype = ""
        self._shape: tuple[int, ...] = ()
        self._low: float | None = None
        self._high: float | None = None
        self._count = self._elements = self._bytes = self._zeros = self._nans = self._infs = 0
        self._mean = self._squares = 0.0

    @property
    def finite(self) -> bool:
        """Whether no element so far was NaN or infinite."""
        return not self._nans and not self._infs

    def add(self, value: Any) -> None:
        """Takes in one more value."""
        import numpy as np

        parts: list[Any]
        shape: tuple[int, ...]
        if value is None:
            dtype, shape, parts = "absent", (), []
        elif isinstance(value, (list, tuple)):
            dtype, shape = "sequence", (len(value),)
            parts = [_numbers(part) if isinstance(part, Mapping) else part for part in value]
        elif isinstance(value, Mapping):
            dtype, shape, parts = "map", (len(value),), [_numbers(value)]
        else:
            array = np.asarray(value)
            dtype, shape, parts = elements.dtype_word(array), tuple(array.shape), [array]
        if not self._dtype:
            self._dtype, self._shape = dtype, shape
        for part in parts:
            self._add_array(np.asarray(part))

    def _add_array(self, array: Array) -> None:
        import numpy as np

        self._elements += array.size
        bits = elements.narrow_bits(array.dtype)
        self._bytes += (array.size * bits + 7) // 8 if bits else array.nbytes
        if array.dtype.kind in "OUS":
            return
        with np.errstate(all="ignore"):
            for (block,) in elements.in_blocks(array.reshape(-1)):
                self._add_block(elements.widen(block))

    def _add_block(self, wide: Array) -> None:
        """Merges a block's moments into the running ones (Chan's formula, which does not cancel)."""
        import numpy as np

        self._zeros += int(np.count_nonzero(wide == 0))
        finite = np.isfinite(wide)
        if not finite.all():
            nans = int(np.count_nonzero(np.isnan(wide)))
            self._nans += nans
            self._infs += wide.size - int(np.count_nonzero(finite)) - nans
            wide = wide[finite]
        if not wide.size or wide.dtype.kind == "c":
            return
        low, high, mean = float(wide.min()), float(wide.max()), float(wide.mean())
        self._low = low if self._low is None else min(self._low, low)
        self._high = high if self._high is None else max(self._high, high)
        squares = float(np.square(wide - mean).sum())
        apart, total = mean - self._mean, self._count + wide.size
        self._squares += squares + apart * apart * self._count * wide.size / total
        self._mean += apart * wide.size / total
        self._count = total

    def stats(self) -> TensorStats:
        """Returns what was found."""
        some = self._count > 0
        return TensorStats(
            name=self._name,
            dtype=self._dtype or "absent",
            shape=self._shape,
            elements=self._elements,
            bytes=self._bytes,
            min=self._low,
            max=self._high,
            mean=self._mean if some else None,
            std=math.sqrt(max(0.0, self._squares / self._count)) if some else None,
            zeros=self._zeros,
            nans=self._nans,
            infs=self._infs,
        )
