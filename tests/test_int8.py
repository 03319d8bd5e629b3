"""int8 models: errors are those that numpy finds, nodes left in float are as they were, the search is minimal."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import ROOT
from onnx import helper, numpy_helper

import onnxbench
from onnxbench import load
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.errors import FeedsError, MissingDependencyError, NotFoundError, UnsupportedError, UsageError
from onnxbench.feeding import FeedOptions
from onnxbench.graph import GraphIndex
from onnxbench.int8 import quantize, quantize_file
from onnxbench.model import from_proto
from onnxbench.select import nodes
from onnxbench.writer import save

MAGIKA = ROOT / ".corpus" / "magika.onnx"
SAMPLES = [{"x": np.random.default_rng(at).standard_normal((64, 8)).astype(np.float32)} for at in range(4)]
LINEAR = ("QuantizeLinear", "DequantizeLinear")


def planted(*, outlier: float = 300.0) -> onnx.ModelProto:
    """Four products in a row; the second one reads a tensor with a large column, which costs the others their bits."""
    random = np.random.default_rng(7)
    weights = {f"w{at}": random.standard_normal((8, 8)).astype(np.float32) / 3 for at in range(4)}
    scale = np.ones(8, np.float32)
    scale[3] = outlier
    weights["wide"], weights["narrow"] = scale, 1 / scale
    weights["w1"][3] /= outlier
    body = [
        helper.make_node("MatMul", ["x", "w0"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "wide"], ["b"], name="widen"),
        helper.make_node("MatMul", ["b", "w1"], ["c"], name="second", doc_string="kept"),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w2"], ["e"], name="third"),
        helper.make_node("MatMul", ["e", "w3"], ["y"], name="fourth"),
    ]
    graph = helper.make_graph(
        body, "g", [helper.make_tensor_value_info("x", 1, ["n", 8])], [helper.make_tensor_value_info("y", 1, ["n", 8])],
        [numpy_helper.from_array(value, name) for name, value in weights.items() if name != "narrow"],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, producer_name="me")
    proto.metadata_props.add(key="author", value="someone")
    return proto


def run(proto: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(proto.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def whole(model: onnxbench.Model, folder: Path) -> onnx.ModelProto:
    """Returns a model with all its weights in it."""
    save(model, folder / "whole.onnx")
    return onnx.load(folder / "whole.onnx")


def sqnr(expected: np.ndarray, actual: np.ndarray) -> float:
    return float(10 * np.log10((expected.astype(np.float64) ** 2).sum() / ((expected - actual) ** 2).sum()))


# ---------------------------------------------------------------- measures


def test_data_without_a_range_is_told():
    zeros = [{"x": np.zeros((64, 8), np.float32)}] * 2
    said = quantize(from_proto(planted(outlier=1.0)), feeds=zeros, method="minmax").notes
    assert said == (
        "input 'x' is 0 in all calibration data: ranges taken from that say nothing of real inputs",
        "3 activations had one value throughout, so there was no range to take: 'b', 'd', 'e'",
    )
    broken = {"x": np.where(SAMPLES[1]["x"] > 2, np.nan, SAMPLES[1]["x"])}
    with pytest.raises(FeedsError, match="input 'x' is NaN somewhere in set 1 of the calibration data"):
        quantize(from_proto(planted()), feeds=[SAMPLES[0], broken])
    mixed = [*zeros, SAMPLES[0]]
    assert not quantize(from_proto(planted(outlier=1.0)), feeds=mixed, method="minmax").notes


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_nothing_is_stated_of_tensors_that_went(target):
    proto = planted(outlier=1.0)
    stated = {name: ["n", 8] for name in "abcde"} | {name: [8, 8] for name in ("w0", "w1", "not_there")}
    proto.graph.value_info.extend(helper.make_tensor_value_info(name, 1, shape) for name, shape in stated.items())
    model = from_proto(proto)
    for keep in ((), nodes(GraphIndex(model.proto), ["second"], what="keep")):
        graph = quantize(model, feeds=SAMPLES, target=target, method="minmax", keep=keep).model.proto.graph
        there = {*GraphIndex(onnx.ModelProto(graph=graph)).main.tensor_names(), "not_there"}
        assert "not_there" in {info.name for info in graph.value_info} <= there


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_errors_are_those_that_numpy_finds(tmp_path, target):
    proto = planted(outlier=1.0)
    made = quantize(from_proto(proto), feeds=SAMPLES, target=target)
    done = whole(made.model, tmp_path)
    onnx.checker.check_model(done, full_check=True)
    expected = np.concatenate([run(proto, each) for each in SAMPLES])
    assert len(made.outputs) == 1
    worst = min(sqnr(run(proto, each), run(done, each)) for each in SAMPLES)
    assert made.outputs[0].sqnr_db == pytest.approx(worst, rel=1e-4)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in done.graph.initializer}
    floats = {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}
    by_name = {each.tensor: each for each in made.weights}
    for node in done.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0].startswith("w2"):
            back = stored[node.input[0]].astype(np.float64) * stored[node.input[1]]
            assert by_name["w2"].sqnr_db == pytest.approx(sqnr(floats["w2"], back), rel=1e-4)
            assert by_name["w2"].max_abs == pytest.approx(np.abs(floats["w2"] - back).max(), rel=1e-4)
    assert by_name["w2"].channels == 8
    x = next(each for each in made.activations if each.tensor == "x")
    values = np.concatenate([each["x"] for each in SAMPLES])
    assert (x.elements, x.smallest, x.largest) == (values.size, values.min(), values.max())
    assert x.clipped == 0
    assert expected.shape == (256, 8)


def test_what_lies_beyond_the_range_is_counted():
    wild = [*SAMPLES[:3], {"x": 10 * SAMPLES[3]["x"]}]
    model = from_proto(planted(outlier=1.0))
    made = quantize(model, feeds=wild, method="percentile", percentile=90)
    assert 0.05 < next(each for each in made.activations if each.tensor == "x").clipped < 0.2
    assert quantize(model, feeds=wild, method="minmax").activations[0].clipped == 0


@pytest.mark.parametrize("count", [8, 9])
@pytest.mark.parametrize("method", ["minmax", "percentile"])
def test_every_sample_counts_for_the_ranges(count, method):
    samples = [{"x": np.full((4, 8), 100 if at == 0 else 1, np.float32)} for at in range(count)]
    made = quantize(from_proto(planted(outlier=1.0)), feeds=samples, method=method)
    x = next(each for each in made.activations if each.tensor == "x")
    assert (x.largest, x.clipped) == (100, 0)


def test_the_form_is_that_of_the_target_and_all_else_is_as_it_was(tmp_path):
    proto = planted()
    symmetric = whole(quantize(from_proto(proto), feeds=SAMPLES).model, tmp_path)
    types = {tensor.data_type for tensor in symmetric.graph.initializer}
    assert types == {1, 3}, "float and int8"
    uint8 = whole(quantize(from_proto(proto), feeds=SAMPLES, target="onnxruntime").model, tmp_path)
    assert 2 in {tensor.data_type for tensor in uint8.graph.initializer}
    for made in (symmetric, uint8):
        assert [node.name for node in made.graph.node if node.op_type not in LINEAR] == [
            node.name for node in proto.graph.node
        ]
        assert made.producer_name == "me"
        assert [(each.key, each.value) for each in made.metadata_props] == [("author", "someone")]
    flat = whole(quantize(from_proto(proto), feeds=SAMPLES, per_channel=False).model, tmp_path)
    assert all(not tensor.dims for tensor in flat.graph.initializer if tensor.name.endswith("_scale"))


# ---------------------------------------------------------------- nodes in float


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_nodes_left_in_float_read_and_write_what_they_did(tmp_path, target):
    proto = planted()
    model = from_proto(proto)
    refs = nodes(GraphIndex(model.proto), ["second"])
    made = quantize(model, feeds=SAMPLES, target=target, keep=refs)
    assert [each.node for each in made.kept] == ["second"]
    done = whole(made.model, tmp_path)
    onnx.checker.check_model(done, full_check=True)
    makers = {name: node for node in done.graph.node for name in node.output}
    second = next(node for node in done.graph.node if node.name == "second")
    assert second.input[1] == "w1"
    assert second.doc_string == "kept"
    assert "w1_quantized" not in {tensor.name for tensor in done.graph.initializer}
    assert makers[second.input[0]].op_type == "Mul"
    everything = nodes(GraphIndex(model.proto), ["*"])
    with pytest.raises(NotFoundError, match="no node is left"):
        quantize(model, feeds=SAMPLES, target=target, keep=everything)


@pytest.mark.parametrize("target", ["tensorrt", "onnxruntime"])
def test_all_nodes_but_one_in_float_is_the_float_model_there(tmp_path, target):
    proto = planted()
    model = from_proto(proto)
    first = quantize(model, feeds=SAMPLES, target=target).nodes[0]
    others = [ref for ref in nodes(GraphIndex(model.proto), ["*"]) if ref.path != first.node]
    done = whole(quantize(model, feeds=SAMPLES, target=target, keep=others).model, tmp_path)
    names = {tensor.name for tensor in done.graph.initializer}
    assert {"w1", "w2", "w3"} <= names
    assert sum(node.op_type == "QuantizeLinear" for node in done.graph.node) == (1 if target == "tensorrt" else 2)
    stated = {info.name for info in done.graph.value_info}
    made = {name for node in done.graph.node for name in node.output} | names
    assert stated <= made


# ---------------------------------------------------------------- search


def test_the_search_leaves_the_planted_node_in_float_and_nothing_else(tmp_path):
    model = from_proto(planted())
    plain = quantize(model, feeds=SAMPLES)
    assert plain.worst.sqnr_db < 20
    assert max(plain.nodes, key=lambda each: each.effect).node == "second"
    made = quantize(model, feeds=SAMPLES, metric="sqnr", tolerance=["30"], holdout=1, resume=tmp_path / "state.json")
    assert made.passed
    assert [each.node for each in made.kept] == ["second"]
    assert made.search.holdout.value > 30
    assert made.search.runs < 30
    again = quantize(model, feeds=SAMPLES, metric="sqnr", tolerance=["30"], holdout=1, resume=tmp_path / "state.json")
    assert again.kept == made.kept
    assert again.search.runs < made.search.runs
    assert whole(again.model, tmp_path) == whole(made.model, tmp_path)


def test_without_a_set_there_is_no_model():
    made = quantize(from_proto(planted()), feeds=SAMPLES, metric="sqnr", tolerance=["30"], max_runs=5)
    assert not made.passed
    assert made.model is None
    assert "FAILED" in made.verdict


# ---------------------------------------------------------------- refusals


def test_what_cannot_be_done_is_said(tmp_path):
    model = from_proto(planted())
    with pytest.raises(UsageError, match="'tensort' is no target"):
        quantize(model, feeds=SAMPLES, target="tensort")
    with pytest.raises(UsageError, match="a percentile of 99 means nothing"):
        quantize(model, feeds=SAMPLES, percentile=99)
    with pytest.raises(FeedsError, match="held out"):
        quantize(model, feeds=SAMPLES, holdout=4)
    with pytest.raises(NotFoundError, match="no LSTM"):
        quantize(model, feeds=SAMPLES, operators=["LSTM"])
    with pytest.raises(UnsupportedError, match="quantized already"):
        quantize(quantize(model, feeds=SAMPLES).model, feeds=SAMPLES)
    with pytest.raises(UsageError, match="for TensorRT alone"):
        quantize(model, feeds=SAMPLES, quantizer="modelopt", target="onnxruntime")


@pytest.mark.skipif(find_spec("modelopt") is not None, reason="modelopt is installed")
def test_a_quantizer_that_is_not_installed_is_named():
    with pytest.raises(MissingDependencyError, match="NVIDIA's quantizer") as caught:
        quantize(from_proto(planted()), feeds=SAMPLES, quantizer="modelopt")
    assert "nvidia-modelopt" in (caught.value.hint or "")


# ---------------------------------------------------------------- the command


def test_the_command_writes_model_set_and_report(tmp_path, capsys):
    save(from_proto(planted()), tmp_path / "m.onnx")
    (tmp_path / "data").mkdir()
    for number, each in enumerate(SAMPLES):
        np.savez(tmp_path / "data" / f"{number}.npz", **each)
    words = ["quantize", tmp_path / "m.onnx", tmp_path / "q.onnx", "--feeds", tmp_path / "data", "--metric", "sqnr",
             "--tolerance", "30", "--save-set", tmp_path / "set.txt", "--report", tmp_path / "report"]  # fmt: skip
    assert bounded(app, [str(each) for each in words]) == 0
    out = capsys.readouterr().out
    assert "left in float: second" in out
    assert "PASSED: 1 of 4 nodes kept in float32" in out
    assert "second" in (tmp_path / "report" / "report.html").read_text()
    plain = ["quantize", tmp_path / "m.onnx", tmp_path / "p.onnx", "--feeds", tmp_path / "data", "--keep",
             f"@{tmp_path / 'set.txt'}", "--json"]  # fmt: skip
    assert bounded(app, [str(each) for each in plain]) == 0
    said = json.loads(capsys.readouterr().out)["result"]
    assert said["kept"] == ["second"]
    assert {each["tensor"] for each in said["weights"]} >= {"w0", "w2", "w3"}
    assert onnx.load(tmp_path / "p.onnx") == onnx.load(tmp_path / "q.onnx")
    assert bounded(app, ["check", str(tmp_path / "q.onnx"), "--target", "tensorrt", "--select", "OB75"]) == 0
    failing = [*words[:8], "400", "--max-runs", "6"]
    (tmp_path / "q.onnx").unlink()
    assert bounded(app, [str(each) for each in failing]) == 1
    assert not (tmp_path / "q.onnx").exists()
    assert bounded(app, [str(each) for each in [*words[:5], "--search"]]) == 2


# ---------------------------------------------------------------- a real model


@pytest.mark.corpus
@pytest.mark.skipif(not MAGIKA.exists(), reason="the corpus is not fetched")
def test_a_real_model(tmp_path):
    feeds = FeedOptions(shapes=["bytes:[1,2048]"], ranges=["[0,256]"])
    made = quantize_file(MAGIKA, tmp_path / "q.onnx", feeds=feeds, keep=["op:Conv"])
    assert sorted(each.op_type for each in made.nodes) == ["Conv", "MatMul", "MatMul"]
    assert [each.op_type for each in made.kept] == ["Conv"]
    assert all(each.own is not None for each in made.nodes)
    done = onnx.load(tmp_path / "q.onnx")
    onnx.checker.check_model(done, full_check=True)
    before, after = (
        sorted((node.name, node.op_type) for node in proto.graph.node if node.op_type not in LINEAR)
        for proto in (load(MAGIKA).proto, done)
    )
    assert after == before
    dequantized = {name for node in done.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    for node in done.graph.node:
        if node.op_type in ("Conv", "MatMul"):
            assert dequantized.issuperset(node.input[:2]) == (node.op_type == "MatMul")


def test_weights_in_constant_nodes_are_weights():
    proto = planted(outlier=1.0)
    expected = quantize(from_proto(proto), feeds=SAMPLES, method="minmax")
    for tensor in proto.graph.initializer:
        proto.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], value=tensor))
    del proto.graph.initializer[:]
    made = quantize(from_proto(proto), feeds=SAMPLES, method="minmax")
    assert [(each.tensor, each.channels) for each in made.weights] == [
        (each.tensor, each.channels) for each in expected.weights
    ]
    assert made.outputs == expected.outputs


def test_constants_that_no_quantized_node_reads_stay_nodes(tmp_path):
    proto = planted(outlier=1.0)
    (output,) = proto.graph.output
    one = helper.make_node("Constant", [], ["one"], value=numpy_helper.from_array(np.ones(1, np.float32)))
    proto.graph.node.extend([one, helper.make_node("Add", [output.name, "one"], ["more"])])
    output.name = "more"
    done = whole(quantize(from_proto(proto), feeds=SAMPLES, method="minmax").model, tmp_path)
    assert [list(node.output) for node in done.graph.node if node.op_type == "Constant"] == [["one"]]


def test_the_ways_of_taking_ranges_are_compared():
    model = from_proto(planted(outlier=1.0))
    ways = ("minmax", "mse", "entropy")
    ratios = {way: quantize(model, feeds=SAMPLES, method=way).outputs[0].sqnr_db for way in ways}
    chosen = quantize(model, feeds=SAMPLES)
    assert chosen.method == max(ways, key=lambda way: ratios[way])
    assert chosen.outputs[0].sqnr_db == pytest.approx(max(ratios.values()), abs=0.01)
    assert f"ranges by {chosen.method}" in chosen.notes[0]


def test_ranges_are_fitted_to_what_tensors_hold():
    proto = planted(outlier=1.0)
    random = np.random.default_rng(3)
    samples = [{"x": (random.standard_normal((512, 8)) ** 3).astype(np.float32)} for _ in range(3)]  # long tails
    plain, fitted = (quantize(from_proto(proto), feeds=samples, method=method) for method in ("minmax", "mse"))
    before, after = ({each.tensor: each.sqnr_db for each in made.activations} for made in (plain, fitted))
    assert after["x"] > before["x"] + 0.1
    assert all(after[name] >= before[name] - 1e-6 for name in before)
    assert fitted.method == "mse"
    with pytest.raises(UsageError, match="mse is for the target tensorrt"):
        quantize(from_proto(proto), feeds=samples, method="mse", target="onnxruntime")


def test_costs_decide_what_is_left_in_float(tmp_path):
    table = tmp_path / "cost.yaml"
    table.write_text("MatMul: 2.5\n")
    how = {"feeds": SAMPLES, "metric": "sqnr", "tolerance": ["25"]}
    made = quantize(from_proto(planted()), cost=str(table), **how)
    assert made.search is not None
    assert made.search.cost == pytest.approx(2.5 * len(made.kept))
    sized = quantize(from_proto(planted()), cost="bytes", **how)
    assert {each.cost for each in sized.nodes} == {3.0 * (64 + 64 * 8)}  # weights and outputs, 3 bytes an element
    with pytest.raises(UsageError, match="no cost 'byte'"):
        quantize(from_proto(planted()), cost="byte", **how)
    with pytest.raises(MissingDependencyError, match="no execution provider 'nowhere'"):
        quantize(from_proto(planted()), on="ort:all,provider=nowhere", **how)
