"""Writes right.onnx and wrong.onnx: the first normalization takes mean and variance from the batch."""

from __future__ import annotations

from onnx import helper

import onnxbench

if __name__ == "__main__":
    model = onnxbench.build("model.yaml")
    onnxbench.save(model, "right.onnx")
    norm = next(node for node in model.proto.graph.node if node.name == "bn1")
    norm.attribute.append(helper.make_attribute("training_mode", 1))
    norm.output.extend(["next_mean", "next_variance"])
    onnxbench.save(model, "wrong.onnx")
