"""Suites: models through pipelines. The example that ships runs as its page says, and each way a cell can come out."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from importlib.util import find_spec
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import yaml
from cases import ROOT, named
from onnx import parser

import onnxbench
from onnxbench import backends
from onnxbench.captures import save as save_values
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.documents import from_yaml
from onnxbench.errors import BenchError, NotFoundError, SpecError, UsageError
from onnxbench.model import load
from onnxbench.recipe import to_python
from onnxbench.running import run
from onnxbench.suite import junit_report, load_suite, run_suite, suite_schema, support_table

EXAMPLE = ROOT / "examples" / "suite" / "suite.yaml"
PAGE = (ROOT / "docs" / "suite.md").read_text(encoding="utf-8")
NET = named("whole_model_small").path
WITH_WEIGHTS = ROOT / "fixtures" / "models" / "external_one_file"
TEXT = """<ir_version: 8, opset_import: ["": 17]> g (float[N,4] x) => (float[N,4] z) <float[4] w = {1, 2, 3, 4}>
    { a = Add(x, w) b = Mul(a, a) z = Neg(b) }"""


def write(path: Path, text: str) -> Path:
    path.write_bytes(parser.parse_model(text).SerializeToString())
    return path


def suite_of(folder: Path, **said: object) -> Path:
    path = folder / "suite.yaml"
    path.write_text(yaml.safe_dump({"version": 1, **said}, sort_keys=False), encoding="utf-8")
    return path


# ---------------------------------------------------------------- the example, and the page about it


def test_the_example_from_python():
    found = onnxbench.run_suite(EXAMPLE, models=["dynamic*", "two*"], pipelines=["half"])
    (table,) = found.tables
    assert found.passed
    assert (table.models, list(table.pipelines)) == (("two_branches", "dynamic_batch"), ["half"])
    half = table.cell("two_branches", "half")
    assert half.worst is not None
    assert 0 < half.worst.max_abs < 1e-2
    assert [cell.sets for cell in table.cells] == [1, 2]


def test_the_page_shows_the_example(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = re.search(r"<!-- suite: begin -->\n```yaml\n(.*?)```", PAGE, re.DOTALL)[1]
    assert shown == EXAMPLE.read_text(encoding="utf-8")
    command, output = re.search(r"```console\n\$ (.*?)\n(.*?)\n```", PAGE, re.DOTALL).groups()
    target = tmp_path / "support.md"
    words = [str(target) if word == "support.md" else word for word in shlex.split(command)[1:]]
    assert bounded(app, words) == 0
    said = capsys.readouterr()
    lines = [line.rstrip() for line in said.out.replace(str(target), "support.md").strip().splitlines()]
    assert lines == output.splitlines()
    assert said.err.count("onnxbench: [") == 9
    table = re.search(r"<!-- table: begin -->\n(.*?)\n<!-- table: end -->", PAGE, re.DOTALL)[1]
    assert target.read_text(encoding="utf-8").strip() == table.strip()


def test_every_key_is_on_the_page_and_in_the_schema():
    jsonschema.Draft202012Validator.check_schema(suite_schema())
    jsonschema.validate(to_python(from_yaml(EXAMPLE.read_text(encoding="utf-8"), "suite")), suite_schema())
    properties = suite_schema()["properties"]
    pipeline = properties["pipelines"]["additionalProperties"]["anyOf"][0]["properties"]
    model = properties["models"]["items"]["anyOf"][1]["properties"]
    for key, schema in {**pipeline, **model}.items():
        assert schema["description"], key
        assert f"`{key}`" in PAGE, key
    wrong = {"models": ["x.onnx"], "pipelines": {"plain": {"onn": "ort"}}}
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(wrong, suite_schema())


# ---------------------------------------------------------------- how cells come out


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with small models, values that were recorded of one, and wrong ones."""
    home = tmp_path_factory.mktemp("suite")
    write(home / "square.onnx", TEXT)
    (home / "net.onnx").write_bytes(NET.read_bytes())
    (home / "custom.onnx").write_bytes(named("custom_op").path.read_bytes())
    (home / "damaged.onnx").write_bytes(NET.read_bytes()[:100])
    write(home / "invalid.onnx", TEXT.replace("Neg(b)", "Neg(c)"))
    (home / "square.py").write_text(
        "import torch\n\n\nclass Square(torch.nn.Module):\n    def forward(self, x):\n"
        "        return -(x + torch.tensor([1.0, 2.0, 3.0, 4.0])) ** 2\n\n\n"
        "def make():\n    return Square(), (torch.randn(2, 4),)\n\n\n"
        "def linear():\n    torch.manual_seed(0)\n    return torch.nn.Linear(4, 3), (torch.randn(2, 4),)\n\n\n"
        "def wrong():\n    return torch.nn.Identity(), (torch.randn(2, 4),)\n",
        encoding="utf-8",
    )
    (home / "golden").mkdir()
    x = np.linspace(-3, 3, 8, dtype=np.float32).reshape(2, 4)
    z = -((x + np.array([1, 2, 3, 4], np.float32)) ** 2)
    save_values(home / "golden" / "square.npz", {"x": x, "z": z})
    np.save(home / "golden" / "x.npy", x.astype(np.float16))
    save_values(home / "golden" / "off.npz", {"x": x, "z": z + np.float32(0.5)})
    save_values(home / "golden" / "nan.npz", {"x": x, "z": np.where(z < -20, np.float32("nan"), z)})
    save_values(home / "all_nan.npz", {"x": np.full_like(x, np.nan)})
    save_values(home / "empty.npz", {"x": x[:0]})
    return home


