"""Operations on the model as a whole: functions, order, names, what it says of itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxbench.errors import UsageError
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
