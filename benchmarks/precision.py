"""Conversion to fp16 and bf16, side by side with other tools: valid, runs, wrong values, refused, Casts added.

    python benchmarks/precision.py [--to fp16] [--node] [--match WORD] [--tools NAME,...] [MODELS...]

Without models: .corpus/*.onnx. ``--node`` takes the float models of onnx's backend node tests in their place. Valid
means the full onnx checker with strict type inference. Values are compared on one drawn set of inputs: wrong is a
difference of more than 5 % of the largest value, or another pattern of Inf and NaN. Where the float32 model is wrong in
the same sense once weights and the output of every node are rounded to fp16 (``onnxbench.tuning``), the type itself is
at fault, and that is counted apart as ``range``. bfloat16 is not run: ONNX Runtime has hardly any kernels for it.

Each tool works in a process of its own, so one that crashes or hangs is one verdict. Its result has the types that it
gave the inputs and outputs; feeds are cast to these.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from onnxbench import backends, model
from onnxbench.errors import BenchError
from onnxbench.feeding import first_set
from onnxbench.graph import GraphIndex
from onnxbench.model import Model
from onnxbench.precision import convert
from onnxbench.tuning._emulation import FLOAT16, Emulation, round_feeds
from onnxbench.validity import find_complaints

_WRONG = 0.05
_LARGEST = 200 << 20
_SECONDS = 180
_RUN = backends.Options(optimization="none")
"""Without optimizations: those of ONNX Runtime 1.32 crash on one of the models."""
VERDICTS = (
    "right", "valid", "range", "wrong", "no kernel", "no run", "invalid but right", "invalid", "refused", "crashed",
)  # fmt: skip


def ours(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with onnxbench, weights that do not fit clamped."""
    return whole(convert(model.from_proto(proto), to=to, weights="clamp").model)


