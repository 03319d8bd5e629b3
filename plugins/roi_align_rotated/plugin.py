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
        for rois in (turned, wide, nowhere):
            yield [image, np.array(rois, np.float32)], how
            yield [image, np.array(rois, np.float32)], {**how, "sampling_ratio": 2}
        for value in (np.nan, np.inf):
            colored = image.copy()
            colored[0, 1, 3, 3] = value
            yield [colored, np.array([[0, 3.2, 3.1, 5, 5, 0.7], [1, 3, 3, 5, 5, 0.7]], np.float32)], how
    yield [image, np.zeros((0, 6), np.float32)], said
    yield [image[:, :0], np.ones((2, 6), np.float32)], said
    yield [image[:, :, :0], np.ones((2, 6), np.float32)], {**said, "sampling_ratio": 2}
    yield [image, np.array([[1, 3.2, 3.1, 4, 4, 0.3]], np.float32)], said


BUNDLE = Bundle(
    name="roi_align_rotated",
    op="MMCVRoIAlignRotated",
    domain="mmdeploy",
    aliases=("mmdeploy::RoIAlignRotated", "mmcv::MMCVRoIAlignRotated", "mmcv::RoIAlignRotated"),
    description="Pools rotated regions (K, 6) of feature maps (N, C, H, W) into bins: the average of samples.",
    inputs=("input", "rois"),
    outputs=("output",),
    dtypes=("float32", "float16"),
    attributes={
        "output_height": int, "output_width": int, "spatial_scale": 1.0, "sampling_ratio": 0, "aligned": 1,
        "clockwise": 0,
    },
    shapes=shapes,
    reference=reference,
    cases=cases,
    torch=TorchCall("mmdeploy::roi_align_rotated"),
    kernel=Kernel(source="kernel.cu", entry="roi_align_rotated", scalars=scalars),
    tolerance={"float32": (1e-4, 1e-4), "float16": (2e-3, 2e-3)},
)  # fmt: skip
