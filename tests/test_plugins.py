"""Plugin bundles: each part against the others, on the CPU, and inside real engines where TensorRT-RTX is installed."""

from __future__ import annotations

import dataclasses
import os
import runpy
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

from onnxbench import backends
from onnxbench.bundles import (
    compile_ptx,
    discover,
    export_cpp,
    find_plugins,
    load_bundle,
    make_skeleton,
    prove_bundle,
    read_bundles,
)
from onnxbench.bundles._kernels import HostKernel
from onnxbench.bundles._proof import difference
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.engine import BuildSpec, build_engine, creators, diagnose
from onnxbench.errors import BenchError, EngineError, ExecutionError, NotFoundError, OutputError, SpecError, UsageError
from onnxbench.model import from_proto
from onnxbench.operations import Rewrite
from onnxbench.proving import prove_plugin
from onnxbench.recipe import Step
from onnxbench.surgery import edit

RESIZE, SAMPLER = ROOT / "plugins" / "dynamic_resize", ROOT / "plugins" / "grid_sampler"
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
    for kind in (np.float16, ml_dtypes.bfloat16):
        values = every.view(kind)
        with np.errstate(all="ignore"):
            halves = (values.astype(np.float32) * np.float32(0.49999)).astype(kind)
        for alpha, expected in ((1.0, values), (0.49999, halves)):
            (made,) = kernel.run([values], {"alpha": alpha})
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


# ---------------------------------------------------------------- the other shipped bundle


def sampler_model(mode: int, padding: int, align: int, opset: int = 17, dtype: int = 1) -> onnx.ModelProto:
    text = f"""<ir_version: 8, opset_import: ["": {opset}, "mmdeploy": 1]>
    g (float[n, c, h, w] input, float[n, k, l, 2] grid) => (float[n, c, k, l] y) {{
        y = mmdeploy.grid_sampler <interpolation_mode = {mode}, padding_mode = {padding}, align_corners = {align}>
            (input, grid)
    }}""".replace("float[", f"{ {1: 'float', 10: 'float16'}[dtype] }[")
    return onnx.parser.parse_model(text)


@needs_compiler
def test_grid_sampler_in_every_type_over_200_cases():
    bundle = load_bundle(SAMPLER)
    cases = list(bundle.cases())
    assert len(cases) * len(bundle.dtypes) >= 200
    outcomes = {each.name: each for each in prove_bundle(bundle)}
    assert outcomes["kernel on the CPU"].passed, outcomes
    assert not [each for each in outcomes.values() if each.passed is False]
    empty = [inputs for inputs, _ in cases if not all(value.size for value in inputs)]
    strange = [inputs for inputs, _ in cases if all(v.size for v in inputs) and not np.isfinite(inputs[1]).all()]
    assert len(empty) >= 3
    assert len(strange) >= 18


@pytest.mark.parametrize("opset", [17, 20])
def test_the_rule_to_gridsample_computes_the_same(tmp_path, opset):
    bundle = load_bundle(SAMPLER)
    step = Step(Rewrite(rule=str(SAMPLER / "gridsample.yaml")))
    done = set()
    for inputs, attributes in bundle.cases():
        filled = bundle.filled(attributes)
        key = tuple(filled.values())
        finite = all(value.size and np.isfinite(value).all() for value in inputs) and np.abs(inputs[1]).max() < 1e6
        if not finite or (key in done and inputs[0].shape[0] < 2):
            continue
        model = from_proto(sampler_model(*key, opset=opset))
        if key[:2] == (1, 2):
            with pytest.raises(BenchError):
                edit(model, [step])
            continue
        made = edit(model, [step]).model
        assert {node.op_type for node in made.proto.graph.node} == {"GridSample"}
        onnx.checker.check_model(made.proto, full_check=True)
        session = onnxruntime.InferenceSession(made.proto.SerializeToString(), providers=["CPUExecutionProvider"])
        (actual,) = session.run(None, dict(zip(["input", "grid"], inputs, strict=True)))
        (expected,) = bundle.reference(inputs, filled)
        assert difference(actual, expected, (1e-4, 2e-5)) is None, (key, [value.shape for value in inputs])
        done.add(key)
    assert len(done) == 16


