"""Operations that make and unmake local functions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxbench.errors import NotFoundError, RefusedResultError, UsageError, did_you_mean
from onnxbench.operations._base import Operation

if TYPE_CHECKING:
    from onnxbench.draft import Draft
    from onnxbench.graph import NodeRef
    from onnxbench.outlining import Instance


@dataclass(frozen=True)
class Outline(Operation):
    """Move nodes into a local function, with a call in their place; what does the same shares one function.

    Attributes:
        scope: The nodes: all of a PyTorch module, or, by a glob, of each module that matches (``encoder.layer.*``).
        name: The function: ``local::Layer``; ``Layer`` is short for it.
        at: Instead of ``scope``, a selector of the nodes; a list makes a call of each selector's.
        inside: Selector of initializers and constants that move into the function instead of being its inputs
            (``weight:*scale*``, ``op:Constant``), where all calls would give the same.
        fill: Also take the nodes that lie between the given ones.
        share: Let nodes that do the same, up to names and weights, share one function.
        parameters: Also if numbers and strings in attributes differ (``dilations``): these become attributes of the
            function.
    """

    word: ClassVar[str] = "outline"
    spelling: ClassVar[str] = "{scope}={name}"
    expects: ClassVar[str] = "all"

    scope: str | None = None
    name: str = ""
    at: str | list[str] | None = None
    inside: str | None = None
    fill: bool = False
    share: bool = True
    parameters: bool = False

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the first node of each call."""
        from onnxbench.graph import NodeRef

        return [NodeRef(each.scope, each.positions[0]) for each in self._instances(draft)]

    def _instances(self, draft: Draft) -> list[Instance]:
        from onnxbench.outlining import chosen_instance, module_instances

        if (self.scope is None) == (self.at is None) or not self.name:
            raise UsageError(
                "outline takes a scope or a selector, and the name of the function",
                hint="Write {scope: encoder.layer.*, name: local::Layer}, or {at: 'between(a, b)', name: local::B}.",
            )
        if self.scope is not None:
            return module_instances(draft, self.scope)
        assert self.at is not None
        return [chosen_instance(draft, each) for each in ([self.at] if isinstance(self.at, str) else self.at)]

    def apply(self, draft: Draft) -> None:
        """Makes the function and its calls."""
        from onnxbench.outlining import filled, outline

        instances = self._instances(draft)
        if self.fill:
            instances = [filled(instance) for instance in instances]
        inside = draft.tensors(self.inside) if self.inside is not None else []
        outline(draft, instances, self.name, inside=inside, share=self.share, parameters=self.parameters)


@dataclass(frozen=True)
class InlineFunctions(Operation):
    """Replace calls of local functions by what the functions do.

    Attributes:
        at: The calls: a selector (``op:local::Block``, ``node:encoder*``), for one level of these; or ``all``, for all
            calls at all levels, so that no function is left.
    """

    word: ClassVar[str] = "inline_functions"
    spelling: ClassVar[str] = "{at}"
    expects: ClassVar[str] = "all"

    at: str = "all"

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the calls."""
        index = draft.index
        if self.at == "all":
            return [ref for ref in index.nodes() if index.function_of(ref.node) is not None]
        refs = draft.nodes(self.at)
        for ref in refs:
            if index.function_of(ref.node) is None:
                raise RefusedResultError(
                    f"{ref.path} ({ref.node.op_type}) calls no local function",
                    hint="op:DOMAIN::NAME selects the calls of one: op:local::Block.",
                )
        return refs

    def apply(self, draft: Draft) -> None:
        """Inlines them."""
        from onnxbench.inlining import inline_calls, inline_everything

        refs = self.find(draft)
        before = [f"{f.domain}::{f.name}" for f in draft.model.proto.functions]
        calls = [(ref.path, f"{ref.node.domain}::{ref.node.op_type}") for ref in refs]
        if self.at == "all":
            done = inline_everything(draft.model)
        else:
            done = inline_calls(draft.model.proto, [ref.node for ref in refs])
        if done is not draft.model.proto:
            draft.model.proto.CopyFrom(done)
        draft.touch()
        for path, function in calls:
            draft.record("node", path, "inlined", before=f"a call of {function}")
        left = {f"{f.domain}::{f.name}" for f in draft.model.proto.functions}
        for name in dict.fromkeys(before):
            if name not in left:
                draft.record("function", name, "removed")
        gone = {name.partition("::")[0] for name in before} - {name.partition("::")[0] for name in left}
        for domain in draft.unused_imports():
            if domain in gone:
                draft.remove_import(domain)


@dataclass(frozen=True)
class Move(Operation):
    """Move nodes across the border of a local function: in from beside every call, or out to beside every call.

    Attributes:
        at: The nodes: one beside each call of the function to move in; one node of a function to move out.
        to: The function: ``local::Block``; or ``out``.
    """

    word: ClassVar[str] = "move"
    spelling: ClassVar[str] = "{at}={to}"
    expects: ClassVar[str] = "all"

    at: str
    to: str

    def find(self, draft: Draft) -> Sequence[NodeRef]:
        """Returns the nodes."""
        return draft.nodes(self.at)

    def apply(self, draft: Draft) -> None:
        """Moves them."""
        from onnxbench.outlining import move_in, move_out

        refs = self.find(draft)
        if self.to == "out":
            if len(refs) > 1:
                raise UsageError(f"{self.at!r} stands for {len(refs)} nodes, and one moves out at a time")
            move_out(draft, refs[0])
            return
        functions = {scope.path: scope for scope in draft.index.functions.values()}
        if self.to not in functions:
            hint = did_you_mean(self.to, functions) or "It moves to a function, or out."
            raise NotFoundError(f"there is no function {self.to!r}", hint=hint)
        move_in(draft, refs, functions[self.to])
