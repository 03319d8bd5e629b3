"""Operations on how nodes are wired: insert, delete, replace, duplicate, rewire."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench import select
from onnxbench.conformity import called
from onnxbench.cut import frontier
from onnxbench.draft import require_free
from onnxbench.errors import NotFoundError, RefusedResultError, SpecError, UnsupportedError, UsageError, did_you_mean
from onnxbench.graph import NodeRef, TensorRef, home_of
from onnxbench.modeltext import read, read_functions
from onnxbench.operations._base import (
    Effect,
    NodeOperation,
    Operation,
    TensorOperation,
    operator_name,
    parse_operator,
    schema_of,
)
from onnxbench.operations._new_nodes import make_constants, make_nodes, path_in
from onnxbench.tensortype import is_complete, make_value_info

if TYPE_CHECKING:
    from onnx import FunctionProto, NodeProto, ValueInfoProto

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
        _refuse_unread(self.constants, self.inputs)

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
        _require_known(scope, [name for name in self.inputs if name != _EDGE], self.constants)
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
                edge = _nth(
                    scope, ref.position, self.output if self.before is None else self.input, self.before is not None
                )
            if readers is not None and not any(_reads(reader, scope, [edge]) for reader in readers):
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
        _rename_made(scope, edge, source)
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
        body = _fragment(draft, f"nodes () => () {{\n{self.text}\n}}", what="the text", lines=self.text.splitlines())
        if not body.node:
            raise UsageError("the text has no node", hint="- add_nodes: {text: t = Relu (x)}")
        _refuse_unread(self.constants, _names_read(body.node))
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


@dataclass(frozen=True)
class Delete(NodeOperation):
    """Delete nodes; what read their output reads the input that they passed on.

    Attributes:
        at: Selector of the nodes.
        bypass: Which input takes the place of the output: its number or name, or one for each output by name
            (``{y: x}``); by default the only input that is no constant. ``none``: the readers must be gone, too.
        keep_constants: Leave initializers in the model that only these nodes read.
    """

    word: ClassVar[str] = "delete"
    spelling: ClassVar[str] = "{at}"
    effect: ClassVar[Effect] = "numerics"

    bypass: int | str | dict[str, str] | None = None
    keep_constants: bool = False

    def apply(self, draft: Draft) -> None:
        """Deletes them."""
        by_scope: dict[str, list[int]] = {}
        for ref in self.find(draft):
            by_scope.setdefault(ref.scope.path, []).append(ref.position)
            draft.record("node", ref.path, "deleted", before=operator_name(ref.node.domain, ref.node.op_type))
        for path in sorted(by_scope, key=lambda each: -each.count("/")):  # inner first, for outer changes move them
            self._delete(draft, draft.index.scope_paths[path], by_scope[path])

    def _delete(self, draft: Draft, scope: Scope, positions: list[int]) -> None:
        """Deletes nodes of one graph; chains of them are passed over as a whole."""
        gone = set(positions)
        passed: dict[str, str] = {}
        for position in positions:
            for made in scope.writes[position]:
                if scope.consumers.get(made) or made in scope.outputs:
                    source = self._source(scope, position, made)
                    if source is not None:
                        passed[made] = source
                    elif left := [each for each in scope.consumers.get(made, ()) if each not in gone]:
                        raise RefusedResultError(
                            f"{called(scope, left[0])} reads {made!r}, which {called(scope, position)} made",
                            hint="Delete what reads it in the same step, or say by bypass: what takes its place.",
                        )
        passed = {made: _followed(passed, made) for made in passed}
        kept: dict[int, list[NodeProto]] = {}
        renamed: dict[str, str] = {}
        for made in [name for name in scope.outputs if name in passed]:
            source = passed[made]
            maker = scope.producers.get(source)
            if maker is not None and maker not in gone and source not in scope.outputs and source not in renamed:
                renamed[source] = made
            else:  # what the model is given, or hands out already, needs a node to have another name
                identity = make_nodes(draft, scope, "Identity", [source], [made])
                kept.setdefault(scope.producers[made], []).extend(identity)
                draft.record(
                    "node", path_in(scope, identity[0].name), "inserted", after=f"Identity, for output {made!r}"
                )
        for source, made in renamed.items():
            _rename_made(scope, source, made)
            draft.record("tensor", path_in(scope, source), "renamed", before=source, after=made)
        draft.forget(scope, renamed)
        readers = set(range(len(scope.nodes))) - gone
        names = {made: renamed.get(source, source) for made, source in passed.items() if made not in scope.outputs}
        draft.replace_uses(scope, {**names, **renamed}, readers=readers)
        dead = {name for position in gone for name in scope.writes[position]} - set(scope.outputs)
        draft.forget(scope, dead)
        constants = set() if self.keep_constants else _orphans(scope, gone)
        draft.splice(scope, kept, removed=gone)
        if constants:
            draft.remove_initializers(scope, constants)
            for name in sorted(constants):
                draft.record("weight", path_in(scope, name), "removed", before="nothing reads it any more")
        fresh = draft.index.scope_paths[scope.path]
        draft.retype(fresh, [name for name in (*names.values(), *passed) if fresh.defines(name)])

    def _source(self, scope: Scope, position: int, made: str) -> str | None:
        """Returns the tensor that takes the place of an output; None if nothing does, and nothing may."""
        node = scope.nodes[position]
        bypass = self.bypass
        wanted: int | str | None = bypass.get(made) if isinstance(bypass, dict) else bypass
        if wanted == "none":
            return None
        given: list[str] = [name for name in node.input if name]
        label = called(scope, position)
        if wanted is not None:
            return _input_named(scope, position, wanted)
        flowing = [name for name in dict.fromkeys(given) if not _is_constant(scope, name)] or given
        if len(flowing) == 1 and len(scope.writes[position]) == 1:
            return flowing[0]
        choices = [f"{number}: {name}" for number, name in enumerate(node.input) if name]
        why = "has several inputs" if len(flowing) > 1 else "has several outputs" if flowing else "has no input"
        raise RefusedResultError(
            f"{label} {why}, so what takes the place of {made!r} must be said",
            hint=f"bypass: 0, or bypass: {{{made}: NAME}}; bypass: none, if nothing needs it.",
            details=choices,
        )


@dataclass(frozen=True)
class Replace(NodeOperation):
    """Replace the nodes that a selector names, all together, by one node or by a fragment of ONNX text.

    Attributes:
        at: Selector of the nodes.
        op: The operator of the one node: ``Gelu``, ``com.microsoft::FusedMatMul``.
        text: Instead, a fragment: ``f (x, w) => (y) { t = MatMul (x, w) y = Relu (t) }``. Its inputs and outputs stand
            for those of the replaced nodes, by name where they have the same, else in order.
        inputs: The tensors that go in; by default those that enter the nodes, weights left out for ``op``.
        outputs: The tensors that come out; by default those that leave the nodes.
        attributes: Attributes of the one node, as in a build specification.
        constants: Values of inputs that are new constants, as in a build specification.
        name: The name of the one node.
        keep_constants: Leave initializers in the model that only these nodes read.
    """

    word: ClassVar[str] = "replace"
    spelling: ClassVar[str] = "{at}={op}"
    expects: ClassVar[str] = "all"
    effect: ClassVar[Effect] = "numerics"

    op: str | None = None
    text: str | None = None
    inputs: list[str] | None = None
    outputs: list[str] | None = None
    attributes: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    keep_constants: bool = False

    def __post_init__(self) -> None:
        if (self.op is None) == (self.text is None):
            raise UsageError("replace takes an op or a text", hint="- replace: {at: scope:gelu, op: Gelu}")
        if self.op is not None:
            _refuse_unread(self.constants, self.inputs or ())

    def apply(self, draft: Draft) -> None:
        """Replaces them."""
        refs = self.find(draft)
        scope = refs[0].scope
        if any(ref.scope is not scope for ref in refs):
            listed = sorted({ref.scope.path or "the main graph" for ref in refs})
            raise UnsupportedError(
                f"the nodes lie in several graphs: {', '.join(listed)}", hint="Replace those of one."
            )
        inside = {ref.position for ref in refs}
        entering, leaving = frontier(scope, inside)
        outputs = self.outputs if self.outputs is not None else leaving
        _require_known(scope, self.inputs or (), self.constants)
        unmade = [name for name in leaving if name not in outputs and _is_read(scope, name, inside)]
        if unmade:
            raise RefusedResultError(
                f"{unmade[0]!r} is read by others, and the replacement does not make it",
                hint=f"The nodes hand out {', '.join(map(repr, leaving))}.",
            )
        inputs = self.inputs if self.inputs is not None else entering
        if self.op is not None:
            nodes = make_nodes(draft, scope, self.op, inputs, outputs, self.attributes, self.constants, self.name)
        else:
            inputs = inputs if self.inputs is not None else [*entering, *_weights_read(scope, inside)]
            nodes = [
                *make_constants(draft, scope, self.constants), *self._fragment_nodes(draft, scope, inputs, outputs)
            ]  # fmt: skip
        for ref in refs:
            draft.record("node", ref.path, "replaced", before=operator_name(ref.node.domain, ref.node.op_type))
        for node in nodes:
            draft.record("node", path_in(scope, node.name or node.output[0]), "inserted", after=node.op_type)
        orphans = set() if self.keep_constants else _orphans(scope, inside)
        orphans -= {name for node in nodes for name in node.input}
        inner = {name for position in inside for name in scope.writes[position]} - set(outputs)
        draft.forget(scope, inner)
        draft.splice(scope, {max(inside) + 1: nodes}, removed=inside)
        draft.remove_initializers(scope, orphans)
        draft.retype(scope, outputs)

    def _fragment_nodes(
        self, draft: Draft, scope: Scope, inputs: Sequence[str], outputs: Sequence[str]
    ) -> list[NodeProto]:
        fragment = _fragment(draft, self.text or "")
        _refuse_unread(self.constants, _names_read(fragment.node))
        names = _bound(fragment.input, inputs, "input") | _bound(fragment.output, outputs, "output")
        for node in fragment.node:
            for made in node.output:
                if made and made not in names:
                    names[made] = draft.fresh(scope, made)
            draft.import_domain(scope, node.domain)
        allowed = {*names, *self.constants}
        for node in fragment.node:
            for number, read_name in enumerate(node.input):
                if read_name and read_name not in allowed and home_of(scope, read_name) is None:
                    hint = did_you_mean(read_name, allowed)
                    raise NotFoundError(f"the fragment reads {read_name!r}, which nothing makes", hint=hint)
                node.input[number] = names.get(read_name, read_name)
            for number, made in enumerate(node.output):
                node.output[number] = names.get(made, made)
            if node.name:
                node.name = draft.fresh_node(scope, node.name)
        return list(fragment.node)


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
            unread = [each.path for each in wanted if not _reads(each, scope, names)]
            if unread:
                raise RefusedResultError(
                    f"node {unread[0]!r} does not read what {ref.path!r} makes",
                    hint=f"onnxbench find MODEL {_quoted(next(iter(names), ref.path))} lists the nodes that do.",
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
            number = _input_number(draft, ref, self.input)
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
                strange = [each.path for each in readers if not _reads(each, ref.scope, [ref.name])]
                if strange:
                    raise RefusedResultError(
                        f"node {strange[0]!r} does not read {ref.path!r}",
                        hint=f"onnxbench find MODEL {_quoted(ref.path)} lists the nodes that do.",
                    )
            elif readers:
                upstream = select.select(draft.index, f"upstream({_quoted(new.path)})").as_nodes()
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


def _reads(reader: NodeRef, scope: Scope, names: Iterable[str]) -> bool:
    """Tells whether a node, of a graph or of a body within, reads one of the graph's tensors."""
    read = reader.scope.reads[reader.position]
    return any(name in read and home_of(reader.scope, name) is scope for name in names)


