"""What each value of a model is in PyTorch, as its metadata and the names of its nodes tell; no PyTorch is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxbench import select
from onnxbench.graph import GraphIndex, NodeRef
from onnxbench.provenance import Coverage, ValueOrigin, coverage, value_origins

if TYPE_CHECKING:
    from onnxbench.model import Model


def origins_of(model: Model, index: GraphIndex | None = None) -> list[ValueOrigin]:
    """Returns what each value of a model is in PyTorch, as far as its metadata and names tell.

    What a Mark hands on is a value that is there already.

    Args:
        model: The model.
        index: Its index, if there is one already.
    """
    index = index or GraphIndex(model.proto)
    nodes = ((_path(ref), ref.node) for ref in index.nodes() if select.mark_point(ref) is None)
    return value_origins(nodes, select.origins(index))


def coverage_of(model: Model) -> Coverage:
    """Returns how many of a model's values map to PyTorch."""
    return coverage(origins_of(model))


def _path(ref: NodeRef) -> str:
    return f"{ref.scope.path}/" if ref.scope.path else ""
