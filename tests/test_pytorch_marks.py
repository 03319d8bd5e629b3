"""Marks in PyTorch code: what is exported, by both exporters, and that they leave nothing behind once taken out."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import timeit
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest

import onnxbench
from onnxbench import mark, marked, select
from onnxbench.errors import UsageError
from onnxbench.graph import GraphIndex
from onnxbench.model import from_proto

torch = pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
pytest.importorskip("onnxscript", reason="onnxscript is not installed: pip install onnxbench[torch]")
pytestmark = pytest.mark.torch

nn = torch.nn
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "partition"
MAPS = ["pred_maps.0", "pred_maps.1", "pred_maps.2"]


@pytest.fixture(autouse=True)
def _one_thread():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def torchscript():
    from onnxbench.pytorch.marks import register, unregister

    register()
    yield
    unregister()


def export(model: Any, args: tuple[Any, ...], *, keep: bool = True, dynamo: bool = True, **options: Any) -> Any:
    """Returns the exported ModelProto; with ``keep``, marks are in it, and their body."""
    from onnxbench.pytorch.marks import finish, translation_table

    model.eval()
    if dynamo:
        table = {"custom_translation_table": translation_table()} if keep else {}
        proto = torch.onnx.export(model, args, dynamo=True, verbose=False, **table, **options).model_proto
    else:
        file = io.BytesIO()
        torch.onnx.export(model, args, file, dynamo=False, **options)
        proto = onnx.load_from_string(file.getvalue())
    return finish(proto) if keep else proto


def points(proto: onnx.ModelProto) -> list[tuple[str, str, int]]:
    """Returns what is marked: point, name, number of the tensor."""
    found = (select.mark_point(ref) for ref in GraphIndex(proto).nodes())
    return [(point.spelling, point.name, point.number) for point in found if point is not None]


def attributes(proto: onnx.ModelProto, spelling: str, name: str) -> dict[str, Any]:
    for ref in GraphIndex(proto).nodes():
        point = select.mark_point(ref)
        if point is not None and (point.spelling, point.name) == (spelling, name):
            return {each.name: onnx.helper.get_attribute_value(each) for each in ref.node.attribute}
    raise AssertionError(f"no {spelling} {name}")


def run(proto: onnx.ModelProto, *values: Any) -> list[np.ndarray]:
    from engines import ort_session

    onnx.checker.check_model(proto, full_check=True)
    session = ort_session(proto)
    return session.run(None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), values, strict=True)})


@dataclass(frozen=True)
class Result:
    boxes: torch.Tensor
    extra: dict[str, Any]
    count: int = 3


class Pair(NamedTuple):
    first: Any
    second: Any


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1)

    @mark("head", inputs=["pred_maps"], outputs=["result"], level=3, tags=["a", "b"], scale=1.5, fast=True)
    def forward(self, maps, flag=None):
        assert flag in (None, "yes")
        inner = {"m": [self.conv(each) for each in maps], "none": None, "pair": Pair(maps[0].sum(), 7)}
        return Result(self.conv(maps[1]), inner)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3, padding=1)
        self.head = Head()

    def forward(self, x):
        y = mark.tensor(self.body(x).relu(), "neck", stage=2)
        first = self.head([y, y * 2], flag="yes")
        second = self.head(maps=(y + 1, y - 1))
        assert first.count == 3
        assert isinstance(first.extra["pair"], Pair)
        assert first.extra["pair"].second == 7
        outputs = []
        for each in (first, second):
            outputs += [each.boxes, *each.extra["m"], each.extra["pair"].first]
        return tuple(outputs)


NET_POINTS = [
    ("neck[0]:output", "neck", 0),
    *(
        (f"head[{call}]:{side}", name, number)
        for call in range(2)
        for side, name, number in (
            ("input", "pred_maps.0", 0),
            ("input", "pred_maps.1", 1),
            ("output", "result.boxes", 0),
            ("output", "result.extra.m.0", 1),
            ("output", "result.extra.m.1", 2),
            ("output", "result.extra.pair.first", 3),
        )
    ),
]


@pytest.mark.parametrize("dynamo", [True, False], ids=["default", "torchscript"])
def test_nested_structures_calls_and_attributes(dynamo, torchscript):
    """Twice in one process: counts begin anew with each export."""
    net, x = Net(), torch.randn(1, 3, 8, 8)
    for _ in range(2):
        proto = export(net, (x,), dynamo=dynamo)
        assert sorted(points(proto)) == sorted(NET_POINTS)
    said = attributes(proto, "head[1]:output", "result.extra.m.1")
    assert said.pop("shape") == [1, 2, 8, 8]
    assert said == {
        "func": b"head", "func_id": 1, "type": b"output", "name": b"result.extra.m.1", "id": 2, "dtype": 1,
        "level": 3, "tags": [b"a", b"b"], "scale": 1.5, "fast": 1,
    }  # fmt: skip
    assert attributes(proto, "neck[0]:output", "neck")["stage"] == 2
    assert [(f.domain, f.name) for f in proto.functions] == [("onnxbench", "Mark")]
    for made, wanted in zip(run(proto, x), net(x), strict=True):
        np.testing.assert_allclose(made, wanted.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_dynamic_sizes_are_recorded_as_unknown(torchscript):
    net, x = Net(), torch.randn(2, 3, 8, 8)
    proto = export(net, (x,), dynamic_shapes=({0: "batch", 2: "height"},))
    assert attributes(proto, "neck[0]:output", "neck")["shape"] == [-1, 4, -1, 8]
    proto = export(net, (x,), dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}})
    assert attributes(proto, "neck[0]:output", "neck")["shape"] == [-1, 4, 8, 8]


@pytest.mark.parametrize("strict", [False, True], ids=["non-strict", "strict"])
def test_a_program_that_was_exported_before(strict):
    """``torch.export`` first: strict traces the marks' own Python code, and what is unused keeps its number."""
    program = torch.export.export(Plain().eval(), (torch.randn(2, 3),), strict=strict)
    assert points(export_program(program)) == [
        ("f[0]:input", "x", 0), ("f[0]:output", "y", 0), ("f[2]:input", "x", 0), ("f[2]:output", "y", 0)
    ]  # fmt: skip


