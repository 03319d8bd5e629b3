"""Scores whose forbidden entries are overwritten in place, through another view of the same memory."""

from __future__ import annotations

import torch
from torch import nn


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 12)
        self.register_buffer("forbidden", torch.tensor([True, False, False]))

    def forward(self, x):
        scores = self.head(x).relu()
        scores.view(-1, 4, 3).masked_fill_(self.forbidden, -1.0)
        return scores.sigmoid()


def make():
    torch.manual_seed(0)
    return Scores().eval(), (torch.randn(2, 8),)


if __name__ == "__main__":
    torch.onnx.export(*make(), "model.onnx", dynamo=False)