@pytest.fixture(scope="module")
def mixed(folder):
    """A suite in which cells come out in every way."""
    path = suite_of(
        folder,
        models=[
            "square.onnx",
            {"file": "net.onnx", "seed": 3, "cells": {"skipped": {"skip": "too slow"}}},
            "custom.onnx",
            "damaged.onnx",
            "invalid.onnx",
        ],
        pipelines={
            "plain": {"on": "ort"},
            "tight": {"precision": "fp16", "on": "ort", "tolerance": {"atol": 0, "rtol": 1e-9}},
            "skipped": {"on": "reference"},
            "absent": {"on": "acme", "package": "a-package-that-is-not-there"},
            "refused": {"steps": [{"set_op": {"at": "op:Conv", "to": "Relu"}, "expect": 99}]},
        },
    )
    return run_suite(path, models=["*"])


def test_what_fails_stays_in_its_cell(mixed):
    (table,) = mixed.tables
    found = {(cell.model, cell.pipeline): (cell.status, cell.step, cell.kind) for cell in mixed.cells}
    assert found["square", "plain"] == ("pass", None, None)
    assert found["net", "plain"] == ("pass", None, None)
    assert found["net", "tight"] == ("fail", None, None)
    assert found["net", "skipped"] == ("skip", None, None)
    assert found["custom", "plain"] == ("error", "run", "execution")
    assert found["damaged", "plain"] == ("error", "load", "model")
    assert found["invalid", "plain"] == ("error", "check", "model")
    assert found["net", "refused"] == ("error", "convert", "guard")
    assert {found[model, "absent"][0] for model in table.models} == {"skip"}
    assert table.cell("net", "skipped").message == "too slow"
    assert table.cell("net", "absent").message == "a-package-that-is-not-there is not installed"
    assert not mixed.passed
    assert table.verdict.startswith("FAILED: 25 cells: ")


def test_the_worst_output_is_that_of_two_runs_by_hand(mixed, folder):
    cell = mixed.tables[0].cell("net", "tight")
    feeds = onnxbench.FeedOptions(seed=3)
    right = run(folder / "net.onnx", feeds, options=backends.Options("none")).values[0]
    half = onnxbench.convert(load(folder / "net.onnx"), to="fp16").model
    made = run(half, feeds, options=backends.Options("all")).values[0]
    (name,) = right
    assert cell.worst is not None
    assert cell.worst.name == name
    assert cell.worst.max_abs == pytest.approx(float(np.abs(right[name].astype(np.float64) - made[name]).max()))
    assert f"{name}: 1 of 1 elements are beyond" in cell.message


