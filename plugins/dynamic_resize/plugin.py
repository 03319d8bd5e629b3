"""Bicubic resize to the size of another tensor, known only at run time: ``Test::DynamicTRTResize``."""

from __future__ import annotations

import numpy as np

from onnxbench.bundles import Bundle, Kernel, TorchCall, product

A = -0.75


def shapes(inputs, attributes):
    x, size_tensor = inputs
    return [[x[0], x[1], size_tensor[-2], size_tensor[-1]]]


def positions(inside, outside, align_corners):
    """Returns for each place of the result four places of the input and their weights."""
    at = np.arange(outside, dtype=np.float32)
    if align_corners:
        step = np.float32(inside - 1) / np.float32(outside - 1) if outside > 1 else np.float32(0)
        source = at * step
    else:
        source = (at + np.float32(0.5)) * (np.float32(inside) / np.float32(max(outside, 1))) - np.float32(0.5)
    first = np.floor(source)
    t = (source - first).astype(np.float64)
    near = lambda d: ((A + 2) * d - (A + 3)) * d * d + 1  # noqa: E731
    far = lambda d: ((A * d - 5 * A) * d + 8 * A) * d - 4 * A  # noqa: E731
    weights = np.stack([far(1 + t), near(t), near(1 - t), far(2 - t)], axis=1)
    places = np.clip(first.astype(np.int64)[:, None] + np.arange(-1, 3), 0, inside - 1)
    return places, weights


def reference(inputs, attributes):
    x, size_tensor = inputs
    height, width = size_tensor.shape[-2:]
    rows, row_weights = positions(x.shape[2], height, attributes["align_corners"])
    columns, column_weights = positions(x.shape[3], width, attributes["align_corners"])
    values = x.astype(np.float64)[:, :, rows[:, None, :, None], columns[None, :, None, :]]
    result = np.einsum("nchwij,hi,wj->nchw", values, row_weights, column_weights)
    return [result.astype(x.dtype)]


def scalars(inputs, outputs, attributes):
    x, y = inputs[0], outputs[0]
    return [product(y), x[2], x[3], y[2], y[3], attributes["align_corners"]], []


def body(attributes, opset):
    """Resize to a size that is put together, in float32: kernels for float16 are not everywhere."""
    if opset < 15:
        return None
    mode = "align_corners" if attributes["align_corners"] else "half_pixel"
    return f"""(x, size_tensor) => (y) {{
        kept = Shape <start = 0, end = 2> (x)
        wanted = Shape <start = -2> (size_tensor)
        sizes = Concat <axis = 0> (kept, wanted)
        float = Cast <to = 1> (x)
        resized = Resize <mode = "cubic", coordinate_transformation_mode = "{mode}"> (float, "", "", sizes)
        y = CastLike (resized, x)
    }}"""


def cases():
    random = np.random.default_rng(0)
    sizes = [(1, 1), (1, 7), (5, 1), (2, 2), (3, 4), (8, 8), (13, 6), (17, 31)]
    for inside in sizes:
        for outside in [*sizes, (64, 3), (40, 40)]:
            for align_corners in (0, 1):
                x = random.standard_normal((2, 3, *inside)).astype(np.float32)
                yield [x, np.zeros((1, 1, *outside), np.float32)], {"align_corners": align_corners}
    big = random.standard_normal((1, 1, 4, 4)).astype(np.float32) * 1e4
    yield [big, np.zeros((1, 1, 9, 9), np.float32)], {}
    for value in (np.inf, -np.inf, np.nan):
        x = random.standard_normal((1, 1, 6, 6)).astype(np.float32)
        x[0, 0, 2, 3] = value
        yield [x, np.zeros((1, 1, 9, 14), np.float32)], {}
    yield [np.zeros((0, 3, 4, 4), np.float32), np.zeros((1, 1, 8, 8), np.float32)], {}
    yield [np.ones((1, 2, 4, 4), np.float32), np.zeros((1, 1, 0, 8), np.float32)], {}


BUNDLE = Bundle(
    name="dynamic_resize",
    op="DynamicTRTResize",
    domain="Test",
    description="Bicubic resize of x to the last two dimensions of size_tensor.",
    inputs=("x", "size_tensor"),
    outputs=("y",),
    any_dtype=("size_tensor",),
    attributes={"align_corners": 0},
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("Test::dynamic_resize"),
    kernel=Kernel(source="kernel.cu", entry="dynamic_resize", scalars=scalars),
    tolerance={"float32": (1e-3, 1e-5), "float16": (2e-3, 1e-3), "bfloat16": (1e-2, 1e-2)},
)
