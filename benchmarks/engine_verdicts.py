"""What we say of a model before a build against what the builder says, on the onnx package's node tests.

Of each case ``diagnose`` is asked twice: without a trial build, and with one, which is the builder's own verdict. It is
the code of ``build-trt --doctor``, with one TensorRT for many models in place of a process for each; where that process
dies, the case counts as one that cannot be built, and another process goes on behind it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import report

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent)]
FLOATS, ODD = frozenset({1, 10, 11, 16}), frozenset({8, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24})
"""Element types: floating ones, and those that make a case none of floats (strings, complex, 8 bits and fewer)."""


def measure(say: Callable[[str], None]) -> dict[str, Any]:
    """Returns the verdicts on every case."""
    rows: list[dict[str, Any]] = []
    while True:
        count = len(rows)
        child = subprocess.Popen(
            [sys.executable, __file__, str(count)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert child.stdout is not None
        current = ""
        for line in child.stdout:
            row = json.loads(line)
            if "begin" in row:
                current = row["begin"]
                continue
            rows.append(row)
            if len(rows) % 100 == 0:
                say(f"{len(rows)} cases")
        status = child.wait()
        if status == 0:
            return {"rows": rows}
        if not current or (len(rows) > count and rows[-1]["case"] == current):
            raise RuntimeError(f"the process that judges ended with status {status} between two cases")
        rows.append({"case": current, "float": True, "parsed": True, "ours": True, "builder": False,
                     "why": f"TensorRT's process ended with status {status}"})  # fmt: skip
        say(f"{current}: the process ended with status {status}")


def render(section: Mapping[str, Any]) -> str:
    """Returns the counts, and each case where the two differ."""
    rows = section["rows"]
    lines = []
    for words, chosen in (
        ("float, taken by the parser", [row for row in rows if row["float"] and row["parsed"]]),
        ("all that TensorRT can be asked about", [row for row in rows if row["builder"] is not None]),
    ):
        same = sum(row["ours"] == row["builder"] for row in chosen)
        built = sum(row["builder"] for row in chosen)
        lines.append([words, str(len(chosen)), str(built), f"{same} ({100 * same / len(chosen):.2f} %)"])
    asked = [row for row in rows if row["builder"] is not None]
    wrong = [row for row in asked if row["ours"] != row["builder"]]
    refused = Counter(row["why"][:90] for row in rows if row["builder"] is None)
    left = ", ".join(f"{why} ({count})" for why, count in refused.most_common(4))
    met = all(row["ours"] == row["builder"] for row in asked if row["float"] and row["parsed"])
    parts = [
        "### The verdict before a build",
        f"`--doctor --no-trial` against the builder, the onnx package's {len(rows)} node tests, SM89. Bar: 100 % of the"
        f" float cases that the parser takes; met: {'yes' if met else '**no**'}.",
        report.table(["cases", "count", "built", "our verdict is the builder's"], lines),
    ]
    if left:
        parts.append(
            f"Left out ({sum(refused.values())}), refused before TensorRT is asked: {left}; and others like them."
        )
    if wrong:
        parts.append("Different: " + "; ".join(
            f"{row['case']} (we: {'taken' if row['ours'] else 'refused'}; {row['why'][:160]})" for row in wrong
        ) + ".")  # fmt: skip
    return "\n\n".join(parts)


def cases() -> list[Any]:
    """Returns the node tests by name, in an order that is always the same."""
    import numpy as np
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        return sorted(collect_testcases(None), key=lambda case: case.name)


def judge(start: int) -> Iterator[dict[str, Any]]:
    """Yields the verdicts on the cases from a number on."""
    import numpy as np

    from onnxbench.engine import BuildSpec, _building, _worker, diagnose, observe_sets
    from onnxbench.errors import BenchError
    from onnxbench.model import from_proto

    loaded: list[Any] = []
    load = _worker._load

    def load_once(job: dict[str, Any], say: Any, ahead: Any = None) -> Any:
        if not loaded:
            loaded.append(load(job, say)[0])
        loaded[0].messages.clear()
        return loaded[0], []

    _worker._load = load_once
    _building.run_job = lambda job, heard=None: _worker._JOBS[job["task"]](dict(job), lambda event, **fields: None)
    for case in cases()[start:]:
        yield {"begin": case.name}
        row = {"case": case.name, "float": _is_float(case.model.graph)}
        model = from_proto(case.model)
        try:
            names = [info.name for info in case.model.graph.input]
            sets = [dict(zip(names, inputs, strict=False)) for inputs, _ in case.data_sets]
            plain = all(isinstance(value, np.ndarray) for each in sets for value in each.values())
            seen = observe_sets(model, sets if plain else [])
            spec = BuildSpec(compute_capabilities=("SM89",), profiles=(seen.profile,) if seen.profile else ())
            before = diagnose(model, spec, trial=False)
            after = diagnose(model, spec)
        except BenchError as error:
            yield {**row, "parsed": False, "ours": False, "builder": None, "why": error.message}
            continue
        problems = [*before.problems, *after.problems]
        yield {
            **row, "parsed": after.builds is not None, "ours": not before.problems, "builder": bool(after.builds),
            "why": problems[0].sentence() if problems else "",
        }  # fmt: skip


def _is_float(graph: Any) -> bool:
    kinds = {info.type.WhichOneof("value") for info in (*graph.input, *graph.output)}
    types = {info.type.tensor_type.elem_type for info in (*graph.input, *graph.output)}
    return kinds == {"tensor_type"} and bool(types & FLOATS) and not types & ODD


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # TensorRT's parser prints
    for each in judge(int(sys.argv[1])):
        answers.write(json.dumps(each) + "\n")
