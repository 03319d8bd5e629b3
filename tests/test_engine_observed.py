"""Shapes for an engine from real inputs: ``build-trt --from-feeds``."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.engine import Range, load_config, observe, read_engine
from onnxbench.errors import FeedsError, NotFoundError
from onnxbench.model import from_proto

HAS_TRT = importlib.util.find_spec("tensorrt_rtx") is not None


def resizing() -> onnx.ModelProto:
    """A Resize to a size that is an input, of a picture whose batch and size are open."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"], end=2),
        helper.make_node("Concat", ["s", "size"], ["sizes"], axis=0),
        helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear"),
        helper.make_node("Cast", ["flag"], ["unused"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["y", "unused"], ["z"]),
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g",
        [info("x", 1, ["N", 3, "H", "W"]), info("size", TensorProto.INT64, [2]), info("flag", TensorProto.INT64, [1])],
        [info("z", 1, ["N", 3, "h", "w"])],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def feed(folder, number, batch, side, size, flag=0):
    folder.mkdir(exist_ok=True)
    np.savez(
        folder / f"{number:03d}.npz", x=np.zeros((batch, 3, side, side), "f"), size=np.array(size, "i8"),
        flag=np.array([flag], "i8"),
    )  # fmt: skip


def test_the_range_of_what_was_seen_and_the_usual_shape(tmp_path):
    for number, (batch, side, size) in enumerate([(4, 8, (9, 7)), (1, 16, (9, 7)), (4, 8, (5, 30)), (2, 4, (1, 1))]):
        feed(tmp_path / "d", number, batch, side, size, flag=number)
    found = observe(from_proto(resizing()), [str(tmp_path / "d")])
    assert found.sets == 4
    assert found.profile == {  # the size is told by its values; what only is computed with (flag) is not
        "x": Range((1, 3, 4, 4), (4, 3, 8, 8), (4, 3, 16, 16)),
        "size": Range((1, 1), (9, 7), (9, 30)),
    }


def test_where_no_shape_came_twice_the_middle_one_is_the_usual(tmp_path):
    for number, side in enumerate((4, 64, 9)):
        feed(tmp_path / "d", number, 1, side, (2, 2))
    assert observe(from_proto(resizing()), [str(tmp_path / "d")]).profile["x"].opt == (1, 3, 9, 9)


def test_a_static_model_needs_no_profile(tmp_path):
    proto = resizing()
    proto.graph.input[0].type.CopyFrom(helper.make_tensor_type_proto(1, [1, 3, 8, 8]))
    feed(tmp_path / "d", 0, 1, 8, (2, 2))
    assert list(observe(from_proto(proto), [str(tmp_path / "d")]).profile) == ["size"]


def test_data_that_does_not_fit(tmp_path):
    model = from_proto(resizing())
    (tmp_path / "empty").mkdir()
    with pytest.raises(FeedsError):
        observe(model, [str(tmp_path / "empty")])
    with pytest.raises(NotFoundError):
        observe(model, [str(tmp_path / "nowhere.npz")])
    np.savez(tmp_path / "wrong.npz", x=np.zeros((1, 4, 8, 8), "f"), size=np.array([1, 1]), flag=np.array([1]))
    with pytest.raises(FeedsError, match="'x'"):
        observe(model, [str(tmp_path / "wrong.npz")])


def test_shapes_and_feeds_together_are_refused(tmp_path, capsys):
    onnx.save(resizing(), tmp_path / "m.onnx")
    feed(tmp_path / "d", 0, 1, 8, (2, 2))
    words = ["build-trt", str(tmp_path / "m.onnx"), str(tmp_path / "m.engine"), "--from-feeds", str(tmp_path / "d")]
    assert bounded(app, [*words, "--shapes", "x:1x3x8x8"]) == 2
    assert "--from-feeds too" in capsys.readouterr().err
    config = tmp_path / "c.yaml"
    config.write_text("profiles: [{x: 1x3x8x8}]\n")
    assert load_config(config, None)["profiles"]
    assert bounded(app, [*words, "--config", str(config)]) == 2


@pytest.mark.trt
@pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')")
def test_an_engine_for_the_shapes_of_the_feeds(tmp_path, capsys):
    onnx.save(resizing(), tmp_path / "m.onnx")
    for number, (batch, side) in enumerate([(1, 8), (2, 8), (2, 12)]):
        feed(tmp_path / "d", number, batch, side, (8, 8 + number))
    words = ["build-trt", str(tmp_path / "m.onnx"), str(tmp_path / "m.engine"), "--from-feeds", str(tmp_path / "d")]
    assert bounded(app, [*words, "--compute-capability", "8.9"]) == 0
    assert "of 3 sets of inputs: --min-shapes x:[1,3,8,8] size:[8,8]" in capsys.readouterr().err
    record = read_engine(tmp_path / "m.engine").record
    assert record is not None
    assert record.profiles[0]["x"] == {"min": [1, 3, 8, 8], "opt": [2, 3, 8, 8], "max": [2, 3, 12, 12]}
    assert record.profiles[0]["size"]["max"] == [8, 10]
