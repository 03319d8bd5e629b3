"""What quantization does to single tensors: weights as they are stored, activations as the float model makes them.

Of each: signal to noise, the largest difference, and the share of elements that are clipped because they lie beyond
what the scale reaches. Noise without clipping is a scale that is too coarse, for a few large values perhaps; clipping
is a range that the calibration data did not show, or that its method cut off. ONNX Runtime's quantizer gives a tensor
that a Relu alone reads the range of what that lets pass, so its negative values count as the zeros that they become.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.captures import Value, input_ports
from onnxbench.elements import BLOCK
from onnxbench.ranges import values_of

if TYPE_CHECKING:
    import numpy as np

    from onnxbench.int8._placement import Pair, Placement

    Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True)
class TensorError:
    """What quantization does to a tensor.

    Attributes:
        tensor: The tensor, in the float model.
        dtype: The type that it is quantized to.
        channels: How many scales it has; 1 where it is quantized as a whole.
        elements: How many elements were looked at, of all samples.
        smallest: The smallest of its values.
        largest: The largest one.
        sqnr_db: Signal to noise in dB; None where there is no noise, or no signal.
        max_abs: The largest difference.
        clipped: The share of elements beyond what the scale reaches.
        nonfinite: How many are NaN or infinite; nothing else is said of these.
    """

    tensor: str
    dtype: str
    channels: int
    elements: int
    smallest: float | None
    largest: float | None
    sqnr_db: float | None
    max_abs: float | None
    clipped: float
    nonfinite: int


@dataclass(slots=True)
class _Sums:
    """What was seen of a tensor so far."""

    elements: int = 0
    nonfinite: int = 0
    smallest: float = math.inf
    largest: float = -math.inf
    signal: float = 0.0
    noise: float = 0.0
    max_abs: float = 0.0
    clipped: int = 0

    def add(self, value: Array, dequantized: Array, clipped: Array) -> None:
        """Adds elements, what became of them, and which were clipped."""
        import numpy as np

        finite = np.isfinite(value)
        self.elements += value.size
        self.nonfinite += value.size - int(np.count_nonzero(finite))
        if not finite.all():
            value, dequantized, clipped = value[finite], dequantized[finite], clipped[finite]
        self.clipped += int(np.count_nonzero(clipped))
        if value.size:
            apart = dequantized - value
            self.smallest = min(self.smallest, float(value.min()))
            self.largest = max(self.largest, float(value.max()))
            self.signal += float(np.dot(value, value))
            self.noise += float(np.dot(apart, apart))
            self.max_abs = max(self.max_abs, float(np.abs(apart).max()))

    def result(self, tensor: str, dtype: str, channels: int) -> TensorError:
        """Returns the sums as what is told."""
        seen = self.elements > self.nonfinite
        is_defined = self.signal > 0 and self.noise > 0
        return TensorError(
            tensor, dtype, channels, self.elements, self.smallest if seen else None, self.largest if seen else None,
            10 * math.log10(self.signal / self.noise) if is_defined else None, self.max_abs if seen else None,
            self.clipped / self.elements if self.elements else 0.0, self.nonfinite,
        )  # fmt: skip


@dataclass(slots=True)
class _Quantizer:
    """A scale and zero point, and the axis along which they differ."""

    scale: Array
    zero: Array
    axis: int
    is_rectified: bool
    sums: _Sums = field(default_factory=_Sums)

    @property
    def channels(self) -> int:
        return int(self.scale.size)

    def look(self, value: Array) -> None:
        """Adds what quantization would do to the elements of a tensor."""
        import numpy as np

        limits = np.iinfo(self.zero.dtype)
        for block, scale, zero in self._blocks(np.maximum(value, 0) if self.is_rectified else value):
            with np.errstate(all="ignore"):
                steps = np.rint(block / scale) + zero
                held = np.clip(steps, limits.min, limits.max)
            self.sums.add(block, (held - zero) * scale, held != steps)

    def compare(self, value: Array, stored: Array) -> None:
        """Adds what quantization did to the elements of a weight."""
        import numpy as np

        limits = np.iinfo(self.zero.dtype)
        blocks = zip(self._blocks(value), self._blocks(stored), strict=True)
        for (block, scale, zero), (integers, _, _) in blocks:
            with np.errstate(all="ignore"):
                steps = np.rint(block / scale) + zero
            self.sums.add(block, (integers - zero) * scale, (steps < limits.min) | (steps > limits.max))

    def _blocks(self, value: Array) -> Iterator[tuple[Array, Any, Any]]:
        """Yields elements of one scale in float64, so many at once."""
        import numpy as np

        if self.channels == 1:
            scale, zero = (float(each.reshape(-1)[0]) for each in (self.scale, self.zero))
            flat = value.reshape(-1)
            for start in range(0, flat.size, BLOCK):
                yield flat[start : start + BLOCK].astype(np.float64), scale, zero
            return
        for at, part in enumerate(np.moveaxis(value, self.axis, 0)):
            yield part.reshape(-1).astype(np.float64), float(self.scale[at]), float(self.zero[at])


def weight_errors(placement: Placement) -> tuple[TensorError, ...]:
    """Returns what quantization did to each stored weight, the worst first."""
    found = []
    for pair in placement.pairs.values():
        if placement.has_weight(pair):
            value, stored = placement.weight(pair)
            quantizer = _quantizer(placement, pair)
            quantizer.compare(value, stored)
            found.append(quantizer.sums.result(pair.tensor, stored.dtype.name, quantizer.channels))
    return _sorted(found)


def activation_errors(placement: Placement, samples: Sequence[Mapping[str, Value]]) -> tuple[TensorError, ...]:
    """Returns what quantization does to each activation of the float model on all samples, the worst first."""
    quantizers = {
        pair.tensor: _quantizer(placement, pair) for pair in placement.pairs.values() if pair.quantize is not None
    }
    inputs = {port.name for port in input_ports(placement.model.proto.graph)}
    for sample in samples:
        for name in quantizers.keys() & inputs & sample.keys():
            quantizers[name].look(sample[name])
    for name, value in values_of(placement.model, samples, [name for name in quantizers if name not in inputs]):
        quantizers[name].look(value)
    return _sorted([each.sums.result(name, each.zero.dtype.name, each.channels) for name, each in quantizers.items()])


def _quantizer(placement: Placement, pair: Pair) -> _Quantizer:
    import numpy as np

    node = pair.dequantize
    scale = placement.parameter(node.input[1])
    is_given = len(node.input) > 2 and node.input[2]
    zero = placement.parameter(node.input[2]) if is_given else np.zeros(scale.shape, np.uint8)
    axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
    return _Quantizer(scale, zero, axis, placement.is_rectified(pair))


def _sorted(errors: list[TensorError]) -> tuple[TensorError, ...]:
    return tuple(sorted(errors, key=lambda each: (-each.nonfinite, _decibels(each.sqnr_db), each.tensor)))


def _decibels(value: float | None) -> float:
    return math.inf if value is None else value
