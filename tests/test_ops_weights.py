"""Operations on weights: values exact, nothing else touched, bounded memory, nothing left behind."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import cases, named
from engines import run_ort
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from onnxbench import weighing, weights
from onnxbench.conversion import Loss, convert, packed
from onnxbench.errors import ExternalDataError, RefusedResultError, UnsupportedError
from onnxbench.graph import GraphIndex
from onnxbench.imitation import imitate
from onnxbench.model import from_proto, load
from onnxbench.modeltext import parse
from onnxbench.operations import (
    AddWeight,
    CastWeight,
    Externalize,
    InlineWeights,
    Insert,
    RemoveDead,
    RenameTensor,
    SetWeight,
    ShareEqualWeights,
    StripWeights,
    ToConstant,
    ToInitializer,
    TransposeWeight,
)
from onnxbench.steering import steering
from onnxbench.surgery import edit, edit_file, undo_file
from onnxbench.tensortype import dtype_name
from onnxbench.writer import SaveOptions, save

ROOT = Path(__file__).resolve().parents[1]
REAL = ["minilm_int8w", "minilm_int8w_ext", "ddddocr_rec", "open_nsfw_resnet", "light_resnet50", "ppocr_v2_cls"]
VALID = cases(lambda case: case.valid == "yes" and case.engine == "ort")


def values(model) -> dict[str, bytes]:
    """Returns the data of every dense initializer, by path."""
    return {
        f"{scope.path}/{tensor.name}": numpy_helper.from_array(model.array(tensor)).raw_data
        for scope in GraphIndex(model.proto).scopes
        if not scope.is_function
        for tensor in scope.graph.initializer
        if tensor.data_type != T.STRING
    }


def linear(*tensors: onnx.TensorProto, op: str = "Mul") -> onnx.ModelProto:
    """Returns a model that applies one operator with each of some weights in turn."""
    proto = onnx.ModelProto(ir_version=10, opset_import=[helper.make_opsetid("", 21)])
    proto.graph.name = "linear"
    previous = "x"
    for number, tensor in enumerate(tensors):
        proto.graph.initializer.append(tensor)
        proto.graph.node.append(helper.make_node(op, [previous, tensor.name], [f"t{number}"], name=f"n{number}"))
        previous = f"t{number}"
    proto.graph.input.append(helper.make_tensor_value_info("x", T.FLOAT, tensors[0].dims))
    proto.graph.output.append(helper.make_tensor_value_info(previous, T.FLOAT, tensors[-1].dims))
    return proto


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


# ---- conversion: against all values of a type


def all_values(number: int) -> np.ndarray:
    """Returns every finite value of a small float type, ascending, as float64."""
    dtype = helper.tensor_dtype_to_np_dtype(number)
    patterns = np.arange(1 << (8 * dtype.itemsize), dtype=f"u{dtype.itemsize}")
    if dtype.itemsize == 1 and number in (T.FLOAT4E2M1, 27, 28):
        patterns = patterns[: 16 if number == T.FLOAT4E2M1 else 64]
    found = patterns.view(dtype).astype(np.float64)
    return np.unique(found[np.isfinite(found)])


SMALL = [T.FLOAT16, T.BFLOAT16, T.FLOAT8E4M3FN, T.FLOAT8E4M3FNUZ, T.FLOAT8E5M2, T.FLOAT8E5M2FNUZ, T.FLOAT4E2M1, 27, 28]


@pytest.mark.parametrize("number", SMALL)
@pytest.mark.parametrize("source", [np.float64, np.float32])
def test_every_value_is_the_nearest_one(number, source):
    """Halfway points, and their closest neighbours, are where a second rounding would show."""
    known = all_values(number)
    middles = (known[1:] + known[:-1]) / 2
    near = np.concatenate([middles, np.nextafter(middles, np.inf), np.nextafter(middles, -np.inf), known])
    near = near.astype(source)
    near = near[np.abs(near) <= known[-1]]
    loss = Loss()
    found = convert(near, number, loss).astype(np.float64)
    wide = near.astype(np.float64)
    upper = known[np.clip(np.searchsorted(known, wide), 0, len(known) - 1)]
    lower = known[np.clip(np.searchsorted(known, wide, side="right") - 1, 0, len(known) - 1)]
    assert ((found == lower) | (found == upper)).all()
    best = np.minimum(np.abs(wide - lower), np.abs(wide - upper))
    assert (np.abs(found - wide) == best).all()
    tie = (wide - lower == upper - wide) & (lower != upper)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    assert tie.any() or source is np.float32
    assert (found[tie].astype(dtype).view(f"u{dtype.itemsize}") % 2 == 0).all()
    assert loss.overflows == 0
    assert loss.worst == np.abs(found - wide).max()


def test_large_integers_are_rounded_once():
    """A value just above the middle of two bfloat16: rounded to float64 first, it would be the middle."""
    middle = (1 << 62) + (1 << 54)
    block = np.array([middle, middle + 1, -middle, -middle - 1, 7], np.int64)
    found = convert(block, T.BFLOAT16, Loss()).astype(np.float64)
    up = float((1 << 62) + (1 << 55))
    assert found.tolist() == [float(1 << 62), up, -float(1 << 62), -up, 7.0]


@pytest.mark.parametrize(
    ("number", "array", "expected", "overflows"),
    [
        (T.FLOAT16, [1e6, -1e6, np.inf, 65519.0], [65504.0, -65504.0, np.inf, 65504.0], 2),
        (T.FLOAT8E4M3FN, [500.0, np.inf, -np.inf, 464.0], [448.0, 448.0, -448.0, 448.0], 3),
        (T.FLOAT8E5M2, [1e9, np.inf], [57344.0, np.inf], 1),
        (T.FLOAT4E2M1, [6.9, 7.0, -100.0], [6.0, 6.0, -6.0], 2),
    ],
)
def test_values_beyond_a_type_are_clamped_and_counted(number, array, expected, overflows):
    loss = Loss()
    found = convert(np.array(array), number, loss, clamp=True)
    assert found.astype(np.float64).tolist() == expected
    assert loss.overflows == overflows


def test_integers_are_checked_for_range():
    loss = Loss()
    found = convert(np.array([7.9, -8.0, 8.0, -9.0]), T.INT4, loss)
    assert found[:2].astype(int).tolist() == [7, -8]
    assert loss.overflows == 2
    loss = Loss()
    convert(np.array([1 << 63, 5], np.uint64), T.INT64, loss)
    assert loss.overflows == 1
    loss = Loss()
    convert(np.array([np.nan, 1.0]), T.INT32, loss)
    assert loss.nans == 1
    loss = Loss()
    assert convert(np.array([1e-30, 1.0]), T.FLOAT16, loss).tolist() == [0, 1]
    assert (loss.underflows, loss.changed, loss.worst) == (1, 1, 1e-30)


def test_packed_elements_are_those_of_onnx():
    for number in (T.INT4, T.UINT4, T.FLOAT4E2M1, T.INT8, T.FLOAT, T.BFLOAT16, 25, 27):
        array = np.arange(2).repeat(5).astype(helper.tensor_dtype_to_np_dtype(number))
        assert packed(array) == numpy_helper.from_array(array).raw_data


# ---- every fixture and real models, run before and after


@VALID
@pytest.mark.parametrize(
    "operation",
    [
        ToConstant(at="weight:*"),
        ToInitializer(at="op:Constant"),
        ShareEqualWeights(),
        TransposeWeight(at="weight:*"),
        CastWeight(at="dtype:float32 & weight:*", to="float16", overflow="clamp"),
        StripWeights(few=0, anonymize=True),
    ],
    ids=lambda each: each.word,
)
def test_fixtures_run_as_before(case, operation):
    """Bit for bit where the operation changes nothing, within rounding where it says so (``verify``)."""
    from onnxbench.errors import BenchError
    from onnxbench.recipe import Step

    model = load(case.path)
    before = model.proto.SerializeToString(deterministic=True)
    try:
        done = edit(model, [Step(operation, expect="optional")], verify=case.feeds())
    except BenchError as error:
        assert isinstance(error, (RefusedResultError, UnsupportedError)), error
        assert error.hint or "sparse" in str(error) or "Constant" in str(error) or "training" in str(error)
    else:
        assert done.passed
        scratch = model.scratch.path
        assert scratch is None or scratch.exists()
    assert model.proto.SerializeToString(deterministic=True) == before


@pytest.mark.corpus
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize(
    "operation",
    [
        ToConstant(at="weight:* & dtype:float32"),
        ToInitializer(at="op:Constant"),
        ShareEqualWeights(),
        TransposeWeight(at="weight:* & dtype:float32"),
        CastWeight(at="weight:* & dtype:float32", to="float16", overflow="clamp"),
        StripWeights(anonymize=True),
    ],
    ids=lambda each: each.word,
)
def test_real_models_run_as_before(corpus, name, operation):
    from onnxbench.recipe import Step

    path, _ = corpus(name)
    done = edit(load(path), [Step(operation, expect="optional")], verify=True)
    assert done.passed
    if done.steps[0].matched == 0:
        return
    drift = done.steps[0].drift
    assert drift is not None
    if operation.effect == "nothing":
        assert drift.bitwise_equal


# ---- round trips and what stays


def _can_go_back(proto: onnx.ModelProto) -> bool:
    """Tells whether a model has initializers in its main graph, all plain, and no Constants."""
    defaults = {info.name for info in proto.graph.input} & {t.name for t in proto.graph.initializer}
    constants = any(ref.node.op_type == "Constant" for ref in GraphIndex(proto).nodes())
    return bool(proto.graph.initializer) and not constants and (not defaults or proto.ir_version < 4)


SIMPLE = cases(lambda case: case.valid == "yes" and case.engine == "ort" and _can_go_back(load(case.path).proto))


@SIMPLE
def test_there_and_back_gives_the_model_again(case):
    """All initializers made Constants and initializers again: only their order may differ."""
    model = load(case.path)
    if edit(model, [], stamp=False).repairs:
        model = edit(model, [], stamp=False).model
    there = edit(model, [ToConstant(at="weight:*")], stamp=False).model
    assert not there.proto.graph.initializer
    back = edit(there, [ToInitializer(at="op:Constant")], stamp=False).model.proto
    original = type(back)()
    original.CopyFrom(model.proto)
    for proto in (back, original):
        for name in ("initializer", "sparse_initializer", "input"):
            repeated = getattr(proto.graph, name)
            copies = sorted((type(item).FromString(item.SerializeToString()) for item in repeated), key=_key)
            del repeated[:]
            repeated.extend(copies)
    assert back.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)


def _key(item) -> str:
    return item.values.name if hasattr(item, "indices") else item.name


DENSE = [number for number in range(1, 27) if number not in (T.STRING, T.FLOAT8E8M0)]


@pytest.mark.parametrize("number", DENSE)
def test_weights_of_every_type(number, tmp_path):
    """Transposed, made a Constant where the opset has one of that type, shared with an equal one, and stripped."""
    array = np.random.RandomState(0).randint(0, 2, (30, 5)).astype(helper.tensor_dtype_to_np_dtype(number))
    proto = onnx.ModelProto(ir_version=14, opset_import=[helper.make_opsetid("", 28)])
    proto.graph.name = "g"
    for name in ("a", "b"):
        proto.graph.initializer.append(tensor(name, array))
        proto.graph.node.append(helper.make_node("Identity", [name], [f"y{name}"]))
        proto.graph.output.append(helper.make_tensor_value_info(f"y{name}", number, [30, 5]))
    path = tmp_path / "m.onnx"
    path.write_bytes(proto.SerializeToString())
    raw = numpy_helper.from_array(array).raw_data
    done = edit(path, [TransposeWeight(at="a"), ShareEqualWeights()]).model
    (a, b) = done.proto.graph.initializer
    assert (list(a.dims), a.name, b.name) == ([5, 30], "a_transposed", "b")
    turned = numpy_helper.from_array(np.ascontiguousarray(array.T)).raw_data
    assert numpy_helper.from_array(done.array(a)).raw_data == turned
    done = edit(path, [ShareEqualWeights()]).model
    (a,) = done.proto.graph.initializer
    assert numpy_helper.from_array(done.array(a)).raw_data == raw
    assert [node.input[0] for node in done.proto.graph.node] == ["a", "a"]
    stripped = edit(path, [StripWeights(also="weight:*")])
    assert values(stripped.model).keys() == {"/a", "/b"}
    if number != T.BOOL:
        assert values(stripped.model)["/a"] != raw
        made = stripped.model.array(stripped.model.proto.graph.initializer[0])
        assert (made.shape, made.dtype) == (array.shape, array.dtype)


def test_large_weights_are_transposed_in_pieces(tmp_path, monkeypatch):
    from onnxbench.operations import _transposition

    monkeypatch.setattr(_transposition, "_HELD", 1)
    array = np.random.RandomState(0).rand(5, 700, 900).astype(np.float32)
    path = tmp_path / "big.onnx"
    path.write_bytes(linear(tensor("w", array)).SerializeToString())
    for perm in ([2, 0, 1], [1, 0, 2], [0, 2, 1], [2, 1, 0]):
        done = edit(path, [TransposeWeight(at="w", perm=perm)]).model
        assert (done.array(done.proto.graph.initializer[0]) == array.transpose(perm)).all()


def test_nothing_but_the_weight_changes(tmp_path):
    """Every field of a model with metadata at all levels, byte for byte, but for the one weight and its Cast."""
    model = load(named("metadata_everywhere").path)
    name = next(t.name for t in model.proto.graph.initializer if t.data_type == T.FLOAT)
    done = edit(model, [CastWeight(at=f'"{name}"', to="float16")], stamp=False).model.proto
    done = type(done).FromString(done.SerializeToString())
    (cast,) = [node for node in done.graph.node if node.op_type == "Cast" and node.output[0] == name]
    done.graph.node.remove(cast)
    (stored,) = [t for t in done.graph.initializer if t.name == cast.input[0]]
    (old,) = [t for t in model.proto.graph.initializer if t.name == name]
    assert (stored.doc_string, list(stored.metadata_props)) == (old.doc_string, list(old.metadata_props))
    stored.CopyFrom(old)
    assert done.SerializeToString(deterministic=True) == model.proto.SerializeToString(deterministic=True)


def test_annotations_follow_shared_weights():
    model = load(named("quantization_annotation").path)
    scales = [e.value for a in model.proto.graph.quantization_annotation for e in a.quant_parameter_tensor_names]
    twin = T()
    twin.CopyFrom(next(t for t in model.proto.graph.initializer if t.name == scales[0]))
    twin.name = "aaa_first"
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    proto.graph.initializer.insert(0, twin)
    done = edit(from_proto(proto), [ShareEqualWeights()]).model.proto
    assert scales[0] not in {t.name for t in done.graph.initializer}
    named_now = {e.value for a in done.graph.quantization_annotation for e in a.quant_parameter_tensor_names}
    assert "aaa_first" in named_now
    assert scales[0] not in named_now


# ---- sharing


def test_shared_by_bytes_not_by_values(tmp_path):
    a = np.array([[0.0, np.nan]], np.float32)
    b = np.array([[-0.0, np.nan]], np.float32)
    typed = helper.make_tensor("typed", T.FLOAT, [1, 2], [0.0, float("nan")])
    proto = linear(tensor("a", a), tensor("b", b), tensor("c", a.copy()), typed)
    done = edit(from_proto(proto), [ShareEqualWeights()]).model.proto
    assert [t.name for t in done.graph.initializer] == ["a", "b"]
    assert [node.input[1] for node in done.graph.node] == ["a", "b", "a", "a"]


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["ddddocr_rec_dynq", "light_densenet121"])
def test_weights_of_real_models_are_shared(corpus, name):
    path, _ = corpus(name)
    model = load(path)
    done = edit(model, [ShareEqualWeights()], verify=True)
    before, after = values(model), values(done.model)
    assert len(after) < len(before)
    assert all(before[key] == data for key, data in after.items())
    assert {(k, d) for k, d in before.items()} >= set(after.items())
    assert len(set(after.values())) == len(set(before.values()))


def test_a_name_of_a_body_is_not_captured_instead():
    """A body that captures a weight, and has something of its own that is called like the weight's twin."""
    inner = helper.make_graph(
        [helper.make_node("Add", ["b", "a"], ["r"])], "then", [], [helper.make_tensor_value_info("r", 1, [2])],
        [tensor("a", np.array([5, 5], np.float32))],
    )  # fmt: skip
    other = helper.make_graph(
        [helper.make_node("Neg", ["b"], ["q"])], "else", [], [helper.make_tensor_value_info("q", 1, [2])]
    )
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["x", "a"], ["s"]),
            helper.make_node("If", ["c"], ["t"], then_branch=inner, else_branch=other),
            helper.make_node("Add", ["s", "t"], ["y"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", 1, [2]), helper.make_tensor_value_info("c", T.BOOL, [])],
        [helper.make_tensor_value_info("y", 1, [2])],
        [tensor("a", np.array([1, 2], np.float32)), tensor("b", np.array([1, 2], np.float32))],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    from onnxbench.draft import Draft

    draft = Draft.of(from_proto(proto))  # not through ``edit``: onnx's checker does not accept such names
    ShareEqualWeights().apply(draft)
    assert {t.name for t in draft.model.proto.graph.initializer} == {"a", "b"}


# ---- stripping


@pytest.mark.parametrize("number", [T.FLOAT, T.DOUBLE, T.FLOAT16, T.BFLOAT16, T.INT8, T.UINT8, T.INT4, T.FLOAT8E4M3FN])
@pytest.mark.parametrize("size", [40, 3000, 200_000])
def test_imitations_have_the_same_statistics(number, size):
    draw = np.random.RandomState(1)
    array = np.where(draw.rand(size) < 0.2, 0, draw.gamma(2.0, 1.5, size) - 2)
    array = np.abs(array) if number == T.UINT8 else array
    held = from_proto(linear(tensor("w", array.astype(helper.tensor_dtype_to_np_dtype(number)))))
    like = weighing.statistics(held, held.proto.graph.initializer[0])
    assert like is not None
    made = np.concatenate(list(imitate(like, number, size, "w", 0)))
    assert made.dtype == helper.tensor_dtype_to_np_dtype(number)
    assert made.size == size
    new = from_proto(linear(tensor("w", made)))
    found = weighing.statistics(new, new.proto.graph.initializer[0])
    assert found is not None
    assert (found.minimum, found.maximum) == (like.minimum, like.maximum)
    assert found.mean == pytest.approx(like.mean, abs=(0.2 if size < 100 else 0.03) * like.std)
    assert found.std == pytest.approx(like.std, rel=0.2 if size < 100 else 0.04)
    assert found.zeros / size == pytest.approx(like.zeros / size, abs=0.12 if number in (T.FLOAT4E2M1,) else 0.02)
    assert (made.astype(np.float64) == array.astype(made.dtype).astype(np.float64)).mean() < 0.6


def test_rare_values_are_not_lost():
    like = weighing.Statistics(3_000_000, -9.0, 11.0, 0.1, 1.0, 0, 1, 2)
    made = np.concatenate(list(imitate(like, T.FLOAT, like.elements, "w", 0)))
    assert (np.isnan(made).sum(), np.isinf(made).sum()) == (1, 2)
    finite = made[np.isfinite(made)]
    assert (finite.min(), finite.max()) == (-9.0, 11.0)


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["minilm_int8w", "minilm_int8w_ext", "ppocr_v2_cls", "open_nsfw_resnet"])
def test_stripped_models_hold_nothing_of_the_weights(corpus, name, tmp_path):
    path, _ = corpus(name)
    model = load(path)
    done = edit_file(path, tmp_path / "out.onnx", [StripWeights(anonymize=True)], verify=True)
    assert done.saved is not None
    index = GraphIndex(model.proto)
    steers = {(scope.path, name) for scope, name in steering(index)}
    data = (tmp_path / "out.onnx").read_bytes()
    looked = []
    for old, new in zip(
        weighing.stored_values(index), weighing.stored_values(GraphIndex(done.edited.model.proto)), strict=True
    ):
        if old.elements > 64 and old.tensor.data_type in (T.FLOAT, T.INT8) and (old.scope.path, old.name) not in steers:
            array, made = model.array(old.tensor), done.edited.model.array(new.tensor)
            if len(np.unique(array)) > 8:
                assert (array == made).mean() < 0.1, old.path
                looked.append((old.bytes, array.tobytes()[:64]))
    assert len(looked) > 10
    assert not any(raw in data for _, raw in sorted(looked)[-4:])
    names = {node.name for node in model.proto.graph.node if len(node.name) > 5}
    assert not any(name.encode() in data for name in names)
    again = edit_file(path, tmp_path / "again.onnx", [StripWeights(anonymize=True)])
    assert again.saved is not None
    assert (tmp_path / "again.onnx").read_bytes() == data
    edit_file(path, tmp_path / "other.onnx", [StripWeights(anonymize=True, seed=1)])
    assert (tmp_path / "other.onnx").read_bytes() != data


def test_scales_and_shapes_stay_when_stripped():
    model = load(named("qdq_conv").path)
    done = edit(model, [StripWeights(few=0)])
    before, after = values(model), values(done.model)
    read_as_data = {n.input[0] for n in model.proto.graph.node if n.op_type == "DequantizeLinear"}
    parameters = {name for n in model.proto.graph.node if "Quantize" in n.op_type or "quantize" in n.op_type
                  for name in n.input[1:]}  # fmt: skip
    assert parameters
    assert all(before[f"/{name}"] == after[f"/{name}"] for name in parameters)
    changed = {key for key in before if before[key] != after[key]}
    assert changed >= {f"/{name}" for name in read_as_data if f"/{name}" in before}
    assert any("quantization parameters" in note for note in done.steps[0].notes)


def test_what_a_selector_names_stays_or_goes():
    proto = linear(*(tensor(name, np.random.RandomState(0).rand(9, 9).astype(np.float32)) for name in "abc"))
    proto.graph.initializer.append(tensor("unread", np.arange(99)))
    done = edit(from_proto(proto), [StripWeights(keep="b", also="unread")]).model
    before, after = values(from_proto(proto)), values(done)
    assert {key for key in before if before[key] != after[key]} == {"/a", "/c", "/unread"}


# ---- files


def test_a_large_npy_file_is_referred_to(tmp_path):
    array = np.random.RandomState(0).rand(64, 64).astype(np.float32)
    np.save(tmp_path / "w.npy", array)
    np.savez(tmp_path / "all.npz", w=array * 2)
    path = tmp_path / "m.onnx"
    path.write_bytes(linear(tensor("w", np.zeros((64, 64), np.float32))).SerializeToString())
    recipe = tmp_path / "r.yaml"
    recipe.write_text("- set_weight: {at: w, value: {file: w.npy}}\n")
    done = edit(path, recipe)
    (stored,) = done.model.proto.graph.initializer
    where = done.model.byte_range(stored)
    assert where is not None
    assert where.file == tmp_path / "w.npy"
    save(done.model, tmp_path / "out.onnx")
    feeds = {"x": np.ones((64, 64), np.float32)}
    assert run_ort(tmp_path / "out.onnx", feeds)["t0"][2] == array.tobytes()
    recipe.write_text('- set_weight: {at: w, value: {file: "all.npz:w"}}\n')
    done = edit(path, recipe)
    assert (done.model.array(done.model.proto.graph.initializer[0]) == array * 2).all()
    np.save(tmp_path / "w64.npy", array.astype(np.float64))
    recipe.write_text("- set_weight: {at: w, value: {file: w64.npy}}\n")
    with pytest.raises(RefusedResultError, match="float64") as caught:
        edit(path, recipe)
    assert "dtype: float32" in str(caught.value)
    recipe.write_text("- set_weight: {at: w, value: {file: w64.npy, dtype: float32}}\n")
    assert edit(path, recipe).changes
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "r.yaml").write_text("- set_weight: {at: w, value: {file: ../w.npy}}\n")
    with pytest.raises(ExternalDataError, match="outside"):
        edit(path, tmp_path / "inner" / "r.yaml")


