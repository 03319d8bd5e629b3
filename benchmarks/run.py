"""Measures the whole table of benchmarks/README.md, onnxbench and its peers in one run.

    python benchmarks/run.py                                     everything (about an hour on 2 cores)
    python benchmarks/run.py --only extract,cuts --runs 3        some sections
    python benchmarks/run.py --only cuts --models magika,swift_f0        the other models keep their results
    python benchmarks/run.py --write-readme                      and the table goes into the README

Results go to benchmarks/out/results.json, section by section; sections that are not measured now stay as they were,
there and in the README.
Large files lie in a temporary folder (``--temp``) that is removed at the end, also after Ctrl-C.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpus_cuts
import edits
import report
import speed
from measure import machine

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "out" / "results.json"
README = HERE / "README.md"
PACKAGES = ("onnx", "onnxruntime", "numpy", "polygraphy", "onnx-graphsurgeon", "onnx-ir", "onnxslim", "sor4onnx")

Section = Callable[[int, Path, Callable[[str], None]], dict[str, Any]]
SECTIONS: dict[str, Section] = {
    "startup": speed.startup,
    "extract": speed.extract,
    "diff": speed.diff,
    "growth": speed.growth,
    "weights": speed.weights,
    "structure": speed.structure,
    "edits": edits.edits,
}


def main() -> int:
    """Runs what the arguments say; the status is 1 if a bar was measured and missed."""
    told = _arguments()
    if importlib.util.find_spec("onnxbench") is None:  # run from a checkout without an installation
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(HERE.parent), os.environ.get("PYTHONPATH"))))
    # As pip does with what it installs. Where the environment forbids it, every process would compile anew.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    compileall.compile_dir(HERE.parent / "onnxbench", quiet=1)
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="onnxbench-bench-", dir=told.temp) as temporary:
        for name in told.only:
            say(f"{name}:")
            before = machine()
            if name == "cuts":
                data = corpus_cuts.measure(told.models, report=say)
                if told.models and name in results:
                    data = corpus_cuts.merged(results[name]["data"], data)
            else:
                data = SECTIONS[name](told.runs, Path(temporary), say)
            results[name] = {
                "date": datetime.date.today().isoformat(),
                "runs": told.runs,
                "machine": before,
                "versions": _versions(),
                "data": data,
            }
            RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")
    table = report.render(results)
    print(table)
    if told.write_readme:
        report.write_between_marks(README, table)
        say(f"written to {README.name}")
    return int(any(bar["met"] is False for name in told.only for bar in report.bars(name, results[name]["data"])))


def say(line: str) -> None:
    """Prints progress, which is no result, to stderr."""
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    names = [*SECTIONS, "cuts"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=lambda text: text.split(","), default=names, metavar=",".join(names))
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each contender (default 5)")
    parser.add_argument("--models", type=lambda text: text.split(","), metavar="NAME,...", help="models for 'cuts'")
    parser.add_argument("--write-readme", action="store_true", help="put the table into benchmarks/README.md")
    parser.add_argument("--temp", type=Path, metavar="DIR", help="where large files go (9 GiB for weights, structure)")
    told = parser.parse_args()
    if unknown := [name for name in told.only if name not in names]:
        parser.error(f"no section {unknown[0]!r}; sections: {', '.join(names)}")
    if told.runs < 1:
        parser.error("--runs must be at least 1")
    return told


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


if __name__ == "__main__":
    sys.exit(main())
