"""The operation rewrite: the rules that come along, on models written for them and on real ones, run before and after."""

# ruff: noqa: E501  (graphs and patterns read best on one line)

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from engines import run_ort
from onnx import TensorProto, helper, numpy_helper

from onnxbench import patterns, surgery
from onnxbench.draft import Draft
from onnxbench.errors import BenchError, NotFoundError, RefusedResultError, SpecError
from onnxbench.feeding import FeedOptions
from onnxbench.model import Model, from_proto, load
from onnxbench.modeltext import parse
from onnxbench.operations import Rewrite
from onnxbench.patterns import Facts, find_matches, shipped_rules
from onnxbench.validity import validate

RULES = shipped_rules()
SQUARED = ("pow", "mul")


def opsets(*pairs: tuple[str, int]) -> str:
    return ", ".join(f'"{domain}" : {version}' for domain, version in pairs)


def model_of(
    body: str, opset: int, *, signature: str = "g (float[2, 5, 8] x) => (float[2, 5, 8] y)", constants: str = ""
) -> Model:
    return parse(f"<ir_version: 10, opset_import: [{opsets(('', opset))}]> {signature} <{constants}> {{ {body} }}")


def arrays(model: Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.frombuffer(data, dtype=kind).reshape(shape)
        for name, (kind, shape, data) in run_ort(model.proto, feeds).items()
    }


def feeds_of(model: Model, seed: int = 0, scale: float = 2.0) -> dict[str, np.ndarray]:
    gen = np.random.RandomState(seed)
    found = {}
    for info in model.proto.graph.input:
        shape = [dim.dim_value or 3 for dim in info.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        found[info.name] = (gen.standard_normal(shape) * scale).astype(dtype)
    return found


def check(
    model: Model, rule: str, *, ops: list[str], atol: float = 2e-6, feeds: dict[str, np.ndarray] | None = None
) -> Model:
    """Applies a rule, compares the operators that there are then, and runs both models."""
    done = surgery.edit(model, [Rewrite(rule=rule)], stamp=False)
    assert [node.op_type for node in done.model.proto.graph.node] == ops
    for seed in range(3):
        values = feeds or feeds_of(model, seed)
        before, after = arrays(model, values), arrays(done.model, values)
        for name, array in before.items():
            assert after[name].dtype == array.dtype
            np.testing.assert_allclose(after[name].astype(np.float64), array.astype(np.float64), rtol=2e-5, atol=atol)
    return done.model


def refused(model: Model, rule: str) -> str:
    """Returns why a rule matches nowhere, with the nearest misses."""
    with pytest.raises(NotFoundError) as caught:
        surgery.edit(model, [Rewrite(rule=rule)])
    return str(caught.value)


GELU_ERF = {
    "halved last": "d = Div (x, r) e = Erf (d) a = Add (e, one) m = Mul (x, a) y = Mul (m, half)",
    "halved first": "d = Mul (q, x) e = Erf (d) a = Add (one, e) m = Mul (half, x) y = Mul (m, a)",
    "halved within": "d = Div (x, r) e = Erf (d) a = Add (e, one) m = Mul (half, a) y = Mul (m, x)",
}
GELU_CONSTANTS = "float r = {1.4142135}, float q = {0.70710677}, float one = {1}, float half = {0.5}"


@pytest.mark.parametrize("body", GELU_ERF.values(), ids=GELU_ERF)
@pytest.mark.parametrize(("rule", "opset"), [("gelu_erf", 20), ("gelu_erf_ms", 13)])
def test_gelu_erf(body, rule, opset):
    check(model_of(body, opset, constants=GELU_CONSTANTS), rule, ops=["Gelu"])


GELU_TANH = {
    "power": "p = Pow (x, three) t = Mul (p, small) i = Add (x, t) s = Mul (i, root) h = Tanh (s) a = Add (h, one) m = Mul (x, a) y = Mul (m, half)",
    "nested": "o = Mul (small, x) w = Mul (x, o) t = Mul (x, w) i = Add (x, t) s = Mul (root, i) h = Tanh (s) a = Add (one, h) m = Mul (half, a) y = Mul (x, m)",
    "square": "q = Mul (x, x) p = Mul (x, q) t = Mul (small, p) i = Add (t, x) s = Mul (i, root) h = Tanh (s) a = Add (h, one) m = Mul (x, half) y = Mul (m, a)",
}
TANH_CONSTANTS = (
    "float three = {3}, float small = {0.044715}, float root = {0.7978846}, float one = {1}, float half = {0.5}"
)


@pytest.mark.parametrize("body", GELU_TANH.values(), ids=GELU_TANH)
@pytest.mark.parametrize(("rule", "opset", "op"), [("gelu_tanh", 20, "Gelu"), ("gelu_tanh_ms", 13, "FastGelu")])
def test_gelu_tanh(body, rule, opset, op):
    check(model_of(body, opset, constants=TANH_CONSTANTS), rule, ops=[op])


def test_gelu_is_not_what_has_another_constant():
    model = model_of(GELU_ERF["halved last"], 20, constants=GELU_CONSTANTS.replace("1.4142135", "1.5"))
    assert "'root' must be 1.414214, and 'r' is 1.5" in refused(model, "gelu_erf")


def norm(
    kind: str, *, opset: int, square: str = "pow", bias: bool = True, eps: str = "1e-5", axes: str = "-1"
) -> Model:
    mean = (
        (lambda name, read: f"{name} = ReduceMean (x0, axes)".replace("x0", read))
        if opset >= 18
        else (lambda name, read: f"{name} = ReduceMean <axes = [{axes}]> ({read})")
    )
    constants = f"float two = {{2}}, float eps = {{{eps}}}, float one = {{1}}, int64[1] axes = {{{axes}}}, "
    constants += (
        "float[8] gamma = {1, 2, 3, 4, 0.5, 0.25, -1, 1}, float[8] beta = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}"
    )
    if kind == "layer":
        squared = "s = Pow (d, two)" if square == "pow" else "s = Mul (d, d)"
        body = (
            f"{mean('m', 'x')} d = Sub (x, m) {squared} {mean('v', 's')} e = Add (v, eps) r = Sqrt (e) n = Div (d, r) "
        )
    else:
        squared = "s = Pow (x, two)" if square == "pow" else "s = Mul (x, x)"
        body = f"{squared} {mean('v', 's')} e = Add (v, eps) r = Sqrt (e) i = Div (one, r) n = Mul (x, i) "
    body += "g = Mul (n, gamma) y = Add (g, beta)" if bias else "y = Mul (gamma, n)"
    return model_of(body, opset, constants=constants)


@pytest.mark.parametrize("square", SQUARED)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("opset", [17, 21])
def test_layer_norm(square, bias, opset):
    check(norm("layer", opset=opset, square=square, bias=bias), "layer_norm", ops=["LayerNormalization"])


@pytest.mark.parametrize("square", SQUARED)
def test_rms_norm(square):
    check(norm("rms", opset=23, square=square, bias=False), "rms_norm", ops=["RMSNormalization"])


def test_a_positive_axis_counts_where_the_rank_is_known():
    check(norm("layer", opset=17, axes="2"), "layer_norm", ops=["LayerNormalization"])
    assert "value(axes) == [-1]" in refused(norm("layer", opset=17, axes="1"), "layer_norm")


def test_layer_norm_is_refused_where_gamma_would_broadcast():
    model = norm("layer", opset=17)
    for info in (*model.proto.graph.input, *model.proto.graph.output):
        info.type.tensor_type.shape.dim[2].dim_param = "n"
    model.proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value = 8
    said = refused(model, "layer_norm")
    assert "dim(gamma, 0) == dim(x, -1)" in said
    assert "'n' is not a number" in said


def test_layer_norm_is_refused_in_float64():
    model = norm("layer", opset=17)
    for info in (*model.proto.graph.input, *model.proto.graph.output):
        info.type.tensor_type.elem_type = TensorProto.DOUBLE
    for tensor in model.proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))
    assert "dtype(x)" in refused(model, "layer_norm")


