"""Writes docs/plugin-support.md: what computes each shipped operator in which element type, found out by running it.

``python docs/support.py`` needs a C++ compiler, onnxruntime-extensions, torch and tensorrt-rtx, and no GPU.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnxbench.bundles import Bundle, find_plugins, read_bundles, registered
from onnxbench.bundles._kernels import HostKernel
from onnxbench.bundles._proof import _in, allowed_in, difference, expected_of
from onnxbench.errors import BenchError

DOCS = Path(__file__).resolve().parent
PLUGINS = DOCS.parent / "plugins"
OPSET = 21
HEAD = """# Which operator runs where

Found out by `python docs/support.py`, which runs each of these on up to 8 of the operator's cases and compares with
the reference; a cell says how many. "-": not at all. Fewer than 8: the others cannot be said in ONNX's operators. An
engine was built for compute capability 8.9 with tensorrt-rtx, and the operator's kernel found in it; nothing was run on
a GPU. "kernel" is the device code, compiled for the CPU. "ORT, body" are ONNX Runtime's own kernels by the operator's
body at opset 21, "ORT, Python" the reference called from ONNX Runtime.

| operator | version | type | checker | evaluator | ORT, body | ORT, Python | PyTorch | kernel | engine |
|---|---|---|---|---|---|---|---|---|---|
"""


def agree(bundle: Bundle, made: Sequence[Any], inputs: Sequence[np.ndarray], attributes: dict[str, Any]) -> bool:
    """Tells whether values are those of the reference."""
    expected = expected_of(bundle, inputs, attributes)
    return len(made) == len(expected) and all(
        actual.dtype == wanted.dtype and difference(actual, wanted, allowed_in(bundle, wanted)) is None
        for actual, wanted in zip(made, expected, strict=True)
    )


def in_evaluator(bundle: Bundle, inputs: Sequence[np.ndarray], attributes: dict[str, Any]) -> Sequence[Any]:
    """Returns what onnx's reference evaluator makes of a case."""
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(bundle.model(inputs, attributes), new_ops=[bundle.evaluator()])
    return list(session.run(None, dict(zip(bundle.inputs, inputs, strict=False))))


def in_onnxruntime(bundle: Bundle, inputs: Sequence[np.ndarray], attributes: dict[str, Any]) -> Sequence[Any]:
    """Returns what ONNX Runtime makes of a case."""
    from onnxbench import backends
    from onnxbench.model import from_proto

    proto = bundle.model(inputs, bundle.filled(attributes))
    proto.opset_import[0].version, proto.ir_version = OPSET, 10
    options = backends.Options("none", operators=(bundle.operator(),))
    session = backends.open_session(from_proto(proto), options=options)
    made = session.run(dict(zip(bundle.inputs, inputs, strict=False)))
    session.close()
    return list(made.values())


def in_torch(bundle: Bundle, inputs: Sequence[np.ndarray], attributes: dict[str, Any]) -> Sequence[Any]:
    """Returns what the operator in PyTorch makes of a case."""
    import torch

    from onnxbench.pytorch.operators import _as_tensor, as_array, torch_operator

    made = torch_operator(bundle)(*(_as_tensor(value, torch) for value in inputs), **bundle.filled(attributes))
    return [as_array(each) for each in ([made] if len(bundle.outputs) == 1 else made)]


def is_checked(bundle: Bundle, inputs: Sequence[np.ndarray], attributes: dict[str, Any]) -> bool:
    """Tells that onnx's checker and inference take a case."""
    import onnx

    with registered([bundle]):
        onnx.checker.check_model(bundle.model(inputs, attributes), full_check=True)
    return True


def is_built(bundle: Bundle, inputs: Sequence[np.ndarray], attributes: dict[str, Any]) -> bool:
    """Tells whether a case becomes an engine that carries the kernel."""
    import onnx

    from onnxbench.engine import BuildSpec, build_engine

    with tempfile.TemporaryDirectory() as folder:
        model, engine = Path(folder, "model.onnx"), Path(folder, "model.engine")
        onnx.save(bundle.model(inputs, attributes), model)
        spec = BuildSpec(engine="tensorrt-rtx", compute_capabilities=("SM89",))
        build_engine(model, engine, spec, plugins=find_plugins([str(bundle.folder)]))
        return bundle.ptx().encode() in engine.read_bytes()


def how_many(cases: Sequence[Any], holds: Callable[..., bool]) -> str:
    """Returns for how many cases something holds; - if it fails for any."""
    try:
        return str(len(cases)) if cases and all(holds(*case) for case in cases) else "-"
    except BenchError:  # a runtime says no; anything else is a fault to look at
        return "-"


def rows(bundle: Bundle) -> list[str]:
    """Returns the rows of an operator: one for each element type."""
    kernel, bodiless = HostKernel(bundle), dataclasses.replace(bundle, body=None)
    full = [case for case in bundle.cases() if all(value.size for value in [*case[0], *expected_of(bundle, *case)])]
    made = []
    for dtype in bundle.dtypes:
        few = [(_in(dtype, bundle, case), case[1]) for case in full[:: max(1, len(full) // 8)][:8]]
        with_body = [
            (inputs, said) for inputs, said in few if bundle.function(said, OPSET, len(inputs)) is not None
        ]  # fmt: skip
        cells = [
            how_many(few, lambda *case: is_checked(bundle, *case)),
            how_many(few, lambda *case: agree(bundle, in_evaluator(bundle, *case), *case)),
            how_many(with_body, lambda *case: agree(bundle, in_onnxruntime(bundle, *case), *case)),
            how_many(few, lambda *case: agree(bundle, in_onnxruntime(bodiless, *case), *case)),
            how_many(few, lambda *case: agree(bundle, in_torch(bundle, *case), *case)),
            how_many(few, lambda *case: agree(bundle, kernel.run(*case), *case)),
            how_many(few[:1], lambda *case: is_built(bundle, *case)).replace("1", "yes"),
        ]
        name = f"[`{bundle.domain}::{bundle.op}`](../plugins/{bundle.folder.name}/README.md)"
        made.append(f"| {name} | {bundle.version} | {dtype} | {' | '.join(cells)} |\n")
        print(made[-1], end="", flush=True)
    return made


def main() -> None:
    """Writes the page."""
    folders = sorted(file.parent for file in PLUGINS.glob("*/plugin.py"))
    table = [row for folder in folders for bundle in read_bundles(folder) for row in rows(bundle)]
    (DOCS / "plugin-support.md").write_text(HEAD + "".join(table), encoding="utf-8")


if __name__ == "__main__":
    main()
