"""An index over a model's graphs: who makes a tensor, who reads it, and what bodies capture. Read only.

A model is a tree of graphs: the main one, the bodies of If, Loop, Scan and the like, and the local functions,
which stand beside it. Each is a ``Scope``. ONNX lets a body read any tensor of the graphs around it, so what a
node reads is more than its inputs: it is its inputs and the names that its bodies leave free. Whoever cuts or
sorts by inputs alone (onnx.utils does) breaks such models.

Building the index is one pass over all nodes, linear and iterative: a hundred thousand nodes take a fraction of
a second, and the depth of nesting costs no Python stack.

Names inside bodies and functions are written with a path: ``If_3/then/x`` is tensor ``x`` in the then-branch of
node ``If_3``, ``local::Block/x`` is ``x`` in a function. A node without a name, or with one that others of its
graph have too, is called by its position, ``Conv#12``.
"""

from __future__ import annotations

import gc
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

from onnxbench.errors import ModelError
from onnxbench.messages import copy_of

if TYPE_CHECKING:
    from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, TypeProto, ValueInfoProto

_BODY_NAMES = {"then_branch": "then", "else_branch": "else"}
_GRAPH, _GRAPHS = 5, 10  # AttributeProto types


@dataclass(eq=False, slots=True, weakref_slot=True)
class Scope:
    """One graph of a model: the main graph, a body, or a local function.

    Attributes:
        path: ``""`` for the main graph, ``If_3/then`` for a body, ``domain::Name`` for a function.
        graph: The protobuf message itself.
        parent: The graph around a body; None for the main graph and functions.
        owner: Position of the node in ``parent`` that a body belongs to; -1 otherwise.
        body_name: The attribute that holds the body (``then_branch``, or ``branches[1]`` in a list).
        depth: How many graphs are around it.
        nodes: The nodes, in file order.
        reads: For each node, the tensor names it reads: inputs, then names that its bodies capture; no ``""``.
        writes: For each node, the tensor names it makes; no ``""``.
        producers: Tensor name to the position of the node that makes it.
        inputs: Names of the graph's inputs (initializers listed as inputs included).
        outputs: Names of the graph's outputs, in order.
        constants: Names of its initializers, dense and sparse.
        captures: Names that it reads and neither makes nor receives, in order of first use (bodies only).
        bodies: Node position to the bodies of that node.
    """

    path: str
    graph: GraphProto | FunctionProto
    parent: Scope | None = None
    owner: int = -1
    body_name: str = ""
    depth: int = 0
    nodes: list[NodeProto] = field(default_factory=list)
    reads: list[list[str]] = field(default_factory=list)
    writes: list[list[str]] = field(default_factory=list)
    producers: dict[str, int] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    constants: set[str] = field(default_factory=set)
    captures: list[str] = field(default_factory=list)
    bodies: dict[int, list[Scope]] = field(default_factory=dict)
    _labels: list[str] | None = None
    _consumers: dict[str, list[int]] | None = None
    _stated: dict[str, ValueInfoProto] | None = None
    _order: list[int] | None = None
    _ordered: bool = False

    @property
    def consumers(self) -> dict[str, list[int]]:
        """Tensor name to the positions of the nodes that read it, ascending; made when it is first asked for."""
        if self._consumers is None:
            consumers: dict[str, list[int]] = {}
            self._consumers = consumers
            for position, names in enumerate(self.reads):
                for name in names:
                    users = consumers.get(name)
                    if users is None:
                        consumers[name] = [position]
                    elif users[-1] != position:
                        users.append(position)
        return self._consumers

    @property
    def stated(self) -> dict[str, ValueInfoProto]:
        """Tensor name to what the graph says of it as inner tensor, output or input; made when it is first asked for.

        Where it says several things, the input goes before the output and this before the inner tensor, but one with a
        type goes before one without.
        """
        if self._stated is None:
            self._stated = {info.name: info for info in self.graph.value_info}
            for info in () if self.is_function else (*self.graph.output, *self.graph.input):
                if info.HasField("type") or info.name not in self._stated:
                    self._stated[info.name] = info
        return self._stated

    @property
    def is_function(self) -> bool:
        """Whether this is a local function."""
        return not hasattr(self.graph, "initializer")

    def labels(self) -> list[str]:
        """Returns a distinct label for every node: its name, or ``OpType#position`` (``name#position``)."""
        if self._labels is None:
            seen: dict[str, int] = {}
            for node in self.nodes:
                seen[node.name] = seen.get(node.name, 0) + 1
            self._labels = [
                node.name if node.name and seen[node.name] == 1 else f"{node.name or node.op_type}#{position}"
                for position, node in enumerate(self.nodes)
            ]
            for position, node in enumerate(self.nodes):  # a node may be called what another one is called by us
                while self._labels[position] != node.name and self._labels[position] in seen:
                    self._labels[position] += "#"
        return self._labels

    def label(self, position: int) -> str:
        """Returns the label of one node (see ``labels``)."""
        return self.labels()[position]

    def defines(self, name: str) -> bool:
        """Tells whether a tensor of this name is made, given or stored in this very graph."""
        return name in self.producers or name in self.constants or name in self.inputs

    def reread(self, positions: Iterable[int]) -> None:
        """Takes over what tensors are called now, after they were renamed in this graph, which has no bodies.

        Args:
            positions: The nodes that read or write such a tensor.
        """
        for position in positions:
            node = self.nodes[position]
            self.reads[position] = [name for name in node.input if name]
            self.writes[position] = [name for name in node.output if name]
        self._read_ends()
        self._find_producers()
        self._consumers = self._stated = None

    def _read_ends(self) -> None:
        graph = self.graph
        if self.is_function:
            self.inputs, self.outputs = list(graph.input), list(graph.output)
        else:
            self.inputs = [info.name for info in graph.input]
            self.outputs = [info.name for info in graph.output]
            self.constants = set(_constant_names(graph))

    def _find_producers(self) -> None:
        self.producers = {name: position for position, names in enumerate(self.writes) for name in names}

    def true_inputs(self) -> list[str]:
        """Returns the inputs that a caller must feed: those that no initializer backs."""
        return [name for name in self.inputs if name not in self.constants]

    def tensor_names(self) -> Iterator[str]:
        """Yields every tensor of this graph once: inputs, initializers, then node outputs in order."""
        seen = set()
        for names in (self.inputs, _constant_names(self.graph), *self.writes):
            for name in names:
                if name not in seen:
                    seen.add(name)
                    yield name


