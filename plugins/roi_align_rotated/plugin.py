"""Pooling rotated regions of a feature map into bins: MMDeploy's ``MMCVRoIAlignRotated``."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, TorchCall, product


def shapes(inputs, attributes):
    image, rois = inputs
    return [[rois[0], image[1], attributes["output_height"], attributes["output_width"]]]


def samples(length, bins, ratio):
    """Returns where samples lie along a side, from its middle: (bins, samples)."""
    count = int(ratio if ratio > 0 else np.ceil(np.float32(length) / np.float32(bins)))
    width = float(length) / bins
    return -0.5 * length + (np.arange(bins)[:, None] + (np.arange(count) + 0.5) / max(count, 1)) * width


def around(at, size):
    """Returns two pixels around each coordinate, the part of the second, and whether the place is seen at all."""
    inside = (at >= -1) & (at <= size)
    at = np.where(inside, np.clip(at, 0, size - 1), 0)
    low = np.floor(at).astype(np.int64)
    return low, np.minimum(low + 1, size - 1), at - low, inside


def pooled(planes, region, bins, attributes):
    """Returns planes (C, H, W) in the bins of a region: middle, sides and angle."""
    x, y, wide, tall, angle = region
    v, u = samples(tall, bins[0], attributes["sampling_ratio"]), samples(wide, bins[1], attributes["sampling_ratio"])
    if not v.size or not u.size or not planes.size:
        return np.zeros((planes.shape[0], *bins))
    sine, cosine = np.sin(angle), np.cos(angle)
    sine = -sine if attributes["clockwise"] else sine
    v = v[:, :, None, None]
    top, bottom, dy, rows = around(v * cosine - u * sine + y, planes.shape[1])
    left, right, dx, columns = around(v * sine + u * cosine + x, planes.shape[2])
    values = (1 - dy) * (1 - dx) * planes[:, top, left] + (1 - dy) * dx * planes[:, top, right]
    values += dy * (1 - dx) * planes[:, bottom, left] + dy * dx * planes[:, bottom, right]
    return np.where(rows & columns, values, 0).mean(axis=(2, 4))


def reference(inputs, attributes):
    """In float64, but for how many samples there are. A region without an image or with NaN or infinity in it is 0."""
    image, rois = inputs
    bins = attributes["output_height"], attributes["output_width"]
    values, regions = image.astype(np.float64), rois.astype(np.float32)
    scale, aligned = np.float32(attributes["spatial_scale"]), attributes["aligned"]
    made = np.zeros((len(rois), image.shape[1], *bins))
    with np.errstate(all="ignore"):
        regions[:, 1:5] *= scale
        regions[:, 1:3] -= np.float32(0.5 if aligned else 0)
        valid = (regions[:, 0] >= 0) & (regions[:, 0] < len(image)) & np.isfinite(regions).all(axis=1)
        regions[:, 3:5] = np.fmax(regions[:, 3:5], np.float32(0 if aligned else 1))
        for at in np.flatnonzero(valid):
            made[at] = pooled(values[int(regions[at, 0])], regions[at, 1:].astype(np.float64), bins, attributes)
        return [made.astype(image.dtype)]


def scalars(inputs, outputs, attributes):
    image = inputs[0]
    return [
        product(outputs[0]), image[0], image[1], image[2], image[3], attributes["output_height"],
        attributes["output_width"], attributes["sampling_ratio"], attributes["aligned"], attributes["clockwise"],
    ], [attributes["spatial_scale"]]  # fmt: skip


def body(attributes, opset):
    """The four pixels around each sample by Gather, in float32, where all regions have as many samples.

    Samples that are not seen take their pixels from a row of zeros, which is added to those of the map. GridSample
    would round coordinates once more, and each region would need a copy of its image.
    """
    ratio = attributes["sampling_ratio"]
    if opset < 15 or ratio <= 0:
        return None
    aligned = attributes["aligned"]
    rows, columns = attributes["output_height"], attributes["output_width"]
    turned = "Neg (turn)" if attributes["clockwise"] else "Identity (turn)"
    return f"""(input, rois) => (output) {{
        zero = Constant <value = float {{0}}> ()
        half = Constant <value = float {{0.5}}> ()
        one = Constant <value = float {{1}}> ()
        below = Constant <value = float {{-1}}> ()
        nothing = Constant <value = int64 {{0}}> ()
        next = Constant <value = int64 {{1}}> ()
        to_0 = Constant <value = int64[1] {{0}}> ()
        to_1 = Constant <value = int64[1] {{1}}> ()
        to_2 = Constant <value = int64[1] {{2}}> ()
        to_3 = Constant <value = int64[1] {{3}}> ()
        to_4 = Constant <value = int64[1] {{4}}> ()
        to_5 = Constant <value = int64[1] {{5}}> ()
        to_6 = Constant <value = int64[1] {{6}}> ()
        image = Cast <to = 1> (input)
        regions = Cast <to = 1> (rois)
        images = Shape <start = 0, end = 1> (image)
        channels = Shape <start = 1, end = 2> (image)
        height = Shape <start = 2, end = 3> (image)
        width = Shape <start = 3, end = 4> (image)
        region_count = Shape <start = 0, end = 1> (rois)

        scale = Constant <value = float {{{float(np.float32(attributes["spatial_scale"]))!r}}}> ()
        shift = Constant <value = float {{{0.5 if aligned else 0.0}}}> ()
        least = Constant <value = float {{{0.0 if aligned else 1.0}}}> ()
        number = Slice (regions, to_0, to_1, to_1)
        middle = Slice (regions, to_1, to_3, to_1)
        sides = Slice (regions, to_3, to_5, to_1)
        angle = Slice (regions, to_5, to_6, to_1)
        scaled_middle = Mul (middle, scale)
        place = Sub (scaled_middle, shift)
        scaled_sides = Mul (sides, scale)
        every = Concat <axis = 1> (number, place, scaled_sides, angle)
        noises = Mul (every, zero)
        noise = ReduceSum <keepdims = 1> (noises, to_1)
        is_finite = Equal (noise, zero)
        float_images = Cast <to = 1> (images)
        is_below = Less (number, float_images)
        is_above = GreaterOrEqual (number, zero)
        is_there = And (is_below, is_above)
        is_valid = And (is_there, is_finite)
        safe = Where (is_valid, every, zero)

        last = Unsqueeze (safe, to_2)
        image_number = Slice (last, to_0, to_1, to_1)
        x = Slice (last, to_1, to_2, to_1)
        y = Slice (last, to_2, to_3, to_1)
        any_wide = Slice (last, to_3, to_4, to_1)
        any_tall = Slice (last, to_4, to_5, to_1)
        turn = Slice (last, to_5, to_6, to_1)
        wide = Max (any_wide, least)
        tall = Max (any_tall, least)
        way = {turned}
        sine = Sin (way)
        cosine = Cos (way)

        row_samples = Constant <value = int64 {{{rows * ratio}}}> ()
        column_samples = Constant <value = int64 {{{columns * ratio}}}> ()
        row_numbers = Range (nothing, row_samples, next)
        column_numbers = Range (nothing, column_samples, next)
        row_floats = Cast <to = 1> (row_numbers)
        column_floats = Cast <to = 1> (column_numbers)
        row_count = Cast <to = 1> (row_samples)
        column_count = Cast <to = 1> (column_samples)
        row_middles = Add (row_floats, half)
        column_middles = Add (column_floats, half)
        row_parts = Div (row_middles, row_count)
        column_parts = Div (column_middles, column_count)
        row_from_middle = Sub (row_parts, half)
        column_from_middle = Sub (column_parts, half)
        down = Unsqueeze (row_from_middle, to_1)
        v = Mul (tall, down)
        u = Mul (wide, column_from_middle)
        v_cosine = Mul (v, cosine)
        u_sine = Mul (u, sine)
        v_sine = Mul (v, sine)
        u_cosine = Mul (u, cosine)
        from_y = Sub (v_cosine, u_sine)
        from_x = Add (v_sine, u_cosine)
        at_y = Add (from_y, y)
        at_x = Add (from_x, x)

        float_height = Cast <to = 1> (height)
        float_width = Cast <to = 1> (width)
        size = Mul (height, width)
        has_pixels = Greater (size, nothing)
        under = GreaterOrEqual (at_y, below)
        over = LessOrEqual (at_y, float_height)
        after = GreaterOrEqual (at_x, below)
        before = LessOrEqual (at_x, float_width)
        between_rows = And (under, over)
        between_columns = And (after, before)
        inside = And (between_rows, between_columns)
        valid = Unsqueeze (is_valid, to_2)
        valid_and_inside = And (inside, valid)
        is_seen = And (valid_and_inside, has_pixels)

        bottom_row = Sub (float_height, one)
        right_column = Sub (float_width, one)
        seen_y = Where (is_seen, at_y, zero)
        seen_x = Where (is_seen, at_x, zero)
        not_above = Max (seen_y, zero)
        not_left = Max (seen_x, zero)
        near_y = Min (not_above, bottom_row)
        near_x = Min (not_left, right_column)
        top = Floor (near_y)
        left = Floor (near_x)
        one_down = Add (top, one)
        one_right = Add (left, one)
        bottom = Min (one_down, bottom_row)
        right = Min (one_right, right_column)
        dy = Sub (near_y, top)
        dx = Sub (near_x, left)
        not_dy = Sub (one, dy)
        not_dx = Sub (one, dx)
        top_place = Cast <to = 7> (top)
        left_place = Cast <to = 7> (left)
        bottom_place = Cast <to = 7> (bottom)
        right_place = Cast <to = 7> (right)
        image_place = Cast <to = 7> (image_number)
        first = Mul (image_place, height)
        top_in_all = Add (first, top_place)
        bottom_in_all = Add (first, bottom_place)
        top_start = Mul (top_in_all, width)
        bottom_start = Mul (bottom_in_all, width)
        top_left = Add (top_start, left_place)
        top_right = Add (top_start, right_place)
        bottom_left = Add (bottom_start, left_place)
        bottom_right = Add (bottom_start, right_place)

        turned_image = Transpose <perm = [0, 2, 3, 1]> (image)
        pixel_count = Mul (images, size)
        pixels_shape = Concat <axis = 0> (pixel_count, channels)
        pixels = Reshape <allowzero = 1> (turned_image, pixels_shape)
        none_shape = Concat <axis = 0> (to_1, channels)
        none = Expand (zero, none_shape)
        all_pixels = Concat <axis = 0> (pixels, none)
        place_a = Where (is_seen, top_left, pixel_count)
        place_b = Where (is_seen, top_right, pixel_count)
        place_c = Where (is_seen, bottom_left, pixel_count)
        place_d = Where (is_seen, bottom_right, pixel_count)
        pixel_a = Gather (all_pixels, place_a)
        pixel_b = Gather (all_pixels, place_b)
        pixel_c = Gather (all_pixels, place_c)
        pixel_d = Gather (all_pixels, place_d)
        part_a = Mul (not_dy, not_dx)
        part_b = Mul (not_dy, dx)
        part_c = Mul (dy, not_dx)
        part_d = Mul (dy, dx)
        weight_a = Unsqueeze (part_a, to_3)
        weight_b = Unsqueeze (part_b, to_3)
        weight_c = Unsqueeze (part_c, to_3)
        weight_d = Unsqueeze (part_d, to_3)
        value_a = Mul (pixel_a, weight_a)
        value_b = Mul (pixel_b, weight_b)
        value_c = Mul (pixel_c, weight_c)
        value_d = Mul (pixel_d, weight_d)
        values = Sum (value_a, value_b, value_c, value_d)

        bins = Constant <value = int64[4] {{{rows}, {ratio}, {columns}, {ratio}}}> ()
        apart_shape = Concat <axis = 0> (region_count, bins, channels)
        apart = Reshape <allowzero = 1> (values, apart_shape)
        sample_axes = Constant <value = int64[2] {{2, 4}}> ()
        sums = ReduceSum <keepdims = 0> (apart, sample_axes)
        sample_count = Constant <value = float {{{float(ratio * ratio)}}}> ()
        averages = Div (sums, sample_count)
        result = Transpose <perm = [0, 3, 1, 2]> (averages)
        output = CastLike (result, input)
    }}"""


def cases():
    random = np.random.default_rng(0)

    def regions(count, images, height, width):
        centers = random.uniform(-0.1, 1.1, (count, 2)) * (width, height)
        sides = random.uniform(0, 0.9, (count, 2)) * (width, height)
        angles = random.uniform(-4, 4, (count, 1))
        numbers = random.integers(0, images, (count, 1))
        return np.concatenate([numbers, centers, sides, angles], axis=1).astype(np.float32)

    ways = itertools.product((0, 1), (0, 1), (0, 1, 2, 3), (0.25, 0.5, 1.0))
    forms = [((2, 3, 9, 11), (3, 4)), ((1, 2, 1, 1), (2, 2)), ((1, 1, 6, 1), (1, 3)), ((3, 2, 8, 8), (7, 7))]
    for (clockwise, aligned, ratio, scale), (shape, (rows, columns)) in itertools.product(ways, forms):
        said = {
            "output_height": rows, "output_width": columns, "clockwise": clockwise, "aligned": aligned,
            "sampling_ratio": ratio, "spatial_scale": scale,
        }  # fmt: skip
        image = random.standard_normal(shape).astype(np.float32)
        yield [image, regions(3, shape[0], shape[2] / scale, shape[3] / scale)], said
    said = {"output_height": 2, "output_width": 3}
    image = random.standard_normal((2, 2, 6, 7)).astype(np.float32)
    for clockwise, aligned in itertools.product((0, 1), (0, 1)):
        how = {**said, "clockwise": clockwise, "aligned": aligned}
        half, quarter = np.pi, np.pi / 2
        turned = [[0, 3.3, 3.2, 4, 3, angle] for angle in (0, quarter, half, -quarter, 2 * half, 100.25)]
        wide = [[1, 3, 3, 0, 0, 1], [0, 3, 3, -2, 4, 1], [0, 3, 3, 225, 175, 0.5], [1, 125, 125, 10, 10, 2],
                [1, 125, 125, 275, 300, 2]]  # fmt: skip
        nowhere = [[-1, 3, 3, 4, 4, 0], [2, 3, 3, 4, 4, 0], [np.nan, 3, 3, 4, 4, 0], [0, 3, 3, 4, 4, np.nan],
                   [0, 3, np.inf, 4, 4, 0], [0, 3, 3, np.inf, 4, 0], [1, 3.2, 3.1, 4, 4, 0]]  # fmt: skip
        huge = [[1, 3, 3, 3e38, 2e38, 0.8], [0, -3e38, 3, 4, 4, 0], [1, 3.2, 3.1, 4, 3e38, 0]]
        yield [image, np.array(huge, np.float32)], {**how, "sampling_ratio": 2}
        for rois in (turned, wide, nowhere):
            yield [image, np.array(rois, np.float32)], how
            yield [image, np.array(rois, np.float32)], {**how, "sampling_ratio": 2}
        for value in (np.nan, np.inf):
            colored = image.copy()
            colored[0, 1, 3, 3] = value
            yield [colored, np.array([[0, 3.2, 3.1, 5, 5, 0.7], [1, 3, 3, 5, 5, 0.7]], np.float32)], how
    yield [image, np.zeros((0, 6), np.float32)], said
    yield [image[:, :0], np.ones((2, 6), np.float32)], said
    yield [image[:, :0], np.ones((2, 6), np.float32)], {**said, "sampling_ratio": 1}
    yield [image[:, :, :0], np.ones((2, 6), np.float32)], {**said, "sampling_ratio": 2}
    yield [image[:, :, :, :0], np.ones((2, 6), np.float32)], {**said, "sampling_ratio": 2}
    yield [image[:0], np.ones((2, 6), np.float32)], {**said, "sampling_ratio": 2}
    yield [image, np.zeros((0, 6), np.float32)], {**said, "sampling_ratio": 2}
    yield [image, np.array([[1, 3.2, 3.1, 4, 4, 0.3]], np.float32)], said


BUNDLE = Bundle(
    name="roi_align_rotated",
    op="MMCVRoIAlignRotated",
    domain="mmdeploy",
    aliases=("mmdeploy::RoIAlignRotated", "mmcv::MMCVRoIAlignRotated", "mmcv::RoIAlignRotated"),
    description="Pools rotated regions (K, 6) of feature maps (N, C, H, W) into bins: the average of samples.",
    inputs=("input", "rois"),
    outputs=("output",),
    attributes={
        "output_height": int, "output_width": int, "spatial_scale": 1.0, "sampling_ratio": 0, "aligned": 1,
        "clockwise": 0,
    },
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::roi_align_rotated"),
    kernel=Kernel(source="kernel.cu", entry="roi_align_rotated", scalars=scalars),
    tolerance={"float32": (1e-4, 1e-4), "float16": (2e-3, 2e-3), "bfloat16": (1e-2, 1e-2)},
)  # fmt: skip
