"""Backends of other packages: the one that docs/backends.md shows, installed as it stands there, and broken ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cases import ROOT, named

import onnxbench
from onnxbench import backends, environment
from onnxbench.backends import FileBackend
from onnxbench.bisection import parse_place
from onnxbench.bundles import operators_of
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.errors import ExecutionError, FeedsError, UsageError
from onnxbench.model import load
from onnxbench.running import run

MODEL = named("whole_model_small").path
PAGE = (ROOT / "docs" / "backends.md").read_text(encoding="utf-8")


COMPILED = """
from pathlib import Path

import onnx
from onnx.reference import ReferenceEvaluator

from onnxbench.backends import FileBackend


class Compiled(FileBackend):
    name = "compiled"

    def version(self):
        return "3"

    def convert(self, model, folder, options):
        built = folder / "built.bin"
        built.write_bytes(model.read_bytes()[::-1])
        return built

    def load(self, file, options):
        self.file = file
        evaluator = ReferenceEvaluator(onnx.ModelProto.FromString(file.read_bytes()[::-1]))
        return lambda feeds, names: dict(zip(names, evaluator.run(names, feeds)))


BACKEND = Compiled()
"""


def install(folder: Path, name: str, source: str, *, package: str, module: str, target: str) -> None:
    """Writes a package as an installer does: its module, and what it says of itself."""
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    about = folder / f"{package.replace('-', '_')}-1.2.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.2\n", encoding="utf-8")
    (about / "entry_points.txt").write_text(f"[{backends.ENTRY_POINTS}]\n{name} = {target}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A folder on ``sys.path`` with the package of the page, and broken ones."""
    folder = tmp_path_factory.mktemp("site")
    (source,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    group, name, target = re.search(r'\[project.entry-points."(.+)"\]\n(.+) = "(.+)"', PAGE).groups()
    assert group == backends.ENTRY_POINTS
    install(folder, name, source, package="plain-python", module=target.partition(":")[0], target=target)
    broken = {
        "absent-library": "import a_library_that_is_not_there\n",
        "no-methods": "class Made:\n    name = 'no-methods'\n",
        "misnamed": "class Made:\n    name = 'other'\n    version = open = lambda self: None\n",
        "raising": "class Made:\n    name = 'raising'\n    def version(self):\n        return '9'\n"
        "    def open(self, model, *, outputs, options):\n        raise KeyError('no such device')\n",
        "forgetful": "class Session:\n    def run(self, feeds, outputs):\n        return {}\n"
        "class Made:\n    name = 'forgetful'\n    def version(self):\n        return '9'\n"
        "    def open(self, model, *, outputs, options):\n        return Session()\n",
        "threaded": "class Made:\n    name = 'threaded'\n    heeds = ('threads',)\n    def version(self):\n"
        "        return '9'\n    def open(self, model, *, outputs, options):\n"
        "        raise RuntimeError(f'{options.threads} threads')\n",
        "without-device": "class Made:\n    name = 'without-device'\n    def version(self):\n        return '9'\n"
        "    def unavailable(self):\n        return 'there is no device'\n    open = version\n",
    }
    for each, text in broken.items():
        module = each.replace("-", "_")
        install(folder, each, text, package=f"{each}-package", module=module, target=f"{module}:Made")
    install(folder, "compiled", COMPILED, package="compiled", module="compiled", target="compiled:BACKEND")
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


class Failing(FileBackend):
    """A backend that cannot convert or load anything."""

    name = "failing"

    def __init__(self, step: str) -> None:
        self.step = step

    def version(self) -> str:
        return "1"

    def convert(self, model: Path, folder: Path, options: backends.Options) -> Path:
        if self.step == "convert":
            raise RuntimeError(f"{self.step} failed with {model.stat().st_size} bytes")
        return model

    def load(self, file: Path, options: backends.Options) -> Any:
        raise RuntimeError(f"{self.step} failed with {file.stat().st_size} bytes")


@pytest.mark.parametrize("step", ["convert", "load"])
def test_no_file_is_left_where_a_model_cannot_be_loaded(step, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with pytest.raises(RuntimeError, match=f"{step} failed with [1-9]") as failed:
        Failing(step).open(load(MODEL), outputs=None, options=backends.Options())
    assert failed.value.__traceback__ is not None  # it holds what it passed through, so nothing was collected
    assert list(tmp_path.iterdir()) == []


def test_the_backend_of_the_page_runs_a_model(site):
    expected = run(MODEL, options=backends.Options("none"))
    found = run(MODEL, backend="plain-python")
    assert found.backend.startswith("plain-python ")
    assert found.values[0].keys() == expected.values[0].keys()
    for name, value in expected.values[0].items():
        np.testing.assert_allclose(found.values[0][name], value, rtol=1e-4, atol=1e-5)
    inner = run(MODEL, backend="PLAIN-PYTHON", outputs=["op:Conv"])
    assert len(inner.outputs) > 3


def test_what_a_backend_builds_goes_with_the_session(site):
    feeds = {"input.1": np.ones([1, 1, 17, 17], np.float32)}
    session = backends.open_session(load(MODEL), "compiled", outputs=["23", "31"])
    built = Path(sys.modules["compiled"].BACKEND.file)
    made = session.run(feeds)
    assert built.is_file()
    session.close()
    assert not built.parent.exists()
    wanted = backends.run_with_outputs(load(MODEL), feeds, ["23", "31"])
    assert [made[name].shape for name in wanted] == [value.shape for value in wanted.values()]
    np.testing.assert_allclose(made["23"], wanted["23"], rtol=1e-4, atol=1e-5)


def test_a_search_for_drift_runs_on_it(site, tmp_path):
    same = onnxbench.bisect(MODEL, on="plain-python", reference_on="ort:none")
    assert same.passed
    assert same.suspect.endswith("on the backend plain-python")
    broken = onnxbench.edit(MODEL, [onnxbench.recipe.step_from_text("set_op: {at: op:Add, to: Sub}")]).model
    found = onnxbench.bisect(
        broken, against=load(MODEL), on="plain-python", reference_on="plain-python", repro=tmp_path / "repro"
    )
    assert [culprit.op_type for culprit in found.culprits] == ["Sub"]
    script = (tmp_path / "repro" / "reproduce.py").read_text(encoding="utf-8")
    assert "'plain-python'" in script
    done = subprocess.run(
        [sys.executable, tmp_path / "repro" / "reproduce.py"], capture_output=True, text=True, env=_environment(site)
    )
    assert done.returncode == 1, done.stdout + done.stderr


def test_it_runs_in_a_process_of_its_own(site):
    model = load(MODEL)
    session = backends.open_session(model, "plain-python", options=backends.Options(isolate=60))
    feeds = {port.name: np.ones([1, 1, 17, 17], np.float32) for port in session.inputs}
    made = session.run(feeds)
    session.close()
    assert made.keys() == {info.name for info in model.proto.graph.output}


def test_custom_operators_with_a_body_run_on_it(site):
    bundle = onnxbench.load_bundle(ROOT / "plugins" / "instance_norm")
    inputs, attributes = next(iter(bundle.cases()))
    model = onnxbench.from_proto(bundle.model(inputs, attributes))
    feeds = dict(zip([info.name for info in model.proto.graph.input], inputs, strict=True))
    options = backends.Options(operators=operators_of([bundle]))
    (made,) = backends.open_session(model, "plain-python", options=options).run(feeds).values()
    (wanted,) = bundle.reference(inputs, bundle.filled(attributes))
    np.testing.assert_allclose(made, wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(ExecutionError, match="plain-python"):
        backends.open_session(model, "plain-python")


def test_nothing_is_loaded_unasked(site):
    code = (
        "import sys, onnxbench.backends as b; b.backend('ort'); b.backend_names(); print('plain_python' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_environment(site))
    assert done.stdout.strip() == "False", done.stderr


def _environment(site: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}


def test_settings_that_mean_nothing_to_it_are_told(site):
    with pytest.raises(UsageError, match="the backend plain-python has no threads"):
        run(MODEL, backend="plain-python", options=backends.Options("auto", threads=2))
    for word in ("plain-python:all", "plain-python,level=all"):
        with pytest.raises(UsageError, match="plain-python has no optimization"):
            parse_place(word, level="none")


def test_settings_that_mean_something_to_it_get_there(site):
    for backend, options in [("threaded", backends.Options(threads=3)), _placed("threaded,threads=3")]:
        with pytest.raises(ExecutionError, match="RuntimeError: 3 threads"):
            run(MODEL, backend=backend, options=options)


def _placed(word: str) -> tuple[str, backends.Options]:
    place = parse_place(word, level="none")
    return place.backend, place.options


def test_names_that_are_near_are_proposed(site):
    with pytest.raises(UsageError) as caught:
        backends.backend("plain-pyton")
    assert caught.value.hint == "Did you mean 'plain-python'?"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent-library", "cannot be loaded: ModuleNotFoundError: No module named 'a_library_that_is_not_there'"),
        ("no-methods", "cannot be loaded: TypeError: no_methods:Made has no method 'version'"),
        ("misnamed", "cannot be loaded: TypeError: it is registered as 'misnamed' and calls itself 'other'"),
        ("raising", "does not take the model: KeyError: 'no such device'"),
        ("forgetful", "failed while it ran the model: LookupError: it gives no value of"),
    ],
)
def test_a_broken_one_is_one_error_that_names_its_package(site, name, words):
    with pytest.raises(ExecutionError) as caught:
        run(MODEL, backend=name)
    assert f"the backend {name} (package {name}-package 1.2) {words}" in caught.value.message


def test_inputs_are_checked_before_they_get_there(site):
    with pytest.raises(FeedsError):
        run(MODEL, {"input.1": np.zeros([2, 2], np.float32)}, backend="forgetful")


def test_two_packages_with_one_name_are_refused(site, tmp_path, monkeypatch):
    install(tmp_path, "twice", "", package="one", module="first_of_two", target="first_of_two:Made")
    install(tmp_path, "twice", "", package="two", module="second_of_two", target="second_of_two:Made")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UsageError, match=r"one 1\.2 and two 1\.2 both have a backend 'twice'"):
        backends.backend("twice")


def test_doctor_lists_them(site, capsys):
    assert bounded(app, ["doctor", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)["result"]
    listed = {each["name"]: each for each in body["backends"] if each["package"]}
    assert listed["plain-python"]["works"]
    assert listed["plain-python"]["package"] == "plain-python 1.2"
    assert listed["without-device"]["version"] == "9"
    assert listed["without-device"]["problem"] == "there is no device"
    assert not listed["absent-library"]["works"]
    said = {finding["message"]: finding["severity"] for finding in body["findings"]}
    assert [said[message] for message in said if "absent-library" in message] == ["warning"]
    assert [said[message] for message in said if "without-device" in message] == ["note"]


def test_a_name_of_onnxbench_is_not_taken(tmp_path, monkeypatch):
    install(tmp_path, "ort", "raise RuntimeError\n", package="thief", module="thief", target="thief:Made")
    monkeypatch.syspath_prepend(tmp_path)
    assert backends.backend("ort").version().startswith("1.")
    (told,) = [each for each in environment._examine_others(None) if each.package == "thief 1.2"]
    assert told.problem == "onnxbench has a backend of this name, which is used in its place"
