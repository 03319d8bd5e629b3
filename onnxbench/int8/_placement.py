"""Where a calibrated model quantizes, and how it is without that at some nodes.

A node that was quantized reads what a DequantizeLinear makes, of an activation that a QuantizeLinear quantized or of a
stored weight. To leave it in float is to let it read the float tensor in its place. A pair of QuantizeLinear and
DequantizeLinear goes when no quantized node reads it any more and none wrote it; others that read it (a residual sum,
say) read the float tensor then, too. So what remains is what the quantizer would have made without these nodes, but for
tensors that others want quantized, which nodes in float read as they were.

The float model is at hand as well: it says what inputs were called, and has the weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.errors import UnsupportedError
from onnxbench.graph import GraphIndex, NodeRef, sort_nodes
from onnxbench.inference import TypeFinder
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.tensortype import elem_type
from onnxbench.tuning import Unit

if TYPE_CHECKING:
    import numpy as np
    from onnx import GraphProto, NodeProto, TensorProto

    from onnxbench.graph import Scope
    from onnxbench.quantizing import Calibrated

LINEAR = ("QuantizeLinear", "DequantizeLinear")
_MOVING = frozenset({
    "Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Pair:
    """A tensor that is quantized and dequantized.

    Attributes:
        tensor: Its name in the float model.
        source: The float tensor that is quantized, as it is called in the quantized model; ``""`` for a stored weight.
        output: What comes out.
        dequantize: The DequantizeLinear.
        quantize: The QuantizeLinear; None for a stored weight.
    """

    tensor: str
    source: str
    output: str
    dequantize: NodeProto
    quantize: NodeProto | None


class Placement:
    """A calibrated model, its quantized nodes known one by one.

    Args:
        made: The model. It is not changed.
        given: The index of the model as the user gave it, whose nodes the units are.
        writes: Whether quantized nodes have their outputs quantized, too (the form of ONNX Runtime).

    Attributes:
        model: The float model, sorted.
        index: Its index.
        units: The quantized nodes, in the order of the graph.
        pairs: What they read, by the name of what comes out of DequantizeLinear.
        unnamed: How many quantized nodes are none of the given model (a raised opset made them); they stay quantized.
    """

    def __init__(self, made: Calibrated, given: GraphIndex, *, writes: bool) -> None:
        self._made, self._writes = made, writes
        proto = copy_of(made.prepared.proto)
        sort_nodes(proto)
        self.model = made.prepared.derive(proto)
        self.index = GraphIndex(proto)
        self._scope = GraphIndex(made.model.proto).main
        self._stored = {tensor.name: tensor for tensor in made.model.proto.graph.initializer}
        self._slots, self.pairs = self._read()
        self.units, self.unnamed = self._find_units(given)
        self._names = [self.index.main.nodes[unit.at[0][1]].name for unit in self.units]
        self._numbers = {unit.at[0][1]: number for number, unit in enumerate(self.units)}
        self._counter = itertools.count()

    @cached_property
    def kinds(self) -> list[dict[str, int]]:
        """The element types of the float model's tensors, as far as they are known."""
        finder = TypeFinder(self.model, self.index, [backends.session_types])
        main = self.index.main
        names = dict.fromkeys(name for group in (*main.reads, *main.writes) for name in group)
        return [{name: elem_type(kind) for name, kind in finder.find(main, names).items()}]

    def _read(self) -> tuple[dict[str, tuple[int, ...]], dict[str, Pair]]:
        """Returns the inputs of nodes that are dequantized, by node, and the pairs that make them."""
        scope = self._scope
        floats = {node.name: node for node in self.index.main.nodes}
        slots: dict[str, tuple[int, ...]] = {}
        pairs: dict[str, Pair] = {}
        for node in scope.nodes:
            before = floats.get(node.name)
            if before is None or node.op_type in LINEAR:
                continue
            found = []
            for slot, name in enumerate(node.input):
                maker = _maker(scope, name, "DequantizeLinear")
                if maker is None:
                    continue
                found.append(slot)
                quantize = _maker(scope, maker.input[0], "QuantizeLinear")
                source = "" if quantize is None else quantize.input[0]
                pairs.setdefault(name, Pair(before.input[slot], source, name, maker, quantize))
            slots[node.name] = tuple(found)
        return slots, pairs

    def _find_units(self, given: GraphIndex) -> tuple[tuple[Unit, ...], int]:
        writers = {name: at for at, names in enumerate(given.main.writes) for name in names}
        units, unnamed = [], 0
        for position, node in enumerate(self.index.main.nodes):
            if node.op_type not in self._made.operators or not self._slots.get(node.name):
                continue
            at = next((writers[name] for name in node.output if name in writers), None)
            if at is None:
                unnamed += 1
                continue
            ref = NodeRef(given.main, at)
            units.append(Unit(ref, ref.path, node.op_type, ((0, position),)))
        return tuple(units), unnamed

    # ------------------------------------------------------------ without some

    def leave(self, kept: Collection[int]) -> Model:
        """Returns the quantized model with these units left in float."""
        proto = copy_of(self._made.model.proto)
        made = self._made.model.derive(proto)
        if not kept:
            return made
        graph, left = proto.graph, {self._names[unit] for unit in kept}
        weights: dict[str, str] = {}
        for node in graph.node:
            if node.name in left:
                for slot in self._slots[node.name]:
                    pair = self.pairs[node.input[slot]]
                    node.input[slot] = pair.source or weights.setdefault(pair.tensor, self.new_name())
        self._dissolve(graph, self._unwanted(left))
        self._sweep(graph)
        self._add_floats(made, weights)
        return made

    def _unwanted(self, left: Collection[str]) -> list[Pair]:
        """Returns the pairs that no node in int8 reads or writes."""
        scope, found = self._scope, []
        quantized = {name for name in self._names if name not in left} | self._others
        for pair in self.pairs.values():
            if pair.quantize is None:
                continue
            readers = (scope.nodes[at] for at in scope.consumers.get(pair.output, ()))
            if any(reader.name in quantized for reader in readers):
                continue
            maker = scope.producers.get(pair.source)
            is_written = self._writes and maker is not None and scope.nodes[maker].name in quantized
            is_bridge = maker is None and pair.output in scope.outputs
            if not is_written and not is_bridge:
                found.append(pair)
        return found

    @cached_property
    def _others(self) -> set[str]:
        """Quantized nodes that are no units."""
        operators = self._made.operators
        every = {
            node.name for node in self.index.main.nodes if node.op_type in operators and self._slots.get(node.name)
        }
        return every - set(self._names)

    def _dissolve(self, graph: GraphProto, pairs: Iterable[Pair]) -> None:
        """Lets what reads the end of a pair read its beginning. What is an output of the model keeps its name."""
        inputs: dict[str, str] = {}
        outputs: dict[str, str] = {}
        for pair in pairs:
            if pair.output in self._scope.outputs:
                outputs[pair.source] = pair.output
            else:
                inputs[pair.output] = pair.source
        gone = {pair.output for pair in pairs if pair.output in outputs.values()}
        kept = []
        for node in graph.node:
            if node.op_type == "DequantizeLinear" and node.output[0] in gone:
                continue
            for slot, name in enumerate(node.input):
                while name in inputs:
                    name = inputs[name]
                node.input[slot] = outputs.get(name, name)
            for slot, name in enumerate(node.output):
                node.output[slot] = outputs.get(name, name)
            kept.append(copy_of(node))
        del graph.node[:]
        graph.node.extend(kept)

    def _sweep(self, graph: GraphProto) -> None:
        """Removes quantizing nodes that nothing reads, and what only they read."""
        own = {node.output[0] for node in self._scope.nodes if node.op_type in LINEAR}
        index = GraphIndex(type(self.model.proto)(graph=graph))
        scope = index.main
        ends = {info.name for info in graph.output}
        readers = {name: len(positions) for name, positions in scope.consumers.items()}
        dead: set[int] = set()
        pending = [at for at, node in enumerate(scope.nodes) if node.op_type in LINEAR and node.output[0] in own]
        while pending:
            at = pending.pop()
            node = scope.nodes[at]
            if at in dead or readers.get(node.output[0]) or node.output[0] in ends:
                continue
            dead.add(at)
            for name in dict.fromkeys(scope.reads[at]):
                readers[name] -= 1
                maker = scope.producers.get(name)
                if maker is not None and scope.nodes[maker].op_type in LINEAR and name in own:
                    pending.append(maker)
        gone = {name for at in dead for name in scope.writes[at]}
        nodes = [copy_of(node) for at, node in enumerate(graph.node) if at not in dead]
        del graph.node[:]
        graph.node.extend(nodes)
        tensors = [copy_of(each) for each in graph.initializer
                   if self._is_float(each) or readers.get(each.name, 1) or each.name in ends]  # fmt: skip
        del graph.initializer[:]
        graph.initializer.extend(tensors)
        there = scope.producers.keys() - gone | {each.name for each in (*tensors, *graph.input)}
        went = set(self._scope.tensor_names()) - there
        infos = [copy_of(info) for info in graph.value_info if info.name not in went]
        del graph.value_info[:]
        graph.value_info.extend(infos)

    def _add_floats(self, made: Model, wanted: Mapping[str, str]) -> None:
        """Gives nodes left in float the weights that they read."""
        graph = made.proto.graph
        scope = GraphIndex(made.proto).main
        final: dict[str, str] = {}
        for name, stand_in in wanted.items():
            is_stored = any(tensor.name == name and self._is_float(tensor) for tensor in graph.initializer)
            maker = scope.producers.get(name)
            if is_stored or (maker is not None and scope.nodes[maker].op_type not in LINEAR):
                final[stand_in] = name
                continue
            if name not in self._floats:
                raise UnsupportedError(f"{name!r} is no weight of the float model, so no node can be left in float")
            tensor = copy_of(self._floats[name])
            tensor.name = name if maker is None and name not in scope.constants else _unused(scope, f"{name}_float")
            where = self._made.prepared.byte_range(tensor)
            graph.initializer.append(tensor)
            if where is not None:
                made.refer(graph.initializer[-1], where)
            final[stand_in] = tensor.name
        for node in graph.node:
            for slot, name in enumerate(node.input):
                node.input[slot] = final.get(name, name)

    def _is_float(self, tensor: TensorProto) -> bool:
        """Tells whether a weight is one of the float model; a quantizer may store integers under the same name."""
        known = self._floats.get(tensor.name)
        return known is not None and known.data_type == tensor.data_type

    @cached_property
    def _floats(self) -> dict[str, TensorProto]:
        """The weights of the float model."""
        graph = self.model.proto.graph
        made = {
            node.output[0]: attribute.t
            for node in graph.node if node.op_type == "Constant"
            for attribute in node.attribute if attribute.name == "value"
        }  # fmt: skip
        return {**made, **{tensor.name: tensor for tensor in graph.initializer}}

    # ------------------------------------------------------------ values

    def is_rectified(self, pair: Pair) -> bool:
        """Tells whether only Relu reads what comes out of a pair, so that negative values are as good as 0."""
        readers = self._scope.consumers.get(pair.output, ())
        is_read = bool(readers) and pair.output not in self._scope.outputs
        return is_read and all(self._scope.nodes[at].op_type == "Relu" for at in readers)

    def has_weight(self, pair: Pair) -> bool:
        """Tells whether a pair is of a weight that the float model stores as well."""
        return pair.quantize is None and pair.tensor in self._floats and pair.dequantize.input[0] in self._stored

    def weight(self, pair: Pair) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Returns a weight in float, and as it was quantized."""
        stored = self._stored[pair.dequantize.input[0]]
        return self._made.prepared.array(self._floats[pair.tensor]), self._made.model.array(stored)

    def parameter(self, name: str) -> np.ndarray[Any, Any]:
        """Returns a scale or zero point."""
        return self._made.model.array(self._stored[name])

    # ------------------------------------------------------------ for the ranking

    def units_of(self, position: int) -> list[int]:
        """Returns the unit that a node of the float model is."""
        return [self._numbers[position]] if position in self._numbers else []

    def is_moving(self, node: NodeProto) -> bool:
        """Tells whether the outputs of a node hold elements of its inputs."""
        return node.op_type in _MOVING

    @cached_property
    def _mark(self) -> str:
        names = {name for scope in self.index.scopes for name in scope.tensor_names()} | set(self._stored)
        mark = "int8/"
        while any(name.startswith(mark) for name in names):
            mark = f"_{mark}"
        return mark

    def new_name(self) -> str:
        """Returns a name that no tensor has."""
        return f"{self._mark}#{next(self._counter)}"

    def twin(self, position: int, halves: dict[str, str], used: dict[str, None]) -> tuple[list[NodeProto], list[str]]:
        """Returns a node of the float model with its inputs quantized and dequantized, under new names."""
        node = copy_of(self.index.main.nodes[position])
        quantized = self._scope.nodes[self._positions[node.name]]
        made: list[NodeProto] = []
        for slot in self._slots[node.name]:
            pair = self.pairs[quantized.input[slot]]
            if pair.output not in halves:
                halves[pair.output] = self._rounded(pair, made, used)
            node.input[slot] = halves[pair.output]
        names = [self.new_name() if name else "" for name in node.output]
        del node.output[:]
        node.output.extend(names)
        return [*made, node], names

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {node.name: at for at, node in enumerate(self._scope.nodes)}

    def _rounded(self, pair: Pair, made: list[NodeProto], used: dict[str, None]) -> str:
        dequantize = copy_of(pair.dequantize)
        name = self.new_name()
        dequantize.output[0] = name
        if pair.quantize is None:
            self._rename_stored(dequantize, 0, used)
        else:
            quantize = copy_of(pair.quantize)
            quantize.input[0], quantize.output[0] = pair.tensor, self.new_name()
            dequantize.input[0] = quantize.output[0]
            self._rename_stored(quantize, 1, used)
            made.append(quantize)
        self._rename_stored(dequantize, 1, used)
        made.append(dequantize)
        return name

    def add_weights(self, graph: GraphProto, names: Iterable[str]) -> None:
        """Adds weights and parameters of the quantized model to a graph of the float one, under the twins' names."""
        for name in names:
            tensor = copy_of(self._stored[name])
            tensor.name = f"{self._mark}{name}"
            graph.initializer.append(tensor)

    def _rename_stored(self, node: NodeProto, start: int, used: dict[str, None]) -> None:
        """Gives the weights and parameters that a node reads the names of their copies in a float model."""
        for slot in range(start, len(node.input)):
            if node.input[slot] and not node.input[slot].startswith(self._mark):
                used[node.input[slot]] = None
                node.input[slot] = f"{self._mark}{node.input[slot]}"


def _maker(scope: Scope, name: str, op_type: str) -> NodeProto | None:
    """Returns the node of that type that makes a tensor, if one does."""
    at = scope.producers.get(name) if name else None
    return scope.nodes[at] if at is not None and scope.nodes[at].op_type == op_type else None


def _unused(scope: Scope, name: str) -> str:
    names = set(scope.tensor_names())
    while name in names:
        name += "_"
    return name
