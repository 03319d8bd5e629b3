"""Deformable convolution, a custom operator: for ONNX Runtime DeformConv, for a plugin a node of its own domain.

    onnxbench export examples/rewrites/deform_conv.py:make deform.onnx --rewrites examples/rewrites/deform_conv.py \
        --backend onnxruntime --opset 19
    onnxbench export examples/rewrites/deform_conv.py:make deform.onnx --rewrites examples/rewrites/deform_conv.py \
        --backend tensorrt --no-verify

The operator is that of torchvision, ``deform_conv2d`` with one group, written in PyTorch.
"""

import torch
from torch import Tensor, nn

from onnxbench import rewrites


@torch.library.custom_op("my_vision::deform_conv2d", mutates_args=())
def deform_conv2d(x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    batch, _, height, width = x.shape
    kernel_h, kernel_w = weight.shape[2:]
    out_h, out_w = offset.shape[2:]
    shifts = offset.view(batch, kernel_h * kernel_w, 2, out_h, out_w)
    rows = torch.arange(out_h).view(-1, 1) * stride - padding
    columns = torch.arange(out_w).view(1, -1) * stride - padding
    sampled = []
    for at in range(kernel_h * kernel_w):
        y = rows + at // kernel_w + shifts[:, at, 0]
        z = columns + at % kernel_w + shifts[:, at, 1]
        # Outside of the image are zeros, as in grid_sample; its borders are at the centers of the outer pixels.
        grid = torch.stack([2 * z / (width - 1) - 1, 2 * y / (height - 1) - 1], -1)
        sampled.append(nn.functional.grid_sample(x, grid, padding_mode="zeros", align_corners=True))
    columns_of_all = torch.stack(sampled, 2)
    made = torch.einsum("ockq,bcqhw->bohw", weight.flatten(2).unsqueeze(2), columns_of_all)
    return made + bias.view(1, -1, 1, 1)


@deform_conv2d.register_fake
def _(x, weight, offset, bias, stride=1, padding=0):
    return x.new_empty(x.shape[0], weight.shape[0], offset.shape[2], offset.shape[3])


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.offsets = nn.Conv2d(3, 2 * 3 * 3, 3, padding=1)
        self.weight = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.bias = nn.Parameter(torch.randn(4))

    def forward(self, x):
        return torch.ops.my_vision.deform_conv2d(x, self.weight, self.offsets(x), self.bias, 1, 1)


# DeformConv wants a list of pads and of strides, so the numbers become attributes of a function in onnxscript.
@rewrites.symbolic("my_vision::deform_conv2d", backend="onnxruntime", opset=19)
def standard(x, weight, offset, bias, stride, padding):
    from onnxscript import opset19 as op

    return op.DeformConv(x, weight, offset, bias, strides=[stride, stride], pads=[padding] * 4)


custom = rewrites.symbolic(
    "my_vision::deform_conv2d",
    """
    <domain: "my_vision", opset_import: ["my_vision" : 1]>
    deform_conv2d <stride, padding> (x, weight, offset, bias) => (y) {
      y = my_vision.DeformConv2d <stride: int = @stride, padding: int = @padding> (x, weight, offset, bias)
    }
    """,
    backend="tensorrt",
)


def make():
    torch.manual_seed(0)
    return Model(), torch.rand(1, 3, 8, 8)