SILU = "s = Sigmoid (x) y = Mul (x, s)"


@pytest.mark.parametrize(
    ("rule", "opset", "op"), [("silu", 11, "Silu"), ("silu_swish", 24, "Swish"), ("silu_ms", 11, "QuickGelu")]
)
def test_silu(rule, opset, op):
    model = model_of(SILU, opset)
    done = check(model, rule, ops=[op])
    if rule == "silu":
        feeds = feeds_of(model)
        assert run_ort(model.proto, feeds) == run_ort(done.proto, feeds)


def test_silu_with_a_factor_of_one_which_may_be_a_vector():
    check(
        model_of("o = Mul (x, one) s = Sigmoid (o) y = Mul (s, x)", 11, constants="float[1] one = {1}"),
        "silu",
        ops=["Silu"],
    )
    two = model_of("o = Mul (x, one) s = Sigmoid (o) y = Mul (s, x)", 11, constants="float[1] one = {2}")
    assert "'one' must be 1" in refused(two, "silu")


HARD_SWISH = {
    "product first": "a = Add (x, three) c = Clip (a, zero, six) p = Mul (c, x) y = Div (p, six)",
    "division first": "a = Add (three, x) c = Clip (a, zero, six) p = Div (c, six) y = Mul (p, x)",
}


@pytest.mark.parametrize("body", HARD_SWISH.values(), ids=HARD_SWISH)
@pytest.mark.parametrize(
    ("rule", "opset", "ops"), [("hard_swish", 14, ["HardSwish"]), ("hard_swish_by_sigmoid", 11, ["HardSigmoid", "Mul"])]
)
def test_hard_swish(body, rule, opset, ops):
    check(model_of(body, opset, constants="float three = {3}, float zero = {0}, float six = {6}"), rule, ops=ops)


ATTENTION = {
    "divided": "k1 = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, k1) c1 = Div (s, c) {mask} w = Softmax <axis = -1> ({of}) y = MatMul (w, v)",
    "multiplied": "k1 = Transpose <perm = [0, 1, 3, 2]> (k) s = MatMul (q, k1) c1 = Mul (s, c) {mask} w = Softmax <axis = 3> ({of}) y = MatMul (w, v)",
    "both": "k1 = Transpose <perm = [0, 1, 3, 2]> (k) q1 = Mul (q, c) k2 = Mul (k1, c) c1 = MatMul (q1, k2) {mask} w = Softmax ({of}) y = MatMul (w, v)",
}
ATTENTION_SIGNATURE = (
    "g (float[2, 3, 5, 8] q, float[2, 3, 7, 8] k, float[2, 3, 7, 8] v, float[{}] m) => (float[2, 3, 5, 8] y)"
)


