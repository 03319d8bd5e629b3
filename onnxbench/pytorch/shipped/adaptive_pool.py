"""``adaptive_avg_pool1d`` and ``2d`` to a size other than 1, for any size of the input; every backend.

The windows of an adaptive pooling depend on the size of the input. Where that is open, the default exporter keeps the
windows of the example and the result is wrong at other sizes; the TorchScript exporter fails, and also wherever the
sizes do not divide ("output size that are not factor of input size"). With the rewrite, each axis is a product with a
matrix of the weights that the windows give, computed from the size.
"""

from __future__ import annotations

from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites
from onnxbench.pytorch.shipped._sizes import example_sizes


@rewrites.function("torch.nn.functional.adaptive_avg_pool1d", "torch.nn.functional.adaptive_avg_pool2d")
def adaptive_avg_pool(ctx: RewriteInfo, input: Any, output_size: Any) -> Any:
    """Returns the averages of the windows."""
    import torch

    count = 2 if ctx.origin.__name__ == "adaptive_avg_pool2d" else 1
    wanted = list(output_size) if isinstance(output_size, (list, tuple)) else [output_size] * count
    sizes = example_sizes(input)[-count:]
    is_open = None in sizes or (torch.jit.is_tracing() and any(each != 1 for each in wanted))
    if len(wanted) != count or not is_open or all(each == 1 for each in wanted):
        return ctx.origin(input, output_size)
    for axis, size in zip(range(-count, 0), wanted, strict=True):
        if size is None:
            continue
        weights = _windows(input.shape[axis], size).to(input.dtype)
        input = weights @ input if axis == -2 else input @ weights.transpose(0, 1)
    return input


def _windows(count: Any, wanted: int) -> Any:
    """Returns the weights of windows, ``[wanted, count]``: of window ``i`` those from ``i * count // wanted`` on."""
    import torch

    numbers = torch.arange(wanted, dtype=torch.int64)
    first = torch.div(numbers * count, wanted, rounding_mode="floor")
    end = torch.div((numbers + 1) * count + (wanted - 1), wanted, rounding_mode="floor")
    places = torch.arange(count, dtype=torch.int64)
    inside = ((places >= first[:, None]) & (places < end[:, None])).to(torch.float32)
    return inside / inside.sum(1, keepdim=True)
