"""``asinh``, which the TorchScript exporter does not know, said once for both exporters.

onnxbench export examples/rewrites/asinh.py:make asinh.onnx --rewrites examples/rewrites/asinh.py
onnxbench export examples/rewrites/asinh.py:make asinh.onnx --rewrites examples/rewrites/asinh.py \
        --exporter torchscript
"""

import torch
from onnxscript import opset18 as op

from onnxbench import rewrites


class Model(torch.nn.Module):
    def forward(self, x):
        return torch.asinh(x)


@rewrites.symbolic("aten::asinh")
def asinh(x):
    return op.Asinh(x)


def make():
    return Model(), torch.rand(1, 3, 10, 10)
