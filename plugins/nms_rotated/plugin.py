"""Non-maximum suppression of rotated boxes: ``mmdeploy::NMSRotated`` and ``mmdeploy::TRTBatchedRotatedNMS``."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, Launch, smaller

SLACK = 1e-9
"""Relative to the size of a box: an edge that is so near to another's is taken for the same."""


def corners(boxes):
    """Returns the corners of boxes (N, 5), in order, (N, 4, 2)."""
    across = np.stack([np.cos(boxes[:, 4]), np.sin(boxes[:, 4])], axis=-1) * boxes[:, 2:3] / 2
    down = np.stack([-np.sin(boxes[:, 4]), np.cos(boxes[:, 4])], axis=-1) * boxes[:, 3:4] / 2
    center = boxes[:, :2]
    ways = ((-1, -1), (1, -1), (1, 1), (-1, 1))
    return np.stack([center + a * across + b * down for a, b in ways], axis=1)


def swept(points, boxes, slack):
    """Returns the areas between an origin and those parts of the edges of polygons (N, 4, 2) that lie in boxes."""
    cosine, sine = np.cos(boxes[:, 4])[:, None], np.sin(boxes[:, 4])[:, None]
    away = points - boxes[:, None, :2]
    x, y = away[..., 0] * cosine + away[..., 1] * sine, away[..., 1] * cosine - away[..., 0] * sine
    first, last = np.zeros(x.shape), np.ones(x.shape)
    for value, size in ((x, boxes[:, 2:3]), (-x, boxes[:, 2:3]), (y, boxes[:, 3:4]), (-y, boxes[:, 3:4])):
        left = size / 2 + slack * (boxes[:, 2:3] + boxes[:, 3:4]) - value
        right = np.roll(left, -1, axis=1)
        crossing = left / (left - right)
        first = np.where(left < 0, np.maximum(first, np.where(right < 0, 1, crossing)), first)
        last = np.where(right < 0, np.minimum(last, np.where(left < 0, 0, crossing)), last)
    edges = np.roll(points, -1, axis=1) - points
    begin, end = points + edges * first[..., None], points + edges * last[..., None]
    area = begin[..., 0] * end[..., 1] - begin[..., 1] * end[..., 0]
    return np.where(last > first, area, 0).sum(axis=1) / 2


def overlaps(box, others):
    """Returns the intersections over unions of a box (5,) and others (N, 5), in float64.

    The outline of an intersection is made of the parts of either box's edges that lie in the other one, and the area in
    it is a sum over these (Green's theorem). Of edges that coincide the other one's count.
    """
    with np.errstate(all="ignore"):
        moved = others.astype(np.float64) - [*box[:2].astype(np.float64), 0, 0, 0]
        own = np.broadcast_to(np.array([0, 0, *box[2:]], np.float64), moved.shape)
        shared = np.maximum(swept(corners(moved), own, SLACK) + swept(corners(own), moved, -SLACK), 0)
        union = moved[:, 2] * moved[:, 3] + own[:, 2] * own[:, 3] - shared
        return np.where(union > 0, shared / union, 0)


def suppressed(boxes, scores, attributes):
    """Returns the numbers of the boxes of one class that are kept, the best first; of equals the first."""
    order = np.argsort(-scores, kind="stable")
    left = order[scores[order] > attributes["score_threshold"]]
    if attributes.get("topk", -1) > 0:
        left = left[: attributes["topk"]]
    kept = []
    while left.size and len(kept) < attributes.get("keep_topk", scores.size):
        kept.append(left[0])
        left = left[1:][~(overlaps(boxes[left[0]], boxes[left[1:]]) > attributes["iou_threshold"])]
    return kept


def some_boxes(random, *shape):
    center = random.uniform(0, 20, (*shape, 2))
    size = random.uniform(0.5, 12, (*shape, 2))
    return np.concatenate([center, size, random.uniform(-4, 4, (*shape, 1))], axis=-1).astype(np.float32)


