"""``migrate``: what scripts for older TensorRT must change, on snippets as people write them."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import typer
from cases import ROOT

import onnxbench
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.engine import load_config
from onnxbench.errors import NotFoundError, SpecError, UsageError
from onnxbench.migration import RULES, TARGETS, Migration, migrate, to_sarif

HAS_TRT = importlib.util.find_spec("tensorrt_rtx") is not None


def read(tmp_path: Path, name: str, text: str, to: str = "11") -> Migration:
    file = tmp_path / name
    file.write_text(textwrap.dedent(text).lstrip("\n"))
    return migrate(file, to=to)


def told(found: Migration) -> list[tuple[int, str, str]]:
    return [(each.line, each.level, each.word) for each in found.changes]


def parsed(line: str) -> tuple[str, dict[str, object]]:
    """Returns what our own command line makes of a command: its name and its parameters."""
    words = shlex.split(line)
    assert words[0] == "onnxbench"
    command = typer.main.get_command(app).get_command(None, words[1])
    with command.make_context(words[1], words[2:], resilient_parsing=False) as context:
        return words[1], dict(context.params)


SHELL = """
#!/bin/bash
set -e
# trtexec --onnx=old.onnx --fp16
trtexec --onnx=model.onnx --saveEngine=model.engine \\
    --minShapes=x:1x3x224x224 \\
    --optShapes=x:8x3x224x224 --maxShapes=x:32x3x224x224 \\
    --fp16 --workspace=4096 > build.log 2>&1
