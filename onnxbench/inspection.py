"""A model's card and its parts in tables: what ``inspect`` shows.

Each view is a list of references, cheap to make, narrowed by selectors and cut off at the top, and a way to turn a
reference into a record. So a question about ten nodes of a hundred thousand makes ten records.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from onnxbench import card, records, select, weighing, weights
from onnxbench.card import Card, FunctionRecord
from onnxbench.errors import ExternalDataError, UsageError, did_you_mean
from onnxbench.graph import GraphIndex, NodeRef, Scope, TensorRef
from onnxbench.records import INFER_UP_TO, Link, NodeRecord, Reader, TensorRecord, operator
from onnxbench.weighing import ModuleRecord, Statistics, Stored

if TYPE_CHECKING:
    from onnxbench.inference import TypeSource
    from onnxbench.model import Model

VIEWS = ("card", "nodes", "tensors", "weights", "modules", "functions", "bodies")
"""What ``inspect`` can show."""
SORTS = ("bytes", "name", "file")
"""Orders of weights: largest first, by name, or as in the file."""


@dataclass(frozen=True, slots=True)
class WeightRecord:
    """One stored value.

    Attributes:
        name: Its path; a tensor in an attribute goes by the output of its node.
        dtype: Element type.
        shape: Its shape.
        bytes: Its size.
        place: ``inline``, ``external``, or ``node`` (an attribute: of a Constant node, mostly).
        location: The external file, or None.
        is_sparse: Whether only the values that are not zero are stored.
        modules: The PyTorch modules that read it.
        statistics: How its elements are distributed, if that was asked for and could be read.
        problem: Why it could not be read, or None.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    bytes: int
    place: str
    location: str | None
    is_sparse: bool
    modules: tuple[str, ...]
    statistics: Statistics | None = None
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class BodyRecord:
    """One body of a node.

    Attributes:
        path: ``Loop_1/body/If_3/then``.
        name: The last step of that, ``If_3/then``.
        op: Operator of the node that it belongs to.
        depth: How deep it is nested, 1 at the top.
        nodes: Its own nodes.
        nodes_below: Its nodes and those of bodies in it.
        inputs: Its inputs.
        outputs: Its outputs.
        captures: What it reads from the graphs around.
        weights: How many values it stores, those of bodies in it not included.
        bytes: What these weigh.
    """

    path: str
    name: str
    op: str
    depth: int
    nodes: int
    nodes_below: int
    inputs: tuple[Link, ...]
    outputs: tuple[Link, ...]
    captures: tuple[str, ...]
    weights: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Inspection:
    """What ``inspect`` found: each view that was asked for, the others None.

    Attributes:
        card: The model at a glance.
        nodes: Its nodes.
        tensors: Its tensors.
        weights: Its stored values.
        modules: Its PyTorch modules.
        functions: Its local functions.
        bodies: The bodies of its nodes, outer before inner.
        left_out: How many rows ``top`` left out, by view.
        notes: What the reader should know of how these were made.
    """

    card: Card | None = None
    nodes: tuple[NodeRecord, ...] | None = None
    tensors: tuple[TensorRecord, ...] | None = None
    weights: tuple[WeightRecord, ...] | None = None
    modules: tuple[ModuleRecord, ...] | None = None
    functions: tuple[FunctionRecord, ...] | None = None
    bodies: tuple[BodyRecord, ...] | None = None
    left_out: dict[str, int] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns the views that were asked for, and the rest that is not empty."""
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: value for name, value in fields if value is not None and (value != () or name != "notes")}


def inspect(
    model: Model,
    views: Collection[str] = (),
    selectors: Sequence[str] = (),
    *,
    infer: bool | None = None,
    sources: Sequence[TypeSource] = (),
    values: bool = False,
    sort: str = "bytes",
    top: int | None = None,
    depth: int | None = None,
) -> Inspection:
    """Returns what a model is made of.

    Args:
        model: The model, loaded with or without its weights at hand.
        views: Any of ``VIEWS``; empty: the card, or with selectors what they match, as tensors or nodes.
        selectors: Only what these match (``onnxbench.select``), in every view but the card.
        infer: Work out types that the model does not state, in the views nodes, tensors and bodies; None: unless it
            has more than ``INFER_UP_TO`` nodes.
        sources: What else may tell types (see ``onnxbench.records.Reader``).
        values: Read the weights of the view weights for statistics, block by block.
        sort: Order of the weights, one of ``SORTS``.
        top: At most so many rows of each view.
        depth: Modules and bodies nested no deeper than this.

    Raises:
        NotFoundError: A selector matches nothing.
        UsageError: A view or an order does not exist, or a selector cannot be parsed.
    """
    _require(sort, SORTS)
    for view in views:
        _require(view, VIEWS)
    index = GraphIndex(model.proto)
    focus = _Focus(index, selectors)
    shown = set(views) or focus.natural_views()
    reader = Reader(model, index, infer=infer, sources=sources)
    left_out: dict[str, int] = {}

    def listed(view: str, refs: Callable[[], Sequence[Any]], record: Callable[[Any], Any]) -> tuple[Any, ...] | None:
        if view not in shown:
            return None
        found = refs()
        if top is not None and len(found) > top:
            left_out[view] = len(found) - top
        return tuple(map(record, found[:top]))

    def weight_record(stored: Stored) -> WeightRecord:
        record = _weight(stored, reader)
        return _with_statistics(record, model, stored) if values else record

    modules = listed("modules", lambda: _modules(focus, reader, depth), lambda module: module)
    return Inspection(
        card=card.summarize(model, index, reader.origins) if "card" in shown else None,
        nodes=listed("nodes", focus.nodes, reader.node),
        tensors=listed("tensors", focus.tensors, reader.tensor),
        weights=listed("weights", lambda: _in_order(focus.stored(), sort), weight_record),
        modules=modules,
        functions=listed("functions", focus.functions, _FunctionReader(index)),
        bodies=listed("bodies", lambda: focus.bodies(depth), _BodyReader(reader)),
        left_out=left_out,
        notes=(*_type_notes(shown, reader, infer), *(_module_notes(index, modules) if not selectors else ())),
    )


def _require(word: str, words: Sequence[str]) -> None:
    if word not in words:
        raise UsageError(f"{word!r} is none of {', '.join(words)}", hint=did_you_mean(word, words))


def _module_notes(index: GraphIndex, modules: Sequence[ModuleRecord] | None) -> Iterable[str]:
    if not modules:
        return
    nodes = sum(len(scope.nodes) for scope in index.scopes) - modules[0].nodes_below
    stored = list(weighing.stored_values(index))
    count = len(stored) - modules[0].weights
    if nodes:
        yield f"{nodes:,} of the model's nodes tell no module and are in none of these"
    if count:
        size = sum(item.bytes for item in stored) - modules[0].bytes
        yield f"{count:,} of its stored values ({size:,} bytes) are of no known module and are in none of these"


def _type_notes(shown: Collection[str], reader: Reader, infer: bool | None) -> Iterable[str]:
    if infer is None and not reader.infers and not {"nodes", "tensors", "bodies"}.isdisjoint(shown):
        yield f"types are those the model states: it has over {INFER_UP_TO:,} nodes (--infer works out the others)"


class _Focus:
    """The part of a model that selectors narrow it to; all of it without any."""

    def __init__(self, index: GraphIndex, selectors: Sequence[str]) -> None:
        self._index = index
        self._is_all = not selectors
        tensors, nodes = records.matches(index, selectors) if selectors else ([], [])
        self._tensors, self._nodes = frozenset(tensors), frozenset(nodes)

    def natural_views(self) -> set[str]:
        """Returns the views that show what the selectors match."""
        views = {"tensors": self._tensors, "nodes": self._nodes}
        return {"card"} if self._is_all else {view for view, matched in views.items() if matched}

    def nodes(self) -> list[NodeRef]:
        """Returns the nodes matched and the makers of the tensors matched."""
        if self._is_all:
            return list(self._index.nodes())
        return records.nodes_in_order(self._index, self._nodes | select.Selection(self._tensors).as_nodes())

    def tensors(self) -> list[TensorRef]:
        """Returns the tensors matched and what the nodes matched make."""
        if self._is_all:
            return list(self._index.tensors())
        made = select.Selection(nodes=self._nodes, is_nodes=True).as_tensors()
        return select.in_order(self._index, self._tensors | made)

    def stored(self) -> list[Stored]:
        """Returns the stored values that were matched, and those that a node matched reads or holds."""
        return [stored for stored in weighing.stored_values(self._index) if self._is_all or self._concerns(stored)]

    def _concerns(self, stored: Stored) -> bool:
        scope = stored.scope
        places = (*scope.consumers.get(stored.name, ()), *((stored.node,) if stored.node >= 0 else ()))
        return TensorRef(scope, stored.name) in self._tensors or any(
            NodeRef(scope, place) in self._nodes for place in places
        )

    def module_nodes(self) -> list[NodeRef] | None:
        """Returns the nodes whose modules are of interest; None: all."""
        return None if self._is_all else self.nodes()

    def functions(self) -> list[tuple[str, str, str]]:
        """Returns the functions that a node matched calls, and those that hold something matched."""
        if self._is_all:
            return list(self._index.functions)
        called = self._index.function_closure(ref.node for ref in self._nodes)
        held = {id(ref.scope) for ref in self._nodes} | {id(ref.scope) for ref in self._tensors}
        return [key for key, scope in self._index.functions.items() if key in called or id(scope) in held]

    def bodies(self, depth: int | None) -> list[Scope]:
        """Returns the bodies of nodes matched with the bodies in them, and those that hold a tensor matched."""
        inner = [s for s in self._index.scopes if s.parent is not None and (depth is None or s.depth <= depth)]
        if self._is_all:
            return inner
        held, owned = {id(ref.scope) for ref in self._tensors}, set()
        for scope in inner:  # outer before inner
            if scope.parent is not None and (
                NodeRef(scope.parent, scope.owner) in self._nodes or id(scope.parent) in owned
            ):
                owned.add(id(scope))
        return [scope for scope in inner if id(scope) in held | owned]


def _in_order(stored: list[Stored], sort: str) -> list[Stored]:
    if sort == "bytes":
        return sorted(stored, key=lambda item: -item.bytes)
    return sorted(stored, key=lambda item: item.path) if sort == "name" else stored


def _weight(stored: Stored, reader: Reader) -> WeightRecord:
    return WeightRecord(
        stored.path,
        stored.dtype,
        stored.shape,
        stored.bytes,
        stored.place,
        weights.location(stored.tensor),
        stored.is_sparse,
        tuple(weighing.modules_reading(stored, reader.origins)),
    )


def _with_statistics(record: WeightRecord, model: Model, stored: Stored) -> WeightRecord:
    try:
        return replace(record, statistics=weighing.statistics(model, stored.tensor))
    except ExternalDataError as error:  # one weight that is missing does not hide the others
        return replace(record, problem=error.message)


def _modules(focus: _Focus, reader: Reader, depth: int | None) -> list[ModuleRecord]:
    modules = weighing.module_tree(reader.index, reader.origins, operator, nodes=focus.module_nodes())
    return [module for module in modules if depth is None or module.depth <= depth]


class _FunctionReader:
    """Makes the records of local functions; calls are counted when the first is asked for."""

    def __init__(self, index: GraphIndex) -> None:
        self._index = index
        self._calls: Mapping[tuple[str, str, str], int] | None = None

    def __call__(self, key: tuple[str, str, str]) -> FunctionRecord:
        if self._calls is None:
            self._calls = card.function_calls(self._index)
        return card.describe_function(self._index, key, self._calls)


class _BodyReader:
    """Makes the records of bodies; stored values are weighed when the first is asked for."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._held: dict[int, list[Stored]] | None = None

    def __call__(self, scope: Scope) -> BodyRecord:
        if self._held is None:
            self._held = {}
            for stored in weighing.stored_values(self._reader.index):
                self._held.setdefault(id(stored.scope), []).append(stored)
        held = self._held.get(id(scope), [])
        assert scope.parent is not None
        return BodyRecord(
            scope.path,
            scope.path[len(scope.parent.path) + 1 if scope.parent.path else 0 :],
            operator(scope.parent.nodes[scope.owner]),
            scope.depth,
            len(scope.nodes),
            _nodes_below(scope),
            self._reader.links(scope, scope.inputs),
            self._reader.links(scope, scope.outputs),
            tuple(scope.captures),
            len(held),
            sum(stored.bytes for stored in held),
        )


def _nodes_below(scope: Scope) -> int:
    count, pending = 0, [scope]
    while pending:
        part = pending.pop()
        count += len(part.nodes)
        pending += [body for bodies in part.bodies.values() for body in bodies]
    return count
