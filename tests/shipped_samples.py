"""Models that need a shipped rewrite, and stand-ins for packages that are not installed here."""

from __future__ import annotations

import sys
import types

import torch
from torch.nn import functional


class Calling(torch.nn.Module):
    """A module of one function, with inputs ``x``, ``y`` and ``z``."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, y=None, z=None):
        given = [each for each in (x, y, z) if each is not None]
        return self.function(*given)


class Attending(torch.nn.Module):
    def __init__(self, **words):
        super().__init__()
        self.words = words

    def forward(self, query, key, value, mask=None):
        return functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, **self.words)


def sample(x, y, at):
    """Returns the values of a tensor ``[n, c, h, w]`` at places ``[n, .., 2]`` between pixels, 0 outside."""
    n, c, h, w = x.shape
    places = at.reshape(n, -1, 2)
    top, left = places[..., 0].floor(), places[..., 1].floor()
    found = 0
    for dy in (0, 1):
        for dx in (0, 1):
            row, column = top + dy, left + dx
            weight = (1 - (places[..., 0] - row).abs()) * (1 - (places[..., 1] - column).abs())
            inside = (row >= 0) & (row < h) & (column >= 0) & (column < w)
            index = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).long()
            taken = x.reshape(n, c, -1).gather(2, index[:, None].expand(n, c, -1))
            found = found + taken * (weight * inside)[:, None]
    return found.reshape(n, c, *at.shape[1:-1])


def deform_conv(x, weight, offset, mask, bias, stride, padding, dilation, groups, offset_groups):
    """Returns what a deformable convolution gives, place by place."""
    n, c = x.shape[:2]
    out, _, kh, kw = weight.shape
    oh, ow = offset.shape[2:]
    offset = offset.reshape(n, offset_groups, kh * kw, 2, oh, ow)
    rows = torch.arange(oh) * stride[0] - padding[0]
    columns = torch.arange(ow) * stride[1] - padding[1]
    parts = []
    for number, part in enumerate(x.chunk(offset_groups, 1)):
        taps = []
        for tap in range(kh * kw):
            y = rows[:, None] + (tap // kw) * dilation[0] + offset[:, number, tap, 0]
            z = columns[None] + (tap % kw) * dilation[1] + offset[:, number, tap, 1]
            found = sample(part, None, torch.stack([y, z], -1))
            if mask is not None:
                found = found * mask.reshape(n, offset_groups, kh * kw, oh, ow)[:, number, tap][:, None]
            taps.append(found)
        parts.append(torch.stack(taps, 2))
    columns_of = torch.cat(parts, 1).reshape(n, groups, c // groups * kh * kw, oh * ow)
    filters = weight.reshape(groups, out // groups, -1)
    result = (filters @ columns_of).reshape(n, out, oh, ow)
    return result if bias is None else result + bias[:, None, None]


def as_torchvision():
    """Defines torchvision's operator where torchvision is not installed, and returns what keeps it."""
    if hasattr(torch.ops.torchvision, "deform_conv2d"):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    library.define(
        "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, "
        "SymInt stride_w, SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, "
        "SymInt offset_groups, bool use_mask) -> Tensor"
    )

    def run(x, weight, offset, mask, bias, sh, sw, ph, pw, dh, dw, groups, offset_groups, use_mask):
        geometry = (sh, sw), (ph, pw), (dh, dw), groups, offset_groups
        return deform_conv(x, weight, offset, mask if use_mask else None, bias, *geometry)

    library.impl("deform_conv2d", run, "CompositeExplicitAutograd")
    torch.library.register_fake(
        "torchvision::deform_conv2d",
        lambda x, weight, offset, *_: x.new_empty(x.shape[0], weight.shape[0], *offset.shape[2:]), lib=library,
    )  # fmt: skip
    return library


class ModulatedDeformConv2dFunction(torch.autograd.Function):
    """mmcv's, with a forward that cannot be looked into."""

    @staticmethod
    def symbolic(g, input, offset, mask, weight, bias, *geometry):
        return g.op("mmcv::MMCVModulatedDeformConv2d", input, offset, mask, weight, bias)

    @staticmethod
    def forward(ctx, input, offset, mask, weight, bias=None, stride=1, padding=0, dilation=1, groups=1,
                deform_groups=1):  # fmt: skip
        given = [None if each is None else torch.from_numpy(each.detach().numpy())
                 for each in (input, weight, offset, mask, bias)]  # fmt: skip
        return deform_conv(*given, (stride,) * 2, (padding,) * 2, (dilation,) * 2, groups, deform_groups)


def as_mmcv(monkeypatch):
    """Makes mmcv importable for a test."""
    names = ("mmcv", "mmcv.ops", "mmcv.ops.modulated_deform_conv")
    made = {name: types.ModuleType(name) for name in names}
    made[names[2]].ModulatedDeformConv2dFunction = ModulatedDeformConv2dFunction
    made[names[1]].modulated_deform_conv = made[names[2]]
    made[names[0]].ops = made[names[1]]
    for name, module in made.items():
        monkeypatch.setitem(sys.modules, name, module)


class Deforming(torch.nn.Module):
    """A deformable convolution of torchvision's or mmcv's."""

    def __init__(self, package="torchvision", *, groups=1, offset_groups=1, use_mask=True):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(torch.randn(4, 4 // groups, 3, 3, generator=generator))
        self.bias = torch.nn.Parameter(torch.randn(4, generator=generator))
        self.package, self.groups, self.offset_groups, self.use_mask = package, groups, offset_groups, use_mask

    def forward(self, x, offset, mask):
        if self.package == "mmcv":
            apply = ModulatedDeformConv2dFunction.apply
            return apply(x, offset, mask, self.weight, self.bias, 1, 1, 1, self.groups, self.offset_groups)
        last = (1, 1, 1, 1, 1, 1, self.groups, self.offset_groups, self.use_mask)
        result = torch.ops.torchvision.deform_conv2d(x, self.weight, offset, mask, self.bias, *last)
        return result if self.use_mask else result + 0 * mask.sum()
