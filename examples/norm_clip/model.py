"""A network that keeps its features from growing, by an operator that neither PyTorch nor ONNX has."""

from __future__ import annotations

import torch
from torch import nn


class Clipped(nn.Module):
    """Two layers with a NormClip between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x):
        """Returns (N, 4) for x of (N, 16)."""
        return self.second(torch.ops.acme.NormClip(torch.relu(self.first(x)), limit=0.5))


def make():
    """Returns the module and example inputs."""
    torch.manual_seed(0)
    return Clipped(), (torch.randn(2, 16),)
