"""``max_pool2d`` with dilation, and with its indices, for TensorRT.

TensorRT refuses both ("This version of TensorRT does not support dilations other than 1", "doesn't support mode than 1
outputs for MaxPool nodes"). With the rewrite, the elements of a window are slices of the input, and the largest of them
is taken.
"""

from __future__ import annotations

from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites


@rewrites.function("torch.nn.functional.max_pool2d", backend="tensorrt")
def max_pool2d(
    ctx: RewriteInfo,
    input: Any,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Any:
    """Returns the largest of each window, and where it is, if asked for."""
    import torch

    steps = _pair(dilation)
    if (steps == [1, 1] and not return_indices) or ceil_mode or input.dim() != 4 or not input.is_floating_point():
        return ctx.origin(
            input, kernel_size, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
            return_indices=return_indices,
        )  # fmt: skip
    kernel, edges = _pair(kernel_size), _pair(padding)
    strides = _pair(stride) if stride is not None and stride != [] else kernel
    padded = torch.nn.functional.pad(input, (edges[1], edges[1], edges[0], edges[0]), value=float("-inf"))
    windows = []
    for down in range(kernel[0]):
        for right in range(kernel[1]):
            rows = _every(down * steps[0], (kernel[0] - 1 - down) * steps[0], strides[0])
            windows.append(padded[:, :, rows, _every(right * steps[1], (kernel[1] - 1 - right) * steps[1], strides[1])])
    found = windows[0]
    if not return_indices:
        for each in windows[1:]:
            found = torch.maximum(found, each)
        return found
    which = torch.zeros_like(found, dtype=torch.int64)
    for number, each in enumerate(windows[1:], 1):
        which = torch.where(each > found, number, which)
        found = torch.maximum(found, each)
    down, right = which // kernel[1], which % kernel[1]
    y = (torch.arange(found.shape[2]) * strides[0] - edges[0])[:, None] + down * steps[0]
    x = torch.arange(found.shape[3]) * strides[1] - edges[1] + right * steps[1]
    return found, y * input.shape[3] + x


def _every(start: int, left: int, step: int) -> slice:
    """Returns a slice that begins at ``start`` and leaves out so many elements at the end."""
    return slice(start, -left if left else None, step)


def _pair(value: Any) -> list[int]:
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    return values * 2 if len(values) == 1 else values
