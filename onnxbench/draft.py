"""A model while it is being edited: a copy of its structure, and the primitive changes that operations are made of.

Every operation of a recipe works on a ``Draft``. The primitives know what a single protobuf field does not: that a
tensor of the main graph is also read inside bodies, that a name may stand in value infos and quantization
annotations, that a type which was stated once may no longer hold below a change. What they do not touch stays as it
was, unknown fields included, for the messages are changed in place.

What was changed is recorded (``changes``), so that an edit can be shown before it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onnxbench import restating, select
from onnxbench.errors import NotFoundError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex, NodeRef, Scope, TensorRef, home_of, root_of, tree_of
from onnxbench.handover import correct_sizes
from onnxbench.inference import TypeFinder, TypeSource
from onnxbench.messages import copy_of, delete_named
from onnxbench.model import Model
from onnxbench.schemas import default_version, find_schema, plain_domain
from onnxbench.tensortype import format_type
from onnxbench.writer import SaveOptions

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

T = TypeVar("T")
_REBUILD_FROM = 16
"""So many insertions or removals at once are cheaper done by writing the list of nodes anew."""


@dataclass(frozen=True, slots=True)
class Change:
    """One thing that an edit did.

    Attributes:
        kind: What it was done to: ``node``, ``tensor``, ``input``, ``output``, ``weight``, ``function`` or ``model``.
        where: Its name, with the path of its graph (``If_3/then/x``); empty for the model itself.
        what: What was done: ``inserted``, ``removed``, ``renamed``, or what changed: ``op_type``, ``attribute pads``.
        before: What it was, in words; None where there was nothing.
        after: What it is now; None where there is nothing.
    """

    kind: str
    where: str
    what: str
    before: str | None = None
    after: str | None = None

    def sentence(self) -> str:
        """The change in one line."""
        subject = f"{self.kind} {self.where}" if self.where else self.kind
        if self.before is not None and self.after is not None:
            return f"{subject}: {self.what} {self.before or repr('')} -> {self.after or repr('')}"
        said = self.after if self.after is not None else self.before
        return f"{subject}: {self.what}{f' ({said})' if said else ''}"


@dataclass(slots=True)
class Draft:
    """A working copy of a model.

    Attributes:
        model: The copy. Operations change ``model.proto`` through the methods here, or directly, and then say
            ``touch()``.
        folder: What files that operations name are relative to.
        allow_outside: Whether such files may lie outside of it.
        sources: Further places to ask for types (runtimes), dearest last.
        changes: What was done so far.
        notes: What a user should know beyond that.
        renamed: New names of the main graph's former inputs and outputs, by their old ones.
        saving: How the result should be saved, where an operation said so; what the user says goes before it.
        awaited: Tensors that were added for later steps to read, by path of their graph and name, with what their
            change is about.
    """

    model: Model
    origin: Model
    folder: Path = field(default_factory=Path.cwd)
    allow_outside: bool = False
    sources: Sequence[TypeSource] = ()
    changes: list[Change] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    saving: SaveOptions | None = None
    awaited: dict[tuple[str, str], str] = field(default_factory=dict)
    _index: GraphIndex | None = None
    _finder: TypeFinder | None = None
    _names: dict[int, set[str]] = field(default_factory=dict)
    _node_names: dict[str, set[str]] = field(default_factory=dict)
    _found: dict[int, Any] = field(default_factory=dict)
    _known_operators: dict[tuple[str, str, str, str], bool] = field(default_factory=dict)
    _stale: dict[tuple[str, str], None] = field(default_factory=dict)
    _strictly: bool = False
    _same_rank: bool = True

    @classmethod
    def of(
        cls,
        model: Model,
        *,
        folder: Path | None = None,
        allow_outside: bool = False,
        sources: Sequence[TypeSource] = (),
    ) -> Draft:
        """Returns a draft of a model, which itself stays as it is."""
        proto = copy_of(model.proto)
        return cls(model.derive(proto), model, folder or Path.cwd(), allow_outside, sources)

    def snapshot(self) -> tuple[ModelProto, int, int, dict[str, str], SaveOptions | None]:
        """Returns the state of the draft, for ``restore``."""
        proto = copy_of(self.model.proto)
        return proto, len(self.changes), len(self.notes), dict(self.renamed), self.saving

    def restore(self, state: tuple[ModelProto, int, int, dict[str, str], SaveOptions | None]) -> None:
        """Takes the draft back to a state that it had."""
        proto, changes, notes, renamed, self.saving = state
        self.model = self.model.derive(proto)
        del self.changes[changes:]
        del self.notes[notes:]
        self.renamed = renamed
        self.touch()

    # -- looking ------------------------------------------------------------------------------------------------

    @property
    def index(self) -> GraphIndex:
        """The index of the model as it is now."""
        if self._index is None:
            self._index = GraphIndex(self.model.proto)
        return self._index

    @property
    def main(self) -> Scope:
        """The main graph as it is now."""
        return self.index.main

    def touch(self) -> None:
        """Says that the model was changed: the index is made anew when it is next asked for."""
        self._index = self._finder = None
        self._names.clear()
        self._node_names.clear()
        self._found.clear()
        self._known_operators.clear()
        self.model.look_again()

    def once(self, asker: object, find: Callable[[], T]) -> T:
        """Returns what ``find`` returns, which is called once for an asker as long as the model does not change."""
        if id(asker) not in self._found:
            self._found[id(asker)] = find()
        found: T = self._found[id(asker)]
        return found

    def opset(self, scope: Scope | None = None, domain: str = "") -> int:
        """Returns the version of a domain that a graph imports; 0 if it imports none."""
        holder = self.model.proto if scope is None or not root_of(scope).is_function else root_of(scope).graph
        versions: dict[str, int] = {plain_domain(o.domain): o.version for o in holder.opset_import}
        return versions.get(plain_domain(domain), 0)

    def type_of(self, ref: TensorRef) -> TypeProto | None:
        """Returns the type of a tensor: stated, inferred, or told by ``sources``; None if nothing tells."""
        if self._finder is None:
            self._finder = TypeFinder(self.model, self.index, self.sources)
        return self._finder.find(ref.scope, [ref.name]).get(ref.name)

    def initializer(self, ref: TensorRef) -> TensorProto | None:
        """Returns the initializer of this name in the graph that holds the tensor, or None."""
        home = home_of(ref.scope, ref.name)
        if home is None or home.is_function or ref.name not in home.constants:
            return None
        return next((tensor for tensor in home.graph.initializer if tensor.name == ref.name), None)

    def nodes(self, selector: str) -> list[NodeRef]:
        """Returns the nodes that a selector stands for (see ``onnxbench.select``)."""
        _require_selector(selector, "op:*")
        try:
            return select.nodes(self.index, [selector], folder=self.folder)
        except NotFoundError as error:
            if error.message.endswith("matches no tensor of the model"):
                error.message = error.message.replace("no tensor", "no node and no tensor")
                error.args = (error.message,)
                if error.hint and "--tensors" in error.hint:
                    error.hint = (
                        "node:NAME, node:#3 and op:TYPE name nodes; 'onnxbench inspect MODEL --nodes' lists them."
                    )
            raise

    def tensors(self, selector: str) -> list[TensorRef]:
        """Returns the tensors that a selector stands for."""
        _require_selector(selector, "*")
        return select.tensors(self.index, [selector], folder=self.folder)

    def tensor(self, selector: str) -> TensorRef:
        """Returns the one tensor that a selector stands for.

        Raises:
            NotFoundError: It stands for none, or for several.
        """
        found = self.tensors(selector)
        if len(found) != 1:
            listed = ", ".join(repr(ref.path) for ref in found[:4])
            raise NotFoundError(f"{selector!r} stands for {len(found)} tensors, and one is wanted: {listed}")
        return found[0]

    # -- names --------------------------------------------------------------------------------------------------

    def taken(self, scope: Scope) -> set[str]:
        """Returns every tensor name in the main graph or function around a graph, bodies included."""
        top = root_of(scope)
        names = self._names.get(id(top))
        if names is None:
            names = self._names[id(top)] = {""}
            for inner in tree_of(top):
                names.update(inner.inputs, inner.constants, inner.producers, inner.captures)
        return names

    def fresh(self, scope: Scope, base: str) -> str:
        """Returns a tensor name made from ``base`` that nothing around a graph has, and keeps it reserved."""
        return distinct(base, self.taken(scope))

    def fresh_node(self, scope: Scope, base: str) -> str:
        """Returns a node name made from ``base`` that no node of a graph has, and keeps it reserved."""
        names = self._node_names.get(scope.path)
        if names is None:
            names = self._node_names[scope.path] = {node.name for node in scope.nodes}
        return distinct(base, names)

    # -- changing -----------------------------------------------------------------------------------------------

    def record(
        self, kind: str, where: str, what: str, *, before: str | None = None, after: str | None = None
    ) -> None:  # fmt: skip
        """Records a change."""
        self.changes.append(Change(kind, where, what, before, after))

    def await_reader(self, scope: Scope, name: str, where: str) -> None:
        """Says that a tensor was added for later steps to read, and what its change is about (``Change.where``)."""
        self.awaited[scope.path, name] = where

    def unread(self) -> set[str]:
        """Returns what changes are about that added tensors which nothing reads."""
        scopes = self.index.scope_paths
        return {
            where
            for (path, name), where in self.awaited.items()
            if path in scopes and scopes[path].defines(name)
            and name not in scopes[path].consumers and name not in scopes[path].outputs
        }  # fmt: skip

    def splice(
        self, scope: Scope, inserted: Mapping[int, Sequence[NodeProto]] | None = None, removed: Collection[int] = ()
    ) -> None:
        """Inserts and removes nodes of a graph, all positions counted before the change.

        Args:
            scope: The graph.
            inserted: New nodes by the position of the node that they stand before; the number of nodes means the end.
            removed: Positions of nodes to remove.
        """
        inserted = inserted or {}
        nodes = scope.graph.node
        if len(removed) + len(inserted) < _REBUILD_FROM:
            gone = set(removed)
            for position in sorted({*inserted, *gone}, reverse=True):
                if position in gone:
                    del nodes[position]
                for number, node in enumerate(inserted.get(position, ())):
                    nodes.insert(position + number, node)
        else:
            gone = set(removed)
            kept: list[NodeProto] = []
            for position in range(len(scope.nodes) + 1):
                kept.extend(inserted.get(position, ()))
                if position < len(scope.nodes) and position not in gone:
                    kept.append(copy_of(scope.nodes[position]))
            del nodes[:]
            nodes.extend(kept)
        self.touch()

    def rename(self, scope: Scope, names: Mapping[str, str]) -> None:
        """Renames tensors where they are defined and wherever they are read, in bodies too.

        Swaps (a to b and b to a) and chains are done as one step. The caller sees to it that new names are free.

        Args:
            scope: The graph that defines the tensors.
            names: New names by old ones.
        """
        graph = scope.graph
        for path, name in [key for key in self.awaited if key[0] == scope.path and key[1] in names]:
            self.awaited[path, names[name]] = self.awaited.pop((path, name))
        if scope.is_function:
            for names_of in (graph.input, graph.output):
                for position, name in enumerate(names_of):
                    if name in names:
                        names_of[position] = names[name]
        else:
            for info in (*graph.input, *graph.output):
                if info.name in names:
                    if scope is self.main:
                        self._follow(info.name, names[info.name])
                    info.name = names[info.name]
            for tensor in graph.initializer:
                if tensor.name in names:
                    tensor.name = names[tensor.name]
            for sparse in graph.sparse_initializer:
                if sparse.values.name in names:
                    sparse.values.name = names[sparse.values.name]
        writers: Sequence[int] = range(len(scope.nodes))
        readers: Sequence[int] | None = None
        index = self._index
        is_current = index is not None and index.scope_paths.get(scope.path) is scope
        if is_current:
            writers = [at for at, written in enumerate(scope.writes) if not names.keys().isdisjoint(written)]
            readers = [at for at, read in enumerate(scope.reads) if not names.keys().isdisjoint(read)]
        for at in writers:
            node = scope.nodes[at]
            for position, name in enumerate(node.output):
                if name in names:
                    node.output[position] = names[name]
        for info in graph.value_info:
            if info.name in names:
                info.name = names[info.name]
        if not scope.is_function:
            rename_annotations(graph, names)
        self._replace_reads(scope, names, readers=readers)
        self.touch()
        if is_current and readers is not None and scope.parent is None and not scope.bodies:
            scope.reread({*writers, *readers})
            self._index = index

    def _follow(self, old: str, new: str) -> None:
        first = next((before for before, now in self.renamed.items() if now == old), old)
        self.renamed[first] = new

    def replace_uses(self, scope: Scope, names: Mapping[str, str], *, readers: Collection[int] | None = None) -> int:
        """Makes the readers of tensors read others, in bodies too, and returns how many nodes changed.

        Outputs of bodies within ``scope`` that hand such a tensor on change as well. Those of ``scope`` itself do not:
        they have names that callers know.

        Args:
            scope: The graph that sees the tensors.
            names: What is read then, by what is read now.
            readers: Positions of the nodes of ``scope`` that change (with their bodies); None: all.
        """
        changed = self._replace_reads(scope, names, readers=readers)
        self.touch()
        return changed

    def replace_uses_by(self, readers: Iterable[NodeRef], scope: Scope, names: Mapping[str, str]) -> int:
        """Makes certain nodes read other tensors, with their bodies, and returns how many nodes changed.

        Args:
            readers: The nodes: of ``scope``, or of bodies within.
            scope: The graph that has the tensors.
            names: What is read then, by what is read now.
        """
        changed = 0
        by_scope: dict[Scope, list[int]] = {}
        for reader in readers:
            by_scope.setdefault(reader.scope, []).append(reader.position)
        for inner, positions in by_scope.items():
            wanted = {old: new for old, new in names.items() if home_of(inner, old) is scope}
            changed += self._replace_reads(inner, wanted, readers=positions) if wanted else 0
        self.touch()
        return changed

    def _replace_reads(self, scope: Scope, names: Mapping[str, str], *, readers: Collection[int] | None = None) -> int:
        changed = 0
        pending: list[tuple[Scope, Mapping[str, str], Iterable[int]]] = [
            (scope, names, range(len(scope.nodes)) if readers is None else readers)
        ]
        while pending:
            inner, wanted, positions = pending.pop()
            if inner is not scope:
                wanted = {old: new for old, new in wanted.items() if not inner.defines(old)}
                if not wanted:
                    continue
                for info in inner.graph.output:
                    if info.name in wanted:
                        info.name = wanted[info.name]
                rename_annotations(inner.graph, wanted)
            for position in positions:
                node = inner.nodes[position]
                touched = False
                for number, name in enumerate(node.input):
                    if name in wanted:
                        node.input[number] = wanted[name]
                        touched = True
                changed += touched
                pending += [
                    (body, wanted, range(len(body.nodes)))
                    for body in inner.bodies.get(position, ())
                    if not wanted.keys().isdisjoint(body.captures)
                ]
        return changed

    def import_domain(self, scope: Scope, domain: str, version: int | None = None) -> None:
        """Imports a domain into the model or function around a graph, if it does not import it yet.

        Args:
            scope: The graph.
            domain: The domain.
            version: Its version; by default the one that the model imports, or the domain's usual one.
        """
        if self.opset(scope, domain):
            return
        top = root_of(scope)
        holder = top.graph if top.is_function else self.model.proto
        version = version or self.opset(None, domain) or default_version(domain)
        holder.opset_import.add(domain=domain, version=version)
        where = top.path if top.is_function else ""
        self.record(
            "function" if where else "model", where, "opset import added", after=f"{domain or 'ai.onnx'} {version}"
        )
        if where and not self.opset(None, domain):
            self.import_domain(self.main, domain, version)

    def unused_imports(self) -> list[str]:
        """Returns the domains that the model imports and none of its nodes outside of functions is of, as spelled."""
        used = {plain_domain(node.domain) for scope in tree_of(self.main) for node in scope.nodes}
        return [o.domain for o in self.model.proto.opset_import if plain_domain(o.domain) not in used]

    def remove_import(self, domain: str) -> None:
        """Removes the import of a domain from the model."""
        imports = self.model.proto.opset_import
        for position in reversed(range(len(imports))):
            if imports[position].domain == domain:
                before = f"{domain or 'ai.onnx'} {imports[position].version}"
                self.record("model", "", "opset import removed", before=before)
                del imports[position]

    def remove_initializers(self, scope: Scope, names: Collection[str]) -> None:
        """Removes initializers of a graph, with the inputs that they are defaults of, and what is said of them."""
        if scope.is_function:  # which has none
            return
        graph = scope.graph
        for repeated in (graph.initializer, graph.input, graph.value_info):
            delete_named(repeated, names)
        delete_named(graph.sparse_initializer, names, by="values.name")
        self.touch()

    def forget(self, scope: Scope, names: Iterable[str], *, annotations: bool = True) -> None:
        """Removes value infos, and unless told otherwise quantization annotations, of tensors of a graph."""
        gone = set(names)
        graph = scope.graph
        delete_named(graph.value_info, gone)
        if annotations and not scope.is_function:
            delete_named(graph.quantization_annotation, gone, by="tensor_name")

    # -- types --------------------------------------------------------------------------------------------------

    def retype(self, scope: Scope, names: Iterable[str], *, strictly: bool = False, same_rank: bool = False) -> None:
        """Says that the types of these tensors, and of all that depends on them, may have changed.

        ``refresh_types`` then finds them anew. An operation says so after its last change to the nodes, for ``scope``
        is found again by its path.

        Args:
            scope: The graph.
            names: Its tensors.
            strictly: Believe no stated size any more, not even those that inference could not tell before the edit
                either. For edits that change sizes, as that of a batch.
            same_rank: No tensor has another number of dimensions than before. Outputs whose type nothing tells keep
                what they said of it then, with ``strictly`` all but the sizes.
        """
        self._stale.update(((scope.path, name), None) for name in names)
        self._strictly |= strictly
        self._same_rank &= same_rank

    def refresh_types(self) -> None:
        """Finds the types anew that ``retype`` called into question, and states them where they were stated.

        Names of dimensions stay where the new size is unknown. So do sizes that inference could not tell before the
        edit either, unless ``strictly`` was said. A value info that nothing can tell the type of is removed. An
        output keeps the element type that it said if inference finds none. What an operator makes that onnx does
        not know keeps the type that was stated: nothing else could tell it. Sizes that bodies state of their inputs
        are opened where they are given others now.
        """
        if not self._stale:
            return
        scopes = self.index.scope_paths
        strictly, same_rank = self._strictly, self._same_rank
        seeds = [(scopes[path], name) for path, name in self._stale if path in scopes]
        affected = restating.downstream(
            seeds, stops=lambda scope, name: not strictly and self._is_opaque(scope, name), calls_of=self._calls_of
        )
        self._stale.clear()
        self._strictly, self._same_rank = False, True
        for scope, info, before in correct_sizes(
            self.model, self.index, affected, before=self.origin, strictly=strictly, opset=self.opset
        ):
            where = TensorRef(scope, info.name).path
            self.record("tensor", where, "type", before=format_type(before), after=format_type(info.type))
        said: list[restating.Said] = []
        for scope, names in affected.items():
            if scope.is_function:
                self.forget(scope, names)
                continue
            said += restating.withdraw(scope, names)
        changed = restating.restate(
            said,
            model=self.model,
            origin=self.origin,
            finder=TypeFinder(self.model, self.index, self.sources),
            strictly=strictly,
            same_rank=same_rank,
        )
        for name, was, now in changed:
            self.record("output", name, "type", before=was, after=now)
        self._finder = None

    def _calls_of(self, function: Scope) -> list[NodeRef]:
        """Returns the nodes that call a local function."""

        def find() -> dict[str, list[NodeRef]]:
            calls: dict[str, list[NodeRef]] = {}
            for ref in self.index.nodes():
                called = self.index.function_of(ref.node)
                if called is not None:
                    calls.setdefault(called.path, []).append(ref)
            return calls

        return self.once(Draft._calls_of, find).get(function.path, [])

    def _is_opaque(self, scope: Scope, name: str) -> bool:
        """Tells whether a tensor is made by an operator whose types inference cannot know."""
        position = scope.producers.get(name)
        if position is None:
            return False
        node = scope.nodes[position]
        key = root_of(scope).path, node.domain, node.op_type, node.overload
        known = self._known_operators.get(key)
        if known is None:
            version = self.opset(scope, node.domain)
            called = self.index.function_of(node)
            known = called is not None or bool(version and find_schema(node.domain, node.op_type, version))
            self._known_operators[key] = known
        return not known


def _require_selector(selector: str, everything: str) -> None:
    """Raises UsageError if a selector is empty, as one of a variable without a value is."""
    if not selector.strip():
        raise UsageError("the selector is empty", hint=f"{everything!r} stands for all.")


def rename_annotations(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Renames tensors in the quantization annotations of a graph."""
    for annotation in graph.quantization_annotation:
        if annotation.tensor_name in names:
            annotation.tensor_name = names[annotation.tensor_name]
        for entry in annotation.quant_parameter_tensor_names:
            if entry.value in names:
                entry.value = names[entry.value]


