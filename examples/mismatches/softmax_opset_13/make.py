"""Writes right.onnx and wrong.onnx: the number of the opset is 13 and nothing else is changed."""

from __future__ import annotations

import onnxbench

if __name__ == "__main__":
    right = onnxbench.build("model.yaml")
    onnxbench.save(right, "right.onnx")
    right.proto.opset_import[0].version = 13
    onnxbench.save(right, "wrong.onnx")