def test_shared_ranges_stay_shared(tmp_path):
    """Two weights that are one range of a file: cast, stripped or left alone, their bytes are written once."""
    array = np.random.RandomState(0).rand(400, 300).astype(np.float32)
    proto = linear(tensor("a", array), tensor("b", array))
    path = tmp_path / "m.onnx"
    (tmp_path / "w.bin").write_bytes(array.tobytes())
    for each in proto.graph.initializer:
        each.ClearField("raw_data")
        each.data_location = T.EXTERNAL
        each.external_data.add(key="location", value="w.bin")
    path.write_bytes(proto.SerializeToString())
    for operation, size in ((CastWeight(at="weight:*", to="float16"), 2), (StripWeights(), 4)):
        out = tmp_path / f"{operation.word}.onnx"
        done = edit_file(path, out, [operation, Externalize()])
        assert done.saved is not None
        assert done.saved.external_size == array.size * size
        a, b = (numpy_helper.to_array(t) for t in onnx.load(str(out)).graph.initializer)
        assert (a == b).all()


def test_wishes_how_to_save_are_followed(tmp_path):
    array = np.random.RandomState(0).rand(40, 30).astype(np.float32)
    path = tmp_path / "m.onnx"
    path.write_bytes(linear(tensor("a", array)).SerializeToString())
    out = tmp_path / "out.onnx"
    done = edit_file(path, out, [Externalize(location="w.bin")])
    assert done.saved is not None
    assert [file.name for file in done.saved.external_files] == ["w.bin"]
    inline = edit_file(out, tmp_path / "inline.onnx", [InlineWeights()])
    assert inline.saved is not None
    assert not inline.saved.external_files
    told = edit_file(path, tmp_path / "told.onnx", [Externalize()], options=SaveOptions(external=False))
    assert told.saved is not None
    assert not told.saved.external_files


