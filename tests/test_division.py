"""Partition: the pieces that a configuration names, their names and dimensions, the manifest, proof and calibration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from cases import named
from engines import run_ort

import onnxbench
from onnxbench.division import divide, load_division, parse_division
from onnxbench.errors import BenchError, CutError, NotFoundError, SpecError, UsageError
from onnxbench.feeding import FeedOptions
from onnxbench.graph import GraphIndex
from onnxbench.marks import add_functions, marks, unmark
from onnxbench.model import from_proto, load

FIXTURES = ("mmdeploy_marks", "mmdeploy_marks_slash", "mmdeploy_marks_runnable")
TWO = """
pieces:
  - file: post.onnx
    start: ["yolo_head[0]:input", "yolo_head[1]:input"]
    end: detector_forward:output
    names: {dets: boxes}
  - file: network.onnx
    start: detector_forward:input
    end: ["yolo_head:input", "yolo_head[1]:input"]
"""


def sides(path: Path) -> tuple[list[str], list[str]]:
    graph = onnx.load(path).graph
    return [info.name for info in graph.input], [info.name for info in graph.output]


@pytest.mark.parametrize("name", FIXTURES)
def test_pieces_chain_and_equal_the_whole(name, tmp_path):
    dot = "/" if "slash" in name else "."
    done = divide(named(name).path, parse_division(TWO), tmp_path / "out", prove=True)
    assert done.proof is not None
    assert done.proof.holds
    assert {tensor.name for tensor in done.proof.tensors} == {"f0", "f1", "f0_neg", "f1_neg", "merged"}
    assert [piece.file.name for piece in done.pieces] == ["network.onnx", "post.onnx"]
    maps = [f"pred_maps{dot}0", f"pred_maps{dot}1", "f0_neg", "f1_neg"]
    assert sides(tmp_path / "out" / "network.onnx") == (["input"], maps)
    assert sides(tmp_path / "out" / "post.onnx") == (maps, ["boxes"])
    for file in ("network.onnx", "post.onnx", f"{name}_whole.onnx"):
        proto = load(tmp_path / "out" / file).proto
        assert not marks(GraphIndex(proto))
        assert {node.op_type for node in proto.graph.node}.isdisjoint({"Mark", "Identity"} - {"Identity"})
        onnx.checker.check_model(str(tmp_path / "out" / file), full_check=True)
    x = np.random.default_rng(0).standard_normal((1, 3, 16, 16), np.float32)
    middle = run_ort(tmp_path / "out" / "network.onnx", {"input": x})
    assert list(middle) == maps


def test_the_manifest_says_what_the_whole_calls_each_end(tmp_path):
    divide(named("mmdeploy_marks").path, parse_division(TWO), tmp_path / "out")
    manifest = yaml.safe_load((tmp_path / "out" / "manifest.yaml").read_text(encoding="utf-8"))
    network, post = manifest["pieces"]
    assert [(end["name"], end["tensor"], end["from"]) for end in network["inputs"]] == [("input", "input", "input")]
    assert [(end["name"], end["tensor"], end["from"]) for end in post["inputs"]][:2] == [
        ("pred_maps.0", "f0", "network.onnx"), ("pred_maps.1", "f1", "network.onnx")
    ]  # fmt: skip
    assert [(end["name"], end["tensor"]) for end in post["outputs"]] == [("boxes", "merged")]
    assert manifest["whole"] == "mmdeploy_marks_whole.onnx"


MMDEPLOY = """
partition_config:
  type: yolov3_partition
  apply_marks: true
  partition_cfg:
    - save_file: yolov3.onnx
      start: [detector_forward:input]
      end: [yolo_head:input]
      output_names: [pred_maps.0, pred_maps.1]
      dynamic_axes:
        input: {0: batch, 2: height, 3: width}
        pred_maps.0: {0: batch, 2: h0}
