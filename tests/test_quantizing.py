"""int8 for TensorRT: calibrated models are in the form that it takes, quantized ones are brought into it or refused."""

from __future__ import annotations

import hashlib
import json
import logging
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import ROOT
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from onnxbench import load
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.engine import BuildSpec, build_engine, prepare
from onnxbench.errors import EngineError, FeedsError, GuardError, NotFoundError, RefusedResultError, UnsupportedError
from onnxbench.feeding import FeedOptions, feed_sets
from onnxbench.operations import SymmetricQuantization
from onnxbench.quantizing import quantize
from onnxbench.recipe import Step
from onnxbench.surgery import edit

HAS_TRT = find_spec("tensorrt_rtx") is not None
needs_trt = pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')")
SM89 = BuildSpec(compute_capabilities=("SM89",))
CLASSIFIER = ROOT / ".corpus" / "ppocr_v2_cls.onnx"


def small_model(path: Path, *, opset: int = 17, external: bool = False, in_inputs: bool = False) -> Path:
    """Convolutions, a Relu, a residual sum, a pooling, a Gemm, a MatMul: what is quantized, and what is between."""
    random = np.random.default_rng(0)

    def weight(name, *shape):
        return numpy_helper.from_array(random.standard_normal(shape).astype(np.float32) / 4, name)

    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2", "b2"], ["c2"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["c2", "r1"], ["a"]),
        helper.make_node("GlobalAveragePool", ["a"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["g"], name="gemm", transB=1),
        helper.make_node("MatMul", ["g", "w4"], ["y"], name="product"),
    ]
    weights = [weight("w1", 8, 3, 3, 3), weight("b1", 8), weight("w2", 8, 8, 3, 3), weight("b2", 8),
               weight("w3", 6, 8), weight("b3", 6), weight("w4", 6, 5)]  # fmt: skip
    inputs = [helper.make_tensor_value_info("x", 1, ["n", 3, 12, 12])]
    if in_inputs:
        inputs += [helper.make_tensor_value_info(each.name, 1, each.dims) for each in weights]
    graph = helper.make_graph(nodes, "g", inputs, [helper.make_tensor_value_info("y", 1, ["n", 5])], weights)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(proto, path, save_as_external_data=external, location=f"{path.name}.data", size_threshold=0)
    return path


def calibration(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for number in range(count):
        x = np.random.default_rng(number).standard_normal((2, 3, 12, 12)).astype(np.float32)
        np.savez(folder / f"{number}.npz", x=x)
    return folder


def run(path_or_proto, x) -> np.ndarray:
    model = path_or_proto.SerializeToString() if hasattr(path_or_proto, "SerializeToString") else str(path_or_proto)
    settings = onnxruntime.SessionOptions()
    settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.sets = iter([{"x": np.random.default_rng(at).standard_normal((2, 3, 12, 12)).astype(np.float32)}
                          for at in range(3)])  # fmt: skip

    def get_next(self):
        return next(self.sets, None)


def quantized_by_onnxruntime(folder: Path, **how) -> Path:
    target = folder / "ort.onnx"
    quantize_static(small_model(folder / "float.onnx"), target, Reader(), **how)
    return target


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if file.is_file()}


# ---------------------------------------------------------------- calibration