class Plain(nn.Module):
    def forward(self, x):
        a = plain(x)
        plain(a)  # its result is not used
        return plain(a * 2)


@mark("f", inputs=["x"], outputs="y")
def plain(x):
    return x + 1


def export_program(program: Any) -> onnx.ModelProto:
    from onnxbench.pytorch.marks import translation_table

    done = torch.onnx.export(program, dynamo=True, verbose=False, custom_translation_table=translation_table())
    return done.model_proto


def test_a_plain_export_of_marked_code_shows_no_marks():
    net, x = Net(), torch.randn(1, 3, 8, 8)
    for dynamo in (True, False):
        proto = export(net, (x,), keep=False, dynamo=dynamo)
        assert not points(proto)
        assert {node.domain for node in proto.graph.node} == {""}


# ---- names


def _named(function: Any, *args: Any, **kwargs: Any) -> list[tuple[str, str]]:
    """Returns side and name of the marks that a function makes when it is exported."""

    class Module(nn.Module):
        def forward(self, *args, **kwargs):
            return function(*args, **kwargs)

    program = torch.export.export(Module(), args, kwargs)
    return [
        (node.args[3], node.args[4])
        for node in program.graph.nodes
        if node.target is torch.ops.onnxbench.mark.default
    ]  # fmt: skip


X = torch.ones(2)


