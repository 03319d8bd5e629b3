"""Pieces of a partition: disjoint, covering, in an order that runs, and together equal to the whole, bit for bit."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx
import pytest
from cases import Case, cases, named
from engines import ENGINES, Bits, as_feed, bits, can_feed
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper
from strategies import RandomModel, dags, models

from onnxbench.boundary import depends_on
from onnxbench.cut import assemble
from onnxbench.errors import BenchError, CutError, UsageError
from onnxbench.graph import GraphIndex
from onnxbench.inference import TypeFinder
from onnxbench.model import Model, from_proto, load
from onnxbench.partition import Partition, split_at, split_parts, split_scopes, split_weights
from onnxbench.provenance import scope_of
from onnxbench.weights import node_tensors, tensor_bytes
from onnxbench.writer import save

RANDOM = ("RandomNormal", "RandomUniform")


def _check(index: GraphIndex, partition: Partition) -> None:
    """Asserts what holds of every partition, from the definitions alone."""
    scope = index.main
    varying = depends_on(scope, scope.true_inputs())
    live = {at for at, made in enumerate(scope.writes) if varying.intersection(made)}
    counted = Counter(at for piece in partition.pieces for at in piece.cut.nodes)
    assert all(count == 1 for at, count in counted.items() if at in live)
    left_out = live - set(counted)
    needed: set[int] = set()
    pending = list(scope.outputs)
    while pending:
        at = scope.producers.get(pending.pop())
        if at is not None and at not in needed:
            needed.add(at)
            pending += scope.reads[at]
    assert needed <= set(counted)
    assert len(left_out) == partition.dead_nodes
    assert not left_out & needed
    there = set(scope.true_inputs())
    for piece in partition.pieces:
        cut = piece.cut
        assert set(cut.inputs) <= there
        assert cut.nodes or set(cut.outputs) <= scope.constants
        made = {name for at in cut.nodes for name in scope.writes[at]}
        assert set(cut.outputs) <= made | scope.constants
        assert cut.outputs
        assert not set(cut.inputs) & made
        assert set(cut.inputs) <= varying
        read = {name for at in cut.nodes for name in scope.reads[at]}
        assert read <= made | set(cut.inputs) | set(cut.constants)
        assert set(cut.constants) <= scope.constants
        assert len(set(cut.nodes)) == len(cut.nodes)
        position = {at: rank for rank, at in enumerate(cut.nodes)}
        for at in cut.nodes:
            for name in scope.reads[at]:
                maker = scope.producers.get(name)
                assert maker is None or maker not in position or position[maker] < position[at]
        there |= set(cut.outputs)
    assert set(scope.outputs) <= there | set(partition.passed_through)
    makers = Counter(name for piece in partition.pieces for name in piece.cut.outputs)
    assert all(count == 1 for count in makers.values())
    assert partition.shared_nodes == sum(count > 1 for count in counted.values())


def _chain(
    model: Model, index: GraphIndex, partition: Partition, folder: Path, engine: str, feeds: Mapping[str, Any],
    whole: Mapping[str, Bits],
) -> None:  # fmt: skip
    """Runs the pieces one after the other and compares the graph's outputs with those of the whole."""
    finder = TypeFinder(model, index)
    known = {name: bits(value) for name, value in feeds.items()}
    for planned in partition.pieces:
        piece = assemble(model, index, index.main, planned.cut, finder=finder)
        save(piece.model, folder / "piece.onnx")
        names = [boundary.name for boundary in piece.inputs]
        if not all(name in feeds or can_feed(known[name], engine) for name in names):
            return
        mine = {name: feeds[name] if name in feeds else as_feed(known[name]) for name in names}
        known.update(ENGINES[engine](folder / "piece.onnx", mine))
    for name, value in whole.items():
        if name not in feeds:
            assert known[name] == value, name


def _ways(index: GraphIndex, chance: random.Random) -> list[Callable[[], Partition]]:
    names = list(index.main.tensor_names())
    at = chance.sample(names, min(len(names), chance.randint(1, 3)))
    parts, most, depth = chance.randint(2, 4), chance.choice([24, 100, 1000, 100_000]), chance.randint(1, 2)
    return [
        lambda: split_at(index, at),
        lambda: split_parts(index, parts),
        lambda: split_weights(index, most),
        lambda: split_scopes(index, depth),
    ]


