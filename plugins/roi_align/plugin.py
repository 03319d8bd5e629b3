"""Pooling regions of a feature map into bins of a fixed number: MMDeploy's ``MMCVRoiAlign``."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, TorchCall, equal, product

HALF = np.float32(0.5)


def shapes(inputs, attributes):
    image, rois = inputs
    return [[rois[0], image[1], attributes["output_height"], attributes["output_width"]]]


def places(start, end, bins, ratio, aligned, size):
    """Returns where the samples along an axis lie: two pixels, the part of the second, and whether they are inside.

    Coordinates are in float32, in the order of the kernel's operations: what lies just outside counts as 0.
    """
    length = np.fmax(end - start, np.float32(0 if aligned else 1))
    width = length / np.float32(bins)
    count = int(ratio if ratio > 0 else np.ceil(width))
    base = start + np.arange(bins, dtype=np.float32) * width
    step = width / np.float32(count) if count else np.float32(0)
    at = (base[:, None] + (np.arange(count, dtype=np.float32) + HALF) * step).reshape(-1)
    inside = (at >= -1) & (at <= size) & (size > 0)
    at = np.where(inside, np.fmax(at, np.float32(0)), np.float32(0))
    low = np.minimum(at.astype(np.int64), max(size - 1, 0))
    high = np.minimum(low + 1, max(size - 1, 0))
    return low, high, np.where(low < size - 1, at - low, 0).astype(np.float64), inside, count


def pooled(planes, box, bins, ratio, aligned, largest):
    """Returns planes (C, H, W) in the bins of a region of them."""
    top, bottom, dy, rows, down = places(box[1], box[3], bins[0], ratio, aligned, planes.shape[1])
    left, right, dx, columns, across = places(box[0], box[2], bins[1], ratio, aligned, planes.shape[2])
    if not down or not across or not planes.size:
        return np.zeros((planes.shape[0], *bins))
    dy = dy[:, None]
    values = (1 - dy) * (1 - dx) * planes[:, top[:, None], left] + (1 - dy) * dx * planes[:, top[:, None], right]
    values += dy * (1 - dx) * planes[:, bottom[:, None], left] + dy * dx * planes[:, bottom[:, None], right]
    values = np.where(rows[:, None] & columns, values, 0).reshape(-1, bins[0], down, bins[1], across)
    return values.max(axis=(2, 4)) if largest else values.mean(axis=(2, 4))


def reference(inputs, attributes):
    """A region without an image, or with a coordinate that is NaN or infinite, is 0."""
    image, rois = inputs
    bins, largest = (attributes["output_height"], attributes["output_width"]), attributes["mode"] == "max"
    values, regions = image.astype(np.float64), rois.astype(np.float32)
    made = np.zeros((rois.shape[0], image.shape[1], *bins))
    with np.errstate(all="ignore"):
        boxes = regions[:, 1:] * np.float32(attributes["spatial_scale"]) - np.float32(
            0.5 if attributes["aligned"] else 0
        )
        for at in np.flatnonzero((regions[:, 0] >= 0) & (regions[:, 0] < len(image)) & np.isfinite(boxes).all(axis=1)):
            planes = values[int(regions[at, 0])]
            made[at] = pooled(planes, boxes[at], bins, attributes["sampling_ratio"], attributes["aligned"], largest)
        return [made.astype(image.dtype)]


def scalars(inputs, outputs, attributes):
    image = inputs[0]
    return [
        product(outputs[0]), image[0], image[1], image[2], image[3], attributes["output_height"],
        attributes["output_width"], attributes["sampling_ratio"], attributes["aligned"],
        equal(attributes["mode"], "max"),
    ], [attributes["spatial_scale"]]  # fmt: skip


def body(attributes, opset):
    """ONNX's RoiAlign, in float32, with regions that it could not read taken out and put back as 0.

    What ONNX calls the largest is the largest of weighted pixels, and of samples here: that is left to the reference.
    ONNX Runtime reads beyond a map without elements, so it is not asked then.
    """
    if opset < 16 or attributes["mode"] != "avg":
        return None
    if attributes["aligned"]:
        word, end = "half_pixel", "Max (start, last)"
    else:
        word, end = "output_half_pixel", "Identity (last)"
    return f"""(input, rois) => (output) {{
        zero = Constant <value = float {{0}}> ()
        none = Constant <value = float {{0}}> ()
        to_0 = Constant <value = int64[1] {{0}}> ()
        to_1 = Constant <value = int64[1] {{1}}> ()
        to_3 = Constant <value = int64[1] {{3}}> ()
        to_5 = Constant <value = int64[1] {{5}}> ()
        axes = Constant <value = int64[2] {{2, 3}}> ()
        image = Cast <to = 1> (input)
        regions = Cast <to = 1> (rois)
        noises = Mul (regions, zero)
        noise = ReduceSum <keepdims = 1> (noises, to_1)
        finite = Equal (noise, none)
        numbers = Slice (regions, to_0, to_1, to_1)
        images = Shape <start = 0, end = 1> (input)
        count = Cast <to = 1> (images)
        below = Less (numbers, count)
        above = GreaterOrEqual (numbers, zero)
        there = And (below, above)
        valid = And (there, finite)
        safe = Where (valid, regions, zero)
        start = Slice (safe, to_1, to_3, to_1)
        last = Slice (safe, to_3, to_5, to_1)
        end = {end}
        boxes = Concat <axis = 1> (start, end)
        column = Slice (safe, to_0, to_1, to_1)
        row = Squeeze (column, to_1)
        index = Cast <to = 7> (row)
        channels = Shape <start = 1, end = 2> (input)
        region_count = Shape <start = 0, end = 1> (rois)
        bins = Constant <value = int64[2] {{{attributes["output_height"]}, {attributes["output_width"]}}}> ()
        shape = Concat <axis = 0> (region_count, channels, bins)
        size = Size (image)
        nowhere = Constant <value = int64 {{0}}> ()
        is_empty = Equal (size, nowhere)
        pooled = If (is_empty) <
            then_branch = empty () => (float[] nothing) {{ nothing = Expand (zero, shape) }},
            else_branch = full () => (float[] averages) {{
                averages = RoiAlign <mode = "avg", coordinate_transformation_mode = "{word}",
                    output_height = {attributes["output_height"]}, output_width = {attributes["output_width"]},
                    sampling_ratio = {attributes["sampling_ratio"]},
                    spatial_scale = {float(attributes["spatial_scale"])!r}> (image, boxes, index)
            }}
        >
        everywhere = Unsqueeze (valid, axes)
        result = Where (everywhere, pooled, zero)
        output = CastLike (result, input)
    }}"""


def cases():
    random = np.random.default_rng(0)

    def regions(count, images, height, width):
        """Regions on a grid of 1/8 pixels, which all element types hold: some reach outside, some are empty."""
        corners = np.round(random.uniform(-0.4, 1.2, (count, 2, 2)) * (width, height) * 8) / 8
        corners.sort(axis=1)
        numbers = random.integers(0, images, (count, 1))
        return np.concatenate([numbers, corners.reshape(count, 4)], axis=1).astype(np.float32)

    ways = itertools.product(("avg", "max"), (0, 1), (0, 1, 2, 3), (0.25, 0.5, 1.0))
    forms = [((2, 3, 9, 11), (3, 4)), ((1, 2, 1, 1), (2, 2)), ((1, 1, 6, 1), (1, 3)), ((3, 2, 8, 8), (7, 7))]
    for (mode, aligned, ratio, scale), (shape, (rows, columns)) in itertools.product(ways, forms):
        said = {
            "output_height": rows, "output_width": columns, "mode": mode, "aligned": aligned,
            "sampling_ratio": ratio, "spatial_scale": scale,
        }  # fmt: skip
        image = random.standard_normal(shape).astype(np.float32)
        yield [image, regions(4, shape[0], shape[2] / scale, shape[3] / scale)], said
    said = {"output_height": 2, "output_width": 3}
    for mode, aligned in itertools.product(("avg", "max"), (0, 1)):
        how = {**said, "mode": mode, "aligned": aligned}
        image = random.standard_normal((2, 2, 5, 6)).astype(np.float32)
        far = [[0, -100, -100, 200, 200], [0, 40, 40, 50, 50], [1, -1, -1, 6, 5], [1, 3, 3, 3, 3], [0, 4, 4, 1, 1]]
        yield [image, np.array(far, np.float32)], {**how, "sampling_ratio": 2}
        yield [image, np.array(far, np.float32)], how
        nowhere = [[-1, 0, 0, 4, 4], [2, 0, 0, 4, 4], [np.nan, 0, 0, 4, 4], [0, np.nan, 0, 4, 4], [0, 0, 0, np.inf, 4],
                   [1, 0, 0, 4, 4]]  # fmt: skip
        yield [image, np.array(nowhere, np.float32)], how
        for value in (np.nan, np.inf):
            colored = image.copy()
            colored[0, 1, 2, 3] = value
            yield [colored, np.array([[0, 0, 0, 6, 5], [1, 0, 0, 6, 5], [0, 0.5, 0.5, 1.5, 1.5]], np.float32)], how
    image = np.ones((2, 3, 4, 4), np.float32)
    yield [image, np.zeros((0, 5), np.float32)], said
    yield [image[:, :0], np.zeros((2, 5), np.float32)], said
    yield [image[:, :, :0], np.zeros((2, 5), np.float32)], {**said, "sampling_ratio": 2, "mode": "max"}
    yield [image[:, :, :0], np.zeros((2, 5), np.float32)], {**said, "sampling_ratio": 2}
    yield [image[:, :, :, :0], np.ones((2, 5), np.float32)], {**said, "aligned": 0}
    yield [image[:0], np.zeros((2, 5), np.float32)], said
    yield [image, np.array([[1, 0, 0, 4, 4]], np.float32)], said


BUNDLE = Bundle(
    name="roi_align",
    op="MMCVRoiAlign",
    domain="mmdeploy",
    aliases=("mmcv::MMCVRoiAlign",),
    description="Pools regions (K, 5) of feature maps (N, C, H, W) into bins: the average or the largest of samples.",
    inputs=("input", "rois"),
    outputs=("output",),
    attributes={
        "output_height": int, "output_width": int, "spatial_scale": 1.0, "sampling_ratio": 0, "mode": "avg",
        "aligned": 1,
    },
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::roi_align"),
    kernel=Kernel(source="kernel.cu", entry="roi_align", scalars=scalars),
    tolerance={"float32": (1e-4, 2e-5), "float16": (2e-3, 1e-3), "bfloat16": (1e-2, 1e-2)},
)  # fmt: skip
