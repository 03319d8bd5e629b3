"""A network that predicts a mean and a positive deviation; Softplus has a low threshold."""

from __future__ import annotations

import torch
from torch import nn


class Gaussian(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(4, 16), nn.SiLU())
        self.mean, self.deviation = nn.Linear(16, 2), nn.Linear(16, 2)
        self.positive = nn.Softplus(beta=1, threshold=1)

    def forward(self, x):
        h = self.hidden(x)
        return self.mean(h), self.positive(self.deviation(h)) + 1e-3


def make():
    torch.manual_seed(0)
    return Gaussian().eval(), (5 * torch.randn(8, 4),)


if __name__ == "__main__":
    torch.onnx.export(*make(), "model.onnx", dynamo=False)
