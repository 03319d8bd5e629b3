"""Conversion to fp16 and bf16, side by side with other tools: valid, runs, wrong values, refused, Casts added.

    python benchmarks/precision.py [--to fp16] [--node] [--match WORD] [MODELS...]

Without models: .corpus/*.onnx. ``--node`` takes the float models of onnx's backend node tests in their place. Valid
means the full onnx checker with strict type inference. Values are compared on one drawn set of inputs: wrong is a
difference of more than 5 % of the largest value, or another pattern of Inf and NaN. Only fp16 runs in ONNX Runtime.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
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
from onnxbench.validity import find_complaints

_WRONG = 0.05
_LARGEST = 200 << 20
_RUN = backends.Options(optimization="none", isolate=60)
"""Without optimizations (those of ONNX Runtime 1.32 crash on one of the models), in a process of its own."""


def ours(source: Model, proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with onnxbench, weights that do not fit clamped."""
    done = convert(source, to=to, weights="clamp").model
    return whole(done)


def runtime(source: Model, proto: onnx.ModelProto, to: str) -> onnx.ModelProto:
    """Converts with ONNX Runtime's copy of convert_float_to_float16."""
    from onnxruntime.transformers.float16 import convert_float_to_float16

    return convert_float_to_float16(proto, keep_io_types=True)


TOOLS: dict[str, Callable[[Model, onnx.ModelProto, str], onnx.ModelProto]] = {"onnxbench": ours, "onnxruntime": runtime}


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
        source = model.load(path)
        if path.stat().st_size <= _LARGEST:
            yield path.stem, source


def node_tests() -> Iterator[tuple[str, Model]]:
    """Yields the models of onnx's backend node tests."""
    from onnx.backend.test.case.node import collect_testcases

    for case in sorted(collect_testcases(None), key=lambda each: each.name):
        yield case.name, model.from_proto(case.model)


def judge(source: Model, made: onnx.ModelProto, feeds: dict[str, Any] | None, before: dict[str, Any] | None) -> str:
    """Returns ``invalid``, ``no run``, ``no kernel``, ``wrong`` or ``right``; ``valid`` if not compared."""
    if find_complaints(made):
        return "invalid"
    if before is None or feeds is None:
        return "valid"
    try:
        after = backends.open_session(model.from_proto(made), options=_RUN).run(feeds)
    except BenchError as error:
        return "no kernel" if "Could not find an implementation" in error.message else "no run"
    for name, expected in before.items():
        found = after.get(name)
        if not isinstance(expected, np.ndarray) or expected.dtype.kind != "f":
            continue
        if found.dtype != expected.dtype or found.shape != expected.shape:
            return "wrong"
        sound = np.isfinite(expected)
        if (sound != np.isfinite(found)).any():
            return "wrong"
        top = float(np.abs(expected[sound]).max(initial=1e-3))
        if float(np.abs(expected[sound].astype(np.float64) - found[sound]).max(initial=0.0)) > _WRONG * top:
            return "wrong"
    return "right"


def casts(proto: onnx.ModelProto) -> int:
    """Returns how many Casts a model has."""
    return sum(ref.node.op_type == "Cast" for ref in GraphIndex(proto).nodes())


def main() -> None:
    """Prints a line per model where tools differ, and the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--to", default="fp16", choices=("fp16", "bf16"))
    parser.add_argument("--node", action="store_true")
    parser.add_argument("--match", default="")
    said = parser.parse_args()
    onnxruntime.set_default_logger_severity(4)
    tools = TOOLS if said.to == "fp16" else {"onnxbench": ours}
    table: dict[str, Counter[str]] = {name: Counter() for name in tools}
    added: Counter[str] = Counter()
    source_of = node_tests() if said.node else corpus(said.models or sorted(Path(".corpus").glob("*.onnx")))
    for name, source in source_of:
        if said.match not in name or find_complaints(source.with_small_weights(source.proto)):
            continue
        proto = whole(source)
        feeds = before = None
        if said.to == "fp16":
            try:
                feeds = dict(first_set(source).feeds)
                before = backends.open_session(source, options=_RUN).run(feeds)
            except BenchError:
                feeds = before = None
        verdicts = []
        for tool, function in tools.items():
            copy = onnx.ModelProto()
            copy.CopyFrom(proto)
            try:
                made = function(source, copy, said.to)
            except Exception as error:  # whatever a tool raises counts as its refusal
                verdict, more = "refused", f" ({str(error)[:60]})"
            else:
                verdict, count = judge(source, made, feeds, before), casts(made) - casts(proto)
                more = f" {count:+d} Casts"
                added[tool] += count
            table[tool][verdict] += 1
            verdicts.append(f"{tool}: {verdict}{more}")
        if not said.node or len({each.split(": ")[1].split(" ")[0] for each in verdicts}) > 1:
            print(f"{name:32} {'; '.join(verdicts)}", flush=True)
    for tool, counts in table.items():
        print(f"{tool}: {dict(sorted(counts.items()))}, {added[tool]:+d} Casts in all")


if __name__ == "__main__":
    main()
