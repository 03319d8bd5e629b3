"""What is known of each tensor and node of a model, as flat records: for ``find``, and for the tables of ``inspect``.

A record gathers from all sides what a reader of a graph asks: who makes a tensor, who reads it (a body that
captures it, too), what type it has and whether the model says so or inference does, and which module and line
of PyTorch code it comes from. Records are made on demand, one by one; what they share (types of a graph,
provenance of the model) is worked out once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from onnxbench import select, weights
from onnxbench.errors import BenchError, NotFoundError
from onnxbench.graph import GraphIndex, NodeRef, Scope, TensorRef, declared_types, home_of
from onnxbench.inference import TypeFinder, TypeSource
from onnxbench.provenance import NONE, Origins, Provenance
from onnxbench.tensortype import Dim, dtype_name, elem_type, format_shape, format_type, raw_size, tensor_shape

if TYPE_CHECKING:
    from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, TypeProto

    from onnxbench.model import Model

INFER_UP_TO = 50_000
"""Types are inferred without being asked for in models of at most this many nodes (half a second)."""
_SPECIAL = frozenset("&|(),!*?[]\"'")
_MOST_VALUES = 16


@dataclass(frozen=True, slots=True)
class KnownType:
    """The type of a tensor, and who says so.

    Attributes:
        text: As people write it, ``float32[1, batch, ?]``; ``?`` when nothing is known.
        dtype: Element type, or None when unknown or no tensor.
        shape: Sizes, symbols and None; None when the rank is unknown or it is no tensor.
        by: ``model`` if the model states it, ``inference``, or ``nobody``.
    """

    text: str = "?"
    dtype: str | None = None
    shape: tuple[Dim, ...] | None = None
    by: str = "nobody"


UNKNOWN = KnownType()


@dataclass(frozen=True, slots=True)
class Link:
    """A tensor as a node sees it: by name; an empty name is an optional input or output left out.

    Attributes:
        name: The tensor's path.
        kind: What the tensor is, see ``TensorRecord``.
        type: Its type as text.
    """

    name: str
    kind: str
    type: str


@dataclass(frozen=True, slots=True)
class Use:
    """A place where a tensor is read.

    Attributes:
        node: Path of the node, which may be in a body that captures the tensor.
        op: Its operator, ``Conv`` or ``com.microsoft::Gelu``.
        input: Which input, from 0; None when a body of the node returns the tensor as it is.
    """

    node: str
    op: str
    input: int | None


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a tensor or node comes from in PyTorch; all None when nothing is known.

    Attributes:
        module: Module path, ``""`` for the model itself.
        module_class: The module's class.
        call: 0 for the first call of the module, 1 for the second.
        source: ``file.py:12``, the innermost line outside PyTorch.
        code: The text of that line.
        rule: The exporter's rewrite rule that made it out of other nodes.
    """

    module: str | None = None
    module_class: str | None = None
    call: int = 0
    source: str | None = None
    code: str | None = None
    rule: str | None = None


NOWHERE = Origin()


@dataclass(frozen=True, slots=True)
class TensorRecord:
    """One tensor.

    Attributes:
        name: Its path: ``x``, or ``If_3/then/x`` inside a body.
        kind: ``input``, ``initializer``, ``constant`` (of a Constant node), ``inner``, or ``undefined`` in a model
            that is broken.
        is_output: Whether it is an output of its graph.
        has_default: Whether it is an input with a default value (an initializer of the same name).
        type: What is known of its type.
        bytes: Size of its value if that is stored in the model, else None.
        graph: Path of its graph, ``""`` for the main one.
        producer: Path of the node that makes it, or None.
        producer_op: That node's operator.
        producer_output: Which output of that node it is.
        consumers: Where it is read, in the order of the graph.
        origin: Where it comes from: its producer's origin; for a weight, the module that alone reads it.
    """

    name: str
    kind: str
    is_output: bool
    has_default: bool
    type: KnownType
    bytes: int | None
    graph: str
    producer: str | None
    producer_op: str | None
    producer_output: int | None
    consumers: tuple[Use, ...]
    origin: Origin


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """One node.

    Attributes:
        path: Its label with the path of its graph; ``Conv#12`` if it has no name of its own.
        name: The name in the file, which may be empty or shared.
        op: Operator, ``Conv`` or ``com.microsoft::Gelu``.
        graph: Path of its graph, ``""`` for the main one.
        position: Its place among the nodes of its graph, from 0.
        inputs: What it reads, by position.
        outputs: What it makes, by position.
        captures: What its bodies read from the graphs around.
        bodies: Paths of its bodies.
        attributes: Attributes as plain values; tensors and bodies as a few words.
        is_function_call: Whether it calls a local function.
        origin: Where it comes from.
    """

    path: str
    name: str
    op: str
    graph: str
    position: int
    inputs: tuple[Link, ...]
    outputs: tuple[Link, ...]
    captures: tuple[str, ...]
    bodies: tuple[str, ...]
    attributes: dict[str, Any]
    is_function_call: bool
    origin: Origin


