"""Sampling images at points of a grid: ``mmdeploy::grid_sampler``, PyTorch's ``grid_sample``."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, TorchCall, product

BILINEAR, NEAREST, BICUBIC = 0, 1, 2
ZEROS, BORDER, REFLECTION = 0, 1, 2
ONE, TWO, HALF = np.float32(1), np.float32(2), np.float32(0.5)


def shapes(inputs, attributes):
    image, grid = inputs
    return [[image[0], image[1], grid[1], grid[2]]]


def to_pixels(at, size, align_corners):
    size = np.float32(size)
    return (at + ONE) / TWO * (size - ONE) if align_corners else ((at + ONE) * size - ONE) / TWO


def reflected(at, size, align_corners):
    low, span = (np.float32(0), np.float32(size - 1)) if align_corners else (-HALF, np.float32(size))
    if span <= 0:
        return np.zeros_like(at)
    distance = np.abs(at - low)
    rest, flips = np.fmod(distance, span), np.floor(distance / span)
    return np.where(np.fmod(flips, TWO) == 0, rest + low, span - rest + low)


def padded(at, size, padding, align_corners):
    """Returns coordinates that are inside, or far outside; NaN is at 0 of a border, and outside of zeros."""
    if padding == REFLECTION:
        at = reflected(at, size, align_corners)
    if padding != ZEROS:
        at = np.fmin(np.float32(size - 1), np.fmax(at, np.float32(0)))
    return np.where((at > -(2.0**31)) & (at < 2147483520.0), at, np.float32(-100))


def pixels(image, y, x):
    """Returns the pixels at integer coordinates (N, H, W) of images (N, C, h, w); 0 outside."""
    height, width = image.shape[2:]
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    if not image.size:
        return np.zeros((*image.shape[:2], *y.shape[1:]), np.float32)
    numbers = np.arange(image.shape[0])[:, None, None]
    found = image[numbers, :, np.where(inside, y, 0), np.where(inside, x, 0)]
    return np.where(inside[..., None], found, np.float32(0)).transpose(0, 3, 1, 2)


def cubic_weights(t):
    a = -0.75
    near = lambda d: ((a + 2) * d - (a + 3)) * d * d + 1  # noqa: E731
    far = lambda d: ((a * d - 5 * a) * d + 8 * a) * d - 4 * a  # noqa: E731
    return [far(t + 1), near(t), near(1 - t), far(2 - t)]


def reference(inputs, attributes):
    """Coordinates in float32 as PyTorch has them, so that nearest rounds alike; sums in float64."""
    image, grid = inputs
    mode, padding, align = attributes["interpolation_mode"], attributes["padding_mode"], attributes["align_corners"]
    height, width = image.shape[2:]
    values, points = image.astype(np.float32), grid.astype(np.float32)
    with np.errstate(all="ignore"):
        x, y = to_pixels(points[..., 0], width, align), to_pixels(points[..., 1], height, align)
        if mode == BICUBIC:
            left, top = np.floor(x), np.floor(y)
            across, down = cubic_weights((x - left).astype(np.float64)), cubic_weights((y - top).astype(np.float64))
            result = 0
            for i, j in itertools.product(range(4), range(4)):
                at_y = padded(top + np.float32(i - 1), height, padding, align)
                at_x = padded(left + np.float32(j - 1), width, padding, align)
                result = result + (down[i] * across[j])[:, None] * pixels(values, np.trunc(at_y).astype(np.int64),
                                                                          np.trunc(at_x).astype(np.int64))  # fmt: skip
            return [result.astype(image.dtype)]
        x, y = padded(x, width, padding, align), padded(y, height, padding, align)
        if mode == NEAREST:
            return [pixels(values, np.rint(y).astype(np.int64), np.rint(x).astype(np.int64)).astype(image.dtype)]
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        right, bottom = x.astype(np.float64) - left, y.astype(np.float64) - top
        result = 0
        for i, j in itertools.product(range(2), range(2)):
            weight = (bottom if i else 1 - bottom) * (right if j else 1 - right)
            result = result + weight[:, None] * pixels(values, top + i, left + j)
    return [result.astype(image.dtype)]


def scalars(inputs, outputs, attributes):
    image, output = inputs[0], outputs[0]
    return [
        product(output), image[1], image[2], image[3], output[2], output[3],
        attributes["interpolation_mode"], attributes["padding_mode"], attributes["align_corners"],
    ], []  # fmt: skip


def body(attributes, opset):
    """ONNX's GridSample, in float32; its modes are called otherwise from opset 20 on.

    ONNX Runtime takes coordinates that no integer can hold for any pixel, so they are dealt with around it. Reflection
    is left to the reference: GridSample rounds to the nearest pixel before it reflects, and PyTorch after it.
    """
    mode, padding = attributes["interpolation_mode"], attributes["padding_mode"]
    if opset < 16 or padding == REFLECTION:
        return None
    word = (("linear", "nearest", "cubic") if opset >= 20 else ("bilinear", "nearest", "bicubic"))[mode]
    if mode == BICUBIC:
        last = "result = Add (sampled, noise)"
    elif padding == ZEROS:
        last = "is_none = IsNaN (noise) result = Where (is_none, zero, sampled)"
    else:
        last = "result = Identity (sampled)"
    return f"""(input, grid) => (output) {{
        zero = Constant <value = float {{0}}> ()
        low = Constant <value = float {{-10000}}> ()
        high = Constant <value = float {{10000}}> ()
        last_axis = Constant <value = int64[1] {{-1}}> ()
        channels = Constant <value = int64[1] {{1}}> ()
        image = Cast <to = 1> (input)
        points = Cast <to = 1> (grid)
        noises = Mul (points, zero)
        summed = ReduceSum <keepdims = 0> (noises, last_axis)
        noise = Unsqueeze (summed, channels)
        near = Clip (points, low, high)
        is_nan = IsNaN (points)
        numbers = Where (is_nan, low, near)
        sampled = GridSample <mode = "{word}", padding_mode = "{("zeros", "border")[padding]}",
                              align_corners = {attributes["align_corners"]}> (image, numbers)
        {last}
        output = CastLike (result, input)
    }}"""


def cases():
    random = np.random.default_rng(0)

    def image(*shape):
        return random.standard_normal(shape).astype(np.float32)

    ways = list(itertools.product((BILINEAR, NEAREST, BICUBIC), (ZEROS, BORDER, REFLECTION), (0, 1)))
    sizes = [((2, 3, 5, 7), (4, 6)), ((1, 1, 1, 1), (3, 3)), ((1, 2, 1, 9), (5, 1)), ((1, 4, 8, 8), (8, 8))]
    for mode, padding, align in ways:
        said = {"interpolation_mode": mode, "padding_mode": padding, "align_corners": align}
        for shape, out in [*sizes, *sizes]:
            # Points of which some lie outside, on a grid of 1/64 that all element types hold exactly; the halves that
            # nearest rounds to even are among them.
            grid = np.round(random.uniform(-1.6, 1.6, (shape[0], *out, 2)) * 64) / 64
            yield [image(*shape), grid.astype(np.float32)], said
        far = [-3.0, -1.0, 1.0, 2.5, 8.0, 100.0, *([] if padding == REFLECTION else [-1e30, 1e30])]
        yield [image(1, 2, 6, 5), np.stack(np.meshgrid(far, far), axis=-1)[None].astype(np.float32)], said
        strange = np.array([[[[np.nan, 0.0], [0.0, np.nan], [np.inf, 0.0], [0.0, -np.inf], [0.5, 0.5]]]], np.float32)
        yield [image(1, 2, 4, 4), strange], said
        colored = image(1, 1, 4, 4)
        colored[0, 0, 1, 2] = np.nan
        yield [colored, np.zeros((1, 1, 1, 2), np.float32) - np.float32(0.75)], said
    yield [image(0, 3, 4, 4), np.zeros((0, 2, 2, 2), np.float32)], {}
    yield [image(1, 3, 4, 4), np.zeros((1, 0, 5, 2), np.float32)], {}
    yield [image(2, 0, 4, 4), np.zeros((2, 3, 5, 2), np.float32)], {}


BUNDLE = Bundle(
    name="grid_sampler",
    op="grid_sampler",
    domain="mmdeploy",
    aliases=("mmcv::grid_sampler",),
    description="Samples images (N, C, H, W) at the points of a grid (N, h, w, 2).",
    inputs=("input", "grid"),
    outputs=("output",),
    attributes={"interpolation_mode": 0, "padding_mode": 0, "align_corners": 0},
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::grid_sampler", stands_for=("aten::grid_sampler",)),
    kernel=Kernel(source="kernel.cu", entry="grid_sampler", scalars=scalars),
    tolerance={"float32": (1e-4, 2e-5), "float16": (2e-3, 1e-3), "bfloat16": (1e-2, 1e-2)},
)