"""


def test_a_shell_script_line_by_line(tmp_path):
    found = read(tmp_path, "build.sh", SHELL)
    assert told(found) == [(7, "must", "--fp16"), (7, "must", "--workspace")]
    assert found.must_change
    (command,) = found.commands
    assert command.line == 4
    assert command.here == (
        "onnxbench build-trt model.onnx model.engine --min-shapes x:1x3x224x224 --opt-shapes x:8x3x224x224 "
        "--max-shapes x:32x3x224x224 --fp16 --pool-limit workspace:4096M"
    )
    assert command.notes == ()
    (both,) = read(tmp_path, "both.sh", SHELL.replace("--fp16", "--fp16 --int8").split("\n", 4)[4]).commands
    assert "--fp16" not in both.here
    assert both.notes == ("--fp16: convert the model first", "--int8: convert the model first")


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("10", [(7, "must", "--workspace")]),
        ("11", [(7, "must", "--fp16"), (7, "must", "--workspace")]),
        ("rtx", [(4, "must", "trtexec"), (7, "must", "--fp16"), (7, "must", "--workspace")]),
        ("tensorrt-rtx", [(4, "must", "trtexec"), (7, "must", "--fp16"), (7, "must", "--workspace")]),
    ],
)
def test_what_is_gone_depends_on_the_target(tmp_path, to, expected):
    assert sorted(told(read(tmp_path, "build.sh", SHELL, to))) == expected


def test_on_tensorrt_10_precision_flags_stay(tmp_path):
    (command,) = read(tmp_path, "build.sh", SHELL, "10").commands
    assert "--fp16" in command.here.split()


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("Makefile", "engine: model.onnx\n\t$(TRTEXEC) --onnx=$< --saveEngine=$@ --best\n", [2]),
        ("Makefile", "FLAGS := --fp16 --int8\nall:\n\t/usr/src/tensorrt/bin/trtexec --onnx=m.onnx $(FLAGS)\n", [1, 1]),
        (
            "Dockerfile",
            "FROM x\nRUN pip install y && \\\n    trtexec --onnx=/m.onnx --saveEngine=/m.plan --fp16\n",
            [3],
        ),
        ("Dockerfile", 'FROM x\nCMD ["trtexec", "--onnx=/m.onnx",\\\n  "--int8", "--calib=c.bin"]\n', [3, 3]),
        ("run.bat", "rem trtexec --fp16\ntrtexec.exe --onnx=m.onnx ^\n  --fp16\n", [3]),
        ("run.ps1", "trtexec --onnx=m.onnx `\n  --int8\n", [2]),
        ("notes.md", "# build\nUse `trtexec --onnx=m.onnx --fp16` to build.\n", [2]),
        ("notes.txt", "trtexec is a tool of TensorRT; polygraphy is another.\n", []),
        ("ci.yml", "steps:\n  - run: trtexec --onnx=m.onnx --saveEngine=m.plan --fp8 | tee log\n", [2]),
        ("ci.yml", 'steps:\n  - run: "${TRT_HOME}/bin/trtexec --onnx=m.onnx --int4"\n', [2]),
        ("opts.sh", 'OPTS="--fp16"\n"$TRT/bin/trtexec" --onnx=a.onnx "${OPTS}"\n', [1]),
        ("two.sh", "trtexec --onnx=a.onnx --fp16 && trtexec --onnx=b.onnx --bf16 # --int8\n", [1, 1]),
        ("uff.sh", "trtexec --uff=m.uff --uffInput=x,3,8,8 --output=y --batch=8 --maxBatch=8\n", [1, 1, 1, 1, 1]),
        ("loop.sh", "for m in *.onnx; do trtexec --onnx=$m --minTiming=1; done\n", [1]),
        ("p.sh", "trtexec --onnx=m.onnx --preview=+fasterDynamicShapes0805 --avgTiming=3\n", [1]),
        ("l.sh", "trtexec --onnx=m.onnx --precisionConstraints=obey --layerPrecisions=*:fp16\n", [1, 1]),
    ],
)
def test_commands_are_found_where_people_write_them(tmp_path, name, text, lines):
    found = read(tmp_path, name, text)
    assert sorted(each.line for each in found.changes if each.level == "must") == lines


def test_polygraphy_commands(tmp_path):
    found = read(
        tmp_path,
        "build.sh",
        """
        polygraphy convert model.onnx -o m.engine --fp16 --int8 --calibration-cache c.bin \\
            --trt-min-shapes x:[1,3,8,8] y:[1,4] --trt-opt-shapes x:[2,3,8,8] y:[2,4] \\
            --trt-max-shapes x:[4,3,8,8] y:[4,4] --pool-limit workspace:2G
        polygraphy debug precision model.onnx --fp16 --check "python3 check.py"
        polygraphy data to-input a.json -o b.json
        python -m polygraphy inspect capability model.onnx
        polygraphy run m.onnx --trt --save-tactics t.json
        """,
    )
    assert told(found) == [
        (1, "must", "--fp16"), (1, "must", "--int8"), (1, "must", "--calibration-cache"), (4, "must", "--fp16"),
        (4, "must", "debug precision"), (5, "must", "data to-input"), (7, "must", "--save-tactics"),
    ]  # fmt: skip
    assert [command.here for command in found.commands] == [
        "onnxbench build-trt model.onnx m.engine --min-shapes 'x:[1,3,8,8]' 'y:[1,4]' --opt-shapes 'x:[2,3,8,8]' "
        "'y:[2,4]' --max-shapes 'x:[4,3,8,8]' 'y:[4,4]' --pool-limit workspace:2G",
        "onnxbench bisect CONVERTED.onnx --against model.onnx",
        None,
        "onnxbench capability model.onnx",
        "onnxbench build-trt m.onnx m.engine",
    ]


TRT_8 = """
import tensorrt as trt
import pycuda.driver as cuda

class Calibrator(trt.IInt8EntropyCalibrator2):
    def get_batch_size(self):
        return 8

def build(path):
    with trt.Builder(LOGGER) as builder, builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH)) as network, trt.OnnxParser(network, L) as parser:
        config = builder.create_builder_config()
        config.max_workspace_size = 1 << 30
        config.set_flag(trt.BuilderFlag.FP16)
        config.set_flag(trt.BuilderFlag.INT8)
        config.int8_calibrator = Calibrator()
        builder.max_batch_size = 8
        profile = builder.create_optimization_profile()
        profile.set_shape("x", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8))
        config.add_optimization_profile(profile)
        with open("net.onnx", "rb") as handle:
            parser.parse(handle.read())
        for i in range(network.num_layers):
            network.get_layer(i).precision = trt.float16
        return builder.build_engine(network, config)