def test_the_command_lines_that_are_proposed_work(mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cell = mixed.tables[0].cell("net", "tight")
    edit, bisect = (shlex.split(line)[1:] for line in cell.next)
    assert bounded(app, edit) == 0
    command = [sys.executable, "-m", "onnxbench", *bisect, "--json"]  # it forks, so it wants a process of its own
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    (output,) = json.loads(done.stdout)["result"]["outputs"]
    assert output["max_abs"] == pytest.approx(cell.worst.max_abs)


def test_reports_of_cells_that_are_wrong(mixed):
    page = support_table(mixed)
    assert page == support_table(dataclasses.replace(mixed))
    assert re.search(r"\| net \| ✓ \| ✗ <sup>\d+</sup> \| – <sup>\d+</sup> \|", page)
    assert "tight: output 31 is off" in page
    assert page.count("a-package-that-is-not-there is not installed") == 1
    root = ElementTree.fromstring(junit_report(mixed))
    (suite,) = root
    assert suite.attrib["tests"] == "25"
    assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure")) == 1
    assert int(suite.attrib["errors"]) == len(suite.findall("testcase/error"))
    assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped"))
    (case,) = [each for each in suite if each.find("failure") is not None]
    assert (case.attrib["classname"], case.attrib["name"]) == ("net", "tight")
    assert "onnxbench bisect net.tight.onnx" in case.find("failure").text


def test_a_model_that_runs_though_it_is_not_valid_passes_with_a_note(folder):
    (folder / "open.onnx").write_bytes(named("dim_minus_one").path.read_bytes())
    (cell,) = run_suite(suite_of(folder, models=["open.onnx"], pipelines={"plain": {}})).cells
    assert cell.status == "pass"
    assert cell.notes
    assert all("not valid as it stands" in note and "dimension of -1" in note for note in cell.notes)


def test_a_failure_on_drawn_inputs_says_what_was_drawn(folder):
    text = TEXT.replace("a = Add(x, w)", "s = Reshape(x, k) a = Add(s, w)").replace(
        "<float[4] w", "<int64[2] k = {3, 4}, float[4] w"
    )
    write(folder / "three.onnx", text)
    cell, told = run_suite(
        suite_of(
            folder,
            models=["three.onnx", {"file": "three.onnx", "name": "told", "dims": "N=3"}],
            pipelines={"plain": {}},
        )
    ).cells
    assert (cell.status, cell.step, cell.kind) == ("error", "reference", "execution")
    assert any("(N) = 1" in line for line in cell.details)
    assert cell.hint == "shapes, dims and ranges of the model in the suite say how to draw."
    assert told.status == "pass"


# ---------------------------------------------------------------- what is right


@pytest.fixture
def cell_of(folder):
    """Runs the only cell of a suite with one model and one pipeline."""

    def cell(model: object, **pipeline: object):
        path = suite_of(folder, models=[model], pipelines={"it": pipeline})
        (found,) = run_suite(path).cells
        return found

    return cell


def test_recorded_outputs_with_their_inputs(cell_of):
    assert cell_of("square.onnx", against="golden/{model}.npz").status == "pass"
    off = cell_of({"file": "square.onnx", "against": "golden/off.npz"})
    assert off.status == "fail"
    assert off.worst.max_abs == pytest.approx(0.5, abs=1e-5)
    assert off.against == "recorded outputs golden/off.npz"
    assert "--load-outputs" in off.next[-1]


def test_outputs_that_tell_nothing_do_not_pass_in_silence(cell_of):
    nan = cell_of({"file": "square.onnx", "feeds": "all_nan.npz"})
    assert (nan.status, nan.step) == ("error", "compare")
    assert "NaN throughout" in nan.message
    empty = cell_of({"file": "square.onnx", "feeds": "empty.npz"})
    assert empty.status == "pass"
    assert empty.notes == ("the outputs have no elements, so nothing was compared",)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([{"file": "square.onnx", "samples": 0}], "samples must be 1 or more"),
        (["net.onnx", {"file": "square.onnx", "name": "net"}], "two models are called 'net'"),
    ],
)
def test_what_is_wrong_with_a_model_is_said_of_it(folder, models, message):
    with pytest.raises(SpecError, match=message):
        load_suite(suite_of(folder, models=models, pipelines={"it": {"on": "ort"}}))


@pytest.mark.parametrize("written", ["square.onnx", "golden/square.npz", "suite", "absent/table.md", "golden"])
def test_a_report_takes_the_place_of_nothing_that_is_read(folder, capsys, written):
    models = [{"file": "square.onnx", "against": "golden/{model}.npz"}]
    path = suite_of(folder, models=models, pipelines={"it": {"on": "ort"}})
    target = path if written == "suite" else folder / written
    before = target.read_bytes() if target.is_file() else None
    code = bounded(app, ["suite", str(path), "--markdown", str(target)])
    assert code == (2 if before is not None else 7)
    assert "[1/1]" not in capsys.readouterr().err  # before anything was run
    assert (target.read_bytes() if target.is_file() else None) == before


def test_two_reports_are_two_files(folder, capsys):
    path = suite_of(folder, models=["square.onnx"], pipelines={"it": {"on": "ort"}})
    both = str(folder / "report")
    assert bounded(app, ["suite", str(path), "--markdown", both, "--junit", both]) == 2
    assert "written twice" in capsys.readouterr().err


@pytest.mark.parametrize("tolerance", [{"atol": 1e9}, {"sqnr": -100}])
def test_nan_on_one_side_fails_whatever_the_tolerance(cell_of, tolerance):
    found = cell_of("square.onnx", against="golden/nan.npz", tolerance=tolerance)
    assert found.status == "fail"
    assert found.worst.nonfinite > 0


def test_recorded_outputs_that_do_not_fit(cell_of, folder):
    save_values(folder / "golden" / "other.npz", {"x": np.zeros([1, 4], np.float32), "y": np.zeros(3, np.float32)})
    found = cell_of("square.onnx", against="golden/other.npz")
    assert (found.status, found.step, found.kind) == ("error", "reference", "feeds")
    more = cell_of({"file": "square.onnx", "samples": 2, "shapes": "x:[2,4]"}, against="golden/square.npz")
    assert (more.step, more.message) == (
        "reference", "there are more sets of inputs than recorded sets of outputs, which are 1",
    )  # fmt: skip


