"""One of the two graphs that are compared, with what tells its nodes apart: as numbers, the same for both models."""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.diffing import _tensors
from onnxbench.graph import Scope, topological_order

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto

    from onnxbench.model import Model


class Ids(dict[Hashable, int]):
    """Numbers for anything that can be a key: the same for equal keys, for both models."""

    def __missing__(self, key: Hashable) -> int:
        number = self[key] = len(self)
        return number


class _Tensors(dict[str, int]):
    """What tensors compute; those that no node makes are looked up when they are first asked for."""

    def __init__(self, leaf: Callable[[str], int]) -> None:
        self._leaf = leaf

    def __missing__(self, name: str) -> int:
        number = self[name] = self._leaf(name)
        return number


class Side:
    """A graph of one of the models, with what matching asks of its nodes; made once, for graphs inner before outer.

    Attributes:
        model: The model.
        scope: The graph.
        order: Positions of the nodes in an order in which they can run.
        inputs: Of each node, what it reads, ``""`` for what is left out, without empty ones at the end.
        outputs: Of each node, what it makes, ``""`` for what is left out.
        captured: Of each node with bodies, what these read besides.
        stored: Initializers by name, dense and sparse.
        given: Names of the graph's inputs.
        operators: Of each node, its operator as a number.
        bases: Of each node, operator, attributes, bodies and weights as a number.
        digest: What the graph computes, whatever its tensors and nodes are called and what it captures.
    """

    def __init__(
        self,
        model: Model,
        scope: Scope,
        ids: Ids,
        operator: Callable[[NodeProto], Hashable],
        bodies: Mapping[Scope, Side],
    ) -> None:
        self.model, self.scope = model, scope
        self.order: Sequence[int] = topological_order(scope) or range(len(scope.nodes))
        self.stored: dict[str, Any] = {}
        if not scope.is_function:
            self.stored = {tensor.name: tensor for tensor in scope.graph.initializer}
            self.stored.update((tensor.values.name, tensor) for tensor in scope.graph.sparse_initializer)
        self.given = dict.fromkeys(scope.inputs)
        self.inputs = [_inputs(node, reads) for node, reads in zip(scope.nodes, scope.reads, strict=True)]
        self.captured: dict[int, list[str]] = {}
        for position in scope.bodies:
            direct = set(self.inputs[position])
            self.captured[position] = [name for name in scope.reads[position] if name not in direct]
        self._ids = ids
        self._several = {position for position, node in enumerate(scope.nodes) if len(node.output) != 1}
        self._several.update(position for position, made in enumerate(scope.writes) if len(made) != 1)
        self.outputs = [
            list(node.output) if position in self._several else made
            for position, (node, made) in enumerate(zip(scope.nodes, scope.writes, strict=True))
        ]
        self._identities: dict[str, int] = {}
        self._infos: dict[str, Any] | None = None
        self.operators = [ids[operator(node)] for node in scope.nodes]
        self.bases = [self._base(position, bodies) for position in range(len(scope.nodes))]
        self._consumers: dict[str, list[tuple[int, int]]] | None = None
        self.digest = self._digest() if scope.parent is not None or scope.is_function else -1

    def _base(self, position: int, bodies: Mapping[Scope, Side]) -> int:
        node = self.scope.nodes[position]
        attributes: Any = ()
        if len(node.attribute):
            attributes = tuple(sorted((a.name, attribute_id(self.model, a, self._ids)) for a in node.attribute))
        inner: Any = ()
        if position in self.scope.bodies:
            inner = tuple(sorted((body.body_name, bodies[body].digest) for body in self.scope.bodies[position]))
        stored: Any = ()
        if self.stored:
            stored = tuple(
                (slot, self.weight_id(name))
                for slot, name in enumerate(self.inputs[position])
                if name in self.stored and name not in self.given
            )
        return self._ids[self.operators[position], attributes, inner, stored]

    def weight_id(self, name: str) -> int:
        """Returns what tells a stored tensor apart without reading it, as a number (see ``_tensors.identity``)."""
        known = self._identities.get(name)
        if known is None:
            known = self._identities[name] = self._ids["stored", _tensors.identity(self.model, self.stored[name])]
        return known

    def coarse_bases(self) -> list[int]:
        """Returns, of each node, its operator, how many tensors it reads, and the shapes of its weights."""
        ids, stored = self._ids, self.stored
        found = []
        for operator, inputs in zip(self.operators, self.inputs, strict=True):
            shapes = tuple((slot, tuple(stored[name].dims)) for slot, name in enumerate(inputs) if name in stored)
            found.append(ids["coarse", operator, len(inputs), shapes])
        return found

    @property
    def consumers(self) -> dict[str, list[tuple[int, int]]]:
        """Tensor name to the nodes that read it, each with the input at which it does; -1 if a body captures it."""
        if self._consumers is None:
            consumers: dict[str, list[tuple[int, int]]] = {}
            for position, inputs in enumerate(self.inputs):
                for slot, name in enumerate(inputs):
                    if name:
                        consumers.setdefault(name, []).append((position, slot))
            for position, names in self.captured.items():
                for name in names:
                    consumers.setdefault(name, []).append((position, -1))
            self._consumers = consumers
        return self._consumers

    def forward(self, bases: Sequence[int], leaf: Callable[[str], int]) -> tuple[list[int], dict[str, int]]:
        """Returns what each node and each tensor computes, as numbers.

        Args:
            bases: What each node is.
            leaf: What a tensor is that no node makes.
        """
        ids, tensors = self._ids, _Tensors(leaf)
        number_of, look_up = ids.setdefault, tensors.__getitem__
        tensors[""] = -1
        nodes = [0] * len(bases)
        writes, inputs, captured, several = self.scope.writes, self.inputs, self.captured, self._several
        key: Hashable
        for position in self.order:
            key = (bases[position], tuple(map(look_up, inputs[position])))
            if position in captured:
                key = (*key, tuple(sorted(map(look_up, captured[position]))))
            node = nodes[position] = number_of(key, len(ids))
            if position not in several:
                tensors[writes[position][0]] = node
            else:
                for number, name in enumerate(self.outputs[position]):
                    if name:
                        tensors[name] = ids["output", node, number] if number else node
        return nodes, tensors

    def backward(self, bases: Sequence[int], outputs: Mapping[str, Hashable]) -> list[int]:
        """Returns what becomes of each node's outputs, as numbers.

        Args:
            bases: What each node is.
            outputs: What the graph's outputs are.
        """
        ids = self._ids
        number_of, readers_of = ids.setdefault, self.consumers.get
        nodes = [0] * len(bases)
        writes, several = self.scope.writes, self._several
        key: Hashable
        for position in reversed(self.order):
            if position not in several:
                name = writes[position][0]
                readers = readers_of(name, ())
                if len(readers) == 1 and name not in outputs:
                    reader, slot = readers[0]
                    key = (bases[position], nodes[reader], slot)
                else:
                    used = tuple(sorted([(nodes[reader], slot) for reader, slot in readers]))
                    key = ("b", bases[position], used, outputs.get(name))
            else:
                uses = []
                for name in self.outputs[position]:
                    readers = readers_of(name, ()) if name else ()
                    uses.append((tuple(sorted([(nodes[reader], slot) for reader, slot in readers])), outputs.get(name)))
                key = ("several", bases[position], tuple(uses))
            nodes[position] = number_of(key, len(ids))
        return nodes

    def around(self, numbers: Sequence[int], positions: Iterable[int]) -> dict[int, int]:
        """Returns what some nodes and their neighbours are, as numbers; what lies further away does not count.

        Args:
            numbers: What each node is.
            positions: The nodes.
        """
        ids, made_at, readers_of = self._ids, self.scope.producers.get, self.consumers.get
        found = {}
        for position in positions:
            makers = [made_at(name, -1) for name in self.inputs[position]]
            before = tuple([numbers[maker] if maker >= 0 else -1 for maker in makers])
            readers = [reader for name in self.outputs[position] for reader in readers_of(name, ())]
            after = tuple(sorted([(numbers[reader], slot) for reader, slot in readers]))
            found[position] = ids["around", numbers[position], before, after]
        return found

    def details(self, position: int) -> Hashable:
        """Returns what else is said of a node: stated types of its outputs, doc string, metadata; None if nothing."""
        if self._infos is None:
            self._infos = {info.name: info for info in self.scope.graph.value_info}
        node = self.scope.nodes[position]
        infos = [self._infos.get(name) for name in self.scope.writes[position]]
        types = tuple(info and info.type.SerializeToString(deterministic=True) for info in infos)
        metadata = tuple(sorted((entry.key, entry.value) for entry in node.metadata_props))
        return (types, node.doc_string, metadata) if any(types) or node.doc_string or metadata else None

    def _digest(self) -> int:
        ids = self._ids
        places = {name: number for number, name in enumerate(self.given)}

        def leaf(name: str) -> int:
            if name in places:
                return ids["place", places[name]]
            return self.weight_id(name) if name in self.stored else ids["captured"]

        nodes, tensors = self.forward(self.bases, leaf)
        ends = tuple(tensors[name] if name in tensors else leaf(name) for name in self.scope.outputs)
        return ids["graph", len(self.given), ends, tuple(sorted(nodes))]


