"""``2 * a + b``, as an autograd Function and as a custom operator, to a Mul and an Add.

onnxbench export examples/rewrites/my_add.py:make my_add.onnx --rewrites examples/rewrites/my_add.py
"""

import torch
from torch import Tensor

from onnxbench import rewrites


class MyAdd(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        return 2 * a + b


@torch.library.custom_op("my_domain::my_add", mutates_args=())
def my_add(a: Tensor, b: Tensor) -> Tensor:
    return 2 * a + b


@my_add.register_fake
def _(a, b):
    return torch.empty_like(a)


class Model(torch.nn.Module):
    def forward(self, a, b):
        return MyAdd.apply(a, b), torch.ops.my_domain.my_add(b, a)


TEXT = """
<domain: "my_domain", opset_import: ["" : 18]>
my_add (a, b) => (c) {
  two = Constant <value = float {2.0}> ()
  twice = Mul (a, two)
  c = Add (twice, b)
}
"""
of_the_function = rewrites.symbolic(MyAdd, TEXT)
of_the_operator = rewrites.symbolic("my_domain::my_add", TEXT)


def make():
    return Model(), (torch.rand(2, 3), torch.rand(2, 3))