# ---- gigabytes


def giant(tmp_path: Path, count: int, side: int) -> Path:
    """Writes a model of holes: ``count`` weights of ``side`` x ``side`` float32 in a file that takes no space."""
    proto = onnx.ModelProto(ir_version=9, opset_import=[helper.make_opsetid("", 17)])
    proto.graph.name = "big"
    previous, size = "x", side * side * 4
    for number in range(count):
        held = proto.graph.initializer.add(name=f"w{number}", data_type=1, dims=[side, side], data_location=T.EXTERNAL)
        for key, value in (("location", "big.bin"), ("offset", str(number * size)), ("length", str(size))):
            held.external_data.add(key=key, value=value)
        proto.graph.node.append(helper.make_node("MatMul", [previous, f"w{number}"], [f"t{number}"]))
        previous = f"t{number}"
    proto.graph.initializer.append(tensor("bias", np.ones(side, np.float32)))
    proto.graph.node.append(helper.make_node("Add", [previous, "bias"], ["y"]))
    proto.graph.input.append(helper.make_tensor_value_info("x", 1, [1, side]))
    proto.graph.output.append(helper.make_tensor_value_info("y", 1, [1, side]))
    (tmp_path / "big.onnx").write_bytes(proto.SerializeToString())
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(count * size)
    return tmp_path / "big.onnx"


