"""How large the tensors of a model get, held against the largest value of an element type.

Tensors of the main graph are reduced where they are made, those of bodies by ``_probing``. What a local function makes
is looked at in the model in which it is inlined: the largest of all calls counts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from onnxbench import backends
from onnxbench.errors import ExecutionError, UnsupportedError
from onnxbench.graph import GraphIndex, NodeRef, Scope
from onnxbench.inlining import inline_functions
from onnxbench.precision._probing import BodyProbes
from onnxbench.precision._signatures import FLOATS
from onnxbench.precision._values import float_info
from onnxbench.tensortype import dtype_number, elem_type

if TYPE_CHECKING:
    from onnx import TypeProto

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
        tensor: Its name, in a body or function with the path of that.
        largest: The largest magnitude that was seen in it.
        share: That as a share of the largest value of the type: 1 and more overflows.
    """

    node: str
    op_type: str
    tensor: str
    largest: float
    share: float


@dataclass(frozen=True, slots=True)
class Magnitudes:
    """How large tensors get.

    Attributes:
        largest: The largest magnitude of each floating-point tensor, by its name, in bodies and functions by its path.
        missed: Bodies and functions that could not be looked into.
        nonfinite: Tensors of the main graph with NaN or infinite elements, which do not count for ``largest``.
    """

    largest: dict[str, float]
    missed: tuple[str, ...]
    nonfinite: tuple[str, ...] = ()


def find_magnitudes(model: Model, feeds: Iterable[Mapping[str, Value]]) -> Magnitudes:
    """Returns the largest magnitude of every floating-point tensor of a model, as ONNX Runtime computes it.

    Args:
        model: The model.
        feeds: Sets of inputs; the model runs a few times on each, and holds no more memory than a run does.

    Raises:
        FeedsError: The feeds do not fit.
        ExecutionError: The model does not run.
    """
    index = GraphIndex(model.proto)
    main = index.main
    names = [name for written in main.writes for name in written]
    names += [name for name in main.true_inputs() if name not in main.producers]
    chains = _chains(model, names)
    probes = BodyProbes(model, FLOATS.keys(), (runtime_types,)) if main.bodies or index.functions else None
    missed = dict.fromkeys(probes.missed if probes is not None else ())
    inlined, copies = _inlined(model, index, missed)
    inner_chains = _chains(inlined, [name for names in copies.values() for name in names])
    found: dict[str, float] = {}
    nonfinite: dict[str, None] = {}
    for values in feeds:
        largest, unclear = _measured(model, values, chains)
        _take(found, largest)
        nonfinite.update(dict.fromkeys(unclear))
        inner, _ = _measured(inlined, values, inner_chains)
        _take(found, {path: max(inner.get(name, 0.0) for name in names) for path, names in copies.items()})
        if probes is not None and not probes.is_empty:
            try:
                _take(found, probes.run(values))
            except ExecutionError:
                missed.update(dict.fromkeys(body.path for bodies in main.bodies.values() for body in bodies))
    ordered = dict.fromkeys([*main.true_inputs(), *names])
    return Magnitudes(found, tuple(missed), tuple(name for name in ordered if name in nonfinite))


def _take(found: dict[str, float], more: Mapping[str, float]) -> None:
    for name, value in more.items():
        found[name] = max(found.get(name, 0.0), value)


def _chains(model: Model, names: Sequence[str]) -> dict[str, tuple[str, ...]]:
    kinds = backends.tensor_types(model, names) if names else {}
    return {name: ("Cast:1", "Abs", "ReduceMax") for name in names
            if name in kinds and elem_type(kinds[name]) in FLOATS}  # fmt: skip


def _inlined(model: Model, index: GraphIndex, missed: dict[str, None]) -> tuple[Model, dict[str, list[str]]]:
    """Returns a model without functions, and what the tensors of functions are called in its main graph.

    Functions of which nothing is found there are added to ``missed``.
    """
    if not index.functions:
        return model, {}
    try:
        inlined, copies = inline_functions(model)
    except UnsupportedError:
        inlined, copies = model, {}
    made = {name for node in inlined.proto.graph.node for name in node.output}
    copies = {path: there for path, names in copies.items() if (there := [name for name in names if name in made])}
    called = {path.rpartition("/")[0] for path in copies}
    missed.update(dict.fromkeys(each.path for each in index.functions.values() if each.path not in called))
    return inlined, copies


def _measured(
    model: Model, values: Mapping[str, Value], chains: Mapping[str, Sequence[str]]
) -> tuple[dict[str, float], list[str]]:
    """Returns the largest finite magnitudes of tensors of the main graph, and those that are not finite throughout."""
    import numpy as np

    shapes = backends.observed_shapes(model, values, list(chains)) if chains else {}
    full = {name: chain for name, chain in chains.items() if 0 not in shapes.get(name, ())}  # of none is no largest
    results = backends.probe(model, values, full)
    found = {name: _finite_max(result) for name, result in results.items()}
    unclear = [name for name, result in results.items() if not np.isfinite(result).all()]
    for name, value in backends.stream_outputs(model, values, unclear, optimization="none"):
        found[name] = max(found[name], _finite_max(value))
    return found, unclear


def runtime_types(model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
    """Asks ONNX Runtime for the types of what operators make that onnx does not know."""
    try:
        return backends.session_types(model, names)
    except ExecutionError:
        return {}


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
    index = GraphIndex(model.proto)
    found = []
    for path, largest in magnitudes.items():
        if largest / top >= _LITTLE:
            at = index.tensor(path)
            position = at.scope.producers.get(at.name) if at is not None else None
            ref = NodeRef(at.scope, position) if at is not None and position is not None else None
            label, op_type = (ref.path, ref.node.op_type) if ref is not None else (path, "")
            found.append(Headroom(label, op_type, path, largest, largest / top))
    return tuple(sorted(found, key=lambda each: (-each.share, each.tensor)))


def overflowing(index: GraphIndex, headroom: Collection[Headroom]) -> dict[NodeRef, str]:
    """Returns the nodes that make or read a tensor that goes beyond the type, with what it is.

    A node with bodies of which one makes such a tensor is none of them: it hands on what these make.
    """
    beyond = [each for each in headroom if each.share >= 1]
    within = {each.tensor.rpartition("/")[0] for each in beyond}
    found: dict[NodeRef, str] = {}
    for each in beyond:
        at = index.tensor(each.tensor)
        if at is None:
            continue
        words = f"{each.tensor} reaches {each.largest:.4g}"
        position = at.scope.producers.get(at.name)
        if position is not None and not any(body.path in within for body in at.scope.bodies.get(position, ())):
            found.setdefault(NodeRef(at.scope, position), words)
        for ref in _readers(at.scope, at.name):
            found.setdefault(ref, words)
    return found


def _readers(scope: Scope, name: str) -> Iterator[NodeRef]:
    """Yields the nodes that read a tensor, in bodies too."""
    pending = [scope]
    while pending:
        inner = pending.pop()
        for position in inner.consumers.get(name, ()):
            if position not in inner.bodies or name in inner.nodes[position].input:
                yield NodeRef(inner, position)
            else:
                pending += [body for body in inner.bodies[position] if name in body.captures]


def largest_value(number: int) -> float:
    """Returns the largest value of a floating-point element type."""
    from onnx import helper

    return float(float_info(helper.tensor_dtype_to_np_dtype(number)).max)
