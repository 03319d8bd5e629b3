"""Models as text: what is shown reads back as the same model, and mistakes are pointed at."""

from __future__ import annotations

import contextlib
import importlib
import math
import shutil
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import all_cases, cases, named
from corpus import fetch
from hypothesis import example, given
from hypothesis import strategies as st
from normal import normal
from onnx import TensorProto, helper, numpy_helper
from onnx.backend.test.case import node as node_cases
from strategies import RandomModel, models

from onnxbench import literals, modeltext, weights
from onnxbench.errors import BenchError, ExternalDataError, ModelError, NotFoundError, SpecError, UsageError
from onnxbench.model import Model, from_proto, load

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
ONNX_DATA = Path(onnx.__file__).parent / "backend" / "test" / "data"
CORPUS = ("attacut_c", "basic_pitch", "light_shufflenet", "logreg_iris_ml", "silero_vad", "swift_f0", "isnet_fp16")


def assert_same(first: Model, second: Model) -> None:
    """Fails with the first line that differs, not with megabytes of weights."""
    one, other = normal(first), normal(second)
    if one != other:
        for a, b in zip(str(one).splitlines(), str(other).splitlines(), strict=False):
            assert a[:300] == b[:300]
    assert one == other


def there_and_back(model: Model, **options) -> Model:
    elided = options.get("weights", "elided") != "inline"
    text = modeltext.show(model, **options)
    return modeltext.parse(text, weights_from=model if elided else None, folder=model.folder)


# -- round trips -------------------------------------------------------------------------------------------------


@cases(lambda case: case.valid != "no")
@pytest.mark.parametrize("mode", ["elided", "inline"])
def test_every_fixture_comes_back(case, mode):
    model = load(case.path)
    assert_same(model, there_and_back(model, weights=mode, max_elements=4))


@cases(lambda case: case.valid == "no")
def test_a_broken_model_is_shown_or_refused_in_words(case):
    with contextlib.suppress(BenchError):  # and nothing else
        model = load(case.path, allow_outside=True, require_weights=False)
        text = modeltext.show(model)
        modeltext.parse(text, source="shown")


@pytest.mark.corpus
@pytest.mark.parametrize("name", CORPUS)
def test_real_models_come_back(name, corpus):
    path, _ = corpus(name)
    model = load(path)
    back = there_and_back(model)
    assert_same(model, back)
    if path.stat().st_size < 300_000:
        assert_same(model, there_and_back(model, weights="inline"))


def test_the_models_inside_of_onnx_come_back():
    files = sorted(ONNX_DATA.glob("*/*/*.onnx"))
    assert len(files) > 100
    for file in files[::3]:
        model = load(file)
        assert_same(model, there_and_back(model, weights="inline"))


def test_the_node_tests_of_onnx_come_back():
    """A sample: all 1,884 take ten seconds to be made, and were tried by hand."""
    for module in ("if_", "loop", "scan", "constant", "cast", "optionalgetelement", "sequenceinsert"):
        importlib.import_module(f"onnx.backend.test.case.node.{module}")
    chosen = [case for case in node_cases._NodeTestCases if case.model is not None]
    assert len(chosen) > 50
    for case in chosen:
        model = from_proto(case.model)
        assert_same(model, there_and_back(model, weights="inline"))


@given(models())
def test_random_models_come_back(random_model: RandomModel):
    model = from_proto(random_model.proto)
    assert_same(model, there_and_back(model, weights="inline"))
    assert_same(model, there_and_back(model, max_elements=0))


# -- the text is onnx's own where that suffices ------------------------------------------------------------------


def test_what_needs_no_extension_is_read_by_onnx_too():
    plain = 0
    for case in all_cases():
        if case.valid != "yes":
            continue
        model = load(case.path)
        text = modeltext.show(model, weights="inline")
        try:
            theirs = onnx.parser.parse_model(text)
        except onnx.parser.ParseError:
            continue
        if normal(from_proto(theirs)) == normal(model):
            plain += 1
    assert plain > 60


def test_what_onnx_prints_means_the_same_here():
    compared = 0
    for case in all_cases():
        if case.valid == "no" or case.is_external:
            continue
        try:
            text = onnx.printer.to_text(case.whole())
            theirs = onnx.parser.parse_model(text)
        except (onnx.parser.ParseError, UnicodeDecodeError):
            continue
        # onnx.parser stores int2 and int4 unpacked, which its own reader then misunderstands; it prints no such text.
        assert_same(from_proto(theirs), modeltext.parse(text))
        compared += 1
    assert compared > 80