_CHILD = """
import sys
from onnxbench.operations import *
from onnxbench.operations import SetWeight, CastWeight, TransposeWeight, ShareEqualWeights, StripWeights, ToConstant
from onnxbench.surgery import edit_file
from onnxbench.writer import SaveOptions
edit_file("big.onnx", "out.onnx", [eval(sys.argv[1])], options=SaveOptions(share_weights=True))
(line,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(line.split()[1])
"""


def peak(folder: Path, operation: str) -> int:
    """Returns the peak memory in kB of a process that edits ``big.onnx``; its temporary folder is empty afterwards."""
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, operation], cwd=folder, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "TMPDIR": str(temporary), "PATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not list(temporary.iterdir())
    return int(done.stdout)


@pytest.mark.parametrize(
    "operation",
    [
        "SetWeight(at='bias', value={'full': 2.0})",
        "CastWeight(at='bias', to='float16')",
        "StripWeights(at='bias')",
        "ToConstant(at='bias')",
        "ShareEqualWeights(at='bias')",
    ],
)
def test_three_gigabytes_that_do_not_change_are_not_read(tmp_path, operation):
    giant(tmp_path, 3, 16384)
    assert peak(tmp_path, operation) < 150_000


@pytest.mark.parametrize(
    ("operation", "limit"),
    [
        ("CastWeight(at='w0', to='bfloat16')", 250_000),
        ("StripWeights(at='w0')", 250_000),
        ("ShareEqualWeights(at='w0 | w1')", 150_000),
    ],
)
def test_large_weights_change_in_bounded_memory(tmp_path, operation, limit):
    """A weight of 256 MB is read and written in blocks; what it becomes lies in a temporary file that is gone after."""
    giant(tmp_path, 2, 8192)
    assert peak(tmp_path, operation) < limit


