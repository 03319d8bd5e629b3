"""Reports: a folder with all that a command found as JSON, and one page that shows it to people.

    page = Page(title="...", verdict="...", passed=False, sections=[Section("tensors", "All tensors", [table])])
    write_report("DIR", page, {"report.json": data})

A command says *what* is on the page, in blocks (``Table``, ``Drawing``, ``Chart``, ``Tree``, ``Facts``, ``Prose``);
how it looks and what happens on a click is this package's business (``templates/``). One table of a page is its
subject: nodes of a drawing, points of a chart, and entries of a tree name a row of it, and a click shows that row.

The page needs nothing but itself. It asks the network for nothing (its content security policy forbids it), and
tells what it has to tell without JavaScript too, but for charts and for sorting and filtering. All text goes through
the template engine's escaping: names in a model may be anything.

Charts are drawn by plotly, whose JavaScript is put into the page when it is written. Drawings are laid out by
fast-sugiyama. Both, and Jinja2, come with ``pip install 'onnxbench[report]'``; ``require_report`` asks for them before
work begins.
"""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnxbench.errors import MissingDependencyError, OutputError
from onnxbench.reporting._blocks import (
    Block,
    Cell,
    Chart,
    Column,
    Drawing,
    Facts,
    Node,
    Number,
    Page,
    Place,
    Prose,
    Section,
    Table,
    Tree,
    TreeEntry,
    heat_of,
    place_of,
)
from onnxbench.staging import BEFORE, staging_folder

__all__ = [
    "DATA", "PAGE", "Block", "Cell", "Chart", "Column", "Drawing", "Facts", "Node", "Number", "Page", "Place", "Prose",
    "Section", "Table", "Tree", "TreeEntry", "heat_of", "place_of", "require_report", "write_report",
]  # fmt: skip

PAGE = "report.html"
DATA = "report.json"
_NEEDED = {"plotly": "plotly", "jinja2": "jinja2", "fast_sugiyama": "fast-sugiyama"}
"""Modules that a page is made with, and the packages that they are in."""


def require_report(folder: str | os.PathLike[str], command: str) -> Path:
    """Returns the folder for a report, if one can be written there.

    Args:
        folder: Where; it may be missing, empty, or hold an earlier report of the same command and nothing else.
        command: The command.

    Raises:
        MissingDependencyError: A package is missing that pages are made with.
        OutputError: The folder holds something else, or is a file.
    """
    missing = [package for module, package in _NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingDependencyError(
            f"a report needs {' and '.join(missing)}, which {'is' if len(missing) == 1 else 'are'} not installed",
            hint="pip install 'onnxbench[report]'",
        )
    target = Path(folder)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise OutputError(f"{target} is there already and is no folder", hint="Name a new folder.")
    if target.is_dir() and any(target.iterdir()) and not _is_report(target, command):
        raise OutputError(
            f"{target} is there already, and it is no report of '{command}' that could be replaced",
            hint="Name a new folder, or an empty one.",
        )
    return target


def _is_report(folder: Path, command: str) -> bool:
    """Tells whether a folder holds an earlier report of a command and nothing else."""
    if {entry.name for entry in folder.iterdir()} != {PAGE, DATA}:
        return False
    try:
        said = json.loads((folder / DATA).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and said.get("command") == command and "onnxbench" in said


def write_report(folder: str | os.PathLike[str], page: Page, data: Mapping[str, Any]) -> tuple[Path, ...]:
    """Writes a report, as a whole or not at all, and returns its files: the page and the data.

    Args:
        folder: Where (see ``require_report``); a folder above it that is missing is made.
        page: What people see.
        data: What programs read, as plain JSON values (``onnxbench.envelope``).

    Raises:
        MissingDependencyError: A package is missing that pages are made with.
        OutputError: The folder cannot be written; what was there is still there.
    """
    from onnxbench.reporting._pages import page_html

    target = Path(os.path.abspath(require_report(folder, str(data["command"]))))
    text = json.dumps(data, ensure_ascii=False, allow_nan=False)  # on one line: many times faster
    files = {PAGE: page_html(page), DATA: f"{text}\n"}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with staging_folder(target) as staging:
            made = staging / "made"
            made.mkdir()
            for name, content in files.items():
                with open(made / name, "wb") as out:
                    out.write(content.encode("utf-8", "backslashreplace"))  # a lone surrogate is no character
                    out.flush()
                    os.fsync(out.fileno())
            _put(made, target, staging / BEFORE)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}; no report was left behind") from None
    return tuple(Path(folder) / name for name in files)


def _put(made: Path, target: Path, before: Path) -> None:
    """Moves a folder into place; the one that is there goes, or comes back if that fails."""
    if target.exists():
        os.rename(target, before)
    try:
        os.rename(made, target)
    except BaseException:  # an interrupt, too, must leave what was there
        if before.exists():
            os.rename(before, target)
        raise
