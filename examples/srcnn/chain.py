"""From a PyTorch module with a custom operator to a TensorRT engine, without a GPU.

    python examples/srcnn/chain.py OUT

Needs onnxbench[torch,trt]. Of TensorRT everything but running the engine is real.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

import onnxbench
from onnxbench import backends
from onnxbench.bundles import find_plugins, load_bundle
from onnxbench.engine import Range
from onnxbench.pytorch.sources import load_source

HERE = Path(__file__).resolve().parent
PLUGIN = HERE.parents[1] / "plugins" / "dynamic_resize"
SIZES = {"x": "1x3x48x40", "size_tensor": "1x1x100x90"}
"""Other sizes than those of the export."""


def main(out: Path) -> None:
    """Writes ``srcnn.onnx`` and ``srcnn.engine`` into a folder and says what was compared."""
    out.mkdir(parents=True, exist_ok=True)
    bundle = load_bundle(PLUGIN)
    model, engine = out / "srcnn.onnx", out / "srcnn.engine"

    # 1. Export: the module calls the bundle's operator, the file has Test::DynamicTRTResize.
    done = onnxbench.export(
        f"{HERE / 'model.py'}:make", model,
        options=onnxbench.ExportOptions(
            plugins=[str(PLUGIN)], dynamic=["x:2=height,3=width", "size_tensor:2=out_height,3=out_width"]
        ),
    )  # fmt: skip
    assert done.passed, "the file does not compute what PyTorch computes"
    print(f"exported {model.name}: {done.nodes} nodes, compared with PyTorch: {[case.name for case in done.cases]}")

    # 2. Run it in ONNX Runtime, at a size that the exporter has not seen.
    loaded = onnxbench.load(model)
    random = np.random.default_rng(1)
    feeds = {
        name: random.random([int(size) for size in shape.split("x")], dtype=np.float32) for name, shape in SIZES.items()
    }
    session = backends.open_session(loaded, options=backends.Options(operators=(bundle.operator(),)))
    (actual,) = session.run(feeds).values()
    source = load_source(f"{HERE / 'model.py'}:make")
    expected = source.call([torch.from_numpy(value) for value in feeds.values()]).numpy()
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-5)
    print(f"ONNX Runtime agrees with PyTorch at {SIZES}: off by at most {np.abs(actual - expected).max():.2g}")

    # 3. And against what PyTorch itself calls bicubic: the bundle computes the right thing.
    with torch.no_grad():
        resized = torch.nn.functional.interpolate(torch.from_numpy(feeds["x"]), size=(100, 90), mode="bicubic")
        net = source.module
        built_in = net.conv3(torch.relu(net.conv2(torch.relu(net.conv1(resized)))))
    np.testing.assert_allclose(actual, built_in.numpy(), rtol=1e-3, atol=1e-5)
    print("... and with torch.nn.functional.interpolate in the operator's place")

    # 4. An engine with the operator's kernel in it.
    profile = {
        "x": Range((1, 3, 8, 8), (1, 3, 32, 32), (1, 3, 128, 128)),
        "size_tensor": Range((1, 1, 8, 8), (1, 1, 64, 64), (1, 1, 512, 512)),
    }
    spec = onnxbench.BuildSpec(profiles=(profile,), compute_capabilities=("SM89",))
    built = onnxbench.build_engine(model, engine, spec, plugins=find_plugins([str(PLUGIN)]))
    assert bundle.ptx().encode() in engine.read_bytes(), "the engine does not carry the kernel"
    kinds = built.record.data["kinds"]
    print(f"built {engine.name}: {engine.stat().st_size:,} bytes, {kinds.get('PLUGIN_V3')} plugin layer, kernel inside")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "srcnn"))
