"""Merging: what comes out computes what A and then B compute, holds all that they hold, or is refused."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import Case, cases, named
from corpus import fetch
from engines import ENGINES, run_ort
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from rejoin import pieces_of, rejoin
from strategies import RandomModel, models

from onnxbench.errors import BenchError, ExecutionError, NotFoundError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.feeding import FeedOptions, first_set
from onnxbench.graph import GraphIndex
from onnxbench.merging import Merged, MergeOptions, merge, merge_file, prove
from onnxbench.model import Model, from_proto, load
from onnxbench.opsets import convert_opset, standard_opset
from onnxbench.partition import split_at, split_parts
from onnxbench.validity import find_complaints
from onnxbench.weights import node_tensors
from onnxbench.writer import SaveOptions, save

ROOT = Path(__file__).resolve().parents[1]
HEAD = '<ir_version: 10, opset_import: ["" : 18]>'


def _text(graph: str, *, head: str = HEAD) -> Model:
    return from_proto(onnx.parser.parse_model(f"{head} {graph}"))


def _merged(a: Model | str, b: Model | str, *words: str, feeds: dict[str, Any] | None = None, **options: Any) -> Merged:
    """Merges, saves nothing, and asserts that the result computes what A and then B do."""
    first, second = (one if isinstance(one, Model) else _text(one) for one in (a, b))
    before = [one.proto.SerializeToString(deterministic=True) for one in (first, second)]
    done = merge(first, second, words, options=MergeOptions(**options))
    assert [one.proto.SerializeToString(deterministic=True) for one in (first, second)] == before
    assert not find_complaints(done.model.proto)
    names = [node.name for scope in GraphIndex(done.model.proto).scopes[:1] for node in scope.nodes if node.name]
    assert len(names) == len(set(names))
    values = feeds if feeds is not None else first_set(done.model).feeds
    assert prove(done, first, second, values, threads=1).holds
    return done


def _inputs(done: Merged) -> list[str]:
    return [boundary.name for boundary in done.inputs]


def _outputs(done: Merged) -> list[str]:
    return [boundary.name for boundary in done.outputs]


RELU = "a (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }"
NEG = "b (float[M, 3] z) => (float[M, 3] w) { w = Neg (z) }"


# ---------------------------------------------------------------- what is connected


def test_the_only_output_feeds_the_only_input() -> None:
    done = _merged(RELU, NEG)
    assert [(link.output, link.input) for link in done.links] == [("y", "z")]
    assert (_inputs(done), _outputs(done)) == (["x"], ["w"])
    assert done.outputs[0].type == "float32[N, 3]"


def test_equal_names_are_connected_and_order_is_a_then_b() -> None:
    a = "a (float[3] x, float[3] k) => (float[3] y, float[3] extra) { y = Relu (x)  extra = Abs (k) }"
    b = "b (float[3] y, float[3] more) => (float[3] sum, float[3] neg) { sum = Add (y, more)  neg = Neg (y) }"
    done = _merged(a, b)
    assert _inputs(done) == ["x", "k", "more"]
    assert _outputs(done) == ["extra", "sum", "neg"]
    assert [boundary.origin for boundary in (*done.inputs, *done.outputs)] == ["a", "a", "b", "a", "b", "b"]
    assert not done.renames


@pytest.mark.parametrize(
    "word",
    ["in:0/y=b=z:1", "in:0/y:b=z:1", "a.in:0/y=b.b=z:1", '"in:0/y"="b=z:1"', "in:0/y->b=z:1", " in:0/y = b=z:1 "],
)
def test_names_with_signs_in_them(word: str) -> None:
    a, b = _text(RELU), _text(NEG)
    a.proto.graph.node[0].output[0] = a.proto.graph.output[0].name = "in:0/y"
    b.proto.graph.node[0].input[0] = b.proto.graph.input[0].name = "b=z:1"
    done = _merged(a, b, word)
    assert [(link.output, link.input) for link in done.links] == [("in:0/y", "b=z:1")]


def test_a_word_that_can_be_read_twice_is_refused() -> None:
    a = _text("a (float[3] x) => (float[3] p, float[3] q) { p = Relu (x)  q = Abs (x) }")
    a.proto.graph.node[1].output[0] = a.proto.graph.output[1].name = "p=q"
    b = _text("b (float[3] r, float[3] s) => (float[3] t) { t = Add (r, s) }")
    b.proto.graph.node[0].input[0] = b.proto.graph.input[0].name = "q=r"
    b.proto.graph.node[0].input[1] = b.proto.graph.input[1].name = "r"
    with pytest.raises(UsageError) as caught:
        merge(a, b, ["p=q=r"])
    assert len(caught.value.details) == 2
    assert _merged(a, b, '"p=q"="r"', '"p"="q=r"').links


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["nosuch=z"], NotFoundError, "model A has no output 'nosuch'"),
        (["y=nosuch"], NotFoundError, "model B has no input 'nosuch'"),
        (["yy=z"], NotFoundError, "Did you mean 'y'"),
        (["inner=z"], NotFoundError, "expose"),
        (["y"], UsageError, "connects nothing"),
        (["y=z", "t=z"], UsageError, "fed twice"),
        ([], UsageError, "inputs of B: 'z' float32[3]"),
    ],
)
def test_what_cannot_be_connected_is_named(words: list[str], error: type[BenchError], said: str) -> None:
    a = _text("a (float[3] x) => (float[3] y, float[3] t) { inner = Neg (x)  y = Relu (inner)  t = Abs (x) }")
    b = _text("b (float[3] z) => (float[3] w) { w = Neg (z) }")
    with pytest.raises(error) as caught:
        merge(a, b, words)
    assert said in str(caught.value)


def test_an_input_of_a_may_feed_b_too() -> None:
    a = "a (float[3] x) => (float[3] y) { y = Relu (x) }"
    b = "b (float[3] y, float[3] x) => (float[3] w) { w = Sub (y, x) }"
    done = _merged(a, b, "y=y", "x=x")
    assert _inputs(done) == ["x"]
    other = _merged(a, b)
    assert _inputs(other) == ["x", "x_b"]


def test_keeping_outputs() -> None:
    a = "a (float[3] x) => (float[3] y, float[3] t) { y = Relu (x)  t = Abs (x) }"
    b = "b (float[3] z, float[3] v) => (float[3] w) { w = Add (z, v) }"
    assert _outputs(_merged(a, b, "y=z", "t=v")) == ["w"]
    assert _outputs(_merged(a, b, "y=z", "t=v", keep_outputs=True)) == ["y", "t", "w"]
    assert _outputs(_merged(a, b, "y=z", "t=v", keep_outputs=["t"])) == ["t", "w"]
    with pytest.raises(NotFoundError):
        merge(_text(a), _text(b), ["y=z", "t=v"], options=MergeOptions(keep_outputs=["nosuch"]))


def test_one_output_may_feed_two_inputs_and_an_initializer_is_replaced() -> None:
    a = "a (float[3] x) => (float[3] y) { y = Relu (x) }"
    b = _text("b (float[3] z, float[3] v) => (float[3] w) <float[3] v = {1, 2, 3}> { w = Mul (z, v) }")
    done = _merged(a, b, "y=z", "y=v")
    assert not done.model.proto.graph.initializer
    assert _inputs(done) == ["x"]


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("name", ["y", "z"])
def test_an_output_of_b_that_is_a_connected_input(name: str, keep: bool) -> None:
    a = "a (float[3] x) => (float[3] y) { y = Relu (x) }"
    b = f"b (float[3] {name}) => (float[3] {name}, float[3] w) {{ w = Neg ({name}) }}"
    done = _merged(a, b, keep_outputs=keep)
    assert len(_outputs(done)) == (3 if keep else 2)
    assert _outputs(done)[-2] in (name, f"{name}_b")


# ---------------------------------------------------------------- types


@pytest.mark.parametrize(
    ("out", "into", "why"),
    [
        ("float16[2, 3]", "float[2, 3]", "element types"),
        ("float[2, 3]", "float[2, 4]", "dimension 1 is 3, not 4"),
        ("float[2, 3]", "float[6]", "2 dimensions are not 1"),
        ("seq(float[2, 3])", "float[2, 3]", "sequence"),
        ("seq(float[2])", "seq(double[2])", "element types"),
        ("optional(float[2])", "optional(float[3])", "dimension 0 is 2, not 3"),
    ],
)
def test_types_that_do_not_fit_are_shown(out: str, into: str, why: str) -> None:
    a = _text(f"a ({out} x) => ({out} y) {{ y = Identity (x) }}")
    b = _text(f"b ({into} z) => ({into} w) {{ w = Identity (z) }}")
    with pytest.raises(RefusedResultError) as caught:
        merge(a, b)
    (line,) = caught.value.details
    assert why in line
    assert ("--cast" in str(caught.value)) == (why == "element types" and "seq" not in out)


@pytest.mark.parametrize("out", ["float[N, 3]", "float[2, 3]", "float[?, ?]", "float"])
def test_open_dimensions_fit(out: str) -> None:
    a, b = _text("a (float[2, 3] x) => (float[2, 3] y) { y = Relu (x) }"), _text(NEG)
    stated = onnx.parser.parse_graph(f"g ({out if out != 'float' else 'float[1]'} i) => () {{}}").input[0].type
    if out == "float":
        stated.tensor_type.ClearField("shape")
    a.proto.graph.output[0].type.CopyFrom(stated)
    assert _merged(a, b, feeds={"x": np.ones((2, 3), np.float32)})


def test_a_wrong_statement_about_a_shape_does_not_count() -> None:
    a = _text("a (float[2, 3] x) => (float[2, 3, 1] y) <int64[3] s = {2, 3, 1}> { y = Reshape (x, s) }")
    a.proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 8
    b = _text("b (float[2, 3, 1] z) => (float[2, 3, 1] w) { w = Neg (z) }")
    assert merge(a, b).links[0].output_type == "float32[2, 3, 1]"


@pytest.mark.parametrize(
    ("have", "want"), [("float16", "float"), ("float", "int64"), ("int32", "float"), ("bool", "float")]
)
def test_cast_on_request(have: str, want: str) -> None:
    a = f"a ({have}[4] x) => ({have}[4] y) {{ y = Identity (x) }}"
    b = f"b ({want}[4] z) => ({want}[4] w) {{ w = Identity (z) }}"
    done = _merged(a, b, cast=True)
    assert done.links[0].cast
    assert [node.op_type for node in done.model.proto.graph.node] == ["Identity", "Cast", "Identity"]
    assert done.outputs[0].type.startswith({"float": "float32"}.get(want, want))


# ---------------------------------------------------------------- names


def test_a_model_with_itself() -> None:
    done = _merged(RELU.replace("y = Relu", "[n] y = Relu"), RELU.replace("y = Relu", "[n] y = Relu"), "y=x")
    assert _outputs(done) == ["y_b"]
    assert {(r.model, r.kind, r.old, r.new) for r in done.renames} == {
        ("b", "tensor", "y", "y_b"), ("b", "node", "n", "n_b"),
    }  # fmt: skip


def test_new_names_avoid_the_names_of_both() -> None:
    a = "a (float[3] x) => (float[3] y) { x_b = Neg (x)  y = Relu (x_b) }"
    b = "b (float[3] q) => (float[3] w) { x = Neg (q)  x_b2 = Abs (x)  w = Sub (x, x_b2) }"
    done = _merged(a, b)
    assert [(rename.old, rename.new) for rename in done.renames] == [("x", "x_b3")]


def test_captured_names_in_bodies_follow() -> None:
    a = "a (float[3] x) => (float[3] y) { t = Neg (x)  y = Relu (t) }"
    b = """b (float[3] q, bool c) => (float[3] w) {
        t = Abs (q)
        w = If (c) <
            then_branch = g1 () => (float[3] r) { u = Add (t, q)  r = If (c) <
                then_branch = g2 () => (float[3] s) { s = Mul (u, t) },
                else_branch = g3 () => (float[3] s2) { s2 = Identity (q) }
            > },
            else_branch = g4 () => (float[3] v) { v = Sub (q, t) }
        >
    }"""
    for condition in (True, False):
        done = _merged(a, b, "y=q", feeds={"x": np.array([1, -2, 3], np.float32), "c": np.array(condition)})
    assert [(rename.old, rename.new) for rename in done.renames] == [("t", "t_b")]
    assert _inputs(done) == ["x", "c"]


def test_names_inside_bodies_of_both_are_told_apart() -> None:
    def text(into: str, out: str) -> str:
        return f"""g (float[3] {into}, bool c) => (float[3] {out}) {{ {out} = If (c) <
            then_branch = g1 () => (float[3] r) {{ inner = Neg ({into})  r = Abs (inner) }},
            else_branch = g2 () => (float[3] s) {{ s = Relu ({into}) }} > }}"""

    for condition in (True, False):
        done = _merged(
            text("x", "y"), text("y", "w"), "y=y", "c=c",
            feeds={"x": np.array([1, -2, 3], np.float32), "c": np.array(condition)},
        )  # fmt: skip
    assert {(rename.old, rename.new) for rename in done.renames} == {("inner", "inner_b"), ("r", "r_b"), ("s", "s_b")}
    names = Counter(name for scope in GraphIndex(done.model.proto).scopes for name in scope.tensor_names())
    assert max(names.values()) == 1


def test_a_connected_input_that_a_body_hides() -> None:
    """ONNX forbids it, runtimes take it: inside, the name means the body's own tensor."""
    a = _text("a (float[3] x) => (float[3] y) { y = Relu (x) }")
    b = _text("""b (float[3] q, bool c) => (float[3] w) {
        p = Neg (q)
        w = If (c) <
            then_branch = g1 () => (float[3] r) { q2 = Abs (p)  r = Neg (q2) },
            else_branch = g2 () => (float[3] v) { v = Identity (p) }
        >
    }""")
    body = b.proto.graph.node[1].attribute[0].g
    body.node[0].output[0] = body.node[1].input[0] = "q"
    done = merge(a, b, ["y=q"])
    scope = GraphIndex(done.model.proto).scopes[1]
    assert scope.nodes[0].output[0] == scope.nodes[1].input[0] == "q_b"
    assert done.model.proto.graph.node[1].input[0] == "y"


