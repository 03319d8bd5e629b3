"""``inspect``: every figure on the card against onnx's own reading of the file, and every table on real models."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import ROOT, Case, cases, named
from onnx import TensorProto as T
from onnx import helper, numpy_helper, parser

from onnxbench import weighing
from onnxbench.card import summarize
from onnxbench.cli import _tables, app
from onnxbench.cli._boundary import bounded
from onnxbench.errors import NotFoundError, UsageError
from onnxbench.graph import GraphIndex
from onnxbench.inspection import VIEWS, inspect
from onnxbench.model import from_proto, load
from onnxbench.records import operator
from onnxbench.select import origins

LIKELY = ("magika", "silero_vad", "attacut_sc", "minilm_int8w_ext", "isnet_fp16", "ddddocr_rec_dynq", "swift_f0",
          "logreg_iris_ml", "nakdimon_loop", "ppocr_v2_cls")  # fmt: skip


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = bounded(app, [str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def graphs_of(graph) -> Iterator[tuple[object, int]]:
    """Yields a graph or function and the graphs in it, with their depth."""
    yield graph, 0
    for node in graph.node:
        for attribute in node.attribute:
            for inner in [attribute.g] if attribute.type == 5 else attribute.graphs:
                yield from ((found, depth + 1) for found, depth in graphs_of(inner))


def stored_tensors(proto: onnx.ModelProto) -> Iterator[tuple[int, int, int]]:
    """Yields element type, elements and bytes of every stored value, as onnx reads them."""
    roots = [proto.graph, *proto.functions]
    for graph, _ in (found for root in roots for found in graphs_of(root)):
        dense = list(getattr(graph, "initializer", ()))
        sparse = list(getattr(graph, "sparse_initializer", ()))
        for node in graph.node:
            for attribute in node.attribute:
                dense += [attribute.t] if attribute.type == 4 else attribute.tensors
                sparse += [attribute.sparse_tensor] if attribute.type == 11 else attribute.sparse_tensors
        for tensor in dense:
            yield tensor.data_type, int(np.prod(list(tensor.dims))), _packed_bytes(tensor)
        for parts in sparse:
            size = _packed_bytes(parts.values) + _packed_bytes(parts.indices)
            yield parts.values.data_type, int(np.prod(list(parts.dims))), size


def _packed_bytes(tensor: onnx.TensorProto) -> int:
    """Returns the bytes of a tensor as raw data has them, by onnx's own serialization."""
    if tensor.data_type == T.STRING:
        return sum(map(len, tensor.string_data))
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    return len(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


@cases(lambda case: case.valid == "yes")
def test_figures_agree_with_onnx(case: Case):
    proto = case.whole()
    found = summarize(load(case.path))
    everything = [found for root in (proto.graph, *proto.functions) for found in graphs_of(root)]
    nodes = [node for graph, _ in everything for node in graph.node]
    assert found.all_nodes == len(nodes)
    assert found.nodes == len(proto.graph.node)
    assert {op.op: op.count for op in found.ops} == dict(Counter(map(operator, nodes)))
    assert found.unnamed_nodes == sum(not node.name for node in nodes)
    bodies = [depth for _, depth in everything if depth]
    assert (found.bodies.count, found.bodies.depth) == (len(bodies), max(bodies, default=0))
    in_bodies = [node for graph, depth in everything if depth for node in graph.node]
    assert {op.op: op.in_bodies for op in found.ops if op.in_bodies} == dict(Counter(map(operator, in_bodies)))
    in_functions = [node for function in proto.functions for graph, _ in graphs_of(function) for node in graph.node]
    assert {op.op: op.in_functions for op in found.ops if op.in_functions} == dict(Counter(map(operator, in_functions)))
    assert len(found.functions) == len(proto.functions)

    stored = list(stored_tensors(proto))
    assert found.weights.tensors == len(stored)
    assert found.parameters == found.weights.elements == sum(elements for _, elements, _ in stored)
    assert found.weights.bytes == sum(size for _, _, size in stored)
    assert sum(held.bytes for held in found.by_dtype.values()) == found.weights.bytes
    assert sum(held.tensors for held in found.by_place.values()) == len(stored)
    assert [port.name for port in found.inputs] == [info.name for info in proto.graph.input]
    assert [port.name for port in found.outputs] == [info.name for info in proto.graph.output]


@cases(lambda case: True)
def test_every_view_of_every_fixture_opens_or_is_refused_with_a_reason(case: Case, capsys):
    flags = ["--card", "--nodes", "--tensors", "--weights", "--scopes", "--functions", "--bodies", "--values"]
    code, out, err = run(capsys, "inspect", case.path, *flags)
    if case.valid != "no":
        assert code == 0, err
    assert code in (0, 2, 4, 5, 6), err
    assert bool(out) == (code == 0)
    code, out, _ = run(capsys, "inspect", case.path, *flags, "--json")
    body = json.loads(out)
    assert ("error" in body) == (code != 0)


# The card.


def test_card_of_a_model_with_everything():
    found = summarize(load(named("metadata_everywhere").path))
    assert found.metadata == {"level": "model", "author": "fixtures", "json": '{"a": [1, 2]}'}
    assert (found.producer, found.domain, found.model_version) == ("onnxbench-fixtures 1.2.3", "com.example.models", 42)
    assert found.doc.startswith("doc of model: ünïcode")
    assert (found.inputs[0].denotation, found.inputs[0].doc) == ("IMAGE", "doc of x")
    assert found.opsets["local"] == 1


def test_types_of_inputs_and_outputs():
    def types(name: str) -> list[str]:
        card = summarize(load(named(name).path))
        return [port.type for port in (*card.inputs, *card.outputs)]

    assert types("sequence_io") == ["sequence(float32[2])", "float32[2]", "sequence(float32[2])"]
    assert types("optional_input")[0] == "optional(float32[2])"
    assert "map(" in " ".join(types("map_zipmap"))
    assert types("input_without_shape")[0].endswith("[...]")
    defaults = summarize(load(named("initializer_as_input_ir3").path)).inputs
    assert [port.has_default for port in defaults] == [False, True]


def test_dynamic_dims():
    dims = {dim.symbol: dim for dim in summarize(load(named("dynamic_batch").path)).dynamic_dims}
    assert dims["batch"].inputs[0].endswith("[0]")
    assert dims["batch"].outputs[0].endswith("[0]")
    assert "?" in {dim.symbol for dim in summarize(load(named("dims_unknown").path)).dynamic_dims}


def test_quantization():
    found = summarize(load(named("qdq_conv").path)).quantization
    assert (found.quantize, found.dequantize, found.pairs, found.dequantized_weights) == (2, 4, 2, 2)
    assert summarize(load(named("quantization_annotation").path)).quantization.annotations == 3
    assert not summarize(load(named("residual").path)).quantization


def test_functions_and_their_calls():
    functions = {f.name: f for f in summarize(load(named("function_nested").path)).functions}
    assert {name: (f.nodes, f.calls) for name, f in functions.items()} == {
        "local::Norm": (2, 1), "local::SquarePlus": (2, 1), "local::Square": (1, 2),
    }  # fmt: skip
    assert {f.name: f.calls for f in summarize(load(named("function_in_body").path)).functions} == {"local::Square": 3}
    assert [f.calls for f in summarize(load(named("function_uncalled").path)).functions].count(0) >= 1
    overloads = {f.name: f.calls for f in summarize(load(named("function_overload").path)).functions}
    assert overloads == {"local::Act:relu": 1, "local::Act:tanh": 1}


def test_custom_operators():
    (custom,) = summarize(load(named("custom_op_in_body").path)).custom_ops
    assert (custom.op, custom.is_local_function, custom.known_to) == ("com.example::Repeat", False, None)
    contrib = summarize(load(named("contrib_op").path)).custom_ops
    assert {op.known_to for op in contrib} == {"onnxruntime"}
    local = summarize(load(named("function_shadows_standard").path)).custom_ops
    assert any(op.is_local_function for op in local)
    assert summarize(load(named("opset_spelled_ai_onnx").path)).custom_ops == ()


def test_marks():
    marks = summarize(load(named("mmdeploy_marks").path)).marks
    assert marks["yolo_head[1]:input"] == 2
    assert sum(marks.values()) == 8


def test_opsets_that_nothing_uses():
    card = summarize(load(named("opset_unused").path))
    used = {node.domain or "ai.onnx" for node in GraphIndex(load(named("opset_unused").path).proto).main.nodes}
    assert set(card.unused_opsets) == set(card.opsets) - used != set()


def test_external_files_and_what_is_wrong_with_them():
    (one,) = summarize(load(named("external_one_file").path)).external
    assert one.problem is None
    assert one.file_bytes is not None
    assert len(summarize(load(named("external_many_files").path)).external) > 1
    for name, words in (
        ("ext_missing_file", "is missing"),
        ("ext_parent", "leaves the model's folder"),
        ("ext_file_too_short", "which has"),
        ("ext_offset_not_a_number", "not a number"),
    ):
        external = summarize(load(named(name).path, require_weights=False)).external
        assert [words in (file.problem or "") for file in external] == [True], name


@pytest.mark.corpus
@pytest.mark.parametrize(
    ("name", "all_nodes", "depth", "traced"),
    [("silero_vad", 689, 4, 0), ("isnet_fp16", 734, 0, 721), ("attacut_sc", 23, 0, 23), ("nakdimon_loop", 332, 1, 0)],
)
def test_cards_of_real_models(corpus, name, all_nodes, depth, traced):
    found = summarize(load(corpus(name)[0]))
    assert (found.all_nodes, found.bodies.depth, found.in_modules) == (all_nodes, depth, traced)


@pytest.mark.corpus
def test_int8_and_runtime_operators_of_a_real_model(corpus):
    found = summarize(load(corpus("ddddocr_rec_dynq")[0]))
    assert found.quantization.dynamic == 22
    assert found.quantization.integer_ops["ConvInteger"] == 21
    assert [(op.op, op.known_to) for op in found.custom_ops] == [("com.microsoft::DynamicQuantizeLSTM", "onnxruntime")]
    assert {"ai.onnx", "com.microsoft"}.isdisjoint(found.unused_opsets)
    assert "com.microsoft.nchwc" in found.unused_opsets


# Statistics.


def _with_external(folder: Path, name: str, tensor: onnx.TensorProto) -> onnx.ModelProto:
    """Returns a model whose one weight lies in a file beside it, after some bytes of others."""
    (folder / "w.bin").write_bytes(b"\xff" * 24 + tensor.raw_data)
    outside = T(name=name, data_type=tensor.data_type, dims=tensor.dims, data_location=T.EXTERNAL)
    for key, value in (("location", "w.bin"), ("offset", "24"), ("length", str(len(tensor.raw_data)))):
        outside.external_data.add(key=key, value=value)
    info = helper.make_tensor_value_info("y", tensor.data_type, tensor.dims)
    return helper.make_model(
        helper.make_graph([helper.make_node("Identity", [name], ["y"])], "g", [], [info], [outside])
    )


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int8", "uint8", "int64", "bool", "bfloat16",
                                   "float8_e4m3fn", "int4", "uint4"])  # fmt: skip
