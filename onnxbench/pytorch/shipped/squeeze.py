"""``squeeze()`` without a dimension drops those that have size 1 in the example, for TensorRT.

Which dimensions PyTorch drops depends on the sizes. Both exporters write a Squeeze without axes where a dimension is
open. ONNX Runtime takes that. TensorRT's parser too, and its builder fails for every profile that holds the size 1 in
the open dimension: "ISqueezeLayer without an axes input requires dimension 0 to not be 1 at runtime, because squeezing
it would change the output rank, which is fixed at build time".

With the rewrite, an open dimension stays, also where it has size 1. There PyTorch drops it and the file does not, so
the export says so. TorchScript does not tell which dimensions are open: it says nothing, and one that is open and has
size 1 in the example is dropped, which the comparison at other sizes refuses.
"""

from __future__ import annotations

from typing import Any

from onnxbench.pytorch.rewriters import RewriteInfo, rewrites
from onnxbench.pytorch.shipped._sizes import example_sizes


@rewrites.function("torch.squeeze", "torch.Tensor.squeeze", backend="tensorrt")
def squeeze(ctx: RewriteInfo, input: Any, *dims: Any, **words: Any) -> Any:
    """Returns the tensor without the dimensions that have size 1 in the example."""
    if dims or words:
        return ctx.origin(input, *dims, **words)
    sizes = example_sizes(input)
    ones = [at for at, size in enumerate(sizes) if size == 1]
    kept = [at for at, size in enumerate(sizes) if size is None]
    if kept:
        dropped = f"dimensions {ones}, which have size 1 in the example" if ones else "no dimension"
        ctx.warn(
            f"squeeze() drops {dropped}, and never the open ones {kept}: where such a one has size 1, PyTorch drops it "
            "and the file does not",
            hint="Write which dimensions are meant: squeeze(dim).",
        )
    for at in reversed(ones):
        input = ctx.origin(input, at)
    return input