@dataclass(frozen=True, slots=True)
class Found:
    """What selectors matched.

    Attributes:
        names: A selector for each match that matches just it: tensors by name, nodes as ``node:PATH``.
        tensors: The tensors.
        nodes: The nodes.
    """

    names: tuple[str, ...]
    tensors: tuple[TensorRecord, ...]
    nodes: tuple[NodeRecord, ...]


class Reader:
    """Makes the records of one model.

    Args:
        model: The model; it is not changed, and no weight is read.
        index: Its index.
        infer: Work out types that the model does not state; None: unless it is very large (``INFER_UP_TO``).
        sources: What else may tell types, asked after onnx's own inference (``onnxbench.backends.tensor_types``).
    """

    def __init__(
        self, model: Model, index: GraphIndex, *, infer: bool | None = None, sources: Sequence[TypeSource] = ()
    ) -> None:
        self.index = index
        nodes = sum(len(scope.nodes) for scope in index.scopes)
        self.infers = nodes <= INFER_UP_TO if infer is None else infer
        self._finder = TypeFinder(model, index, sources)
        self._views: dict[Scope, _View] = {}
        self._texts: dict[bytes, KnownType] = {}
        self._origins_by_module: dict[tuple[str | None, int], Origin] = {}

    @cached_property
    def origins(self) -> Origins:
        """What tells where nodes come from."""
        return select.origins(self.index)

    def type(self, scope: Scope, name: str) -> KnownType:
        """Returns what is known of the type of a tensor of a graph."""
        return self._types(self._view(scope)).get(name, UNKNOWN)

    def kind(self, scope: Scope, name: str) -> str:
        """Returns what a tensor is to a graph: see ``TensorRecord.kind``; ``captured`` if a graph around defines it."""
        position = scope.producers.get(name)
        if position is not None:
            return "inner" if scope.nodes[position].op_type != "Constant" else "constant"
        if name in scope.constants:
            return "initializer"
        if name in self._view(scope).inputs:
            return "input"
        return "undefined" if scope.parent is None else "captured"

    def origin(self, node: NodeProto) -> Origin:
        """Returns where a node comes from."""
        found = self.origins.of(node)
        if found is NONE:
            return NOWHERE
        if found.frames or found.classes or found.rule:
            return _origin(found)
        key = found.scope, found.call
        known = self._origins_by_module.get(key)
        if known is None:
            known = self._origins_by_module[key] = _origin(found)
        return known

    def node(self, ref: NodeRef) -> NodeRecord:
        """Returns the record of a node."""
        scope, position = ref.scope, ref.position
        node, view = scope.nodes[position], self._view(scope)
        bodies = scope.bodies.get(position, [])
        direct = set(node.input) if bodies else set()
        return NodeRecord(
            path=view.paths[position],
            name=node.name,
            op=operator(node),
            graph=scope.path,
            position=position,
            inputs=self.links(scope, node.input),
            outputs=self.links(scope, node.output),
            captures=tuple([name for name in scope.reads[position] if name not in direct]) if bodies else (),
            bodies=tuple([body.path for body in bodies]),
            attributes={a.name: attribute_value(a) for a in node.attribute} if len(node.attribute) else {},
            is_function_call=self.index.function_of(node) is not None,
            origin=self.origin(node),
        )

    def tensor(self, ref: TensorRef) -> TensorRecord:
        """Returns the record of a tensor."""
        scope, name = ref.scope, ref.name
        view = self._view(scope)
        kind = self.kind(scope, name)
        position = scope.producers.get(name)
        maker = None if position is None else scope.nodes[position]
        return TensorRecord(
            name=f"{scope.path}/{name}" if scope.path else name,
            kind=kind,
            is_output=name in view.outputs,
            has_default=kind == "initializer" and name in view.inputs,
            type=self._types(view).get(name, UNKNOWN),
            bytes=view.stored_bytes(name, maker) if kind in ("initializer", "constant") else None,
            graph=scope.path,
            producer=None if position is None else view.paths[position],
            producer_op=None if maker is None else operator(maker),
            producer_output=None if position is None else view.output_number(position, name),
            consumers=self._uses(view, name),
            origin=self._common_origin(scope, name) if maker is None else self.origin(maker),
        )

    def links(self, scope: Scope, names: Iterable[str]) -> tuple[Link, ...]:
        """Returns tensors as a node of a graph, or the graph itself, sees them."""
        known = self._view(scope).links
        links = []
        for name in names:
            link = known.get(name)
            if link is None:
                link = known[name] = self._link(scope, name)
            links.append(link)
        return tuple(links)

    def _link(self, scope: Scope, name: str) -> Link:
        kind = self.kind(scope, name)
        if kind != "captured":
            return Link(f"{scope.path}/{name}" if scope.path else name, kind, self.type(scope, name).text)
        outer = home_of(scope, name)
        if outer is None:
            return Link(name, "undefined", "?")
        return Link(f"{outer.path}/{name}" if outer.path else name, "captured", self.type(outer, name).text)

    def _uses(self, view: _View, name: str) -> tuple[Use, ...]:
        """Returns the uses of a tensor, those in bodies that capture it right after those of the bodies' node."""
        scope = view.scope
        readers = scope.consumers.get(name, ())
        if not scope.bodies:
            return tuple([use for reader in readers for use in view.uses(reader).get(name, ())])
        found: list[Use] = []
        pending = [(scope, position) for position in reversed(readers)]
        while pending:
            graph, position = pending.pop()
            found += self._view(graph).uses(position).get(name, ())
            for body in reversed(graph.bodies.get(position, ())):
                if name in self._view(body).captures:
                    pending += [(body, inner) for inner in reversed(body.consumers.get(name, ()))]
        return tuple(found)

    def _common_origin(self, scope: Scope, name: str) -> Origin:
        """Returns the module that alone reads an input or weight."""
        readers = scope.consumers.get(name, [])
        modules = {self.origins.scope(scope.nodes[reader]) for reader in readers}
        if len(modules) != 1 or None in modules:
            return NOWHERE
        found = self.origin(scope.nodes[readers[0]])
        return Origin(found.module, found.module_class, found.call)

    def _view(self, scope: Scope) -> _View:
        view = self._views.get(scope)
        if view is None:
            view = self._views[scope] = _View(scope)
        return view

    def _types(self, view: _View) -> dict[str, KnownType]:
        if view.types is None:
            scope = view.scope
            declared = declared_types(scope)
            found = declared
            if self.infers:
                try:
                    found = self._finder.find(scope, scope.tensor_names())
                except BenchError:  # a model that is broken is shown as far as it says anything itself
                    self.infers = False
            view.types = {
                name: self._known(value, "model" if declared.get(name) == value else "inference")
                for name, value in found.items()
            }
        return view.types

    def _known(self, value: TypeProto, by: str) -> KnownType:
        """Returns a type in words; most tensors of a graph share a few types, which are put into words once."""
        key = by.encode() + value.SerializeToString()
        known = self._texts.get(key)
        if known is None:
            number = elem_type(value)
            text = format_type(value)
            known = KnownType(
                text,
                dtype_name(number) if number else None,
                tensor_shape(value) if number else None,
                by if text != "?" else "nobody",
            )
            self._texts[key] = known
        return known


