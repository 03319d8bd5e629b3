"""Engines run and verified: all of it that needs no GPU, on real engines."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import onnxbench
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.engine import BuildSpec, Engine, Range, build_engine, distinct_kinds, has_gpu, run_engine
from onnxbench.engine import _standalone as standalone
from onnxbench.engine._observed import inputs_at
from onnxbench.errors import DeviceError, FeedsError, ModelError, NotFoundError, UsageError
from onnxbench.feeding import FeedOptions
from onnxbench.model import from_proto
from onnxbench.timing import summarize

HAS_TRT = importlib.util.find_spec("tensorrt_rtx") is not None
needs_trt = [
    pytest.mark.trt,
    pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')"),
    pytest.mark.skipif(has_gpu(), reason="this is about machines without a GPU"),
]
info = helper.make_tensor_value_info
X = {"name": "x", "dtype": "float", "shape": [-1, 3, -1]}
SIZE = {"name": "size", "dtype": "int64", "shape": [2]}
PROFILE = {"x": {"min": [1, 3, 4], "opt": [2, 3, 8], "max": [4, 3, 16]},
           "size": {"min": [1, 1], "opt": [8, 8], "max": [64, 64]}}  # fmt: skip


def array(*shape, dtype="f"):
    return np.zeros(shape, dtype)


# ---------------------------------------------------------------- inputs against profiles


@pytest.mark.parametrize(
    ("shape", "size", "says"),
    [
        ((5, 3, 8), (8, 8), "input 'x': dimension 0 is 5, above the largest (4) that the engine was built for"),
        ((1, 3, 2), (8, 8), "input 'x': dimension 2 is 2, below the smallest (4)"),
        ((1, 4, 8), (8, 8), "input 'x': dimension 1 is 4, and the engine was built for 3 only"),
        ((1, 3), (8, 8), "input 'x' has 2 dimensions, and the engine wants 3"),
        ((1, 3, 8), (8, 65), "input 'size': value 1 is 65, above the largest (64)"),
        ((1, 3, 8), (0, 8), "input 'size': value 0 is 0, below the smallest (1)"),
    ],
)
def test_the_bound_that_is_broken_is_named(shape, size, says):
    feeds = {"x": array(*shape), "size": np.array(size, "i8")}
    with pytest.raises(standalone.RunError) as caught:
        standalone.choose_profile([X, SIZE], [PROFILE], feeds)
    assert says in caught.value.message
    assert caught.value.code == standalone.UNFIT


def test_the_first_profile_that_fits_is_taken():
    large = {"x": {"min": [8, 3, 4], "opt": [8, 3, 8], "max": [9, 3, 16]}, "size": PROFILE["size"]}
    feeds = {"x": array(8, 3, 4), "size": np.array([2, 2])}
    assert standalone.choose_profile([X, SIZE], [PROFILE, large], feeds) == 1
    with pytest.raises(standalone.RunError, match="profile 0: input 'x': dimension 0 is 10"):
        standalone.choose_profile([X, SIZE], [PROFILE, large], {**feeds, "x": array(10, 3, 4)})


def test_missing_and_unknown_inputs():
    with pytest.raises(standalone.RunError, match="input 'size' is missing"):
        standalone.choose_profile([X, SIZE], [PROFILE], {"x": array(1, 3, 8)})
    with pytest.raises(standalone.RunError, match="no input 'y'"):
        standalone.choose_profile([X], [], {"x": array(1, 3, 8), "y": array(1)})


@pytest.mark.parametrize(
    ("value", "wanted", "kind"),
    [
        (np.ones(3, "f"), "float", "float32"),
        (np.ones(3, "d"), "float", "float32"),
        (np.ones(3, "e"), "half", "float16"),
        (np.ones(3, "i8"), "int32", "int32"),
        (np.ones(3, "i4"), "int64", "int64"),
        (np.ones(3, "?"), "bool", "bool"),
        (np.ones(3, "u1"), "uint8", "uint8"),
        (np.ones(3, ml_dtypes.bfloat16), "bf16", "uint16"),
        (np.ones(3, "u2"), "bf16", "uint16"),
        (np.ones(3, ml_dtypes.float8_e4m3fn), "fp8", "uint8"),
        (np.ones((3, 4), "f")[:, ::2], "float", "float32"),
    ],
)
def test_element_types_that_fit(value, wanted, kind):
    made = standalone.fit("x", value, wanted)
    assert made.dtype.name == kind
    assert made.shape == value.shape
    assert made.flags.c_contiguous


@pytest.mark.parametrize(
    ("value", "wanted", "says"),
    [
        (np.array([1 << 40]), "int32", "integers that int32 cannot"),
        (np.array([-1], "i8"), "uint8", "is uint8 in the engine, and int64 was given"),
        (np.ones(3, "f"), "half", "is float16 in the engine, and float32 was given"),
        (np.ones(3, "f"), "int64", "is int64 in the engine"),
        (np.ones(3, "f"), "bf16", "is bfloat16 in the engine"),
        (np.ones(3, "u1"), "int4", "cannot be given from here"),
    ],
)
def test_element_types_that_do_not_fit(value, wanted, says):
    with pytest.raises(standalone.RunError, match=says):
        standalone.fit("x", value, wanted)


def test_outputs_get_a_type_of_their_own():
    bits = np.array([0x3F80, 0xC000], np.uint16)
    assert standalone.widen(bits, "bf16").astype(np.float32).tolist() == [1.0, -2.0]
    assert standalone.widen(array(2), "float").dtype == np.float32


@pytest.mark.parametrize(
    ("expected", "actual", "agrees", "says"),
    [
        ([1.0, 2.0], [1.0, 2.0], True, "max abs 0"),
        ([1.0, 2.0], [1.0, 2.001], True, "max abs"),
        ([1.0, 2.0], [1.0, 2.1], False, "1 of 2 elements are off"),
        ([np.nan, 2.0], [np.nan, 2.0], True, "max abs 0"),
        ([np.nan, 2.0], [0.0, 2.0], False, "NaN or Inf on one side only"),
        ([np.inf, 2.0], [-np.inf, 2.0], False, "NaN or Inf on one side only"),
        ([], [], True, "equal"),
    ],
)
def test_comparison_judges_nonfinite_values_first(expected, actual, agrees, says):
    found = standalone.compare(np.array(expected), np.array(actual), rtol=1e-2, atol_of_largest=1e-3)
    assert found[0] is agrees
    assert says in found[1]


def test_comparison_of_integers_and_shapes():
    assert standalone.compare(np.array([1, 2]), np.array([1, 3]), 1.0, 1.0) == (False, "1 of 2 elements differ")
    assert standalone.compare(array(2), array(3), 1.0, 1.0) == (False, "shape [3] in place of [2]")


def test_which_ends_of_a_profile_differ():
    same = Range((1,), (1,), (1,))
    assert distinct_kinds({"x": same}) == ["opt"]
    assert distinct_kinds({"x": Range((1,), (2,), (2,))}) == ["min", "opt"]
    assert distinct_kinds({"x": Range((1,), (1,), (2,)), "y": same}) == ["opt", "max"]


def test_inputs_at_an_end_have_the_sizes_of_that_end():
    nodes = [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="nearest")]
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["N", 1]), info("sizes", TensorProto.INT64, [2])], [info("y", 1, ["a", "b"])]
    )
    model = from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    profile = {"x": Range((1, 1), (2, 1), (4, 1)), "sizes": Range((1, 1), (4, 4), (9, 8))}
    feeds = inputs_at(model, profile, "max").feeds
    assert feeds["x"].shape == (4, 1)
    assert feeds["sizes"].tolist() == [9, 8]


def test_times_become_a_table():
    table = summarize([3.0, 1.0, 2.0], 5)
    assert (table.runs, table.warmup, table.median_ms, table.min_ms, table.max_ms) == (3, 5, 2.0, 1.0, 3.0)


@pytest.mark.torch
def test_tensors_of_pytorch_are_known():
    torch = pytest.importorskip("torch")
    feeds = {"x": torch.zeros(1, 3, 8), "size": torch.tensor([2, 70])}
    with pytest.raises(standalone.RunError, match="value 1 is 70"):
        standalone.choose_profile([X, SIZE], [PROFILE], feeds)
    for word, kind in standalone.TORCH_TYPES.items():
        assert str(getattr(torch, word.removeprefix("torch."))) == word
        assert (
            torch.empty(1, dtype=getattr(torch, word.removeprefix("torch."))).element_size()
            == np.dtype(standalone.NUMPY_TYPES[kind]).itemsize
        )


def test_what_lies_beside_an_engine_stands_alone():
    tree = ast.parse(Path(standalone.__file__).read_text())
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    imported |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name.partition(".")[0] for name in imported} - sys.stdlib_module_names == {"numpy"}


def test_files_that_are_no_engines(tmp_path):
    with pytest.raises(NotFoundError):
        Engine(tmp_path / "missing.engine")
    (tmp_path / "text.engine").write_text("no engine")
    with pytest.raises(ModelError, match="not a TensorRT engine"):
        Engine(tmp_path / "text.engine")


# ---------------------------------------------------------------- real engines, no GPU


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An engine with two inputs of open shape and its verification."""
    folder = tmp_path_factory.mktemp("engine")
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"]),
        helper.make_node("Resize", ["s", "", "", "sizes"], ["y"], mode="linear"),
        helper.make_node("Cast", ["y"], ["h"], to=TensorProto.FLOAT16),
    ]
    graph = helper.make_graph(
        nodes, "g", [info("x", 1, ["N", 3, "H"]), info("sizes", TensorProto.INT64, [3])],
        [info("y", 1, None), info("h", 10, None)],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "m.onnx")
    words = ["build-trt", str(folder / "m.onnx"), str(folder / "m.engine"), "--compute-capability", "8.9", "--verify",
             "--min-shapes", "x:1x3x4", "sizes:[1,3,4]", "--opt-shapes", "x:2x3x8", "sizes:[2,3,9]",
             "--max-shapes", "x:4x3x16", "sizes:[4,3,32]"]  # fmt: skip
    assert bounded(app, words) == 0
    return folder