def test_symbols_that_a_connection_makes_equal_are_one_and_others_are_told_apart() -> None:
    a = _text(
        "a (float[batch, n] x, float[m, 3] k) => (float[batch, n] y, float[m, 3] o) { y = Relu (x)  o = Abs (k) }"
    )
    b = _text(
        """b (float[rows, cols] z, float[m] other) => (float[rows, cols] w, float[m] v, float["2*m + rows"] u)
                 <float[1] u0 = {0}> { w = Neg (z)  v = Abs (other)  u = Identity (u0) }""".replace('"2*m + rows"', "S")
    )
    b.proto.graph.output[2].type.tensor_type.shape.dim[0].dim_param = "2*m + rows"
    done = merge(a, b, ["y=z"])
    types = {boundary.name: boundary.type for boundary in (*done.inputs, *done.outputs)}
    assert types["w"] == "float32[batch, n]"
    assert types["other"] == "float32[m_b]"
    assert types["u"] == "float32[2*m_b + batch]"
    assert ("dimension", "m", "m_b") in {(rename.kind, rename.old, rename.new) for rename in done.renames}


def test_prefixes() -> None:
    done = _merged(RELU, NEG, prefix_a="one/", prefix_b="two/")
    assert (_inputs(done), _outputs(done)) == (["one/x"], ["two/w"])
    same = _merged(RELU, RELU, "y=x", prefix_b="two/")
    assert _outputs(same) == ["two/y"]


