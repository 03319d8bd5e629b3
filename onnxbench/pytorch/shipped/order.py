"""``kthvalue`` and ``median``, by ``topk``; every backend.

Neither exporter has a translation ("No ONNX function found for aten.kthvalue", "Exporting the operator 'aten::median'
... is not supported").
"""

from __future__ import annotations

from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites
from onnxbench.pytorch.shipped._sizes import example_sizes


@rewrites.function("torch.kthvalue", "torch.Tensor.kthvalue")
def kthvalue(ctx: RewriteInfo, input: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """Returns the k-th smallest elements, and where they are."""
    import torch

    return torch.return_types.kthvalue(_kth(input, k, dim, keepdim))


@rewrites.function("torch.median", "torch.Tensor.median")
def median(ctx: RewriteInfo, input: Any, dim: int | None = None, keepdim: bool = False) -> Any:
    """Returns the medians (of an even number, the lower one), and where they are unless it is that of all."""
    import torch

    tensor = input.reshape(-1) if dim is None else input
    axis = 0 if dim is None else dim
    size = example_sizes(tensor)[axis]
    middle = ((tensor.shape[axis] if size is None else size) + 1) // 2
    values, at = _kth(tensor, middle, axis, keepdim)
    return values if dim is None else torch.return_types.median((values, at))


def _kth(tensor: Any, k: Any, dim: int, keepdim: bool) -> tuple[Any, Any]:
    import torch

    values, at = torch.topk(tensor, k, dim, False, True)
    values, at = values.narrow(dim, k - 1, 1), at.narrow(dim, k - 1, 1)
    return (values, at) if keepdim else (values.squeeze(dim), at.squeeze(dim))
