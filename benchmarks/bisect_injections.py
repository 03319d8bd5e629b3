"""Hit rates of ``bisect``: faults put into real models by a seed, and clean runs that must not be accused.

    python benchmarks/bisect_injections.py [--models a,b] [--seeds N] [--doubles N] [--clean N] [--json F]
    python benchmarks/bisect_injections.py --torch [--models bert,vit] ...

The truth is known here and not to ``bisect``. A single fault counts as found if the first culprit named is the changed
node (or one of the nodes that were put in), and nothing else is accused; of two, each that is among the first two.

With ``--torch`` the models are those of ``exporting.py``, exported from PyTorch, and PyTorch is the reference. It knows
no value between the nodes that one of its operators became, so there a fault counts as found, too, if it lies in the
nodes that are named together; how often the node in the verdict is the changed one (or one that was put in) is counted.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from onnxbench.bisection import Bisection, bisect
from onnxbench.errors import BenchError
from onnxbench.graph import GraphIndex
from onnxbench.model import from_proto, load

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the faults are those that the tests put in

from corpus import fetch  # noqa: E402 - found there
from injections import FAULTS, Injected, inject  # noqa: E402 - found there

MODELS = (
    "attacut_c", "attacut_sc", "eeg_seizure_lstm", "ppocr_v2_cls", "magika", "swift_f0", "tashkeel_seq2seq",
    "minilm_int8w", "basic_pitch", "eeg_spindle_unet",
)  # fmt: skip
ONE = "ort:none,threads=1"
PLACES = ("ort:all,threads=1", "ort:all", "ort:extended", "ort:basic", "ort:none,threads=2")


def found(result: Bisection, injected: Injected) -> tuple[int, int]:
    """Returns how many faults were named, and how many other nodes were accused."""
    makers = {node.name: set(node.output) for node in injected.model.graph.node if node.name}
    left = list(injected.truths)
    for culprit in result.culprits[: len(injected.truths)]:
        hit = next((truth for truth in left if culprit.tensor in truth), None)
        if hit is not None and makers.get(culprit.node, {culprit.tensor}) & hit:
            left.remove(hit)
    innocent = [c for c in result.culprits if not any(c.tensor in truth for truth in injected.truths)]
    return len(injected.truths) - len(left), len(innocent)


def measure(model: str, kinds: tuple[str, ...], seed: int) -> dict[str, Any] | None:
    """Returns one line of the result; None where the model has no place for these faults."""
    path = fetch.present()[model]
    entry = next(entry for entry in fetch.entries() if entry.name == model)
    feeds = fetch.seeded_feeds(path, entry, seed)
    injected = inject(onnx.load(path), kinds, feeds, seed)
    if injected is None:
        return None
    start = time.perf_counter()
    try:
        result = bisect(from_proto(injected.model), against=load(path), on=ONE, reference_on=ONE, feeds=feeds)
    except BenchError as error:
        return {"model": model, "kinds": kinds, "seed": seed, "faults": len(kinds), "found": 0, "error": error.message}
    hits, innocent = found(result, injected)
    return {
        "model": model, "kinds": kinds, "seed": seed, "words": injected.words, "faults": len(kinds), "found": hits,
        "accused": innocent, "verdict": result.verdict, "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip


def clean(model: str, place: str, seed: int) -> dict[str, Any]:
    """Returns one line on a run without a fault."""
    path = fetch.present()[model]
    entry = next(entry for entry in fetch.entries() if entry.name == model)
    start = time.perf_counter()
    result = bisect(path, on=place, reference_on=ONE, feeds=fetch.seeded_feeds(path, entry, seed))
    seconds = round(time.perf_counter() - start, 2)
    return {
        "model": model, "place": place, "seed": seed, "accused": len(result.culprits), "passed": result.passed,
        "excess": max((row.excess for row in result.tensors), default=0.0), "verdict": result.verdict,
        "seconds": seconds,
    }  # fmt: skip


@cache
def exported(model: str) -> tuple[onnx.ModelProto, Any, dict[str, Any]]:
    """Returns a PyTorch model as an ONNX one, as a reference, and its example inputs."""
    import torch
    from exporting import MODELS as FACTORIES
    from exporting import randomized

    import onnxbench
    from onnxbench.pytorch.reference import torch_reference

    torch.manual_seed(0)
    module, inputs = FACTORIES[model]()
    source = (randomized(module), (), inputs)
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        options = onnxbench.ExportOptions(verify=False)
        onnxbench.export(source, file, options=options)
        proto = onnx.load(file)
    reference = torch_reference(source)
    bisect(from_proto(proto), against=reference, on=ONE)  # finds out which tensor is which, and what the inputs are
    return proto, reference, reference.inputs(0)


def measure_torch(model: str, kinds: tuple[str, ...], seed: int) -> dict[str, Any] | None:
    """Returns one line of the result with PyTorch as the reference; None where there is no place for these faults."""
    proto, reference, feeds = exported(model)
    copied = onnx.ModelProto()
    copied.CopyFrom(proto)
    injected = inject(copied, kinds, feeds, seed)
    if injected is None:
        return None
    start = time.perf_counter()
    try:
        result = bisect(from_proto(injected.model), against=reference, on=ONE, feeds=feeds)
    except BenchError as error:
        return {"model": model, "kinds": kinds, "seed": seed, "faults": len(kinds), "found": 0, "error": error.message}
    main = GraphIndex(injected.model).main
    makers = {label: set(node.output) for label, node in zip(main.labels(), main.nodes, strict=True)}
    left, sizes = list(injected.truths), []
    for culprit in result.culprits[: len(injected.truths)]:
        named = {culprit.tensor}.union(*(makers.get(node, {node}) for node in culprit.region))
        hit = next((truth for truth in left if named & truth), None)
        if hit is not None:
            left.remove(hit)
            sizes.append(1 if makers.get(culprit.node, {culprit.tensor}) & hit else len(culprit.region))
    named = [{c.tensor}.union(*(makers.get(node, {node}) for node in c.region)) for c in result.culprits]
    innocent = [each for each in named if not any(each & truth for truth in injected.truths)]
    return {
        "model": model, "kinds": kinds, "seed": seed, "words": injected.words, "faults": len(kinds),
        "found": len(kinds) - len(left), "accused": len(innocent), "together": sizes, "verdict": result.verdict,
        "seconds": round(time.perf_counter() - start, 2),
    }  # fmt: skip


def clean_torch(model: str, place: str, seed: int) -> dict[str, Any]:
    """Returns one line on a run without a fault, PyTorch being the reference."""
    proto, reference, _ = exported(model)
    start = time.perf_counter()
    result = bisect(from_proto(proto), against=reference, on=place, feeds=reference.inputs(seed))
    seconds = round(time.perf_counter() - start, 2)
    return {
        "model": model, "place": place, "seed": seed, "accused": len(result.culprits), "passed": result.passed,
        "excess": max((row.excess for row in result.tensors), default=0.0), "verdict": result.verdict,
        "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", help=f"By default {','.join(MODELS)}, or with --torch those of exporting.py.")
    parser.add_argument("--torch", action="store_true", help="Compare with PyTorch.")
    parser.add_argument("--seeds", type=int, default=1, help="Places drawn for each single fault.")
    parser.add_argument("--doubles", type=int, default=0, help="Pairs of faults drawn for each model.")
    parser.add_argument("--clean", type=int, default=0, help="Sets of inputs for each model and place without a fault.")
    parser.add_argument("--json", type=Path, help="Write every run, a line each.")
    told = parser.parse_args()
    lines: list[dict[str, Any]] = []

    def keep(line: dict[str, Any] | None) -> None:
        if line is None:
            return
        lines.append(line)
        if line.get("error") or line.get("accused") or line.get("found", 0) < line.get("faults", 0):
            print("look at:", json.dumps(line, default=str), flush=True)
        if told.json:
            told.json.write_text("".join(json.dumps(each, default=str) + "\n" for each in lines), encoding="utf-8")

    models: Sequence[str] = MODELS
    fault, without = measure, clean
    if told.torch:
        from exporting import MODELS as FACTORIES

        models, fault, without = tuple(FACTORIES), measure_torch, clean_torch
    for model in told.models.split(",") if told.models else models:
        for seed in range(told.seeds):
            for kind in FAULTS:
                keep(fault(model, (kind,), seed))
        for seed in range(told.doubles):
            pair = np.random.default_rng(seed).choice(sorted(FAULTS), 2, replace=False)
            keep(fault(model, tuple(str(kind) for kind in pair), seed))
        for seed in range(told.clean):
            for place in PLACES:
                keep(without(model, place, seed))
    for name, size in (("single", 1), ("double", 2)):
        group = [line for line in lines if line.get("faults") == size]
        hits, total = sum(line["found"] for line in group), sum(line["faults"] for line in group)
        both = sum(line["found"] == size for line in group)
        accused = sum(bool(line.get("accused")) for line in group)
        if group:
            together = [size for line in group for size in line.get("together", ())]
            if together:
                print(f"{name}: the very node {together.count(1)} times, else among up to {max(together)} nodes")
            print(f"{name}: {hits} of {total} faults named, {both} of {len(group)} runs whole, {accused} accuse others")
    runs = [line for line in lines if "place" in line]
    if runs:
        accused = sum(bool(line["accused"]) for line in runs)
        drift = sum(not line["passed"] for line in runs)
        worst = max(line["excess"] for line in runs)
        print(f"clean: {len(runs)} runs, {accused} accused, {drift} not passed; nearest to the limit {worst:.2f}")


if __name__ == "__main__":
    main()
