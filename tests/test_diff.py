"""``diff``: every difference once, and nothing that is none."""

from __future__ import annotations

import json
import random
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import cases, named
from corpus import fetch
from edits import Editor, copy_of, disguised, graphs, rename
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper, parser
from strategies import RandomModel, models

import onnxbench
from onnxbench import diffing
from onnxbench.cli import main
from onnxbench.diffing import Change, DiffReport, diff
from onnxbench.errors import ExternalDataError, ModelError, NotFoundError, UsageError
from onnxbench.model import Model, from_proto, load
from onnxbench.operations import SetAttribute
from onnxbench.surgery import edit_file
from onnxbench.version import STAMP

BASE = """
<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
net (float[N, 4] x, bool c) => (float[N, 4] y, float[N, 4] z)
<float[4] w = {1, 2, 3, 4}, float[4] v = {5, 6, 7, 8}, float[N, 4] a>
{
  [mul] a = Mul (x, w)
  [leaky] b = LeakyRelu <alpha: float = 0.25> (a)
  [sum] s = Add (b, v)
  [call] f = local.Block (s)
  [if] y = If (c) <
    then_branch = yes () => (float[N, 4] r) { [neg] r = Neg (f) },
    else_branch = no () => (float[N, 4] r) { [inner] t = Add (f, w) [tanh] r = Tanh (t) }
  >
  [soft] z = Softmax <axis: int = -1> (s)
}
<domain: "local", opset_import: ["" : 17]>
Block (p) => (q) { m = Relu (p) q = Exp (m) }
"""


def base() -> onnx.ModelProto:
    return parser.parse_model(BASE)


def node(proto: Any, name: str) -> onnx.NodeProto:
    (found,) = [node for graph in graphs(proto) for node in graph.node if node.name == name]
    return found


def compare(a: onnx.ModelProto, b: onnx.ModelProto, **options: Any) -> DiffReport:
    return diff(from_proto(a), from_proto(b), **options)


def only(report: DiffReport) -> Change:
    assert len(report.changes) == 1, report.changes
    return report.changes[0]


def rows(report: DiffReport) -> list[tuple[Any, ...]]:
    return [
        (change.sign, change.kind, change.where, change.what, change.before, change.after) for change in report.changes
    ]


# ---- what is equal


@cases(lambda case: case.valid != "no")
def test_a_model_equals_itself(case):
    assert diff(case.path, case.path).equal


@cases(lambda case: case.valid == "no")
def test_a_broken_model_equals_itself_or_is_refused(case):
    try:
        report = diff(case.path, case.path)
    except onnxbench.BenchError as error:
        assert error.exit_code not in (1, 70), error
    else:
        assert report.equal


@pytest.mark.parametrize("keep_ends", [True, False])
@cases(lambda case: case.valid != "no")
def test_other_names_and_another_order_are_only_renames(case, keep_ends):
    model = load(case.path, require_weights=False)
    ends = {info.name for info in (*model.proto.graph.input, *model.proto.graph.output)} if keep_ends else set()
    copy = disguised(model.proto, random.Random(case.name), keep=ends)
    report = diff(model, model.derive(copy))
    assert not [change for change in report.changes if change.kind != "name"], report.summary
    assert diff(model, model.derive(copy), ignore=["names"]).equal


def test_storage_makes_no_difference(tmp_path):
    proto = onnx.load(named("dtypes_all").path)
    typed = copy_of(proto)
    for tensor in typed.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and tensor.HasField("raw_data"):
            values = numpy_helper.to_array(tensor).reshape(-1).tolist()
            tensor.ClearField("raw_data")
            tensor.float_data.extend(values)
    assert compare(proto, typed).equal
    outside = tmp_path / "outside.onnx"
    onnx.save(copy_of(proto), outside, save_as_external_data=True, size_threshold=0)
    assert any(tensor.data_location == 1 for tensor in load(outside).proto.graph.initializer)
    assert diff(from_proto(proto), outside).equal


def test_attribute_order_and_the_long_name_of_the_standard_domain_are_no_differences():
    other = base()
    node(other, "mul").domain = "ai.onnx"
    attributes = list(node(other, "if").attribute)[::-1]
    del node(other, "if").attribute[:]
    node(other, "if").attribute.extend(attributes)
    other.opset_import[0].domain = "ai.onnx"
    assert compare(base(), other).equal


# ---- one edit, one change


