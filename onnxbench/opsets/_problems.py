"""One node to be said in another version, and what two nodes have to agree in to say the same."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from onnxbench import weights
from onnxbench.messages import copy_of

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto, TensorProto, TypeProto
    from onnx.defs import OpSchema

MAIN = "main"
CONSTANT_SCALARS = {
    "value_int": (7, "i", "int64_data"), "value_ints": (7, "ints", "int64_data"),
    "value_float": (1, "f", "float_data"), "value_floats": (1, "floats", "float_data"),
    "value_string": (8, "s", "string_data"), "value_strings": (8, "strings", "string_data"),
}  # fmt: skip
"""Attributes by which a Constant holds plain numbers: element type, the attribute's field, the tensor's field."""


@dataclass(slots=True)
class Problem:
    """A node to be converted, its tensors called ``i0``, ``o0`` and so on.

    Attributes:
        nodes: What it is by now: at first the node alone, called ``main``.
        types: What is known of its tensors.
        constants: The values of small constants among its inputs.
        by_caller: Names of attributes that a caller of the function gives.
        bodies: Whether it has bodies, which were left out.
        failure: Why it cannot be converted.
    """

    nodes: list[NodeProto]
    types: dict[str, TypeProto]
    constants: dict[str, TensorProto]
    by_caller: tuple[str, ...] = ()
    bodies: bool = False
    failure: str = ""

    @property
    def main(self) -> NodeProto:
        """The node that takes the place of the one that was asked about."""
        return next((node for node in self.nodes if node.name == MAIN), self.nodes[-1])


def constant_tensor(attribute: AttributeProto) -> TensorProto | None:
    """Returns what a Constant holds as a tensor; None for what is none, or what a caller gives."""
    from onnx import TensorProto

    if attribute.ref_attr_name:
        return None
    if attribute.name == "value":
        return attribute.t
    if attribute.name not in CONSTANT_SCALARS:
        return None
    number, held, stored = CONSTANT_SCALARS[attribute.name]
    values = getattr(attribute, held)
    tensor = TensorProto(data_type=number)
    if held.endswith("s") and held != "s":
        tensor.dims.append(len(values))
    else:
        values = [values]
    getattr(tensor, stored).extend(values)
    return tensor


def same_node(one: NodeProto, other: NodeProto, schema: OpSchema | None) -> bool:
    """Tells whether two nodes say the same: attributes that are at their default count as left out."""
    if one.op_type != other.op_type or _without_end(one.input) != _without_end(other.input):
        return False
    if _without_end(one.output) != _without_end(other.output):
        return False
    return _said(one, schema) == _said(other, schema)


def _without_end(names: Iterable[str]) -> list[str]:
    listed = list(names)
    while listed and not listed[-1]:
        listed.pop()
    return listed


def _said(node: NodeProto, schema: OpSchema | None) -> dict[str, Any]:
    defaults = schema.attributes if schema is not None else {}
    return {
        attribute.name: value
        for attribute in node.attribute
        if (value := value_of(attribute))
        != (value_of(defaults[attribute.name].default_value) if attribute.name in defaults else None)
    }


def value_of(attribute: AttributeProto) -> Any:
    """Returns an attribute's value in a form that can be compared, however it is stored."""
    if attribute.type in (1, 2, 3):
        return (
            attribute.type,
            attribute.f if attribute.type == 1 else attribute.i if attribute.type == 2 else attribute.s,
        )
    if attribute.type == 4 and attribute.t.data_type and not weights.is_outside(attribute.t):
        from onnx import numpy_helper

        array = numpy_helper.to_array(attribute.t)
        data = tuple(attribute.t.string_data) if array.dtype.kind in "OUS" else array.tobytes()
        return attribute.t.data_type, tuple(attribute.t.dims), data
    copy = copy_of(attribute)
    copy.ClearField("name")
    copy.ClearField("doc_string")
    return copy.SerializeToString(deterministic=True)
