"""Measures ``onnxbench quantize``: the error of int8 models, what a search leaves in float, and other quantizers.

    pip install -e '.[torch]' torch==2.13.0 onnxsim==0.8.1
    python benchmarks/quantize.py magika ppocr_v2_cls open_nsfw_resnet
    python benchmarks/quantize.py --search ppocr_v2_cls

All are calibrated with the same eight samples. Their outputs are compared with the float model's on sixteen others, in
ONNX Runtime without optimization (each QuantizeLinear and DequantizeLinear as defined): the lowest and the median
signal to noise in dB, and how often the first choice is the same. Magika gets pieces of Python source files, the others
smooth random images. ``resnet18`` is of ``exporting.py``, with random weights. The search wants 3 dB more than its own
plain model has on the calibration samples.
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
import time
import warnings
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxbench import backends
from onnxbench.int8 import quantize
from onnxbench.model import Model, from_proto, load

ROOT = Path(__file__).resolve().parent.parent
CALIBRATION, HELD_OUT = 8, 16
MORE = 3.0
"""What the search is to win, in dB."""


def images(shape: tuple[int, ...], name: str) -> list[dict[str, Any]]:
    """Smooth random images, each with its own contrast."""
    made = []
    for number in range(CALIBRATION + HELD_OUT):
        random = np.random.default_rng(number)
        coarse = random.standard_normal((*shape[:2], shape[2] // 8, shape[3] // 8))
        image = np.kron(coarse, np.ones((1, 1, 8, 8))) * random.uniform(0.3, 1.0)
        made.append({name: image.astype(np.float32).clip(-1, 1)})
    return made


def sources(name: str) -> list[dict[str, Any]]:
    """Beginnings and ends of files, as magika reads them."""
    texts = (file.read_bytes().strip() for file in sorted((ROOT / "onnxbench").glob("*.py")))
    long = [text for text in texts if len(text) > 2048][: CALIBRATION + HELD_OUT]
    return [{name: np.array([[*data[:1024], *data[-1024:]]], np.int32)} for data in long]


def subject(name: str, folder: Path) -> tuple[Model, list[dict[str, Any]]]:
    """Returns a model and its samples."""
    if name == "resnet18":
        import exporting
        import torch

        module, example = exporting.resnet18()
        made = exporting.randomized(module)
        torch.onnx.export(made, (), folder / "resnet18.onnx", kwargs=example, dynamo=True, verbose=False)
        model = load(folder / "resnet18.onnx")
        port = model.proto.graph.input[0]
        shape = tuple(dim.dim_value for dim in port.type.tensor_type.shape.dim)
        return model, images(shape, port.name)
    model = load(ROOT / ".corpus" / f"{name}.onnx")
    port = model.proto.graph.input[0].name
    if name == "magika":
        return model, sources(port)
    made = images(
        {"open_nsfw_resnet": (1, 3, 224, 224), "ppocr_v4_det": (1, 3, 160, 160)}.get(name, (1, 3, 48, 192)), port
    )
    if name == "open_nsfw_resnet":  # channels last, and means taken off 8 bits
        made = [{port: 100 * each[port].transpose(0, 2, 3, 1)} for each in made]
    return model, made


class Judge:
    """How near to float an int8 model is on held-out samples."""

    def __init__(self, model: Model, samples: list[dict[str, Any]]) -> None:
        self._samples = samples
        self._expected = self._run(model)

    def _run(self, model: Model) -> list[dict[str, Any]]:
        session = backends.open_session(model, options=backends.Options(optimization="none"))
        return [session.run(sample) for sample in self._samples]

    def __call__(self, model: Model) -> dict[str, Any]:
        told, same = [], 0
        for expected, actual in zip(self._expected, self._run(model), strict=True):
            lowest = float("inf")
            for name, value in expected.items():
                wide = value.astype(np.float64)
                noise = float(((actual[name] - wide) ** 2).sum())
                lowest = min(lowest, 10 * np.log10((wide**2).sum() / noise) if noise else float("inf"))
            told.append(lowest)
            first = next(iter(expected))
            same += int((expected[first].argmax(-1) == actual[first].argmax(-1)).all())
        nodes = [node.op_type for node in model.proto.graph.node]
        return {"worst_db": round(float(min(told)), 1), "median_db": round(float(np.median(told)), 1),
                "same_first": f"{same}/{len(self._samples)}",
                "quantize": nodes.count("QuantizeLinear")}  # fmt: skip


def by_onnxruntime(proto: onnx.ModelProto, samples: list[dict[str, Any]], folder: Path) -> Model:
    """quantize_static with its defaults, as most tutorials call it."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._sets = iter(samples)

        def get_next(self) -> Any:
            return next(self._sets, None)

    onnx.save(proto, folder / "float.onnx")
    quantize_static(folder / "float.onnx", folder / "ort.onnx", Reader())
    return from_proto(onnx.load(folder / "ort.onnx"))


