"""The inputs and outputs of a model as operations name them, and nodes that are put between them and the model."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from onnxbench.draft import Draft
from onnxbench.errors import NotFoundError, UnsupportedError, did_you_mean
from onnxbench.graph import TensorRef
from onnxbench.tensortype import elem_type, format_type

if TYPE_CHECKING:
    from onnx import NodeProto, ValueInfoProto


def inputs_at(draft: Draft, selector: str, *, backed: bool = False) -> list[TensorRef]:
    """Returns the inputs of the model that a selector stands for.

    Args:
        draft: The model.
        selector: The name of an input, or a selector of tensors.
        backed: Inputs that an initializer is the default of count, too.

    Raises:
        NotFoundError: It stands for none.
    """
    main = draft.main
    return _ports(draft, selector, main.inputs if backed else main.true_inputs(), "input")


def outputs_at(draft: Draft, selector: str) -> list[TensorRef]:
    """Returns the outputs of the model that a selector stands for.

    Raises:
        NotFoundError: It stands for none.
    """
    return _ports(draft, selector, draft.main.outputs, "output")


def _ports(draft: Draft, selector: str, names: Collection[str], what: str) -> list[TensorRef]:
    if selector in names:
        return [TensorRef(draft.main, selector)]
    few = f"The {what}s: {', '.join(names)}." if 0 < len(names) <= 8 else None
    try:
        refs = draft.tensors(selector)
    except NotFoundError as error:
        raise NotFoundError(error.message, hint=did_you_mean(selector, names) or few or error.hint) from None
    found = [ref for ref in refs if ref.scope is draft.main and ref.name in names]
    if not found:
        raise NotFoundError(f"{selector!r} is no {what} of the model", hint=did_you_mean(selector, names) or few)
    return found


def input_info(draft: Draft, name: str) -> ValueInfoProto:
    """Returns what the model states of one of its inputs, for changing."""
    info: ValueInfoProto = next(info for info in draft.main.graph.input if info.name == name)
    return info


def tensor_elements(info: ValueInfoProto, what: str) -> int:
    """Returns the element type of an input or output; 0 if it states none.

    Raises:
        UnsupportedError: It is no tensor.
    """
    if info.type.WhichOneof("value") != "tensor_type":
        raise UnsupportedError(f"{what} {info.name!r} is {format_type(info.type)}; only tensors can be cast")
    return elem_type(info.type)


def new_node(draft: Draft, op_type: str, inputs: Sequence[str], outputs: Sequence[str]) -> NodeProto:
    """Returns a node for the main graph, which has a name of its own there."""
    from onnx import NodeProto

    name = draft.fresh_node(draft.main, f"{outputs[0]}_{op_type}")
    return NodeProto(op_type=op_type, name=name, input=inputs, output=outputs)
