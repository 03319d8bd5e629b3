"""Instance normalization: MMDeploy's ``MMCVInstanceNormalization``."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, Launch, TorchCall, product, smaller

CHUNK, PIECE = 16384, 4096
MOMENTS = 12


def shapes(inputs, attributes):
    return [inputs[0]]


def reference(inputs, attributes):
    """In float64."""
    values, scale, bias = (each.astype(np.float64) for each in inputs)
    axes, channel = tuple(range(2, values.ndim)), (-1, *[1] * (values.ndim - 2))
    with np.errstate(all="ignore"):
        if not values.size:
            return [np.zeros(values.shape, inputs[0].dtype)]
        distance = values - values.mean(axis=axes, keepdims=True)
        deviation = np.sqrt((distance**2).mean(axis=axes, keepdims=True) + np.float32(attributes["epsilon"]))
        return [(distance / deviation * scale.reshape(channel) + bias.reshape(channel)).astype(inputs[0].dtype)]


def parts(value):
    """Returns how many planes there are, their size, its chunks, its pieces, and 1 if there is more than one chunk."""
    size = product(value[2:])
    chunks, pieces = ((size + (each - 1)) // each for each in (CHUNK, PIECE))
    return value[0] * value[1], size, chunks, pieces, smaller(1, chunks // 2)


def scalars(inputs, outputs, attributes):
    _, size, chunks, pieces, _ = parts(inputs[0])
    return [size, inputs[0][1], chunks, pieces], [attributes["epsilon"]]


def whole(inputs, outputs, attributes):
    planes, _, _, _, is_large = parts(inputs[0])
    return planes * (1 - is_large)


def in_chunks(inputs, outputs, attributes):
    planes, _, chunks, _, is_large = parts(inputs[0])
    return planes * chunks * is_large


def in_pieces(inputs, outputs, attributes):
    planes, _, _, pieces, is_large = parts(inputs[0])
    return planes * pieces * is_large


def workspace(inputs, outputs, attributes):
    return in_chunks(inputs, outputs, attributes) * MOMENTS


def body(attributes, opset):
    """ONNX's InstanceNormalization, in float32; not of planes without elements, which end ONNX Runtime's process."""
    if opset < 15:
        return None
    return f"""(input, scale, B) => (output) {{
        values = Cast <to = 1> (input)
        scales = Cast <to = 1> (scale)
        biases = Cast <to = 1> (B)
        zero = Constant <value = int64 {{0}}> ()
        count = Size (values)
        is_empty = Equal (count, zero)
        result = If (is_empty) <
            then_branch = empty () => (float[] nothing) {{ nothing = Identity (values) }},
            else_branch = full () => (float[] normalized) {{
                normalized = InstanceNormalization <epsilon = {float(np.float32(attributes["epsilon"]))!r}>
                                                   (values, scales, biases)
            }}
        >
        output = CastLike (result, input)
    }}"""


def cases():
    random = np.random.default_rng(0)

    def made(shape, mean=0.0, deviation=1.0):
        value = random.standard_normal(shape) * deviation + mean
        scale, bias = random.uniform(-2, 2, (2, shape[1]))
        return [each.astype(np.float32) for each in (value, scale, bias)]

    sizes = [(1,), (2,), (9,), (1, 1), (1, 7), (5, 3), (8, 8), (16, 17), (3, 2, 4), (1, 1, 1), (20, 30)]
    for size, (images, channels), epsilon in itertools.product(sizes, ((1, 1), (2, 3), (1, 5)), (1e-5, 1e-3, 1.0)):
        yield made((images, channels, *size)), {"epsilon": epsilon}
    for size, mean, deviation in itertools.product(sizes, (0.0, 20.0, -3.0), (0.1, 1.0, 50.0)):
        yield made((2, 2, *size), mean, deviation), {"epsilon": 1e-3}
    for size in ((128, 128), (128, 129), (100, 400), (3, 90, 70)):
        yield made((1, 2, *size), 2.0), {}
    yield [np.full((2, 3, 4, 4), 7, np.float32), *made((2, 3, 1))[1:]], {}
    for value, size in itertools.product((np.nan, np.inf, -np.inf), ((4, 4), (130, 130))):
        inputs = made((1, 2, *size))
        inputs[0][0, 1, 2, 3] = value
        yield inputs, {}
    yield made((0, 3, 4, 4)), {}
    yield made((2, 0, 4, 4)), {}
    yield made((2, 3, 0, 4)), {}
    yield made((2, 3, 4, 4)), {}


BUNDLE = Bundle(
    name="instance_norm",
    op="MMCVInstanceNormalization",
    domain="mmdeploy",
    aliases=("mmdeploy::TRTInstanceNormalization", "mmcv::MMCVInstanceNormalization"),
    description="Normalizes each plane of (N, C, ...) to mean 0 and variance 1, then scales and shifts each channel.",
    inputs=("input", "scale", "B"),
    outputs=("output",),
    attributes={"epsilon": 1e-5},
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::instance_norm"),
    kernel=Kernel(
        source="kernel.cu",
        entry="instance_norm",
        scalars=scalars,
        launches=(
            Launch("instance_norm_whole", whole, together=True),
            Launch("instance_norm_chunks", in_chunks, together=True),
            Launch("instance_norm_pieces", in_pieces, together=True),
        ),
        workspace=workspace,
    ),
    tolerance={"float32": (2e-4, 2e-4), "float16": (4e-3, 4e-3), "bfloat16": (2e-2, 2e-2)},
)
