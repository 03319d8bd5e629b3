"""Operations on who reads what: a copy for some readers, one input, or all readers of a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxbench import select
from onnxbench.draft import require_free
from onnxbench.errors import NotFoundError, RefusedResultError, UsageError
from onnxbench.graph import NodeRef, home_of
from onnxbench.operations._base import Effect, NodeOperation, TensorOperation
from onnxbench.operations._slots import input_number

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.graph import Scope


@dataclass(frozen=True)
class Duplicate(NodeOperation):
    """Make a copy of a node, for some of its readers.

    Attributes:
        at: Selector of the node.
        readers: Selector of the nodes that read the copy; none: nothing reads it yet.
        name: The copy's name.
        to: The names of the tensors that it makes.
    """

    word: ClassVar[str] = "duplicate"
    spelling: ClassVar[str] = "{at}[={name}]"

    readers: str | None = None
    name: str | None = None
    to: list[str] | None = None

    def apply(self, draft: Draft) -> None:
        """Copies it."""
        for ref in self.find(draft):
            scope, node = ref.scope, ref.node
            if self.to is not None and len(self.to) > len(node.output):
                raise UsageError(
                    f"{len(self.to)} names are given, and node {ref.path!r} has {len(node.output)} outputs",
                    hint=f"They are: {', '.join(node.output)}.",
                )
            copy = type(node)()
            copy.CopyFrom(node)
            if self.name or node.name:
                copy.name = self.name or draft.fresh_node(scope, f"{node.name}_copy")
            names = {}
            for number, made in enumerate(node.output):
                if made:
                    given = self.to[number] if self.to and number < len(self.to) else None
                    if given is not None:
                        require_free(draft, scope, given)
                    names[made] = copy.output[number] = given or draft.fresh(scope, f"{made}_copy")
            wanted = draft.nodes(self.readers) if self.readers is not None else []
            unread = [each.path for each in wanted if not reads_any(each, scope, names)]
            if unread:
                raise RefusedResultError(
                    f"node {unread[0]!r} does not read what {ref.path!r} makes",
                    hint=f"onnxbench find MODEL {select.quoted(next(iter(names), ref.path))} lists the nodes that do.",
                )
            _copy_infos(scope, names)
            draft.replace_uses_by(wanted, scope, names)
            draft.splice(scope, {ref.position + 1: [copy]})
            draft.record("node", ref.path, "duplicated", after=copy.name or next(iter(names.values()), ""))


@dataclass(frozen=True)
class Rewire(NodeOperation):
    """Make an input of nodes another tensor.

    Attributes:
        at: Selector of the nodes.
        input: Which input: its number, the operator's name for it (``B``), or the tensor that it is now.
        to: The tensor that it becomes; empty leaves an optional input out.
    """

    word: ClassVar[str] = "rewire"
    spelling: ClassVar[str] = "{at}:{input}={to}"
    effect: ClassVar[Effect] = "numerics"

    input: int | str = 0
    to: str = ""

    def apply(self, draft: Draft) -> None:
        """Rewires them."""
        for ref in self.find(draft):
            number = input_number(draft, ref, self.input)
            new = self._visible(draft, ref)
            if [new] == list(ref.node.input[number : number + 1]) or not (new or ref.node.input[number:]):
                continue
            while len(ref.node.input) <= number:
                ref.node.input.append("")
            before = ref.node.input[number]
            ref.node.input[number] = new
            while ref.node.input and not ref.node.input[-1]:
                del ref.node.input[-1]
            draft.record("node", ref.path, f"input {number}", before=before, after=new)
            draft.retype(ref.scope, ref.scope.writes[ref.position])
        draft.touch()

    def _visible(self, draft: Draft, ref: NodeRef) -> str:
        if not self.to:
            return ""
        if home_of(ref.scope, self.to) is not None:
            return self.to
        found = draft.tensor(self.to)
        if home_of(ref.scope, found.name) is not found.scope:
            raise RefusedResultError(f"{ref.path} cannot see {found.path!r}, which lies inside another graph")
        return found.name


@dataclass(frozen=True)
class Redirect(TensorOperation):
    """Make all readers of a tensor, or some, read another one.

    Attributes:
        at: Selector of the tensor that is read now.
        to: The tensor that is read then.
        readers: Selector of the nodes that change; by default all that may without a cycle.
    """

    word: ClassVar[str] = "redirect"
    spelling: ClassVar[str] = "{at}={to}"
    effect: ClassVar[Effect] = "numerics"

    to: str
    readers: str | None = None

    def apply(self, draft: Draft) -> None:
        """Redirects them."""
        for ref in self.find(draft):
            new = draft.tensor(self.to)
            if home_of(ref.scope, new.name) is not new.scope:
                raise RefusedResultError(f"readers of {ref.path!r} cannot see {new.path!r}")
            if new == ref:
                continue
            readers = [NodeRef(ref.scope, position) for position in ref.scope.consumers.get(ref.name, ())]
            if self.readers is not None:
                readers = draft.nodes(self.readers)
                strange = [each.path for each in readers if not reads_any(each, ref.scope, [ref.name])]
                if strange:
                    raise RefusedResultError(
                        f"node {strange[0]!r} does not read {ref.path!r}",
                        hint=f"onnxbench find MODEL {select.quoted(ref.path)} lists the nodes that do.",
                    )
            elif readers:
                upstream = select.select(draft.index, f"upstream({select.quoted(new.path)})").as_nodes()
                readers = [each for each in readers if each not in upstream]
                if not readers:
                    raise RefusedResultError(
                        f"all that reads {ref.path!r} is needed to compute {new.path!r}, so this would be a cycle",
                    )
            if not readers:
                raise NotFoundError(f"no node reads {ref.path!r}")
            if any(home_of(each.scope, new.name) is not new.scope for each in readers):
                raise RefusedResultError(f"not all readers see {new.path!r}: a body has a tensor of this name, too")
            changed = draft.replace_uses_by(readers, ref.scope, {ref.name: new.name})
            draft.record("tensor", ref.path, f"{changed} reader{'s' * (changed != 1)}", before=ref.name, after=new.name)
            for reader in readers:
                draft.retype(reader.scope, reader.scope.writes[reader.position])


def reads_any(reader: NodeRef, scope: Scope, names: Iterable[str]) -> bool:
    """Tells whether a node, of a graph or of a body within, reads one of the graph's tensors."""
    read = reader.scope.reads[reader.position]
    return any(name in read and home_of(reader.scope, name) is scope for name in names)


def _copy_infos(scope: Scope, names: Mapping[str, str]) -> None:
    """States of the copies of tensors what is stated of the tensors."""
    infos = scope.graph.value_info if scope.is_function else (*scope.graph.value_info, *scope.graph.output)
    for info in list(infos):
        if info.name in names:
            copy = scope.graph.value_info.add()
            copy.CopyFrom(info)
            copy.name = names[info.name]
