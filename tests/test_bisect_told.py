"""What a bisection tells beside the culprit: the worst set, the node furthest off, labels of the whole model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onnx.parser import parse_model

from onnxbench.bisection import bisect
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.feeding import FeedOptions
from onnxbench.model import Model, from_proto
from onnxbench.writer import save

_HEAD = '<ir_version: 8, opset_import: ["" : 18]> g'


def scaled(operator: str) -> Model:
    text = f"{_HEAD} (float[4] x) => (float[4] y) {{ a = Neg(x) b = Abs(a) y = {operator}(b) }}"
    return from_proto(parse_model(text))


def test_the_set_on_which_an_output_is_worst(tmp_path: Path) -> None:
    """Softsign and Tanh are apart the further, the larger their input is (up to here)."""
    sets = {"0": 0.01, "1": 1.0, "2": 0.1}
    (tmp_path / "data").mkdir()
    for name, value in sets.items():
        np.savez(tmp_path / "data" / f"{name}.npz", x=np.full(4, value, np.float32))
    found = bisect(scaled("Softsign"), against=scaled("Tanh"), feeds=FeedOptions((str(tmp_path / "data"),)))
    assert (found.sets, found.worst_sets, [each.number for each in found.culprits]) == (3, (1,), [1])
    assert json.loads(json.dumps(found.to_json()["worst_sets"])) == [1]


def test_what_differs_is_told_by_the_labels_of_the_whole_model() -> None:
    """Nodes without names are called by their place, which is another one in the piece that is looked at."""
    found = bisect(scaled("Softsign"), against=scaled("Tanh"), feeds={"x": np.ones(4, np.float32)})
    assert found.culprits[0].node == "Softsign#2"
    assert found.culprits[0].why == ("op Tanh#2 op_type: Tanh -> Softsign",)


def test_the_node_that_is_furthest_off_where_none_is_to_blame() -> None:
    """Recorded values that are off by the last bit at one node."""
    x = np.array([0.5, 1.0, 2.0, 4.0], np.float32)
    right = {"a": -x, "b": np.nextafter(x, np.float32(9)), "y": np.nextafter(x, np.float32(9))}
    found = bisect(scaled("Relu"), recorded=right, feeds={"x": x}, atol=0.0)
    assert (found.kind, found.passed) == ("rounding", False)
    assert found.verdict.endswith("no node does more than round (Abs#1 the most: 1.2e-07)")


def test_a_recording_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(scaled("Tanh"), tmp_path / "m.onnx")
    assert (
        bounded(app, ["bisect", f"{tmp_path}/m.onnx", "--on", "ort:none", "--record", f"{tmp_path}/r", "--json"]) == 0
    )
    said = json.loads(capsys.readouterr().out)
    assert said["command"] == "bisect"
    assert said["result"]["recording"]["tensors"] == 3
