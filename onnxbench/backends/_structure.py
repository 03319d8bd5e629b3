"""What every backend does to a model before it runs it: other outputs, and weights put into the structure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from onnxbench.boundary import reach_back
from onnxbench.errors import NotFoundError, UnsupportedError, did_you_mean
from onnxbench.graph import GraphIndex, node_bodies
from onnxbench.messages import copy_of

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, TensorProto

    from onnxbench.model import Model


def expose(proto: ModelProto, outputs: Sequence[str] | None) -> ModelProto:
    """Returns the model with exactly these tensors of its main graph as outputs; the given one if nothing changes.

    Tensors that were no outputs come without a type: the runtime infers it. Nodes that no output needs are left out,
    since runtimes run them all the same.

    Raises:
        NotFoundError: The main graph has no such tensor.
        UnsupportedError: It lies inside a body or function.
    """
    if outputs is None or list(outputs) == [info.name for info in proto.graph.output]:
        return proto
    names = list(dict.fromkeys(outputs))
    require_tensors(proto, names)
    needed = reach_back(GraphIndex(proto).main, names, ()).nodes
    copy = copy_of(proto)
    if len(needed) < len(proto.graph.node):
        del copy.graph.node[:]
        copy.graph.node.extend(node for position, node in enumerate(proto.graph.node) if position in needed)
    declared = {info.name: info for info in proto.graph.output}
    del copy.graph.output[:]
    for name in names:
        added = copy.graph.output.add(name=name)
        if name in declared:
            added.CopyFrom(declared[name])
    return copy


def require_tensors(proto: ModelProto, names: Sequence[str]) -> None:
    """Raises unless the main graph has all these tensors.

    Raises:
        NotFoundError: It has not.
        UnsupportedError: One lies inside a body or function.
    """
    graph = proto.graph
    there = {info.name for info in graph.output}
    if there.issuperset(names) and "" not in names:
        return
    there.update(name for node in graph.node for name in node.output)
    there.update(info.name for info in graph.input)
    there.update(tensor.name for tensor in graph.initializer)
    there.update(tensor.values.name for tensor in graph.sparse_initializer)
    for name in names:
        if name not in there or not name:
            raise _unknown(proto, name, there)


def _unknown(proto: ModelProto, name: str, there: Iterable[str]) -> Exception:
    ref = GraphIndex(proto).tensor(name)
    if ref is not None:
        return UnsupportedError(
            f"{name!r} lies inside {'a function' if ref.scope.is_function else 'a body'}, so a run of the model has no "
            "value of its own for it",
            hint=f"Make that graph a model of its own first: extract --lift {ref.scope.path}",
        )
    return NotFoundError(f"the model has no tensor {name!r}", hint=did_you_mean(name, there))


def distinct_node_names(proto: ModelProto) -> ModelProto:
    """Returns the model with every node of a graph called differently; the given one if they are.

    ONNX does not ask for it, ONNX Runtime does. A name that several nodes have gets their position: ``name#12``.
    """
    if all(_are_distinct(graph) for graph in _graphs(proto)):
        return proto
    copy = copy_of(proto)
    for graph in _graphs(copy):
        if not _are_distinct(graph):
            often = {name for name, count in Counter(node.name for node in graph.node).items() if name and count > 1}
            for position, node in enumerate(graph.node):
                if node.name in often:
                    node.name = f"{node.name}#{position}"
    return copy


def _are_distinct(graph: GraphProto | FunctionProto) -> bool:
    names = [node.name for node in graph.node if node.name]
    return len(set(names)) == len(names)


def _graphs(proto: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    """Yields the main graph, the functions, and all bodies."""
    pending: list[GraphProto | FunctionProto] = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        yield graph
        for node in graph.node:
            if node.attribute:
                pending.extend(body for _, body in node_bodies(node))


def inline_weights(model: Model, tensors: Iterable[TensorProto]) -> None:
    """Puts the bytes of tensors that lie outside the structure into it, in place.

    Raises:
        ExternalDataError: They cannot be had.
    """
    for tensor in tensors:
        where = model.byte_range(tensor)
        if where is None:
            continue
        with open(where.file, "rb") as file:
            file.seek(where.offset)
            data = file.read(where.length)
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
        tensor.raw_data = data
