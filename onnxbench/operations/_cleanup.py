"""Operations that leave out, order and name: what a model has and does not need, and what it lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from onnxbench import pruning
from onnxbench.errors import NotFoundError, UsageError, did_you_mean
from onnxbench.graph import TensorRef, root_of, sort_nodes, topological_order, tree_of
from onnxbench.operations._base import Effect, NodeOperation, Operation
from onnxbench.specs import parse_size
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.folding import Folded
    from onnxbench.graph import NodeRef, Scope

DEAD_KINDS = pruning.KINDS


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
        """Removes it."""
        pruning.remove_dead(draft, self._kinds())


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
        pattern: The name, with ``{op_type}``, ``{number}`` (of those of its operator, from 0), ``{position}``
            (in its graph) and ``{output}`` (its first output) in it.
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
        taken: dict[int, set[str]] = {}
        counts: dict[int, dict[str, int]] = {}
        for scope in draft.index.scopes:
            top = root_of(scope)
            if id(top) not in taken:
                kept = () if self.all else (node.name for inner in tree_of(top) for node in inner.nodes)
                taken[id(top)], counts[id(top)] = {"", *kept}, {}
            names, numbers = taken[id(top)], counts[id(top)]
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


@dataclass(frozen=True)
class FoldConstants(Operation):
    """Replace nodes whose inputs are all constant by what they compute, and Shape of fixed sizes.

    Operators that draw random numbers, that are of no standard domain, or that quantize are left alone.

    Attributes:
        max_bytes: No larger tensor is made, and nothing that makes the model larger by more than this in all.
        at: Selector of the only nodes to fold; those that quantize are folded if they are named so.
    """

    word: ClassVar[str] = "fold_constants"
    spelling: ClassVar[str] = "{max_bytes}"
    effect: ClassVar[Effect] = "rounding"

    max_bytes: str | int = "16M"
    at: str | None = None

    def find(self, draft: Draft) -> Sequence[NodeRef] | None:
        """Returns the nodes that are named."""
        return None if self.at is None else draft.nodes(self.at)

    def apply(self, draft: Draft) -> None:
        """Folds them."""
        from onnxbench.folding import fold_constants

        most = self.max_bytes if isinstance(self.max_bytes, int) else parse_size(self.max_bytes)
        done = fold_constants(draft, max_bytes=most, among=self.find(draft))
        draft.notes.append(f"{plural(done.nodes, 'node')} folded; weights {done.grown:+,} bytes")
        if done.left:
            draft.notes.append(_left_words(done))


@dataclass(frozen=True)
class TakeBranches(NodeOperation):
    """Replace If nodes whose condition is constant by the branch that is taken.

    The others among the selected ones stay. ``fold_constants`` before it makes more conditions constant, and more
    sizes can be told after it.

    Attributes:
        at: Selector of the nodes.
    """

    word: ClassVar[str] = "take_branches"
    spelling: ClassVar[str] = "{at}"
    expects: ClassVar[str] = "all"

    at: str = "op:If"

    def find(self, draft: Draft) -> list[NodeRef]:
        """Returns those whose condition is constant."""
        from onnxbench.branching import taken_branch

        refs = draft.nodes(self.at)
        found = [ref for ref in refs if taken_branch(draft, ref) is not None]
        if not found:
            raise NotFoundError(
                f"none of the nodes {self.at!r} is an If whose condition is constant",
                hint="remove_input with a value, and fold_constants, make conditions constant.",
            )
        return found

    def apply(self, draft: Draft) -> None:
        """Replaces them."""
        from onnxbench.branching import take_branches

        refs = self.find(draft)
        left = len(refs) - take_branches(draft, refs)
        if left:
            draft.notes.append(_unlifted_words(left))


@dataclass(frozen=True)
class MergeEqual(Operation):
    """Keep one of several nodes that compute the same from the same (common subexpressions).

    Attributes:
        at: Selector of the only nodes to look at.
    """

    word: ClassVar[str] = "cse"
    spelling: ClassVar[str] = "{at}"

    at: str = "op:*"

    def apply(self, draft: Draft) -> None:
        """Merges them."""
        from onnxbench.folding import merge_equal

        count = merge_equal(draft, among=None if self.at == "op:*" else draft.nodes(self.at))
        draft.notes.append(
            f"{plural(count, 'node')} computed what another one does, and {'is' if count == 1 else 'are'} gone"
        )


@dataclass(frozen=True)
class Clean(Operation):
    """Fold constants, take constant branches, remove what is dead and merge equal nodes, until nothing changes.

    Each makes more of the others possible: a folded condition decides a branch, and what was behind the branch can
    be folded then. Written out, this is ``fold_constants``, ``take_branches``, ``remove_dead`` and ``cse`` in turn,
    again and again, as ``polygraphy surgeon sanitize --fold-constants --cleanup`` has it.

    Attributes:
        max_bytes: As for fold_constants; the model grows by no more in all rounds together.
        max_rounds: After so many rounds it ends, even if more could be done.
        skip: Which of ``fold_constants``, ``take_branches``, ``remove_dead`` and ``cse`` to leave out.
    """

    word: ClassVar[str] = "clean"
    spelling: ClassVar[str] = "{max_bytes}"
    effect: ClassVar[Effect] = "rounding"

    max_bytes: str | int = "16M"
    max_rounds: int = 20
    skip: str | list[str] = ""

    def __post_init__(self) -> None:
        """Raises UsageError for what is no part of it."""
        if self.max_rounds < 1:
            raise UsageError(f"max_rounds is {self.max_rounds}, and must be 1 or more")
        skipped = self._skipped()
        for word in skipped:
            if word not in _PARTS:
                raise UsageError(
                    f"clean has no part {word!r} to skip",
                    hint=did_you_mean(word, _PARTS) or f"Its parts are {', '.join(_PARTS)}.",
                )
        if len(set(skipped)) == len(_PARTS):
            raise UsageError("clean does nothing if all of its parts are skipped")

    def _skipped(self) -> list[str]:
        listed = self.skip.split(",") if isinstance(self.skip, str) else self.skip
        return [each.strip() for each in listed if each.strip()]

    def apply(self, draft: Draft) -> None:
        """Goes round until nothing changes."""
        from onnxbench.branching import taken_branch
        from onnxbench.folding import Folded

        most = self.max_bytes if isinstance(self.max_bytes, int) else parse_size(self.max_bytes)
        parts = [part for part in _PARTS if part not in self._skipped()]
        folded = Folded(0, 0, 0, 0)
        settled = False
        number = 0
        while number < self.max_rounds and not settled:
            number += 1
            before = len(draft.changes)
            folded, words = _round(draft, parts, most, folded.spent)
            settled = len(draft.changes) == before
            if words:
                draft.notes.append(f"round {number}: {', '.join(words)}")
        if not settled:
            draft.notes.append(f"ended after {plural(number, 'round')}, the last of which still changed something")
        elif number == 1:
            draft.notes.append("there was nothing to clean")
        if folded.left:
            draft.notes.append(_left_words(folded))
        if "take_branches" in parts and settled:
            left = sum(taken_branch(draft, ref) is not None for ref in draft.index.nodes())
            if left:
                draft.notes.append(_unlifted_words(left))


_PARTS = ("fold_constants", "take_branches", "remove_dead", "cse")


def _round(draft: Draft, parts: Sequence[str], max_bytes: int, spent: int) -> tuple[Folded, list[str]]:
    """Does each part of ``Clean`` once, and returns what was folded and what was done in words."""
    from onnxbench.branching import take_branches
    from onnxbench.folding import Folded, fold_constants, merge_equal

    folded, words = Folded(0, 0, 0, 0, spent), []
    if "fold_constants" in parts:
        folded = fold_constants(draft, max_bytes=max_bytes, spent=spent)
        if folded.nodes:
            words.append(f"{plural(folded.nodes, 'node')} folded (weights {folded.grown:+,} bytes)")
    if "take_branches" in parts:
        taken = take_branches(draft, list(draft.index.nodes()))
        draft.refresh_types()
        if taken:
            words.append(f"{taken:,} If replaced by the branch taken")
    if "remove_dead" in parts:
        before = len(draft.changes)
        pruning.remove_dead(draft)
        removed = Counter(change.kind for change in draft.changes[before:])
        if removed:
            words.append(f"{' and '.join(plural(count, kind) for kind, count in removed.items())} removed as dead")
    if "cse" in parts:
        merged = merge_equal(draft)
        if merged:
            words.append(f"{plural(merged, 'node')} merged with an equal one")
    return folded, words


def _left_words(folded: Folded) -> str:
    return (
        f"{plural(folded.left, 'more node')} of constants left, which would add {folded.larger:,} bytes; "
        "a larger max_bytes allows it"
    )


def _unlifted_words(count: int) -> str:
    return f"{plural(count, 'If')} of functions stay: their branches have large weights"


@dataclass(frozen=True)
class Simplify(Operation):
    """Simplify the model by another project's tool, and put back what the tool forgets of it.

    Attributes:
        tool: ``onnxslim``, ``onnxsim`` or ``onnxscript``; each must be installed.
        weights: ``all`` lets the tool read all weights; ``small`` keeps those of more than 64 KiB away from it.
        limit: The most bytes of weights that it may read.
        timeout: The most seconds that it may take.
    """

    word: ClassVar[str] = "simplify"
    spelling: ClassVar[str] = "{tool}"
    effect: ClassVar[Effect] = "rounding"

    tool: Literal["onnxslim", "onnxsim", "onnxscript"]
    weights: Literal["all", "small"] = "all"
    limit: str | int = "1G"
    timeout: float | None = None

    def apply(self, draft: Draft) -> None:
        """Runs the tool."""
        from onnxbench.bridges import run_tool

        limit = self.limit if isinstance(self.limit, int) else parse_size(self.limit)
        run_tool(draft, self.tool, limit=limit, keep_large_away=self.weights == "small", timeout=self.timeout)
