"""The steps of a call of PyTorch: what each operator gives that it comes down to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch.utils._python_dispatch import TorchDispatchMode

_MOST = 64
"""More steps than this are no single operator."""
_NO_STEPS = ("detach", "alias", "lift_fresh", "lift_fresh_copy", "clone")
"""Operators that give what they are given."""


class Steps(TorchDispatchMode):  # type: ignore[misc]  # torch does not type it
    """Keeps what the operators give that are called while it is active.

    Of an operator that PyTorch knows a decomposition of, the steps of that follow: a SiLU is a product with a Sigmoid,
    and a linear layer one of matrices and a sum. Exporters write nodes for these.

    Attributes:
        values: Their results in order, named after the operators.
    """

    def __init__(self) -> None:
        super().__init__()
        self.values: dict[str, torch.Tensor] = {}
        self._is_taken_apart = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = kwargs or {}
        made = func(*args, **given)
        name = func.__name__.partition(".")[0]
        if name in _NO_STEPS:
            return made
        self._keep(name, made)
        decompose = decomposition_table.get(func)
        changes = func._schema.is_mutable or torch.Tag.nondeterministic_seeded in func.tags
        if decompose is not None and not changes and not self._is_taken_apart:
            self._is_taken_apart = True
            try:
                with self:
                    decompose(*args, **given)
            except Exception:  # some are for other devices or types; what the operator gives is known all the same
                pass
            finally:
                self._is_taken_apart = False
        return made

    def _keep(self, name: str, made: Any) -> None:
        if isinstance(made, torch.Tensor) and len(self.values) < _MOST:
            count = sum(known.partition("@")[0] == name for known in self.values)
            self.values[f"{name}@{count}" if count else name] = made.detach().clone()
