"""Records of tensors and nodes as rows of tables, for ``find`` and ``inspect``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.cli._tables import Column

if TYPE_CHECKING:
    from onnx import TypeProto

    from onnxbench.inference import TypeSource
    from onnxbench.model import Model
    from onnxbench.records import NodeRecord, TensorRecord

MOST_LISTED = 8

TENSOR_COLUMNS = (
    Column("tensor"), Column("type", "whole"), Column("kind", "whole"), Column("made by"),
    Column("read by", "number"), Column("module"), Column("source"),
)  # fmt: skip
NODE_COLUMNS = (
    Column("node"), Column("operator", "whole"), Column("attributes", "list"), Column("inputs", "list"),
    Column("outputs", "list"), Column("type", "whole"), Column("module"), Column("source"),
)  # fmt: skip


def tensor_row(tensor: TensorRecord) -> list[str]:
    """Returns the cells of a tensor for ``TENSOR_COLUMNS``."""
    return [
        tensor.name,
        tensor.type.text,
        kind_of(tensor),
        f"{tensor.producer} ({tensor.producer_op})" if tensor.producer else "",
        str(len(tensor.consumers)) if len(tensor.consumers) < 2 else str(len({use.node for use in tensor.consumers})),
        module_text(tensor.origin.module, tensor.origin.call),
        source_text(tensor.origin.source),
    ]


def kind_of(tensor: TensorRecord) -> str:
    """Returns what a tensor is, in words."""
    words = "input with default" if tensor.has_default else tensor.kind
    return words if not tensor.is_output else "output" if tensor.kind == "inner" else f"{words}, output"


def node_row(node: NodeRecord, *, attributes: bool = False) -> list[str]:
    """Returns the cells of a node for ``NODE_COLUMNS``: its attributes, or type, module and source."""
    inputs = [*(link.name or "-" for link in node.inputs), *(f"({name})" for name in node.captures)]
    return [
        node.path,
        node.op + (" (local function)" if node.is_function_call else ""),
        listed([f"{name}={attribute_text(value)}" for name, value in node.attributes.items()]) if attributes else "",
        listed(inputs),
        listed([link.name or "-" for link in node.outputs]),
        "" if attributes else listed([link.type or "-" for link in node.outputs], most=3),
        "" if attributes else module_text(node.origin.module, node.origin.call),
        "" if attributes else source_text(node.origin.source),
    ]


def module_text(path: str | None, call: int = 0) -> str:
    """Returns a module path as it is shown; nothing when it is unknown."""
    if path is None:
        return ""
    return (path or "(model)") + (f" (call {call + 1})" if call else "")


def source_text(place: str | None) -> str:
    """Returns ``folder/file.py:12`` of a long path: where a package is installed says nothing."""
    return "/".join(place.replace("\\", "/").split("/")[-2:]) if place else ""


def listed(items: Sequence[str], *, most: int = MOST_LISTED) -> str:
    """Returns items with commas between them, and the count of those beyond the first few."""
    return ", ".join(items) if len(items) <= most else f"{', '.join(items[:most])}, ... {len(items) - most} more"


def attribute_text(value: Any) -> str:
    """Returns an attribute's value on one line, without the later elements of a long list."""
    if isinstance(value, list):
        more = len(value) - 2 * MOST_LISTED
        return f"[{','.join(map(attribute_text, value[: 2 * MOST_LISTED]))}{f',... {more} more' if more > 0 else ''}]"
    return str(value)


def type_sources(infer: bool | None) -> Sequence[TypeSource]:
    """Returns what to ask for types besides onnx: the runtime, if inference was asked for in so many words."""
    if not infer:
        return ()
    from onnxbench import backends
    from onnxbench.errors import BenchError

    def told_by_runtime(model: Model, names: Sequence[str]) -> dict[str, TypeProto]:
        try:
            return backends.tensor_types(model, names)
        except BenchError:  # weights that are missing, say: types are shown as far as they are known
            return {}

    return (told_by_runtime,)
