"""Models in another precision: what changes, what stays and why, how many Casts there are, and that the result runs."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnx.parser
import pytest
from cases import Case, all_cases, cases, named
from onnx import TensorProto, helper, numpy_helper

from onnxbench import backends, model, precision, validity
from onnxbench.cli import app
from onnxbench.errors import BenchError, NotFoundError, OutputError, RefusedResultError, UsageError
from onnxbench.graph import GraphIndex, NodeRef
from onnxbench.model import Model
from onnxbench.precision import Converted, convert
from onnxbench.precision._sides import CHANGES, STAYS, Link, choose_sides

FP16, FP32, BF16, FP64 = 10, 1, 16, 11


def parsed(text: str) -> Model:
    """Returns a model written as ONNX text."""
    return model.from_proto(onnx.parser.parse_model(text))


def node(source: Model, label: str) -> NodeRef:
    """Returns the node of that name or output."""
    return next(ref for ref in GraphIndex(source.proto).nodes() if label in (ref.node.name, ref.path, *ref.node.output))


def ops(done: Converted) -> Counter[str]:
    """Returns how many nodes of each operator there are, in bodies and functions too."""
    return Counter(ref.node.op_type for ref in GraphIndex(done.model.proto).nodes())


def weights_of(done: Converted) -> dict[str, int]:
    """Returns the element types of the main graph's initializers."""
    return {tensor.name: tensor.data_type for tensor in done.model.proto.graph.initializer}


def run(source: Model, feeds: dict[str, Any]) -> list[Any]:
    """Returns the outputs of a model in ONNX Runtime, in order."""
    session = backends.open_session(source)
    values = session.run(feeds)
    session.close()
    return list(values.values())


def assert_close(source: Model, done: Converted, feeds: dict[str, Any], rtol: float = 5e-3) -> None:
    """Holds a converted model against the one that it was made of."""
    for before, after in zip(run(source, feeds), run(done.model, feeds), strict=True):
        assert before.dtype == after.dtype
        assert np.isfinite(after).all()
        np.testing.assert_allclose(after, before, rtol=rtol, atol=rtol * max(1e-3, float(np.abs(before).max())))


