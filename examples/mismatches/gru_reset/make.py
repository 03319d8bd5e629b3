"""Writes right.onnx and wrong.onnx: the same GRU without the attribute that PyTorch's definition needs."""

from __future__ import annotations

import onnxbench
from onnxbench.operations import SetAttribute

if __name__ == "__main__":
    right = onnxbench.build("model.yaml")
    wrong = onnxbench.edit(right, [SetAttribute("node:gru", "linear_before_reset", 0)]).model
    onnxbench.save(right, "right.onnx")
    onnxbench.save(wrong, "wrong.onnx")
