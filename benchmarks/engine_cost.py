"""What ``onnxbench build-trt`` costs over the builder itself, whole processes in turns.

The builder alone is a script of a few lines against the API of TensorRT-RTX. Polygraphy, if it is installed or lies on
PYTHONPATH, is told to use TensorRT-RTX too. Memory is the resident pages of all processes of a contender together, at
their highest, looked at every 10 ms. CPU is the processor time of all of them, which depends less on what else the
machine does.
"""

from __future__ import annotations

import compileall
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).resolve().parent
TIME_BAR, MEMORY_BAR_MB = 0.15, 200
OURS, BUILDER, POLYGRAPHY = "onnxbench build-trt", "the builder alone", "polygraphy convert"
_BUILDER = """
import sys
import tensorrt_rtx as trt
model, engine = sys.argv[1:]
logger = trt.Logger(trt.Logger.WARNING)
builder = trt.Builder(logger)
network = builder.create_network(0)
parser = trt.OnnxParser(network, logger)
assert parser.parse_from_file(model)
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(trt.ComputeCapability.SM89, 0)
memory = builder.build_serialized_network(network, config)
with open(engine, "wb") as file:
    file.write(memory)
"""
_STEP_S = 0.01
_PAGE = os.sysconf("SC_PAGE_SIZE")


