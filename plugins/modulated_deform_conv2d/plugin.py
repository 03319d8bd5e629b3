"""Deformable convolution with masks (DCNv2): MMDeploy's ``MMCVModulatedDeformConv2d``."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, Launch, TorchCall, product

TILE = 64


def shapes(inputs, attributes):
    image, weight = inputs[0], inputs[3]
    sizes = []
    for axis in (0, 1):
        reach = attributes["dilation"][axis] * (weight[2 + axis] - 1) + 1
        sizes.append((image[2 + axis] + 2 * attributes["padding"][axis] - reach) // attributes["stride"][axis] + 1)
    return [[image[0], weight[0], *sizes]]


def sampled(image, y, x):
    """Returns images (N, C, H, W) at places (N, ...), (N, C, ...); NaN is outside, and outside is 0."""
    height, width = image.shape[2:]
    seen = (y > -1) & (y < height) & (x > -1) & (x < width)
    y, x = np.where(seen, y, 0), np.where(seen, x, 0)
    top, left = np.floor(y).astype(np.int64), np.floor(x).astype(np.int64)
    dy, dx = y - top, x - left
    padded = np.pad(image, ((0, 0), (0, 0), (1, 1), (1, 1)))
    numbers = np.arange(len(image)).reshape(-1, *[1] * (y.ndim - 1))
    made = 0
    for i, j in itertools.product(range(2), range(2)):
        weight = (dy if i else 1 - dy) * (dx if j else 1 - dx)
        made = made + weight[..., None] * padded[numbers, :, top + i + 1, left + j + 1]
    return np.moveaxis(np.where(seen[..., None], made, 0), -1, 1), seen


def reference(inputs, attributes):
    """In float64."""
    image, offset, mask, weight = (each.astype(np.float64) for each in inputs[:4])
    images, channels = image.shape[:2]
    outputs, group_channels, down, across = weight.shape
    groups, offset_groups = attributes["groups"], attributes["deform_groups"]
    _, _, rows, columns = shapes([each.shape for each in inputs[:4]], attributes)[0]
    taps = (images, offset_groups, down, across)
    (stride_y, stride_x), (pad_y, pad_x), (dilation_y, dilation_x) = (
        attributes[word] for word in ("stride", "padding", "dilation")
    )
    with np.errstate(all="ignore"):
        moves = offset.reshape(*taps, 2, rows, columns)
        y = moves[:, :, :, :, 0] + np.arange(rows)[:, None] * stride_y - pad_y
        x = moves[:, :, :, :, 1] + np.arange(columns) * stride_x - pad_x
        y += (np.arange(down) * dilation_y)[:, None, None, None]
        x += (np.arange(across) * dilation_x)[:, None, None]
        scales, each = mask.reshape(*taps, rows, columns), channels // offset_groups
        made = []
        for group in range(offset_groups):
            found, seen = sampled(image[:, group * each : (group + 1) * each], y[:, group], x[:, group])
            made.append(np.where(seen[:, None], found * scales[:, None, group], 0))
        values = np.concatenate(made, axis=1).reshape(images, groups, group_channels, down, across, rows, columns)
        filters = weight.reshape(groups, outputs // groups, group_channels, down, across)
        result = np.einsum("ngcijhw,gocij->ngohw", values, filters).reshape(images, outputs, rows, columns)
        if inputs[4] is not None:
            result = result + inputs[4].astype(np.float64)[:, None, None]
        return [result.astype(inputs[0].dtype)]


def scalars(inputs, outputs, attributes):
    def both(pair):
        return pair[0] * 2**32 + pair[1]

    image, weight, output = inputs[0], inputs[3], outputs[0]
    return [
        output[0] * output[2] * output[3], *image[1:], output[2], output[3], output[1], both(weight[2:]),
        both(attributes["stride"]), both(attributes["padding"]), both(attributes["dilation"]), attributes["groups"],
        attributes["deform_groups"],
    ], []  # fmt: skip


def blocks(inputs, outputs, attributes):
    images, made, rows, columns = outputs[0]
    groups = attributes["groups"]
    return (images * rows * columns + (TILE - 1)) // TILE * ((made // groups + (TILE - 1)) // TILE * groups)


def body(attributes, opset, inputs):
    """ONNX's DeformConv, in float32."""
    if opset < 19:
        return None
    (stride_y, stride_x), (pad_y, pad_x), (dilation_y, dilation_x) = (
        attributes[word] for word in ("stride", "padding", "dilation")
    )
    given, cast = (", bias", "biases = Cast <to = 1> (bias)") if inputs > 4 else ("", "")
    return f"""(input, offset, mask, weight{given}) => (output) {{
        image = Cast <to = 1> (input)
        offsets = Cast <to = 1> (offset)
        masks = Cast <to = 1> (mask)
        weights = Cast <to = 1> (weight)
        {cast}
        result = DeformConv <strides = [{stride_y}, {stride_x}], pads = [{pad_y}, {pad_x}, {pad_y}, {pad_x}],
                             dilations = [{dilation_y}, {dilation_x}], group = {attributes["groups"]},
                             offset_group = {attributes["deform_groups"]}>
                             (image, weights, offsets, {"biases" if inputs > 4 else '""'}, masks)
        output = CastLike (result, input)
    }}"""


