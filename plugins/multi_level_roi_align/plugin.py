"""Pooling regions of a pyramid of feature maps, each from the level of its size: ``MMCVMultiLevelRoiAlign``."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, TorchCall, equal, product

LEVELS = 7
MAX, AVG = 0, 1
HALF = np.float32(0.5)


def given(inputs):
    return [each for each in inputs if each is not None]


def shapes(inputs, attributes):
    rois, *maps = given(inputs)
    strides = attributes["featmap_strides"]
    if len(maps) > LEVELS:
        raise ValueError(f"there are {len(maps)} levels, and {LEVELS} are the most")
    if len(maps) > len(strides):
        raise ValueError(f"there are {len(maps)} levels and {len(strides)} featmap_strides")
    return [[rois[0], maps[0][1], attributes["output_height"], attributes["output_width"]]]


def levels_of(regions, count, finest_scale):
    """Returns from which level each region is pooled: twice the size is one level up."""
    width, height = regions[:, 3] - regions[:, 1], regions[:, 4] - regions[:, 2]
    scale = np.sqrt(width * height) / np.float32(finest_scale) + np.float32(1e-6)
    return sum((scale >= np.float32(2**level)).astype(np.int64) for level in range(1, count)) + np.zeros(
        len(regions), np.int64
    )


def samples(start, end, bins, ratio, aligned):
    """Returns the coordinates (bins, samples) of samples along an axis, in float32 and the kernel's order."""
    length = np.fmax(end - start, np.float32(0 if aligned else 1))
    width = length / np.float32(bins)
    count = int(ratio if ratio > 0 else np.ceil(width))
    step = width / np.float32(count) if count else np.float32(0)
    return (start + np.arange(bins, dtype=np.float32) * width)[:, None] + (
        np.arange(count, dtype=np.float32) + HALF
    ) * step


def weights(at, size):
    """Returns two pixels for each coordinate and what they count for; outside they count nothing."""
    inside = (at >= -1) & (at <= size)
    at = np.where(inside, np.clip(at, 0, max(size - 1, 0)), 0)
    low = np.floor(at).astype(np.int64)
    part = (at - low).astype(np.float64)
    return np.stack([low, np.minimum(low + 1, max(size - 1, 0))]), np.stack([1 - part, part]), inside


def pooled(planes, box, attributes):
    """Returns planes (C, H, W) in the bins of a region."""
    bins = attributes["output_height"], attributes["output_width"]
    ratio, aligned = attributes["sampling_ratio"], attributes["aligned"]
    y, x = (samples(box[1 - axis], box[3 - axis], bins[axis], ratio, aligned) for axis in (0, 1))
    if not y.size or not x.size or not planes.size:
        return np.zeros((planes.shape[0], *bins))
    (rows, down, within), (columns, across, between) = weights(y, planes.shape[1]), weights(x, planes.shape[2])
    values = 0
    for i, j in itertools.product(range(2), range(2)):
        found = planes[:, rows[i][:, :, None, None], columns[j]]
        values = values + down[i][:, :, None, None] * across[j] * found
    values = np.where(within[:, :, None, None] & between, values, 0)
    return values.max(axis=(2, 4)) if attributes["pool_mode"] == MAX else values.mean(axis=(2, 4))


def reference(inputs, attributes):
    """A region without an image, or with a coordinate that is NaN or infinite, is 0."""
    rois, *maps = given(inputs)
    values, regions = [each.astype(np.float64) for each in maps], rois.astype(np.float32)
    made = np.zeros((len(rois), maps[0].shape[1], attributes["output_height"], attributes["output_width"]))
    with np.errstate(all="ignore"):
        levels = levels_of(regions, len(maps), attributes["finest_scale"])
        boxes = regions[:, 1:]
        if attributes["roi_scale_factor"] > 0:
            center, size = (boxes[:, :2] + boxes[:, 2:]) * HALF, boxes[:, 2:] - boxes[:, :2]
            reach = size * (np.float32(attributes["roi_scale_factor"]) * HALF)
            boxes = np.concatenate([center - reach, center + reach], axis=1)
        by = np.float32(1) / np.array(attributes["featmap_strides"], np.float32)[levels]
        boxes = boxes * by[:, None] - np.float32(0.5 if attributes["aligned"] else 0)
        valid = (regions[:, 0] >= 0) & (regions[:, 0] < len(maps[0])) & np.isfinite(boxes).all(axis=1)
        for at in np.flatnonzero(valid):
            made[at] = pooled(values[levels[at]][int(regions[at, 0])], boxes[at], attributes)
        return [made.astype(rois.dtype)]


def scalars(inputs, outputs, attributes):
    _, *maps = given(inputs)
    sizes = [each[2] * 2**32 + each[3] for each in maps]
    return [
        product(outputs[0]), maps[0][0], maps[0][1], attributes["output_height"], attributes["output_width"],
        attributes["sampling_ratio"], attributes["aligned"] + 2 * equal(attributes["pool_mode"], MAX), len(maps),
        attributes["finest_scale"], *sizes,
    ], [attributes["roi_scale_factor"], *attributes["featmap_strides"][: len(maps)]]  # fmt: skip


