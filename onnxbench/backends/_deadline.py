"""A limit on the time of one call into a runtime, which cannot be interrupted from Python: the process ends by it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

_seconds = 0.0


def set_deadline(seconds: float) -> None:
    """Lets SIGALRM end this process when a call takes longer; 0 for no limit."""
    global _seconds
    _seconds = seconds
    if seconds:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


@contextmanager
def deadline() -> Iterator[None]:
    """Bounds the time of what is called within the block, if there is a limit."""
    if not _seconds:
        yield
        return
    signal.setitimer(signal.ITIMER_REAL, _seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