def test_quantization_annotations_and_device_configurations_follow() -> None:
    a = load(named("quantization_annotation").path)
    outputs = [(info.name, info.type) for info in a.proto.graph.output]
    inputs = [(info.name, info.type) for info in a.proto.graph.input]
    pair = next((i, o) for o, kind in outputs for i, other in inputs if kind == other)
    done = merge(a, a, dict([pair]), options=MergeOptions(share=False))
    stored = {tensor.name for tensor in done.model.proto.graph.initializer}
    named_tensors = set(GraphIndex(done.model.proto).main.tensor_names())
    annotations = done.model.proto.graph.quantization_annotation
    assert len(annotations) > len(a.proto.graph.quantization_annotation) - 1
    for annotation in annotations:
        assert annotation.tensor_name in named_tensors
        for entry in annotation.quant_parameter_tensor_names:
            assert entry.value in stored | named_tensors
    d = load(named("device_configurations").path)
    kinds = {info.name: info.type for info in d.proto.graph.input}
    out = d.proto.graph.output[0]
    into = next((name for name, kind in kinds.items() if kind == out.type), None)
    if into is not None:
        joined = merge(d, d, {into: out.name})
        known = set(GraphIndex(joined.model.proto).main.tensor_names())
        for node in joined.model.proto.graph.node:
            for configured in node.device_configurations:
                assert all(spec.tensor_name in known for spec in configured.sharding_spec)


# ---------------------------------------------------------------- functions


