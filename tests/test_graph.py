"""The index against definitions written down the slow way, on random models and all fixtures."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import onnx
import pytest
from cases import Case, cases, named
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto as T
from onnx import helper
from strategies import RandomModel, dags, models

from onnxbench.boundary import depends_on, reach_back
from onnxbench.cut import extract
from onnxbench.errors import ModelError
from onnxbench.graph import (
    GraphIndex,
    Scope,
    TensorRef,
    declared_types,
    refuse_duplicates,
    sort_nodes,
    topological_order,
)
from onnxbench.model import from_proto, load
from onnxbench.repair import repair

Graph = onnx.GraphProto | onnx.FunctionProto


# ---- definitions


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    found = []
    for attribute in node.attribute:
        found += [attribute.g] if attribute.type == onnx.AttributeProto.GRAPH else []
        found += list(attribute.graphs) if attribute.type == onnx.AttributeProto.GRAPHS else []
    return found


def _own(graph: Graph) -> set[str]:
    if isinstance(graph, onnx.FunctionProto):
        names = set(graph.input)
    else:
        names = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        names |= {tensor.values.name for tensor in graph.sparse_initializer}
    return names | {name for node in graph.node for name in node.output}


def _free(graph: onnx.GraphProto) -> set[str]:
    """The names that a graph reads and does not have: those of its nodes, their bodies, and its outputs."""
    read = {name for node in graph.node for name in node.input}
    for node in graph.node:
        for body in _bodies(node):
            read |= _free(body)
    read |= {value.name for value in graph.output}
    return read - _own(graph) - {""}


def _reads(node: onnx.NodeProto) -> set[str]:
    read = set(node.input) - {""}
    for body in _bodies(node):
        read |= _free(body)
    return read


def _all_graphs(proto: onnx.ModelProto) -> Iterator[Graph]:
    def below(graph: Graph) -> Iterator[Graph]:
        yield graph
        for node in graph.node:
            for body in _bodies(node):
                yield from below(body)

    yield from below(proto.graph)
    for function in proto.functions:
        yield from below(function)


def _check_index(proto: onnx.ModelProto) -> None:
    index = GraphIndex(proto)
    graphs = list(_all_graphs(proto))
    assert [scope.graph for scope in index.scopes] == graphs
    assert index.scopes[0] is index.main
    assert len({id(scope) for scope in index.scopes}) == len(graphs)
    for scope, graph in zip(index.scopes, graphs, strict=True):
        nodes = list(graph.node)
        assert scope.nodes == nodes
        assert [set(names) for names in scope.reads] == [_reads(node) for node in nodes]
        for position, node in enumerate(nodes):
            plain = [name for name in node.input if name]
            assert scope.reads[position][: len(plain)] == plain
            captured = scope.reads[position][len(plain) :]
            assert len(set(captured)) == len(captured)
            assert scope.writes[position] == [name for name in node.output if name]
            assert [body.graph for body in scope.bodies.get(position, [])] == _bodies(node)
        written = [name for node in nodes for name in node.output if name]
        if len(set(written)) == len(written):
            assert scope.producers == {name: at for at, node in enumerate(nodes) for name in node.output if name}
        readers: dict[str, list[int]] = {}
        for at, node in enumerate(nodes):
            for name in _reads(node):
                readers.setdefault(name, []).append(at)
        assert scope.consumers == readers
        if isinstance(graph, onnx.GraphProto):
            assert scope.inputs == [value.name for value in graph.input]
            assert scope.outputs == [value.name for value in graph.output]
            assert scope.is_function is False
        else:
            assert (scope.inputs, scope.outputs) == (list(graph.input), list(graph.output))
            assert scope.is_function is True
        if scope.parent is not None:
            assert isinstance(graph, onnx.GraphProto)
            assert set(scope.captures) == _free(graph)
            assert len(set(scope.captures)) == len(scope.captures)
            assert scope in scope.parent.bodies[scope.owner]
            assert scope.depth == scope.parent.depth + 1
        else:
            assert scope.captures == []
        assert len(set(scope.labels())) == len(nodes)
        names = list(scope.tensor_names())
        assert set(names) == (_own(graph) - {""})
        assert len(set(names)) == len(names)


@cases(lambda case: case.valid != "no")
def test_the_index_of_every_fixture(case: Case) -> None:
    _check_index(load(case.path).proto)


@given(models())
def test_the_index_of_random_models(drawn: RandomModel) -> None:
    _check_index(drawn.proto)


@given(dags(most_nodes=14))
def test_the_index_of_random_dags(proto: onnx.ModelProto) -> None:
    _check_index(proto)


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["silero_vad", "silero_vad_16k_op15", "silero_vad_ifless", "nakdimon_loop"])
def test_the_index_of_real_bodies(corpus, name: str) -> None:
    proto = load(corpus(name)[0]).proto
    _check_index(proto)
    if name == "silero_vad":
        assert max(scope.depth for scope in GraphIndex(proto).scopes) == 4


# ---- order


def _slow_order(nodes: list[tuple[set[str], set[str]]]) -> list[int] | None:
    """Of all nodes whose inputs are there, the first in the file goes next; None if nothing can go."""
    made = set().union(*(writes for _, writes in nodes))
    order: list[int] = []
    there: set[str] = set()
    while len(order) < len(nodes):
        ready = [at for at, (reads, _) in enumerate(nodes) if at not in order and not (reads & made) - there]
        if not ready:
            return None
        order.append(ready[0])
        there |= nodes[ready[0]][1]
    return order


def _check_order(scope: Scope) -> None:
    nodes = [(_reads(node), {name for name in node.output if name}) for node in scope.nodes]
    expected = _slow_order(nodes)
    if expected is None:
        with pytest.raises(ModelError, match="cycle"):
            topological_order(scope)
    elif expected == list(range(len(nodes))):
        assert topological_order(scope) is None
    else:
        assert topological_order(scope) == expected


@given(dags(most_nodes=14))
def test_order_against_the_slow_way(proto: onnx.ModelProto) -> None:
    _check_order(GraphIndex(proto).main)


@given(models())
def test_order_of_models_with_bodies(drawn: RandomModel) -> None:
    for scope in GraphIndex(drawn.proto).scopes:
        _check_order(scope)


@st.composite
def _cyclic(draw: st.DrawFn) -> onnx.ModelProto:
    proto = draw(dags())
    made = [name for node in proto.graph.node for name in node.output]
    for _ in range(draw(st.integers(1, 3))):
        proto.graph.node[draw(st.integers(0, len(proto.graph.node) - 1))].input.append(draw(st.sampled_from(made)))
    return proto


@given(_cyclic())
def test_cycles_are_named(proto: onnx.ModelProto) -> None:
    scope = GraphIndex(proto).main
    _check_order(scope)
    try:
        topological_order(scope)
    except ModelError as error:
        walk = error.message.split(": ", 1)[1].split(" -> ")
        assert walk[0] == walk[-1]
        assert len(walk) > 1
        places = {label: at for at, label in enumerate(scope.labels())}
        for before, after in itertools.pairwise(walk):
            assert set(scope.writes[places[before]]) & set(scope.reads[places[after]])


@given(models(sorted_nodes=False))
def test_sorting_moves_nodes_and_nothing_else(drawn: RandomModel) -> None:
    proto = onnx.ModelProto()
    proto.CopyFrom(drawn.proto)

    for number, order in sort_nodes(proto):
        assert sorted(order) == list(range(len(GraphIndex(drawn.proto).scopes[number].nodes)))

    assert all(topological_order(scope) is None for scope in GraphIndex(proto).scopes)
    assert sorted(node.SerializeToString() for node in proto.graph.node) == sorted(
        node.SerializeToString() for node in drawn.proto.graph.node
    )
    again = onnx.ModelProto()
    again.CopyFrom(proto)
    assert sort_nodes(again) == []
    assert again == proto


@pytest.mark.parametrize("name", ["duplicate_output", "output_shadows_input", "output_shadows_initializer"])
def test_tensors_that_are_made_twice_are_named(name: str) -> None:
    scope = GraphIndex(onnx.load(str(named(name).path))).main

    with pytest.raises(ModelError, match="made twice"):
        refuse_duplicates(scope)
    with pytest.raises(ModelError, match="made twice"):
        topological_order(scope)


# ---- names


def test_paths_into_bodies_and_functions() -> None:
    index = GraphIndex(load(named("nested_bodies").path).proto)
    for ref in index.tensors():
        found = index.tensor(ref.path)
        assert found == ref
    for path, scope in index.scope_paths.items():
        assert scope.path == path
    inner = [scope for scope in index.scopes if scope.depth == 3]
    assert inner
    assert inner[0].path.count("/") >= 3
    assert index.tensor("no such tensor") is None


def test_labels_stay_apart_from_names_that_look_like_them() -> None:
    """A node that is called ``Add#1`` and an unnamed Add at position 1."""
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], name="Add#1"),
        helper.make_node("Add", ["a", "a"], ["b"]),
        helper.make_node("Neg", ["b"], ["c"], name="twice"),
        helper.make_node("Neg", ["c"], ["d"], name="twice"),
        helper.make_node("Neg", ["d"], ["e"], name="twice#3"),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [value("x", T.FLOAT, [1])], [value("e", T.FLOAT, [1])])

    labels = GraphIndex(helper.make_model(graph)).main.labels()

    assert labels[0] == "Add#1"
    assert labels[4] == "twice#3"
    assert len(set(labels)) == 5


