"""acme::NormClip: rows whose length is more than a limit are scaled to it."""

from __future__ import annotations

import numpy as np

from onnxbench.bundles import Bundle, Kernel, product


def shapes(inputs, attributes):
    return [inputs[0]]


def reference(inputs, attributes):
    (x,) = inputs
    values = x.astype(np.float64)
    with np.errstate(all="ignore"):
        length = np.sqrt((values * values).sum(axis=-1, keepdims=True))
        factor = np.where(length > attributes["limit"], attributes["limit"] / length, 1.0)
        return [(values * factor).astype(x.dtype)]


def scalars(inputs, outputs, attributes):
    return [product(outputs[0]), inputs[0][-1]], [attributes["limit"]]


def body(attributes, opset):
    if opset < 18:
        return None
    return f"""(x) => (y) {{
        limit = Constant <value = float {{{attributes["limit"]}}}> ()
        one = Constant <value = float {{1}}> ()
        last = Constant <value = int64[1] {{-1}}> ()
        float = Cast <to = 1> (x)
        length = ReduceL2 <keepdims = 1> (float, last)
        is_long = Greater (length, limit)
        shorter = Div (limit, length)
        factor = Where (is_long, shorter, one)
        scaled = Mul (float, factor)
        y = CastLike (scaled, x)
    }}"""


def cases():
    random = np.random.default_rng(0)
    for shape in [(1,), (7,), (2, 3), (4, 1), (1, 3, 8, 8), (2, 5, 17), (300,), (0, 4), (3, 0)]:
        for limit in (0.25, 1.0, 3.0, 100.0):
            yield [random.standard_normal(shape).astype(np.float32)], {"limit": limit}
    yield [np.zeros((2, 4), np.float32)], {}
    yield [np.array([[np.nan, 1, 2], [np.inf, 1, 0], [3, 4, 0]], np.float32)], {}


BUNDLE = Bundle(
    name="norm_clip",
    op="NormClip",
    domain="acme",
    description="Rows (the last axis) whose length is more than limit are scaled to it.",
    inputs=("x",),
    outputs=("y",),
    attributes={"limit": 1.0},
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    kernel=Kernel(source="kernel.cu", entry="norm_clip", scalars=scalars),
)
