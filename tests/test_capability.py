"""``capability``: what TensorRT takes of a model, proven by builds, and the pieces with what it does not take."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from cases import ROOT
from onnx import TensorProto, helper, numpy_helper

from onnxbench.capability import RUNTIME, TENSORRT, Capability, allot, find_capability
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.engine import BuildSpec, Range
from onnxbench.errors import ModelError
from onnxbench.feeding import FeedOptions
from onnxbench.graph import GraphIndex
from onnxbench.model import from_proto, load
from onnxbench.partition import split_labels, varying_nodes
from onnxbench.writer import save

HAS_TRT = importlib.util.find_spec("tensorrt_rtx") is not None
needs_trt = [
    pytest.mark.trt,
    pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')"),
]
SM89 = BuildSpec(compute_capabilities=("SM89",))
info = helper.make_tensor_value_info


def model_of(nodes, inputs, outputs, constants=None, functions=(), domains=()) -> onnx.ModelProto:
    initializers = [numpy_helper.from_array(value, name) for name, value in (constants or {}).items()]
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions))


def detector() -> onnx.ModelProto:
    """NonMaxSuppression, which the parser takes and no build does, between parts that TensorRT runs."""
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"], name="scores"),
        helper.make_node("Mul", ["b", "b"], ["bb"], name="boxes"),
        helper.make_node("NonMaxSuppression", ["bb", "s", "n", "iou", "low"], ["chosen"], name="nms"),
        helper.make_node("Gather", ["chosen", "two"], ["idx"], axis=1, name="pick"),
        helper.make_node("Squeeze", ["idx", "one"], ["idx1"], name="flat"),
        helper.make_node("Gather", ["bb", "idx1"], ["out"], axis=1, name="take"),
        helper.make_node("Relu", ["out"], ["y"], name="relu"),
    ]
    constants = {"n": np.array([5], "i8"), "iou": np.array([0.5], "f"), "low": np.array([0.0], "f"),
                 "two": np.array([2], "i8"), "one": np.array([1], "i8")}  # fmt: skip
    inputs = [info("x", 1, ["N", 1, "B"]), info("b", 1, ["N", "B", 4])]
    return model_of(nodes, inputs, [info("y", 1, ["N", "k", 4]), info("s", 1, ["N", 1, "B"])], constants)


def check(found: Capability, proto: onnx.ModelProto) -> None:
    """Checks what must always hold: counts add up, every node left has a reason, pieces read only what came before."""
    varying = varying_nodes(GraphIndex(proto))
    assert found.nodes == len(varying)
    assert len(found.left) == found.nodes - found.taken
    assert all(problem.node and problem.op and problem.message for problem in found.left)
    made = {each.name for each in proto.graph.input}
    for piece in found.pieces:
        assert set(piece.inputs) <= made, piece
        made |= set(piece.outputs)
    assert {each.name for each in proto.graph.output} <= made


# ---------------------------------------------------------------- pieces of two kinds (no TensorRT needed)


@pytest.mark.parametrize("seed", range(30))
def test_pieces_are_convex_disjoint_and_cover_the_model(seed):
    rng = np.random.default_rng(seed)
    names, nodes = ["x"], []
    for number in range(int(rng.integers(2, 40))):
        reads = [str(name) for name in rng.choice(names, size=2)]
        nodes.append(helper.make_node("Add", reads, [f"t{number}"]))
        names.append(f"t{number}")
    read = {name for node in nodes for name in node.input}
    ends = [info(name, 1, [2]) for name in names[1:] if name not in read]
    index = GraphIndex(model_of(nodes, [info("x", 1, [2])], ends))
    labels = {position: str(rng.choice([TENSORRT, RUNTIME])) for position in varying_nodes(index)}
    plan = split_labels(index, labels, TENSORRT)
    seen: dict[int, int] = {}
    for number, piece in enumerate(plan.pieces):
        for position in piece.cut.nodes:
            assert position not in seen
            seen[position] = number
            assert labels[position] == piece.name
        for name in piece.cut.inputs:  # all of it comes from earlier pieces, so no way leads back
            producer = index.main.producers.get(name)
            assert producer is None or seen[producer] < number
    assert sorted(seen) == varying_nodes(index)
    changes: dict[int, int] = {}
    for position in varying_nodes(index):  # no more pieces than kinds alternate on the longest way, and one
        before = [p for name in index.main.reads[position] if (p := index.main.producers.get(name)) is not None]
        changes[position] = max((changes[p] + (labels[p] != labels[position]) for p in before), default=0)
    assert len(plan.pieces) <= max(changes.values()) + 2


# ---------------------------------------------------------------- with TensorRT-RTX


class TestCapability:
    pytestmark = needs_trt

    def test_a_model_that_is_not_valid_is_told_as_such(self):
        proto = model_of([helper.make_node("Convv", ["x"], ["y"])], [info("x", 1, [1])], [info("y", 1, [1])])
        with pytest.raises(ModelError, match="the model is not valid ONNX") as caught:
            find_capability(from_proto(proto), SM89)
        assert caught.value.hint == "Did you mean 'Conv'?"

    def test_what_parses_and_does_not_build_is_found_by_building(self, tmp_path):
        spec = BuildSpec(
            compute_capabilities=("SM89",),
            profiles=({"x": Range((1, 1, 4), (2, 1, 9), (2, 1, 9)), "b": Range((1, 4, 4), (2, 9, 4), (2, 9, 4))},),
        )
        done = allot(from_proto(detector()), tmp_path / "pieces", spec, prove=True)
        found = done.capability
        check(found, detector())
        assert [problem.node for problem in found.left] == ["nms"]
        assert "has nothing that runs it" in found.left[0].message
        assert "Cut the model" in found.left[0].way_out
        assert [(piece.runner, piece.nodes) for piece in found.pieces] == [(TENSORRT, 2), (RUNTIME, 1), (TENSORRT, 4)]
        assert done.proof is not None
        assert done.proof.holds
        manifest = yaml.safe_load((tmp_path / "pieces" / "manifest.yaml").read_text())
        assert [piece["name"] for piece in manifest["pieces"]] == [TENSORRT, RUNTIME, TENSORRT]
        assert len(done.commands) == 2
        assert "--min-shapes x:[1,1,4] b:[1,4,4]" in done.commands[0]

    def test_a_model_that_is_taken_whole(self, capsys, tmp_path):
        proto = model_of([helper.make_node("Relu", ["x"], ["y"])], [info("x", 1, ["N", 3])], [info("y", 1, ["N", 3])])
        onnx.save(proto, tmp_path / "m.onnx")
        assert bounded(app, ["capability", str(tmp_path / "m.onnx"), "--compute-capability", "8.9"]) == 0
        assert "takes all 1 nodes, in 1 engine (1 trial build)" in capsys.readouterr().out

    def test_exit_codes_and_json(self, capsys, tmp_path):
        onnx.save(detector(), tmp_path / "m.onnx")
        words = ["capability", str(tmp_path / "m.onnx"), "--no-trial", "--quiet"]
        assert bounded(app, [*words, "--shapes", "x:1x1x4", "b:1x4x4"]) == 0  # the parser takes it, by its word
        assert "by the parser's word" in capsys.readouterr().out
        proto = model_of(
            [helper.make_node("Unique", ["x"], ["y"], name="u")], [info("x", 1, [4])], [info("y", 1, ["k"])]
        )
        onnx.save(proto, tmp_path / "u.onnx")
        words = ["capability", str(tmp_path / "u.onnx"), "--json"]
        assert bounded(app, words) == 1
        result = json.loads(capsys.readouterr().out)["result"]
        assert result["capability"]["taken"] == 0
        assert result["capability"]["left"][0]["kind"] == "unsupported"
        assert bounded(app, [*words, "--partition", str(tmp_path / "d"), "--prove"]) == 0
        assert bounded(app, ["capability", str(tmp_path / "u.onnx"), "--prove"]) == 2

    def test_small_pieces_are_left(self):
        found = find_capability(
            from_proto(detector()), SM89, min_nodes=3,
            feeds=FeedOptions(shapes=("x:[1,1,4]", "b:[1,4,4]")),
        )  # fmt: skip
        check(found, detector())
        assert [(piece.runner, piece.nodes) for piece in found.pieces] == [(RUNTIME, 3), (TENSORRT, 4)]
        assert {problem.node for problem in found.left} == {"scores", "boxes", "nms"}
        assert any("--min-nodes" in problem.message for problem in found.left)

    def test_what_lies_behind_an_unknown_operator_is_left_for_want_of_a_type(self):
        nodes = [
            helper.make_node("Relu", ["x"], ["a"], name="first"),
            helper.make_node("RowClip", ["a"], ["b"], name="clip", domain="acme"),
            helper.make_node("Relu", ["b"], ["y"], name="last"),
        ]
        found = find_capability(
            from_proto(model_of(nodes, [info("x", 1, [2, 8])], [info("y", 1, [2, 8])], domains=["acme"])), SM89
        )
        assert [(piece.runner, piece.nodes) for piece in found.pieces] == [(TENSORRT, 1), (RUNTIME, 2)]
        assert found.left[-1].message == "nothing tells the element type of 'b', no value info either"

    def test_a_node_inside_a_function_leaves_its_callers(self):
        body = [helper.make_node("Unique", ["a"], ["b"], name="inner"), helper.make_node("Relu", ["b"], ["c"])]
        function = helper.make_function("local", "F", ["a"], ["c"], body, [helper.make_opsetid("", 17)])
        nodes = [
            helper.make_node("Abs", ["x"], ["p"], name="before"),
            helper.make_node("F", ["p"], ["q"], domain="local", name="call"),
            helper.make_node("Neg", ["q"], ["y"], name="after"),
        ]
        proto = model_of(nodes, [info("x", 1, [4])], [info("y", 1, ["k"])], functions=[function], domains=["local"])
        found = find_capability(from_proto(proto), SM89)
        check(found, proto)
        assert [piece.runner for piece in found.pieces] == [TENSORRT, RUNTIME, TENSORRT]
        assert "Unique" in found.left[0].op
        inlined = find_capability(from_proto(proto), SM89, inline=True)
        assert (inlined.nodes, inlined.taken) == (4, 3)

    def test_a_node_inside_a_body_leaves_the_node_around_it(self, tmp_path):
        inner = helper.make_graph(
            [helper.make_node("Unique", ["p"], ["u"], name="inner")], "then", [], [info("u", 1, None)]
        )
        other = helper.make_graph([helper.make_node("Identity", ["p"], ["v"])], "else", [], [info("v", 1, None)])
        nodes = [
            helper.make_node("Abs", ["x"], ["p"], name="before"),
            helper.make_node("If", ["c"], ["q"], then_branch=inner, else_branch=other, name="choice"),
            helper.make_node("Neg", ["q"], ["y"], name="after"),
        ]
        proto = model_of(nodes, [info("x", 1, [4]), info("c", TensorProto.BOOL, [])], [info("y", 1, ["k"])])
        done = allot(from_proto(proto), tmp_path / "pieces", SM89, prove=True)
        check(done.capability, proto)
        assert [problem.node.split("/")[0] for problem in done.capability.left] == ["choice"]
        assert [piece.runner for piece in done.capability.pieces] == [TENSORRT, RUNTIME, TENSORRT]
        assert done.proof is not None
        assert done.proof.holds

    def test_ranks_that_only_a_run_tells_are_stated_at_the_border(self):
        """A Squeeze of what has size 1, whatever that is, and inputs of a shape that nobody would guess."""
        squeezed = [helper.make_node("Squeeze", ["p"], ["z"]), helper.make_node("Unique", ["z"], ["u"], axis=0)]
        chosen = helper.make_graph(squeezed, "then", [], [info("u", 1, None)])
        other = helper.make_graph([helper.make_node("Squeeze", ["p"], ["v"])], "else", [], [info("v", 1, None)])
        nodes = [
            helper.make_node("Reshape", ["x", "six"], ["p"], name="before"),
            helper.make_node("If", ["c"], ["q"], then_branch=chosen, else_branch=other, name="choice"),
            helper.make_node("Neg", ["q"], ["y"], name="after"),
        ]
        inputs = [info("x", 1, ["N"]), info("c", TensorProto.BOOL, [])]
        proto = model_of(nodes, inputs, [info("y", 1, None)], {"six": np.array([-1, 6, 1], "i8")})
        found = find_capability(from_proto(proto), SM89, feeds=FeedOptions(shapes=("x:[12]",)))
        assert [(piece.runner, piece.nodes) for piece in found.pieces] == [(TENSORRT, 1), (RUNTIME, 1), (TENSORRT, 1)]

    def test_a_constant_that_tensorrt_does_not_take_leaves_its_reader(self):
        nodes = [
            helper.make_node("Unique", ["w"], ["k"], name="constant"),
            helper.make_node("Abs", ["x"], ["p"], name="before"),
            helper.make_node("Add", ["p", "k"], ["y"], name="sum"),
        ]
        proto = model_of(nodes, [info("x", 1, [2])], [info("y", 1, [2])], {"w": np.array([1, 2], "f")})
        found = find_capability(from_proto(proto), SM89)
        assert found.nodes == 2
        assert [piece.runner for piece in found.pieces] == [TENSORRT, RUNTIME]
        assert "Unique" in found.left[0].op

    def test_several_nodes_of_one_kind_are_all_found(self):
        nodes = [
            helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
            helper.make_node("Relu", ["h"], ["r"], name="r"),
            helper.make_node("MatMul", ["r", "w"], ["y"], name="second"),
        ]  # fmt: skip
        proto = model_of(nodes, [info("x", 1, [4, 8])], [info("y", 1, [4, 8])], {"w": np.ones((8, 8), "f")})
        found = find_capability(from_proto(proto), BuildSpec(compute_capabilities=("SM75",)))
        check(found, proto)
        assert {problem.node for problem in found.left} == {"first", "second"}
        assert "Turing" in found.left[0].message

    def test_marks_and_float64_at_the_border(self):
        nodes = [
            helper.make_node("Cast", ["x"], ["d"], to=TensorProto.DOUBLE, name="up"),
            helper.make_node("Unique", ["d"], ["u"], name="u"),
        ]
        proto = model_of(nodes, [info("x", 1, [4])], [info("u", TensorProto.DOUBLE, ["k"])])
        found = find_capability(from_proto(proto), SM89)
        assert any("float32 what is float64" in note for piece in found.pieces for note in piece.notes)

    @pytest.mark.parametrize(
        "name", ["custom_op", "loop_while", "if_basic", "constant_nodes", "function_nested", "fp16"]
    )
    def test_fixtures_chain(self, tmp_path, name):
        source = load(ROOT / "fixtures" / "models" / f"{name}.onnx")
        found = find_capability(source, SM89, trial=name != "fp16")
        check(found, source.proto)

    @pytest.mark.corpus
    @pytest.mark.parametrize(
        ("name", "trial", "left"),
        [
            ("logreg_iris_ml", True, {"LinearClassifier": 1, "Normalizer": 1, "ZipMap": 1}),
            ("eeg_seizure_lstm", True, {}),
            ("nakdimon_loop", False, {"Loop": 1}),  # by the parser's word; builds find the three behind it
            ("swift_f0", False, {}),
            ("ppocr_v2_cls", False, {}),
        ],
    )
    def test_real_models(self, corpus, tmp_path, name, trial, left):
        path, _ = corpus(name)
        done = allot(path, tmp_path / "pieces", SM89, prove=True, trial=trial)
        found = done.capability
        check(found, load(path).proto)
        counts: dict[str, int] = {}
        for problem in found.left:
            op = problem.op.rpartition("::")[2]
            counts[op] = counts.get(op, 0) + 1
        assert counts == left
        assert done.proof is not None
        assert done.proof.holds

    def test_a_model_in_memory_with_text_is_written_for_the_parser(self, tmp_path):
        save(from_proto(detector()), Path(tmp_path, "m.onnxtxt"))
        found = find_capability(tmp_path / "m.onnxtxt", SM89, trial=False)
        assert not found.proven
        assert found.taken == found.nodes