def _inputs(node: NodeProto, reads: list[str]) -> list[str]:
    count = len(node.input)
    if count == len(reads):
        inputs = reads
        if not count or inputs[-1]:
            return inputs
    inputs = list(node.input)
    while inputs and not inputs[-1]:
        inputs.pop()
    return inputs


def output_number(node: NodeProto, name: str) -> int:
    """Returns which output of a node a tensor is."""
    outputs = node.output
    return 0 if len(outputs) == 1 or outputs[0] == name else list(outputs).index(name)


def attribute_id(model: Model, attribute: AttributeProto, ids: Ids) -> int:
    """Returns an attribute's value as a number that does not depend on how it is stored; bodies by their number."""
    return ids["attribute", attribute_key(model, attribute)]


def attribute_key(model: Model, attribute: AttributeProto) -> Hashable:
    """Returns an attribute's value as a key that does not depend on how it is stored.

    Bodies are not part of it, and large tensors are only by type and shape.
    """
    kind = attribute.type
    if attribute.ref_attr_name:
        return ("ref", kind, attribute.ref_attr_name)
    match kind:
        case 1:
            return (kind, struct.pack("<f", attribute.f))
        case 2:
            return (kind, attribute.i)
        case 3:
            return (kind, attribute.s)
        case 4:
            return (kind, _tensors.identity(model, attribute.t))
        case 6:
            return (kind, struct.pack(f"<{len(attribute.floats)}f", *attribute.floats))
        case 7:
            return (kind, tuple(attribute.ints))
        case 8:
            return (kind, tuple(attribute.strings))
        case 9:
            return (kind, tuple(_tensors.identity(model, tensor) for tensor in attribute.tensors))
        case 11:
            return (kind, _tensors.identity(model, attribute.sparse_tensor))
        case 12:
            return (kind, tuple(_tensors.identity(model, tensor) for tensor in attribute.sparse_tensors))
        case 13:
            return (kind, attribute.tp.SerializeToString(deterministic=True))
        case 14:
            return (kind, tuple(value.SerializeToString(deterministic=True) for value in attribute.type_protos))
        case 5 | 10:
            return (kind, len(attribute.graphs))
    return (kind, attribute.SerializeToString(deterministic=True))