"""


def test_a_configuration_of_mmdeploy_is_read(tmp_path):
    (tmp_path / "mm.yaml").write_text(MMDEPLOY, encoding="utf-8")
    done = divide(named("mmdeploy_marks_slash").path, tmp_path / "mm.yaml", tmp_path / "out", prove=True)
    (piece,) = done.pieces
    assert [(end.name, end.type) for end in piece.inputs] == [("input", "float32[batch, 3, height, width]")]
    assert [(end.name, end.type) for end in piece.outputs] == [
        ("pred_maps.0", "float32[batch, 4, h0, ?]"), ("pred_maps.1", "float32[batch, 4, ?, ?]")
    ]  # fmt: skip
    assert done.proof is not None
    assert done.proof.holds
    assert any("runs at 'input' [2, 3, 32, 32]" in note for note in done.notes)
    x = np.ones((3, 3, 24, 40), np.float32)
    made = run_ort(piece.file, {"input": x})
    assert made["pred_maps.0"][1] == (3, 4, 12, 20)


def test_an_output_that_does_not_vary_is_told(tmp_path):
    """The head reshapes to [1, -1], whatever the batch is."""
    text = TWO.replace("names: {dets: boxes}", "dynamic_axes: {dets: {0: batch}}")
    done = divide(named("mmdeploy_marks").path, parse_division(text), tmp_path / "out")
    assert any("'dets' does not vary along axis 0" in note for note in done.notes)


def test_pieces_that_do_not_cover_the_model_take_the_rest_from_the_whole(tmp_path):
    text = """
    - {file: head0.onnx, start: "yolo_head:input", end: "yolo_head:output"}
    - {file: tail.onnx, start: [yolo_head:output, "yolo_head[1]:output"], end: detector_forward:output}
    """
    done = divide(named("mmdeploy_marks").path, parse_division(text), tmp_path / "out", prove=True)
    assert done.proof is not None
    assert done.proof.holds
    manifest = yaml.safe_load(done.manifest.read_text(encoding="utf-8"))
    assert [end["from"] for piece in manifest["pieces"] for end in piece["inputs"]] == [
        "whole", "whole", "head0.onnx", "whole"
    ]  # fmt: skip


def test_a_piece_that_is_not_the_model_fails_the_proof(tmp_path):
    done = divide(named("mmdeploy_marks").path, parse_division(TWO), tmp_path / "out")
    file = tmp_path / "out" / "post.onnx"
    proto = onnx.load(file)
    proto.graph.node[-1].op_type = "Sub"
    onnx.save(proto, file)
    whole = load(done.whole)
    feeds = {"input": np.ones((1, 3, 16, 16), np.float32)}
    proof = onnxbench.prove(done.manifest, whole, feeds)
    assert not proof.holds
    assert [tensor.name for tensor in proof.tensors if not tensor.exact] == ["merged"]


def test_calibration_records_the_inputs_of_each_piece(tmp_path):
    """What is recorded is what the pieces before it compute, for each set of the data; a second run replaces it."""
    data = tmp_path / "data"
    data.mkdir()
    draw = np.random.default_rng(1)
    images = [draw.standard_normal((1, 3, 16, 16), np.float32) for _ in range(3)]
    for number, image in enumerate(images):
        np.savez(data / f"{number}.npz", input=image)
    path = named("mmdeploy_marks").path
    for count in (3, 2):
        done = divide(
            path, parse_division(TWO), tmp_path / "out", calibration=FeedOptions([str(data)], iterations=count)
        )  # fmt: skip
        assert [folder.name for folder in done.calibration] == ["network", "post"]
        assert [len(list(folder.iterdir())) for folder in done.calibration] == [count, count]
    for number, image in enumerate(images[:2]):
        with np.load(done.calibration[0] / f"{number:05d}.npz") as recorded:
            assert np.array_equal(recorded["input"], image)
        made = run_ort(tmp_path / "out" / "network.onnx", {"input": image})
        with np.load(done.calibration[1] / f"{number:05d}.npz") as recorded:
            assert list(recorded) == list(made)
            assert all(recorded[name].tobytes() == made[name][2] for name in made)


WRONG = {
    "pieces: []": "no pieces",
    "whole: a.onnx": "needs pieces",
    "pieces: [{start: f:input}]": "needs a file",
    "pieces: [{file: a.onnx}]": "needs a start or an end",
    "pieces: [{file: a/b.onnx, start: f:input}]": "plain file name",
    "pieces: [{file: a, start: f:input}, {save_file: a.onnx, end: g:input}]": "written to 'a.onnx'",
    "pieces: [{file: a, start: f:input, dynamic_axes: {x: {one: b}}}]": "'one' is no axis",
    "pieces: [{file: a, begin: f:input}]": "'begin' is no key",
    "parts: []": "'parts' is no key",
}


@pytest.mark.parametrize("text", WRONG)
def test_mistakes_in_a_configuration(text):
    with pytest.raises(SpecError, match=WRONG[text]) as caught:
        parse_division(text, source="pieces.yaml")
    assert "pieces.yaml:1" in str(caught.value)


REFUSED = {
    "{file: a, start: yolo_heat:input}": (NotFoundError, "yolo_heat"),
    "{file: a, start: 'yolo_head[1]:input', end: detector_forward:output}": (CutError, "do not bound"),
    "{file: a, start: detector_forward:input, end: yolo_head:input, output_names: [a]}": (SpecError, "1 output names"),
    "{file: a, start: detector_forward:input, end: yolo_head:input, names: {x: y}}": (NotFoundError, "'x'"),
    "{file: a, start: detector_forward:input, end: yolo_head:input, names: {pred_maps.0: z, pred_maps.1: z}}":
        (UsageError, "two inputs or outputs"),
    "{file: a, start: detector_forward:input, dynamic_axes: {inputs: {0: b}}}": (SpecError, "'inputs'"),
    "{file: a, start: detector_forward:input, dynamic_axes: {input: {7: b}}}": (SpecError, "no axis 7"),
    "{file: mmdeploy_marks_whole, start: detector_forward:input}": (UsageError, "both be written"),
}  # fmt: skip


@pytest.mark.parametrize("text", REFUSED)
def test_pieces_that_cannot_be_are_refused_and_nothing_is_written(text, tmp_path):
    kind, words = REFUSED[text]
    with pytest.raises(kind, match=words):
        divide(named("mmdeploy_marks").path, parse_division(f"- {text}"), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_no_such_configuration(tmp_path):
    (tmp_path / "pieces.yaml").write_text(TWO)
    with pytest.raises(NotFoundError, match="no configuration") as caught:
        load_division(tmp_path / "pices.yaml")
    assert "pieces.yaml" in str(caught.value.hint)


def test_the_model_is_never_written_over(tmp_path):
    model = tmp_path / "net.onnx"
    model.write_bytes(named("mmdeploy_marks").path.read_bytes())
    before = model.read_bytes()
    with pytest.raises(BenchError, match=r"net\.onnx"):
        divide(model, parse_division("whole: net.onnx\npieces: [{file: a, start: detector_forward:input}]"), tmp_path)
    with pytest.raises(BenchError, match=r"net\.onnx"):
        divide(model, parse_division("- {file: net, start: detector_forward:input}"), tmp_path)
    assert model.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]


# ---- extract at marks


def test_extract_names_ends_as_their_marks_do():
    path = named("mmdeploy_marks").path
    piece = onnxbench.extract(path, ["detector_forward:input"], ["yolo_head[0]:input"])
    assert [end.name for end in piece.outputs] == ["pred_maps.0", "pred_maps.1"]
    assert piece.cut.outputs == ("f0", "f1")
    assert not marks(GraphIndex(piece.model.proto))
    renamed = onnxbench.extract(
        path, ["yolo_head:input"], ["yolo_head:output"],
        rename={"pred_maps.0": "a", "yolo_head:input:pred_maps.1": "b", "mark:yolo_head:output": "c"},
    )  # fmt: skip
    assert [end.name for end in (*renamed.inputs, *renamed.outputs)] == ["a", "b", "c"]


def test_an_inner_tensor_steps_aside():
    path = named("mmdeploy_marks_runnable").path
    piece = onnxbench.extract(path, ["input"], ["f1"], rename={"f1": "stem"})
    assert [info.name for info in piece.model.proto.graph.output] == ["stem"]
    assert "inner tensor 'stem' is called 'stem_inner' now" in piece.notes
    with pytest.raises(NotFoundError, match="'nothing'"):
        onnxbench.extract(path, ["input"], ["f1"], rename={"nothing": "x"})


def test_other_readers_of_a_marked_tensor_are_bounded_by_it():
    """``f0`` is read by the head through a Mark and by a Neg without one: both are behind the point."""
    piece = onnxbench.extract(named("mmdeploy_marks").path, ["yolo_head:input"], ["detector_forward:output"])
    assert [end.name for end in piece.inputs] == ["pred_maps.0", "pred_maps.1"]


def test_types_that_only_marks_know():
    """A custom operator makes the tensor; MMDeploy's Mark says what it is."""
    proto = load(named("mmdeploy_marks").path).proto
    changed = onnx.ModelProto()
    changed.CopyFrom(proto)
    for node in changed.graph.node:
        if node.op_type == "Relu":
            node.op_type, node.domain = "Other", "com.example"
    changed.opset_import.add(domain="com.example", version=1)
    piece = onnxbench.extract(from_proto(changed), ["detector_forward:input"], ["yolo_head:input"])
    assert [end.type for end in piece.outputs] == ["float32[1, 4, 8, 8]", "float32[1, 4, 4, 4]"]


def test_functions_are_inlined_and_marks_are_not():
    proto = add_functions(onnx.ModelProto.FromString(load(named("mmdeploy_marks").path).proto.SerializeToString()))
    piece = onnxbench.extract(from_proto(proto), ["detector_forward:input"], ["yolo_head:input"], inline=True)
    assert [end.name for end in piece.outputs] == ["pred_maps.0", "pred_maps.1"]
    assert unmark(from_proto(proto)).removed == 8


def test_split_at_marks_leaves_none(tmp_path):
    from onnxbench.splitting import split_file

    done, proof = split_file(named("mmdeploy_marks").path, tmp_path / "out", at=["yolo_head:input"], prove=True)
    assert proof is not None
    assert proof.holds
    assert {end.name for piece in done.pieces for end in piece.outputs} >= {"f0", "f1", "dets"}
    for piece in done.pieces:
        assert not marks(GraphIndex(load(piece.file).proto))