def special_boxes(random):
    """Yields boxes (1, N, 5) that share edges, are the same, turned by a quarter, have no area, or are not there."""
    rows = [[5, 5, 4, 2, 0.7], [5, 5, 4, 2, 0.7], [5, 5, 2, 4, 0.7 + np.pi / 2], [5, 5, 4, 2, 0.7 + np.pi],
            [5, 5, 1, 1, 0], [6, 5, 1, 1, 0], [5, 6, 1, 1, 0], [5, 5, 0, 3, 0.2], [5, 5, 0, 0, 0], [5, 5, 1e4, 1e4, 1],
            [np.nan, 5, 4, 2, 0], [5, 5, np.nan, 2, 0], [5, 5, 4, 2, np.nan], [5, 5, 4, 4, np.pi / 4]]  # fmt: skip
    made = np.array(rows, np.float32)
    for _ in range(3):
        yield made[random.permutation(len(made))][None]


# ---------------------------------------------------------------- NMSRotated


def list_shapes(inputs, attributes):
    _, scores = inputs
    return [[scores[0] * scores[1] * scores[2], 3]]


def list_reference(inputs, attributes):
    boxes, scores = (value.astype(np.float32) for value in inputs)
    found = [
        (image, label, box)
        for image, label in np.ndindex(scores.shape[:2])
        for box in suppressed(boxes[image], scores[image, label], attributes)
    ]
    return [np.array(found, np.int64).reshape(-1, 3)]


def list_scalars(inputs, outputs, attributes):
    images, classes, boxes = inputs[1]
    least = [attributes["score_threshold"], attributes["iou_threshold"]]
    return [images, boxes, classes, 1, -1, boxes, -1, 0, boxes, 1], least


def list_workspace(inputs, outputs, attributes):
    images, classes, boxes = inputs[1]
    return images * classes * (boxes + boxes + 1) * 8


def list_cases():
    random = np.random.default_rng(0)
    sizes = [(1, 1, 1), (1, 24, 1), (2, 9, 2), (2, 5, 3), (1, 35, 1), (2, 1, 3), *[(1, 4, 1), (1, 6, 1), (1, 8, 1)] * 4]
    for (images, count, classes), least, _ in itertools.product(sizes, (0.0, 0.25, 0.75), range(4)):
        scores = (random.integers(0, 128, (images, classes, count)) / 128).astype(np.float32)
        said = {"iou_threshold": float(random.choice([0.013, 0.137, 0.31, 0.57])), "score_threshold": least}
        yield [some_boxes(random, images, count), scores], said
    for boxes in special_boxes(random):
        yield [boxes, random.uniform(0, 1, (1, 2, boxes.shape[1])).astype(np.float32)], {"iou_threshold": 0.35}
    strange = random.uniform(0, 1, (1, 1, 20)).astype(np.float32)
    strange[0, 0, 3:7] = [np.nan, np.inf, -np.inf, np.nan]
    yield [some_boxes(random, 1, 20), strange], {"iou_threshold": 0.137}
    for images, count, classes in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        yield [np.zeros((images, count, 5), np.float32), np.zeros((images, classes, count), np.float32)], {}


# ---------------------------------------------------------------- TRTBatchedRotatedNMS


def batched_shapes(inputs, attributes):
    _, scores = inputs
    return [[scores[0], attributes["keep_topk"], 6], [scores[0], attributes["keep_topk"]]]


def batched_reference(inputs, attributes):
    boxes, scores = (value.astype(np.float32) for value in inputs)
    images, _, classes = scores.shape
    keep, shared = attributes["keep_topk"], boxes.shape[2] == 1
    dets, labels = np.zeros((images, keep, 6), np.float32), np.full((images, keep), -1, np.int64)
    for image in range(images):
        found = [
            (label, box)
            for label in range(classes) if label != attributes["background_label_id"]
            for box in suppressed(boxes[image, :, 0 if shared else label], scores[image, :, label], attributes)
        ]  # fmt: skip
        found.sort(key=lambda each: -scores[image, each[1], each[0]])
        for row, (label, box) in enumerate(found[:keep]):
            parts = boxes[image, box, 0 if shared else label]
            if attributes["is_normalized"] and attributes["clip_boxes"]:
                parts = np.fmax(np.fmin(parts, np.float32(1)), np.float32(0))
            dets[image, row] = [*parts, scores[image, box, label]]
            labels[image, row] = label
    return [dets.astype(inputs[0].dtype), labels]


def batched_scalars(inputs, outputs, attributes):
    boxes, scores = inputs
    return [
        scores[0], scores[1], scores[2], boxes[2], attributes["topk"], attributes["keep_topk"],
        attributes["background_label_id"], attributes["is_normalized"] * attributes["clip_boxes"], 1, scores[2],
    ], [attributes["score_threshold"], attributes["iou_threshold"]]  # fmt: skip