X4 = np.array([0.5, -1.25, 2.0, 3.5], np.float32)
MLP = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[1,4] x) => (float[1,4] y)
<float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}, float[4] b = {1,2,3,4}>
{ [m] h = MatMul (x, w) [a] s = Add (h, b) [r] y = Relu (s) }
"""


# ---------------------------------------------------------------- all fixtures


@cache
def converted(name: str, to: str) -> Converted:
    return convert(model.load(named(name).path), to=to, weights="clamp")


def is_valid(case: Case) -> bool:
    return case.valid == "yes" and case.engine == "ort" and not case.is_external


@cases(is_valid)
def test_fixtures_run_in_half_precision_and_agree(case: Case) -> None:
    source = model.load(case.path)
    feeds = case.feeds()
    done = convert(source, to="fp16", weights="clamp")
    validity.validate(done.model.proto)
    for before, after in zip(run(source, feeds), run(done.model, feeds), strict=True):
        if not hasattr(before, "dtype") or before.dtype.kind != "f":
            continue
        assert before.dtype == after.dtype
        assert (np.isfinite(before) == np.isfinite(after)).all()
        sound = np.isfinite(before) & (np.abs(before) <= 65504)  # what lies beyond was clamped
        top = float(np.abs(before[sound]).max(initial=1e-3))
        assert float(np.abs(before[sound] - after[sound]).max(initial=0.0)) <= 0.02 * top


@pytest.mark.parametrize("to", ["bf16", "fp32", "fp64"])
def test_fixtures_are_valid_in_every_precision(to: str) -> None:
    count = 0
    for case in filter(is_valid, all_cases()):
        done = convert(model.load(case.path), to=to, weights="clamp")
        validity.validate(done.model.proto)
        count += 1
    assert count > 100


def test_conversion_is_deterministic_and_leaves_the_model_alone() -> None:
    source = model.load(named("nested_bodies").path)
    before = source.proto.SerializeToString()
    first, second = (convert(source, to="fp16").model.proto.SerializeToString() for _ in range(2))
    assert first == second
    assert source.proto.SerializeToString() == before


# ---------------------------------------------------------------- borders and weights


def test_inputs_and_outputs_keep_their_types_with_one_cast_each() -> None:
    source = parsed(MLP)
    done = convert(source, to="fp16")
    assert (done.casts, done.nodes, done.weights, done.kept) == (2, 3, 2, ())
    assert set(weights_of(done).values()) == {FP16}
    assert done.model.proto.graph.output[0].name == "y"
    assert_close(source, done, {"x": X4.reshape(1, 4)})


def test_inputs_and_outputs_are_converted_without_a_cast() -> None:
    done = convert(parsed(MLP), to="fp16", io="convert")
    graph = done.model.proto.graph
    assert done.casts == 0
    assert [info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)] == [FP16, FP16]
    (y,) = run(done.model, {"x": X4.reshape(1, 4).astype(np.float16)})
    assert y.dtype == np.float16


def test_there_and_back_again_is_the_same_graph() -> None:
    half = convert(parsed(MLP), to="fp16").model
    back = convert(half, to="fp32")
    assert back.casts == 0
    assert back.removed == 2
    assert [each.op_type for each in back.model.proto.graph.node] == ["MatMul", "Add", "Relu"]
    assert set(weights_of(back).values()) == {FP32}


def test_a_kept_node_gets_its_weight_in_its_type_and_one_cast_on_each_side() -> None:
    source = parsed(MLP)
    done = convert(source, to="fp16", keep=[node(source, "a")])
    assert weights_of(done) == {"w": FP16, "b": FP32}
    assert done.casts == 4
    assert [(each.node, each.reason) for each in done.kept] == [("a", "asked")]
    assert_close(source, done, {"x": X4.reshape(1, 4)})


def test_a_weight_of_both_sides_is_stored_twice_and_cast_never() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] y) <float[4] w = {1,2,3,4}>
    { [one] h = Mul (x, w) [two] y = Add (h, w) }
    """)
    done = convert(source, to="fp16", keep=[node(source, "two")])
    assert Counter(weights_of(done).values()) == {FP32: 1, FP16: 1}
    assert done.casts == 2  # of x, and of h
    assert_close(source, done, {"x": X4})


def test_one_cast_serves_all_readers_in_bodies_too() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x, bool c) => (float[4] y)
    {
       h = Relu (x)
       [one] a = Exp (h)
       [two] b = Exp (h)
       t = If (c) <
          then_branch: graph = yes () => (float[4] e) { [three] e = Exp (h) },
          else_branch: graph = no () => (float[4] n) { [four] n = Neg (h) }>
       s = Add (a, b)
       y = Add (s, t)
    }
    """)
    kept = [node(source, name) for name in ("one", "two", "three")]
    done = convert(source, to="fp16", keep=kept)
    casts = [each for each in GraphIndex(done.model.proto).nodes() if each.node.op_type == "Cast"]
    assert sum(each.node.input[0] == "h" for each in casts) == 1
    assert_close(source, done, {"x": X4, "c": np.array(True)}, rtol=1e-2)


def test_constants_of_every_form_are_converted_in_place() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2] x) => (float[2] y)
    {
       a = Constant <value: tensor = float[2] {1.5, 2.5}> ()
       b = Constant <value_float: float = 0.5> ()
       c = Constant <value_floats: floats = [3.0, 4.0]> ()
       p = Add (x, a)
       q = Mul (p, b)
       y = Add (q, c)
    }
    """)
    done = convert(source, to="fp16")
    assert ops(done)["Cast"] == 2
    assert [each.attribute[0].t.data_type for each in done.model.proto.graph.node if each.op_type == "Constant"] == [
        FP16
    ] * 3
    assert_close(source, done, {"x": X4[:2]})


