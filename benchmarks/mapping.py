"""Measures ``onnxbench map``: how many values map to PyTorch, and whether they are right, by each way.

    pip install -e '.[torch]' torch==2.13.0 transformers==5.23.0
    python benchmarks/mapping.py resnet18 bert gpt2 llama

For each model of ``exporting.py``, and ResNet-50:

* default exporter: the values of the file, those that are the value of an fx node and agree with it on two sets of
  inputs, and those with a module and a source line;
* TorchScript: the outputs of the PyTorch modules, taken by forward hooks. Of those that the file has (some value of it
  is equal to within rounding: a convolution into which a batch normalization was folded has no value of its own), the
  share that names alone map, and how many of these are wrong;
* by values with no names: both files with every name and all metadata taken away. The truth is the map of the file
  with its names; a match is wrong if it is another value, and not equal to the right one either.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import exporting
import torch
from exporting import MODELS, ResNet18, randomized
from torch import nn

_ROUNDING = 1e-4


class Bottleneck(nn.Module):
    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or before != 4 * width:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x):
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(out)))))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class ResNet50(ResNet18):
    def __init__(self) -> None:
        super().__init__()
        before = 64
        for number, (width, count) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3)), 1):
            blocks = []
            for at in range(count):
                blocks.append(Bottleneck(before, width, 2 if at == 0 and number > 1 else 1))
                before = 4 * width
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
        self.fc = nn.Linear(2048, 1000)


def resnet50():
    return ResNet50(), {"x": torch.randn(1, 3, 96, 96)}


MODELS["resnet50"] = resnet50


def stripped(model: Any) -> tuple[Any, dict[str, str]]:
    """Returns a model without any name or metadata, and what its values were called before."""
    import onnx

    from onnxbench.model import from_proto

    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    ports = {info.name for info in graph.input}
    names: dict[str, str] = {}

    def new(name: str) -> str:
        return name if not name or name in ports else names.setdefault(name, f"t{len(names)}")

    for tensor in graph.initializer:
        tensor.name = new(tensor.name)
    for node in graph.node:
        node.name = ""
        node.ClearField("doc_string")
        del node.metadata_props[:]
        node.input[:] = [new(name) for name in node.input]
        node.output[:] = [new(name) for name in node.output]
    for info in graph.output:
        info.name = new(info.name)
    del graph.value_info[:], proto.metadata_props[:]
    return from_proto(proto), {mine: was for was, mine in names.items()}


def equal_values(side: Any, feeds: list[dict[str, Any]]) -> dict[str, int]:
    """Returns for each value of PyTorch a number that it shares with those that are equal to it, bit for bit."""
    keys: dict[str, list[Any]] = {}
    for each in feeds:
        for batch in side.stream(each, side.batches(256 << 20)):
            for name, value in batch.items():
                keys.setdefault(name, []).append((value.shape, value.dtype.name, hash(value.tobytes())))
    numbers: dict[Any, int] = {}
    return {name: numbers.setdefault(tuple(key), len(numbers)) for name, key in keys.items()}


def by_values(model: Any, source: Any, truth: dict[str, str]) -> dict[str, Any]:
    """Returns how a stripped file is mapped by values alone, against the map of the file with its names."""
    from onnxbench.pytorch.matching import input_sets, match_values
    from onnxbench.pytorch.values import torch_values

    bare, before = stripped(model)
    side = torch_values(source, model=bare)
    feeds = input_sets(side)
    begin = time.perf_counter()
    found = match_values(bare, side, feeds=feeds)
    took = time.perf_counter() - begin
    same = equal_values(side, feeds)
    told = {before.get(name, name): pair for name, pair in found.pairs.items()}
    wrong = [name for name, pair in told.items() if name in truth and same[pair.torch] != same[truth[name]]]
    return {
        "truth": len(truth), "mapped": sum(name in told for name in truth), "wrong": wrong,
        "further": sum(name not in truth for name in told), "ambiguous": len(found.ambiguous),
        "seconds": round(took, 2),
        "left": {name: found.unmatched.get(mine) or found.ambiguous.get(mine)
                 for mine, name in before.items() if name in truth and name not in told},
    }  # fmt: skip


def module_outputs(model: Any, source: Any) -> dict[str, Any]:
    """Returns how outputs of modules are mapped: by names, and by values with no names at all."""
    from onnxbench.pytorch.matching import input_sets, match_names, match_values
    from onnxbench.pytorch.values import torch_values

    side = torch_values(source, model=model, how="modules")
    feeds = input_sets(side)
    same = equal_values(side, feeds)
    everything = match_values(model, side, feeds=feeds)
    there = {same[pair.torch] for pair in everything.pairs.values()}
    there |= {same[name] for names in everything.ambiguous.values() for name in names}
    known = [name for name in side.values if same[name] in there]
    names = match_names(model, side)
    wrong = [
        name for name, pair in names.items()
        if name in everything.pairs and same[everything.pairs[name].torch] != same[pair.torch]
    ]  # fmt: skip
    told = {same[pair.torch] for pair in names.values()}
    bare, before = stripped(model)
    alone = match_values(bare, side, feeds=feeds)
    matched = {same[pair.torch] for pair in alone.pairs.values()}
    truth = {name: pair.torch for name, pair in everything.pairs.items()}
    truth.update((name, pair.torch) for name, pair in names.items())
    other = [
        before[name] for name, pair in alone.pairs.items()
        if before.get(name) in truth and same[truth[before[name]]] != same[pair.torch]
    ]  # fmt: skip
    return {
        "outputs": len(side.values), "in the file": len(known),
        "names": sum(same[name] in told for name in known), "names_wrong": wrong,
        "values": sum(same[name] in matched for name in known), "values_wrong": other,
        "not by names": [name for name in known if same[name] not in told][:12],
    }  # fmt: skip


def measure(name: str) -> dict[str, Any]:
    from onnxbench.errors import BenchError
    from onnxbench.model import load
    from onnxbench.pytorch.exporting import ExportOptions, export
    from onnxbench.pytorch.mapping import map_values
    from onnxbench.pytorch.sources import source_of

    torch.manual_seed(0)
    module, inputs = MODELS[name]()
    source = source_of((randomized(module), (), inputs)).in_order()
    result: dict[str, Any] = {"model": name}
    with tempfile.TemporaryDirectory() as folder:
        for exporter in ("torch.export", "torchscript"):
            out = Path(folder) / f"{exporter}.onnx"
            try:
                done = export(source, out, options=ExportOptions(exporter=exporter, verify=False))
            except BenchError as error:
                result[exporter] = error.message
                continue
            model = load(out)
            begin = time.perf_counter()
            found = map_values(model, source, program=done.program)
            took = time.perf_counter() - begin
            exact = {each.value: each.torch for each in found.values if each.kind == "value"}
            ends = [each for each in found.values if each.kind == "value"]
            result[exporter] = {
                "values": len(found.values), "value": len(ends),
                "told by": {how: sum(each.how == how for each in ends) for how in ("metadata", "names", "values")},
                "differing": [(each.value, each.rel) for each in found.differing],
                "worst": max((each.rel or 0.0 for each in ends), default=0.0),
                "placed": found.share, "rest": [(each.value, each.reason) for each in found.rest][:20],
                "seconds": round(took, 2), "by values": by_values(model, source, exact),
            }  # fmt: skip
            if exporter == "torchscript":
                result["modules"] = module_outputs(model, source)
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    exporting.ROUNDS = 0
    for word in sys.argv[1:] or MODELS:
        print(json.dumps(measure(word)), flush=True)
