"""Anchors of a feature map: ``mmdeploy::GridPriorsTRT``, the base anchors moved to every cell."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, TorchCall, product


def shapes(inputs, attributes):
    anchors, rows, columns = inputs
    return [[rows[0] * columns[0] * anchors[0], 4]]


def reference(inputs, attributes):
    anchors, rows, columns = inputs
    x = np.arange(columns.shape[0], dtype=np.float64) * attributes["stride_w"]
    y = np.arange(rows.shape[0], dtype=np.float64) * attributes["stride_h"]
    across, down = np.meshgrid(x, y)
    moves = np.stack([across, down, across, down], axis=-1)
    return [(moves[:, :, None] + anchors.astype(np.float64)).reshape(-1, 4).astype(anchors.dtype)]


def scalars(inputs, outputs, attributes):
    anchors, _, columns = inputs
    return [product(outputs[0]), anchors[0], columns[0], attributes["stride_h"], attributes["stride_w"]], []


def body(attributes, opset):
    if opset < 15:
        return None
    return f"""(anchors, rows, columns) => (priors) {{
        zero = Constant <value = int64 {{0}}> ()
        one = Constant <value = int64 {{1}}> ()
        first = Constant <value = int64[1] {{0}}> ()
        second = Constant <value = int64[1] {{1}}> ()
        last = Constant <value = int64[1] {{-1}}> ()
        middle = Constant <value = int64[1] {{2}}> ()
        corners = Constant <value = int64[2] {{-1, 4}}> ()
        high = Constant <value = int64 {{{attributes["stride_h"]}}}> ()
        wide = Constant <value = int64 {{{attributes["stride_w"]}}}> ()
        rows_shape = Shape (rows)
        columns_shape = Shape (columns)
        height = Squeeze (rows_shape, first)
        width = Squeeze (columns_shape, first)
        row_numbers = Range (zero, height, one)
        column_numbers = Range (zero, width, one)
        y_line = Mul (row_numbers, high)
        x_line = Mul (column_numbers, wide)
        y_column = Unsqueeze (y_line, second)
        cells = Concat <axis = 0> (rows_shape, columns_shape)
        y = Expand (y_column, cells)
        x = Expand (x_line, cells)
        y_last = Unsqueeze (y, last)
        x_last = Unsqueeze (x, last)
        moves = Concat <axis = 2> (x_last, y_last, x_last, y_last)
        float_moves = Cast <to = 1> (moves)
        each = Unsqueeze (float_moves, middle)
        float_anchors = Cast <to = 1> (anchors)
        moved = Add (each, float_anchors)
        flat = Reshape (moved, corners)
        priors = CastLike (flat, anchors)
    }}"""


def cases():
    random = np.random.default_rng(0)
    sizes = [(1, 1, 1), (3, 4, 6), (1, 9, 2), (9, 1, 13), (5, 7, 300), (2, 100, 3), (64, 5, 2)]
    strides = [(1, 1), (8, 8), (16, 32), (4, 7), (0, 3)]
    ways = itertools.product(sizes, strides, (np.int64, np.float32), range(3))
    for (anchors, height, width), (high, wide), integer, _ in ways:
        base = (random.integers(-512, 512, (anchors, 4)) / 2).astype(np.float32)
        said = {"stride_h": high, "stride_w": wide}
        yield [base, np.zeros(height, integer), np.zeros(width, integer)], said
    strange = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    yield [strange, np.zeros(2, np.int64), np.zeros(3, np.int64)], {"stride_h": 2, "stride_w": 2}
    for anchors, height, width in ((0, 2, 3), (2, 0, 3), (2, 3, 0)):
        yield [np.zeros((anchors, 4), np.float32), np.zeros(height, np.int64), np.zeros(width, np.int64)], {}


BUNDLE = Bundle(
    name="grid_priors",
    op="GridPriorsTRT",
    domain="mmdeploy",
    description="Moves anchors (A, 4) to every cell of a feature map, (H * W * A, 4).",
    inputs=("anchors", "rows", "columns"),
    outputs=("priors",),
    any_dtype=("rows", "columns"),
    attributes={"stride_h": 1, "stride_w": 1},
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::grid_priors"),
    kernel=Kernel(source="kernel.cu", entry="grid_priors", scalars=scalars),
    tolerance={"float32": (1e-6, 0), "float16": (1e-3, 0), "bfloat16": (8e-3, 0)},
)
