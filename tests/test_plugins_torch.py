"""Plugin bundles in PyTorch: their operators run, are traced with open sizes, and are exported by both exporters."""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import ROOT

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxbench[torch]")

from onnxbench import backends, load  # noqa: E402
from onnxbench.bundles import TorchCall, load_bundle, make_skeleton  # noqa: E402
from onnxbench.cli import app  # noqa: E402
from onnxbench.cli._boundary import bounded  # noqa: E402
from onnxbench.errors import ExecutionError, SpecError, UnsupportedError, UsageError  # noqa: E402
from onnxbench.pytorch.exporting import ExportOptions, export  # noqa: E402
from onnxbench.pytorch.operators import prove, torch_operator, translations  # noqa: E402

pytestmark = pytest.mark.torch
RESIZE, SAMPLER, CLIP = ROOT / "plugins/dynamic_resize", ROOT / "plugins/grid_sampler", ROOT / "examples/norm_clip"
BOTH = pytest.mark.parametrize("exporter", ["torch.export", "torchscript"])
needs_trt = pytest.mark.skipif(find_spec("tensorrt_rtx") is None, reason="tensorrt-rtx is not installed")


class Sampling(torch.nn.Module):
    """Calls PyTorch's own operator, which an export with the bundle writes as MMDeploy's."""

    def __init__(self, mode="bilinear", padding="zeros", align=False) -> None:
        super().__init__()
        self.how = {"mode": mode, "padding_mode": padding, "align_corners": align}

    def forward(self, x, grid):
        return torch.nn.functional.grid_sample(x, grid * 1.5, **self.how)


class Clipping(torch.nn.Module):
    def forward(self, x):
        return torch.ops.acme.NormClip(x.relu(), limit=0.5)


def run(*arguments: object) -> int:
    return bounded(app, [str(argument) for argument in arguments])


def options(bundle: Path, **more) -> ExportOptions:
    return ExportOptions(plugins=[str(bundle)], **more)


# ---------------------------------------------------------------- operators


def test_the_operator_is_the_reference_in_every_type():
    resize = torch_operator(RESIZE)
    x = torch.randn(1, 2, 5, 6)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        made = resize(x.to(dtype), torch.zeros(1, 1, 9, 7), align_corners=1)
        expected = torch.nn.functional.interpolate(x, size=(9, 7), mode="bicubic", align_corners=True)
        assert made.dtype == dtype
        torch.testing.assert_close(made.float(), expected, rtol=2e-2, atol=2e-2)
    assert torch_operator(load_bundle(RESIZE)) is torch.ops.Test.dynamic_resize


def test_open_sizes_stay_open():
    resize = torch_operator(RESIZE)

    class Resizing(torch.nn.Module):
        def forward(self, x, size):
            return resize(x, size)

    axis = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        Resizing(), (torch.randn(1, 2, 5, 6), torch.zeros(1, 1, 9, 7)), dynamic_shapes=({2: axis, 3: axis}, {2: axis})
    )
    (node,) = [each for each in program.graph.nodes if "dynamic_resize" in str(each.target)]
    size = program.graph_signature.user_inputs[1]
    wanted = next(each for each in program.graph.nodes if each.name == size).meta["val"].shape[2]
    shape = node.meta["val"].shape
    assert (shape[0], shape[1], shape[3]) == (1, 2, 7)
    assert isinstance(shape[2], torch.SymInt)
    assert shape[2].node.expr == wanted.node.expr


def test_sizes_that_are_calculated_stay_open(tmp_path):
    folder = tmp_path / "halves"
    make_skeleton(folder, "tests::Halves")
    file = folder / "plugin.py"
    text = file.read_text(encoding="utf-8").replace("import Bundle,", "import smaller, Bundle,")
    text = text.replace("return [inputs[0]]", "return [[smaller(inputs[0][0] // 2 + 1, 4)]]")
    text = text.replace("(x.astype(np.float32)", "(x[: min(x.shape[0] // 2 + 1, 4)].astype(np.float32)")
    file.write_text(text, encoding="utf-8")
    halves = torch_operator(folder)

    class Halving(torch.nn.Module):
        def forward(self, x):
            return halves(x)

    program = torch.export.export(Halving(), (torch.randn(5),), dynamic_shapes=({0: torch.export.Dim("n", max=64)},))
    (node,) = [each for each in program.graph.nodes if "Halves" in str(each.target)]
    assert str(node.meta["val"].shape[0].node.expr).startswith("Min(4,")
    assert program.module()(torch.randn(3)).shape == (2,)