@pytest.mark.parametrize("name", ["initializer_as_input_ir3", "initializer_as_input_ir8"])
def test_an_initializer_that_callers_may_replace_keeps_its_type(name: str) -> None:
    case = named(name)
    source = model.load(case.path)
    done = convert(source, to="fp16")
    stated = {info.name: info.type.tensor_type.elem_type for info in done.model.proto.graph.input}
    shared = set(stated) & set(weights_of(done))
    assert shared
    assert {stated[each] for each in shared} == {FP16 if name.endswith("ir3") else FP32}
    assert all(stated[each] == weights_of(done)[each] for each in shared)


def test_sparse_weights_are_converted() -> None:
    done = converted("sparse_initializer", "fp16")
    assert {each.values.data_type for each in done.model.proto.graph.sparse_initializer} == {FP16}


# ---------------------------------------------------------------- schemas


def test_slots_that_take_float32_alone_stay_by_their_schema() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1,1,2,2] x) => (float[1,1,4,4] y) <float[4] scales = {1,1,2,2}, float[0] roi = {}>
    { [r] y = Resize <mode = "nearest"> (x, roi, scales) }
    """)
    done = convert(source, to="fp16", io="convert")
    assert weights_of(done)["scales"] == FP32
    assert done.casts == 0
    assert run(done.model, {"x": np.ones((1, 1, 2, 2), np.float16)})[0].dtype == np.float16


def test_an_operator_that_does_not_take_the_type_stays_with_the_reason() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1,3,4] boxes, float[1,1,3] scores) => (int64[n,3] picked)
    { b = Abs (boxes) s = Abs (scores) [nms] picked = NonMaxSuppression (b, s) }
    """)
    done = convert(source, to="fp16", opset="keep")
    assert ("nms", "schema") in [(each.node, each.reason) for each in done.kept]
    assert "NonMaxSuppression does not take tensor(float16)" in next(
        each.detail for each in done.kept if each.node == "nms"
    )


def test_the_opset_is_raised_where_that_admits_the_type_and_only_then() -> None:
    source = parsed(MLP)
    assert convert(source, to="bf16").opset == (17, 17)
    conv = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[1,1,4,4] x) => (float[1,1,3,3] y) <float[1,1,2,2] w = {1,2,3,4}>
    { y = Conv (x, w) }
    """)
    raised = convert(conv, to="bf16")
    assert raised.opset == (17, 22)
    assert weights_of(raised) == {"w": BF16}
    assert "opset 17 is 22 now" in raised.notes
    stays = convert(conv, to="bf16", opset="keep")
    assert (stays.opset, stays.casts, weights_of(stays)) == ((17, 17), 0, {"w": FP32})


def test_weights_that_an_old_file_lists_as_inputs_are_weights_where_the_opset_is_raised_too() -> None:
    source = parsed("""
    <ir_version: 3, opset_import: ["" : 9]>
    g (float[4] x, float[4] w) => (float[4] y) <float[4] w = {1, 2, 3, 4}>
    { y = Add (x, w) }
    """)
    done = convert(source, to="bf16")
    assert done.opset[1] > done.opset[0]
    assert (done.casts, weights_of(done)) == (2, {"w": BF16})


def test_only_moved_values_take_the_side_with_less_to_cast() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2,8] x, int64[1] i) => (float[1,8] y)
    { [a] h = Exp (x) [g] s = Gather (h, i) [t] p = Identity (s) [b] y = Sqrt (p) }
    """)
    both = convert(source, to="fp16", keep=[node(source, "a"), node(source, "b")])
    assert (both.casts, both.nodes) == (0, 0)  # what lies between stays, too
    late = convert(source, to="fp16", keep=[node(source, "a")])
    cast = next(each for each in late.model.proto.graph.node if each.op_type == "Cast" and each.attribute[0].i == FP16)
    assert cast.input[0] in ("s", "p")  # behind Gather, where it is half as large


