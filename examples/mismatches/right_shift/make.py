"""Fixed-point arithmetic: products of integers are brought back to their scale by a shift."""

from __future__ import annotations

import torch
from torch import nn


class FixedPoint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randint(-128, 128, (6,)))

    def forward(self, x):
        scaled = (x * self.weight) >> 8
        return scaled.clamp(-8, 7) + 1


def make():
    torch.manual_seed(0)
    return FixedPoint().eval(), (torch.randint(-100, 100, (3, 6)),)


if __name__ == "__main__":
    torch.onnx.export(*make(), "model.onnx", dynamo=False)
