"""Data with some slices replaced: ``mmdeploy::ScatterND``, ONNX's ScatterND as TensorRT plugins had it, with int32."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, Launch, TorchCall, product


def shapes(inputs, attributes):
    return [inputs[0]]


def reference(inputs, attributes):
    data, indices, updates = inputs
    depth = indices.shape[-1]
    sizes = np.array(data.shape[:depth], np.int64)
    count = int(np.prod(indices.shape[:-1]))
    places = indices.reshape(count, depth).astype(np.int64)
    places = np.where(places < 0, places + sizes, places)
    made = data.copy()
    for place, update in zip(places, updates.reshape(count, *data.shape[depth:]), strict=True):
        if ((place >= 0) & (place < sizes)).all():
            made[tuple(place)] = update
    return [made]


MOST = 8
"""Dimensions that the kernel can index."""


def scalars(inputs, outputs, attributes):
    data, indices, updates = inputs
    depth = indices[-1]
    if isinstance(depth, int) and depth > MOST:
        raise ValueError(f"ScatterND of {depth} dimensions, and {MOST} is the most")
    sizes = data[: min(MOST, len(data))]
    return [product(data), product(updates), depth, product(indices[:-1]), *sizes], []


def body(attributes, opset):
    """ONNX's ScatterND of the updates whose places are there: others are an error in ONNX and nothing here."""
    if opset < 15:
        return None
    return """(data, indices, updates) => (output) {
        zero = Constant <value = int64[1] {0}> ()
        last = Constant <value = int64[1] {-1}> ()
        end = Constant <value = int64[1] {9223372036854775807}> ()
        shape = Shape (data)
        places_shape = Shape (indices)
        counts = Slice (places_shape, zero, last)
        count = ReduceProd <keepdims = 1> (counts)
        depth = Slice (places_shape, last, end)
        sizes = Slice (shape, zero, depth)
        rest = Slice (shape, depth, end)
        flat_shape = Concat <axis = 0> (count, depth)
        integers = Cast <to = 7> (indices)
        numbers = Reshape <allowzero = 1> (integers, flat_shape)
        is_negative = Less (numbers, zero)
        added = Add (numbers, sizes)
        places = Where (is_negative, added, numbers)
        is_below = Less (places, sizes)
        is_above = GreaterOrEqual (places, zero)
        is_between = And (is_below, is_above)
        flags = Cast <to = 1> (is_between)
        is_inside = REDUCE
        inside = NonZero (is_inside)
        kept = Squeeze (inside, zero)
        kept_places = Gather (places, kept)
        updates_shape = Concat <axis = 0> (count, rest)
        flat_updates = Reshape <allowzero = 1> (updates, updates_shape)
        kept_updates = Gather (flat_updates, kept)
        output = ScatterND (data, kept_places, kept_updates)
    }""".replace(
        "REDUCE",
        "ReduceMin <keepdims = 0> (flags, last)" if opset >= 18 else "ReduceMin <axes = [-1], keepdims = 0> (flags)",
    )


def cases():
    random = np.random.default_rng(0)
    ways = [((7,), 1, (3,)), ((5, 4), 1, (2,)), ((5, 4), 2, (6,)), ((3, 4, 5), 2, (2, 3)), ((3, 4, 5), 1, (1,)),
            ((2, 3, 4, 5), 3, (4,)), ((2, 3, 4, 5), 4, (10,)), ((300, 3), 1, (40,)), ((600,), 1, (500,)),
            ((1, 1, 1, 1), 4, (1,))]  # fmt: skip
    for (shape, depth, count), integer, negative, _ in itertools.product(
        ways, (np.int32, np.int64), (False, True), range(5)
    ):
        data = random.integers(-120, 120, shape).astype(np.float32)
        # No slice is replaced twice: which of two writes is the last is not said.
        flat = random.choice(int(np.prod(shape[:depth])), int(np.prod(count)), replace=False)
        places = np.stack(np.unravel_index(flat, shape[:depth]), axis=-1).reshape(*count, depth)
        if negative:
            places = np.where(random.random(places.shape) < 0.5, places - np.array(shape[:depth]), places)
        updates = random.integers(-120, 120, (*count, *shape[depth:])).astype(np.float32)
        yield [data, places.astype(integer), updates], {}
    data, updates = (random.integers(-120, 120, shape).astype(np.float32) for shape in ((4, 3, 2), (5, 2)))
    outside = np.array([[4, 0], [0, 3], [-5, 0], [2**31 - 1, 2**31 - 1], [1, 2]])
    yield [data, outside.astype(np.int32), updates], {}
    yield [data * np.float32(np.nan), outside.astype(np.int32), updates * np.float32(np.inf)], {}
    yield [np.zeros((0, 3), np.float32), np.zeros((0, 1), np.int32), np.zeros((0, 3), np.float32)], {}
    yield [np.ones((4, 3), np.float32), np.zeros((0, 1), np.int32), np.zeros((0, 3), np.float32)], {}
    yield [np.ones((4, 0), np.float32), np.zeros((2, 1), np.int32), np.zeros((2, 0), np.float32)], {}


BUNDLE = Bundle(
    name="scatter_nd",
    op="ScatterND",
    domain="mmdeploy",
    description="Data with the slices at some places replaced by updates.",
    inputs=("data", "indices", "updates"),
    outputs=("output",),
    dtypes=("float32", "float16", "bfloat16", "int32", "int64"),
    types={"indices": ("int32", "int64")},
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::scatter_nd"),
    kernel=Kernel(
        source="kernel.cu",
        entry="scatter_nd",
        scalars=scalars,
        launches=(
            Launch("scatter_nd_copy", lambda i, o, a: product(i[0])),
            Launch("scatter_nd_replace", lambda i, o, a: product(i[2])),
        ),
    ),
    tolerance={},
)