@pytest.mark.parametrize("body", ATTENTION.values(), ids=ATTENTION)
@pytest.mark.parametrize("mask", ["", "5, 7", "2, 1, 5, 7", "3, 5, 7"])
def test_attention(body, mask):
    added = "a = Add (c1, m)" if mask else "unused = Neg (m)"
    text = body.format(mask=added if mask else "", of="a" if mask else "c1")
    constant = "float c = {2.5}" if "Div" in body else "float c = {0.4}"
    signature = ATTENTION_SIGNATURE.format(mask or "1")
    check(model_of(text, 23, signature=signature, constants=constant), "attention", ops=["Attention"], atol=1e-5)


def test_attention_is_refused_where_the_mask_would_enlarge_the_scores():
    text = ATTENTION["divided"].format(mask="a = Add (c1, m)", of="a")
    signature = (
        ATTENTION_SIGNATURE.format("4, 3, 5, 7")
        .replace("[2, 3", "[1, 3")
        .replace("(float[1, 3, 5, 8] y)", "(float[4, 3, 5, 8] y)")
    )
    said = refused(model_of(text, 23, signature=signature, constants="float c = {2.5}"), "attention")
    assert "dim(mask, 0) == dim(q, 0)" in said


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("rank", [1, 2])
def test_conv_bn(bias, group, rank):
    gen = np.random.RandomState(rank)
    kernel = [3] * rank
    weights = {
        "w": gen.standard_normal([6, 4 // group, *kernel]), "scale": gen.uniform(0.5, 2, 6), "shift": gen.standard_normal(6),
        "mean": gen.standard_normal(6), "var": gen.uniform(0.1, 3, 6), **({"b": gen.standard_normal(6)} if bias else {}),
    }  # fmt: skip
    nodes = [
        helper.make_node(
            "Conv", ["x", "w", *(["b"] if bias else [])], ["c"], name="conv", group=group, pads=[1] * 2 * rank
        ),
        helper.make_node(
            "BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["y"], name="bn", epsilon=1e-3, momentum=0.1
        ),
    ]
    shape = [2, 4, *([9] * rank)]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 6, *([9] * rank)])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )  # fmt: skip
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)], ir_version=10))
    done = check(model, "conv_bn", ops=["Conv"], atol=2e-5)
    assert sorted(tensor.name for tensor in done.proto.graph.initializer) == ["y_b2", "y_w2"]


def test_conv_bn_is_refused_in_training_mode_and_where_others_read_the_conv():
    constants = "float[1,1,1] w = {2}, float[1] one = {1}, float[1] zero = {0}"
    signature = "g (float[1, 1, 4] x) => (float[1, 1, 4] y, float[1, 1, 4] z)"
    body = "c = Conv (x, w) y, mean, var = BatchNormalization <training_mode = 1> (c, one, zero, zero, one) z = Neg (x)"
    assert "training_mode" in refused(model_of(body, 15, signature=signature, constants=constants), "conv_bn")
    body = "c = Conv (x, w) y = BatchNormalization (c, one, zero, zero, one) z = Neg (c)"
    assert "also read by" in refused(model_of(body, 15, signature=signature, constants=constants), "conv_bn")


SHAPES = {
    "flattened": (
        "i = Constant <value = int64 {0}> () z = Constant <value = int64[1] {0}> () n = Gather (s, i) u = Unsqueeze (n, z) c = Concat <axis = 0> (u, rest) y = Reshape (x, c)",
        "int64[1] rest = {-1}",
        [0, -1],
    ),
    "split": (
        "i = Constant <value = int64[1] {0}> () j = Constant <value = int64[1] {1}> () a = Gather (s, i) b = Gather (s, j) c = Concat <axis = 0> (a, b, h, d) y = Reshape (x, c)",
        "int64[1] h = {2}, int64[1] d = {4}",
        [0, 0, 2, 4],
    ),
    "sliced": (
        "b = Constant <value = int64[1] {0}> () e = Constant <value = int64[1] {2}> () a = Slice (s, b, e) c = Concat <axis = 0> (a, h) y = Reshape (x, c)",
        "int64[1] h = {8}",
        [0, 0, 8],
    ),
}


@pytest.mark.parametrize(("body", "constants", "target"), SHAPES.values(), ids=SHAPES)
def test_shape_reshape(body, constants, target):
    signature = f"g (float[n, m, 8] x) => (float[{', '.join('?' for _ in target)}] y)"
    model = model_of(f"s = Shape (x) {body}", 17, signature=signature, constants=constants)
    done = check(model, "shape_reshape", ops=["Reshape"])
    (tensor,) = done.proto.graph.initializer
    assert numpy_helper.to_array(tensor).tolist() == target


def test_shape_reshape_is_refused_with_two_unknown_sizes():
    body = "i = Constant <value = int64[1] {1}> () j = Constant <value = int64[1] {0}> () a = Gather (s, i) b = Gather (s, j) c = Concat <axis = 0> (a, b, h) y = Reshape (x, c)"
    signature = "g (float[n, m, 8] x) => (float[?, ?, 8] y)"
    model = model_of(f"s = Shape (x) {body}", 17, signature=signature, constants="int64[1] h = {8}")
    with pytest.raises(NotFoundError):
        surgery.edit(model, [Rewrite(rule="shape_reshape")])
    draft = Draft.of(model)
    (ref,) = draft.nodes("y")
    explanation = patterns.explain(RULES["shape_reshape"], Facts(draft), ref)
    assert "Reshape can infer one" in explanation.sentences()[1]


