"""The JSON that all commands print and all reports hold: results as plain values, in one envelope."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from onnxbench.version import SCHEMA_VERSION, __version__


def jsonable(value: Any) -> Any:
    """Returns a result as plain JSON values: dataclasses as objects, NaN and infinities as strings, sets sorted.

    Raises:
        TypeError: Something in it has no JSON form: a bug.
    """
    if value is None or type(value) in (str, bool, int):  # most values are
        return value
    if hasattr(value, "to_json"):
        return jsonable(value.to_json())
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: jsonable(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, (set, frozenset)):
        return [jsonable(item) for item in sorted(value)]
    if isinstance(value, Iterable):
        return [jsonable(item) for item in value]
    if hasattr(value, "item"):
        return jsonable(value.item())
    raise TypeError(f"no JSON form for {type(value).__name__}")


def envelope(command: str, **body: Any) -> dict[str, Any]:
    """Returns what a command has to say, as plain values, behind the version of their schema and of onnxbench.

    Args:
        command: The command's name.
        body: What it says: ``result``, ``error``.
    """
    return {"schema_version": SCHEMA_VERSION, "onnxbench": __version__, "command": command, **jsonable(body)}
