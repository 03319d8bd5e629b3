"""An engine against ONNX Runtime, on the same inputs at the smallest, the tuned and the largest shapes.

Inputs and expected outputs are made here, on any machine, and written beside the engine with a script that needs
TensorRT, NumPy and a GPU only. Where a GPU is, the script is run at once, in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxbench import backends
from onnxbench.engine import _standalone
from onnxbench.engine._flavors import has_gpu
from onnxbench.engine._observed import inputs_at
from onnxbench.engine._profiles import Range, distinct_kinds
from onnxbench.errors import BenchError, DeviceError, ExecutionError, FeedsError, OutputError
from onnxbench.feeding import FeedOptions, first_set
from onnxbench.staging import BEFORE, staging_folder

if TYPE_CHECKING:
    from onnxbench.bundles import Plugin
    from onnxbench.engine._record import EngineRecord
    from onnxbench.model import Model

SCRIPT, PLAN = "verify.py", "verify.json"
_SINGLE = {"rtol": 1e-2, "atol_of_largest": 1e-3}
"""TensorRT computes float32 in TF32 on most GPUs: 10 bits of mantissa."""
_HALF = {"rtol": 5e-2, "atol_of_largest": 1e-2}


@dataclass(frozen=True, slots=True)
class Verification:
    """How an engine compares with ONNX Runtime.

    Attributes:
        script: What verifies it: ``python verify.py``.
        cases: The cases: profile and end.
        holds: Whether all outputs agree; None where it was not run.
        reason: Why it was not run.
        outputs: Case, output, whether it agrees, and the difference in words.
        notes: Cases that could not be made.
    """

    script: Path
    cases: tuple[str, ...]
    holds: bool | None
    reason: str | None
    outputs: tuple[Mapping[str, Any], ...] = ()
    notes: tuple[str, ...] = ()


def verification_folder(engine: Path) -> Path:
    """Returns where the script and the values of an engine go: ``net.engine.verify`` beside ``net.engine``."""
    return engine.with_name(f"{engine.name}.verify")


def verify_engine(
    engine: str | os.PathLike[str],
    model: Model,
    record: EngineRecord,
    *,
    feeds: FeedOptions | None = None,
    plugins: Sequence[Plugin] = (),
) -> Verification:
    """Returns how an engine compares with the model that it was built of, run in ONNX Runtime on a CPU.

    Args:
        engine: The engine.
        model: The model that it was built of.
        record: What was built.
        feeds: What is said of the inputs.
        plugins: Custom operators in the engine.

    Raises:
        ExecutionError: ONNX Runtime does not run the model at any of the shapes.
        OutputError: The folder cannot be written.
        DeviceError: There is a GPU, and the engine does not run on it.
    """
    path = Path(engine)
    folder = verification_folder(path)
    notes: list[str] = []
    try:
        with staging_folder(folder) as staging:
            cases = list(_cases(model, record, feeds, staging, notes))
            plan = _plan(path, record, cases, plugins)
            (staging / PLAN).write_text(json.dumps(plan, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
            shutil.copyfile(_standalone.__file__, staging / SCRIPT)
            _publish(staging, folder)
    except OSError as error:
        raise OutputError(f"cannot write {folder}: {error.strerror or error}") from None
    script, names = folder / SCRIPT, tuple(case["name"] for case in cases)
    if not has_gpu():
        reason = f"there is no GPU here; run it where there is one: python {script}"
        return Verification(script, names, None, reason, notes=tuple(notes))
    found = _run(script)
    return Verification(script, names, bool(found["agrees"]), None, tuple(found["outputs"]), tuple(notes))


def _cases(
    model: Model, record: EngineRecord, feeds: FeedOptions | None, folder: Path, notes: list[str]
) -> Iterator[dict[str, str]]:
    """Writes inputs and expected outputs for each end of each profile, and yields what they are called."""
    profiles = [
        {name: Range(*(tuple(each[kind]) for kind in _standalone.KINDS)) for name, each in profile.items()}
        for profile in record.profiles
    ]
    failure: BenchError | None = None
    count = 0
    for number, profile in enumerate(profiles or [{}]):
        for kind in distinct_kinds(profile) if profile else ["opt"]:
            name = f"profile {number}, {kind} shapes" if profile else "the model's own shapes"
            try:
                drawn = inputs_at(model, profile, kind, feeds) if profile else first_set(model, feeds)
                outputs = [info.name for info in model.proto.graph.output]
                options = backends.Options("none")
                expected = backends.run_with_outputs(model, drawn.feeds, outputs, options=options)
            except (ExecutionError, FeedsError) as error:
                failure = error
                notes.append(f"not verified at {name}: {error.message}")
                continue
            stem = f"{number}_{kind}"
            _save(folder / f"{stem}_feeds.npz", drawn.feeds, as_bits=True)
            _save(folder / f"{stem}_expected.npz", expected, as_bits=False)
            yield {"name": name, "feeds": f"{stem}_feeds.npz", "expected": f"{stem}_expected.npz"}
            count += 1
    if not count and failure is not None:
        raise ExecutionError(f"the engine cannot be verified: {failure.message}", hint=failure.hint)


def _save(path: Path, values: Mapping[str, Any], *, as_bits: bool) -> None:
    """Saves arrays so that NumPy alone reads them: bfloat16 and float8 as bits, or as float32."""
    import numpy as np

    plain: dict[str, Any] = {}
    for name, value in values.items():
        array = np.asarray(value)
        if array.dtype.type.__module__ != "numpy":
            array = array.view(f"u{array.dtype.itemsize}") if as_bits else array.astype(np.float32)
        plain[name] = array
    np.savez(path, **plain)


def _plan(
    engine: Path, record: EngineRecord, cases: Sequence[Mapping[str, str]], plugins: Sequence[Plugin]
) -> dict[str, Any]:
    types = set(record.data.get("types", []))
    narrow = bool(types & {"float16", "bfloat16", "int8", "uint8"} or any("float8" in each for each in types))
    return {
        "schema_version": 1, "engine": os.path.join("..", engine.name), "builder": record.data["builder"]["name"],
        "inputs": record.data["inputs"], "profiles": record.profiles, "cases": list(cases),
        "tolerance": _HALF if narrow else _SINGLE, "plugins": [os.path.abspath(plugin.path) for plugin in plugins],
    }  # fmt: skip


def _publish(staging: Path, folder: Path) -> None:
    """Moves the files into place; what an earlier verification left goes."""
    made = sorted(each for each in staging.iterdir())
    if folder.exists():
        (staging / BEFORE).mkdir()
        os.replace(folder, staging / BEFORE / folder.name)
    folder.mkdir()
    for each in made:
        os.replace(each, folder / each.name)
    shutil.rmtree(staging / BEFORE, ignore_errors=True)


def _run(script: Path) -> dict[str, Any]:
    """Runs the script, and returns what it found.

    Raises:
        DeviceError: The GPU does not run the engine.
    """
    done = subprocess.run([sys.executable, os.fspath(script), "--json"], capture_output=True, text=True, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (ValueError, IndexError):
        tail = [line for line in done.stderr.splitlines() if line.strip()][-6:]
        raise DeviceError(f"the verification ended with status {done.returncode}", details=tail) from None
    if "error" in found:
        raise DeviceError(found["error"], hint=found["hint"] or None)
    return found