def test_cheapest_sides_are_a_minimum_cut() -> None:
    import itertools
    import random

    rng = random.Random(7)
    for _ in range(60):
        count = rng.randint(4, 8)
        links = []
        for _ in range(rng.randint(3, 9)):
            maker = rng.randrange(count)
            users = tuple(sorted({rng.randrange(count) for _ in range(rng.randint(1, 3))}))
            cost = rng.randint(1, 9)
            links.append(Link(maker, users, lambda cost=cost: cost))

        def total(sides: Any, links: list[Link] = links) -> int:
            return sum(link.cost() for link in links if any(sides[u] != sides[link.maker] for u in link.users))

        found = choose_sides(count, links)
        assert (found[STAYS], found[CHANGES]) == (False, True)
        best = min(total((False, True, *rest)) for rest in itertools.product((False, True), repeat=count - 2))
        assert total(found) == best


# ---------------------------------------------------------------- Casts of the model


def test_casts_of_the_model_go_where_both_sides_are_one_type() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float16[4] x) => (float16[4] y)
    { h = Relu (x) [up] u = Cast <to = 1> (h) [e] e = Exp (u) [down] y = Cast <to = 10> (e) }
    """)
    done = convert(source, to="fp16")
    assert (done.casts, done.removed, ops(done)["Cast"]) == (0, 2, 0)
    assert done.model.proto.graph.node[-1].output[0] == "y"
    kept = convert(source, to="fp16", keep=[node(source, "e")])
    assert (kept.casts, kept.removed, ops(kept)["Cast"]) == (0, 0, 2)


@pytest.mark.parametrize("early", [True, False])
def test_a_cast_of_the_model_serves_all_and_stands_before_them(early: bool) -> None:
    cast, other = "[c] h = Cast <to = 10> (x)", "[b] b = Sin (x)"
    source = parsed(f"""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float16[4] y, float[4] z)
    {{ {cast if early else other} {other if early else cast} [a] y = Exp (h) [z] z = Cos (b) }}
    """)
    done = convert(source, to="fp16", keep=[node(source, "c")])
    nodes = [each.op_type for each in done.model.proto.graph.node]
    assert nodes == ["Cast", "Sin", "Exp", "Cos", "Cast"]
    assert (done.casts, done.removed) == (1, 0)  # of z alone
    assert done.model.proto.graph.node[0].name == "c"
    assert done.model.proto.graph.node[1].input[0] == "h"
    assert_close(source, done, {"x": X4})


def test_a_cast_of_the_model_serves_bodies_and_stays_behind_what_it_reads() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x, bool c) => (float16[4] y, float[4] z)
    {
      [k] k = Sin (x)
      [if] z = If (c) <then_branch = g1 () => (float[4] t) { [t] t = Exp (k) },
                       else_branch = g2 () => (float[4] e) { [e] e = Cos (k) }>
      [cast] h = Cast <to = 10> (k)
      [y] y = Sin (h)
    }
    """)
    done = convert(source, to="fp16", keep=[node(source, "k"), node(source, "cast")])
    graph = done.model.proto.graph
    assert [each.name for each in graph.node][:3] == ["k", "cast", "if"]
    assert done.casts == 1  # of z
    assert [body.g.node[0].input[0] for body in graph.node[2].attribute] == ["h", "h"]
    for c in (True, False):
        assert_close(source, done, {"x": X4, "c": np.array(c)})


