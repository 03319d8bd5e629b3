"""Pieces: they compute what the whole computes, bit for bit, or there is none; nothing is lost and nothing comes along.

The values to compare with come from the whole model with every tensor as an output (outputs without a type, which
both engines take), not from anything of ours.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from cases import Case, all_cases, cases, named
from engines import ENGINES, Bits, as_feed, bits, can_feed, ort_session, run_ort
from hypothesis import given
from hypothesis import strategies as st
from mutation import mutated
from onnx import TensorProto as T
from onnx import helper, numpy_helper
from strategies import RandomModel, models

from onnxbench import pieces
from onnxbench.boundary import depends_on
from onnxbench.cut import Piece, assemble, expose, extract, frontier, lift, plan_cut, require_main
from onnxbench.errors import (
    BenchError,
    CutError,
    EmptyPieceError,
    ModelError,
    NotFoundError,
    RefusedResultError,
    UnsupportedError,
    UsageError,
)
from onnxbench.feeding import FeedOptions
from onnxbench.graph import GraphIndex, TensorRef
from onnxbench.inference import TypeFinder
from onnxbench.inlining import inline_functions
from onnxbench.model import Model, from_proto, load
from onnxbench.modeltext import parse
from onnxbench.pieces import type_sources
from onnxbench.tensortype import make_type
from onnxbench.writer import save

runs = cases(lambda case: case.valid != "no" and case.engine is not None)
sound = cases(lambda case: case.valid != "no")


# ---- what the whole computes


def _hidden(index: GraphIndex) -> set[str]:
    """Tensors that an engine does not hand out or take: sparse ones, text that is no text, maps, packed four bits."""
    hidden = {tensor.values.name for tensor in index.proto.graph.sparse_initializer}
    for node in index.main.nodes:
        if node.op_type == "ZipMap" or any(attribute.name == "sparse_value" for attribute in node.attribute):
            hidden.update(node.output)
    for tensor in index.proto.graph.initializer:
        if tensor.data_type == T.STRING:
            hidden.add(tensor.name)
    return hidden


def _all_values(whole: onnx.ModelProto, engine: str, feeds: Mapping[str, Any]) -> dict[str, Bits]:
    """Returns every tensor that an engine hands out of the main graph, the inputs included."""
    index = GraphIndex(whole)
    proto = onnx.ModelProto()
    proto.CopyFrom(whole)
    there = {value.name for value in proto.graph.output}
    names = [name for name in index.main.tensor_names() if name not in feeds and name not in _hidden(index)]
    for name in names:
        if name not in there:
            proto.graph.output.add().name = name
    values = ENGINES[engine](proto, feeds, names) if names else {}
    return {**values, **{name: bits(value) for name, value in feeds.items()}}


@cache
def _fixture(name: str) -> tuple[Model, GraphIndex, dict[str, Any], dict[str, Bits]]:
    case = named(name)
    model = load(case.path)
    feeds = case.feeds()
    return model, GraphIndex(model.proto), feeds, _all_values(case.whole(), case.engine or "ort", feeds)


def _computes(
    piece: Piece, folder: Path, engine: str, feeds: Mapping[str, Any], values: Mapping[str, Bits], *, exact: bool = True
) -> None:
    """Asserts that a piece is written, runs on the whole model's tensors, and gives the whole model's tensors."""
    target = folder / "piece.onnx"
    save(piece.model, target)
    names = [boundary.name for boundary in piece.inputs]
    if not all(can_feed(values[name], engine) for name in names):
        ort_session(target)
        return
    got = ENGINES[engine](target, {n: feeds[n] if n in feeds else as_feed(values[n]) for n in names})
    assert list(got) == [boundary.name for boundary in piece.outputs]
    for name, value in got.items():
        if exact or isinstance(value, list) or value[0] not in ("float32", "float16"):
            assert value == values[name], name
        else:  # a weight that is fed takes other code than one that is packed beforehand
            one, two = (np.asarray(as_feed(v), np.float64) for v in (value, values[name]))
            np.testing.assert_allclose(one, two, rtol=2e-3 if value[0] == "float16" else 1e-5, atol=1e-6)


@runs
def test_all_inputs_to_all_outputs_is_the_whole(case: Case, tmp_path: Path) -> None:
    model = load(case.path)
    index = GraphIndex(model.proto)
    before = model.proto.SerializeToString(deterministic=True)

    piece = extract(model, index.main.outputs, index.main.true_inputs(), index=index, keep_unused=True)

    assert model.proto.SerializeToString(deterministic=True) == before
    assert [boundary.name for boundary in piece.inputs] == index.main.true_inputs()
    save(piece.model, tmp_path / "piece.onnx")
    if case.name == "string_bytes.onnx":
        ort_session(tmp_path / "piece.onnx")
        return
    source = case.path if case.path.suffix == ".onnx" else case.whole()
    for engine in case.entry["runs_in"]:
        assert ENGINES[engine](tmp_path / "piece.onnx", case.feeds()) == ENGINES[engine](source, case.feeds())


# What an extraction of everything leaves out or mends, and nothing else.
DIFFERENT = {
    "contrib_op.onnx": "unused opset import",
    "dead_nodes.onnx": "dead nodes",
    "dim_minus_one.onnx": "a size of -1",
    "function_uncalled.onnx": "uncalled functions",
    "map_zipmap.onnx": "unused opset import",
    "opset_unused.onnx": "unused opset import",
    "output_without_shape.onnx": "type completed",
    "output_without_type.onnx": "type completed",
    "training_info.onnx": "training info",
    "unsorted.onnx": "sorted",
    "unsorted_capture.onnx": "sorted",
    "unused_initializers.onnx": "unused initializers",
    "unused_input.onnx": "unused input",
    "value_info_extra.onnx": "value info of a tensor that is not there",
}


@sound
def test_what_belongs_to_the_piece_is_byte_for_byte_as_it_was(case: Case) -> None:
    """Unknown fields, metadata, doc strings, sparse initializers, annotations: whatever the whole has."""
    model = load(case.path)
    index = GraphIndex(model.proto)

    piece = extract(model, index.main.outputs, index=index)

    same = piece.model.proto.SerializeToString(deterministic=True) == model.proto.SerializeToString(deterministic=True)
    assert same == (case.name not in DIFFERENT)


# ---- random cuts


def _cut_at_random(
    model: Model,
    index: GraphIndex,
    chance: random.Random,
    folder: Path,
    engine: str,
    feeds: Mapping[str, Any],
    values: Mapping[str, Bits],
) -> str:
    """Cuts somewhere, checks whatever comes of it, and says what it was.

    Between nodes of float16 ONNX Runtime keeps float32 on a CPU, and a weight that is fed takes other code than one
    that is packed beforehand: there a piece is equal within rounding.
    """
    same = index.main.constants if "fp16" not in model.proto.graph.name else set(index.main.tensor_names())
    names = sorted(values)
    outputs = chance.sample(names, min(len(names), chance.randint(1, 3)))
    inputs = chance.sample(names, min(len(names), chance.randint(0, 4)))
    inputs += chance.sample(inputs, min(len(inputs), 1)) if chance.random() < 0.2 else []
    auto, keep = chance.random() < 0.5, chance.random() < 0.2
    try:
        piece = extract(model, outputs, inputs, index=index, auto_inputs=auto, keep_unused=keep)
    except CutError as error:
        assert not auto
        assert error.missing
        assert error.proposals
        for proposal in error.proposals:
            _computes(extract(model, outputs, proposal.inputs, index=index), folder, engine, feeds, values,
                      exact=not set(proposal.inputs) & same)  # fmt: skip
        return "refused"
    given = [boundary.name for boundary in piece.inputs]
    assert len(set(given)) == len(given)
    passed_through = set(outputs) & set(index.main.true_inputs())
    assert set(given) <= {*inputs, *piece.cut.added, *passed_through}
    assert set(piece.cut.dropped) <= set(inputs)
    assert not keep or set(inputs) <= set(given)
    _computes(piece, folder, engine, feeds, values, exact=not set(given) & same)
    return "cut"


@runs
def test_random_cuts_of_fixtures(case: Case, tmp_path: Path) -> None:
    if case.name == "string_bytes.onnx":
        pytest.skip("the Python side of ONNX Runtime cannot hand such strings out")
    model, index, feeds, values = _fixture(case.name)
    chance = random.Random(case.name)
    for _ in range(10):
        _cut_at_random(model, index, chance, tmp_path, case.engine or "", feeds, values)


@given(models(), st.randoms(use_true_random=False))
def test_random_cuts_of_random_models(
    tmp_path_factory: pytest.TempPathFactory, drawn: RandomModel, chance: random.Random
) -> None:
    model = from_proto(drawn.proto)
    index = GraphIndex(drawn.proto)
    values = _all_values(drawn.proto, "ort", drawn.feeds)
    for _ in range(3):
        _cut_at_random(model, index, chance, tmp_path_factory.getbasetemp(), "ort", drawn.feeds, values)


@pytest.mark.corpus
@pytest.mark.parametrize(
    "name",
    ["attacut_sc", "basic_pitch", "magika", "silero_vad", "silero_vad_16k_op15", "silero_vad_ifless", "nakdimon_loop",
     "ppocr_v2_cls", "ppocr_v4_rec", "swift_f0", "tashkeel_seq2seq", "light_shufflenet", "ddddocr_rec_dynq",
     "minilm_int8w_ext", "eeg_seizure_lstm"],
)  # fmt: skip
def test_random_cuts_of_real_models(corpus, name: str, tmp_path: Path) -> None:
    from corpus import fetch

    path, entry = corpus(name)
    model = load(path)
    index = GraphIndex(model.proto)
    feeds = fetch.seeded_feeds(path, entry)
    values = _all_values(onnx.load(path), "ort", feeds)
    varying = sorted(depends_on(index.main, index.main.true_inputs()) & set(values))
    finder = TypeFinder(model, index, type_sources())
    chance = random.Random(name)
    for _ in range(5):
        outputs = chance.sample(varying, min(len(varying), chance.randint(1, 3)))
        inputs = chance.sample(varying, min(len(varying), chance.randint(0, 4)))
        cut = plan_cut(index.main, outputs, inputs, auto_inputs=True)
        _computes(assemble(model, index, index.main, cut, finder=finder), tmp_path, "ort", feeds, values)
    # In two at half of the nodes that depend on an input: what crosses is what the second half starts from.
    live = [at for at, made in enumerate(index.main.writes) if set(made) & set(varying)]
    crossing, _ = frontier(index.main, live[len(live) // 2 :])
    crossing = [name for name in crossing if name in varying]
    for outputs, inputs in ((crossing, index.main.true_inputs()), (index.main.outputs, crossing)):
        cut = plan_cut(index.main, outputs, inputs)
        _computes(assemble(model, index, index.main, cut, finder=finder), tmp_path, "ort", feeds, values)


# ---- the tutorial's rows


def _nodes(piece: Piece) -> list[str]:
    return [node.output[0] for node in piece.model.proto.graph.node]


def test_a4_between_two_tensors(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("whole_model")
    piece = extract(model, ["28"], ["22"], index=index)
    assert _nodes(piece) == ["23", "24", "25", "26", "27", "28"]
    assert [(b.name, b.type) for b in piece.inputs] == [("22", "float32[1, 3, 16, 16]")]
    assert len(piece.model.proto.graph.initializer) == 10
    _computes(piece, tmp_path, "ort", feeds, values)


def test_a5_several_outputs(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("whole_model")
    piece = extract(model, ["27", "31"], ["22"], index=index)
    assert [value.name for value in piece.model.proto.graph.output] == ["27", "31"]
    _computes(piece, tmp_path, "ort", feeds, values)


def test_a6_a_redundant_input_is_dropped_and_said(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("whole_model")
    piece = extract(model, ["28"], ["22", "input.1"], index=index)
    assert [boundary.name for boundary in piece.inputs] == ["22"]
    assert piece.cut.dropped == ("input.1",)
    assert any("input.1" in note and "--keep-unused" in note for note in piece.notes)
    kept = extract(model, ["28"], ["22", "input.1"], index=index, keep_unused=True)
    assert [boundary.name for boundary in kept.inputs] == ["22", "input.1"]
    _computes(kept, tmp_path, "ort", feeds, values)


def test_a7_insufficient_inputs_are_refused_with_names(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("whole_model")
    with pytest.raises(CutError) as caught:
        extract(model, ["28"], ["24"], index=index)
    assert caught.value.exit_code == 3
    assert caught.value.missing == ("27",)
    for proposal in caught.value.proposals:
        _computes(extract(model, ["28"], proposal.inputs, index=index), tmp_path, "ort", feeds, values)
    _computes(extract(model, ["28"], ["24", "26"], index=index), tmp_path, "ort", feeds, values)
    auto = extract(model, ["28"], ["24"], index=index, auto_inputs=True)
    assert auto.cut.added == ("27",)
    _computes(auto, tmp_path, "ort", feeds, values)


def test_a8_inner_tensors_become_outputs(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("whole_model")
    piece = expose(model, ["22", "25", "31", "28"], index=index)
    assert [value.name for value in piece.model.proto.graph.output] == ["31", "22", "25", "28"]
    assert any("already" in note for note in piece.notes)
    save(piece.model, tmp_path / "m.onnx")
    assert run_ort(tmp_path / "m.onnx", feeds) == {name: values[name] for name in ("31", "22", "25", "28")}


def test_a9_four_submodels_in_a_row(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("whole_model")
    known = dict(feeds)
    for inputs, outputs in ((["input.1"], ["23"]), (["23"], ["25"]), (["23"], ["27"]), (["25", "27"], ["31"])):
        piece = extract(model, outputs, inputs, index=index)
        save(piece.model, tmp_path / "m.onnx")
        got = run_ort(tmp_path / "m.onnx", {name: known[name] for name in inputs})
        known.update((name, as_feed(value)) for name, value in got.items())
    assert bits(known["31"]) == values["31"]


# ---- boundaries of every kind


@pytest.mark.parametrize(
    ("name", "outputs", "inputs"),
    [
        ("multi_output", ["h", "x", "y"], ["x"]),
        ("no_nodes_input", None, None),
        ("no_nodes_initializer", None, None),
        ("output_is_initializer", None, None),
        ("constant_nodes", None, []),
        ("split_one_output", ["first", "last"], ["x"]),
        ("lstm_empty", None, None),
        ("optional_input", None, None),
        ("sequence_io", None, None),
        ("zero_sized_input", None, None),
        ("scalars", None, None),
    ],
)
def test_unusual_outputs(name: str, outputs: list[str] | None, inputs: list[str] | None, tmp_path: Path) -> None:
    model, index, feeds, values = _fixture(name)
    wanted = [n for n in outputs if n in values] if outputs else index.main.outputs
    starts = inputs if inputs is None else [*inputs, *index.main.true_inputs()]
    _computes(extract(model, wanted, starts, index=index), tmp_path, named(name).engine or "", feeds, values)


@sound
def test_every_tensor_alone_is_the_output_of_some_piece(case: Case, tmp_path: Path) -> None:
    model = load(case.path)
    index = GraphIndex(model.proto)
    names = list(index.main.tensor_names())
    for name in names if len(names) < 50 else names[:: len(names) // 30]:
        try:
            piece = extract(model, [name], index=index)
        except UnsupportedError as error:
            assert "element type" in error.message or "sparse" in error.message
            continue
        save(piece.model, tmp_path / "piece.onnx")
        assert [value.name for value in piece.model.proto.graph.output] == [name]


def test_an_output_that_is_given_is_handed_through(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("whole_model")
    piece = extract(model, ["24", "28"], ["24", "26"], index=index)
    assert _nodes(piece) == ["25", "27", "28"]
    _computes(piece, tmp_path, "ort", feeds, values)
    alone = extract(model, ["24"], ["24"], index=index)
    assert _nodes(alone) == []
    _computes(alone, tmp_path, "ort", feeds, values)


def test_an_input_downstream_of_another_input(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("residual")
    made = [names[0] for names in index.main.writes]
    piece = extract(model, index.main.outputs, [made[0], made[2]], index=index)
    _computes(piece, tmp_path, "ort", feeds, values)
    chain = extract(*_chain_question())
    assert [boundary.name for boundary in chain.inputs] == ["b"]
    assert chain.cut.dropped == ("a",)


def _chain_question() -> tuple[Model, list[str], list[str]]:
    nodes = [helper.make_node("Neg", [read], [made]) for read, made in (("x", "a"), ("a", "b"), ("b", "y"))]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", T.FLOAT, [2])], [value("y", T.FLOAT, [2])])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return from_proto(proto), ["y"], ["a", "b"]


def test_names_given_twice_count_once(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("whole_model")
    piece = extract(model, ["28", "28"], ["22", "22"], index=index)
    assert [boundary.name for boundary in (*piece.inputs, *piece.outputs)] == ["22", "28"]
    _computes(piece, tmp_path, "ort", feeds, values)
    assert len(expose(model, ["28", "28"], index=index).model.proto.graph.output) == 2


def test_an_initializer_or_a_constant_can_be_given(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("whole_model")
    weight = index.main.nodes[3].input[1]
    piece = extract(model, ["24"], ["23", weight], index=index)
    assert [boundary.name for boundary in piece.inputs] == ["23", weight]
    assert weight not in {tensor.name for tensor in piece.model.proto.graph.initializer}
    _computes(piece, tmp_path, "ort", feeds, values, exact=False)
    model, index, feeds, values = _fixture("constant_nodes")
    constants = [names[0] for names, node in zip(index.main.writes, index.main.nodes, strict=True)
                 if node.op_type == "Constant" and names[0] in values and names[0] != "c_strings"]  # fmt: skip
    piece = extract(model, ["y"], [*index.main.true_inputs(), *constants], index=index)
    used = {boundary.name for boundary in piece.inputs} & set(constants)
    assert used
    assert not any(node.output[0] in used for node in piece.model.proto.graph.node)
    _computes(piece, tmp_path, "ort", feeds, values)


@pytest.mark.parametrize(
    ("name", "outputs", "inputs"),
    [
        ("topk", ["values", "indices"], ["indices", "x"]),
        ("split_multi", ["a", "y"], ["c", "x"]),
        ("loop_count", ["final", "history"], ["history", "x"]),
        ("if_several_outputs", ["y", "unused"], ["c", "x", "cond", "a"]),
        ("scan_forward", ["total", "sums"], ["sums", "x"]),
        ("function_unused_output", ["never_read", "y"], ["t", "x"]),
        ("dropout_unused_mask", ["mask", "y"], ["kept", "x"]),
    ],
)
def test_an_input_that_a_needed_node_makes_too(
    name: str, outputs: list[str], inputs: list[str], tmp_path: Path
) -> None:
    """One output of a node is given, another one is asked for: the node stays, and makes the first under a new name."""
    model, index, feeds, values = _fixture(name)
    piece = extract(model, outputs, inputs, index=index, auto_inputs=True)
    assert any("makes the input" in note for note in piece.notes)
    _computes(piece, tmp_path, named(name).engine or "", feeds, values)


def test_the_given_value_is_read_and_not_the_one_made_again(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("split_multi")
    (node,) = [node for node in index.main.nodes if node.op_type == "Split"]
    readers = [index.main.nodes[at] for at in index.main.consumers[node.output[0]]]
    outputs = [readers[0].output[0], node.output[1]]
    piece = extract(model, outputs, [node.output[0], "x"], index=index, auto_inputs=True)
    save(piece.model, tmp_path / "m.onnx")
    names = [boundary.name for boundary in piece.inputs]
    mine = {n: feeds[n] if n in feeds else as_feed(values[n]) for n in names}
    mine[node.output[0]] = mine[node.output[0]] + 1
    got = run_ort(tmp_path / "m.onnx", mine)
    assert got[outputs[0]] != values[outputs[0]]
    assert got[outputs[1]] == values[outputs[1]]


@pytest.mark.parametrize("name", ["names_special", "names_long", "names_all_equal", "names_unnamed"])
def test_awkward_names(name: str, tmp_path: Path) -> None:
    model, index, feeds, values = _fixture(name)
    for tensor in index.main.producers:
        piece = extract(model, index.main.outputs, [tensor], index=index, auto_inputs=True)
        _computes(piece, tmp_path, named(name).engine or "", feeds, values)


@pytest.mark.parametrize(
    "call",
    [
        lambda model, name: extract(model, [f"{name}_"]),
        lambda model, name: extract(model, [name], [f"{name}_"]),
        lambda model, name: expose(model, [f"{name}_"]),
    ],
    ids=["output", "input", "expose"],
)
def test_unknown_names_are_answered_with_near_ones(call: Callable[[Model, str], Piece]) -> None:
    model = load(named("srcnn_dynamic").path)
    name = next(iter(GraphIndex(model.proto).main.producers))
    with pytest.raises(NotFoundError) as caught:
        call(model, name)
    assert caught.value.exit_code == 4
    assert repr(name) in (caught.value.hint or "")


def test_unknown_bodies_are_answered_with_what_there_is() -> None:
    with pytest.raises(NotFoundError) as caught:
        lift(load(named("if_basic").path), "if/els")
    assert "'if/else'" in (caught.value.hint or "")
    with pytest.raises(NotFoundError, match="no body"):
        lift(load(named("whole_model").path), "if/then")


# ---- types of the boundary


@pytest.mark.parametrize(
    "name", ["value_info_wrong_shape", "value_info_wrong_rank", "value_info_wrong_dtype", "output_wrong_shape"]
)
def test_a_wrong_value_info_does_not_become_the_type_of_an_input(name: str, tmp_path: Path) -> None:
    model, index, feeds, values = _fixture(name)
    for tensor in index.main.producers:
        piece = extract(model, index.main.outputs, [tensor], index=index, auto_inputs=True)
        _computes(piece, tmp_path, "reference" if name.endswith("dtype") else "ort", feeds, values)


@pytest.mark.parametrize("name", ["unsorted", "unsorted_capture", "unsorted_in_body", "domain_spelled_both"])
def test_types_are_found_in_models_that_need_mending(name: str, tmp_path: Path) -> None:
    model = load(named(name).path)
    index = GraphIndex(model.proto)
    for tensor in index.main.producers:
        save(extract(model, index.main.outputs, [tensor], index=index, auto_inputs=True).model, tmp_path / "m.onnx")


def test_stated_types_replace_what_is_known(tmp_path: Path) -> None:
    model, index, _, _ = _fixture("whole_model")
    piece = extract(model, ["28"], ["22"], index=index, types={"22": make_type(T.FLOAT, ("batch", 3, None, None))})
    assert piece.inputs[0].type == "float32[batch, 3, ?, ?]"
    assert piece.inputs[0].origin == "given"
    save(piece.model, tmp_path / "m.onnx")
    got = run_ort(tmp_path / "m.onnx", {"22": np.ones((2, 3, 9, 9), np.float32)})
    assert got["28"][1][0] == 2
    bad = extract(model, ["28"], ["22"], index=index, types={"22": make_type(T.INT64, (1, 3, 20, 20))})
    with pytest.raises(RefusedResultError):
        save(bad.model, tmp_path / "bad.onnx")
    assert not (tmp_path / "bad.onnx").exists()


def test_unknown_element_types_are_refused() -> None:
    model = load(named("mmdeploy_marks").path)
    with pytest.raises(UnsupportedError, match="element type"):
        extract(model, ["f0"])


MARKED = """
<ir_version: 10, opset_import: ["" : 17, "onnxbench" : 1]>
net (float[2, 3] x, bool c) => (float[2, 3] y, float[2, 3] z)
{
   a = onnxbench.Mark <func = "f", type = "input", name = "a", func_id = 0, id = 0> (x)
   h = Relu (a)
   around = Exp (x)
   b = onnxbench.Mark <func = "f", type = "output", name = "h", func_id = 0, id = 0> (h)
   d = onnxbench.Mark <func = "g", type = "input", name = "h", func_id = 0, id = 0> (b)
   [pick] t = If (c) <
      then_branch: graph = yes () => (float[2, 3] e) {
         i = onnxbench.Mark <func = "k", type = "input", name = "d", func_id = 0, id = 0> (d)
         e = Exp (i)
      },
      else_branch: graph = no () => (float[2, 3] n) { n = Neg (d) }>
   s = Add (t, around)
   y = onnxbench.Mark <func = "g", type = "output", name = "s", func_id = 0, id = 0> (s)
   z = Neg (y)
}
"""


@pytest.mark.parametrize(
    ("inputs", "outputs", "bounds", "ops"),
    [
        (None, ["mark:f:output"], (["x"], ["h"]), ["Relu"]),
        (None, ["mark:g:input"], (["x"], ["h"]), ["Relu"]),
        (["mark:f:output", "mark:f:input", "c"], ["mark:g:output"], (["h", "x", "c"], ["y"]), ["Exp", "If", "Add"]),
        (["mark:f:input", "c"], ["z"], (["x", "c"], ["z"]), ["Relu", "Exp", "If", "Add", "Neg"]),
        (["mark:g:output"], None, (["y"], ["y", "z"]), ["Neg"]),
        (["mark:g:output"], ["z"], (["y"], ["z"]), ["Neg"]),
        (["mark:f:input | mark:f:output", "c"], ["mark:g:output:s"], (["x", "h", "c"], ["y"]), ["Exp", "If", "Add"]),
    ],
)
def test_a_cut_at_a_mark_leaves_the_marks_out(inputs, outputs, bounds, ops, tmp_path) -> None:
    """What goes round a mark comes from the same tensor, so that the marks bound a piece as the calls did."""
    model = parse(MARKED)
    before = model.proto.SerializeToString(deterministic=True)
    feeds = FeedOptions(ranges=["[0.5,1.5]"], seed=3)
    done = pieces.extract_file(
        model, tmp_path / "p.onnx", inputs, outputs, feeds=feeds, save_feeds=tmp_path / "p.npz"
    )  # fmt: skip
    assert model.proto.SerializeToString(deterministic=True) == before
    names = [each.name for each in done.piece.inputs], [each.name for each in done.piece.outputs]
    cut = done.piece.cut  # whose ends are called as the marks say
    assert (sorted(cut.inputs), list(cut.outputs)) == (sorted(bounds[0]), bounds[1])
    piece = onnx.load(tmp_path / "p.onnx")
    assert [node.op_type for node in piece.graph.node] == ops
    assert {ref.node.op_type for ref in GraphIndex(piece).nodes()}.isdisjoint({"Mark"})
    assert "onnxbench" not in {opset.domain for opset in piece.opset_import}
    assert done.notes[0] == "the piece has no Marks: it is cut at the tensors that they pass on"
    fed, expected = np.load(tmp_path / "p.npz"), np.load(tmp_path / "p_outputs.npz")
    session = ort_session(tmp_path / "p.onnx")
    for name, value in zip(names[1], session.run(names[1], {name: fed[name] for name in names[0]}), strict=True):
        np.testing.assert_allclose(value, expected[name], rtol=1e-6)


def test_a_cut_of_a_marked_model_at_a_tensor_keeps_the_marks() -> None:
    piece = pieces.extract(parse(MARKED), ["x", "c"], ["y"])
    ops = [node.op_type for node in piece.model.proto.graph.node]
    assert ops == ["Mark", "Relu", "Exp", "Mark", "Mark", "If", "Add", "Mark"]


@pytest.mark.parametrize("word", ["mark:yolo_head:output", "mark:detector_forward:output", "mark:yolo_head[1]:output"])
def test_models_marked_by_mmdeploy_are_cut_to_what_runs(word, tmp_path) -> None:
    case = named("mmdeploy_marks")
    done = pieces.extract_file(case.path, tmp_path / "p.onnx", None, [word], save_feeds=tmp_path / "p.npz")
    session = ort_session(tmp_path / "p.onnx")
    fed, expected = dict(np.load(tmp_path / "p.npz")), np.load(tmp_path / "p_outputs.npz")
    (name,) = (each.name for each in done.piece.outputs)
    np.testing.assert_allclose(session.run([name], fed)[0], expected[name], rtol=1e-4, atol=1e-6)


def test_sparse_constants_are_no_outputs() -> None:
    for name, tensor in (("sparse_initializer", "w_linear"), ("sparse_constant", "k")):
        model = load(named(name).path)
        for call in (lambda model=model, tensor=tensor: extract(model, [tensor]),
                     lambda model=model, tensor=tensor: expose(model, [tensor])):  # fmt: skip
            with pytest.raises(UnsupportedError, match="sparse"):
                call()


# ---- what comes along


def _owned(proto: onnx.ModelProto) -> dict[str, set[str]]:
    graph = proto.graph
    return {
        "initializers": {tensor.name for tensor in graph.initializer},
        "sparse": {tensor.values.name for tensor in graph.sparse_initializer},
        "value infos": {value.name for value in graph.value_info},
        "functions": {f"{function.name}:{function.overload}" for function in proto.functions},
        "domains": {opset.domain for opset in proto.opset_import},
        "annotations": {annotation.tensor_name for annotation in graph.quantization_annotation},
    }


def test_only_what_is_needed_comes_along() -> None:
    for case in all_cases():
        if case.valid == "no":
            continue
        model = load(case.path)
        index = GraphIndex(model.proto)
        for tensor in list(index.main.producers)[:12]:
            try:
                piece = extract(model, [tensor], index=index)
            except UnsupportedError:
                continue
            graph = piece.model.proto.graph
            inner = GraphIndex(piece.model.proto)
            owned = _owned(piece.model.proto)
            annotated = {e.value for a in graph.quantization_annotation for e in a.quant_parameter_tensor_names}
            read = {name for names in inner.main.reads for name in names} | {value.name for value in graph.output}
            assert owned["initializers"] | owned["sparse"] <= read | annotated, case.name
            assert owned["value infos"] <= set(inner.main.tensor_names()) - set(inner.main.outputs)
            assert set(inner.function_closure(inner.main.nodes)) == set(inner.functions)
            domains = {node.domain for scope in inner.scopes for node in scope.nodes}
            assert domains - {"ai.onnx"} <= owned["domains"] | {""}
            plain = {domain.replace("ai.onnx", "") for domain in owned["domains"]}
            assert len(plain) <= max(1, len({domain.replace("ai.onnx", "") for domain in domains})), case.name
            made = {name for names in inner.main.writes for name in names} | set(inner.main.inputs)
            assert owned["annotations"] <= made | owned["initializers"]
            for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
                assert getattr(piece.model.proto, name) == getattr(model.proto, name)
            assert list(piece.model.proto.metadata_props) == list(model.proto.metadata_props)
            assert graph.name == model.proto.graph.name
            assert list(graph.metadata_props) == list(model.proto.graph.metadata_props)
            assert [graph.node[at] for at in range(len(graph.node))] == [index.main.nodes[at] for at in piece.cut.nodes]


def test_metadata_of_every_kind_stays_on_the_piece() -> None:
    model = load(named("metadata_everywhere").path)
    index = GraphIndex(model.proto)
    piece = extract(model, [index.main.writes[0][0]], index=index).model.proto
    assert piece.metadata_props == model.proto.metadata_props
    assert piece.graph.doc_string == model.proto.graph.doc_string
    assert piece.graph.input[0].SerializeToString() == model.proto.graph.input[0].SerializeToString()
    assert piece.graph.node[0].SerializeToString(deterministic=True) == model.proto.graph.node[0].SerializeToString(
        deterministic=True
    )
    unknown = onnx.ModelProto.FromString(piece.SerializeToString())
    for name in ("graph", "opset_import", "functions", "metadata_props", "configuration"):
        unknown.ClearField(name)
    before = onnx.ModelProto.FromString(model.proto.SerializeToString())
    for name in ("graph", "opset_import", "functions", "metadata_props", "configuration"):
        before.ClearField(name)
    assert unknown.SerializeToString(deterministic=True) == before.SerializeToString(deterministic=True)


def test_an_inner_value_info_keeps_its_extras_as_an_input() -> None:
    model = load(named("metadata_everywhere").path)
    index = GraphIndex(model.proto)
    infos = {info.name: info for info in model.proto.graph.value_info}
    name = next(name for name in infos if name in index.main.producers)
    piece = extract(model, index.main.outputs, [name], index=index, auto_inputs=True).model.proto
    (given,) = [info for info in piece.graph.input if info.name == name]
    assert given.SerializeToString(deterministic=True) == infos[name].SerializeToString(deterministic=True)
    assert name not in {info.name for info in piece.graph.value_info}


def test_annotations_bring_their_parameter_tensors(tmp_path: Path) -> None:
    model = load(named("quantization_annotation").path)
    index = GraphIndex(model.proto)
    for annotation in model.proto.graph.quantization_annotation:
        name = annotation.tensor_name
        piece = extract(model, [name] if name in index.main.producers else index.main.outputs, index=index).model.proto
        assert annotation in piece.graph.quantization_annotation
        needed = {entry.value for entry in annotation.quant_parameter_tensor_names}
        assert needed <= {tensor.name for tensor in piece.graph.initializer}
    downstream = extract(model, index.main.outputs, [index.main.writes[0][0]], index=index, auto_inputs=True)
    left = {a.tensor_name for a in downstream.model.proto.graph.quantization_annotation}
    assert "x" not in left or "x" in downstream.model.proto.graph.input
    save(downstream.model, tmp_path / "m.onnx")


def test_initializers_stay_listed_as_inputs_before_ir_4(tmp_path: Path) -> None:
    model, index, feeds, values = _fixture("initializer_as_input_ir3")
    for tensor in index.main.producers:
        piece = extract(model, [tensor], index=index)
        listed = {value.name for value in piece.model.proto.graph.input}
        assert {weight.name for weight in piece.model.proto.graph.initializer} <= listed
        _computes(piece, tmp_path, "ort", feeds, values)
    old, index, feeds, values = _fixture("old_opset")
    _computes(extract(old, list(index.main.producers)[:1], index=index), tmp_path, "ort", feeds, values)


def test_training_info_is_left_out_and_said() -> None:
    piece = extract(load(named("training_info").path), ["y"])
    assert not piece.model.proto.training_info
    assert any("training" in note for note in piece.notes)


# ---- expose


@runs
def test_every_tensor_can_be_exposed(case: Case, tmp_path: Path) -> None:
    model, index, feeds, values = _fixture(case.name) if case.name != "string_bytes.onnx" else (None, None, None, None)
    if model is None or index is None or feeds is None or values is None:
        pytest.skip("the Python side of ONNX Runtime cannot hand such strings out")
    before = model.proto.SerializeToString(deterministic=True)
    names = [name for name in index.main.tensor_names() if name in values]

    piece = expose(model, names, index=index)

    assert model.proto.SerializeToString(deterministic=True) == before
    save(piece.model, tmp_path / "m.onnx")
    got = ENGINES[case.engine or ""](tmp_path / "m.onnx", feeds)
    assert set(got) == {*names, *index.main.outputs}
    for name in names:
        if name not in feeds:  # what is fed is not packed as the engine packs it
            assert got[name] == values[name], name


@sound
def test_exposing_leaves_the_rest_as_it_was(case: Case) -> None:
    model = load(case.path)
    index = GraphIndex(model.proto)
    hidden = _hidden(index)
    names = [name for name in index.main.producers if name not in index.main.outputs and name not in hidden][:3]
    try:
        piece = expose(model, names, index=index).model.proto
    except UnsupportedError:
        assert case.engine is None  # operators that nothing knows
        return
    outputs = [value.name for value in piece.graph.output]
    assert outputs == [*index.main.outputs, *names]
    restored = onnx.ModelProto.FromString(piece.SerializeToString())
    original = onnx.ModelProto.FromString(model.proto.SerializeToString())
    del restored.graph.output[len(index.main.outputs) :]
    for proto in (restored, original):
        kept = [info for info in proto.graph.value_info if info.name not in names]
        copies = [type(info).FromString(info.SerializeToString()) for info in kept]
        del proto.graph.value_info[:]
        proto.graph.value_info.extend(copies)
    assert restored.SerializeToString(deterministic=True) == original.SerializeToString(deterministic=True)


def test_tensors_inside_bodies_and_functions_are_refused_with_a_way_out() -> None:
    model = load(named("if_basic").path)
    index = GraphIndex(model.proto)
    inner = [ref for ref in index.tensors() if ref.scope is not index.main]
    with pytest.raises(UnsupportedError) as caught:
        require_main(inner[:1], what="--outputs")
    assert f"--lift {inner[0].scope.path}" in (caught.value.hint or "")
    nested = GraphIndex(load(named("function_nested").path).proto)
    inside = [ref for ref in nested.tensors() if ref.scope.is_function]
    with pytest.raises(UnsupportedError, match="function"):
        require_main(inside[:1], what="--outputs")
    with pytest.raises(UsageError):
        require_main([], what="--outputs")
    assert require_main([TensorRef(index.main, "x")], what="--outputs") == ["x"]


# ---- lift


def _liftable() -> list[tuple[str, str]]:
    found = []
    for case in all_cases():
        if case.valid != "no":
            index = GraphIndex(load(case.path).proto)
            found += [(case.name, scope.path) for scope in index.scopes if scope.path]
    return found


@pytest.mark.parametrize(("name", "path"), _liftable())
def test_every_body_and_function_can_be_lifted(name: str, path: str, tmp_path: Path) -> None:
    model = load(named(name).path)
    index = GraphIndex(model.proto)
    scope = index.scope_paths[path]
    types = {}
    if scope.is_function:  # a function has no types of its own
        types = {tensor: make_type(T.FLOAT, None) for tensor in (*scope.inputs, *scope.outputs)}
    try:
        piece = lift(model, path, index=index, types=types)
    except UnsupportedError as error:
        root = scope
        while root.parent is not None:
            root = root.parent
        assert root.is_function or "custom" in name
        assert "attributes" in error.message or "element type" in error.message
        return
    proto = piece.model.proto
    assert [node.SerializeToString(deterministic=True) for node in proto.graph.node] == [
        scope.nodes[at].SerializeToString(deterministic=True) for at in piece.cut.nodes
    ]
    assert [value.name for value in proto.graph.output] == list(dict.fromkeys(scope.outputs))
    given = [boundary.name for boundary in piece.inputs]
    assert given[: len(scope.true_inputs())] == scope.true_inputs()
    constants = {tensor.name for tensor in proto.graph.initializer}
    assert set(scope.captures) <= set(given) | constants | {t.values.name for t in proto.graph.sparse_initializer}
    try:
        save(piece.model, tmp_path / "m.onnx")
    except RefusedResultError as error:
        assert scope.is_function or "refers to attribute" in str(error)
        return
    if "custom" not in name and "mmdeploy" not in name and named(name).engine == "ort":
        ort_session(tmp_path / "m.onnx")


def _if_bodies() -> list[tuple[str, int, int]]:
    found = []
    for case in all_cases():
        if case.valid != "no" and case.engine == "ort":
            index = GraphIndex(load(case.path).proto)
            for position, bodies in index.main.bodies.items():
                if index.main.nodes[position].op_type == "If":
                    found += [(case.name, position, number) for number in range(len(bodies))]
    return found


@pytest.mark.parametrize(("name", "position", "number"), _if_bodies())
def test_the_branch_that_is_taken_computes_what_the_if_makes(
    name: str, position: int, number: int, tmp_path: Path
) -> None:
    model, index, feeds, values = _fixture(name)
    node, body = index.main.nodes[position], index.main.bodies[position][number]
    condition = node.input[0]
    taken = bool(as_feed(values[condition]))
    feeds = dict(feeds)
    if taken != (body.body_name == "then_branch"):
        if condition not in feeds:
            pytest.skip("the other branch is never taken with these inputs")
        feeds[condition] = np.asarray(not np.asarray(feeds[condition])).reshape(np.shape(feeds[condition]))
        values = _all_values(named(name).whole(), "ort", feeds)
    piece = lift(model, body.path, index=index)
    save(piece.model, tmp_path / "m.onnx")
    names = [boundary.name for boundary in piece.inputs]
    got = run_ort(tmp_path / "m.onnx", {n: feeds[n] if n in feeds else as_feed(values[n]) for n in names})
    for inner, outer in zip(body.outputs, node.output, strict=True):
        if outer:
            assert got[inner] == values[outer]


@given(models())
def test_bodies_of_random_models_can_be_lifted(tmp_path_factory: pytest.TempPathFactory, drawn: RandomModel) -> None:
    model = from_proto(drawn.proto)
    index = GraphIndex(drawn.proto)
    values = _all_values(drawn.proto, "ort", drawn.feeds)
    target = tmp_path_factory.getbasetemp() / "lifted.onnx"
    for scope in index.scopes:
        if scope.parent is None:
            continue
        piece = lift(model, scope.path, index=index)
        save(piece.model, target)
        ort_session(target)
        node = scope.parent.nodes[scope.owner]
        if scope.parent is index.main and node.op_type == "If":
            taken = bool(as_feed(values[node.input[0]]))
            if taken == (scope.body_name == "then_branch"):
                names = [boundary.name for boundary in piece.inputs]
                got = run_ort(target, {n: as_feed(values[n]) for n in names})
                assert [got[name] for name in scope.outputs] == [values[name] for name in node.output]


def test_a_lifted_function_keeps_its_own_opset(tmp_path: Path) -> None:
    model = load(named("function_other_opset").path)
    (function,) = model.proto.functions
    types = {name: make_type(T.FLOAT, (3,)) for name in (*function.input, *function.output)}

    piece = lift(model, f"{function.domain}::{function.name}", types=types)

    assert {o.domain: o.version for o in function.opset_import}[""] == 18
    assert {o.domain: o.version for o in piece.model.proto.opset_import}[""] == 18
    save(piece.model, tmp_path / "m.onnx")


def test_a_lifted_body_lists_captured_initializers_before_ir_4(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    weight = numpy_helper.from_array(np.full(2, 3, np.float32), "w")
    bodies = {
        name: helper.make_graph([helper.make_node(op, ["x", "w"], [name])], name, [], [value(name, T.FLOAT, [2])])
        for name, op in (("then_branch", "Mul"), ("else_branch", "Add"))
    }
    graph = helper.make_graph(
        [helper.make_node("If", ["c"], ["y"], name="if", **bodies)],
        "g",
        [value("c", T.BOOL, []), value("x", T.FLOAT, [2]), value("w", T.FLOAT, [2])],
        [value("y", T.FLOAT, [2])],
        [weight],
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=3))

    piece = lift(model, "if/then")

    assert [boundary.name for boundary in piece.inputs] == ["x"]
    save(piece.model, tmp_path / "m.onnx")
    assert as_feed(run_ort(tmp_path / "m.onnx", {"x": np.ones(2, np.float32)})["then_branch"]).tolist() == [3, 3]


def test_a_body_whose_doc_string_is_no_text(tmp_path: Path) -> None:
    proto = named("if_basic").whole()
    data = proto.SerializeToString()
    (position,) = [at for at, node in enumerate(proto.graph.node) if node.op_type == "If"]
    body = proto.graph.node[position].attribute[0].g
    body.doc_string = "QQQQ"
    proto.graph.node[position].attribute[1].g.doc_string = "QQQQ"
    proto = onnx.ModelProto.FromString(proto.SerializeToString().replace(b"QQQQ", b"\xff\xfe\xfd\xfc"))
    assert len(proto.SerializeToString()) > len(data)
    model = from_proto(proto)
    index = GraphIndex(proto)
    for scope in index.scopes[1:]:
        save(lift(model, scope.path, index=index).model, tmp_path / "m.onnx")


# ---- models that are not sound


def test_cycles_and_duplicates_are_model_errors() -> None:
    for name in ("cycle_two", "cycle_self", "duplicate_output", "output_shadows_input"):
        model = load(named(name).path)
        with pytest.raises(ModelError):
            extract(model, GraphIndex(model.proto).main.outputs)


def test_a_broken_piece_is_never_written(tmp_path: Path) -> None:
    """Every broken graph that loads, cut at every tensor: a file appears only if the checker takes it."""
    written = 0
    for case in all_cases():
        if case.valid != "no" or case.error != "invalid-graph" or case.path.suffix != ".onnx":
            continue
        model = load(case.path)
        try:
            index = GraphIndex(model.proto)
        except ModelError:
            continue
        for tensor in index.main.producers:
            target = tmp_path / f"{written}.onnx"
            try:
                save(extract(model, [tensor], index=index).model, target)
            except (ModelError, CutError, UnsupportedError, RefusedResultError):
                assert not target.exists()
                continue
            onnx.checker.check_model(str(target), full_check=True)
            written += 1
    assert len(list(tmp_path.iterdir())) == written


@pytest.mark.parametrize("seed", range(60))
def test_models_with_random_faults_are_cut_right_or_refused(seed: int, tmp_path: Path) -> None:
    """Fields changed, gone, swapped, repeated: known errors alone, and no file that the checker does not take."""
    chance = random.Random(seed)
    sound = [
        case for case in all_cases() if case.valid != "no" and not case.is_external and case.path.suffix == ".onnx"
    ]
    small = [case for case in sound if case.path.stat().st_size < 10_000]
    for _ in range(6):
        (tmp_path / "in.onnx").write_bytes(mutated(chance.choice(small).whole(), chance).SerializeToString())
        try:
            model = load(tmp_path / "in.onnx")
            index = GraphIndex(model.proto)
        except BenchError:
            continue
        for make in _all_ways(model, index, chance):
            _write_if_valid(make, tmp_path / "out.onnx")


def _all_ways(model: Model, index: GraphIndex, chance: random.Random) -> list[Callable[[], Model]]:
    """Returns some ways to make another model of a model."""
    names = list(index.main.tensor_names())
    ways: list[Callable[[], Model]] = [lambda: inline_functions(model)[0]]
    for name in chance.sample(names, min(3, len(names))):
        ways += [
            lambda name=name: extract(model, [name], index=index).model,
            lambda name=name: extract(model, index.main.outputs, [name], index=index, auto_inputs=True).model,
            lambda name=name: expose(model, [name], index=index).model,
        ]
    return ways + [lambda path=scope.path: lift(model, path, index=index).model for scope in index.scopes[1:4]]


def _write_if_valid(make: Callable[[], Model], target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        save(make(), target)
    except BenchError as error:
        assert error.message
        assert not target.exists()
        return
    written = onnx.load(target)
    types = [info.type.tensor_type for info in (*written.graph.input, *written.graph.output)]
    if all(kind.HasField("shape") or not kind.elem_type for kind in types):  # the checker wants shapes of the boundary
        onnx.checker.check_model(str(target), full_check=not written.graph.sparse_initializer)


@given(models(), st.randoms(use_true_random=False))
def test_frontier_against_its_definition(drawn: RandomModel, chance: random.Random) -> None:
    scope = GraphIndex(drawn.proto).main
    inside = set(chance.sample(range(len(scope.nodes)), chance.randint(1, len(scope.nodes))))
    made = {name for at in inside for name in scope.writes[at]}
    read = {name for at in inside for name in scope.reads[at]}
    wanted = {
        name
        for name in made
        if name in scope.outputs or any(name in scope.reads[at] for at in range(len(scope.nodes)) if at not in inside)
    }

    entering, leaving = frontier(scope, inside)

    assert set(entering) == read - made - scope.constants
    assert set(leaving) == wanted if wanted else set(leaving) <= made
    assert len(set(entering)) == len(entering)
    assert len(set(leaving)) == len(leaving)


def test_frontier_of_a_set_of_nodes() -> None:
    index = GraphIndex(load(named("whole_model").path).proto)
    places = index.main.producers
    entering, leaving = frontier(index.main, [places["24"], places["25"]])
    assert (entering, leaving) == (["23"], ["25"])
    entering, leaving = frontier(index.main, [places["28"]])
    assert (entering, leaving) == (["25", "27"], ["28"])
    entering, leaving = frontier(index.main, [places["31"]])
    assert leaving == ["31"]


# ---- nothing between


@pytest.mark.parametrize(
    ("inputs", "outputs", "said"),
    [
        (["y"], ["x"], "the piece would begin at 'y' and end at 'x', which lies before that"),
        (["relu1"], ["conv0"], "the other way round, 3 nodes between them: 'relu0', 'add0', 'conv1'"),
        (["conv0_out"], ["conv0_out"], "no node lies between 'conv0_out' and 'conv0_out'"),
        (["y", "relu0_out"], None, "no node lies between 'y', 'relu0_out' and 'y'"),
        (None, ["x"], "no node computes 'x': it is one of the model's inputs"),
        (None, ["block0.weight"], "it is one of the model's weights"),
    ],
)
def test_a_piece_without_nodes_is_refused(inputs, outputs, said):
    model = load(named("residual").path)
    with pytest.raises(EmptyPieceError) as caught:
        pieces.extract(model, inputs, outputs, auto_inputs=inputs is not None)
    assert said in str(caught.value)
    assert (
        len(pieces.extract(model, ["conv0_out"], ["conv1_out", "x"]).cut.nodes) == 3
    )  # what is passed on may be there
