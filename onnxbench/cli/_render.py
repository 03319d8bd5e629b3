"""Printing: results to stdout as text or JSON, everything else to stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from onnxbench.envelope import envelope

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from onnxbench.errors import BenchError
    from onnxbench.writer import Saved


def print_json(command: str, result: Any) -> None:
    """Prints a command's result in the envelope that every command shares."""
    _dump(envelope(command, result=result))


def print_error_json(error: BenchError, *, command: str) -> None:
    """Prints an error in the same envelope."""
    body: dict[str, Any] = {
        "kind": error.kind,
        "exit_code": error.exit_code,
        "message": error.message,
        "hint": error.hint,
        "details": list(error.details),
    }
    for extra in ("missing", "proposals"):
        if hasattr(error, extra):
            body[extra] = getattr(error, extra)
    _dump(envelope(command, error=body))


def _dump(envelope: dict[str, Any]) -> None:
    """Writes JSON: for people on a terminal, on one line for programs, which is many times faster for large results."""
    text = json.dumps(envelope, indent=2 if sys.stdout.isatty() else None, ensure_ascii=False)
    sys.stdout.write(f"{text}\n")


def note(*lines: str, quiet: bool = False) -> None:
    """Prints notes to stderr, one line each, unless told to be quiet."""
    if not quiet:
        for line in lines:
            print(f"onnxbench: {line}", file=sys.stderr)


def chosen(choices: Iterable[str]) -> Iterable[str]:
    """Returns notes on what was decided about drawn inputs."""
    return (f"chosen: {choice}" for choice in choices)


def print_written(saved: Saved) -> None:
    """Prints the files that a model was written to, and their sizes."""
    for file in (saved.path, *saved.external_files):
        print(f"wrote {file} ({format_bytes(file.stat().st_size)})")


def console(*, stderr: bool = False) -> Console:
    """Returns a rich console; piped output is not wrapped to 80 columns."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, soft_wrap=True, width=None if stream.isatty() else 400)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> Table:
    """Returns a plain rich table; a column whose name starts with ``>`` is right-aligned, no cell is markup."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    made = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False, show_edge=False)
    for column in columns:
        made.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left", no_wrap=True)
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def format_bytes(count: int | float) -> str:
    """Returns a size with its unit: ``812 B``, ``22.9 MB`` (powers of 1000, as disks are sold)."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.95 or unit == "TB":
            return f"{int(size)} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError(unit)
