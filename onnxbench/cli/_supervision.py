"""A command that outlives a crash of what it runs: the work is done in a forked process, and this one waits.

A runtime in C++ that crashes cannot be caught where it runs. To try the suspect in a new process first costs 0.3 to 2 s
(measured: magika 0.9 s without, 2.1 s with; ppocr_v2_cls 2.3 s and 4.2 s); to fork this one, before anything heavy is
loaded, costs 10 ms. If the work dies of a
signal, the command goes on here, where nothing is lost, and looks for what did it, with sessions in processes of
their own.

A fork takes over locks of threads that it does not have, and returns into whoever called. So only the console command
forks, which starts with nothing loaded; where another program calls the app, the work is done as it would be in Python.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from typing import TYPE_CHECKING

import typer

from onnxbench.errors import ExecutionError

if TYPE_CHECKING:
    from types import FrameType

_CRASHES = {
    getattr(signal, name)
    for name in ("SIGSEGV", "SIGFPE", "SIGABRT", "SIGILL", "SIGBUS", "SIGKILL", "SIGTRAP", "SIGSYS", "SIGALRM")
    if hasattr(signal, name)
}

_PASSED_ON = (signal.SIGINT, signal.SIGTERM)
_owned = False
_ECHO = 0.5  # seconds within which a second interrupt is the first one, passed on


def own_process() -> None:
    """Says that this process runs one command and nothing else, so that it may fork."""
    global _owned
    _owned = True


def after_a_crash(seconds: float) -> bool:
    """Returns False in a forked process that does the work, and True, in another one, once that has crashed or hung.

    This process waits, and ends as the work does. Where another program called the app, nothing is forked.

    Args:
        seconds: How long one call of the runtime may take.

    Raises:
        ExecutionError: The second one crashed too.
    """
    if not _owned or not hasattr(os, "fork"):
        return False
    for attempt in (False, True):
        ending = _ending_of_the_work(seconds)
        if ending is None:
            return attempt
        name = signal.Signals(-ending).name
        how = f"a call of the runtime took longer than {seconds:g} s" if name == "SIGALRM" else f"crashed ({name})"
        if not attempt:
            print(f"onnxbench: the work was ended: {how}; looking for what did it", file=sys.stderr)
    raise ExecutionError(
        f"the work was ended: {how}; the suspect by itself does not do that",
        hint="The reference may, or parts of either side: --on and --reference-on choose other runtimes or settings.",
    )


def _ending_of_the_work(seconds: float) -> int | None:
    """Returns None in a forked process, and in this one the signal (negative) that the fork died of."""
    sys.stdout.flush()
    sys.stderr.flush()
    unmasked = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON)
    worker = os.fork()
    if not worker:
        _take_interrupts_once()
        signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
        _prepare(seconds)
        return None
    ending = os.waitstatus_to_exitcode(_wait(worker, unmasked))
    if ending >= 0:
        raise typer.Exit(ending)
    if -ending not in _CRASHES:
        raise typer.Exit(128 - ending)
    return ending


def _prepare(seconds: float) -> None:
    import resource

    from onnxbench import backends

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    backends.end_process_after(seconds)


def _take_interrupts_once() -> None:
    """Makes Ctrl-C one interrupt: the terminal sends it to both processes, and the waiting one passes it on."""
    last = -math.inf

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal last
        previous, last = last, time.monotonic()
        if last - previous > _ECHO:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)


def _wait(worker: int, unmasked: set[int]) -> int:
    """Returns how the worker ended; signals that are meant for us reach it, and it decides what becomes of them."""
    previous = {number: signal.getsignal(number) for number in _PASSED_ON}
    for number in previous:
        signal.signal(number, lambda number, frame: os.kill(worker, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, unmasked)
    try:
        return os.waitpid(worker, 0)[1]
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