def test_a_tensor_that_is_only_read_or_only_an_output_has_a_name_too() -> None:
    index = GraphIndex(onnx.load(str(named("undefined_output").path)))
    assert index.tensor("y") == TensorRef(index.main, "y")


def test_declared_types_cover_all_kinds_of_statements() -> None:
    index = GraphIndex(load(named("sparse_initializer").path).proto)
    assert set(declared_types(index.main)) == {"x", "y", "w_linear", "w_pairs"}
    function = next(iter(GraphIndex(load(named("function_value_info").path).proto).functions.values()))
    assert declared_types(function)


def test_function_closure_is_transitive() -> None:
    index = GraphIndex(load(named("function_nested").path).proto)
    calls = [node for node in index.main.nodes if node.domain == "local"]
    assert len(index.function_closure(calls)) == 3
    assert index.function_closure([]) == set()
    recursive = GraphIndex(onnx.load(str(named("function_recursive_pair").path)))
    assert len(recursive.function_closure(recursive.main.nodes)) == 2
    in_body = GraphIndex(load(named("function_in_body").path).proto)
    assert in_body.function_closure(in_body.main.nodes)


# ---- size


@contextmanager
def _shallow_stack(extra: int = 60) -> Iterator[None]:
    frame, depth = sys._getframe(), 0
    while frame is not None:
        frame, depth = frame.f_back, depth + 1
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(depth + extra)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def _chain(length: int, *, backwards: bool = False) -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Neg", [f"t{at}"], [f"t{at + 1}"]) for at in range(length)]
    graph = helper.make_graph(
        nodes[::-1] if backwards else nodes, "g", [value("t0", T.FLOAT, [2])], [value(f"t{length}", T.FLOAT, [2])]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("backwards", [False, True])
def test_long_chains_need_no_stack(backwards: bool) -> None:
    length = 50_000
    proto = _chain(length, backwards=backwards)
    with _shallow_stack():
        index = GraphIndex(proto)
        order = topological_order(index.main)
        assert order == (list(range(length))[::-1] if backwards else None)
        assert len(depends_on(index.main, ["t0"])) == length + 1
        assert len(reach_back(index.main, [f"t{length}"], ()).nodes) == length


def _nested(depth: int) -> onnx.ModelProto:
    """Returns a model with an If in an If, ``depth`` deep, made in place: deeper than a file can hold."""
    proto = onnx.ModelProto(ir_version=8, opset_import=[helper.make_opsetid("", 17)])
    value = helper.make_tensor_value_info
    graph = proto.graph
    graph.input.extend([value("x", T.FLOAT, [2]), value("c", T.BOOL, [])])
    for level in range(depth, 0, -1):
        graph.name = f"graph{level}"
        graph.output.extend([value(f"r{level}", T.FLOAT, [2])])
        node = graph.node.add(op_type="If", input=["c"], output=[f"r{level}"], name=f"if{level}")
        other = node.attribute.add(name="else_branch", type=onnx.AttributeProto.GRAPH).g
        other.name = "other"
        other.node.add(op_type="Identity", input=["x"], output=[f"e{level}"])
        other.output.extend([value(f"e{level}", T.FLOAT, [2])])
        graph = node.attribute.add(name="then_branch", type=onnx.AttributeProto.GRAPH).g
    graph.name = "innermost"
    graph.node.add(op_type="Neg", input=["x"], output=["r0"])
    graph.output.extend([value("r0", T.FLOAT, [2])])
    return proto


def test_deep_nesting_needs_no_stack() -> None:
    depth = 90  # a file can hold a third of that, as protobuf nests a hundred messages
    proto = _nested(depth)
    with _shallow_stack():
        index = GraphIndex(proto)
        assert len(index.scopes) == 2 * depth + 1
        assert max(scope.depth for scope in index.scopes) == depth
        assert index.main.reads[0] == ["c", "x"]
        assert topological_order(index.main) is None
        assert len(list(index.tensors())) == 2 * depth + 3
    model = from_proto(_nested(20))
    piece = extract(model, ["r20"], ["x", "c"])
    assert piece.model.proto.graph.node == model.proto.graph.node
    assert repair(piece.model.proto) == []


def test_pieces_of_long_chains_need_no_stack() -> None:
    model = from_proto(_chain(20_000))
    with _shallow_stack(90):
        piece = extract(model, ["t15000"], ["t5000"])
    assert len(piece.cut.nodes) == 10_000


def test_many_paths_take_no_time() -> None:
    index = GraphIndex(load(named("many_paths").path).proto)
    (output,) = index.main.outputs
    assert len(reach_back(index.main, [output], ()).nodes) == len(index.main.nodes)
    assert len(depends_on(index.main, index.main.inputs)) > 80


@pytest.mark.parametrize("what", ["node", "tensor"])
def test_names_that_are_no_text_are_refused(what):
    name, tensor = ("QQQ", "y") if what == "node" else ("n", "QQQ")
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], [tensor], name)],
        "g",
        [helper.make_tensor_value_info("x", T.FLOAT, [1])],
        [helper.make_tensor_value_info(tensor, T.FLOAT, [1])],
    )
    data = helper.make_model(graph).SerializeToString().replace(b"QQQ", b"\xff\xfe\xfd")
    with pytest.raises(ModelError, match=f"{what} names that are not UTF-8 text"):
        GraphIndex(onnx.ModelProto.FromString(data))
