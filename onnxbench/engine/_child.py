"""Runs one job in TensorRT's own process, and turns whatever becomes of it into a result or one error."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from onnxbench import errors, progress
from onnxbench.engine._flavors import choose_name
from onnxbench.errors import BenchError, EngineError

Heard = Callable[[str, str], None]
"""Called with the severity and text of every line that TensorRT logs."""


def run_job(job: Mapping[str, Any], heard: Heard | None = None) -> dict[str, Any]:
    """Returns what a job yields (see ``onnxbench.engine._worker``).

    Its temporary files lie in a folder that goes when the process ends, however it ends.

    Args:
        job: The job, plain values.
        heard: Hears TensorRT's log as it comes.

    Raises:
        BenchError: What the job raised, or an ``EngineError`` that says how far a process that died had come.
    """
    device = job.get("device")
    ready = next((each for each in _STANDBY if each.engine == job["engine"] and device is None), None)
    if ready is not None:
        _STANDBY.remove(ready)
        with ready, contextlib.suppress(_DiedBeforeError):  # by what it looked ahead at: a new one says at which node
            return ready.run(job, heard)
    with _Process(job["engine"], device) as process:
        return process.run(job, heard)


def start(engine: str | None = None) -> None:
    """Starts TensorRT's process beforehand: it loads TensorRT while the caller finds out what to do.

    The first job takes it. One that no job took ends with this process, or with ``standby``.

    Args:
        engine: As for ``choose``; nothing is started for one that is not there.
    """
    with contextlib.suppress(BenchError, OSError):  # said where the job is made
        name = choose_name(engine)
        if not any(each.engine == name for each in _STANDBY):
            _STANDBY.append(_Process(name, None))
            atexit.register(_end_unused)


def look_ahead(model: Path) -> None:
    """Lets a process that waits parse a model file, of which an engine will probably be built without any change."""
    for each in _STANDBY:
        each.tell({"task": "look ahead", "model": os.fspath(model.resolve())})


@contextlib.contextmanager
def standby(engine: str | None = None) -> Iterator[None]:
    """Starts TensorRT's process as ``start`` does, if none waits yet, and ends it if no job took it."""
    start(engine)
    try:
        yield
    finally:
        _end_unused()


def _end_unused() -> None:
    while _STANDBY:
        _STANDBY.pop().close()


class _DiedBeforeError(EngineError):
    """A process was dead before it began with its job."""


class _Process:
    """TensorRT's process, for one job.

    Args:
        engine: The name of the TensorRT that it loads.
        device: The GPU that it sees; None: all.
    """

    def __init__(self, engine: str, device: int | None) -> None:
        self.engine = engine
        self._resources = contextlib.ExitStack()
        self._scratch = self._resources.enter_context(
            tempfile.TemporaryDirectory(prefix="onnxbench-trt-", ignore_cleanup_errors=True)
        )
        spilt = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - the stack closes it
        self._spilt = self._resources.enter_context(spilt)
        read_end, write_end = os.pipe()
        self._events = self._resources.enter_context(os.fdopen(read_end, encoding="utf-8", errors="replace"))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "onnxbench.engine._worker", str(write_end), self._scratch, engine],
            stdin=subprocess.PIPE, stdout=self._spilt, stderr=self._spilt, pass_fds=(write_end,),
            env={**_environment(device), "TMPDIR": self._scratch}, start_new_session=True, text=True,
        )  # fmt: skip
        os.close(write_end)

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, job: Mapping[str, Any], heard: Heard | None) -> dict[str, Any]:
        """Returns what a job yields, or raises what ended it."""
        follower = _Follower(heard)
        try:
            self.tell(job)
            follower.follow(self._events)
            self._process.wait()
        finally:
            follower.close()
        self._spilt.seek(0)
        return follower.outcome(self._process.returncode, self._spilt.read())

    def tell(self, words: Mapping[str, Any]) -> None:
        """Sends a line to the process, if it is there still."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(words) + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """Ends the process, if it goes on, and removes its files."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        with contextlib.suppress(OSError):
            if self._process.stdin is not None:
                self._process.stdin.close()
        self._resources.close()


