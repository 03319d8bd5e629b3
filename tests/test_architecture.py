"""The shape of the project, held by tests: what starting up may load, and that imports go one way down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
HEAVY = ("numpy", "onnx", "onnxruntime", "torch", "yaml", "sympy", "rapidfuzz", "google.protobuf")


def _loaded_by(code: str) -> set[str]:
    script = f"{code}\nimport json, sys\nprint('LOADED' + json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.rpartition("LOADED")[2]))


def test_importing_the_package_loads_nothing_heavy():
    assert not _loaded_by("import onnxbench").intersection(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["extract", "--help"], ["--version"], ["check", "--help"]])
def test_help_loads_nothing_heavy(arguments):
    code = f"""
from onnxbench.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    assert end.code == 0, end.code
"""
    assert not _loaded_by(code).intersection(HEAVY)


def test_imports_go_one_way_down():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
