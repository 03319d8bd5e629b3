"""Opset conversion: what a converted model computes is what it was, and all that is not converted stays as it is."""

from __future__ import annotations

import warnings
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import Case, cases, named
from corpus import fetch
from engines import ENGINES, run_ort, run_reference
from onnx import TensorProto as T
from onnx import helper, numpy_helper

from onnxbench.errors import BenchError, ModelError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex
from onnxbench.model import from_proto, load
from onnxbench.opsets import convert_opset, opset_number, standard_opset
from onnxbench.validity import find_complaints
from onnxbench.writer import save

RNG = np.random.default_rng(7)
IMAGE = RNG.random((1, 2, 5, 6), dtype=np.float32)


def _single(
    op: str,
    inputs: dict[str, np.ndarray],
    opset: int,
    outputs: int = 1,
    constants: tuple[Any, ...] = (),
    **attributes: Any,
) -> onnx.ModelProto:
    """Returns a model of one node; what is not among the inputs is a constant."""
    names = [*inputs, *(tensor.name for tensor in constants)]
    node = helper.make_node(op, names, [f"y{at}" for at in range(outputs)], name="node", **attributes)
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in inputs.items()
    ]
    ends = [
        helper.make_tensor_value_info(name, T.INT64 if at else T.FLOAT, None) for at, name in enumerate(node.output)
    ]
    graph = helper.make_graph([node], "single", given, ends, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def _stored(**values: Any) -> tuple[onnx.TensorProto, ...]:
    return tuple(numpy_helper.from_array(np.asarray(value), name) for name, value in values.items())


def _scales(*values: float) -> tuple[onnx.TensorProto, ...]:
    return _stored(scales=np.array(values, np.float32))


OLD: dict[str, onnx.ModelProto] = {
    "upsample 7": _single("Upsample", {"x": IMAGE}, 7, scales=[1.0, 1.0, 2.0, 2.0], mode="nearest"),
    "upsample 7 fraction": _single("Upsample", {"x": IMAGE}, 7, scales=[1.0, 1.0, 1.7, 2.3], mode="nearest"),
    "upsample 9 linear": _single("Upsample", {"x": IMAGE}, 9, constants=_scales(1, 1, 1.7, 2.3), mode="linear"),
    "resize 10 grows": _single("Resize", {"x": IMAGE}, 10, constants=_scales(1, 1, 1.7, 2.3), mode="nearest"),
    "resize 10 shrinks": _single("Resize", {"x": IMAGE}, 10, constants=_scales(1, 1, 0.6, 0.5), mode="nearest"),
    "resize 10 linear": _single("Resize", {"x": IMAGE}, 10, constants=_scales(1, 1, 0.5, 2), mode="linear"),
    "softmax 11 inner": _single("Softmax", {"x": IMAGE}, 11, axis=1),
    "softmax 11 last": _single("Softmax", {"x": IMAGE}, 11, axis=3),
    "softmax 11 default": _single("Softmax", {"x": IMAGE}, 11),
    "logsoftmax 9": _single("LogSoftmax", {"x": IMAGE}, 9, axis=2),
    "hardmax 11 inner": _single("Hardmax", {"x": IMAGE}, 11, axis=1),
    "hardmax 11 last": _single("Hardmax", {"x": IMAGE}, 11, axis=-1),
    "roialign 10": _single(
        "RoiAlign", {"x": IMAGE}, 10, output_height=2, output_width=2,
        constants=_stored(rois=np.array([[0, 0, 3, 3], [1, 1, 4, 4]], np.float32), batch=np.zeros(2, np.int64)),
    ),
    "pad 10": _single("Pad", {"x": IMAGE}, 10, pads=[0, 0, 1, 1, 0, 0, 2, 2], mode="reflect"),
    "slice 9": _single("Slice", {"x": IMAGE}, 9, starts=[1, -3], ends=[4, 1000], axes=[2, 3]),
    "topk 9": _single("TopK", {"x": IMAGE}, 9, 2, k=2, axis=2),
    "dropout 9": _single("Dropout", {"x": IMAGE}, 9, ratio=0.3),
    "clip 9": _single("Clip", {"x": IMAGE}, 9, max=0.5),
    "split 9": _single("Split", {"x": IMAGE}, 9, split=[2, 3], axis=2),
    "squeeze 11": _single("Squeeze", {"x": IMAGE}, 11, axes=[0]),
    "reducesum 11": _single("ReduceSum", {"x": IMAGE}, 11, axes=[1, -1], keepdims=0),
    "reducel2 11": _single("ReduceL2", {"x": IMAGE}, 11, axes=[1, -1], keepdims=0),
    "batchnorm 8": _single(
        "BatchNormalization", {"x": IMAGE}, 8, momentum=0.8,
        constants=_stored(**{name: RNG.random(2, dtype=np.float32) for name in ("s", "b", "m", "v")}),
    ),
    "gridsample 16": _single(
        "GridSample", {"x": IMAGE}, 16, mode="bicubic",
        constants=_stored(grid=RNG.random((1, 3, 3, 2), dtype=np.float32)),
    ),
    "lstm 7": _single(
        "LSTM", {"x": RNG.random((4, 1, 2), dtype=np.float32)}, 7, hidden_size=3,
        constants=_stored(w=RNG.random((1, 12, 2), dtype=np.float32), r=RNG.random((1, 12, 3), dtype=np.float32)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_old_operators_compute_the_same(name: str) -> None:
    proto = OLD[name]
    feeds = {"x": RNG.random(tuple(d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim), np.float32)}
    if name == "split 9":
        proto.graph.node[0].output.append("z")
    expected = run_ort(proto, feeds)
    before = proto.SerializeToString(deterministic=True)
    for target in (11, 13, 16, 18, 20, 21):
        if target > (standard_opset(proto) or 0):
            made, _ = convert_opset(from_proto(proto), target)
            assert standard_opset(made.proto) == target
            assert run_ort(made.proto, feeds) == expected, target
            assert "node" in {node.name for node in made.proto.graph.node}
    assert proto.SerializeToString(deterministic=True) == before


def test_a_shrinking_and_growing_resize_of_opset_10_is_refused() -> None:
    proto = _single("Resize", {"x": IMAGE}, 10, constants=_scales(1, 1, 0.5, 2), mode="nearest")
    with pytest.raises(UnsupportedError) as caught:
        convert_opset(from_proto(proto), 13)
    assert "Resize" in caught.value.message
    assert "'node'" in caught.value.details[0]


@pytest.mark.parametrize(
    ("proto", "target", "word"),
    [
        (_single("GroupNormalization", {"x": IMAGE}, 18, num_groups=1,
                 constants=_stored(s=np.ones(1, np.float32), b=np.ones(1, np.float32))), 21, "one scale per group"),
        (_single("GroupNormalization", {"x": IMAGE}, 21, num_groups=1,
                 constants=_stored(s=np.ones(2, np.float32), b=np.ones(2, np.float32))), 20, "no such operator"),
        (_single("Softmax", {"x": IMAGE}, 13, axis=1), 11, "all axes"),
        (_single("Gelu", {"x": IMAGE}, 20), 18, "no such operator"),
        (_single("Pad", {"x": IMAGE}, 19, mode="wrap", constants=_stored(p=np.array([0, 0, 1, 1, 0, 0, 1, 1]))), 18,
         "mode=wrap"),
        (_single("Mod", {"x": IMAGE, "z": IMAGE}, 13, fmod=1), 8, "too old"),
        (_single("ScatterND", {"x": IMAGE}, 18, reduction="max",
                 constants=_stored(i=np.zeros((1, 1), np.int64), u=np.ones((1, 2, 5, 6), np.float32))), 16,
         "reduction"),
        (_single("Relu", {"x": np.zeros(3, np.int8)}, 14), 13, "tensor(int8)"),
        (_single("Resize", {"x": IMAGE}, 11, constants=_stored(roi=np.zeros(0, np.float32),
                 scales=np.array([1, 1, 2, 2], np.float32)), coordinate_transformation_mode="tf_half_pixel_for_nn"), 13,
         "no longer knows"),
    ],
)  # fmt: skip
def test_what_cannot_be_said_is_refused_by_name(proto: onnx.ModelProto, target: int, word: str) -> None:
    with pytest.raises(UnsupportedError) as caught:
        convert_opset(from_proto(proto), target)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    ("proto", "target"),
    [
        (_single("Softmax", {"x": IMAGE}, 13, axis=-1), 9),
        (_single("Softmax", {"x": IMAGE}, 13), 10),
        (_single("Reshape", {"x": IMAGE}, 14, constants=_stored(shape=np.array([2, -1])), allowzero=1), 9),
        (_single("ReduceSum", {"x": IMAGE}, 13, constants=_stored(axes=np.array([-1])), noop_with_empty_axes=1), 9),
        (_single("Squeeze", {"x": IMAGE}, 21, constants=_stored(axes=np.array([0]))), 9),
        (_single("ReduceMax", {"x": IMAGE}, 20, constants=_stored(axes=np.array([-2]))), 10),
        (_single("GridSample", {"x": IMAGE}, 20, mode="linear",
                 constants=_stored(grid=RNG.random((1, 3, 3, 2), dtype=np.float32))), 16),
        (_single("Concat", {"x": IMAGE, "z": IMAGE}, 13, axis=-1), 9),
        (_single("Split", {"x": IMAGE}, 18, 1, num_outputs=1, axis=2), 13),
    ],
)  # fmt: skip
def test_down_and_the_numbers_stay(proto: onnx.ModelProto, target: int) -> None:
    feeds = {info.name: IMAGE for info in proto.graph.input}
    made, _ = convert_opset(from_proto(proto), target)
    assert not find_complaints(made.proto)
    assert run_ort(made.proto, feeds) == run_ort(proto, feeds)
    again, _ = convert_opset(made, standard_opset(proto) or 0)
    assert run_ort(again.proto, feeds) == run_ort(proto, feeds)


@cache
def _one_case_per_operator() -> list[Any]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        found = sorted(collect_testcases(None), key=lambda case: case.name)
    chosen: dict[str, Any] = {}
    for case in found:
        nodes = case.model.graph.node
        if len(nodes) == 1 and standard_opset(case.model) and case.data_sets:
            chosen.setdefault(nodes[0].op_type, case)
    return list(chosen.values())


def _feeds_of(case: Any) -> dict[str, Any]:
    readers = {onnx.TensorProto: numpy_helper.to_array, onnx.SequenceProto: numpy_helper.to_list,
               onnx.OptionalProto: numpy_helper.to_optional}  # fmt: skip
    values = zip(case.model.graph.input, case.data_sets[0][0], strict=True)
    return {info.name: readers.get(type(value), lambda same: same)(value) for info, value in values}


def _ran(proto: onnx.ModelProto, feeds: dict[str, Any]) -> tuple[str, Any]:
    for engine, run in (("ort", run_ort), ("reference", run_reference)):
        try:
            return engine, run(proto, feeds)
        except Exception:  # what an engine does not take the other one may
            continue
    return "none", None


@pytest.mark.parametrize("chunk", range(4))
def test_every_operator_at_every_version_it_changed(chunk: int) -> None:
    versions: dict[str, set[int]] = defaultdict(set)
    for schema in onnx.defs.get_all_schemas_with_history():
        if not schema.domain:
            versions[schema.name].add(schema.since_version)
    compared = 0
    for case in _one_case_per_operator()[chunk::4]:
        (node,) = case.model.graph.node
        if node.op_type.startswith("Random") or node.op_type in ("Bernoulli", "Multinomial", "Dropout"):
            continue
        feeds = _feeds_of(case)
        expected = _ran(case.model, feeds)
        own = standard_opset(case.model) or 0
        near = {v for since in versions[node.op_type] for v in (since, since - 1) if 9 <= v <= 24 and v != own}
        for target in sorted(near, key=lambda version: abs(version - own))[:4]:
            try:
                made, _ = convert_opset(from_proto(case.model), target)
            except (UnsupportedError, RefusedResultError):
                continue
            got = _ran(made.proto, feeds)
            if got[0] != expected[0]:
                continue
            compared += 1
            if got != expected:  # kernels of different versions may sum in another order
                for name, (kind, shape, data) in expected[1].items():
                    other = got[1][name]
                    assert (kind, shape) == other[:2], (case.name, target)
                    one, two = (np.frombuffer(raw, kind).astype(np.float64) for raw in (data, other[2]))
                    np.testing.assert_allclose(two, one, rtol=2e-3 if "16" in kind else 1e-4, err_msg=case.name)
    assert compared > 60


def _without_versions(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.ClearField("ir_version")
    for imports in (copy.opset_import, *(function.opset_import for function in copy.functions)):
        for opset in imports:
            if opset.domain in ("", "ai.onnx"):
                opset.version = 0
    return copy


def _rest(proto: onnx.ModelProto, both: set[bytes]) -> list[bytes]:
    """Returns all nodes of all graphs that are also in the other model, in order."""
    nodes = (ref.node.SerializeToString(deterministic=True) for ref in GraphIndex(proto).nodes())
    return [node for node in nodes if node in both]


def _by_name(proto: onnx.ModelProto) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for ref in GraphIndex(proto).nodes():
        if ref.node.name:
            found[ref.node.name].append(ref.node)
    return found


@cases(lambda case: case.valid == "yes" and case.path.suffix == ".onnx")
def test_all_that_is_not_converted_stays(case: Case) -> None:
    model = load(case.path)
    own = standard_opset(model.proto)
    before = model.proto.SerializeToString(deterministic=True)
    for target in (13, 18, 21, 22):
        try:
            made, _ = convert_opset(model, target)
        except BenchError as error:
            assert isinstance(error, (UnsupportedError, RefusedResultError, ModelError)), error
            assert str(error)
            continue
        finally:
            assert model.proto.SerializeToString(deterministic=True) == before
        assert standard_opset(made.proto) == target
        if target == own:
            continue
        old, new = _without_versions(model.proto), _without_versions(made.proto)
        if len(old.graph.node) == len(new.graph.node) and len(old.graph.initializer) == len(new.graph.initializer):
            theirs = {ref.node.SerializeToString(deterministic=True) for ref in GraphIndex(new).nodes()}
            ours = {ref.node.SerializeToString(deterministic=True) for ref in GraphIndex(old).nodes()}
            assert _rest(old, theirs) == _rest(new, ours)
        carriers, bearers = _by_name(new), _by_name(old)
        for name, held in bearers.items():
            if len(held) == 1 and len(carriers[name]) == 1:
                assert list(carriers[name][0].metadata_props) == list(held[0].metadata_props)
                assert carriers[name][0].doc_string == held[0].doc_string
        for one in (old, new):
            del one.graph.node[:], one.graph.initializer[:], one.graph.value_info[:], one.functions[:]
            one.opset_import.sort(key=lambda opset: opset.domain)
            for opset in [o for o in one.opset_import if o.domain in ("", "ai.onnx")]:
                one.opset_import.remove(opset)
        assert new.SerializeToString(deterministic=True) == old.SerializeToString(deterministic=True)


@cases(lambda case: case.valid == "yes" and case.engine == "ort" and case.path.suffix == ".onnx")
def test_fixtures_compute_the_same(case: Case, tmp_path: Path) -> None:
    model = load(case.path)
    feeds = case.feeds()
    expected = run_ort(case.path, feeds)
    for target in (13, 15, 18, 21):
        try:
            made, _ = convert_opset(model, target)
            save(made, tmp_path / "made.onnx")
            got = run_ort(tmp_path / "made.onnx", feeds)
        except BenchError:
            continue
        assert got == expected, target


def test_functions_are_converted_with_all_they_carry() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 11, "local" : 1]>
        agraph (float[1, 3] x) => (float[3] y) { y = local.f (x) }
        <domain: "local", opset_import: ["" : 11]>
        f (a) => (b) { s = Squeeze <axes = [0]> (a)  b = Relu (s) }
    """)
    function = proto.functions[0]
    function.doc_string = "said"
    function.node[0].name = "squeeze"
    function.node[0].metadata_props.add(key="scope", value="layer")
    feeds = {"x": np.array([[-1, 2, 3]], np.float32)}
    made, notes = convert_opset(from_proto(proto), 18)
    (converted,) = made.proto.functions
    assert converted.doc_string == "said"
    assert {opset.domain: opset.version for opset in converted.opset_import}[""] == 18
    assert [node.op_type for node in converted.node] == ["Constant", "Squeeze", "Relu"]
    assert [[entry.value for entry in node.metadata_props] for node in converted.node] == [["layer"], ["layer"], []]
    assert any("Squeeze" in note for note in notes)
    assert run_ort(made.proto, feeds) == run_ort(proto, feeds)


def test_an_attribute_that_the_caller_gives_and_that_became_an_input_is_refused() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 11, "local" : 1]>
        agraph (float[1, 3] x) => (float[3] y) { y = local.f <axes = [0]> (x) }
        <domain: "local", opset_import: ["" : 11]>
        f <axes> (a) => (b) { b = Squeeze <axes : ints = @axes> (a) }
    """)
    with pytest.raises(UnsupportedError) as caught:
        convert_opset(from_proto(proto), 13)
    assert "axes" in caught.value.details[0]
    assert "Inline" in (caught.value.hint or "")


def test_constants_in_bodies_and_captures() -> None:
    case = named("nested_bodies")
    made, _ = convert_opset(load(case.path), 21)
    assert run_ort(made.proto, case.feeds()) == run_ort(case.path, case.feeds())


def test_a_function_that_shadows_a_standard_operator_is_not_converted() -> None:
    case = named("function_shadows_standard")
    model = load(case.path)
    made, _ = convert_opset(model, 21)
    assert [node.op_type for node in made.proto.graph.node] == [node.op_type for node in model.proto.graph.node]


def test_spelling_of_versions() -> None:
    assert opset_number("latest") == onnx.defs.onnx_opset_version()
    assert opset_number(" 17 ") == opset_number(17) == 17
    for wrong in ("seventeen", "0", 10_000, "-1", "17.0"):
        with pytest.raises(UsageError):
            opset_number(wrong)


def test_the_axis_of_a_one_hot_is_counted_in_what_it_makes() -> None:
    proto = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 13]>
        agraph (int64[2, 2] x) => (float[2, 3, 2] y) <int64 depth = {3}, float[2] values = {0, 1}>
        { y = OneHot <axis = -2> (x, depth, values) }
    """)
    feeds = {"x": np.array([[0, 1], [2, 0]])}
    made, _ = convert_opset(from_proto(proto), 10)
    assert run_ort(made.proto, feeds) == run_ort(proto, feeds)


def test_the_same_version_is_the_same_model() -> None:
    model = load(named("linear_func.onnx").path)
    same, notes = convert_opset(model, standard_opset(model.proto) or 0)
    assert same is model
    assert notes == ()


def test_two_versions_of_the_standard_domain_are_refused() -> None:
    proto = _single("Relu", {"x": IMAGE}, 13)
    proto.opset_import.add(domain="ai.onnx", version=14)
    with pytest.raises(ModelError):
        convert_opset(from_proto(proto), 15)


def test_an_operator_that_onnx_does_not_know_is_named() -> None:
    proto = _single("Swirl", {"x": IMAGE}, 13)
    with pytest.raises(UnsupportedError) as caught:
        convert_opset(from_proto(proto), 15)
    assert "Swirl" in caught.value.message


def test_weights_are_not_read(tmp_path: Path) -> None:
    size = 3 << 30
    proto = _single("MatMul", {"x": np.zeros((1, 1 << 15), np.float32)}, 11)
    proto.graph.node[0].input.append("w")
    weight = proto.graph.initializer.add(name="w", data_type=1, dims=[1 << 15, size // 4 >> 15], data_location=1)
    weight.external_data.add(key="location", value="w.bin")
    (tmp_path / "m.onnx").write_bytes(proto.SerializeToString())
    with open(tmp_path / "w.bin", "wb") as out:
        out.truncate(size)
    model = load(tmp_path / "m.onnx")
    made, _ = convert_opset(model, 21)
    (same,) = made.proto.graph.initializer
    assert same == weight


def test_converting_twice_gives_the_same_bytes() -> None:
    model = load(named("whole_model.onnx").path)
    one, other = (convert_opset(model, 21)[0].proto.SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("attacut_c", (15, 21)), ("ppocr_v4_rec", (13, 18)), ("ppocr_v2_cls", (13, 18)), ("silero_vad", (13, 18)),
        ("nakdimon_loop", (13, 18)), ("light_shufflenet", (13, 17)), ("minilm_int8w_ext", (18, 20)),
        ("ddddocr_rec", (9, 17)), ("swift_f0", (13, 20)), ("eeg_spindle_unet", (11, 18)),
    ],
)  # fmt: skip
def test_real_models_compute_the_same(corpus: Any, tmp_path: Path, name: str, targets: tuple[int, ...]) -> None:
    path, entry = corpus(name)
    feeds = fetch.seeded_feeds(path, entry)
    model = load(path)
    expected = ENGINES["ort"](path, feeds)
    scopes = [list(ref.node.metadata_props) for ref in GraphIndex(model.proto).nodes()]
    for target in targets:
        made, _ = convert_opset(model, target)
        save(made, tmp_path / "made.onnx")
        assert ENGINES["ort"](tmp_path / "made.onnx", feeds) == expected, target
        kept = {tuple((e.key, e.value) for e in ref.node.metadata_props) for ref in GraphIndex(made.proto).nodes()}
        assert {tuple((e.key, e.value) for e in entries) for entries in scopes} <= kept