@pytest.mark.parametrize(
    "body",
    [
        "g (float[N] x) => (float[N] y) { y = Add(x, x) }",
        "g (float[N] x) => (float[N] y) { [a_name] y = Add(x, x) }",
        'g (float[N] x) => (float[N] y) { ["a/b:0"] y = Add("x" , x) }',
        "g (float[N] x) => (float[N] y) { y = Op(,x) z = Op(x,) w = Op() v = Op(,) u = Op(\"\", x) }",
        "g (float[N] x) => (float[N] y) { y, , z = a.b.Op <k = 1, f = -1.5e3, l = [1, 2], e: ints = []> (x) }",
        'g (float[N] x) => (float[N] y) { y = Op <s = "q\\"\\\\", t: strings = ["", "\\a"]> (x) }',
        "g (float[N] x) => (float[N] y) { y = Op (x) <k: float = 1, i = -inf, n = nan, t = infinity> }",
        "g (float[N] x) => (float[N] y) { y = F <a: float = @b, c = @d> (x) }",
        "g (float[N] x, float[2] w = {1.0, 2}) => (float y) { y = Op (x) }",
        'g (float[] x, float w, double[?, 3, "a b"] z, v) => (y) {}',
        "g (x) => (seq(float[N]) y, map(int64, string) m, optional(float[]) o, sparse_tensor(float[2]) s) {}",
        "g (x) => (y) <float[2, 1] a = {1, -0.0}, int64 n = {-9223372036854775808}, b, bool[1] t = {1}> {}",
        'g (x) => (y) <float16[2] h = {15360, 0}, string[2] s = {"a", "b"}, uint64[1] u = {18446744073709551615}> {}',
        'g (x) => (y) <float[3] w = ["location": "w.bin", "offset": "0"]> {}',
        "g (c) => (y) { y = If (c) <then_branch = t () => (z) { z = Op () }, else_branch: graph = e () => (float[2] z) "
        "<float[1] k = {1}> { z = Op (k) }> }",
        "g (x) => (y) { y = Constant <value = float[2] {1, 2}> () z = Constant <value: tensor = int32 name {7}> () }",
        "g (x) => (y) { y = Cast <to: type_proto = seq(float[2])> (x) } # a comment\n # another",
        '<domain: "d", opset_import: ["" : 20, "d" : 1], overload: "o", doc_string: "x"> ',
    ],
)  # fmt: skip
def test_plain_syntax_means_what_it_means_to_onnx(body):
    text = HEADER + (f"g (x) => (y) {{}}\n{body}F <a, b: int = 3> (p, float[2] q) => (r) <int64[2] s> {{ r = Op (p) }}"
                     if body.startswith("<") else body)  # fmt: skip
    theirs = onnx.parser.parse_model(text)
    for tensor in theirs.graph.initializer:  # the model is not whole without that file
        if tensor.data_location == TensorProto.EXTERNAL:
            assert modeltext.parse(text).proto.graph.initializer[0].external_data == tensor.external_data
            return
    assert_same(from_proto(theirs), modeltext.parse(text))


# -- names and strings -------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
any_names = st.one_of(
    texts, st.sampled_from(["", "float", "seq", "inf", "1x", "a/b:0", "b", "undefined", "a\nb", '"', "\\", "\x1b[31m"])
)


@given(any_names, any_names, any_names, st.binary(max_size=12), any_names, any_names)
@example("float", "nan", 'a"b\\', b'\xff"\\\n', "", "a.b")
def test_any_name_and_string_comes_back(tensor, node_name, op_type, data, graph_name, domain):
    node = helper.make_node(op_type or "Op", [tensor, "", tensor], [tensor + "'"], name=node_name, domain=domain)
    node.attribute.append(helper.make_attribute(tensor or "a", data))
    node.attribute.append(helper.make_attribute("list", [data, b"x"]))
    body = helper.make_graph([], graph_name or "g", [], [helper.make_tensor_value_info(tensor, 1, [tensor or "d", 2])])
    node.attribute.append(helper.make_attribute("body", body))
    node.attribute.append(helper.make_attribute("bodies", [body, body]))
    node.doc_string, node.overload = tensor, node_name
    node.metadata_props.add(key=op_type, value=tensor)
    graph = helper.make_graph([node], graph_name, [helper.make_tensor_value_info(tensor, 1, None)], [])
    graph.doc_string = op_type
    graph.quantization_annotation.add(tensor_name=tensor).quant_parameter_tensor_names.add(key=op_type, value=domain)
    model = from_proto(helper.make_model(graph, producer_name=tensor, doc_string=op_type))
    text = modeltext.show(model)
    assert "\x1b" not in text  # nothing that a terminal would obey
    assert_same(model, modeltext.parse(text))


