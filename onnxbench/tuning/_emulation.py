"""What a model computes with some of its nodes in half precision, on a CPU that has no kernels for it.

ONNX Runtime's CPU provider runs float16 nodes in float32 and keeps 32 bits between them, so a converted model does not
show there what it computes on a GPU. So the float32 model is run with the rounding written into it: a node in half
precision reads inputs and weights that are rounded, computes in float32, and each of its outputs is rounded once, by a
Cast to the half type and back. That is how tensor cores work (products and sums in float32, one rounding at the end),
with real overflow to Inf and real underflow. ONNX Runtime leaves such pairs of Casts alone at every optimization level
(tests/test_tuning.py holds it to that). What a fused kernel does between nodes is not shown: it may round less.

A kept node reads what the nodes before it made, as it is: rounded if they are in half precision, in full if they are
kept, and its weights in full. Nodes that only move values (Reshape, Slice, Concat) round nothing.

Bodies of If, Loop and Scan are rounded like all else; local functions are inlined, and a node of one stands for what
it is in all calls.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.captures import Value, numpy_dtype
from onnxbench.errors import UnsupportedError
from onnxbench.graph import GraphIndex, NodeRef, Scope, home_of, sort_nodes, tree_of
from onnxbench.inference import TypeFinder
from onnxbench.inlining import inline_functions
from onnxbench.messages import copy_of
from onnxbench.model import Model
from onnxbench.opsets import standard_opset
from onnxbench.schemas import find_schema, plain_domain
from onnxbench.tensortype import elem_type, schema_word

if TYPE_CHECKING:
    import numpy as np
    from onnx import AttributeProto, GraphProto, NodeProto, TensorProto
    from onnx.defs import OpSchema

FLOAT32, FLOAT16, BFLOAT16 = 1, 10, 16
_FIRST_OPSET_WITH_BFLOAT16 = 13
_TAG = "onnxbench.tuned"
_COMPUTING = frozenset({"Resize", "Upsample", "GridSample", "Col2Im"})
"""Operators that take any element type, and yet make new values."""
_EXACT = frozenset({
    "Relu", "MaxPool", "GlobalMaxPool", "Neg", "Abs", "Sign", "Max", "Min", "ReduceMax", "ReduceMin", "Dropout",
})  # fmt: skip
"""Operators whose outputs need no rounding once their inputs are rounded."""
_ELSEWHERE = frozenset({"Constant", "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})
"""Operators that are no candidates: weights are rounded where they are read, and quantized regions are left alone."""
RANDOM = frozenset({"RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial",
                    "Bernoulli"})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Unit:
    """A node that may be kept in float32 or not.

    Attributes:
        ref: The node, in the model as given.
        path: What it is called.
        op_type: Its operator.
        at: Where it is in the model that is emulated, as (graph, position); several where a function is called several
            times.
    """

    ref: NodeRef
    path: str
    op_type: str
    at: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class _Slots:
    """Which inputs and outputs of a node are in half precision when it is; ``unit`` is -1 for what is no candidate."""

    unit: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Emulation:
    """A float32 model whose nodes can be run as if they were in half precision.

    Args:
        model: The model; it is not changed.
        to: The half type, as ``TensorProto.DataType`` numbers it.
        index: The model's index.
        stays: Paths of nodes that are no candidates and stay in float32.
        clamp: Weights beyond the type become its largest value, and not infinite.

    Attributes:
        units: The candidates, in the order of the graphs.
        model: The model that is emulated: without local functions, sorted.
        index: Its index.
        kinds: Of each graph, the element types of its tensors, as far as they are known.

    Raises:
        UnsupportedError: The model makes random numbers, so no two runs of it can be compared, or its opset has no Cast
            to bfloat16.
    """

    def __init__(
        self,
        model: Model,
        to: int,
        *,
        index: GraphIndex | None = None,
        stays: Collection[str] = (),
        clamp: bool = False,
    ) -> None:
        self.to, self._stays, self._clamps = to, frozenset(stays), clamp
        self._word = f"tensor({schema_word(to)})"
        origin = index or GraphIndex(model.proto)
        refs = list(origin.nodes())
        random = next((ref for ref in refs if ref.node.op_type in RANDOM), None)
        if random is not None:
            raise UnsupportedError(
                f"node {random.path} ({random.node.op_type}) makes random numbers, so no two runs can be compared",
                hint="Replace it by a weight, for the search at least.",
            )
        opset = standard_opset(model.proto) or 0
        if to == BFLOAT16 and opset < _FIRST_OPSET_WITH_BFLOAT16:
            raise UnsupportedError(
                f"bfloat16 is emulated by Casts of opset {_FIRST_OPSET_WITH_BFLOAT16}, and the model has opset {opset}",
                hint=f"Raise it first: onnxbench edit MODEL OUT --set-opset {_FIRST_OPSET_WITH_BFLOAT16}.",
            )
        self.model, tags = _inlined(model, refs)
        self.index = GraphIndex(self.model.proto)
        self._mark, self._counter = _unused_mark(self.index), itertools.count()
        self._numbers = {id(scope): number for number, scope in enumerate(self.index.scopes)}
        self._homes: dict[tuple[int, str], int] = {}
        finder = TypeFinder(self.model, self.index, [backends.session_types])
        self.kinds = [_element_types(finder, scope) for scope in self.index.scopes]
        self._plan, self.units = self._find_units(refs, tags)
        self._exact: set[str] = set()
        self._weights = self._rounded_weights()

    # ------------------------------------------------------------ candidates

    def _find_units(
        self, refs: Sequence[NodeRef], tags: Mapping[tuple[int, int], int]
    ) -> tuple[list[list[_Slots]], tuple[Unit, ...]]:
        slots: dict[tuple[int, int], tuple[tuple[int, ...], tuple[int, ...]]] = {}
        places: dict[int, list[tuple[int, int]]] = {}
        for number, scope in enumerate(self.index.scopes):
            floats = {name for name, kind in self.kinds[number].items() if kind == FLOAT32}
            for position, node in enumerate(scope.nodes):
                found = self._half_slots(node, floats) if position not in scope.bodies else ((), ())
                if any(found) and refs[tags[number, position]].path not in self._stays:
                    slots[number, position] = found
                    places.setdefault(tags[number, position], []).append((number, position))
        order = {tag: unit for unit, tag in enumerate(sorted(places))}
        plan = [
            [
                _Slots(order[tags[number, position]], *slots[number, position])
                if (number, position) in slots
                else _Slots(-1, (), ())
                for position in range(len(scope.nodes))
            ]
            for number, scope in enumerate(self.index.scopes)
        ]
        units = tuple(
            Unit(refs[tag], refs[tag].path, refs[tag].node.op_type, tuple(places[tag])) for tag in sorted(places)
        )
        return plan, units

    def _half_slots(self, node: NodeProto, floats: Collection[str]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the inputs and outputs of a node that its operator takes in half precision; none if it only moves."""
        schema = self._schema(node)
        if schema is None or node.op_type in _ELSEWHERE or self.is_moving(node):
            return (), ()
        outputs = self._slots(node.output, schema.outputs, floats)
        return (self._slots(node.input, schema.inputs, floats), outputs) if outputs else ((), ())

    def _slots(
        self, names: Sequence[str], formal: Sequence[OpSchema.FormalParameter], floats: Collection[str]
    ) -> tuple[int, ...]:
        return tuple(
            slot
            for slot, name in enumerate(names)
            if name in floats and formal and self._word in formal[min(slot, len(formal) - 1)].types
        )

    def _schema(self, node: NodeProto) -> OpSchema | None:
        """Returns the newest schema of an operator, since a conversion raises the opset where a type came later."""
        from onnx import defs

        domain = plain_domain(node.domain)
        return None if domain else find_schema(domain, node.op_type, defs.onnx_opset_version())

    def is_moving(self, node: NodeProto) -> bool:
        """Tells whether the outputs of a node hold elements of its inputs: it makes booleans or text as well."""
        schema = self._schema(node)
        if schema is None or node.op_type in _COMPUTING:
            return False
        return any(
            self._word in made.types and not made.types.isdisjoint(("tensor(bool)", "tensor(string)"))
            for made in schema.outputs
        )

    # ------------------------------------------------------------ weights

    def _rounded_weights(self) -> dict[str, TensorProto]:
        """Returns weights of the main graph that change when they are rounded, as they are then, by name."""
        main = self.index.main
        wanted: dict[str, None] = {}
        for number, scope in enumerate(self.index.scopes):
            for position, slots in enumerate(self._plan[number]):
                for slot in slots.inputs:
                    name = scope.nodes[position].input[slot]
                    if self._home(number, name) == 0 and name in main.constants:
                        wanted[name] = None
        given = set(main.inputs)
        made: dict[str, TensorProto] = {}
        for tensor in main.graph.initializer:
            if tensor.name not in wanted or tensor.name in given or tensor.data_type != FLOAT32:
                continue
            before = self.model.array(tensor)
            after = self._rounded(before)
            if _same(before, after):
                self._exact.add(tensor.name)
                continue
            low = type(tensor)(name=self.new_name(), dims=tensor.dims, data_type=FLOAT32)
            data = after.tobytes()
            self.model.store(low, [data], len(data))
            made[tensor.name] = low
        return made

    def _rounded(self, weight: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return rounded(weight, self.to, clamp=self._clamps)

    def _stored(self, number: int, name: str) -> np.ndarray[Any, Any] | None:
        """Returns the values of a weight that a body holds, or a Constant node; None for what is computed."""
        home = self._home(number, name)
        if home < 0:
            return None
        scope = self.index.scopes[home]
        if name in scope.producers:
            node = scope.nodes[scope.producers[name]]
            if node.op_type != "Constant" or plain_domain(node.domain):
                return None
            return next((_constant(self.model, each) for each in node.attribute), None)
        if name in scope.inputs:
            return None
        return next((self.model.array(each) for each in scope.graph.initializer if each.name == name), None)

    # ------------------------------------------------------------ what runs

    def emulated(self, kept: Collection[int]) -> Model:
        """Returns the model as it computes with all units in half precision but these."""
        proto = copy_of(self.model.proto)
        scopes = dict(enumerate(GraphIndex(proto).scopes))
        known = self._rounded_tensors(kept)
        used: dict[str, None] = {}
        for number in reversed(range(len(scopes))):  # inner first: a graph's nodes are copied with their bodies
            self._round(scopes, number, kept, known, used)
        self.add_weights(proto.graph, used)
        return self.model.derive(proto)

    def add_weights(self, graph: GraphProto, names: Iterable[str]) -> None:
        """Adds the rounded form of these weights to a graph."""
        graph.initializer.extend(self._weights[name] for name in names)

    def _rounded_tensors(self, kept: Collection[int]) -> set[tuple[int, str]]:
        """Returns the tensors, each with the number of its graph, whose values are rounded where they are made."""
        known = {(0, name) for name in self._exact}
        for number, scope in enumerate(self.index.scopes):  # outer before inner, and nodes are sorted
            for position, node in enumerate(scope.nodes):
                slots = self._plan[number][position]
                if slots.unit >= 0 and slots.unit not in kept:
                    known.update((number, node.output[slot]) for slot in slots.outputs)
                elif self.is_moving(node):
                    read = [name for name in scope.reads[position] if self.kinds[number].get(name) == FLOAT32]
                    if read and all((self._home(number, name), name) in known for name in read):
                        known.update((number, name) for name in scope.writes[position])
        return known

    def _home(self, number: int, name: str) -> int:
        """Returns the number of the graph that makes, stores or is given a tensor which this graph reads."""
        at = number, name
        if at not in self._homes:
            home = home_of(self.index.scopes[number], name)
            self._homes[at] = -1 if home is None else self._numbers[id(home)]
        return self._homes[at]

    def _round(
        self,
        scopes: Mapping[int, Scope],
        number: int,
        kept: Collection[int],
        known: Collection[tuple[int, str]],
        used: dict[str, None],
    ) -> None:
        """Writes the rounding into one graph of a copy of the model.

        Args:
            scopes: The graphs of the copy.
            number: Which of them.
            kept: The units that stay in float32.
            known: Tensors that are rounded where they are made.
            used: Weights that are read rounded; those found here are added.
        """
        scope = scopes[number]
        halves: dict[str, str] = {}
        made: list[NodeProto] = []
        for position, node in enumerate(scope.nodes):
            unit = self._plan[number][position].unit
            if unit < 0 or unit in kept:
                made.append(copy_of(node))
            else:
                made += self.half_node(node, number, position, halves, known, used)
        del scope.graph.node[:]
        scope.graph.node.extend(made)

    def half_node(
        self,
        node: NodeProto,
        number: int,
        position: int,
        halves: dict[str, str],
        known: Collection[tuple[int, str]],
        used: dict[str, None],
    ) -> list[NodeProto]:
        """Returns a node as it computes in half precision, with the Casts around it (see ``_round``).

        Args:
            node: The node, or a copy of it with other outputs.
            number: The number of its graph.
            position: Its position there.
            halves: Tensors that this graph has in a rounded form already; those made here are added.
            known: As above.
            used: As above.
        """
        slots = self._plan[number][position]
        half = copy_of(node)
        before: list[NodeProto] = []
        after: list[NodeProto] = []
        for slot in slots.inputs:
            name = half.input[slot]
            if (self._home(number, name), name) not in known:
                half.input[slot] = self._half(name, number, halves, before, used)
        for slot in slots.outputs if half.op_type not in _EXACT else ():
            raw = self.new_name()
            after += self.casts(raw, half.output[slot], self.to)
            half.output[slot] = raw
        return [*before, half, *after]

    def _half(
        self, name: str, number: int, halves: dict[str, str], before: list[NodeProto], used: dict[str, None]
    ) -> str:
        """Returns what a tensor is called once it is rounded; where nodes have to do that, they are added."""
        if name in self._weights and self._home(number, name) == 0:
            used[name] = None
            return self._weights[name].name
        if name not in halves:
            halves[name] = self.new_name()
            stored = self._stored(number, name)
            if stored is None:
                before += self.casts(name, halves[name], self.to)
            else:
                before.append(_constant_node(self._rounded(stored), halves[name]))
        return halves[name]

    def casts(self, source: str, target: str, to: int) -> list[NodeProto]:
        """Returns the pair of Casts that rounds a tensor to an element type."""
        between = self.new_name()
        return [make_node("Cast", [source], [between], to=to), make_node("Cast", [between], [target], to=FLOAT32)]

    def new_name(self) -> str:
        """Returns a name that no tensor has."""
        return f"{self._mark}{next(self._counter)}"

    # ------------------------------------------------------------ nodes by themselves, for the ranking

    def slots_of(self, position: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Returns the inputs and outputs of a node of the main graph that can be in half precision."""
        slots = self._plan[0][position]
        return slots.inputs, slots.outputs

    def units_of(self, position: int) -> list[int]:
        """Returns the units that a node of the main graph is, or holds in its bodies."""
        main = self.index.main
        found = {self._plan[0][position].unit}
        for body in main.bodies.get(position, ()):
            found.update(slots.unit for inner in tree_of(body) for slots in self._plan[self._numbers[id(inner)]])
        return sorted(found - {-1})

    def inputs_of_units(self) -> list[list[int]]:
        """Returns for each unit those whose outputs it reads, directly or through nodes that are none."""
        found: list[set[int]] = [set() for _ in self.units]
        reaching: dict[tuple[int, str], set[int]] = {}
        for number, scope in enumerate(self.index.scopes):  # outer before inner, and nodes are sorted
            for position, names in enumerate(scope.reads):
                arriving: set[int] = set()
                for name in names:
                    arriving |= reaching.get((self._home(number, name), name), set())
                unit = self._plan[number][position].unit
                if unit >= 0:
                    found[unit] |= arriving - {unit}
                for name in scope.writes[position]:
                    reaching[number, name] = {unit} if unit >= 0 else arriving
        return [sorted(each) for each in found]

    def twin(self, position: int, halves: dict[str, str], used: dict[str, None]) -> tuple[list[NodeProto], list[str]]:
        """Returns a node of the main graph in half precision on the values of the float32 model, under new names.

        Args:
            position: The node.
            halves: Tensors that have a rounded form already; those made here are added.
            used: Weights that are read rounded; those found here are added.

        Returns:
            The nodes, and what the outputs are called, ``""`` for those that the node does not make.
        """
        main = self.index.main
        node = copy_of(main.nodes[position])
        names = [self.new_name() if name else "" for name in node.output]
        del node.output[:]
        node.output.extend(names)
        if position in main.bodies:
            self._round_bodies(node, position, used)
            return [node], names
        return self.half_node(node, 0, position, halves, (), used), names

    def _round_bodies(self, node: NodeProto, position: int, used: dict[str, None]) -> None:
        """Writes the rounding into the bodies of a node; what they capture is rounded where it is read."""
        alone = type(self.model.proto)()
        alone.graph.node.add().CopyFrom(node)
        copies = GraphIndex(alone).scopes[1:]
        bodies = {id(inner) for body in self.index.main.bodies[position] for inner in tree_of(body)}
        numbers = [number for number, scope in enumerate(self.index.scopes) if id(scope) in bodies]
        scopes = dict(zip(numbers, copies, strict=True))
        known = {(number, name) for number, name in self._rounded_tensors(()) if number}
        for number in reversed(numbers):
            self._round(scopes, number, (), known, used)
        node.CopyFrom(alone.graph.node[0])


def rounded(array: np.ndarray[Any, Any], to: int, *, clamp: bool = False) -> np.ndarray[Any, Any]:
    """Returns float32 values rounded to a half type, as float32 again.

    Args:
        array: The values.
        to: The type.
        clamp: As a conversion with ``weights="clamp"`` does: what lies beyond the type becomes its largest value, and
            where all values would become 0, these become its smallest ones.
    """
    import ml_dtypes
    import numpy as np

    dtype = numpy_dtype(to)
    with np.errstate(all="ignore"):
        made = array.astype(dtype).astype(np.float32)
        if clamp:
            limits = ml_dtypes.finfo(dtype)  # type: ignore[no-untyped-call]  # ml_dtypes is not typed
            beyond = np.isinf(made) & np.isfinite(array)
            made = np.where(beyond, np.copysign(np.float32(limits.max), array), made)
            if array.any() and not made.any():
                made = np.where(array == 0, array, np.copysign(np.float32(limits.smallest_subnormal), array))
    return np.asarray(made, dtype=np.float32)


def round_feeds(feeds: Mapping[str, Value], to: int) -> dict[str, Value]:
    """Returns inputs with those of float32 rounded."""
    import numpy as np

    return {
        name: rounded(value, to) if getattr(value, "dtype", None) == np.float32 else value
        for name, value in feeds.items()
    }


def _element_types(finder: TypeFinder, scope: Scope) -> dict[str, int]:
    """Returns the element types of what the nodes of a graph read and make, as far as they are known."""
    names = dict.fromkeys(name for group in (*scope.reads, *scope.writes) for name in group)
    return {name: elem_type(kind) for name, kind in finder.find(scope, names).items()}


def make_node(op_type: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any) -> NodeProto:
    """Returns a node of the standard operators."""
    from onnx import helper

    return helper.make_node(op_type, list(inputs), list(outputs), **attributes)


def _inlined(model: Model, refs: Sequence[NodeRef]) -> tuple[Model, dict[tuple[int, int], int]]:
    """Returns a model without functions and sorted, and which node of the given one each of its nodes is.

    The nodes are marked before and looked up after, by (graph, position).
    """
    proto = copy_of(model.proto)
    for number, ref in enumerate(GraphIndex(proto).nodes()):
        ref.node.metadata_props.add(key=_TAG, value=str(number))
    sort_nodes(proto)
    made, _ = inline_functions(model.derive(proto))
    tags: dict[tuple[int, int], int] = {}
    for number, scope in enumerate(GraphIndex(made.proto).scopes):
        for position, node in enumerate(scope.nodes):
            at = next((i for i, prop in enumerate(node.metadata_props) if prop.key == _TAG), None)
            if at is None:
                raise UnsupportedError(f"node {scope.label(position)} was made while functions were inlined")
            tags[number, position] = int(node.metadata_props[at].value)
            del node.metadata_props[at]
    return made, tags


def _unused_mark(index: GraphIndex) -> str:
    mark = "onnxbench_half_"
    names = {name for scope in index.scopes for name in scope.tensor_names()}
    while any(name.startswith(mark) for name in names):
        mark += "_"
    return mark


def _same(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> bool:
    import numpy as np

    return bool(np.array_equal(one, other, equal_nan=True))


def _constant(model: Model, attribute: AttributeProto) -> np.ndarray[Any, Any] | None:
    """Returns the value that an attribute gives to a Constant node; None unless it is one of dense float32."""
    import numpy as np

    if attribute.name == "value" and attribute.t.data_type == FLOAT32:
        return model.array(attribute.t)
    if attribute.name == "value_float":
        return np.asarray(attribute.f, dtype=np.float32)
    return np.asarray(attribute.floats, dtype=np.float32) if attribute.name == "value_floats" else None


def _constant_node(array: np.ndarray[Any, Any], name: str) -> NodeProto:
    from onnx import numpy_helper

    return make_node("Constant", [], [name], value=numpy_helper.from_array(array))
