"""Rewrites that come along: each is needed without, and right with it: in PyTorch, ONNX Runtime and TensorRT."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
from cases import ROOT

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxbench[torch]")

import shipped_samples as samples  # noqa: E402
from shipped_samples import Attending, Calling, Deforming  # noqa: E402
from torch.nn import functional  # noqa: E402

from onnxbench import RewriteContext, rewrites  # noqa: E402
from onnxbench.bundles import find_plugins  # noqa: E402
from onnxbench.engine import BuildSpec, diagnose  # noqa: E402
from onnxbench.errors import BenchError, NotFoundError, UsageError  # noqa: E402
from onnxbench.pytorch.exporting import ExportOptions, export  # noqa: E402
from onnxbench.pytorch.rewriters import load_rewrites  # noqa: E402

pytestmark = [pytest.mark.torch, pytest.mark.filterwarnings("ignore:`torch.jit.trace:DeprecationWarning")]
HAS_TRT = importlib.util.find_spec("tensorrt_rtx") is not None
needs_trt = [
    pytest.mark.trt,
    pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')"),
]
SPEC = BuildSpec(compute_capabilities=("SM89",))
DEFAULT, SCRIPT = "torch.export", "torchscript"
G = torch.Generator().manual_seed(0)


def drawn(*shape: int) -> Any:
    return torch.randn(*shape, generator=G)


@dataclass(frozen=True)
class Need:
    """A model that needs a rewrite.

    ``fails`` is what its export says without it, ``wrong`` that the file does not agree with PyTorch, and ``refused``
    what TensorRT says.
    """

    name: str
    rewrite: str
    module: Any
    args: tuple[Any, ...]
    dynamic: tuple[str, ...] = ()
    exporter: str = SCRIPT
    fails: str = ""
    wrong: bool = False
    refused: str = ""
    finding: str = ""

    @property
    def backend(self) -> str:
        return "tensorrt" if self.refused else "onnxruntime"

    def export(self, out: Path | None, *given: str) -> Any:
        options = ExportOptions(exporter=self.exporter, dynamic=self.dynamic, rewrites=given, backend=self.backend)
        return export((self.module, self.args), out, options=options)


X, IMAGE = drawn(3, 4), drawn(2, 4, 6, 8)
OPEN = ("x:2=h", "x:3=w")
INDEX = torch.randint(0, 4, (3, 4), generator=G)
Q, K, V = drawn(2, 4, 5, 8), drawn(2, 4, 6, 8), drawn(2, 4, 6, 8)
HIDING = torch.rand(2, 4, 5, 6, generator=G) > 0.4
HIDING[0, 1, 2, :] = False
AS_FLOAT = torch.zeros(2, 1, 5, 6)
AS_FLOAT[1, 0, 3, :], AS_FLOAT[0, 0, 1, :3] = float("-inf"), float("-inf")


def zeroed(x):
    x = x.clone()
    x[x > 0] = 0
    return x


def by_ratio(mode, corners=None):
    return Calling(lambda x: functional.interpolate(x, scale_factor=(15 / x.shape[2], 9.5 / x.shape[3]), mode=mode,
                                           align_corners=corners))  # fmt: skip


def smoothed(mode):
    return Calling(lambda x: functional.interpolate(x, size=(4, 3), mode=mode, antialias=True))


LONG = torch.randperm(8000, generator=G).reshape(2, 4000) / 7
NEEDS = [
    Need("ratio-bilinear", "resize", by_ratio("bilinear", False), (IMAGE,), OPEN, fails="invalid combination"),
    Need("ratio-bicubic", "resize", by_ratio("bicubic", True), (IMAGE,), OPEN, fails="invalid combination"),
    Need("ratio-nearest", "resize", by_ratio("nearest"), (IMAGE,), OPEN, DEFAULT, fails="cannot export"),
    Need("smoothed-script", "resize", smoothed("bicubic"), (IMAGE,), OPEN, fails="_upsample_bicubic2d_aa"),
    Need("smoothed", "resize", smoothed("bilinear"), (IMAGE,), OPEN, DEFAULT, refused="Antialiasing is not supported"),
    Need("squeeze", "squeeze", Calling(lambda x: x.mean(1, keepdim=True).squeeze() + 1), (drawn(3, 4, 5),), ("x:0=n",),
         refused="without an axes input"),
    Need("squeeze-default", "squeeze", Calling(lambda x: torch.squeeze(x) + 1), (drawn(3, 1, 5),), ("x:0=n",), DEFAULT,
         refused="without an axes input", finding="never the open ones [0]"),
    Need("topk", "topk", Calling(lambda x: torch.topk(x, 3900)), (LONG,), refused="K exceeds the maximum"),
    Need("sort", "topk", Calling(lambda x: x.sort(1, True)), (LONG,), refused="K exceeds the maximum"),
    Need("hidden-row", "attention", Attending(), (Q, K, V, HIDING), ("query:0=b", "key:0=b", "value:0=b", "mask:0=b"),
         DEFAULT, wrong=True),
    Need("hidden-row-float", "attention", Attending(), (Q, K, V, AS_FLOAT), wrong=True),
    Need("three-dimensions", "attention", Attending(is_causal=True), (Q[0], K[0], V[0]), exporter=DEFAULT,
         fails="only 4D query"),
    Need("grouped", "attention", Attending(enable_gqa=True), (Q, K[:, :2], V[:, :2]),
         ("query:0=b", "key:0=b", "value:0=b"), fails="enable_gqa"),
    Need("windows", "adaptive_pool", torch.nn.AdaptiveAvgPool2d((4, 3)), (IMAGE,), ("input:2=h", "input:3=w"), DEFAULT,
         wrong=True),
    Need("windows-script", "adaptive_pool", torch.nn.AdaptiveAvgPool1d(5), (drawn(2, 3, 8),),
         fails="adaptive_avg_pool1d"),
    Need("scatter-add", "scatter", Calling(lambda x, i: torch.zeros(3, 5).scatter_add(1, i, x)), (X, INDEX),
         refused="reduction type"),
    Need("scatter-amax", "scatter", Calling(lambda x, i: (x * 0).scatter_reduce(1, i, x, "amax")),
         (X, INDEX), exporter=DEFAULT, refused="reduction type"),
    Need("argmax", "argmax", Calling(lambda x: x.argmax()), (X,), refused="at least 2 dimensions"),
    Need("masked-set", "masks", Calling(zeroed), (X,), ("x:0=n",), DEFAULT, refused="NonZero"),
    Need("masked-scatter", "masks", Calling(lambda x, y: x.masked_scatter(x > 0, y)), (X, X + 10), refused="NonZero"),
    Need("dilated-pool", "max_pool", torch.nn.MaxPool2d(3, 2, 1, dilation=2), (IMAGE,), ("input:2=h", "input:3=w"),
         refused="dilations other than 1"),
    Need("pool-indices", "max_pool", Calling(lambda x: functional.max_pool2d(x, 2, return_indices=True)), (IMAGE,),
         refused="1 outputs"),
    Need("kthvalue", "order", Calling(lambda x: x.kthvalue(2, 1)), (X,), ("x:0=n",), fails="kthvalue"),
    Need("median", "order", Calling(lambda x: torch.median(x, 1)), (X,), ("x:0=n",), fails="median"),
    Need("cdist", "cdist", Calling(lambda x, y: torch.cdist(x, y)), (X, drawn(5, 4)), ("x:0=n", "y:0=m"), DEFAULT,
         fails="_cdist_forward"),
]  # fmt: skip


@pytest.mark.parametrize(
    "need", [pytest.param(each, id=each.name, marks=needs_trt if each.refused else ()) for each in NEEDS]
)
def test_it_is_needed_and_mends(need, tmp_path):
    out = tmp_path / "m.onnx"
    if need.fails:
        with pytest.raises(BenchError) as caught:
            need.export(None)
        assert need.fails in str(caught.value)
    elif need.wrong:
        assert not need.export(None).passed
    else:
        assert need.export(out).passed
        found = diagnose(out, SPEC)
        assert not found.ok
        assert need.refused in " ".join(each.message for each in found.problems)
    done = need.export(out, f"shipped:{need.rewrite}")
    assert done.passed
    assert done.rewrites
    assert len(done.cases) == (2 if need.dynamic else 1)
    assert all(case.drift is not None for case in done.cases), "each compares with the original in PyTorch"
    assert [each.kind for each in done.findings] == (["rewrite"] if need.finding else [])
    assert need.finding in " ".join(each.message for each in done.findings)
    if need.refused:
        found = diagnose(out, SPEC)
        assert found.ok, [each.message for each in found.problems]


# ---------------------------------------------------------------- the same values in PyTorch


def require_same(module, args, name, backend="tensorrt", others=(), *, traced=False):
    """Compares a module with itself rewritten; traced as TorchScript does it, also on inputs of other sizes."""
    expected = [module(*each) for each in (args, *others)]
    with RewriteContext(module, backend=backend, rewrites=[name]) as ctx:
        run = torch.jit.trace(module, args, check_trace=False) if traced else module
        actual = [run(*each) for each in (args, *others)] if not traced else None
        assert sum(ctx.fired.values())
    actual = [run(*each) for each in (args, *others)] if traced else actual
    torch.testing.assert_close(actual, expected, equal_nan=True)


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(3, 4), (5, 17), (6, 8), (1, 2)])
@pytest.mark.parametrize("corners", [False, True])
def test_smoothed_sizes(mode, size, corners):
    module = Calling(lambda x: functional.interpolate(x, size=size, mode=mode, align_corners=corners, antialias=True))
    require_same(module, (IMAGE,), "resize")
    require_same(module, (IMAGE,), "resize", others=[(drawn(1, 4, 11, 13),)], traced=True)


@pytest.mark.parametrize("factor", [2.0, 0.4, 1.7, 1.05, 2.1])
@pytest.mark.parametrize(
    ("mode", "corners"),
    [("nearest", None), ("nearest-exact", None), ("bilinear", False), ("bilinear", True), ("bicubic", False),
     ("bicubic", True)],
)  # fmt: skip
@pytest.mark.parametrize("recompute", [None, True])
def test_computed_scales(mode, corners, factor, recompute):
    from onnxbench.pytorch.shipped.resize import interpolate

    (made,) = load_rewrites(interpolate)
    info = type("Info", (), {"origin": functional.interpolate, "backend": "onnxruntime"})
    for image in (IMAGE, drawn(1, 2, 7, 9)):
        words = {"mode": mode, "align_corners": corners, "recompute_scale_factor": recompute}
        actual = made.apply(info, image, scale_factor=torch.tensor(factor), **words)
        torch.testing.assert_close(actual, functional.interpolate(image, scale_factor=factor, **words))


@pytest.mark.parametrize("wanted", [(4, 3), (5, 1), 7, (None, 3)])
def test_windows_of_every_size(wanted):
    module = torch.nn.AdaptiveAvgPool2d(wanted)
    others = [(drawn(1, 4, h, w),) for h, w in ((7, 9), (3, 2), (12, 30))]
    require_same(module, (IMAGE,), "adaptive_pool", others=others, traced=True)


@pytest.mark.parametrize("kernel", [{"kernel_size": 3, "stride": 2, "padding": 1, "dilation": 2},
                                    {"kernel_size": (2, 3), "dilation": (2, 1), "stride": 1},
                                    {"kernel_size": 2, "dilation": 3, "padding": (1, 0)}])  # fmt: skip
@pytest.mark.parametrize("indices", [False, True])
def test_dilated_windows(kernel, indices):
    module = Calling(lambda x: functional.max_pool2d(x, return_indices=indices, **kernel))
    require_same(module, (IMAGE,), "max_pool", others=[(drawn(1, 3, 9, 11),)])
    require_same(module, (IMAGE,), "max_pool", others=[(drawn(1, 3, 9, 11),)], traced=True)


@pytest.mark.parametrize("largest", [True, False])
@pytest.mark.parametrize("kind", [torch.float32, torch.int64])
def test_rounds_of_topk(largest, kind):
    x = torch.randperm(20000, generator=G).reshape(2, 10000).to(kind)
    require_same(Calling(lambda x: x.topk(8000, 1, largest)), (x,), "topk")
    require_same(Calling(lambda x: torch.topk(x.T, 8000, dim=0, largest=largest)), (x,), "topk")
    require_same(Calling(lambda x: x.sort(dim=1, descending=largest)), (x,), "topk")
    require_same(Calling(lambda x: torch.argsort(x, 1, largest)), (x,), "topk")


@pytest.mark.parametrize("mask", [HIDING, HIDING[:, :1], HIDING[0, 0], AS_FLOAT, None])
@pytest.mark.parametrize("words", [{}, {"scale": 0.3}, {"enable_gqa": True}])
def test_masks(mask, words):
    keys = (K[:, :2], V[:, :2]) if "enable_gqa" in words else (K, V)
    given = (Q, *keys) if mask is None else (Q, *keys, mask)
    with RewriteContext(rewrites=["attention"], opset=23, backend="tensorrt") as always:
        actual = Attending(**words)(*given)
        assert sum(always.fired.values())
    torch.testing.assert_close(actual, Attending(**words)(*given))
    if mask is None:
        require_same(Attending(is_causal=True, **words), given, "attention")


@pytest.mark.parametrize("how", ["sum", "amax", "amin"])
@pytest.mark.parametrize("include", [True, False])
@pytest.mark.parametrize("dim", [0, 1, -1])
def test_scattered_values(how, include, dim):
    index = torch.randint(0, 3, (3, 4), generator=G)
    module = Calling(lambda x, i: (x + 1).scatter_reduce(dim, i, x, how, include_self=include))
    require_same(module, (X, index), "scatter")
    require_same(Calling(lambda x, i: (x * 2).clone().scatter_add_(dim, i, x)), (X, index), "scatter")
    numbers = (X * 10).long()
    require_same(module, (numbers, index), "scatter")


def test_what_scatter_does_not_rewrite_is_refused():
    module = Calling(lambda x, i: x.scatter_reduce(1, i, x, "prod"))
    with (
        RewriteContext(rewrites=["scatter"], backend="tensorrt"),
        pytest.raises(BenchError, match="cannot be rewritten"),
    ):
        module(X, INDEX)
    wider = Calling(lambda x, i: torch.zeros(5, 4).scatter_add(1, i, x))
    with (
        RewriteContext(rewrites=["scatter"], backend="tensorrt"),
        pytest.raises(BenchError, match="cannot be rewritten"),
    ):
        wider(X, INDEX)


def test_values_that_masks_set():
    def rows(x):
        x = x.clone()
        x[x[:, 0] > 0] = torch.tensor(2.0)
        x[0] = 1
        x[[1, 2], 1] = 5
        return x

    require_same(Calling(zeroed), (X,), "masks")
    require_same(Calling(rows), (X,), "masks")
    require_same(Calling(lambda x, y: x.masked_scatter(x > 0, y)), (IMAGE, drawn(400)), "masks")
    require_same(Calling(lambda x, y: x.masked_scatter(x[:, :1] > 9, y)), (IMAGE, drawn(400)), "masks")


def test_order_and_extremes():
    for module in (
        Calling(lambda x: x.kthvalue(3, 0, keepdim=True)), Calling(lambda x: torch.median(x)),
        Calling(lambda x: x.median(1)), Calling(lambda x: x.median(dim=0, keepdim=True)),
    ):  # fmt: skip
        require_same(module, (drawn(5, 4),), "order")
    for module in (
        Calling(lambda x: x.argmin()),
        Calling(lambda x: x[0].argmax(0)),
        Calling(lambda x: torch.argmax(x, None, True)),
    ):
        require_same(module, (X,), "argmax")


def test_squeezed_dimensions():
    require_same(Calling(lambda x: x[:, :, None].squeeze()), (X,), "squeeze")
    require_same(Calling(lambda x: torch.squeeze(x[None, :, :1], 0)), (X,), "squeeze")


# ---------------------------------------------------------------- deformable convolution

OFFSETS, MASK = drawn(2, 18, 6, 7) * 0.7, torch.rand(2, 9, 6, 7, generator=G)
DEFORMED = drawn(2, 4, 6, 7), OFFSETS, MASK


@pytest.fixture(scope="module", autouse=True)
def torchvision():
    library = samples.as_torchvision()
    yield
    if library is not None:
        library._destroy()


def deformed(module, backend, exporter, out=None, args=DEFORMED, **words):
    options = ExportOptions(
        exporter=exporter, rewrites=["shipped:deform_conv"], backend=backend, verify=backend != "tensorrt", **words
    )
    return export((module, args), out, options=options)


@pytest.mark.parametrize(
    ("package", "exporter", "words"),
    [("torchvision", SCRIPT, {"groups": 2}), ("torchvision", SCRIPT, {"use_mask": False}), ("mmcv", DEFAULT, {}),
     ("mmcv", SCRIPT, {"offset_groups": 2})],
)  # fmt: skip
def test_deform_conv_in_onnx_runtime(package, exporter, words, monkeypatch, tmp_path):
    samples.as_mmcv(monkeypatch)
    module = Deforming(package, **words)
    args = DEFORMED
    if "offset_groups" in words:
        args = DEFORMED[0], torch.cat([OFFSETS, -OFFSETS], 1), torch.cat([MASK, MASK * 2], 1)
    with pytest.raises(BenchError):
        export((module, args), None, options=ExportOptions(exporter=exporter))
    done = deformed(module, "onnxruntime", exporter, tmp_path / "m.onnx", args)
    assert done.passed
    assert list(done.rewrites.values()) == [1]
    assert "DeformConv" in [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]


@pytest.mark.trt
@pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')")
@pytest.mark.parametrize(
    ("package", "exporter", "words"),
    [("torchvision", SCRIPT, {}), ("torchvision", DEFAULT, {"use_mask": False}), ("mmcv", SCRIPT, {"groups": 2})],
)
def test_deform_conv_in_tensorrt(package, exporter, words, monkeypatch, tmp_path):
    samples.as_mmcv(monkeypatch)
    module, out = Deforming(package, **words), tmp_path / "m.onnx"
    if exporter == DEFAULT:
        assert deformed(module, "onnxruntime", DEFAULT, out).passed
        assert "DeformConv" in diagnose(out, SPEC).problems[0].op, "TensorRT has none, so it needs the plugin's"
    done = deformed(module, "tensorrt", exporter, out)
    told = [each.message for each in done.findings if each.kind == "rewrite"]
    assert len(told) == (1 if "groups" in words else 0)
    (node,) = [each for each in onnx.load(out).graph.node if each.domain == "mmdeploy"]
    said = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    assert node.op_type == "MMCVModulatedDeformConv2d"
    assert said == {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": words.get("groups", 1),
                    "deform_groups": 1}  # fmt: skip
    assert len(node.input) == 5
    found = diagnose(out, SPEC, plugins=find_plugins([str(Path(__file__).with_name("deform_plugin.py"))]))
    assert found.ok, [each.message for each in found.problems]


# ---------------------------------------------------------------- how they are asked for


def test_all_of_them_are_there_in_case_they_are_needed():
    done = export((Calling(lambda x: x + 1), (X,)), None, options=ExportOptions(
        exporter=SCRIPT, rewrites=["shipped"], backend="tensorrt"))  # fmt: skip
    assert done.passed
    assert not done.findings
    assert not done.rewrites


def test_one_is_asked_for_by_its_name():
    for name in ("adaptive_pool", "shipped:adaptive-pool", "shipped:adaptive_pool"):
        done = export((Calling(lambda x: x + 1), (X,)), None, options=ExportOptions(exporter=SCRIPT, rewrites=[name]))
        assert [each.message for each in done.findings] == ["no rewrite of shipped:adaptive_pool was ever used"]
    with pytest.raises(NotFoundError, match="shipped:atention") as caught:
        RewriteContext(rewrites=["shipped:atention"])
    assert "attention" in caught.value.hint
    with pytest.raises(UsageError, match="for tensorrt, and this is an export for default"):
        RewriteContext(rewrites=["shipped:squeeze"])


def test_ones_own_rewrite_beats_one_that_comes_along():
    @rewrites.function("torch.topk")
    def mine(ctx, x, k):
        return "mine"

    for given in ([mine, "topk"], ["shipped", mine]):
        with RewriteContext(rewrites=given, backend="tensorrt"):
            assert torch.topk(X, 2) == "mine"


def test_packages_that_nobody_has_imported_are_left_alone():
    with RewriteContext(rewrites=["deform_conv"], backend="tensorrt") as ctx:
        assert not any(name.startswith("mmcv") and count for name, count in ctx.fired.items())


def test_each_of_them_is_in_the_docs():
    page = (ROOT / "docs" / "shipped-rewrites.md").read_text(encoding="utf-8")
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `(\w+)` \|.*$", page, re.MULTILINE)}
    found = rewrites.shipped()
    assert sorted(rows) == sorted(found)
    for name, made in found.items():
        for each in made:
            assert f"`{each.name}`" in rows[name], f"{each.name} of {name}"
            for backend in each.backends or ("all",):
                assert backend in rows[name], f"{backend} of {name}"
