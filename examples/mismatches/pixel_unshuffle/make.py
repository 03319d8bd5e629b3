"""Writes right.onnx and wrong.onnx: the channels come in the order of SpaceToDepth."""

from __future__ import annotations

import onnxbench
from onnxbench.operations import SetAttribute

if __name__ == "__main__":
    right = onnxbench.build("model.yaml")
    wrong = onnxbench.edit(right, [SetAttribute("node:gather", "perm", [0, 3, 5, 1, 2, 4])]).model
    onnxbench.save(right, "right.onnx")
    onnxbench.save(wrong, "wrong.onnx")