@pytest.mark.parametrize(("external", "in_inputs", "opset"), [(False, False, 17), (True, False, 17), (False, True, 11)])
def test_a_calibrated_model_is_symmetric_with_bias_in_float(tmp_path, external, in_inputs, opset):
    path = small_model(tmp_path / "m.onnx", external=external, in_inputs=in_inputs, opset=opset)
    data = calibration(tmp_path / "data")
    before, handlers = digests(tmp_path), logging.getLogger().handlers[:]
    done = quantize(load(path), FeedOptions([str(data)]))
    assert digests(tmp_path) == before
    assert logging.getLogger().handlers == handlers
    assert (done.quantized, done.left, done.sets) == (4, 0, 3)
    proto = done.model.proto
    onnx.checker.check_model(proto, full_check=True)
    values = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    linear = [node for node in proto.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for node in linear:
        zero = values[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    convs = [node for node in proto.graph.node if node.op_type == "Conv"]
    makers = {name: node for node in proto.graph.node for name in node.output}
    for conv in convs:
        assert values[makers[conv.input[1]].input[1]].shape == (8,), "a scale for each channel"
        assert conv.input[2] in ("b1", "b2"), "the bias is the float one"
    assert [node.op_type for node in proto.graph.node if "r1" in node.output] == ["Relu"]
    x = np.random.default_rng(9).standard_normal((2, 3, 12, 12)).astype(np.float32)
    expected, actual = run(path, x), run(proto, x)
    noise = 10 * np.log10((expected**2).sum() / ((expected - actual) ** 2).sum())
    assert 25 < noise < 80, "near the float model, and not the float model"
    assert any("signal to noise" in sentence for sentence in done.sentences())


def test_what_cannot_be_calibrated_is_refused(tmp_path):
    path = small_model(tmp_path / "m.onnx")
    data = calibration(tmp_path / "data")
    with pytest.raises(NotFoundError, match="no node 'nope'"):
        quantize(load(path), FeedOptions([str(data)]), exclude=["nope"])
    with pytest.raises(NotFoundError, match="no LSTM to quantize"):
        quantize(load(path), FeedOptions([str(data)]), operators=["LSTM"])
    np.savez(tmp_path / "wrong.npz", x=np.zeros((1, 4, 12, 12), np.float32))
    with pytest.raises(FeedsError):
        quantize(load(path), FeedOptions([str(tmp_path / "wrong.npz")]))
    again = quantize(load(path), FeedOptions([str(data)])).model
    with pytest.raises(UnsupportedError, match="is quantized already"):
        quantize(again, FeedOptions([str(data)]))


def test_nodes_can_stay_in_float(tmp_path):
    done = quantize(load(small_model(tmp_path / "m.onnx")), FeedOptions([str(calibration(tmp_path / "data"))]),
                    exclude=["gemm"])  # fmt: skip
    assert (done.quantized, done.left) == (3, 1)
    assert "1 left in float" in done.sentences()[0]


# ---------------------------------------------------------------- repair


@pytest.mark.parametrize(
    "how",
    [
        {"extra_options": {"ActivationSymmetric": True}},
        {"extra_options": {"ActivationSymmetric": True}, "per_channel": True},
        {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QUInt8, "per_channel": True,
         "extra_options": {"ActivationSymmetric": True, "WeightSymmetric": True}},
    ],
)  # fmt: skip
def test_a_model_quantized_for_onnxruntime_is_repaired_and_computes_the_same(tmp_path, how):
    path = quantized_by_onnxruntime(tmp_path, **how)
    before = digests(tmp_path)
    done = edit(load(path), [Step(SymmetricQuantization())])
    assert done.changes
    assert digests(tmp_path) == before
    proto = done.model.proto
    onnx.checker.check_model(proto, full_check=True)
    assert not {each.data_type for each in proto.graph.initializer} & {2, 6}, "no uint8 and no int32 is left"
    x = np.random.default_rng(9).standard_normal((2, 3, 12, 12)).astype(np.float32)
    np.testing.assert_allclose(run(proto, x), run(path, x), rtol=1e-5, atol=1e-6)
    with pytest.raises(GuardError, match="matches 0 targets"):
        edit(done.model, [Step(SymmetricQuantization())])


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({}, "QuantizeLinear '.*' has zero point -?[0-9]+ of int8"),
        ({"activation_type": QuantType.QUInt8}, "QuantizeLinear '.*' has zero point .* of uint8"),
    ],
)
def test_what_is_not_symmetric_is_refused_by_name(tmp_path, how, says):
    with pytest.raises(RefusedResultError, match=says) as caught:
        edit(load(quantized_by_onnxruntime(tmp_path, **how)), [Step(SymmetricQuantization())])
    assert "--calibration" in (caught.value.hint or "")


def test_all_that_is_not_symmetric_is_named(tmp_path):
    path = quantized_by_onnxruntime(tmp_path, activation_type=QuantType.QUInt8)
    proto = onnx.load(path)
    zeros = {each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
    wrong = [node.name for node in proto.graph.node if node.op_type == "QuantizeLinear" and zeros[node.input[2]] != 128]
    assert len(wrong) > 3
    with pytest.raises(RefusedResultError) as caught:
        edit(load(path), [Step(SymmetricQuantization())])
    said = [caught.value.message, *caught.value.details]
    assert len(said) == len(wrong)
    assert all(repr(name) in sentence for name, sentence in zip(wrong, said, strict=True))


@pytest.mark.parametrize(("spread", "kind"), [(60, "int8"), (255, "float32")])
@pytest.mark.parametrize("channels", [False, True])
def test_weights_with_other_zero_points_compute_the_same_bit_for_bit(tmp_path, spread, kind, channels):
    random = np.random.default_rng(0)
    weights = random.integers(0, spread, (3, 4, 2, 2), endpoint=True).astype(np.uint8)
    zeros = np.array([100, 90, 110] if channels else 100, np.uint8)
    scales = np.array([0.01, 0.02, 0.03] if channels else 0.01, np.float32)
    nodes = [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["f"], name="dq", axis=0),
             helper.make_node("Conv", ["x", "f"], ["y"])]  # fmt: skip
    stored = [numpy_helper.from_array(each, name) for each, name in ((weights, "w"), (scales, "s"), (zeros, "z"))]
    graph = helper.make_graph(nodes, "g", [helper.make_tensor_value_info("x", 1, [1, 4, 5, 5])],
                              [helper.make_tensor_value_info("y", 1, [1, 3, 4, 4])], stored)  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "m.onnx")
    proto = edit(load(tmp_path / "m.onnx"), [Step(SymmetricQuantization())]).model.proto
    onnx.checker.check_model(proto, full_check=True)
    assert {numpy_helper.to_array(each).dtype.name for each in proto.graph.initializer} == {"float32", kind}
    x = random.standard_normal((1, 4, 5, 5)).astype(np.float32)
    assert np.array_equal(run(proto, x), run(tmp_path / "m.onnx", x))


