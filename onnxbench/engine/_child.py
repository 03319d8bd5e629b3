"""Runs one job in TensorRT's own process, and turns whatever becomes of it into a result or one error."""

from __future__ import annotations

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
    read_end, write_end = os.pipe()
    with (
        tempfile.TemporaryDirectory(prefix="onnxbench-trt-", ignore_cleanup_errors=True) as scratch,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as spilt,
    ):
        command = [sys.executable, "-P", "-m", "onnxbench.engine._worker", str(write_end)]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=spilt, stderr=spilt, pass_fds=(write_end,),
            env={**_environment(job.get("device")), "TMPDIR": scratch}, start_new_session=True, text=True,
        )  # fmt: skip
        os.close(write_end)
        follower = _Follower(heard)
        try:
            assert process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps({**job, "scratch": scratch}) + "\n")
                process.stdin.flush()
            with os.fdopen(read_end, encoding="utf-8", errors="replace") as events:
                follower.follow(events)
            process.wait()
        except BaseException:
            process.kill()
            process.wait()
            raise
        finally:
            follower.close()
            with contextlib.suppress(OSError, BrokenPipeError):
                if process.stdin is not None:
                    process.stdin.close()
        spilt.seek(0)
        return follower.outcome(process.returncode, spilt.read())


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
        return EngineError(f"{how} {at}{node}", hint=hint, details=[*self._errors[-4:], *tail])


def _restored(sent: Mapping[str, Any]) -> BenchError:
    """Returns the error that another process sent."""
    kind = getattr(errors, str(sent["class"]), EngineError)
    restored: BenchError = kind(sent["message"], hint=sent["hint"], details=sent["details"])
    return restored
