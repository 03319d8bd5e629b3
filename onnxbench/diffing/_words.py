"""How parts of a model are written in a report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.diffing import _tensors
from onnxbench.messages import as_text
from onnxbench.records import attribute_value, tensor_text
from onnxbench.schemas import plain_domain
from onnxbench.tensortype import format_type

if TYPE_CHECKING:
    from onnx import AttributeProto, NodeProto, TypeProto

_MOST_SHOWN = 8


def operator_text(node: NodeProto) -> str:
    """Returns a node's operator with its domain and overload."""
    domain = plain_domain(node.domain)
    return f"{f'{domain}::' if domain else ''}{node.op_type}{f':{node.overload}' if node.overload else ''}"


def node_text(node: NodeProto) -> str:
    """Returns a node as its operator, inputs and outputs."""
    inputs, outputs = (listed([name or '""' for name in names]) for names in (node.input, node.output))
    return f"{operator_text(node)}({inputs}) -> {outputs}"


def listed(names: Sequence[str]) -> str:
    """Returns names, the first few of many."""
    more = len(names) - _MOST_SHOWN
    return ", ".join(names) if more <= 0 else f"{', '.join(names[:_MOST_SHOWN])}, ... {more:,} more"


def pairs_text(entries: dict[str, str]) -> str:
    """Returns ``key=value`` of each entry."""
    return ", ".join(f"{key}={value}" for key, value in entries.items())


def stored_text(tensor: Any) -> str:
    """Returns what a stored tensor is: its type, and its values if they are few."""
    return _tensors.type_text(tensor) if _tensors.is_sparse(tensor) else tensor_text(tensor)


def value_texts(a: AttributeProto, b: AttributeProto) -> tuple[Any, Any]:
    """Returns two different attributes as values that differ."""
    before, after = attribute_value(a), attribute_value(b)
    if repr(before) == repr(after):  # another type, or a difference that the words leave out
        names = [
            entry.DESCRIPTOR.enum_types_by_name["AttributeType"].values_by_number[entry.type].name for entry in (a, b)
        ]
        if names[0] != names[1]:
            return f"{before} ({names[0].lower()})", f"{after} ({names[1].lower()})"
        return f"{before}", f"{after} (other bits)"
    return before, after


def type_texts(a: Any, b: Any) -> tuple[str | None, str | None]:
    """Returns the types of two value infos in words; the same words mean the same type."""
    types = [info.type if info.HasField("type") else None for info in (a, b)]
    before, after = (None if value is None else format_type(value) for value in types)
    if before == after and types[0] is not None and types[1] is not None:
        marks, marks_b = _denotations(types[0]), _denotations(types[1])
        if marks != marks_b:
            return f"{before} {marks}", f"{after} {marks_b}"
    return before, after


def _denotations(value: TypeProto) -> str:
    words = [value.denotation] if value.denotation else []
    kind = value.WhichOneof("value")
    if kind in ("tensor_type", "sparse_tensor_type"):
        dims = getattr(value, kind).shape.dim
        if any(dim.denotation for dim in dims):
            words.append("[" + ", ".join(dim.denotation or "-" for dim in dims) + "]")
    return " ".join(words)


def docs(a: Any, b: Any) -> tuple[str, str]:
    """Returns the doc strings of two messages."""
    before, after = (as_text(message.doc_string) for message in (a, b))
    return before, after


def docs_or_none(a: Any, b: Any) -> tuple[str | None, str | None]:
    """Returns the doc strings of two messages; None where there is none."""
    before, after = docs(a, b)
    return before or None, after or None
