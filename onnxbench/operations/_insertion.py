"""Operations that add nodes: on an edge, or given as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench import select
from onnxbench.draft import rename_made, require_free
from onnxbench.errors import NotFoundError, UnsupportedError, UsageError, did_you_mean
from onnxbench.graph import NodeRef, TensorRef, home_of
from onnxbench.operations._base import Effect, Operation, parse_operator
from onnxbench.operations._fragments import names_read, read_fragment
from onnxbench.operations._new_nodes import make_constants, make_nodes, path_in, refuse_unread, require_known
from onnxbench.operations._slots import name_at
from onnxbench.operations._wiring import reads_any
from onnxbench.tensortype import is_complete, make_value_info

if TYPE_CHECKING:
    from onnx import NodeProto, ValueInfoProto

    from onnxbench.draft import Draft
    from onnxbench.graph import Scope

_EDGE = "_"


@dataclass(frozen=True)
class Insert(Operation):
    """Insert a node on an edge: behind a tensor, before an input of a node, or behind an output of one.

    Attributes:
        at: Selector of tensors: all that read one read what the new node makes; the model's outputs keep their names.
        op: The operator: ``Identity``, ``Cast``, ``onnxbench::Mark``, ...
        before: Instead of ``at``, selector of nodes: only their input number ``input`` changes.
        after: Instead of ``at``, selector of nodes: the node stands behind their output number ``output``.
        input: Which input, for ``before``.
        output: Which output, for ``after``.
        readers: Selector of the nodes that read what the new node makes; the others keep what they read.
        attributes: The new node's attributes, as in a build specification.
        inputs: Its inputs if it has more than one; ``_`` is the edge.
        constants: Values of inputs that are new constants, as in a build specification: ``{low: 0.0}``.
        name: The new node's name.
        to: The name of the tensor that it makes.
    """

    word: ClassVar[str] = "insert"
    spelling: ClassVar[str] = "{at}={op}"
    effect: ClassVar[Effect] = "numerics"

    op: str
    at: str | None = None
    before: str | None = None
    after: str | None = None
    input: int = 0
    output: int = 0
    readers: str | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    constants: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    to: str | None = None

    def __post_init__(self) -> None:
        if sum(each is not None for each in (self.at, self.before, self.after)) != 1:
            raise UsageError("insert needs one of at, before and after", hint="- insert: {at: x, op: Identity}")
        if self.inputs and _EDGE not in self.inputs:
            raise UsageError(
                f"none of the inputs {self.inputs} is the edge", hint="Write _ in its place: [_, low, high]."
            )
        refuse_unread(self.constants, self.inputs)

    def find(self, draft: Draft) -> list[TensorRef] | list[NodeRef]:
        """Returns the tensors, or the nodes beside which the new ones stand."""
        if self.at is not None:
            return draft.tensors(self.at)
        return draft.nodes(self.before or self.after or "")

    def apply(self, draft: Draft) -> None:
        """Inserts a node at each target."""
        by_scope: dict[str, list[TensorRef | NodeRef]] = {}
        refs = self.find(draft)
        if len(refs) > 1 and (self.name or self.to):
            raise UsageError(f"{len(refs)} nodes would have one name", hint="Leave out name and to.")
        for ref in refs:
            by_scope.setdefault(ref.scope.path, []).append(ref)
        if self.readers is not None and len(by_scope) > 1:
            raise UnsupportedError(
                f"with 'readers', a step inserts into one graph, and these are in {len(by_scope)}",
                hint="Write a step for each.",
            )
        readers = draft.nodes(self.readers) if self.readers is not None else None
        constants: list[dict[str, str]] = []
        for path in sorted(by_scope, key=lambda each: -each.count("/")):  # inner first, for outer changes move them
            scope = draft.index.scope_paths[path]
            earlier = {name for each in constants for name in each.values()}
            constants.append({name: _aside(draft, scope, name) if name in earlier else name for name in self.constants})
            self._insert(draft, scope, by_scope[path], readers, constants[-1])

    def _insert(
        self,
        draft: Draft,
        scope: Scope,
        refs: Sequence[TensorRef | NodeRef],
        readers: Sequence[NodeRef] | None,
        constants: Mapping[str, str],
    ) -> None:
        """Inserts all nodes of one graph, which share the constants; ``constants`` says what these are called there."""
        require_known(scope, [name for name in self.inputs if name != _EDGE], self.constants)
        values = {constants[name]: value for name, value in self.constants.items()}
        inserted: dict[int, list[NodeProto]] = {}
        shared = make_constants(draft, scope, values)
        if shared:
            inserted[0] = shared
        names: dict[str, str] = {}
        slots: list[tuple[int, str]] = []
        types: list[ValueInfoProto] = []
        domain, op_type = parse_operator(self.op)
        is_mark = op_type == "Mark" and domain in select.MARK_DOMAINS
        for ref in refs:
            if isinstance(ref, TensorRef):
                edge = ref.name
            else:
                number = self.input if self.before is not None else self.output
                edge = name_at(scope, ref.position, number, inputs=self.before is not None)
            if readers is not None and not any(reads_any(reader, scope, [edge]) for reader in readers):
                raise NotFoundError(f"none of the nodes {self.readers!r} reads {edge!r}")
            hands_out = readers is None and self.before is None and edge in scope.outputs
            source, made = self._ends(draft, scope, edge, hands_out=hands_out)
            at = scope.producers.get(edge, -1) + 1
            inputs = [source if each == _EDGE else constants.get(each, each) for each in self.inputs or [_EDGE]]
            new = make_nodes(draft, scope, self.op, inputs, [made], self.attributes, name=self.name)
            inserted.setdefault(at, []).extend(new)
            if self.before is not None and isinstance(ref, NodeRef):
                slots.append((ref.position, made))
            elif not hands_out:
                names[edge] = made
            if is_mark and not hands_out and not scope.is_function:  # inference does not know that it is the same
                kind = draft.type_of(TensorRef(home_of(scope, edge) or scope, edge))
                types += [make_value_info(made, kind)] if kind is not None and is_complete(kind) else []
            draft.record("node", path_in(scope, new[-1].name), "inserted", after=f"{self.op} on {path_in(scope, edge)}")
        for position, made in slots:
            scope.nodes[position].input[self.input] = made
        if types:
            scope.graph.value_info.extend(types)
        if readers is None:
            draft.replace_uses(scope, names)
        else:
            draft.replace_uses_by(readers, scope, names)
        draft.splice(scope, inserted)
        draft.retype(scope, [name for nodes in inserted.values() for node in nodes for name in node.output])

    def _ends(self, draft: Draft, scope: Scope, edge: str, *, hands_out: bool) -> tuple[str, str]:
        """Returns what a new node reads and makes; an output keeps its name, what made it makes another one now."""
        suffix = parse_operator(self.op)[1]
        if not hands_out:
            if self.to is not None:
                require_free(draft, scope, self.to)
            return edge, self.to or draft.fresh(scope, f"{edge}_{suffix}")
        if edge not in scope.producers:
            raise UnsupportedError(
                f"{edge!r} is an input and an output at once, so nothing can stand between",
                hint="Name the nodes that shall read the new tensor: readers: ...",
            )
        source = draft.fresh(scope, f"{edge}_before_{suffix}")
        rename_made(scope, edge, source)
        return source, edge


@dataclass(frozen=True)
class AddNodes(Operation):
    """Add nodes given as ONNX text; others read what they make by further steps.

    Attributes:
        text: The nodes: ``t = Relu (x)``, one or several.
        to: Path of the body or function that they are added to; by default the main graph.
        constants: Values of inputs that are new constants, as in a build specification.
    """

    word: ClassVar[str] = "add_nodes"
    spelling: ClassVar[str] = "{text}"

    text: str
    to: str = ""
    constants: dict[str, Any] = field(default_factory=dict)

    def apply(self, draft: Draft) -> None:
        """Adds them behind the nodes that they read."""
        scope = _scope(draft, self.to)
        text = f"nodes () => () {{\n{self.text}\n}}"
        body = read_fragment(draft, text, what="the text", lines=self.text.splitlines())
        if not body.node:
            raise UsageError("the text has no node", hint="- add_nodes: {text: t = Relu (x)}")
        refuse_unread(self.constants, names_read(body.node))
        for node in body.node:
            for name in node.output:
                if name:
                    require_free(draft, scope, name)
            draft.import_domain(scope, node.domain)
            draft.record(
                "node", path_in(scope, node.name or next(iter(node.output), "")), "inserted", after=node.op_type
            )
        nodes = [*make_constants(draft, scope, self.constants), *body.node]
        draft.splice(scope, {len(scope.nodes): nodes})


def _aside(draft: Draft, scope: Scope, name: str) -> str:
    """Returns a free name made of a taken one."""
    found = draft.fresh(scope, name)
    draft.taken(scope).discard(found)
    return found


def _scope(draft: Draft, path: str) -> Scope:
    found = draft.index.scope_paths.get(path)
    if found is None:
        hint = did_you_mean(path, draft.index.scope_paths)
        raise NotFoundError(f"there is no body or function {path!r}", hint=hint)
    return found