def test_names_of_inputs():
    def f(a, b=None, *rest, c=None, **more):
        return a

    names = lambda *args, **kwargs: [n for side, n in _named(mark(outputs=[])(f), *args, **kwargs)]  # noqa: E731
    assert names(X) == ["a"]
    assert names(X, X + 1) == ["a", "b"]
    assert names(X, None, X + 1, X + 2) == ["a", "rest.0", "rest.1"]
    assert names(X, c=X + 1, z=X + 2) == ["a", "c", "z"]
    assert names(X, None, [X + 1, {"k": X + 2}]) == ["a", "rest.0.0", "rest.0.1.k"]

    def g(x, mask, y):
        return x

    by_place = mark("g", inputs=["x1", "m1", "y1"], outputs=[])(g)
    assert _named(by_place, X, None, X + 1) == [("input", "x1"), ("input", "y1")]
    in_order = mark("g", inputs=["x1", "y1"], outputs=[])(g)
    assert _named(in_order, X, None, X + 1) == [("input", "x1"), ("input", "y1")]
    assert _named(in_order, X, y=X + 1, mask="no") == [("input", "x1"), ("input", "y1")]
    assert _named(mark("g", inputs="all", outputs=[])(g), X, None, None) == [("input", "all")]
    with pytest.raises(UsageError, match="more tensors than the 1 names"):
        _named(mark("g", inputs=["x1"], outputs=[])(g), X, X + 1, X + 2)


def test_names_of_outputs():
    def names(result: Any, outputs: Any) -> list[str]:
        return [name for _, name in _named(mark("f", inputs=[], outputs=outputs)(lambda x: result(x)), X)]

    assert names(lambda x: x + 1, None) == ["f"]
    assert names(lambda x: x + 1, "y") == names(lambda x: x + 1, ["y"]) == ["y"]
    assert names(lambda x: (x + 1, x + 2), None) == ["f.0", "f.1"]
    assert names(lambda x: (x + 1, x + 2), ["y"]) == ["y.0", "y.1"]
    assert names(lambda x: (x + 1, x + 2), ["a", "b"]) == ["a", "b"]
    assert names(lambda x: (x + 1, None, [x + 2, x + 3]), ["a", "b", "c"]) == ["a", "c.0", "c.1"]
    assert names(lambda x: (x + 1, None, x + 2), ["a", "b"]) == ["a", "b"]
    assert names(lambda x: {"p": x + 1, "q": x + 2}, "d") == ["d.p", "d.q"]
    with pytest.raises(UsageError, match="its outputs hold more tensors"):
        names(lambda x: (x + 1, x + 2, x + 3), ["a", "b"])


def test_one_tensor_in_two_places_is_marked_once():
    def same(x):
        y = x + 1
        return y, [y]

    assert _named(mark("f", inputs=[], outputs="o")(same), X) == [("output", "o.0")]


def test_a_name_may_be_left_out():
    @mark
    def double(x):
        """Twice."""
        return x * 2

    assert double.__doc__ == "Twice."
    assert _named(double, X) == [("input", "x"), ("output", "double")]


def test_attributes_that_onnx_has_no_kind_for():
    for wrong in ({"a": None}, {"a": [1, "b"]}, {"a": {"b": 1}}, {"func": "f"}, {"shape": [1]}, {"dtype": 1}):
        with pytest.raises(UsageError, match="mark: "):
            mark("f", **wrong)


# ---- from outside


def test_marked_from_outside_and_restored():
    net = Unmarked()
    x = torch.randn(2, 3)
    with marked(net.a, "outer", outputs=["y"]), marked(net.a, "inner"), marked(net.b, "b", inputs=["x"]):
        proto = export(net, (x,))
        assert "forward" in vars(net.a)
    assert "forward" not in vars(net.a)
    assert "forward" not in vars(net.b)
    assert [point[:2] for point in points(proto)] == [
        ("inner[0]:input", "input"), ("outer[0]:input", "input"), ("outer[0]:output", "y"),
        ("inner[0]:output", "inner"), ("b[0]:input", "x"), ("b[0]:output", "b"),
    ]  # fmt: skip
    assert not points(export(net, (x,)))


