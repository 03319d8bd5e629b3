"""Making a batch dynamic: what is baked in is repaired, rows equal single runs, and what mixes samples is named."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
from engines import ort_session

import onnxbench
from onnxbench.batching import make_batch_dynamic
from onnxbench.errors import NotFoundError, RefusedResultError, UsageError
from onnxbench.feeding import FeedOptions
from onnxbench.tensortype import tensor_shape

ROWS = np.random.default_rng(3)


def model_of(text: str, opset: int = 17, ir: int = 8) -> onnx.ModelProto:
    proto = onnx.parser.parse_model(f'<ir_version: {ir}, opset_import: ["" : {opset}]>\n{text}')
    onnx.checker.check_model(proto, full_check=True)
    return proto


def freed(proto: onnx.ModelProto, **options: Any) -> Any:
    """Makes the batch dynamic, checks the result in full, and judges the rows anew, apart from the code under test."""
    before = proto.SerializeToString()
    made = make_batch_dynamic(onnxbench.from_proto(proto), **options)
    assert proto.SerializeToString() == before
    onnx.checker.check_model(made.model.proto, full_check=True)
    check_rows(proto, made)
    return made


def check_rows(proto: onnx.ModelProto, made: Any, samples: int = 4) -> None:
    old, new = ort_session(proto), ort_session(made.model.proto)
    axes = dict(made.inputs)
    sets = [{} for _ in range(samples)]
    for port in old.get_inputs():
        shape = [size if isinstance(size, int) else 3 for size in port.shape]
        if port.name in axes:
            shape[axes[port.name]] = made.batch
        fixed = draw(port.type, shape)
        for feeds in sets:
            feeds[port.name] = draw(port.type, shape) if port.name in axes else fixed
    joint = {
        name: np.concatenate([feeds[name] for feeds in sets], axis=axes[name]) if name in axes else value
        for name, value in sets[0].items()
    }
    got = dict(zip([port.name for port in new.get_outputs()], new.run(None, joint), strict=True))
    for feeds in sets:
        feeds["expected"] = dict(
            zip(
                [port.name for port in old.get_outputs()],
                old.run(None, {k: v for k, v in feeds.items() if k != "expected"}),
                strict=True,
            )
        )
    for output in made.outputs:
        expected = [feeds["expected"][output.name] for feeds in sets]
        value = got[output.name]
        if output.axis is None:
            parts = [value] * samples
        else:
            moved = np.moveaxis(value, output.axis, 0)
            blocks = moved.reshape(output.outer, samples, -1, *moved.shape[1:])
            parts = [np.moveaxis(blocks[:, k].reshape(-1, *moved.shape[1:]), 0, output.axis) for k in range(samples)]
        for one, part in zip(expected, parts, strict=True):
            np.testing.assert_allclose(part, one, rtol=1e-4, atol=1e-5)
        assert output.axis is None or any(not np.array_equal(expected[0], each) for each in expected[1:])


def draw(kind: str, shape: list[int]) -> np.ndarray:
    if "float" in kind:
        return ROWS.normal(size=shape).astype(np.float32)
    return ROWS.integers(0, 3, size=shape).astype(np.bool_ if "bool" in kind else np.int64)


def kinds(made: Any) -> list[tuple[str, str, str]]:
    return [(repair.op_type, repair.what.removeprefix("input "), repair.after) for repair in made.repairs]


# ---------------------------------------------------------------- Reshape


def test_a_constant_shape_is_changed_in_place_and_nothing_else_is():
    proto = model_of(
        """g (float[1,6,4] x) => (float[1,2,12] y) <int64[3] s = {1,2,12}> { r = Relu (x) y = Reshape (r, s) }"""
    )
    made = freed(proto)
    assert kinds(made) == [("Reshape", "shape", "[0, 2, 12]")]
    undone = onnx.ModelProto()
    undone.CopyFrom(made.model.proto)
    undone.graph.initializer[0].CopyFrom(proto.graph.initializer[0])
    for info in (undone.graph.input[0], undone.graph.output[0]):
        assert info.type.tensor_type.shape.dim[0].dim_param == "batch"
        info.type.tensor_type.shape.dim[0].dim_value = 1
    assert undone == proto
    assert made.proof.same_at_old
    assert made.proof.batches == (1, 3)


def test_a_minus_one_that_stands_elsewhere_gives_way():
    made = freed(
        model_of(
            "g (float[1,3,4] x) => (float[12] y) <int64[2] s = {1,-1}, int64[1] f = {-1}>"
            " { r = Reshape (x, s) n = Neg (r) y = Reshape (n, f) }"
        )
    )
    assert kinds(made) == [("Reshape", "shape", "[0, -1]")]
    assert [(each.axis, each.rows) for each in made.outputs] == [(0, 12)]
    assert made.notes == ("output 'y' has 12 rows of axis 0 for each sample",)


def test_attention_over_a_batch_in_the_middle():
    made = freed(
        model_of(
            """g (float[1,5,8] x) => (float[1,5,8] y)
            <int64[3] heads = {5,2,4}, int64[3] back = {5,1,8}>
            {
              s = Transpose <perm = [1,0,2]> (x)
              h = Reshape (s, heads)
              q = Transpose <perm = [1,0,2]> (h)
              k = Transpose <perm = [1,2,0]> (h)
              a = MatMul (q, k)
              p = Softmax <axis = -1> (a)
              o = MatMul (p, q)
              t = Transpose <perm = [1,0,2]> (o)
              z = Reshape (t, back)
              y = Transpose <perm = [1,0,2]> (z)
            }"""
        )
    )
    assert kinds(made) == [("Reshape", "shape", "[5, -1, 4]"), ("Reshape", "shape", "[5, -1, 8]")]


def test_another_place_for_the_batch_is_tried_where_the_likeliest_leads_nowhere():
    made = freed(
        model_of(
            """g (float[5,1,4] x) => (float[5,1,3] y)
            <int64[2] rows = {5,4}, int64[3] back = {5,1,3}, float[4,3] w = {1,2,3,4,5,6,7,8,9,1,2,3}>
            { f = Reshape (x, rows) g = Gemm (f, w) y = Reshape (g, back) }"""
        ),
        inputs={"x": 1},
    )
    assert kinds(made) == [("Reshape", "shape", "[-1, 4]"), ("Reshape", "shape", "[5, -1, 3]")]


def test_two_open_sizes_take_the_batch_from_the_input():
    proto = model_of(
        """g (float[1,6,n] x) => (float[a,b,c] y)
        <int64[3] s = {1,-1,3}, int64[1] one = {1}>
        { t = Transpose <perm = [1,2,0]> (x) n = Neg (t) y = Reshape (n, s) }"""
    )
    with pytest.raises(
        RefusedResultError, match=r"Reshape 'Reshape#2' lays elements out in two sizes that are not fixed"
    ):
        make_batch_dynamic(onnxbench.from_proto(proto))
    proto = model_of("g (float[1,n] x) => (float[a,b,c] y) <int64[3] s = {1,1,-1}> { n = Neg (x) y = Reshape (n, s) }")
    made = freed(proto, feeds=FeedOptions(shapes=["x:[1,4]"]))
    assert kinds(made) == [("Reshape", "shape", "[0, 1, -1]")]


def test_a_shape_put_together_from_pieces_gets_its_piece_replaced():
    proto = model_of(
        """g (float[1,n,4] x) => (float[a,b,c,d] y)
        <int64[1] one = {1}, int64 at = {1}, int64[1] zero = {0}, int64[2] tail = {2,2}>
        {
          s = Shape (x)
          n = Gather (s, at)
          m = Unsqueeze (n, zero)
          t = Concat <axis = 0> (one, m, tail)
          r = Neg (x)
          y = Reshape (r, t)
        }"""
    )
    made = freed(proto, feeds=FeedOptions(shapes=["x:[1,3,4]"]))
    assert kinds(made) == [("Reshape", "shape", "[0, *, *, *]")]
    proto.graph.node[3].input[0] = "zero"  # the shape follows the batch already: nothing is to be done
    assert not freed(proto, feeds=FeedOptions(shapes=["x:[1,3,4]"])).repairs


def test_a_shape_that_others_read_stays_for_them():
    proto = model_of(
        """g (float[1,4] x) => (float[1,2,2] y, float[1,2,2] c)
        <int64[3] s = {1,2,2}, float[4] w = {1,2,3,4}>
        { n = Neg (x) y = Reshape (n, s) c = Reshape (w, s) }"""
    )
    made = freed(proto)
    assert [each.axis for each in made.outputs] == [0, None]
    assert "output 'c' does not depend on the batch" in made.notes
    assert proto.graph.initializer[0] in list(made.model.proto.graph.initializer)


def test_flatten_squeeze_and_unsqueeze_keep_the_samples_apart():
    made = freed(
        model_of(
            """g (float[1,2,6] x) => (float[1,2,6] y, float[1,12] f)
            <int64[1] zero = {0}, float[6,1] w = {1,2,3,4,5,6}>
            {
              r = Relu (x)
              s = Squeeze (r, zero)
              m = MatMul (s, w)
              a = Add (s, m)
              y = Unsqueeze (a, zero)
              f = Flatten <axis = 0> (x)
            }"""
        )
    )
    assert kinds(made) == [
        ("Squeeze", "operator", "Reshape to [-1, 6]"),
        ("Unsqueeze", "operator", "Reshape to [-1, 2, 6]"),
        ("Flatten", "operator", "Reshape to [-1, 12]"),
    ]


def test_the_first_sample_taken_out_and_put_back():
    made = freed(
        model_of(
            """g (float[1,2,3] x) => (float[1,2,3] y)
            <int64 first = {0}, int64[1] zero = {0}>
            { n = Neg (x) r = Gather <axis = 0> (n, first) e = Exp (r) y = Unsqueeze (e, zero) }"""
        )
    )
    assert [repair.what for repair in made.repairs] == ["operator", "operator"]


# ---------------------------------------------------------------- everything else that is baked in


def test_a_class_token_is_spread_over_the_batch():
    made = freed(
        model_of(
            """g (float[1,3,2] x) => (float[1,4,2] y) <float[1,1,2] token = {5,6}>
            { n = Neg (x) y = Concat <axis = 1> (token, n) }"""
        )
    )
    assert kinds(made) == [("Concat", "0", "[batch, 1, 2]")]
    assert [node.op_type for node in made.model.proto.graph.node][-2:] == ["Expand", "Concat"]


@pytest.mark.parametrize("initial", ["h0", "made"])
def test_initial_states_of_a_recurrent_layer(initial):
    shapes = {"w": (1, 8, 3), "r": (1, 8, 2), "h0": (1, 1, 2)}
    numbers = {name: ",".join(str((k % 7 - 3) / 10) for k in range(np.prod(shape))) for name, shape in shapes.items()}
    weights = ", ".join(f"float{list(shape)} {name} = {{{numbers[name]}}}" for name, shape in shapes.items())
    made = freed(
        model_of(
            f"""g (float[1,4,3] x) => (float[4,1,2] y, float[1,1,2] last)
            <{weights}, int64[3] size = {{1,1,2}}, int64[1] one = {{1}}>
            {{
              made = ConstantOfShape (size)
              s = Transpose <perm = [1,0,2]> (x)
              a, last, c = LSTM <hidden_size = 2> (s, w, r, , , {initial}, {initial})
              y = Squeeze (a, one)
            }}"""
        )
    )
    assert kinds(made) == [
        ("LSTM", "initial_h", "[1, batch, 2]"),
        ("LSTM", "initial_c", "[1, batch, 2]"),
    ]
    assert sum(node.op_type == "Expand" for node in made.model.proto.graph.node) == 1
    assert [(each.name, each.axis) for each in made.outputs] == [("y", 1), ("last", 1)]


def test_a_table_of_positions_under_a_merged_axis_is_repeated():
    made = freed(
        model_of(
            """g (float[1,3,2] x) => (float[1,3,2] y)
            <int64[2] rows = {3,2}, int64[3] back = {1,3,2}, float[3,2] p = {1,2,3,4,5,6}>
            { f = Reshape (x, rows) a = Add (f, p) y = Reshape (a, back) }"""
        )
    )
    assert ("Add", "B", "[3 * batch, 2]") in kinds(made)


def test_indices_into_the_batch_count_the_samples():
    made = freed(
        model_of(
            """g (float[1,3,2] x) => (float[1,3,2] y, float[1,2] z)
            <int64[1,2,2] at = {0,0,0,2}, int64[1,1] row = {2}, int64[1,2] one = {0,1}>
            { n = Neg (x) u = GatherND (n, at) e = Exp (u) y = ScatterND (n, at, e) z = GatherND (x, one) }"""
        )
    )
    assert kinds(made) == [
        ("GatherND", "indices", "points at each sample"),
        ("ScatterND", "indices", "points at each sample"),
        ("GatherND", "indices", "points at each sample"),
    ]


def test_sizes_of_a_resize_and_ends_of_a_slice_and_parts_of_a_split():
    made = freed(
        model_of(
            """g (float[2,1,4,4] x) => (float[2,1,8,8] y, float[2,1,2,4] z, float[2,1,4,4] p)
            <int64[4] sizes = {2,1,8,8}, int64[2] starts = {0,1}, int64[2] ends = {2,3}, int64[2] axes = {0,2},
             int64[1] whole = {2}>
            {
              n = Neg (x)
              y = Resize <mode = "nearest"> (n, , , sizes)
              z = Slice (n, starts, ends, axes)
              p = Split <axis = 0> (n, whole)
            }"""
        )
    )
    assert made.batch == 2
    assert kinds(made) == [
        ("Resize", "sizes", "[size of axis 0, 1, 8, 8]"),
        ("Slice", "ends", "[end, 3]"),
        ("Split", "split", "[batch]"),
    ]


def test_an_expand_and_a_constant_of_a_batch_of_two():
    made = freed(
        model_of(
            """g (float[2,1,3] x) => (float[2,4,3] y, float[2,1,3] z)
            <int64[3] shape = {2,4,3}, float[2,1,3] same = {1,2,3,1,2,3}>
            { n = Neg (x) y = Expand (n, shape) z = Add (n, same) }"""
        )
    )
    assert kinds(made) == [("Expand", "shape", "[1, 4, 3]"), ("Add", "B", "[batch, 1, 3]")]


def test_old_opsets_with_shapes_in_attributes_and_weights_as_inputs():
    proto = model_of(
        """g (float[2,4] x, int64[2] s) => (float[2,2] y) <int64[2] s = {2,2}>
        { a = Slice <axes = [0,1], starts = [0,1], ends = [2,3]> (x) y = Reshape (a, s) }""",
        opset=9,
        ir=3,
    )
    made = freed(proto)
    assert [repair.what for repair in made.repairs] == ["attribute ends", "input shape"]
    assert made.model.proto.graph.input[0].name == "x"


# ---------------------------------------------------------------- bodies, functions, several inputs


def test_bodies_and_functions_are_run_and_their_statements_follow():
    proto = model_of(
        """g (float[1,2] x, bool c) => (float[1,2] y)
        {
          h = Relu (x)
          k = If (c) <
            then_branch = yes () => (float[1,2] t) <float[1,2] i> { i = Exp (h) t = Neg (i) },
            else_branch = no () => (float[1,2] u) { u = Neg (h) }>
          y = Abs (k)
        }"""
    )
    made = freed(proto, inputs=["x"])
    then = made.model.proto.graph.node[1].attribute[0].g
    assert tensor_shape(then.value_info[0].type) in ((None, 2), ("batch", 2))
    assert tensor_shape(made.model.proto.graph.output[0].type) == ("batch", 2)


def test_what_is_baked_into_a_body_is_told_and_not_repaired():
    proto = model_of(
        """g (float[1,4] x, bool c) => (float[1,2,2] y) <int64[3] s = {1,2,2}>
        {
          h = Relu (x)
          y = If (c) <
            then_branch = yes () => (float[1,2,2] t) { t = Reshape (h, s) },
            else_branch = no () => (float[1,2,2] u) { u = Reshape (h, s) }>
        }"""
    )
    with pytest.raises(RefusedResultError, match=r"If 'If#1' fails at a batch of 3") as caught:
        make_batch_dynamic(onnxbench.from_proto(proto), inputs=["x"])
    assert caught.value.hint == "Bodies are not repaired inside."


def test_a_state_with_its_batch_elsewhere_and_an_input_without_one():
    proto = model_of(
        """g (float[1,3] x, float[2,1,3] state, float[3] gain) => (float[2,1,3] y)
        <int64[3] s = {1,1,3}> { r = Reshape (x, s) a = Add (state, r) y = Mul (a, gain) }"""
    )
    made = freed(proto, inputs=["x", "state:1"], to="N")
    assert made.inputs == (("x", 0), ("state", 1))
    assert tensor_shape(made.model.proto.graph.output[0].type) == (2, "N", 3)
    with pytest.raises(UsageError, match=r"no batch in common \(x: 1 at 0, state: 2 at 0, gain: 3 at 0\)"):
        make_batch_dynamic(onnxbench.from_proto(proto))
    with pytest.raises(NotFoundError, match="there is no tensor 'stat' here"):
        make_batch_dynamic(onnxbench.from_proto(proto), inputs=["stat:1"])
    with pytest.raises(UsageError, match="has no dimension 3"):
        make_batch_dynamic(onnxbench.from_proto(proto), inputs={"state": 3})


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = ReduceMean <axes = [0], keepdims = 1> (x)", "ReduceMean 'ReduceMean#0' reduces over the batch"),
        ("y = Softmax <axis = 0> (x)", "Softmax 'Softmax#0' works along the batch"),
        ("y = CumSum (x, zero)", "CumSum 'CumSum#0' sums along the batch"),
        ("t = Transpose (x) y = MatMul (t, x)", "MatMul 'MatMul#1' multiplies along the batch, so it adds samples up"),
        ("t = Transpose (x) y = MatMul (x, t)", "MatMul 'MatMul#1' multiplies every sample with every other one"),
        ("y, s, z = DynamicQuantizeLinear (x)", "takes one scale over the whole batch"),
        ("y = NonZero (x)", "finds as many places as the data of the whole batch has"),
        ("y = Concat <axis = 0> (x, k)", "joins the batch with rows that do not belong to it"),
        ("n = Neg (x) y = Add (n, k4)", "broadcasts the batch against 4 rows of 'k4'"),
        ("y = ReduceSum (x)", "reduces over the batch"),
    ],
)  # fmt: skip
def test_the_node_in_the_way_is_named(body, reason):
    proto = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3] x) => (y)
        <int64 zero = {{0}}, float[1,3] k = {{1,2,3}}, float[4,3] k4 = {{1,2,3,1,2,3,1,2,3,4,5,6}}> {{ {body} }}"""
    )
    proto = onnx.shape_inference.infer_shapes(proto)
    with pytest.raises(RefusedResultError, match="the batch cannot be made dynamic: ") as caught:
        make_batch_dynamic(onnxbench.from_proto(proto))
    assert reason in caught.value.message