def edited(edit: Any) -> DiffReport:
    other = base()
    edit(other)
    return compare(base(), other)


def set_alpha(proto: onnx.ModelProto) -> None:
    node(proto, "leaky").attribute[0].f = 0.5


def set_op(proto: onnx.ModelProto) -> None:
    node(proto, "sum").op_type = "Sub"


def set_op_in_body(proto: onnx.ModelProto) -> None:
    node(proto, "inner").op_type = "Mul"


def set_op_in_function(proto: onnx.ModelProto) -> None:
    proto.functions[0].node[0].op_type = "Abs"


def set_default(proto: onnx.ModelProto) -> None:
    del node(proto, "soft").attribute[:]


def rewire(proto: onnx.ModelProto) -> None:
    node(proto, "sum").input[0] = "a"


def rewire_to_outer(proto: onnx.ModelProto) -> None:
    node(proto, "neg").input[0] = "s"


def swap_inputs(proto: onnx.ModelProto) -> None:
    node(proto, "sum").input[1] = "w"


def rename_tensor(proto: onnx.ModelProto) -> None:
    rename(proto, {"f": "features"})


def rename_input(proto: onnx.ModelProto) -> None:
    rename(proto, {"x": "image"})


def rename_weight(proto: onnx.ModelProto) -> None:
    rename(proto, {"w": "scale"})


def rename_node(proto: onnx.ModelProto) -> None:
    node(proto, "mul").name = "other"


def rename_function(proto: onnx.ModelProto) -> None:
    proto.functions[0].name = node(proto, "call").op_type = "Piece"


