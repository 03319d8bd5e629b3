"""Attention of one head with its weights as a second result: ``mmdeploy::ScaledDotProductAttentionTRT``."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, Launch, TorchCall

ROWS, COLUMNS = 32, 64
"""Rows and columns of a product that a block of the kernel makes."""


def shapes(inputs, attributes):
    query, key, value, _ = inputs
    return [[query[0], query[1], value[2]], [query[0], query[1], key[1]]]


def reference(inputs, attributes):
    """In float64; the values are weighted with the weights as they are given out."""
    query, key, value, mask = inputs
    with np.errstate(all="ignore"):
        scores = query.astype(np.float64) @ key.astype(np.float64).transpose(0, 2, 1) / np.sqrt(query.shape[2])
        if mask is not None:
            scores = scores + mask.astype(np.float64)
        powers = np.exp(scores - scores.max(axis=-1, keepdims=True, initial=-np.inf))
        weights = (powers / powers.sum(axis=-1, keepdims=True)).astype(query.dtype)
        output = (weights.astype(np.float64) @ value.astype(np.float64)).astype(query.dtype)
    return [output, weights]


def scalars(inputs, outputs, attributes):
    query, key, value, mask = inputs
    masks = 0 if mask is None else mask[0] if len(mask) == 3 else 1
    return [query[0], query[1], key[1], query[2], value[2], masks], []


def row_tiles(inputs, outputs, attributes):
    return inputs[0][0] * ((inputs[0][1] + (ROWS - 1)) // ROWS)


def output_tiles(inputs, outputs, attributes):
    return row_tiles(inputs, outputs, attributes) * ((inputs[2][2] + (COLUMNS - 1)) // COLUMNS)


def body(attributes, opset, given):
    if opset < 15:
        return None
    masked = "wide_mask = Cast <to = 1> (mask) masked = Add (scaled, wide_mask)"
    return f"""(query, key, value{", mask" if given == 4 else ""}) => (output, weights) {{
        last = Constant <value = int64[1] {{2}}> ()
        end = Constant <value = int64[1] {{3}}> ()
        q = Cast <to = 1> (query)
        k = Cast <to = 1> (key)
        v = Cast <to = 1> (value)
        turned = Transpose <perm = [0, 2, 1]> (k)
        scores = MatMul (q, turned)
        shape = Shape (query)
        size = Slice (shape, last, end)
        float_size = Cast <to = 1> (size)
        root = Sqrt (float_size)
        scaled = Div (scores, root)
        {masked if given == 4 else "masked = Identity (scaled)"}
        shares = Softmax <axis = -1> (masked)
        weights = CastLike (shares, query)
        rounded = Cast <to = 1> (weights)
        weighted = MatMul (rounded, v)
        output = CastLike (weighted, query)
    }}"""


def cases():
    random = np.random.default_rng(0)

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    sizes = [(1, 1, 1, 1, 1), (2, 8, 32, 32, 32), (1, 9, 33, 33, 40), (3, 5, 7, 16, 16), (2, 17, 3, 5, 5),
             (1, 3, 100, 64, 8), (4, 16, 16, 8, 8), (1, 40, 65, 12, 70)]  # fmt: skip
    for (heads, rows, keys, size, width), masks, _ in itertools.product(sizes, (None, 0, 1, -1), range(6)):
        inputs = [normal(heads, rows, size), normal(heads, keys, size), normal(heads, keys, width)]
        if masks is not None:
            mask = np.where(random.random((heads, rows, keys)) < 0.3, -np.inf, random.random((heads, rows, keys)))
            mask[..., 0] = 0  # each row has a key
            inputs.append({0: mask[0], 1: mask[:1], -1: mask}[masks].astype(np.float32))
        yield inputs, {}
    query, key, value = normal(1, 10, 4), normal(1, 6, 4), normal(1, 6, 4)
    yield [query * 100, key * 100, value], {}
    nothing = np.zeros((10, 6), np.float32)
    nothing[3] = -np.inf
    yield [query, key, value, nothing], {}
    for at, strange in itertools.product(range(3), (np.nan, np.inf)):
        inputs = [query.copy(), key.copy(), value.copy()]
        inputs[at][0, 2, 1] = strange
        yield inputs, {}
    for heads, rows, keys in ((0, 3, 4), (2, 0, 4), (2, 3, 0)):
        yield [normal(heads, rows, 4), normal(heads, keys, 4), normal(heads, keys, 4)], {}


BUNDLE = Bundle(
    name="scaled_dot_product_attention",
    op="ScaledDotProductAttentionTRT",
    domain="mmdeploy",
    description="softmax(query key^T / sqrt(size) + mask) value, and the softmax itself.",
    inputs=("query", "key", "value", "mask"),
    outputs=("output", "weights"),
    optional=("mask",),
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::scaled_dot_product_attention"),
    kernel=Kernel(
        source="kernel.cu",
        entry="attention",
        scalars=scalars,
        launches=(
            Launch("attention_weights", row_tiles, threads=128, together=True),
            Launch("attention_output", output_tiles, threads=128, together=True),
        ),
    ),
    tolerance={"float32": (1e-4, 1e-5), "float16": (4e-3, 1e-3), "bfloat16": (2e-2, 1e-2)},
)