@dataclass(frozen=True, slots=True)
class TensorRef:
    """One tensor of a model: a name within one of its graphs."""

    scope: Scope
    name: str

    @property
    def path(self) -> str:
        """The name with the path of its graph: ``x``, ``If_3/then/x``."""
        return f"{self.scope.path}/{self.name}" if self.scope.path else self.name


@dataclass(frozen=True, slots=True)
class NodeRef:
    """One node of a model: a position within one of its graphs."""

    scope: Scope
    position: int

    @property
    def node(self) -> NodeProto:
        """The protobuf message."""
        return self.scope.nodes[self.position]

    @property
    def label(self) -> str:
        """The node's label within its graph."""
        return self.scope.label(self.position)

    @property
    def path(self) -> str:
        """The label with the path of its graph: ``Conv_0``, ``If_3/then/Add#2``."""
        return f"{self.scope.path}/{self.label}" if self.scope.path else self.label


class GraphIndex:
    """Every graph of a model, indexed (see ``Scope``).

    Attributes:
        proto: The model that was indexed; do not change it while the index is in use.
        main: The main graph.
        functions: Local functions by (domain, name, overload).
        scopes: All graphs: the main one, its bodies depth first, then each function and its bodies.
    """

    def __init__(self, proto: ModelProto) -> None:
        self.proto = proto
        self.main = Scope("", proto.graph)
        roots = [self.main]
        self.functions: dict[tuple[str, str, str], Scope] = {}
        for function in proto.functions:
            overload = f":{function.overload}" if function.overload else ""
            scope = Scope(f"{function.domain}::{function.name}{overload}", function)
            self.functions[function.domain, function.name, function.overload] = scope
            roots.append(scope)
        self.scopes: list[Scope] = []
        for root in roots:
            self.scopes += _index_tree(root)

    def tensors(self) -> Iterator[TensorRef]:
        """Yields every tensor of every graph."""
        for scope in self.scopes:
            for name in scope.tensor_names():
                yield TensorRef(scope, name)

    def nodes(self) -> Iterator[NodeRef]:
        """Yields every node of every graph."""
        for scope in self.scopes:
            for position in range(len(scope.nodes)):
                yield NodeRef(scope, position)

    @cached_property
    def _by_path(self) -> dict[str, TensorRef]:
        return {ref.path: ref for ref in self.tensors() if ref.scope is not self.main}

    @cached_property
    def scope_paths(self) -> dict[str, Scope]:
        """Graphs by their path."""
        return {scope.path: scope for scope in self.scopes}

    def tensor(self, name: str) -> TensorRef | None:
        """Returns the tensor of that exact name: in the main graph, else by its path inside a body or function."""
        main = self.main
        if name in main.producers or name in main.constants or name in main.consumers or name in main.inputs:
            return TensorRef(main, name)
        if name in main.outputs:
            return TensorRef(main, name)
        return self._by_path.get(name) if len(self.scopes) > 1 else None

    def function_of(self, node: NodeProto) -> Scope | None:
        """Returns the local function that a node calls, or None."""
        return self.functions.get((node.domain, node.op_type, node.overload)) if self.functions else None

    def function_closure(self, nodes: Iterable[NodeProto]) -> set[tuple[str, str, str]]:
        """Returns the keys of the functions that these nodes call, directly, in bodies, or through functions."""
        needed: set[tuple[str, str, str]] = set()
        if not self.functions:
            return needed
        pending = list(nodes)
        while pending:
            node = pending.pop()
            pending.extend(inner for body in node_bodies(node) for inner in body[1].node)
            key = (node.domain, node.op_type, node.overload)
            if key in self.functions and key not in needed:
                needed.add(key)
                pending.extend(self.functions[key].nodes)
        return needed


