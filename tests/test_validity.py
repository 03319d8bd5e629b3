"""Validity: what is sound has no complaint, what is broken has one, and mending changes no number."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from cases import Case, cases, named
from engines import ENGINES
from gen.verify import _in_child
from hypothesis import given
from onnx import TensorProto as T
from onnx import helper
from strategies import RandomModel, models

from onnxbench.errors import BenchError, RefusedResultError
from onnxbench.model import load
from onnxbench.repair import repair
from onnxbench.validity import find_complaints, make_valid, validate


def _fresh(proto: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    return copy


@cases(lambda case: case.valid == "yes")
def test_sound_models_have_no_complaint(case: Case) -> None:
    model = load(case.path)
    before = model.proto.SerializeToString(deterministic=True)
    assert find_complaints(model.proto, complete=model.with_small_weights) == []
    assert make_valid(model.proto, complete=model.with_small_weights) == []
    validate(model.with_small_weights(model.proto))
    assert model.proto.SerializeToString(deterministic=True) == before


@cases(lambda case: case.valid == "mendable")
def test_mendable_models_are_mended_and_say_how(case: Case) -> None:
    model = load(case.path)
    complaints = find_complaints(model.proto)
    mended = _fresh(model.proto)

    words = make_valid(mended)

    assert find_complaints(mended) == []
    assert bool(complaints) <= bool(words)
    assert all(word and word[-1] != "." for word in words)
    assert make_valid(mended) == []
    for engine in case.entry["runs_in"]:
        if engine != "none":
            assert ENGINES[engine](mended, case.feeds()) == ENGINES[engine](case.whole(), case.feeds())


@cases(lambda case: case.valid == "no" and case.error == "invalid-graph")
def test_broken_models_have_a_complaint(case: Case) -> None:
    """In a child process: the onnx checker is native code."""

    def attempt() -> list[str]:
        try:
            proto = load(case.path).proto
            complaints = find_complaints(proto)
            try:
                repairs = make_valid(proto)
                return ["mended" if repairs else "sound", *complaints]
            except RefusedResultError as error:
                return ["refused", error.message, *complaints]
        except BenchError as error:
            return ["not loaded", error.message]

    answer = _in_child(attempt)
    assert "ok" in answer, answer
    assert answer["ok"][0] == ("mended" if case.name == "ir_missing.onnx" else "refused"), answer
    assert len(answer["ok"]) > 1


@given(models())
def test_random_models_are_sound_once_they_are_sorted(drawn: RandomModel) -> None:
    proto = _fresh(drawn.proto)
    words = make_valid(proto)
    assert all("out of order" in word for word in words)
    onnx.checker.check_model(proto, full_check=not proto.graph.sparse_initializer)
    assert repair(proto) == [] or proto.graph.sparse_initializer


def _model(*nodes: onnx.NodeProto, **fields: object) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    graph = helper.make_graph(list(nodes), "g", [value("x", T.FLOAT, [2])], [value("y", T.FLOAT, [2])])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8, **fields)


def test_what_the_checker_does_not_see() -> None:
    neg = helper.make_node("Neg", ["x"], ["y"])
    cases_: list[tuple[onnx.ModelProto, str]] = []
    proto = _model(neg)
    proto.opset_import.append(helper.make_opsetid("ai.onnx", 16))
    cases_.append((proto, "two versions"))
    proto = _model(neg)
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -7
    cases_.append((proto, "dimension of -7"))
    proto = _model(neg)
    proto.graph.initializer.append(onnx.TensorProto(name="w", data_type=T.FLOAT, dims=[1], raw_data=b"12345678"))
    cases_.append((proto, "8 bytes of data where its type and shape take 4"))
    proto = _model(helper.make_node("LeakyRelu", ["x"], ["y"]))
    proto.graph.node[0].attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    cases_.append((proto, "which nobody gives"))
    proto = _model(helper.make_node("Neg", ["x"], ["z"]))
    cases_.append((proto, "made by no node"))
    data = _model(helper.make_node("Neg", ["x"], ["QQ"]), helper.make_node("Neg", ["QQ"], ["y"])).SerializeToString()
    cases_.append((onnx.ModelProto.FromString(data.replace(b"QQ", b"\xff\xfe")), "not UTF-8"))
    for proto, words in cases_:
        assert words in "\n".join(find_complaints(proto))
        with pytest.raises(RefusedResultError):
            validate(proto)


def test_names_in_bodies_are_looked_at_too() -> None:
    data = named("if_basic").whole()
    body = data.graph.node[next(at for at, n in enumerate(data.graph.node) if n.op_type == "If")].attribute[0].g
    for node in body.node:
        for names in (node.input, node.output):
            for at, name in enumerate(names):
                names[at] = "QQQQ" if name == body.node[0].output[0] else name
    raw = data.SerializeToString()
    assert b"QQQQ" in raw
    proto = onnx.ModelProto.FromString(raw.replace(b"QQQQ", b"\xff\xfe\xfd\xfc"))
    assert any("not UTF-8" in words for words in find_complaints(proto))


def test_a_repair_leaves_alone_what_needs_none() -> None:
    """Of a model out of order, nothing but the order changes: unknown fields, metadata and doc strings stay."""
    proto = _fresh(named("metadata_everywhere").whole())
    before = _fresh(proto)
    nodes = list(proto.graph.node)[::-1]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del proto.graph.node[:]
    proto.graph.node.extend(copies)

    words = make_valid(proto)

    assert len(words) == 1
    assert "out of order" in words[0]
    assert proto.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)


def test_complaints_are_not_endless() -> None:
    proto = _model(*(helper.make_node("Neg", ["x"], [f"y{at}"]) for at in range(50)))
    proto.graph.output.extend([helper.make_tensor_value_info(f"z{at}", T.FLOAT, [2]) for at in range(50)])
    assert 0 < len(find_complaints(proto)) <= 12


def test_default_axes_that_the_checker_forgets() -> None:
    """MeanVarianceNormalization of opset 13 without axes: runtimes take it, the checker's own definition does not."""
    node = helper.make_node("MeanVarianceNormalization", ["x"], ["y"])
    value = helper.make_tensor_value_info
    shape = [2, 3, 4, 5]
    graph = helper.make_graph([node], "g", [value("x", T.FLOAT, shape)], [value("y", T.FLOAT, shape)])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    before = _fresh(proto)
    assert find_complaints(proto)
    assert len(make_valid(proto)) == 1
    feeds = {"x": np.random.RandomState(0).uniform(-1, 1, shape).astype(np.float32)}
    assert ENGINES["ort"](proto, feeds) == ENGINES["ort"](before, feeds)
