"""How long ``bisect --torch`` takes on BERT-base and ResNet-50, beside one run of each side.

    python benchmarks/bisect_speed.py [bert resnet50]

Weights are random. The bar is three times (one forward of PyTorch and one run of ONNX Runtime) and the creation of a
session. The export of the model, which gives the values of its fx nodes, is timed apart: it is made once for any number
of searches. Medians of three, each in turns with the others; the fault is one row of one weight.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")

import numpy as np
import onnx
import onnxruntime
import torch
from exporting import randomized
from onnx import numpy_helper

import onnxbench
from onnxbench.bisection import bisect
from onnxbench.pytorch.reference import torch_reference

ROUNDS = 3


def bert() -> tuple[torch.nn.Module, dict[str, Any]]:
    import transformers

    inputs = {"input_ids": torch.randint(0, 30000, (1, 128)), "attention_mask": torch.ones(1, 128, dtype=torch.long)}
    return transformers.BertForSequenceClassification(transformers.BertConfig()), inputs


def resnet50() -> tuple[torch.nn.Module, dict[str, Any]]:
    import transformers

    return transformers.ResNetForImageClassification(transformers.ResNetConfig()), {
        "pixel_values": torch.randn(1, 3, 224, 224)
    }


def faulty(path: Path) -> onnx.ModelProto:
    model = onnx.load(path)
    large = [tensor for tensor in model.graph.initializer if len(tensor.dims) in (2, 4) and np.prod(tensor.dims) > 1e5]
    tensor = large[len(large) // 2]
    values = numpy_helper.to_array(tensor).copy()
    values[0] *= 1.3
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    return model


def measure(name: str) -> None:
    torch.manual_seed(0)
    module, inputs = {"bert": bert, "resnet50": resnet50}[name]()
    source = (randomized(module), (), inputs)
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / "right.onnx", Path(folder) / "wrong.onnx"]
        onnxbench.export(source, files[0], options=onnxbench.ExportOptions(verify=False))
        onnx.save(faulty(files[0]), files[1])
        feeds = {key: value.numpy() for key, value in inputs.items()}
        start = time.perf_counter()
        reference = torch_reference(source)
        bisect(files[0], against=reference)
        first = time.perf_counter() - start
        taken: dict[str, list[float]] = {key: [] for key in ("forward", "session", "run", "clean", "fault")}
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
            for key, file in (("clean", files[0]), ("fault", files[1])):
                start = time.perf_counter()
                found = bisect(file, against=reference)
                taken[key].append(time.perf_counter() - start)
                assert found.passed == (key == "clean"), found.verdict
    t = {key: statistics.median(values) for key, values in taken.items()}
    bar = 3 * (t["forward"] + t["run"]) + t["session"]
    print(
        f"| {name} | {t['forward']:.2f} | {t['run']:.2f} | {t['session']:.2f} | {bar:.2f} | {t['clean']:.2f} | "
        f"{t['fault']:.2f} | {first - t['clean']:.1f} |",
        flush=True,
    )


if __name__ == "__main__":
    print("| model | forward, s | run, s | session, s | bar, s | bisect, clean | bisect, fault | export, once |")
    print("|---|---|---|---|---|---|---|---|")
    for each in sys.argv[1:] or ("bert", "resnet50"):
        measure(each)