def test_statistics_by_blocks_are_those_of_the_whole(tmp_path, monkeypatch, dtype):
    import ml_dtypes

    chance = np.random.default_rng(7)
    kind = np.dtype(getattr(ml_dtypes, dtype, None) or dtype)
    values = chance.normal(3, 2, 1003).round(1).clip(0 if dtype.startswith("u") else -7, 7).astype(kind)
    if kind.kind == "f" or dtype.startswith(("bfloat", "float8")):
        values[[3, 400]] = np.nan
        if dtype != "float8_e4m3fn":
            values[[5, 700, 701]] = np.inf
    monkeypatch.setattr(weighing, "BLOCK", 64)
    proto = _with_external(tmp_path, "w", numpy_helper.from_array(values, "w"))
    found = weighing.statistics(from_proto(proto, folder=tmp_path), proto.graph.initializer[0])
    wide = values.astype(np.float64)
    finite = wide[np.isfinite(wide)]
    assert found is not None
    assert (found.elements, found.zeros) == (1003, int((finite == 0).sum()))
    assert (found.nans, found.infinities) == (int(np.isnan(wide).sum()), int(np.isinf(wide).sum()))
    assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    assert found.mean == pytest.approx(finite.mean(), rel=1e-12)
    assert found.std == pytest.approx(finite.std(), rel=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.zeros((0, 3), np.float32), (0, None, None, None, None, 0, 0, 0)),
        (np.array([np.nan, np.inf, -np.inf], np.float32), (3, None, None, None, None, 0, 1, 2)),
        (np.array(2.5, np.float32), (1, 2.5, 2.5, 2.5, 0.0, 0, 0, 0)),
        (np.array([2**62 + 1, -3], np.int64), (2, -3, 2**62 + 1, 2.0**61, 2.0**61, 0, 0, 0)),  # ends are exact
        (np.array([1 + 1j, 0, np.nan], np.complex64), (3, None, None, None, None, 1, 1, 0)),
        (np.array([1e8, 1e8 + 1, 1e8 + 2], np.float64), (3, 1e8, 1e8 + 2, 1e8 + 1, (2 / 3) ** 0.5, 0, 0, 0)),
    ],
)
def test_statistics_at_the_edges(values, expected):
    tensor = numpy_helper.from_array(values, "w")
    found = weighing.statistics(from_proto(onnx.ModelProto()), tensor)
    assert found is not None
    fields = ("elements", "minimum", "maximum", "mean", "std", "zeros", "nans", "infinities")
    for name, wanted in zip(fields, expected, strict=True):
        got = getattr(found, name)
        if name in ("mean", "std") and wanted is not None:
            assert got == pytest.approx(wanted, rel=1e-6), name
        else:
            assert got == wanted, name


