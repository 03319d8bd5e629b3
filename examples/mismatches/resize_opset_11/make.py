"""Writes opset10.onnx, and opset11.onnx as onnx's version converter makes it."""

from __future__ import annotations

import onnx
from onnx import version_converter

import onnxbench

if __name__ == "__main__":
    model = onnxbench.build("model.yaml")
    onnxbench.save(model, "opset10.onnx")
    onnx.save(version_converter.convert_version(model.proto, 11), "opset11.onnx")
