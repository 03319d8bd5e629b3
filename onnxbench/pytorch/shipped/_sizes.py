"""Sizes of tensors while a model is traced."""

from __future__ import annotations

from typing import Any


def example_sizes(tensor: Any) -> list[int | None]:
    """Returns the sizes that a tensor has with the example inputs; None for those known to be open.

    TorchScript does not say which sizes are open, and makes a tensor of each that is asked for while it traces.
    """
    import torch

    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)
    try:
        return [int(size) if type(size) is int else None for size in tensor.shape]
    finally:
        torch._C._set_tracing_state(state)