def set_dim(proto: onnx.ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"


def set_output_dtype(proto: onnx.ModelProto) -> None:
    proto.graph.output[1].type.tensor_type.elem_type = TensorProto.FLOAT16


def set_value_info(proto: onnx.ModelProto) -> None:
    proto.graph.value_info[0].type.tensor_type.shape.dim[1].dim_value = 5


def set_weight(proto: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(proto.graph.initializer[1]).copy()
    values[2] += 0.5
    proto.graph.initializer[1].CopyFrom(numpy_helper.from_array(values, "v"))


def set_weight_dtype(proto: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(proto.graph.initializer[0]).astype(np.float16)
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(values, "w"))


def add_weight(proto: onnx.ModelProto) -> None:
    proto.graph.initializer.append(numpy_helper.from_array(np.zeros(2, np.float32), "new"))


def add_output(proto: onnx.ModelProto) -> None:
    proto.graph.output.append(helper.make_tensor_value_info("s", TensorProto.FLOAT, [None, 4]))


def reorder_outputs(proto: onnx.ModelProto) -> None:
    infos = list(proto.graph.output)[::-1]
    del proto.graph.output[:]
    proto.graph.output.extend(infos)


def add_annotation(proto: onnx.ModelProto) -> None:
    entry = proto.graph.quantization_annotation.add(tensor_name="a")
    entry.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")


def add_unknown(proto: onnx.ModelProto) -> None:
    proto.MergeFromString(bytes([0xC2, 0x3E, 1, 65]))  # field 1000, one byte of text


def add_function(proto: onnx.ModelProto) -> None:
    proto.functions.append(helper.make_function("local", "New", ["p"], ["p"], [], [helper.make_opsetid("", 17)]))


ONE_CHANGE = {
    set_alpha: ("~", "attribute", "leaky", "attribute alpha", 0.25, 0.5),
    set_op: ("~", "op", "sum", "op_type", "Add", "Sub"),
    set_op_in_body: ("~", "op", "if/else/inner", "op_type", "Add", "Mul"),
    set_op_in_function: ("~", "op", "local::Block/Relu#0", "op_type", "Relu", "Abs"),
    set_default: ("-", "default", "soft", "attribute axis", -1, None),
    rewire: ("~", "wiring", "sum", "input 0", "b", "a"),
    rewire_to_outer: ("~", "wiring", "if/then/neg", "input 0", "f", "s"),
    swap_inputs: ("~", "wiring", "sum", "input 1", "v", "w"),
    rename_tensor: ("=>", "name", "f", "tensor", "f", "features"),
    rename_input: ("=>", "name", "x", "input", "x", "image"),
    rename_weight: ("=>", "name", "w", "weight", "w", "scale"),
    rename_node: ("=>", "name", "mul", "node", "mul", "other"),
    rename_function: ("=>", "name", "local::Block", "function", "local::Block", "local::Piece"),
    set_dim: ("~", "type", "x", "type of input", "float32[N, 4]", "float32[batch, 4]"),
    set_output_dtype: ("~", "type", "z", "type of output", "float32[N, 4]", "float16[N, 4]"),
    set_value_info: ("~", "value-info", "a", "type", "float32[N, 4]", "float32[N, 5]"),
    set_weight: (
        "~",
        "weight",
        "v",
        "weight",
        "float32[4] = {5.0, 6.0, 7.0, 8.0}",
        "float32[4] = {5.0, 6.0, 7.5, 8.0}",
    ),
    set_weight_dtype: ("~", "weight", "w", "weight", "float32[4]", "float16[4]"),
    add_weight: ("+", "weight", "new", "weight", None, "float32[2] = {0.0, 0.0}"),
    add_output: ("+", "output", "s", "output", None, "float32[?, 4]"),
    reorder_outputs: ("~", "output", "", "order of outputs", ["y", "z"], ["z", "y"]),
    add_annotation: ("+", "quantization", "a", "quantization annotation", None, "SCALE_TENSOR=w"),
    add_unknown: ("+", "unknown", "", "unknown fields", None, "field 1000"),
    add_function: ("+", "function", "local::New", "function", None, "(p) -> (p), 0 nodes"),
}


@pytest.mark.parametrize("edit", ONE_CHANGE, ids=lambda edit: edit.__name__)
def test_one_edit_is_one_change(edit):
    assert rows(edited(edit)) == [ONE_CHANGE[edit]]


@pytest.mark.parametrize("edit", ONE_CHANGE, ids=lambda edit: edit.__name__)
def test_a_kind_that_is_ignored_is_not_reported(edit):
    other = base()
    edit(other)
    kind = ONE_CHANGE[edit][1]
    report = compare(base(), other, ignore=[f"{kind}s"])
    assert report.equal
    assert report.ignored == (kind,)


HEADS = {
    "ir_version": ("ir-version", "IR version", 8, 9),
    "producer_name": ("producer", "producer", None, "new"),
    "producer_version": ("producer", "producer", None, "new"),
    "domain": ("producer", "domain", None, "new"),
    "model_version": ("producer", "model version", 0, 9),
    "doc_string": ("doc", "doc string", None, "new"),
}


@pytest.mark.parametrize("field", HEADS)
def test_what_belongs_to_the_whole_model(field):
    other = base()
    setattr(other, field, 9 if "version" in field and field != "producer_version" else "new")
    change = only(compare(base(), other))
    assert (change.kind, change.what, change.before, change.after) == HEADS[field]


def test_opsets_metadata_and_doc_strings_at_every_level():
    other = base()
    other.opset_import[0].version = 18
    other.functions[0].opset_import[0].version = 18
    owners = [
        other,
        other.graph,
        node(other, "mul"),
        node(other, "neg"),
        other.graph.input[0],
        other.graph.value_info[0],
    ]
    owners += [other.graph.initializer[0], other.functions[0], other.functions[0].node[0]]
    for number, owner in enumerate(owners):
        owner.metadata_props.add(key="k", value=str(number))
        owner.doc_string = f"doc {number}"
    report = compare(base(), other)
    assert report.counts == {"metadata": len(owners), "doc": len(owners), "opset": 2}
    assert {change.after for change in report.changes if change.kind == "doc"} == {
        f"doc {i}" for i in range(len(owners))
    }


def test_training_information_and_device_configurations():
    other = base()
    other.training_info.add().algorithm.name = "sgd"
    other.configuration.add(name="two", num_devices=2)
    node(other, "mul").device_configurations.add(configuration_id="two")
    assert compare(base(), other).counts == {"training": 1, "configuration": 2}


# ---- more than one change


def test_an_inserted_node_is_one_node_and_the_input_that_reads_it():
    other = base()
    other.graph.node.insert(2, helper.make_node("Identity", ["b"], ["b2"], name="new"))
    node(other, "sum").input[0] = "b2"
    assert rows(compare(base(), other)) == [
        ("+", "node", "new", "node", None, "Identity(b) -> b2"),
        ("~", "wiring", "sum", "input 0", "b", "b2"),
    ]
    assert rows(compare(other, base())) == [
        ("-", "node", "new", "node", "Identity(b) -> b2", None),
        ("~", "wiring", "sum", "input 0", "b2", "b"),
    ]


def test_a_node_inserted_before_one_of_the_same_kind_keeps_the_names_apart():
    text = "<ir_version: 8, opset_import: ['' : 17]> g (float[4] x) => (float[4] y) {{ {} }}".replace("'", '"')
    one = parser.parse_model(text.format("r = Relu (x) t = Tanh (r) y = Exp (t)"))
    two = parser.parse_model(text.format("n = Relu (x) r = Relu (n) t = Tan (r) y = Exp (t)"))
    assert [row[1:3] for row in rows(compare(one, two))] == [("node", "Relu#0"), ("wiring", "Relu#0"), ("op", "Tanh#1")]


def test_a_node_replaced_by_several_leaves_its_readers_as_they_are():
    other = base()
    node(other, "sum").CopyFrom(helper.make_node("Concat", ["v", "b", "v"], ["n"], name="c", axis=0))
    other.graph.node.insert(3, helper.make_node("Slice", ["n", "n", "n"], ["s"], name="d"))
    assert [row[:3] for row in rows(compare(base(), other))] == [
        ("+", "node", "c"), ("+", "node", "d"), ("-", "node", "sum"),
    ]  # fmt: skip


def test_renames_by_a_pattern_are_one_change():
    other = base()
    names = ["x", "c", "y", "z", "w", "v", "a", "b", "s", "f"]
    rename(other, {name: f"net/{name}" for name in names})
    change = only(compare(base(), other))
    assert (change.kind, change.count, change.before, change.after) == ("name", len(names), "*", "net/*")
    assert set(change.pairs) == {(name, f"net/{name}") for name in names}
    other = base()
    for graph in graphs(other):
        for number, member in enumerate(graph.node):
            member.name = f"{member.name}_{number}" if graph is other.graph else member.name
    assert compare(base(), other).counts == {"name": 6}


def test_names_that_are_numbered_anew_do_not_mislead():
    """An exporter that numbers tensors shifts every number behind an inserted node."""
    text = "<ir_version: 8, opset_import: ['' : 17]> g (float[4] x) => (float[4] y) {{ {} }}".replace("'", '"')
    chance = random.Random(0)
    ops = [chance.choice(("Relu", "Tanh", "Exp", "Neg", "Abs")) for _ in range(60)]

    def numbered(ops: list[str]) -> onnx.ModelProto:
        names = ["x", *(f"t{number}" for number in range(1, len(ops))), "y"]
        lines = [f"{names[i + 1]} = {op} ({names[i]})" for i, op in enumerate(ops)]
        return parser.parse_model(text.format(" ".join(lines)))

    longer = [*ops[:20], "Sin", *ops[20:40], "Cos", *ops[40:]]
    report = compare(numbered(ops), numbered(longer), ignore=["names"])
    added = [(change.sign, change.after[:3]) for change in report.changes if change.kind == "node"]
    assert added == [("+", "Sin"), ("+", "Cos")]
    assert report.counts == {"node": 2, "wiring": 2}


def test_weights_that_swap_their_names_are_renamed():
    rng = np.random.default_rng(0)
    values = {name: rng.normal(size=(16, 16)).astype(np.float32) for name in ("p", "q")}

    def model(first: str, second: str) -> onnx.ModelProto:
        nodes = [helper.make_node("MatMul", ["x", first], ["a"]), helper.make_node("MatMul", ["a", second], ["y"])]
        infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [16, 16]) for name in "xy"]
        stored = [numpy_helper.from_array(values["p"], first), numpy_helper.from_array(values["q"], second)]
        return helper.make_model(helper.make_graph(nodes, "g", infos[:1], infos[1:], stored))

    assert compare(model("p", "q"), model("q", "p")).counts == {"name": 2}


