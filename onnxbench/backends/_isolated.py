"""Sessions in a process of their own, which may crash, hang, or eat all memory without taking this one along.

A worker process (``onnxbench.backends._worker``) serves session after session; it is started when there is none, and
thrown away when it dies or overruns its time. What goes to and fro are small JSON lines; models and values lie in a
temporary folder, and weights stay in the files where they are.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import captures, errors, weights
from onnxbench.backends._registered import find_registered
from onnxbench.backends._structure import distinct_node_names, expose, inline_weights
from onnxbench.captures import Port, Value, check_feeds, input_ports
from onnxbench.errors import BenchError, ExecutionError, LostProcessError, UsageError
from onnxbench.messages import copy_of

if TYPE_CHECKING:
    from onnxbench.backends import Operator, Options
    from onnxbench.model import Model

_SPARE: list[_Worker] = []
_START_SECONDS = 60.0
_TAIL = 8


def open_isolated(model: Model, name: str, *, outputs: Sequence[str] | None, options: Options) -> IsolatedSession:
    """Returns a session in another process (see ``onnxbench.backends.open_session``).

    Opening it and every run may take ``options.isolate`` seconds.

    Raises:
        LostProcessError: The process died, or took too long.
        ExecutionError: The runtime does not take the model.
    """
    return IsolatedSession(model, name, outputs, options)


class IsolatedSession:
    """A model in a runtime in another process."""

    def __init__(self, model: Model, name: str, outputs: Sequence[str] | None, options: Options) -> None:
        proto = expose(distinct_node_names(model.proto), outputs)
        self.inputs = input_ports(proto.graph)
        self._limit = options.isolate
        self._folder = tempfile.TemporaryDirectory(prefix="onnxbench-")
        self._number = 0
        self._model = model  # its scratch file has to live as long as this does
        home = Path(self._folder.name)
        root: str | None = None
        if name != "ort":
            data = _with_weights(model, proto)
        else:
            from onnxbench.backends import _ort

            data, root = _ort.serialize(model, proto)
        (home / "model.onnx").write_bytes(data)
        plain = dataclasses.replace(options, isolate=0.0, profile=None, operators=())
        settings = dataclasses.asdict(plain)
        settings["libraries"] = [os.fspath(Path(each).resolve()) for each in options.libraries]
        for word in ("profile", "operators"):
            settings.pop(word)
        self._worker: _Worker | None = _SPARE.pop() if _SPARE else _Worker()
        try:
            said = self._ask(
                "opening the model", do="open", backend=name, model=str(home / "model.onnx"), root=root,
                options=settings, bundles=bundles_of(options.operators), package=_package_of(name),
            )  # fmt: skip
        except BaseException:
            self.close()
            raise
        self.providers: tuple[str, ...] = tuple(said["providers"])
        self.device: str = said["device"]
        self.outputs = [Port(each["name"], _type(each["type"]), False) for each in said["outputs"]]

    def run(self, feeds: Mapping[str, Value], outputs: Sequence[str] | None = None) -> dict[str, Value]:
        """Returns outputs by name (see ``onnxbench.backends.Session``)."""
        fitted = check_feeds(feeds, self.inputs)
        home = Path(self._folder.name)
        self._number += 1
        given, made = home / f"in{self._number}.npz", home / f"out{self._number}.npz"
        captures.save(given, fitted)
        names = None if outputs is None else list(dict.fromkeys(outputs))
        self._ask("a run", do="run", feeds=str(given), outputs=names, target=str(made))
        with captures.Capture(made) as values:
            found = {name: values[name] for name in values}
        given.unlink()
        made.unlink()
        return found

    def close(self) -> None:
        """Ends the session; its process serves the next one."""
        worker, self._worker = self._worker, None
        if worker is not None and worker.is_alive:
            with contextlib.suppress(LostProcessError):
                worker.ask({"do": "close"}, "closing the model", self._limit)
                _SPARE.append(worker)
        self._folder.cleanup()

    def _ask(self, doing: str, **job: Any) -> dict[str, Any]:
        if self._worker is None:
            raise ExecutionError("the process of this session is gone")
        return self._worker.ask(job, doing, self._limit)


def bundles_of(operators: Sequence[Operator]) -> list[str]:
    """Returns the files by which another process is taught operators.

    Raises:
        UsageError: One lies in no file.
    """
    for each in operators:
        if each.bundle is None:
            raise UsageError(
                f"{each.domain}::{each.name} is defined in no file, so a process of its own cannot be taught it"
            )
    return list(dict.fromkeys(os.fspath(each.bundle) for each in operators if each.bundle is not None))


def _with_weights(model: Model, proto: Any) -> bytes:
    whole = copy_of(proto)
    inline_weights(model, [tensor for tensor in weights.tensors(whole) if weights.is_outside(tensor)])
    data: bytes = whole.SerializeToString()
    return data


def _type(text: str | None) -> Any:
    from onnx import TypeProto

    return None if text is None else TypeProto.FromString(bytes.fromhex(text))


class _Worker:
    """One worker process."""

    def __init__(self) -> None:
        read_end, write_end = os.pipe()
        self._spilt = tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace")  # noqa: SIM115 - lives as it
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "onnxbench.backends._worker", str(write_end)], stdin=subprocess.PIPE,
                stdout=self._spilt, stderr=self._spilt, pass_fds=(write_end,), env=_environment(),
                start_new_session=True, text=True,
            )  # fmt: skip
        finally:
            os.close(write_end)
        self._events = read_end
        self._buffer = b""
        self._read(_START_SECONDS, "starting")

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def ask(self, job: Mapping[str, Any], doing: str, limit: float) -> dict[str, Any]:
        """Returns the answer to a job.

        Raises:
            LostProcessError: There is none: the process died, or the time was over.
            BenchError: The answer is an error.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        said = self._read(limit, doing)
        if "error" in said:
            sent = said["error"]
            kind = getattr(errors, sent["class"], ExecutionError)
            restored: BenchError = kind(sent["message"], hint=sent["hint"], details=sent["details"])
            raise restored
        return said

    def _read(self, limit: float, doing: str) -> dict[str, Any]:
        until = time.monotonic() + limit
        try:
            while b"\n" not in self._buffer:
                ready, _, _ = select.select([self._events], [], [], max(0.0, until - time.monotonic()))
                if not ready:
                    raise LostProcessError(
                        f"{doing} took longer than {limit:g} s", how="hang",
                        hint="It hangs, or needs more time: --timeout gives it more.",
                    )  # fmt: skip
                block = os.read(self._events, 1 << 16)
                if not block:
                    raise self._death(doing)
                self._buffer += block
        except BaseException:
            self.end()
            raise
        line, _, self._buffer = self._buffer.partition(b"\n")
        said: dict[str, Any] = json.loads(line)
        return said

    def _death(self, doing: str) -> LostProcessError:
        status = self._process.wait()
        self._spilt.seek(0)
        tail = [line for line in self._spilt.read().splitlines() if line.strip()][-_TAIL:]
        if status >= 0:
            return LostProcessError(f"{doing} ended the process with status {status}", how="crash", details=tail)
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        hint = "The system ends processes so when memory runs out." if -status == signal.SIGKILL else None
        return LostProcessError(f"{doing} crashed the process ({name})", how=name, details=tail, hint=hint)

    def end(self) -> None:
        """Ends the process, whatever it does."""
        if self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.close()
        self._process.kill()
        self._process.wait()
        self._spilt.close()
        with contextlib.suppress(OSError):
            os.close(self._events)


def _package_of(name: str) -> str | None:
    """Returns where the package of a backend is found; this process may have looked in more places than another one."""
    registered = None if name in ("ort", "reference") else find_registered(name)
    return None if registered is None else registered.folder


def end_workers() -> None:
    """Ends worker processes that wait for the next session."""
    while _SPARE:
        _SPARE.pop().end()


atexit.register(end_workers)


def capture_log(model: Model, options: Options) -> str:
    """Returns what ONNX Runtime logs, verbosely, while it opens a model."""
    from onnxbench.backends import _ort

    data, root = _ort.serialize(model, distinct_node_names(model.proto))
    folder = Path(tempfile.mkdtemp(prefix="onnxbench-"))
    try:
        (folder / "model.onnx").write_bytes(data)
        job = {
            "model": str(folder / "model.onnx"), "root": root, "level": options.optimization,
            "providers": list(options.providers), "libraries": [os.fspath(each) for each in options.libraries],
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "onnxbench.backends._worker", "log", json.dumps(job)], stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", env=_environment(), check=False,
            timeout=options.isolate or None,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LostProcessError(f"opening the model took longer than {options.isolate:g} s", how="hang") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return done.stderr


def _environment() -> dict[str, str]:
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)), "PYTHONUTF8": "1"}