def measure(runs: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Returns medians of seconds and megabytes of each contender on each model."""
    compileall.compile_dir(HERE.parent / "onnxbench", quiet=1)  # as pip does with what it installs
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="onnxbench-bench-") as name:
        folder = Path(name)
        for model in ("resnet50", "bert"):
            path = _exported(model, folder)
            taken: dict[str, list[tuple[float, float, float]]] = {}
            failures: dict[str, str] = {}
            for turn in range(runs + 1):  # the first one warms the caches of the disk
                for contender, command in _contenders(path, folder / "made.engine").items():
                    if contender in failures:
                        continue
                    seconds, cpu, megabytes, failure = _run(command)
                    if failure or not (folder / "made.engine").stat().st_size:
                        failures[contender] = failure
                        say(f"{model}, {contender}: failed: {failure}")
                    elif turn:
                        taken.setdefault(contender, []).append((seconds, cpu, megabytes))
                        say(f"{model}, {contender}: {seconds:.2f} s, {cpu:.2f} s of CPU, {megabytes:.0f} MB")
                    for made in folder.glob("made.engine*"):
                        made.unlink()
            found[model] = {
                "bytes": path.stat().st_size, "failures": failures,
                "rows": {
                    contender: {
                        "seconds": [each[0] for each in samples], "cpu": [each[1] for each in samples],
                        "megabytes": [each[2] for each in samples],
                    }
                    for contender, samples in taken.items()
                },
            }  # fmt: skip
    return {"runs": runs, "models": found}


def render(section: Mapping[str, Any]) -> str:
    """Returns the rows of each model, with what is ours over the builder's."""
    lines, bars = [], []
    for model, found in section["models"].items():
        floor = {key: statistics.median(values) for key, values in found["rows"][BUILDER].items()}
        peer = found["rows"].get(POLYGRAPHY)
        for contender, row in found["rows"].items():
            seconds, cpu, megabytes = (statistics.median(row[key]) for key in ("seconds", "cpu", "megabytes"))
            spread = f"{min(row['seconds']):.2f} to {max(row['seconds']):.2f}"
            over = f"{100 * (seconds / floor['seconds'] - 1):+.0f} %, {megabytes - floor['megabytes']:+.0f} MB"
            over_cpu = f"{100 * (cpu / floor['cpu'] - 1):+.0f} %"
            lines.append([f"{model}, {found['bytes'] / 1e6:.0f} MB", contender, f"{seconds:.2f}", spread, f"{cpu:.2f}",
                          f"{megabytes:.0f} MB", over if contender != BUILDER else "",
                          over_cpu if contender != BUILDER else ""])  # fmt: skip
            if contender == OURS:
                met = {
                    f"{100 * TIME_BAR:.0f} % of time": seconds <= (1 + TIME_BAR) * floor["seconds"],
                    f"{100 * TIME_BAR:.0f} % of processor time (no bar of ours)": cpu <= (1 + TIME_BAR) * floor["cpu"],
                    f"{MEMORY_BAR_MB} MB": megabytes - floor["megabytes"] <= MEMORY_BAR_MB,
                    **({"faster than Polygraphy": seconds < statistics.median(peer["seconds"])} if peer else {}),
                }
                bars.append(f"{model}: " + ", ".join(f"{bar}: {_answer(bar, met[bar])}" for bar in met))
        for contender, failure in found["failures"].items():
            lines.append([model, contender, "", "", "", "", f"failed: {failure[-300:]}", ""])
    words = (
        f"Bar: at most {100 * TIME_BAR:.0f} % of time and {MEMORY_BAR_MB} MB over the builder alone, and faster than"
        f" Polygraphy. Medians of {section['runs']} runs in turns. Met: {'; '.join(bars)}."
    )
    head = ["model", "", "seconds", "fastest to slowest", "CPU, s", "peak of all processes", "over the builder", "CPU"]
    return "\n\n".join(["### What a build costs", words, report.table(head, lines)])


def _answer(bar: str, is_met: bool) -> str:
    return "yes" if is_met else "no" if "no bar" in bar else "**no**"


def _exported(name: str, folder: Path) -> Path:
    """Writes BERT-base (1 x 128) or ResNet-50 (224 x 224), random weights, as one file."""
    import bisect_speed
    import torch
    from exporting import randomized

    import onnxbench

    torch.manual_seed(0)
    module, inputs = getattr(bisect_speed, name)()
    path = folder / f"{name}.onnx"
    onnxbench.export((randomized(module), (), inputs), path, options=onnxbench.ExportOptions(verify=False))
    return path


def _contenders(model: Path, engine: Path) -> dict[str, Sequence[str]]:
    python, told = sys.executable, (str(model), str(engine))
    found: dict[str, Sequence[str]] = {
        BUILDER: (python, "-c", _BUILDER, *told),
        OURS: (python, "-m", "onnxbench", "build-trt", *told, "--compute-capability", "8.9", "--quiet"),
    }
    if importlib.util.find_spec("polygraphy") is not None:
        found[POLYGRAPHY] = (
            python, "-c", "from polygraphy.tools import main; main()", "convert", told[0], "-o", told[1],
            "--compute-capabilities", "8.9",
        )  # fmt: skip
    return found


def _run(command: Sequence[str]) -> tuple[float, float, float, str]:
    """Returns seconds, CPU seconds, the most MB of memory, all of a process with its children, and a failure."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    environment = {**environment, "POLYGRAPHY_USE_TENSORRT_RTX": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parent), environment.get("PYTHONPATH"))))
    before = os.times()
    began = time.perf_counter()
    with tempfile.TemporaryFile() as spilt:
        process = subprocess.Popen(command, env=environment, stdout=spilt, stderr=spilt)
        peak = 0
        while process.poll() is None:
            peak = max(peak, sum(map(_resident_bytes, _tree(process.pid))))
            time.sleep(_STEP_S)
        seconds, after = time.perf_counter() - began, os.times()
        spilt.seek(0)
        said = spilt.read().decode(errors="replace").strip().splitlines()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return seconds, cpu, peak / 1e6, "" if process.returncode == 0 else " ".join(said[-3:]) or "it says nothing"


def _tree(root: int) -> list[int]:
    found, waiting = [], [root]
    while waiting:
        each = waiting.pop()
        found.append(each)
        try:
            waiting += map(int, Path(f"/proc/{each}/task/{each}/children").read_text().split())
        except (OSError, ValueError):
            continue
    return found


def _resident_bytes(process: int) -> int:
    try:
        return int(Path(f"/proc/{process}/statm").read_text().split()[1]) * _PAGE
    except OSError:  # it has ended
        return 0
