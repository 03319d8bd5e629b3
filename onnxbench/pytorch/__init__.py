"""PyTorch: models loaded, exported with their provenance, and checked against what they were exported from.

Nothing here imports torch before it is needed, and nothing outside imports torch at all. Without it, one error says
how to install it (``require_torch``).
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

from onnxbench.errors import MissingDependencyError


def require_torch(what: str = "this") -> Any:
    """Returns the module ``torch``.

    Args:
        what: What it is needed for, for the message.

    Raises:
        MissingDependencyError: torch or onnxscript, which its exporter needs, is not installed.
    """
    missing = [name for name in ("torch", "onnxscript") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(
            f"{what} needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            hint="pip install onnxbench[torch]",
        )
    return import_module("torch")
