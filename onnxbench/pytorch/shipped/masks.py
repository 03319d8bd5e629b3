"""Values set by a mask, and ``masked_scatter``, without NonZero, for TensorRT.

``x[mask] = 0`` becomes a NonZero and a ScatterND under the default exporter (the TorchScript exporter writes a Where),
``masked_scatter`` under both. TensorRT-RTX has no NonZero ("NonZero plugin creator version 1 was not found in plugin
registry"). With the rewrite, one is a Where, and the other a CumSum that numbers the places, and a Gather.

What has as many elements as a mask has hits (``x[mask]``, ``masked_select``, ``nonzero``) has no fixed shape, so no
rewrite helps: TensorRT-RTX needs a plugin of the name NonZero for it.
"""

from __future__ import annotations

from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites


@rewrites.function("torch.Tensor.__setitem__", backend="tensorrt")
def set_item(ctx: RewriteInfo, tensor: Any, at: Any, value: Any) -> None:
    """Sets the elements that an index means."""
    import torch

    is_mask = isinstance(at, torch.Tensor) and at.dtype == torch.bool and at.dim() > 0
    is_scalar = isinstance(value, (bool, int, float)) or (isinstance(value, torch.Tensor) and value.dim() == 0)
    if not (is_mask and is_scalar):
        ctx.origin(tensor, at, value)
        return
    mask = at.reshape(*at.shape, *[1] * (tensor.dim() - at.dim()))
    tensor.copy_(tensor.masked_fill(mask, value))


@rewrites.function("torch.Tensor.masked_scatter", "torch.masked_scatter", backend="tensorrt")
def masked_scatter(ctx: RewriteInfo, input: Any, mask: Any, source: Any) -> Any:
    """Returns the tensor with the elements that a mask hits taken from another one in order."""
    import torch

    # One dimension more: TensorRT sums up along an axis of two.
    hits = mask.expand_as(input).reshape(1, -1)
    numbers = (torch.cumsum(hits.to(torch.int64), 1) - 1).clamp(min=0).reshape(-1)
    taken = source.reshape(-1).index_select(0, torch.minimum(numbers, _last(source))).reshape(input.shape)
    return torch.where(mask, taken.to(input.dtype), input)


def _last(source: Any) -> Any:
    import torch

    return torch.full((), source.numel() - 1, dtype=torch.int64)