def test_a_doc_string_that_is_not_utf8_comes_back():
    model = load(named("doc_string_not_utf8").path)
    back = modeltext.parse(modeltext.show(model))
    assert back.proto.SerializeToString(deterministic=True) == model.proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    "text",
    [
        'g () => () <float[2] w = ["location": "onnxbench-bytes:/etc/passwd", "offset": "0", "length": "8"]> {}',
        'g () => () <float[2] w = ["location": "onnxbench-elided:0"]> {}',
        'g () => () <float[2] w = {1, 2} @{textproto: "data_location: EXTERNAL"}> {}',
        "g () => () @{textproto: \"initializer { raw_data: 'x' }\"} {}",
    ],
)
def test_a_text_cannot_reach_for_files_by_the_back_door(text):
    with pytest.raises(SpecError, match=r"reserved|form of its own"):
        modeltext.parse(text)


def test_names_that_are_not_text_are_refused():
    proto = helper.make_model(helper.make_graph([helper.make_node("Relu", ["xxxx"], ["y"])], "g", [], []))
    data = proto.SerializeToString().replace(b"xxxx", b"\xff\xfe\xfd\xfc")
    with pytest.raises(ModelError, match="UTF-8"):
        modeltext.show(from_proto(onnx.ModelProto.FromString(data)))


# -- values ------------------------------------------------------------------------------------------------------

DTYPES = [number for number in range(1, 29) if number != TensorProto.STRING]


def _random_bits(number: int, seed: int, count: int) -> TensorProto:
    bits = weights.tensor_bytes(TensorProto(data_type=number, dims=[count]))
    data = np.random.RandomState(seed).randint(0, 256, bits, dtype=np.int64).astype(np.uint8).tobytes()
    tensor = TensorProto(name="w", data_type=number, dims=[count])
    if number == TensorProto.BOOL:
        data = bytes(byte & 1 for byte in data)
    tensor.raw_data = data
    array = numpy_helper.to_array(tensor)  # bits that pad the last byte are no values
    tensor.raw_data = numpy_helper.from_array(array).raw_data
    return tensor


@pytest.mark.parametrize("number", DTYPES, ids=[TensorProto.DataType.Name(number) for number in DTYPES])
@given(seed=st.integers(0, 1 << 20), count=st.integers(0, 70))
def test_every_bit_of_every_type_comes_back(number, seed, count):
    tensor = _random_bits(number, seed, count)
    graph = helper.make_graph([helper.make_node("Constant", [], ["c"], value=tensor)], "g", [], [], [tensor])
    model = from_proto(helper.make_model(graph))
    back = modeltext.parse(modeltext.show(model, weights="inline")).proto.graph
    for copy in (back.initializer[0], back.node[0].attribute[0].t):
        assert copy.raw_data == tensor.raw_data
        assert (copy.data_type, list(copy.dims)) == (number, [count])


