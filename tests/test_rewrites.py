"""Rewrites of PyTorch code: what is switched on for an export, in one thread, is as it was afterwards."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import sys
import threading
import types
from pathlib import Path

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxbench[torch]")

import rewrite_samples as samples  # noqa: E402
from onnxscript import opset18 as op  # noqa: E402
from onnxscript import script  # noqa: E402

from onnxbench import RewriteContext, rewrites  # noqa: E402
from onnxbench.cli import app  # noqa: E402
from onnxbench.cli._boundary import bounded  # noqa: E402
from onnxbench.errors import (  # noqa: E402
    ExecutionError,
    NotFoundError,
    RefusedResultError,
    SpecError,
    UnsupportedError,
    UsageError,
)
from onnxbench.pytorch.exporting import ExportOptions, export  # noqa: E402
from onnxbench.pytorch.rewriters import load_rewrites, parse_config  # noqa: E402

pytestmark = pytest.mark.torch
r = rewrites
BOTH = pytest.mark.parametrize("exporter", ["torch.export", "torchscript"])
X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))


def fresh(function):
    """Returns a copy, which carries no other rewrites."""
    return types.FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)


def exported(module, args, exporter="torch.export", **options):
    return export((module, args), None, options=ExportOptions(exporter=exporter, **options))


def operators(path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


# ---------------------------------------------------------------- functions


def test_a_method_of_a_tensor_is_replaced_and_put_back():
    before = torch.Tensor.__dict__.get("repeat"), torch.Tensor.repeat

    @rewrites.function("torch.Tensor.repeat")
    def repeat(ctx, tensor, *sizes):
        return ctx.origin(tensor, *sizes) + tensor.repeat(*sizes)

    with RewriteContext(rewrites=[repeat]) as ctx:
        assert torch.equal(X.repeat(2, 1), 2 * torch.cat([X, X]))
        assert dict(ctx.fired) == {"torch.Tensor.repeat": 1}
    assert (torch.Tensor.__dict__.get("repeat"), torch.Tensor.repeat) == before
    assert torch.equal(X.repeat(2, 1), torch.cat([X, X]))


def test_indexing_is_replaced_without_end():
    @rewrites.function("torch.Tensor.__getitem__")
    def index(ctx, tensor, at):
        return ctx.origin(tensor, at)[...] + 1

    class Indexed(torch.nn.Module):
        def forward(self, x):
            return x[0]

    with RewriteContext(rewrites=[index]) as ctx:
        assert torch.equal(Indexed()(X), X.select(0, 0) + 1)
        program = torch.export.export(Indexed(), (X,))
        assert ctx.fired == {"torch.Tensor.__getitem__": 2}
    assert torch.equal(program.module()(X), X.select(0, 0) + 1)
    assert "__getitem__" not in torch.Tensor.__dict__
    is_sequence = ctypes.pythonapi.PySequence_Check(ctypes.py_object(X))
    assert not is_sequence  # as it would be for good once the class had a __getitem__ of its own


def test_a_function_is_found_wherever_it_is_bound():
    held = samples.topk

    @rewrites.function("torch.topk")
    def topk(ctx, x, k):
        values, at = ctx.origin(x, k)
        return values + 100, at

    @rewrites.function("torch.nn.functional.relu")
    def relu(ctx, x, inplace=False):
        return x * 0

    @rewrites.function("rewrite_samples.Tools.double")
    def double(ctx, x):
        return x * 0

    @rewrites.function("rewrite_samples.Tools.named")
    def named(ctx, cls, x, power=2):
        assert cls is samples.Tools
        return ctx.origin(cls, x, power=1)

    module = samples.Bindings()
    with torch.no_grad():
        plain = module(X)
    with RewriteContext(module, rewrites=[topk, relu, double, named]) as ctx:
        got = module(X)
        assert samples.topk is torch.topk is not held
        assert dict(ctx.fired) == {
            "torch.topk": 2, "torch.nn.functional.relu": 1, "rewrite_samples.Tools.double": 1,
            "rewrite_samples.Tools.named": 1,
        }  # fmt: skip
    values = torch.topk(X, 2).values
    assert torch.allclose(got, 2 * values + 200 + X[:, :2])
    assert samples.topk is torch.topk is held
    assert module.act is torch.nn.functional.relu
    assert isinstance(vars(samples.Tools)["double"], staticmethod)
    assert isinstance(vars(samples.Tools)["named"], classmethod)
    assert torch.equal(module(X), plain)


def test_a_name_bound_while_a_context_lasts_is_put_right_afterwards(tmp_path, monkeypatch):
    (tmp_path / "late_rewrite_import.py").write_text("from torch import topk\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)

    @rewrites.function("torch.topk")
    def topk(ctx, x, k):
        return None

    with RewriteContext(rewrites=[topk]):
        import late_rewrite_import
    assert late_rewrite_import.topk is torch.topk
    del sys.modules["late_rewrite_import"]


def test_a_block_within_a_block_is_rewritten_too():
    @rewrites.function("rewrite_samples.Block.forward")
    def forward(ctx, self, x):
        return ctx.origin(self, x) * 10

    with RewriteContext(rewrites=[forward]) as ctx:
        assert samples.Block(2)(torch.tensor(0.0)) == 1110
        assert ctx.fired == {"rewrite_samples.Block.forward": 3}
    assert samples.Block(2)(torch.tensor(0.0)) == 3


def test_what_a_rewrite_is_told():
    seen = []

    @rewrites.function("torch.Tensor.repeat", backend=["tensorrt", "onnxruntime"])
    def repeat(ctx, tensor, *sizes):
        seen.append(ctx)
        return tensor

    with RewriteContext(backend="tensorrt", config={"k": 3}, rewrites=[repeat], opset=19):
        X.repeat(2, 1)
    with RewriteContext(backend="default", rewrites=[repeat]) as ctx:
        X.repeat(2, 1)
        assert dict(ctx.fired) == {}
    assert [(each.backend, dict(each.config), each.opset) for each in seen] == [("tensorrt", {"k": 3}, 19)]
    with pytest.raises(TypeError):
        seen[0].config["k"] = 4


def test_a_rewrite_for_the_backend_beats_one_for_all_and_nesting_beats_both():
    def adding(number, backend=None):
        @rewrites.function("rewrite_samples.Tools.double", backend=backend)
        def double(ctx, x):
            return ctx.origin(x) + number

        return double

    for_all, for_trt, inner = adding(1), adding(10, "tensorrt"), adding(100)
    zero = torch.tensor(0.0)
    for given in ([for_all, for_trt], [for_trt, for_all]):
        with RewriteContext(backend="tensorrt", rewrites=given):
            assert samples.Tools.double(zero) == 10
            with RewriteContext(rewrites=[inner]):
                assert samples.Tools.double(zero) == 100  # ctx.origin is the original, and not the outer rewrite
            assert samples.Tools.double(zero) == 10
        with RewriteContext(backend="onnxruntime", rewrites=given):
            assert samples.Tools.double(zero) == 1
    assert samples.Tools.double(zero) == 0


def test_one_function_by_two_names_is_rewritten_once():
    @rewrites.function("torch.nn.functional.interpolate", "rewrite_samples.resize")
    def resize(ctx, *args, **kwargs):
        return ctx.origin(*args, **kwargs) + 1

    one, other = (
        rewrites.function(name)(fresh(ok)) for name in ("torch.nn.functional.interpolate", "rewrite_samples.resize")
    )

    image, module = torch.zeros(1, 1, 2, 2), samples.Sized()
    with RewriteContext(module, rewrites=[resize]):
        assert torch.equal(module(image), torch.ones(1, 1, 4, 4))
    with pytest.raises(UsageError, match="are one function"), RewriteContext(rewrites=[one, other]):
        pass


def test_contexts_may_end_in_another_order():
    @rewrites.function("torch.topk")
    def one(ctx, x, k):
        return 1

    @rewrites.function("torch.topk")
    def two(ctx, x, k):
        return 2

    before = torch.topk
    first, second = RewriteContext(rewrites=[one]), RewriteContext(rewrites=[two])
    first.__enter__()
    second.__enter__()
    assert torch.topk(X, 1) == 2
    first.__exit__(None, None, None)
    assert torch.topk(X, 1) == 2
    second.__exit__(None, None, None)
    assert torch.topk is samples.topk is before


def test_another_thread_computes_what_it_always_did():
    @rewrites.function("torch.Tensor.repeat")
    def repeat(ctx, tensor, *sizes):
        return tensor * 0

    @rewrites.module("rewrite_samples.Scale")
    def scale(ctx, module):
        return torch.nn.Identity()

    net = samples.Net().eval()
    plain = net(X)
    results = []
    entered, done = threading.Event(), threading.Event()

    def other():
        entered.wait(20)
        results.append(net(X))
        with RewriteContext(net, rewrites=[scale]):
            results.append(net(X))
            done.wait(20)
            results.append(net(X))
        results.append(net(X))

    thread = threading.Thread(target=other)
    thread.start()
    with RewriteContext(net, rewrites=[repeat, scale]):
        mine = net(X)
        entered.set()
        for _ in range(200):
            assert torch.equal(net(X), mine)
            if len(results) == 2:
                break
            threading.Event().wait(0.01)
        assert torch.equal(net(X), mine)
    done.set()
    thread.join(20)
    assert torch.equal(results[0], plain)
    assert torch.equal(results[1], results[2])
    assert not torch.equal(results[1], plain)
    assert not torch.equal(results[1], mine)
    assert torch.equal(results[3], plain)
    assert torch.equal(net(X), plain)
    assert type(net.layers[1]) is samples.Scale


@BOTH
def test_the_forward_of_the_model_itself(exporter):
    @rewrites.function("rewrite_samples.Scale.forward")
    def forward(ctx, self, x):
        return ctx.origin(self, x) + x * 0

    done = export(
        (samples.Scale(), (), {"x": X}), None, options=ExportOptions(exporter=exporter, rewrites=[forward])
    )  # fmt: skip
    assert done.passed
    assert done.rewrites == {"rewrite_samples.Scale.forward": 1}
    assert done.nodes >= 3


def test_pytorchs_strict_mode_which_no_function_rewrite_reaches_is_told():
    class Stubborn(torch.nn.Module):
        def forward(self, x):
            if torch.compiler.is_exporting() and not torch.compiler.is_dynamo_compiling():
                raise ValueError("only in strict mode")
            return x.repeat(2, 1)

    @rewrites.function("torch.Tensor.repeat")
    def repeat(ctx, tensor, *sizes):
        return torch.cat([tensor] * sizes[0])

    done = exported(Stubborn(), (X,), rewrites=[repeat])
    assert done.passed
    assert [each.kind for each in done.findings] == ["unused-rewrite"]


# ---------------------------------------------------------------- modules


class Sixfold(torch.nn.Module):
    def __init__(self, ctx, module):
        super().__init__()
        self.origin, self.by = module, ctx.config.get("by", 6)

    def forward(self, x):
        return self.origin(x) * self.by


def test_every_instance_is_replaced_at_any_depth_shared_ones_once():
    replaced = rewrites.module(samples.Scale)(Sixfold)
    net = samples.Net().eval()
    keys, plain = list(net.state_dict()), net(X)
    with RewriteContext(net, rewrites=[replaced]) as ctx:
        assert ctx.fired == {"rewrite_samples.Scale": 1}
        assert type(net.layers[1]) is Sixfold
        assert net.again is net.layers[1]
        assert type(net.layers[2][0]) is samples.SubScale
        assert net.again.origin.factor is net.layers[1].origin.factor
        assert not net.again.training
    assert list(net.state_dict()) == keys
    assert torch.equal(net(X), plain)

    @rewrites.module("rewrite_samples.Scale", subclasses=True)
    def gone(ctx, module):
        return torch.nn.Identity() if module.factor < 1 else module

    with RewriteContext(net, rewrites=[gone]) as ctx:
        assert ctx.fired == {"rewrite_samples.Scale": 1}
        assert type(net.layers[2][0]) is torch.nn.Identity
        assert type(net.again) is samples.Scale
    assert type(net.layers[2][0]) is samples.SubScale


def test_what_is_made_of_a_module_finds_its_submodules_replaced():
    class Shell(torch.nn.Module):
        def __init__(self, ctx, module):
            super().__init__()
            self.inner = module.inner

        def forward(self, x):
            return (self.inner(x) if self.inner is not None else x) * 2 + 1

    made = rewrites.module(samples.Block)(Shell)
    block = samples.Block(2)
    with RewriteContext(block, rewrites=[made]) as ctx:
        assert ctx.fired == {"rewrite_samples.Block": 3}
        assert ctx.module(torch.tensor(0.0)) == 7
        assert type(ctx.module.inner.inner) is Shell
    assert ctx.module is block
    assert block(torch.tensor(0.0)) == 3


def test_a_module_may_be_replaced_by_a_part_of_itself():
    @rewrites.module("rewrite_samples.Block")
    def inner(ctx, module):
        return module.inner if module.inner is not None else module

    block = samples.Block(2)
    with RewriteContext(block, rewrites=[inner]) as ctx:
        assert ctx.module(torch.tensor(0.0)) == 1
        results = []
        thread = threading.Thread(target=lambda: results.append(block(torch.tensor(0.0))))
        thread.start()
        thread.join(20)
        assert results == [3]
    assert block(torch.tensor(0.0)) == 3
    assert [type(each) for each in block.modules()] == [samples.Block] * 3
    assert "forward" not in vars(block.inner) | vars(block.inner.inner)


@BOTH
def test_a_replaced_root_is_exported_and_compared_with_the_original(tmp_path, exporter):
    class Summed(torch.nn.Module):
        def __init__(self, ctx, module):
            super().__init__()
            self.factor = module.factor

        def forward(self, x):
            return x * (self.factor / 2) + x * (self.factor / 2)

    made = rewrites.module(samples.Scale)(Summed)
    out = tmp_path / "scale.onnx"
    done = export((samples.Scale(), (X,)), out, options=ExportOptions(exporter=exporter, rewrites=[made]))
    assert done.passed
    assert done.rewrites == {"rewrite_samples.Scale": 1}
    assert "Add" in operators(out)
    assert done.provenance.share == 1.0


# ---------------------------------------------------------------- operators

MY_ADD = """
<domain: "mine", opset_import: ["" : 18]>
my_add <factor> (a, b) => (y) {
  f = Constant <value_float: float = @factor> ()
  m = Mul (a, f)
  y = Add (m, b)
}
"""


def traced(a, b, factor=2.0):
    return op.Add(op.Mul(a, factor), b)


@script()
def scripted(a, b, factor: float = 2.0):
    f = op.Constant(value_float=factor)
    return op.Add(op.Mul(a, f), b)


@pytest.mark.parametrize(
    ("exporter", "body", "how"),
    [
        *(("torchscript", body, how) for body in ("text", "traced", "scripted") for how in ("function", "operator")),
        ("torch.export", "text", "function"),
        ("torch.export", "traced", "operator"),
        ("torch.export", "scripted", "function"),
    ],
)
def test_my_add_becomes_mul_and_add(tmp_path, exporter, body, how):
    target = samples.Doubled if how == "function" else "onnxbench_test::my_add"
    if body == "text":
        made = rewrites.symbolic(target, MY_ADD)
    elif body == "traced":
        made = rewrites.symbolic(target)(lambda *args: traced(*args))
    else:
        made = load_rewrites(rewrites.symbolic(target)(scripted))[-1]
    out, before = tmp_path / "add.onnx", vars(samples.Doubled).get("symbolic")
    done = export(
        (samples.Adding(how), (X, X + 1)), out, options=ExportOptions(exporter=exporter, rewrites=[made])
    )  # fmt: skip
    assert done.passed
    assert list(done.rewrites.values()) == [1]
    assert [each for each in operators(out) if each != "Constant"] == ["Mul", "Add", "Mul"]
    assert done.provenance.share == 1.0
    assert not done.findings
    assert vars(samples.Doubled).get("symbolic") is before
    assert "apply" not in vars(samples.Doubled)


@BOTH
def test_an_opaque_function_with_two_results(tmp_path, exporter):
    text = """
    <domain: "mine", opset_import: ["" : 18]>
    f (a, b) => (y, z) { t = Add (a, a) y = Add (t, b) z = Neg (y) }
    """
    out = tmp_path / "opaque.onnx"
    made = rewrites.symbolic(
        "rewrite_samples.Opaque", text, fake=lambda a, b: (torch.empty_like(a), torch.empty_like(a))
    )
    module = samples.Adding("opaque")
    done = export((module, (X, X + 1)), out, options=ExportOptions(exporter=exporter, rewrites=[made]))
    assert done.passed
    assert [each for each in operators(out) if each != "Constant"] == ["Add", "Add", "Neg", "Sub"]


def test_an_opaque_function_without_a_fake_is_refused_with_what_helps():
    made = rewrites.symbolic(samples.Listed, '<opset_import: ["": 18]> f (a) => (y) { y = Neg (a) }')
    with pytest.raises(UsageError, match="have no shape without values") as caught:
        exported(samples.Adding("listed"), (X, X), rewrites=[made])
    assert "fake=" in caught.value.hint
    assert "apply" not in vars(samples.Listed)


def test_the_symbolic_for_the_highest_opset_that_the_file_has():
    low = rewrites.symbolic("aten::asinh", '<opset_import: ["": 18]> f (x) => (y) { y = Asinh (x) }')
    text = '<opset_import: ["": 18]> f (x) => (y) { m = Neg (x) a = Asinh (m) y = Neg (a) }'
    high = rewrites.symbolic("aten::asinh", text, opset=19)

    class Module(torch.nn.Module):
        def forward(self, x):
            return torch.asinh(x)

    for exporter in ("torch.export", "torchscript"):
        for opset, nodes in ((18, 1), (19, 3)):
            done = exported(Module(), (X,), exporter, rewrites=[low, high], opset=opset)
            assert (done.nodes, done.passed, done.findings) == (nodes, True, ())
    done = exported(Module(), (X,), rewrites=[high], opset=18)
    assert [each.kind for each in done.findings] == ["unused-rewrite"]
    assert "it is for opset 19 and later" in done.findings[0].message


class Known(torch.nn.Module):
    """Operators that both exporters know by themselves."""

    def forward(self, x):
        values, at = torch.topk(x, 2)
        larger = torch.ops.aten.upsample_nearest2d.vec(x[None, None], None, [2.0, 2.0])
        return torch.cat([values + 2.5, at.to(x.dtype)], 1), larger


@rewrites.symbolic("aten::cat")
def concatenate(tensors, dim=0):
    return op.Concat(*tensors, axis=dim)


TOPK = """
<opset_import: ["" : 18]>
topk <dim, largest, sorted> (self, k) => (values, at) {
  one = Constant <value_ints = [1]> ()
  count = Reshape (k, one)
  values, at = TopK <axis: int = @dim, largest: int = @largest, sorted: int = @sorted> (self, count)
}
"""
UPSAMPLE = """
<opset_import: ["" : 18]>
upsample <scale_factors> (input) => (y) {
  scales = Constant <value_floats: floats = @scale_factors> ()
  ones = Constant <value_floats = [1.0, 1.0]> ()
  all = Concat <axis = 0> (ones, scales)
  y = Resize <coordinate_transformation_mode = "asymmetric", mode = "nearest", nearest_mode = "floor"> (input, "", all)
}
"""


@pytest.mark.parametrize(("exporter", "half"), [("torch.export", False), ("torchscript", False), ("torchscript", True)])
def test_operators_that_the_exporter_knows_are_what_the_rewrite_says(exporter, half):
    made = [
        concatenate,
        rewrites.symbolic("aten::topk", TOPK),
        rewrites.symbolic("aten::add", '<opset_import: ["": 18]> f (a, b) => (c) { n = Neg (b) c = Sub (a, n) }'),
        rewrites.symbolic("aten::upsample_nearest2d.vec", UPSAMPLE),
    ]
    x = X.half() if half else X
    done = exported(Known(), (x,), exporter, rewrites=made)
    assert done.passed
    assert not done.findings
    assert set(done.rewrites) == {"aten::cat", "aten::topk", "aten::add", "aten::upsample_nearest2d.vec"}


def test_a_program_and_a_scripted_model():
    class Module(torch.nn.Module):
        def forward(self, x):
            return torch.asinh(x)

    made = rewrites.symbolic("aten::asinh", '<opset_import: ["": 18]> f (x) => (y) { y = Asinh (x) }')
    module = Module().eval()
    for source, exporter in (
        (torch.export.export(module, (X,)), "torch.export"),
        ((torch.jit.trace(module, (X,)), (X,)), "torchscript"),
    ):
        done = export(source, None, options=ExportOptions(exporter=exporter, rewrites=[made]))
        assert done.passed
        assert done.rewrites == {"aten::asinh": 1}


def test_torchscript_symbolics_of_others_come_back():
    from torch.onnx._internal.torchscript_exporter.registration import registry

    def theirs(g, a, b, factor):
        return g.op("Sub", a, b)

    torch.onnx.register_custom_op_symbolic("onnxbench_test::my_add", theirs, 9)
    try:
        with RewriteContext(rewrites=[rewrites.symbolic("onnxbench_test::my_add", MY_ADD)]):
            assert registry.get_function_group("onnxbench_test::my_add").get(18) is not theirs
        assert registry.get_function_group("onnxbench_test::my_add").get(18) is theirs
    finally:
        torch.onnx.unregister_custom_op_symbolic("onnxbench_test::my_add", 9)


# ---------------------------------------------------------------- everything comes back


def state() -> list[object]:
    return [
        torch.Tensor.__dict__.get("repeat"), torch.topk, samples.topk, vars(samples.Doubled).get("apply"),
        vars(samples.Doubled).get("symbolic"), vars(samples.Tools)["double"], samples.resize,
    ]  # fmt: skip


def all_kinds():
    @rewrites.function("torch.Tensor.repeat", "torch.topk", "torch.nn.functional.interpolate")
    def anything(ctx, *args, **kwargs):
        return ctx.origin(*args, **kwargs)

    return [anything, rewrites.module(samples.Scale)(Sixfold), rewrites.symbolic(samples.Doubled)(fresh(traced))]


def test_everything_comes_back_after_an_error_in_the_block():
    net, before = samples.Net(), state()

    def fail():
        assert type(net.again) is Sixfold
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"), RewriteContext(net, rewrites=all_kinds()):
        fail()
    assert state() == before
    assert type(net.again) is type(net.layers[1]) is samples.Scale


def test_everything_comes_back_after_an_error_half_way_in():
    net, before = samples.Net(), state()
    bad = rewrites.symbolic("onnxbench_test::nothing")(fresh(traced))
    with pytest.raises(NotFoundError, match="onnxbench_test::nothing"):
        RewriteContext(net, rewrites=[*all_kinds(), bad]).__enter__()
    assert state() == before
    assert type(net.again) is samples.Scale

    @rewrites.module("rewrite_samples.SubScale")
    def fails(ctx, module):
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        RewriteContext(net, rewrites=[*all_kinds(), fails]).__enter__()
    assert state() == before
    assert type(net.again) is type(net.layers[1]) is samples.Scale


@BOTH
def test_everything_comes_back_after_a_failed_export(exporter):
    @rewrites.function("torch.Tensor.repeat")
    def fails(ctx, tensor, *sizes):
        raise ValueError("the rewrite is wrong")

    net, before = samples.Net(), state()
    kinds = all_kinds()
    kinds[0] = fails
    with pytest.raises(ExecutionError, match="the rewrite is wrong") as caught:
        exported(net, (X,), exporter, rewrites=kinds)
    assert any("test_rewrites.py" in line for line in caught.value.details)
    assert state() == before
    assert type(net.again) is samples.Scale


# ---------------------------------------------------------------- what export says


@BOTH
def test_a_rewrite_that_was_never_used_is_told_and_strict_refuses(tmp_path, exporter):
    @rewrites.function("torch.topk", backend="tensorrt")
    def topk(ctx, x, k):
        return ctx.origin(x, k)

    made = [topk, rewrites.module(torch.nn.GRU)(fresh(traced)), rewrites.symbolic("aten::acosh")(traced_acosh)]
    done = exported(samples.Block(1), (X,), exporter, rewrites=made, backend="tensorrt")
    assert done.passed
    assert [each.kind for each in done.findings] == ["unused-rewrite"] * 3
    assert done.findings[0].hint == "Calls of torch.Tensor.topk are another target: rewrites.function takes several."
    assert done.findings[0].source.startswith(__file__)
    with pytest.raises(RefusedResultError, match="3 findings"):
        exported(samples.Block(1), (X,), exporter, rewrites=made, backend="tensorrt", strict=True)


def traced_acosh(x):
    return op.Acosh(x)


def test_a_wrong_rewrite_is_found_by_comparing_with_the_original(tmp_path):
    @rewrites.function("torch.Tensor.repeat")
    def repeat(ctx, tensor, *sizes):
        return ctx.origin(tensor, *sizes) * 1.01

    out = tmp_path / "net.onnx"
    done = export((samples.Net(), (X,)), out, options=ExportOptions(rewrites=[repeat]))
    assert not done.passed
    assert not out.exists()


@BOTH
def test_the_file_says_which_rewrites_made_it_and_maps_to_pytorch(tmp_path, exporter):
    @rewrites.function("torch.Tensor.repeat")
    def repeat(ctx, tensor, *sizes):
        return torch.cat([tensor] * sizes[0])

    out = tmp_path / "net.onnx"
    made = [repeat, rewrites.module(samples.SubScale)(Plain), rewrites.symbolic("aten::asinh")(by_logarithm)]
    options = ExportOptions(exporter=exporter, rewrites=made, dynamic=["x:0=batch"], backend="tensorrt")
    done = export((samples.Net(), (X,)), out, options=options)
    assert done.passed
    assert [case.name for case in done.cases] == ["example inputs", "batch=4"]
    assert done.provenance.share == 1.0
    said = {entry.key: entry.value for entry in onnx.load(out).metadata_props}
    assert json.loads(said["onnxbench.export"])["backend"] == "tensorrt"
    assert json.loads(said["onnxbench.export"])["rewrites"] == [
        "function torch.Tensor.repeat", "module rewrite_samples.SubScale", "symbolic aten::asinh"
    ]  # fmt: skip
    assert not {"Tile", "Expand", "Asinh"} & set(operators(out))
    traces = [
        entry.value for node in onnx.load(out).graph.node for entry in node.metadata_props if "stack" in entry.key
    ]
    assert any("rewrite_samples.py" in trace for trace in traces)
    assert any("test_rewrites.py" in trace for trace in traces)
    assert not any("onnxbench/pytorch" in trace for trace in traces)


class Plain(torch.nn.Module):
    def __init__(self, ctx, module):
        super().__init__()
        self.factor = module.factor

    def forward(self, x):
        return self.factor * x


def by_logarithm(x):
    one = op.Constant(value_float=1.0)
    return op.Log(op.Add(x, op.Sqrt(op.Add(op.Mul(x, x), one))))


def test_values_of_a_rewritten_export_are_those_of_the_fx_nodes(tmp_path):
    from onnxbench import backends
    from onnxbench.model import load
    from onnxbench.origins import origins_of

    out = tmp_path / "net.onnx"
    net = samples.Net().eval()
    made = [rewrites.module(samples.SubScale)(Plain), rewrites.symbolic("aten::asinh")(by_logarithm)]
    export((net, (X,)), out, options=ExportOptions(rewrites=made))
    exact = {each.value: each.fx for each in origins_of(load(out)) if each.kind == "value"}
    assert exact["asinh"] == "asinh"
    inner = net.layers(X)
    got = backends.run_with_outputs(load(out), {"x": X.numpy()}, ["asinh"], optimization="none")
    np.testing.assert_allclose(got["asinh"], torch.asinh(inner).detach().numpy(), rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------- what is refused


def wrong_two(ctx):
    return None


def no_arguments():
    return None


@pytest.mark.parametrize(
    ("make", "error", "says", "hint"),
    [
        (lambda: r.function("torch.Tensor.repeet")(fresh(ok)), NotFoundError, "Tensor has no 'repeet'", "'repeat'"),
        (lambda: r.function("torhc.topk")(fresh(ok)), NotFoundError, "there is no module 'torhc'", "'torch'"),
        (lambda: r.function("topk")(fresh(ok)), UsageError, "'topk' is not a dotted name", "package.function"),
        (lambda: r.function("torch.nn.Linear")(fresh(ok)), UsageError, "is a class", "torch.nn.Linear.forward"),
        (lambda: r.function("torch.Tensor.shape")(fresh(ok)), UsageError, "not a function or method", None),
        (lambda: r.function("torch.pi")(fresh(ok)), UsageError, "is float, and not", None),
        (lambda: r.function("rewrite_samples.Tools.named")(fresh(wrong_two)), UsageError, "'cls' is missing", "ctx"),
        (lambda: r.function("torch.topk")(fresh(no_arguments)), UsageError, "a function rewrite gets", None),
        (lambda: r.function("torch.topk", backend="tensort"), UsageError, "no backend 'tensort'", "'tensorrt'"),
        (lambda: r.function(torch.topk), UsageError, "takes the dotted name", None),
        (lambda: r.module("torch.topk")(fresh(traced)), UsageError, "is no class of modules", "rewrites.function"),
        (lambda: r.module("torch.nn.Linea")(fresh(traced)), NotFoundError, "has no 'Linea'", "'Linear'"),
        (lambda: r.module("torch.nn.Linear")(fresh(wrong_two)), UsageError, r"gets \(ctx, module\)", None),
        (lambda: r.symbolic("asinh")(fresh(traced)), UsageError, "is no operator", "aten::asinh"),
        (lambda: r.symbolic("aten::asinhh")(fresh(traced)), NotFoundError, "operator 'aten::asinhh'", "'asinh'"),
        (lambda: r.symbolic("aten::asinh.nothing")(fresh(traced)), NotFoundError, "asinh.nothing", "default"),
        (lambda: r.symbolic("aten::asinh")(fresh(traced)), UsageError, "takes 'b', and the", "arguments are"),
        (lambda: r.symbolic("torch.topk")(fresh(traced)), UsageError, "neither an operator nor", "rewrites."),
        (lambda: r.symbolic("aten::asinh", "f (x) => (y) { y = Asinh (z) }"), UsageError, "reads 'z'", None),
        (lambda: r.symbolic("aten::asinh", "f <k> (x) => (y) { y = Elu <alpha = @k> (x) }"), UsageError,
         "attribute 'k'", "arguments are"),
        (lambda: r.symbolic("aten::asinh", "f (x, y) => (z) { z = Add (x, y) }"), UsageError, "2 inputs", None),
        (lambda: "no_such_name", NotFoundError, "no rewrites 'no_such_name'", "file.py"),
        (lambda: "no_such_file.py", NotFoundError, "no file no_such_file.py", None),
        (lambda: len, UsageError, "len is no rewrite", "decorated"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told(make, error, says, hint):
    before = state()
    with pytest.raises(error, match=says) as caught, RewriteContext(samples.Net(), rewrites=[make()]):
        pass
    assert hint is None or hint in caught.value.hint
    assert state() == before


def ok(ctx, *args, **kwargs):
    return ctx.origin(*args, **kwargs)


def test_a_text_that_does_not_parse_is_told_with_its_line():
    with pytest.raises(SpecError) as caught:
        rewrites.symbolic(
            "aten::asinh",
            """
            f (x) => (y) {
              y = Asinh (x
            }
            """,
        )
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    at = next(number for number, text in enumerate(lines, 1) if text.endswith("y = Asinh (x"))
    assert re.search(rf"test_rewrites\.py:({at}|{at + 1}):", str(caught.value))


def test_two_rewrites_of_one_target_are_refused():
    def made():
        @rewrites.function("torch.topk")
        def topk(ctx, x, k):
            return ctx.origin(x, k)

        return topk

    with pytest.raises(UsageError, match=r"torch\.topk is rewritten twice for all backends") as caught:
        RewriteContext(rewrites=[made(), made()])
    assert len(caught.value.details) == 2
    one = made()
    RewriteContext(rewrites=[one, one])


def test_an_argument_that_a_symbolic_does_not_take(tmp_path):
    text = '<opset_import: ["": 18]> f (a, b) => (y) { t = Add (a, a) y = Add (t, b) }'
    made = rewrites.symbolic("onnxbench_test::my_add", text)

    class Module(torch.nn.Module):
        def forward(self, a, b):
            return torch.ops.onnxbench_test.my_add(a, b, 3.0)

    for exporter in ("torch.export", "torchscript"):
        with pytest.raises(UnsupportedError, match=r"takes no argument 'factor', and the model gives it as 3\.0"):
            exported(Module(), (X, X), exporter, rewrites=[made])


def test_a_context_is_entered_once():
    context = RewriteContext()
    with context:
        pass
    with pytest.raises(UsageError, match="entered once"):
        context.__enter__()


# ---------------------------------------------------------------- files and the command line

FILE = '''
import torch
from onnxbench import rewrites
rewrites.register_backend("mine")

@rewrites.function("torch.Tensor.repeat", backend="mine")
def _(ctx, tensor, *sizes):
    assert ctx.config == {"factor": 2, "word": "x"}, ctx.config
    return torch.cat([tensor] * sizes[0])

@rewrites.function("torch.topk", backend="tensorrt")
def _(ctx, x, k):
    return ctx.origin(x, k)

asinh = rewrites.symbolic("aten::asinh", """
<opset_import: ["": 18]>
f (x) => (y) { y = Asinh (x) }
""")
'''
MODEL = """
import rewrite_samples, torch
def make():
    return rewrite_samples.Net(), torch.ones(3, 4)
"""


def test_a_file_of_rewrites_from_the_command_line(tmp_path, capsys):
    (tmp_path / "rules.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "net_model.py").write_text(MODEL, encoding="utf-8")
    out = tmp_path / "net.onnx"
    words = ["export", f"{tmp_path}/net_model.py:make", out, "--rewrites", tmp_path / "rules.py", "--backend", "mine"]
    words += ["--rewrite-config", "factor=2", "word=x"]
    assert bounded(app, [str(each) for each in words]) == 0
    said = capsys.readouterr()
    assert "rewrite torch.Tensor.repeat: 1 time\n" in said.out
    assert "rewrite aten::asinh: 1 time\n" in said.out
    assert "unused" not in said.err
    assert bounded(app, [*map(str, words[:-6]), str(tmp_path / "rules.py"), "--backend", "mien"]) == 2
    assert "there is no backend 'mien'" in capsys.readouterr().err
    assert bounded(app, [*map(str, words), "--json", "--dry-run"]) in (0, 2)


def test_a_file_that_fails_is_told_with_its_line(tmp_path):
    file = tmp_path / "broken.py"
    file.write_text("from onnxbench import rewrites\n\nraise ValueError('not today')\n", encoding="utf-8")
    with pytest.raises(ExecutionError, match="not today") as caught:
        load_rewrites(file)
    assert any("broken.py:3" in line for line in caught.value.details)
    (tmp_path / "empty.py").write_text("x = 1\n", encoding="utf-8")
    with pytest.raises(UsageError, match="has no rewrites"):
        load_rewrites(tmp_path / "empty.py")
    file.write_text("from onnxbench import rewrites\nrewrites.symbolic('aten::asinh', '''\nf (x) => (y {\n''')\n")
    with pytest.raises(SpecError, match=r"broken\.py:3"):
        load_rewrites(file)


def test_config_words():
    assert parse_config(["a=1", "b=[1,2]", "c=true", "d=x=y", "e="]) == {
        "a": 1,
        "b": [1, 2],
        "c": True,
        "d": "x=y",
        "e": "",
    }
    for words in (["a"], ["=1"], ["a=1", "a=2"]):
        with pytest.raises(UsageError):
            parse_config(words)


def test_rewrites_are_imported_without_torch():
    code = "import sys; from onnxbench import rewrites; print(*{'torch', 'onnx', 'numpy'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not done.stdout.strip()