class Runner:
    def __init__(self, engine, args):
        self.engine = engine
        self.context = engine.create_execution_context()
        self.batch = args.max_batch_size
        self.precision = args.precision
        for i in range(self.engine.num_bindings):
            name = self.engine.get_binding_name(i)
            shape = self.engine.get_binding_shape(i)
            if self.engine.binding_is_input(i):
                self.context.set_binding_shape(i, shape)

    def __call__(self, bindings, stream):
        self.context.execute_async(batch_size=1, bindings=bindings, stream_handle=stream)
        self.context.execute_async_v2(bindings, stream)
"""


def test_a_script_of_tensorrt_8_to_11(tmp_path):
    found = read(tmp_path, "trt8.py", TRT_8)
    assert told(found) == [
        (4, "must", "IInt8EntropyCalibrator2"),
        (10, "should", "NetworkDefinitionCreationFlag.EXPLICIT_BATCH"),
        (12, "must", "max_workspace_size"), (13, "must", "BuilderFlag.FP16"), (14, "must", "BuilderFlag.INT8"),
        (15, "must", "int8_calibrator"), (16, "must", "max_batch_size"), (23, "must", "precision"),
        (24, "must", "build_engine"), (32, "must", "num_bindings"), (33, "must", "get_binding_name"),
        (34, "must", "get_binding_shape"), (35, "must", "binding_is_input"), (36, "must", "set_binding_shape"),
        (39, "must", "execute_async"), (40, "must", "execute_async_v2"),
    ]  # fmt: skip
    (command,) = found.commands
    assert command.here == (
        "onnxbench build-trt net.onnx net.engine --min-shapes x:1x3x8x8 --opt-shapes x:2x3x8x8 --max-shapes x:4x3x8x8"
    )


def test_a_script_of_tensorrt_8_to_10_keeps_its_precisions(tmp_path):
    words = [word for _, level, word in told(read(tmp_path, "trt8.py", TRT_8, "10")) if level == "must"]
    assert "execute_async_v2" in words
    assert not {"BuilderFlag.FP16", "int8_calibrator", "precision"} & set(words)


def test_names_of_other_libraries_are_left_alone(tmp_path):
    found = read(
        tmp_path,
        "torch_only.py",
        """
        import torch
        class C:
            def execute_async_v2(self): return self.max_workspace_size
        config = C(); config.int8_calibrator = 1; trt.BuilderFlag.FP16
        """,
    )
    assert found.changes == ()
    assert found.commands == ()


@pytest.mark.parametrize(
    ("text", "to", "expected"),
    [
        ("import tensorrt as trt\nclass P(trt.IPluginV2DynamicExt): pass\n", "11",
         [(2, "should", "IPluginV2DynamicExt")]),
        ("import tensorrt as trt\nclass P(trt.IPluginV2DynamicExt): pass\n", "rtx",
         [(1, "must", "import tensorrt"), (2, "must", "IPluginV2DynamicExt")]),
        ("from tensorrt import BuilderFlag as F\nconfig.set_flag(F.BF16)\n", "11", [(2, "must", "BuilderFlag.BF16")]),
        ("import tensorrt as trt\nrt = trt.Runtime(l)\neng = rt.deserialize_cuda_engine(b)\neng.device_memory_size\n",
         "11", [(4, "must", "device_memory_size")]),
        ("import tensorrt as trt\ninfo = json.loads(i.get_engine_information(f))['Bindings']\n", "11",
         [(2, "must", "['Bindings']")]),
        ("import tensorrt_rtx as trt\nimport tensorrt.plugin as tp\n", "rtx", [(2, "must", "import tensorrt.plugin")]),
        ("import tensorrt as trt\nconfig.set_tactic_sources(1 << int(trt.TacticSource.CUBLAS))\n", "rtx",
         [(1, "must", "import tensorrt"), (2, "must", "TacticSource.CUBLAS")]),
        ("import tensorrt as trt\nfor c in registry.plugin_creator_list: pass\n", "11",
         [(2, "must", "plugin_creator_list")]),
        ("import tensorrt as trt\nparser = trt.UffParser()\n", "10", [(2, "must", "UffParser")]),
        ("import tensorrt as trt\nnetwork.add_fully_connected(x, 3, w)\n", "10", [(2, "must", "add_fully_connected")]),
        ("import tensorrt as trt\nconfig.algorithm_selector = S()\n", "11", [(2, "must", "algorithm_selector")]),
        ("import tensorrt as trt\ncontext.active_optimization_profile = 0\nc = context.active_optimization_profile\n",
         "10", [(2, "must", "active_optimization_profile")]),
    ],
)  # fmt: skip
def test_python_of_tensorrt(tmp_path, text, to, expected):
    assert told(read(tmp_path, "s.py", text, to)) == expected


LOADERS = """
from polygraphy.backend.trt import (
    Calibrator, CreateConfig, EngineFromNetwork, NetworkFromOnnxPath, Profile, SaveEngine, TrtRunner)