_STANDBY: list[_Process] = []


def _environment(device: int | None) -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    seen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device is not None and seen:
        seen = seen.split(",")[device] if device < len(seen.split(",")) else ""
    chosen = {} if device is None else {"CUDA_VISIBLE_DEVICES": str(device) if seen is None else seen}
    return {**os.environ, **chosen, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUTF8": "1"}


class _Follower:
    """Listens to the events of a job: shows progress, keeps the log, remembers how far it came."""

    def __init__(self, heard: Heard | None) -> None:
        self._heard = heard
        self._phases: list[str] = []
        self._last_phase, self._last_node = "", ""
        self._errors: list[str] = []
        self._result: dict[str, Any] | None = None
        self._error: dict[str, Any] | None = None
        self._bar: tuple[str, Any, Callable[[int], None]] | None = None

    def follow(self, events: Iterator[str] | Any) -> None:
        for line in events:
            try:
                event = json.loads(line)
            except ValueError:  # the last words of a process that died within a line
                continue
            kind = event.pop("event")
            if kind == "result":
                self._result = event
            elif kind == "error":
                self._error = event
            elif kind == "node":
                self._last_node = f"{event['name']} ({event['op']})"
            elif kind == "log":
                if "error" in event["severity"]:
                    self._errors.append(event["text"])
                if self._heard is not None:
                    self._heard(event["severity"], event["text"])
            elif kind == "phase":
                self._begin(event)
            elif kind == "step":
                if self._bar is not None and self._bar[0] == event["name"]:
                    self._bar[2](1)
            elif kind == "phase_end" and event["name"] in self._phases:
                self._phases.remove(event["name"])
                if self._bar is not None and self._bar[0] == event["name"]:
                    self.close()

    def _begin(self, event: dict[str, Any]) -> None:
        self._last_phase = event["name"]
        self._phases.append(event["name"])
        if event["name"] != "parsing the model":
            self._last_node = "" if event["name"] == "loading TensorRT" else self._last_node
        if self._bar is None and event["steps"] > 1:
            tracking = progress.track(event["name"], event["steps"], "steps")
            self._bar = (event["name"], tracking, tracking.__enter__())

    def close(self) -> None:
        if self._bar is not None:
            self._bar[1].__exit__(None, None, None)
            self._bar = None

    def outcome(self, status: int, spilt: str) -> dict[str, Any]:
        """Returns the result, or raises what ended the job."""
        if self._error is not None:
            raise _restored(self._error)
        if self._result is not None:
            return {**self._result, "spilt": spilt}
        raise self._death(status, spilt)

    def _death(self, status: int, spilt: str) -> EngineError:
        at = f"{'in' if self._phases else 'after'} phase {self._last_phase!r}" if self._last_phase else "at its start"
        node = f", at or after node {self._last_node}" if self._last_node else ""
        if status < 0:
            name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
            how = f"TensorRT's process was ended by {name}"
            hint = (
                "The system ends processes so when memory runs out; free some, or build with smaller maximum shapes."
                if -status == signal.SIGKILL
                else "This is a crash inside TensorRT or a plugin, not in the model file; nothing was written."
            )
        else:
            how, hint = f"TensorRT's process ended with status {status}", "Nothing was written."
        tail = [line for line in spilt.splitlines() if line.strip()][-8:]
        kind = EngineError if self._last_phase else _DiedBeforeError
        return kind(f"{how} {at}{node}", hint=hint, details=[*self._errors[-4:], *tail])


def _restored(sent: Mapping[str, Any]) -> BenchError:
    """Returns the error that another process sent."""
    kind = getattr(errors, str(sent["class"]), EngineError)
    restored: BenchError = kind(sent["message"], hint=sent["hint"], details=sent["details"])
    return restored