class TestWithoutAGpu:
    pytestmark = needs_trt

    def test_verification_is_left_beside_the_engine(self, built):
        folder = built / "m.engine.verify"
        plan = json.loads((folder / "verify.json").read_text())
        assert [case["name"] for case in plan["cases"]] == [
            f"profile 0, {kind} shapes" for kind in ("min", "opt", "max")
        ]
        for case, size in zip(plan["cases"], ([1, 3, 4], [2, 3, 9], [4, 3, 32]), strict=True):
            feeds, expected = (np.load(folder / case[key]) for key in ("feeds", "expected"))
            assert feeds["sizes"].tolist() == size
            assert list(expected["y"].shape) == size
            assert expected["h"].dtype == np.float16
        assert plan["tolerance"]["rtol"] == 5e-2  # it computes in float16 too

    def test_the_script_says_that_there_is_no_gpu_and_ends_so(self, built, tmp_path):
        moved = tmp_path / "elsewhere"
        moved.mkdir()
        os.symlink(built / "m.engine", moved / "m.engine")
        (moved / "m.engine.verify").symlink_to(built / "m.engine.verify", target_is_directory=True)
        script = moved / "m.engine.verify" / "verify.py"
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, env=clean, cwd=tmp_path)
        assert done.returncode == standalone.NO_DEVICE
        assert "there is no GPU here" in done.stderr
        done = subprocess.run([sys.executable, script, "--json"], capture_output=True, text=True, env=clean)
        assert "no GPU" in json.loads(done.stdout)["error"]
        done = subprocess.run(
            [sys.executable, script, "--engine", "nowhere"], capture_output=True, text=True, env=clean
        )
        assert done.returncode == standalone.UNREADABLE

    def test_the_script_checks_the_inputs_before_it_looks_for_a_gpu(self, built, tmp_path):
        folder = tmp_path / "m.engine.verify"
        folder.mkdir()
        for file in (built / "m.engine.verify").iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        (tmp_path / "m.engine").write_bytes((built / "m.engine").read_bytes())
        np.savez(folder / "0_opt_feeds.npz", x=array(9, 3, 8), sizes=np.array([1, 3, 4]))
        done = subprocess.run([sys.executable, folder / "verify.py"], capture_output=True, text=True)
        assert done.returncode == standalone.UNFIT
        assert "dimension 0 is 9, above the largest (4)" in done.stderr
        (folder / "0_opt_feeds.npz").unlink()
        done = subprocess.run([sys.executable, folder / "verify.py"], capture_output=True, text=True)
        assert done.returncode == standalone.UNREADABLE

    def test_verifying_again_replaces_what_is_there(self, built, capsys):
        (built / "m.engine.verify" / "old").write_text("old")
        words = ["build-trt", str(built / "m.onnx"), str(built / "m.engine"), "--compute-capability", "8.9", "--verify",
                 "--json", "--min-shapes", "x:1x3x4", "sizes:[1,3,4]", "--opt-shapes", "x:2x3x8", "sizes:[2,3,9]",
                 "--max-shapes", "x:4x3x16", "sizes:[4,3,32]"]  # fmt: skip
        assert bounded(app, words) == 0
        result = json.loads(capsys.readouterr().out)["result"]
        assert result["fresh"] is False
        assert result["verification"]["holds"] is None
        assert "no GPU here" in result["verification"]["reason"]
        assert not (built / "m.engine.verify" / "old").exists()
        assert [each.name for each in built.iterdir() if each.name.startswith(".")] == []

    def test_a_call_checks_and_then_wants_a_gpu(self, built):
        engine = onnxbench.Engine(built / "m.engine")
        good = {"x": array(1, 3, 8), "sizes": np.array([1, 3, 4])}
        assert engine.check(good) == 0
        with pytest.raises(FeedsError, match=r"dimension 2 is 17, above the largest \(16\)"):
            engine({**good, "x": array(1, 3, 17)})
        with pytest.raises(DeviceError, match="no GPU here"):
            engine(good)
        with pytest.raises(DeviceError, match="no GPU here"):
            engine.time(good, 3)

    def test_the_command_on_an_engine(self, built, tmp_path, capsys):
        engine = str(built / "m.engine")
        assert bounded(app, ["run", engine]) == DeviceError.exit_code
        assert "no GPU here" in capsys.readouterr().err
        np.savez(tmp_path / "x.npz", x=array(5, 3, 8), sizes=np.array([1, 3, 4]))
        assert bounded(app, ["run", engine, "--feeds", str(tmp_path / "x.npz")]) == FeedsError.exit_code
        assert "dimension 0 is 5, above the largest (4)" in capsys.readouterr().err
        assert bounded(app, ["run", engine, "--find-nan"]) == UsageError.exit_code
        assert "for ONNX models" in capsys.readouterr().err
        with pytest.raises(UsageError, match=r"saved as \.npz"):
            run_engine(engine, FeedOptions(), save=tmp_path / "out")

    def test_an_engine_without_its_record(self, built, tmp_path):
        (tmp_path / "m.engine").write_bytes((built / "m.engine").read_bytes())
        with pytest.raises(DeviceError):
            _ = Engine(tmp_path / "m.engine").inputs

    def test_what_onnx_runtime_does_not_run_cannot_be_verified(self, tmp_path, capsys):
        node = helper.make_node("Abs", ["x"], ["y"])
        graph = helper.make_graph([node], "g", [info("x", 16, [4])], [info("y", 16, [4])])
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(proto, tmp_path / "m.onnx")
        words = ["build-trt", str(tmp_path / "m.onnx"), str(tmp_path / "m.engine"), "--compute-capability", "8.9"]
        assert bounded(app, [*words, "--verify"]) == 9
        assert "cannot be verified" in capsys.readouterr().err
        assert (tmp_path / "m.engine").exists()
        assert not (tmp_path / "m.engine.verify").exists()

    def test_every_method_that_is_called_on_tensorrt_exists(self):
        look = "import json, tensorrt_rtx as t; print(json.dumps({n: dir(getattr(t, n)) for n in dir(t)}))"
        done = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=120)
        api = json.loads(done.stdout)
        owners = {"_engine": "ICudaEngine", "_context": "IExecutionContext", "_runtime": "Runtime"}
        called = set()
        for node in ast.walk(ast.parse(Path(standalone.__file__).read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute) and node.value.attr in owners:
                called.add((owners[node.value.attr], node.attr))
        assert len(called) > 12
        for owner, name in called:
            assert name in api[owner], (owner, name)
        for name in ("IOutputAllocator", "TensorIOMode", "TensorLocation"):
            assert name in api

    def test_an_output_allocator_can_be_made(self):
        code = (
            "import tensorrt_rtx as t; from onnxbench.engine import _standalone as s\n"
            "a = s.make_allocator(t, None); a.notify_shape('y', (2, 3)); assert a.shape == (2, 3)"
        )
        subprocess.run([sys.executable, "-c", code], check=True, timeout=120)

    def test_static_models_have_one_case(self, tmp_path):
        graph = helper.make_graph(
            [helper.make_node("Abs", ["x"], ["y"])], "g", [info("x", 1, [4])], [info("y", 1, [4])]
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.save(proto, tmp_path / "m.onnx")
        made = build_engine(tmp_path / "m.onnx", tmp_path / "m.engine", BuildSpec(compute_capabilities=("SM89",)))
        from onnxbench.engine import verify_engine
        from onnxbench.model import load

        found = verify_engine(made.path, load(tmp_path / "m.onnx"), made.record)
        assert found.cases == ("the model's own shapes",)
        assert found.holds is None
