"""SRCNN with an upscaling whose size is known only at run time: that of a second input."""

from __future__ import annotations

import torch
from torch import nn


class SuperResolutionNet(nn.Module):
    """Bicubic upscaling, then three convolutions (Dong et al., 2014)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=9, padding=4)
        self.conv2 = nn.Conv2d(64, 32, kernel_size=1)
        self.conv3 = nn.Conv2d(32, 3, kernel_size=5, padding=2)

    def forward(self, x, size_tensor):
        """Returns an image of the size of ``size_tensor``'s last two dimensions, for x of (N, 3, H, W)."""
        x = torch.ops.Test.dynamic_resize(x, size_tensor)  # the operator of plugins/dynamic_resize
        x = torch.relu(self.conv1(x))
        x = torch.relu(self.conv2(x))
        return self.conv3(x)


def make():
    """Returns the module, its weights drawn from a seed, and example inputs."""
    torch.manual_seed(0)
    return SuperResolutionNet(), (torch.rand(1, 3, 32, 32), torch.zeros(1, 1, 64, 64))