def test_twins_are_told_apart_by_their_values_when_all_names_are_new():
    rng = np.random.default_rng(0)
    nodes, stored, ends = [], [], []
    for number in range(8):
        stored.append(numpy_helper.from_array(rng.normal(size=(32, 32)).astype(np.float32), f"w{number}"))
        nodes.append(helper.make_node("MatMul", ["x", f"w{number}"], [f"y{number}"], name=f"m{number}"))
        ends.append(helper.make_tensor_value_info(f"y{number}", TensorProto.FLOAT, [32, 32]))
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 32])
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], ends, stored))
    for seed in range(5):
        assert compare(proto, disguised(proto, random.Random(seed)), ignore=["names", "outputs"]).equal


# ---- values


def two_weights(one: Any, other: Any, **options: Any) -> DiffReport:
    def model(values: Any) -> onnx.ModelProto:
        array = np.asarray(values)
        number = helper.np_dtype_to_tensor_dtype(array.dtype)
        info = helper.make_tensor_value_info("y", number, array.shape)
        identity = helper.make_node("Identity", ["w"], ["y"])
        graph = helper.make_graph([identity], "g", [], [info], [numpy_helper.from_array(array, "w")])
        return helper.make_model(graph)

    return compare(model(one), model(other), **options)


def test_drift_of_weights_is_measured():
    one = np.arange(12, dtype=np.float32).reshape(3, 4)
    other = one.copy()
    other[1, 2] += 0.5
    other[2, 0] -= 2
    note = only(two_weights(one, other)).note
    assert note == "max abs 2 at [2, 0] (8 -> 6), 2 of 12 elements differ"
    assert only(two_weights(one, other, atol=1.0)).note == "max abs 2 at [2, 0] (8 -> 6), 1 of 12 elements differ"
    within = two_weights(one, other, atol=2.0)
    assert within.equal
    assert within.notes == ("1 weight differs within the tolerance and is not counted",)
    assert two_weights(one, one, atol=2.0).notes == ()
    assert two_weights(one, other, rtol=0.25).equal