def test_names_and_arguments_that_cannot_be(tmp_path):
    import dataclasses

    bundle = load_bundle(CLIP)
    with pytest.raises(SpecError, match="is no name in PyTorch"):
        torch_operator(dataclasses.replace(bundle, torch=TorchCall("no name")))
    wrong = dataclasses.replace(bundle, torch=TorchCall("acme::Other", stands_for=("aten::grid_sampler",)))
    with pytest.raises(SpecError, match="there is no argument 'x'"):
        translations([wrong])
    absent = dataclasses.replace(bundle, torch=TorchCall("acme::Another", stands_for=("aten::nothing_of_this_name",)))
    with pytest.raises(SpecError, match="PyTorch has no operator aten::nothing_of_this_name"):
        translations([absent])
    torch_operator(bundle)
    with pytest.raises(UsageError, match="was defined with"):
        torch_operator(dataclasses.replace(bundle, attributes={"limit": 1.0, "more": 2}))


def test_an_operator_that_pytorch_has_already_is_taken_as_it_is():
    import dataclasses

    @torch.library.custom_op("theirs::norm_clip", mutates_args=())
    def norm_clip(x: torch.Tensor, limit: float) -> torch.Tensor:
        return x * 0 + 7

    bundle = dataclasses.replace(load_bundle(CLIP), torch=TorchCall("theirs::norm_clip"))
    made = torch_operator(bundle)(torch.zeros(2, 2), 1.0)
    assert (made == 7).all()
    assert torch.ops.theirs.norm_clip.default in translations([bundle])