def _aside(draft: Draft, scope: Scope, name: str) -> str:
    """Returns a free name made of a taken one."""
    found = draft.fresh(scope, name)
    draft.taken(scope).discard(found)
    return found


def _quoted(name: str) -> str:
    return f'"{name}"' if '"' not in name else f"'{name}'"


def _scope(draft: Draft, path: str) -> Scope:
    found = draft.index.scope_paths.get(path)
    if found is None:
        hint = did_you_mean(path, draft.index.scope_paths)
        raise NotFoundError(f"there is no body or function {path!r}", hint=hint)
    return found


def _nth(scope: Scope, position: int, number: int, inputs: bool) -> str:
    """Returns the name of an input or output of a node."""
    names = scope.nodes[position].input if inputs else scope.nodes[position].output
    if not 0 <= number < len(names) or not names[number]:
        what = "input" if inputs else "output"
        raise NotFoundError(f"{called(scope, position)} has no {what} number {number}")
    return str(names[number])


def _is_constant(scope: Scope, name: str) -> bool:
    home = home_of(scope, name)
    if home is None:
        return False
    maker = home.producers.get(name)
    if maker is not None:
        return home.nodes[maker].op_type == "Constant" and not home.nodes[maker].domain
    return name in home.constants


def _is_read(scope: Scope, name: str, inside: set[int]) -> bool:
    return name in scope.outputs or any(reader not in inside for reader in scope.consumers.get(name, ()))


