"""Writes ``docs/operators.md``: what runs each shipped operator in which element type, found by running it.

``python docs/operators.py`` runs all of them (minutes; TensorRT-RTX, PyTorch and a C++ compiler are needed), ``--check``
exits 1 if a bundle is not what it was when the page was written.
"""

from __future__ import annotations

import hashlib
import re
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PLUGINS = DOCS.parent / "plugins"
PAGE = DOCS / "operators.md"
_HEAD = """# Operators of the shipped bundles

What runs which operator in which element type. `python docs/operators.py` writes this page: it runs the first case of each
bundle everywhere and compares with the NumPy reference (with TensorRT, which has no GPU here, it builds an engine and
looks for the kernel in it). A dash means that it failed. `body` is ONNX Runtime with its own kernels, by the operator's
body of ONNX operators; `Python` is the reference, called through onnxruntime-extensions.

| operator | version | bundle | NumPy, onnx evaluator | ONNX Runtime | PyTorch | kernel on the CPU | TensorRT engine |
|---|---|---|---|---|---|---|---|
"""
_SHORT = {"float32": "f32", "float16": "f16", "bfloat16": "bf16", "int32": "i32", "int64": "i64"}


def bundle_digest(folder: Path) -> str:
    """Returns a digest of what decides how a bundle runs."""
    digest = hashlib.sha256()
    for file in sorted(each for each in folder.iterdir() if each.suffix in {".py", ".cu", ".h"}):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def folders() -> list[Path]:
    """Returns the folders of the shipped bundles."""
    return sorted(each for each in PLUGINS.iterdir() if (each / "plugin.py").is_file())


def page() -> str:
    """Returns the page, everything run."""
    from onnxbench.bundles import read_bundles

    rows, digests = [], []
    for folder in folders():
        for bundle in read_bundles(folder):
            cells = [_tried(bundle, way) for way in (_evaluator, _onnxruntime, _pytorch, _host, _engine)]
            cells[1] = f"{'body' if bundle.body is not None else 'Python'}: {cells[1]}"
            link = f"[{folder.name}](../plugins/{folder.name}/README.md)"
            rows.append(f"| `{bundle.domain}::{bundle.op}` | {bundle.version} | {link} | {' | '.join(cells)} |")
            print(rows[-1], file=sys.stderr)
        digests.append(f"<!-- {folder.name} {bundle_digest(folder)} -->")
    return _HEAD + "\n".join(rows) + "\n\n" + "\n".join(digests) + "\n"


def _tried(bundle: Any, way: Callable[[Any, Sequence[Any], dict[str, Any]], Sequence[Any] | None]) -> str:
    """Returns the element types in which something makes what the reference makes."""
    from onnxbench.bundles._proof import _in, allowed_in, difference, expected_of
    from onnxbench.errors import BenchError

    case = next(case for case in bundle.cases() if all(value.size for value in case[0]))
    done = []
    for dtype in bundle.dtypes:
        inputs = _in(dtype, bundle, case)
        try:
            made = way(bundle, inputs, case[1])
        except (BenchError, AssertionError, RuntimeError, TypeError, NotImplementedError) as error:
            print(f"{bundle.name} {dtype} {way.__name__}: {str(error)[:200]}", file=sys.stderr)
            continue
        expected = expected_of(bundle, inputs, case[1])
        if made is None or all(
            difference(actual, wanted, allowed_in(bundle, wanted)) is None
            for actual, wanted in zip(made, expected, strict=True)
        ):
            done.append(_SHORT[dtype])
    return ", ".join(done) or "-"


def _evaluator(bundle: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Sequence[Any]:
    from onnx.reference import ReferenceEvaluator

    session = ReferenceEvaluator(bundle.model(inputs, attributes), new_ops=[bundle.evaluator()])
    return list(session.run(None, dict(zip(bundle.inputs, inputs, strict=False))))


def _onnxruntime(bundle: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Sequence[Any]:
    from onnxbench import backends
    from onnxbench.model import from_proto

    proto = bundle.model(inputs, bundle.filled(attributes))
    proto.opset_import[0].version, proto.ir_version = 21, 10
    session = backends.open_session(from_proto(proto), options=backends.Options(operators=(bundle.operator(),)))
    try:
        return list(session.run(dict(zip(bundle.inputs, inputs, strict=False))).values())
    finally:
        session.close()


def _pytorch(bundle: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Sequence[Any]:
    import torch

    from onnxbench.pytorch._verification import as_array
    from onnxbench.pytorch.operators import _as_tensor, torch_operator

    made = torch_operator(bundle)(*(_as_tensor(value, torch) for value in inputs), **bundle.filled(attributes))
    return [as_array(each) for each in (made if isinstance(made, tuple | list) else [made])]


def _host(bundle: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> Sequence[Any]:
    from onnxbench.bundles._kernels import HostKernel

    return HostKernel(bundle).run(inputs, attributes)


def _engine(bundle: Any, inputs: Sequence[Any], attributes: dict[str, Any]) -> None:
    import onnx

    from onnxbench.bundles import find_plugins
    from onnxbench.engine import BuildSpec, build_engine

    with tempfile.TemporaryDirectory() as folder:
        model, target = Path(folder, "model.onnx"), Path(folder, "model.engine")
        onnx.save(bundle.model(inputs, attributes), model)
        spec = BuildSpec(compute_capabilities=("SM89",))
        build_engine(model, target, spec, plugins=find_plugins([str(bundle.folder)]))
        data = target.read_bytes()
        assert bundle.op.encode() in data
        assert bundle.ptx().encode() in data


def stale() -> list[str]:
    """Returns the bundles that are not what they were when the page was written, or that it does not have."""
    told = dict(re.findall(r"<!-- (\w+) (\w+) -->", PAGE.read_text(encoding="utf-8")))
    now = {folder.name: bundle_digest(folder) for folder in folders()}
    return sorted(name for name in {*told, *now} if told.get(name) != now.get(name))


def main() -> int:
    """Writes the page, or checks it; returns the exit status."""
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    found = stale()
    if found:
        print(f"docs/operators.md is out of date: {', '.join(found)}; run 'python docs/operators.py'")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