class _View:
    """One graph, with what the records of its nodes and tensors share."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope
        prefix = f"{scope.path}/" if scope.path else ""
        self.paths = [prefix + label for label in scope.labels()]
        self.inputs, self.outputs = frozenset(scope.inputs), frozenset(scope.outputs)
        self.captures = frozenset(scope.captures)
        self.links: dict[str, Link] = {"": Link("", "left out", "")}
        self.types: dict[str, KnownType] | None = None
        self._stored: dict[str, int] | None = None
        self._made: dict[int, dict[str, int]] = {}
        self._uses: dict[int, dict[str, list[Use]]] = {}

    def uses(self, position: int) -> dict[str, list[Use]]:
        """Returns the uses that a node makes of the tensors that it reads, by name."""
        uses = self._uses.get(position)
        if uses is None:
            scope = self.scope
            node, path = scope.nodes[position], self.paths[position]
            op, reads = operator(node), scope.reads[position]
            if len(reads) != len(node.input) or position in scope.bodies:  # some left out, or captures among them
                reads = list(node.input)
            uses = {name: [] for name in reads}
            for number, name in enumerate(reads):
                uses[name].append(Use(path, op, number))
            for body in scope.bodies.get(position, ()):
                captured = frozenset(body.captures)
                for name in body.outputs:
                    if name in captured:
                        uses.setdefault(name, []).append(Use(path, op, None))
            self._uses[position] = uses
        return uses

    def output_number(self, position: int, name: str) -> int:
        """Returns which output of a node a tensor is."""
        outputs = self.scope.nodes[position].output
        if len(outputs) == 1:
            return 0
        made = self._made.get(position)
        if made is None:
            made = self._made[position] = {name: number for number, name in enumerate(outputs)}
        return made[name]

    def stored_bytes(self, name: str, maker: NodeProto | None) -> int | None:
        """Returns the size of a stored value; a list of numbers in a Constant node is small and not weighed."""
        if maker is not None:
            held = [attribute for attribute in maker.attribute if attribute.type == 4]
            return weights.tensor_bytes(held[0].t) if held else None
        if self._stored is None:
            graph: GraphProto = self.scope.graph
            self._stored = {tensor.name: weights.tensor_bytes(tensor) for tensor in graph.initializer}
            for sparse in graph.sparse_initializer:
                parts = (sparse.values, sparse.indices)
                size = sum(raw_size(part.dims, part.data_type) for part in parts)
                self._stored[sparse.values.name] = size
        return self._stored.get(name)


def _origin(found: Provenance) -> Origin:
    return Origin(found.scope, found.module_class, found.call, found.source, found.code, found.rule)


def operator(node: NodeProto) -> str:
    """Returns a node's operator with its domain, unless that is the standard one."""
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}"


