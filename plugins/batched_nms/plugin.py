"""Non-maximum suppression with a fixed number of results: ``mmdeploy::TRTBatchedNMS``, the end of a detector."""

from __future__ import annotations

import itertools

import numpy as np

from onnxbench.bundles import Bundle, Kernel, Launch, TorchCall, smaller


def shapes(inputs, attributes):
    _, scores = inputs
    keep = attributes["keep_topk"]
    return [[scores[0], keep, 5], [scores[0], keep], [scores[0], keep]]


def overlaps(box, others):
    """Returns the intersections over unions of a box and others (x0, y0, x1, y1), in float32 as the kernel does it."""
    area = lambda b: np.where((b[..., 2] < b[..., 0]) | (b[..., 3] < b[..., 1]), np.float32(0),  # noqa: E731
                              (b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]))  # fmt: skip
    width = np.fmin(box[2], others[:, 2]) - np.fmax(box[0], others[:, 0])
    height = np.fmin(box[3], others[:, 3]) - np.fmax(box[1], others[:, 1])
    shared = width * height
    return np.where((width > 0) & (height > 0), shared / (area(box) + area(others) - shared), np.float32(0))


def suppressed(boxes, scores, attributes):
    """Returns the numbers of the boxes of one class that are kept, the best first; of equals the first."""
    order = np.argsort(-scores, kind="stable")
    left = order[scores[order] > attributes["score_threshold"]]
    if attributes["topk"] > 0:
        left = left[: attributes["topk"]]
    kept = []
    while left.size and len(kept) < attributes["keep_topk"]:
        kept.append(left[0])
        with np.errstate(all="ignore"):
            apart = ~(overlaps(boxes[left[0]], boxes[left[1:]]) > np.float32(attributes["iou_threshold"]))
        left = left[1:][apart]
    return kept


def reference(inputs, attributes):
    boxes, scores = (value.astype(np.float32) for value in inputs)
    images, count, classes = scores.shape
    keep, shared = attributes["keep_topk"], boxes.shape[2] == 1
    dets = np.zeros((images, keep, 5), np.float32)
    labels, index = np.full((images, keep), -1, np.int64), np.full((images, keep), -1, np.int64)
    for image in range(images):
        found = [
            (label, box)
            for label in range(classes) if label != attributes["background_label_id"]
            for box in suppressed(boxes[image, :, 0 if shared else label], scores[image, :, label], attributes)
        ]  # fmt: skip
        found.sort(key=lambda each: -scores[image, each[1], each[0]])
        for row, (label, box) in enumerate(found[:keep]):
            corners = boxes[image, box, 0 if shared else label]
            if attributes["is_normalized"] and attributes["clip_boxes"]:
                corners = np.fmax(np.fmin(corners, np.float32(1)), np.float32(0))
            dets[image, row] = [*corners, scores[image, box, label]]
            labels[image, row], index[image, row] = label, box if shared else label * count + box
    return [dets.astype(inputs[0].dtype), labels, index]


def scalars(inputs, outputs, attributes):
    boxes, scores = inputs
    return [
        scores[0], scores[1], scores[2], boxes[2], attributes["topk"], attributes["keep_topk"],
        attributes["background_label_id"], attributes["is_normalized"] * attributes["clip_boxes"],
    ], [attributes["score_threshold"], attributes["iou_threshold"]]  # fmt: skip


def workspace(inputs, outputs, attributes):
    images, boxes, classes = inputs[1]
    return images * classes * (boxes + smaller(boxes, attributes["keep_topk"]) + 1) * 8