def test_normalization_in_training_mode_is_refused():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,2,3] x) => (float[1,2,3] y)
        <float[2] s = {1,1}, float[2] b = {0,0}, float[2] m = {0,0}, float[2] v = {1,1}>
        { [norm] y, rm, rv = BatchNormalization <training_mode = 1> (x, s, b, m, v) }"""
    )
    with pytest.raises(RefusedResultError, match="'norm' is in training mode") as caught:
        make_batch_dynamic(onnxbench.from_proto(proto))
    assert caught.value.hint == "Export the model in eval mode."


def test_a_constant_with_other_values_for_each_sample_is_refused():
    proto = model_of("g (float[2,3] x) => (float[2,3] y) <float[2,3] k = {1,2,3,4,5,6}> { n = Neg (x) y = Add (n, k) }")
    with pytest.raises(RefusedResultError, match="'k', which holds other values for each of 2 samples"):
        make_batch_dynamic(onnxbench.from_proto(proto))


def test_an_operator_without_a_rule_that_mixes_samples_is_found_by_running_it():
    proto = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
        g (float[1,3] x) => (float[1,3] y) { [good] a = local.Twice (x) [bad] y = local.Centre (a) }
        <domain: "local", opset_import: ["" : 21]> Twice (x) => (y) { y = Add (x, x) }
        <domain: "local", opset_import: ["" : 21]> Centre (x) => (y)
        { z = Constant <value_ints = [0]> () m = ReduceMean (x, z) e = Exp (x) y = Sub (e, m) }"""
    )
    with pytest.raises(RefusedResultError, match="Centre 'bad' mixes the samples of a batch up") as caught:
        make_batch_dynamic(onnxbench.from_proto(proto))
    assert caught.value.hint == "Functions are not repaired inside; inline them first."


