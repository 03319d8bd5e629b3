"""Attention of two sequences, one of which is padding at its end: a boolean mask that hides whole rows."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x, mask):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 8)).permute(2, 0, 3, 1, 4)
        heads = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(heads.transpose(1, 2).flatten(2))


def make():
    torch.manual_seed(0)
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    mask = real[:, None, :, None] & real[:, None, None, :]
    return Attention().eval(), (torch.randn(2, 6, 16), mask)


if __name__ == "__main__":
    torch.onnx.export(*make(), "model.onnx", dynamo=True, verbose=False)
