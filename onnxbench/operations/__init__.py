"""The operations of ``onnxbench edit``: each a dataclass, a line of a recipe, and a flag of the command line.

``OPERATIONS`` is the one table of them, by the word that recipes use. To add an operation, write its class in the
module of its kind and name it in that module's list here; the recipe reader, the command line, the JSON Schema and
the reference page follow from its fields and docstring.
"""

from __future__ import annotations

from onnxbench.operations._base import Effect, NodeOperation, Operation, TensorOperation, spelled_fields
from onnxbench.operations._nodes import DeleteAttribute, RenameNode, SetAttribute, SetOp
from onnxbench.operations._rewrite import Rewrite

__all__ = [
    "OPERATIONS",
    "DeleteAttribute",
    "Effect",
    "NodeOperation",
    "Operation",
    "RenameNode",
    "Rewrite",
    "SetAttribute",
    "SetOp",
    "TensorOperation",
    "spelled_fields",
]

_CLASSES: tuple[type[Operation], ...] = (SetOp, SetAttribute, DeleteAttribute, RenameNode, Rewrite)

OPERATIONS: dict[str, type[Operation]] = {operation.word: operation for operation in _CLASSES}
"""Every operation by its word in recipes."""
