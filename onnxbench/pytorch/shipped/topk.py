"""More than 3,840 elements of ``topk``, and longer ``sort`` and ``argsort``, for TensorRT.

TensorRT parses such a TopK and fails to build it: "K exceeds the maximum value allowed (3840)". With the rewrite there
are several: each takes the next 3,840, after those that were taken before have got the value that comes last. So the
result is the same; only the indices of elements that have that value themselves, an infinity, may come out more than
once.

A number that is computed from sizes or values needs no rewrite: TensorRT takes it, up to 3,840 in a run.
"""

from __future__ import annotations

from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites
from onnxbench.pytorch.shipped._sizes import example_sizes

_MOST = 3840


@rewrites.function("torch.topk", "torch.Tensor.topk", backend="tensorrt")
def topk(
    ctx: RewriteInfo,
    input: Any,
    k: Any,
    dim: int = -1,
    largest: bool = True,
    sorted: bool = True,
) -> Any:
    """Returns values and indices of the largest or smallest elements."""
    import torch

    if type(k) is not int or k <= _MOST:  # one that is computed is no int
        return ctx.origin(input, k, dim, largest, sorted)
    return torch.return_types.topk(_rounds(input, k, dim, largest))


@rewrites.function("torch.sort", "torch.Tensor.sort", backend="tensorrt")
def sort(ctx: RewriteInfo, input: Any, *args: Any, **words: Any) -> Any:
    """Returns the sorted elements and their indices."""
    import torch

    given = dict(words)
    names = ("stable", "dim", "descending") if args and isinstance(args[0], bool) and "stable" not in words else (
        "dim", "descending",
    )  # fmt: skip
    given.update(zip(names, args, strict=False))
    dim = given.get("dim", -1)
    count = example_sizes(input)[dim] if input.dim() else None
    if count is None or count <= _MOST or given.get("stable"):
        return ctx.origin(input, *args, **words)
    return torch.return_types.sort(_rounds(input, count, dim, bool(given.get("descending"))))


@rewrites.function("torch.argsort", "torch.Tensor.argsort", backend="tensorrt")
def argsort(ctx: RewriteInfo, input: Any, *args: Any, **words: Any) -> Any:
    """Returns the indices of the sorted elements."""
    given = dict(words)
    names = ("stable", "dim", "descending") if len(args) == 3 else ("dim", "descending")
    given.update(zip(names, args, strict=False))
    dim = given.get("dim", -1)
    count = example_sizes(input)[dim] if input.dim() else None
    if count is None or count <= _MOST or given.get("stable"):
        return ctx.origin(input, *args, **words)
    return _rounds(input, count, dim, bool(given.get("descending")))[1]


def _rounds(tensor: Any, count: int, dim: int, largest: bool) -> tuple[Any, Any]:
    """Returns values and indices of the ``count`` first elements in order, taken in rounds."""
    import torch

    if tensor.is_floating_point():
        last = float("-inf") if largest else float("inf")
    else:
        info = torch.iinfo(tensor.dtype)
        last = info.min if largest else info.max
    values, indices = [], []
    while count > 0:
        found, at = torch.topk(tensor, min(count, _MOST), dim, largest, True)
        values.append(found)
        indices.append(at)
        count -= _MOST
        if count > 0:
            tensor = tensor.scatter(dim, at, last)
    return torch.cat(values, dim), torch.cat(indices, dim)