def test_what_is_not_finite_is_judged_before_any_tolerance():
    one, other = np.float32([1, np.nan, np.inf, np.nan]), np.float32([1, 2, -np.inf, np.nan])
    note = only(two_weights(one, other, atol=1e30)).note
    assert note.startswith("2 NaN or Inf on one side only")
    assert "2 of 4 elements differ" in note


def test_every_bit_counts_without_a_tolerance():
    assert "sign of zero" in only(two_weights(np.float32([0.0]), np.float32([-0.0]))).note
    assert two_weights(np.float32([0.0]), np.float32([-0.0]), atol=1e-30).equal
    assert two_weights(np.float32([np.nan]), np.float32([np.nan])).equal


@pytest.mark.parametrize("dtype", [np.int64, np.uint8, np.bool_, np.float16, np.float64, np.complex64])
def test_element_types(dtype):
    one = np.zeros(5, dtype)
    other = one.copy()
    other[3] = 1
    assert "1 of 5 elements differ" in only(two_weights(one, other)).note
    assert two_weights(one, one.copy()).equal


@pytest.mark.parametrize(
    "number", [TensorProto.INT4, TensorProto.UINT4, TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN]
)
def test_narrow_element_types(number):
    def model(values: list[float]) -> onnx.ModelProto:
        tensor = helper.make_tensor("w", number, [3], values)
        graph = helper.make_graph([], "g", [], [helper.make_tensor_value_info("w", number, [3])], [tensor])
        return helper.make_model(graph)

    assert "max abs 1 at [2] (1 -> 2), 1 of 3" in only(compare(model([1, 2, 1]), model([1, 2, 2]))).note
    assert compare(model([1, 2, 1]), model([1, 2, 1])).equal


def test_strings():
    def model(*texts: bytes) -> onnx.ModelProto:
        tensor = helper.make_tensor("w", TensorProto.STRING, [2], list(texts))
        graph = helper.make_graph([], "g", [], [helper.make_tensor_value_info("w", 8, [2])], [tensor])
        return helper.make_model(graph)

    assert only(compare(model(b"a", b"b"), model(b"a", b"\xff"))).note == "1 of 2 elements differ"
    assert compare(model(b"a", b"\xff"), model(b"a", b"\xff")).equal


def test_sparse_weights():
    proto = onnx.load(named("sparse_initializer").path)
    other = copy_of(proto)
    tensor = other.graph.sparse_initializer[0].values
    values = numpy_helper.to_array(tensor).copy()
    values[0] += 1
    name = tensor.name
    tensor.CopyFrom(numpy_helper.from_array(values, name))
    change = only(compare(proto, other))
    assert change.kind == "weight"
    assert "max abs 1" in change.note


def test_values_of_constant_nodes_are_weights():
    proto = onnx.load(named("constant_nodes").path)
    other = copy_of(proto)
    chosen = next(n for n in other.graph.node if any(a.type == 4 and a.t.data_type == 1 for a in n.attribute))
    attribute = next(entry for entry in chosen.attribute if entry.type == 4)
    attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t) + 1, attribute.t.name))
    assert only(compare(proto, other)).kind == "weight"
    assert compare(proto, other, atol=1.0).equal


