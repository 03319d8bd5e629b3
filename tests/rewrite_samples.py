"""Code of a user's that tests rewrite: functions bound in several ways, modules, an operator, autograd Functions."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn, topk
from torch.nn.functional import interpolate as resize


class Scale(nn.Module):
    def __init__(self, factor=2.0):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x):
        return x * self.factor


class SubScale(Scale):
    pass


class Tools:
    @staticmethod
    def double(x):
        return x * 2

    @classmethod
    def named(cls, x, power=2):
        return x**power


class Block(nn.Module):
    """Blocks within blocks."""

    def __init__(self, depth):
        super().__init__()
        self.inner = Block(depth - 1) if depth else None

    def forward(self, x):
        y = self.inner(x) if self.inner is not None else x
        return y + 1


class Bindings(nn.Module):
    """Calls what tests rewrite in every way that a function can be bound."""

    def __init__(self):
        super().__init__()
        self.act = torch.nn.functional.relu

    def forward(self, x):
        values, _ = topk(x, 2)
        more, _ = torch.topk(x, 2)
        y = self.act(x)[:, :2]
        return values + more + y + Tools.double(x)[:, :2] + Tools.named(x)[:, :2]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        shared = Scale(3.0)
        self.layers = nn.Sequential(
            nn.Linear(4, 4), shared, nn.ModuleDict({"deep": nn.Sequential(SubScale(0.5))})["deep"]
        )
        self.again = shared

    def forward(self, x):
        return self.again(torch.asinh(self.layers(x))).repeat(2, 1)


class Doubled(torch.autograd.Function):
    """2a + b, traced through by torch.export."""

    @staticmethod
    def forward(ctx, a, b, factor=2.0):
        ctx.save_for_backward(a)
        return a * factor + b


class Opaque(torch.autograd.Function):
    """The same in numpy, which no tracer sees into; two results."""

    @staticmethod
    def forward(ctx, a, b):
        made = a.detach().numpy() * 2 + b.detach().numpy()
        return torch.from_numpy(made), torch.from_numpy(np.negative(made))


class Listed(torch.autograd.Function):
    """What no tracer can run without values."""

    @staticmethod
    def forward(ctx, a):
        return torch.tensor(a.tolist()) * -1


class Adding(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, a, b):
        if self.how == "function":
            return Doubled.apply(a, b) * 3
        if self.how == "listed":
            return Listed.apply(a) + b
        if self.how == "opaque":
            first, second = Opaque.apply(a, b)
            return first - second
        return torch.ops.onnxbench_test.my_add(a, b, 2.0) * 3


class Sized(nn.Module):
    def forward(self, x):
        return resize(x, scale_factor=2.0)


@torch.library.custom_op("onnxbench_test::my_add", mutates_args=())
def my_add(a: torch.Tensor, b: torch.Tensor, factor: float = 2.0) -> torch.Tensor:
    return factor * a + b


@my_add.register_fake
def _(a, b, factor=2.0):
    return torch.empty_like(a)