def test_strings_have_no_statistics():
    assert weighing.statistics(from_proto(onnx.ModelProto()), helper.make_tensor("s", T.STRING, [1], [b"a"])) is None


def test_a_missing_weight_does_not_hide_the_others(tmp_path):
    proto = _with_external(tmp_path, "w", numpy_helper.from_array(np.ones(4, np.float32)))
    proto.graph.initializer.append(numpy_helper.from_array(np.full(2, 5, np.float32), "v"))
    (tmp_path / "w.bin").unlink()
    found = inspect(from_proto(proto, folder=tmp_path), ["weights"], values=True)
    assert found.weights is not None
    by_name = {weight.name: weight for weight in found.weights}
    assert "missing" in (by_name["w"].problem or "")
    assert by_name["w"].statistics is None
    assert by_name["v"].statistics.mean == 5


# Modules.


def test_module_tree_counts_nodes_and_weighs_shared_weights_once():
    proto = parser.parse_model("""
    <ir_version: 9, opset_import: ["" : 19]>
    net (float[1, 4] x) => (float[1, 4] y)
    {
      t1 = MatMul (x, tied)
      t2 = Add (t1, own)
      t3 = MatMul (t2, tied)
      t4 = Relu (t3)
      y = Mul (t4, loose)
    }
    """)
    for node, name in zip(proto.graph.node, ("/a/MatMul", "/a/sub/Add", "/b/MatMul", "/Relu", "plain"), strict=True):
        node.name = name
    for name, shape in (("tied", (4, 4)), ("own", (4,)), ("loose", (4,)), ("head.unread.bias", (8,))):
        proto.graph.initializer.append(numpy_helper.from_array(np.ones(shape, np.float32), name))
    index = GraphIndex(proto)
    rows = {row.path: row for row in weighing.module_tree(index, origins(index), operator)}
    assert {path: (row.depth, row.nodes, row.nodes_below, row.weights, row.bytes) for path, row in rows.items()} == {
        "": (0, 1, 4, 3, 64 + 16 + 32),
        "a": (1, 1, 2, 2, 64 + 16),
        "a.sub": (2, 1, 1, 1, 16),
        "b": (1, 1, 1, 1, 64),
        "head": (1, 0, 0, 1, 32),
        "head.unread": (2, 0, 0, 1, 32),
    }
    assert list(rows)[:4] == ["", "a", "a.sub", "b"], "a module comes before those in it, in the order of first use"
    assert rows["a"].ops == {"MatMul": 1, "Add": 1}