def test_the_support_table_has_every_operator_in_every_type():
    table = (ROOT / "docs" / "plugin-support.md").read_text(encoding="utf-8")
    for file in sorted((ROOT / "plugins").glob("*/plugin.py")):
        for bundle in read_bundles(file):
            for dtype in bundle.dtypes:
                name = f"[`{bundle.domain}::{bundle.op}`](../plugins/{file.parent.name}/README.md)"
                assert f"| {name} | {bundle.version} | {dtype} |" in table, "'python docs/support.py' writes it anew"


# ---------------------------------------------------------------- in ONNX Runtime


@pytest.mark.parametrize("body", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_an_operator_inside_of_bodies_and_functions_runs(body, dtype):
    """A node in the main graph, one in a branch of an If, one in a local function, with other attributes each."""
    bundle = load_bundle(SAMPLER)
    operator = bundle.operator() if body else dataclasses.replace(bundle, body=None).operator()
    word = {np.float32: "float", np.float16: "float16"}[dtype]
    proto = onnx.parser.parse_model(f"""
    <ir_version: 8, opset_import: ["": 17, "mmdeploy": 1, "local": 1]>
    g ({word}[1, 2, 5, 5] x, {word}[1, 3, 4, 2] at, bool c) => ({word}[1, 2, 3, 4] y) {{
        first = mmdeploy.grid_sampler <interpolation_mode = 1> (x, at)
        second = If (c) <
            then_branch = g1 () => ({word}[1, 2, 3, 4] t) {{ t = mmdeploy.grid_sampler <padding_mode = 1> (x, at) }},
            else_branch = g2 () => ({word}[1, 2, 3, 4] e) {{ e = Identity (first) }}
        >
        third = local.Sample (x, at)
        sum = Add (first, second)
        y = Add (sum, third)
    }}
    <domain: "local", opset_import: ["": 17, "mmdeploy": 1]>
    Sample (a, b) => (s) {{ s = mmdeploy.grid_sampler <align_corners = 1> (a, b) }}
    """)
    before = proto.SerializeToString()
    random = np.random.default_rng(0)
    x = random.standard_normal((1, 2, 5, 5)).astype(dtype)
    at = (np.round(random.uniform(-1, 1, (1, 3, 4, 2)) * 64) / 64).astype(dtype)
    parts = [bundle.reference([x, at], bundle.filled(said))[0].astype(np.float32)
             for said in ({"interpolation_mode": 1}, {"padding_mode": 1}, {"align_corners": 1})]  # fmt: skip
    tolerance = (1e-5, 1e-5) if dtype is np.float32 else (5e-3, 5e-3)
    for backend in ("ort", "reference"):
        session = backends.open_session(from_proto(proto), backend, options=backends.Options(operators=(operator,)))
        made = session.run({"x": x, "at": at, "c": np.array(True)})["y"]
        session.close()
        assert made.dtype == dtype
        assert difference(made, sum(parts), tolerance) is None
    assert proto.SerializeToString() == before


def test_run_takes_bundles_alone(tmp_path, capsys):
    path = tmp_path / "m.onnx"
    onnx.save(sampler_model(0, 0, 1), path)
    shapes = ["--shape", "input:[2,3,8,8]", "grid:[2,4,4,2]"]
    assert run("run", path, *shapes) != 0
    assert "--plugin BUNDLE" in capsys.readouterr().err
    assert run("run", path, *shapes, "--plugin", SAMPLER, "--save", tmp_path / "y.npz") == 0
    assert run("run", path, *shapes, "--plugin", SAMPLER, "--backend", "reference",
               "--expect", tmp_path / "y.npz") == 0  # fmt: skip
    (tmp_path / "trt.py").write_text("class A: pass\n", encoding="utf-8")
    capsys.readouterr()
    assert run("run", path, *shapes, "--plugin", tmp_path / "trt.py") == 2
    assert "is a plugin of TensorRT" in capsys.readouterr().err


def test_a_body_that_is_wrong_and_a_reference_that_raises():
    bundle = load_bundle(SAMPLER)
    model = from_proto(sampler_model(0, 0, 1))
    feeds = {"input": np.zeros((1, 1, 2, 2), np.float32), "grid": np.zeros((1, 1, 1, 2), np.float32)}
    for body, says in ((lambda a, o: "(input) => {", "no ONNX text"),
                       (lambda a, o: "(x) => (y) { y = Relu (x) }", "its body has 1 inputs")):  # fmt: skip
        wrong = dataclasses.replace(bundle, body=body)
        with pytest.raises(SpecError, match=says):
            backends.open_session(model, options=backends.Options(operators=(wrong.operator(),)))

    def raising(inputs, attributes):
        raise ValueError("on purpose")

    bad = dataclasses.replace(bundle, body=None, reference=raising)
    session = backends.open_session(model, options=backends.Options(operators=(bad.operator(),)))
    with pytest.raises(ExecutionError, match="reference of a custom operator raised ValueError: on purpose"):
        session.run(feeds)
    good = backends.open_session(model, options=backends.Options(operators=(bundle.operator(),)))
    assert good.run(feeds)["y"].shape == (1, 1, 1, 1)


# ---------------------------------------------------------------- as C++


def test_the_cpp_form_says_what_python_says(tmp_path, capsys):
    assert run("plugins", "export", SAMPLER, tmp_path / "cpp") == 0
    text = (tmp_path / "cpp" / "plugin.cpp").read_text(encoding="utf-8")
    assert "out[0].d[2] = in[1].d[1];" in text
    assert "n.i[0] = ((((1LL * outDesc[0].dims.d[0]) * outDesc[0].dims.d[1])" in text
    assert "n.i[7] = a.padding_mode;" in text
    assert (tmp_path / "cpp" / "kernel.cu").read_bytes() == (SAMPLER / "kernel.cu").read_bytes()
    assert run("plugins", "export", SAMPLER, tmp_path / "cpp") != 0
    assert "exists already" in capsys.readouterr().err
    assert run("plugins", "export", SAMPLER) == 2
    assert run("plugins", "new", tmp_path / "mine", "--op", "a::Mine", "--cpp") == 0
    text = (tmp_path / "mine" / "cpp" / "plugin.cpp").read_text(encoding="utf-8")
    for rank in (1, 2, 4):
        assert f"if (in[0].nbDims == {rank})" in text, "each rank of its cases"
    assert "n.f[0] = static_cast<float>(a.alpha);" in text
    branching = dataclasses.replace(
        load_bundle(SAMPLER), shapes=lambda inputs, attributes: [inputs[0]] if attributes["align_corners"] else []
    )
    with pytest.raises(SpecError, match="cannot be written in C\\+\\+: a size or an attribute decides"):
        export_cpp(branching, tmp_path / "no")
    assert not (tmp_path / "no").exists()


@pytest.mark.skipif(shutil.which("cmake") is None, reason="there is no cmake")
@needs_compiler
def test_cmake_says_what_it_lacks(tmp_path):
    export_cpp(load_bundle(SAMPLER), tmp_path / "cpp")
    environment = {key: value for key, value in os.environ.items() if key != "TENSORRT_ROOT"}
    for words, says in (([], "TENSORRT_ROOT is not set"),
                        ([f"-DTENSORRT_ROOT={tmp_path}"], "there is no NvInferRuntime.h in")):  # fmt: skip
        command = ["cmake", "-S", tmp_path / "cpp", "-B", tmp_path / "build", *words]
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode != 0
        assert says in " ".join(done.stderr.split())


@pytest.mark.skipif("TENSORRT_ROOT" not in os.environ, reason="TENSORRT_ROOT names no TensorRT")
@needs_nvcc
@pytest.mark.parametrize("name", sorted(file.parent.name for file in (ROOT / "plugins").glob("*/plugin.py")))
def test_the_cpp_form_compiles_and_is_taken(tmp_path, name):
    for bundle in read_bundles(ROOT / "plugins" / name):
        folder = tmp_path / bundle.name
        export_cpp(bundle, folder)
        for command in (["-S", folder, "-B", folder / "build"], ["--build", folder / "build"]):
            done = subprocess.run(["cmake", *command], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
        library = folder / "build" / f"lib{bundle.name}.so"
        assert library.is_file()
        if not HAS_TRT:
            continue
        (found,) = creators(plugins=find_plugins([str(library)]))["plugins"]
        assert found["failure"] is None
        assert found["creators"] == [[bundle.domain, bundle.op, bundle.version]]
        inputs, attributes = next(case for case in bundle.cases() if all(value.size for value in case[0]))
        proto = bundle.model(inputs, attributes, dynamic=True)
        proto.graph.node[0].output.extend(f"{output}_count" for output in bundle.counted)
        proto.graph.node[0].attribute.append(helper.make_attribute("plugin_namespace", bundle.domain))
        onnx.save(proto, folder / "m.onnx")
        built = build_engine(folder / "m.onnx", folder / "m.engine", SM89, plugins=find_plugins([str(library)]))
        assert built.record.data["kinds"].get("PLUGIN_V3") == 1


# ---------------------------------------------------------------- finding, loading, making


def test_bundles_are_found_by_name(monkeypatch, tmp_path):
    monkeypatch.delenv("ONNXBENCH_PLUGIN_PATH", raising=False)
    assert [plugin.name for plugin in discover() if plugin.origin == "onnxbench"] == sorted(
        file.parent.name for file in (ROOT / "plugins").glob("*/plugin.py")
    )
    own = shutil.copytree(RESIZE, tmp_path / "own" / "dynamic_resize")
    monkeypatch.setenv("ONNXBENCH_PLUGIN_PATH", str(own.parent))
    (found,) = find_plugins(["dynamic_resize"])
    assert found.path == own
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
def test_a_new_bundle_works_and_has_its_own_test(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))  # torch sets it where it is not set
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
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", tmp_path / "my_op"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "test_my_op.py::test_bundle" in done.stdout
    test_bundle = runpy.run_path(os.fspath(tmp_path / "my_op" / "test_my_op.py"))["test_bundle"]
    kernel = tmp_path / "my_op" / "kernel.cu"
    kernel.write_text("#error on purpose\n" + kernel.read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(AssertionError, match="does not compile"):
        test_bundle()


def test_a_reference_that_raises_fails_its_tests_by_file_and_line(tmp_path):
    make_skeleton(tmp_path / "my_op", "my.domain::MyOp")
    file = tmp_path / "my_op" / "plugin.py"
    text = file.read_text(encoding="utf-8")
    head = text[: text.index("\n", text.index("def reference(")) + 1]
    file.write_text(f"{head}    raise KeyError('scale')\n" + text[len(head) :], encoding="utf-8")
    failed = [each.detail for each in prove_bundle(load_bundle(file.parent)) if each.passed is False]
    assert failed
    assert any(f"plugin.py, line {head.count(chr(10)) + 1}: KeyError: 'scale'" in detail for detail in failed)


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

    @pytest.mark.parametrize("capability", ["SM75", "SM89"])
    def test_grid_sampler_is_built_with_its_kernel_inside(self, tmp_path, capability):
        bundle = load_bundle(SAMPLER)
        path = tmp_path / "m.onnx"
        onnx.save(sampler_model(2, 1, 0, dtype=10), path)
        spec = BuildSpec(compute_capabilities=(capability,))
        built = build_engine(path, tmp_path / "m.engine", spec, plugins=find_plugins([str(SAMPLER)]))
        data = built.path.read_bytes()
        assert bundle.ptx().encode() in data
        assert b"grid_sampler" in data
        assert built.record.data["kinds"]["PLUGIN_V3"] == 1
        assert not [text for text in built.warnings if "onnxbench_ptx" in text]

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