def attribute_value(attribute: AttributeProto) -> Any:
    """Returns an attribute as a plain value: numbers, strings and lists as they are, tensors and bodies in words."""
    if attribute.ref_attr_name:
        return f"@{attribute.ref_attr_name}"
    kind = attribute.type
    if kind == 1:
        return _as_written(attribute.f)
    if kind == 2:
        return attribute.i
    if kind == 3:
        return attribute.s.decode(errors="backslashreplace")
    if kind == 4:
        return tensor_text(attribute.t)
    if kind == 5:
        return f"graph of {len(attribute.g.node)} nodes"
    if kind == 6:
        return [_as_written(value) for value in attribute.floats]
    if kind == 7:
        return list(attribute.ints)
    if kind == 8:
        return [value.decode(errors="backslashreplace") for value in attribute.strings]
    if kind == 9:
        return [tensor_text(tensor) for tensor in attribute.tensors]
    if kind == 10:
        return [f"graph of {len(graph.node)} nodes" for graph in attribute.graphs]
    if kind == 11:
        return f"sparse {dtype_name(attribute.sparse_tensor.values.data_type)}{list(attribute.sparse_tensor.dims)}"
    if kind == 13:
        return format_type(attribute.tp)
    if kind == 14:
        return [format_type(value) for value in attribute.type_protos]
    return f"attribute of type {kind}"


def tensor_text(tensor: TensorProto) -> str:
    """Returns a tensor in a few words: its type, and its values if they are few and in the structure."""
    text = f"{dtype_name(tensor.data_type)}{format_shape(tuple(tensor.dims))}"
    count = 1
    for size in tensor.dims:
        count *= size
    if not 0 < count <= _MOST_VALUES or weights.is_outside(tensor):
        return text
    try:
        shown = ", ".join(_value_texts(tensor))
    except (ValueError, TypeError, NotImplementedError):  # data that does not fit its type
        return text
    return f"{text} = {shown if not tensor.dims else f'{{{shown}}}'}"


