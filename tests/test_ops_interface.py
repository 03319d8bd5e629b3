"""Operations on inputs, outputs and dimensions, on every fixture and on real models."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from cases import Case, all_cases, cases, named
from engines import bits, ort_session, run_session

import onnxbench
from onnxbench.draft import Draft
from onnxbench.errors import BenchError, NotFoundError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.graph import sort_nodes
from onnxbench.operations import (
    OPERATIONS,
    AddInput,
    AddOutput,
    MakeBatchDynamic,
    MakeDynamic,
    NameDim,
    Operation,
    RemoveInput,
    RemoveOutput,
    RenameInput,
    RenameOutput,
    ReorderInputs,
    ReorderOutputs,
    RetypeInput,
    RetypeOutput,
    SetDim,
    SetShape,
)
from onnxbench.surgery import edit
from onnxbench.tensortype import tensor_shape
from onnxbench.validity import find_complaints

RUNNABLE = lambda case: case.valid == "yes" and case.engine == "ort" and not case.is_external  # noqa: E731


def applied(model: Any, operation: Operation) -> Draft:
    draft = Draft.of(model)
    operation.apply(draft)
    draft.refresh_types()
    return draft


def outputs_of(proto: onnx.ModelProto, feeds: dict[str, Any]) -> dict[str, Any]:
    session = ort_session(proto)
    return run_session(session, feeds)


# ---------------------------------------------------------------- every fixture


@cases(RUNNABLE)
def test_renamed_inputs_and_outputs_compute_the_same(case: Case):
    model = onnxbench.load(case.path)
    draft = Draft.of(model)
    inputs, outputs = list(draft.main.true_inputs()), list(dict.fromkeys(draft.main.outputs))
    names = {}
    for kind, held in ((RenameInput, inputs), (RenameOutput, outputs)):
        for number, name in enumerate(held):
            if name in names:
                continue
            names[name] = f"renamed {kind.word} {number}"
            kind(at=name, to=names[name]).apply(draft)
    draft.refresh_types()
    assert not find_complaints(draft.model.proto, complete=draft.model.with_small_weights)
    feeds = case.feeds()
    before = outputs_of(case.whole(), feeds)
    after = outputs_of(draft.model.proto, {names[name]: value for name, value in feeds.items()})
    assert {names[name]: value for name, value in before.items()} == after
    back = {new: old for old, new in names.items()}
    for new, old in back.items():
        draft.rename(draft.main, {new: old})
    assert draft.model.proto == model.proto, "renamed back, nothing else differs"


@cases(RUNNABLE)
def test_an_order_and_its_undoing_leave_every_field_alone(case: Case):
    model = onnxbench.load(case.path)
    draft = Draft.of(model)
    for operation, infos in ((ReorderInputs, model.proto.graph.input), (ReorderOutputs, model.proto.graph.output)):
        names = [info.name for info in infos]
        if len(set(names)) < len(names) or not names:
            continue
        operation(names=names[::-1]).apply(draft)
        operation(names=names).apply(draft)
    assert draft.model.proto == model.proto


@cases(lambda case: RUNNABLE(case) and "float" not in case.name)
def test_retyped_inputs_and_outputs(case: Case):
    model = onnxbench.load(case.path)
    draft = Draft.of(model)
    feeds, cast = case.feeds(), {}
    for info in list(draft.main.graph.input):
        name, value = info.name, feeds.get(info.name)
        is_float = info.type.tensor_type.elem_type == 1 and isinstance(value, np.ndarray)
        if is_float and name in draft.main.true_inputs() and name not in draft.main.outputs:
            RetypeInput(at=name, to="float64").apply(draft)
            cast[name] = value.astype(np.float64)
    wide = []
    for name in dict.fromkeys(draft.main.outputs):
        info = next(info for info in draft.main.graph.output if info.name == name)
        if info.type.tensor_type.elem_type == 1 and name in draft.main.producers:
            RetypeOutput(at=name, to="double").apply(draft)
            wide.append(name)
    if not cast and not wide:
        assert draft.model.proto == model.proto
        return
    draft.refresh_types()
    proto = onnx.ModelProto()
    proto.CopyFrom(draft.model.proto)
    sort_nodes(proto)
    assert not find_complaints(proto, complete=draft.model.with_small_weights)
    before, after = outputs_of(case.whole(), feeds), outputs_of(proto, feeds | cast)
    for name, value in before.items():
        kind, shape, data = value if isinstance(value, tuple) else (None, None, None)
        if name in wide:
            assert kind == "float32"
            value = bits(np.frombuffer(data, np.float32).reshape(shape).astype(np.float64))
        assert after[name] == value, name


# ---------------------------------------------------------------- single operations


def test_a_captured_input_is_cast_for_bodies_too():
    model = onnxbench.load(named("nested_bodies").path)
    draft = Draft.of(model)
    floats = [
        info.name for info in draft.main.graph.input
        if info.type.tensor_type.elem_type == 1 and info.name in draft.main.consumers
    ]  # fmt: skip
    assert floats
    for name in floats:
        RetypeInput(at=name, to="fp16").apply(draft)
    draft.refresh_types()
    assert not find_complaints(draft.model.proto)
    for scope in draft.index.scopes:
        for names in scope.reads:
            assert not set(floats) & set(names) or scope is draft.main


def test_a_weight_outside_the_file_becomes_an_input_unread(tmp_path):
    case = next(each for each in all_cases() if each.name.startswith("external_one_file"))
    model = onnxbench.load(case.path)
    name = next(tensor.name for tensor in model.proto.graph.initializer if tensor.data_location == 1)
    draft = applied(model, AddInput(name=name, in_place_of=name))
    assert name in draft.main.true_inputs()
    assert not find_complaints(draft.model.proto)
    value = model.array(next(tensor for tensor in model.proto.graph.initializer if tensor.name == name))
    feeds = case.feeds()
    saved = onnxbench.save(draft.model, tmp_path / "out.onnx")
    assert saved.path.exists()
    assert outputs_of(case.whole(), feeds) == run_session(ort_session(saved.path), feeds | {name: value})


def test_an_input_that_a_default_backs_keeps_it():
    model = onnxbench.load(named("initializer_as_input_ir8").path)
    draft = Draft.of(model)
    backed = next(name for name in draft.main.inputs if name in draft.main.constants)
    RemoveInput(at=backed).apply(draft)
    assert backed in draft.main.constants
    assert backed not in draft.main.inputs
    with pytest.raises(UnsupportedError, match="every weight is an input in IR version 3"):
        applied(onnxbench.load(named("initializer_as_input_ir3").path), RemoveInput(at=backed))
    with pytest.raises(RefusedResultError, match="has a default already"):
        applied(model, RemoveInput(at=backed, value=1))


def test_sparse_weights_and_what_cannot_be_cast():
    model = onnxbench.load(named("sparse_initializer").path)
    sparse = model.proto.graph.sparse_initializer[0].values.name
    with pytest.raises(UnsupportedError, match="is a sparse initializer, which cannot be an output"):
        applied(model, AddOutput(at=sparse))
    sequence = onnxbench.load(named("sequence_io").path)
    name = sequence.proto.graph.input[0].name
    with pytest.raises(UnsupportedError, match=r"sequence\(.*; only tensors can be cast"):
        applied(sequence, RetypeInput(at=name, to="fp16"))


def test_an_output_that_is_an_input_or_a_weight_cannot_be_retyped():
    for name, what in (("no_nodes_input", "an input"), ("no_nodes_initializer", "a weight")):
        model = onnxbench.load(named(name).path)
        with pytest.raises(RefusedResultError, match=f"is {what}, whose type would change with it"):
            applied(model, RetypeOutput(at=model.proto.graph.output[0].name, to="fp16"))


def test_names_with_colons_and_slashes():
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,3] x, float[N,3] b) => (float[N,3] y) { y = Add (x, b) }'
    )
    for names in (proto.graph.input, proto.graph.node[0].input):
        for number, item in enumerate(names):
            if isinstance(item, str):
                names[number] = {"x": "scope/in:0", "b": "b=1"}[item]
            else:
                item.name = {"x": "scope/in:0", "b": "b=1"}[item.name]
    model = onnxbench.from_proto(proto)
    draft = applied(model, SetDim(dim="scope/in:0:0=8"))
    assert tensor_shape(draft.main.graph.input[0].type) == (8, 3)
    assert tensor_shape(draft.main.graph.input[1].type) == ("N", 3)
    draft = applied(model, SetShape(shape="scope/in:0:[8,3],b=1:8x3"))
    assert [tensor_shape(info.type) for info in draft.main.graph.input] == [(8, 3), (8, 3)]
    assert tensor_shape(draft.main.graph.output[0].type) == (8, 3)
    draft = applied(model, NameDim(dim="b=1:0=batch"))
    assert [tensor_shape(info.type)[0] for info in (*draft.main.graph.input, *draft.main.graph.output)] == ["batch"] * 3


def test_a_symbol_in_bodies_is_fixed_too():
    proto = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,2] x, bool c) => (float[N,2] y)
        { y = If (c) < then_branch = a () => (float[N,2] t) <float[N,2] i> { i = Exp (x) t = Neg (i) },
                       else_branch = b () => (float[N,2] u) { u = Neg (x) }> }"""
    )
    draft = applied(onnxbench.from_proto(proto), SetDim(dim="N=4"))
    assert "dim_param" not in str(draft.model.proto)
    assert str(draft.model.proto).count("dim_value: 4") == str(proto).count('dim_param: "N"') == 5


