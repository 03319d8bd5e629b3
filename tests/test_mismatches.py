"""The examples from public threads: each is made anew, searched, and the node that its page names is found."""

from __future__ import annotations

import argparse
import importlib.util
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pytest

import onnxbench

ROOT = Path(__file__).resolve().parent.parent
_SPEC = importlib.util.spec_from_file_location("mismatches", ROOT / "examples" / "mismatches" / "run.py")
assert _SPEC is not None
assert _SPEC.loader is not None
mismatches = importlib.util.module_from_spec(_SPEC)
sys.modules["mismatches"] = mismatches
_SPEC.loader.exec_module(mismatches)

CASES = mismatches.cases()
WITH_TORCH = ("floor_divide", "scatter_mean", "sdpa_bool_mask", "topk_ties", "traced_scale", "view_inplace")
"""Of those that need PyTorch, one for each way in which a node is told; run.py runs all of them."""


def verdict(case, folder: Path, monkeypatch) -> str:
    """Makes a case's models and returns the verdict of its command, from Python."""
    for name in ("make.py", "model.yaml"):
        if (case.folder / name).is_file():
            shutil.copy(case.folder / name, folder)
    monkeypatch.chdir(folder)
    runpy.run_path("make.py", run_name="__main__")
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    for option in ("--against", "--torch", "--on", "--reference-on", "--over", "--shape"):
        parser.add_argument(option)
    said = parser.parse_args(shlex.split(case.bisect))
    if said.over is not None:
        return onnxbench.bisect_over(said.model, said.over, on=said.on).verdict
    against = onnxbench.torch_reference(said.torch) if said.torch else said.against
    feeds = onnxbench.FeedOptions(shapes=(said.shape,)) if said.shape else None
    found = onnxbench.bisect(said.model, against=against, on=said.on, reference_on=said.reference_on, feeds=feeds)
    assert not found.passed
    return found.verdict


def without_numbers(text: str) -> str:
    """Returns a text without figures that differ by machine, and without folders."""
    return re.sub(r"\d[\d.]*e[-+]\d+", "#", re.sub(r"\S*/make\.py", "make.py", text))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.torch])
def test_the_node_is_named(name, tmp_path, monkeypatch):
    case = CASES[name]
    told = verdict(case, tmp_path, monkeypatch)
    assert case.names in told
    assert without_numbers(told) in without_numbers(mismatches.shown(case))


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", WITH_TORCH)
def test_the_node_is_named_with_pytorch(name, tmp_path, monkeypatch):
    pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
    case = CASES[name]
    told = verdict(case, tmp_path, monkeypatch)
    assert case.names in told
    assert without_numbers(told) in without_numbers(mismatches.shown(case))


@pytest.mark.parametrize("name", CASES)
def test_pages_are_short_and_show_the_command(name):
    case = CASES[name]
    page = (case.folder / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 30
    assert f"https://github.com/{case.thread}" in page
    assert mismatches.shown(case).startswith(f"$ python make.py\n$ {case.command}\n")
    assert case.names in mismatches.shown(case).splitlines()[-2]


def test_the_table_has_all_cases():
    page = (ROOT / "examples" / "mismatches" / "README.md").read_text(encoding="utf-8")
    folders = {path.parent.name for path in (ROOT / "examples" / "mismatches").glob("*/make.py")}
    assert folders == set(CASES)
    assert len(CASES) >= 20
    assert mismatches.table(list(CASES.values())) in page