@cases(lambda case: case.valid != "no" and case.engine is not None)
def test_partitions_of_fixtures(case: Case, tmp_path: Path) -> None:
    if case.name in ("string_bytes.onnx", "fp16.onnx"):
        pytest.skip("an engine cannot hand out such strings, or computes wider than the type says")
    model = load(case.path)
    index = GraphIndex(model.proto)
    feeds = case.feeds()
    source = case.path if case.path.suffix == ".onnx" else case.whole()
    whole = ENGINES[case.engine or ""](source, feeds)
    chance = random.Random(case.name)
    for _ in range(2):
        for way in _ways(index, chance):
            try:
                partition = way()
            except (CutError, UsageError):
                continue
            _check(index, partition)
            _chain(model, index, partition, tmp_path, case.engine or "", feeds, whole)


@given(models(), st.randoms(use_true_random=False))
def test_partitions_of_random_models(
    tmp_path_factory: pytest.TempPathFactory, drawn: RandomModel, chance: random.Random
) -> None:
    model = from_proto(drawn.proto)
    index = GraphIndex(drawn.proto)
    whole = ENGINES["ort"](drawn.proto, drawn.feeds)
    for way in _ways(index, chance):
        try:
            partition = way()
        except (CutError, UsageError):
            continue
        _check(index, partition)
        _chain(model, index, partition, tmp_path_factory.getbasetemp(), "ort", drawn.feeds, whole)


@settings(max_examples=200)
@given(dags(most_nodes=16), st.randoms(use_true_random=False))
def test_partitions_of_random_dags(proto: onnx.ModelProto, chance: random.Random) -> None:
    index = GraphIndex(proto)
    for way in _ways(index, chance):
        try:
            partition = way()
        except (CutError, UsageError):
            continue
        _check_structure(index, partition)