def test_resize_to_plugin():
    """The replacement computes the sizes that Resize makes; the plugin itself is not there to run."""
    signature = "g (float[1, 3, h, w] x, float[4] scales) => (float[1, 3, ?, ?] y)"
    body = 'y = Resize <mode = "cubic", coordinate_transformation_mode = "{}", cubic_coeff_a = {}> (x, , scales)'
    model = model_of(body.format("pytorch_half_pixel", -0.75), 17, signature=signature)
    done = surgery.edit(model, [Rewrite(rule="resize_to_plugin")], stamp=False).model
    node = done.proto.graph.node[-1]
    assert (node.domain, node.op_type, node.attribute[0].name, node.attribute[0].i) == (
        "Test",
        "DynamicTRTResize",
        "align_corners",
        0,
    )
    sizes = parse(
        '<ir_version: 10, opset_import: ["" : 17]> g (float[1, 3, h, w] x, float[4] scales) => (float[?, ?, ?, ?] t) { t = Identity (x) }'
    ).proto
    del sizes.graph.node[:]
    sizes.graph.node.extend(done.proto.graph.node[:-1])
    sizes.graph.node[-1].output[0] = "t"
    feeds = {"x": np.zeros((1, 3, 5, 7), np.float32), "scales": np.array([1, 1, 2.5, 3], np.float32)}
    assert arrays(from_proto(sizes), feeds)["t"].shape == arrays(model, feeds)["y"].shape == (1, 3, 12, 21)
    assert "coordinates in" in refused(
        model_of(body.format("asymmetric", -0.75), 17, signature=signature), "resize_to_plugin"
    )
    assert "coefficient == -0.75" in refused(
        model_of(body.format("half_pixel", -0.5), 17, signature=signature), "resize_to_plugin"
    )
    constant = model_of(
        body.format("half_pixel", -0.75),
        17,
        signature=signature.replace(", float[4] scales", ""),
        constants="float[4] scales = {1, 1, 2, 2}",
    )
    assert "not is_const(scales)" in refused(constant, "resize_to_plugin")


def test_every_rule_says_what_it_is_for():
    assert len(RULES) >= 16
    for name, rule in RULES.items():
        assert rule.name == name
        assert rule.summary.endswith("."), name
        assert len(rule.doc.strip()) > 30, name


# -- real models -------------------------------------------------------------------------------------------------

REAL = [
    ("minilm_int8w", "gelu_erf_ms", 6), ("minilm_int8w", "attention_ms", 6), ("minilm_int8w", "shape_reshape", 24),
    ("minilm_int8w_ext", "gelu_erf_ms", 6), ("tashkeel_seq2seq", "silu", 9), ("tashkeel_seq2seq", "shape_reshape", 3),
    ("ppocr_v4_rec", "hard_swish_by_sigmoid", 28), ("ppocr_v4_rec", "conv_bn", 6), ("ppocr_v4_rec", "silu", 7),
    ("ppocr_v4_det", "hard_swish_by_sigmoid", 24), ("ppocr_v4_det", "conv_bn", 2), ("ppocr_v2_cls", "conv_bn", 35),
    ("ddddocr_det_yolox", "silu", 74), ("ddddocr_det_yolox", "silu_ms", 74), ("eeg_spindle_unet", "gelu_erf_ms", 24),
    ("magika", "gelu_tanh_ms", 2), ("magika", "shape_reshape", 7),
]  # fmt: skip
SHAPE_OF = {"ppocr_v4_rec": ["x:[1,3,48,320]"], "ppocr_v4_det": ["x:[1,3,64,64]"]}


@pytest.mark.corpus
@pytest.mark.parametrize(("name", "rule", "count"), REAL, ids=[f"{name}-{rule}" for name, rule, _ in REAL])
def test_real_models(corpus, name, rule, count):
    path, _ = corpus(name)
    model = load(path)
    done = surgery.edit(model, [Rewrite(rule=rule)], verify=FeedOptions(shapes=SHAPE_OF.get(name, ())))
    (step,) = done.steps
    assert step.matched == count
    assert step.passed
    assert step.drift is not None
    if RULES[rule].effect == "nothing":
        assert step.drift.bitwise_equal
    left = find_matches(RULES[rule], Facts(Draft.of(done.model)))
    assert left == []


@pytest.mark.corpus
def test_layer_norms_of_a_real_model(corpus):
    """The model imports opset 16, whose operators are all in 17 as they were."""
    path, _ = corpus("tashkeel_seq2seq")
    model = load(path)
    with pytest.raises(RefusedResultError, match="imports 16"):
        surgery.edit(model, [Rewrite(rule="layer_norm")])
    next(opset for opset in model.proto.opset_import if opset.domain == "").version = 17
    done = surgery.edit(model, [Rewrite(rule="layer_norm")], verify=True)
    assert done.steps[0].matched == 16
    assert done.passed
    assert sum(node.op_type == "LayerNormalization" for node in done.model.proto.graph.node) == 16