@pytest.mark.parametrize(
    ("operation", "error", "says"),
    [
        (SetShape(shape="x:[1,2,3]"), RefusedResultError, "has 2 dimensions"),
        (SetShape(shape="x:[4,4]:fp16"), UsageError, "is float32, not float16"),
        (SetShape(shape="x"), UsageError, "says no shape"),
        (SetShape(shape="q:[4,4]"), NotFoundError, "there is no tensor 'q' here"),
        (SetDim(dim="x:5=4"), UsageError, "has no dimension 5"),
        (SetDim(dim="x:0=four"), UsageError, "'four' is no size"),
        (SetDim(dim="x"), UsageError, "cannot be read"),
        (NameDim(dim="x:one=four"), UsageError, "'one' is no dimension"),
        (NameDim(dim="x:0=4"), UsageError, "'4' is no name"),
        (MakeDynamic(dim="x:0=n"), RefusedResultError, "varies already"),
        (MakeDynamic(dim="N=n"), UsageError, "cannot be read"),
        (MakeDynamic(dim="x:1=n", scale=1), UsageError, "tries no other size"),
        (RetypeInput(at="x", to="floot32"), UsageError, "not an element type"),
        (RemoveOutput(at="x"), NotFoundError, "'x' is no output of the model"),
        (RenameInput(at="y", to="z"), NotFoundError, "'y' is no input of the model"),
        (RenameOutput(at="y", to=""), RefusedResultError, "a tensor needs a name"),
        (AddInput(name="n"), UsageError, "needs a type"),
        (AddInput(name="n", in_place_of="x"), RefusedResultError, "'x' is an input already"),
        (AddInput(name="n", type="floaty[1]"), BenchError, "floaty"),
        (AddOutput(at="y"), RefusedResultError, "'y' is an output already"),
        (AddOutput(at="x", name="y"), RefusedResultError, "there is a tensor 'y' already"),
        (RemoveInput(at="x", value="word"), BenchError, "word"),
        (ReorderOutputs(names=["y", "y"]), UsageError, "named twice"),
        (MakeBatchDynamic(to="4"), UsageError, "is no name for a dimension"),
        (MakeBatchDynamic(inputs=3), UsageError, "is no list of inputs"),
        (MakeBatchDynamic(inputs=["q"]), NotFoundError, "'q'"),
    ],
)  # fmt: skip
def test_refusals_say_what_is_wrong(operation, error, says):
    proto = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }'
    )
    with pytest.raises(error) as caught:
        applied(onnxbench.from_proto(proto), operation)
    assert says in str(caught.value)