def test_samples_sorted_and_put_back_pass_with_a_note():
    proto = model_of(
        """g (float[1,3] x) => (float[1,3] y)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[2] flat = {-1,1}>
        {
          r = ReduceSum <keepdims = 0> (x, one)
          n = Shape (r)
          v, i = TopK <axis = 0> (r, n)
          s = Gather <axis = 0> (x, i)
          e = Exp (s)
          w, back = TopK <axis = 0, largest = 0> (i, n)
          y = Gather <axis = 0> (e, back)
        }"""
    )
    made = freed(proto)
    assert any("works along the batch, but the outputs do not show it" in note for note in made.notes)


def test_an_output_that_is_stated_with_another_rank_is_stated_as_it_is():
    text = """<ir_version: 8, opset_import: ["": 17]>
        g (float[1, 4] x) => (float[T, L] y)
        { s = Constant <value_ints = [2]> () u = Unsqueeze (x, s) y = Transpose <perm = [1, 0, 2]> (u) }"""
    model = onnxbench.model.from_proto(onnx.parser.parse_model(text))
    done = onnxbench.edit(model, [onnxbench.operations.MakeBatchDynamic("N")])
    assert tensor_shape(done.model.proto.graph.output[0].type) == (None, "N", None)
    assert "output y: dimension 1 ? -> N" in [change.sentence() for change in done.changes]
    assert "output 'y' was stated with 2 dimensions, and has 3" in done.steps[0].notes