class Unmarked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(3, 4), nn.ReLU()

    def forward(self, x):
        return self.b(self.a(x))


def test_restored_after_an_error_too():
    module = nn.ReLU()
    own = lambda x: x  # noqa: E731
    module.forward = own
    with marked(module, "m"):
        assert module.forward is not own

    def fail() -> None:
        with marked(module, "m"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert module.forward is own


# ---- outside of an export


def test_outside_of_an_export_nothing_happens():
    given = [torch.ones(1)]
    seen = []

    @mark("f", inputs=["a", "b", "c"])
    def f(x):
        seen.append(x)
        return given

    assert f(given) is given
    assert seen[0] is given
    assert mark.tensor(given, "x") is given
    torch.jit.trace(lambda x: plain(x), torch.ones(2))
    assert torch.compile(plain, backend="eager")(torch.ones(2)).tolist() == [2, 2]


def test_a_mark_costs_less_than_the_smallest_operator():
    x = torch.ones(1)

    def best(call: Any) -> float:
        return min(timeit.repeat(call, number=2000, repeat=5)) / 2000

    function = plain.__wrapped__
    extra = best(lambda: plain(x)) - best(lambda: function(x))
    assert extra < best(lambda: x.add_(0)) + 2e-6


def test_threads_count_for_themselves():
    results: dict[int, Any] = {}

    def work(number: int) -> None:
        torch.compiler.is_exporting()
        from onnxbench.pytorch.marks import _Calls

        calls = _Calls()
        results[number] = [calls.next("f", []) for _ in range(3)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {0: [0, 1, 2], 1: [0, 1, 2]}


def test_importing_the_facade_does_not_import_torch():
    code = "import sys; from onnxbench import mark, marked; mark('f')(len); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# ---- taken out: as if never marked


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.linear = nn.Linear(8, 5)
        for norm in (self.norm1, self.norm2):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, x):
        y = self.norm1(self.conv1(x)).relu()
        return self.linear((y + self.norm2(self.conv2(y))).relu().mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.gru, self.linear = nn.Embedding(10, 8), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 4)

    def forward(self, tokens):
        y, state = self.gru(self.embed(tokens))
        return self.linear(y), state


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, x):
        return self.linear(self.norm(self.layer(x)))


class Perceptron(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 2), nn.Softmax(-1)

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x))))


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.out = nn.Conv2d(7, 2, 1)

    def forward(self, x):
        y = self.down(x).relu()
        z = nn.functional.interpolate(y, scale_factor=2.0, mode="bilinear", align_corners=False)
        return self.out(torch.cat([self.up(y) + z, x], 1))


KINDS = {
    "residual": (Residual, lambda: torch.randn(2, 3, 16, 16)),
    "recurrent": (Recurrent, lambda: torch.randint(0, 10, (2, 7))),
    "encoder": (Encoder, lambda: torch.randn(2, 5, 16)),
    "perceptron": (Perceptron, lambda: torch.randn(3, 6)),
    "unet": (Unet, lambda: torch.randn(1, 3, 16, 16)),
}
IMMATERIAL = ["metadata", "name", "value-info", "doc"]
"""What a fusion does not look at: names, and which inner types the exporter states."""


