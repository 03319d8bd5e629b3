"""The tour: onnxbench's main job on a real model, step by step, each step a command that is shown before it runs.

The model is Google's magika (what kind of file are these bytes?), 3 MB, 95 nodes, exported from Keras by tf2onnx.
It is taken from its PyPI wheel. Everything that is written goes to ``demo-output/``.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OUTPUT = ROOT / "demo-output"

STEPS: list[tuple[str, str]] = [
    ("What is in this file? (No weight is read.)", "onnxbench inspect magika.onnx"),
    ("Where are the dense layers?", "onnxbench find magika.onnx op:MatMul"),
    (
        "Cut out the middle, and record what really flows into it and out of it.",
        "onnxbench extract magika.onnx middle.onnx --from node:{first} --to node:{second} --save-feeds middle.npz",
    ),
    (
        "Run the piece alone on those values: it must give what the whole model gave.",
        "onnxbench run middle.onnx --feeds middle.npz --expect middle_outputs.npz --optimization-level none",
    ),
    (
        "Too few inputs? The error names what is missing and the cuts that would work.",
        "onnxbench extract magika.onnx bad.onnx --inputs {inner} --outputs {second_out}",
    ),
    ("Split the model into three pieces and prove that they are the model.", "onnxbench split magika.onnx pieces --parts 3 --prove"),
    ("Is anything wrong with it?", "onnxbench check magika.onnx --ort"),
    ("Run it: statistics of every output, and how fast it is.", "onnxbench run magika.onnx --bench 20"),
    ("Make a model from twelve lines of text ...", "onnxbench build linear_func.yaml linear_func.onnx"),
    ("... and read it as text.", "onnxbench show linear_func.onnx"),
]


def main() -> int:
    """Runs every step; returns the number of steps that ended in an unexpected way."""
    OUTPUT.mkdir(exist_ok=True)
    fetched = subprocess.run(
        [sys.executable, ROOT / "tests" / "corpus" / "fetch.py", "magika", "--dir", OUTPUT], capture_output=True, text=True
    )
    if fetched.returncode:
        print(fetched.stdout, fetched.stderr, sep="\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
