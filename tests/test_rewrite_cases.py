"""The cases that tutorials on deployment walk through, by the examples, and by real ONNX Runtime."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxbench[torch]")

from onnxbench import rewrites  # noqa: E402
from onnxbench.errors import ExecutionError  # noqa: E402
from onnxbench.pytorch.exporting import ExportOptions, export  # noqa: E402
from onnxbench.testing import assert_rewrite  # noqa: E402

pytestmark = pytest.mark.torch
FOLDER = Path(__file__).resolve().parents[1] / "examples" / "rewrites"
BOTH = pytest.mark.parametrize("exporter", ["torch.export", "torchscript"])
HAS_TRT = importlib.util.find_spec("tensorrt_rtx") is not None


def done_by(name, out, exporter, **options):
    """Exports an example with its own rewrites, as the command line would."""
    file = FOLDER / f"{name}.py"
    done = export(f"{file}:make", out, options=ExportOptions(exporter=exporter, rewrites=[file], **options))
    return done, sys.modules[name]


def nodes(path) -> list[tuple[str, str]]:
    return [(each.domain, each.op_type) for each in onnx.load(path).graph.node if each.op_type != "Constant"]


def run(path, **feeds):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, feeds)


@BOTH
def test_asinh(tmp_path, exporter):
    out = tmp_path / "asinh.onnx"
    done, _ = done_by("asinh", out, exporter)
    assert done.passed
    assert done.rewrites == {"aten::asinh": 1}
    assert nodes(out) == [("", "Asinh")]


@BOTH
def test_my_add_as_a_function_and_as_an_operator(tmp_path, exporter):
    out = tmp_path / "my_add.onnx"
    done, _ = done_by("my_add", out, exporter)
    assert done.passed
    assert done.rewrites == {"my_add.MyAdd": 1, "my_domain::my_add": 1}
    assert nodes(out) == [("", "Mul"), ("", "Add"), ("", "Mul"), ("", "Add")]


@BOTH
def test_deform_conv_is_what_the_backend_has(tmp_path, exporter):
    out = tmp_path / "deform.onnx"
    done, module = done_by("deform_conv", out, exporter, backend="onnxruntime", opset=19)
    assert done.passed
    assert nodes(out) == [("", "Conv"), ("", "DeformConv")]
    model, x = module.make()
    with torch.no_grad():
        np.testing.assert_allclose(run(out, x=x.numpy())[0], model(x).numpy(), rtol=1e-4, atol=1e-5)

    done, _ = done_by("deform_conv", out, exporter, backend="tensorrt", verify=False)
    assert nodes(out) == [("", "Conv"), ("my_vision", "DeformConv2d")]
    proto = onnx.load(out)
    assert {each.name: each.i for each in proto.graph.node[-1].attribute} == {"stride": 1, "padding": 1}
    assert {each.domain: each.version for each in proto.opset_import}["my_vision"] == 1
    if exporter == "torchscript":
        with pytest.raises(ExecutionError, match="DeformConv2d"):  # ONNX Runtime has no such operator
            done_by("deform_conv", None, exporter, backend="tensorrt")


def test_deform_conv_in_pytorch_is_the_convolution_where_nothing_is_shifted():
    done_by("deform_conv", None, "torch.export", backend="onnxruntime", opset=19)
    module = sys.modules["deform_conv"]
    x, weight, bias = torch.randn(2, 3, 6, 7), torch.randn(4, 3, 3, 3), torch.randn(4)
    got = module.deform_conv2d(x, weight, torch.zeros(2, 18, 6, 7), bias, 1, 1)
    assert torch.allclose(got, torch.nn.functional.conv2d(x, weight, bias, padding=1), atol=1e-4)


@BOTH
def test_srcnn_exported_at_three_gives_four_times_when_it_runs(tmp_path, exporter):
    out = tmp_path / "srcnn.onnx"
    done, module = done_by(
        "srcnn", out, exporter, input_names=["input", "factor"], dynamic=["x:2=height,3=width"]
    )  # fmt: skip
    assert done.passed
    assert not done.findings
    assert done.provenance.share == 1.0
    assert nodes(out)[0] == ("", "Resize")
    model, (x, _) = module.make()
    for factor, size in ((3, 16), (4, 16), (2, 11)):
        image = x[..., :size, :size].contiguous()
        scales = torch.tensor([1, 1, factor, factor], dtype=torch.float32)
        (got,) = run(out, input=image.numpy(), factor=scales.numpy())
        with torch.no_grad():
            expected = model(image, scales).numpy()
        assert got.shape == expected.shape == (1, 3, factor * size, factor * size)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_the_example_of_srcnn_runs(tmp_path, capsys):
    done_by("srcnn", None, "torchscript")
    sys.modules["srcnn"].main(tmp_path)
    said = capsys.readouterr().out
    assert "factor 3: (16, 16) -> (48, 48)" in said
    assert "factor 4: (16, 16) -> (64, 64)" in said


@BOTH
def test_functions_methods_and_modules_for_tensorrt(tmp_path, exporter):
    out = tmp_path / "repeat.onnx"
    done, _ = done_by("repeat", out, exporter, backend="tensorrt", rewrite_config={"least": 3})
    assert done.passed
    assert done.rewrites == {"torch.Tensor.repeat": 1, "torch.Tensor.topk": 1, "repeat.Scale": 1}
    assert "Tile" not in [kind for _, kind in nodes(out)]


# ---------------------------------------------------------------- values that freeze


def test_a_value_taken_with_item_is_named_with_its_line_and_constant():
    class Item(torch.nn.Module):
        def forward(self, x):
            factor = x.max().item()
            return x * factor

    done = export((Item(), (torch.full((2, 3), 7.5),)), None, options=ExportOptions(exporter="torchscript"))
    (finding,) = done.findings
    line = Item.forward.__code__.co_firstlineno + 1
    assert finding.kind == "frozen-value"
    assert finding.source == f"{__file__}:{line}"
    assert finding.code == "factor = x.max().item()"
    assert "7.5" in finding.message
    assert finding.constant is not None
    assert "7.5" in finding.constant


# ---------------------------------------------------------------- dynamic axes

SHAPES = {"as exported": (1, 3, 10, 10), "two images": (2, 3, 10, 10), "larger": (1, 3, 20, 20)}
MODELS = {"static": [], "dynamic 0": ["x:0=batch"], "dynamic 2 and 3": ["x:2=height,3=width"]}
WORKS = {
    ("static", "as exported"), ("dynamic 0", "as exported"), ("dynamic 0", "two images"),
    ("dynamic 2 and 3", "as exported"), ("dynamic 2 and 3", "larger"),
}  # fmt: skip


@pytest.fixture(scope="module")
def dynamic_models(tmp_path_factory):
    folder, made = tmp_path_factory.mktemp("axes"), {}
    module = torch.nn.Conv2d(3, 3, 3).eval()
    for exporter in ("torch.export", "torchscript"):
        for name, dynamic in MODELS.items():
            out = folder / f"{exporter}-{name}.onnx"
            given = [each.replace("x:", "input:") for each in dynamic]
            options = ExportOptions(exporter=exporter, dynamic=given, input_names=["x"])
            assert export((module, (torch.rand(1, 3, 10, 10),)), out, options=options).passed
            made[exporter, name] = out
    return module, made


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("model", MODELS)
@BOTH
def test_which_sizes_run_on_which_model(dynamic_models, exporter, model, shape):
    module, made = dynamic_models
    x = torch.rand(*SHAPES[shape])
    if (model, shape) not in WORKS:
        with pytest.raises(Exception, match="Got invalid dimensions for input: x"):
            run(made[exporter, model], x=x.numpy())
        return
    (got,) = run(made[exporter, model], x=x.numpy())
    with torch.no_grad():
        np.testing.assert_allclose(got, module(x).numpy(), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- testing a rewrite


class Repeated(torch.nn.Module):
    def forward(self, x):
        return torch.atan(x).repeat(2, 1)


def repeating(factor, backend=None):
    @rewrites.function("torch.Tensor.repeat", backend=backend)
    def repeat(ctx, tensor, *sizes):
        return torch.cat([tensor * factor] * sizes[0])

    return repeat


X = torch.linspace(-2, 2, 6).view(2, 3)


@pytest.mark.parametrize("backend", ["default", "onnxruntime", "reference"])
def test_a_right_rewrite_holds(backend):
    done = assert_rewrite(Repeated(), repeating(1.0), X, backend, exporter="torchscript", opset=18, config={"a": 1})
    assert done.rewrites == {"torch.Tensor.repeat": 1}


def test_a_right_rewrite_holds_at_other_sizes():
    other = torch.linspace(-1, 1, 15).view(5, 3)
    for exporter in ("torch.export", "torchscript"):
        assert_rewrite(Repeated(), repeating(1.0), X, exporter=exporter, dynamic=["x:0=batch"], run_inputs=other)


def test_a_wrong_rewrite_does_not():
    with pytest.raises(AssertionError, match="the rewritten module in PyTorch computes something else"):
        assert_rewrite(Repeated(), repeating(1.01), X, exporter="torchscript")
    with pytest.raises(AssertionError, match="the exported file in reference computes something else"):
        assert_rewrite(Repeated(), repeating(1.01), X, "reference", exporter="torchscript", in_pytorch=False)
    wrong = rewrites.symbolic("aten::atan", '<opset_import: ["": 18]> f (x) => (y) { y = Tan (x) }')
    with pytest.raises(AssertionError, match="the exported file in onnxruntime computes something else"):
        assert_rewrite(Repeated(), wrong, X, exporter="torchscript")


def test_a_rewrite_that_is_not_used_does_not():
    @rewrites.function("torch.topk")
    def topk(ctx, x, k):
        return ctx.origin(x, k)

    with pytest.raises(AssertionError, match=r"the function rewrite of torch\.topk was never used"):
        assert_rewrite(Repeated(), topk, X, exporter="torchscript")
    with pytest.raises(AssertionError, match="no rewrite is for onnxruntime"):
        assert_rewrite(Repeated(), repeating(1.0, "tensorrt"), X, exporter="torchscript")


@pytest.mark.trt
@pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')")
def test_an_engine_is_built_of_a_rewritten_module():
    halves = rewrites.symbolic(
        "aten::atan",
        """
        <opset_import: ["" : 18]>
        f (x) => (y) { half = Atan (x) other = Atan (x) sum = Add (half, other) two = Constant <value_float = 2.0> ()
                       y = Div (sum, two) }
        """,
        backend="tensorrt",
    )
    done = assert_rewrite(Repeated(), [repeating(1.0, "tensorrt"), halves], X, "tensorrt")
    assert set(done.rewrites) == {"torch.Tensor.repeat", "aten::atan"}
