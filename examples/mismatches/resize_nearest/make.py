"""Writes model.onnx: a Resize whose scale is no binary fraction."""

from __future__ import annotations

import onnxbench

if __name__ == "__main__":
    onnxbench.save(onnxbench.build("model.yaml"), "model.onnx")
