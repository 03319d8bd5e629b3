"""The files that operations refer to: found in their fields, and told apart by what is in them.

A recipe names files: weights (``{file: w.npy}``), tables of names, rules, lists of selectors (``@names.txt``), data to
run on, and external data of ONNX text. What it does depends on their content, and so does its digest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxbench.operations._base import Operation

_LOCATION = re.compile(r'"location"\s*:\s*"([^"\n]+)"')
"""How ONNX text refers to external data."""
_SCRIPT = re.compile(r"@?(?P<file>.+\.py)(?::[A-Za-z_]\w*)?")
_MOST_LISTED = 1 << 20
"""No list of selectors has as many bytes."""


def files_of(operation: Operation, folder: Path) -> dict[str, Path]:
    """Returns the files that an operation refers to, by how it names them; also those that are not there.

    Args:
        operation: The operation.
        folder: What the names are relative to.
    """
    found = {name: folder / name for name in operation.files(folder)}
    for value in _values([getattr(operation, each.name) for each in dataclasses.fields(operation)]):
        if isinstance(value, Mapping):
            if isinstance(value.get("file"), str):
                name = str(value["file"])
                name = f"{name.rpartition('.npz:')[0]}.npz" if ".npz:" in name else name
                found[name] = folder / name
        elif value.startswith("@"):
            found.update(_selector_files(value[1:], folder))
        elif '"location"' in value:
            found.update((name, folder / name) for name in _LOCATION.findall(value))
    return found


def _values(roots: list[Any]) -> Iterator[Mapping[Any, Any] | str]:
    """Yields the mappings and texts in the fields of an operation."""
    pending = list(roots)
    while pending:
        value = pending.pop()
        if isinstance(value, Mapping):
            yield value
            pending += value.values()
        elif isinstance(value, (list, tuple)):
            pending += value
        elif isinstance(value, str):
            yield value


def _selector_files(name: str, folder: Path) -> dict[str, Path]:
    """Returns a file of selectors and those that it names in turn; none if there is no such file."""
    found: dict[str, Path] = {}
    pending = [name]
    while pending:
        name = pending.pop()
        path = folder / name
        if name in found or not path.is_file():
            continue
        found[name] = path
        if path.stat().st_size <= _MOST_LISTED:
            text = path.read_bytes().decode("utf-8-sig", errors="replace")
            pending += [line.strip()[1:] for line in text.splitlines() if line.strip().startswith("@")]
    return found


def data_file(word: str, folder: Path) -> tuple[str, str]:
    """Returns the file that ``f.npz``, ``x:f.npy`` or ``script.py:load`` names, and the word with its whole path.

    The file is empty and the word as it was where there is no such file in the folder.
    """
    script = _SCRIPT.fullmatch(word)
    names = [word, script["file"] if script is not None else word.rpartition(":")[2]]
    for name in filter(None, names):
        if (folder / name).exists():
            start = word.index(name)
            return name, f"{word[:start]}{folder / name}{word[start + len(name) :]}"
    return "", word


def content_digest(path: Path) -> str:
    """Returns the SHA-256 of what is in a file, read in blocks, or of the files in a folder with their names.

    Raises:
        OSError: It is not there or cannot be read.
    """
    if not path.is_dir():
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    whole = hashlib.sha256()
    for folder, inner, names in os.walk(path):
        inner.sort()
        for name in sorted(names):
            each = Path(folder) / name
            whole.update(f"{each.relative_to(path).as_posix()}\0{content_digest(each)}\n".encode())
    return whole.hexdigest()