profiles = [Profile().add("x", min=(1, 3, 8, 8), opt=(2, 3, 8, 8), max=(4, 3, 8, 8))]
build = SaveEngine(
    EngineFromNetwork(
        NetworkFromOnnxPath("net.onnx"),
        config=CreateConfig(
            fp16=True,
            int8=False,
            calibrator=Calibrator(data_loader=data()),
            profiles=profiles,
        ),
    ),
    path="net.plan",
)
"""


def test_polygraphys_loaders(tmp_path):
    found = read(tmp_path, "loaders.py", LOADERS)
    assert told(found) == [
        (9, "must", "CreateConfig(fp16=)"), (11, "must", "CreateConfig(calibrator=)"), (11, "must", "Calibrator"),
    ]  # fmt: skip
    (command,) = found.commands
    assert command.here == (
        "onnxbench build-trt net.onnx net.plan --min-shapes x:1x3x8x8 --opt-shapes x:2x3x8x8 --max-shapes x:4x3x8x8 "
        "--fp16"
    )
    assert (6, "should", "EngineFromNetwork") in told(read(tmp_path, "loaders.py", LOADERS, "rtx"))


MMDEPLOY = """
_base_ = ['../_base_/base_static.py']
onnx_config = dict(input_shape=None)
backend_config = dict(
    type='tensorrt',
    common_config=dict(
        fp16_mode=True,
        int8_mode=False,
        max_workspace_size=1 << 30),
    model_inputs=[
        dict(input_shapes=dict(input=dict(
            min_shape=[1, 3, 320, 320], opt_shape=[1, 3, 800, 1344], max_shape=[1, 3, 1344, 1344])))
    ])
