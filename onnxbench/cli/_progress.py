"""Progress bars on stderr, for work that takes longer than a moment, on terminals only."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from onnxbench.progress import reporting

if TYPE_CHECKING:
    from rich.progress import Progress

_PATIENCE = 0.7  # seconds of work before anything is shown


class _Bar:
    """A reporter that opens a rich progress bar once the work has lasted a while."""

    def __init__(self) -> None:
        self._bar: Progress | None = None
        self._what, self._total, self._unit = "", 0, ""
        self._done = 0
        self._since = 0.0

    def start(self, what: str, total: int, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done, self._since = 0, time.monotonic()

    def advance(self, amount: int) -> None:
        self._done += amount
        if self._bar is None and time.monotonic() - self._since > _PATIENCE:
            self._open()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _open(self) -> None:
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeRemainingColumn,
        )

        from onnxbench.cli._render import console

        amount = DownloadColumn() if self._unit == "bytes" else MofNCompleteColumn()
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn(), console=console(stderr=True),
            transient=True,
        )  # fmt: skip
        self._bar.start()
        self._bar.add_task(self._what, total=self._total)


@contextmanager
def bars() -> Iterator[None]:
    """Shows the progress of all work within the block, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield
        return
    bar = _Bar()
    try:
        with reporting(bar):
            yield
    finally:
        bar.stop()