@pytest.mark.parametrize("number", [TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_all_patterns_of_16_bits_come_back(number):
    dtype = helper.tensor_dtype_to_np_dtype(number)
    array = np.arange(1 << 16, dtype=np.uint16).view(dtype)
    back = literals.parse_array(literals.array_texts(array, number), number)
    assert np.array_equal(back.view(np.uint16), array.view(np.uint16))


@given(st.lists(st.floats(width=32), min_size=1, max_size=9), st.floats(width=32))
def test_float_attributes_come_back(many, one):
    node = helper.make_node("Op", [], ["y"], domain="d", one=one, many=many)
    model = from_proto(helper.make_model(helper.make_graph([node], "g", [], [])))
    back = modeltext.parse(modeltext.show(model)).proto.graph.node[0]
    pack = struct.Struct("<f").pack
    for before, after in zip(node.attribute, back.attribute, strict=True):
        assert before.name == after.name
        values = zip([before.f, *before.floats], [after.f, *after.floats], strict=True)
        assert all(pack(a) == pack(b) or (math.isnan(a) and math.isnan(b)) for a, b in values)


@given(st.fractions(min_value=Fraction(-4), max_value=Fraction(4), max_denominator=1 << 40), st.integers(-46, 38))
@example(Fraction(1) + Fraction(1, 1 << 24), 0)  # a tie, to even
def test_decimals_are_rounded_once(fraction, exponent):
    """The float32 of a decimal is the nearest one, also where its nearest float64 is a tie."""
    with_digits = f"{fraction.numerator * 10**60 // fraction.denominator}e{exponent - 60}"
    exact = Fraction(with_digits)
    try:
        got = literals.parse_float32(with_digits)
    except literals.LiteralError:
        assert abs(exact) > Fraction(float(np.finfo(np.float32).max))
        return
    near = np.float32(got)
    for other in (np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))):
        if np.isfinite(other):
            assert abs(Fraction(float(near)) - exact) <= abs(Fraction(float(other)) - exact)


def test_a_decimal_just_above_a_tie_is_rounded_up():
    tie = Fraction(1) + Fraction(1, 1 << 24)
    above = f"{tie.numerator * 10**40 // tie.denominator + 1}e-40"
    assert float(above) == float(tie)  # float64 cannot tell them apart
    assert literals.parse_float32(above) == float(np.nextafter(np.float32(1), np.float32(2)))


def test_integers_in_half_tensors_are_patterns_and_said_to_be():
    text = HEADER + "g (x) => (y) <float16[3] h = {15360, 1.0, 0x3c00}> {}"
    parsed = modeltext.read(text)
    tensor = parsed.model.proto.graph.initializer[0]
    assert numpy_helper.to_array(tensor).tolist() == [1.0, 1.0, 1.0]
    assert "bit patterns" in parsed.notes[0]
    assert not modeltext.read(text.replace("15360", "1.0")).notes


# -- weights left out --------------------------------------------------------------------------------------------


@pytest.fixture
def two_ifs() -> Model:
    """Two Ifs with bodies whose initializers have equal names and shapes, and unnamed Constants of equal shape."""

    def body(seed: int) -> onnx.GraphProto:
        w = numpy_helper.from_array(np.random.RandomState(seed).rand(32).astype(np.float32), "w")
        out = helper.make_tensor_value_info("z", 1, [32])
        return helper.make_graph([helper.make_node("Add", ["x", "w"], ["z"])], "b", [], [out], [w])

    def constant(name: str, seed: int) -> onnx.NodeProto:
        value = numpy_helper.from_array(np.random.RandomState(seed).rand(32).astype(np.float32))
        return helper.make_node("Constant", [], [name], value=value)

    nodes = [constant(f"k{seed}", seed) for seed in range(3)]
    for name, seed in (("p", 10), ("q", 20)):
        nodes.append(helper.make_node("If", ["c"], [name], then_branch=body(seed), else_branch=body(seed + 1)))
    nodes.append(helper.make_node("Sum", ["p", "q", "k0", "k1", "k2", "v"], ["y"]))
    inputs = [helper.make_tensor_value_info("x", 1, [32]), helper.make_tensor_value_info("c", 9, [])]
    v = numpy_helper.from_array(np.random.RandomState(9).rand(32).astype(np.float32), "v")
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, [32])], [v])
    return from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def test_left_out_values_need_an_original(two_ifs):
    text = modeltext.show(two_ifs)
    assert text.count("{...}") == 8
    with pytest.raises(SpecError, match="left out") as caught:
        modeltext.parse(text)
    assert "7 more tensors" in str(caught.value)
    assert "--weights-from" in caught.value.hint
    assert_same(two_ifs, modeltext.parse(text, weights_from=two_ifs))


