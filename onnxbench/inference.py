"""Types and shapes of tensors: what the model states, what its operators imply, what a runtime says.

Two thirds of real models state no type for any inner tensor. Sources are asked in the order of their cost and
only for what is still unknown: statements in the file, onnx's shape inference (in full, with data
propagation, over the structure; weights are not read), and last the callables that a caller hands in, which
are bridges to symbolic inference or to a runtime that types operators of its own (``onnxbench.backends``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import TYPE_CHECKING

from onnxbench import weights
from onnxbench.graph import GraphIndex, Scope, declared_types, sort_nodes, topological_order
from onnxbench.messages import copy_of
from onnxbench.tensortype import Dim, agree, is_complete, make_value_info, tensor_shape

if TYPE_CHECKING:
    from onnx import ModelProto, TensorShapeProto, TypeProto

    from onnxbench.model import Model

_LONGEST_SHAPE = 1 << 20

_PLAIN_NODE = 200
"""Bytes per node and value info; a structure above that has more than names and types in it."""

TypeSource = Callable[["Model", Sequence[str]], "dict[str, TypeProto]"]
"""Given a model and names of tensors in its main graph, returns the types it can tell."""


def inferred(proto: ModelProto, *, thorough: bool = True) -> ModelProto:
    """Returns the model with the types that onnx's inference adds, or as it was where inference gives up.

    Args:
        proto: The model.
        thorough: Also follow the values of shapes (data propagation), which takes about half as long again.
    """
    from onnx import shape_inference

    data = slim(proto)
    for propagate in (True, False) if thorough and not has_long_vector(proto) else (False,):
        try:
            result = shape_inference.infer_shapes(data, data_prop=propagate)
        except Exception:  # onnx raises RuntimeError, InferenceError, ValueError and others from C++ alike
            continue
        return result
    return proto


def has_long_vector(proto: ModelProto) -> bool:
    """Tells whether a vector is stated that is too long to be a shape.

    Data propagation takes every vector for one and makes a message of each of its elements, also of those that a
    broken model only claims to have: two billion of them take all the memory there is.
    """
    stated = (info.type for info in (*proto.graph.input, *proto.graph.value_info))
    if any((shape := tensor_shape(value)) and len(shape) == 1 and _is_long(shape[0]) for value in stated):
        return True
    return any(len(tensor.dims) == 1 and _is_long(tensor.dims[0]) for tensor in weights.tensors(proto))


def _is_long(size: Dim) -> bool:
    return isinstance(size, int) and size > _LONGEST_SHAPE


def slim(proto: ModelProto, *, place: str = "elsewhere") -> bytes:
    """Returns a model as bytes for tools in C++ that look at it whole: without what they only carry around.

    The metadata of nodes and value infos goes (exporters write up to a kilobyte per node, and every pass over the
    model would copy it several times), and tensors that lie outside the structure all lie in the file ``place``.
    """
    data: bytes = proto.SerializeToString()
    heavy = len(data) > _PLAIN_NODE * (len(proto.graph.node) + len(proto.graph.value_info))
    if not heavy and weights.OUTSIDE_MARK not in data:
        return data
    copy = type(proto).FromString(data)
    if heavy:
        for node in copy.graph.node:
            node.ClearField("metadata_props")
            node.ClearField("doc_string")
        for info in copy.graph.value_info:
            info.ClearField("metadata_props")
    for tensor in weights.tensors(copy):
        if tensor.data_location == 1:
            del tensor.external_data[:]
            tensor.external_data.add(key="location", value=place)
    return bytes(copy.SerializeToString())


def inferred_types(proto: ModelProto, names: Iterable[str]) -> dict[str, TypeProto]:
    """Returns the types that inference gave to these tensors of the main graph.

    Args:
        proto: A model that went through ``inferred``.
        names: The tensors of interest; others cost one look at their name.
    """
    wanted = set(names)
    infos = chain(proto.graph.value_info, proto.graph.output)
    return {info.name: without_made_up_dims(info.type) for info in infos if info.name in wanted}


def without_made_up_dims(value: TypeProto) -> TypeProto:
    """Returns the type without the names that inference invents: ``unk__7`` promises an equality that nobody knows.

    Sizes below zero, by which old exporters mean unknown ones, go as well.
    """
    return _without_dims(value, lambda dim: dim.dim_param.startswith("unk__") or dim.dim_value < 0)


def _without_dims(value: TypeProto, wrong: Callable[[TensorShapeProto.Dimension], bool]) -> TypeProto:
    """Returns a tensor type with these dimensions made unknown ones; the given one if it has none."""
    if value.WhichOneof("value") != "tensor_type" or not any(wrong(dim) for dim in value.tensor_type.shape.dim):
        return value
    copy = copy_of(value)
    for dim in copy.tensor_type.shape.dim:
        if wrong(dim):
            dim.ClearField("value")
    return copy


class TypeFinder:
    """Types of a model's tensors, found step by step and remembered.

    Args:
        model: The model; it is not changed.
        index: Its index.
        sources: Further places to ask, dearest last.
    """

    def __init__(self, model: Model, index: GraphIndex, sources: Sequence[TypeSource] = ()) -> None:
        self._model = model
        self._index = index
        self._sources = sources
        self._known: dict[Scope, _Known] = {}
        self._ready: ModelProto | None = None  # the model, fit for inference
        self._inferred: ModelProto | None = None  # with the types that a thorough inference adds
        self._inferred_index: GraphIndex | None = None
        self._moved: dict[Scope, dict[int, int]] = {}
        self._verified: set[str] = set()
        self._from_operators: set[str] = set()

    @property
    def index(self) -> GraphIndex:
        """The index of the model."""
        return self._index

    def find(self, scope: Scope, names: Iterable[str]) -> dict[str, TypeProto]:
        """Returns the types of these tensors of a graph; a name that no source can tell is absent.

        A type whose element type is known and whose rank is not is complete enough to be returned. What a body
        captures is looked for in the graphs around it.
        """
        wanted = list(dict.fromkeys(names))
        found: dict[str, TypeProto] = {}
        while scope.parent is not None:
            own = [name for name in wanted if scope.defines(name)]
            found.update(self._find_here(scope, own))
            wanted = [name for name in wanted if name not in set(own)]
            scope = scope.parent
        return {**found, **self._find_here(scope, wanted)}

    def _find_here(self, scope: Scope, wanted: list[str]) -> dict[str, TypeProto]:
        known = self._known_in(scope)
        stored = [name for name in wanted if name in scope.constants and known.get(name) is None]
        if stored:
            declared = declared_types(scope, constants=stored)
            for name in stored:
                known[name] = declared[name]
        if any(not _has_shape(known.get(name)) for name in wanted):
            self._infer(scope, known, wanted)
        for source in self._sources if scope is self._index.main else ():
            missing = [name for name in wanted if not _has_shape(known.get(name))]
            if not missing:
                break
            for name, found in source(self._model, missing).items():
                if is_complete(found) and (_has_shape(found) or not is_complete(known.get(name))):
                    known[name] = found
        types = {name: known.get(name) for name in wanted}
        return {name: _without_negative_dims(value) for name, value in types.items() if value and is_complete(value)}

    def verify(self, names: Iterable[str]) -> None:
        """Compares what the main graph states of these tensors with what their operators make, and corrects it.

        A wrong value info does no harm inside a model, for runtimes ignore it; as the type of a piece's input it
        would make the piece refuse the very tensors that it is for. Only the operators between a tensor and the
        nearest ones with a stated type are looked at, so this costs as much as the boundary is wide.
        """
        scope, known = self._index.main, self._known_in(self._index.main)
        settled = self._verified | self._from_operators
        stated = {n: known.get(n) for n in names if n not in settled and n in scope.producers}
        made = {name: value for name, value in stated.items() if value is not None and is_complete(value)}
        self._verified.update(made)
        if not made:
            return
        found = inferred_types(inferred(self._upstream(list(made), known)), made)
        wrong = [name for name, value in made.items() if name in found and not agree(value, found[name])]
        if not wrong:
            return
        right = inferred_types(inferred(bare(self._model.with_small_weights(self._tidied()))), wrong)
        for name in wrong:
            known[name] = right.get(name, found[name])

    def _known_in(self, scope: Scope) -> _Known:
        return self._known.setdefault(scope, _Known(scope))

    def _upstream(self, names: Sequence[str], known: _Known) -> ModelProto:
        """Returns a model of the nodes that make ``names`` from the nearest tensors whose type is stated."""
        from onnx import ModelProto

        scope = self._index.main
        nodes: set[int] = set()
        stops: dict[str, TypeProto] = {}
        constants: set[str] = set()
        pending = [scope.producers[name] for name in names]
        while pending:
            position = pending.pop()
            if position in nodes:
                continue
            nodes.add(position)
            for name in scope.reads[position]:
                if name in scope.constants:
                    constants.add(name)
                elif name in scope.producers and not _has_shape(known.get(name)):
                    pending.append(scope.producers[name])
                elif (value := known.get(name)) is not None:
                    stops[name] = value
        made = {name for position in nodes for name in scope.writes[position]}
        source = self._index.proto
        proto = ModelProto(ir_version=source.ir_version, opset_import=source.opset_import)
        needed = self._index.function_closure([scope.nodes[position] for position in nodes])
        proto.functions.extend(f for f in source.functions if (f.domain, f.name, f.overload) in needed)
        graph = proto.graph
        graph.name = "upstream"
        graph.input.extend(
            make_value_info(name, _without_negative_dims(value)) for name, value in stops.items() if name not in made
        )
        graph.initializer.extend(t for t in source.graph.initializer if t.name in constants)
        graph.sparse_initializer.extend(t for t in source.graph.sparse_initializer if t.values.name in constants)
        order = topological_order(scope)
        in_order = sorted(nodes) if order is None else [position for position in order if position in nodes]
        graph.node.extend(scope.nodes[position] for position in in_order)
        return self._model.with_small_weights(proto)

    def _tidied(self) -> ModelProto:
        """Returns the model as inference wants it: nodes sorted, the standard domain spelled ``""``."""
        scopes = self._index.scopes
        unsorted = any(topological_order(scope) is not None for scope in scopes)
        spelled = any(node.domain == "ai.onnx" for scope in scopes for node in scope.nodes)
        if not unsorted and not spelled:
            return self._model.proto
        proto = copy_of(self._model.proto)
        if spelled:
            for ref in GraphIndex(proto).nodes():
                if ref.node.domain == "ai.onnx":
                    ref.node.domain = ""
        for number, order in sort_nodes(proto):
            self._moved[scopes[number]] = {position: at for at, position in enumerate(order)}
        return proto

    def _infer(self, scope: Scope, known: _Known, wanted: list[str]) -> None:
        """Adds what inference tells about a graph to what is known of it; a fuller shape replaces none at all."""
        main = scope is self._index.main
        types: dict[str, TypeProto] | None = None
        if self._ready is None:
            self._ready = _without_contradictions(self._model.with_small_weights(self._tidied()))
            if main:
                quick = inferred_types(inferred(self._until(wanted), thorough=False), wanted)
                if all(_is_static(quick.get(name, known.get(name))) for name in wanted):
                    types = quick
        if types is None:
            self._inferred = self._inferred or inferred(self._ready)
            if main:
                types = inferred_types(self._inferred, wanted)
            else:
                types = {n: without_made_up_dims(value) for n, value in declared_types(self._twin(scope)).items()}
        for name, found in types.items():
            if not is_complete(known.get(name)) or (not _has_shape(known.get(name)) and _has_shape(found)):
                known[name] = found
                if main:
                    self._from_operators.add(name)

    def _until(self, wanted: Sequence[str]) -> ModelProto:
        """Returns the model without the nodes behind those that make these tensors of the main graph."""
        assert self._ready is not None
        moved = self._moved.get(self._index.main, {})
        positions = [self._index.main.producers[name] for name in wanted if name in self._index.main.producers]
        last = max((moved.get(position, position) for position in positions), default=-1)
        proto = copy_of(self._ready)
        del proto.graph.node[last + 1 :]
        return proto

    def _twin(self, scope: Scope) -> Scope:
        """Returns the graph of the inferred model that a graph of the model became."""
        assert self._inferred is not None
        if self._inferred_index is None:
            self._inferred_index = GraphIndex(self._inferred)
        chain = []
        while scope.parent is not None:
            chain.append(scope)
            scope = scope.parent
        twin = self._inferred_index.main
        if scope is not self._index.main:
            key = next(key for key, function in self._index.functions.items() if function is scope)
            twin = self._inferred_index.functions[key]
        for body in reversed(chain):
            owner = self._moved.get(scope, {}).get(body.owner, body.owner)
            twin = twin.bodies[owner][scope.bodies[body.owner].index(body)]
            scope = body
        return twin


class _Known:
    """Types of one graph's tensors by name: what the graph states, until something better is found."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope
        self._found: dict[str, TypeProto] = {}

    def get(self, name: str) -> TypeProto | None:
        """Returns what is known of a tensor; stored ones state nothing here."""
        if name in self._found:
            return self._found[name]
        info = self._scope.stated.get(name)
        return info.type if info is not None and info.HasField("type") else None

    def __setitem__(self, name: str, value: TypeProto) -> None:
        self._found[name] = value


