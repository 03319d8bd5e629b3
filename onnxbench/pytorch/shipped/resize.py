"""``interpolate`` with antialiasing (TensorRT, TorchScript), and by a scale that is computed (every backend).

Antialiasing: TensorRT refuses its Resize ("Antialiasing is not supported currently"), and TorchScript's exporter has no
translation of it ("Exporting the operator 'aten::_upsample_bilinear2d_aa' is not supported"). With the rewrite, each
axis is a product with a matrix of the filter's weights.

A scale computed from sizes or values (``scale_factor=16 / x.shape[2]``): neither exporter takes it ("argument
'scale_factors' must be tuple of floats, but found element of type SymFloat", "upsample_bilinear2d() received an invalid
combination of arguments"), and a Resize by scales that are computed would be refused by TensorRT, which reads them when
it builds. With the rewrite, the size is computed as integers, and neighbours are gathered and weighed along each axis,
as PyTorch does it, where the scale and not the size says where they are.

Sizes that are computed, fixed scales that sizes do not divide by, ``align_corners`` and bicubic need no rewrite.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites

_MODES = ("nearest", "nearest-exact", "linear", "bilinear", "trilinear", "bicubic")
_SLACK = 1e-4
"""Added before a size is rounded down: a product that is whole may come out a little lower."""


@rewrites.function("torch.nn.functional.interpolate")
def interpolate(
    ctx: RewriteInfo,
    input: Any,
    size: Any = None,
    scale_factor: Any = None,
    mode: str = "nearest",
    align_corners: bool | None = None,
    recompute_scale_factor: bool | None = None,
    antialias: bool = False,
) -> Any:
    """Returns the resized tensor."""
    import torch

    axes = range(2, input.dim())
    scales = None
    if scale_factor is not None:
        scales = list(scale_factor) if isinstance(scale_factor, (list, tuple)) else [scale_factor] * len(axes)
    is_computed = scales is not None and any(isinstance(each, (torch.Tensor, torch.SymFloat)) for each in scales)
    is_smoothed = antialias and (ctx.backend == "tensorrt" or torch.jit.is_tracing())
    if mode not in _MODES or not (is_computed or is_smoothed) or not input.is_floating_point():
        return ctx.origin(
            input, size=size, scale_factor=scale_factor, mode=mode, align_corners=align_corners,
            recompute_scale_factor=recompute_scale_factor, antialias=antialias,
        )  # fmt: skip
    sizes = _sizes(input, size, scales)
    if scales is None or recompute_scale_factor:
        scales = [None] * len(axes)
    for axis, count, scale in zip(axes, sizes, scales, strict=True):
        step = _step(input.shape[axis], count, scale, bool(align_corners))
        if antialias:
            weights = _filter(input.shape[axis], count, step, mode).to(input.dtype)
            # PyTorch smooths images alone: axis 2 is the rows, 3 the columns.
            input = weights @ input if axis == 2 else input @ weights.transpose(0, 1)
        else:
            input = _along(input, axis, count, step, mode, bool(align_corners))
    return input


def _sizes(tensor: Any, size: Any, scales: Sequence[Any] | None) -> list[Any]:
    if scales is None:
        return list(size) if isinstance(size, (list, tuple)) else [size] * (tensor.dim() - 2)
    return [_rounded(count, scale) for count, scale in zip(tensor.shape[2:], scales, strict=True)]


def _rounded(count: Any, scale: Any) -> Any:
    """Returns a size times a scale, rounded down."""
    import torch

    if isinstance(scale, torch.Tensor) or isinstance(count, torch.Tensor):
        return torch.floor(count * scale + _SLACK).to(torch.int64)
    return torch.sym_int(count * scale + (_SLACK if isinstance(scale, torch.SymFloat) else 0))


def _step(count: Any, wanted: Any, scale: Any, align_corners: bool) -> Any:
    """Returns how many elements of the input one of the output stands for."""
    import torch

    if align_corners:
        # 0 for a single element: then it is the first one.
        if isinstance(wanted, torch.Tensor):
            return (count - 1) * (wanted - 1).clamp(max=1) / (wanted - 1).clamp(min=1)
        return (count - 1) * torch.sym_min(wanted - 1, 1) / torch.sym_max(wanted - 1, 1)
    return count / wanted if scale is None else 1.0 / scale


def _number(value: Any) -> Any:
    """Returns a number as a tensor without dimensions, traced where it is."""
    import torch

    return value.to(torch.float32) if isinstance(value, torch.Tensor) else torch.full((), value, dtype=torch.float32)


def _whole(value: Any) -> Any:
    import torch

    return value.to(torch.int64) if isinstance(value, torch.Tensor) else torch.full((), value, dtype=torch.int64)


def _along(tensor: Any, axis: int, wanted: Any, step: Any, mode: str, align_corners: bool) -> Any:
    """Returns a tensor resized along one axis: the sum of the neighbours of each place, weighed."""
    import torch

    count = tensor.shape[axis]
    last = count - 1
    step = _number(step)
    if not align_corners and mode not in ("nearest-exact", "bicubic"):
        # PyTorch copies where the size stays, and doubles where it doubles, whatever the scale is.
        step = torch.where(_whole(count) == _whole(wanted), torch.ones_like(step), step)
        if mode == "nearest":
            step = torch.where(_whole(count) * 2 == _whole(wanted), torch.full_like(step, 0.5), step)
    places = torch.arange(wanted, dtype=torch.float32)
    if mode.startswith("nearest"):
        at = torch.floor((places + (0.5 if mode == "nearest-exact" else 0)) * step + _SLACK).to(torch.int64)
        return tensor.index_select(axis, _within(at, last))
    source = places * step if align_corners else (places + 0.5) * step - 0.5
    if mode != "bicubic":
        source = source.clamp(min=0)
    first = torch.floor(source)
    part = source - first
    at = first.to(torch.int64)
    if mode == "bicubic":
        taps = [(each, _cubic(part - each, -0.75)) for each in (-1, 0, 1, 2)]
    else:
        taps = [(0, 1 - part), (1, part)]
    shape = [1] * tensor.dim()
    shape[axis] = -1
    pieces = [
        tensor.index_select(axis, _within(at + each, last)) * weight.to(tensor.dtype).reshape(shape)
        for each, weight in taps
    ]
    return sum(pieces[1:], pieces[0])


def _within(at: Any, last: Any) -> Any:
    import torch

    return torch.minimum(at.clamp(min=0), _whole(last))


def _filter(count: Any, wanted: Any, step: Any, mode: str) -> Any:
    """Returns the weights of an antialiased resize along one axis, ``[wanted, count]``: each row adds up to 1."""
    import torch

    step = _number(step)
    spread = step.clamp(min=1)
    centers = (torch.arange(wanted, dtype=torch.float32) + 0.5) * step
    places = torch.arange(count, dtype=torch.float32) + 0.5
    distances = (places[None, :] - centers[:, None]) / spread
    weights = _cubic(distances, -0.5) if mode == "bicubic" else (1 - distances.abs()).clamp(min=0)
    return weights / weights.sum(1, keepdim=True)


def _cubic(distance: Any, a: float) -> Any:
    """Returns the weights of the cubic convolution at distances, 0 from 2 on."""
    x = distance.abs().clamp(max=2)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    return near.where(x <= 1, far)