def test_every_operation_has_its_words():
    words = "add_input remove_input add_output remove_output reorder_inputs reorder_outputs rename_input rename_output"
    words += " retype_input retype_output set_shape set_dim name_dim make_dynamic make_batch_dynamic"
    for word in words.split():
        operation = OPERATIONS[word]
        assert operation.spelling
        assert (operation.__doc__ or "").splitlines()[0].endswith(".")


# ---------------------------------------------------------------- real models


@pytest.mark.parametrize("name", ["minilm_int8w", "silero_vad", "ppocr_v2_cls", "nakdimon_loop", "attacut_c"])
def test_a_real_model_with_other_inputs_and_outputs(corpus, name, tmp_path):
    path, _ = corpus(name)
    model = onnxbench.load(path)
    shapes = {"ppocr_v2_cls": ["x:[1,3,48,96]"], "silero_vad": ["input:[1,512]"], "attacut_c": ["input:[1,24]"],
              "nakdimon_loop": ["input_1:[1,12]"]}.get(name, [])  # fmt: skip
    ranges = ["sr:[16000,16000]"] if name == "silero_vad" else []
    feeds = next(feed_sets(model, FeedOptions(shapes=shapes, ranges=ranges))).feeds
    draft = Draft.of(model)
    first, last = draft.main.true_inputs()[0], draft.main.outputs[0]
    steps: list[Operation] = [
        RenameInput(at=first, to="first input"),
        RenameOutput(at=last, to="result:0"),
        ReorderInputs(names=["first input"]),
    ]
    if feeds[first].dtype == np.int64:
        steps.append(RetypeInput(at="first input", to="int32"))
    edited = edit(model, steps)
    given = {"first input" if key == first else key: value for key, value in feeds.items()}
    if feeds[first].dtype == np.int64:
        given["first input"] = given["first input"].astype(np.int32)
    before = run_session(ort_session(path), feeds)
    onnxbench.save(edited.model, tmp_path / "edited.onnx")
    after = run_session(ort_session(tmp_path / "edited.onnx"), given)
    assert {"result:0" if key == last else key: value for key, value in before.items()} == after


