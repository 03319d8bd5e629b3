"""Folding, merging, pruning, sorting, naming: on every fixture that runs, on real models, and their refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from cases import cases, named
from corpus import fetch
from engines import ENGINES, run_ort
from onnx import numpy_helper

from onnxbench import backends, weights
from onnxbench.drift import BITWISE, Tolerance, compare_all
from onnxbench.graph import GraphIndex
from onnxbench.model import Model, load
from onnxbench.modeltext import parse
from onnxbench.operations import (
    Clean,
    DedupeNames,
    FoldConstants,
    InlineFunctions,
    MergeEqual,
    NameNodes,
    Operation,
    Outline,
    RemoveDead,
    SetOpset,
    Sort,
)
from onnxbench.surgery import edit
from onnxbench.writer import save

RUNNABLE = cases(lambda case: case.valid == "yes" and case.engine is not None and not case.is_external)
HARMLESS: list[Operation] = [
    Clean(), FoldConstants(), MergeEqual(), RemoveDead(), Sort(), Sort(by="depth"), DedupeNames(), NameNodes(),
    NameNodes(pattern="n{position}_{op_type}", all=True),
]  # fmt: skip


def _run(case: Any, proto: Any) -> Any:
    return ENGINES[case.engine](proto, case.feeds())


@RUNNABLE
@pytest.mark.parametrize("operation", HARMLESS, ids=lambda each: f"{each.word}-{getattr(each, 'by', '')}")
def test_nothing_of_what_is_computed_changes(case, operation):
    model = load(case.path)
    done = edit(model, [operation], stamp=False).model
    assert _run(case, done.proto) == _run(case, case.whole())


EXTERNAL = cases(lambda case: case.valid == "yes" and case.engine == "ort" and case.is_external)


@EXTERNAL
@pytest.mark.parametrize(
    "operation",
    [Clean(), FoldConstants(), MergeEqual(), RemoveDead(), Outline(at="op:*", name="All")],
    ids=lambda each: each.word,
)
def test_weights_outside_of_the_structure_come_along(case, operation, tmp_path):
    done = edit(load(case.path), [operation], stamp=False).model
    save(done, tmp_path / "out.onnx")
    assert run_ort(tmp_path / "out.onnx", case.feeds()) == run_ort(case.whole(), case.feeds())


@RUNNABLE
def test_inlined_functions_compute_the_same(case):
    model = load(case.path)
    index = GraphIndex(model.proto)
    calls = [ref for ref in index.nodes() if index.function_of(ref.node)]
    if not calls:
        return
    expected = _run(case, case.whole())
    assert _run(case, edit(model, [InlineFunctions()], stamp=False).model.proto) == expected
    for ref in calls:
        if not ref.scope.path or not ref.scope.is_function:
            made = f"{ref.scope.path}/{ref.node.output[0]}" if ref.scope.path else ref.node.output[0]
            done = edit(model, [InlineFunctions(at=f'"{made}"')], stamp=False).model
            assert _run(case, done.proto) == expected, ref.path


# -- folding -------------------------------------------------------------------------------------------------------


def _text(body: str, *, inputs: str = "float[2] x", opset: int = 21) -> Model:
    return parse(f'<ir_version: 10, opset_import: ["" : {opset}]> net ({inputs}) => (float[2] y) {body}')


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "double", "int8", "uint8", "int64", "bool", "string"])
def test_element_types_are_kept(dtype):
    values = {"bool": "{1, 0}", "string": '{"a", "b"}'}.get(dtype, "{1, 2}")
    body = f"<{dtype}[2] w = {values}> {{ e = Concat <axis = 0> (w, w)  z = Identity (e)  y = Relu (x) }}"
    model = _text(body)
    model.proto.graph.output.add(name="z")
    done = edit(model, [FoldConstants()], stamp=False).model.proto
    value = next(node for node in done.graph.node if node.output[0] == "z").attribute[0].t
    assert (value.data_type, list(value.dims)) == (model.proto.graph.initializer[0].data_type, [4])
    assert [node.op_type for node in done.graph.node] == ["Constant", "Relu"]


@pytest.mark.parametrize(
    "node",
    [
        "n = RandomNormal <shape = [2]> ()",
        "n = RandomUniformLike (w)",
        "n = Bernoulli (w)",
        "n = Dropout (w)",
        "n = com.example.Odd (w)",
        "n = com.microsoft.Gelu (w)",
    ],
)
def test_what_is_not_folded(node):
    model = _text(f"<float[2] w = {{0.5, 0.25}}> {{ {node}  y = Add (x, n) }}")
    model.proto.opset_import.add(domain="com.example", version=1)
    model.proto.opset_import.add(domain="com.microsoft", version=1)
    done = edit(model, [FoldConstants()], stamp=False)
    assert done.model.proto == model.proto
    assert done.steps[0].notes == ("0 nodes folded; weights +0 bytes",)


def test_only_the_weights_that_are_folded_are_read(tmp_path, monkeypatch):
    large = np.zeros(1 << 20, np.float32)
    proto = _text("{ n = Neg (w)  h = Add (x, n)  b = Gather (big, i)  y = Add (h, b) }").proto
    proto.graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    proto.graph.initializer.append(numpy_helper.from_array(large, "big"))
    proto.graph.input.add(name="i").type.CopyFrom(onnx.helper.make_tensor_type_proto(7, [2]))
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    model = load(tmp_path / "m.onnx")
    read: list[int] = []
    original = weights.read_bytes
    monkeypatch.setattr(weights, "read_bytes", lambda where: read.append(where.length) or original(where))
    done = edit(model, [FoldConstants()], stamp=False).model
    assert max(read, default=0) <= 1024
    assert {tensor.name: weights.is_outside(tensor) for tensor in done.proto.graph.initializer} == {
        "big": True, "n": False
    }  # fmt: skip


def test_what_would_grow_the_model_is_left_as_a_whole():
    body = "<int64[1] a = {1000}, int64[1] b = {3}, int64[1] n = {5000}> { "
    body += "p = ConstantOfShape (a)  q = ConstantOfShape (b)  "
    body += "s = ReduceSum <keepdims = 0> (p)  r = ReduceSum <keepdims = 0> (q)  h = Add (x, r)  g = Add (h, s)  "
    body += "k = ConstantOfShape <value = float[1] {2}> (n)  m = Gather (k, i)  y = Add (g, m) }"
    model = _text(
        body.replace("int64[1] b = {3}", "int64[1] b = {3}, int64[1] c = {5000}"), inputs="float[2] x, int64[2] i"
    )
    small = edit(model, [FoldConstants(max_bytes=16_000)], stamp=False)
    assert [node.op_type for node in small.model.proto.graph.node] == ["Add", "Add", "ConstantOfShape", "Gather", "Add"]
    whole = edit(model, [FoldConstants(max_bytes=32_000)], stamp=False)
    assert [node.op_type for node in whole.model.proto.graph.node] == ["Add", "Add", "Gather", "Add"]
    feeds = {"x": np.ones(2, np.float32), "i": np.array([1, 4000])}
    assert run_ort(small.model.proto, feeds) == run_ort(whole.model.proto, feeds) == run_ort(model.proto, feeds)


DEPENDS = """
    <ir_version: 10, opset_import: ["" : 17]>
    net (float[2, 3] x) => (float[k] y)
    <bool c = {1}, int64 six = {6}, int64[1] zero = {0}>
    {
       t = If (c) <
          then_branch: graph = flat () => (float[6] e) { [flat] s = Flatten <axis = 0> (x) e = Squeeze (s) },
          else_branch: graph = whole () => (float[2, 3] n) { n = Identity (x) }>
       size = Size (t)
       is_six = Equal (size, six)
       y = If (is_six) <
          then_branch: graph = yes () => (float[6] p) { p = Abs (t) },
          else_branch: graph = no () => (float[3] q) { q = ReduceSum <keepdims = 0> (x, zero) }>
    }