@pytest.mark.corpus
def test_only_within_a_module(corpus):
    path, _ = corpus("eeg_spindle_unet")
    done = surgery.edit(load(path), [Rewrite(rule="gelu_erf_ms", at="scope:model.model.conv.conv_net.2")])
    assert done.steps[0].matched == 1
    (new,) = [node for node in done.model.proto.graph.node if node.op_type == "Gelu"]
    assert new.name == "/model/model/conv/conv_net/conv_net.2/nonlinear/Gelu"


@pytest.mark.corpus
def test_what_a_rewrite_does_not_touch_stays(corpus):
    path, _ = corpus("minilm_int8w")
    model = load(path)
    done = surgery.edit(model, [Rewrite(rule="gelu_erf_ms", max=1)], stamp=False).model.proto
    before = {node.output[0]: node.SerializeToString(deterministic=True) for node in model.proto.graph.node}
    after = {node.output[0]: node.SerializeToString(deterministic=True) for node in done.graph.node}
    assert len(before) - len(after) == 4
    assert [name for name, data in after.items() if before.get(name) != data] == ["gelu"]
    kept = {tensor.name: tensor.SerializeToString(deterministic=True) for tensor in model.proto.graph.initializer}
    assert all(kept[t.name] == t.SerializeToString(deterministic=True) for t in done.graph.initializer)
    assert len(done.graph.initializer) == len(kept)  # the other five Gelus read the constants
    stated = {info.name: info.SerializeToString(deterministic=True) for info in model.proto.graph.value_info}
    still = {info.name: info.SerializeToString(deterministic=True) for info in done.graph.value_info}
    assert len(stated) - len(still) == 4
    assert all(stated[name] == data for name, data in still.items())
    rest = [onnx.ModelProto.FromString(proto.SerializeToString()) for proto in (model.proto, done)]
    for proto in rest:
        proto.ClearField("opset_import")
        for field in ("node", "initializer", "value_info"):
            proto.graph.ClearField(field)
    assert rest[0] == rest[1]


def test_a_replacement_of_another_type_is_refused_where_the_type_is_stated():
    model = model_of("t = Neg (x) y = Relu (t)", 17)
    step = Rewrite(pattern="p (x) => (y) { y = Relu (x) }", replacement="r (x) => (y) { y = Cast <to = 10> (x) }")
    with pytest.raises(BenchError):
        surgery.edit(model, [step])


def test_matches_in_bodies_of_a_real_model(corpus):
    path, _ = corpus("silero_vad")
    rule = patterns.rules_of_text(
        '<domain: "pattern"> relu (x, w, b) => (y) { c = Conv <_rest = @rest> (x, w, b) y = Relu (c) } '
        '<domain: "replacement", opset_import: ["my.ops": 1]> relu (x, w, b) => (y) { y = my.ops.ConvRelu <_rest = @rest> (x, w, b) }',
        "rule.onnxtxt", "rule",
    )["relu"]  # fmt: skip
    draft = Draft.of(load(path))
    count = patterns.rewrite(draft, rule)
    assert count > 0
    scopes = [scope for scope in draft.index.scopes if any(node.op_type == "ConvRelu" for node in scope.nodes)]
    assert scopes
    assert all(scope.path for scope in scopes)


def test_a_hundred_thousand_nodes_are_scanned_in_seconds():
    nodes, x = [], "x"
    for number in range(10_000):
        b = f"t{number}"
        nodes += [
            helper.make_node("Div", [x, "root"], [b + "d"]), helper.make_node("Erf", [b + "d"], [b + "e"]),
            helper.make_node("Add", [b + "e", "one"], [b + "a"]), helper.make_node("Mul", [x, b + "a"], [b + "m"]),
            helper.make_node("Mul", [b + "m", "half"], [b + "g"]), helper.make_node("Add", [b + "g", "one"], [b + "h"]),
            helper.make_node("Mul", [b + "h", "half"], [b + "i"]), helper.make_node("Add", [b + "i", x], [b + "y"]),
            helper.make_node("Sigmoid", [b + "y"], [b + "s"]), helper.make_node("Mul", [b + "y", b + "s"], [b + "z"]),
        ]  # fmt: skip
        x = b + "z"
    values = (("root", 2**0.5), ("one", 1), ("half", 0.5))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, [4])],
        [numpy_helper.from_array(np.array(v, np.float32), n) for n, v in values],
    )  # fmt: skip
    draft = Draft.of(from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])))
    facts = Facts(draft)
    started = time.process_time()
    assert len(find_matches(RULES["gelu_erf"], facts)) == 10_000
    scan = time.process_time() - started
    started = time.process_time()
    assert find_matches(RULES["layer_norm"], facts) == []
    assert time.process_time() - started < 1
    assert patterns.rewrite(draft, RULES["gelu_erf"]) == 10_000
    assert scan < 8  # about 1.2 s on a quiet machine; a quadratic scan takes minutes


# -- rules of files, and onnxscript's ----------------------------------------------------------------------------

YAML = """
doc: A rule of a team.
pattern: |
  fuse (x, w) => (y) {
    r = Relu (x)
    y = Add (r, w)
  }
replacement: |
  <opset_import: ["my.ops": 1]>
  fuse (x, w) => (y) { y = my.ops.ReluAdd (x, w) }
where: ["rank(x) == 3"]
"""
RELU_ADD = "r = Relu (x) y = Add (w, r)"


