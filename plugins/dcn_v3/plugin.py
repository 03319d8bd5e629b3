"""Deformable convolution of InternImage without its weights, the sum of samples: MMDeploy's ``TRTDCNv3``."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, TorchCall, product


def shapes(inputs, attributes):
    value, _, _ = inputs
    sizes = []
    for axis, letter in ((1, "h"), (2, "w")):
        kernel, dilation = attributes[f"kernel_{letter}"], attributes[f"dilation_{letter}"]
        room = value[axis] + 2 * attributes[f"pad_{letter}"] - dilation * (kernel - 1) - 1
        sizes.append(room // attributes[f"stride_{letter}"] + 1)
    return [[value[0], *sizes, attributes["group"] * attributes["group_channels"]]]


def base(letter, size, attributes):
    """Returns where the taps lie along an axis without offsets: (outputs, taps along this axis)."""
    kernel, dilation, scale = attributes[f"kernel_{letter}"], attributes[f"dilation_{letter}"], scale_of(attributes)
    half = dilation * (kernel - 1) // 2
    middle = half - attributes[f"pad_{letter}"] + np.arange(size) * attributes[f"stride_{letter}"]
    return middle[:, None] + (np.arange(kernel) * dilation - half) * scale


def scale_of(attributes):
    return float(np.float32(attributes["offset_scale"]))


def reference(inputs, attributes):
    """In float64. Taps go down the columns of the kernel; an offset is x, then y. NaN is outside, and outside is 0."""
    value, offset, mask = inputs
    groups, channels = attributes["group"], attributes["group_channels"]
    images, height, width, _ = value.shape
    _, rows, columns, _ = shapes([each.shape for each in inputs], attributes)[0]
    across, down = attributes["kernel_w"], attributes["kernel_h"]
    taps = (images, rows, columns, groups, across, down)
    with np.errstate(all="ignore"):
        offsets = offset.astype(np.float64).reshape(*taps, 2) * scale_of(attributes)
        x = base("w", columns, attributes)[:, None, :, None] + offsets[..., 0]
        y = base("h", rows, attributes)[:, None, None, None, :] + offsets[..., 1]
        seen = (y > -1) & (y < height) & (x > -1) & (x < width)
        x, y = np.where(seen, x, 0), np.where(seen, y, 0)
        left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        dx, dy = x - left, y - top
        # A border of zeros all around, so that each tap finds its four pixels.
        padded = np.zeros((images, height + 2, width + 2, groups, channels))
        padded[:, 1:-1, 1:-1] = value.astype(np.float64).reshape(images, height, width, groups, channels)
        image = np.arange(images).reshape(-1, 1, 1, 1, 1, 1)
        group = np.arange(groups).reshape(-1, 1, 1)
        made = 0
        for i, j in itertools.product(range(2), range(2)):
            weight = (dy if i else 1 - dy) * (dx if j else 1 - dx)
            made = made + weight[..., None] * padded[image, top + i + 1, left + j + 1, group]
        made = np.where(seen[..., None], made * mask.astype(np.float64).reshape(taps)[..., None], 0).sum(axis=(4, 5))
        return [made.reshape(images, rows, columns, groups * channels).astype(value.dtype)]


def scalars(inputs, outputs, attributes):
    def both(word):
        return attributes[f"{word}_h"] * 2**32 + attributes[f"{word}_w"]

    value, output = inputs[0], outputs[0]
    return [
        product(output), value[1], value[2], output[1], output[2], attributes["group"], attributes["group_channels"],
        both("kernel"), both("stride"), both("pad"), both("dilation"),
    ], [attributes["offset_scale"]]  # fmt: skip


def body(attributes, opset):
    """GridSample of each group, and a sum over the taps by their masks, in float32."""
    if opset < 16:
        return None
    groups, channels = attributes["group"], attributes["group_channels"]
    across, down, scale = attributes["kernel_w"], attributes["kernel_h"], scale_of(attributes)
    tap_x, tap_y = (
        ", ".join(repr(float(each)) for each in numbers)
        for numbers in (np.repeat(base("w", 1, attributes)[0], down), np.tile(base("h", 1, attributes)[0], across))
    )
    return f"""(value, offset, mask) => (output) {{
        one = Constant <value = float {{1}}> ()
        two = Constant <value = float {{2}}> ()
        low = Constant <value = float {{-10}}> ()
        high = Constant <value = float {{10}}> ()
        scale = Constant <value = float {{{scale!r}}}> ()
        stride_x = Constant <value = float {{{attributes["stride_w"]}}}> ()
        stride_y = Constant <value = float {{{attributes["stride_h"]}}}> ()
        tap_x = Constant <value = float[{across * down}] {{{tap_x}}}> ()
        tap_y = Constant <value = float[{across * down}] {{{tap_y}}}> ()
        group = Constant <value = int64[1] {{{groups}}}> ()
        channel = Constant <value = int64[1] {{{channels}}}> ()
        taps = Constant <value = int64[1] {{{across * down}}}> ()
        pair = Constant <value = int64[1] {{2}}> ()
        single = Constant <value = int64[1] {{1}}> ()
        ends = Constant <value = int64[2] {{1, 2}}> ()
        first = Constant <value = int64 {{0}}> ()
        second = Constant <value = int64 {{1}}> ()
        last = Constant <value = int64[1] {{-1}}> ()
        tap_axis = Constant <value = int64[1] {{3}}> ()
        images = Shape <start = 0, end = 1> (value)
        size = Shape <start = 1, end = 3> (value)
        height = Shape <start = 1, end = 2> (value)
        width = Shape <start = 2, end = 3> (value)
        rows = Shape <start = 1, end = 2> (offset)
        columns = Shape <start = 2, end = 3> (offset)
        places = Mul (rows, columns)
        planes = Mul (images, group)
        values = Cast <to = 1> (value)
        offsets = Cast <to = 1> (offset)
        masks = Cast <to = 1> (mask)
        grouped_shape = Concat <axis = 0> (images, size, group, channel)
        grouped = Reshape <allowzero = 1> (values, grouped_shape)
        turned = Transpose <perm = [0, 3, 4, 1, 2]> (grouped)
        image_shape = Concat <axis = 0> (planes, channel, size)
        image = Reshape <allowzero = 1> (turned, image_shape)
        offset_shape = Concat <axis = 0> (images, rows, columns, group, taps, pair)
        split = Reshape <allowzero = 1> (offsets, offset_shape)
        moved = Transpose <perm = [0, 3, 1, 2, 4, 5]> (split)
        scaled = Mul (moved, scale)
        offset_x = Gather <axis = 5> (scaled, first)
        offset_y = Gather <axis = 5> (scaled, second)
        column_count = Squeeze (columns)
        row_count = Squeeze (rows)
        column_numbers = Range (first, column_count, second)
        row_numbers = Range (first, row_count, second)
        column_floats = Cast <to = 1> (column_numbers)
        row_floats = Cast <to = 1> (row_numbers)
        column_steps = Mul (column_floats, stride_x)
        row_steps = Mul (row_floats, stride_y)
        column_base = Unsqueeze (column_steps, last)
        row_base = Unsqueeze (row_steps, ends)
        base_x = Add (column_base, tap_x)
        base_y = Add (row_base, tap_y)
        x = Add (base_x, offset_x)
        y = Add (base_y, offset_y)
        wide = Cast <to = 1> (width)
        tall = Cast <to = 1> (height)
        double_x = Mul (x, two)
        double_y = Mul (y, two)
        odd_x = Add (double_x, one)
        odd_y = Add (double_y, one)
        part_x = Div (odd_x, wide)
        part_y = Div (odd_y, tall)
        from_middle_x = Sub (part_x, one)
        from_middle_y = Sub (part_y, one)
        point_x = Unsqueeze (from_middle_x, last)
        point_y = Unsqueeze (from_middle_y, last)
        points = Concat <axis = -1> (point_x, point_y)
        is_nan = IsNaN (points)
        near = Clip (points, low, high)
        numbers = Where (is_nan, high, near)
        grid_shape = Concat <axis = 0> (planes, places, taps, pair)
        grid = Reshape <allowzero = 1> (numbers, grid_shape)
        sampled = GridSample <align_corners = 0, padding_mode = "zeros",
                              mode = "{"linear" if opset >= 20 else "bilinear"}"> (image, grid)
        mask_shape = Concat <axis = 0> (images, rows, columns, group, taps)
        mask_split = Reshape <allowzero = 1> (masks, mask_shape)
        mask_moved = Transpose <perm = [0, 3, 1, 2, 4]> (mask_split)
        weight_shape = Concat <axis = 0> (planes, single, places, taps)
        weights = Reshape <allowzero = 1> (mask_moved, weight_shape)
        weighted = Mul (sampled, weights)
        sums = ReduceSum <keepdims = 0> (weighted, tap_axis)
        sum_shape = Concat <axis = 0> (images, group, channel, rows, columns)
        apart = Reshape <allowzero = 1> (sums, sum_shape)
        back = Transpose <perm = [0, 3, 4, 1, 2]> (apart)
        channels = Mul (group, channel)
        output_shape = Concat <axis = 0> (images, rows, columns, channels)
        result = Reshape <allowzero = 1> (back, output_shape)
        output = CastLike (result, value)
    }}"""


def cases():
    random = np.random.default_rng(0)

    def made(images, height, width, said):
        filled = BUNDLE.filled(said)
        channels, taps = filled["group"] * filled["group_channels"], filled["kernel_h"] * filled["kernel_w"]
        value = random.standard_normal((images, height, width, channels)).astype(np.float32)
        _, rows, columns, _ = shapes([value.shape, None, None], filled)[0]
        offset = random.uniform(-2.5, 2.5, (images, rows, columns, filled["group"] * taps * 2))
        mask = random.uniform(0, 1, (images, rows, columns, filled["group"] * taps))
        return [value, offset.astype(np.float32), mask.astype(np.float32)]

    def said_of(kernel, stride, pad, dilation, group, channels, scale):
        words = {"kernel": kernel, "stride": stride, "pad": pad, "dilation": dilation}
        said = {
            f"{word}_{letter}": size for word, pair in words.items() for letter, size in zip("hw", pair, strict=True)
        }
        return {**said, "group": group, "group_channels": channels, "offset_scale": scale}

    ways = itertools.product(
        ((3, 3), (1, 1), (2, 3)), ((1, 1), (2, 1)), ((1, 1), (0, 2)), ((1, 1), (2, 1)), (1, 3), (1.0, 0.5, 2.0)
    )
    for at, (kernel, stride, pad, dilation, group, scale) in enumerate(ways):
        said = said_of(kernel, stride, pad, dilation, group, (1, 4, 5)[at % 3], scale)
        yield made(1 + at % 2, *((7, 6), (5, 9), (4, 4))[at % 3], said), said
    small = {"group": 2, "group_channels": 3}
    for size in ((1, 1), (1, 5), (3, 1)):
        for images in range(1, 25):
            said = {**small, "offset_scale": images / 8}
            yield made(1 + images % 3, *size, said), said
    for value in (np.nan, np.inf, -np.inf, 1e30):
        value_in, offset, mask = made(1, 4, 5, small)
        offset[0, 1, 2, 3:9] = value
        yield [value_in, offset, mask], small
        value_in, offset, mask = made(1, 4, 5, small)
        value_in[0, 2, 3, 1] = min(value, 3e38)
        yield [value_in, offset, mask], small
    yield (
        [np.zeros((0, 4, 4, 6), np.float32), np.zeros((0, 4, 4, 36), np.float32), np.zeros((0, 4, 4, 18), np.float32)],
        small,
    )
    yield made(1, 4, 4, {**small, "kernel_h": 1, "pad_h": 0}), {**small, "kernel_h": 1, "pad_h": 0}
    yield made(2, 3, 3, {**small, "pad_w": 0}), {**small, "pad_w": 0}


BUNDLE = Bundle(
    name="dcn_v3",
    op="TRTDCNv3",
    domain="mmdeploy",
    aliases=("mmcv::TRTDCNv3",),
    description="Sums samples of images (N, H, W, G C), at offsets and by masks of each group, over a kernel's taps.",
    inputs=("value", "offset", "mask"),
    outputs=("output",),
    attributes={
        "kernel_h": 3, "kernel_w": 3, "stride_h": 1, "stride_w": 1, "pad_h": 1, "pad_w": 1, "dilation_h": 1,
        "dilation_w": 1, "group": 28, "group_channels": 16, "offset_scale": 1.0, "im2col_step": 256,
    },
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::dcn_v3"),
    kernel=Kernel(source="kernel.cu", entry="dcn_v3", scalars=scalars),
    tolerance={"float32": (1e-4, 1e-4), "float16": (4e-3, 4e-3), "bfloat16": (2e-2, 2e-2)},
)  # fmt: skip
