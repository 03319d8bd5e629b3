"""How large the tensors of a model get, held against the largest value of an element type."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench import backends
from onnxbench.graph import GraphIndex, NodeRef
from onnxbench.precision._signatures import FLOATS
from onnxbench.precision._values import float_info
from onnxbench.tensortype import dtype_number, elem_type

if TYPE_CHECKING:
    from onnxbench.captures import Value
    from onnxbench.model import Model

_LITTLE = 0.1
"""From this share of the type's largest value on, a tensor has little headroom."""


@dataclass(frozen=True, slots=True)
class Headroom:
    """A tensor that comes near the largest value of a type, or goes beyond.

    Attributes:
        node: The node that makes it; the input's own name for an input.
        op_type: Its operator; empty for an input.
        tensor: Its name.
        largest: The largest magnitude that was seen in it.
        share: That as a share of the largest value of the type: 1 and more overflows.
    """

    node: str
    op_type: str
    tensor: str
    largest: float
    share: float


def find_magnitudes(model: Model, feeds: Iterable[Mapping[str, Value]]) -> dict[str, float]:
    """Returns the largest magnitude of every floating-point tensor of the main graph, as ONNX Runtime computes it.

    Args:
        model: The model.
        feeds: Sets of inputs; the model runs once on each, and holds no more memory than a run does.

    Raises:
        FeedsError: The feeds do not fit.
        ExecutionError: The model does not run.
    """
    import numpy as np

    main = GraphIndex(model.proto).main
    names = [name for written in main.writes for name in written]
    names += [name for name in main.true_inputs() if name not in main.producers]
    kinds = backends.tensor_types(model, names)
    chains = {name: ("Cast:1", "Abs", "ReduceMax") for name in names
              if name in kinds and elem_type(kinds[name]) in FLOATS}  # fmt: skip
    found: dict[str, float] = {}
    for values in feeds:
        shapes = backends.observed_shapes(model, values, list(chains))
        full = {name: chain for name, chain in chains.items() if 0 not in shapes.get(name, ())}  # of none is no largest
        results = backends.probe(model, values, full)
        for name, result in results.items():
            found[name] = max(found.get(name, 0.0), _finite_max(result))
        unclear = [name for name, result in results.items() if not np.isfinite(result).all()]
        for name, value in backends.stream_outputs(model, values, unclear, optimization="none"):
            found[name] = max(found[name], _finite_max(value))
    return found


def _finite_max(value: Value) -> float:
    """Returns the largest magnitude among the finite elements; Inf and NaN are what they are in every type."""
    import numpy as np

    array = np.abs(np.asarray(value).astype(np.float64))
    return float(array[np.isfinite(array)].max(initial=0.0))


def find_headroom(model: Model, magnitudes: Mapping[str, float], *, to: str) -> tuple[Headroom, ...]:
    """Returns the tensors that have little headroom in a type, the worst first.

    Args:
        model: The model.
        magnitudes: The largest magnitudes of its tensors (``find_magnitudes``).
        to: The type.
    """
    top = largest_value(dtype_number(to))
    main = GraphIndex(model.proto).main
    found = []
    for name, largest in magnitudes.items():
        if largest / top >= _LITTLE:
            position = main.producers.get(name)
            ref = NodeRef(main, position) if position is not None else None
            label, op_type = (ref.path, ref.node.op_type) if ref is not None else (name, "")
            found.append(Headroom(label, op_type, name, largest, largest / top))
    return tuple(sorted(found, key=lambda each: (-each.share, each.tensor)))


def overflowing(index: GraphIndex, headroom: Collection[Headroom]) -> dict[NodeRef, str]:
    """Returns the nodes that make or read a tensor that goes beyond the type, with what it is."""
    main = index.main
    found: dict[NodeRef, str] = {}
    for each in headroom:
        if each.share < 1:
            continue
        positions = [*main.consumers.get(each.tensor, ())]
        if each.tensor in main.producers:
            positions.append(main.producers[each.tensor])
        for position in sorted(positions):
            found.setdefault(NodeRef(main, position), f"{each.tensor} reaches {each.largest:.4g}")
    return found


def largest_value(number: int) -> float:
    """Returns the largest value of a floating-point element type."""
    from onnx import helper

    return float(float_info(helper.tensor_dtype_to_np_dtype(number)).max)