def _weights_read(scope: Scope, inside: Iterable[int]) -> list[str]:
    return list(dict.fromkeys(n for p in sorted(inside) for n in scope.reads[p] if n in scope.constants))


def _followed(passed: Mapping[str, str], name: str) -> str:
    """Returns the tensor at the end of a chain of nodes that are passed over."""
    seen = set()
    while name in passed and name not in seen:
        seen.add(name)
        name = passed[name]
    return name


def _rename_made(scope: Scope, old: str, new: str) -> None:
    """Renames a tensor at the node that makes it, and nowhere else."""
    node = scope.nodes[scope.producers[old]]
    for number, name in enumerate(node.output):
        if name == old:
            node.output[number] = new


def _input_named(scope: Scope, position: int, wanted: int | str) -> str:
    names = [str(name) for name in scope.nodes[position].input]
    if isinstance(wanted, int) or wanted.isdigit():
        return _nth(scope, position, int(wanted), True)
    if wanted not in names:
        hint = did_you_mean(wanted, names) or f"It reads {', '.join(filter(None, names))}."
        raise NotFoundError(f"{called(scope, position)} does not read {wanted!r}", hint=hint)
    return wanted


def _input_number(draft: Draft, ref: NodeRef, wanted: int | str) -> int:
    schema = schema_of(draft, ref)
    formals = [formal.name for formal in schema.inputs] if schema is not None else []
    most = schema.max_input if schema is not None else 1 << 30
    if isinstance(wanted, int) or wanted.isdigit():
        number = int(wanted)
    elif wanted in list(ref.node.input):
        number = list(ref.node.input).index(wanted)
    elif wanted in formals:
        number = formals.index(wanted)
    else:
        names = [*formals, *ref.node.input]
        hint = did_you_mean(wanted, names) or f"It has: {', '.join(filter(None, names))}."
        raise NotFoundError(f"node {ref.path} ({ref.node.op_type}) has no input {wanted!r}", hint=hint)
    if not 0 <= number < most:
        raise NotFoundError(f"node {ref.path} ({ref.node.op_type}) has no input number {number}")
    return number