def test_modules_have_their_classes():
    found = inspect(load(named("pytorch_dynamo_metadata").path), ["modules"])
    classes = {module.path: module.module_class for module in found.modules or ()}
    assert classes[""] == "toy.Net"
    assert classes["layers.0.c"] == "torch.nn.modules.conv.Conv2d"
    limited = inspect(load(named("pytorch_dynamo_metadata").path), ["modules"], depth=1)
    assert {module.path for module in limited.modules or ()} == {"", "layers"}


@pytest.mark.corpus
def test_modules_of_a_real_model_without_provenance_are_those_its_weights_name(corpus):
    found = inspect(load(corpus("minilm_int8w")[0]), ["modules"])
    paths = {module.path: module for module in found.modules or ()}
    assert paths["inner.encoder.layer.0.attention.self.query"].bytes > 0
    assert paths[""].nodes_below == 0
    assert any("385" in note for note in found.notes)


# Views and selectors.


def test_views_are_narrowed_by_selectors():
    model = load(named("residual").path)
    whole = inspect(model, ["nodes", "tensors", "weights"])
    convolutions = inspect(model, ["nodes", "tensors", "weights"], ["op:Conv"])
    assert {node.op for node in convolutions.nodes or ()} == {"Conv"}
    made = {name for node in convolutions.nodes or () for name in (link.name for link in node.outputs)}
    assert {tensor.name for tensor in convolutions.tensors or ()} == made
    read = {link.name for node in convolutions.nodes or () for link in node.inputs if link.kind == "initializer"}
    assert {weight.name for weight in convolutions.weights or ()} == read
    assert len(convolutions.weights or ()) <= len(whole.weights or ())
    name = next(iter(sorted(read)))
    assert [weight.name for weight in inspect(model, ["weights"], [f'"{name}"']).weights or ()] == [name]