def body(attributes, opset):
    """ONNX's NonMaxSuppression on every class of every image, its best candidates alone if ``topk`` says so.

    What is kept is put back among the candidates, -infinity in all other places, so that TopK finds the best of an
    image and, of equals, the first class and box. TopK must have enough to take: as many places are added at the end.
    """
    if opset < 15:
        return None
    topk, keep, background = attributes["topk"], attributes["keep_topk"], attributes["background_label_id"]
    clip = attributes["is_normalized"] and attributes["clip_boxes"]
    take = f"limit = Constant <value = int64[1] {{{topk}}}> ()\n        taken = Min (boxes_count, limit)"
    return f"""(boxes, scores) => (dets, labels, index) {{
        zero = Constant <value = int64[1] {{0}}> ()
        one = Constant <value = int64[1] {{1}}> ()
        two = Constant <value = int64[1] {{2}}> ()
        three = Constant <value = int64[1] {{3}}> ()
        rest = Constant <value = int64[1] {{-1}}> ()
        four = Constant <value = int64[1] {{4}}> ()
        keep = Constant <value = int64[1] {{{keep}}}> ()
        background = Constant <value = int64[1] {{{background}}}> ()
        zero_float = Constant <value = float[1] {{0}}> ()
        nothing = Log (zero_float)
        overlap = Constant <value = float[1] {{{attributes["iou_threshold"]!r}}}> ()
        least = Constant <value = float[1] {{{attributes["score_threshold"]!r}}}> ()

        given = Shape (scores)
        images = Slice (given, zero, one)
        boxes_count = Slice (given, one, two)
        classes = Slice (given, two, three)
        class_images = Mul (images, classes)

        float_scores = Cast <to = 1> (scores)
        scores_by_class = Transpose <perm = [0, 2, 1]> (float_scores)
        classes_scalar = Squeeze (classes, zero)
        zero_scalar = Squeeze (zero, zero)
        one_scalar = Squeeze (one, zero)
        numbers = Range (zero_scalar, classes_scalar, one_scalar)
        numbers_column = Unsqueeze (numbers, one)
        is_background = Equal (numbers_column, background)
        foreground = Where (is_background, nothing, scores_by_class)
        rows_shape = Concat <axis = 0> (class_images, boxes_count)
        rows = Reshape <allowzero = 1> (foreground, rows_shape)

        float_boxes = Cast <to = 1> (boxes)
        every_class = Concat <axis = 0> (images, boxes_count, classes, four)
        spread = Expand (float_boxes, every_class)
        boxes_by_class = Transpose <perm = [0, 2, 1, 3]> (spread)
        row_boxes_shape = Concat <axis = 0> (class_images, boxes_count, four)
        row_boxes = Reshape <allowzero = 1> (boxes_by_class, row_boxes_shape)

        {take if topk > 0 else "taken = Identity (boxes_count)"}
        best, places = TopK (rows, taken)
        places_last = Unsqueeze (places, rest)
        candidates = GatherND <batch_dims = 1> (row_boxes, places_last)
        one_class = Unsqueeze (best, one)
        chosen = NonMaxSuppression (candidates, one_class, keep, overlap, least)
        chosen_rows = Slice (chosen, zero, one, one)
        chosen_columns = Slice (chosen, two, three, one)
        at = Concat <axis = 1> (chosen_rows, chosen_columns)
        chosen_scores = GatherND (best, at)
        best_shape = Shape (best)
        empty = Expand (nothing, best_shape)
        kept = ScatterND (empty, at, chosen_scores)

        in_image = Mul (classes, taken)
        image_shape = Concat <axis = 0> (images, in_image)
        of_image = Reshape <allowzero = 1> (kept, image_shape)
        more_shape = Concat <axis = 0> (images, keep)
        more = Expand (nothing, more_shape)
        enough = Concat <axis = 1> (of_image, more)
        values, found = TopK (enough, keep)
        is_there = Greater (values, nothing)

        images_scalar = Squeeze (images, zero)
        image_numbers = Range (zero_scalar, images_scalar, one_scalar)
        image_column = Unsqueeze (image_numbers, one)
        before = Mul (image_column, in_image)
        in_all = Add (before, found)
        safe = Where (is_there, in_all, zero)
        flat_places = Reshape (places, rest)
        padded_places = Concat <axis = 0> (flat_places, zero)
        box = Gather (padded_places, safe)
        flat_shape = Concat <axis = 0> (rest, four)
        flat_boxes = Reshape (candidates, flat_shape)
        one_box = Concat <axis = 0> (one, four)
        no_box = Expand (zero_float, one_box)
        padded_boxes = Concat <axis = 0> (flat_boxes, no_box)
        corners = Gather (padded_boxes, safe)
        unit = Constant <value = float {{1}}> ()
        origin = Squeeze (zero_float, zero)
        {"inside = Clip (corners, origin, unit)" if clip else "inside = Identity (corners)"}
        mask = Unsqueeze (is_there, rest)
        sides = Where (mask, inside, zero_float)
        real_values = Where (is_there, values, zero_float)
        last = Unsqueeze (real_values, rest)
        joined = Concat <axis = 2> (sides, last)
        dets = CastLike (joined, boxes)
        length = Max (taken, one)
        label = Div (found, length)
        labels = Where (is_there, label, rest)
        boxes_shape = Shape (boxes)
        box_classes = Slice (boxes_shape, two, three)
        is_own = Greater (box_classes, one)
        skipped = Mul (label, boxes_count)
        own = Add (skipped, box)
        numbered = Where (is_own, own, box)
        index = Where (is_there, numbered, rest)
    }}"""


