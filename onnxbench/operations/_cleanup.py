"""Operations that leave out, order and name: what a model has and does not need, and what it lacks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onnxbench.draft import root_of, tree_of
from onnxbench.errors import UsageError, did_you_mean
from onnxbench.graph import TensorRef, sort_nodes, topological_order
from onnxbench.inlining import remove_uncalled
from onnxbench.operations._base import Operation

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.graph import Scope

DEAD_KINDS = ("nodes", "initializers", "functions", "value_infos", "opset_imports")
_LAST_IR_WITH_LISTED_INITIALIZERS = 3


@dataclass(frozen=True)
class RemoveDead(Operation):
    """Remove what no output depends on.

    Attributes:
        what: ``all``, or one or more of ``nodes``, ``initializers``, ``functions``, ``value_infos`` (of tensors that
            do not exist) and ``opset_imports``. An initializer that is also an input, which a caller may set, stays.
    """

    word: ClassVar[str] = "remove_dead"
    spelling: ClassVar[str] = "{what}"
    keeps_types: ClassVar[bool] = True

    what: str | list[str] = "all"

    def __post_init__(self) -> None:
        """Raises UsageError for kinds that there are not."""
        for kind in self._kinds():
            if kind not in DEAD_KINDS:
                hint = did_you_mean(kind, DEAD_KINDS) or f"all, or of {', '.join(DEAD_KINDS)}."
                raise UsageError(f"remove_dead does not know {kind!r}", hint=hint)

    def _kinds(self) -> Sequence[str]:
        if self.what == "all":
            return DEAD_KINDS
        return [each.strip() for each in self.what.split(",")] if isinstance(self.what, str) else self.what

    def apply(self, draft: Draft) -> None:
        """Removes it: functions first, since they need others, then nodes, then what only those read."""
        kinds = self._kinds()
        if "functions" in kinds:
            proto = draft.model.proto
            every = {(f.domain, f.name, f.overload) for f in proto.functions}
            for name in remove_uncalled(proto, every):
                draft.record("function", name, "removed")
            draft.touch()
        if "nodes" in kinds:
            _remove_dead_nodes(draft)
        if "initializers" in kinds:
            for scope in draft.index.scopes:
                _remove_unread(draft, scope)
            draft.touch()
        if "value_infos" in kinds:
            for scope in draft.index.scopes:
                known = {*scope.inputs, *scope.constants, *scope.producers}
                unknown = [info.name for info in scope.graph.value_info if info.name not in known]
                draft.forget(scope, unknown)
                for name in unknown:
                    draft.record("tensor", TensorRef(scope, name).path, "value info removed")
        if "opset_imports" in kinds:
            functions = {f.domain for f in draft.model.proto.functions}
            for domain in draft.unused_imports():
                if domain not in ("", "ai.onnx") and domain not in functions:
                    draft.remove_import(domain)


def _remove_dead_nodes(draft: Draft) -> None:
    """Removes dead nodes, inner graphs first: what a body does not need, the graphs around it may not need either."""
    deepest = max(scope.depth for scope in draft.index.scopes)
    for depth in range(deepest, -1, -1):
        dead = []
        for scope in draft.index.scopes:
            if scope.depth == depth:
                live = _live(draft, scope)
                if len(live) < len(scope.nodes):
                    dead.append((scope, [at for at in range(len(scope.nodes)) if at not in live]))
        for scope, positions in dead:
            gone = [name for at in positions for name in scope.writes[at]]
            for at in positions:
                node = scope.nodes[at]
                label = f"{scope.path}/{scope.label(at)}" if scope.path else scope.label(at)
                draft.record("node", label, "removed", before=node.op_type)
            draft.splice(scope, removed=positions)
            draft.forget(scope, gone)


def _live(draft: Draft, scope: Scope) -> set[int]:
    pending = [*scope.outputs, *(_named_in_training(draft) if scope is draft.main else ())]
    live: set[int] = set()
    while pending:
        position = scope.producers.get(pending.pop())
        if position is not None and position not in live:
            live.add(position)
            pending += scope.reads[position]
    return live


def _named_in_training(draft: Draft) -> Iterator[str]:
    """Yields the names that training steps, which see the main graph, may mean."""
    for training in draft.model.proto.training_info:
        for binding in (*training.initialization_binding, *training.update_binding):
            yield from (binding.key, binding.value)
        for graph in (training.initialization, training.algorithm):
            yield from (name for node in graph.node for name in node.input)
            yield from (info.name for info in graph.output)


def _remove_unread(draft: Draft, scope: Scope) -> None:
    if not scope.constants:
        return
    graph: Any = scope.graph
    read = set(scope.outputs)
    if scope is draft.main:
        read.update(_named_in_training(draft))
    for annotation in graph.quantization_annotation:
        read.update(entry.value for entry in annotation.quant_parameter_tensor_names)
    if draft.model.proto.ir_version > _LAST_IR_WITH_LISTED_INITIALIZERS:
        read.update(scope.inputs)
    gone = [name for name in sorted(scope.constants) if name not in read and name not in scope.consumers]
    if gone:
        draft.remove_initializers(scope, set(gone))
        draft.forget(scope, gone)
        for name in gone:
            draft.record("weight", TensorRef(scope, name).path, "removed")


@dataclass(frozen=True)
class Sort(Operation):
    """Put the nodes of every graph in an order in which each comes after what it reads.

    An edit does so by itself where an order is wrong, keeping the file's wherever it can; with ``depth``, nodes are
    ordered anew by how far they are from the inputs.

    Attributes:
        by: ``file`` (the file's order where dependencies allow) or ``depth``.
    """

    word: ClassVar[str] = "sort"
    spelling: ClassVar[str] = "{by}"

    by: Literal["file", "depth"] = "file"

    def apply(self, draft: Draft) -> None:
        """Sorts."""
        scopes = draft.index.scopes
        if self.by == "file":
            sorted_now = [(scopes[number], order) for number, order in sort_nodes(draft.model.proto)]
        else:
            sorted_now = list(_sort_by_depth(draft))
        for scope, order in sorted_now:
            moved = sum(at != before for at, before in enumerate(order))
            kind = "function" if scope.is_function else "model"
            where = scope.path if scope is not draft.main else ""
            draft.record(kind, where, "sorted", after=f"{moved} nodes moved")
        draft.touch()


def _sort_by_depth(draft: Draft) -> Iterator[tuple[Scope, list[int]]]:
    scopes = draft.index.scopes
    for scope in reversed(scopes):
        order = topological_order(scope) or list(range(len(scope.nodes)))
        depth: dict[int, int] = {}
        for position in order:
            sources = (scope.producers[name] for name in scope.reads[position] if name in scope.producers)
            depth[position] = 1 + max((depth[source] for source in sources), default=-1)
        wanted = sorted(order, key=lambda position: (depth[position], position))
        if wanted != list(range(len(wanted))):
            copies = []
            for position in wanted:
                copy = type(scope.nodes[position])()
                copy.CopyFrom(scope.nodes[position])
                copies.append(copy)
            del scope.graph.node[:]
            scope.graph.node.extend(copies)
            yield scope, wanted


@dataclass(frozen=True)
class DedupeNames(Operation):
    """Make names distinct: of nodes in a graph and its bodies, and of tensors of bodies that hide outer ones.

    The first keeps its name, later ones get ``_1`` and so on. Nodes without a name stay without (see ``name_nodes``).

    Attributes:
        what: ``all``, ``nodes`` or ``tensors``.
    """

    word: ClassVar[str] = "dedupe_names"
    spelling: ClassVar[str] = "{what}"

    what: Literal["all", "nodes", "tensors"] = "all"

    def apply(self, draft: Draft) -> None:
        """Renames what is called the same."""
        if self.what in ("all", "tensors"):
            _rename_hiding(draft)
        if self.what in ("all", "nodes"):
            taken: dict[int, set[str]] = {}
            for scope in draft.index.scopes:
                names = taken.setdefault(id(root_of(scope)), {n.name for s in tree_of(root_of(scope)) for n in s.nodes})
                seen = taken.setdefault(-id(root_of(scope)), set())
                for node in scope.nodes:
                    if node.name and node.name in seen:
                        before, where = node.name, TensorRef(scope, node.name).path
                        node.name = _next(before, names)
                        draft.record("node", where, "renamed", before=before, after=node.name)
                    seen.add(node.name)
            draft.touch()


def _rename_hiding(draft: Draft) -> None:
    """Renames tensors of bodies that have the name of one that the body could see."""
    for scope in reversed(draft.index.scopes):
        if scope.parent is None:
            continue
        around: set[str] = set()
        outer: Scope | None = scope.parent
        while outer is not None:
            around.update(outer.inputs, outer.constants, outer.producers)
            outer = outer.parent
        own = dict.fromkeys([*scope.inputs, *sorted(scope.constants), *scope.producers])
        names = {name: draft.fresh(scope, name) for name in own if name and name in around}
        if names:
            draft.rename(scope, names)
            for before, after in names.items():
                draft.record("tensor", TensorRef(scope, before).path, "renamed", before=before, after=after)


@dataclass(frozen=True)
class NameNodes(Operation):
    """Give names to nodes that have none, or to all, by a pattern.

    Attributes:
        pattern: The name, with ``{op_type}``, ``{number}`` (of those of its operator in its graph, from 0),
            ``{position}`` (in its graph) and ``{output}`` (its first output) in it.
        all: Also rename the nodes that have a name.
    """

    word: ClassVar[str] = "name_nodes"
    spelling: ClassVar[str] = "{pattern}"
    keeps_types: ClassVar[bool] = True

    pattern: str = "{op_type}_{number}"
    all: bool = False

    def apply(self, draft: Draft) -> None:
        """Names them."""
        try:
            self.pattern.format(op_type="", number=0, position=0, output="")
        except (KeyError, ValueError, IndexError, AttributeError):
            raise UsageError(
                f"{self.pattern!r} is no pattern for names",
                hint="It may have {op_type}, {number}, {position} and {output} in it.",
            ) from None
        for scope in draft.index.scopes:
            names = {"", *(node.name for node in scope.nodes)} if not self.all else {""}
            numbers: dict[str, int] = {}
            for position, node in enumerate(scope.nodes):
                number = numbers.get(node.op_type, 0)
                numbers[node.op_type] = number + 1
                if node.name and not self.all:
                    continue
                output = next(iter(scope.writes[position]), "")
                wanted = self.pattern.format(op_type=node.op_type, number=number, position=position, output=output)
                name = wanted if wanted not in names else _next(wanted, names)
                names.add(name)
                if name != node.name:
                    draft.record("node", _label(scope, position), "named", before=node.name or None, after=name)
                    node.name = name
        draft.touch()


def _label(scope: Scope, position: int) -> str:
    return f"{scope.path}/{scope.label(position)}" if scope.path else scope.label(position)


def _next(base: str, taken: set[str]) -> str:
    """Returns ``base_1`` or the next that is free, and keeps it reserved."""
    number = 1
    while f"{base}_{number}" in taken:
        number += 1
    taken.add(f"{base}_{number}")
    return f"{base}_{number}"
