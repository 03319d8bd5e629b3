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
NORM, ROIS = ROOT / "plugins" / "instance_norm", ROOT / "plugins" / "roi_align_rotated"
_RANDOM = np.random.default_rng(0)
FEEDS = {
    "x": _RANDOM.standard_normal((1, 4, 9, 11)).astype(np.float32),
    "rois": np.array([[0, 4, 4, 5, 5, 0.7], [0, 3, 3, 4, 6, -1], [0, 5, 4, 6, 3, 2]], np.float32),
}
_KERNEL = _RANDOM.standard_normal((4, 4, 3, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def operators() -> tuple[backends.Operator, ...]:
    """Returns one operator that has a body of ONNX operators, and one that Python computes."""
    return operators_of(load_bundles([str(NORM), str(ROIS)]))


def network(*, epsilon: float = 1e-5, clockwise: int = 0, pools: bool = True) -> Model:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1], name="conv"),
        helper.make_node(
            "MMCVInstanceNormalization", ["c", "s", "b"], ["n"], "norm", domain="mmdeploy", epsilon=epsilon
        ),
        helper.make_node("Relu", ["n"], ["r"], name="relu"),
        helper.make_node(
            "MMCVRoIAlignRotated", ["r", "rois"], ["y"], "pool", domain="mmdeploy", output_height=3, output_width=4,
            clockwise=clockwise, sampling_ratio=2,
        ),
    ]  # fmt: skip
    if not pools:  # without the operator that needs Python
        nodes[-1] = helper.make_node("Identity", ["r"], ["y"])
    names = ["x", "rois"] if pools else ["x"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, FEEDS[name].shape) for name in names]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    weights = {"w": _KERNEL, "s": np.ones(4, np.float32), "b": np.zeros(4, np.float32)}
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("mmdeploy", 1)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, held)
    return from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=8))


def reproduced(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, folder / "reproduce.py"], capture_output=True, text=True, check=False)


def test_an_operator_with_a_body_is_a_function_in_the_repro(operators, tmp_path: Path) -> None:
    sides = network(epsilon=1e-2, pools=False), network(pools=False)
    found = bisect(sides[0], against=sides[1], feeds={"x": FEEDS["x"]}, operators=operators, repro=tmp_path / "r")
    assert [each.node for each in found.culprits] == ["norm"]
    assert not (tmp_path / "r" / "plugins").exists()
    assert onnx.load(tmp_path / "r" / "culprit.onnx").functions
    done = reproduced(tmp_path / "r")
    assert (done.returncode, "the failure shows" in done.stdout) == (1, True), done.stderr
    assert "onnxbench" not in (tmp_path / "r" / "reproduce.py").read_text().partition('"""\n\nimport')[2]


def test_an_operator_in_python_comes_along_and_is_known_in_another_process(operators, tmp_path: Path) -> None:
    found = bisect(
        network(clockwise=1), against=network(), feeds=FEEDS, operators=operators, repro=tmp_path / "r", isolate=True
    )
    assert [each.node for each in found.culprits] == ["pool"]
    assert (tmp_path / "r" / "plugins" / "roi_align_rotated" / "plugin.py").is_file()
    done = reproduced(tmp_path / "r")
    assert (done.returncode, "the failure shows" in done.stdout) == (1, True), done.stderr


def test_an_operator_that_fails_is_found(tmp_path: Path) -> None:
    text = (ROIS / "plugin.py").read_text(encoding="utf-8")
    failing = tmp_path / "failing"
    failing.mkdir()
    raises = "\ndef reference(*_):\n    raise ArithmeticError('overflow')\n\n\ndef unused("
    (failing / "plugin.py").write_text(text.replace("\ndef reference(", raises), "utf-8")
    known = operators_of(load_bundles([str(NORM), str(failing)]))
    found = bisect(network(), feeds=FEEDS, on="ort:none", reference_on="reference", operators=known, isolate=True)
    assert found.failure is not None
    assert (found.failure.how, found.failure.nodes) == ("failed", ("pool",))
    assert "ArithmeticError: overflow" in found.failure.message


def test_what_the_optimizer_makes_of_custom_operators_is_searched(operators, tmp_path: Path) -> None:
    clean = bisect(network(), feeds=FEEDS, operators=operators)
    assert (clean.passed, clean.suspect) == (True, "the model on ONNX Runtime, optimizations all")
    found = bisect(network(epsilon=1e-2), against=network(), on="ort:all", feeds=FEEDS, operators=operators)
    assert [each.tensor for each in found.culprits] == ["r"]
    with pytest.raises(UnsupportedError, match="no files can show this"):
        bisect(
            network(clockwise=1), against=network(), on="ort:all", feeds=FEEDS, operators=operators,
            repro=tmp_path / "r",
        )  # fmt: skip
    assert not (tmp_path / "r").exists()
