"""Writes right.onnx and wrong.onnx: the epsilon of the second normalization is PyTorch's default."""

from __future__ import annotations

import onnxbench
from onnxbench.operations import SetAttribute

if __name__ == "__main__":
    right = onnxbench.build("model.yaml")
    wrong = onnxbench.edit(right, [SetAttribute("node:bn2", "epsilon", 1e-5)]).model
    onnxbench.save(right, "right.onnx")
    onnxbench.save(wrong, "wrong.onnx")