def test_an_edit_above_does_not_shift_the_weights(two_ifs):
    text = modeltext.show(two_ifs)
    without = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("k0 ="))
    without = without.replace("k0, k1", "k1")
    back = modeltext.parse(without, weights_from=two_ifs)
    before = {node.output[0]: node for node in two_ifs.proto.graph.node}
    for node in back.proto.graph.node:
        if node.op_type == "Constant":
            assert node.attribute[0].t.raw_data == before[node.output[0]].attribute[0].t.raw_data
        if node.op_type == "If":
            for mine, theirs in zip(node.attribute, before[node.output[0]].attribute, strict=True):
                assert mine.g.initializer[0].raw_data == theirs.g.initializer[0].raw_data


def test_a_renamed_tensor_says_what_it_was(two_ifs):
    text = modeltext.show(two_ifs).replace("float[32] v = {...}", "float[32] vv = {...}").replace("k2, v)", "k2, vv)")
    with pytest.raises(SpecError, match="initializer 'vv'") as caught:
        modeltext.parse(text, weights_from=two_ifs)
    assert '{... "old"}' in caught.value.hint
    named_so = text.replace("vv = {...}", 'vv = {... "v"}')
    back = modeltext.parse(named_so, weights_from=two_ifs).proto.graph
    assert back.initializer[0].raw_data == two_ifs.proto.graph.initializer[0].raw_data
    node = modeltext.show(two_ifs).replace("k0", "first").replace("float[32] {...}", 'float[32] {... "k0"}', 1)
    value = modeltext.parse(node, weights_from=two_ifs).proto.graph.node[0].attribute[0].t
    assert value.raw_data == two_ifs.proto.graph.node[0].attribute[0].t.raw_data


def test_values_of_another_shape_or_several_are_refused(two_ifs):
    text = modeltext.show(two_ifs)
    with pytest.raises(SpecError, match=r"float\[8, 4\] here and float\[32\]"):
        modeltext.parse(text.replace("float[32] v =", "float[8,4] v ="), weights_from=two_ifs)
    lost = text.replace("p = If", "pp = If").replace("(p, q", "(pp, q")
    with pytest.raises(SpecError, match="several tensors of this name"):
        modeltext.parse(lost, weights_from=two_ifs)


def test_large_weights_are_referred_to_and_not_read(tmp_path):
    w = np.arange(2_000_000, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])], "g", [helper.make_tensor_value_info("x", 1, [w.size])],
        [helper.make_tensor_value_info("y", 1, [w.size])], [numpy_helper.from_array(w, "w")],
    )  # fmt: skip
    path = tmp_path / "large.onnx"
    onnx.save(helper.make_model(graph), str(path))
    model = load(path)
    text = modeltext.show(model)
    assert "8,000,000 bytes at " in text
    assert "of large.onnx" in text
    back = modeltext.parse(text, weights_from=model)
    tensor = back.proto.graph.initializer[0]
    assert weights.is_outside(tensor)
    assert back.byte_range(tensor).file == path
    assert np.array_equal(back.array(tensor), w)


def test_a_model_whose_weights_are_missing_is_still_shown(tmp_path):
    case = named("external_one_file")
    folder = tmp_path / "copy"
    shutil.copytree(case.path.parent, folder)
    for file in folder.iterdir():
        if file.suffix != ".onnx":
            file.unlink()
    model = load(folder / case.path.name, require_weights=False)
    notes: list[str] = []
    text = modeltext.show(model, notes=notes, max_elements=1 << 20)
    assert "{...}" in text
    assert any("missing" in note for note in notes)
    with pytest.raises(ExternalDataError):
        modeltext.show(model, weights="inline")


def test_statistics_stand_in_comments(two_ifs):
    two_ifs.proto.graph.initializer[0].CopyFrom(
        numpy_helper.from_array(np.array([np.nan, np.inf, -2, 4] * 8, np.float32), "v")
    )
    text = modeltext.show(two_ifs, weights="stats")
    assert "min -2, max 4, mean 1, std 3, 8 NaN, 8 Inf" in text
    assert_same(two_ifs, modeltext.parse(text, weights_from=two_ifs))


# -- parts, notes, limits ----------------------------------------------------------------------------------------