def body(attributes, opset, inputs):
    """Each level by ONNX's RoiAlign, in float32, and of these the one that a region belongs to.

    ONNX Runtime reads beyond a map without elements, so it is not asked then.
    """
    strides = attributes["featmap_strides"][: inputs - 1]
    if opset < 16 or attributes["pool_mode"] != AVG or len(strides) < inputs - 1:
        return None
    word, end = ("half_pixel", "Max (start, last)") if attributes["aligned"] else (
        "output_half_pixel", "Identity (last)"
    )  # fmt: skip
    factor = attributes["roi_scale_factor"]
    lines = []
    for level, stride in enumerate(strides):
        lines.append(f"""
        map{level} = Cast <to = 1> (feat{level})
        size{level} = Size (map{level})
        is_empty{level} = Equal (size{level}, nowhere)
        pooled{level} = If (is_empty{level}) <
            then_branch = empty{level} () => (float[] nothing{level}) {{ nothing{level} = Expand (zero, shape) }},
            else_branch = full{level} () => (float[] averages{level}) {{
                averages{level} = RoiAlign <mode = "avg", coordinate_transformation_mode = "{word}",
                    output_height = {attributes["output_height"]}, output_width = {attributes["output_width"]},
                    sampling_ratio = {attributes["sampling_ratio"]},
                    spatial_scale = {float(np.float32(1) / np.float32(stride))!r}> (map{level}, boxes, index)
            }}
        >""")
        if level:
            lines.append(f"""
        power{level} = Constant <value = float {{{2**level}}}> ()
        reached{level} = GreaterOrEqual (scale, power{level})
        there{level} = Unsqueeze (reached{level}, axes)
        best{level} = Where (there{level}, pooled{level}, best{level - 1})""")
        else:
            lines.append("\n        best0 = Identity (pooled0)")
    if factor > 0:
        scaled = f"""
        half = Constant <value = float {{0.5}}> ()
        reach_by = Constant <value = float {{{float(np.float32(factor) * HALF)!r}}}> ()
        sums = Add (from, to)
        center = Mul (sums, half)
        reach = Mul (size, reach_by)
        start = Sub (center, reach)
        last = Add (center, reach)"""
    else:
        scaled = "\n        start = Identity (from)\n        last = Identity (to)"
    maps = ", ".join(f"feat{level}" for level in range(len(strides)))
    return f"""(rois, {maps}) => (output) {{
        zero = Constant <value = float {{0}}> ()
        to_0 = Constant <value = int64[1] {{0}}> ()
        to_1 = Constant <value = int64[1] {{1}}> ()
        to_3 = Constant <value = int64[1] {{3}}> ()
        to_5 = Constant <value = int64[1] {{5}}> ()
        axes = Constant <value = int64[2] {{2, 3}}> ()
        small = Constant <value = float {{1e-6}}> ()
        finest = Constant <value = float {{{float(attributes["finest_scale"])!r}}}> ()
        regions = Cast <to = 1> (rois)
        noises = Mul (regions, zero)
        noise = ReduceSum <keepdims = 1> (noises, to_1)
        finite = Equal (noise, zero)
        numbers = Slice (regions, to_0, to_1, to_1)
        images = Shape <start = 0, end = 1> (feat0)
        count = Cast <to = 1> (images)
        nowhere = Constant <value = int64 {{0}}> ()
        channels = Shape <start = 1, end = 2> (feat0)
        region_count = Shape <start = 0, end = 1> (rois)
        bins = Constant <value = int64[2] {{{attributes["output_height"]}, {attributes["output_width"]}}}> ()
        shape = Concat <axis = 0> (region_count, channels, bins)
        below = Less (numbers, count)
        above = GreaterOrEqual (numbers, zero)
        there = And (below, above)
        valid = And (there, finite)
        safe = Where (valid, regions, zero)
        from = Slice (safe, to_1, to_3, to_1)
        to = Slice (safe, to_3, to_5, to_1)
        size = Sub (to, from)
        to_2 = Constant <value = int64[1] {{2}}> ()
        width = Slice (size, to_0, to_1, to_1)
        height = Slice (size, to_1, to_2, to_1)
        area = Mul (width, height)
        side = Sqrt (area)
        relative = Div (side, finest)
        scale = Add (relative, small){scaled}
        end = {end}
        boxes = Concat <axis = 1> (start, end)
        column = Slice (safe, to_0, to_1, to_1)
        row = Squeeze (column, to_1)
        index = Cast <to = 7> (row){"".join(lines)}
        everywhere = Unsqueeze (valid, axes)
        result = Where (everywhere, best{len(strides) - 1}, zero)
        output = CastLike (result, rois)
    }}"""