def test_the_batch_of_a_detector_is_freed_by_a_recipe(corpus, tmp_path):
    path, _ = corpus("ddddocr_det_yolox")
    edited = edit(onnxbench.load(path), [MakeBatchDynamic()])
    assert sum("input shape" in change.what for change in edited.changes) == 3
    onnxbench.save(edited.model, tmp_path / "free.onnx")
    session = ort_session(tmp_path / "free.onnx")
    images = np.random.default_rng(0).random((2, 3, 416, 416), np.float32)
    (pair,) = session.run(None, {"images": images})
    (one,) = ort_session(path).run(None, {"images": images[1:]})
    assert pair.shape == (2, 3549, 6)
    np.testing.assert_allclose(pair[1:], one, rtol=1e-4, atol=1e-4)


def test_a_fixed_size_of_a_real_model_varies_or_is_told_to_be_baked_in(corpus):
    path, _ = corpus("ddddocr_det_yolox")
    draft = applied(onnxbench.load(path), MakeDynamic(dim="images:2=height,images:3=width"))
    assert tensor_shape(draft.main.graph.input[0].type) == (1, 3, "height", "width")
    assert tensor_shape(draft.main.graph.output[0].type) == (1, None, 6)
    assert draft.notes == ["runs at 'images' [1, 3, 832, 832]"]
    path, _ = corpus("light_shufflenet")
    with pytest.raises(RefusedResultError, match=r"sizes are baked in: at 'gpu_0/data_0' .* in node 'n7'"):
        applied(onnxbench.load(path), MakeDynamic(dim="gpu_0/data_0:2=height"))
