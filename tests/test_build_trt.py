"""``build-trt``: real TensorRT-RTX engines, built without a GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from cases import ROOT
from corpus import fetch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization

from onnxbench import engine
from onnxbench.captures import input_ports
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.cli.build_trt import _problem_lines
from onnxbench.engine import BuildSpec, Problem, Range, _child, build_engine, diagnose, parse_profiles, read_engine
from onnxbench.engine._building import ModelFile, make_job
from onnxbench.engine._child import run_job
from onnxbench.engine._flavors import Flavor
from onnxbench.engine._spec import check_spec
from onnxbench.errors import (
    EngineError,
    ExternalDataError,
    MissingDependencyError,
    ModelError,
    NotFoundError,
    OutputError,
    SpecError,
    UsageError,
)
from onnxbench.model import from_proto, load
from onnxbench.recipe import load_recipe
from onnxbench.writer import save

HAS_TRT = importlib.util.find_spec("tensorrt_rtx") is not None
needs_trt = [
    pytest.mark.trt,
    pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')"),
]
RTX = Flavor("tensorrt-rtx", "tensorrt_rtx", "1.7.1.116")
SM89 = BuildSpec(compute_capabilities=("SM89",))


def net(dims=("N", 3, 8, 8), *, op="Relu", domain="", elem=TensorProto.FLOAT) -> onnx.ModelProto:
    node = helper.make_node(op, ["x"], ["y"], name="only", domain=domain)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("x", elem, dims)], [helper.make_tensor_value_info("y", elem, dims)]
    )
    opsets = [helper.make_opsetid("", 17), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def saved(tmp_path: Path, proto: onnx.ModelProto, name="m.onnx") -> Path:
    path = tmp_path / name
    onnx.save(proto, path)
    return path


def session_of(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])


def children() -> list[int]:
    return [int(word) for word in Path("/proc/thread-self/children").read_text().split()]


def wait_until(holds, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def run(*arguments: object) -> int:
    return bounded(app, [str(argument) for argument in arguments])


# ---------------------------------------------------------------- profiles and specs (no TensorRT needed)


@pytest.mark.parametrize(
    "words",
    [
        [("min", "x:[1,3,8,8]"), ("opt", "x:[2,3,8,8]"), ("max", "x:[4,3,8,8]")],
        [("min", "x:1x3x8x8"), ("opt", "x:2x3x8x8"), ("max", "x:4x3x8x8")],
        [("min", "x=1x3x8x8"), ("opt", "2,3,8,8"), ("max", "x:4,3,8,8")],
        [("profile", "0"), ("max", "x:4x3x8x8"), ("min", '"x":[1,3,8,8]'), ("opt", "x:[2, 3, 8, 8]")],
    ],
)
def test_every_spelling_of_a_profile_means_the_same(words):
    assert parse_profiles(words, ["x"]) == [{"x": Range((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))}]


def test_an_input_named_again_begins_the_next_profile():
    words = [("all", "a:1x3,b:4"), ("all", "a:2x3"), ("all", "b:5")]
    assert parse_profiles(words, ["a", "b"]) == [
        {"a": Range((1, 3), (1, 3), (1, 3)), "b": Range((4,), (4,), (4,))},
        {"a": Range((2, 3), (2, 3), (2, 3)), "b": Range((5,), (5,), (5,))},
    ]
    numbered = [("profile", "1"), ("opt", "a:2x3"), ("profile", "0"), ("opt", "a:1x3")]
    assert [each["a"].opt for each in parse_profiles(numbered, ["a"])] == [(1, 3), (2, 3)]


@pytest.mark.parametrize(
    ("words", "kind", "says"),
    [
        ([("all", "xx:1x3x8x8")], NotFoundError, "no tensor 'xx'"),
        ([("min", "x:1x3x8x8")], UsageError, "not its opt and max shape"),
        ([("all", "x:1x3xHx8")], UsageError, "must be a number"),
        ([("all", "x")], UsageError, "gives no shape"),
        ([("profile", "1"), ("all", "x:1x3x8x8")], UsageError, "without gaps"),
    ],
)
def test_profiles_that_cannot_be(words, kind, says):
    with pytest.raises(kind, match=says):
        parse_profiles(words, ["x"])


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        (((1, 3, 8), (1, 3, 8), (1, 3, 8)), "is given 3 dimensions, and the model wants 4"),
        (((2, 3, 8, 8), (1, 3, 8, 8), (4, 3, 8, 8)), "must grow from min over opt to max"),
        (((1, 3, 8, 8), (1, 3, 9, 8), (1, 3, 9, 8)), "fixes dimension 2 at 8"),
        (((1, 3, 8, 8), (1, 3, 8), (1, 3, 8, 8)), "different numbers of dimensions"),
    ],
)
def test_profiles_are_held_against_the_model(sizes, says):
    ports = input_ports(net().graph)
    with pytest.raises(UsageError, match=says):
        engine.check_profiles([{"x": Range(*sizes)}], ports)


def test_dimensions_of_one_name_have_one_size():
    proto = net()
    for axis in (2, 3):
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = "?"
    ports = input_ports(proto.graph)
    engine.check_profiles([{"x": Range((1, 3, 8, 4), (1, 3, 8, 8), (1, 3, 8, 8))}], ports)
    with pytest.raises(UsageError, match=r"2 of input 'x' and dimension 3 of input 'x' are both called '.'") as caught:
        engine.check_profiles([{"x": Range((1, 3, 8, 16), (1, 3, 8, 16), (1, 3, 8, 16))}], ports)
    assert "--name-dim x:2=dim_2 x:3=dim_3" in (caught.value.hint or "")


def test_inputs_left_out_are_named_with_a_ready_flag():
    proto = net()
    proto.graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT64, ["N", "T"]))
    ports = input_ports(proto.graph)
    with pytest.raises(UsageError) as caught:
        engine.check_profiles([{"x": Range((1, 3, 8, 8), (1, 3, 8, 8), (1, 3, 8, 8))}], ports)
    assert "'ids' (int64[N, T])" in caught.value.message
    assert "--min-shapes ids:[1,1] --opt-shapes ids:[1,128] --max-shapes ids:[8,512]" in (caught.value.hint or "")


YAML = """
profiles:
  - x: {min: 1x3x8x8, opt: [2, 3, 8, 8], max: [4, 3, 8, 8]}
  - x: 1x3x8x8