def _without_negative_dims(value: TypeProto) -> TypeProto:
    return _without_dims(value, lambda dim: dim.dim_value < 0)


def bare(proto: ModelProto) -> ModelProto:
    """Returns a copy of a model that states no type but those of its inputs and initializers."""
    copy = copy_of(proto)
    del copy.graph.value_info[:]
    for output in copy.graph.output:
        output.ClearField("type")
    return copy


def _without_contradictions(proto: ModelProto) -> ModelProto:
    """Returns the model with the value infos corrected that contradict the operators: inference believes them all."""
    stated = {info.name: info.type for info in (*proto.graph.value_info, *proto.graph.output)}
    if not proto.graph.value_info:
        return proto
    found = inferred_types(inferred(bare(proto)), stated)
    wrong = {name for name, value in stated.items() if name in found and not agree(value, found[name])}
    if not wrong:
        return proto
    right = copy_of(proto)
    for info in (*right.graph.value_info, *right.graph.output):
        if info.name in wrong:
            info.type.CopyFrom(found[info.name])
    return right


def _is_static(value: TypeProto | None) -> bool:
    return _has_shape(value) and value is not None and None not in (tensor_shape(value) or ())


def _has_shape(value: TypeProto | None) -> bool:
    if value is None or not is_complete(value):
        return False
    return value.WhichOneof("value") != "tensor_type" or tensor_shape(value) is not None