def cases():
    random = np.random.default_rng(0)

    def boxes(images, count, classes, side):
        corner = random.integers(0, side, (images, count, classes, 2))
        size = random.integers(1, side, (images, count, classes, 2))
        return np.concatenate([corner, corner + size], axis=-1).astype(np.float32)

    ways = [(1, 1, 1, 1), (1, 40, 1, 1), (2, 30, 3, 1), (2, 25, 3, 3), (1, 65, 2, 1), (3, 7, 5, 1), (1, 130, 1, 1)]
    limits = [(-1, 10), (12, 5), (20, 200)]
    for (images, count, classes, own), (topk, keep), background, _ in itertools.product(
        ways, limits, (-1, 0, 1), range(3)
    ):
        # Scores on a grid that all element types hold, so that there are equals; corners are whole numbers.
        scores = (random.integers(0, 128, (images, count, classes)) / 128).astype(np.float32)
        said = {"num_classes": classes, "topk": topk, "keep_topk": keep, "background_label_id": background,
                "score_threshold": float(random.choice([0.0, 0.25, 0.75])),
                "iou_threshold": float(random.choice([0.0, 0.3, 0.5, 1.0]))}  # fmt: skip
        yield [boxes(images, count, own, 24), scores], said
    unit = random.uniform(-0.5, 1.5, (1, 20, 1, 2)).astype(np.float32)
    scores = random.uniform(0, 1, (1, 20, 4)).astype(np.float32)
    for clip, normal in itertools.product((0, 1), (0, 1)):
        said = {"clip_boxes": clip, "is_normalized": normal, "keep_topk": 30, "iou_threshold": 0.9}
        yield [np.concatenate([unit, unit + 0.25], axis=-1), scores], said
    for value in (np.nan, np.inf, -np.inf):
        strange = random.uniform(0, 1, (1, 20, 4)).astype(np.float32)
        strange[0, 3:9] = value
        yield [boxes(1, 20, 1, 10), strange], {"keep_topk": 30, "score_threshold": -1.0}
    yield [boxes(1, 5, 1, 10), np.zeros((1, 5, 2), np.float32)], {"keep_topk": 4}
    yield [np.zeros((1, 0, 1, 4), np.float32), np.zeros((1, 0, 3), np.float32)], {"keep_topk": 4}
    yield [np.zeros((0, 5, 1, 4), np.float32), np.zeros((0, 5, 3), np.float32)], {"keep_topk": 4}
    yield [boxes(2, 5, 1, 10), np.zeros((2, 5, 0), np.float32)], {"keep_topk": 4}


BUNDLE = Bundle(
    name="batched_nms",
    op="TRTBatchedNMS",
    domain="mmdeploy",
    description="Non-maximum suppression of boxes (N, B, 1 or C, 4) with scores (N, B, C), to a fixed number.",
    inputs=("boxes", "scores"),
    outputs=("dets", "labels", "index"),
    types={"labels": ("int64",), "index": ("int64",)},
    optional=("index",),
    attributes={
        "background_label_id": -1, "num_classes": 0, "topk": -1, "keep_topk": 100, "score_threshold": 0.0,
        "iou_threshold": 0.5, "is_normalized": 0, "clip_boxes": 0, "return_index": 0,
    },
    shapes=shapes,
    reference=reference,
    cases=cases,
    body=body,
    torch=TorchCall("mmdeploy::batched_nms"),
    kernel=Kernel(
        source="kernel.cu",
        entry="batched_nms",
        scalars=scalars,
        launches=(
            Launch("batched_nms_class", lambda i, o, a: i[1][0] * i[1][2], threads=512, together=True),
            Launch("batched_nms_image", lambda i, o, a: i[1][0], threads=512, together=True),
        ),
        workspace=workspace,
    ),
    tolerance={"float32": (0, 0), "float16": (0, 0), "bfloat16": (0, 0)},
)  # fmt: skip