raise SystemExit("this must not run")
"""


def test_an_mmdeploy_configuration_and_its_command(tmp_path):
    found = read(tmp_path, "detection_tensorrt.py", MMDEPLOY)
    assert told(found) == [(3, "must", "backend_config"), (6, "must", "fp16_mode")]
    (command,) = found.commands
    name, params = parsed(command.here)
    assert name == "build-trt"
    assert load_config(params["config"], ["input"])["profiles"][0]["input"].max == (1, 3, 1344, 1344)


def test_an_mmdeploy_configuration_of_another_backend(tmp_path):
    assert read(tmp_path, "ort.py", "backend_config = dict(type='onnxruntime')\n").changes == ()


def test_commands_within_python(tmp_path):
    found = read(
        tmp_path,
        "build.py",
        '''
        """Like trtexec --onnx=x.onnx --fp16, which this text is not."""
        import os, subprocess
        subprocess.run(["trtexec", f"--onnx={path}", "--saveEngine=" + out,
                        "--fp16"], check=True)
        os.system("trtexec --onnx=m.onnx --int8 --calib=c.bin")
        cmd = f"polygraphy convert {model.path} --bf16 -o {out}"
        ''',
    )
    assert told(found) == [
        (4, "must", "--fp16"), (5, "must", "--int8"), (5, "must", "--calib"), (6, "must", "--bf16"),
    ]  # fmt: skip
    assert [command.here for command in found.commands] == [
        'onnxbench build-trt "$path" "$out" --fp16',
        "onnxbench build-trt m.onnx m.engine",
        'onnxbench build-trt "$path" "$out" --bf16',
    ]


def test_a_notebook(tmp_path):
    cells = [
        {"cell_type": "markdown", "source": ["# trtexec --onnx=m.onnx --fp16\n", "text"]},
        {
            "cell_type": "code",
            "source": ["%matplotlib inline\n", "import tensorrt as trt\n", "c.set_flag(trt.BuilderFlag.FP16)"],
        },
        {"cell_type": "code", "source": "!trtexec --onnx=m.onnx --int8"},
    ]
    found = read(tmp_path, "n.ipynb", json.dumps({"cells": cells}))
    assert told(found) == [(5, "must", "BuilderFlag.FP16"), (6, "must", "--int8")]


TRTEXEC_LINES = [
    "trtexec --onnx=m.onnx --saveEngine=m.plan --shapes=x:1x3x8x8,y:1x4 --fp16 --best --int8",
    "trtexec --onnx=m.onnx --profile=0 --minShapes=x:1x3 --optShapes=x:1x3 --maxShapes=x:2x3 --profile=1 --shapes=x:8",
    "trtexec --onnx=m.onnx --memPoolSize=workspace:4096,dlaSRAM:1 --builderOptimizationLevel=5 --maxAuxStreams=2",
    "trtexec --onnx=m.onnx --timingCacheFile=t.cache --avgTiming=8 --tacticSources=-CUDNN,+CUBLAS --noTF32",
    "trtexec --onnx=m.onnx --stripWeights --refit --versionCompatible --excludeLeanRuntime --allowWeightStreaming",
    "trtexec --onnx=m.onnx --hardwareCompatibilityLevel=ampere+ --runtimePlatform=WindowsAMD64 --device=1",
    "trtexec --onnx=m.onnx --useDLACore=0 --allowGPUFallback --profilingVerbosity=detailed --sparsity=enable",
    "trtexec --onnx=m.onnx --staticPlugins=a.so --setPluginsToSerialize=b.so --dynamicPlugins=c.so --plugins=d.so",
    "trtexec --onnx=m.onnx --skipInference --verbose --iterations=10 --warmUp=0 --dumpProfile --stronglyTyped",
    "trtexec --onnx='a model.onnx' --saveEngine=\"an engine.plan\" --tilingOptimizationLevel=fast --directIO",
    "trtexec --onnx=m.onnx --inputIOFormats=fp16:chw --unknownFlag=3",
    "polygraphy convert m.onnx -o m.plan --trt-min-shapes x:[1,3] --trt-opt-shapes x:[2,3] --trt-max-shapes x:[4,3]",
    "polygraphy convert --fp16 --int8 --workspace 2G m.onnx --output m.plan --builder-optimization-level 3",
    "polygraphy convert m.onnx -o m.plan --convert-to trt --pool-limit workspace:250M dla_sram:1M --plugins a.so b.so",
    "polygraphy convert m.onnx -o m.plan --load-timing-cache c --refittable --strip-plan --sparse-weights -v",
    "polygraphy convert m.onnx -o m.plan --hardware-compatibility-level ampere_plus --tactic-sources jit_convolutions",
    "polygraphy convert m.onnx -o m.plan --compute-capabilities 8.9 12.0 --version-compatible --use-dla --unknown 3 4",
    "polygraphy run m.onnx --trt --save-engine m.plan --fp16",
    "polygraphy run m.onnx --trt --onnxrt --atol 1e-3",
    "polygraphy run m.onnx --trt --fp16 --input-shapes x:[1,2] y:[3]",
    "polygraphy surgeon extract m.onnx --inputs x:[1,3]:float32 --outputs y:float32 -o part.onnx",
    "polygraphy inspect model m.onnx --show layers",
    "polygraphy inspect capability m.onnx",
    "polygraphy debug precision m.onnx --fp16 --check true",
]


@pytest.mark.parametrize("to", TARGETS)
@pytest.mark.parametrize("line", TRTEXEC_LINES)
def test_our_own_parser_takes_every_translation(tmp_path, line, to):
    (command,) = read(tmp_path, "build.sh", line, to).commands
    name, params = parsed(command.here)
    assert str(params.get("model", params.get("suspect", "m.onnx"))) in ("m.onnx", "a model.onnx", "CONVERTED.onnx")
    if name == "build-trt":
        assert params["engine"] == ("tensorrt-rtx" if to == "rtx" else None)
        alone = not {"--bf16", "--int8", "--fp8", "--int4", "--best"} & set(shlex.split(line))
        assert params["fp16"] == ("--fp16" in line and (to == "10" or alone))
    for option in shlex.split(line)[1:]:
        known = option.partition("=")[0]
        if "nknown" in known or known == "--inputIOFormats":
            assert f"{known}: no counterpart here" in command.notes


@pytest.mark.parametrize(
    ("line", "here"),
    [
        ("polygraphy run m.engine --trt --load-inputs i.json", "onnxbench run m.engine"),
        ("polygraphy run --trt define.py --model-type=trt-network-script", None),
        ("polygraphy run ... --trt", None),
        ("trtexec --loadEngine=m.plan --streams=2", "onnxbench run m.plan"),
        ("trtexec --onnx=m.onnx --minShapes=x:1 --optShapes=x:2 --maxShapes=x:4 --shapes=x:3 --noTF32",
         "onnxbench build-trt m.onnx m.engine --min-shapes x:1 --opt-shapes x:2 --max-shapes x:4 --no-tf32"),
        ("polygraphy convert m.onnx --convert-to onnx-like-trt-network -o n.onnx", None),
        ("polygraphy convert m.onnx --fp-to-fp16 -o n.onnx", None),
        ("polygraphy template trt-config -o c.py", None),
    ],
)  # fmt: skip
def test_commands_that_do_something_else(tmp_path, line, here):
    assert [command.here for command in read(tmp_path, "build.sh", line).commands] == [here]


def test_shapes_and_pools_arrive_as_they_were_meant(tmp_path):
    line = "trtexec --onnx=m.onnx --minShapes=a:1x3,b:1 --maxShapes=a:4x3,b:4 --memPoolSize=workspace:64"
    (command,) = read(tmp_path, "build.sh", line).commands
    _, params = parsed(command.here)
    assert params["min_shapes"] == ["a:1x3", "b:1"]
    assert params["max_shapes"] == ["a:4x3", "b:4"]
    assert params["pool_limit"] == ["workspace:64M"]


# ---------------------------------------------------------------- the command


def run_cli(*words: str) -> tuple[int, str]:
    import io

    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = bounded(app, list(words))
    return code, out.getvalue()


def test_exit_codes_and_forms(tmp_path):
    (tmp_path / "old.sh").write_text("trtexec --onnx=m.onnx --fp16\n")
    (tmp_path / "new.sh").write_text("trtexec --onnx=m.onnx --saveEngine=m.plan\n")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "hook.sh").write_text("trtexec --onnx=m.onnx --fp16\n")
    (tmp_path / "weights.bin").write_bytes(b"trtexec --fp16\0")
    (tmp_path / "broken.py").write_text("import tensorrt\ndef (:\n")
    code, text = run_cli("migrate", str(tmp_path))
    assert code == 1
    assert "old.sh:1" in text
    assert "broken.py was not looked at" in text
    assert ".git" not in text
    assert run_cli("migrate", str(tmp_path / "new.sh"))[0] == 0
    code, text = run_cli("migrate", str(tmp_path / "old.sh"), "--json")
    data = json.loads(text)
    assert code == 1
    assert data["schema_version"]
    assert data["result"]["changes"][0]["line"] == 1
    assert data["result"]["commands"][0]["here"] == "onnxbench build-trt m.onnx m.engine --fp16"
    code, text = run_cli("migrate", str(tmp_path / "old.sh"), "--format", "sarif")
    (run,) = json.loads(text)["runs"]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert code == 1
    assert place["region"] == {"startLine": 1}
    assert run["tool"]["driver"]["rules"][0]["id"] == "trtexec-precision"


def test_refusals(tmp_path):
    with pytest.raises(NotFoundError, match="no file or folder"):
        migrate(tmp_path / "missing.sh")
    with pytest.raises(UsageError, match="no TensorRT"):
        migrate(tmp_path, to="9")
    (tmp_path / "broken.py").write_text("import tensorrt\ndef (:\n")
    with pytest.raises(SpecError, match="line 2"):
        migrate(tmp_path / "broken.py")
    (tmp_path / "binary.sh").write_bytes(b"\0\1")
    with pytest.raises(SpecError, match="not text"):
        migrate(tmp_path / "binary.sh")
    assert run_cli("migrate", str(tmp_path), "--format", "yaml")[0] == 2


def test_the_facade_has_it(tmp_path):
    assert onnxbench.migrate is migrate
    assert to_sarif(read(tmp_path, "a.sh", "echo\n"))["runs"][0]["results"] == []


# ---------------------------------------------------------------- the table


def test_every_rule_is_complete():
    assert len({rule.code for rule in RULES}) == len(RULES)
    for rule in RULES:
        assert rule.must or rule.should, rule.code
        assert not set(rule.must) & set(rule.should)
        assert {*rule.must, *rule.should} <= set(TARGETS)
        assert rule.names
        assert rule.what
        assert rule.instead
        assert rule.source


_LOOK = """
import json
import tensorrt_rtx as trt
members = {n: sorted(getattr(getattr(trt, n), "__members__", {})) for n in dir(trt)}
classes = {n: dir(getattr(trt, n)) for n in dir(trt) if isinstance(getattr(trt, n), type)}
try:
    import tensorrt_rtx.plugin
    quick = True
