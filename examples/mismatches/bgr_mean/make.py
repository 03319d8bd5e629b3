"""Writes right.onnx and wrong.onnx: the means of the colours stand in the order of OpenCV, blue first."""

from __future__ import annotations

import onnxbench
from onnxbench.operations import SetWeight

if __name__ == "__main__":
    right = onnxbench.build("model.yaml")
    blue_first = {"value": [103.53, 116.28, 123.675], "dtype": "float32", "shape": [1, 3, 1, 1]}
    onnxbench.save(right, "right.onnx")
    onnxbench.save(onnxbench.edit(right, [SetWeight("mean", blue_first)]).model, "wrong.onnx")