def external(folder: Path, name: str, data: str, *, offset: int = 0, side: int = 64) -> Path:
    """Writes a model whose one weight is a range of a file, which may not be there."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[side, side], data_location=1)
    for key, value in (("location", data), ("offset", str(offset)), ("length", str(side * side * 4))):
        tensor.external_data.add(key=key, value=value)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [side, side]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", infos[:1], infos[1:], [tensor])
    onnx.save(helper.make_model(graph), folder / name)
    return folder / name


def test_weights_are_not_read_where_nothing_can_differ(tmp_path):
    """Both files name the same bytes, or types that differ: the data need not even be there."""
    one = external(tmp_path, "a.onnx", "gone.data")
    assert diff(one, external(tmp_path, "b.onnx", "gone.data")).equal
    assert diff(one, external(tmp_path, "c.onnx", "gone.data", side=32)).counts == {"type": 2, "weight": 1}
    other = external(tmp_path, "d.onnx", "gone.data", offset=4096)
    assert diff(one, other, ignore=["weights"]).equal
    with pytest.raises(ExternalDataError, match=r"gone\.data"):
        diff(one, other)


def test_the_same_bytes_by_another_name_are_not_read(tmp_path):
    (tmp_path / "w.data").write_bytes(bytes(64 * 64 * 4))
    (tmp_path / "link.data").hardlink_to(tmp_path / "w.data")
    assert diff(external(tmp_path, "a.onnx", "w.data"), external(tmp_path, "b.onnx", "link.data")).equal


def test_large_weights_are_read_in_blocks(tmp_path):
    side = 4096
    values = np.random.default_rng(0).random((side, side), dtype=np.float32)
    values.tofile(tmp_path / "a.data")
    values[3000, 17] = 9
    values.tofile(tmp_path / "b.data")
    del values
    one, other = external(tmp_path, "a.onnx", "a.data", side=side), external(tmp_path, "b.onnx", "b.data", side=side)
    load(one)
    tracemalloc.start()
    report = diff(one, other)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "at [3000, 17]" in only(report).note
    assert "1 of 16,777,216 elements differ" in only(report).note
    assert peak < 64 << 20  # two files of 64 MiB each


# ---- many edits at once


def edits_are_found(model: Model, chance: random.Random, count: int, *, disguise: bool = False) -> None:
    """Compares a model with an edited copy, of which all inner names and orders may be others, too."""
    editor = Editor(model.proto, chance)
    expected = editor.apply(count)
    proto, ignore = editor.proto, []
    if disguise:
        del expected["name"]
        ends = {info.name for info in (*model.proto.graph.input, *proto.graph.output, *model.proto.graph.output)}
        proto, ignore = disguised(proto, chance, keep=ends), ["names"]
    report = diff(model, model.derive(proto), ignore=ignore)
    assert Counter(report.counts) == expected, (editor.log, rows(report))
    back = diff(model.derive(proto), model, ignore=ignore)
    assert sum(back.counts.values()) == sum(expected.values()), (editor.log, rows(back))


@cases(lambda case: case.valid != "no")
def test_known_edits_of_fixtures_are_found(case):
    model = load(case.path, require_weights=False)
    for seed in range(3):
        edits_are_found(model, random.Random(f"{case.name} {seed}"), 2 * seed + 1)


@given(models(), st.randoms(use_true_random=False))
def test_random_models_in_disguise(drawn: RandomModel, chance: random.Random):
    model = from_proto(drawn.proto)
    copy = from_proto(disguised(drawn.proto, chance))
    assert diff(model, copy, ignore=["names"]).equal
    assert diff(copy, model, ignore=["names"]).equal


@given(models(), st.randoms(use_true_random=False))
def test_random_models_with_one_edit(drawn: RandomModel, chance: random.Random):
    edits_are_found(from_proto(drawn.proto), chance, 1)


REAL = sorted(entry.name for entry in fetch.entries())


@pytest.mark.corpus
@pytest.mark.parametrize("name", REAL)
def test_real_models(corpus, name):
    path, _ = corpus(name)
    model = load(path)
    assert diff(model, path).equal
    copy = model.derive(disguised(model.proto, random.Random(name)))
    assert diff(model, copy, ignore=["names"]).equal
    for seed in range(2):
        edits_are_found(model, random.Random(f"{name} {seed}"), 6)
        edits_are_found(model, random.Random(f"{name} {seed}"), 6, disguise=True)


PAIRS = [
    ("silero_vad", "silero_vad_16k_op15"),
    ("silero_vad", "silero_vad_ifless"),
    ("ddddocr_rec", "ddddocr_rec_dynq"),
    ("attacut_c", "attacut_sc"),
    ("ppocr_v4_det", "ppocr_v4_rec"),
]


@pytest.mark.corpus
@pytest.mark.parametrize(("one", "other"), PAIRS)
def test_different_real_models(corpus, one, other):
    a, b = corpus(one)[0], corpus(other)[0]
    report = diff(a, b)
    assert not report.equal
    assert report == diff(a, b)
    assert diff(a, b, ignore=diffing.KINDS).equal
    json.dumps(report.to_json())


# ---- the command


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["diff", *map(str, arguments)])
    return int(end.value.code or 0)


@pytest.fixture
def pair(tmp_path):
    one, other = base(), base()
    set_alpha(other)
    set_weight(other)
    set_op_in_body(other)
    rename_tensor(other)
    other.graph.node.insert(2, helper.make_node("Identity", ["b"], ["b2"], name="new"))
    node(other, "sum").input[0] = "b2"
    onnx.save(one, tmp_path / "a.onnx")
    onnx.save(other, tmp_path / "b.onnx")
    return tmp_path / "a.onnx", tmp_path / "b.onnx"


def test_the_command_prints_a_review(pair, capsys):
    assert run(*pair) == 1
    text = capsys.readouterr().out
    assert (
        text
        == f"""--- {pair[0]}
