"""Outlining: functions made of nodes, on every fixture that runs, on real models, and its refusals."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from cases import all_cases, cases, named
from corpus import fetch
from engines import ENGINES, bits, run_ort

from onnxbench import backends, select
from onnxbench.errors import BenchError, NotFoundError, RefusedResultError, UnsupportedError, UsageError
from onnxbench.graph import GraphIndex, Scope
from onnxbench.inlining import inline_functions
from onnxbench.model import Model, load
from onnxbench.modeltext import parse
from onnxbench.operations import InlineFunctions, Move, Outline
from onnxbench.provenance import CLASS_HIERARCHY, NAME_SCOPES
from onnxbench.surgery import edit
from onnxbench.weights import is_outside
from onnxbench.writer import save


def _run(model: Model, feeds: dict[str, Any]) -> Any:
    session = backends.open_session(model, options=backends.Options("none"))
    values = session.run(feeds)
    session.close()
    return bits(values)


def _ranges(scope: Scope, count: int) -> list[tuple[int, int]]:
    """Some ranges of neighbouring nodes: in a sorted graph nothing can lie between them."""
    length = len(scope.nodes)
    draw = random.Random(length)
    pairs = {(0, length), (0, 1), (length - 1, length)}
    for _ in range(count):
        start = draw.randrange(length)
        pairs.add((start, draw.randrange(start, length) + 1))
    return sorted(pair for pair in pairs if pair[0] < pair[1] <= length)


def _range_selector(scope: Scope, start: int, end: int) -> str:
    names = [name for names in scope.writes[start:end] for name in names]
    return " | ".join(f'"{scope.path}/{name}"' if scope.path else f'"{name}"' for name in names)


RUNNABLE = cases(lambda case: case.valid == "yes" and case.engine is not None and not case.is_external)


@RUNNABLE
def test_any_range_of_nodes_becomes_a_call_that_computes_the_same(case):
    model, engine = load(case.path), ENGINES[case.engine]
    whole, feeds = case.whole(), case.feeds()
    expected = engine(whole, feeds)
    tried = done = 0
    for scope in GraphIndex(edit(model, [], stamp=False).model.proto).scopes:
        for start, end in _ranges(scope, 3) if scope.nodes else ():
            selector = _range_selector(scope, start, end)
            if not selector or selector.count('"') != 2 * (selector.count(" | ") + 1):
                continue
            tried += 1
            try:
                edited = edit(model, [Outline(at=selector, name="test.outlined::Block")], stamp=False).model
            except RefusedResultError as error:
                assert "nothing outside reads" in str(error) or "nothing but constants" in str(error), error
                continue
            if case.name != "function_overload.onnx":  # ONNX Runtime does not find overloads from within functions
                assert engine(edited.proto, feeds) == expected, (scope.path, start, end)
            assert run_inlined(engine, edited, feeds) == expected, (scope.path, start, end)
            done += 1
    assert done or tried <= 4 or not expected


def run_inlined(engine: Any, model: Model, feeds: dict[str, Any]) -> Any:
    return engine(inline_functions(model)[0].proto, feeds)


# -- real models ---------------------------------------------------------------------------------------------------

OUTLINED = [
    ("tashkeel_seq2seq", [Outline(scope="attn_layers.*", name="Layer")], {"Layer": (276, 3)}),
    (
        "tashkeel_seq2seq",
        [
            Outline(scope="attn_layers.*.attn.attn", name="Attention"),
            Outline(scope="attn_layers.*.ccm.gru*", name="Gru", parameters=True),
        ],
        {"Attention": (58, 3), "Gru": (41, 9)},
    ),
    (
        "attacut_c",
        [Outline(scope="model.conv*", name="Conv", parameters=True), Outline(scope="model", name="Net")],
        {"Conv": (1, 3), "Net": (19, 1)},
    ),
    ("silero_vad_16k_op15", [Outline(scope="model.decoder", name="Decoder")], {"Decoder": (24, 1)}),
    (
        "minilm_int8w",
        [
            Outline(
                at=[
                    "between(layer_norm, layer_norm_2) & !node:node_layer_norm",
                    "between(layer_norm_2, layer_norm_4) & !node:node_layer_norm_2",
                ],
                name="Layer",
            )
        ],
        {"Layer": (46, 2)},
    ),
]


@pytest.mark.parametrize(
    ("name", "steps", "expected"), OUTLINED, ids=[f"{row[0]}-{'-'.join(row[2])}" for row in OUTLINED]
)
def test_modules_of_real_models(corpus, name, steps, expected):
    path, entry = corpus(name)
    model, feeds = load(path), fetch.seeded_feeds(path, entry)
    values = _run(model, feeds)
    done = edit(model, steps).model
    calls = [ref.node.op_type for ref in GraphIndex(done.proto).nodes() if ref.node.domain == "local"]
    made = {function.name: (len(function.node), calls.count(function.name)) for function in done.proto.functions}
    assert made == expected
    assert _run(done, feeds) == values
    assert _run(inline_functions(done)[0], feeds) == values
    assert _run(edit(done, [InlineFunctions()]).model, feeds) == values


def test_a_call_tells_of_its_module_as_the_nodes_did(corpus):
    path, _ = corpus("attacut_c")
    model = load(path)
    done = edit(model, [Outline(scope="model.conv1.conv", name="nets::Conv")]).model
    call = next(node for node in done.proto.graph.node if node.op_type == "Conv" and node.domain == "nets")
    said = {entry.key: entry.value for entry in call.metadata_props}
    inner = done.proto.functions[0].node[0]
    kept = {entry.key: entry.value for entry in inner.metadata_props}
    original = next(node for node in model.proto.graph.node if node.name == inner.name)
    assert kept == {entry.key: entry.value for entry in original.metadata_props}
    assert said[NAME_SCOPES] == "['', 'model', 'model.conv1', 'model.conv1.conv', 'model.conv1.conv']"
    assert said[CLASS_HIERARCHY].endswith("'nets::Conv']")
    assert select.nodes(GraphIndex(done.proto), ["scope:model.conv1.conv"])[0].node == call


def test_calls_of_torchscript_modules_stay_in_their_scope(corpus):
    path, _ = corpus("tashkeel_seq2seq")
    done = edit(load(path), [Outline(scope="attn_layers.*", name="Layer")]).model
    index = GraphIndex(done.proto)
    for number in range(3):
        (ref,) = select.nodes(index, [f"scope:attn_layers.{number}"])
        assert (ref.node.name, ref.node.op_type) == (f"/attn_layers.{number}/Layer", "Layer")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("tashkeel_seq2seq", Outline(scope="attn_layers.*", name="Layer")),
        ("attacut_sc", Outline(scope="model.linear*", name="Linear")),
    ],
)
def test_inlined_again_nodes_tell_of_their_modules_as_before(corpus, name, step):
    path, _ = corpus(name)
    model = load(path)
    done = edit(model, [step, InlineFunctions()], stamp=False).model
    origins = [select.origins(GraphIndex(each.proto)) for each in (model, done)]
    told = [
        sorted((node.op_type, str(known.of(node).scope), known.of(node).classes) for node in each.proto.graph.node)
        for known, each in zip(origins, (model, done), strict=True)
    ]
    assert told[0] == told[1]
    if name == "tashkeel_seq2seq":
        assert {node.name for node in done.proto.graph.node} == {node.name for node in model.proto.graph.node}


def test_weights_are_not_read(tmp_path):
    case = next(case for case in all_cases() if "external_one_file" in case.name)
    model = load(case.path)
    names = [node.output[0] for node in model.proto.graph.node]
    step = Outline(at=" | ".join(names), name="All")
    done = edit(model, [step]).model
    assert {tensor.name for tensor in done.proto.graph.initializer if is_outside(tensor)} == {
        tensor.name for tensor in model.proto.graph.initializer if is_outside(tensor)
    }
    save(done, tmp_path / "out.onnx")
    assert run_ort(tmp_path / "out.onnx", case.feeds()) == run_ort(case.path, case.feeds())


def test_nothing_but_the_outlined_nodes_changes():
    model = load(named("metadata_everywhere").path)
    node = model.proto.graph.node[-1]
    done = edit(model, [Outline(at=f'"{node.output[0]}"', name="my::Last")], stamp=False).model
    before, after = type(model.proto)(), type(model.proto)()
    before.CopyFrom(model.proto)
    after.CopyFrom(done.proto)
    outlined = after.functions.pop()
    assert (outlined.name, outlined.node[0].metadata_props) == ("Last", node.metadata_props)
    added = after.opset_import.pop()
    assert (added.domain, added.version) == ("my", 1)
    del before.graph.node[-1], after.graph.node[-1]
    assert before.SerializeToString(deterministic=True) == after.SerializeToString(deterministic=True)


def test_old_models_get_the_ir_version_that_functions_need():
    model = parse(
        '<ir_version: 7, opset_import: ["" : 13]> g (float[2] x) => (float[2] y) { h = Neg (x)  y = Relu (h) }'
    )
    done = edit(model, [Outline(at="h | y", name="F")])
    assert done.model.proto.ir_version == 8
    assert any(change.what == "ir_version" for change in done.changes)


def test_functions_of_value_infos_that_agree():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    net (float[N, 4] x) => (float[N, 2] y)
    <float[N, 4] a, float[N, 4] p, float[N, 2] q, float[4, 4] v = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1},
     float[4, 2] w = {1, 0, 0, 1, 1, 0, 0, 1}>
    {
       p = MatMul (x, v)
       a = Relu (p)
       q = MatMul (a, w)
       y = Relu (q)
    }
    """
    model = parse(text)
    shared = edit(model, [Outline(at=["p | a", "q | y"], name="F")]).model.proto
    assert [info.name for info in shared.functions[0].value_info] == []
    single = edit(model, [Outline(at="p | a", name="F")]).model.proto
    assert [info.name for info in single.functions[0].value_info] == ["p", "a"]
    assert "p" not in {info.name for info in single.graph.value_info}
    assert run_ort(shared, {"x": np.ones((3, 4), np.float32)}) == run_ort(
        model.proto, {"x": np.ones((3, 4), np.float32)}
    )