def test_a_failed_edit_leaves_no_temporary_file(tmp_path, monkeypatch):
    import gc
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    good, bad = np.zeros((99, 99), np.float32), np.full((99, 99), 1e9, np.float32)
    model = from_proto(linear(tensor("a", good), tensor("b", bad)))
    with pytest.raises(RefusedResultError, match="does not reach"):
        edit(model, [CastWeight(at="weight:*", to="float16")])
    assert model.scratch.path is not None
    del model
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_what_lies_in_the_temporary_file_can_be_edited_on():
    """Cast, transposed and cast again: each step reads what the one before has written."""
    array = np.random.RandomState(0).rand(99, 99).astype(np.float32)
    model = from_proto(linear(tensor("a", array)))
    steps = [
        CastWeight(at="a", to="float16"),
        TransposeWeight(at="a_float16"),
        CastWeight(at="a_float16*", to="float64"),
    ]
    done = edit(model, steps)
    (stored,) = done.model.proto.graph.initializer
    assert (done.model.array(stored) == array.astype(np.float16).T.astype(np.float64)).all()
    assert weights.is_outside(stored)
    again = edit(done.model, [SetWeight(at=f'"{stored.name}"', value={"full": 1})])
    assert (again.model.array(again.model.proto.graph.initializer[0]) == 1).all()


