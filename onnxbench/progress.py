"""How the library says that long work goes on, without knowing who listens.

Work is wrapped in ``track``; whoever wants to show it (the command line, on a terminal) installs a reporter with
``reporting``. Without one, tracking costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol


class Reporter(Protocol):
    """Shows progress."""

    def start(self, what: str, total: int, unit: str) -> None:
        """Begins a piece of work of ``total`` units (``bytes``, ``pieces``)."""
        ...

    def advance(self, amount: int) -> None:
        """Says that ``amount`` more units are done."""
        ...

    def stop(self) -> None:
        """Ends the piece of work."""
        ...


_reporter: ContextVar[Reporter | None] = ContextVar("onnxbench_reporter", default=None)


@contextmanager
def reporting(reporter: Reporter) -> Iterator[None]:
    """Lets ``reporter`` hear of all work within the block."""
    token = _reporter.set(reporter)
    try:
        yield
    finally:
        _reporter.reset(token)


@contextmanager
def track(what: str, total: int, unit: str) -> Iterator[Callable[[int], None]]:
    """Gives a function to call with every amount of work that is done.

    Args:
        what: What is being done: "copying weights".
        total: How many units there are.
        unit: What a unit is: "bytes", "pieces".
    """
    reporter = _reporter.get()
    if reporter is None:
        yield lambda amount: None
        return
    reporter.start(what, total, unit)
    try:
        yield reporter.advance
    finally:
        reporter.stop()
