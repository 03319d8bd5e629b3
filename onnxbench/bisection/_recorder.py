"""Runs a model on this machine and records the values of its tensors, with its runtime and NumPy alone.

This file stands alone: it imports nothing of onnxbench. 'onnxbench bisect MODEL --on trt --record DIR' copies it as
record.py beside what it runs: record.json, the model in parts (and engines, where they could be built), the inputs.

    python record.py

It writes recorded/, one .npz for each set of inputs, which 'onnxbench bisect MODEL --load-outputs recorded' compares.

Exit codes: 0 all was recorded, 2 a file is missing or cannot be read, 10 the runtime refuses a part, 16 there is no GPU
or no runtime, or it failed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

FINE, UNREADABLE, UNFIT, FAILED = 0, 2, 10, 16
MANIFEST = "__onnxbench__"
"""An entry beside the values that is none: it says which of them are bits of types that NumPy lacks."""


class StopError(Exception):
    """What ends the script; ``code`` is its exit code."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


class TensorRT:
    """Parts run as engines, which are built here where none came along."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        sys.path.insert(0, os.fspath(folder))
        self._engines = import_module("onnxbench_engines")
        self._folder, self._plan = folder, plan
        self._opened: dict[str, Any] = {}

    def run(self, part: Mapping[str, Any], feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what a part gives, by its own names."""
        try:
            engine = self._open(part)
            known = {port["name"] for port in engine.inputs}
            made: dict[str, Any] = engine.run({name: value for name, value in feeds.items() if name in known})
        except self._engines.RunError as error:
            raise StopError(f"{error.message}{'. ' + error.hint if error.hint else ''}", error.code) from None
        return made

    def _open(self, part: Mapping[str, Any]) -> Any:
        name, plan = part["model"], self._plan
        if name not in self._opened:
            path = self._folder / part["engine"]
            if not path.is_file():
                print(f"building {path.name}", file=sys.stderr)
                self._engines.build(self._folder / name, plan["builder"], path, tf32=plan["tf32"])
            plugins = [os.fspath(self._folder / each) for each in plan["plugins"]]
            self._opened[name] = self._engines.open_engine(path, {**plan, "plugins": plugins})
        return self._opened[name]


class OnnxRuntime:
    """Parts run in ONNX Runtime, without optimizations: the graph is the one that was to be looked at."""

    def __init__(self, folder: Path, plan: Mapping[str, Any]) -> None:
        try:
            self._ort = import_module("onnxruntime")
        except ImportError:
            raise StopError("onnxruntime is not installed", FAILED) from None
        self._folder, self._plan = folder, plan
        self._sessions: dict[str, Any] = {}

    def run(self, part: Mapping[str, Any], feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what a part gives, by its own names."""
        try:
            session = self._open(part["model"])
            names = [output.name for output in session.get_outputs()]
            wanted = {port.name: feeds[port.name] for port in session.get_inputs() if port.name in feeds}
            return dict(zip(names, session.run(names, wanted), strict=True))
        except Exception as error:  # the runtime raises a dozen unrelated classes
            raise StopError(f"ONNX Runtime fails on {part['model']}: {error}", UNFIT) from None

    def _open(self, name: str) -> Any:
        if name not in self._sessions:
            options = self._ort.SessionOptions()
            options.log_severity_level = 4
            options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
            options.intra_op_num_threads = self._plan["threads"]
            wanted = [each.lower() for each in self._plan["providers"]]
            there = {
                each.lower().removesuffix("executionprovider"): each for each in self._ort.get_available_providers()
            }
            missing = [each for each in wanted if each not in there]
            if missing:
                raise StopError(f"this onnxruntime has no execution provider {missing[0]!r}", FAILED)
            providers = [there[each] for each in wanted]
            session = self._ort.InferenceSession(os.fspath(self._folder / name), options, providers=providers)
            if session.get_providers()[0] != providers[0]:
                raise StopError(f"ONNX Runtime could not start its {providers[0]}", FAILED)
            self._sessions[name] = session
        return self._sessions[name]


def read(path: Path) -> dict[str, Any]:
    """Returns the arrays of a .npz file; bfloat16 and float8 as bits, which TensorRT takes."""
    with np.load(path, allow_pickle=False) as held:
        return {name: held[name] for name in held.files if name != MANIFEST}


def plain(value: Any) -> Any:
    """Returns an array that NumPy alone can store: bfloat16 and float8, which ml_dtypes knows, as float32."""
    return value if value.dtype.type.__module__ == "numpy" else value.astype(np.float32)


def record(folder: Path) -> list[Path]:
    """Writes the values of all sets of inputs and returns the files.

    Raises:
        StopError: A file is missing, or the model does not run here.
    """
    try:
        plan = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        runner = {"onnxruntime": OnnxRuntime}.get(plan["builder"], TensorRT)(folder, plan)
        sets = [(each, read(folder / "feeds" / each["name"])) for each in plan["sets"]]
    except (OSError, ValueError, KeyError) as error:
        raise StopError(f"record.json, or what it names, cannot be read: {error}", UNREADABLE) from None
    (folder / "recorded").mkdir(exist_ok=True)
    written = []
    for each, feeds in sets:
        held: dict[str, Any] = dict(feeds)
        found: dict[str, Any] = {}
        for part in each["parts"]:
            made = runner.run(part, held)
            values = {name: made[called] for called, name in part["outputs"].items()}
            held.update(values)
            found.update((name, plain(values[name])) for name in part["asked"])
            for name in part["last"]:
                held.pop(name, None)
        target = folder / "recorded" / each["name"]
        np.savez(target, **found)
        written.append(target)
        print(f"recorded {len(found):,} tensors in {os.path.relpath(target)}")
        for name, value in runner.run(each["plain"], feeds).items() if each["plain"] else ():
            if name in found:
                print(f"  output {name}: {apart(found[name], plain(value))} with nothing looked at within")
    return written


def apart(seen: Any, alone: Any) -> str:
    """Returns how far an output is from what comes out with nothing looked at, in words."""
    if seen.shape != alone.shape:
        return f"shape {list(seen.shape)}, and {list(alone.shape)}"
    if np.array_equal(seen, alone, equal_nan=seen.dtype.kind == "f"):
        return "the same"
    a, b = seen.astype(np.float64), alone.astype(np.float64)
    error = float(np.linalg.norm(a - b)) / max(float(np.linalg.norm(b)), 1e-300)
    return f"off by a relative {error:.1e}"


def main() -> int:
    """Records all, says what comes next, and returns the exit code."""
    folder = Path(__file__).resolve().parent
    try:
        record(folder)
    except StopError as error:
        print(f"record: {error}", file=sys.stderr)
        return error.code
    print((folder / "NEXT.txt").read_text(encoding="utf-8"), end="")
    return FINE


if __name__ == "__main__":
    sys.exit(main())
