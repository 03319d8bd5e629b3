"""Converting a model to another floating-point precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from onnxbench.errors import UsageError
from onnxbench.graph import NodeRef
from onnxbench.operations._base import Effect, Operation
from onnxbench.wording import plural

if TYPE_CHECKING:
    from onnxbench.draft import Draft


@dataclass(frozen=True)
class SetPrecision(Operation):
    """Convert the floating-point tensors of a model to another precision, with as few Casts as there can be.

    Schemas say what may change (docs/precision.md). Weights are converted, bodies and functions are gone through, and
    the result is checked with strict type inference.

    Attributes:
        to: The precision: ``fp16``, ``bf16``, ``fp32`` or ``fp64``.
        keep: Selectors of nodes that stay as they are: ``op:Softmax``, ``[op:Softmax, scope:head]``.
        io: ``keep`` the types of inputs and outputs, or ``convert`` them.
        weights: What to do with weights that the type does not hold: ``refuse``, ``clamp`` them, or ``keep`` what
            reads them in its type.
        opset: ``raise`` it where operators take the type only in a later one, or ``keep`` it.
    """

    word: ClassVar[str] = "set_precision"
    spelling: ClassVar[str] = "{to}"
    effect: ClassVar[Effect] = "numerics"

    to: str
    keep: Any = None
    io: Literal["keep", "convert"] = "keep"
    weights: Literal["refuse", "clamp", "keep"] = "refuse"
    opset: Literal["raise", "keep"] = "raise"

    def apply(self, draft: Draft) -> None:
        """Converts it."""
        from onnxbench.precision import convert

        done = convert(
            draft.model, to=self.to, keep=self._kept(draft), io=self.io, weights=self.weights, opset=self.opset,
            sources=draft.sources,
        )  # fmt: skip
        draft.model = done.model
        draft.touch()
        words = [f"{plural(done.nodes, 'node')} and {plural(done.weights, 'weight')}",
                 f"{plural(done.casts, 'Cast')} put in"]  # fmt: skip
        if done.removed:
            words.append(f"{done.removed:,} taken out")
        if done.kept:
            words.append(f"{plural(len(done.kept), 'node')} stay")
        draft.record("model", "", "precision", after=f"{done.to}: {', '.join(words)}")
        for kept in done.kept:
            draft.record("node", kept.node, "stays", after=f"{kept.op_type}, {kept.reason}")
        for lost in done.lost:
            if lost.action != "rounded":
                draft.record("weight", lost.weight, lost.action, after=f"{lost.overflows:,} values beyond {done.to}")
        draft.notes += done.notes

    def _kept(self, draft: Draft) -> list[NodeRef]:
        selectors: Sequence[object] = [self.keep] if isinstance(self.keep, str) else self.keep or []
        if not isinstance(selectors, (list, tuple)):
            raise UsageError(f"keep: {self.keep!r} is no list of selectors", hint="keep: [op:Softmax, scope:head]")
        return [ref for each in selectors for ref in draft.nodes(str(each))]