def test_without_a_view_selectors_show_what_they_match():
    model = load(named("residual").path)
    assert inspect(model).card is not None
    tensors = inspect(model, (), ["input:*"])
    assert (tensors.card, tensors.nodes) == (None, None)
    assert tensors.tensors is not None
    nodes = inspect(model, (), ["op:Conv"])
    assert nodes.tensors is None
    assert nodes.nodes is not None


def test_bodies_and_functions_narrowed():
    model = load(named("nested_bodies").path)
    everything = [body.path for body in inspect(model, ["bodies"]).bodies or ()]
    assert everything == ["outer_if/else", "outer_if/then", "outer_if/then/loop/body",
                          "outer_if/then/loop/body/inner_if/else", "outer_if/then/loop/body/inner_if/then"]  # fmt: skip
    inside = [body.path for body in inspect(model, ["bodies"], ["op:Loop"]).bodies or ()]
    assert inside == everything[2:]
    assert [body.path for body in inspect(model, ["bodies"], depth=1).bodies or ()] == everything[:2]
    loop = next(body for body in inspect(model, ["bodies"]).bodies or () if body.path.endswith("loop/body"))
    assert (loop.op, loop.nodes, loop.nodes_below, loop.name) == ("Loop", 4, 9, "loop/body")
    assert {"level1", "w", "pre"} <= set(loop.captures)
    functions = inspect(load(named("function_nested").path), ["functions"], ["node:square"]).functions or ()
    assert [function.name for function in functions] == ["local::Square"]


def test_top_and_sort():
    model = load(named("whole_model").path)
    by_bytes = inspect(model, ["weights"], top=3)
    sizes = [weight.bytes for weight in by_bytes.weights or ()]
    assert sizes == sorted(sizes, reverse=True)
    assert by_bytes.left_out is not None
    assert by_bytes.left_out["weights"] + 3 == len(inspect(model, ["weights"]).weights or ())
    names = [weight.name for weight in inspect(model, ["weights"], sort="name").weights or ()]
    assert names == sorted(names)
    assert len(inspect(model, ["nodes"], top=0).nodes or ()) == 0
    with pytest.raises(UsageError, match="byte"):
        inspect(model, ["weights"], sort="byte")
    with pytest.raises(UsageError):
        inspect(model, ["nodez"])
    with pytest.raises(NotFoundError):
        inspect(model, ["nodes"], ["op:Nothing"])


