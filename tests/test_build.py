"""The commands show and build: what goes to stdout, stderr and the disk."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from cases import cases, named
from engines import run_ort
from normal import normal
from onnx import helper, numpy_helper

from onnxbench import modelspec, modeltext
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.model import load
from onnxbench.writer import save

EXAMPLES = Path(__file__).resolve().parents[1] / "examples" / "build"
RELU = "g (float[4] x) => (y) { y = Relu(x) }\n"


@pytest.fixture
def cli(tmp_path, capsys, monkeypatch):
    """Runs a command in a folder of its own; gives its stdout, or its stderr if it is to fail."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object, status: int = 0) -> str:
        capsys.readouterr()
        code = bounded(app, [str(word) for word in words])
        shown = capsys.readouterr()
        assert code == status, f"{words} ended with {code}:\n{shown.out}\n{shown.err}"
        assert "Traceback" not in shown.err
        return shown.out if status == 0 else shown.err

    return run


def shown(path: Path, *words: str) -> str:
    """Returns what ``show`` prints, in a process of its own (pipes and encodings included)."""
    command = [sys.executable, "-m", "onnxbench", "show", str(path), *words]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode()


@cases(lambda case: (case.valid != "no" and "function" in case.name) or case.name in ("if_basic.onnx", "unsorted.onnx"))
def test_show_then_build_gives_the_model_that_a_plain_copy_gives(case, cli, tmp_path):
    model = load(case.path)
    save(model, tmp_path / "copy.onnx")
    (tmp_path / "m.txt").write_text(modeltext.show(model))
    cli("build", "m.txt", "built.onnx", "--weights-from", case.path)
    assert normal(load("built.onnx")) == normal(load("copy.onnx"))


def test_the_pipe_of_the_help_text(tmp_path):
    case = named("whole_model_small.onnx")
    text = shown(case.path, "--weights", "inline")
    done = subprocess.run(
        [sys.executable, "-m", "onnxbench", "build", "-", "copy.onnx"],
        input=text.encode(), cwd=tmp_path, capture_output=True, check=True,
    )  # fmt: skip
    assert b"wrote copy.onnx" in done.stdout
    assert normal(load(tmp_path / "copy.onnx")) == normal(load(case.path))


