"""The way from PyTorch to pieces that a device takes, and back to the line of code that went wrong.

The model is the detector of ``partition/detector.py``: a backbone, three prediction maps, and a postprocess with
non-maximum suppression, marked in its own code. It needs torch and onnxscript (``pip install onnxbench[torch]``).

``--write-readme`` puts the transcript into README.md, between its markers.
"""

from __future__ import annotations

import shutil
import sys

from tour import OUTPUT, ROOT, Steps, run_steps, write_readme

STEPS: Steps = [
    (
        "A detector in PyTorch as a file that is held against PyTorch. Every value keeps its module and line.",
        "onnxbench export detector.py:make marked.onnx",
        0,
    ),
    ("Which line of the code is this convolution?", "onnxbench find marked.onnx 'scope:head.predictions.0'", 0),
    (
        "Is that map true? PyTorch computes the values again.",
        "onnxbench map marked.onnx 'scope:head.predictions.*' --torch detector.py:make",
        0,
    ),
    ("A module by itself.", "onnxbench extract marked.onnx backbone.onnx --scope backbone", 0),
    (
        "The network up to the mark yolo_head, without the postprocess: names from the code, not from the exporter.",
        "onnxbench extract marked.onnx network.onnx --from detector_forward:input --to yolo_head:input",
        0,
    ),
    (
        "Both pieces, each on its own, proven to be the whole; inputs recorded for the calibration of each.",
        "onnxbench partition marked.onnx pieces.yaml pieces --prove --calibration image.npz",
        0,
    ),
    ("Somebody makes a mistake ...", "onnxbench edit marked.onnx broken.onnx --set-attribute"
     " node:node_leaky_relu_19:alpha=0.01", 0),
    ("... and PyTorch tells where it is.", "onnxbench bisect broken.onnx --torch detector.py:make", 1),
    ("The marks are gone, and nothing else is.", "onnxbench unmark marked.onnx detector.onnx --verify", 0),
]  # fmt: skip


def run_story() -> str:
    """Runs every step in ``demo-output/`` and returns the transcript."""
    import numpy as np

    OUTPUT.mkdir(exist_ok=True)
    for name in ("detector.py", "pieces.yaml"):
        shutil.copy(ROOT / "examples" / "partition" / name, OUTPUT)
    image = np.random.default_rng(0).random((1, 3, 64, 64), dtype=np.float32)
    np.savez(OUTPUT / "image.npz", image=image)
    shutil.rmtree(OUTPUT / "pieces", ignore_errors=True)
    return run_steps(STEPS)


if __name__ == "__main__":
    shown = run_story()
    if "--write-readme" in sys.argv:
        write_readme(shown, "pytorch")