FUNCTIONS = '<ir_version: 10, opset_import: ["" : 18, "local" : 1]>'


def _with_function(graph: str, *functions: str) -> Model:
    bodies = " ".join(f'<domain: "local", opset_import: ["" : 18, "local" : 1]> {text}' for text in functions)
    return from_proto(onnx.parser.parse_model(f"{FUNCTIONS} {graph} {bodies}"))


A_F = "a (float[3] x) => (float[3] y) { y = local.f (x) }"
B_F = "b (float[3] z) => (float[3] w) { w = local.f (z) }"


def test_a_function_of_the_same_body_is_one() -> None:
    done = _merged(
        _with_function(A_F, "f (p) => (q) { q = Relu (p) }"), _with_function(B_F, "f (p) => (q) { q = Relu (p) }")
    )
    assert [function.name for function in done.model.proto.functions] == ["f"]


def test_a_function_of_another_body_is_renamed_with_its_calls() -> None:
    b = _with_function(
        """b (float[3] z, bool c) => (float[3] w) { w = If (c) <
               then_branch = g () => (float[3] r) { r = local.f (z) },
               else_branch = h () => (float[3] s) { s = Abs (z) } > }""",
        "f (p) => (q) { q = Neg (p) }",
    )
    a = _with_function(A_F, "f (p) => (q) { q = Relu (p) }")
    done = _merged(a, b, "y=z", feeds={"x": np.array([-1, 2, 3], np.float32), "c": np.array(True)})
    assert [function.name for function in done.model.proto.functions] == ["f", "f_b"]
    assert ("function", "local::f", "local::f_b") in {(r.kind, r.old, r.new) for r in done.renames}


def test_functions_of_equal_text_that_call_different_ones_are_different() -> None:
    outer = "f (p) => (q) { q = local.g (p) }"
    a = _with_function(A_F, outer, "g (p) => (q) { q = Relu (p) }")
    b = _with_function(B_F, outer, "g (p) => (q) { q = Neg (p) }")
    done = _merged(a, b)
    assert [function.name for function in done.model.proto.functions] == ["f", "g", "f_b", "g_b"]
    assert done.model.proto.functions[2].node[0].op_type == "g_b"


def test_an_operator_is_not_taken_for_the_other_models_function() -> None:
    plain = from_proto(onnx.parser.parse_model(f"{FUNCTIONS} {A_F}"))
    defined = _with_function(B_F, "f (p) => (q) { q = Neg (p) }")
    done = merge(plain, defined)
    assert [(node.domain, node.op_type) for node in done.model.proto.graph.node] == [("local", "f"), ("local", "f_b")]
    other = merge(
        _with_function(A_F, "f (p) => (q) { q = Neg (p) }"), from_proto(onnx.parser.parse_model(f"{FUNCTIONS} {B_F}"))
    )
    assert [node.op_type for node in other.model.proto.graph.node] == ["f_b", "f"]
    assert other.model.proto.functions[0].name == "f_b"


# ---------------------------------------------------------------- opsets, metadata


def test_the_lower_opset_is_raised() -> None:
    a = _text(
        "a (float[1, 3] x) => (float[3] y) { y = Squeeze <axes = [0]> (x) }",
        head='<ir_version: 6, opset_import: ["" : 11]>',
    )
    done = _merged(a, "b (float[3] z) => (float[3] w) { w = Neg (z) }")
    assert standard_opset(done.model.proto) == 18
    assert done.model.proto.ir_version == 10
    assert done.converted
    assert any("opset 11 is 18 now" in note for note in done.notes)
    lower = merge(a, _text("b (float[3] z) => (float[3] w) { w = Neg (z) }"), options=MergeOptions(target_opset=13))
    assert standard_opset(lower.model.proto) == 13


def test_an_opset_that_cannot_be_had_names_the_model_and_the_operator() -> None:
    a = _text(
        "a (float[1, 2, 3, 3] x) => (float[1, 2, 3, 3] y) <float[2] s = {1, 1}> { y = InstanceNormalization (x, s, s) }"
    )
    a.proto.graph.node[0].op_type = "GroupNormalization"
    a.proto.graph.node[0].attribute.add(name="num_groups", type=2, i=2)
    b = _text(
        "b (float[1, 2, 3, 3] z) => (float[1, 2, 3, 3] w) { w = Neg (z) }",
        head='<ir_version: 10, opset_import: ["" : 21]>',
    )
    with pytest.raises(UnsupportedError) as caught:
        merge(a, b)
    assert "model A has opset 18" in str(caught.value)
    assert "GroupNormalization" in str(caught.value)


def test_other_domains() -> None:
    def one(name: str, version: int, op: str, domain: str = "ai.onnx.ml") -> Model:
        node = helper.make_node(op, [f"{name}i"], [f"{name}o"], domain=domain)
        kinds = [helper.make_tensor_value_info(f"{name}{end}", 1, [2, 3]) for end in "io"]
        graph = helper.make_graph([node], name, kinds[:1], kinds[1:])
        return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, version)], ir_version=10))

    done = merge(one("p", 1, "Normalizer"), one("q", 3, "Normalizer"))
    assert [(opset.domain, opset.version) for opset in done.model.proto.opset_import] == [("ai.onnx.ml", 3)]
    with pytest.raises(UnsupportedError) as caught:
        merge(one("p", 1, "Swirl", "my.ops"), one("q", 2, "Swirl", "my.ops"))
    assert "my.ops::Swirl" in caught.value.details
    both = merge(one("p", 1, "Normalizer"), one("q", 7, "Swirl", "my.ops"))
    assert {opset.domain: opset.version for opset in both.model.proto.opset_import} == {"ai.onnx.ml": 1, "my.ops": 7}


