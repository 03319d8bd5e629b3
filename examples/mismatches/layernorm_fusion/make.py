"""Writes model.onnx: a scale that is wider than what is normalized, which the fused operator does not take."""

from __future__ import annotations

import onnxbench

if __name__ == "__main__":
    onnxbench.save(onnxbench.build("model.yaml"), "model.onnx")
