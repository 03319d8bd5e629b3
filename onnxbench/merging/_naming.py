"""New names for everything in a model: where they stand, and how they are put there."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from onnxbench.graph import GraphIndex, Scope, node_bodies, root_of
from onnxbench.model import Model

if TYPE_CHECKING:
    from onnx import FunctionProto, ModelProto, NodeProto, TypeProto

_EXPRESSION = re.compile(r"[\w\s+*/().,-]*[-+*/(][\w\s+*/().,-]*")
_WORD = re.compile(r"[A-Za-z_]\w*(?!\w*\s*\()")
FunctionKey = tuple[str, str, str]


@dataclass(slots=True)
class Part:
    """One of the two models on its way into the result: a copy that may be changed."""

    letter: str
    model: Model
    index: GraphIndex
    tensors: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)
    dims: dict[str, str] = field(default_factory=dict)
    functions: dict[FunctionKey, str] = field(default_factory=dict)
    devices: dict[str, str] = field(default_factory=dict)

    @property
    def proto(self) -> ModelProto:
        """The structure."""
        return self.model.proto

    @property
    def roots(self) -> list[Scope]:
        """The main graph and its bodies, without the functions, which have names of their own."""
        return [scope for scope in self.index.scopes if not root_of(scope).is_function]

    def tensor_names(self) -> dict[str, None]:
        """Returns the names of tensors in the order in which they come."""
        return dict.fromkeys(
            name for scope in self.roots for name in (*scope.tensor_names(), *scope.outputs, *scope.captures)
        )

    def node_names(self, *, without: Collection[int] = ()) -> dict[str, None]:
        """Returns the names of nodes in their order, but for these positions of the main graph."""
        main = self.index.main
        return dict.fromkeys(
            node.name
            for scope in self.roots
            for position, node in enumerate(scope.nodes)
            if node.name and not (scope is main and position in without)
        )


def rename(part: Part, fresh: Mapping[str, str]) -> None:
    """Gives everything in a model its new name, in place.

    Args:
        part: The model and its new names.
        fresh: New names for tensors of bodies that have the name of a connected input and hide it there.
    """
    proto = part.proto
    if part.tensors or part.nodes:
        maps: dict[Scope, Mapping[str, str]] = {}
        for scope in part.roots:
            names = maps[scope.parent] if scope.parent is not None else part.tensors
            if fresh and scope.parent is not None:
                hidden = {name: new for name, new in fresh.items() if scope.defines(name)}
                names = {**names, **hidden} if hidden else names
            maps[scope] = names
            _rename_graph(scope.graph, scope.nodes, names, part.nodes)
    if part.functions:
        _rename_calls(part)
    if part.dims:
        for value in _types(proto):
            for dim in _dims(value):
                if dim.dim_param:
                    dim.dim_param = _renamed_dim(dim.dim_param, part.dims)
    if part.devices:
        for one in proto.configuration:
            one.name = part.devices.get(one.name, one.name)
        for ref in part.index.nodes():
            for configured in ref.node.device_configurations:
                configured.configuration_id = part.devices.get(configured.configuration_id, configured.configuration_id)


def _rename_graph(
    graph: Any, nodes: Iterable[NodeProto], tensors: Mapping[str, str], node_names: Mapping[str, str]
) -> None:
    get = tensors.get
    for node in nodes:
        if node.name in node_names:
            node.name = node_names[node.name]
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                new = get(name)
                if new is not None:
                    names[at] = new
        for configured in getattr(node, "device_configurations", ()):
            for spec in configured.sharding_spec:
                spec.tensor_name = tensors.get(spec.tensor_name, spec.tensor_name)
    for held in (graph.input, graph.output, graph.value_info, graph.initializer):
        for one in held:
            new = get(one.name)
            if new is not None:
                one.name = new
    for sparse in graph.sparse_initializer:
        new = get(sparse.values.name)
        if new is not None:
            sparse.values.name = new
    for annotation in graph.quantization_annotation:
        annotation.tensor_name = tensors.get(annotation.tensor_name, annotation.tensor_name)
        for entry in annotation.quant_parameter_tensor_names:
            entry.value = tensors.get(entry.value, entry.value)


def _rename_calls(part: Part) -> None:
    for function in part.proto.functions:
        new = part.functions.get(function_key(function))
        if new is not None:
            function.name = new
    for ref in part.index.nodes():
        new = part.functions.get((ref.node.domain, ref.node.op_type, ref.node.overload))
        if new is not None:
            ref.node.op_type = new


def _types(proto: ModelProto) -> Iterator[TypeProto]:
    """Yields every type that a model states, those in bodies, functions and attributes included."""
    pending: list[Any] = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        infos = [*graph.value_info]
        if hasattr(graph, "initializer"):
            infos += [*graph.input, *graph.output]
        for info in infos:
            yield info.type
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.type in (13, 14):
                    yield from (attribute.tp,) if attribute.type == 13 else attribute.type_protos
                elif attribute.type in (5, 10):
                    pending += [body for _, body in node_bodies(node)]
                    break


def _dims(value: TypeProto) -> Iterator[Any]:
    while True:
        kind = value.WhichOneof("value")
        if kind == "sequence_type":
            value = value.sequence_type.elem_type
        elif kind == "optional_type":
            value = value.optional_type.elem_type
        elif kind == "map_type":
            value = value.map_type.value_type
        else:
            break
    if kind == "tensor_type":
        yield from value.tensor_type.shape.dim
    elif kind == "sparse_tensor_type":
        yield from value.sparse_tensor_type.shape.dim


def symbols_of(proto: ModelProto) -> dict[str, None]:
    """Returns the symbols in the dimensions of a model: names, and the names within expressions like ``2*n + 1``."""
    found: dict[str, None] = {}
    for value in _types(proto):
        for dim in _dims(value):
            text = dim.dim_param
            if text and text != "?":
                found.update(dict.fromkeys(_WORD.findall(text) if _EXPRESSION.fullmatch(text) else [text]))
    return found


def _renamed_dim(text: str, names: Mapping[str, str]) -> str:
    if text in names:
        return names[text]
    if not _EXPRESSION.fullmatch(text):
        return text
    return _WORD.sub(lambda word: names.get(word[0], word[0]), text)


def function_key(function: FunctionProto) -> FunctionKey:
    """Returns what a call names a function by: domain, name, overload."""
    return function.domain, function.name, function.overload