def test_metadata_of_both_is_kept() -> None:
    a, b = _text(RELU), _text(NEG)
    for model, author in ((a, "ann"), (b, "bob")):
        model.proto.metadata_props.add(key="author", value=author)
        model.proto.metadata_props.add(key="same", value="yes")
        model.proto.graph.metadata_props.add(key="author", value=author)
        model.proto.graph.node[0].metadata_props.add(key="scope", value=author)
        model.proto.graph.node[0].doc_string = author
        model.proto.producer_name = f"{author}'s"
    b.proto.doc_string = "the second"
    b.proto.metadata_props.add(key="only", value="b")
    b.proto.MergeFrom(onnx.ModelProto.FromString(b"\xc2\x3e\x03new"))  # a field that this onnx does not know
    done = _merged(a, b)
    said = {entry.key: entry.value for entry in done.model.proto.metadata_props}
    assert said == {"author": "ann", "same": "yes", "b.author": "bob", "only": "b", "b.producer_name": "bob's",
                    "b.graph_name": "b"}  # fmt: skip
    assert {e.key: e.value for e in done.model.proto.graph.metadata_props} == {"author": "ann", "b.author": "bob"}
    assert done.model.proto.producer_name == "ann's"
    assert done.model.proto.doc_string == "the second"
    assert [node.doc_string for node in done.model.proto.graph.node] == ["ann", "bob"]
    assert [node.metadata_props[0].value for node in done.model.proto.graph.node] == ["ann", "bob"]
    assert b"\xc2\x3e\x03new" in done.model.proto.SerializeToString()


def test_what_a_says_of_a_connected_output_stays_as_value_info() -> None:
    a = _text(RELU)
    a.proto.graph.output[0].doc_string = "rectified"
    a.proto.graph.output[0].metadata_props.add(key="k", value="v")
    done = _merged(a, NEG)
    (info,) = done.model.proto.graph.value_info
    assert (info.name, info.doc_string, info.metadata_props[0].value) == ("y", "rectified", "v")


def test_training_info_is_left_out_and_said_so() -> None:
    model = load(named("training_info").path)
    into, out = model.proto.graph.input[0], model.proto.graph.output[0]
    b = _text("b (float[3] z) => (float[3] w) { w = Identity (z) }")
    b.proto.graph.input[0].type.CopyFrom(out.type)
    b.proto.graph.output[0].type.CopyFrom(out.type)
    done = merge(model, b, {"z": out.name})
    assert into
    assert not done.model.proto.training_info
    assert any("training info" in note for note in done.notes)


# ---------------------------------------------------------------- equal weights


def _matmul(name: str, values: np.ndarray, weight: str) -> onnx.ModelProto:
    size = values.shape[0]
    graph = helper.make_graph(
        [helper.make_node("MatMul", [f"{name}i", weight], [f"{name}o"], name=f"{name}n")], name,
        [helper.make_tensor_value_info(f"{name}i", 1, [2, size])],
        [helper.make_tensor_value_info(f"{name}o", 1, [2, size])],
        [numpy_helper.from_array(values, weight)],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


@pytest.mark.parametrize("where", ["inline", "typed", "external"])
def test_equal_weights_are_stored_once(tmp_path: Path, where: str) -> None:
    values = np.random.default_rng(0).random((64, 64), dtype=np.float32)
    files = []
    for name in "pq":
        proto = _matmul(name, values, f"{name}w")
        if where == "typed" and name == "q":
            tensor = proto.graph.initializer[0]
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values.reshape(-1).tolist())
        (tmp_path / name).mkdir()
        files.append(tmp_path / name / "m.onnx")
        save(from_proto(proto), files[-1], options=SaveOptions(external=where == "external" or None))
    a, b = map(load, files)
    done = _merged(a, b)
    assert (done.shared_weights, done.shared_bytes) == (1, values.nbytes)
    saved = save(done.model, tmp_path / "out.onnx")
    assert saved.size < 2 * values.nbytes
    assert len(onnx.load(tmp_path / "out.onnx").graph.initializer) == 1
    apart = merge(a, b, options=MergeOptions(share=False))
    assert apart.shared_weights == 0
    assert len(apart.model.proto.graph.initializer) == 2
    save(apart.model, tmp_path / "apart.onnx", options=SaveOptions(external=True))
    feeds = {"pi": np.random.default_rng(1).random((2, 64), dtype=np.float32)}
    assert run_ort(tmp_path / "apart.onnx", feeds) == run_ort(tmp_path / "out.onnx", feeds)


def test_weights_that_differ_in_the_last_byte_or_may_be_overridden_are_not_shared() -> None:
    values = np.ones((64, 64), np.float32)
    other = values.copy()
    other[-1, -1] = np.nextafter(np.float32(1), np.float32(2))
    a = from_proto(_matmul("p", values, "w"))
    assert merge(a, from_proto(_matmul("q", other, "w"))).shared_weights == 0
    listed = from_proto(_matmul("q", values, "w"))
    listed.proto.graph.input.append(helper.make_tensor_value_info("w", 1, [64, 64]))
    assert merge(a, listed).shared_weights == 0
    small = np.ones((4, 4), np.float32)
    assert merge(from_proto(_matmul("p", small, "w")), from_proto(_matmul("q", small, "v"))).shared_weights == 0
    assert merge(from_proto(_matmul("p", small, "w")), from_proto(_matmul("q", small, "w"))).shared_weights == 1