def cases():
    random = np.random.default_rng(0)

    def regions(count, images, side):
        """Regions of sizes that belong to every level, on a grid that all element types hold."""
        sizes = np.round(np.exp2(random.uniform(0, np.log2(side), (count, 2))) * 2) / 2
        first = np.round(random.uniform(-0.1, 0.8, (count, 2)) * side / 2) * 2
        return np.concatenate([random.integers(0, images, (count, 1)), first, first + sizes], axis=1).astype(np.float32)

    def pyramid(images, channels, side, strides):
        return [
            random.standard_normal((images, channels, -(-side // stride), -(-side // stride) + 1)).astype(np.float32)
            for stride in map(int, strides)
        ]

    all_strides = ((4.0,), (4.0, 8.0), (4.0, 8.0, 16.0, 32.0), (2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0))
    ways = itertools.product((MAX, AVG), (0, 1), (0, 2), (-1.0, 1.5), all_strides, (1, 2, 3))
    for mode, aligned, ratio, factor, strides, images in ways:
        said = {
            "output_height": 2, "output_width": 3, "pool_mode": mode, "aligned": aligned, "sampling_ratio": ratio,
            "roi_scale_factor": factor, "featmap_strides": strides, "finest_scale": 14,
        }  # fmt: skip
        yield [regions(4, images, 64), *pyramid(images, 2, 64, strides)], said
    said = {"featmap_strides": (4.0, 8.0, 16.0, 32.0), "finest_scale": 8, "output_height": 3, "output_width": 3}
    for mode, aligned in itertools.product((MAX, AVG), (0, 1)):
        how = {**said, "pool_mode": mode, "aligned": aligned}
        at_powers = [[1, 0, 0, side, side] for side in (8.0, 15.5, 16.0, 31.5, 32.0, 63.5, 64.0, 128.0)]
        nowhere = [[-1, 0, 0, 4, 4], [2, 0, 0, 4, 4], [np.nan, 0, 0, 4, 4], [0, np.nan, 0, 4, 4], [0, 0, 0, 4, -np.inf],
                   [0, 20, 20, 4, 4], [0, 20, 4, 4, 20], [1, 3, 3, 3, 3], [0, -500, -500, -400, -400]]  # fmt: skip
        yield [np.array(at_powers, np.float32), *pyramid(2, 2, 64, said["featmap_strides"])], how
        yield [np.array(nowhere, np.float32), *pyramid(2, 2, 64, said["featmap_strides"])], how
        single = [np.full((1, 1, 1, 1), value, np.float32) for value in (1, 2, 3, 4)]
        yield [np.array(at_powers, np.float32) * np.float32([0, 1, 1, 1, 1]), *single], how
        for value in (np.nan, np.inf):
            colored = pyramid(2, 2, 64, said["featmap_strides"])
            for each in colored[:3]:
                each[1, 1, 2, 2] = value
            yield [np.array(at_powers, np.float32), *colored], how
    for levels in range(1, LEVELS + 1):
        strides = tuple(float(2 << level) for level in range(levels))
        how = {"featmap_strides": strides, "finest_scale": 4, "pool_mode": AVG, "output_height": 2, "output_width": 2}
        yield [regions(6, 2, 128), *pyramid(2, 1, 128, strides)], how
    maps = pyramid(2, 2, 64, said["featmap_strides"])
    yield [np.zeros((0, 5), np.float32), *maps], said
    some = np.array([[1, 0, 0, 40, 40], [0, 4, 4, 12, 9]], np.float32)
    for mode in (MAX, AVG):
        how = {**said, "pool_mode": mode}
        yield [np.zeros((3, 5), np.float32), *(each[:, :0] for each in maps)], how
        yield [some, *(each[:0] for each in maps)], how
        yield [some, maps[0][:, :, :0], *maps[1:3], maps[3][:, :, :, :0]], how
        yield [some[:0], *maps], how
    yield [np.array([[1, 0, 0, 16, 16]], np.float32), *maps], {**said, "pool_mode": AVG}


BUNDLE = Bundle(
    name="multi_level_roi_align",
    op="MMCVMultiLevelRoiAlign",
    domain="mmdeploy",
    aliases=("mmcv::MMCVMultiLevelRoiAlign",),
    description="Pools regions (K, 5) of up to 7 feature maps (N, C, H, W), each from the one of its size, into bins.",
    inputs=("rois", *(f"feat{level}" for level in range(LEVELS))),
    optional=tuple(f"feat{level}" for level in range(1, LEVELS)),
    outputs=("output",),
    attributes={
        "output_height": 7, "output_width": 7, "pool_mode": MAX, "sampling_ratio": 2, "roi_scale_factor": -1.0,
        "finest_scale": 56, "featmap_strides": list[float], "aligned": 0,
    },
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::multi_level_roi_align"),
    kernel=Kernel(source="kernel.cu", entry="multi_level_roi_align", scalars=scalars),
    tolerance={"float32": (1e-4, 2e-5), "float16": (2e-3, 1e-3), "bfloat16": (1e-2, 1e-2)},
)  # fmt: skip
