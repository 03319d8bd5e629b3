"""Types: what is said of a tensor must be true of the tensor that comes out of a run."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from pathlib import Path

import onnx
import pytest
from cases import Case, cases, named
from engines import Bits
from gen.verify import _in_child
from hypothesis import given
from onnx import TensorProto as T
from onnx import helper
from strategies import RandomModel, models
from test_cut import _all_values, _fixture

from onnxbench.graph import GraphIndex
from onnxbench.inference import TypeFinder, inferred, inferred_types, without_made_up_dims
from onnxbench.model import from_proto, load
from onnxbench.pieces import type_sources
from onnxbench.tensortype import agree, elem_type, format_type, make_type, tensor_shape


def _is_true(value: onnx.TypeProto, found: Bits) -> bool:
    """Tells whether a type holds of a value: kind, element type, rank, and every size that it states."""
    kind = value.WhichOneof("value")
    if kind == "optional_type":
        return found is None or _is_true(value.optional_type.elem_type, found)
    if kind == "sequence_type":
        return isinstance(found, list) and all(_is_true(value.sequence_type.elem_type, item) for item in found)
    if kind == "map_type":
        return isinstance(found, dict)
    dtype, shape, _ = found
    number = elem_type(value)
    expected = "string" if number == T.STRING else helper.tensor_dtype_to_np_dtype(number).name
    said = tensor_shape(value)
    fits = said is None or (
        len(said) == len(shape) and all(not isinstance(a, int) or a == b for a, b in zip(said, shape, strict=True))
    )
    return expected == dtype and fits


def _check(finder: TypeFinder, index: GraphIndex, values: Mapping[str, Bits], *, all_known: bool = True) -> None:
    found = finder.find(index.main, values)
    assert not all_known or set(found) == set(values)
    finder.verify(values)  # value infos that contradict the operators are corrected when they are needed
    found = finder.find(index.main, values)
    for name, value in found.items():
        assert _is_true(value, values[name]), (name, format_type(value), values[name][:2])


@cases(lambda case: case.valid != "no" and case.engine is not None and case.name != "string_bytes.onnx")
def test_types_of_fixtures_are_true(case: Case) -> None:
    model, index, feeds, values = _fixture(case.name)
    left_out = {name for name, value in feeds.items() if "int4" in str(getattr(value, "dtype", ""))}
    _check(TypeFinder(model, index), index, {n: v for n, v in values.items() if n not in left_out})


@given(models())
def test_types_of_random_models_are_true(drawn: RandomModel) -> None:
    index = GraphIndex(drawn.proto)
    values = _all_values(drawn.proto, "ort", drawn.feeds)
    _check(TypeFinder(from_proto(drawn.proto), index), index, values)


@pytest.mark.corpus
@pytest.mark.parametrize("name", ["magika", "nakdimon_loop", "silero_vad_16k_op15", "ppocr_v2_cls", "ddddocr_rec_dynq"])
def test_types_of_real_models_are_true(corpus, name: str) -> None:
    from corpus import fetch

    path, entry = corpus(name)
    model = load(path)
    index = GraphIndex(model.proto)
    values = _all_values(onnx.load(path), "ort", fetch.seeded_feeds(path, entry))
    for name in index.main.outputs:  # one of these states a wrong rank that nothing can know
        values.pop(name, None)
    _check(TypeFinder(model, index, type_sources()), index, values)


def test_bodies_are_typed_too() -> None:
    for name in ("loop_count", "nested_bodies", "if_basic", "body_output_without_type", "unsorted_in_body"):
        model = load(named(name).path)
        index = GraphIndex(model.proto)
        finder = TypeFinder(model, index)
        for scope in index.scopes[1:]:
            names = list(scope.tensor_names())
            assert set(finder.find(scope, names)) == set(names), (name, scope.path)


def test_bodies_of_unsorted_owners_are_not_mixed_up() -> None:
    """Two unnamed Ifs in the wrong order: their bodies are told apart by place and not by label."""
    value = helper.make_tensor_value_info

    def branch(op: str, dtype: int) -> onnx.GraphProto:
        node = helper.make_node("Cast", ["x"], ["r"], to=dtype)
        return helper.make_graph([node], op, [], [onnx.ValueInfoProto(name="r")])

    def choose(made: str, dtype: int) -> onnx.NodeProto:
        return helper.make_node("If", ["c"], [made], then_branch=branch("t", dtype), else_branch=branch("e", dtype))

    nodes = [
        helper.make_node("Add", ["a", "b2"], ["y"]),
        helper.make_node("Cast", ["b"], ["b2"], to=T.INT32),
        choose("a", T.INT32),
        choose("b", T.DOUBLE),
    ]
    graph = helper.make_graph(
        nodes, "g", [value("x", T.FLOAT, [2]), value("c", T.BOOL, [])], [value("y", T.INT32, [2])]
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    index = GraphIndex(proto)
    finder = TypeFinder(from_proto(proto), index)
    for scope in index.scopes[1:]:
        expected = T.INT32 if scope.owner == 2 else T.DOUBLE
        assert elem_type(finder.find(scope, ["r"])["r"]) == expected


def test_graphs_whose_paths_are_alike_are_not_mixed_up() -> None:
    """A node that is called what another one is called by its position."""
    value = helper.make_tensor_value_info

    def choose(made: str, dtype: int, name: str) -> onnx.NodeProto:
        node = helper.make_node("Cast", ["x"], ["r"], to=dtype)
        ends = [onnx.ValueInfoProto(name="r")]
        bodies = {key: helper.make_graph([node], key, [], ends) for key in ("then_branch", "else_branch")}
        return helper.make_node("If", ["c"], [made], name=name, **bodies)

    nodes = [choose("a", T.INT32, "If#1"), choose("b", T.DOUBLE, "")]
    graph = helper.make_graph(
        nodes, "g", [value("x", T.FLOAT, [2]), value("c", T.BOOL, [])],
        [value("a", T.INT32, [2]), value("b", T.DOUBLE, [2])],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    index = GraphIndex(proto)
    assert len(index.scope_paths) == 5
    finder = TypeFinder(from_proto(proto), index)
    assert [elem_type(finder.find(scope, ["r"])["r"]) for scope in index.scopes[1:]] == [6, 6, 11, 11]


def test_sources_are_asked_for_what_is_left_alone() -> None:
    model = load(named("mmdeploy_marks").path)
    index = GraphIndex(model.proto)
    asked: list[list[str]] = []

    def first(_: object, names: list[str]) -> dict[str, onnx.TypeProto]:
        asked.append(sorted(names))
        return {"stem": make_type(T.FLOAT, (1, 2)), "f0": onnx.TypeProto()}

    def second(_: object, names: list[str]) -> dict[str, onnx.TypeProto]:
        asked.append(sorted(names))
        return {name: make_type(T.FLOAT16, (None,)) for name in names}

    finder = TypeFinder(model, index, [first, second])
    found = finder.find(index.main, ["stem", "f0", index.main.inputs[0]])
    assert asked == [["f0", "stem"], ["f0"]]
    assert format_type(found["stem"]) == "float32[1, 2]"
    assert format_type(found["f0"]) == "float16[?]"
    assert finder.find(index.main, ["stem", "f0"]) == {name: found[name] for name in ("stem", "f0")}
    assert len(asked) == 2


def test_made_up_dimensions_are_forgotten() -> None:
    value = make_type(T.FLOAT, ("unk__3", 4, "batch"))
    assert format_type(without_made_up_dims(value)) == "float32[?, 4, batch]"
    model = load(named("dynamic_batch").path)
    made = inferred(model.proto)
    for info in inferred_types(made, [info.name for info in made.graph.value_info]).values():
        assert "unk__" not in format_type(info)


def test_inference_leaves_the_model_alone() -> None:
    for name in ("external_one_file", "whole_model", "value_info_wrong_shape"):
        model = load(named(name).path)
        before = model.proto.SerializeToString(deterministic=True)
        inferred(model.proto)
        TypeFinder(model, GraphIndex(model.proto)).find(GraphIndex(model.proto).main, [])
        assert model.proto.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("where", ["initializer", "input"])
def test_a_vector_that_claims_two_billion_elements_takes_no_memory(where: str) -> None:
    """Data propagation takes a vector for a shape and makes a message of each of its elements."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Mul", ["r", "w"], ["a"]),
        helper.make_node("Add", ["r", "a"], ["b"]),
        helper.make_node("Neg", ["b"], ["y"]),
    ]
    size = 2**31 - 1
    weight = onnx.TensorProto(name="w", data_type=T.FLOAT, dims=[size], raw_data=bytes(12))
    inputs = [value("x", T.FLOAT, [None]), *([value("w", T.FLOAT, [size])] if where == "input" else [])]
    weights = [weight] if where == "initializer" else []
    graph = helper.make_graph(nodes, "g", inputs, [value("y", T.FLOAT, None)], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

    def attempt() -> list[object]:
        resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
        index = GraphIndex(proto)
        before = _peak_memory()
        found = TypeFinder(from_proto(proto), index).find(index.main, ["a"])
        return [format_type(found["a"]), _peak_memory() - before]

    kind, kilobytes = _in_child(attempt, seconds=60)["ok"]
    assert kind.startswith("float32")
    assert kilobytes < 100_000


def _peak_memory() -> int:
    """Returns the most memory this process ever had, in kilobytes."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1])


@pytest.mark.parametrize(
    ("one", "other", "answer"),
    [
        (make_type(1, (2, 3)), make_type(1, (2, 3)), True),
        (make_type(1, (2, 3)), make_type(1, ("a", None)), True),
        (make_type(1, (2, 3)), make_type(1, None), True),
        (make_type(1, (2, 3)), make_type(1, (2, 4)), False),
        (make_type(1, (2, 3)), make_type(1, (2,)), False),
        (make_type(1, (2, 3)), make_type(7, (2, 3)), False),
        (make_type(0, (2, 3)), make_type(7, (2, 3)), True),
        (onnx.TypeProto(), make_type(7, (2, 3)), True),
        (make_type(1, ()), make_type(1, None), True),
        (make_type(1, ()), make_type(1, (1,)), False),
    ],
)
def test_when_types_agree(one: onnx.TypeProto, other: onnx.TypeProto, answer: bool) -> None:
    assert agree(one, other) is answer
    assert agree(other, one) is answer