@pytest.mark.parametrize("name", ["external_dtypes", "external_in_body", "external_subfolder", "external_shared_range"])
def test_external_weights_of_two_folders(tmp_path: Path, name: str) -> None:
    """Both models name their weights relative to their own folder; the result finds all of them."""
    case = named(name)
    a = load(case.path)
    out = a.proto.graph.output[0]
    b = from_proto(_matmul("q", np.random.default_rng(3).random((8, 8), dtype=np.float32), "w"))
    (tmp_path / "b").mkdir()
    save(b, tmp_path / "b" / "b.onnx", options=SaveOptions(external=True, threshold=1, location="weights.bin"))
    chain = _text("c (float[3] z) => (float[3] c) { c = Identity (z) }")
    for info in (chain.proto.graph.input[0], chain.proto.graph.output[0]):
        info.type.CopyFrom(out.type)
    chain.proto.graph.initializer.extend(load(tmp_path / "b" / "b.onnx").proto.graph.initializer)
    chain.folder = tmp_path / "b"
    chain.proto.graph.node.add(op_type="Identity", input=["w"], output=["kept"])
    chain.proto.graph.output.append(helper.make_tensor_value_info("kept", 1, [8, 8]))
    done = merge(a, chain, {"z": out.name})
    save(done.model, tmp_path / "out.onnx")
    got = run_ort(tmp_path / "out.onnx", case.feeds())
    expected = run_ort(case.path, case.feeds())
    renamed = done.names_b["c"]
    assert got[renamed] == expected[out.name]
    assert got[done.names_b["kept"]][2] == np.random.default_rng(3).random((8, 8), dtype=np.float32).tobytes()


# ---------------------------------------------------------------- split, then merge


def _rejoined(
    model: Model, index: GraphIndex, way: Any, feeds: dict[str, Any], engine: str, folder: Path, whole: Any
) -> int:
    """Splits, merges, runs; returns how often that was possible (0 or 1)."""
    try:
        partition = way()
        pieces = pieces_of(model, index, partition)
    except BenchError:
        return 0
    if len(pieces) < 2:
        return 0
    steps = rejoin(pieces, index.main.outputs)
    done = steps[-1].model
    save(done, folder / "again.onnx")
    wanted = {info.name for info in done.proto.graph.input}
    got = ENGINES[engine](folder / "again.onnx", {name: value for name, value in feeds.items() if name in wanted})
    # A constant that an earlier piece has a copy of, by a node that draws or calls, is another tensor for the merge.
    called = {name: step.names_b.get(name, name) for step in steps for name in whole if name in step.names_b}
    for name, value in whole.items():
        if name not in partition.passed_through and name not in feeds:
            assert got[called.get(name, name)] == value, name
    return 1


@cases(lambda case: case.valid != "no" and case.engine is not None)
def test_pieces_of_fixtures_are_the_model_again(case: Case, tmp_path: Path) -> None:
    if case.name in ("string_bytes.onnx", "fp16.onnx"):
        pytest.skip("an engine cannot hand out such strings, or computes wider than the type says")
    model = load(case.path)
    index = GraphIndex(model.proto)
    feeds = case.feeds()
    engine = case.engine or ""
    whole = ENGINES[engine](case.path if case.path.suffix == ".onnx" else case.whole(), feeds)
    chance = random.Random(case.name)
    names = list(index.main.tensor_names())
    for number in range(5):
        at = chance.sample(names, min(len(names), chance.randint(1, 3)))
        way = (lambda: split_parts(index, 2), lambda: split_parts(index, 3))[number] if number < 2 else None
        _rejoined(model, index, way or (lambda at=at: split_at(index, at)), feeds, engine, tmp_path, whole)


@settings(max_examples=20)
@given(models(), st.randoms(use_true_random=False))
def test_pieces_of_random_models_are_the_model_again(
    tmp_path_factory: pytest.TempPathFactory, drawn: RandomModel, chance: random.Random
) -> None:
    model = from_proto(drawn.proto)
    index = GraphIndex(drawn.proto)
    whole = run_ort(drawn.proto, drawn.feeds)
    folder = tmp_path_factory.mktemp("again")
    names = list(index.main.tensor_names())
    at = chance.sample(names, min(len(names), chance.randint(1, 3)))
    for way in (lambda: split_parts(index, 2), lambda: split_at(index, at)):
        _rejoined(model, index, way, drawn.feeds, "ort", folder, whole)


@given(models(), models())
def test_any_two_models_can_stand_in_one(one: RandomModel, other: RandomModel) -> None:
    """A connection of fitting types between random models; all outputs are those of A and then B."""
    a, b = from_proto(one.proto), from_proto(other.proto)
    fits = [
        (o.name, i.name)
        for o in one.proto.graph.output
        for i in other.proto.graph.input
        if o.type.tensor_type.elem_type == i.type.tensor_type.elem_type
        and [d.dim_value for d in o.type.tensor_type.shape.dim] == [2, 3]
        and len(i.type.tensor_type.shape.dim) == 2
        and i.name in other.feeds
    ]
    if not fits:
        return
    output, into = fits[0]
    done = merge(a, b, {into: output})
    feeds = {done.names_a[name]: value for name, value in one.feeds.items()}
    feeds.update({done.names_b[name]: value for name, value in other.feeds.items() if name != into})
    wanted = {info.name for info in done.model.proto.graph.input}
    assert prove(done, a, b, {name: value for name, value in feeds.items() if name in wanted}, threads=1).holds


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name",
    ["magika", "attacut_c", "basic_pitch", "silero_vad", "nakdimon_loop", "minilm_int8w_ext", "ppocr_v4_det",
     "swift_f0",
     "ddddocr_rec_dynq", "tashkeel_seq2seq", "light_shufflenet"],
)  # fmt: skip
def test_pieces_of_real_models_are_the_model_again(corpus: Any, tmp_path: Path, name: str) -> None:
    path, entry = corpus(name)
    model = load(path)
    index = GraphIndex(model.proto)
    feeds = fetch.seeded_feeds(path, entry)
    whole = run_ort(path, feeds)
    ways = (lambda: split_parts(index, 2), lambda: split_parts(index, 4))
    assert sum(_rejoined(model, index, way, feeds, "ort", tmp_path, whole) for way in ways) == 2
    again = load(tmp_path / "again.onnx")
    if name != "nakdimon_loop":  # whose bodies have names of their own that come in several pieces
        assert _nodes(again) == _nodes(model)


