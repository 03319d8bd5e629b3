"""Small PyTorch models for the tests of everything about PyTorch: each factory takes nothing."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, 3, padding=1)
        self.bn = nn.BatchNorm2d(after)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(Block(3, 4), Block(4, 4))
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x, scale=None):
        y = self.dropout(self.layers(x).mean((2, 3)))
        if scale is not None:
            y = y * scale
        return self.head(y), y


def randomized(module: nn.Module) -> nn.Module:
    """Gives weights and running statistics values that differ from one another, unlike the defaults."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        for name, buffer in module.named_buffers():
            if name.endswith("running_mean"):
                buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
            elif name.endswith("running_var"):
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return module


def image(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def net():
    return randomized(Net()), (image(),)


def net_alone():
    return randomized(Net())


def net_with_scale():
    return randomized(Net()), (image(),), {"scale": torch.tensor(2.0)}


def net_by_keyword():
    return randomized(Net()), {"scale": torch.tensor(2.0), "x": image()}


class Frozen(nn.Module):
    def forward(self, x):
        count = int(x.sum())
        return x * count


def frozen():
    return Frozen(), torch.ones(2, 3)


class Branch(nn.Module):
    def forward(self, x):
        if x.sum() > 0:
            return x + 1
        return x - 1


def branch():
    return Branch(), torch.ones(2, 3)


class Loop(nn.Module):
    def forward(self, x):
        y = x
        for row in range(x.shape[0]):
            y = y + x[row]
        return y


def loop():
    return Loop(), torch.ones(2, 3)


class BakedBatch(nn.Module):
    def forward(self, x):
        return x.reshape(int(x.shape[0]), -1)


def baked_batch():
    return BakedBatch(), torch.ones(2, 3, 2)


@dataclasses.dataclass
class Result:
    logits: torch.Tensor
    hidden: torch.Tensor


class Nested(nn.Module):
    """Takes a list and a dict, and returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, features, extra):
        total = features[0] + features[1]
        return {"logits": self.linear(total), "sum": total * extra["weight"]}


def nested():
    module = randomized(Nested())
    return module, ([torch.ones(2, 4), torch.full((2, 4), 2.0)], {"weight": torch.tensor(0.5)})


class Clash(nn.Module):
    def forward(self, x):
        relu = torch.relu(x)
        return torch.sigmoid(relu) + relu


def clash():
    return Clash(), torch.randn(2, 3, generator=torch.Generator().manual_seed(2))


class PassThrough(nn.Module):
    def forward(self, x):
        y = x * 2
        return x, y, y


def pass_through():
    return PassThrough(), torch.ones(2, 3)


class Unused(nn.Module):
    def forward(self, x, mask, times):
        return x * times


def unused():
    return Unused(), (torch.ones(2, 3), torch.ones(2, 3), 3)


class Default(nn.Module):
    """As transformers' models: a number with a default between arguments that are given by keyword."""

    def forward(self, x, keep=0, mask=None):
        y = x[:, slice(-keep, None)] if isinstance(keep, int) else x[:, keep]
        return y * mask


def default():
    return Default(), (torch.ones(2, 3),), {"mask": torch.full((2, 3), 2.0)}


class DefaultLast(nn.Module):
    def forward(self, x, keep=0):
        return x[:, slice(-keep, None)] if isinstance(keep, int) else x[:, keep]


def default_last():
    return DefaultLast(), torch.ones(2, 3)


class Noise(nn.Module):
    def forward(self, x):
        return x + torch.rand_like(x)


def noise():
    return Noise(), torch.ones(2, 3)


def marked_net():
    from onnxbench import mark

    class Marked(Net):
        @mark("body", inputs=["image"], outputs=["features"])
        def body(self, x):
            return self.layers(x)

        def forward(self, x):
            return self.head(self.body(x).mean((2, 3)))

    return randomized(Marked()), image()


def talks():
    print("building the model")
    return net()


def raises():
    values = {}
    return values["weights"]


def returns_a_number():
    return 3


def returns_weights():
    return Net().state_dict()


def needs(size):
    return nn.Linear(size, size)


def fails_inside():
    class Broken(nn.Module):
        def forward(self, x):
            return x @ x

    return Broken(), torch.ones(2, 3)


class Twice(nn.Module):
    """Calls one module twice, changes a tensor in place, returns nested results: what only hooks see rightly."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.relu = nn.ReLU(inplace=True)
        self.pair = Halves()

    def forward(self, x):
        y = self.relu(self.linear(self.relu(self.linear(x))))
        left = self.pair(y)
        return {"left": left["parts"][0], "sum": left["parts"][0] + left["parts"][1]}


class Halves(nn.Module):
    def forward(self, x):
        return {"parts": [x[:, :2] * 1.5, x[:, 2:] - 0.25], "count": 2}


def twice():
    return randomized(Twice()), torch.randn(3, 4, generator=torch.Generator().manual_seed(3))


class Stubborn(nn.Module):
    """A branch on a value: torch.export refuses it, TorchScript freezes it."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 2)

    def forward(self, x):
        y = torch.tanh(self.first(x))
        if y.sum() > 1e6:
            y = -y
        return self.second(y)


def stubborn():
    return randomized(Stubborn()), torch.randn(3, 4, generator=torch.Generator().manual_seed(4))


class Siblings(nn.Module):
    """Two branches with equal weights: their values cannot be told apart."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(4, 4)
        self.right = nn.Linear(4, 4)

    def forward(self, x):
        return torch.sigmoid(self.left(x)) @ torch.tanh(self.right(x)).T


def siblings():
    module = randomized(Siblings())
    module.right.load_state_dict(module.left.state_dict())
    return module, torch.randn(3, 4, generator=torch.Generator().manual_seed(5))


def other_weights():
    module = randomized(Net())
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5).add_(0.1)
    return module, (image(),)


def half_net():
    module, (x,) = net()
    return module.to(torch.bfloat16), (x.to(torch.bfloat16),)


class Deep(nn.Module):
    def forward(self, x):
        for _ in range(24):
            x = torch.sin(x) + 0.5
        return x


def deep():
    return Deep(), torch.randn(512, 513, generator=torch.Generator().manual_seed(6))


class Split(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 9)

    def forward(self, x):
        q, k, v = self.linear(x).split(3, dim=-1)
        return torch.softmax(q @ k.T, -1) @ v


def split():
    return randomized(Split()), torch.randn(5, 4, generator=torch.Generator().manual_seed(7))


class Pair(nn.Module):
    def forward(self, left, right):
        return left - right


def pair_of_images():
    return Pair(), (image(), image())


class Keyed(nn.Module):
    """Returns a dict in which one tensor stands twice, an input is passed on, and something is None."""

    def forward(self, x):
        y = x * 2
        return {"twice": y, "again": y, "none": None, "parts": [x + 1, x - 1], "same": x}


def keyed():
    return Keyed(), (torch.ones(2, 3),)
