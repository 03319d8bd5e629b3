"""Measures ``onnxbench build-trt``: which models become engines, whether its word before a build holds, what it costs.

    python benchmarks/engines.py                      every real model and the PyTorch set, built for SM89
    python benchmarks/engines.py --models magika,bert     some of them; the others keep their results
    python benchmarks/engines.py --verdicts           the onnx package's node tests: our verdict against the builder's
    python benchmarks/engines.py --cost               time and memory beside the builder's own and Polygraphy's
    python benchmarks/engines.py --write-readme       and the tables go into the README

No GPU is needed. The real models are those of ``tests/corpus/fetch.py`` that are fetched, the PyTorch ones those of
``exporting.py`` (they need the extra ``torch`` and transformers). Results go to ``benchmarks/out/engines.json``.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import report
from measure import machine

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE.parent / "tests")]
RESULTS = HERE / "out" / "engines.json"
README = HERE / "README.md"
MARKS = ("<!-- engines: begin (written by engines.py --write-readme) -->", "<!-- engines: end -->")
LIMIT_S = 600
BAR = 0.85
PACKAGES = ("tensorrt-rtx", "onnx", "onnxruntime", "torch", "transformers", "polygraphy")

KNOWN: dict[str, tuple[str, ...]] = {
    "ppocr_v4_rec": ("--min-shapes", "x:1x3x48x32", "--opt-shapes", "x:1x3x48x320", "--max-shapes", "x:8x3x48x640"),
    **dict.fromkeys(
        ("silero_vad", "silero_vad_16k_op15", "silero_vad_ifless"),
        ("--fix", "sr=16000", "--shapes", "input:1x576", "state:2x1x128"),
    ),
}
"""What users of a model know and its file does not say: the third try of those that fail the first two."""


def main() -> int:
    """Runs what the arguments say; the status is 1 if a bar was measured and missed."""
    told = _arguments()
    results: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    RESULTS.parent.mkdir(exist_ok=True)
    conditions = {"date": datetime.date.today().isoformat(), "machine": machine(), "versions": _versions()}
    if told.verdicts:
        import engine_verdicts

        results["verdicts"] = {**conditions, **engine_verdicts.measure(say)}
    elif told.cost:
        import engine_cost

        results["cost"] = {**conditions, **engine_cost.measure(told.runs, say)}
    else:
        rows = results.get("builds", {}).get("rows", {})
        for name, row in measure_builds(told.models):
            rows[name] = row
            results["builds"] = {**conditions, "rows": rows}
            RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")
    RESULTS.write_text(json.dumps(results, indent=1), encoding="utf-8")
    text = render(results)
    print(text)
    if told.write_readme:
        report.write_between_marks(README, text, MARKS)
        say(f"written to {README.name}")
    return int("**no**" in text)


def say(line: str) -> None:
    """Prints progress, which is no result, to stderr."""
    print(line, file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--models", type=lambda text: text.split(","), metavar="NAME,...", help="only these models")
    what.add_argument("--verdicts", action="store_true", help="the onnx package's node tests (half an hour)")
    what.add_argument("--cost", action="store_true", help="time and memory on ResNet-50 and BERT-base")
    parser.add_argument("--runs", type=int, default=5, metavar="N", help="runs of each contender of --cost (default 5)")
    parser.add_argument("--write-readme", action="store_true", help="put the tables into benchmarks/README.md")
    return parser.parse_args()


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


# ---------------------------------------------------------------- which models become engines


def measure_builds(models: list[str] | None) -> Any:
    """Yields each model's name with what became of it: as it is, with ``--apply``, and with what its users know."""
    from corpus import fetch

    for name, path in fetch.present().items():
        if models is None or name in models:
            yield name, {"set": "corpus", **_tries(name, path)}
    try:
        import exporting
    except ImportError as error:
        say(f"the PyTorch models are left out: {error}")
        return
    with tempfile.TemporaryDirectory(prefix="onnxbench-bench-") as folder:
        for name in exporting.MODELS:
            if models is None or name in models:
                yield name, {"set": "PyTorch", **_tries(name, exporting.exported(name, Path(folder)))}