def test_a_cast_that_changes_nothing_goes_where_its_type_changes_and_stays_elsewhere() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x, int64[4] i) => (float[4] y, int64[4] j)
    { h = Sin (x) [same] s = Cast <to = 1> (h) y = Cos (s) [int] j = Cast <to = 7> (i) }
    """)
    done = convert(source, to="fp16")
    assert (done.casts, done.removed) == (2, 1)
    assert "same" not in {each.name for each in done.model.proto.graph.node}
    assert "int" in {each.name for each in done.model.proto.graph.node}
    kept = convert(source, to="fp16", keep=[node(source, "same")])
    assert "same" in {each.name for each in kept.model.proto.graph.node}
    assert_close(source, done, {"x": X4, "i": np.arange(4)})


def test_what_a_cast_makes_is_cast_from_what_it_reads() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (int64[4] i) => (float[4] y, float[4] z)
    { [c] f = Cast <to = 1> (i) [one] y = Sin (f) [two] z = Exp (f) }
    """)
    done = convert(source, to="fp16", keep=[node(source, "one")])
    casts = [each for each in done.model.proto.graph.node if each.op_type == "Cast" and each.input[0] == "i"]
    assert sorted(each.attribute[0].i for each in casts) == [FP32, FP16]
    big = np.array([4097, 1, 2, 3])
    np.testing.assert_array_equal(run(done.model, {"i": big})[0], run(source, {"i": big})[0])


def test_types_in_attributes_follow() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x, int64[1] n, int64[4] i) => (float[4] y)
    {
       a = ConstantOfShape <value: tensor = float[1] {2.5}> (n)
       b = ConstantOfShape (n)
       c = Cast <to = 1> (i)
       d = CastLike (i, x)
       s = Sum (x, a, b, c, d)
       y = Relu (s)
    }
    """)
    done = convert(source, to="fp16")
    validity.validate(done.model.proto)
    assert done.kept == ()
    feeds = {"x": X4, "n": np.array([4]), "i": np.arange(4)}
    assert_close(source, done, feeds)


@pytest.mark.parametrize(
    "made",
    [
        "RandomNormal <dtype = 1, shape = [4, 4]> ()",
        "RandomNormal <shape = [4, 4]> ()",
        "EyeLike <dtype = 1> (i)",
        "RandomUniformLike <dtype = 1> (i)",
    ],
)
def test_what_is_made_of_nothing_is_made_in_the_new_type(made: str) -> None:
    done = convert(
        parsed(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        g (float[4,4] x, int64[4,4] i) => (float[4,4] y) {{ r = {made} y = Mul (x, r) }}
        """),
        to="fp16", io="convert",
    )  # fmt: skip
    maker = done.model.proto.graph.node[0]
    assert (done.casts, {each.name: each.i for each in maker.attribute}["dtype"]) == (0, FP16)


def test_indices_computed_in_floats_stay_exact() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[n] x) => (float[m] y) <float two = {2.0}>
    {
       [h] h = Relu (x)
       s = Shape (h)
       [f] f = Cast <to = 1> (s)
       [d] d = Div (f, two)
       [i] i = Cast <to = 7> (d)
       zero = Constant <value_ints: ints = [0]> ()
       y = Slice (h, zero, i)
    }
    """)
    done = convert(source, to="fp16")
    assert {each.node for each in done.kept if each.reason == "indices"} == {"f", "d"}
    x = np.ones(8194, np.float32)
    assert run(done.model, {"x": x})[0].shape == (4097,)


# ---------------------------------------------------------------- bodies, functions, sequences


def test_a_loop_whose_state_starts_in_another_type() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x, int64 n, bool c) => (float[4] y, float[k,4] all)
    {
       [start] s = Exp (x)
       [loop] y, all = Loop (n, c, s) <body: graph = b (int64 i, bool c0, float[4] a)
          => (bool c1, float[4] o, float[4] t) { c1 = Identity (c0) o = Add (a, x) [inner] t = Sin (o) }>
    }
    """)
    feeds = {"x": X4, "n": np.array(3), "c": np.array(True)}
    done = convert(source, to="fp16")
    assert done.kept == ()
    assert_close(source, done, feeds, rtol=2e-2)
    started = convert(source, to="fp16", keep=[node(source, "start")])
    assert_close(source, started, feeds, rtol=2e-2)
    looped = convert(source, to="fp16", keep=[node(source, "loop")])
    assert all(each.node.op_type != "Cast" for each in GraphIndex(looped.model.proto).nodes() if each.scope.path)
    assert_close(source, looped, feeds, rtol=2e-2)