def root_of(scope: Scope) -> Scope:
    """Returns the main graph or the function around a graph (itself, if it is one)."""
    while scope.parent is not None:
        scope = scope.parent
    return scope


def home_of(scope: Scope, name: str) -> Scope | None:
    """Returns the graph that defines a tensor which ``scope`` sees: itself, or one around it; None if none does."""
    around: Scope | None = scope
    while around is not None and not around.defines(name):
        around = around.parent
    return around


def tree_of(scope: Scope) -> Iterator[Scope]:
    """Yields a graph and all bodies in it."""
    pending = [scope]
    while pending:
        inner = pending.pop()
        yield inner
        pending.extend(body for bodies in inner.bodies.values() for body in bodies)


def node_bodies(node: NodeProto) -> list[tuple[str, GraphProto]]:
    """Returns the bodies of a node with the attribute (and position, in a list) that holds each."""
    bodies = []
    for attribute in node.attribute:
        kind = attribute.type
        if kind == _GRAPH:
            bodies.append((attribute.name, attribute.g))
        elif kind == _GRAPHS:
            bodies += [(f"{attribute.name}[{i}]", graph) for i, graph in enumerate(attribute.graphs)]
    return bodies


@contextmanager
def cycles_left() -> Iterator[None]:
    """Does not look for reference cycles inside: for what makes and keeps millions of objects, none of them a cycle.

    Looking through them again and again takes a quarter to a third of the time for graphs of 100,000 nodes.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _index_tree(root: Scope) -> list[Scope]:
    """Indexes a graph and all bodies in it; returns them, outer before inner."""
    found: list[Scope] = []
    pending = [root]
    while pending:
        scope = pending.pop()
        found.append(scope)
        _index_nodes(scope)
        pending.extend(body for position in reversed(scope.bodies) for body in reversed(scope.bodies[position]))
    for scope in reversed(found):  # inner before outer: a body's captures are known when its owner's reads are made
        _index_uses(scope)
    return found


def _index_nodes(scope: Scope) -> None:
    scope._read_ends()
    nodes = scope.nodes = list(scope.graph.node)
    scope.reads = [node.input[:] for node in nodes]
    scope.writes = [node.output[:] for node in nodes]
    for names_of in (scope.reads, scope.writes):
        for position, names in enumerate(names_of):
            if "" in names:
                names_of[position] = [name for name in names if name]
    scope._find_producers()
    labels: list[str] | None = None
    for position, node in enumerate(nodes):
        if node.attribute and (bodies := node_bodies(node)):
            labels = labels or scope.labels()
            scope.bodies[position] = [
                Scope(_body_path(scope.path, labels[position], name), body, scope, position, name, scope.depth + 1)
                for name, body in bodies
            ]


def _body_path(path: str, label: str, body_name: str) -> str:
    inner = f"{label}/{_BODY_NAMES.get(body_name, body_name)}"
    return f"{path}/{inner}" if path else inner


def _require_text(scope: Scope) -> None:
    """Raises ModelError when a name is not UTF-8: protobuf hands such a string out as bytes."""
    for what, names in (
        ("tensor", (*scope.producers, *scope.inputs, *scope.outputs, *scope.constants)),
        ("node", [node.name for node in scope.nodes]),
    ):
        try:
            "".join(names)
        except TypeError:
            raise ModelError(f"{scope.path or 'the graph'} has {what} names that are not UTF-8 text") from None


def _index_uses(scope: Scope) -> None:
    for position, bodies in scope.bodies.items():
        seen = set(scope.reads[position])
        for body in bodies:
            for name in body.captures:
                if name not in seen:
                    seen.add(name)
                    scope.reads[position].append(name)
    _require_text(scope)
    if scope.parent is not None:
        own = set(scope.inputs) | scope.constants
        producers, consumers = scope.producers, scope.consumers
        free = [name for name in consumers if name not in producers and name not in own]
        free += [name for name in scope.outputs if name not in producers and name not in own and name not in consumers]
        scope.captures = list(dict.fromkeys(free))


def _constant_names(graph: GraphProto | FunctionProto) -> list[str]:
    if not hasattr(graph, "initializer"):
        return []
    names = [tensor.name for tensor in graph.initializer]
    if graph.sparse_initializer:
        names += [tensor.values.name for tensor in graph.sparse_initializer]
    return names


def topological_order(scope: Scope) -> list[int] | None:
    """Returns the positions of a graph's nodes in an order that a checker accepts, or None if they already are.

    The order is the file's wherever dependencies allow (of all ready nodes, the first in the file goes next).

    Raises:
        ModelError: The nodes form a cycle; the message names one.
    """
    if not scope._ordered:
        scope._order, scope._ordered = _find_order(scope), True
    return scope._order


def _find_order(scope: Scope) -> list[int] | None:
    reads, made_at = scope.reads, scope.producers.get
    refuse_duplicates(scope)
    for position, names in enumerate(reads):
        for name in names:
            if made_at(name, -1) >= position:
                return _sorted_positions(scope)
    return None


def _sorted_positions(scope: Scope) -> list[int]:
    reads, producers = scope.reads, scope.producers
    waiting = [len({producers[name] for name in names if name in producers}) for names in reads]
    ready = [position for position, count in enumerate(waiting) if count == 0]
    heapify(ready)
    order: list[int] = []
    while ready:
        position = heappop(ready)
        order.append(position)
        readers = {reader for name in scope.writes[position] for reader in scope.consumers.get(name, ())}
        for reader in readers:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heappush(ready, reader)
    if len(order) < len(reads):
        raise ModelError(
            f"the nodes of {scope.path or 'the graph'} form a cycle: {' -> '.join(_find_cycle(scope, waiting))}",
            hint="No runtime can order these nodes; one of these connections is wrong.",
        )
    return order


def sort_nodes(proto: ModelProto) -> list[tuple[int, list[int]]]:
    """Sorts the nodes of every graph of a model in place, where they are not in an order that a checker accepts.

    Returns:
        Of each graph that was sorted, its number among ``GraphIndex.scopes`` (as they were before), and the old
        positions of its nodes in the new order.

    Raises:
        ModelError: As for ``topological_order``.
    """
    done = []
    scopes = GraphIndex(proto).scopes
    for number in reversed(range(len(scopes))):  # inner first: reordering a graph copies the bodies of its nodes
        scope = scopes[number]
        order = topological_order(scope)
        if order is None:
            continue
        reorder(scope, order)
        done.append((number, order))
    return done


def reorder(scope: Scope, order: Sequence[int]) -> None:
    """Puts the nodes of a graph into another order, in place; they are copied, with their bodies.

    Args:
        scope: The graph. What it knows of positions no longer holds.
        order: Their present positions.
    """
    ordered = [copy_of(scope.nodes[position]) for position in order]
    del scope.graph.node[:]
    scope.graph.node.extend(ordered)


def refuse_duplicates(scope: Scope) -> None:
    """Raises ModelError when two nodes of a graph make a tensor of the same name, or one that it is given."""
    given = set(scope.inputs) | scope.constants
    if len(scope.producers) == sum(map(len, scope.writes)) and given.isdisjoint(scope.producers):
        return
    makers: dict[str, str] = dict.fromkeys(given, "the graph's own inputs and initializers")
    for position, names in enumerate(scope.writes):
        for name in names:
            if name in makers:
                raise ModelError(
                    f"tensor {name!r} is made twice: by {makers[name]} and by node {scope.label(position)!r}",
                    hint="A tensor has one maker; which of the two is meant cannot be known.",
                )
            makers[name] = f"node {scope.label(position)!r}"


def _find_cycle(scope: Scope, waiting: list[int]) -> list[str]:
    """Returns the labels along one cycle, walking back from a stuck node through stuck producers."""
    position = next(i for i, count in enumerate(waiting) if count)
    trail: dict[int, int] = {}
    while position not in trail:
        trail[position] = len(trail)
        position = next(
            scope.producers[name]
            for name in scope.reads[position]
            if waiting[scope.producers.get(name, position)] and name in scope.producers
        )
    cycle = [node for node, at in trail.items() if at >= trail[position]]
    labels = [scope.label(node) for node in reversed(cycle)]
    return [*labels, labels[0]]


def declared_types(scope: Scope, *, constants: Collection[str] | None = None) -> dict[str, TypeProto]:
    """Returns the types that a graph states itself: inputs, outputs, value infos, initializers.

    Args:
        scope: The graph.
        constants: Of the initializers only these; None: all.
    """
    from onnxbench.tensortype import initializer_type, make_type

    graph = scope.graph
    types: dict[str, TypeProto] = {info.name: info.type for info in graph.value_info if info.HasField("type")}
    if scope.is_function:
        return types
    infos = (*graph.input, *graph.output)
    types.update((info.name, info.type) for info in infos if info.HasField("type"))
    if constants is not None and not constants:
        return types
    for tensor in graph.initializer:
        if constants is None or tensor.name in constants:
            types[tensor.name] = initializer_type(tensor)
    for sparse in graph.sparse_initializer:
        if constants is None or sparse.values.name in constants:
            types[sparse.values.name] = make_type(sparse.values.data_type, tuple(sparse.dims))
    return types