def _require_known(scope: Scope, names: Iterable[str], constants: Mapping[str, Any]) -> None:
    for name in names:
        if name and name not in constants and home_of(scope, name) is None:
            hint = did_you_mean(name, [*constants, *scope.tensor_names()])
            raise NotFoundError(f"there is no tensor {name!r}", hint=hint)


def _refuse_unread(constants: Mapping[str, Any], read_names: Iterable[str]) -> None:
    """Raises UsageError if a constant is given that nothing would read."""
    known = list(dict.fromkeys(read_names))
    for name in constants:
        if name not in known:
            said = f"What is read: {', '.join(known)}." if known else f"inputs: [_, {name}] reads it."
            raise UsageError(f"nothing reads the constant {name!r}", hint=did_you_mean(name, known) or said)


def _names_read(nodes: Iterable[NodeProto]) -> set[str]:
    """Returns the names that nodes read, in bodies too."""
    found: set[str] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        found.update(node.input)
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                pending += body.node
                found.update(info.name for info in body.output)
    return found - {""}


def _orphans(scope: Scope, gone: set[int]) -> set[str]:
    """Returns the initializers that only these nodes read."""
    read_names = {name for position in gone for name in scope.reads[position] if name in scope.constants}
    return {name for name in read_names if gone.issuperset(scope.consumers[name]) and name not in scope.outputs}


def _fragment(
    draft: Draft, text: str, *, what: str = "the fragment", lines: Sequence[str] | None = None
) -> FunctionProto:
    """Returns a fragment of ONNX text, ``f (x) => (y) { y = Relu (x) }``, as a function.

    Args:
        draft: What it is for.
        text: The fragment.
        what: What errors call it.
        lines: What the user wrote of it, if a line was put before that.
    """
    imports = ", ".join(f'"{o.domain}": {o.version}' for o in draft.model.proto.opset_import)
    head = (
        f'<ir_version: 10, opset_import: [{imports}]> g () => () {{ }} <domain: "fragment", opset_import: [{imports}]>'
    )
    # its mistakes are told without what is put before it here
    read_functions(text, source=what, line=1 if lines is None else 0, context=lines or ())
    model = read(f"{head}\n{text}", source=what, folder=draft.folder, allow_outside=draft.allow_outside).model
    functions = model.proto.functions
    if len(functions) != 1:
        raise SpecError(f"the fragment is {len(functions)} functions, and one is wanted", hint="f (x) => (y) { ... }")
    found: FunctionProto = functions[0]
    return found


def _bound(formals: Iterable[str], actuals: Sequence[str], what: str) -> dict[str, str]:
    """Returns the model's names for those of a fragment: the same where they are, else in order."""
    formal = list(formals)
    names = {name: name for name in formal if name in actuals}
    rest = [name for name in actuals if name not in names]
    open_names = [name for name in formal if name not in names]
    if len(open_names) > len(rest) or (what == "output" and len(open_names) != len(rest)):
        raise RefusedResultError(
            f"the fragment has {len(formal)} {what}s ({', '.join(formal)}), and the nodes have {len(actuals)}",
            hint=f"They are: {', '.join(actuals) or 'none'}. {what}s: [...] names them, in order.",
        )
    return names | dict(zip(open_names, rest, strict=False))


def _copy_infos(scope: Scope, names: Mapping[str, str]) -> None:
    """States of the copies of tensors what is stated of the tensors."""
    infos = scope.graph.value_info if scope.is_function else (*scope.graph.value_info, *scope.graph.output)
    for info in list(infos):
        if info.name in names:
            copy = scope.graph.value_info.add()
            copy.CopyFrom(info)
            copy.name = names[info.name]