def test_results_cannot_be_changed():
    made = freed(model_of("g (float[1,3] x) => (float[1,3] y) { y = Neg (x) }"))
    with pytest.raises(FrozenInstanceError):
        made.batch = 2


# ---------------------------------------------------------------- real models


@pytest.mark.parametrize(
    ("name", "options", "repairs"),
    [
        ("ddddocr_det_yolox", {}, 3),
        ("light_shufflenet", {}, 33),
        ("light_inception_v2", {}, 1),
        ("attacut_sc", {"feeds": FeedOptions(shapes=["input:[1,2,24]"])}, 0),
        ("ppocr_v2_cls", {"feeds": FeedOptions(shapes=["x:[1,3,48,192]"])}, 0),
        ("silero_vad_16k_op15", {"inputs": ["input", "state:1"], "feeds": FeedOptions(shapes=["input:[1,512]"])}, 0),
        ("silero_vad", {"inputs": ["input", "state:1"],
                        "feeds": FeedOptions(shapes=["input:[1,512]"], ranges=["sr:[16000,16000]"])}, 0),
        ("nakdimon_loop", {"feeds": FeedOptions(shapes=["input_1:[1,12]"])}, 0),
    ],
)  # fmt: skip
def test_real_models(corpus, name, options, repairs):
    path, _ = corpus(name)
    made = make_batch_dynamic(onnxbench.load(path), **options)
    onnxbench.validate(made.model.proto)
    assert len(made.repairs) == repairs
    assert made.proof.same_at_old
    assert all(each.worst.passed for each in made.proof.outputs)


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("ddddocr_rec_dynq", {"feeds": FeedOptions(shapes=["input1:[1,1,64,160]"])},
         "takes one scale over the whole batch"),
        ("swift_f0", {"inputs": ["audio"], "feeds": FeedOptions(shapes=["audio:[1,4000]"])},
         "Slice 'Slice#21' cuts an axis in which the samples of a batch lie one after the other"),
        ("logreg_iris_ml", {}, "ZipMap"),
    ],
)  # fmt: skip
def test_real_models_that_mix_samples(corpus, name, options, reason):
    path, _ = corpus(name)
    with pytest.raises(RefusedResultError) as caught:
        make_batch_dynamic(onnxbench.load(path), **options)
    assert reason in caught.value.message