def _value_texts(tensor: TensorProto) -> list[str]:
    if tensor.data_type == 8:
        return [repr(value.decode(errors="backslashreplace")) for value in tensor.string_data]
    from onnx import numpy_helper

    values = numpy_helper.to_array(tensor).reshape(-1).tolist()
    return [repr(_as_written(value) if tensor.data_type == 1 else value) for value in values]


def _as_written(value: float) -> float:
    """Returns the shortest decimal that is the same 32-bit number: 0.1, and not 0.10000000149011612."""
    for digits in (6, 7, 8):
        short = float(f"{value:.{digits}g}")
        if ctypes.c_float(short).value == value:
            return short
    return value


def find(
    model: Model,
    selectors: Sequence[str],
    *,
    only: Literal["nodes", "tensors"] | None = None,
    infer: bool | None = None,
    sources: Sequence[TypeSource] = (),
    names_only: bool = False,
) -> Found:
    """Returns what the selectors match, with all that is known of it.

    Args:
        model: The model; no weight is read.
        selectors: Selectors (``onnxbench.select``); a bare name that no tensor has may be a node's.
        only: Take nodes as the tensors they make, or tensors as the nodes that make them; None: as selected.
        infer: Work out types that the model does not state (see ``Reader``).
        sources: What else may tell types (see ``Reader``).
        names_only: Leave ``tensors`` and ``nodes`` empty, which is much faster for many matches.

    Raises:
        NotFoundError: A selector matches nothing; the hint has near names.
        UsageError: A selector cannot be parsed.
    """
    index = GraphIndex(model.proto)
    tensor_refs, node_refs = matches(index, selectors, only=only)
    names = (*map(tensor_selector, tensor_refs), *map(node_selector, node_refs))
    if names_only:
        return Found(names, (), ())
    reader = Reader(model, index, infer=infer, sources=sources)
    return Found(names, tuple(map(reader.tensor, tensor_refs)), tuple(map(reader.node, node_refs)))


def matches(
    index: GraphIndex, selectors: Sequence[str], *, only: Literal["nodes", "tensors"] | None = None
) -> tuple[list[TensorRef], list[NodeRef]]:
    """Returns the tensors and the nodes that selectors match, each in the order of the graph, without repeats.

    Raises:
        NotFoundError: A selector matches nothing.
        UsageError: A selector cannot be parsed.
    """
    tensors: set[TensorRef] = set()
    nodes: set[NodeRef] = set()
    for selector in selectors:
        named = select.nodes_named(index, selector)
        selection = select.Selection(nodes=frozenset(named), is_nodes=True) if named else select.select(index, selector)
        as_nodes = selection.is_nodes if only is None else only == "nodes"
        if as_nodes:
            found = selection.as_nodes()
            nodes |= found
        else:
            tensors |= selection.as_tensors()
        if not (selection.as_nodes() if as_nodes else selection.as_tensors()):
            raise NotFoundError(
                f"{selector!r} names tensors that no node makes (inputs or initializers)"
                if as_nodes
                else f"{selector!r} names nodes that make no tensor"
            )
    return select.in_order(index, tensors), nodes_in_order(index, nodes)


def nodes_in_order(index: GraphIndex, refs: Iterable[NodeRef]) -> list[NodeRef]:
    """Returns nodes in the order of the graph."""
    order = {id(scope): number for number, scope in enumerate(index.scopes)}
    return sorted(refs, key=lambda ref: (order[id(ref.scope)], ref.position))


def tensor_selector(ref: TensorRef) -> str:
    """Returns a selector that means just this tensor."""
    # An exact name is tried before anything else, so only what a file of selectors would take apart needs quotes.
    name = ref.path
    return name if name == name.strip() and not name.startswith("#") else select.quoted(name)


def node_selector(ref: NodeRef) -> str:
    """Returns a selector that means just this node."""
    path = ref.path
    return f"node:{path if _SPECIAL.isdisjoint(path) and path == path.strip() else select.quoted(path)}"