compute_capability: [8.9, 12.0]
pools: {workspace: 2G}
optimization_level: 4
weight_streaming: true
plugins: [libs/a.so]
"""
MMDEPLOY = """
_base_ = ['./base.py']
backend_config = dict(
    type='tensorrt',
    common_config=dict(fp16_mode=False, max_workspace_size=1 << 30),
    model_inputs=[dict(input_shapes=dict(x=dict(min_shape=[1, 3, 8, 8], opt_shape=[2, 3, 8, 8],
                                                max_shape=[4, 3, 8, 8])))])
"""


def test_configurations(tmp_path):
    file = tmp_path / "build.yaml"
    file.write_text(YAML, encoding="utf-8")
    fields = engine.load_config(file, ["x"])
    assert [profile["x"].max for profile in fields["profiles"]] == [(4, 3, 8, 8), (1, 3, 8, 8)]
    assert fields["compute_capabilities"] == ("SM89", "SM120")
    assert fields["pools"] == {"workspace": 2 << 30}
    assert fields["plugins"] == (tmp_path / "libs/a.so",)
    assert fields["optimization_level"] == 4
    assert fields["weight_streaming"] is True
    file.write_text(YAML.replace("weight_streaming", "weight_steaming"), encoding="utf-8")
    with pytest.raises(SpecError, match="weight_steaming") as caught:
        engine.load_config(file, ["x"])
    assert "weight_streaming" in (caught.value.hint or "")
    file.write_text(YAML.replace("- x: 1x", "- y: 1x"), encoding="utf-8")
    with pytest.raises(SpecError, match="no tensor 'y'"):
        engine.load_config(file, ["x"])


def test_an_mmdeploy_configuration_is_read_and_not_run(tmp_path):
    file = tmp_path / "detection_tensorrt.py"
    file.write_text(MMDEPLOY, encoding="utf-8")
    fields = engine.load_config(file, ["x"])
    assert fields["profiles"] == ({"x": Range((1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))},)
    assert fields["pools"] == {"workspace": 1 << 30}
    file.write_text(MMDEPLOY.replace("1 << 30", "__import__('os').getpid()"), encoding="utf-8")
    with pytest.raises(SpecError, match="is not a literal value"):
        engine.load_config(file, ["x"])


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ({"precisions": ("fp16",)}, "no precision flags"),
        ({"timing_cache": Path("c")}, "no --timing-cache"),
        ({"dla_core": 0}, "no --dla-core"),
        ({"refit": True}, "with a GPU only"),
        ({"version_compatible": True}, "lean runtime"),
        ({"optimization_level": 9}, "0 to 5"),
        ({"compute_capabilities": ("CURRENT",)}, "needs a GPU"),
        ({"runtime_platform": "windows_amd64"}, "no --runtime-platform"),
        ({"strongly_typed": False}, "no --weakly-typed"),
        ({"max_aux_streams": -1}, "0 or more"),
    ],
)
def test_what_tensorrt_rtx_does_not_have_is_refused_with_what_to_do(spec, says):
    with pytest.raises(UsageError, match=says):
        check_spec(BuildSpec(**spec), RTX, element_types=frozenset({1}), gpu=False)


def test_combinations_that_are_known_to_fail_are_refused():
    for types, capabilities in (({17}, ()), ({17}, ("SM86",)), ({16}, ("SM75",)), ({22}, ("SM89", "SM75"))):
        spec = BuildSpec(compute_capabilities=capabilities)
        with pytest.raises(UsageError, match=r"compute capability|portable default"):
            check_spec(spec, RTX, element_types=frozenset(types), gpu=False)
        check_spec(BuildSpec(compute_capabilities=("SM89",)), RTX, element_types=frozenset(types), gpu=False)


@pytest.mark.parametrize("text", ["8.9", "89", "sm89", "sm_89", "SM_89", "compute_89"])
def test_compute_capabilities(text):
    assert engine.parse_capability(text) == ["SM89"]
    assert engine.parse_capability("12.0,7.5") == ["SM120", "SM75"]
    with pytest.raises(UsageError):
        engine.parse_capability("hopper")


def test_pools():
    assert engine.parse_pool("workspace:4G,tactic_dram=1M") == {"workspace": 4 << 30, "tactic_dram": 1 << 20}
    assert engine.parse_pool("dlaSRAM:1K") == {"dla_sram": 1024}
    with pytest.raises(UsageError, match="would be 1,024 bytes"):
        engine.parse_pool("workspace:1024")
    with pytest.raises(UsageError, match="not a memory pool"):
        engine.parse_pool("workspac:1G")


def test_problems_of_one_operator_are_not_all_printed():
    alike = [Problem("case", f"up_{at}", "Resize", "cubic", "Give it sizes.", "resize_by_sizes") for at in range(45)]
    lines = [*_problem_lines([*alike, Problem("unsupported", "nz", "NonZero", "TensorRT has none", "Give it sizes.")])]
    assert lines[7:] == [
        "up_7 (Resize): cubic", "... and 37 more of Resize (--json lists all)", "nz (NonZero): TensorRT has none",
        "  -> Give it sizes. (--apply does it)",
    ]  # fmt: skip


def test_without_tensorrt_one_clear_error(monkeypatch, tmp_path):
    monkeypatch.setattr("onnxbench.engine._flavors.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="none is installed") as caught:
        build_engine(saved(tmp_path, net()), tmp_path / "m.engine")
    assert "onnxbench[trt]" in (caught.value.hint or "")
    with pytest.raises(UsageError, match="no engine"):
        build_engine(saved(tmp_path, net()), tmp_path / "m.engine", BuildSpec(engine="tensorrt-rts"))
    with pytest.raises(MissingDependencyError, match="tensorrt"):
        build_engine(saved(tmp_path, net()), tmp_path / "m.engine", BuildSpec(engine="tensorrt"))


def test_tensorrt_is_loaded_in_one_module_only():
    importers = [
        path.name
        for path in (ROOT / "onnxbench").rglob("*.py")
        if path.parent.name != "migration"  # which looks for such lines in the scripts of others
        and ("import tensorrt" in (text := path.read_text(encoding="utf-8")) or "import_module(MODULES[name" in text)
    ]
    assert [name for name in importers if name != "_seam.py"] in ([], ["plugin.py"])
    code = "import onnxbench.engine, onnxbench.bundles, sys; assert not [m for m in sys.modules if 'tensorrt' in m]"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------- engines


class TestEngines:
    pytestmark = needs_trt

    def test_an_engine_and_its_record(self, tmp_path, capsys):
        model, target = saved(tmp_path, net()), tmp_path / "m.engine"
        assert run("build-trt", model, target, "--compute-capability", "8.9", "12.0", "--minShapes=x:1x3x8x8",
                   "--optShapes", "x:2x3x8x8", "--trt-max-shapes", "x:[4,3,8,8]") == 0  # fmt: skip
        record = json.loads((tmp_path / "m.engine.json").read_text(encoding="utf-8"))
        assert record["profiles"] == [{"x": {"min": [1, 3, 8, 8], "opt": [2, 3, 8, 8], "max": [4, 3, 8, 8]}}]
        assert record["compute_capabilities"] == ["8.9", "12.0"]
        assert record["model"]["file"] == "m.onnx"
        assert record["nodes"] == {"only": ["only"]}
        found = read_engine(target)
        assert found.compute_capabilities == ("8.9", "12.0")
        assert found.version == record["builder"]["version"]
        assert not found.problems
        capsys.readouterr()
        assert run("inspect", target) == 0
        shown = capsys.readouterr().out
        assert "x: [1, 3, 8, 8] .. [2, 3, 8, 8] .. [4, 3, 8, 8]" in shown
        assert sorted(path.name for path in tmp_path.iterdir()) == ["m.engine", "m.engine.json", "m.onnx"]

    def test_the_same_again_does_nothing(self, tmp_path):
        model, target = saved(tmp_path, net((1, 3, 8, 8))), tmp_path / "m.engine"
        assert build_engine(model, target, SM89).fresh
        before = (target.stat().st_mtime_ns, target.read_bytes())
        assert not build_engine(model, target, SM89).fresh
        assert (target.stat().st_mtime_ns, target.read_bytes()) == before
        assert build_engine(model, target, SM89, force=True).fresh
        assert target.read_bytes() == before[1], "a build is deterministic"
        assert build_engine(model, target, BuildSpec(compute_capabilities=("SM86",))).fresh
        onnx.save(net((1, 3, 8, 9)), model)
        assert "changed after" in read_engine(target).problems[0]
        assert build_engine(model, target, BuildSpec(compute_capabilities=("SM86",))).fresh

    def test_pairs_that_do_not_belong_together_and_files_cut_off(self, tmp_path):
        model, target = saved(tmp_path, net((1, 3, 8, 8))), tmp_path / "m.engine"
        build_engine(model, target, SM89)
        whole = target.read_bytes()
        target.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        assert "of another engine file" in read_engine(target).problems[0]
        assert build_engine(model, target, SM89).fresh, "an engine that is not the recorded one is built again"
        target.write_bytes(whole[:-10])
        with pytest.raises(ModelError, match="cut off"):
            read_engine(target)
        with pytest.raises(ModelError, match="not a TensorRT engine"):
            read_engine(model)

    def test_shapes_are_proposed_where_nothing_is_said(self, tmp_path):
        built = build_engine(saved(tmp_path, net()), tmp_path / "m.engine", SM89)
        assert built.record.profiles == [{"x": {"min": [1, 3, 8, 8], "opt": [1, 3, 8, 8], "max": [8, 3, 8, 8]}}]
        assert any("chosen: shapes of x" in note for note in built.notes)
        with pytest.raises(UsageError, match="is dynamic and no profile"):
            build_engine(saved(tmp_path, net()), tmp_path / "n.engine", BuildSpec(propose=False))
        assert not (tmp_path / "n.engine").exists()

    def test_two_profiles(self, tmp_path):
        profiles = tuple(parse_profiles([("all", "x:1x3x8x8"), ("all", "x:4x3x8x8")], ["x"]))
        spec = BuildSpec(profiles=profiles, compute_capabilities=("SM89",))
        assert len(build_engine(saved(tmp_path, net()), tmp_path / "m.engine", spec).record.profiles) == 2

    def test_values_of_an_input_that_shapes_are_made_of(self, tmp_path):
        graph = helper.make_graph(
            [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], name="r", mode="linear")], "g",
            [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8]), helper.make_tensor_value_info("sizes", 7, [4])],
            [helper.make_tensor_value_info("y", 1, [None] * 4)],
        )  # fmt: skip
        model = saved(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        with pytest.raises(UsageError, match="'sizes' holds sizes"):
            build_engine(model, tmp_path / "m.engine", SM89)
        words = [("min", "sizes:[1,3,8,8]"), ("opt", "sizes:[1,3,16,16]"), ("max", "sizes:[1,3,32,32]")]
        spec = BuildSpec(profiles=tuple(parse_profiles(words, ["x", "sizes"])), compute_capabilities=("SM89",))
        assert build_engine(model, tmp_path / "m.engine", spec).fresh

    def test_what_the_parser_refuses_is_told_by_node(self, tmp_path, capsys):
        model = saved(tmp_path, net((1, 3, 8, 8), op="Relux", domain="mine"))
        assert run("build-trt", model, tmp_path / "m.engine") == EngineError.exit_code
        shown = capsys.readouterr().err
        assert "only (mine::Relux): no plugin 'Relux', version 1, in the namespaces '' and 'mine'" in shown
        assert "35" not in shown, "lines on CUDA error 35 say nothing"
        assert run("build-trt", model, "--doctor") == 1
        assert "onnxbench plugins new Relux --op mine::Relux" in capsys.readouterr().out
        assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]

    def test_an_operator_that_tensorrt_has_not_is_told_from_a_missing_plugin(self, tmp_path):
        (problem,) = diagnose(saved(tmp_path, net((4,), op="Bernoulli"))).problems
        assert (problem.kind, problem.node) == ("unsupported", "only")
        (problem,) = diagnose(saved(tmp_path, net((4,), op="Bernouli", domain="x"))).problems
        assert problem.kind == "plugin"

    def test_element_types_that_tensorrt_has_not(self, tmp_path):
        (problem,) = diagnose(saved(tmp_path, net((4,), op="Sign", elem=TensorProto.INT16)), SM89).problems
        assert problem.message == "TensorRT does not have the element type of 'x' (int16), 'y' (int16)"

    def test_check_asks_the_parser(self, tmp_path, capsys):
        model = saved(tmp_path, net((1, 3, 8, 8), op="Relux", domain="mine"))
        assert run("check", model, "--target", "tensorrt", "--json") == 1
        found = json.loads(capsys.readouterr().out)["result"]["findings"]
        (refused,) = [each for each in found if each["name"] == "node-refused"]
        assert refused["where"]["node"] == "only"
        assert "plugins new Relux" in refused["fix"]
        fine = saved(tmp_path, net((1, 3, 8, 8)))
        assert run("check", fine, "--target", "tensorrt", "--trt") == 0
        assert "node-refused" not in capsys.readouterr().out

    def test_only_a_build_proves_that_it_can_be_built(self, tmp_path):
        floats = [
            helper.make_tensor_value_info("boxes", 1, [1, 6, 4]),
            helper.make_tensor_value_info("scores", 1, [1, 1, 6]),
        ]
        graph = helper.make_graph(
            [helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["kept"], name="nms")], "g", floats,
            [helper.make_tensor_value_info("kept", 7, [None, 3])],
        )  # fmt: skip
        model = saved(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        found = diagnose(model, SM89)
        assert found.builds is False
        (before,) = diagnose(model, SM89, trial=False).problems
        assert (before.kind, before.node) == ("build", "nms")
        assert found.problems == (before,), "what was foreseen is what the builder says"

    @pytest.mark.parametrize(
        ("text", "types"),
        [
            ("y = QuantizeLinear(x, s, z)", "float[4] x, float s, uint8 z) => (uint8[4] y"),
            ("y = Cast<to = 17>(x)", "float[4] x) => (float8e4m3fn[4] y"),
        ],
    )
    def test_what_the_builder_refuses_is_foreseen(self, tmp_path, text, types):
        proto = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> g ({types}) {{ {text} }}')
        model = saved(tmp_path, proto)
        before, after = (diagnose(model, SM89, trial=trial) for trial in (False, True))
        assert [problem.node for problem in before.problems] == [f"{proto.graph.node[0].op_type}#0"]
        assert after.builds is False

    @pytest.mark.parametrize("told", ["flag", "configuration"])
    def test_a_precision_is_that_of_the_graph(self, tmp_path, capsys, told):
        weight = numpy_helper.from_array(np.full((4, 4), 0.5, np.float32), "w")
        floats = [helper.make_tensor_value_info(name, 1, [2, 4]) for name in "xy"]
        graph = helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", floats[:1], floats[1:], [weight]
        )
        model = saved(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        (tmp_path / "c.yaml").write_text("precisions: [fp16]\n")
        words = ["--fp16"] if told == "flag" else ["--config", tmp_path / "c.yaml"]
        recipe, half, replayed = tmp_path / "r.yaml", tmp_path / "half.onnx", tmp_path / "replayed.onnx"
        arguments = [*words, "--save-recipe", recipe, "--save-model", half, "--compute-capability", "8.9"]
        assert run("build-trt", model, tmp_path / "m.engine", *arguments) == 0
        assert "converted, as 'onnxbench precision' does: float16" in capsys.readouterr().err
        assert "float16" in json.loads((tmp_path / "m.engine.json").read_text())["types"]
        assert [each.data_type for each in onnx.load(half).graph.initializer] == [TensorProto.FLOAT16]
        assert run("edit", model, replayed, "--recipe", recipe) == 0
        assert replayed.read_bytes() == half.read_bytes()
        assert run("build-trt", model, tmp_path / "m.engine", "--fp16", "--bf16") == UsageError.exit_code
        assert "no precision flags" in capsys.readouterr().err

    def test_with_a_tolerance_few_nodes_stay_in_float32(self, tmp_path, capsys):
        proto = onnx.parser.parse_model(
            """<ir_version: 8, opset_import: ["" : 17]> g (float[2,4] x) => (float[2,4] y)
            <float big = {6e4}> {
                [first] a = Mul (x, big) [wide] b = Add (a, a) [narrow] c = Div (b, big) [last] y = Tanh (c) }"""
        )
        model, recipe = saved(tmp_path, proto), tmp_path / "r.yaml"
        asked = ["build-trt", model, "--doctor", "--no-trial", "--save-recipe", recipe]
        assert run(*asked, "--fp16", "--tolerance", "1e-2") == 0
        assert "nodes kept in float32" in capsys.readouterr().err
        assert """keep: ['node:"wide"', 'node:"narrow"']""" in recipe.read_text()
        before = model.read_bytes()
        assert run(*asked, "--apply", "--tolerance", "1e-2") == UsageError.exit_code
        assert "--tolerance means nothing without" in capsys.readouterr().err
        assert run(*asked[:-1], model, "--apply") == UsageError.exit_code
        assert "is an input" in capsys.readouterr().err
        assert model.read_bytes() == before

    def test_attention_without_a_kernel_of_its_own_is_taken_apart(self, tmp_path):
        shapes = "float[2,3,4,8] q, float[2,3,6,8] k, float[2,3,6,8] v) => (float[2,3,4,8] y"
        proto = onnx.parser.parse_model(
            f'<ir_version: 11, opset_import: ["" : 23]> g ({shapes}) {{ y = Attention<is_causal = 1>(q, k, v) }}'
        )
        model = saved(tmp_path, proto)
        before = model.read_bytes()
        assert build_engine(model, tmp_path / "m.engine", SM89).fresh
        assert model.read_bytes() == before

    def test_a_model_in_text_form_and_one_in_memory(self, tmp_path):
        text = tmp_path / "m.onnxtxt"
        text.write_text(
            '<ir_version: 8, opset_import: ["" : 17]>\ng (float[1, 4] x) => (float[1, 4] y) { y = Relu (x) }'
        )
        assert build_engine(text, tmp_path / "a.engine", SM89).fresh
        assert build_engine(from_proto(net((1, 3, 8, 8))), tmp_path / "b.engine", SM89).record.data["model"]["edited"]

    def test_external_data(self, tmp_path):
        weight = helper.make_tensor("w", 1, [64, 64], b"\0" * 64 * 64 * 4, raw=True)
        node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")
        floats = [helper.make_tensor_value_info(name, 1, [1, 64]) for name in "xy"]
        proto = helper.make_model(helper.make_graph([node], "g", floats[:1], floats[1:], [weight]),
                                  opset_imports=[helper.make_opsetid("", 17)], ir_version=8)  # fmt: skip
        path = tmp_path / "m.onnx"
        onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=0)
        assert build_engine(path, tmp_path / "m.engine", SM89).fresh
        assert not build_engine(path, tmp_path / "m.engine", SM89).fresh
        data = bytearray((tmp_path / "w.bin").read_bytes())
        data[3] = 1
        (tmp_path / "w.bin").write_bytes(data)
        assert build_engine(path, tmp_path / "m.engine", SM89).fresh, "weights outside count as well"
        deeper = tmp_path / "deeper" / "m.onnx"
        deeper.parent.mkdir()
        proto = onnx.load(path, load_external_data=False)
        proto.graph.initializer[0].external_data[0].value = "../w.bin"
        deeper.write_bytes(proto.SerializeToString())
        with pytest.raises(ExternalDataError, match="leaves the model's folder"):
            build_engine(deeper, tmp_path / "d.engine", SM89)
        assert build_engine(deeper, tmp_path / "d.engine", SM89, allow_outside=True).fresh
        assert (tmp_path / "d.engine").read_bytes() == (tmp_path / "m.engine").read_bytes()

    def test_what_cannot_be_built_is_told_whole_by_node(self, tmp_path):
        """The parser stops at NonZero and does not come to Unique."""
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            [helper.make_node("NonZero", ["x"], ["y"], "nz"), helper.make_node("Unique", ["x"], ["u"], "un")], "g",
            [value("x", 1, [2, 4])], [value("y", TensorProto.INT64, [2, None]), value("u", 1, [None])],
        )  # fmt: skip
        model = saved(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        found = diagnose(model, SM89, trial=False)
        assert [(problem.node, problem.op) for problem in found.problems] == [("nz", "NonZero"), ("un", "Unique")]
        with pytest.raises(EngineError, match="refuses 2 nodes"):
            build_engine(model, tmp_path / "m.engine", SM89)

    def test_a_number_that_is_zero_is_heeded(self, tmp_path, capsys):
        model = saved(tmp_path, net((1, 3, 8, 8)))
        assert run("build-trt", model, tmp_path / "m.engine", "--dla-core", "0") == 2
        assert "has no --dla-core" in capsys.readouterr().err

    def test_targets_that_would_overwrite_what_is_read(self, tmp_path):
        model = saved(tmp_path, net((1, 3, 8, 8)))
        with pytest.raises(UsageError, match="is read, so it cannot be written"):
            build_engine(model, model, SM89)
        with pytest.raises(OutputError, match="no folder"):
            build_engine(model, tmp_path / "none" / "m.engine", SM89)
        with pytest.raises(UsageError, match=r"other.onnx is a model's name"):
            build_engine(model, tmp_path / "other.onnx", SM89)

    def test_a_crash_is_told_with_how_far_it_came(self, tmp_path):
        job = {"task": "build", "engine": "tensorrt-rtx",
               "model": str(saved(tmp_path, net((1, 3, 8, 8)))), "target": "/dev/full", "plugins": [],
               "spec": BuildSpec().for_worker()}  # fmt: skip
        with pytest.raises(OutputError, match="cannot be written: No space left"):
            run_job(job)
        for end, says in (("abort()", "ended by SIGABRT"), ("_exit(3)", "ended with status 3")):
            code = (
                f"#include <stdlib.h>\n#include <unistd.h>\n__attribute__((constructor)) void now(void) {{ {end}; }}\n"
            )
            (tmp_path / "crash.c").write_text(code)
            subprocess.run(["gcc", "-shared", "-fPIC", "-o", "crash.so", "crash.c"], cwd=tmp_path, check=True)
            job["plugins"] = [{"kind": "library", "path": str(tmp_path / "crash.so")}]
            with pytest.raises(EngineError, match=f"{says} in phase 'loading TensorRT'"):
                run_job(job)

    def test_what_is_looked_ahead_at_changes_nothing_but_the_time(self, tmp_path):
        model, other = saved(tmp_path, net((1, 3, 8, 8))), saved(tmp_path, net((1, 3, 8, 8), op="Sigmoid"), "o.onnx")
        target = tmp_path / "m.engine"
        assert build_engine(model, target, SM89).fresh
        wanted = target.read_bytes()

        def built_after_a_look_at(file: Path, then=lambda: None) -> bytes:
            with engine.standby():
                engine.look_ahead(file)
                then()
                assert build_engine(model, target, SM89, force=True).fresh
                assert not _child._STANDBY, "the job took the process that waited"
            return target.read_bytes()

        for file in (model, other, tmp_path / "none.onnx"):
            assert built_after_a_look_at(file) == wanted
        assert built_after_a_look_at(model, lambda: os.kill(children()[0], signal.SIGKILL)) == wanted
        record = read_engine(target).record
        assert record is not None
        assert record.data["nodes"] == {"only": ["only"]}
        onnx.save(net((1, 3, 8, 8), op="Sigmoid"), model)
        assert built_after_a_look_at(model, lambda: onnx.save(net((1, 3, 8, 8)), model)) == wanted

    def test_temporary_files_go_with_a_process_that_is_killed(self, tmp_path, monkeypatch, corpus):
        """Whether TensorRT's process is killed, or the command above it."""
        monkeypatch.setenv("TMPDIR", str(tmp_path))
        monkeypatch.setattr(tempfile, "tempdir", None)
        model, _ = corpus("light_densenet121")
        with ModelFile(model, load(model)) as file:
            job = make_job("build", file, SM89, RTX, (), tmp_path / "m.engine")
        heard, before = [], set(children())

        def kill_it(severity, text):
            heard.extend(child for child in children() if child not in before and not heard)
            os.kill(heard[0], signal.SIGKILL)

        with pytest.raises(EngineError, match="ended by SIGKILL"):
            run_job(job, kill_it)
        assert not list(tmp_path.iterdir())
        command = [sys.executable, "-c", f"from onnxbench.engine._child import run_job; run_job({job!r})"]
        above = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
        wait_until(lambda: any(tmp_path.glob("onnxbench-trt-*/onnxbench-trt-*/libtensorrt_rtx.so")))
        above.kill()
        above.wait()
        wait_until(lambda: not any(tmp_path.glob("onnxbench-trt-*")))

    def test_interrupted_it_leaves_no_file(self, tmp_path, corpus):
        model, _ = corpus("light_densenet121")
        process = subprocess.Popen(
            [sys.executable, "-m", "onnxbench", "build-trt", model, tmp_path / "m.engine"],
            stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while not any(tmp_path.iterdir()) and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
        assert process.returncode == 130, said
        assert "interrupted; nothing was written" in said
        assert not list(tmp_path.iterdir())

    def test_dynamic_quantization_is_undone(self, tmp_path, corpus):
        model, entry = corpus("ddddocr_rec_dynq")
        found = diagnose(model, SM89, trial=False)
        assert {problem.remedy for problem in found.problems} == {"dequantize"}
        assert {"unsupported", "plugin"} == {problem.kind for problem in found.problems}
        before = load(model)
        done = engine.prepare(before, spec_for=lambda now: SM89)
        edited = done.model
        assert any("applied dequantize" in word for word in done.notes)
        assert build_engine(edited, tmp_path / "m.engine", SM89).fresh
        kinds = {node.op_type for node in edited.proto.graph.node}
        assert not kinds.intersection({"DynamicQuantizeLinear", "ConvInteger", "MatMulInteger", "DynamicQuantizeLSTM"})
        save(edited, tmp_path / "float.onnx")
        feeds = fetch.seeded_feeds(model, entry)
        old, new = (session_of(path).run(None, feeds)[0] for path in (model, tmp_path / "float.onnx"))
        assert abs(old - new).max() < 0.02 * abs(old).max(), "it computes the same but for the rounding"

    def test_small_dynamic_quantizations_in_every_form(self, tmp_path):
        rng = np.random.default_rng(0)
        weight = rng.standard_normal((16, 8)).astype(np.float32)
        kernel = rng.standard_normal((4, 3, 3, 3)).astype(np.float32)
        for name, shape, build in (
            ("matmul", (2, 16), lambda x: [helper.make_node("MatMul", [x, "w"], ["y"], name="mm")]),
            ("conv", (1, 3, 8, 8), lambda x: [helper.make_node("Conv", [x, "k", "b"], ["y"], name="cv")]),
        ):
            graph = helper.make_graph(
                build("x"), "g", [helper.make_tensor_value_info("x", 1, shape)],
                [helper.make_tensor_value_info("y", 1, None)],
                [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(kernel, "k"),
                 numpy_helper.from_array(np.array([1, -2, 3, 0.5], np.float32), "b")],
            )  # fmt: skip
            proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
            onnx.save(onnx.shape_inference.infer_shapes(proto), tmp_path / "float.onnx")
            for per_channel in (False, True):
                quantized = tmp_path / "q.onnx"
                kind = quantization.QuantType.QInt8 if per_channel else quantization.QuantType.QUInt8
                quantization.quantize_dynamic(
                    tmp_path / "float.onnx", quantized, per_channel=per_channel, weight_type=kind
                )
                done = engine.prepare(load(quantized), spec_for=lambda now: SM89)
                edited = done.model
                assert any("applied dequantize" in word for word in done.notes), (name, done.notes)
                save(edited, tmp_path / "back.onnx")
                x = {"x": rng.standard_normal(shape).astype(np.float32)}
                exact, back = (session_of(tmp_path / f).run(None, x)[0] for f in ("float.onnx", "back.onnx"))
                assert abs(exact - back).max() < 0.03 * abs(exact).max(), name
                assert build_engine(edited, tmp_path / "m.engine", SM89).fresh

    def test_integer_weights_are_folded(self, tmp_path):
        graph = helper.make_graph(
            [helper.make_node("Cast", ["q"], ["f"], name="cast", to=1),
             helper.make_node("Mul", ["f", "s"], ["w"], name="mul"),
             helper.make_node("MatMul", ["x", "w"], ["y"], name="mm")], "g",
            [helper.make_tensor_value_info("x", 1, [2, 4])], [helper.make_tensor_value_info("y", 1, [2, 3])],
            [numpy_helper.from_array(np.arange(12, dtype=np.int8).reshape(4, 3), "q"),
             numpy_helper.from_array(np.float32(0.5), "s")],
        )  # fmt: skip
        model = saved(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        (problem,) = diagnose(model, SM89).problems
        assert (problem.kind, problem.node, problem.remedy) == ("build", "cast", "fold_weights")
        assert run("build-trt", model, tmp_path / "m.engine", "--apply", "--save-model", tmp_path / "e.onnx") == 0
        assert [node.op_type for node in onnx.load(tmp_path / "e.onnx").graph.node] == ["MatMul"]

    def test_resize_scales_that_are_an_input_become_sizes(self, tmp_path, capsys):
        graph = helper.make_graph(
            [helper.make_node("Resize", ["x", "", "factor"], ["y"], name="up", mode="cubic")], "g",
            [helper.make_tensor_value_info("x", 1, [1, 3, 8, 8]), helper.make_tensor_value_info("factor", 1, [4])],
            [helper.make_tensor_value_info("y", 1, [None] * 4)],
        )  # fmt: skip
        model = saved(tmp_path, helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
        assert run("build-trt", model, "--doctor") == 1
        assert "Give Resize sizes" in capsys.readouterr().out
        edited = tmp_path / "edited.onnx"
        recipe = tmp_path / "edits.yaml"
        arguments = ["--apply", "--save-model", edited, "--save-recipe", recipe, "--compute-capability", "8.9"]
        assert run("build-trt", model, tmp_path / "m.engine", *arguments) == UsageError.exit_code
        assert [next(iter(each.to_data())) for each in load_recipe(recipe).steps] == ["resize_by_sizes"]
        assert "'factor_sizes' holds sizes" in capsys.readouterr().err
        shapes = ["--min-shapes", "factor_sizes:1x3x8x8", "--opt-shapes", "factor_sizes:1x3x32x32",
                  "--max-shapes", "factor_sizes:1x3x64x64"]  # fmt: skip
        assert run("build-trt", model, tmp_path / "m.engine", *arguments, *shapes) == 0
        x = np.random.default_rng(0).standard_normal((1, 3, 8, 8)).astype(np.float32)
        (old,) = session_of(model).run(None, {"x": x, "factor": np.array([1, 1, 4, 4], np.float32)})
        (new,) = session_of(edited).run(None, {"x": x, "factor_sizes": np.array([1, 3, 32, 32])})
        assert np.array_equal(old, new)

    def test_a_branch_that_an_input_chooses(self, tmp_path, corpus, capsys):
        model, entry = corpus("silero_vad_16k_op15")
        edited = tmp_path / "edited.onnx"
        arguments = ["--shapes", "input:3x576", "state:2x3x128", "--compute-capability", "8.9"]
        assert run("build-trt", model, tmp_path / "m.engine", *arguments, "sr:1") == 2
        capsys.readouterr()
        recipe, replayed = tmp_path / "edits.yaml", tmp_path / "replayed.onnx"
        assert run("build-trt", model, tmp_path / "m.engine", "--fix", "sr=16000", "--apply", "--save-model", edited,
                   "--save-recipe", recipe, *arguments) == 0  # fmt: skip
        assert run("edit", model, replayed, "--recipe", recipe) == 0
        assert replayed.read_bytes() == edited.read_bytes(), "the recipe makes the very model that was built"
        feeds = fetch.seeded_feeds(model, entry)
        old = session_of(model).run(None, feeds)
        del feeds["sr"]
        for before, after in zip(old, session_of(edited).run(None, feeds), strict=True):
            assert np.array_equal(before, after)

    @pytest.mark.parametrize("name", ["magika", "ppocr_v2_cls", "eeg_seizure_lstm", "attacut_sc"])
    def test_real_models(self, name, tmp_path, corpus):
        model, _ = corpus(name)
        built = build_engine(model, tmp_path / "m.engine", SM89)
        assert built.fresh
        assert read_engine(built.path).problems == ()
        names = {node.name for node in load(model).proto.graph.node}
        assert names.intersection(built.record.data["nodes"]), "layers are told by ONNX node"