def test_types_are_inferred_unless_told_not_to():
    proto = parser.parse_model("""
    <ir_version: 9, opset_import: ["" : 19]>
    g (float[b, 3] x) => (float[b, 3] y) { t = Relu (x) y = Neg (t) }
    """)
    (inferred,) = [t for t in inspect(from_proto(proto), ["tensors"]).tensors or () if t.name == "t"]
    assert (inferred.type.text, inferred.type.by, inferred.type.shape) == ("float32[b, 3]", "inference", ("b", 3))
    (silent,) = [t for t in inspect(from_proto(proto), ["tensors"], infer=False).tensors or () if t.name == "t"]
    assert (silent.type.text, silent.type.by, silent.type.dtype) == ("?", "nobody", None)


# The command.


@pytest.mark.corpus
@pytest.mark.parametrize("name", LIKELY)
def test_tables_fit_a_terminal_and_are_whole_in_a_pipe(corpus, capsys, monkeypatch, name):
    path, _ = corpus(name)
    flags = [f"--{view}" for view in VIEWS]
    code, piped, _ = run(capsys, "inspect", path, *flags)
    assert code == 0
    index = GraphIndex(load(path).proto)
    for ref in list(index.tensors())[::17]:
        assert _tables.plain(ref.path) in piped
    monkeypatch.setattr(_tables, "terminal_width", lambda: 150)
    code, shown, _ = run(capsys, "inspect", path, *flags)
    assert code == 0
    widest = max(shown.splitlines(), key=_tables._width)
    assert _tables._width(widest) <= 150, widest
    assert shown.count("\n") >= piped.count("\n"), "no row is lost, and only prose is wrapped"


def test_names_of_a_hundred_characters_leave_a_piped_table_aligned(capsys):
    rows = [("a" * 100, "x"), ("b", "y"), ("c" * 300, "z")]
    _tables.print_table([_tables.Column("name"), _tables.Column("type", "whole")], rows)
    lines = capsys.readouterr().out.splitlines()
    assert [line.index(mark) for line, mark in zip(lines[2:4], "xy", strict=True)] == [122, 122]
    assert lines[0].index("type") == 122
    assert lines[4] == f"{'c' * 300}  z"


@pytest.mark.parametrize("width", [60, 80])
@pytest.mark.parametrize("view", ["--nodes", "--tensors", "--attrs"])
def test_a_narrow_terminal_shows_every_name_whole(capsys, monkeypatch, width, view):
    """Rows become blocks; put together again, their lines hold all that the table in a pipe holds."""
    for name in ("names_special", "pytorch_dynamo_metadata", "residual", "nested_bodies"):
        path = named(name).path
        monkeypatch.setattr(_tables, "terminal_width", lambda: None)
        code, piped, _ = run(capsys, "inspect", path, view)
        assert code == 0
        monkeypatch.setattr(_tables, "terminal_width", lambda: width)
        code, shown, _ = run(capsys, "inspect", path, view)
        assert code == 0
        assert max(map(_tables._width, shown.splitlines())) <= width
        assert "…" not in shown
        whole = "".join(shown.split())
        for line in piped.splitlines()[2:]:
            for cell in re.split(r"  +", line):
                assert "".join(cell.split()) in whole, cell


