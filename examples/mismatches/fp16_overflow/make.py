"""Writes fp32.onnx and fp16.onnx, as ONNX Runtime's converter makes it."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16

import onnxbench

if __name__ == "__main__":
    model = onnxbench.build("model.yaml")
    onnxbench.save(model, "fp32.onnx")
    onnx.save(convert_float_to_float16(model.proto), "fp16.onnx")
