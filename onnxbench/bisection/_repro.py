"""A culprit as a folder that anyone can run: a small model, its inputs, what should come out, and a script."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from onnxbench import backends, captures
from onnxbench.bisection._anonymity import Piece, anonymous, as_model
from onnxbench.bisection._sides import as_dtype
from onnxbench.captures import Value, onnx_dtype
from onnxbench.errors import OutputError, UnsupportedError
from onnxbench.shrinking import carried, runtime_name
from onnxbench.version import __version__
from onnxbench.writer import save, write_whole

if TYPE_CHECKING:
    from onnxbench.bisection._finding import Finding
    from onnxbench.bisection._report import Culprit
    from onnxbench.bisection._search import Search

_SCRIPT = '''"""Shows that {node} ({op_type}) gives something else than the reference.

Made by onnxbench {version}: {suspect}
against {reference}. {runtime}.
Needs: {needs}.
"""

import sys
from pathlib import Path

import numpy as np
{imports}

here = Path(__file__).parent
inputs = dict(np.load(here / "inputs.npz"))
expected = dict(np.load(here / "expected.npz"))
{run}
print("model: culprit.onnx, on {runtime}")
drifts = False
for name, value in zip(names, values):
    want = expected[name]
    if value.shape != want.shape:
        print(f"{{name}}: the shape is {{value.shape}}, expected {{want.shape}}")
        drifts = True
        continue
    a, b = value.astype(np.float64), want.astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    odd = int((~finite & ~((a == b) | (np.isnan(a) & np.isnan(b)))).sum())
    a, b = np.where(finite, a, 0), np.where(finite, b, 0)
    error = float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-300))
    print(f"{{name}}: relative error {{error:.3e}}, largest difference {{np.abs(a - b).max(initial=0):.3e}}, "
          f"NaN or Inf on one side {{odd}}")
    drifts = drifts or bool(odd) or error > {threshold!r}
print("the failure shows" if drifts else "the failure does not show here")
sys.exit(1 if drifts else 0)
'''
_ORT = """options = ort.SessionOptions()
options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
session = ort.InferenceSession(str(here / "culprit.onnx"), options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
values = session.run(names, inputs)
"""
_REFERENCE = """evaluator = ReferenceEvaluator(str(here / "culprit.onnx"))
names = list(evaluator.output_names)
values = [np.asarray(value) for value in evaluator.run(names, inputs)]
"""
_OWN = """

def run():
{body}


made = run()
names, values = list(made), [np.asarray(value) for value in made.values()]
"""


def write_repro(
    folder: str | os.PathLike[str],
    search: Search,
    culprit: Culprit,
    finding: Finding,
    feeds: Mapping[str, Value],
    median: float,
    *,
    anonymize: bool = False,
) -> tuple[str, ...]:
    """Writes a culprit as a small model with inputs, expected outputs and a script; returns what a user should know.

    Args:
        folder: Where; it is made, and must be empty if it is there.
        search: The search, when it is done.
        culprit: The culprit.
        finding: What was found of it.
        feeds: The set of inputs that it was found on.
        median: The median own error of the search.
        anonymize: Replace names, texts, metadata, weights and inputs (see ``_anonymity``).

    Raises:
        OutputError: The folder is not empty, or cannot be written.
        UnsupportedError: NumPy cannot hold the values; or the failure does not show once they are replaced.
    """
    target = Path(folder)
    require_empty(target)
    inner = [name for name in finding.inputs if name not in feeds]
    wanted = search.values([*inner, finding.tensor], feeds, finding.number)
    plain = search.with_values({}, feeds, [*inner, finding.tensor])
    inputs = {
        name: feeds[name] if name in feeds else as_dtype(wanted[name], onnx_dtype(plain[name].dtype))
        for name in finding.inputs
    }
    for name, value in (*inputs.items(), (finding.tensor, wanted[finding.tensor])):
        if not hasattr(value, "dtype") or value.dtype.kind == "V" or value.dtype.num >= 256:
            raise UnsupportedError(f"NumPy alone cannot hold {name!r}, so no script with NumPy alone can show this")
    error = culprit.own.rel
    piece = Piece(
        as_model(search, finding, inputs), inputs, wanted[finding.tensor],
        threshold=min(1e-2, max(error / 4, median)) if math.isfinite(error) else 1e-6,
    )  # fmt: skip
    notes: tuple[str, ...] = ()
    if anonymize:
        piece, notes = anonymous(
            search, finding, piece, {name: wanted.get(name, inputs[name]) for name in inputs}, median
        )
    place = search.suspect.place
    brought = carried(piece.model, place.backend, place.options.operators)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{target} cannot be made: {error.strerror}") from None
    files = [target / name for name in ("culprit.onnx", "inputs.npz", "expected.npz", "reproduce.py")]
    save(brought.model, files[0])
    brought.copy_to(target)
    captures.save(files[1], piece.inputs)
    captures.save(files[2], {piece.model.proto.graph.output[0].name: piece.expected})
    is_reference = place.backend == "reference"
    backend = backends.backend(place.backend)
    own = brought.body(place.backend, place.options, model=files[0].name, feeds=files[1].name)
    if own is not None:
        imports, run = "", _OWN.format(body=own.strip("\n"))
    elif is_reference:
        imports, run = "from onnx.reference import ReferenceEvaluator", _REFERENCE
    else:
        imports, run = "import onnxruntime as ort", _ORT
    script = _SCRIPT.format(
        node="a node" if anonymize else culprit.node, op_type=culprit.op_type, version=__version__,
        suspect="a model" if anonymize else search.suspect.label,
        reference="its reference" if anonymize else search.reference.label,
        runtime=f"{runtime_name(place.backend)} {backend.version()}", needs=brought.needs(place.backend),
        imports=imports, run=run, threshold=piece.threshold,
    )  # fmt: skip
    write_whole(files[3], [script.encode()])
    return notes


def require_empty(target: Path) -> None:
    """Raises OutputError when a folder to be written is there and not empty, or is a file."""
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise OutputError(f"{target} is there already", hint="Name a new folder, or an empty one.")
