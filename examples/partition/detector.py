"""A YOLOv3-shaped detector, marked, exported, and cut in two at ``yolo_head:input``.

    python examples/partition/detector.py FOLDER

The first piece is the network up to its three prediction maps, without postprocess: what an accelerator takes. The
second one is the postprocess with non-maximum suppression, which stays on the host. Weights are random and small.
"""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

import onnxbench
from onnxbench import mark
from onnxbench.feeding import FeedOptions
from onnxbench.pytorch.marks import finish, register, translation_table, unregister

CLASSES = 4
SIZE = 64
ANCHORS = {
    32: [(116, 90), (156, 198), (373, 326)],
    16: [(30, 61), (62, 45), (59, 119)],
    8: [(10, 13), (16, 30), (33, 23)],
}


class ConvUnit(nn.Sequential):
    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1):
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1))


class Residual(nn.Module):
    def __init__(self, width: int):
        super().__init__()
        self.squeeze, self.expand = ConvUnit(width, width // 2, 1), ConvUnit(width // 2, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.expand(self.squeeze(x))


class Darknet(nn.Module):
    """Five stages, each of half the size; the last three are given out."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.stem = ConvUnit(3, width)
        widths = [width, 2 * width, 2 * width, 4 * width, 4 * width, 8 * width]
        self.stages = nn.ModuleList(
            nn.Sequential(ConvUnit(before, after, stride=2), Residual(after)) for before, after in pairwise(widths)
        )
        self.widths = widths[3:]

    def forward(self, x: Tensor) -> list[Tensor]:
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps[2:]


class Neck(nn.Module):
    """From the coarsest map to the finest, each joined with the one before, made larger."""

    def __init__(self, widths: list[int], width: int = 16):
        super().__init__()
        fine, middle, coarse = widths
        self.coarse = ConvUnit(coarse, width, 1)
        self.middle = ConvUnit(middle + width, width, 1)
        self.fine = ConvUnit(fine + width, width, 1)

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        fine, middle, coarse = maps
        large = self.coarse(coarse)
        mean = self.middle(torch.cat([nn.functional.interpolate(large, scale_factor=2.0), middle], 1))
        small = self.fine(torch.cat([nn.functional.interpolate(mean, scale_factor=2.0), fine], 1))
        return [large, mean, small]


class Head(nn.Module):
    """Predicts three boxes for each cell of three maps; ``decode`` makes detections of the predictions."""

    def __init__(self, width: int = 16, most: int = 12, overlap: float = 0.45):
        super().__init__()
        self.bridges = nn.ModuleList(ConvUnit(width, 2 * width) for _ in ANCHORS)
        self.predictions = nn.ModuleList(nn.Conv2d(2 * width, 3 * (5 + CLASSES), 1) for _ in ANCHORS)
        self.most, self.overlap = most, overlap

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        return [
            predict(bridge(each)) for predict, bridge, each in zip(self.predictions, self.bridges, maps, strict=True)
        ]

    @mark("yolo_head", inputs=["pred_maps"], outputs=["dets", "labels"])
    def decode(self, pred_maps: list[Tensor]) -> tuple[Tensor, Tensor]:
        boxes, scores = [], []
        for (stride, anchors), pred in zip(ANCHORS.items(), pred_maps, strict=True):
            rows, columns = pred.shape[2:]
            pred = pred.reshape(1, 3, 5 + CLASSES, rows, columns).permute(0, 1, 3, 4, 2)
            grid = torch.stack(torch.meshgrid(torch.arange(columns), torch.arange(rows), indexing="xy"), -1)
            centers = (pred[..., :2].sigmoid() + grid) * stride
            sizes = pred[..., 2:4].clamp(max=4).exp() * torch.tensor(anchors, dtype=pred.dtype).reshape(1, 3, 1, 1, 2)
            boxes.append(torch.cat([centers - sizes / 2, centers + sizes / 2], -1).reshape(-1, 4))
            scores.append((pred[..., 4:5].sigmoid() * pred[..., 5:].sigmoid()).reshape(-1, CLASSES))
        return self.suppress(torch.cat(boxes), torch.cat(scores))

    def suppress(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Greedy non-maximum suppression among the best boxes; what is suppressed gets the score 0."""
        best, labels = scores.max(1)
        best, order = best.topk(self.most)
        boxes, labels = boxes[order], labels[order]
        low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
        high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
        common = (high - low).clamp(min=0).prod(-1)
        area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
        overlap = common / (area[:, None] + area[None] - common)
        clashes = ((overlap > self.overlap) & (labels[:, None] == labels[None])).to(boxes.dtype)
        kept = torch.ones_like(best)
        later = torch.arange(self.most)
        for number in range(self.most):
            kept = kept * (1 - clashes[number] * kept[number] * (later > number))
        return torch.cat([boxes, (best * kept)[:, None]], 1), labels


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = Darknet()
        self.neck = Neck(self.backbone.widths)
        self.head = Head()

    @mark("detector_forward", inputs=["input"], outputs=["dets", "labels"])
    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        return self.head.decode(self.head(self.neck(self.backbone(image))))


def make_detector() -> Detector:
    """Returns a detector with random weights and statistics, ready for inference."""
    torch.manual_seed(0)
    detector = Detector()
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 1.5)
    return detector.eval()


def make() -> tuple[Detector, Tensor]:
    """Returns the detector and an image, as ``onnxbench export detector.py:make`` takes them."""
    torch.manual_seed(1)
    return make_detector(), torch.rand(1, 3, SIZE, SIZE)


def export(detector: Detector, image: Tensor, path: Path, *, dynamo: bool = True) -> None:
    """Writes a marked detector, by either exporter."""
    import onnx

    if dynamo:
        program = torch.onnx.export(
            detector, (image,), dynamo=True, verbose=False, input_names=["input"],
            custom_translation_table=translation_table(),
        )  # fmt: skip
        proto = program.model_proto
    else:
        register()
        torch.onnx.export(detector, (image,), str(path), dynamo=False, input_names=["input"])
        unregister()
        proto = onnx.load(str(path))
    onnx.save(finish(proto), str(path))


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    export(*make(), folder / "marked.onnx")
    done = onnxbench.divide(
        folder / "marked.onnx", Path(__file__).with_name("pieces.yaml"), folder / "pieces", prove=True,
        calibration=FeedOptions(iterations=4, ranges=["[0,1]"]),
    )  # fmt: skip
    for piece in done.pieces:
        outputs = ", ".join(f"{end.name} {end.type}" for end in piece.outputs)
        print(f"{piece.file.name}: {piece.nodes} nodes -> {outputs}")
    assert done.proof is not None
    print("proven" if done.proof.holds else "NOT equal to the whole")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "detector"))
