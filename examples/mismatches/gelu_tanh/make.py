"""Writes right.onnx and wrong.onnx: one of the two exact Gelu is the approximation by tanh."""

from __future__ import annotations

import onnxbench
from onnxbench.operations import SetAttribute

if __name__ == "__main__":
    right = onnxbench.build("model.yaml")
    wrong = onnxbench.edit(right, [SetAttribute("node:gelu2", "approximate", "tanh")]).model
    onnxbench.save(right, "right.onnx")
    onnxbench.save(wrong, "wrong.onnx")