def distinct(base: str, taken: set[str]) -> str:
    """Returns a name made from ``base`` that is not taken (``base``, ``base_1``, ...), and keeps it reserved."""
    name, number = base, 1
    while name in taken:
        name, number = f"{base}_{number}", number + 1
    taken.add(name)
    return name


def rename_made(scope: Scope, old: str, new: str) -> None:
    """Renames a tensor at the node that makes it, and nowhere else."""
    node = scope.nodes[scope.producers[old]]
    for number, name in enumerate(node.output):
        if name == old:
            node.output[number] = new


def require_free(draft: Draft, scope: Scope, name: str) -> None:
    """Raises RefusedResultError if a tensor name is taken around a graph already."""
    if not name:
        raise RefusedResultError("a tensor needs a name")
    if name in draft.taken(scope):
        home = home_of(scope, name)
        where = f" in {home.path}" if home is not None and home.path else ""
        raise RefusedResultError(f"there is a tensor {name!r} already{where}", hint="Choose another name.")


def require_dense(draft: Draft, ref: TensorRef) -> TensorProto:
    """Returns the dense initializer that a tensor is.

    Raises:
        UnsupportedError: It is a sparse one.
        NotFoundError: It is none.
    """
    tensor = draft.initializer(ref)
    if tensor is not None:
        return tensor
    home = home_of(ref.scope, ref.name)
    if home is not None and ref.name in home.constants:
        raise UnsupportedError(f"{ref.path!r} is a sparse initializer, and this operation changes dense ones")
    raise NotFoundError(f"{ref.path!r} is no initializer", hint="weight:* lists them: onnxbench find MODEL 'weight:*'")
