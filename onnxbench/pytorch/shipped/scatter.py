"""``scatter_add`` and ``scatter_reduce`` by sums over all places, for TensorRT.

Both become a ScatterElements that reduces. TensorRT refuses it ("Unsupported reduction type"). With the rewrite, each
place of the result gathers what has its index: a comparison of all indices with all places, and a sum or an extreme
along the indices. That takes memory for one times the other.
"""

from __future__ import annotations

from typing import Any

from onnxbench.errors import UnsupportedError
from onnxbench.pytorch.rewriters import RewriteInfo, rewrites
from onnxbench.pytorch.shipped._sizes import example_sizes


@rewrites.function("torch.scatter_add", "torch.Tensor.scatter_add", backend="tensorrt")
def scatter_add(ctx: RewriteInfo, input: Any, dim: int, index: Any, src: Any) -> Any:
    """Returns the tensor with the values added at their indices."""
    return _gathered(input, dim, index, src, "sum")


@rewrites.function("torch.Tensor.scatter_add_", backend="tensorrt")
def scatter_add_(ctx: RewriteInfo, input: Any, dim: int, index: Any, src: Any) -> Any:
    """Adds the values at their indices and returns the tensor."""
    return input.copy_(_gathered(input, dim, index, src, "sum"))


@rewrites.function("torch.scatter_reduce", "torch.Tensor.scatter_reduce", backend="tensorrt")
def scatter_reduce(
    ctx: RewriteInfo, input: Any, dim: int, index: Any, src: Any, reduce: str, *, include_self: bool = True
) -> Any:  # fmt: skip
    """Returns the tensor with the values reduced into their indices."""
    return _gathered(input, dim, index, src, reduce, include_self=include_self)


def _gathered(tensor: Any, dim: int, index: Any, source: Any, how: str = "", *, include_self: bool = True) -> Any:
    """Returns what a scatter that reduces gives."""
    import torch

    axis = dim % max(tensor.dim(), 1)
    sizes, given = example_sizes(tensor), example_sizes(index)
    is_whole = tensor.dim() > 0 and sizes[:axis] + sizes[axis + 1 :] == given[:axis] + given[axis + 1 :]
    if how not in ("sum", "amax", "amin") or not is_whole or example_sizes(source) != given:
        raise UnsupportedError(
            f"the scatter of {how or 'values'} into {sizes} at indices {given} cannot be rewritten for TensorRT",
            hint="Sums, amax and amin are rewritten, where values and indices have the sizes of the result but for one "
            "dimension.",
        )
    shape = [1] * (tensor.dim() + 1)
    shape[axis] = -1
    # Places stand where the dimension was, indices at the end.
    places = torch.arange(tensor.shape[axis], dtype=index.dtype).reshape(shape)
    hits = places == index.movedim(axis, -1).unsqueeze(axis)
    values = source.movedim(axis, -1).unsqueeze(axis)
    if how == "sum":
        found = (values * hits.to(values.dtype)).sum(-1)
        return found + (tensor if include_self else tensor.masked_fill(hits.any(-1), 0))
    limits = torch.finfo(values.dtype) if values.is_floating_point() else torch.iinfo(values.dtype)
    filled = torch.where(hits, values, limits.min if how == "amax" else limits.max)
    found = filled.amax(-1) if how == "amax" else filled.amin(-1)
    if not include_self:
        return torch.where(hits.any(-1), found, tensor)
    return torch.maximum(tensor, found) if how == "amax" else torch.minimum(tensor, found)