# -- adding ------------------------------------------------------------------------------------------------------

PLAIN = """
<ir_version: 8, opset_import: ["" : 21]>
net (float[3] x) => (float[3] y) { h = Relu (x) y = Neg (h) }
"""


def test_a_weight_that_nothing_reads_is_told_after_the_last_step():
    model = parse(PLAIN)
    alone = edit(model, [AddWeight("w", [1.0, 2.0, 3.0])], stamp=False)
    assert alone.steps[0].notes == ("nothing reads 'w' after the last step",)
    assert onnx.numpy_helper.to_array(alone.model.proto.graph.initializer[0]).tolist() == [1, 2, 3]
    used = edit(model, [AddWeight("w", [1.0, 2.0, 3.0]), Insert(after="h", op="Add", inputs=["_", "w"])], stamp=False)
    assert not used.steps[0].notes
    renamed = edit(model, [AddWeight("w", 1.0), RenameTensor("w", "v"), RenameTensor("v", "u")], stamp=False)
    assert renamed.steps[0].notes == ("nothing reads 'w' after the last step",)
    gone = edit(model, [AddWeight("w", 1.0), RemoveDead()], stamp=False)
    assert not gone.steps[0].notes
    assert not gone.model.proto.graph.initializer


def test_large_weights_are_added_without_being_read(tmp_path, monkeypatch):
    array = np.arange(1 << 18, dtype=np.float32)
    np.save(tmp_path / "w.npy", array)
    (tmp_path / "r.yaml").write_text("- add_weight: {name: w, value: {file: w.npy}}\n")
    done = edit(parse(PLAIN), tmp_path / "r.yaml")
    (tensor,) = done.model.proto.graph.initializer
    assert weights.is_outside(tensor)
    save(done.model, tmp_path / "out.onnx")
    np.testing.assert_array_equal(numpy_helper.to_array(onnx.load(tmp_path / "out.onnx").graph.initializer[0]), array)
    with pytest.raises(RefusedResultError, match="there is a tensor 'w' already"):
        edit(done.model, tmp_path / "r.yaml")


