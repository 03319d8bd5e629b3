"""``cdist`` of the Euclidean distance, under the default exporter; every backend.

It has no translation of ``aten._cdist_forward``. With the rewrite, differences are squared and summed up: the more
exact of the two ways that PyTorch has.
"""

from __future__ import annotations

from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites


@rewrites.function("torch.cdist")
def cdist(ctx: RewriteInfo, x1: Any, x2: Any, p: float = 2.0, compute_mode: str = "use_mm_for_euclid_dist") -> Any:
    """Returns the distances between all pairs of rows."""
    import torch

    if p != 2 or torch.jit.is_tracing():
        return ctx.origin(x1, x2, p=p, compute_mode=compute_mode)
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    return (difference * difference).sum(-1).sqrt()
