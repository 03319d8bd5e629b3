"""Rows of each image by their numbers: ``mmdeploy::GatherTopk``, what a detector keeps of its candidates."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, TorchCall, product


def shapes(inputs, attributes):
    data, indices = inputs
    return [[*indices, *data[len(indices) :]]]


def reference(inputs, attributes):
    data, indices = inputs
    axis = indices.ndim - 1
    length = data.shape[axis]
    at = np.where(indices < 0, indices + length, indices)
    inside = (at >= 0) & (at < length)
    if not length:
        return [np.zeros((*indices.shape, *data.shape[indices.ndim :]), data.dtype)]
    more = (1,) * (data.ndim - indices.ndim)
    found = np.take_along_axis(data, np.where(inside, at, 0).reshape(indices.shape + more), axis)
    return [np.where(inside.reshape(indices.shape + more), found, np.zeros((), data.dtype))]


def scalars(inputs, outputs, attributes):
    data, indices = inputs
    axis = len(indices) - 1
    return [product(outputs[0]), data[axis], indices[axis], product(data[len(indices) :])], []


def body(attributes, opset):
    """ONNX's GatherND, the batches made one dimension, and what is in a row another.

    A number that lies outside gives 0 and is an error in ONNX, so the data get a row of zeros at the end for it.
    """
    if opset < 15:
        return None
    return """(data, indices) => (output) {
        zero = Constant <value = int64[1] {0}> ()
        one = Constant <value = int64[1] {1}> ()
        numbers = Cast <to = 7> (indices)
        shape = Shape (numbers)
        rank = Shape (shape)
        data_shape = Shape (data)
        last = Sub (rank, one)
        length = Slice (data_shape, last, rank)
        count = Slice (shape, last, rank)
        end = Constant <value = int64[1] {9223372036854775807}> ()
        rest = Slice (data_shape, rank, end)
        size = ReduceProd <keepdims = 1> (rest)
        batch_shape = Slice (shape, zero, last)
        batches = ReduceProd <keepdims = 1> (batch_shape)
        added = Add (numbers, length)
        is_negative = Less (numbers, zero)
        positive = Where (is_negative, added, numbers)
        is_below = Less (positive, length)
        is_above = GreaterOrEqual (positive, zero)
        is_inside = And (is_below, is_above)
        place = Where (is_inside, positive, length)
        flat_shape = Concat <axis = 0> (batches, length, size)
        flat = Reshape <allowzero = 1> (data, flat_shape)
        nothing = Constant <value = float {0}> ()
        row_shape = Concat <axis = 0> (batches, one, size)
        row = Expand (nothing, row_shape)
        row_of_zeros = CastLike (row, data)
        rows = Concat <axis = 1> (flat, row_of_zeros)
        places_shape = Concat <axis = 0> (batches, count, one)
        places = Reshape <allowzero = 1> (place, places_shape)
        gathered = GatherND <batch_dims = 1> (rows, places)
        made_shape = Concat <axis = 0> (shape, rest)
        output = Reshape <allowzero = 1> (gathered, made_shape)
    }"""


def cases():
    random = np.random.default_rng(0)
    ways = [((2, 7, 4), (2, 3)), ((1, 1, 4), (1, 1)), ((3, 9), (3, 5)), ((2, 3, 5, 4), (2, 3, 6)),
            ((2, 8, 3, 5), (2, 4)), ((300, 4), (300,)), ((1, 600, 4), (1, 100)), ((4, 5), (4, 40))]  # fmt: skip
    for (shape, places), integer, negative, _ in itertools.product(ways, (np.int32, np.int64), (False, True), range(7)):
        data = random.integers(-120, 120, shape).astype(np.float32)
        length = shape[len(places) - 1]
        yield [data, random.integers(-length if negative else 0, length, places).astype(integer)], {}
    data = random.integers(-120, 120, (2, 6, 3)).astype(np.float32)
    outside = np.array([[6, -7, 0, 100000], [-(2**31), 2**31 - 1, 5, -6]])
    yield [data, outside.astype(np.int32)], {}
    yield [data, outside.astype(np.int64)], {}
    yield [np.where(data > 0, data, np.float32(np.nan)), outside.astype(np.int64)], {}
    for shape, places in (((0, 6, 3), (0, 2)), ((2, 6, 0), (2, 2)), ((2, 6, 3), (2, 0)), ((2, 0, 3), (2, 4))):
        yield [np.zeros(shape, np.float32), np.zeros(places, np.int64)], {}


BUNDLE = Bundle(
    name="gather_topk",
    op="GatherTopk",
    domain="mmdeploy",
    description="Takes rows of data (A.., G, C..) by their numbers (A.., K).",
    inputs=("data", "indices"),
    outputs=("output",),
    dtypes=("float32", "float16", "bfloat16", "int32", "int64"),
    types={"indices": ("int64", "int32")},
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::gather_topk"),
    kernel=Kernel(source="kernel.cu", entry="gather_topk", scalars=scalars),
    tolerance={},
)