def test_rules_of_a_file(tmp_path):
    (tmp_path / "fuse.yaml").write_text(YAML)
    model = model_of(RELU_ADD, 17, constants="float w = {1}")
    draft = Draft.of(model, folder=tmp_path)
    for reference in ("fuse.yaml", "fuse.yaml:fuse", str(tmp_path / "fuse.yaml")):
        assert [ref.path for ref in Rewrite(rule=reference).find(draft)] == ["Add#1"]
    with pytest.raises(NotFoundError, match="no rule 'fuze'"):
        Rewrite(rule="fuse.yaml:fuze").find(draft)
    with pytest.raises(NotFoundError, match="no file"):
        Rewrite(rule="nowhere.yaml").find(draft)
    with pytest.raises(NotFoundError, match="there is no rule 'gelu_erv'"):
        Rewrite(rule="gelu_erv").find(draft)


def test_a_mistake_in_a_rule_file_is_told_with_its_line(tmp_path):
    (tmp_path / "bad.yaml").write_text(YAML.replace("r = Relu (x)", "r = Relu (x"))
    with pytest.raises(SpecError, match=r"bad\.yaml:6"):
        patterns.find_rules("bad.yaml", tmp_path)
    (tmp_path / "bad.yaml").write_text(YAML.replace("where:", "wheer:"))
    with pytest.raises(SpecError, match="'wheer' is no key"):
        patterns.find_rules("bad.yaml", tmp_path)
    rule = """pattern: |
  p (x) => (y) { y = LeakyRelu <alpha = @alpha> (x) }
replacement: |
  p (x) => (y) { y = Elu <alpha = @alfa> (x) }
where:
  - rank(x) == 2
"""
    (tmp_path / "bad.yaml").write_text(rule)
    with pytest.raises(SpecError, match=r"bad\.yaml:3:14: .*@alfa, which the pattern does not have"):
        patterns.find_rules("bad.yaml", tmp_path)
    (tmp_path / "bad.yaml").write_text(rule.replace("alfa", "alpha").replace("rank(x)", "rnk(x)"))
    with pytest.raises(SpecError, match=r"bad\.yaml:6:5: 'rnk\(x\) == 2': there is no function 'rnk'"):
        patterns.find_rules("bad.yaml", tmp_path)
    (tmp_path / "bad.yaml").write_text(rule.replace("alfa", "alpha").replace("rank(x)", "rank(z)"))
    with pytest.raises(SpecError, match=r"bad\.yaml:6:5: .*reads 'z'"):
        patterns.find_rules("bad.yaml", tmp_path)


@pytest.mark.parametrize(
    ("pattern", "replacement", "said", "hint"),
    [
        ("y = Rellu (x)", "y = Abs (x)", "the pattern has 'Rellu'", "Relu"),
        ("y = Relu (x)", "y = Sigmoyd (x)", "the replacement has 'Sigmoyd'", "Sigmoid"),
        ("y = HardSigmoid <alpa = 0.2> (x)", "y = Abs (x)", "has an attribute 'alpa'", "alpha"),
        ("y = HardSigmoid <alpa = @a> (x)", "y = Abs (x)", "has an attribute 'alpa'", "alpha"),
        ('y = "Elu|LeakyRelu" <beta = 0.2> (x)', "y = Abs (x)", "has an attribute 'beta'", "alpha"),
    ],
)
def test_what_no_version_of_onnx_has_is_refused_at_once(pattern, replacement, said, hint):
    with pytest.raises(SpecError, match=said) as error:
        Rewrite(pattern=f"p (x) => (y) {{ {pattern} }}", replacement=f"p (x) => (y) {{ {replacement} }}").rules(None)
    assert hint in error.value.hint


def test_operators_that_onnx_does_not_know_are_none_of_its_business():
    own = 'p (x) => (y) { a = my.Op <what = 1> (x) b = "*" <free = @f> (a) y = "*".Gelu <approximate = "tanh"> (b) }'
    Rewrite(pattern=own, replacement="p (x) => (y) { y = my.Other <f = @f> (x) }").rules(None)
    Rewrite(
        pattern="p (x) => (y) { y = Upsample <width_scale = 2.0> (x) }",
        replacement=own.partition("{")[0] + "{ y = Abs (x) }",
    ).rules(None)


def test_inline_rules_of_a_recipe():
    model = model_of(RELU_ADD, 17, constants="float w = {1}")
    step = Rewrite(
        pattern="p (x, w) => (y) { r = Relu (x) y = Add (r, w) }",
        replacement="r (x, w) => (y) { s = Add (x, w) y = Relu (s) }",
        where="rank(x) == 3",
    )
    done = surgery.edit(model, [step])
    assert [node.op_type for node in done.model.proto.graph.node] == ["Add", "Relu"]
    for wrong in (Rewrite(), Rewrite(rule="silu", pattern="x"), Rewrite(pattern="p (x) => (y) { y = Relu (x) }")):
        with pytest.raises(BenchError):
            surgery.edit(model, [wrong])


