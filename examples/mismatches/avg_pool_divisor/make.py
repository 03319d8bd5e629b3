"""Pooling that sums pixels instead of averaging them."""

from __future__ import annotations

import torch
from torch import nn


class Counter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.pool = nn.AvgPool2d(2, divisor_override=1)
        self.head = nn.Linear(64, 3)

    def forward(self, image):
        return self.head(self.pool(self.conv(image).relu()).flatten(1))


def make():
    torch.manual_seed(0)
    return Counter().eval(), (torch.randn(2, 1, 8, 8),)


if __name__ == "__main__":
    torch.onnx.export(*make(), "model.onnx", dynamo=True, verbose=False)
