"""Simplifiers as bridges: what they forget is back, what is lost is told, and failures leave nothing."""

from __future__ import annotations

import numpy as np
import pytest
from cases import all_cases, named
from corpus import fetch
from engines import run_ort

from onnxbench import backends, bridges
from onnxbench.drift import compare_all
from onnxbench.errors import ExecutionError, MissingDependencyError, RefusedResultError, UnsupportedError
from onnxbench.model import load
from onnxbench.modeltext import parse
from onnxbench.operations import Simplify
from onnxbench.surgery import edit
from onnxbench.weights import is_outside

TOOLS = pytest.mark.parametrize("tool", list(bridges.TOOLS))

SAYING = """
    <ir_version: 10, opset_import: ["" : 18, "com.example" : 2], producer_name: "torch", producer_version: "2.9",
     domain: "com.example", model_version: 7, doc_string: "a model", metadata_props: ["author": "me"]>
    net (float[N, 4] x) => (float[N, 4] y)
    <float[4] w = {1, 2, 3, 4}, float[4] v = {1, 1, 1, 1}>
    {
       [sum] s = Add (w, v) @{metadata_props: ["pkg.torch.onnx.name_scopes": "['', 'a', 'sum']"]}
       [mul] h = Mul (x, s) @{doc_string: "scales", metadata_props: ["pkg.torch.onnx.name_scopes": "['', 'a', 'mul']"]}
       [act] y = Relu (h) @{metadata_props: ["pkg.torch.onnx.name_scopes": "['', 'b', 'act']"]}
    }
"""


@TOOLS
def test_what_a_model_says_of_itself_is_still_there(tool):
    model = parse(SAYING)
    done = edit(model, [Simplify(tool=tool)], stamp=False)
    before, after = model.proto, done.model.proto
    for field in ("producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(after, field) == getattr(before, field), field
    assert after.metadata_props == before.metadata_props
    assert {(o.domain, o.version) for o in after.opset_import} >= {(o.domain, o.version) for o in before.opset_import}
    assert after.graph.name == before.graph.name
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    nodes = {node.name: node for node in after.graph.node}
    for node in before.graph.node[1:]:
        assert nodes[node.name].metadata_props == node.metadata_props
        assert nodes[node.name].doc_string == node.doc_string
    notes = " ".join(done.steps[0].notes)
    assert f"{tool}: 3 nodes before" in notes
    if "sum" not in nodes:
        assert "lost metadata of 1 nodes that are gone: s" in notes
        assert any(change.what == f"lost by {tool}" for change in done.changes)
    feeds = {"x": np.arange(8, dtype=np.float32).reshape(2, 4)}
    assert run_ort(after, feeds) == run_ort(before, feeds)


@TOOLS
def test_annotations_keep_their_parameters(tool):
    model = load(named("quantization_annotation").path)
    done = edit(model, [Simplify(tool=tool)], stamp=False).model.proto
    assert done.graph.quantization_annotation == model.proto.graph.quantization_annotation
    stored = {tensor.name for tensor in done.graph.initializer}
    for annotation in done.graph.quantization_annotation:
        assert {entry.value for entry in annotation.quant_parameter_tensor_names} <= stored


@TOOLS
@pytest.mark.parametrize("weights", ["all", "small"])
def test_weights_that_lie_outside_stay_there(tool, weights):
    case = next(case for case in all_cases() if "external_one_file" in case.name)
    model = load(case.path)
    done = edit(model, [Simplify(tool=tool, weights=weights)], stamp=False).model
    kept = {t.name for t in done.proto.graph.initializer if is_outside(t)}
    original = {t.name: t for t in model.proto.graph.initializer}
    for tensor in done.proto.graph.initializer:
        if tensor.name in kept:
            assert tensor == original[tensor.name]
    assert kept or tool == "onnxsim"  # which folds the two weights into one
    session = backends.open_session(done, options=backends.Options("none"))
    values = session.run(case.feeds())
    session.close()
    expected = backends.open_session(model, options=backends.Options("none")).run(case.feeds())
    assert compare_all(expected, values).passed


def test_large_weights_are_kept_away():
    text = """
    <ir_version: 10, opset_import: ["" : 18]>
    net (float[N, 256] x) => (float[N, 256] y)
    {
       h = Identity (x)
       y = MatMul (h, w)
    }
    """
    model = parse(text.replace("{\n       h", "<float[256, 256] w>\n    {\n       h", 1))
    tensor = model.proto.graph.initializer.add(name="w", data_type=1, dims=[256, 256])
    tensor.raw_data = np.eye(256, dtype=np.float32).tobytes()
    del model.proto.graph.value_info[:]
    with pytest.raises(UnsupportedError, match="262,144 bytes of weights, and the limit is 1,024"):
        edit(model, [Simplify(tool="onnxslim", limit=1024)])
    done = edit(model, [Simplify(tool="onnxslim", limit=1024, weights="small")]).model.proto
    assert [node.op_type for node in done.graph.node] == ["MatMul"]
    assert [info.name for info in done.graph.input] == ["x"]
    assert done.graph.initializer[0] == model.proto.graph.initializer[0]


def test_a_tool_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(bridges.TOOLS, "onnxsim", "onnxsim_of_the_future")
    with pytest.raises(MissingDependencyError, match="onnxsim is not installed") as raised:
        edit(parse(SAYING), [Simplify(tool="onnxsim")])
    assert "onnxbench[simplify]" in str(raised.value)


def test_a_tool_that_takes_too_long():
    with pytest.raises(ExecutionError, match="onnxslim took longer than"):
        edit(parse(SAYING), [Simplify(tool="onnxslim", timeout=0.01)])


def test_a_tool_that_does_not_take_the_model():
    with pytest.raises(ExecutionError, match="onnxslim does not take the model") as raised:
        edit(load(named("sparse_initializer").path), [Simplify(tool="onnxslim")])
    assert "ValueError" in raised.value.details[-1]


def test_a_tool_that_returns_another_interface():
    before, after = parse(SAYING).proto, parse(SAYING).proto
    del after.graph.input[:]
    with pytest.raises(RefusedResultError, match="without x"):
        bridges._require_interface("a tool", before, after)


@pytest.mark.parametrize("tool", ["onnxslim", "onnxscript"])
def test_a_real_model_keeps_its_scopes(corpus, tool):
    path, entry = corpus("attacut_c")
    model, feeds = load(path), fetch.seeded_feeds(path, entry)
    done = edit(model, [Simplify(tool=tool)], stamp=False).model.proto
    said = {node.output[0]: node.metadata_props for node in model.proto.graph.node}
    for node in done.graph.node:
        if node.output[0] in said:
            assert node.metadata_props == said[node.output[0]]
    assert done.graph.metadata_props == model.proto.graph.metadata_props
    expected = backends.open_session(model, options=backends.Options("none")).run(feeds)
    values = backends.open_session(model.derive(done), options=backends.Options("none")).run(feeds)
    assert compare_all(expected, values).passed