def test_names_of_every_script_go_through_a_pipe(tmp_path):
    node = helper.make_node("Relu", ["変数/é:0"], ["y\n"])
    value = helper.make_tensor_value_info("変数/é:0", 1, [2])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y\n", 1, [2])])
    onnx.save(helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "m.onnx")
    command = [sys.executable, "-m", "onnxbench", "show", "m.onnx"]
    environment = {"PATH": "/usr/bin", "LC_ALL": "POSIX", "PYTHONIOENCODING": "latin-1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=True, env=environment)
    assert '"変数/é:0"' in done.stdout.decode()


@pytest.mark.corpus
def test_edit_a_real_model_as_text(cli, tmp_path, corpus):
    path, _ = corpus("magika")
    before = hashlib.sha256(path.read_bytes()).hexdigest()
    text = shown(path)
    assert "build with --weights-from magika.onnx" in text
    edited = text.replace("magika-", "edited-") if "magika-" in text else "# edited\n" + text
    (tmp_path / "m.txt").write_text(edited)
    assert "--weights-from" in cli("build", "m.txt", "new.onnx", status=11)
    assert not (tmp_path / "new.onnx").exists()
    cli("build", "m.txt", "new.onnx", "--weights-from", path)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == before
    original, new = load(path), load("new.onnx")
    for one, other in zip(original.proto.graph.initializer, new.proto.graph.initializer, strict=True):
        assert np.array_equal(original.array(one), new.array(other), equal_nan=True)


def test_build_writes_what_it_says(cli, tmp_path):
    (tmp_path / "m.txt").write_text(RELU)
    result = json.loads(cli("build", "m.txt", "m.onnx", "--json"))["result"]
    assert result["nodes"] == 1
    assert result["opsets"] == {"": modelspec.DEFAULT_OPSET}
    assert result["outputs"] == {"y": "float32[4]"}
    assert result["notes"] == [f"no opset is stated: it is {modelspec.DEFAULT_OPSET}"]
    assert result["saved"]["size"] == (tmp_path / "m.onnx").stat().st_size
    x = np.array([-1, 0, 1, np.inf], np.float32)
    assert run_ort(tmp_path / "m.onnx", {"x": x})["y"][2] == np.maximum(x, 0).tobytes()
    assert "1 node," in cli("build", "m.txt", "m.onnx", "--opset", "17")
    assert load("m.onnx").proto.opset_import[0].version == 17
    first = (tmp_path / "m.onnx").read_bytes()
    cli("build", "m.txt", "m.onnx", "--opset", "17")
    assert (tmp_path / "m.onnx").read_bytes() == first


def test_weights_of_a_specification_can_go_outside(cli, tmp_path):
    np.save(tmp_path / "w.npy", np.arange(4096, dtype=np.float32))
    (tmp_path / "m.yaml").write_text(
        "inputs: {x: 'float32[4096]'}\ninitializers: {w: {file: w.npy}}\nnodes:\n  - y = Add(x, w)\noutputs: [y]\n"
    )
    cli("build", "m.yaml", "m.onnx", "--save-external-data", "m.data")
    assert (tmp_path / "m.data").stat().st_size == 4096 * 4
    x = np.ones(4096, np.float32)
    assert run_ort(tmp_path / "m.onnx", {"x": x})["y"][2] == (x + np.arange(4096, dtype=np.float32)).tobytes()
    error = cli("build", "m.yaml", "w.npy", status=2)
    assert "input files are never changed" in error


@pytest.mark.parametrize("name", sorted(file.name for file in EXAMPLES.iterdir()))
def test_every_example_is_built_and_loads_in_onnx_runtime(name, cli, tmp_path):
    cli("build", EXAMPLES / name, "out.onnx")
    import onnxruntime

    onnxruntime.InferenceSession(str(tmp_path / "out.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    ("words", "text", "status", "said"),
    [
        (
            ["m.txt", "o.onnx"],
            "g (float[4] x) => (y) {\n  y = Rellu (x)\n}",
            11,
            "m.txt:2: there is no operator",
        ),
        (["m.txt", "o.onnx"], "g (float[4] x) => (y) {\n  y = Relu (x\n}", 11, "m.txt:3:1: expected ',' or ')'"),
        (["m.yaml", "o.onnx"], "inputs: [", 11, "m.yaml:2:1: not well-formed YAML"),
        (["none.txt", "o.onnx"], "", 4, "there is no file none.txt"),
        (["m.txt", "nowhere/o.onnx"], RELU, 7, "there is no folder"),
        (["m.txt", "m.txt"], RELU, 2, "input files are never changed"),
        (["m.txt", "o.onnx", "--weights-from", "w.onnx"], RELU, 4, "there is no file w.onnx"),
        (["m.yaml", "o.onnx", "--weights-from", "m.yaml"], "outputs: [y]", 5, "not an ONNX model"),
        (["m.txt", "o.onnx", "--format", "xml"], RELU, 2, "no form of a specification"),
        (["m.txt", "o.onnx", "--opset", "99"], RELU, 11, "opset"),
    ],
)
def test_mistakes_end_with_their_status_and_write_nothing(words, text, status, said, cli, tmp_path):
    for name in ("m.txt", "m.yaml"):
        (tmp_path / name).write_text(text)
    error = cli("build", *words, status=status)
    assert said in error
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.txt", "m.yaml"]
    assert (tmp_path / "m.txt").read_text() == text


def test_show_parts_and_json(cli):
    path = named("function_nested").path
    result = json.loads(cli("show", path, "--json"))["result"]
    assert result["model"]["functions"] > 1
    assert modeltext.parse(result["text"]).proto.graph == load(path).proto.graph
    everything = cli("show", path)
    one = cli("show", path, "--function", load(path).proto.functions[0].name)
    assert one.strip() in everything
    assert cli("show", path, "--node", "op:*").strip()
    assert "Did you mean" in cli("show", path, "--function", load(path).proto.functions[0].name + "x", status=4)
    assert "no way to print" in cli("show", path, "--weights", "all", status=2)
    assert "matches no" in cli("show", path, "no_such_tensor", status=4)


def test_show_reads_no_weights_that_it_does_not_print(cli, tmp_path):
    w = numpy_helper.from_array(np.zeros(1 << 20, np.float32), "w")
    value = helper.make_tensor_value_info("x", 1, [1 << 20])
    node = helper.make_node("Add", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", [value], [helper.make_tensor_value_info("y", 1, [1 << 20])], [w])
    onnx.save(
        helper.make_model(graph, ir_version=8), "m.onnx", save_as_external_data=True, location="m.data",
    )  # fmt: skip
    (tmp_path / "m.data").unlink()
    assert "4,194,304 bytes at 0 of m.data" in cli("show", "m.onnx")
    assert "missing" in cli("show", "m.onnx", "--weights", "inline", status=6)
