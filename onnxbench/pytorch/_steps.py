"""The steps of a call of PyTorch: what each operator gives that it comes down to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_MOST = 64
"""More steps than this are no single operator."""


class Steps(TorchDispatchMode):  # type: ignore[misc]  # torch does not type it
    """Keeps what the operators give that are called while it is active.

    Attributes:
        values: Their results in order, named after the operators.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, torch.Tensor] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and len(self.values) < _MOST:
            name = func.__name__.partition(".")[0]
            count = sum(known.partition("@")[0] == name for known in self.values)
            self.values[f"{name}@{count}" if count else name] = made.detach().clone()
        return made