def runtime(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with ONNX Runtime's copy of convert_float_to_float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(proto, keep_io_types=True)


def common(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with onnxconverter-common."""
    from onnxconverter_common.float16 import convert_float_to_float16

    return convert_float_to_float16(proto, keep_io_types=True)


def onnxsim(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with onnxsim, without simplifying."""
    import onnxsim

    return onnxsim.quantize_fp16(proto) if to == "fp16" else onnxsim.quantize_bf16(proto)


def onnxslim(proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with onnxslim, which goes through onnxconverter-common and leaves no choice for inputs and outputs."""
    import onnxslim

    return onnxslim.slim(proto, dtype=to)


Tool = Callable[[onnx.ModelProto, str], onnx.ModelProto]
TOOLS: dict[str, tuple[str, Tool, tuple[str, ...]]] = {
    "onnxbench": ("onnxbench", ours, ("fp16", "bf16")),
    "onnxruntime": ("onnxruntime.transformers.float16", runtime, ("fp16",)),
    "onnxconverter-common": ("onnxconverter_common.float16", common, ("fp16",)),
    "onnxsim": ("onnxsim", onnxsim, ("fp16", "bf16")),
    "onnxslim": ("onnxslim", onnxslim, ("fp16",)),
}  # fmt: skip
"""Each tool with the module that must be there, what converts, and the types that it converts to."""


@dataclass(frozen=True)
class Case:
    """A model to convert.

    Attributes:
        data: The model, serialized, with all its weights.
        to: The type.
        feeds: Inputs to run it on; None where values are not compared.
        expected: What it makes of them.
        casts: How many Casts it has.
    """

    data: bytes
    to: str
    feeds: dict[str, Any] | None
    expected: dict[str, Any] | None
    casts: int


@dataclass
class Tally:
    """What became of the models of one tool."""

    verdicts: Counter[str] = field(default_factory=Counter)
    casts: int = 0


class Worker:
    """A process that converts and judges, replaced when it dies or hangs."""

    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._pool: ProcessPoolExecutor | None = None

    def ask(self, function: Callable[..., Any], *given: object) -> Any:
        """Returns what a function returns there; None if it took the process with it, or too long."""
        if self._pool is None:
            self._pool = ProcessPoolExecutor(1, mp_context=self._context)
        try:
            return self._pool.submit(function, *given).result(timeout=_SECONDS)
        except (BrokenProcessPool, TimeoutError):
            self.close()
            return None

    def close(self) -> None:
        """Ends the process."""
        if self._pool is not None:
            for process in list((self._pool._processes or {}).values()):
                process.kill()
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None


def attempt(tool: str, case: Case) -> tuple[str, str, int]:
    """Has a tool convert a model, and judges what it made."""
    onnxruntime.set_default_logger_severity(4)
    warnings.simplefilter("ignore")
    proto = onnx.ModelProto.FromString(case.data)
    try:
        made = TOOLS[tool][1](proto, case.to)
    except Exception as error:  # whatever a tool raises counts as its refusal
        return "refused", str(error).strip().split("\n")[0][:80], 0
    return (*judge(made, case), casts(made) - case.casts)


def whole(source: Model) -> onnx.ModelProto:
    """Returns a model with all its weights in it."""
    from onnxbench import weights

    proto = onnx.ModelProto()
    proto.CopyFrom(source.proto)
    for tensor in weights.tensors(proto):
        if weights.is_outside(tensor):
            where = source.byte_range(tensor)
            assert where is not None
            data = weights.read_bytes(where)
            weights.clear_data(tensor)
            tensor.raw_data = data
    return proto


def corpus(paths: list[Path]) -> Iterator[tuple[str, Model]]:
    """Yields models of files that have floats."""
    for path in paths:
        if path.stat().st_size <= _LARGEST:
            yield path.stem, model.load(path)


def node_tests() -> Iterator[tuple[str, Model]]:
    """Yields the models of onnx's backend node tests."""
    from onnx.backend.test.case.node import collect_testcases

    for case in sorted(collect_testcases(None), key=lambda each: each.name):
        yield case.name, model.from_proto(case.model)


def judge(made: onnx.ModelProto, case: Case) -> tuple[str, str]:
    """Returns one of ``VERDICTS``, and more words."""
    complaints = find_complaints(made)
    if case.expected is None or case.feeds is None:
        return ("invalid", complaints[0][:80]) if complaints else ("valid", "")
    try:
        after = backends.open_session(model.from_proto(made), options=_RUN).run(fitting(made, case.feeds))
    except BenchError as error:
        if complaints:
            return "invalid", complaints[0][:80]
        return "no kernel" if "Could not find an implementation" in error.message else "no run", error.message[:80]
    is_right = agrees(case.expected, after)
    if complaints:
        return "invalid but right" if is_right else "invalid", complaints[0][:80]
    if is_right:
        return "right", ""
    return ("range", "") if is_beyond(case) else ("wrong", "")


def fitting(made: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    """Returns feeds in the types that a model states for its inputs."""
    from onnx import helper

    cast = dict(feeds)
    for info in made.graph.input:
        held = cast.get(info.name)
        number = info.type.tensor_type.elem_type
        if isinstance(held, np.ndarray) and held.dtype.kind == "f" and number in (1, 10, 11):
            cast[info.name] = held.astype(helper.tensor_dtype_to_np_dtype(number))
    return cast


def agrees(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Tells whether outputs are near enough to each other."""
    for name, expected in before.items():
        if not isinstance(expected, np.ndarray) or expected.dtype.kind != "f":
            continue
        found = after[name]
        if found.dtype.kind != "f" or found.shape != expected.shape:
            return False
        sound = np.isfinite(expected)
        if (sound != np.isfinite(found)).any():
            return False
        top = float(np.abs(expected[sound]).max(initial=1e-3))
        if float(np.abs(expected[sound].astype(np.float64) - found[sound]).max(initial=0.0)) > _WRONG * top:
            return False
    return True


def is_beyond(case: Case) -> bool:
    """Tells whether a model is wrong, too, when it is computed in float32 and each node's output is rounded."""
    if case.feeds is None or case.expected is None:
        return False
    source = model.from_proto(onnx.ModelProto.FromString(case.data))
    try:
        rounded = Emulation(source, FLOAT16, clamp=True).emulated(())
        after = backends.open_session(rounded, options=_RUN).run(round_feeds(case.feeds, FLOAT16))
    except BenchError:
        return False
    return not agrees(case.expected, after)


def casts(proto: onnx.ModelProto) -> int:
    """Returns how many Casts a model has."""
    return sum(ref.node.op_type == "Cast" for ref in GraphIndex(proto).nodes())


def run(data: bytes, feeds: dict[str, Any]) -> dict[str, Any] | None:
    """Returns what a model makes of inputs; None if ONNX Runtime does not run it."""
    try:
        return dict(backends.open_session(model.from_proto(onnx.ModelProto.FromString(data)), options=_RUN).run(feeds))
    except BenchError:
        return None


def case_of(source: Model, to: str, worker: Worker) -> Case:
    """Returns a case of a model, with what it makes of drawn inputs if it is to be run."""
    proto = whole(source)
    data = proto.SerializeToString()
    feeds = expected = None
    if to == "fp16":
        try:
            feeds = dict(first_set(source).feeds)
        except BenchError:
            feeds = None
        expected = worker.ask(run, data, feeds) if feeds is not None else None
    return Case(data, to, feeds, expected, casts(proto))


def is_installed(module: str) -> bool:
    """Tells whether a module can be imported."""
    try:
        importlib.import_module(module)
    except ImportError:
        return False
    return True


def main() -> None:
    """Prints a line per model where tools differ, and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--to", default="fp16", choices=("fp16", "bf16"))
    parser.add_argument("--node", action="store_true")
    parser.add_argument("--match", default="")
    parser.add_argument("--tools", default=",".join(TOOLS))
    said = parser.parse_args()
    onnxruntime.set_default_logger_severity(4)
    tools = [name for name in said.tools.split(",") if said.to in TOOLS[name][2]]
    for name in [name for name in tools if not is_installed(TOOLS[name][0])]:
        print(f"{name}: not installed")
        tools.remove(name)
    tallies = {name: Tally() for name in tools}
    runner, workers = Worker(), {name: Worker() for name in tools}
    source_of = node_tests() if said.node else corpus(said.models or sorted(Path(".corpus").glob("*.onnx")))
    for name, source in source_of:
        if said.match not in name or find_complaints(source.with_small_weights(source.proto)):
            continue
        case = case_of(source, said.to, runner)
        verdicts = {}
        for tool in tools:
            verdict, more, added = workers[tool].ask(attempt, tool, case) or ("crashed", "", 0)
            tallies[tool].verdicts[verdict] += 1
            tallies[tool].casts += added
            verdicts[tool] = verdict, f"{verdict} {more or f'{added:+d} Casts'}"
        if not said.node or len({verdict for verdict, _ in verdicts.values()}) > 1:
            print(f"{name:32} {'; '.join(f'{tool}: {words}' for tool, (_, words) in verdicts.items())}", flush=True)
    for worker in (runner, *workers.values()):
        worker.close()
    print(f"\n| {said.to} | {' | '.join(VERDICTS)} | Casts |\n|{'---|' * (len(VERDICTS) + 2)}")
    for tool, tally in tallies.items():
        counts = " | ".join(f"{tally.verdicts[verdict]:,}" for verdict in VERDICTS)
        print(f"| {tool} | {counts} | {tally.casts:+,} |")


if __name__ == "__main__":
    main()
