"""Where a node comes from in PyTorch: module scope, module class, source line.

Two exporters leave two kinds of traces. The default one (``torch.export``) writes metadata on every node:
``pkg.torch.onnx.name_scopes`` and ``class_hierarchy`` are Python lists as text, from the model down to the
operator, and ``pkg.torch.onnx.stack_trace`` ends in the line that made the node. The TorchScript one puts the
module path into the node's name, ``/layer1/layer1.0/conv1/Conv``. Anything else has no provenance.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import NodeProto

NAME_SCOPES = "pkg.torch.onnx.name_scopes"
CLASS_HIERARCHY = "pkg.torch.onnx.class_hierarchy"
STACK_TRACE = "pkg.torch.onnx.stack_trace"
FX_NODE = "pkg.torch.onnx.fx_node"

_FRAME = re.compile(r'File "([^"]+)", line (\d+)(?:, in (\S+))?\s*\n?([^\n]*)')


@dataclass(frozen=True, slots=True)
class Provenance:
    """What is known of a node's origin.

    Attributes:
        scope: Module path such as ``layer1.0.conv1``; ``""`` for the model itself.
        classes: Class names along that path, outermost first; empty when the exporter kept none.
        source: ``file.py:12``, or None.
        code: The text of that line, or None.
        kind: ``torch.export``, ``torchscript``, or ``none``.
    """

    scope: str = ""
    classes: tuple[str, ...] = ()
    source: str | None = None
    code: str | None = None
    kind: str = "none"

    @property
    def module_class(self) -> str | None:
        """Class of the innermost module, or None."""
        return self.classes[-1] if self.classes else None


NONE = Provenance()


def provenance(node: NodeProto) -> Provenance:
    """Returns where a node comes from; ``NONE`` when it carries no trace of PyTorch."""
    if node.metadata_props:
        said = {entry.key: entry.value for entry in node.metadata_props}
        if NAME_SCOPES in said or STACK_TRACE in said:
            return _from_metadata(said)
    if node.name.startswith("/"):
        return Provenance(scope=torchscript_scope(node.name), kind="torchscript")
    return NONE


def scope_of(node: NodeProto) -> str | None:
    """Returns the module path of a node, or None when it has no provenance (cheaper than ``provenance``)."""
    for entry in node.metadata_props:
        if entry.key == NAME_SCOPES:
            return _module_path(_literal_list(entry.value))
    return torchscript_scope(node.name) if node.name.startswith("/") else None


def torchscript_scope(name: str) -> str:
    """Returns the module path in a TorchScript-style node name.

    ``/layer1/layer1.0/conv1/Conv`` is node ``Conv`` of module ``layer1.0.conv1``: a segment that repeats the path
    so far (``layer1.0`` after ``layer1``) replaces it, any other is appended.
    """
    path = ""
    for segment in name.split("/")[1:-1]:
        if path and (segment == path or segment.startswith(f"{path}.")):
            path = segment
        elif path and segment.split(".")[0] == path.rsplit(".", 1)[-1] and "." in segment:
            path = f"{path.rpartition('.')[0]}.{segment}".lstrip(".")
        else:
            path = f"{path}.{segment}" if path else segment
    return path


def _from_metadata(said: dict[str, str]) -> Provenance:
    scopes = _literal_list(said.get(NAME_SCOPES, ""))
    classes = _literal_list(said.get(CLASS_HIERARCHY, ""))
    source = code = None
    frames = _FRAME.findall(said.get(STACK_TRACE, ""))
    if frames:
        file, line, _, text = frames[-1]
        source, code = f"{file}:{line}", text.strip() or None
    return Provenance(_module_path(scopes), tuple(classes[:-1]), source, code, "torch.export")


def _module_path(scopes: list[str]) -> str:
    """Returns the innermost module of a name_scopes list, whose last entry is the operator itself."""
    modules = [scope for scope in scopes[:-1] if scope]
    return modules[-1] if modules else ""


def _literal_list(text: str) -> list[str]:
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return []
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else []