CONVEX = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[2] x) => (float[2] y, float[2] z)
    {
       a = Neg (x)
       b = Relu (x)
       p = Add (a, b)
       q = Mul (b, a)
       y = Sub (p, q)
       z = Add (q, p)
    }
"""


@pytest.mark.parametrize(
    ("step", "error", "words"),
    [
        (Outline(at=["p | y", "q | z"], name="F"), RefusedResultError, "each need what the other makes"),
        (Outline(at=["p | y", "y | z"], name="F"), UsageError, "it can be in one only"),
        (Outline(at="a", name="ai.onnx::F"), UsageError, "a domain of standard operators"),
        (Outline(at="a", name="F F"), UsageError, "cannot be the name of a function"),
        (Outline(at="a", scope="m", name="F"), UsageError, "takes a scope or a selector"),
        (Outline(scope="m", name="F"), NotFoundError, "no PyTorch module 'm'"),
        (Outline(at="p", inside="a", name="F"), UsageError, "is no constant"),
    ],
)
def test_refusals(step, error, words):
    with pytest.raises(error, match=words):
        edit(parse(CONVEX), [step])


def test_unused_nodes_are_not_outlined():
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[2] y) { y = Neg (x)  d = Relu (x) }'
    )
    with pytest.raises(RefusedResultError, match="nothing outside reads what 'd' makes"):
        edit(model, [Outline(at="d", name="F")])


def test_a_default_that_callers_can_set_does_not_move_inside():
    model = parse(
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> '
        "{ y = Add (x, w) }"
    )
    with pytest.raises(UnsupportedError, match="a caller may override"):
        edit(model, [Outline(at="y", name="F", inside="w")])


FUNCTIONS = cases(lambda case: case.name.startswith("function_") and case.engine == "ort")


@FUNCTIONS
def test_nodes_at_the_border_move_out_and_compute_the_same(case):
    model, feeds = load(case.path), case.feeds()
    expected = run_ort(case.whole(), feeds)
    index = GraphIndex(model.proto)
    for function in index.functions.values():
        for names in function.writes:
            if not names:
                continue
            step = Move(at=f'"{function.path}/{names[0]}"', to="out")
            try:
                done = edit(model, [step], stamp=False).model
            except BenchError as error:
                assert any(
                    words in str(error) for words in ("lies between", "nothing calls", "a body of", "is all that")
                ), error
                continue
            assert run_ort(done.proto, feeds) == expected, (function.path, names)