def test_another_model_as_what_is_right(cell_of, folder):
    write(folder / "negated.onnx", TEXT.replace("Neg(b)", "Identity(b)"))
    assert cell_of({"file": "square.onnx", "dims": "N=2"}, against="square.onnx").status == "pass"
    assert cell_of({"file": "square.onnx", "dims": "N=2"}, against="negated.onnx").status == "fail"


def test_inputs_and_outputs_that_a_conversion_renames_and_retypes(cell_of):
    steps = [
        {"rename_input": "x=data"},
        {"rename_output": "z=made"},
        {"set_precision": {"to": "fp16", "io": "convert"}},
    ]
    found = cell_of({"file": "square.onnx", "dims": "N=3"}, steps=steps, tolerance={"atol": 0.1, "rtol": 1e-2})
    assert found.status == "pass"
    assert found.worst.actual_dtype == "float16"
    assert found.worst.max_abs > 0


def test_outputs_are_paired_by_name_first_and_the_others_in_order(cell_of, folder):
    text = TEXT.replace("(float[N,4] z)", "(float[N,4] z, float[N,4] a, float[N,4] b)")
    write(folder / "three_outputs.onnx", text)
    steps = [{"reorder_outputs": ["b", "z", "a"]}, {"rename_output": "z=made"}]
    found = cell_of({"file": "three_outputs.onnx", "dims": "N=2"}, steps=steps, on="ort:none")
    assert (found.status, found.outputs) == ("pass", 3)
    assert found.worst.bitwise_equal


def test_another_element_type_counts_unless_another_model_is_right(cell_of, folder):
    half = onnxbench.convert(load(folder / "square.onnx"), to="fp16", io="convert").model
    onnxbench.save(half, folder / "half_square.onnx")
    model = {"file": "half_square.onnx", "dims": "N=2"}
    assert cell_of(model, against="square.onnx", tolerance={"atol": 0.1, "rtol": 1e-2}).status == "pass"
    recorded = cell_of({**model, "feeds": "x:golden/x.npy"}, against="golden/square.npz", tolerance={"atol": 0.1})
    assert recorded.message == "z: the element type is float16, expected float32"


def test_outputs_that_a_conversion_adds_do_not_count_and_those_it_removes_do(cell_of):
    assert cell_of({"file": "square.onnx", "dims": "N=3"}, steps=[{"add_output": "a"}]).status == "pass"
    two = cell_of(
        {"file": "square.onnx", "dims": "N=3"}, steps=[{"add_output": "a"}, {"rename_output": "z=made"}]
    )  # fmt: skip
    assert (two.status, two.step) == ("error", "compare")
    assert two.message == "the outputs are called otherwise, and are not as many: z"
    assert two.details == ("on the other side: made, a",)


def test_int8_is_judged_by_noise(cell_of):
    found = cell_of("net.onnx", precision="int8", on="ort:none", tolerance={"sqnr": 1})
    assert found.status == "pass"
    noise = found.worst.sqnr_db
    assert 1 < noise < 80
    more = cell_of("net.onnx", precision="int8", on="ort:none", tolerance={"sqnr": noise + 1})
    assert more.status == "fail"
    assert [shlex.split(line)[1] for line in more.next] == ["suite", "bisect"]
    assert more.message == f"31: {noise:.1f} dB signal to noise, and {noise + 1:g} dB are asked for"


@pytest.fixture(scope="module")
def sets(folder):
    """A folder with three sets of inputs of the net; each has a range of its own."""
    home = folder / "sets"
    home.mkdir()
    made = [np.random.default_rng(at).normal(0, at + 1, (1, 1, 17, 17)).astype(np.float32) for at in range(3)]
    for at, value in enumerate(made):
        save_values(home / f"{at}.npz", {"input.1": value})
    return [{"input.1": value} for value in made]


@pytest.mark.parametrize(
    ("said", "text", "calibrated", "judged"),
    [
        ({"feeds": "sets"}, "the first 1 of 3 sets of inputs, and judged on the others", [0], [1, 2]),
        ({"feeds": "sets", "samples": 2}, "1 set of inputs behind those that are judged", [2], [0, 1]),
        ({"feeds": "sets/0.npz", "calibration": "sets/2.npz"}, "1 set of inputs from sets/2.npz", [2], [0]),
        (
            {"feeds": "sets/1.npz"},
            "the one set of inputs that it is judged on; the model's 'calibration:' names others", [1], [1],
        ),
    ],
)  # fmt: skip
def test_int8_is_calibrated_on_what_is_not_judged(cell_of, folder, sets, said, text, calibrated, judged):
    cell = cell_of({"file": "net.onnx", **said}, precision="int8", on="ort:none", tolerance={"sqnr": 1})
    assert (cell.sets, cell.notes) == (len(judged), (f"int8 is calibrated on {text}",))
    net = load(folder / "net.onnx")
    how = {"target": "onnxruntime", "method": "minmax"}
    made = onnxbench.quantize(net, feeds=[sets[at] for at in calibrated], **how).model
    plain = backends.Options("none")
    (name,) = (info.name for info in net.proto.graph.output)
    right, found = (
        [run(model, sets[at], options=plain).values[0][name] for at in judged] for model in (net, made)
    )  # fmt: skip
    off = [float(np.abs(one - other).max()) for one, other in zip(right, found, strict=True)]
    assert cell.worst.max_abs in [pytest.approx(each) for each in off]


