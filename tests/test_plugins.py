"""Plugin bundles: each part against the others, on the CPU, and inside real engines where TensorRT-RTX is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
import pytest
from cases import ROOT
from onnx import helper

from onnxbench.bundles import compile_ptx, discover, find_plugins, load_bundle, make_skeleton
from onnxbench.bundles._kernels import HostKernel
from onnxbench.bundles._proof import difference
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.engine import BuildSpec, build_engine, creators, diagnose
from onnxbench.errors import BenchError, EngineError, NotFoundError, OutputError, SpecError, UsageError
from onnxbench.proving import prove_plugin

RESIZE = ROOT / "plugins" / "dynamic_resize"
HAS_TRT = find_spec("tensorrt_rtx") is not None
needs_trt = [
    pytest.mark.trt,
    pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')"),
]
needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc")
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
SM89 = BuildSpec(compute_capabilities=("SM89",))


def run(*arguments: object) -> int:
    return bounded(app, [str(argument) for argument in arguments])


def copy_of(tmp_path: Path, name="bundle") -> Path:
    return Path(shutil.copytree(RESIZE, tmp_path / name))


def resize_model(tmp_path: Path, size=(9, 13)) -> Path:
    bundle = load_bundle(RESIZE)
    inputs = [np.zeros((1, 3, 8, 8), np.float32), np.zeros((1, 1, *size), np.float32)]
    path = tmp_path / "resize.onnx"
    onnx.save(bundle.model(inputs, {"align_corners": 1}, dynamic=True), path)
    return path


# ---------------------------------------------------------------- the shipped bundle


def test_the_reference_is_what_onnxruntime_computes():
    bundle = load_bundle(RESIZE)
    for mode, align in (("half_pixel", 0), ("align_corners", 1)):
        for inside, outside in (((8, 8), (13, 5)), ((5, 7), (20, 21)), ((4, 4), (2, 3))):
            x = np.random.default_rng(1).standard_normal((1, 2, *inside)).astype(np.float32)
            node = helper.make_node(
                "Resize", ["x", "", "", "s"], ["y"], mode="cubic", coordinate_transformation_mode=mode
            )
            sizes = helper.make_tensor("s", 7, [4], [1, 2, *outside])
            graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", 1, x.shape)],
                                      [helper.make_tensor_value_info("y", 1, [1, 2, *outside])], [sizes])  # fmt: skip
            proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
            (expected,) = session.run(None, {"x": x})
            (actual,) = bundle.reference([x, np.zeros((1, 1, *outside), np.float32)], {"align_corners": align})
            assert difference(actual, expected, (1e-4, 2e-5)) is None


@needs_compiler
def test_the_device_code_on_the_cpu_in_every_type_over_200_cases():
    bundle = load_bundle(RESIZE)
    outcomes = {each.name: each for each in prove_plugin(RESIZE, engine="tensorrt-rtx" if HAS_TRT else None)}
    assert outcomes["kernel on the CPU"].passed, outcomes
    assert len(list(bundle.cases())) * len(bundle.dtypes) >= 200
    assert not [each for each in outcomes.values() if each.passed is False]
    if HAS_TRT:
        assert outcomes["TensorRT engine"].passed


@needs_compiler
def test_that_comparison_can_fail(tmp_path):
    folder = copy_of(tmp_path)
    core = folder / "resize_core.h"
    core.write_text(core.read_text(encoding="utf-8").replace("-0.75f", "-0.5f"), encoding="utf-8")
    outcomes = {each.name: each for each in prove_plugin(folder)}
    assert outcomes["kernel on the CPU"].passed is False
    assert "the largest difference" in outcomes["kernel on the CPU"].detail
    assert outcomes["kernel compiled to PTX"].passed is False, "PTX of another source is not taken"
    assert "not compiled from kernel.cu as it is now" in outcomes["kernel compiled to PTX"].detail


@needs_compiler
def test_half_types_are_converted_as_numpy_does(tmp_path):
    folder = tmp_path / "copy_all"
    make_skeleton(folder, "CopyAll")
    kernel = HostKernel(load_bundle(folder))
    every = np.arange(1 << 16, dtype=np.uint16)
    for dtype, kind in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
        values = every.view(kind)
        with np.errstate(all="ignore"):
            halves = (values.astype(np.float32) * np.float32(0.49999)).astype(kind)
        for alpha, expected in ((1.0, values), (0.49999, halves)):
            (made,) = kernel.run(dtype, [values], {"alpha": alpha})
            is_nan = np.isnan(expected.astype(np.float32))
            assert np.isnan(made.astype(np.float32))[is_nan].all()
            assert np.array_equal(made.view(np.uint16)[~is_nan], expected.view(np.uint16)[~is_nan])


def test_the_schema_lets_onnx_infer_shapes(tmp_path):
    bundle = load_bundle(RESIZE)
    onnx.defs.register_schema(bundle.schema())
    try:
        proto = bundle.model([np.zeros((2, 3, 8, 8), np.float16), np.zeros((1, 1, 5, 6), np.float32)])
        del proto.graph.output[0].type.tensor_type.shape.dim[:]
        proto.graph.output[0].type.tensor_type.ClearField("shape")
        inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True).graph.output[0].type.tensor_type
        assert [dim.dim_value for dim in inferred.shape.dim] == [2, 3, 5, 6]
        assert inferred.elem_type == onnx.TensorProto.FLOAT16
        full = bundle.model([np.zeros((2, 3, 8, 8), np.float16), np.zeros((1, 1, 5, 6), np.float32)])
        onnx.checker.check_model(full, full_check=True)
    finally:
        onnx.defs.deregister_schema(bundle.op, 1, bundle.domain)


# ---------------------------------------------------------------- finding, loading, making


def test_bundles_are_found_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("ONNXBENCH_PLUGIN_PATH", str(ROOT / "plugins"))
    assert "dynamic_resize" in [plugin.name for plugin in discover()]
    (found,) = find_plugins(["dynamic_resize"])
    assert found.path == RESIZE
    with pytest.raises(NotFoundError, match="no plugin 'dynamic_resise'") as caught:
        find_plugins(["dynamic_resise"])
    assert "dynamic_resize" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="is no bundle"):
        find_plugins([str(tmp_path)])
    (tmp_path / "x.txt").write_text("")
    with pytest.raises(UsageError, match="is no plugin"):
        find_plugins([str(tmp_path / "x.txt")])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("raise ValueError('no')", r"plugin.py, line 1: ValueError: no"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
        ("x = 1", "defines no BUNDLE"),
        ("def broken(:", "SyntaxError"),
    ],
)
def test_a_bundle_that_cannot_be_loaded(tmp_path, text, says):
    folder = tmp_path / "b"
    folder.mkdir()
    (folder / "plugin.py").write_text(text, encoding="utf-8")
    with pytest.raises(SpecError, match=says):
        load_bundle(folder)


@needs_nvcc
@needs_compiler
def test_a_new_bundle_works_and_has_its_own_test(tmp_path, capsys):
    assert run("plugins", "new", tmp_path / "my_op", "--op", "my.domain::MyOp") == 0
    before = dict(os.environ)
    assert run("plugins", "test", tmp_path / "my_op") == 0
    assert dict(os.environ) == before  # what it imports sets how protobuf works
    shown = capsys.readouterr().out
    assert "FAILED" not in shown
    assert "kernel on the CPU" in shown
    if HAS_TRT:
        assert "passed   TensorRT engine" in shown
    with pytest.raises(OutputError, match="exists already"):
        make_skeleton(tmp_path / "my_op", "MyOp")
    for op in ("my op", "1x", "a::b::c d"):
        with pytest.raises(UsageError, match="cannot name an operator"):
            make_skeleton(tmp_path / "other", op)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", tmp_path / "my_op"],
                          capture_output=True, text=True, cwd=tmp_path, check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


@needs_nvcc
def test_a_kernel_that_does_not_compile(tmp_path):
    make_skeleton(tmp_path / "bad", "Bad")
    (tmp_path / "bad" / "kernel.cu").write_text("this is no CUDA\n", encoding="utf-8")
    with pytest.raises(BenchError, match="does not compile"):
        compile_ptx(load_bundle(tmp_path / "bad"))


# ---------------------------------------------------------------- in TensorRT


class TestInTensorRT:
    pytestmark = needs_trt

    def test_the_plugin_is_needed_and_enough(self, tmp_path):
        model = resize_model(tmp_path)
        (problem,) = diagnose(model, SM89).problems
        assert problem.kind == "plugin"
        assert "no plugin was loaded" in problem.message
        built = build_engine(model, tmp_path / "m.engine", SM89, plugins=find_plugins([str(RESIZE)]))
        assert built.record.data["kinds"].get("PLUGIN_V3") == 1
        (plugin,) = built.record.data["plugins"]
        assert (plugin["name"], plugin["creators"]) == ("dynamic_resize", [["Test", "DynamicTRTResize", "1"]])
        data = built.path.read_bytes()
        assert load_bundle(RESIZE).ptx().encode() in data
        assert not build_engine(model, built.path, SM89, plugins=find_plugins([str(RESIZE)])).fresh

    def test_another_kernel_is_another_engine(self, tmp_path):
        model, folder = resize_model(tmp_path), copy_of(tmp_path)
        plugins = find_plugins([str(folder)])
        assert build_engine(model, tmp_path / "m.engine", SM89, plugins=plugins).fresh
        (folder / "README.md").write_text("changed", encoding="utf-8")
        assert build_engine(model, tmp_path / "m.engine", SM89, plugins=plugins).fresh

    def test_a_plugin_that_raises_is_one_clear_error(self, tmp_path):
        folder = copy_of(tmp_path)
        file = folder / "plugin.py"
        file.write_text(
            file.read_text(encoding="utf-8").replace("    x, size_tensor = inputs\n    return [[x[0]",
                                                     "    raise ValueError('on purpose')\n    return [[x[0]"),
            encoding="utf-8",
        )  # fmt: skip
        model = resize_model(tmp_path)
        with pytest.raises(EngineError, match="raised in get_output_shapes: ValueError: on purpose"):
            build_engine(model, tmp_path / "m.engine", SM89, plugins=find_plugins([str(folder)]))
        assert not list(tmp_path.glob("*.engine*"))

    def test_one_plugin_that_fails_does_not_break_the_others(self, tmp_path):
        broken = tmp_path / "broken.py"
        broken.write_text("raise RuntimeError('no')", encoding="utf-8")
        found = creators(plugins=find_plugins([str(broken), str(RESIZE)]))["plugins"]
        assert "RuntimeError: no" in found[0]["failure"]["message"]
        assert found[1]["creators"] == [["Test", "DynamicTRTResize", "1"]]
        with pytest.raises(EngineError, match="a plugin could not be loaded") as caught:
            build_engine(resize_model(tmp_path), tmp_path / "m.engine", SM89,
                         plugins=find_plugins([str(broken), str(RESIZE)]))  # fmt: skip
        assert "RuntimeError: no" in caught.value.details[0]

    @needs_compiler
    def test_libraries_that_are_no_plugins(self, tmp_path):
        source = tmp_path / "nothing.c"
        source.write_text("int nothing(void) { return 0; }\n", encoding="utf-8")
        subprocess.run(["g++", "-shared", "-fPIC", "-o", tmp_path / "nothing.so", source], check=True)
        source.write_text("int missing(void); int nothing(void) { return missing(); }\n", encoding="utf-8")
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", tmp_path / "unresolved.so", source, "-Wl,-z,now"], check=True)
        (tmp_path / "text.so").write_text("no library", encoding="utf-8")
        words = {
            "nothing.so": "registers no plugin",
            "unresolved.so": "undefined symbol",
            "text.so": "cannot be loaded",
        }
        found = creators(plugins=find_plugins([str(tmp_path / name) for name in words]))["plugins"]
        for plugin, says in zip(found, words.values(), strict=True):
            assert says in plugin["failure"]["message"]

    def test_show_and_list(self, capsys):
        assert run("plugins", "show", RESIZE) == 0
        assert "Test::DynamicTRTResize version 1" in capsys.readouterr().out
        assert run("plugins", "list", "--tensorrt", RESIZE) == 0
        shown = capsys.readouterr().out
        assert "dynamic_resize  bundle" in shown
        assert "(TensorRT)" in shown
