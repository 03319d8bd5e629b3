"""Bisections of models with custom operators: repros that carry them, processes of their own, optimized graphs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import ROOT
from onnx import TensorProto, helper, numpy_helper

from onnxbench import backends
from onnxbench.bisection import bisect
from onnxbench.bundles import load_bundles, operators_of
from onnxbench.errors import UnsupportedError
from onnxbench.model import Model, from_proto

pytestmark = pytest.mark.skipif(
    not backends.has_python_operators(), reason="onnxruntime-extensions is not installed (pip install 'onnxbench[trt]')"
)
NORM = ROOT / "plugins" / "instance_norm"
"""An operator that has a body of ONNX operators."""
SCALE = """
from onnxbench.bundles import Bundle, Kernel

BUNDLE = Bundle(
    name="scale", op="Scale", domain="test", inputs=("x",), outputs=("y",), attributes={"factor": 2.0},
    shapes=lambda inputs, attributes: [inputs[0]], reference=lambda inputs, attributes: [RESULT],
    cases=list, kernel=Kernel("kernel.cu", "scale", lambda inputs, outputs, attributes: ([], [])),
)
"""
"""One that has none: Python computes it."""
FEEDS = {"x": np.random.default_rng(0).standard_normal((1, 4, 9, 11)).astype(np.float32)}
_KERNEL = np.random.default_rng(1).standard_normal((4, 4, 3, 3)).astype(np.float32)


def scale(folder: Path, result: str) -> str:
    """Writes the bundle and returns where it is."""
    folder.mkdir()
    (folder / "plugin.py").write_text(SCALE.replace("RESULT", result), encoding="utf-8")
    return str(folder)


@pytest.fixture(scope="module")
def operators(tmp_path_factory: pytest.TempPathFactory) -> tuple[backends.Operator, ...]:
    place = scale(tmp_path_factory.mktemp("bundles") / "scale", 'inputs[0] * attributes["factor"]')
    return operators_of(load_bundles([str(NORM), place]))


def network(*, epsilon: float = 1e-5, factor: float = 2.0, scales: bool = True) -> Model:
    last = helper.make_node("Scale", ["r"], ["y"], "scale", domain="test", factor=factor)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node(
            "MMCVInstanceNormalization", ["c", "s", "b"], ["n"], "norm", domain="mmdeploy", epsilon=epsilon
        ),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        last if scales else helper.make_node("Identity", ["r"], ["y"]),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, FEEDS["x"].shape)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, FEEDS["x"].shape)]
    weights = {"w": _KERNEL, "s": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    opsets = [helper.make_opsetid(domain, version) for domain, version in (("", 17), ("mmdeploy", 1), ("test", 1))]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    return from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def reproduced(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, folder / "reproduce.py"], capture_output=True, text=True, check=False)


def test_an_operator_with_a_body_is_a_function_in_the_repro(operators, tmp_path: Path) -> None:
    sides = network(epsilon=1e-2, scales=False), network(scales=False)
    found = bisect(sides[0], against=sides[1], feeds=FEEDS, operators=operators, repro=tmp_path / "r")
    assert [each.node for each in found.culprits] == ["norm"]
    assert not (tmp_path / "r" / "plugins").exists()
    assert onnx.load(tmp_path / "r" / "culprit.onnx").functions
    done = reproduced(tmp_path / "r")
    assert (done.returncode, "the failure shows" in done.stdout) == (1, True), done.stderr
    assert "import onnxbench" not in (tmp_path / "r" / "reproduce.py").read_text()


def test_an_operator_in_python_comes_along_and_is_known_in_another_process(operators, tmp_path: Path) -> None:
    found = bisect(
        network(factor=2.5), against=network(), feeds=FEEDS, operators=operators, repro=tmp_path / "r", isolate=True
    )
    assert [each.node for each in found.culprits] == ["scale"]
    assert (tmp_path / "r" / "plugins" / "scale" / "plugin.py").is_file()
    done = reproduced(tmp_path / "r")
    assert (done.returncode, "the failure shows" in done.stdout) == (1, True), done.stderr


def test_an_operator_that_fails_is_found(tmp_path: Path) -> None:
    known = operators_of(load_bundles([str(NORM), scale(tmp_path / "failing", "1 // 0")]))
    found = bisect(network(), against=network(scales=False), feeds=FEEDS, operators=known)
    assert found.failure is not None
    assert (found.failure.how, found.failure.nodes) == ("failed", ("scale",))
    assert "ZeroDivisionError" in found.failure.message


def test_what_the_optimizer_makes_of_custom_operators_is_searched(operators, tmp_path: Path) -> None:
    clean = bisect(network(), feeds=FEEDS, operators=operators)
    assert (clean.passed, clean.suspect) == (True, "the model on ONNX Runtime, optimizations all")
    found = bisect(network(epsilon=1e-2), against=network(), on="ort:all", feeds=FEEDS, operators=operators)
    assert [each.tensor for each in found.culprits] == ["r"]
    with pytest.raises(UnsupportedError, match="no files can show this"):
        bisect(
            network(factor=2.5), against=network(), on="ort:all", feeds=FEEDS, operators=operators,
            repro=tmp_path / "r",
        )  # fmt: skip
    assert not (tmp_path / "r").exists()