def _check_structure(index: GraphIndex, partition: Partition) -> None:
    """As ``_check``, for graphs in which a custom operator without inputs counts as varying."""
    scope = index.main
    without = [at for at, reads in enumerate(scope.reads) if not reads]
    varying = depends_on(scope, [*scope.true_inputs(), *(name for at in without for name in scope.writes[at])])
    live = {at for at, made in enumerate(scope.writes) if varying.intersection(made)}
    counted = Counter(at for piece in partition.pieces for at in piece.cut.nodes)
    assert all(count == 1 for at, count in counted.items() if at in live)
    there = set(scope.true_inputs())
    for piece in partition.pieces:
        assert set(piece.cut.inputs) <= there
        assert not there.intersection(piece.cut.outputs)
        there |= set(piece.cut.outputs)
    assert set(scope.outputs) <= there


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["attacut_sc", "magika", "silero_vad_16k_op15", "nakdimon_loop", "light_shufflenet"])
def test_partitions_of_real_models(corpus, name: str, tmp_path: Path) -> None:
    from corpus import fetch

    from onnxbench.pieces import type_sources

    path, entry = corpus(name)
    model = load(path)
    index = GraphIndex(model.proto)
    feeds = fetch.seeded_feeds(path, entry)
    whole = ENGINES["ort"](path, feeds)
    total = sum(tensor_bytes(tensor) for tensor in model.proto.graph.initializer)
    largest = max((tensor_bytes(tensor) for tensor in model.proto.graph.initializer), default=0)
    for partition in (split_parts(index, 3), split_weights(index, max(2 * largest, total // 3) + 1000)):
        _check(index, partition)
        finder = TypeFinder(model, index, type_sources())
        known = {key: bits(value) for key, value in feeds.items()}
        for planned in partition.pieces:
            piece = assemble(model, index, index.main, planned.cut, finder=finder)
            save(piece.model, tmp_path / "piece.onnx")
            names = [boundary.name for boundary in piece.inputs]
            known.update(ENGINES["ort"](tmp_path / "piece.onnx", {n: as_feed(known[n]) for n in names}))
        assert {key: known[key] for key in whole} == whole


# ---- at tensors


def _outputs(partition: Partition) -> list[tuple[tuple[str, ...], tuple[str, ...]]]:
    return [(piece.cut.inputs, piece.cut.outputs) for piece in partition.pieces]


def test_the_four_submodels_of_the_tutorial() -> None:
    """Row A9: parallel branches are pieces of their own."""
    index = GraphIndex(load(named("whole_model").path).proto)
    assert _outputs(split_at(index, ["23", "25", "27"])) == [
        (("input.1",), ("23",)),
        (("23",), ("25",)),
        (("23",), ("27",)),
        (("25", "27"), ("31",)),
    ]


def test_a_residual_becomes_a_boundary_of_its_own() -> None:
    """x -> conv -> relu -> add(x): cut behind the relu, x crosses too."""
    index = GraphIndex(load(named("residual").path).proto)
    relu = next(node.output[0] for node in index.main.nodes if node.op_type == "Relu")
    first, second = split_at(index, [relu]).pieces
    assert first.cut.outputs == (relu,)
    assert second.cut.inputs[0] in (relu, index.main.inputs[0])
    assert set(second.cut.inputs) == {relu, index.main.inputs[0]}


def test_a_tensor_that_bypasses_the_cut_is_handed_on() -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("Abs", ["a"], ["b"]),
        helper.make_node("Add", ["a", "b"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", T.FLOAT, [2])], [value("y", T.FLOAT, [2])])
    index = GraphIndex(helper.make_model(graph))
    assert _outputs(split_at(index, ["b"])) == [(("x",), ("a", "b")), (("a", "b"), ("y",))]


def test_an_output_in_the_middle_is_made_once() -> None:
    index = GraphIndex(load(named("multi_output").path).proto)
    partition = split_at(index, ["h"]) if "h" in index.main.producers else split_parts(index, 2)
    _check(index, partition)
    assert set(partition.passed_through) == {n for n in index.main.outputs if n in index.main.inputs}


@pytest.mark.parametrize(
    ("tensor", "words"), [("input.1", "graph input"), ("31", "nothing lies behind"), ("convs1.0.weight", "constant")]
)
def test_tensors_at_which_nothing_can_be_cut(tensor: str, words: str) -> None:
    index = GraphIndex(load(named("whole_model").path).proto)
    with pytest.raises(CutError) as caught:
        split_at(index, [tensor])
    assert words in str(caught.value)
    if words != "constant":
        assert any(words in note for note in split_at(index, [tensor, "28"]).notes)


# ---- in parts, by weight, by scope


@pytest.mark.parametrize("parts", [2, 3, 5, 11])
def test_parts_are_of_about_one_size(parts: int) -> None:
    index = GraphIndex(load(named("whole_model").path).proto)
    partition = split_parts(index, parts)
    assert len(partition.pieces) == parts
    sizes = [len(piece.cut.nodes) for piece in partition.pieces]
    assert max(sizes) - min(sizes) <= 2
    _check(index, partition)


@pytest.mark.parametrize("parts", [-1, 0, 1, 12, 1000])
def test_numbers_of_parts_that_make_no_sense(parts: int) -> None:
    index = GraphIndex(load(named("whole_model").path).proto)
    with pytest.raises(UsageError):
        split_parts(index, parts)


@pytest.mark.parametrize("most", [350, 400, 700, 1000, 5000])
def test_no_piece_has_more_weights_than_allowed(most: int) -> None:
    model = load(named("whole_model").path)
    index = GraphIndex(model.proto)
    sizes = {tensor.name: tensor_bytes(tensor) for tensor in model.proto.graph.initializer}
    partition = split_weights(index, most)
    _check(index, partition)
    held = [sum(sizes[name] for name in piece.cut.constants) for piece in partition.pieces]
    assert max(held) <= most
    assert sum(held) == sum(sizes.values())


@given(models(), st.integers(1, 200))
def test_the_weight_limit_of_random_models(drawn: RandomModel, most: int) -> None:
    index = GraphIndex(drawn.proto)
    sizes = {tensor.name: tensor_bytes(tensor) for tensor in drawn.proto.graph.initializer}
    own = [sum(map(tensor_bytes, node_tensors(node))) for node in drawn.proto.graph.node]
    try:
        partition = split_weights(index, most)
    except CutError as error:
        assert "alone has" in error.message
        assert sum(sizes.values()) + sum(own) > most
        return
    varying = depends_on(index.main, index.main.true_inputs())
    for piece in partition.pieces:
        if piece.name != "constant":
            held = sum(sizes.get(name, 0) for name in piece.cut.constants) + sum(own[at] for at in piece.cut.nodes)
            assert held <= most
            assert set(piece.cut.outputs) <= varying


def test_a_node_with_too_much_weight_is_named() -> None:
    index = GraphIndex(load(named("whole_model").path).proto)
    with pytest.raises(CutError) as caught:
        split_weights(index, 100)
    assert "alone has 336 bytes" in caught.value.message
    assert "336" in (caught.value.hint or "")


@pytest.mark.parametrize("name", ["pytorch_dynamo_metadata", "pytorch_dynamo_batchnorm", "torchscript_names"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_scopes_become_pieces(name: str, depth: int) -> None:
    index = GraphIndex(load(named(name).path).proto)
    partition = split_scopes(index, depth)
    _check(index, partition)
    for piece in partition.pieces:
        scopes = {scope_of(index.main.nodes[at]) for at in piece.cut.nodes} - {None, ""}
        assert {".".join((scope or "").split(".")[:depth]) for scope in scopes} <= {piece.name}
    assert len({piece.name for piece in partition.pieces}) > (depth > 1)


def test_scopes_need_a_model_that_has_them() -> None:
    index = GraphIndex(load(named("whole_model").path).proto)
    with pytest.raises(CutError, match="PyTorch"):
        split_scopes(index, 1)


# ---- constants and random numbers


def test_constants_are_copied_and_weights_do_not_become_inputs() -> None:
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0]),
        helper.make_node("Neg", ["c"], ["k"]),
        helper.make_node("Add", ["x", "k"], ["a"]),
        helper.make_node("Mul", ["a", "k"], ["y"]),
    ]
    graph = helper.make_graph(nodes, "g", [value("x", T.FLOAT, [2])], [value("y", T.FLOAT, [2])])
    index = GraphIndex(helper.make_model(graph))
    partition = split_at(index, ["a"])
    assert _outputs(partition) == [(("x",), ("a",)), (("a",), ("y",))]
    assert partition.shared_nodes == 2
    with pytest.raises(CutError, match="constant"):
        split_at(index, ["k"])


def _random_model(how: str) -> onnx.ModelProto:
    """Returns a model in which one random tensor is read on both sides of a cut at ``a``."""
    value = helper.make_tensor_value_info
    draw = helper.make_node("RandomNormal", [], ["r"], shape=[2], dtype=T.FLOAT)
    body = helper.make_graph([draw], "b", [], [value("r", T.FLOAT, [2])])
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("local", 1)]
    function = helper.make_function("local", "Draw", ["unused"], ["r"], [draw], imports[:1])
    before = {
        "plain": [draw],
        "like": [
            helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0]),
            helper.make_node("RandomUniformLike", ["c"], ["r"]),
        ],
        "in a body": [
            helper.make_node("Constant", [], ["yes"], value=helper.make_tensor("v", T.BOOL, [], [True])),
            helper.make_node("If", ["yes"], ["r"], then_branch=body, else_branch=body),
        ],
        "in a function": [
            helper.make_node("Constant", [], ["c"], value_floats=[1.0, 2.0]),
            helper.make_node("Draw", ["c"], ["r"], domain="local"),
        ],
    }[how]
    nodes = [*before, helper.make_node("Add", ["x", "r"], ["a"]), helper.make_node("Sub", ["a", "r"], ["y"])]
    graph = helper.make_graph(nodes, "g", [value("x", T.FLOAT, [2])], [value("y", T.FLOAT, [2])])
    return helper.make_model(graph, opset_imports=imports, functions=[function], ir_version=8)


@pytest.mark.parametrize("how", ["plain", "like", "in a body", "in a function"])
def test_random_numbers_are_drawn_once(how: str) -> None:
    """Copied into two pieces, a generator would give two different tensors where there was one."""
    index = GraphIndex(_random_model(how))
    partition = split_at(index, ["a"])
    drawing = {at for at, names in enumerate(index.main.writes) if "r" in names}
    holders = [piece for piece in partition.pieces if drawing & set(piece.cut.nodes)]
    assert len(holders) == 1
    assert "r" in holders[0].cut.outputs


def test_outputs_that_depend_on_nothing_have_a_piece() -> None:
    index = GraphIndex(load(named("output_is_initializer").path).proto)
    partition = split_parts(index, 2) if len(index.main.nodes) > 1 else None
    if partition is not None:
        _check(index, partition)
        assert [piece.name for piece in partition.pieces][-1] == "constant"


def test_dead_nodes_are_left_out_and_counted() -> None:
    index = GraphIndex(load(named("dead_nodes").path).proto)
    try:
        partition = split_parts(index, 2)
    except BenchError:
        pytest.fail("a model with dead nodes can be split")
    assert sum(len(piece.cut.nodes) for piece in partition.pieces) < len(index.main.nodes)


def test_a_long_chain_is_split_in_linear_time() -> None:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Neg", [f"t{at}"], [f"t{at + 1}"]) for at in range(20_000)]
    graph = helper.make_graph(nodes, "g", [value("t0", T.FLOAT, [2])], [value("t20000", T.FLOAT, [2])])
    index = GraphIndex(helper.make_model(graph))
    assert len(split_parts(index, 50).pieces) == 50
    assert len(split_at(index, [f"t{at}" for at in range(500, 20_000, 500)]).pieces) == 40
    assert len(split_weights(index, 10).pieces) == 1