"""


def test_cleaning_goes_on_as_long_as_something_changes():
    """Of tensors whose rank an If leaves open, sizes are known only once it is decided; that decides the next one."""
    done = edit(parse(DEPENDS), [Clean()], verify=True, stamp=False)
    assert done.passed
    assert [node.op_type for node in done.model.proto.graph.node] == ["Flatten", "Squeeze", "Abs"]
    assert not done.model.proto.graph.initializer
    (step,) = done.steps
    assert step.notes == (
        "round 1: 1 If replaced by the branch taken, 1 weight removed as dead",
        "round 2: 2 nodes folded (weights -7 bytes), 1 If replaced by the branch taken, 2 weights removed as dead",
    )
    again = edit(done.model, [Clean()], stamp=False)
    assert not again.changes
    assert again.steps[0].notes == ("there was nothing to clean",)
    bounded = edit(parse(DEPENDS), [Clean(max_rounds=1)], stamp=False)
    assert bounded.steps[0].notes[-1] == "ended after 1 round, the last of which still changed something"
    assert sum(node.op_type == "If" for node in bounded.model.proto.graph.node) == 1


def test_cleaning_lets_a_model_grow_once():
    """What the model may grow by is for all rounds together."""
    text = """
    <ir_version: 10, opset_import: ["" : 17]>
    net (float[1] x) => (float[k] y)
    <bool c = {1}, int64[1] n = {3000}>
    {
       a = ConstantOfShape <value = float[1] {2}> (n)
       b = Add (a, x)
       t = If (c) <
          then_branch: graph = yes () => (float[m] e) { d = Shape (b) f = ConstantOfShape (d) e = Sub (f, x) },
          else_branch: graph = no () => (float[1, 1] q) {
             o = Identity (x) z = Constant <value_ints = [0]> () q = Unsqueeze (o, z)
          }>
       u = Shape (t)
       v = ConstantOfShape <value = float[1] {3}> (u)
       w = Add (v, t)
       y = Add (b, w)
    }
    """
    done = edit(parse(text), [Clean(max_bytes=30_000)], verify=True, stamp=False)
    (step,) = done.steps
    assert [node.op_type for node in done.model.proto.graph.node].count("ConstantOfShape") == 1
    assert step.notes[-1] == "1 more node of constants left, which would add 11,992 bytes; a larger max_bytes allows it"
    done = edit(parse(text), [Clean(max_bytes=40_000)], verify=True, stamp=False)
    assert [node.op_type for node in done.model.proto.graph.node].count("ConstantOfShape") == 0


def test_unnamed_bodies_are_told_apart_from_round_to_round():
    """Paths of bodies have positions in them, which change when nodes before them are folded."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (bool c, float[2] x) => (float[2] y)
    <float[2] w = {1, 2}>
    {
       a = Neg (w)
       b = Neg (a)
       p = If (c) <then_branch = t () => (float[2] r) { k = Mul (b, w)  r = Add (x, k) },
                   else_branch = e () => (float[2] s) { s = Identity (x) }>
       d = Neg (b)
       y = If (c) <then_branch = t () => (float[2] u) { k2 = Mul (d, w)  m = Mul (k2, w)  u = Add (p, m) },
                   else_branch = e () => (float[2] v) { v = Identity (p) }>
    }
    """
    model = parse(text)
    done = edit(model, [FoldConstants()], stamp=False).model.proto
    assert [node.op_type for node in done.graph.node] == ["If", "If"]
    assert not done.graph.initializer
    for condition in (True, False):
        feeds = {"c": np.array(condition), "x": np.ones(2, np.float32)}
        assert run_ort(done, feeds) == run_ort(model.proto, feeds)


def test_parameters_of_annotations_are_not_dead():
    model = load(named("quantization_annotation").path)
    done = edit(model, [RemoveDead()], stamp=False).model.proto
    assert done.graph == model.proto.graph


def test_merging_keeps_names_that_callers_know():
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y, float[2] z) '
        "{ a = Neg (x)  y = Neg (x)  b = Relu (a)  z = Relu (y) }"
    )
    done = edit(model, [MergeEqual()], stamp=False).model.proto
    assert [(node.op_type, list(node.input), list(node.output)) for node in done.graph.node] == [
        ("Neg", ["x"], ["y"]),
        ("Relu", ["y"], ["z"]),
    ]


def test_functions_that_draw_numbers_are_not_equal():
    text = """
    <ir_version: 8, opset_import: ["" : 17, "l" : 1]>
    g (float[2] x) => (float[2] y)
    { a = l.R (x)  b = l.R (x)  c = l.N (x)  d = l.N (x)  e = Add (a, b)  f = Add (c, d)  y = Add (e, f) }
    <domain: "l", opset_import: ["" : 17]> R (i) => (o) { o = RandomNormalLike (i) }
    <domain: "l", opset_import: ["" : 17]> N (i) => (o) { o = Neg (i) }
    """
    done = edit(parse(text), [MergeEqual()], stamp=False).model.proto
    assert [node.op_type for node in done.graph.node] == ["R", "R", "N", "Add", "Add", "Add"]


@pytest.mark.parametrize("name", ["silero_vad", "nakdimon_loop", "light_shufflenet", "tashkeel_seq2seq"])
def test_real_models_come_out_clean(corpus, name):
    path, entry = corpus(name)
    model, feeds = load(path), fetch.seeded_feeds(path, entry)
    done = edit(model, [Clean()], stamp=False).model
    values = [backends.open_session(each, options=backends.Options("none")).run(feeds) for each in (model, done)]
    assert compare_all(*values, tolerance=Tolerance(1e-5, 1e-5)).passed
    assert not edit(done, [Clean()], stamp=False).changes
    assert sum(1 for _ in GraphIndex(done.proto).nodes()) < sum(1 for _ in GraphIndex(model.proto).nodes())


REAL = ["tashkeel_seq2seq", "silero_vad", "nakdimon_loop", "swift_f0", "ppocr_v2_cls", "light_shufflenet", "attacut_c"]


@pytest.mark.parametrize("name", REAL)
def test_real_models_compute_the_same(corpus, name):
    path, entry = corpus(name)
    model, feeds = load(path), fetch.seeded_feeds(path, entry)
    steps = [FoldConstants(), MergeEqual(), RemoveDead(), NameNodes(), DedupeNames()]
    done = edit(model, steps, stamp=False).model
    values = [backends.open_session(each, options=backends.Options("none")).run(feeds) for each in (model, done)]
    assert compare_all(*values, tolerance=Tolerance(1e-5, 1e-5)).passed
    before, after = (sum(1 for _ in GraphIndex(each.proto).nodes()) for each in (model, done))
    assert after < before or name == "attacut_c"


def test_opsets_of_real_models(corpus):
    path, entry = corpus("tashkeel_seq2seq")
    model, feeds = load(path), fetch.seeded_feeds(path, entry)
    done = edit(model, [SetOpset(version="latest")], stamp=False).model
    values = [backends.open_session(each, options=backends.Options("none")).run(feeds) for each in (model, done)]
    assert compare_all(*values, tolerance=BITWISE).passed
    assert done.proto.graph.metadata_props == model.proto.graph.metadata_props