def test_uint8_that_others_read_is_refused(tmp_path):
    path = quantized_by_onnxruntime(
        tmp_path, activation_type=QuantType.QUInt8, extra_options={"ActivationSymmetric": True}
    )
    proto = onnx.load(path)
    first = next(node for node in proto.graph.node if node.op_type == "QuantizeLinear")
    proto.graph.output.add(name=first.output[0]).type.tensor_type.elem_type = 2
    onnx.save(proto, path)
    with pytest.raises(RefusedResultError, match="in uint8 is read by more than DequantizeLinear"):
        edit(load(path), [Step(SymmetricQuantization())])


# ---------------------------------------------------------------- real engines


@pytest.mark.trt
@needs_trt
class TestEngines:
    def test_the_command_calibrates_and_builds(self, tmp_path, capsys):
        path, data = small_model(tmp_path / "m.onnx"), calibration(tmp_path / "data")
        words = ["build-trt", path, tmp_path / "m.engine", "--compute-capability", "8.9", "--shapes", "x:2x3x12x12"]
        assert bounded(app, [str(each) for each in [*words, "--int8"]]) == 2
        assert "--calibration DATA" in capsys.readouterr().err
        assert bounded(app, [str(each) for each in [*words, "--calibration", data]]) == 2
        command = [*words, "--int8", "--calibration", data, "--save-model", tmp_path / "int8.onnx"]
        assert bounded(app, [str(each) for each in command]) == 0
        shown = capsys.readouterr()
        assert "4 nodes quantized with 3 sets of inputs" in shown.err
        assert "signal to noise" in shown.err
        assert (tmp_path / "m.engine.json").is_file()
        assert "QuantizeLinear" in {node.op_type for node in onnx.load(tmp_path / "int8.onnx").graph.node}

    def test_the_record_tells_of_the_calibration_that_a_configuration_asks_for(self, tmp_path, capsys):
        path, data = small_model(tmp_path / "m.onnx"), calibration(tmp_path / "data")
        (tmp_path / "build.yaml").write_text(
            "calibration: data\nprecisions: [int8]\ncompute_capability: 8.9\nprofiles: [{x: 2x3x12x12}]\n"
        )
        command = ["build-trt", str(path), str(tmp_path / "m.engine"), "--config", str(tmp_path / "build.yaml")]
        assert bounded(app, command) == 0
        assert "4 nodes quantized with 3 sets of inputs" in capsys.readouterr().err
        said = json.loads((tmp_path / "m.engine.json").read_text())["calibration"]
        assert said["data"] == [str(data)]
        assert (said["sets"], said["quantized"], said["left"]) == (3, 4, 0)
        assert said["worst"]["output"] == "y"
        assert said["worst"]["sqnr_db"] > 25
        assert bounded(app, command) == 0
        assert "nothing to do" in capsys.readouterr().out
        np.savez(data / "2.npz", x=np.full((2, 3, 12, 12), 9, np.float32))
        assert bounded(app, command) == 0
        assert "nothing to do" not in capsys.readouterr().out
        assert json.loads((tmp_path / "m.engine.json").read_text())["calibration"]["sha256"] != said["sha256"]

    def test_a_repaired_model_builds_where_the_given_one_does_not(self, tmp_path):
        path = quantized_by_onnxruntime(tmp_path, extra_options={"ActivationSymmetric": True})
        with pytest.raises(EngineError, match="refuses") as caught:
            build_engine(path, tmp_path / "m.engine", SM89)
        assert any("bias" in line for line in caught.value.details)
        done = prepare(load(path), spec_for=lambda model: SM89)
        assert any(word.startswith("applied symmetric_quantization") for word in done.notes)
        assert build_engine(done.model, tmp_path / "m.engine", SM89).fresh

    def test_what_cannot_be_repaired_is_refused_with_the_node(self, tmp_path):
        path = quantized_by_onnxruntime(tmp_path, quant_format=QuantFormat.QDQ, activation_type=QuantType.QUInt8)
        done = prepare(load(path), spec_for=lambda model: SM89)
        assert any("QuantizeLinear 'x_QuantizeLinear' has zero point" in word for word in done.notes)
        with pytest.raises(EngineError, match="refuses"):
            build_engine(done.model, tmp_path / "m.engine", SM89)

    @pytest.mark.corpus
    @pytest.mark.skipif(not CLASSIFIER.exists(), reason="the corpus is not fetched")
    def test_a_real_model(self, tmp_path):
        model = load(CLASSIFIER)
        data = tmp_path / "data"
        data.mkdir()
        for number, each in enumerate(feed_sets(model, FeedOptions(shapes=["x:[1,3,48,192]"], iterations=3))):
            np.savez(data / f"{number}.npz", **each.feeds)
        done = prepare(model, calibration=FeedOptions([str(data)]))
        words = done.notes
        assert words[0] == "int8: 54 nodes quantized with 3 sets of inputs"
        assert float(words[1].partition("noise ")[2].partition(" dB")[0]) > 15
        assert build_engine(done.model, tmp_path / "m.engine", SM89).fresh