def test_parts_of_a_model(two_ifs):
    assert modeltext.show(two_ifs, ["v"]).startswith("float[32] v = {...}")
    assert modeltext.show(two_ifs, ["y"]) == "y = Sum (p, q, k0, k1, k2, v)\n"
    assert modeltext.show(two_ifs, ["x"]) == "float[32] x  # input\n"
    inner = modeltext.show(two_ifs, nodes=["op:Add"])
    assert inner.count("z = Add (x, w)") == 4
    assert inner.startswith("# If#3/else\n")
    with pytest.raises(NotFoundError):
        modeltext.show(two_ifs, ["nothing_like_it"])
    with pytest.raises(NotFoundError, match="no functions"):
        modeltext.show(two_ifs, function="F")
    with pytest.raises(UsageError, match="no way to print"):
        modeltext.weights_mode("all")


def test_one_function():
    model = load(named("function_nested").path)
    name = model.proto.functions[0].name
    text = modeltext.show(model, function=name)
    assert f"\n{name} " in text
    assert text.count("opset_import") == 1
    with pytest.raises(NotFoundError, match=r"Did you mean|It has"):
        modeltext.show(model, function=name + "x")


def test_what_no_text_carries_is_noted():
    notes: list[str] = []
    modeltext.show(load(named("metadata_everywhere").path), notes=notes)
    assert len(notes) == 1
    assert "does not know" in notes[0]
    node = helper.make_node("LeakyRelu", ["x"], ["y"], alpha=0.5)
    node.attribute[0].i = 3
    untyped = helper.make_node("Softmax", ["y"], ["z"], axis=1)
    untyped.attribute[0].ClearField("type")
    wrong = TensorProto(name="w", data_type=1, dims=[3], raw_data=b"123")
    modeltext.show(from_proto(helper.make_model(helper.make_graph([node, untyped], "g", [], [], [wrong]))), notes=notes)
    assert [part for part in ("also has i", "states no type", "holds 3 where") if part in " ".join(notes)] == [
        "also has i", "states no type", "holds 3 where",
    ]  # fmt: skip


def _nested(depth: int) -> onnx.ModelProto:
    opening, closing = "", ""
    for _ in range(depth):
        opening += "y = If (c) <else_branch = e () => (y) { y = Op () }, then_branch = t () => (y) { "
        closing += "} >"
    return f"{HEADER}g (bool c) => (y) {{ {opening} y = Op () {closing} }}"


def test_bodies_are_as_deep_as_the_format_allows():
    model = modeltext.parse(_nested(modeltext.MAX_BODY_DEPTH))
    again = onnx.ModelProto.FromString(model.proto.SerializeToString())
    assert_same(from_proto(again), there_and_back(from_proto(again)))
    with pytest.raises(SpecError, match="nested more than 31"):
        modeltext.parse(_nested(modeltext.MAX_BODY_DEPTH + 1))
    with pytest.raises(SpecError):
        modeltext.parse(_nested(20_000))
    with pytest.raises(SpecError, match="nested more than"):
        modeltext.parse(HEADER + "g (" + "seq(" * 5000)


def test_counts():
    held = modeltext.counts(load(named("nested_bodies").path))
    assert held.bodies > 1
    assert held.nodes > held.bodies
    assert held.functions == 0


