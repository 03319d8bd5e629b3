"""From "fp16 gives Inf" to an engine: a real model in half precision, with the nodes that cannot be kept in float32.

The model is magika's, as in the tour. A LayerNorm in it squares and sums values that float16 does not reach. The last
step needs TensorRT-RTX (``pip install onnxbench[trt]``), no GPU.

``--write-readme`` puts the transcript into README.md, between its markers.
"""

from __future__ import annotations

import sys

from tour import Steps, fetch_model, run_steps, write_readme

STEPS: Steps = [
    ("In half precision, typed as TensorRT 11 wants it.", "onnxbench precision magika.onnx half.onnx --to fp16", 0),
    ("Is it the same model? Which node goes wrong?", "onnxbench bisect half.onnx --against magika.onnx", 1),
    (
        "The fewest nodes that have to stay in float32, found by running; as a recipe for the next export, too.",
        "onnxbench precision magika.onnx mixed.onnx --to fp16 --search --tolerance 0.01 --samples 4"
        " --save-recipe mixed.yaml",
        0,
    ),
    (
        "An engine of it, on a machine without a GPU.",
        "onnxbench build-trt mixed.onnx magika.engine --compute-capability 8.9"
        " --min-shapes bytes:[1,2048] --opt-shapes bytes:[1,2048] --max-shapes bytes:[8,2048]",
        0,
    ),
    ("The same choice on the next export of the network.", "onnxbench edit magika.onnx next.onnx -r mixed.yaml", 0),
]  # fmt: skip


if __name__ == "__main__":
    fetch_model()
    shown = run_steps(STEPS)
    if "--write-readme" in sys.argv:
        write_readme(shown, "precision")