SCRIPT = """
from onnxscript.rewriter import pattern

def target(op, x, w):
    return op.Add(op.Relu(x), w)

def replacement(op, x, w):
    return op.Relu(op.Add(x, op.Constant(value_float=2.0)))

def is_float(context, x, w, **_):
    return x.dtype is not None

rule = pattern.RewriteRule(target, replacement, is_float, name="swap")
both = pattern.RewriteRuleSet([rule], commute=True)
broken = 3
"""


def test_a_rule_of_onnxscript_keeps_what_it_does_not_touch(tmp_path):
    (tmp_path / "swap.py").write_text(SCRIPT)
    text = f"""<ir_version: 10, opset_import: [{opsets(("", 17), ("unused", 1))}]>
    g (float[4] x, bool c) => (float[4] y, float[4] z) @{{quantization_annotation: {{"SCALE": "w"}}}}
    <float[4] w = {{1, 2, 3, 4}}, sparse_tensor(float[4]) s = {{float[1] {{2}}, int64[1] {{3}}}}> {{
      r = Relu (x) a = Add (w, r) y = Identity (a) dead = Neg (x)
      z = If (c) <then_branch = t () => (float[4] p) {{ q = Relu (x) p = Add (w, q) }}, else_branch = e () => (float[4] p2) {{ p2 = Add (x, s) }}> }}"""
    text = text.replace('@{quantization_annotation: {"SCALE": "w"}}', "")
    model = parse(text)
    draft = Draft.of(model, folder=tmp_path)
    step = Rewrite(rule="swap.py:both")
    assert [ref.path for ref in step.find(draft)] == ["Add#1", "If#4/then/Add#1"]
    step.apply(draft)
    proto = draft.model.proto
    assert [node.op_type for node in proto.graph.node] == ["Constant", "Add", "Relu", "Identity", "Neg", "If"]
    assert [node.op_type for node in proto.graph.node[-1].attribute[0].g.node] == ["Constant", "Add", "Relu"]
    assert proto.graph.sparse_initializer == model.proto.graph.sparse_initializer
    assert list(proto.opset_import) == list(model.proto.opset_import)
    assert proto.graph.node[2].output[0] == "a"


def test_rules_that_come_with_onnxscript_and_make_new_weights(tmp_path):
    (tmp_path / "bn.py").write_text(
        "from onnxscript.rewriter.rules.common import fuse_batchnorm_into_conv_rule as rule"
    )
    constants = "float[2, 1, 3] w = {1, 2, 3, 4, 5, 6}, float[2] b = {1, 2}, float[2] scale = {2, 3}, float[2] shift = {1, 0}, float[2] mean = {0.5, 1}, float[2] var = {1, 4}"
    signature = "g (float[1, 1, 9] x) => (float[1, 2, 7] y)"
    body = "c = Conv (x, w, b) y = BatchNormalization (c, scale, shift, mean, var)"
    model = model_of(body, 17, signature=signature, constants=constants)
    draft = Draft.of(model, folder=tmp_path)
    Rewrite(rule="bn.py").apply(draft)
    assert [node.op_type for node in draft.model.proto.graph.node] == ["Conv"]
    assert len(draft.model.proto.graph.initializer) == 2
    validate(draft.model.proto)
    values = feeds_of(model)
    np.testing.assert_allclose(arrays(draft.model, values)["y"], arrays(model, values)["y"], rtol=1e-5, atol=1e-5)


def test_scripts_that_are_no_rules_are_refused(tmp_path):
    (tmp_path / "swap.py").write_text(SCRIPT)
    with pytest.raises(SpecError, match="no rule of onnxscript"):
        patterns.load_script("swap.py:broken", tmp_path)
    with pytest.raises(NotFoundError, match="has no 'rul'"):
        patterns.load_script("swap.py:rul", tmp_path)
    (tmp_path / "swap.py").write_text("1 / 0")
    with pytest.raises(SpecError, match="ZeroDivisionError"):
        patterns.load_script("swap.py", tmp_path)


def test_the_page_on_rewriting_is_true(tmp_path):
    """Its rule is a rule that works, and its explanation is what is printed."""
    page = (Path(__file__).parent.parent / "docs" / "rewriting.md").read_text(encoding="utf-8")
    (tmp_path / "linear.yaml").write_text(re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)[0])
    (rule,) = patterns.find_rules("linear.yaml", tmp_path)
    signature = "g (float[2, 3] x) => (float[2, 4] y)"
    constants = "float[3, 4] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float[4] b = {1, 2, 3, 4}, float[1, 4] row = {1, 2, 3, 4}"
    for body, found in (
        ("m = MatMul (x, w) y = Add (b, m)", 1),
        ("y = MatMul (x, w)", 1),
        ("m = MatMul (x, w) y = Add (m, row)", 1),
    ):
        model = model_of(body, 17, signature=signature, constants=constants)
        draft = Draft.of(model)
        assert patterns.rewrite(draft, rule) == found
        values = feeds_of(model)
        np.testing.assert_allclose(arrays(draft.model, values)["y"], arrays(model, values)["y"], rtol=1e-5)
    text = "[node_Div_108] d = Div (x, val_111) [e] e = Erf (d) [a] a = Add (e, one) [m] m = Mul (x, a) [node_gelu] y = Mul (m, half)"
    draft = Draft.of(model_of(text, 20, constants="float val_111 = {1.5}, float one = {1}, float half = {0.5}"))
    explanation = patterns.explain(RULES["gelu_erf"], Facts(draft), draft.nodes("node_gelu")[0])
    assert "\n".join(explanation.sentences()) in page