def test_int8_is_calibrated_on_other_draws_than_those_that_are_judged(cell_of, folder):
    cell = cell_of({"file": "net.onnx", "seed": 4}, precision="int8", on="ort:none", tolerance={"sqnr": 1})
    assert cell.notes == ("int8 is calibrated on 8 sets of inputs drawn with seed 5",)
    others = onnxbench.FeedOptions(seed=5, iterations=8)
    made = onnxbench.quantize(folder / "net.onnx", feeds=others, target="onnxruntime", method="minmax").model
    plain, judged = backends.Options("none"), onnxbench.FeedOptions(seed=4)
    (right,), (found,) = (
        run(model, judged, options=plain).values[0].values() for model in (load(folder / "net.onnx"), made)
    )  # fmt: skip
    assert cell.worst.max_abs == pytest.approx(float(np.abs(right - found).max()))


def test_recipes_with_variables_and_what_they_include(folder):
    (folder / "recipes").mkdir()
    (folder / "parts.yaml").write_text("steps: [name_nodes]\n", encoding="utf-8")
    (folder / "recipes" / "version.yaml").write_text(
        "variables: {opset: 18}\ninclude: ../parts.yaml\nsteps:\n  - set_opset: {version: '${opset}'}\n",
        encoding="utf-8",
    )
    said = {"recipe": "recipes/version.yaml", "variables": {"opset": 20}}
    path = suite_of(folder, models=[{"file": "square.onnx", "dims": "N=2"}], pipelines={"it": said})
    with pytest.raises(SpecError, match="outside of the recipe's folder"):
        run_suite(path)
    (found,) = run_suite(path, allow_outside=True).tables
    assert found.passed
    assert found.pipelines == {"it": "name_nodes, set_opset 20"}
    said["variables"] = {"opst": 20}
    path = suite_of(folder, models=["square.onnx"], pipelines={"it": said})
    with pytest.raises(SpecError, match=r"suite.yaml:\d+:\d+: the recipe has no variable 'opst'") as caught:
        load_suite(path, allow_outside=True)
    assert caught.value.hint == "Did you mean 'opset'?"


def test_tolerances_the_most_special_first(folder):
    path = suite_of(
        folder,
        tolerance={"atol": 5},
        models=[
            "net.onnx",
            {"file": "square.onnx", "tolerance": {"atol": 3}, "cells": {"half": {"tolerance": {"bitwise": True}}}},
        ],
        pipelines={"plain": None, "half": {"precision": "fp16", "tolerance": {"atol": 4}}},
    )
    allowed = {(cell.model, cell.pipeline): cell.allowed for cell in run_suite(path, dry_run=True).cells}
    assert allowed == {
        ("net", "plain"): "atol 5", ("net", "half"): "atol 4",
        ("square", "plain"): "atol 3", ("square", "half"): "bit for bit",
    }  # fmt: skip


def test_without_a_tolerance_half_precision_may_round(folder):
    path = suite_of(folder, models=["net.onnx"], pipelines={"half": {"precision": "fp16"}})
    (cell,) = run_suite(path).cells
    assert (cell.status, cell.allowed) == ("pass", "atol 0.01, rtol 0.01")


def test_converted_models_of_wrong_cells_are_kept(folder, tmp_path):
    net = {"file": "net.onnx", "name": "my/net"}
    half = {"precision": "fp16", "tolerance": {"bitwise": True}}
    path = suite_of(folder, models=["square.onnx", net], pipelines={"half": half, "same": {"on": "ort:none"}})
    found = run_suite(path, models=["my/net"], keep=tmp_path / "kept").tables[0]
    (kept,) = (tmp_path / "kept").iterdir()
    assert found.cell("my/net", "same").status == "pass"
    assert found.cell("my/net", "half").status == "fail"
    (line,) = found.cell("my/net", "half").next
    assert shlex.split(line)[2] == str(kept) == str(tmp_path / "kept" / "my_net.half.onnx")
    made = run(kept, options=backends.Options("all")).values[0]
    right = run(folder / "net.onnx", options=backends.Options("none")).values[0]
    off = np.abs(made["31"].astype(np.float64) - right["31"]).max()
    assert found.cell("my/net", "half").worst.max_abs == pytest.approx(float(off))