def batched_workspace(inputs, outputs, attributes):
    images, boxes, classes = inputs[1]
    return images * classes * (boxes + smaller(boxes, attributes["keep_topk"]) + 1) * 8


def batched_cases():
    random = np.random.default_rng(1)
    sizes = [(1, 1, 1, 1), (1, 24, 1, 1), (2, 9, 2, 1), (2, 7, 2, 2), (2, 5, 3, 1), (1, 35, 1, 1),
             *[(1, 4, 1, 1), (1, 6, 1, 1), (1, 8, 1, 1)] * 4]  # fmt: skip
    limits = [(-1, 10), (12, 5), (20, 100)]
    for (images, count, classes, own), (topk, keep), background, _ in itertools.product(
        sizes, limits, (-1, 1), range(2)
    ):
        scores = (random.integers(0, 128, (images, count, classes)) / 128).astype(np.float32)
        said = {"num_classes": classes, "topk": topk, "keep_topk": keep, "background_label_id": background,
                "score_threshold": float(random.choice([0.0, 0.25, 0.75])),
                "iou_threshold": float(random.choice([0.013, 0.137, 0.31, 0.57]))}  # fmt: skip
        yield [some_boxes(random, images, count, own), scores], said
    for boxes, clip in zip(special_boxes(random), (0, 1, 1), strict=True):
        scores = random.uniform(0, 1, (1, boxes.shape[1], 3)).astype(np.float32)
        said = {"iou_threshold": 0.35, "keep_topk": 20, "clip_boxes": clip, "is_normalized": 1}
        yield [boxes[:, :, None], scores], said
    for images, count, classes in ((0, 3, 2), (2, 0, 2), (2, 3, 0)):
        inputs = [np.zeros((images, count, 1, 5), np.float32), np.zeros((images, count, classes), np.float32)]
        yield inputs, {"keep_topk": 4}


EXACT = {"float32": (0, 0), "float16": (0, 0), "bfloat16": (0, 0)}
BUNDLES = (
    Bundle(
        name="nms_rotated",
        op="NMSRotated",
        domain="mmdeploy",
        description="Non-maximum suppression of rotated boxes (N, B, 5) with scores (N, C, B), as rows of numbers.",
        inputs=("boxes", "scores"),
        outputs=("index",),
        types={"index": ("int64",)},
        counted={"index": 0},
        attributes={"iou_threshold": 0.5, "score_threshold": 0.0},
        shapes=list_shapes,
        reference=list_reference,
        cases=list_cases,
        kernel=Kernel(
            source="kernel.cu",
            entry="nms_rotated",
            scalars=list_scalars,
            launches=(
                Launch("nms_rotated_class", lambda i, o, a: i[1][0] * i[1][1], threads=256, together=True),
                Launch("nms_rotated_list", lambda i, o, a: i[1][0] * i[1][1] + 1, threads=256, together=True),
            ),
            workspace=list_workspace,
        ),
        tolerance=EXACT,
    ),
    Bundle(
        name="batched_rotated_nms",
        op="TRTBatchedRotatedNMS",
        domain="mmdeploy",
        description="Non-maximum suppression of rotated boxes (N, B, 1 or C, 5), scores (N, B, C), to a fixed number.",
        inputs=("boxes", "scores"),
        outputs=("dets", "labels"),
        types={"labels": ("int64",)},
        attributes={
            "background_label_id": -1, "num_classes": 0, "topk": -1, "keep_topk": 100, "score_threshold": 0.0,
            "iou_threshold": 0.5, "is_normalized": 0, "clip_boxes": 0,
        },
        shapes=batched_shapes,
        reference=batched_reference,
        cases=batched_cases,
        kernel=Kernel(
            source="kernel.cu",
            entry="batched_rotated_nms",
            scalars=batched_scalars,
            launches=(
                Launch("nms_rotated_class", lambda i, o, a: i[1][0] * i[1][2], threads=256, together=True),
                Launch("batched_rotated_nms_image", lambda i, o, a: i[1][0], threads=256, together=True),
            ),
            workspace=batched_workspace,
        ),
        tolerance=EXACT,
    ),
)  # fmt: skip