# -- the command -------------------------------------------------------------------------------------------------


def bench(*arguments: Any, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "onnxbench", "rewrite", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


def test_the_command_guards_and_goes_back_as_edit_does(tmp_path):
    onnx.save(model_of(GELU_ERF["halved last"], 13, constants=GELU_CONSTANTS).proto, tmp_path / "m.onnx")
    refused = bench("m.onnx", "o.onnx", "--rule", "gelu_erf_ms", "--expect", "2", cwd=tmp_path)
    assert refused.returncode == 14
    assert "it matches 1 node, and expects 2" in refused.stderr
    assert not (tmp_path / "o.onnx").exists()
    none = bench("m.onnx", "o.onnx", "--rule", "silu", "--expect", "optional", cwd=tmp_path)
    assert none.returncode == 0, none.stderr
    assert (tmp_path / "o.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    done = bench(
        "m.onnx", "o.onnx", "--rule", "gelu_erf_ms", "--expect", "1", "--save-undo", "back.undo",
        "--save-recipe", "r.yaml", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    surgery.undo_file(tmp_path / "o.onnx", tmp_path / "again.onnx", tmp_path / "back.undo")
    assert (tmp_path / "again.onnx").read_bytes() == (tmp_path / "m.onnx").read_bytes()
    surgery.edit_file(tmp_path / "m.onnx", tmp_path / "by_recipe.onnx", tmp_path / "r.yaml")
    assert (tmp_path / "by_recipe.onnx").read_bytes() == (tmp_path / "o.onnx").read_bytes()
    idle = bench("m.onnx", "--rule", "silu", "--dry-run", "--save-undo", "b.undo", cwd=tmp_path)
    assert idle.returncode == 2
    assert "--save-undo writes b.undo, and --dry-run writes nothing" in idle.stderr
    for words in (["--expect", "1"], ["--save-undo", "b.undo"], ["--save-recipe", "b.yaml"], ["--interactive"]):
        looked = bench("m.onnx", "--rule", "silu", "--count", *words, cwd=tmp_path)
        assert (looked.returncode, f"--count only looks, and {words[0]} would be ignored" in looked.stderr) == (2, True)


def test_the_command(tmp_path):
    onnx.save(model_of(GELU_ERF["halved last"], 13, constants=GELU_CONSTANTS).proto, tmp_path / "m.onnx")
    done = bench("m.onnx", "o.onnx", "--rule", "gelu_erf_ms", "--verify", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "rewritten by gelu_erf_ms Div, Erf, Add, Mul, Mul -> Gelu" in done.stdout
    assert [node.op_type for node in onnx.load(tmp_path / "o.onnx").graph.node] == ["Gelu"]
    listed = bench("--list", cwd=tmp_path)
    assert all(name in listed.stdout for name in RULES)
    why = bench("m.onnx", "--rule", "gelu_tanh", "--why", "y", cwd=tmp_path)
    assert why.returncode == 0
    assert "first difference: t = Tanh of the pattern against Erf#1 (Erf): it is an Erf" in why.stdout
    counted = json.loads(bench("m.onnx", "--rule", "gelu_erf_ms", "--count", "--json", cwd=tmp_path).stdout)
    assert counted["result"]["rules"][0]["count"] == 1
    nothing = bench("m.onnx", "n.onnx", "--rule", "layer_norm", cwd=tmp_path)
    assert nothing.returncode == 4
    assert "matches nowhere" in nothing.stderr
    assert not (tmp_path / "n.onnx").exists()
    assert bench("m.onnx", "n.onnx", cwd=tmp_path).returncode == 2
    for ignored in (
        ("n.onnx", "--feeds", "gone.npz"), ("--count", "--verify"), ("--why", "y", "--dry-run"), ("--why", "y", "--count"),
    ):  # fmt: skip
        refused = bench("m.onnx", "--rule", "gelu_erf_ms", *ignored, cwd=tmp_path)
        assert refused.returncode == 2, ignored
        assert refused.stderr.startswith("onnxbench: error: ")
    assert not (tmp_path / "n.onnx").exists()
    plain = bench("m.onnx", "p.onnx", "--rule", "gelu_erf_ms", "--no-stamp", cwd=tmp_path)
    assert "changes; wrote p.onnx" in plain.stdout
    assert not onnx.load(tmp_path / "p.onnx").metadata_props
    early = bench("m.onnx", "--rule", "gelu_erf", "--count", cwd=tmp_path)
    assert "gelu_erf: 1 match" in early.stdout
    assert "puts in operators of ai.onnx 20, and the model imports 13. Raise the opset first" in early.stdout
    early = bench("m.onnx", "--rule", "gelu_erf", "--count", "--json", cwd=tmp_path)
    assert json.loads(early.stdout)["result"]["rules"][0]["refusal"]
    lost = bench("m.onnx", "--rule", "gelu_erf", "--why", "nope", cwd=tmp_path)
    assert lost.returncode == 4
    assert "'nope' matches no node and no tensor of the model" in lost.stderr
    dry = bench("m.onnx", "--rule", "gelu_erf_ms", "--dry-run", cwd=tmp_path)
    assert "nothing was written" in dry.stdout