def test_custom_operators(folder):
    bundle = onnxbench.load_bundle(ROOT / "plugins" / "instance_norm")
    inputs, attributes = next(iter(bundle.cases()))
    (folder / "norm.onnx").write_bytes(bundle.model(inputs, attributes).SerializeToString())
    path = suite_of(
        folder, models=["norm.onnx"], pipelines={"ort": {}, "second": {"on": "reference"}, "clean": {"clean": True}}
    )
    assert [cell.status for cell in run_suite(path).cells] == ["error"] * 3
    assert [cell.status for cell in run_suite(path, plugins=["instance_norm"]).cells] == ["pass"] * 3


# ---------------------------------------------------------------- where it runs


@pytest.mark.trt
def test_an_engine_is_built_where_there_is_no_gpu(folder):
    if find_spec("tensorrt_rtx") is None:
        pytest.skip("TensorRT-RTX is not installed: pip install onnxbench[trt]")
    from onnxbench.engine import has_gpu

    path = suite_of(folder, models=["square.onnx", "custom.onnx"], pipelines={"engine": {"on": "trt"}})
    built, refused = run_suite(path).cells
    assert built.status == ("pass" if has_gpu() else "built")
    assert has_gpu() or "builds the engine" in built.message
    assert (refused.status, refused.step) == ("error", "reference" if refused.kind == "execution" else "run")


@pytest.mark.torch
def test_a_pytorch_model_as_what_is_right(folder):
    pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
    path = suite_of(
        folder,
        models=[{"file": "square.onnx", "samples": 2}],
        pipelines={"right": {"against": "square.py:make"}, "wrong": {"against": "square.py:wrong"}},
    )
    right, wrong = run_suite(path).cells
    assert (right.status, right.sets, right.against) == ("pass", 2, "PyTorch square.py:make")
    assert wrong.status == "fail"
    assert "--torch" in wrong.next[-1]


@pytest.mark.torch
def test_int8_of_a_pytorch_model_is_calibrated_on_inputs_like_its_examples(cell_of):
    pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
    model = {"file": "square.py:linear", "export": {"exporter": "torchscript", "opset": 17}}
    cell = cell_of(model, precision="int8", on="ort:none", tolerance={"sqnr": 1})
    assert (cell.status, cell.sets) == ("pass", 1)
    assert cell.notes == ("int8 is calibrated on 8 sets of inputs like the example inputs",)


@pytest.mark.torch
def test_a_pytorch_model_is_exported_and_compared_with_itself(folder, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
    model = {"file": "square.py:make", "export": {"exporter": "torchscript", "opset": 17, "dynamic": "x:0=batch"}}
    broken = {"file": "square.py:nothing", "name": "broken"}
    path = suite_of(
        folder,
        models=[model, broken],
        pipelines={"plain": {}, "half": {"precision": "bf16", "on": "reference", "tolerance": {"bitwise": True}}},
    )
    plain, half, *errors = run_suite(path).cells
    assert (plain.model, plain.status, plain.against) == ("make", "pass", "PyTorch square.py:make")
    assert (half.status, [shlex.split(line)[1] for line in half.next]) == ("fail", ["export", "edit", "bisect"])
    assert {(cell.status, cell.step, cell.kind) for cell in errors} == {("error", "load", "not-found")}
    monkeypatch.chdir(tmp_path)
    assert bounded(app, shlex.split(half.next[0])[1:]) == 0
    (opset,) = load(tmp_path / "make.onnx").proto.opset_import
    assert opset.version == 17


def test_a_crash_in_a_process_of_its_own_is_one_cell(folder, tmp_path, monkeypatch):
    (tmp_path / "crashing.py").write_text(
        "import os\n\n\nclass Crashing:\n    name = 'crashing'\n\n    def version(self):\n        return '1'\n\n"
        "    def open(self, model, *, outputs, options):\n        os.abort()\n",
        encoding="utf-8",
    )
    about = tmp_path / "crashing-1.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: crashing\nVersion: 1\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[{backends.ENTRY_POINTS}]\ncrashing = crashing:Crashing\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = suite_of(folder, models=["square.onnx"], pipelines={"bad": {"on": "crashing"}, "good": {"on": "ort"}})
    bad, good = run_suite(path, isolate=60).cells
    assert (bad.status, bad.step, good.status) == ("error", "run", "pass")
    assert "SIGABRT" in bad.message
    with pytest.raises(UsageError, match="not timed"):
        run_suite(path, isolate=60, time=3)


# ---------------------------------------------------------------- the command


def test_filters(capsys):
    assert bounded(app, ["suite", "-q", "--json", "--on", "onnxruntime", "--model", "two*", "res*", str(EXAMPLE)]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    (table,) = json.loads(said.out)["result"]["suites"]
    cells = [(cell["model"], cell["pipeline"]) for cell in table["cells"]]
    assert cells == [(model, name) for model in ("residual", "two_branches") for name in ("optimized", "half")]
    assert table["counts"] == {"pass": 4}


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--model", "residul"], "Did you mean 'residual'?"),
        (["--pipeline", "halv*"], "Did you mean 'half'?"),
        (["--on", "tensorrt"], "There are: ort, reference."),
        (["--pipeline", "half", "--on", "reference"], None),
    ],
)
def test_filters_that_let_nothing_through(capsys, words, hint):
    assert bounded(app, ["suite", str(EXAMPLE), *words, "--json"]) == NotFoundError.exit_code
    assert json.loads(capsys.readouterr().out)["error"]["hint"] == hint