def _nodes(model: Model) -> list[bytes]:
    """Returns the nodes in an order that does not depend on the model, wherever their weights lie."""
    found = []
    for node in model.proto.graph.node:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for tensor in node_tensors(copy):
            tensor.ClearField("external_data")
        found.append(copy.SerializeToString())
    return sorted(found)


# ---------------------------------------------------------------- real models together


@pytest.mark.corpus
def test_real_models_that_do_not_fit_are_refused(corpus: Any) -> None:
    magika = corpus("magika")[0]
    with pytest.raises(RefusedResultError) as caught:
        merge(magika, magika)
    assert "float32" in caught.value.details[0]
    assert "int32" in caught.value.details[0]


@pytest.mark.corpus
def test_a_piece_at_another_opset(corpus: Any, tmp_path: Path) -> None:
    """attacut at opset 18, and the end of it brought down to 15 before: raised again, and the same numbers."""
    path, entry = corpus("attacut_c")
    model = load(path)
    index = GraphIndex(model.proto)
    first, second = pieces_of(model, index, split_parts(index, 2))
    lowered, _ = convert_opset(second.model, 15)
    done = merge(first.model, lowered)
    assert standard_opset(done.model.proto) == 18
    save(done.model, tmp_path / "again.onnx")
    feeds = fetch.seeded_feeds(path, entry)
    assert run_ort(tmp_path / "again.onnx", feeds) == run_ort(path, feeds)
    scopes = Counter(entry.value for node in model.proto.graph.node for entry in node.metadata_props)
    kept = Counter(entry.value for node in done.model.proto.graph.node for entry in node.metadata_props)
    assert set(scopes) == set(kept)


@pytest.mark.corpus
def test_detection_feeds_recognition(corpus: Any, tmp_path: Path) -> None:
    """Two OCR models of two makers, opsets 12 and 11, connected by what a small ONNX text makes of the map."""
    det, rec = corpus("ppocr_v4_det")[0], corpus("ppocr_v2_cls")[0]
    glue = _text(
        """glue (float[N, 1, H, W] map) => (float[N, 3, 48, 192] crop)
        <int64[4] size = {1, 3, 48, 192}, int64[4] channels = {1, 3, 1, 1}> {
            three = Expand (map, channels)
            batch = Shape <start = 0, end = 1> (map)
            rest = Constant <value_ints = [3, 48, 192]> ()
            sizes = Concat <axis = 0> (batch, rest)
            crop = Resize <mode = "linear"> (three, "", "", sizes)
        }""".replace('""', "")
    )
    glue.proto.graph.node[-1].input[1] = glue.proto.graph.node[-1].input[2] = ""
    out = load(det).proto.graph.output[0].name
    into = load(rec).proto.graph.input[0].name
    first = merge_file(det, glue, None, [f"{out}=map"], options=MergeOptions(keep_outputs=True))
    words = FeedOptions(shapes=[f"{first.merged.inputs[0].name}:[1,3,64,96]"])
    done = merge_file(
        first.merged.model, rec, tmp_path / "ocr.onnx", {into: "crop"}, proven=True, feeds=words
    )  # fmt: skip
    assert done.proof is not None
    assert done.proof.holds
    assert done.saved is not None
    assert standard_opset(done.merged.model.proto) == 18
    onnx.checker.check_model(tmp_path / "ocr.onnx", full_check=True)


# ---------------------------------------------------------------- proof, files, command line


def _random_model() -> Model:
    """ONNX Runtime seeds a node by its number in the graph, so behind another model it draws other values."""
    return _text("r (float[3] z) => (float[3] w) { drawn = RandomNormalLike (z)  w = Add (z, drawn) }")


def _relu() -> Model:
    return _text("a (float[3] x) => (float[3] y) { y = Relu (x) }")


def test_a_failed_proof_writes_nothing(tmp_path: Path) -> None:
    done = merge_file(_relu(), _random_model(), tmp_path / "o.onnx")
    assert done.proof is not None
    assert not done.proof.holds
    assert done.saved is None
    assert not list(tmp_path.iterdir())
    unproven = merge_file(_relu(), _random_model(), tmp_path / "o.onnx", proven=False)
    assert unproven.saved is not None
    assert unproven.proof is None


def test_what_cannot_be_run_is_merged_only_without_a_proof(tmp_path: Path) -> None:
    custom = from_proto(onnx.parser.parse_model(f"{FUNCTIONS} {A_F}"))
    b = _text("b (float[3] z) => (float[3] w) { w = Neg (z) }")
    for proven in (None, True):
        with pytest.raises(ExecutionError, match="cannot be proven, so it is not written: A does not run") as error:
            merge_file(custom, b, tmp_path / "o.onnx", proven=proven)
        assert error.value.hint == "--no-prove writes it without a proof."
        assert not list(tmp_path.iterdir())
    done = merge_file(custom, b, tmp_path / "o.onnx", proven=False)
    assert done.saved is not None
    assert done.proof is None


def test_drawn_inputs_that_do_not_suit_the_second_model_are_told(tmp_path: Path) -> None:
    b = _text("b (float[M] z) => (float[7,11] w) { s = Constant <value_ints = [7, 11]> () w = Reshape (z, s) }")
    a = _text("a (float[N] x) => (float[N] y) { y = Relu (x) }")
    with pytest.raises(ExecutionError, match="B, on what A gives, does not run") as error:
        merge_file(a, b, tmp_path / "o.onnx", feeds=FeedOptions(seed=1))
    assert "--dim" in str(error.value.hint)
    assert any("dimension 0 (N)" in line for line in error.value.details)
    assert not list(tmp_path.iterdir())