+++ {pair[1]}
model
  ~  leaky (LeakyRelu) attribute alpha: 0.25 -> 0.5
  +  node new: Identity(b) -> b2
  ~  sum (Add) input 0: b -> b2
  ~  weight v: float32[4] = {{5.0, 6.0, 7.0, 8.0}} -> float32[4] = {{5.0, 6.0, 7.5, 8.0}}
       max abs 0.5 at [2] (7 -> 7.5), 1 of 4 elements differ
  => tensor f => features

body if/else
  ~  if/else/inner (Add) op_type: Add -> Mul

6 changes: 1 node, 1 op, 1 attribute, 1 wiring, 1 weight, 1 name
"""
    )


def test_equal_models_end_with_0(pair, capsys):
    assert run(pair[0], pair[0]) == 0
    assert capsys.readouterr().out == "no difference\n"
    assert run(*pair, "--ignore", *diffing.KINDS, "--json") == 0


def test_the_command_prints_json(pair, capsys):
    assert run(*pair, "--json") == 1
    envelope = json.loads(capsys.readouterr().out)
    assert envelope["command"] == "diff"
    assert "schema_version" in envelope
    result = envelope["result"]
    assert result["equal"] is False
    assert (result["a"], result["b"]) == ("a.onnx", "b.onnx")
    assert [change["kind"] for change in result["changes"]] == ["attribute", "node", "wiring", "weight", "name", "op"]
    assert run(*pair, "--json", "--stat") == 1
    assert "changes" not in json.loads(capsys.readouterr().out)["result"]


def test_the_command_counts(pair, capsys):
    assert run(*pair, "--stat", "--ignore", "names", "weights") == 1
    assert capsys.readouterr().out.splitlines() == [
        "        1  node", "        1  op", "        1  attribute", "        1  wiring",
        "4 changes: 1 node, 1 op, 1 attribute, 1 wiring (not looked at: weight, name)",
    ]  # fmt: skip


def test_the_command_says_how_many_it_leaves_out(tmp_path, capsys):
    one, other = base(), base()
    for number in range(30):
        other.metadata_props.add(key=f"k{number}", value="v")
    onnx.save(one, tmp_path / "a.onnx")
    onnx.save(other, tmp_path / "b.onnx")
    assert run(tmp_path / "a.onnx", tmp_path / "b.onnx", "--limit", 4) == 1
    text = capsys.readouterr().out
    assert text.count("metadata k") == 4
    assert "... and 26 metadata more (--limit 0 shows all)" in text
    assert run(tmp_path / "a.onnx", tmp_path / "b.onnx", "--limit", 0) == 1
    assert capsys.readouterr().out.count("metadata k") == 30


def test_the_stamp_of_an_edit_is_told_and_not_counted(tmp_path, capsys):
    before, after = tmp_path / "before.onnx", tmp_path / "after.onnx"
    onnx.save(base(), before)
    done = edit_file(before, after, [SetAttribute("node:leaky", "alpha", 0.5)])
    report = diff(before, after)
    assert (only(report).kind, only(report).where, only(report).after) == ("attribute", "leaky", 0.5)
    told = f"metadata {STAMP} is not counted: none -> {done.edited.digest}"
    assert report.notes == (told,)

    stamped = onnx.load(before)
    stamped.metadata_props.add(key=STAMP, value="sha256:1")
    onnx.save(stamped, tmp_path / "stamped.onnx")
    assert diff(before, tmp_path / "stamped.onnx").equal
    assert diff(before, tmp_path / "stamped.onnx", ignore=["metadata"]).notes == ()
    stamped.graph.metadata_props.add(key=STAMP, value="sha256:1")  # no stamp: an edit leaves none in a graph
    onnx.save(stamped, tmp_path / "stamped.onnx")
    assert only(diff(before, tmp_path / "stamped.onnx")).kind == "metadata"

    assert run(before, after, "--json") == 1
    assert json.loads(capsys.readouterr().out)["result"]["notes"] == [told]
    assert run(before, after, "--stat") == 1
    shown = capsys.readouterr()
    assert told in shown.err
    assert STAMP not in shown.out
    assert run(before, after, "--quiet") == 1
    assert capsys.readouterr().err == ""


def test_wrong_input(pair, tmp_path, capsys):
    with pytest.raises(UsageError, match="'wieghts'") as error:
        diff(*pair, ignore=["wieghts"])
    assert "weight" in (error.value.hint or "")
    with pytest.raises(UsageError, match="negative"):
        diff(*pair, atol=-1)
    with pytest.raises(NotFoundError, match=r"c\.onnx"):
        diff(pair[0], tmp_path / "c.onnx")
    with pytest.raises(ModelError, match=r"cycle_two.onnx: the nodes of the graph form a cycle"):
        diff(pair[0], named("cycle_two").path)
    (tmp_path / "bad.onnx").write_bytes(b"\x00nothing")
    assert run(pair[0], tmp_path / "bad.onnx") == 5
    assert run(pair[0]) == 2
    assert run(*pair, "--ignore", "nonsense") == 2
    assert run(*pair, "--rtol", "nan") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_no_file_is_touched(pair):
    before = [path.read_bytes() for path in pair]
    diff(*pair)
    assert [path.read_bytes() for path in pair] == before
    assert sorted(path.name for path in pair[0].parent.iterdir()) == ["a.onnx", "b.onnx"]


def test_a_model_in_memory_is_left_as_it_was():
    one, other = base(), base()
    rename_tensor(other)
    data = one.SerializeToString(), other.SerializeToString()
    compare(one, other)
    assert (one.SerializeToString(), other.SerializeToString()) == data


def test_a_stretch_between_edits_that_look_like_it_is_found():
    """Two runs of nodes are inserted that look like what is around them: only weights tell where the model goes on."""
    rng = np.random.default_rng(0)

    def chain(extra: bool) -> onnx.ModelProto:
        nodes, weights, last = [], [], "x"

        def add(op: str, *inputs: str) -> str:
            nodes.append(helper.make_node(op, [last, *inputs], [f"t{len(nodes)}"]))
            return str(nodes[-1].output[0])

        for block in range(40):
            weight = f"w{block}"
            weights.append(numpy_helper.from_array(rng.random(4, np.float32), weight))
            if extra and block in (10, 30):
                for other in ("w1", "w2", "w3"):
                    last = add("Tanh")
                    last = add("Add", other)
                    last = add("Relu")
            last = add("Tanh")
            last = add("Add", weight)
            last = add("Relu")
        ends = [helper.make_tensor_value_info(name, 1, [4]) for name in ("x", last)]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], weights)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])

    one = chain(extra=False)
    rng = np.random.default_rng(0)
    other = disguised(chain(extra=True), random.Random(0), keep={"x"})
    report = diff(from_proto(one), from_proto(other), ignore=["names"])
    assert report.counts["node"] == 18, rows(report)
    assert sum(report.counts.values()) <= 20, rows(report)