def test_a_dry_run_opens_no_model(folder, capsys):
    path = suite_of(folder, models=["damaged.onnx"], pipelines={"half": {"precision": "fp16", "clean": True}})
    assert bounded(app, ["suite", str(path), "--dry-run"]) == 0
    said = capsys.readouterr()
    assert "damaged, half: clean, set_precision fp16; on ONNX Runtime, optimizations all; against" in said.out
    assert said.out.endswith("NOTHING RUN: 1 cell: 1 planned\n")
    assert said.err == ""


def test_several_suites_times_and_files(folder, tmp_path, capsys):
    (folder / "one.yaml").write_text('title: One\nmodels: [{file: square.onnx, dims: "N=2"}]\npipelines: {plain: }\n')
    (folder / "two.yaml").write_text("models: [net.onnx, invalid.onnx]\npipelines: {plain: {on: ort}}\n")
    page, xml = tmp_path / "page.md", tmp_path / "results.xml"
    words = ["suite", str(folder / "one.yaml"), str(folder / "two.yaml"), "--time", "3", "--warmup", "1"]
    assert bounded(app, [*words, "--markdown", str(page), "--junit", str(xml)]) == 1
    said = capsys.readouterr()
    assert "PASSED: 1 cell: 1 passed" in said.out
    assert "FAILED: 2 cells: 1 passed, 1 with an error" in said.out
    assert said.out.count("median ms") == 2
    assert "[3/3] invalid, plain: ERROR" in said.err
    assert re.findall(r"^## (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE) == ["One", "two"]
    assert re.search(r"\| square \| ✓ [\d.e-]+ ms \|", page.read_text(encoding="utf-8"))
    assert [suite.attrib["name"] for suite in ElementTree.parse(xml).getroot()] == ["One", "two"]


def test_reports_take_the_place_of_nothing_that_is_read(tmp_path, capsys):
    for name in ("net.onnx", "right.onnx"):
        shutil.copy(NET, tmp_path / name)
    (tmp_path / "steps.yaml").write_text("- set_producer: me\n")
    for file in WITH_WEIGHTS.iterdir():
        shutil.copy(file, tmp_path)
    pipelines = {"p": {"recipe": "steps.yaml", "against": "right.onnx"}}
    suite = suite_of(tmp_path, models=["net.onnx", "model.onnx"], pipelines=pipelines)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    assert tmp_path / "model.onnx.data" in before
    for file in before:
        assert bounded(app, ["suite", str(suite), "--markdown", str(file)]) == 2
        assert f"{file} is an input" in capsys.readouterr().err
    assert bounded(app, ["suite", str(suite), "--junit", str(tmp_path / "no" / "results.xml")]) == 7
    assert "[1/2]" not in capsys.readouterr().err
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    shutil.copy(NET, tmp_path / "net.p.onnx")
    suite_of(tmp_path, models=["net.onnx", "net.p.onnx"], pipelines=pipelines)
    assert bounded(app, ["suite", str(suite), "--keep", str(tmp_path)]) == 2
    assert f"{tmp_path / 'net.p.onnx'} is an input, and a converted model" in capsys.readouterr().err
    assert (tmp_path / "net.p.onnx").read_bytes() == NET.read_bytes()


def test_models_without_their_weights_are_told_first_and_once(tmp_path, capsys):
    shutil.copy(NET, tmp_path / "net.onnx")
    shutil.copy(WITH_WEIGHTS / "model.onnx", tmp_path)
    suite = suite_of(tmp_path, models=["net.onnx", "model.onnx"], pipelines={"a": {"on": "ort"}, "b": {"on": "ort"}})
    assert bounded(app, ["suite", str(suite)]) == 1
    said = capsys.readouterr()
    assert [line.split("] ")[1] for line in said.err.splitlines()] == [
        "model, a: ERROR", "model, b: ERROR", "net, a: pass", "net, b: pass",
    ]  # fmt: skip
    message = f"the external data 'model.onnx.data' of tensor 'w0' is missing from {tmp_path}"
    assert said.out.count(message) == said.out.count(f"model, a, b: ERROR (step load): {message}") == 1
    assert said.out.index("\nnet ") < said.out.index("\nmodel   ERROR")  # the table keeps the order of the suite


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["{suite}", "{suite}"], "is named twice"),
        (["{suite}", "{folder}/../{name}/suite.yaml"], "is named twice"),
        (["{suite}", "--dry-run", "--markdown", "{folder}/m.md"], "--markdown means nothing with --dry-run"),
        (["{suite}", "--dry-run", "--junit", "{folder}/j.xml"], "--junit means nothing with --dry-run"),
    ],
)
def test_what_would_run_twice_or_not_at_all_is_refused(tmp_path, capsys, words, message):
    write(tmp_path / "square.onnx", TEXT)
    suite = suite_of(tmp_path, models=["square.onnx"], pipelines={"plain": {}})
    names = {"suite": suite, "folder": tmp_path, "name": tmp_path.name}
    assert bounded(app, ["suite", *(word.format(**names) for word in words)]) == 2
    assert message in capsys.readouterr().err
    assert {file.name for file in tmp_path.iterdir()} == {"square.onnx", "suite.yaml"}


