"""Writes float.onnx and int8.onnx: quantized channel by channel, with ONNX Runtime's guard against overflow off.

Versions before 1.20.1 had no such guard; NVIDIA's Model-Optimizer turns it off today.
"""

from __future__ import annotations

import numpy as np
from onnx import numpy_helper
from onnxruntime import quantization

import onnxbench


class Images(quantization.CalibrationDataReader):
    """Four random images to calibrate with."""

    def __init__(self) -> None:
        draw = np.random.default_rng(0)
        self._sets = iter([{"image": draw.uniform(-1, 1, (1, 3, 8, 8)).astype(np.float32)} for _ in range(4)])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next image."""
        return next(self._sets, None)


if __name__ == "__main__":
    model = onnxbench.build("model.yaml")
    w1 = next(each for each in model.proto.graph.initializer if each.name == "w1")
    silenced = numpy_helper.to_array(w1) * np.float32([1, 1, 1e-9, 1]).reshape(4, 1, 1, 1)
    w1.CopyFrom(numpy_helper.from_array(silenced, "w1"))
    onnxbench.save(model, "float.onnx")
    quantization.quantize_static(
        "float.onnx", "int8.onnx", Images(), per_channel=True, weight_type=quantization.QuantType.QInt8,
        extra_options={"QDQDisableWeightAdjustForInt32Bias": True},
    )  # fmt: skip