FUNCTION = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
g (float[4] x, int64[4] i) => (float[4] y, int64[4] j)
{ [one] a = local.Twice (x) [two] y = local.Twice (a) [three] j = local.Twice (i) }
<domain: "local", opset_import: ["" : 17]>
Twice (t) => (d) { [add] d = Add (t, t) }
"""


def test_a_function_called_with_several_types_becomes_several() -> None:
    source = parsed(FUNCTION)
    done = convert(source, to="fp16")
    assert [each.name for each in done.model.proto.functions] == ["Twice", "Twice_2"]
    assert [each.op_type for each in done.model.proto.graph.node if each.op_type != "Cast"] == [
        "Twice",
        "Twice",
        "Twice_2",
    ]
    assert done.casts == 2
    assert_close(source, done, {"x": X4, "i": np.arange(4)})


def test_a_call_that_is_kept_calls_a_copy() -> None:
    source = parsed(FUNCTION)
    done = convert(source, to="fp16", keep=[node(source, "two")])
    names = [each.op_type for each in done.model.proto.graph.node if each.op_type.startswith("Twice")]
    assert names == ["Twice", "Twice_kept", "Twice_3"] or names == ["Twice", "Twice_kept", "Twice_2"]
    assert [(each.node, each.reason) for each in done.kept] == [("local::Twice_kept/add", "asked")]
    assert_close(source, done, {"x": X4, "i": np.arange(4)})
    assert not any(each.metadata_props for each in done.model.proto.graph.node)


def test_sequences_change_together_with_what_goes_in_and_out() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] y)
    {
       h = Relu (x)
       s = SequenceConstruct (h, h)
       k = Constant <value_int: int = 1> ()
       [at] t = SequenceAt (s, k)
       y = Exp (t)
    }
    """)
    done = convert(source, to="fp16")
    assert (done.casts, done.kept) == (2, ())
    assert_close(source, done, {"x": X4})
    kept = convert(source, to="fp16", keep=[node(source, "at")])
    assert {each.op_type for each in kept.kept} >= {"SequenceConstruct", "SequenceAt"}
    assert_close(source, kept, {"x": X4})


# ---------------------------------------------------------------- quantized


def test_what_lies_between_dequantize_and_quantize_stays() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 19]>
    g (float[4] x) => (float[4] y) <float s = {0.01}, int8 z = {0}>
    {
       h = Exp (x)
       q = QuantizeLinear (h, s, z)
       d = DequantizeLinear (q, s, z)
       [r] r = Relu (d)
       p = QuantizeLinear (r, s, z)
       e = DequantizeLinear (p, s, z)
       y = Sqrt (e)
    }
    """)
    done = convert(source, to="fp16")
    assert weights_of(done)["s"] == FP32
    assert Counter(each.reason for each in done.kept) == {"quantized": 5}
    assert done.casts == 4  # x, h, e, y: none within
    assert_close(source, done, {"x": X4 / 10}, rtol=2e-2)


# ---------------------------------------------------------------- weights that do not fit

MASK = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[2,4] x, bool[2,4] m) => (float[2,4] y) <float low = {-3.4028235e38}>
{ [w] s = Where (m, x, low) [s] y = Softmax (s) }
"""
MASK_FEEDS = {"x": np.stack([X4, X4]), "m": np.array([[True, False, True, True]] * 2)}


def test_a_weight_beyond_the_type_is_refused_by_name() -> None:
    with pytest.raises(RefusedResultError, match=r"'low'.*float16.*1 of 1 values are beyond it, up to 3.40282e\+38"):
        convert(parsed(MASK), to="fp16")
    with pytest.raises(RefusedResultError, match="bfloat16"):
        convert(parsed(MASK), to="bf16")  # the largest float32 rounds to infinity


