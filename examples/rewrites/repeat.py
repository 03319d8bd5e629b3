"""A function, a method and a module rewritten for TensorRT alone.

onnxbench export examples/rewrites/repeat.py:make model.onnx --rewrites examples/rewrites/repeat.py \
        --backend tensorrt --rewrite-config least=3
"""

import torch
from torch import nn

from onnxbench import rewrites


class Scale(nn.Module):
    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))

    def forward(self, x):
        return torch.asinh(x) * self.factor


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = Scale()

    def forward(self, x):
        values, _ = self.scale(x).repeat(1, 4).topk(20)
        return values


@rewrites.function("torch.Tensor.repeat", backend="tensorrt")
def repeat(ctx, tensor, *sizes):
    """Repeats along dimensions of size 1 are left to the original; others become a concatenation."""
    for dim, count in enumerate(sizes):
        tensor = torch.cat([tensor] * count, dim) if count > 1 else tensor
    return tensor


@rewrites.function("torch.Tensor.topk", backend="tensorrt")
def topk(ctx, tensor, k, *args, **kwargs):
    """As many as the configuration allows."""
    return ctx.origin(tensor, max(k, ctx.config.get("least", k)), *args, **kwargs)


@rewrites.module("repeat.Scale", backend="tensorrt")
class ByLogarithm(nn.Module):
    def __init__(self, ctx, module):
        super().__init__()
        self.factor = module.factor

    def forward(self, x):
        return torch.log(x + torch.sqrt(x * x + 1)) * self.factor


def make():
    return Model(), torch.rand(2, 8)
