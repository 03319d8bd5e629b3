"""Measures ``onnxbench precision --search``: planted minima, what tools that go by rules keep, and the runs it takes.

    pip install -e . onnxconverter-common==1.16.0
    python benchmarks/precision_search.py planted
    pip install -e '.[torch]' torch==2.13.0 transformers==5.23.0
    python benchmarks/precision_search.py bert resnet50

``planted``: for twelve models (``planted.py``), the nodes that the search keeps over the planted minimum, which it does
not know, and the error on two held-out samples of six, for a tolerance of 1e-2 (``max``). Beside it what other tools
keep in float32 and the error that they leave, by the same emulation of float16. Each planted minimum is held to be one:
it passes, and it fails without any one of its nodes.

Others: runs and seconds of a search on models of that size with random weights, as exported and with nodes planted that
overflow; the tolerance of the plain one is three quarters of the error of plain float16. A search may take 59 runs; the
one of the model as exported then goes on from there to its end, and tells the runs of that alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from planted import MODELS, Planted

from onnxbench import backends
from onnxbench.model import from_proto, load
from onnxbench.tuning import tune
from onnxbench.tuning._criteria import Criterion
from onnxbench.tuning._emulation import FLOAT16, Emulation

os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1")
TOLERANCE = 1e-2
FEW = 59
HELD_OUT = 2


class Judge:
    """The error of a planted model with given nodes in float32."""

    def __init__(self, proto: onnx.ModelProto, samples: list[dict[str, Any]]) -> None:
        self._emulation = Emulation(from_proto(proto), FLOAT16, clamp=True)
        self._samples, self._options = samples, backends.Options(optimization="none")
        self._criterion = Criterion("max", [str(TOLERANCE)], ["y"])
        session = backends.open_session(from_proto(proto), options=self._options)
        self._expected = [session.run(sample) for sample in samples]

    def error(self, names: Any) -> float:
        kept = [number for number, unit in enumerate(self._emulation.units) if unit.path in set(names)]
        session = backends.open_session(self._emulation.emulated(kept), options=self._options)
        scores = [
            self._criterion.judge(wanted, session.run(sample), 0)
            for wanted, sample in zip(self._expected, self._samples, strict=True)
        ]
        return max(score.ratio for score in scores) * TOLERANCE

    @property
    def candidates(self) -> int:
        return len(self._emulation.units)


def others(proto: onnx.ModelProto, sample: dict[str, Any]) -> dict[str, Any]:
    """Returns the nodes that other tools leave in float32, or what they say."""
    from onnxruntime.transformers import float16 as ort

    def common(model: onnx.ModelProto) -> onnx.ModelProto:
        from onnxconverter_common import float16

        return float16.convert_float_to_float16(model, keep_io_types=True)

    def auto(model: onnx.ModelProto) -> onnx.ModelProto:
        from onnxconverter_common import auto_mixed_precision

        return auto_mixed_precision.auto_convert_mixed_precision(
            model, sample, rtol=TOLERANCE, atol=TOLERANCE, keep_io_types=True
        )

    def runtime(model: onnx.ModelProto) -> onnx.ModelProto:
        return ort.convert_float_to_float16(model, keep_io_types=True)

    found: dict[str, Any] = {}
    for name, convert in (
        ("onnxconverter-common", common),
        ("its auto_mixed_precision", auto),
        ("ONNX Runtime", runtime),
    ):
        copy = onnx.ModelProto()
        copy.CopyFrom(proto)
        try:
            with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                made = onnx.shape_inference.infer_shapes(convert(copy))
        except Exception as error:  # a tool may fail in any way
            found[name] = f"{type(error).__name__}: {str(error)[:60]}"
            continue
        kinds = {each.name: each.type.tensor_type.elem_type for each in (*made.graph.value_info, *made.graph.output)}
        own = {node.name for node in proto.graph.node}
        found[name] = [node.name for node in made.graph.node if node.name in own and kinds.get(node.output[0]) == 1]
    return found


def planted(case: Planted) -> dict[str, Any]:
    """Returns what the search and the others keep of one model."""
    proto, samples = case.model(), case.samples()
    judge, held = Judge(proto, samples), Judge(proto, samples[-HELD_OUT:])
    assert judge.error(case.minimum) <= TOLERANCE, (case.name, judge.error(case.minimum))
    for name in case.minimum:
        rest = set(case.minimum) - {name}
        assert judge.error(rest) > TOLERANCE, (case.name, name, judge.error(rest))
    begun = time.perf_counter()
    found = tune(
        from_proto(proto), to="fp16", tolerance=TOLERANCE, feeds=samples, holdout=HELD_OUT, weights="clamp"
    )  # fmt: skip
    kept = [each.node for each in found.kept]
    row = {
        "model": case.name, "nodes": judge.candidates, "minimum": len(case.minimum), "kept": len(kept), "set": kept,
        "same": set(kept) == set(case.minimum), "plain": judge.error(()), "held_out": held.error(kept),
        "passed": found.passed, "runs": found.runs, "seconds": time.perf_counter() - begun, "others": {},
    }  # fmt: skip
    for name, made in others(proto, samples[0]).items():
        row["others"][name] = made if isinstance(made, str) else {"kept": len(made), "error": held.error(made)}
    return row


def report_planted() -> bool:
    good = True
    print(f"{'model':22} nodes min kept same  plain    held-out runs  s    others: kept, held-out error")
    for case in MODELS:
        row = planted(case)
        good &= row["passed"] and row["kept"] <= 1.3 * row["minimum"]
        words = "; ".join(
            made if isinstance(made, str) else f"{made['kept']}, {made['error']:.1e}" for made in row["others"].values()
        )
        print(
            f"{row['model']:22} {row['nodes']:5} {row['minimum']:3} {row['kept']:4} {row['same']!s:5} "
            f"{row['plain']:8.1e} {row['held_out']:8.1e} {row['runs']:4} {row['seconds']:5.2f}  {words}"
            + ("" if row["same"] else f"   kept {row['set']}")
        )
        sys.stdout.flush()
    return good


# ---------------------------------------------------------------- models of a usual size


def _bert() -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import BertConfig, BertModel

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = BertModel(BertConfig(attn_implementation="eager"))

        def forward(self, input_ids: Any, attention_mask: Any) -> Any:
            return self.inner(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state

    return Whole(), {"input_ids": torch.randint(0, 30000, (1, 64)),
                     "attention_mask": torch.ones(1, 64, dtype=torch.long)}  # fmt: skip


def _resnet50() -> tuple[Any, dict[str, Any]]:
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    class Whole(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = ResNetForImageClassification(ResNetConfig(num_labels=1000))

        def forward(self, pixel_values: Any) -> Any:
            return self.inner(pixel_values=pixel_values).logits

    return Whole(), {"pixel_values": torch.randn(1, 3, 224, 224)}


def _exported(name: str, folder: Path) -> Path:
    import torch

    file = folder / f"{name}.onnx"
    if file.exists():
        return file
    torch.manual_seed(0)
    module, inputs = {"bert": _bert, "resnet50": _resnet50}[name]()
    with torch.no_grad():  # weights with which no layer's output vanishes
        for path, weight in module.named_parameters():
            if weight.ndim >= 2 and "embed" not in path:
                weight.normal_(0, (2.0 if name == "resnet50" else 1.0) ** 0.5 / weight[0].numel() ** 0.5)
    with contextlib.redirect_stdout(io.StringIO()):
        torch.onnx.export(module.eval(), (), str(file), kwargs=inputs, dynamo=True, external_data=True)
    return file


def _sample(name: str, number: int) -> dict[str, Any]:
    rng = np.random.default_rng(number)
    if name == "bert":
        mask = (np.arange(64) < 64 - 8 * number)[None].astype(np.int64)
        return {"input_ids": rng.integers(0, 30000, (1, 64)), "attention_mask": mask}
    return {"pixel_values": rng.normal(size=(1, 3, 224, 224)).astype(np.float32)}


def _with_overflow(file: Path, target: Path) -> list[str]:
    """Plants squares that overflow behind three nodes of a model, each undone by a root; returns what must be kept."""
    model = load(file)
    proto = model.proto
    places = [position for position, node in enumerate(proto.graph.node) if node.op_type in ("Gelu", "Erf", "Relu")]
    chosen = [places[len(places) * part // 4] for part in (1, 2, 3)]
    names: list[str] = []
    for name, value in (("planted_far", 500.0), ("planted_near", 1 / 500.0)):
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value, np.float32), name))
    for position in reversed(chosen):
        node = proto.graph.node[position]
        plain = node.output[0]
        node.output[0] = f"{plain}_planted"
        chain = [
            onnx.helper.make_node("Mul", [f"{plain}_planted", "planted_far"], [f"{plain}_a"], f"{plain}_up"),
            onnx.helper.make_node("Mul", [f"{plain}_a", "planted_far"], [f"{plain}_b"], f"{plain}_over"),
            onnx.helper.make_node("Mul", [f"{plain}_b", "planted_near"], [f"{plain}_c"], f"{plain}_back"),
            onnx.helper.make_node("Mul", [f"{plain}_c", "planted_near"], [plain], f"{plain}_down"),
        ]
        names += [f"{plain}_over", f"{plain}_back"]
        for at, each in enumerate(chain):
            proto.graph.node.insert(position + 1 + at, each)
    from onnxbench.writer import SaveOptions, save

    save(model, target, options=SaveOptions(external=True))
    return names


def sized(name: str) -> bool:
    folder = Path(os.environ.get("ONNXBENCH_MODELS", tempfile.gettempdir()))
    file = _exported(name, folder)
    overflowing = folder / f"{name}_overflow.onnx"
    minimum = _with_overflow(file, overflowing)
    samples = [_sample(name, number) for number in range(3)]
    plain = tune(file, to="fp16", tolerance=1e-9, metric="rel", feeds=samples[:2], weights="clamp", max_runs=3)
    bound = 0.75 * float(plain.plain.value or 0)
    good = True
    state = folder / f"{name}_search.json"
    state.unlink(missing_ok=True)
    for what, path, tolerance, most in (
        ("as exported", file, bound, FEW), ("as exported, to the end", file, bound, 200),
        ("overflow planted", overflowing, 2e-2, FEW),
    ):  # fmt: skip
        begun = time.perf_counter()
        found = tune(
            path, to="fp16", tolerance=tolerance, metric="rel", feeds=samples, holdout=1, weights="clamp",
            max_runs=most, resume=state if path is file else None,
        )  # fmt: skip
        row = {
            "model": f"{name}, {what}", "nodes": len(found.candidates), "tolerance": tolerance,
            "plain": found.plain.text, "kept": len(found.kept),
            "planted": len(minimum) if path is overflowing else None,
            "missed": sorted(set(minimum) - {each.node for each in found.kept}) if path is overflowing else [],
            "error": found.score.text, "holdout": found.holdout and found.holdout.text, "runs": found.runs,
            "sets": found.sets, "untried": found.untried, "ended": found.ended,
            "seconds": round(time.perf_counter() - begun, 1),
        }  # fmt: skip
        good &= found.found and (most > FEW or not set(row["missed"]))
        print(json.dumps(row))
        sys.stdout.flush()
    return good


def main() -> int:
    words = sys.argv[1:] or ["planted"]
    good = True
    for word in words:
        good &= report_planted() if word == "planted" else sized(word)
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
