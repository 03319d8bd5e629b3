"""SRCNN whose factor is an input of the file: exported at 3x, and 4x when it runs.

    python examples/rewrites/srcnn.py FOLDER
    onnxbench export examples/rewrites/srcnn.py:make srcnn.onnx --rewrites examples/rewrites/srcnn.py \
        --input-names input factor --dynamic 'x:2=height,3=width'

``interpolate`` takes its factor as a Python number, so it freezes into a graph. ``NewInterpolate`` takes a tensor; what
it becomes in ONNX is a Resize whose scales are that tensor.
"""

import sys
from pathlib import Path

import torch
from torch import nn

import onnxbench
from onnxbench import rewrites


class NewInterpolate(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scales):
        factors = scales.tolist()[-2:]
        return nn.functional.interpolate(x, scale_factor=factors, mode="bicubic", align_corners=False)


def like_the_result(x, scales):
    """The sizes of the result, which only the values of ``scales`` tell, are left open."""
    context = torch.library.get_ctx()
    return x.new_empty(x.shape[0], x.shape[1], context.new_dynamic_size(), context.new_dynamic_size())


resize = rewrites.symbolic(
    NewInterpolate,
    """
    <domain: "srcnn", opset_import: ["" : 18]>
    resize (x, scales) => (y) {
      y = Resize <coordinate_transformation_mode = "pytorch_half_pixel", cubic_coeff_a = -0.75, mode = "cubic">
          (x, "", scales)
    }
    """,
    fake=like_the_result,
)


class SRCNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, kernel_size=9, padding=4)
        self.conv2 = nn.Conv2d(64, 32, kernel_size=1)
        self.conv3 = nn.Conv2d(32, 3, kernel_size=5, padding=2)
        self.relu = nn.ReLU()

    def forward(self, x, factor):
        x = NewInterpolate.apply(x, factor)
        return self.conv3(self.relu(self.conv2(self.relu(self.conv1(x)))))


def make():
    torch.manual_seed(0)
    return SRCNN().eval(), (torch.rand(1, 3, 16, 16), torch.tensor([1, 1, 3, 3], dtype=torch.float32))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    module, args = make()
    options = onnxbench.ExportOptions(rewrites=[resize], input_names=["input", "factor"])
    done = onnxbench.export((module, args), folder / "srcnn.onnx", options=options)
    assert done.passed, done.cases
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "srcnn.onnx")
    image = args[0]
    for factor in (3, 4):
        scales = torch.tensor([1, 1, factor, factor], dtype=torch.float32)
        (got,) = session.run(None, {"input": image.numpy(), "factor": scales.numpy()})
        with torch.no_grad():
            apart = abs(torch.from_numpy(got) - module(image, scales)).max().item()
        print(f"factor {factor}: {tuple(image.shape[2:])} -> {got.shape[2:]}, {apart:.1e} from PyTorch")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "srcnn"))
