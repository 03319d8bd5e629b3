"""Points that are summed into the cells of a grid; two points fall into one cell."""

from __future__ import annotations

import torch
from torch import nn


class Voxels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(3, 4)

    def forward(self, points, cells):
        features = self.encode(points).relu()
        grid = torch.zeros(6, 4).index_put((cells,), features, accumulate=True)
        return grid.tanh()


def make():
    torch.manual_seed(0)
    return Voxels().eval(), (torch.randn(5, 3), torch.tensor([0, 4, 2, 2, 4]))


if __name__ == "__main__":
    torch.onnx.export(*make(), "model.onnx", dynamo=False, input_names=["points", "cells"])