def test_a_mask_is_clamped_and_said() -> None:
    source = parsed(MASK)
    done = convert(source, to="fp16", weights="clamp")
    assert [(each.weight, each.overflows, each.action) for each in done.lost] == [("low", 1, "clamped")]
    assert numpy_helper.to_array(done.model.proto.graph.initializer[0]) == np.float16(-65504)
    assert_close(source, done, MASK_FEEDS)
    brain = convert(source, to="bf16", weights="clamp").model.proto.graph.initializer[0]
    assert numpy_helper.to_array(brain).astype(np.float64) == -float(ml_dtypes.finfo(ml_dtypes.bfloat16).max)


def test_what_reads_a_weight_beyond_the_type_is_kept() -> None:
    source = parsed(MASK)
    done = convert(source, to="fp16", weights="keep")
    assert ("w", "overflow", "low") in [(each.node, each.reason, each.detail) for each in done.kept]
    assert_close(source, done, MASK_FEEDS)


def test_what_is_made_of_a_weight_beyond_the_type_is_kept_until_it_is_small_again() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[2,4] x, float[2,4] m) => (float[2,4] y) <float one = {1}, float low = {-1e9}>
    {
       [inverse] i = Sub (one, m)
       [big] b = Mul (i, low)
       [again] a = Identity (b)
       [add] s = Add (x, a)
       [soft] p = Softmax (s)
       [last] y = Exp (p)
    }
    """)
    done = convert(source, to="fp16", weights="keep")
    assert [each.node for each in done.kept if each.reason == "overflow"] == ["big", "again", "add", "soft"]
    assert not {"inverse", "last"} & {each.node for each in done.kept}
    feeds = {"x": np.stack([X4, X4]), "m": np.zeros((2, 4), np.float32)}  # all are masked: fp16 would make NaN of it
    assert_close(source, done, feeds)
    assert np.isfinite(run(done.model, feeds)[0]).all()


def test_a_weight_that_vanishes_keeps_its_reader_alone() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] y) <float eps = {1e-12}>
    { [add] s = Add (x, eps) [neg] n = Neg (s) [exp] y = Exp (n) }
    """)
    done = convert(source, to="fp16", weights="keep")
    assert [(each.node, each.reason) for each in done.kept] == [("add", "overflow")]


def test_an_epsilon_that_vanishes_is_found_and_kept_from_zero() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] y) <float eps = {1e-12}>
    { z = Sub (x, x) s = Add (z, eps) r = Sqrt (s) y = Div (z, r) }
    """)
    with pytest.raises(RefusedResultError, match="all of its 1 values that are not 0 become 0"):
        convert(source, to="fp16")
    done = convert(source, to="fp16", weights="clamp")
    assert numpy_helper.to_array(done.model.proto.graph.initializer[0]) == np.float16(6e-8)
    assert_close(source, done, {"x": X4})


def test_some_small_values_that_vanish_are_told_of_and_no_reason_to_refuse() -> None:
    source = parsed("""
    <ir_version: 8, opset_import: ["" : 17]>
    g (float[4] x) => (float[4] y) <float[4] w = {1, 1e-10, 0, 2}>
    { y = Mul (x, w) }
    """)
    (lost,) = convert(source, to="fp16").lost
    assert (lost.weight, lost.elements, lost.vanished, lost.action) == ("w", 4, 1, "rounded")


@pytest.mark.parametrize("to", ["fp16", "bf16"])
def test_large_external_weights_are_rounded_once_and_stay_outside_of_memory(to: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.standard_normal(70_000), [65504, -65519, 1e-9, 0]]).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])], "g",
        [helper.make_tensor_value_info("x", 1, [values.size])], [helper.make_tensor_value_info("y", 1, [values.size])],
        [numpy_helper.from_array(values, "w")],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(proto, str(tmp_path / "m.onnx"), save_as_external_data=True, location="m.data", size_threshold=0)
    done = convert(model.load(tmp_path / "m.onnx"), to=to)
    (tensor,) = done.model.proto.graph.initializer
    assert tensor.data_location == TensorProto.EXTERNAL
    dtype = np.float16 if to == "fp16" else ml_dtypes.bfloat16
    np.testing.assert_array_equal(done.model.array(tensor).view(np.uint16), values.astype(dtype).view(np.uint16))


# ---------------------------------------------------------------- ranges

BIG = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[4] x) => (float[4] y) <float k = {1000}>
{ [e] e = Mul (x, k) [sq] s = Mul (e, e) [root] r = Sqrt (s) [end] y = Tanh (r) }
"""


