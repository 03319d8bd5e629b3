"""The documentation is true: generated pages are up to date, and what the README shows is what commands print."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def test_generated_pages_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs" / "generate.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_command_has_examples_that_parse():
    from onnxbench.cli import COMMANDS

    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    for command in COMMANDS:
        section = page.partition(f"## onnxbench {command}\n")[2].partition("\n## ")[0]
        examples = [line.strip() for line in section.splitlines() if line.strip().startswith("onnxbench ")]
        assert examples, f"{command} shows no examples"
        for line in examples:
            assert shlex.split(line)[1] in COMMANDS, line


def test_links_between_pages_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))):
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.corpus
def test_readme_shows_what_the_tour_prints(corpus):
    """Runs the tour and compares it with the README, figures of time aside."""
    corpus("magika")
    done = subprocess.run([sys.executable, ROOT / "examples" / "tour.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _without_times(_shown("tour")) == _without_times(done.stdout.strip())


@pytest.mark.torch
def test_readme_shows_what_the_way_from_pytorch_prints():
    """Runs that example and compares it with the README, the size of rounding aside."""
    pytest.importorskip("torch", reason="torch is not installed: pip install onnxbench[torch]")
    done = subprocess.run([sys.executable, ROOT / "examples" / "from_pytorch.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _without_rounding(_shown("pytorch")) == _without_rounding(done.stdout.strip())


@pytest.mark.corpus
@pytest.mark.trt
def test_readme_shows_what_half_precision_prints(corpus):
    """Runs that example and compares it with the README, sizes of errors and of the engine aside."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed: pip install onnxbench[trt]")
    corpus("magika")
    done = subprocess.run([sys.executable, ROOT / "examples" / "half_precision.py"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert _without_fractions(_shown("precision")) == _without_fractions(done.stdout.strip())


def _shown(name: str) -> str:
    found = re.search(
        rf"<!-- {name}: begin -->\n```console\n(.*?)\n```\n<!-- {name}: end -->",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert found is not None
    return found[1]


def _without_rounding(text: str) -> list[str]:
    """Returns the lines of a transcript without numbers that differ by machine: rounding, versions, sizes."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    telling = re.compile(r"\d[eE][-+]\d|rounding|^\S+ (passed|FAILED|bit for bit) |in PyTorch \d|^wrote .*\(")
    return [
        re.sub(r"\d[\d.,]*(e[-+]\d+)?", "#", line) if telling.search(line) else line
        for line in lines
        if "─" not in line
    ]


def _without_times(text: str) -> list[str]:
    """Returns the lines of a transcript without what differs by machine.

    That is the latency row, the runtime's version, and the last digits of numbers: kernels sum in other orders.
    """
    lines = [" ".join(line.split()) for line in re.sub(r"\d{1,3},\d{3} +100%", "# 100%", text).splitlines()]
    return [
        re.sub(r"(?<![\w.])\d+\.\d+(?:e[+-]\d+)?", _rounded, re.sub(r"ort [\d.]+", "ort", line))
        for line in lines
        if not re.match(r"\d+ runs after", line) and "─" not in line
    ]


def _without_fractions(text: str) -> list[str]:
    """Returns the lines of a transcript without numbers that are no counts, and without the engine's figures."""
    told = re.sub(r"engine: .*", "engine", re.sub(r"wrote (\S+) .*", r"wrote \1", text))
    told = re.sub(r"\d+\.\d+(e[-+]\d+)?", "#", told)
    return [" ".join(line.split()) for line in told.splitlines() if "─" not in line]


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.4g}"