def _tries(name: str, path: Path) -> dict[str, Any]:
    row = {"plain": _doctor(path, ())}
    if not row["plain"]["builds"]:
        row["apply"] = _doctor(path, ("--apply",))
    if "apply" in row and not row["apply"]["builds"] and name in KNOWN:
        row["known"] = {"flags": [*KNOWN[name]], **_doctor(path, ("--apply", *KNOWN[name]))}
    said = " ".join(f"{what}: {'built' if each['builds'] else 'refused'}" for what, each in row.items())
    say(f"{name}: {said} ({sum(each['seconds'] for each in row.values()):.0f} s)")
    return row


def _doctor(path: Path, flags: tuple[str, ...]) -> dict[str, Any]:
    """Returns what ``build-trt --doctor`` says of a model in a process of its own."""
    command = [sys.executable, "-m", "onnxbench", "build-trt", str(path), "--doctor", "--json"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    began = time.perf_counter()
    try:
        done = subprocess.run(
            [*command, "--compute-capability", "8.9", *flags],
            capture_output=True, text=True, timeout=LIMIT_S, env=environment,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"builds": False, "seconds": LIMIT_S, "problems": [{"message": f"not done in {LIMIT_S} s"}], "did": []}
    said = json.loads(done.stdout)
    found = said.get("result") or {"builds": None, "problems": [{"message": said["error"]["message"]}]}
    did = [line.partition(": ")[2] for line in done.stderr.splitlines() if ": applied " in line]
    return {
        "builds": bool(found["builds"]) and not found["problems"], "seconds": round(time.perf_counter() - began, 1),
        "problems": found["problems"], "did": did,
    }  # fmt: skip


# ---------------------------------------------------------------- as tables


def render(results: Mapping[str, Any]) -> str:
    """Returns all that was measured as Markdown."""
    parts = []
    if "builds" in results:
        parts += [_builds_table(results["builds"]["rows"]), _conditions(results["builds"])]
    if "verdicts" in results:
        import engine_verdicts

        parts += [engine_verdicts.render(results["verdicts"]), _conditions(results["verdicts"])]
    if "cost" in results:
        import engine_cost

        parts += [engine_cost.render(results["cost"]), _conditions(results["cost"])]
    return "\n\n".join(parts) + "\n"


def _builds_table(rows: Mapping[str, Any]) -> str:
    lines = []
    for name, row in rows.items():
        last = row.get("known") or row.get("apply") or row["plain"]
        remark = "; ".join(each.partition("applied ")[2] for each in last["did"]) if last["builds"] else _why(last)
        flags = " ".join(row["known"]["flags"]) if "known" in row else ""
        lines.append([name, *(_word(row.get(kind)) for kind in ("plain", "apply", "known")), flags, remark])
    count = len(rows)
    built = {kind: sum(_became(row, kind) for row in rows.values()) for kind in ("plain", "apply", "known")}
    met = "yes" if built["known"] >= BAR * count else "**no**"
    words = {
        "plain": "as they are", "apply": "with `--apply`", "known": "with `--apply` and what their users know",
    }  # fmt: skip
    shares = ", ".join(f"{words[kind]} {n} ({100 * n / count:.0f} %)" for kind, n in built.items())
    return "\n\n".join([
        "### Which models become engines",
        f"Of {count} models (SM89, shapes proposed unless given): {shares}. Bar: every one that can be, at least"
        f" {100 * BAR:.0f} %; met: {met}.",
        report.table(["model", "as it is", "`--apply`", "and with", "flags", "what was done, or why not"], lines),
    ])  # fmt: skip


def _became(row: Mapping[str, Any], kind: str) -> bool:
    tries = {"plain": ("plain",), "apply": ("plain", "apply"), "known": ("plain", "apply", "known")}[kind]
    return any(row.get(each, {}).get("builds") for each in tries)


def _word(found: Mapping[str, Any] | None) -> str:
    return "" if found is None else "built" if found["builds"] else "refused"


def _why(found: Mapping[str, Any]) -> str:
    first, *others = found["problems"]
    place = f"{first['node']} ({first['op']}): " if first.get("node") else ""
    more = f"; and {len(others)} more nodes" if others else ""
    return f"{place}{first['message'][:200]}{more}"


def _conditions(section: Mapping[str, Any]) -> str:
    here = section["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in section["versions"].items())
    return f"<sub>{section['date']}; {here['cores']} cores, load {here['load']} at the start; {versions}.</sub>"


if __name__ == "__main__":
    sys.exit(main())