def cases():
    random = np.random.default_rng(0)

    def made(image, outputs, kernel, biased=True, **said):
        filled = BUNDLE.filled(said)
        weight = (outputs, image[1] // filled["groups"], *kernel)
        _, _, rows, columns = shapes([image, None, None, weight], filled)[0]
        taps = filled["deform_groups"] * kernel[0] * kernel[1]
        inputs = [
            random.standard_normal(image), random.uniform(-2.5, 2.5, (image[0], 2 * taps, rows, columns)),
            random.uniform(0, 1, (image[0], taps, rows, columns)), random.standard_normal(weight) / 4,
            random.standard_normal(outputs),
        ]  # fmt: skip
        return [each.astype(np.float32) for each in inputs[: 5 if biased else 4]], said

    ways = itertools.product(
        ((3, 3), (1, 1), (2, 3)), ((1, 1), (2, 1)), ((1, 1), (0, 2)), ((1, 1), (2, 1)),
        ((1, 1), (2, 1), (1, 2), (2, 4)), (True, False),
    )  # fmt: skip
    for at, (kernel, stride, padding, dilation, (groups, offset_groups), biased) in enumerate(ways):
        image = (1 + at % 2, (4, 8)[at // 2 % 2], *((5, 6), (7, 4), (5, 5))[at % 3])
        yield made(image, (2, 4, 6)[at % 3], kernel, biased, stride=stride, padding=padding, dilation=dilation,
                   groups=groups, deform_groups=offset_groups)  # fmt: skip
    yield made((1, 40, 9, 9), 70, (3, 3), padding=(1, 1))
    yield made((2, 36, 9, 8), 136, (3, 3), padding=(1, 1), groups=2, deform_groups=4)
    yield made((1, 6, 4, 4), 6, (3, 3), padding=(1, 1), groups=6, deform_groups=3)
    yield made((1, 3, 1, 1), 2, (1, 1))
    yield made((3, 2, 1, 1), 2, (3, 3), False, padding=(1, 1))
    for value in (np.nan, np.inf, -np.inf, 1e30):
        inputs, said = made((1, 2, 4, 5), 3, (3, 3), padding=(1, 1))
        inputs[1][0, 3:5, 1, 2] = value
        yield inputs, said
        inputs, said = made((1, 2, 4, 5), 3, (3, 3), padding=(1, 1))
        inputs[0][0, 1, 2, 3] = min(value, 3e38)
        yield inputs, said
    yield made((0, 2, 4, 4), 3, (3, 3))
    yield made((2, 2, 4, 4), 0, (3, 3))
    yield made((1, 4, 5, 5), 4, (3, 3), padding=(1, 1))
    yield made((2, 4, 5, 5), 4, (3, 3), False, stride=(2, 2))


BUNDLE = Bundle(
    name="modulated_deform_conv2d",
    op="MMCVModulatedDeformConv2d",
    domain="mmdeploy",
    aliases=("mmcv::MMCVModulatedDeformConv2d",),
    description="Convolves images (N, C, H, W) with taps that are moved by offsets and multiplied with masks (DCNv2).",
    inputs=("input", "offset", "mask", "weight", "bias"),
    optional=("bias",),
    outputs=("output",),
    attributes={"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "deform_groups": 1},
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::modulated_deform_conv2d"),
    kernel=Kernel(
        source="kernel.cu",
        entry="modulated_deform_conv2d",
        scalars=scalars,
        launches=(
            Launch("modulated_deform_conv2d_weights", lambda inputs, outputs, attributes: product(inputs[3])),
            Launch("modulated_deform_conv2d", blocks, together=True),
        ),
        workspace=lambda inputs, outputs, attributes: product(inputs[3]) * 4,
    ),
    tolerance={"float32": (1e-4, 1e-4), "float16": (4e-3, 8e-3), "bfloat16": (2e-2, 4e-2)},
)
