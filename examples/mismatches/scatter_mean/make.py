"""A layer of a graph network: each node takes the mean of its neighbours' messages."""

from __future__ import annotations

import torch
from torch import nn


class GraphLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message, self.update = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x, source, target):
        messages = self.message(x)[source].relu()
        mean = torch.zeros_like(x).scatter_reduce(0, target[:, None].expand(-1, 4), messages, "mean")
        return self.update(x + mean)


def make():
    torch.manual_seed(0)
    return GraphLayer().eval(), (torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 4, 0]), torch.tensor([1, 2, 1, 2, 1, 3]))


if __name__ == "__main__":
    torch.onnx.export(*make(), "model.onnx", dynamo=True, verbose=False)
