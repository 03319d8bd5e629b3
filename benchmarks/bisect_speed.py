"""How long ``bisect --torch`` takes on BERT-base and ResNet-50, beside one run of each side.

    python benchmarks/bisect_speed.py [bert resnet50]

Weights are random. The bar is three times (one forward of PyTorch and one run of ONNX Runtime) and the creation of a
session. The export of the model, which gives the values of its fx nodes, is timed apart: it is made once for any number
of searches. Medians of five, each in turns with the others; the fault is one row of one weight.

Beside it, in turns too: ``sbs`` with a second run of onnx-diagnostic, and afterwards, once, since it opens a session
for each value, ``verify_onnx_program`` of torch with intermediates. Both are handed the exported program and the model
in memory; a peer that is not installed is named and left out. Memory is what the process grows by at its peak. A peer
names the node if the first value that is off by more than a thousandth (for ``sbs``: on PyTorch's inputs) is what the
faulty node makes, or what is made of that alone.
"""

from __future__ import annotations

import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from exporting import randomized
from onnx import numpy_helper

import onnxbench
from onnxbench.bisection import Bisection, bisect
from onnxbench.pytorch.reference import torch_reference

ROUNDS = 5
LIMIT = 200
"""Seconds that torch's verification gets."""
OFF = 1e-3
SEARCH, SBS, VERIFY = "onnxbench bisect --torch", "onnx-diagnostic sbs, second run", "torch verify_onnx_program"


def bert() -> tuple[torch.nn.Module, dict[str, Any]]:
    import transformers

    inputs = {"input_ids": torch.randint(0, 30000, (1, 128)), "attention_mask": torch.ones(1, 128, dtype=torch.long)}
    return transformers.BertForSequenceClassification(transformers.BertConfig()), inputs


def resnet50() -> tuple[torch.nn.Module, dict[str, Any]]:
    import transformers

    return transformers.ResNetForImageClassification(transformers.ResNetConfig()), {
        "pixel_values": torch.randn(1, 3, 224, 224)
    }