def test_tensors_with_little_headroom_are_found_and_what_overflows_stays() -> None:
    source = parsed(BIG)
    magnitudes = precision.find_magnitudes(source, [{"x": X4}])
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
    assert precision.find_magnitudes(source, [{"x": X4}])["a"] == pytest.approx(3.5)
    assert_close(source, convert(source, to="fp16"), {"x": X4})


# ---------------------------------------------------------------- refusals, files and the command


def test_words_that_are_none() -> None:
    with pytest.raises(UsageError, match="'int8' is no precision"):
        convert(parsed(MLP), to="int8")
    with pytest.raises(UsageError, match="weights: 'clmap'") as caught:
        convert(parsed(MLP), to="fp16", weights="clmap")  # type: ignore[arg-type]
    assert "clamp" in (caught.value.hint or "")


def test_an_unknown_operator_keeps_its_types_and_a_known_one_of_the_same_name_does_not() -> None:
    done = converted("custom_op", "fp16")
    assert [each.reason for each in done.kept] == ["unknown"]


def test_a_file_is_converted_and_the_recipe_does_the_same(tmp_path: Path) -> None:
    source, half, again, recipe = (tmp_path / name for name in ("m.onnx", "h.onnx", "a.onnx", "r.yaml"))
    onnx.save(parsed(BIG).proto, str(source))
    np.savez(tmp_path / "x.npz", x=X4)
    words = ["precision", str(source), str(half), "--to", "fp16", "--keep-overflowing", "--keep_io_types",
             "--feeds", str(tmp_path / "x.npz"), "--nodes_to_exclude", "en", "--save-recipe", str(recipe)]  # fmt: skip
    assert invoke(words) == 0
    assert 'node:"end"' in recipe.read_text(encoding="utf-8")
    assert invoke(["edit", str(source), str(again), "--recipe", str(recipe), "--no-stamp"]) == 0
    assert half.read_bytes() == again.read_bytes()
    with pytest.raises(NotFoundError, match="no node has a name"):
        precision.convert_file(source, None, to="fp16", keep_named=["nothing"])


@pytest.mark.parametrize(
    ("recipe", "more", "code"),
    [
        ("m.onnx", (), UsageError.exit_code),  # the model itself
        ("h.onnx", (), UsageError.exit_code),  # what is written
        ("x.npz", ("--feeds", "x.npz"), UsageError.exit_code),
        ("missing/r.yaml", (), OutputError.exit_code),
        ("r.yaml", ("--dry-run",), UsageError.exit_code),
        ("missing/r.yaml", ("--search", "--tolerance", "10"), OutputError.exit_code),
        ("r.yaml", ("--search", "--tolerance", "10", "--save-set", "missing/s.txt"), OutputError.exit_code),
    ],
)
def test_a_recipe_takes_no_place_that_is_taken(
    recipe: str, more: tuple[str, ...], code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is written or nothing, and no file that is read is touched."""
    monkeypatch.chdir(tmp_path)
    onnx.save(parsed(MLP).proto, "m.onnx")
    np.savez("x.npz", x=X4)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    target = [] if "--dry-run" in more else ["h.onnx"]
    assert invoke(["precision", "m.onnx", *target, "--to", "fp16", "--save-recipe", recipe, *more]) == code
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def invoke(words: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    try:
        app(words, standalone_mode=False)
    except SystemExit as end:
        return int(end.code or 0)
    except BenchError as error:
        return error.exit_code
    return 0