def test_a_real_terminal_of_80_columns(tmp_path):
    """Runs the command on a pseudo-terminal, as a person would."""
    import pty

    model = onnx.load(str(named("residual").path))
    long = "tower_of_blocks/" * 4 + "the_end"
    model.graph.node[0].name = long
    onnx.save(model, tmp_path / "m.onnx")
    leader, follower = pty.openpty()
    words = [sys.executable, "-m", "onnxbench", "inspect", "m.onnx", "--nodes"]
    environment = {**os.environ, "COLUMNS": "80", "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=tmp_path, stdout=follower, env=environment) as process:
        os.close(follower)
        shown = b""
        with suppress(OSError):  # how Linux says that the other end is closed
            while block := os.read(leader, 1 << 16):
                shown += block
    os.close(leader)
    lines = shown.decode().splitlines()
    assert process.returncode == 0
    assert lines[0] == long
    assert max(map(len, lines)) <= 80


def test_control_characters_do_not_reach_the_terminal(capsys):
    proto = parser.parse_model('<ir_version: 9, opset_import: ["" : 19]> g (float x) => (float y) { y = Relu (x) }')
    proto.graph.node[0].name = "evil\x1b[2J\nname\x07"
    assert _tables.plain(proto.graph.node[0].name) == "evil\\x1b[2J\\nname\\x07"
    code, out, _ = run(capsys, "inspect", named("names_special").path, "--nodes")
    assert code == 0
    assert "line\\nbreak" in out
    assert "\x1b" not in out


def test_polygraphy_spelling(capsys):
    path = named("residual").path
    assert run(capsys, "inspect", path, "--show", "layers", "weights") == run(
        capsys, "inspect", path, "--nodes", "--weights"
    )
    assert run(capsys, "inspect", path, "--show", "layers", "attrs") == run(capsys, "inspect", path, "--attrs")
    assert "pads=[" in run(capsys, "inspect", path, "--attrs")[1]
    code, _, err = run(capsys, "inspect", path, "--show", "layrs")
    assert code == 2
    assert "layrs" in err


def test_json_holds_the_views_that_were_asked_for(capsys):
    code, out, _ = run(capsys, "inspect", named("qdq_conv").path, "--nodes", "--weights", "--values", "--json")
    body = json.loads(out)
    assert code == 0
    assert (body["schema_version"], body["command"]) == (1, "inspect")
    assert set(body["result"]) == {"nodes", "weights", "left_out"}
    node = body["result"]["nodes"][0]
    assert {"path", "op", "inputs", "outputs", "attributes", "origin"} <= set(node)
    assert {"name", "dtype", "shape", "bytes", "statistics"} <= set(body["result"]["weights"][0])
    card = json.loads(run(capsys, "inspect", named("qdq_conv").path, "--json")[1])["result"]["card"]
    assert card["quantization"]["pairs"] == 2


def test_infinite_statistics_are_json(capsys):
    code, out, _ = run(capsys, "inspect", named("nan_inf_weights").path, "--values", "--json")
    assert code == 0
    statistics = [weight["statistics"] for weight in json.loads(out)["result"]["weights"]]
    assert sum(found["nans"] for found in statistics) == 2


def test_unknown_things_end_with_their_own_code(capsys):
    path = named("residual").path
    code, out, err = run(capsys, "inspect", path, "op:Cnv")
    assert (code, out) == (4, "")
    assert "Conv" in err
    assert run(capsys, "inspect", ROOT / "no_such.onnx")[0] == 4
    assert run(capsys, "inspect", path, "--sort", "weight", "--weights")[0] == 2


def test_weights_of_gigabytes_are_not_read(tmp_path):
    """A card of 3 GB of weights, in a file that holds nothing but holes: reading it would take 3 GB."""
    side, count = 16384, 3
    proto = onnx.ModelProto(ir_version=9, opset_import=[helper.make_opsetid("", 17)])
    proto.graph.name = "big"
    previous = "x"
    for number in range(count):
        tensor = proto.graph.initializer.add(
            name=f"w{number}", data_type=1, dims=[side, side], data_location=T.EXTERNAL
        )
        size = side * side * 4
        for key, value in (("location", "big.bin"), ("offset", str(number * size)), ("length", str(size))):
            tensor.external_data.add(key=key, value=value)
        proto.graph.node.append(helper.make_node("MatMul", [previous, f"w{number}"], [f"t{number}"]))
        previous = f"t{number}"
    proto.graph.input.append(helper.make_tensor_value_info("x", 1, [1, side]))
    proto.graph.output.append(helper.make_tensor_value_info(previous, 1, [1, side]))
    (tmp_path / "big.onnx").write_bytes(proto.SerializeToString())
    with open(tmp_path / "big.bin", "wb") as file:
        file.truncate(count * side * side * 4)
    code = (
        "import sys; from onnxbench.cli import app; from onnxbench.cli._boundary import bounded;"
        "code = bounded(app, sys.argv[1:]);"  # not ru_maxrss, which counts the process that started this one
        "peak = next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'));"
        "print(code, peak, file=sys.stderr)"
    )
    for arguments in (
        ["inspect", "big.onnx"],
        ["inspect", "big.onnx", "--weights", "--nodes"],
        ["find", "big.onnx", "*"],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        status, peak = done.stderr.split()[-2:]
        assert status == "0"
        assert int(peak) < 150_000, f"{arguments}: {int(peak) / 1000:.0f} MB"
