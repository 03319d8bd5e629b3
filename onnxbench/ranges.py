"""Ranges of activations that lose least: scales of a model with zero points 0, fitted to what its tensors hold.

A symmetric scale that reaches to the largest value ever seen gives most of its steps to values that hardly occur, all
the more where a tensor lies on one side of 0 and has half of the steps only. A smaller one clips a few values and holds
all others finer. So each scale is multiplied with the factor that leaves the smallest sum of squared errors on the
values that the float model has there: measured tensor by tensor, in one pass over the data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.captures import Value, input_ports
from onnxbench.graph import GraphIndex

if TYPE_CHECKING:
    import numpy as np

    from onnxbench.graph import Scope
    from onnxbench.model import Model

FACTORS = tuple(number / 20 for number in range(20, 5, -1))
"""What a scale may be multiplied with, 1 first, which is as good as another one that loses as much."""
_MOST_LOOKED_AT = 1 << 18
"""So many elements of a tensor are looked at for each sample, evenly spread."""
_INT8 = (-128, 127)


@dataclass(slots=True)
class _Range:
    """A scale, where it is stored, and the squared errors that its multiples leave."""

    stored: str
    scale: float
    is_rectified: bool
    errors: list[float] = field(default_factory=lambda: [0.0] * len(FACTORS))

    def look(self, value: Value) -> None:
        """Adds the errors on the values of one sample."""
        import numpy as np

        flat = value.reshape(-1)
        flat = flat[:: -(-flat.size // _MOST_LOOKED_AT) or 1].astype(np.float32)
        flat = flat[np.isfinite(flat)]
        if self.is_rectified:
            flat = np.maximum(flat, 0)
        for at, factor in enumerate(FACTORS):
            scale = np.float32(self.scale * factor)
            apart = np.clip(np.rint(flat / scale), *_INT8) * scale - flat
            self.errors[at] += float(np.dot(apart, apart))


def fit_ranges(model: Model, prepared: Model, samples: Sequence[Mapping[str, Value]]) -> int:
    """Fits the scales of a quantized model's activations, in place; returns how many have changed.

    Those with a zero point of 0 and one scale are; what several pairs share is left alone.

    Args:
        model: The quantized model.
        prepared: The float one that it was made of.
        samples: Inputs, all of which count.

    Raises:
        ExecutionError: ONNX Runtime does not run the float model.
    """
    ranges = _ranges(model, prepared)
    inputs = {port.name for port in input_ports(prepared.proto.graph)}
    for sample in samples:
        for name in ranges.keys() & inputs & sample.keys():
            ranges[name].look(sample[name])
    for name, value in values_of(prepared, samples, [name for name in ranges if name not in inputs]):
        ranges[name].look(value)
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    changed = 0
    for each in ranges.values():
        factor = FACTORS[each.errors.index(min(each.errors))]
        if factor != 1:
            array = model.array(stored[each.stored])
            data = (array * array.dtype.type(factor)).tobytes()
            model.store(stored[each.stored], [data], len(data))
            changed += 1
    return changed


def _ranges(model: Model, prepared: Model) -> dict[str, _Range]:
    """Returns what is quantized with one scale and a zero point of 0, by the name of the tensor."""
    scope = GraphIndex(model.proto).main
    stored = {tensor.name: tensor for tensor in scope.graph.initializer}
    known = {name for names in GraphIndex(prepared.proto).main.writes for name in names}
    known |= {port.name for port in input_ports(prepared.proto.graph)}
    found: dict[str, _Range] = {}
    for node in scope.nodes:
        if node.op_type != "QuantizeLinear" or node.input[0] not in known or len(node.input) < 3:
            continue
        scale, zero = (stored.get(name) for name in node.input[1:3])
        is_shared = len({scope.nodes[at].output[0] for at in scope.consumers.get(node.input[1], ())}) > 2
        if scale is None or zero is None or is_shared:
            continue
        step, offset = model.array(scale).reshape(-1), model.array(zero).reshape(-1)
        if step.size == 1 and offset.dtype.name == "int8" and not offset.any() and step[0] > 0:
            found[node.input[0]] = _Range(scale.name, float(step[0]), _is_rectified(scope, node.output[0]))
    return found


def _is_rectified(scope: Scope, quantized: str) -> bool:
    """Tells whether only Relu reads a tensor once it is dequantized, so that negative values are as good as 0."""
    ends = [name for at in scope.consumers.get(quantized, ()) for name in scope.nodes[at].output]
    readers = [scope.nodes[at].op_type for name in ends for at in scope.consumers.get(name, ())]
    return bool(readers) and set(readers) == {"Relu"} and not set(ends) & set(scope.outputs)


def values_of(
    model: Model, samples: Sequence[Mapping[str, Value]], names: Sequence[str]
) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
    """Yields tensors of a model on all samples: from one session, if what they take on the first one fits.

    Args:
        model: The model.
        samples: Inputs.
        names: The tensors.

    Raises:
        ExecutionError: ONNX Runtime does not run the model.
    """
    if not names:
        return
    options = backends.Options(optimization="none", frugal=True)
    sizes = backends.observed_sizes(model, samples[0], names, options=options)
    if sum(sizes.get(name, 0) for name in names) > backends.MAX_BYTES:
        for sample in samples:
            yield from backends.stream_outputs(model, sample, names, options=options)
        return
    session = backends.open_session(model, outputs=list(names), options=options)
    for sample in samples:
        yield from session.run(sample).items()
    session.close()
