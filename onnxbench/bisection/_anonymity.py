"""A culprit without what it would give away: no names, texts and metadata, other weights, other inputs.

What should come out then is not known from the search: the reference computes it anew, from the same new inputs and
weights. A weight that is the same on both sides becomes the same random numbers on both; one that differs keeps the
difference, which is the fault. The failure has to show all the same, by more than rounding explains, before anything is
written. Three ways are tried:

1. random numbers with the mean and spread of the old ones;
2. the same, stretched so that the largest is as large as before (an overflow needs large numbers);
3. the old numbers in random order.

Tensors of up to ``_FEW`` numbers (scales, shapes, epsilons), operators, attributes and shapes stay. If a weight cannot
be replaced on both sides, or no way shows the failure, the repro is refused.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench.bisection._finding import FACTOR, TWIN
from onnxbench.bisection._measures import measure
from onnxbench.bisection._sides import as_dtype, is_floating
from onnxbench.captures import Value, onnx_dtype
from onnxbench.errors import ExecutionError, UnsupportedError
from onnxbench.graph import node_bodies
from onnxbench.messages import copy_of
from onnxbench.shrinking import Specimen, without_names
from onnxbench.tensortype import make_type, make_value_info

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnxbench.bisection._finding import Finding
    from onnxbench.bisection._search import Search
    from onnxbench.model import Model

_FEW = 8
_FEW_KINDS = 4
_WEIGHTLESS = "Leave --anonymize out, or reduce the model by hand: 'onnxbench extract'."


@dataclass(frozen=True, slots=True)
class Piece:
    """A culprit as a small model.

    Attributes:
        model: The model, with one output.
        inputs: What flows into it.
        expected: What should come out.
        threshold: The relative error from which on the failure shows.
    """

    model: Model
    inputs: dict[str, Value]
    expected: Value
    threshold: float


def as_model(search: Search, finding: Finding, inputs: Mapping[str, Value]) -> Model:
    """Returns the nodes of a culprit as a model whose inputs and output have the types of these values."""
    proto, made = search.parts.proto(finding.nodes, inputs, [finding.tensor])
    for info in proto.graph.input:
        value = inputs[info.name]
        info.type.CopyFrom(make_type(onnx_dtype(value.dtype), value.shape))
    actual = search.parts.run(finding.nodes, inputs, [finding.tensor])[finding.tensor]
    del proto.graph.output[:]
    proto.graph.output.append(make_value_info(made[finding.tensor], make_type(onnx_dtype(actual.dtype), actual.shape)))
    return search.parts.model.derive(proto)


def anonymous(
    search: Search, finding: Finding, piece: Piece, wanted: Mapping[str, Value], median: float
) -> tuple[Piece, tuple[str, ...]]:
    """Returns a culprit with other names, weights and inputs that still goes wrong, and what a user should know.

    Args:
        search: The search.
        finding: What was found of the culprit.
        piece: The culprit as it is.
        wanted: The reference's values of its inputs.
        median: The median own error of the search.

    Raises:
        UnsupportedError: A weight cannot be replaced on both sides, or the failure needs these values.
    """
    assert finding.own is not None
    _refuse_bodies(search, finding)
    weights = dict(_weights(search, finding))
    precision = finding.precision
    many = math.sqrt(len(finding.nodes))
    beyond = TWIN * precision if finding.twin else FACTOR * many * max(precision, median, finding.noise[0])
    for way in _WAYS:
        inputs = {name: way.of(name, value) for name, value in wanted.items()}
        pairs = {name: way.pair(name, *both) for name, both in weights.items()}
        given = {search.match.tensors.get(name, name): value for name, value in inputs.items()}
        given |= {search.match.tensors.get(name, name): theirs for name, (_, theirs) in pairs.items()}
        expected = _recomputed(search, finding.partner, given)
        fed = {name: as_dtype(value, onnx_dtype(piece.inputs[name].dtype)) for name, value in inputs.items()}
        specimen = without_names(
            _specimen(_with_weights(piece, {name: mine for name, (mine, _) in pairs.items()}), fed)
        )
        error = None if expected is None else _error(search, specimen, expected, finding)
        if expected is None or error is None or not error > beyond:
            continue
        threshold = max(beyond, min(1e-2, error / 4)) if math.isfinite(error) else 1e-6
        return Piece(specimen.model, dict(specimen.sets[0]), expected, threshold), way.notes
    raise UnsupportedError(
        "the failure does not show with other weights and inputs, so nothing was written", hint=_WEIGHTLESS
    )


def _refuse_bodies(search: Search, finding: Finding) -> None:
    pending = [body for at in finding.nodes for _, body in node_bodies(search.parts.scope.nodes[at])]
    for graph in pending:
        pending += [body for node in graph.node for _, body in node_bodies(node)]
        held = [attribute.t for node in graph.node for attribute in node.attribute if attribute.HasField("t")]
        if graph.sparse_initializer or any(math.prod(t.dims) > _FEW for t in (*graph.initializer, *held)):
            raise UnsupportedError(
                "the culprit has a body that holds weights, which cannot be replaced, so nothing was written",
                hint=_WEIGHTLESS,
            )


def _weights(search: Search, finding: Finding) -> Iterator[tuple[str, tuple[Value, Value]]]:
    """Yields what a region stores that is more than a few numbers: the suspect's values, and the reference's."""
    parts = search.parts
    find = getattr(search.reference, "weight", None)
    if find is None or not hasattr(search.reference, "rerun"):
        raise UnsupportedError(
            f"{search.reference.label} cannot be computed anew with other weights and inputs, so nothing was written",
            hint="Leave --anonymize out, or name a model as the reference: --against, --torch.",
        )
    for name in dict.fromkeys(
        name for at in finding.nodes for name in (*parts.scope.reads[at], *parts.scope.writes[at])
    ):
        if any(t.values.name == name for t in parts.scope.graph.sparse_initializer):
            raise UnsupportedError(f"weight {name!r} is sparse and cannot be replaced, so nothing was written")
        mine = parts.constant(name)
        if mine is None or mine.size <= _FEW:
            continue
        theirs = find(search.match.tensors.get(name, name))
        if theirs is None or theirs.shape != mine.shape:
            raise UnsupportedError(
                f"weight {name!r} is not in the reference as it is here, so it cannot be replaced on both sides",
                hint=_WEIGHTLESS,
            )
        yield name, (mine, theirs)


def _recomputed(search: Search, partner: str, given: Mapping[str, Value]) -> Value | None:
    rerun: Callable[[str, Mapping[str, Value]], Value | None] | None = getattr(search.reference, "rerun", None)
    assert rerun is not None  # _weights asked
    return rerun(partner, given)


def _with_weights(piece: Piece, weights: Mapping[str, Value]) -> Model:
    from onnx import numpy_helper

    proto = copy_of(piece.model.proto)
    for tensor in proto.graph.initializer:
        if tensor.name in weights:
            tensor.CopyFrom(numpy_helper.from_array(weights[tensor.name], tensor.name))
    for node in proto.graph.node:
        if node.op_type == "Constant" and node.output[0] in weights:
            node.attribute[0].t.CopyFrom(numpy_helper.from_array(weights[node.output[0]]))
    return piece.model.derive(proto)


def _specimen(model: Model, feeds: Mapping[str, Value]) -> Specimen:
    graph = model.proto.graph
    inputs, outputs = (tuple(info.name for info in infos) for infos in (graph.input, graph.output))
    return Specimen(model, ({name: feeds[name] for name in inputs},), inputs, outputs, len(graph.node))


def _error(search: Search, specimen: Specimen, expected: Value, finding: Finding) -> float | None:
    """Returns how far a piece is from what should come out; None where it goes wrong otherwise, or does not run."""
    try:
        (made,) = search.parts.open(specimen.model).run(specimen.sets[0]).values()
    except ExecutionError:
        return None
    distance = measure(expected, made)
    assert finding.own is not None
    if distance.problem != finding.own.problem:
        return None
    return distance.severity


# ---------------------------------------------------------------- other values


@dataclass(frozen=True, slots=True)
class _Way:
    """A way to replace values.

    Attributes:
        change: What becomes of an array, given random numbers for it.
        notes: What is told if it is the one that shows the failure.
    """

    change: Callable[[Any, Any], Any]
    notes: tuple[str, ...]

    def of(self, name: str, value: Value) -> Value:
        """Returns an array with other values; one of a few numbers as it is."""
        import numpy as np

        if not hasattr(value, "dtype") or value.size <= _FEW or value.dtype.kind in "OUS":
            return value
        random = np.random.default_rng(zlib.crc32(name.encode()))
        if is_floating(value):
            wide = value.astype(np.float64)
            finite = np.isfinite(wide)
            if np.unique(wide[finite]).size > _FEW_KINDS:  # else it is a mask
                made = np.where(finite, self.change(np.where(finite, wide, 0.0), random), wide)
                with np.errstate(over="ignore"):
                    return np.asarray(made).astype(value.dtype)
        elif value.dtype.kind in "iu" and self.change is not _shuffled:
            return random.integers(value.min(), value.max(), value.shape, value.dtype, endpoint=True)
        return np.asarray(_shuffled(value, random))

    def pair(self, name: str, mine: Value, theirs: Value) -> tuple[Value, Value]:
        """Returns both sides' values of a weight replaced, and as far apart as they were."""
        import numpy as np

        other = self.of(name, theirs)
        cast = as_dtype(theirs, onnx_dtype(mine.dtype))
        if cast.dtype == mine.dtype and np.array_equal(cast, mine):
            return as_dtype(other, onnx_dtype(mine.dtype)), other
        if not (is_floating(mine) and is_floating(theirs)):
            return _SHUFFLE.of(name, mine), _SHUFFLE.of(name, theirs)
        apart = mine.astype(np.float64) - theirs.astype(np.float64)
        return (other.astype(np.float64) + apart).astype(mine.dtype), other


def _drawn(wide: Any, random: Any) -> Any:
    import numpy as np

    made = random.standard_normal(wide.shape) * (wide.std() or 1.0) + wide.mean()
    return np.abs(made) if wide.min() >= 0 else made  # variances, and what a Relu or a Softmax gives


def _stretched(wide: Any, random: Any) -> Any:
    import numpy as np

    made = _drawn(wide, random)
    return made * (np.abs(wide).max() / max(float(np.abs(made).max()), 1e-300))


def _shuffled(wide: Any, random: Any) -> Any:
    return random.permutation(wide.reshape(-1)).reshape(wide.shape)


_SHUFFLE = _Way(
    _shuffled, ("the failure needs these very numbers: weights and inputs are the old ones in random order",)
)
_WAYS = (_Way(_drawn, ()), _Way(_stretched, ()), _SHUFFLE)
