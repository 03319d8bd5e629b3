"""YAML, JSON and Python specifications: what they mean, and what is said when they are wrong."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from engines import bits, run_ort
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from onnxbench import modelspec, modeltext, weights
from onnxbench.errors import BenchError, ExternalDataError, NotFoundError, SpecError, UsageError
from onnxbench.model import Model
from onnxbench.modelspec import _graphs, _tensors
from onnxbench.validity import find_complaints

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = json.loads((ROOT / "onnxbench" / "schemas" / "build-spec.schema.json").read_text())
EXAMPLES = ROOT / "examples" / "build"
X = "inputs:\n  x: float32[4]\n"
N = f"{X}nodes:\n  - "  # the node that follows is in line 4
Y = "\noutputs: [y]"
W = "outputs: [y]\ninitializers:\n  w: "  # the tensor that follows is in line 3


def build(text: str, **options) -> Model:
    return modelspec.build_text(text, form="yaml", source="m.yaml", **options)


def tensor(text: str, **options) -> np.ndarray:
    """Returns the initializer that a YAML text spells."""
    model = build(f"initializers:\n  w: {text}\nnodes: [y = Identity(w)]\noutputs: [y]", **options)
    return model.array(model.proto.graph.initializer[0])


def attribute(text: str, op: str = "my.Op") -> onnx.AttributeProto:
    """Returns the attribute ``a`` of a node as a YAML text spells it."""
    spec = (
        f"{X}nodes:\n  - {{op: {op}, inputs: x, outputs: y, attributes: {{a: {text}}}}}\noutputs: {{y: 'float32[4]'}}"
    )
    return build(spec).proto.graph.node[0].attribute[0]


# -- graphs ------------------------------------------------------------------------------------------------------


def test_linear_func_is_twelve_lines_at_most_and_right():
    values = {name: np.random.RandomState(i).rand(10, 10).astype(np.float32) for i, name in enumerate("axb")}
    for ending in ("yaml", "onnxtxt"):
        file = EXAMPLES / f"linear_func.{ending}"
        assert len(file.read_text().splitlines()) <= 12
        model = modelspec.build(file)
        assert model.proto.graph.name == "linear_func"
        assert run_ort(model.proto, values)["output"] == bits(values["a"] * values["x"] + values["b"])


def test_nodes_stand_in_any_order_and_types_are_inferred():
    model = build(f"{X}nodes:\n  - y = Exp(b)\n  - b = Neg(a)\n  - a = Abs(x)\noutputs: [y, a]")
    assert [node.op_type for node in model.proto.graph.node] == ["Abs", "Neg", "Exp"]
    assert [info.type.tensor_type.shape.dim[0].dim_value for info in model.proto.graph.output] == [4, 4]


def test_defaults_are_chosen_and_told():
    notes: list[str] = []
    model = build(f"{X}nodes: [y = Relu(x)]\noutputs: [y]", notes=notes)
    assert notes == [f"no opset is stated: it is {modelspec.DEFAULT_OPSET}"]
    assert model.proto.ir_version == modelspec.DEFAULT_IR_VERSION
    assert [(o.domain, o.version) for o in model.proto.opset_import] == [("", modelspec.DEFAULT_OPSET)]
    stated = build(f"{X}opset: {{ai.onnx: 17, my: 3}}\nnodes: [y = Relu(x)]\noutputs: [y]")
    assert [(o.domain, o.version) for o in stated.proto.opset_import] == [("", 17), ("my", 3)]
    assert build(f"{X}opset: 17\nnodes: [y = Relu(x)]\noutputs: [y]", opset=20).proto.opset_import[0].version == 20


def test_a_newer_element_type_brings_its_ir_version():
    assert (
        build("inputs: {x: 'float4e2m1[4]'}\nopset: 23\nnodes: [y = Identity(x)]\noutputs: [y]").proto.ir_version >= 11
    )


def test_everything_that_can_be_said_of_a_model():
    model = build(
        "name: g\ndoc: of the graph\nproducer_name: p\nproducer_version: 1.10\ndomain: d\nmodel_version: 3\n"
        "model_doc: of the model\nmodel_metadata: {a: 1}\nmetadata: {b: no}\nir_version: 11\nopset: 20\n"
        "inputs:\n  x: {type: 'float32[batch, ?]', doc: in, metadata: {k: v}}\n"
        "values: {h: 'float32[...]'}\n"
        "initializers: {w: {value: [1.0], doc: weights, metadata: {m: n}}}\n"
        "nodes:\n  - {op: Mul, name: n1, inputs: [x, w], outputs: h, doc: node, metadata: {on: off}}\n  - y = Relu(h)\n"
        "outputs:\n  y: {type: 'float32[batch, ?]', doc: out}\n"
    ).proto
    assert (model.producer_name, model.producer_version, model.domain, model.model_version) == ("p", "1.10", "d", 3)
    assert (model.doc_string, model.graph.doc_string, model.graph.name) == ("of the model", "of the graph", "g")
    assert [(p.key, p.value) for p in (*model.metadata_props, *model.graph.metadata_props)] == [("a", "1"), ("b", "no")]
    node = model.graph.node[0]
    assert (node.name, node.doc_string, node.metadata_props[0].key, node.metadata_props[0].value) == (
        "n1", "node", "on", "off",
    )  # fmt: skip
    assert (model.graph.input[0].doc_string, model.graph.output[0].doc_string) == ("in", "out")
    assert model.graph.initializer[0].doc_string == "weights"
    assert not model.graph.value_info[0].type.tensor_type.HasField("shape")


@pytest.mark.parametrize("name", ["on", "no", "1", "1e-5", "null", "a/b:0", "x y", "~"])
def test_names_stay_what_was_typed(name):
    text = f"inputs:\n  {name!r}: float32[4]\nnodes:\n  - {{op: Relu, inputs: [{name!r}], outputs: [y]}}\noutputs: [y]"
    assert build(text).proto.graph.node[0].input[0] == name
    if name not in ("null", "~", "x y"):
        plain = text.replace(repr(name), name) if ":" not in name else text
        assert build(plain).proto.graph.node[0].input[0] == name


def test_inputs_by_the_operators_own_names():
    text = (
        f"{X}initializers: {{hi: 1.0}}\n"
        "nodes:\n  - {op: Clip, inputs: {max: hi, input: x}, outputs: {output: y}}\noutputs: [y]"
    )
    assert list(build(text).proto.graph.node[0].input) == ["x", "", "hi"]
    with pytest.raises(SpecError, match="has no input 'maxx'") as caught:
        build(text.replace("max:", "maxx:"))
    assert "'max'" in caught.value.hint


def test_bodies_capture_and_are_run():
    model = modelspec.build(EXAMPLES / "loop_count.yaml")
    x = np.array([1, 2, 3, 4], np.float32)
    got = run_ort(model.proto, {"x": x})
    step = np.array([0.5, 1, 2, 4], np.float32)
    assert got["last"] == bits(x + step + step + step)
    assert got["all"][1] == (3, 4)


@pytest.mark.parametrize("ending", ["yaml", "onnxtxt"])
def test_if_example(ending):
    model = modelspec.build(EXAMPLES / f"if_abs.{ending}")
    for sign in (1, -1):
        x = sign * np.array([1, 2, 3], np.float32)
        assert run_ort(model.proto, {"x": x})["y"] == bits(np.abs(x) * np.float32(2))


@pytest.mark.parametrize("ending", ["yaml", "onnxtxt"])
def test_local_function_example(ending):
    model = modelspec.build(EXAMPLES / f"local_function.{ending}")
    a = np.linspace(-2, 2, 6, dtype=np.float32).reshape(2, 3)
    got = np.frombuffer(run_ort(model.proto, {"a": a})["b"][2], np.float32)
    np.testing.assert_allclose(got.reshape(2, 3), 1.5 * np.tanh(0.5 * np.tanh(a)), rtol=1e-5)


def test_small_conv_example_is_the_same_every_time():
    model = modelspec.build(EXAMPLES / "small_conv.yaml")
    again = modelspec.build(EXAMPLES / "small_conv.yaml")
    assert model.proto.SerializeToString(deterministic=True) == again.proto.SerializeToString(deterministic=True)
    scores = run_ort(model.proto, {"image": np.ones((2, 3, 16, 16), np.float32)})["scores"]
    values = np.frombuffer(scores[2], np.float32).reshape(2, 10)
    np.testing.assert_allclose(values.sum(axis=1), 1, rtol=1e-5)
    assert values.std() > 1e-3


# -- tensors -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "dtype", "values"),
    [
        ("3", "int64", 3), ("1.5", "float32", 1.5), ("[1, 2.5]", "float32", [1, 2.5]), ("true", "bool", True),
        ("[[1, 2], [3, 4]]", "int64", [[1, 2], [3, 4]]), ("[]", "float32", []), ("[[], []]", "float32", [[], []]),
        ("1e-5", "float32", np.float32(1e-5)), (".inf", "float32", np.inf), ("[-inf, .5]", "float32", [-np.inf, 0.5]),
        ("{value: [1, 2], dtype: fp16}", "float16", [1, 2]), ("{value: [-8, 7], dtype: int4}", "int4", [-8, 7]),
        ("{value: 7, dtype: float32, shape: [1, 1]}", "float32", [[7]]), ("{zeros: [2]}", "float32", [0, 0]),
        ("{ones: 2, dtype: int8}", "int8", [1, 1]), ("{full: 2, shape: [2]}", "int64", [2, 2]),
        ("{full: 0.1, shape: []}", "float32", np.float32(0.1)), ("{arange: 3}", "int64", [0, 1, 2]),
        ("{arange: [1, 2, 0.5]}", "float32", [1, 1.5]), ("{arange: [3, 0, -1], dtype: float64}", "float64", [3, 2, 1]),
        ("{value: ['1+2j', 3], dtype: complex64}", "complex64", [1 + 2j, 3]), ("0x10", "int64", 16),
        ("{value: [1, 0.5], dtype: bfloat16}", "bfloat16", [1, 0.5]),
    ],
)  # fmt: skip
def test_literals(text, dtype, values):
    got = tensor(text)
    assert got.dtype.name == dtype
    assert got.shape == np.shape(values)
    assert np.array_equal(got.astype(np.complex128), np.asarray(values, np.complex128))


def test_strings():
    assert tensor("[a, 'b c', \"\\n\", '1']").tolist() == ["a", "b c", "\n", "1"]
    assert tensor("{full: z, shape: [2]}").tolist() == ["z", "z"]


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=8))
def test_floats_are_read_exactly(values):
    text = "[" + ", ".join(repr(value) for value in values) + "]"
    assert tensor(f"{{value: {text}, dtype: float32}}").tobytes() == np.array(values, np.float32).tobytes()


def test_random_values_depend_on_seed_and_name_alone():
    normal = "{random: normal, shape: [64], seed: 5}"
    first = tensor(normal)
    assert np.array_equal(first, tensor(normal))
    assert not np.array_equal(first, tensor(normal.replace("5", "6")))
    both = "initializers:\n  {}: {{random: normal, shape: [64]}}\n  {}: {{random: normal, shape: [64]}}\n"
    rest = "nodes:\n  - y = Add(a, b)\noutputs: [y]"
    one, other = (build(both.format(*names) + rest) for names in ("ab", "ba"))
    values = [{t.name: t.raw_data for t in model.proto.graph.initializer} for model in (one, other)]
    assert values[0] == values[1]
    assert values[0]["a"] != values[0]["b"]
    reseeded = build("seed: 1\n" + both.format("a", "b") + rest).proto.graph.initializer[0]
    assert reseeded.raw_data != values[0]["a"]


def test_random_values_are_those_of_every_version():
    """The streams of RandomState are frozen, and so are these digests."""
    spec = "{{random: {}, shape: [256], seed: 3, dtype: {}}}"
    digests = {
        kind: hashlib.sha256(tensor(spec.format(kind, dtype)).tobytes()).hexdigest()[:16]
        for kind, dtype in (("normal", "float32"), ("uniform", "float32"), ("integers", "int64"))
    }
    assert digests == GOLDEN


GOLDEN = {"normal": "1065ea35bbd9956c", "uniform": "078d6851dc005329", "integers": "8c458e246fec827c"}


def test_random_distributions():
    normal = tensor("{random: normal, mean: 3, scale: 0.5, shape: [10000], seed: 0}")
    assert abs(normal.mean() - 3) < 0.02
    assert abs(normal.std() - 0.5) < 0.02
    uniform = tensor("{random: uniform, low: -2, high: 4, shape: [10000], seed: 0}")
    assert -2 <= uniform.min() < -1.9
    assert 3.9 < uniform.max() <= 4
    whole = tensor("{random: integers, low: 1, high: 4, shape: [1000], dtype: int8, seed: 0}")
    assert set(whole.tolist()) == {1, 2, 3}
    assert set(tensor("{random: integers, shape: [100], dtype: bool, seed: 0}").tolist()) == {False, True}


def test_files(tmp_path):
    large = np.arange(5000, dtype=np.float32).reshape(50, 100)
    np.save(tmp_path / "large.npy", large)
    np.save(tmp_path / "fortran.npy", np.asfortranarray(large))
    np.savez(tmp_path / "all.npz", small=np.array([1, 2], np.int64), **{"a/b": np.array(["x"])})
    model = build("initializers: {w: {file: large.npy}}\nnodes: [y = Identity(w)]\noutputs: [y]", folder=tmp_path)
    referred = model.proto.graph.initializer[0]
    assert weights.is_outside(referred)  # its bytes are copied from the file, never through Python
    assert np.array_equal(model.array(referred), large)
    assert np.array_equal(tensor("{file: fortran.npy}", folder=tmp_path), large)
    assert tensor("{file: large.npy, shape: [5000]}", folder=tmp_path).shape == (5000,)
    assert tensor("{file: large.npy, dtype: float16}", folder=tmp_path).dtype == np.float16
    assert tensor("{file: 'all.npz:small'}", folder=tmp_path).tolist() == [1, 2]
    assert tensor("{file: 'all.npz:a/b'}", folder=tmp_path).tolist() == ["x"]
    with pytest.raises(SpecError, match="no array 'smal'") as caught:
        tensor("{file: 'all.npz:smal'}", folder=tmp_path)
    assert "'small'" in caught.value.hint
    with pytest.raises(ExternalDataError, match=r"m\.yaml:2:\d+: .*missing"):
        tensor("{file: none.npy}", folder=tmp_path)
    (tmp_path / "sub").mkdir()
    with pytest.raises(ExternalDataError, match="leaves"):
        tensor("{file: ../large.npy}", folder=tmp_path / "sub")
    assert tensor("{file: ../large.npy}", folder=tmp_path / "sub", allow_outside=True).shape == (50, 100)
    np.save(tmp_path / "objects.npy", np.array([object()]), allow_pickle=True)
    with pytest.raises(SpecError, match="cannot be read"):
        tensor("{file: objects.npy}", folder=tmp_path)


# -- attributes --------------------------------------------------------------------------------------------------


def test_attributes_get_the_type_that_the_operator_states():
    text = f"{X}nodes:\n  - {{op: LeakyRelu, inputs: x, outputs: y, attributes: {{alpha: 1}}}}\noutputs: [y]"
    node = build(text).proto.graph.node[0]
    assert (node.attribute[0].type, node.attribute[0].f) == (onnx.AttributeProto.FLOAT, 1.0)
    in_text = build(f"{X}nodes: ['y = LeakyRelu <alpha = 1> (x)']\noutputs: [y]").proto.graph.node[0]
    assert in_text.attribute[0] == node.attribute[0]
    softmax = build(f"{X}nodes:\n  - {{op: Softmax, inputs: x, outputs: y, attributes: {{axis: 0}}}}\noutputs: [y]")
    assert softmax.proto.graph.node[0].attribute[0].type == onnx.AttributeProto.INT
    constant = "nodes:\n  - {op: Constant, outputs: k, attributes: {value: {value: [1, 2], dtype: float16}}}\n"
    assert numpy_helper.to_array(build(constant + "outputs: [k]").proto.graph.node[0].attribute[0].t).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("1", "INT", 1), ("true", "INT", 1), ("1.5", "FLOAT", 1.5), ("hi", "STRING", b"hi"), ("'1'", "STRING", b"1"),
        ("[1, 2]", "INTS", [1, 2]), ("[1, 2.5]", "FLOATS", [1.0, 2.5]), ("[a, '1']", "STRINGS", [b"a", b"1"]),
        ("{float: 1}", "FLOAT", 1.0), ("{ints: []}", "INTS", []), ("{string: 5}", "STRING", b"5"),
        ("{floats: [1]}", "FLOATS", [1.0]), ("1e-5", "FLOAT", float(np.float32(1e-5))),
    ],
)  # fmt: skip
def test_attributes_of_unknown_operators_have_the_type_of_their_value(text, kind, value):
    got = attribute(text)
    assert onnx.AttributeProto.AttributeType.Name(got.type) == kind
    assert helper.get_attribute_value(got) == value


def test_attributes_that_hold_tensors_types_and_graphs():
    assert numpy_helper.to_array(attribute("{tensor: [1, 2]}").t).tolist() == [1, 2]
    assert numpy_helper.to_array(attribute("{zeros: [2], dtype: int8}").t).dtype == np.int8
    assert attribute("{type: 'sequence(float32[2, N])'}").tp.sequence_type.elem_type.tensor_type.elem_type == 1
    assert [g.name for g in attribute("{graphs: [{outputs: [z], name: b, nodes: [z = Abs(x)]}]}").graphs] == ["b"]
    assert len(attribute("{tensors: [1, [2.0]]}").tensors) == 2


# -- sources -----------------------------------------------------------------------------------------------------


def test_python_values_and_arrays():
    w = np.random.RandomState(0).rand(4, 2).astype(np.float16)
    model = modelspec.build(
        {
            "inputs": {"x": "float16[1, 4]"},
            "initializers": {"w": w, "b": {"value": np.array([1, 2]), "dtype": "float16"}},
            "nodes": ["h = MatMul(x, w)", {"op": "Add", "inputs": ["h", "b"], "outputs": ["y"]}],
            "outputs": ["y"],
        }
    )
    assert np.array_equal(model.array(model.proto.graph.initializer[0]), w)
    with pytest.raises(SpecError, match=r"initializers\.w: a set has no place"):
        modelspec.build({"initializers": {"w": {1, 2}}, "outputs": []})
    with pytest.raises(SpecError, match=r"nodes\[0\].*expected '\('"):
        modelspec.build({"nodes": ["y = Relu"], "outputs": ["y"]})
    loop: dict[str, object] = {}
    loop["inputs"] = loop
    with pytest.raises(SpecError, match="nested more than"):
        modelspec.build(loop)


def test_json_with_tabs(tmp_path):
    file = tmp_path / "net.json"
    file.write_text('{\n\t"inputs": {"x": "float32[4]"},\n\t"nodes": ["y = Relu(x)"],\n\t"outputs": ["y"]\n}\n')
    assert modelspec.build(file).proto.graph.name == "net"


def test_anchors_and_merged_mappings():
    text = (
        f"{X}initializers:\n  a: &w {{random: normal, shape: [4], seed: 1}}\n  b: *w\n  c: {{<<: *w, seed: 2}}\n"
        "nodes: ['y = Sum(x, a, b, c)']\noutputs: [y]"
    )
    a, b, c = (t.raw_data for t in build(text).proto.graph.initializer)
    assert a == b != c


def test_the_form_is_chosen_by_the_ending(tmp_path):
    (tmp_path / "m.yaml").write_text(f"{X}nodes: [y = Relu(x)]\noutputs: [y]")
    (tmp_path / "m.txt").write_text("g (float[4] x) => (y) { y = Relu (x) }")
    (tmp_path / "m.bin").write_bytes(b"\x08\x07\xff\xfe\x00")
    one, other = modelspec.build(tmp_path / "m.yaml").proto.graph, modelspec.build(tmp_path / "m.txt").proto.graph
    assert one.node == other.node
    with pytest.raises(NotFoundError, match="there is no file") as caught:
        modelspec.build(tmp_path / "m.yml")
    assert "m.yaml" in caught.value.hint
    with pytest.raises(SpecError, match="not UTF-8"):
        modelspec.build(tmp_path / "m.bin")
    (tmp_path / "m.onnx").write_bytes(b"")
    with pytest.raises(UsageError, match="is a model already"):
        modelspec.build(tmp_path / "m.onnx")
    onnx.save(modelspec.build(tmp_path / "m.txt").proto, str(tmp_path / "m.json"), format="json")
    with pytest.raises(SpecError, match="onnx's own JSON"):
        modelspec.build(tmp_path / "m.json")


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "words", "hint"),
    [
        ("", "", "is empty", None),
        ("hello", "1:1", "as a mapping", None),
        ("a: b: c", "1:5", "not well-formed YAML", None),
        ("inputs: {x: float32[4]}\noutputs: [x]", "1:20", "not well-formed YAML", "Quote"),
        ("a: 1\n---\nb: 2", "2:1", "here begins another", None),
        ("opsett: 1\noutputs: [x]", "1:1", "'opsett' is no key", "'opset'"),
        ("inputs: {x: 'flaot32[4]'}\noutputs: [x]", "1:13", "'flaot32' is not an element type", "float32"),
        ("inputs: {x: float32}\noutputs: [x]", "1:13", "has no shape", "float32[]"),
        ("inputs: {x: 'float32[-1]'}\noutputs: [x]", "1:13", "'-1' is no size", "?"),
        (f"{X}  x: float32[4]\noutputs: [x]", "3:3", "second time", None),
        (f"{X}nodes: []", "1:1", "needs outputs", None),
        (f"{N}y = Relu(xx){Y}", "4", "reads 'xx', which nothing makes", "'x'"),
        (f"{N}y = Relu(x)\noutputs: [yy]", "5", "output 'yy' is made by no node", "'y'"),
        (f"{N}y = Relu(x)\n  - y = Abs(x){Y}", "5", "a Relu makes it in line 4", None),
        (f"{N}x = Relu(x)\noutputs: [x]", "4", "it is an input", None),
        (f"{N}a = Add(x, b)\n  - b = Neg(a)\noutputs: [b]", "5", "cycle", None),
        (f"{N}y = Rellu(x){Y}", "4", "no operator 'Rellu' in ai.onnx 21", "'Relu'"),
        (f"{N}y = relu(x){Y}", "4", "no operator 'relu'", "'Relu'"),
        (f"{X}opset: 17\nnodes:\n  - y = Gelu(x){Y}", "5", "came with opset 20", "20"),
        (f"{N}y = Upsample(x){Y}", "4", "deprecated", None),
        (f"{N}y = Add(x){Y}", "4", "has 1 input; Add takes 2", "A, B"),
        (f"{N}y, z = Relu(x){Y}", "4", "has 2 outputs; Relu makes 1", None),
        (f"{N}y = Cast(x){Y}", "4", "lacks attribute 'to'", None),
        (f"{N}'y = Conv(x, \"\")'{Y}", "4", "leaves input 'W' empty", None),
        (f"{N}y = Relu x){Y}", "4:14", "before the inputs of Relu", "A node as text"),
        (f"{X}nodes: [y = Add(x, x)]{Y}", "3:18", "after the inputs of Add", "a comma ends a value"),
        (f"{N}{{op: Relu, input: x, outputs: y}}{Y}", "4:16", "'input' is no key", "'inputs'"),
        (f"{N}{{op: Relu, inputs: x}}{Y}", "4:5", "needs outputs", None),
        (f"{N}{{op: Elu, inputs: x, outputs: y, attributes: {{alfa: 1}}}}{Y}", "4:51",
         "Elu has no attribute 'alfa'", "'alpha'"),
        (f"{N}{{op: Elu, inputs: x, outputs: y, attributes: {{alpha: a}}}}{Y}", "4:58",
         "as a number, found 'a'", None),
        (f"{N}{{op: Elu, inputs: x, outputs: y, attributes: {{alpha: {{int: 1}}}}}}{Y}", "4:51",
         "is of type float, and not int", None),
        (f"{N}y = Elu <alpha = \"a\"> (x){Y}", "4", "is of type float, and this is string", None),
        (f"{N}{{op: my.Op, inputs: x, outputs: y, attributes: {{a: []}}}}{Y}", "4:53", "empty list",
         "ints"),
        (f"{N}y = my.Op(x){Y}", "5", "type of output 'y' cannot be inferred", "y: float32[...]"),
        (f"{N}y = Relu(x)\noutputs: {{y: 'float32[5]'}}", "4", "(4) vs (5)", None),
        (f"{N}y = Relu(x)\noutputs: {{y: 'int64[4]'}}", "4", "elem type differs", None),
        (f"{X}initializers: {{w: [1.0, 2.0]}}\nnodes:\n  - y = Add(x, w){Y}", "5", "Incompatible dimensions",
         None),
        (f"{X}initializers: {{w: [1, 2, 3, 4]}}\nnodes:\n  - y = Add(x, w){Y}", "5", "inconsistent type", None),
        (W + "[1, [2]]", "3:7", "ragged", None),
        (W + "{value: [1, 300], dtype: int8}", "3:18", "does not fit int8", None),
        (W + "{value: [1, 1e40], dtype: float32}", "3:18", "too large", None),
        (W + "{value: [1, 2], shape: [3]}", "3:14", "do not fill the shape [3]", None),
        (W + "{random: normall, shape: [4]}", "3:15", "no distribution", "'normal'"),
        (W + "{random: normal, shape: [4], low: 1}", "3:35", "'low' does not go with", None),
        (W + "{random: normal}", "3:6", "need a shape", None),
        (W + "{random: normal, shape: [4], dtype: int8}", "3:6", "have fractions", "integers"),
        (W + "{random: uniform, shape: [4], low: 1, high: 1}", "3:6", "less than high", None),
        (W + "{zeros: [4], ones: [4]}", "3:6", "zeros and ones", None),
        (W + "{zeros: [4], dtype: flaot}", "3:26", "not an element type", "float"),
        (W + "{arange: [0, 1, 0]}", "3:22", "step cannot be 0", None),
        (W + "{zeros: [100000, 100000]}", "3:14", "does not fit a specification", None),
        (W + "{file: w.txt}", "3:13", "expected a .npy file", None),
        ("functions:\n  - {name: F, outputs: [b], nodes: [b = Relu(c)]}\noutputs: []", "2", "(in local::F)", None),
        (f"functions:\n  - {{name: F, inputs: a, outputs: b, nodes: [b = Relu(a)]}}\n{X}nodes:\n  - y = local.G(x)\n"
         "outputs: [y]", "6", "no function local::G", "F"),
        (f"functions:\n  - {{name: F, inputs: a, outputs: b, attributes: [k], nodes: [b = Relu(a)]}}\n{X}nodes:\n"
         f"  - y = local.F(x){Y}", "6", "lacks attribute 'k'", None),
        (f"{N}op: If\n    inputs: x\n    outputs: y\n    attributes:\n      then_branch:\n        outputs: [z]\n"
         f"        nodes:\n          - z = Relu(q)\n      else_branch: {{outputs: [x]}}{Y}", "11",
         "reads 'q', which nothing makes (in If#0/then)", None),
        ("[" * 100_000, "1:101", "nested more than", None),
        ("a: &a [1, 1]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 10)}]\n"
         for i in range(9)), "7:4", "stands for more than", None),
    ],
)  # fmt: skip
def test_mistakes_are_answered_with_their_line(text, place, words, hint):
    with pytest.raises(SpecError) as caught:
        build(text)
    error = caught.value
    assert error.message.startswith(f"m.yaml:{place}:" if place else "m.yaml: "), error.message
    assert words in error.message
    assert hint is None or hint in error.hint, error.hint
    if place:
        assert error.details[0].startswith(f"{place.partition(':')[0]} | ")


def test_a_mistake_in_a_body_that_is_written_as_text_has_the_line_of_its_node():
    body = "then_branch = t () => (z) { z = Relu(q) }, else_branch = e () => (z) { z = Relu(x) }"
    with pytest.raises(SpecError, match=r"m\.yaml:4: .* reads 'q'"):
        build(f'{N}"y = If (x) <{body}>"{Y}')
    with pytest.raises(SpecError, match=r"m\.yaml:4: the Conv that makes 'z' \(in If#0/then\)"):
        build(f'{N}"y = If (x) <{body.replace("Relu(q)", "Conv(x, x)")}>"{Y}')


def test_a_type_error_says_the_types_that_came_in():
    with pytest.raises(SpecError) as caught:
        build(f"{X}initializers: {{w: [1.0, 2.0]}}\nnodes: ['y = Add(x, w)']\noutputs: [y]")
    assert caught.value.details[-2:] == ("x: float32[4]", "w: float32[2]")


@given(st.data())
def test_no_mangled_specification_ends_in_anything_but_a_bench_error(data):
    text = (
        EXAMPLES / data.draw(st.sampled_from(["if_abs.yaml", "loop_count.yaml", "local_function.yaml"]))
    ).read_text()
    at, length = data.draw(st.integers(0, len(text) - 1)), data.draw(st.integers(0, 6))
    junk = data.draw(st.text(st.sampled_from("{}[],:&*!|>-#'\" \nax1?"), max_size=3))
    try:
        model = build(text[:at] + junk + text[at + length :])
    except BenchError:
        return
    assert not find_complaints(model.proto)


# -- schema ------------------------------------------------------------------------------------------------------


def test_the_schema_has_the_keys_of_the_code():
    def keys(schema: dict) -> set[str]:
        return set(schema["properties"])

    parts = SCHEMA["$defs"]
    assert keys(SCHEMA) == set(_graphs.MODEL_KEYS)
    assert keys(parts["graph"]) == set(_graphs.GRAPH_KEYS)
    assert keys(parts["node"]["oneOf"][1]) == set(_graphs.NODE_KEYS)
    assert keys(parts["function"]) == set(_graphs.FUNCTION_KEYS)
    assert keys(parts["value"]["oneOf"][1]) == set(_graphs.VALUE_KEYS)
    kinds = [kind for kind in parts["tensor"]["oneOf"] if "properties" in kind]
    assert set().union(*map(keys, kinds)) == set(_tensors.TENSOR_KEYS)
    assert {kind["required"][0] for kind in kinds} == set(_tensors.SOURCES)
    hints = {hint["required"][0] for hint in parts["attribute"]["anyOf"] if "required" in hint}
    assert hints == set(_graphs.HINT_KEYS)


def test_the_schema_accepts_the_examples_and_refuses_mistakes():
    jsonschema = pytest.importorskip("jsonschema")
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    validator = jsonschema.Draft202012Validator(SCHEMA)
    files = sorted(EXAMPLES.glob("*.yaml"))
    assert len(files) >= 5
    for file in files:
        validator.validate(yaml.safe_load(file.read_text()))
    for wrong in (
        {"outputs": ["y"], "opsett": 1},
        {"nodes": []},
        {"outputs": ["y"], "nodes": [{"inputs": ["x"], "outputs": "y"}]},
        {"outputs": ["y"], "initializers": {"w": {"random": "normal"}}},
        {"outputs": ["y"], "initializers": {"w": {"zeros": [2], "ones": [2]}}},
    ):  # fmt: skip
        assert not validator.is_valid(wrong)


def test_what_the_reference_shows_is_built():
    text = (ROOT / "docs" / "build-spec.md").read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    for language, body in blocks:
        assert modelspec.build_text(body, form="yaml" if language == "yaml" else "text").proto.graph.output


def test_every_example_is_shown_and_read_back():
    for file in sorted(EXAMPLES.iterdir()):
        model = modelspec.build(file)
        again = modelspec.build_text(modeltext.show(model, weights="inline"))
        assert again.proto.graph.node == model.proto.graph.node
        assert not any(t.data_type == TensorProto.UNDEFINED for t in weights.tensors(again.proto))
