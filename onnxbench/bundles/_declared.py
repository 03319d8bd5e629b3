"""What a bundle's source says of its operators; nothing is run."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnxbench.bundles import Bundle


@dataclass(frozen=True, slots=True)
class DeclaredOperator:
    """An operator as the source of a bundle says it.

    Attributes:
        domain: Its domain.
        op: Its name in models.
        since_version: The version of the domain's operators from which on it is so.
        version: The version of the plugin in TensorRT.
        dtypes: Element types that it computes in; nothing if they are not written down plainly.
        aliases: Other names that models have it under, ``domain::op``.
    """

    domain: str
    op: str
    since_version: int
    version: str
    dtypes: tuple[str, ...]
    aliases: tuple[str, ...]


def declared_operators(file: Path) -> list[DeclaredOperator]:
    """Returns the operators of ``Bundle(...)`` calls in a file; none if it cannot be read or is no Python."""
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, UnicodeDecodeError):
        return []
    calls = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == Bundle.__name__
    ]
    found = ({each.arg: _literal(each.value) for each in call.keywords if each.arg} for call in calls)
    return [_declared(said) for said in found if all(isinstance(said.get(name), str) for name in ("op", "domain"))]


def _declared(said: dict[str, Any]) -> DeclaredOperator:
    fields = Bundle.__dataclass_fields__
    told = {name: said.get(name, fields[name].default) for name in ("version", "dtypes", "aliases")}
    return DeclaredOperator(
        said["domain"], said["op"], 1, str(told["version"]), _names(told["dtypes"]), _names(told["aliases"])
    )


def _names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, (list, tuple)) else ()


def _literal(value: ast.expr) -> Any:
    """Returns what an expression is, None if that takes more than reading."""
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
