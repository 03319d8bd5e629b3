"""Copies of models with edits whose differences are known, for tests of ``diff``."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from onnxbench.graph import GraphIndex, Scope, node_bodies

Edit = Callable[["Editor"], "Counter[str] | None"]


def copy_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


# ---- disguises: the same model, called otherwise and in another order


def disguised(proto: onnx.ModelProto, chance: random.Random, *, keep: set[str] | None = None) -> onnx.ModelProto:
    """Returns a copy in which tensors and nodes have other names, and all that has no order another order.

    Args:
        proto: The model.
        chance: Where names and orders come from.
        keep: Tensors that keep their names.
    """
    copy = copy_of(proto)
    shuffle_nodes(copy, chance)
    names = sorted(tensor_names(copy) - (keep or set()) - {""})
    numbers = list(range(len(names)))
    chance.shuffle(numbers)
    rename(copy, {name: f"other{number}." for name, number in zip(names, numbers, strict=True)})
    for graph in graphs(copy):
        for number, node in enumerate(graph.node):
            node.name = f"n{number}"
            _shuffle(node.attribute, chance)
        if isinstance(graph, onnx.GraphProto):
            _shuffle(graph.initializer, chance)
            _shuffle(graph.sparse_initializer, chance)
            _shuffle(graph.quantization_annotation, chance)
        _shuffle(graph.value_info, chance)
    _shuffle(copy.functions, chance)
    return copy


def shuffle_nodes(proto: onnx.ModelProto, chance: random.Random) -> None:
    """Puts the nodes of every graph into another order in which they can run."""
    for scope in reversed(GraphIndex(proto).scopes):
        order = _some_order(scope, chance)
        nodes = []
        for position in order:
            nodes.append(onnx.NodeProto())
            nodes[-1].CopyFrom(scope.nodes[position])
        del scope.graph.node[:]
        scope.graph.node.extend(nodes)


def _some_order(scope: Scope, chance: random.Random) -> list[int]:
    waiting = [len({scope.producers[name] for name in reads if name in scope.producers}) for reads in scope.reads]
    ready = [position for position, count in enumerate(waiting) if not count]
    order = []
    while ready:
        position = ready.pop(chance.randrange(len(ready)))
        order.append(position)
        for reader in {reader for name in scope.writes[position] for reader in scope.consumers.get(name, ())}:
            waiting[reader] -= 1
            if not waiting[reader]:
                ready.append(reader)
    assert len(order) == len(scope.nodes)
    return order


def _shuffle(field: Any, chance: random.Random) -> None:
    members = []
    for member in field:
        members.append(type(member)())
        members[-1].CopyFrom(member)
    chance.shuffle(members)
    del field[:]
    field.extend(members)


def graphs(proto: onnx.ModelProto) -> Iterator[Any]:
    """Yields the main graph, the functions, and all bodies."""
    pending: list[Any] = [proto.graph, *proto.functions]
    while pending:
        graph = pending.pop()
        yield graph
        pending.extend(body for node in graph.node for _, body in node_bodies(node))


def tensor_names(proto: onnx.ModelProto) -> set[str]:
    return {ref.name for ref in GraphIndex(proto).tensors()}


def rename(proto: onnx.ModelProto, names: dict[str, str]) -> None:
    """Gives tensors other names, wherever they stand."""

    def swap(field: Any) -> None:
        field[:] = [names.get(name, name) for name in list(field)]

    for graph in graphs(proto):
        for node in graph.node:
            swap(node.input)
            swap(node.output)
        if isinstance(graph, onnx.FunctionProto):
            swap(graph.input)
            swap(graph.output)
            named: list[Any] = list(graph.value_info)
        else:
            named = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
            named += [sparse.values for sparse in graph.sparse_initializer]
            for entry in graph.quantization_annotation:
                entry.tensor_name = names.get(entry.tensor_name, entry.tensor_name)
                for item in entry.quant_parameter_tensor_names:
                    item.value = names.get(item.value, item.value)
        for item in named:
            item.name = names.get(item.name, item.name)


# ---- edits


class Editor:
    """Edits a model in ways whose differences are known; no two edits touch the same node or tensor."""

    def __init__(self, proto: onnx.ModelProto, chance: random.Random) -> None:
        self.proto, self.chance = copy_of(proto), chance
        self.touched: set[str] = set()
        self.taken = tensor_names(proto) | {node.name for graph in graphs(proto) for node in graph.node}
        self.log: list[str] = []

    def fresh(self, word: str) -> str:
        number = 0
        while f"{word}_{number}" in self.taken:
            number += 1
        self.taken.add(f"{word}_{number}")
        return f"{word}_{number}"

    def node(self, keep: Callable[[Any], bool] = lambda node: True) -> tuple[Any, Any] | None:
        """Returns a graph and one of its nodes that no edit has touched yet."""
        found = [
            (graph, node)
            for graph in graphs(self.proto)
            for node in graph.node
            if keep(node) and node.output and node.output[0] and self.touched.isdisjoint(node.output)
        ]
        if not found:
            return None
        graph, node = self.chance.choice(found)
        self.touched.update(node.output)
        self.touched.update(node.input)
        return graph, node

    def apply(self, count: int) -> Counter[str]:
        """Applies so many edits; returns how many changes of which kind they are."""
        expected: Counter[str] = Counter()
        for _ in range(count):
            edit = self.chance.choice(EDITS)
            done = edit(self)
            if done is not None:
                self.log.append(f"{edit.__name__}: {dict(done)}")
                expected += done
        return expected


def set_attribute(editor: Editor) -> Counter[str] | None:
    chosen = editor.node(lambda node: any(entry.type in (1, 2) and not entry.ref_attr_name for entry in node.attribute))
    if chosen is None:
        return None
    entry = next(entry for entry in chosen[1].attribute if entry.type in (1, 2) and not entry.ref_attr_name)
    if entry.type == 1:
        entry.f += 17.5
    else:
        entry.i += 17
    return Counter(attribute=1)


def add_attribute(editor: Editor) -> Counter[str] | None:
    chosen = editor.node()
    if chosen is None:
        return None
    chosen[1].attribute.add(name="added", type=onnx.AttributeProto.INTS, ints=[1, 2])
    return Counter(attribute=1)


def set_op(editor: Editor) -> Counter[str] | None:
    chosen = editor.node(lambda node: not node_bodies(node))
    if chosen is None:
        return None
    chosen[1].op_type = editor.fresh("Op")
    return Counter(op=1)


def set_weight(editor: Editor) -> Counter[str] | None:
    found = [
        tensor
        for graph in graphs(editor.proto)
        if isinstance(graph, onnx.GraphProto)
        for tensor in graph.initializer
        if tensor.data_type in (1, 6, 7) and tensor.data_location == 0 and np.prod(tensor.dims) > 0
        and tensor.name not in editor.touched and np.isfinite(numpy_helper.to_array(tensor)).all()
    ]  # fmt: skip
    if not found:
        return None
    tensor = editor.chance.choice(found)
    editor.touched.add(tensor.name)
    values = numpy_helper.to_array(tensor).copy()
    values.reshape(-1)[0] = 3 if values.reshape(-1)[0] != 3 else 4
    made = numpy_helper.from_array(values, tensor.name)
    for field in ("float_data", "int32_data", "int64_data", "raw_data"):
        tensor.ClearField(field)
    tensor.raw_data = made.raw_data
    return Counter(weight=1)


def add_output(editor: Editor) -> Counter[str] | None:
    outputs = {info.name for info in editor.proto.graph.output}
    found = [name for node in editor.proto.graph.node for name in node.output if name and name not in outputs]
    found = [name for name in found if name not in editor.touched]
    if not found:
        return None
    name = editor.chance.choice(found)
    editor.touched.add(name)
    editor.proto.graph.output.add(name=name)
    return Counter(output=1)


def remove_output(editor: Editor) -> Counter[str] | None:
    outputs = editor.proto.graph.output
    found = [number for number, info in enumerate(outputs) if info.name not in editor.touched]
    if len(outputs) < 2 or not found:
        return None
    number = editor.chance.choice(found)
    editor.touched.add(outputs[number].name)
    del outputs[number]
    return Counter(output=1)


def rename_tensor(editor: Editor) -> Counter[str] | None:
    names: Counter[str] = Counter()
    for graph in graphs(editor.proto):
        names.update({name for node in graph.node for name in node.output if name})
    ends = {info.name for graph in graphs(editor.proto) for info in _infos(graph)}
    found = sorted(name for name, count in names.items() if count == 1 and name not in ends | editor.touched)
    if not found:
        return None
    name = editor.chance.choice(found)
    new = editor.fresh("renamed")
    editor.touched |= {name, new}
    rename(editor.proto, {name: new})
    return Counter(name=1)


def _infos(graph: Any) -> list[Any]:
    if isinstance(graph, onnx.GraphProto):
        return [*graph.input, *graph.output]
    return [onnx.ValueInfoProto(name=name) for name in (*graph.input, *graph.output)]


def rename_node(editor: Editor) -> Counter[str] | None:
    chosen = editor.node()
    if chosen is None:
        return None
    chosen[1].name = editor.fresh("node")
    return Counter(name=1)


def insert_identity(editor: Editor) -> Counter[str] | None:
    chosen = editor.node(lambda node: any(node.input))
    if chosen is None:
        return None
    graph, node = chosen
    slot = editor.chance.choice([slot for slot, name in enumerate(node.input) if name])
    made = editor.fresh("inserted")
    editor.touched.add(made)
    at = next(number for number, other in enumerate(graph.node) if other is node or other.output == node.output)
    identity = helper.make_node("Identity", [node.input[slot]], [made], name=editor.fresh("Identity"))
    node.input[slot] = made
    graph.node.insert(at, identity)
    return Counter(node=1, wiring=1)


def set_metadata(editor: Editor) -> Counter[str] | None:
    chosen = editor.node()
    owners = [editor.proto, editor.proto.graph, *([chosen[1]] if chosen else [])]
    editor.chance.choice(owners).metadata_props.add(key=editor.fresh("key"), value="v")
    return Counter(metadata=1)


def set_doc(editor: Editor) -> Counter[str] | None:
    chosen = editor.node()
    if chosen is None:
        return None
    chosen[1].doc_string = "another"
    return Counter(doc=1)


EDITS: tuple[Edit, ...] = (
    set_attribute, add_attribute, set_op, set_weight, add_output, remove_output, rename_tensor, rename_node,
    insert_identity, set_metadata, set_doc,
)  # fmt: skip
