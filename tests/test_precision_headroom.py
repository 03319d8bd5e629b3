"""How large the tensors of a model get, in bodies and functions too, and that what goes beyond a type stays."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import numpy_helper
from test_precision import BIG, X4, assert_close, parsed, run

from onnxbench import precision
from onnxbench.precision import convert


def test_tensors_with_little_headroom_are_found_and_what_overflows_stays() -> None:
    source = parsed(BIG)
    magnitudes = precision.find_magnitudes(source, [{"x": X4}]).largest
    assert magnitudes["s"] == pytest.approx(12.25e6)
    headroom = precision.find_headroom(source, magnitudes, to="fp16")
    assert [(each.tensor, each.node) for each in headroom] == [("s", "sq")]
    assert headroom[0].share == pytest.approx(12.25e6 / 65504)
    plain = convert(source, to="fp16")
    assert run(plain.model, {"x": X4})[0].shape == (4,)
    done = convert(source, to="fp16", headroom=headroom)
    assert [(each.node, each.reason) for each in done.kept] == [("sq", "range"), ("root", "range")]


def test_infinities_of_the_model_itself_are_no_lack_of_headroom() -> None:
    source = parsed(
        """
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] y) <float[4] m = {0, -inf, 0, 0}>
    { a = Add (x, m) y = Softmax (a) }
    """.replace("-inf", "0")
    )
    source.proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.array([0, -np.inf, 0, 0], np.float32), "m"))
    found = precision.find_magnitudes(source, [{"x": X4}])
    assert (found.largest["a"], found.nonfinite) == (pytest.approx(3.5), ("a",))
    assert_close(source, convert(source, to="fp16"), {"x": X4})


IN_BODIES = """
<ir_version: 8, opset_import: ["" : OPSET]>
g (float[4] x, bool c, int64 n) => (float[4] y)
{
  [if] z = If (c) <
    then_branch = t () => (float[4] t) {
      big = Constant <value = float {1000.0}> ()
      [up] large = Mul (x, big) [square] s = Mul (large, large) [root] t = Sqrt (s)
    },
    else_branch = e () => (float[4] e) { [e] e = Sin (x) }>
  [loop] y = Loop (n, , z) <body = b (int64 i, bool k, float[4] state) => (bool go, float[4] next) {
    go = Identity (k)
    [inner] w = If (c) <
      then_branch = t2 () => (float[4] t2) { [t2] t2 = Mul (state, state) },
      else_branch = e2 () => (float[4] e2) { [e2] e2 = Neg (state) }>
    next = Add (state, w)
  }>
}
"""


@pytest.mark.parametrize("opset", [17, 21])
def test_headroom_looks_into_bodies_however_deep(opset: int) -> None:
    source = parsed(IN_BODIES.replace("OPSET", str(opset)))
    x = np.array([1, -2, 0.5, 1], np.float32)
    feeds = {"x": x, "c": np.array(True), "n": np.array(2)}
    found = precision.find_magnitudes(source, [feeds, {**feeds, "c": np.array(False)}])
    state = [z := np.abs(x * 1000), z + z * z]
    expected = {
        "if/then/large": 2000, "if/then/s": 4e6, "if/else/e": np.sin(2), "loop/body/state": state[1].max(),
        "loop/body/inner/then/t2": (state[1] ** 2).max(), "loop/body/inner/else/e2": np.sin(2), "x": 2,
        "y": (state[1] + state[1] ** 2).max(),
    }  # fmt: skip
    assert {name: found.largest[name] for name in expected} == pytest.approx(expected)
    assert found.missed == ()
    none = precision.find_magnitudes(source, [{**feeds, "n": np.array(0)}])
    assert none.largest["loop/body/state"] == 0


def test_what_overflows_in_a_body_stays_there_alone() -> None:
    source = parsed(IN_BODIES.replace("OPSET", "17").replace("[loop] y = Loop (n, , z)", "[loop] l = Loop (n, , x)"))
    del source.proto.graph.node[1:]
    source.proto.graph.node.add(op_type="Sin", name="after", input=["z"], output=["y"])
    feeds = {"x": X4, "c": np.array(True), "n": np.array(0)}
    headroom = precision.find_headroom(source, precision.find_magnitudes(source, [feeds]).largest, to="fp16")
    assert [(each.node, each.tensor) for each in headroom if each.share >= 1] == [("if/then/square", "if/then/s")]
    done = convert(source, to="fp16", headroom=headroom)
    assert [(each.node, each.reason) for each in done.kept] == [("if/then/square", "range"), ("if/then/root", "range")]
    assert_close(source, done, feeds)


def test_headroom_of_a_function_is_the_largest_of_its_calls_and_scans_are_seen() -> None:
    source = parsed("""
    <ir_version: 9, opset_import: ["" : 17, "local" : 1]>
    g (float[3, 4] x) => (float[4] y, float[3, 4] z)
    {
      a = local.Big (x) b = local.Big (a) zero = Constant <value = float[4] {0, 0, 0, 0}> ()
      [scan] y, z = Scan (zero, b) <num_scan_inputs = 1, scan_output_axes = [0], body = s (float[4] sum, float[4] row)
        => (float[4] next, float[4] out) { next = Add (sum, row) [out] out = Neg (row) }>
    }
    <domain: "local", opset_import: ["" : 17]>
    Big (v) => (w) { h = Constant <value = float {100.0}> () w = Mul (v, h) }
    """)
    found = precision.find_magnitudes(source, [{"x": np.full((3, 4), 2, np.float32)}])
    assert found.largest["local::Big/w"] == 20000
    assert found.largest["scan/body/next"] == 60000
    assert found.largest["scan/body/out"] == 20000
    assert found.missed == ()