@pytest.mark.parametrize(("dtype", "ir_version"), [("int4", 10), ("float8e5m2", 9), ("bfloat16", 8), ("string", 8)])
def test_the_ir_version_of_an_element_type_comes_along(dtype, ir_version):
    value = ["a"] if dtype == "string" else [1]
    done = edit(parse(PLAIN), [AddWeight("w", value, dtype=dtype)], stamp=False).model.proto
    assert done.ir_version == ir_version
    assert dtype_name(done.graph.initializer[0].data_type) == dtype
    onnx.checker.check_model(done, full_check=True)


@pytest.mark.parametrize("name", ["if_initializer_branch", "function_metadata", "dtypes_int4"])
def test_a_new_weight_leaves_the_rest_alone_and_can_be_undone(name, tmp_path):
    case = named(name)
    edit_file(case.path, tmp_path / "o.onnx", [AddWeight("w_new", [1])], save_undo=tmp_path / "u", stamp=False)
    before, after = onnx.load(case.path), onnx.load(tmp_path / "o.onnx")
    del after.graph.initializer[-1]
    assert after == before
    undo_file(tmp_path / "o.onnx", tmp_path / "back.onnx", tmp_path / "u")
    assert onnx.load(tmp_path / "back.onnx") == before


# -- training information ------------------------------------------------------------------------------------------


