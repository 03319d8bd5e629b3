"""Operations that take nodes away: delete them, or put others in their place."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from onnxbench.conformity import called
from onnxbench.cut import frontier
from onnxbench.draft import rename_made
from onnxbench.errors import RefusedResultError, UnsupportedError, UsageError
from onnxbench.graph import home_of
from onnxbench.operations._base import Effect, NodeOperation, operator_name
from onnxbench.operations._fragments import fragment_nodes
from onnxbench.operations._new_nodes import make_constants, make_nodes, path_in, refuse_unread, require_known
from onnxbench.operations._slots import input_named

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxbench.draft import Draft
    from onnxbench.graph import Scope


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
            rename_made(scope, source, made)
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
            return input_named(scope, position, wanted)
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
            refuse_unread(self.constants, self.inputs or ())

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
        require_known(scope, self.inputs or (), self.constants)
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
            nodes = make_constants(draft, scope, self.constants)
            nodes += fragment_nodes(draft, scope, self.text or "", inputs, outputs, self.constants)
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


def _orphans(scope: Scope, gone: set[int]) -> set[str]:
    """Returns the initializers that only these nodes read."""
    read_names = {name for position in gone for name in scope.reads[position] if name in scope.constants}
    return {name for name in read_names if gone.issuperset(scope.consumers[name]) and name not in scope.outputs}


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