@pytest.mark.parametrize("dynamo", [True, False], ids=["default", "torchscript"])
@pytest.mark.parametrize("kind", KINDS)
def test_marked_and_unmarked_is_never_marked(kind, dynamo, torchscript):
    """Every module is marked. Where that stands in the way of a fusion, the optimizer makes it afterwards."""
    from onnxbench.operations import Simplify
    from onnxbench.surgery import edit

    make, draw = KINDS[kind]
    net, x = make(), draw()
    never = from_proto(export(net, (x,), keep=False, dynamo=dynamo))
    with ExitStack() as stack:
        for name, child in net.named_children():
            stack.enter_context(marked(child, name))
        proto = export(net, (x,), dynamo=dynamo)
    assert len(points(proto)) >= 2 * len(list(net.children()))
    after = onnxbench.unmark(from_proto(proto)).model
    assert not [node for node in after.proto.graph.node if node.op_type == "Identity"] or not dynamo
    if kind == "residual":  # a mark between Conv and BatchNormalization keeps them apart, for as long as it is there
        assert len(after.proto.graph.node) > len(never.proto.graph.node)
        after, never = (edit(each, [Simplify("onnxscript")], stamp=False).model for each in (after, never))
    report = onnxbench.diff(never, after, ignore=IMMATERIAL, atol=1e-6)
    assert not report.changes, report.changes
    for made, wanted in zip(run(after.proto, x), run(never.proto, x), strict=True):
        np.testing.assert_allclose(made, wanted, rtol=1e-5, atol=1e-6)


# ---- acceptance: a YOLOv3-shaped detector in two pieces


@pytest.fixture(scope="module")
def detector():
    """The example, loaded from where it lies."""
    import importlib.util

    spec = importlib.util.spec_from_file_location("detector", EXAMPLE / "detector.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("dynamo", [True, False], ids=["default", "torchscript"])
def test_a_detector_is_cut_at_its_head(detector, dynamo, tmp_path):
    """The network gives pred_maps.0 to .2, the postprocess runs on them, and both agree with PyTorch."""
    from engines import ort_session

    net, image = detector.make_detector(), torch.rand(1, 3, detector.SIZE, detector.SIZE)
    detector.export(net, image, tmp_path / "marked.onnx", dynamo=dynamo)
    done = onnxbench.divide(tmp_path / "marked.onnx", EXAMPLE / "pieces.yaml", tmp_path / "pieces", prove=True)
    assert done.proof is not None
    assert done.proof.holds
    network, post = done.pieces
    assert [end.name for end in network.inputs] == ["input"]
    assert [end.name for end in network.outputs] == [end.name for end in post.inputs] == MAPS
    assert [end.name for end in post.outputs] == ["boxes", "labels"]
    proto = onnx.load(network.file)
    kinds = {node.op_type for node in proto.graph.node}
    assert kinds.isdisjoint({"Mark", "TopK", "Sigmoid", "Identity", "BatchNormalization"}), kinds
    with torch.no_grad():
        maps = net.head(net.neck(net.backbone(image)))
        boxes, labels = net(image)
    made = dict(zip(MAPS, ort_session(network.file).run(None, {"input": image.numpy()}), strict=True))
    for name, wanted in zip(MAPS, maps, strict=True):
        np.testing.assert_allclose(made[name], wanted.numpy(), rtol=1e-3, atol=1e-4)
    results = ort_session(post.file).run(None, made)
    whole = ort_session(done.whole).run(None, {"input": image.numpy()})
    for own, wanted, expected in zip(results, whole, (boxes, labels), strict=True):
        np.testing.assert_array_equal(own, wanted)
        np.testing.assert_allclose(own, expected.numpy(), rtol=1e-3, atol=1e-3)
    assert 0 < np.count_nonzero(results[0][:, 4]) < detector.Head().most, "suppression has something to do"


def test_the_command_line_cuts_it_too(detector, tmp_path):
    from onnxbench.cli import main

    net, image = detector.make_detector(), torch.rand(1, 3, detector.SIZE, detector.SIZE)
    path = tmp_path / "marked.onnx"
    detector.export(net, image, path, dynamo=False)
    words = [
        "extract", path, tmp_path / "network.onnx", "--from", "detector_forward:input", "--to", "yolo_head[0]:input",
        "--rename", "pred_maps.0=stride32",
    ]  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    assert not ended.value.code
    assert [info.name for info in onnx.load(tmp_path / "network.onnx").graph.output] == ["stride32", *MAPS[1:]]