def test_a_type_that_does_not_fit_is_told_whole() -> None:
    b = _text("b (int64[3, 2] z) => (int64[3, 2] w) { w = Neg (z) }")
    for cast, said in ((False, "the element types differ, and 1 dimension is not 2"), (True, ": 1 dimension is")):
        with pytest.raises(RefusedResultError) as error:
            merge(_relu(), b, options=MergeOptions(cast=cast))
        assert said in error.value.details[0]


def test_whoever_says_what_the_inputs_are_gets_a_proof(tmp_path: Path) -> None:
    custom = from_proto(onnx.parser.parse_model(f"{FUNCTIONS} {A_F}"))
    b = _text("b (float[3] z) => (float[3] w) { w = Neg (z) }")
    given = FeedOptions(ranges=["[0,1]"])
    with pytest.raises(BenchError) as error:
        merge_file(custom, b, tmp_path / "o.onnx", feeds=given)
    assert not (tmp_path / "o.onnx").exists()
    assert error.value.exit_code != 2
    with pytest.raises(UsageError, match="no proof is wanted"):
        merge_file(_text(RELU), _text(NEG), tmp_path / "o.onnx", feeds=given, proven=False)
    with pytest.raises(UsageError, match="no proof is wanted"):
        merge_file(_text(RELU), _text(NEG), tmp_path / "o.onnx", feeds=FeedOptions(seed=3), proven=False)
    dry = merge_file(_text(RELU), _text(NEG), None, feeds=FeedOptions(dims=["N=4"]))
    assert dry.proof is not None
    assert dry.proof.holds


def test_inputs_are_not_overwritten_and_the_same_gives_the_same_bytes(tmp_path: Path) -> None:
    save(_text(RELU), tmp_path / "a.onnx")
    save(_text(NEG), tmp_path / "b.onnx")
    for name in ("a.onnx", "b.onnx"):
        with pytest.raises(UsageError):
            merge_file(tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / name)
    for name in ("one.onnx", "two.onnx"):
        merge_file(tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / name)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def _run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnxbench", "merge", *map(os.fspath, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_the_command(tmp_path: Path) -> None:
    a, b, out = tmp_path / "a.onnx", tmp_path / "b.onnx", tmp_path / "o.onnx"
    save(_text(RELU), a)
    save(_text(NEG), b)
    done = _run(a, b, out, "--map", "a.y=b.z")
    assert done.returncode == 0, done.stderr
    assert "PROVEN: A and then B" in done.stdout
    assert f"wrote {out}" in done.stdout
    told = json.loads(_run(a, b, "-o", tmp_path / "j.onnx", "--json").stdout)
    assert told["schema_version"]
    assert told["result"]["links"][0]["output"] == "y"
    assert told["result"]["proof"]["holds"] is True
    dry = _run(a, b, "--dry-run")
    assert dry.returncode == 0
    assert "nothing was written" in dry.stdout
    save(_random_model(), tmp_path / "r.onnx")
    save(_text("b (float[3] z) => (float[3] w) { w = Neg (z) }"), tmp_path / "n.onnx")
    failed = _run(tmp_path / "n.onnx", tmp_path / "r.onnx", tmp_path / "f.onnx")
    assert failed.returncode == 1
    assert "FAILED" in failed.stdout
    assert not (tmp_path / "f.onnx").exists()
    misfit = _run(a, tmp_path / "n.onnx", tmp_path / "f.onnx")
    assert misfit.returncode == 8
    assert "float32[N, 3]" in misfit.stderr
    assert "Traceback" not in misfit.stderr
    assert _run(a, b).returncode == 2
    assert _run(a, tmp_path / "gone.onnx", out).returncode == 4


_HUGE = 3 << 30


@pytest.mark.parametrize("same", [True, False])
def test_three_gigabytes_cost_little_memory(tmp_path: Path, same: bool) -> None:
    """Sparse files: equal weights are compared whole, in blocks; others are not read beyond their first block."""
    for name in "pq":
        rows = 1 << 15
        proto = _matmul(name, np.zeros((1, 1), np.float32), "w")
        weight = proto.graph.initializer[0]
        weight.ClearField("raw_data")
        del weight.dims[:]
        weight.dims.extend([rows, _HUGE // 4 // rows])
        weight.data_location = 1
        weight.external_data.add(key="location", value="w.bin")
        for info, size in ((proto.graph.input[0], rows), (proto.graph.output[0], _HUGE // 4 // rows)):
            info.type.tensor_type.shape.dim[1].dim_value = size
        if name == "q":
            proto.graph.input[0].type.tensor_type.shape.dim[1].ClearField("value")
            proto.graph.output[0].type.tensor_type.shape.dim[1].ClearField("value")
            proto.graph.node[0].input[0], proto.graph.node[0].op_type = "qi", "MatMul"
        folder = tmp_path / name
        folder.mkdir()
        with open(folder / "w.bin", "wb") as out:
            if name == "q" and not same:
                out.write(b"\x01")
            out.truncate(_HUGE)
        (folder / "m.onnx").write_bytes(proto.SerializeToString())
    code = f"""
import resource
from onnxbench.merging import merge
from onnxbench.model import load
import onnx
from onnx import numpy_helper, shape_inference, version_converter
a, b = load({os.fspath(tmp_path / "p" / "m.onnx")!r}), load({os.fspath(tmp_path / "q" / "m.onnx")!r})
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
done = merge(a, b, ["po=qi"])
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(done.shared_weights, done.shared_bytes, after - before)
"""
    environment = {**os.environ, "PYTHONPATH": os.fspath(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    shared, size, kilobytes = map(int, done.stdout.split())
    assert (shared, size) == ((1, _HUGE) if same else (0, 0))
    assert kilobytes < 150_000
