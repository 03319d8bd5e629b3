"""``doctor``: what it says is so here, and what is broken on purpose is found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import onnx
import onnxruntime
import pytest
from cases import ROOT

from onnxbench import environment
from onnxbench.backends import BACKENDS
from onnxbench.bundles import PATH_VARIABLE
from onnxbench.cli import app
from onnxbench.cli._boundary import bounded
from onnxbench.environment import OPTIONAL, REQUIRED, Finding, examine
from onnxbench.version import __version__


@pytest.fixture(scope="module")
def here() -> environment.Environment:
    return examine()


def test_versions_are_those_installed(here):
    assert (here.onnxbench, here.python) == (__version__, ".".join(map(str, sys.version_info[:3])))
    for package in here.packages:
        try:
            assert package.version == metadata.version(package.name)
        except metadata.PackageNotFoundError:
            assert package.version is None or package.name == "onnxruntime"
    assert {package.name for package in here.packages} == {*REQUIRED, *OPTIONAL}


def test_every_dependency_of_the_project_is_looked_at():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {line.split(">")[0].split("=")[0].strip().lower() for line in project["dependencies"]}
    assert named <= {name.lower() for name in REQUIRED}


def test_this_environment_is_fine(here):
    assert here.ok
    assert not [finding for finding in here.findings if finding.severity == "error"]
    assert all(package.problem is None for package in here.packages if package.required)


def test_backends_are_tried(here):
    by_name = {runtime.name: runtime for runtime in here.backends}
    assert set(by_name) == set(BACKENDS)
    ort = by_name["ort"]
    assert ort.works
    assert ort.version == onnxruntime.__version__
    assert list(ort.providers) == onnxruntime.get_available_providers()
    assert (here.onnx_opset, here.onnx_ir) == (onnx.defs.onnx_opset_version(), onnx.IR_VERSION)


def test_the_newest_opset_and_ir_are_the_newest_that_run(here):
    """One above them is refused by ONNX Runtime itself, and they are not."""
    ort = next(runtime for runtime in here.backends if runtime.name == "ort")
    assert ort.newest_opset is not None
    assert ort.newest_ir is not None

    def runs(opset: int, ir: int) -> bool:
        proto = environment._small_model(opset, ir).proto
        try:
            onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        except Exception:
            return False
        return True

    assert runs(ort.newest_opset, 8)
    assert runs(13, ort.newest_ir)
    assert not runs(13, ort.newest_ir + 1) or ort.newest_ir == here.onnx_ir
    newer = [finding for finding in here.findings if "opsets up to" in finding.message]
    assert bool(newer) == (ort.newest_opset < (here.onnx_opset or 0))


def test_the_machine(here):
    machine = here.machine
    assert 1 <= machine.cpus <= (os.cpu_count() or 1)
    assert machine.memory is None or machine.memory > 1 << 28
    assert machine.free_temp > 0
    assert machine.temp_folder.is_dir()
    assert bool(machine.gpus) <= (machine.driver is not None)


# What is broken is found. Each in a process of its own, with a package shadowed by one that does what broken ones do.


@pytest.mark.parametrize(
    ("module", "source", "words"),
    [
        ("rapidfuzz", "raise ImportError('libstdc++.so.6: version GLIBCXX_9 not found')", "GLIBCXX_9"),
        ("sympy", "raise AttributeError('_ARRAY_API not found')", "AttributeError: _ARRAY_API not found"),
        ("onnxruntime", "raise ImportError('DLL load failed')", "onnxruntime is required"),
        ("onnx", "raise RuntimeError('numpy.core.multiarray failed to import')", "onnx is required"),
    ],
)
def test_a_broken_requirement_is_an_error(tmp_path, module, source, words):
    (tmp_path / f"{module}.py").write_text(source)
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-m", "onnxbench", "doctor", "--json"],
        capture_output=True,
        text=True,
        env=environ,
        cwd=tmp_path,
    )
    assert done.returncode == 1, done.stderr
    body = json.loads(done.stdout)["result"]
    assert body["ok"] is False
    errors = [finding["message"] for finding in body["findings"] if finding["severity"] == "error"]
    assert any(words in message for message in errors), errors
    assert all(finding["advice"] for finding in body["findings"])
    shown = subprocess.run(
        [sys.executable, "-m", "onnxbench", "doctor"], capture_output=True, text=True, env=environ, cwd=tmp_path
    )
    assert shown.returncode == 1
    assert "BROKEN" in shown.stdout
    assert "Traceback" not in shown.stdout + shown.stderr


def test_a_requirement_that_is_too_old(monkeypatch):
    monkeypatch.setattr(environment, "_least_versions", lambda: {"onnx": "999.1", "numpy": "1.0"})
    found = {package.name: package.problem for package in environment._required_packages()}
    assert "older than 999.1" in (found["onnx"] or "")
    assert found["numpy"] is None


@pytest.mark.parametrize(
    ("version", "least", "older"),
    [
        ("1.9", "1.10", True),
        ("2.0.0+cpu", "2.0", False),
        ("1.26.4", "1.26", False),
        ("0.5", "0.5", False),
        ("1", "1.2", True),
    ],
)
def test_versions_are_compared_as_numbers(version, least, older):
    assert (environment._numbers(version) < environment._numbers(least)) is older


# Combinations that are known to be bad.


def _findings(monkeypatch, installed: set[str], **machine: object) -> list[Finding]:
    monkeypatch.setattr(environment, "_installed", lambda name: "1.0" if name in installed else None)
    gpu = (environment.Gpu("H200", 140 << 30),) if machine.get("gpu") else ()
    here = environment.Machine("Linux", 2, None, None, Path("/tmp"), int(str(machine.get("free", 10**12))), None, gpu)
    providers = ("CUDAExecutionProvider",) if machine.get("gpu_build") else ("CPUExecutionProvider",)
    runtime = environment.Runtime("ort", "1.31", True, providers, 26, 13)
    packages = [environment.Package(name, "1.0", False, "x") for name in installed]
    versions = {package.name: package.version for package in packages}
    return [
        *environment._package_findings(packages),
        *environment._backend_findings([runtime], 28, 14, versions, here),
        *environment._machine_findings(here),
    ]


@pytest.mark.parametrize(
    ("installed", "machine", "words"),
    [
        ({"onnxruntime", "onnxruntime-gpu"}, {}, "overwrite each other"),
        ({"torch"}, {}, "without onnxscript"),
        ({"tensorrt"}, {}, "TensorRT is installed, and no GPU"),
        (set(), {"gpu": True}, "does not use it"),
        (set(), {"gpu_build": True}, "GPU build, and no GPU"),
        (set(), {"free": 10**6}, "only 1 MB are free"),
        (set(), {}, "opsets up to 28"),
        (set(), {}, "IR versions up to 14"),
    ],
)
def test_known_trouble(monkeypatch, installed, machine, words):
    assert any(words in finding.message for finding in _findings(monkeypatch, installed, **machine))


def test_no_trouble_is_made_up(monkeypatch):
    quiet = _findings(monkeypatch, {"onnxruntime", "torch", "onnxscript"})
    assert {finding.severity for finding in quiet} == {"note"}
    assert all("up to" in finding.message for finding in quiet)


def test_plugins_are_listed(monkeypatch, tmp_path):
    (tmp_path / "resize").mkdir()
    (tmp_path / "resize" / "plugin.py").write_text("")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    monkeypatch.setenv(PATH_VARIABLE, os.pathsep.join([str(tmp_path), str(tmp_path / "none")]))
    plugins, findings = environment._find_plugins()
    listed = [plugin for plugin in plugins if plugin.source == PATH_VARIABLE]
    assert [plugin.name for plugin in listed] == ["resize"]
    assert {"nms_rotated", "roi_align"} <= {plugin.name for plugin in plugins if plugin.source == "onnxbench"}
    assert [finding.severity for finding in findings] == ["warning"]


def test_the_command(capsys):
    assert bounded(app, ["doctor"]) == 0
    out = capsys.readouterr().out
    assert f"onnxbench {__version__}" in out
    assert "All that is required is there and works." in out
    assert bounded(app, ["doctor", "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["result"]["ok"] is True
    assert {"packages", "backends", "plugins", "machine", "findings", "onnx_opset"} <= set(body["result"])