except ImportError:
    quick = False
print(json.dumps({"members": members, "classes": classes, "quick": quick}))
"""


@pytest.mark.trt
@pytest.mark.skipif(not HAS_TRT, reason="tensorrt-rtx is not installed (pip install 'onnxbench[trt]')")
def test_what_the_table_says_of_tensorrt_rtx_is_so():
    done = subprocess.run(
        [sys.executable, "-c", _LOOK], capture_output=True, text=True, check=True, cwd=ROOT, timeout=120
    )
    api = json.loads(done.stdout)
    members, classes = api["members"], api["classes"]
    assert not api["quick"]
    there = {
        "trt.IPluginV2",
        "trt.IPluginV2Ext",
        "trt.IPluginV2DynamicExt",
        "trt.IPluginCreator",
    }  # and nothing takes them
    looked = 0
    for rule in RULES:
        if rule.where != "tensorrt-python" or "rtx" not in rule.must:
            continue
        for name in rule.names:
            if name.startswith(("import ", "[")) or name.endswith("=") or name in there or name == "trt.plugin":
                continue
            looked += 1
            owner, _, last = name.rpartition(".")
            if owner.startswith("trt."):
                assert last not in members[owner.removeprefix("trt.")], name
            elif owner == "trt":
                assert last not in members, name
            elif owner == "*":
                assert not [each for each, attributes in classes.items() if last in attributes], name
            else:
                assert last not in classes[owner], name
    assert looked > 60
    for owner, name in (("IExecutionContext", "execute_async_v3"), ("IExecutionContext", "set_input_shape"),
                        ("IExecutionContext", "set_optimization_profile_async"), ("ICudaEngine", "num_io_tensors"),
                        ("ICudaEngine", "get_tensor_profile_shape"), ("ICudaEngine", "device_memory_size_v2"),
                        ("ICudaEngine", "weight_streaming_budget_v2"), ("IBuilderConfig", "set_memory_pool_limit"),
                        ("Builder", "build_serialized_network"), ("IPluginRegistry", "all_creators"),
                        ("OnnxParser", "supports_model_v2"), ("INetworkDefinition", "add_convolution_nd")):  # fmt: skip
        assert name in classes[owner], name