def by_onnxsim(proto: onnx.ModelProto, samples: list[dict[str, Any]], folder: Path) -> Model:
    """quantize_static of onnxsim, with its defaults."""
    import onnxsim

    return from_proto(onnxsim.quantize_static(proto, calibration_data=samples, num_calibration_samples=len(samples)))


def measured(label: str, judge: Judge, make: Any) -> Model | None:
    """Makes a model, prints a line on it, and returns it."""
    began = time.perf_counter()
    extra: dict[str, Any] = {}
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = make()
        if isinstance(made, tuple):
            made, extra = made
        spent = time.perf_counter() - began
        result = {**judge(made), **extra}
    except Exception as error:  # tools fail in their own ways, and that is a result
        made, spent, result = None, time.perf_counter() - began, {"fails": f"{type(error).__name__}: {error}"[:160]}
    print(json.dumps({"by": label, **result, "seconds": round(spent, 1)}), flush=True)
    return made


def by_us(model: Model, samples: list[dict[str, Any]], **how: Any) -> tuple[Model, dict[str, Any]]:
    """onnxbench, with how many nodes are in int8 and in float."""
    made = quantize(model, feeds=samples, **how)
    extra = {"in_int8": len(made.nodes) - len(made.kept), "in_float": len(made.kept)}
    if made.search is not None:
        extra |= {"wanted_db": float(how["tolerance"][0]), "runs": made.search.runs}
    if made.model is None:
        raise ValueError(made.verdict)
    return made.model, {**extra, "calibration_db": made.worst.sqnr_db}


def study(name: str, folder: Path, *, search: bool) -> None:
    """Prints what is measured of a model, a line each."""
    model, samples = subject(name, folder)
    seen, held = samples[:CALIBRATION], samples[CALIBRATION:]
    judge = Judge(model, held)
    whole = onnx.load(str(model.origin))
    print(json.dumps({"model": name, "nodes": len(whole.graph.node)}), flush=True)
    measured("onnxruntime, defaults", judge, lambda: by_onnxruntime(whole, seen, folder))
    measured("onnxsim, defaults", judge, lambda: by_onnxsim(whole, seen, folder))
    for method in ("auto", "minmax", "entropy"):
        how = {"target": "tensorrt", "method": method}
        measured(f"onnxbench, tensorrt, {method}", judge, lambda how=how: by_us(model, seen, **how))
    measured("onnxbench, onnxruntime", judge, lambda: by_us(model, seen, target="onnxruntime"))
    for target in ("tensorrt", "onnxruntime") if search else ():
        plain = quantize(model, feeds=seen, target=target).worst.sqnr_db or 0.0
        how = {"target": target, "metric": "sqnr", "tolerance": [f"{plain + MORE:.2f}"], "max_runs": 200}
        measured(f"onnxbench, {target}, search", judge, lambda how=how: by_us(model, seen, **how))


def main(words: list[str]) -> None:
    """Studies models one after the other."""
    search = "--search" in words
    names = [word for word in words if word != "--search"] or ["magika", "ppocr_v2_cls"]
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            study(name, Path(folder), search=search)


if __name__ == "__main__":
    main(sys.argv[1:])