def test_attention_is_pytorchs():
    bundle = load_bundle(ROOT / "plugins" / "scaled_dot_product_attention")
    done = 0
    for inputs, attributes in bundle.cases():
        query, key, value, *mask = (torch.from_numpy(each).double() for each in inputs)
        expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, *mask)
        if not (all(each.isfinite().all() for each in (query, key, value)) and expected.numel()):
            continue
        if mask and mask[0].isneginf().all(dim=-1).any():
            continue  # a query that sees no key: 0 in PyTorch, whose weights then say nothing
        output, weights = bundle.reference(bundle.padded(inputs), attributes)
        np.testing.assert_allclose(output, expected.numpy(), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(weights.astype(np.float64) @ value.numpy(), expected.numpy(), rtol=1e-5, atol=1e-5)
        done += 1
    assert done >= 190


# ---------------------------------------------------------------- exports


@BOTH
@pytest.mark.parametrize(("mode", "padding", "align"), [("bilinear", "border", False), ("nearest", "reflection", True)])
def test_grid_sample_is_written_as_mmdeploys_operator(tmp_path, exporter, mode, padding, align):
    model = (Sampling(mode, padding, align), (torch.randn(1, 2, 7, 8), torch.rand(1, 5, 6, 2) * 2 - 1))
    done = export(
        model, tmp_path / "m.onnx",
        options=options(SAMPLER, exporter=exporter, dynamic=["x:2=h,3=w", "grid:1=out_h,2=out_w"], opset=17),
    )  # fmt: skip
    assert done.passed
    assert len(done.cases) == 2, "another size was compared too"
    (node,) = [each for each in onnx.load(tmp_path / "m.onnx").graph.node if each.domain == "mmdeploy"]
    said = {each.name: each.i for each in node.attribute}
    assert node.op_type == "grid_sampler"
    numbers = ({"bilinear": 0, "nearest": 1}[mode], {"border": 1, "reflection": 2}[padding], int(align))
    assert (said["interpolation_mode"], said["padding_mode"], said["align_corners"]) == numbers
    assert {each.domain: each.version for each in onnx.load(tmp_path / "m.onnx").opset_import}["mmdeploy"] == 1
    if not align:
        export(model, tmp_path / "plain.onnx", options=ExportOptions(exporter=exporter, opset=17, verify=False))
        assert "GridSample" in {each.op_type for each in onnx.load(tmp_path / "plain.onnx").graph.node}


@BOTH
def test_a_half_precision_export_runs(tmp_path, exporter):
    done = export((Clipping(), (torch.randn(3, 9),)), tmp_path / "m.onnx",
                  options=options(CLIP, exporter=exporter, dtype="float16", opset=17))  # fmt: skip
    assert done.passed
    (node,) = [each for each in onnx.load(tmp_path / "m.onnx").graph.node if each.domain == "acme"]
    assert node.attribute[0].f == 0.5
    assert load(tmp_path / "m.onnx").proto.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_without_the_plugin_the_exporter_says_what_it_lacks(tmp_path):
    torch_operator(CLIP)
    with pytest.raises(UnsupportedError, match=r"has no translation of acme.NormClip") as caught:
        export((Clipping(), (torch.randn(3, 9),)), tmp_path / "m.onnx")
    assert "--plugin" in (caught.value.hint or "")
    assert not list(tmp_path.iterdir())


def test_a_wrong_reference_is_found_by_the_comparison(tmp_path):
    folder = Path(shutil.copytree(CLIP, tmp_path / "norm_clip"))
    file = folder / "plugin.py"
    file.write_text(file.read_text(encoding="utf-8").replace("Mul (float, factor)", "Add (float, factor)"), "utf-8")
    done = export((Clipping(), (torch.randn(3, 9),)), tmp_path / "m.onnx", options=options(folder, opset=18))
    assert not done.passed
    assert not (tmp_path / "m.onnx").exists()


def test_the_proof_has_a_part_for_pytorch(tmp_path):
    bundle = load_bundle(SAMPLER)
    said = prove(bundle, list(bundle.cases()))
    assert "162 finite cases equal to aten::grid_sampler" in said
    assert "exported by torch.export and torchscript" in said
    folder = Path(shutil.copytree(SAMPLER, tmp_path / "grid_sampler"))
    file = folder / "plugin.py"
    text = file.read_text(encoding="utf-8")
    file.write_text(
        text.replace("BILINEAR, NEAREST, BICUBIC = 0, 1, 2", "NEAREST, BILINEAR, BICUBIC = 0, 1, 2"), "utf-8"
    )
    broken = load_bundle(folder)
    with pytest.raises(AssertionError, match="aten::grid_sampler is something else"):
        prove(broken, list(broken.cases()))


# ---------------------------------------------------------------- examples


@pytest.mark.trt
@needs_trt
def test_the_tutorials_chain(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "examples/srcnn/chain.py", tmp_path / "out"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "ONNX Runtime agrees with PyTorch at {'x': '1x3x48x40', 'size_tensor': '1x1x100x90'}" in done.stdout
    assert load_bundle(RESIZE).ptx().encode() in (tmp_path / "out" / "srcnn.engine").read_bytes()
    (node,) = [each for each in onnx.load(tmp_path / "out" / "srcnn.onnx").graph.node if each.domain]
    assert (node.domain, node.op_type) == ("Test", "DynamicTRTResize")


@pytest.mark.trt
@needs_trt
def test_an_operator_that_nobody_shipped_from_new_to_an_engine(tmp_path, capsys):
    """The commands of docs/plugins.md."""
    bundle, model, engine = tmp_path / "norm_clip", tmp_path / "clipped.onnx", tmp_path / "clipped.engine"
    assert run("plugins", "new", bundle, "--op", "acme::NormClip") == 0
    for name in ("plugin.py", "kernel.cu", "kernel.ptx"):
        shutil.copy(CLIP / name, bundle / name)
    source = f"{CLIP / 'model.py'}:make"
    assert run("export", source, model, "--dynamic", "x:0=batch", "--plugin", bundle) == 0
    assert run("run", model, "--plugin", bundle, "--shape", "x:[5,16]", "--save", tmp_path / "y.npz") == 0
    assert run("run", model, "--plugin", bundle, "--shape", "x:[5,16]", "--backend", "reference",
               "--expect", tmp_path / "y.npz") == 0  # fmt: skip
    shapes = ["--min-shapes", "x:1x16", "--opt-shapes", "x:8x16", "--max-shapes", "x:32x16"]
    build = ["build-trt", model, engine, "--compute-capability", "8.9", *shapes]
    assert run(*build) != 0
    assert "plugins new NormClip" in capsys.readouterr().err
    assert run(*build, "--plugin", bundle) == 0
    data = engine.read_bytes()
    assert b"NormClip" in data
    assert load_bundle(bundle).ptx().encode() in data
    module, _ = __import__("runpy").run_path(str(CLIP / "model.py"))["make"]()
    feeds = {"x": np.random.default_rng(0).standard_normal((7, 16)).astype(np.float32)}
    operators = (load_bundle(bundle).operator(),)
    session = backends.open_session(load(model), options=backends.Options(operators=operators))
    (actual,) = session.run(feeds).values()
    with torch.no_grad():
        np.testing.assert_allclose(actual, module(torch.from_numpy(feeds["x"])).numpy(), rtol=1e-4, atol=1e-5)


def test_a_reference_that_raises_is_one_error(tmp_path):
    folder = Path(shutil.copytree(CLIP, tmp_path / "norm_clip"))
    file = folder / "plugin.py"
    file.write_text(
        file.read_text(encoding="utf-8").replace("    (x,) = inputs\n", "    raise ValueError('on purpose')\n"), "utf-8"
    )
    with pytest.raises(ExecutionError, match="on purpose"):
        export((Clipping(), (torch.randn(3, 9),)), tmp_path / "m.onnx", options=options(folder))
