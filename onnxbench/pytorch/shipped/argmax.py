"""``argmax`` and ``argmin`` of one dimension, or of all of them, for TensorRT.

TensorRT refuses an ArgMax of a tensor with one dimension, which ``argmax()`` of a whole tensor is as well ("at least 2
dimensions are required for input"). With the rewrite it has a second one, of size 1.
"""

from __future__ import annotations

from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites


@rewrites.function("torch.argmax", "torch.Tensor.argmax", "torch.argmin", "torch.Tensor.argmin", backend="tensorrt")
def arg_extreme(ctx: RewriteInfo, input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """Returns where the extreme is."""
    if input.dim() == 0 or (dim is not None and input.dim() > 1):
        return ctx.origin(input, dim, keepdim)
    at = ctx.origin(input.reshape(1, -1), 1, True)
    if keepdim:
        return at.reshape([1] * input.dim())
    return at.reshape([])