def test_the_weights_of_training_information_are_replaced_too(tmp_path):
    source = named("training_info").path
    done = edit(load(source), [StripWeights(few=1)], stamp=False)
    before, after = onnx.load(source), done.model.proto
    (old,), (new,) = before.training_info, after.training_info
    started = [numpy_helper.to_array(each.initialization.node[0].attribute[0].t) for each in (old, new)]
    assert not np.array_equal(*started)
    assert started[0].min() <= started[1].min()
    assert started[1].max() <= started[0].max()
    assert new.algorithm == old.algorithm, "a rate of one element stays"
    names = [change.where for change in done.changes]
    assert names == ["W", "training_info.0/initialization/W_start"]
    assert any("training_info.0/algorithm/rate" in note for note in done.steps[0].notes)
    new.initialization.node[0].attribute[0].t.CopyFrom(old.initialization.node[0].attribute[0].t)
    after.graph.initializer[0].CopyFrom(before.graph.initializer[0])
    assert after == before
    only = edit(load(source), [StripWeights(at="W", few=1)], stamp=False)
    assert only.model.proto.training_info == before.training_info


def test_names_that_training_information_goes_by_are_not_changed():
    with pytest.raises(UnsupportedError, match="goes by the names of tensors") as caught:
        edit(load(named("training_info").path), [StripWeights(few=1, anonymize=True)])
    assert "extract" in (caught.value.hint or "")
