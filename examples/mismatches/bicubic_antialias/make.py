"""Writes right.onnx and wrong.onnx: the cubic's coefficient is that of a Resize without antialiasing."""

from __future__ import annotations

import onnxbench
from onnxbench.operations import SetAttribute

if __name__ == "__main__":
    right = onnxbench.build("model.yaml")
    wrong = onnxbench.edit(right, [SetAttribute("node:shrink", "cubic_coeff_a", -0.75)]).model
    onnxbench.save(right, "right.onnx")
    onnxbench.save(wrong, "wrong.onnx")
