"""Boxes that are divided by the size of the image, as Python numbers."""

from __future__ import annotations

import torch
from torch import nn


class Boxes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features, self.box = nn.Conv2d(3, 8, 3, 2, 1), nn.Linear(8, 4)

    def forward(self, image):
        height, width = int(image.shape[2]), int(image.shape[3])
        pixels = self.box(self.features(image).relu().mean((2, 3))) * 100
        return pixels / torch.tensor([width, height, width, height])


def make():
    torch.manual_seed(0)
    return Boxes().eval(), (torch.randn(1, 3, 16, 16),)


if __name__ == "__main__":
    sizes = {"image": {2: "height", 3: "width"}}
    torch.onnx.export(*make(), "model.onnx", dynamo=False, input_names=["image"], dynamic_axes=sizes)