def faulty(model: onnx.ModelProto) -> tuple[onnx.ModelProto, set[str]]:
    """Returns a model with another row in one weight, and the tensors that show it by name: the node's, the next."""
    wrong = onnx.ModelProto()
    wrong.CopyFrom(model)
    large = [tensor for tensor in wrong.graph.initializer if len(tensor.dims) in (2, 4) and np.prod(tensor.dims) > 1e5]
    tensor = large[len(large) // 2]
    values = numpy_helper.to_array(tensor).copy()
    values[0] *= 1.3
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    truth = {tensor.name}
    while True:
        readers = [node for node in wrong.graph.node if truth.intersection(node.input)]
        made = {name for node in readers for name in node.output}
        if made <= truth or len(truth) > 3:
            return wrong, truth
        truth |= made


def run_sbs(program: Any, inputs: dict[str, Any]) -> str:
    """Returns the first value whose own error onnx-diagnostic finds to be large."""
    from onnx_diagnostic.reference import OnnxruntimeEvaluator
    from onnx_diagnostic.torch_onnx.sbs import run_aligned
    from onnxruntime.capi.onnxruntime_pybind11_state import OrtValue

    # onnx-diagnostic 0.9.3 gives two arguments, of which onnxruntime 1.32 takes the first.
    taken = OrtValue.from_dlpack
    OrtValue.from_dlpack = staticmethod(lambda data, *_: taken(data))
    try:
        return _run_sbs(program, inputs, run_aligned, OnnxruntimeEvaluator)
    finally:
        OrtValue.from_dlpack = staticmethod(taken)


def _run_sbs(program: Any, inputs: dict[str, Any], run_aligned: Any, evaluator: Any) -> str:
    found = list(
        run_aligned(
            program.exported_program, program.model_proto, evaluator, kwargs=inputs, use_tensor=True,
            run_onnx_with_torch_inputs=True,
        )
    )  # fmt: skip
    return next((each.onnx_name for each in found if (each.err_abs2 or 0) > OFF), "")


def run_verify(program: Any, inputs: dict[str, Any]) -> str:
    """Returns the first value that torch finds to be off.

    Raises:
        TimeoutError: It takes longer than ``LIMIT``.
    """
    from torch.onnx.verification import verify_onnx_program

    def give_up(*_: object) -> None:
        raise _TooLongError

    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(LIMIT)
    try:
        found = verify_onnx_program(program, kwargs=inputs, compare_intermediates=True)
    except _TooLongError:
        raise TimeoutError(f"not through after {LIMIT} s") from None
    finally:
        signal.alarm(0)
    return next((each.name for each in found if each.max_abs_diff > OFF), "")


class _TooLongError(BaseException):  # no Exception: torch goes on after those
    """Ends what takes too long."""


def measured(run: Callable[[], Any]) -> tuple[Any, float, int]:
    """Returns what a call gives, its seconds, and what the process grows by at its peak, in bytes."""
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS:")
    start = time.perf_counter()
    result = run()
    return result, time.perf_counter() - start, status("VmHWM:") - before


def status(word: str) -> int:
    return int(Path("/proc/self/status").read_text().split(word)[1].split()[0]) * 1024


def measure(name: str) -> None:
    torch.manual_seed(0)
    module, inputs = {"bert": bert, "resnet50": resnet50}[name]()
    source = (randomized(module), (), inputs)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "right.onnx", Path(folder) / "wrong.onnx"]
        onnxbench.export(source, files[0], options=onnxbench.ExportOptions(verify=False))
        wrong, truth = faulty(onnx.load(files[0]))
        onnx.save(wrong, files[1])
        feeds = {key: value.numpy() for key, value in inputs.items()}
        start = time.perf_counter()
        reference = torch_reference(source)
        bisect(files[0], against=reference)
        first = time.perf_counter() - start
        program = torch.onnx.export(module, kwargs=inputs, dynamo=True, verbose=False)
        peer_truth = spoil(program)
        rivals: dict[str, Callable[[], Any]] = {SEARCH: lambda: bisect(files[1], against=reference)}
        for title, package, run in ((SBS, "onnx_diagnostic", run_sbs), (VERIFY, "torch.onnx.verification", run_verify)):
            if find_spec(package) is None:
                print(f"{title}: not installed")
            else:
                rivals[title] = lambda run=run: run(program, inputs)  # type: ignore[misc]
        taken: dict[str, list[float]] = {key: [] for key in ("forward", "session", "run", "clean", *rivals)}
        grown: dict[str, int] = {}
        named: dict[str, str] = {}

        def attempt(title: str) -> None:
            try:
                found, seconds, size = measured(rivals[title])
            except Exception as error:  # a peer may fail in any way
                named[title] = f"fails: {type(error).__name__}: {' '.join(str(error).split())[:80]}"
                return
            taken[title].append(seconds)
            grown[title] = max(size, grown.get(title, 0))
            if isinstance(found, Bisection):
                named[title] = "yes" if [each.tensor in truth for each in found.culprits] == [True] else "no"
            else:
                named[title] = "yes" if found in peer_truth else f"no: {found or 'nothing'}"

        for _ in range(ROUNDS):
            with torch.no_grad():
                start = time.perf_counter()
                module(**inputs)
                taken["forward"].append(time.perf_counter() - start)
            start = time.perf_counter()
            options = onnxruntime.SessionOptions()
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
            session = onnxruntime.InferenceSession(files[0], options)
            taken["session"].append(time.perf_counter() - start)
            start = time.perf_counter()
            session.run(None, feeds)
            taken["run"].append(time.perf_counter() - start)
            start = time.perf_counter()
            assert bisect(files[0], against=reference).passed
            taken["clean"].append(time.perf_counter() - start)
            for title in (each for each in rivals if each != VERIFY):
                attempt(title)
        if VERIFY in rivals:
            attempt(VERIFY)
    t = {key: statistics.median(values) for key, values in taken.items() if values}
    bar = 3 * (t["forward"] + t["run"]) + t["session"]
    print("| model | forward, s | run, s | session, s | bar, s | bisect, clean | bisect, fault | export, once |")
    print("|---|---|---|---|---|---|---|---|")
    print(
        f"| {name} | {t['forward']:.2f} | {t['run']:.2f} | {t['session']:.2f} | {bar:.2f} | {t['clean']:.2f} | "
        f"{t[SEARCH]:.2f} | {first - t['clean']:.1f} |\n"
    )
    print("| model | tool | s | memory, MiB | names the node |")
    print("|---|---|---|---|---|")
    for title in rivals:
        seconds, size = f"{t[title]:.2f}" if title in t else "", f"{grown.get(title, 0) / 2**20:.0f}"
        print(f"| {name} | {title} | {seconds} | {size} | {named[title]} |", flush=True)
    print(f"load {os.getloadavg()[0]:.1f}\n")


def spoil(program: Any) -> set[str]:
    """Puts the fault into an exported program's model, and returns the tensors that show it by name."""
    wrong, truth = faulty(program.model_proto)
    (changed,) = truth & {tensor.name for tensor in wrong.graph.initializer}
    stored = next(tensor for tensor in wrong.graph.initializer if tensor.name == changed)
    weight = program.model.graph.initializers[changed]
    weight.const_value = onnx_ir.tensor(numpy_helper.to_array(stored), name=changed)
    return truth


if __name__ == "__main__":
    for each in sys.argv[1:] or ("bert", "resnet50"):
        measure(each)
