"""PyTorch models for the tests of ``bisect --torch``: each factory takes nothing and has weights of its own."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.act, self.dropout = nn.GELU(), nn.Dropout(0.1)

    def forward(self, x):
        hidden = self.act(self.up(self.norm(x)))
        return x + self.dropout(self.down(hidden))


class Net(nn.Module):
    """A convolution with a batch normalization, which exporters fold into one, and three blocks."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, 2, 1)
        self.bn = nn.BatchNorm2d(width)
        self.blocks = nn.ModuleList(Block(width) for _ in range(3))
        self.head = nn.Linear(width, 5)

    def forward(self, image):
        x = torch.relu(self.bn(self.stem(image))).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


class Branching(Net):
    """What ``torch.export`` cannot take: a branch on a value."""

    def forward(self, image):
        return super().forward(image if float(image.sum()) < 1e9 else -image)


def randomized(net: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        net.bn.running_mean.copy_(torch.randn(net.bn.running_mean.shape, generator=generator))
        net.bn.running_var.copy_(0.5 + torch.rand(net.bn.running_var.shape, generator=generator))
    return net.eval()


def image() -> torch.Tensor:
    return torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def net():
    return randomized(Net()), (image(),)


def small_biases():
    """What comes before a bias is added is near to what comes after it."""
    module = randomized(Net())
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("up.bias", "down.bias")):
                parameter.mul_(0.05)
    return module, (image(),)


def alone():
    return randomized(Net())


def branching():
    return randomized(Branching()), (image(),)


def wider():
    return randomized(Net(24)), (image(),)


class Ids(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 8)
        self.out = nn.Linear(8, 3)

    def forward(self, ids):
        return self.out(self.table(ids)).softmax(-1)


def ids():
    torch.manual_seed(0)
    return Ids().eval(), (torch.tensor([[0, 3, 7, 29, 11], [1, 2, 8, 9, 10]]),)


class Gated(nn.Module):
    """Operators of PyTorch that are several nodes each: linear layers, SiLU, attention whose keys are square."""

    def __init__(self) -> None:
        super().__init__()
        self.queries, self.keys, self.values = (nn.Linear(16, 16) for _ in range(3))
        self.gate, self.up, self.down = nn.Linear(16, 24), nn.Linear(16, 24), nn.Linear(24, 16)

    def forward(self, x):
        parts = [each(x).view(1, 8, 2, 8).transpose(1, 2) for each in (self.queries, self.keys, self.values)]
        x = x + nn.functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(1, 8, 16)
        return x + self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def gated():
    torch.manual_seed(0)
    return Gated().eval(), (torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(1)),)
