"""Operations that give inputs and outputs of a model another element type.

A Cast stands between the input or output and the model, which computes as before.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from onnxbench.errors import RefusedResultError
from onnxbench.operations._base import Effect, Operation
from onnxbench.operations._ports import input_info, inputs_at, new_node, outputs_at, tensor_elements
from onnxbench.tensortype import dtype_name, dtype_number, elem_type

if TYPE_CHECKING:
    from onnx import NodeProto

    from onnxbench.draft import Draft
    from onnxbench.graph import TensorRef


@dataclass(frozen=True)
class _Retyping(Operation):
    """What retyping an input and retyping an output have in common: all but where the Cast stands.

    Attributes:
        at: Selector of the inputs or outputs.
        to: The new element type.
    """

    spelling: ClassVar[str] = "{at}={to}"
    expects: ClassVar[str] = "all"
    effect: ClassVar[Effect] = "interface"
    side: ClassVar[str] = ""

    at: str
    to: str

    @abstractmethod
    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the inputs or outputs."""

    @abstractmethod
    def _element_type(self, draft: Draft, ref: TensorRef) -> int:
        """Returns the element type that it has now."""

    @abstractmethod
    def _require_own_type(self, draft: Draft, name: str) -> None:
        """Refuses one whose type is also that of something else."""

    @abstractmethod
    def _cast(self, draft: Draft, name: str, inner: str, before: int, after: int) -> NodeProto:
        """Has the model use ``inner`` in its place, states its new type, and returns the Cast between the two."""

    def apply(self, draft: Draft) -> None:
        """Retypes them."""
        number = dtype_number(self.to)
        casts: list[NodeProto] = []
        for ref in self.find(draft):
            name, before = ref.name, self._element_type(draft, ref)
            if before == number:
                raise RefusedResultError(f"{self.side} {name!r} is {dtype_name(number)} already")
            self._require_own_type(draft, name)
            draft.import_domain(draft.main, "")
            inner = draft.fresh(draft.main, f"{name}_{dtype_name(before)}")
            cast = self._cast(draft, name, inner, before, number)
            casts.append(cast)
            draft.record(self.side, name, "element type", before=dtype_name(before), after=dtype_name(number))
            draft.record("node", cast.name, "inserted", after=f"Cast to {dtype_name(cast.attribute[0].i)}")
        draft.splice(draft.main, {0 if self.side == "input" else len(draft.main.nodes): casts})


@dataclass(frozen=True)
class RetypeInput(_Retyping):
    """Give inputs another element type, and cast them to the one that the model computes with.

    Attributes:
        at: Selector of the inputs.
        to: The new element type: ``float32``, ``fp16``, ``uint8``.
    """

    word: ClassVar[str] = "retype_input"
    side: ClassVar[str] = "input"

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the inputs."""
        return inputs_at(draft, self.at)

    def _element_type(self, draft: Draft, ref: TensorRef) -> int:
        return tensor_elements(input_info(draft, ref.name), self.side)

    def _require_own_type(self, draft: Draft, name: str) -> None:
        if name in draft.main.outputs:
            raise RefusedResultError(
                f"input {name!r} is also an output, whose type would change with it",
                hint="Remove that output first, or add a copy of it under another name.",
            )

    def _cast(self, draft: Draft, name: str, inner: str, before: int, after: int) -> NodeProto:
        cast = _cast_node(draft, name, inner, before)
        draft.replace_uses(draft.main, {name: inner})
        input_info(draft, name).type.tensor_type.elem_type = after
        return cast


@dataclass(frozen=True)
class RetypeOutput(_Retyping):
    """Give outputs another element type, cast from the one that the model computes with.

    Attributes:
        at: Selector of the outputs.
        to: The new element type: ``float32``, ``fp16``, ``int32``.
    """

    word: ClassVar[str] = "retype_output"
    side: ClassVar[str] = "output"

    def find(self, draft: Draft) -> list[TensorRef]:
        """Returns the outputs."""
        return outputs_at(draft, self.at)

    def _element_type(self, draft: Draft, ref: TensorRef) -> int:
        info = next(info for info in draft.main.graph.output if info.name == ref.name)
        stated = tensor_elements(info, self.side)
        if stated:
            return stated
        kind = draft.type_of(ref)
        if kind is None or not elem_type(kind):
            raise RefusedResultError(f"nothing tells the type of output {ref.name!r}")
        return elem_type(kind)

    def _require_own_type(self, draft: Draft, name: str) -> None:
        if name not in draft.main.producers:
            what = "an input" if name in draft.main.inputs else "a weight"
            raise RefusedResultError(
                f"output {name!r} is {what}, whose type would change with it",
                hint="Add a copy of it under another name (add_output), and remove this one.",
            )

    def _cast(self, draft: Draft, name: str, inner: str, before: int, after: int) -> NodeProto:
        renamed = dict(draft.renamed)
        draft.rename(draft.main, {name: inner})
        draft.renamed.clear()  # the output keeps its name
        draft.renamed.update(renamed)
        for info in draft.main.graph.output:
            if info.name == inner:
                info.name = name
                info.type.tensor_type.elem_type = after
        cast = _cast_node(draft, inner, name, after)
        draft.touch()
        return cast


def _cast_node(draft: Draft, source: str, target: str, number: int) -> NodeProto:
    node = new_node(draft, "Cast", [source], [target])
    node.attribute.add(name="to", type=2, i=number)
    return node