# -- mistakes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "place", "words", "hint"),
    [
        ("", "1:1", "empty", None),
        ("hello", "1:6", "expected '='", None),
        ("<ir_versionn: 3> g () => () {}", "1:2", "'ir_versionn' is no key", "'ir_version'"),
        ("g (flaot[4] x) => () {}", "1:4", "no element type", "'float'"),
        ("g (fp16[4] x) => () {}", "1:4", "no element type", "'float16'"),
        ("g (x/0) => () {}", "1:5", "'/' means nothing", "a/b:0"),
        ("g (x) => () {\n  y = Relu (x\n}", "3:1", "after the inputs of Relu", None),
        ("g (x) => () {\n  y = Relu x\n}", "2:12", "before the inputs of Relu", None),
        ('g (x) => () {\n  y = Relu ("x)\n}', "2:13", "string does not end", None),
        ("g (x) => () { y = Op <a: intt = 1> (x) }", "1:26", "'intt' is no type", "'int'"),
        ("g (x) => () { y = Op <a = []> (x) }", "1:27", "empty list", "ints"),
        ("g (x) => () { y = Op <a: ints = 3> (x) }", "1:33", "is an ints, and this is an int", None),
        ('g (x) => () { y = Op <a = [1, "b"]> (x) }', "1:27", "int and string together", None),
        ("g (x) => () { y = Op <a = hello> (x) }", "1:27", "no value of an attribute", "quotes"),
        ("g (x) => () <float[2] w = {1, 2, 3}> {}", "1:27", "3 values for a tensor float[2]", None),
        ("g (x) => () <float[2] w = {1,\n  abc}> {}", "2:3", "'abc' is not a number", None),
        ("g (x) => () <int8[2] w = {1, 300}> {}", "1:30", "does not fit int8", None),
        ("g (x) => () <float[2] w = {1, 1e39}> {}", "1:31", "too large for float32", None),
        ("g (x) => () <float[N] w = {1}> {}", "1:14", "must be numbers", None),
        ("g (x) => () <float[] w = {1}> {}", "1:14", "needs a shape", None),
        ("g (x) => () <float[2] w = {1, 2> {}", "1:31", "'2> {' is not a number", None),
        ("g (x) => () { y = Relu (x) @{doc: \"a\"} }", "1:30", "'doc' is no key", "doc_string"),
        ("g (x) => () { y = Relu (x)", "1:27", "the end of the text", None),
        ('g () => () {} @{textproto: "x"}', "1:15", "name of a graph or function", None),
        ('g () => () @{textproto: "nope: 1"} {}', "1:25", "no textproto of GraphProto", None),
        ('g (float[2,3] x @{dim_denotation: ["a"]}) => () {}', "1:35", "1 denotations for 2", None),
    ],
)  # fmt: skip
def test_mistakes_are_pointed_at(text, place, words, hint):
    with pytest.raises(SpecError) as caught:
        modeltext.parse(text, source="m.txt")
    error = caught.value
    assert error.message.startswith(f"m.txt:{place}: "), error.message
    assert words in error.message
    assert hint is None or hint in error.hint
    line, column = map(int, place.split(":"))
    if text:
        shown, caret = error.details[:2]
        assert shown.startswith(f"{line} | ")
        assert caret.index("^") - caret.index("|") - 1 == column


def test_a_mistake_far_to_the_right_is_still_in_view():
    text = f"g (x) => () <float[5000] w = {{{', '.join(['1.0'] * 4999)}, oops}}> {{}}"
    with pytest.raises(SpecError, match="oops") as caught:
        modeltext.parse(text)
    shown, caret = caught.value.details[:2]
    assert len(shown) < 130
    assert shown[caret.index("^") :].startswith("oops")


@given(st.data())
def test_no_mangled_text_ends_in_anything_but_a_spec_error(data):
    text = modeltext.show(load(named("metadata_levels").path))
    at = data.draw(st.integers(0, len(text) - 1))
    length = data.draw(st.integers(0, 9))
    junk = data.draw(st.text(st.sampled_from('<>(){}[],:=@.?"#\\b x1-e\n'), max_size=4))
    with contextlib.suppress(SpecError):  # and nothing else
        modeltext.parse(text[:at] + junk + text[at + length :])


def test_every_real_model_is_in_the_table():
    assert {entry.name for entry in fetch.entries()} >= set(CORPUS)


@pytest.mark.parametrize("name", ["metadata_everywhere", "metadata_levels", "pytorch_dynamo_metadata"])
def test_metadata_can_be_left_out_and_only_that_is(name):
    model = load(named(name).path)
    notes: list[str] = []
    text = modeltext.show(model, weights="inline", metadata=False, notes=notes)
    bare = type(model.proto)()
    bare.CopyFrom(modeltext.parse(modeltext.show(model, weights="inline")).proto)
    stack, dropped = [bare], 0
    while stack:
        message = stack.pop()
        for field in ("doc_string", "metadata_props"):
            if field in message.DESCRIPTOR.fields_by_name:
                held = getattr(message, field)
                dropped += (held != "") if field == "doc_string" else len(held)
                message.ClearField(field)
        for field, value in message.ListFields():
            if field.message_type is not None:
                stack.extend(value if hasattr(value, "add") else [value])
    assert modeltext.parse(text).proto == bare
    assert "metadata_props" not in text
    assert dropped > 1
    assert notes[-1:] == [
        f"{dropped:,} entries of metadata and doc strings left out as asked: this text does not build the same model"
    ]
    notes.clear()
    assert modeltext.show(load(named("if_basic").path), metadata=False, notes=notes)
    assert notes == []
