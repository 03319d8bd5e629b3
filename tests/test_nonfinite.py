"""Where the first NaN or infinity comes from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import parser

from onnxbench.model import from_proto, load
from onnxbench.nonfinite import find_nonfinite

MODELS = Path(__file__).parents[1] / "fixtures" / "models"
TRUE = np.array(True)


def search(text, opset=17, ir=8, backend="ort", **feeds):
    head = f'<ir_version: {ir}, opset_import: ["": {opset}, "local": 1]>'
    return find_nonfinite(from_proto(parser.parse_model(head + text)), feeds, backend=backend)


def f32(*values):
    return np.array(values, dtype=np.float32)


def test_nothing_to_find():
    assert search("g (float[N] x) => (float[N] z) { z = Abs(x) }", x=f32(1, -2)) is None


def test_sums_that_overflow_are_no_infinities():
    assert search("g (float[N] x) => (float[N] z) { z = Abs(x) }", x=f32(3e38, 3e38)) is None


@pytest.mark.parametrize("backend", ["ort", "reference"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_the_first_node_that_makes_one_out_of_finite_inputs(backend):
    found = search(
        "g (float[N] x) => (float[N] z) { a = Neg(x) [bad] b = Log(a) [also] c = Sqrt(a) d = Add(b, c) z = Abs(d) }",
        x=f32(1, 2), backend=backend,
    )  # fmt: skip
    origin = found.origin
    assert (origin.node, origin.op_type, origin.makes) == ("bad", "Log", "NaN")
    assert [(entry.name, entry.min, entry.max) for entry in origin.inputs] == [("a", -2, -1)]
    assert [(entry.name, entry.nans) for entry in origin.outputs] == [("b", 2)]
    assert found.nan_origin is None
    assert (found.affected, found.examined) == (4, 6)


def test_file_order_does_not_matter():
    found = search("g (float[N] x) => (float[N] z) { z = Abs(d) d = Add(b, x) [bad] b = Log(a) a = Neg(x) }", x=f32(1))
    assert found.origin.node == "bad"


def test_an_infinity_may_be_meant_so_the_first_nan_is_named_too():
    found = search("g (float[N] x) => (float[N] z) { big = Exp(x) [nan] d = Sub(big, big) z = Abs(d) }", x=f32(1000))
    assert (found.origin.node, found.origin.makes) == ("Exp#0", "Inf")
    assert (found.nan_origin.node, found.nan_origin.makes) == ("nan", "NaN")


def test_what_comes_from_outside():
    text = """g (float[N] x) => (float[N] z) <float[1] w = {1.0}>
        { c = Constant <value = float[1] {-inf}> () y = Mul(x, w) m = Max(y, c) z = Add(m, c) }"""
    found = search(text, x=f32(np.nan, 1))
    assert [(entry.name, entry.nans, entry.infs) for entry in found.sources] == [("x", 1, 0), ("c", 0, 1)]
    assert found.origin is None
    assert found.nan_origin is None


@pytest.mark.parametrize("opset", [7, 8, 9, 13, 26])
def test_old_opsets(opset):
    text = "g (float[N] x) => (float[N] z) { y = Exp(x) [nan] w = Sub(y, y) z = Abs(w) }"
    found = search(text, opset=opset, ir=3, x=f32(1000))
    assert (found.origin.node, found.nan_origin.node) == ("Exp#0", "nan")


def test_opsets_of_which_the_runtime_has_hardly_any_kernels():
    found = search("g (float[N] x) => (float[N] z) { [bad] y = Exp(x) z = Abs(y) }", opset=6, ir=3, x=f32(1000))
    assert (found.origin.node, found.origin.makes, found.nan_origin) == ("bad", "Inf", None)


@pytest.mark.parametrize(("kind", "value"), [("float16", np.float16(1000)), ("double", np.float64(1e6))])
def test_other_floating_types(kind, value):
    found = search(f"g ({kind}[N] x) => ({kind}[N] z) {{ [bad] y = Exp(x) z = Abs(y) }}", x=np.array([value]))
    assert found.origin.node == "bad"


def test_if_bodies_at_any_depth():
    text = """g (float[N] x, bool c) => (float[N] z) <float[1] w = {2}> {
      y = Mul(x, w)
      [outer] q = If (c) <
        then_branch = t () => (a) {
          [inner] a = If (c) <
            then_branch = tt () => (k) { h = Mul(y, w) k = Sqrt(h) },
            else_branch = te () => (k2) { k2 = Identity(x) }>
        },
        else_branch = e () => (b) { b = Log(x) }>
      z = Neg(q)
    }"""
    found = search(text, x=f32(-1, 4), c=TRUE)
    assert found.origin.node == "outer/then/inner/then/Sqrt#1"
    assert found.origin.within == ("outer (If)", "outer/then/inner (If)")
    assert found.origin.inputs[0].min == -4
    assert search(text, x=f32(-1, 4), c=~TRUE).origin.node == "outer/else/Log#0"


LOOP = """g (float[N] x, int64 n) => (float[N] z, float[M,N] made) {
  go = Constant <value = bool {1}> ()
  [loop] z, made = Loop (n, go, x)
  <body = b (int64 i, bool cond, float[N] s) => (bool on, float[N] next, float[N] out) {
    on = Identity(cond) one = Constant <value = float {1.0}> () next = Sub(s, one) [log] out = Log(next) }>
}"""


def test_loops_say_in_which_iteration():
    found = search(LOOP, x=f32(5, 3.5), n=np.array(6))
    assert found.origin.node == "loop/body/log"
    assert found.origin.within == ("loop (Loop), iteration 3",)
    assert search(LOOP, x=f32(5, 3.5), n=np.array(3)) is None


def test_scans_say_in_which_iteration():
    text = """g (float[N] x, float[T,N] xs) => (float[N] z, float[T,N] made) {
      [scan] z, made = Scan (x, xs) <num_scan_inputs = 1, scan_input_directions = [1],
        body = b (float[N] s, float[N] e) => (float[N] next, float[N] out)
          { next = Add(s, e) [div] out = Div(s, next) }>
    }"""
    found = search(text, x=f32(0), xs=f32(1, -2, 1, 1).reshape(4, 1))
    assert (found.origin.node, found.origin.within) == ("scan/body/div", ("scan (Scan), iteration 2",))
    assert found.origin.makes == "Inf"


def test_functions_are_looked_into():
    text = """g (float[N] x) => (float[N] z) { y = Neg(x) z = local.F(y) }
      <domain: "local", opset_import: ["": 17]> F (a) => (b) { t = Abs(a) u = Neg(t) [root] b = Sqrt(u) }"""
    origin = search(text, x=f32(1)).origin
    assert (origin.node, origin.function) == ("local::F/root", "local::F")


@pytest.mark.parametrize(
    ("file", "shape", "node", "nan_node"),
    [("makes_nan.onnx", (2, 3), "log", None), ("makes_inf_then_nan.onnx", (3,), "exp", "sub")],
)
def test_fixtures(file, shape, node, nan_node):
    found = find_nonfinite(load(MODELS / file), {"x": np.full(shape, 0.5, np.float32)})
    assert found.origin.node == node
    assert (found.nan_origin.node if found.nan_origin else None) == nan_node


def test_many_tensors_are_joined_and_taken_apart_again():
    count = 1203
    chain = " ".join(f"t{i + 1} = {'Exp' if i == 900 else 'Abs'}(t{i})" for i in range(count))
    found = search(f"g (float[N] t0) => (float[N] t{count}) {{ {chain} }}", t0=f32(1000))
    assert found.origin.node == "Exp#900"
    assert (found.affected, found.examined) == (count - 900, count + 1)