def test_patterns_and_names(tmp_path):
    (tmp_path / "other").mkdir()
    for name in ("b", "a", "other/b", "other/c"):
        write(tmp_path / f"{name}.onnx", TEXT)
    (tmp_path / "suites").mkdir()
    suite = load_suite(suite_of(tmp_path / "suites", models=["../*.onnx", "../other/*"], pipelines={"plain": {}}))
    assert [model.name for model in suite.models] == ["a", "../b", "../other/b", "c"]
    assert [model.file for model in suite.models] == ["../a.onnx", "../b.onnx", "../other/b.onnx", "../other/c.onnx"]


# ---------------------------------------------------------------- files with mistakes


@pytest.mark.parametrize(
    ("text", "words", "hint"),
    [
        ("pipelines: {a: {}}", "a suite needs 'models'", "models:"),
        ("models: [square.onnx]\npiplines: {a: {}}", "2:1: 'piplines' is no key of a suite", "'pipelines'"),
        ("models: [square.onnx]\npipelines: {a: {precison: fp16}}", "2:17: 'precison' is no key", "'precision'"),
        ("models: [square.onnx]\npipelines: {a: {precision: fp15}}", "2:28: 'precision' of the pipeline 'a'", "'fp16'"),
        ("models: [square.onnx]\npipelines: {a: {on: orto}}", "2:21: there is no backend 'orto'", "'ort'"),
        ("models: [square.onnx]\npipelines: {a: {on: 'ort:al'}}", "'al' is no optimization level", "'all'"),
        ("models: [square.onnx]\npipelines: {a: {against: 'ort:non'}}", "'non' is no optimization level", "'none'"),
        ("models: [squar.onnx]\npipelines: {a: {}}", "1:10: there is no model squar.onnx in", "'square.onnx'"),
        ("models: ['x*.onnx']\npipelines: {a: {}}", "1:10: no file in", None),
        ("models: []\npipelines: {a: {}}", "a suite needs a model", None),
        ("models: [square.onnx]\npipelines: {}", "a suite needs a pipeline", "plain"),
        ("models: [square.onnx]\npipelines: {a: {recipe: no.yaml}}", "2:25: there is no recipe", None),
        ("models: [square.onnx]\npipelines: {a: {variables: {x: 1}}}", "variables mean nothing without a recipe", None),
        ("models: [square.onnx]\npipelines: {a: {steps: [set_pp: {}]}}", "2:25: there is no operation 'set_pp'", None),
        ("models: [square.onnx]\npipelines: {a: {precision: int8}}", "2:13: the pipeline 'a' makes int8", "sqnr"),
        ("models: [{file: square.onnx, export: {opset: 17}}]\npipelines: {a: {}}", "export means nothing", "model.py"),
        ("models: ['squar.py:make']\npipelines: {a: {}}", "there is no model squar.py in", None),
        ("models: [{file: square.onnx, cells: {b: {}}}]\npipelines: {a: {}}", "names a pipeline 'b'", "Pipelines: a."),
        ("models: [square.onnx, square.onnx]\npipelines: {a: {}}", "two models are called 'square'", "name"),
        ("models: [square.onnx]\npipelines: {a: {tolerance: {atol: -1}}}", "atol must be a number from 0 up", None),
        ("models: [square.onnx]\npipelines: {a: {tolerance: {sqnr: 9, atol: 1}}}", "sqnr takes the place", None),
        ("version: 2\nmodels: [square.onnx]\npipelines: {a: {}}", "1:10: this is a suite of version 2", None),
        ("models: [square.onnx]\npipelines: {a: [}", "not well-formed YAML", "Quote"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(folder, text, words, hint):
    path = folder / "wrong.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SpecError) as caught:
        load_suite(path)
    assert words in caught.value.message
    assert hint is None or hint in (caught.value.hint or "")


def test_a_suite_that_is_not_there(folder):
    (folder / "mine.yaml").write_text("models: [square.onnx]\npipelines: {a: }\n")
    with pytest.raises(NotFoundError) as caught:
        load_suite(folder / "mien.yaml")
    assert "'mine.yaml'" in caught.value.hint
    with pytest.raises(BenchError):
        load_suite(folder)
