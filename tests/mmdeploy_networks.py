"""Small networks with random weights that use MMDeploy's operators where its exports have them."""

from __future__ import annotations

import torch
from cases import ROOT
from torch import nn

from onnxbench.bundles import read_bundles
from onnxbench.pytorch.operators import torch_operator

PLUGINS = ROOT / "plugins"


def operators(*names: str) -> dict[str, object]:
    """Returns the PyTorch operators of bundles by the names that ONNX models have them under."""
    return {bundle.op: torch_operator(bundle) for name in names for bundle in read_bundles(PLUGINS / name)}


def centers(size: int, stride: int) -> torch.Tensor:
    """Returns the middles (size * size, 2) of places of a feature map, in pixels of the image."""
    at = (torch.arange(size) + 0.5) * stride
    y, x = torch.meshgrid(at, at, indexing="ij")
    return torch.stack([x, y], dim=-1).reshape(-1, 2)


def numbered(boxes: torch.Tensor) -> torch.Tensor:
    """Returns boxes (N, K, D) as regions (N K, 1 + D), each with the number of its image first."""
    images, count, _ = boxes.shape
    numbers = torch.arange(images, dtype=boxes.dtype)[:, None, None].expand(images, count, 1)
    return torch.cat([numbers, boxes], dim=-1).reshape(images * count, -1)


class TwoStageDetector(nn.Module):
    """A pyramid of two levels, proposals by a non-maximum suppression, their features from the level of their size."""

    bundles = ("batched_nms", "multi_level_roi_align")
    image = (1, 3, 64, 64)
    strides = (4, 8)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.lateral = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in self.strides)
        self.proposing = nn.Conv2d(8, 5, 3, padding=1)
        self.features = nn.Linear(8 * 4 * 4, 16)
        self.classes, self.moves = nn.Linear(16, 3), nn.Linear(16, 4)
        for level, stride in enumerate(self.strides):
            self.register_buffer(f"centers{level}", centers(64 // stride, stride))
        self.call = operators(*self.bundles)

    def forward(self, x):
        low = self.stem(x).relu()
        high = self.lateral[1](self.down(low).relu())
        maps = [self.lateral[0](low) + nn.functional.interpolate(high, scale_factor=2.0), high]
        boxes, scores = [], []
        for level, (each, stride) in enumerate(zip(maps, self.strides, strict=True)):
            said = self.proposing(each).flatten(2).transpose(1, 2)
            middle = getattr(self, f"centers{level}") + said[..., 1:3] * stride
            half = said[..., 3:].exp() * stride * 1.5
            boxes.append(torch.cat([middle - half, middle + half], dim=-1))
            scores.append(said[..., :1].sigmoid())
        suppress = self.call["TRTBatchedNMS"]
        proposals, _, _ = suppress(torch.cat(boxes, 1).unsqueeze(2), torch.cat(scores, 1), num_classes=1, topk=64,
                                   keep_topk=12, iou_threshold=0.7)  # fmt: skip
        found = proposals[..., :4]
        regions = self.call["MMCVMultiLevelRoiAlign"](
            numbered(found), *maps, output_height=4, output_width=4, pool_mode=1, sampling_ratio=2, finest_scale=14,
            featmap_strides=[float(stride) for stride in self.strides], aligned=1,
        )  # fmt: skip
        features = self.features(regions.flatten(1)).relu().reshape(found.shape[0], 12, 16)
        moved = (found + self.moves(features)).unsqueeze(2)
        dets, labels, _ = suppress(moved, self.classes(features).softmax(-1), num_classes=3, topk=12, keep_topk=8,
                                   score_threshold=0.05, iou_threshold=0.5)  # fmt: skip
        return dets, labels


class RotatedDetector(nn.Module):
    """Boxes with angles from a head, their features by rotated regions, and a suppression that knows angles."""

    bundles = ("roi_align_rotated", "nms_rotated")
    image = (1, 3, 48, 48)

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.boxes = nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, 5, 3, padding=1)
        self.features, self.classes = nn.Linear(8 * 3 * 3, 16), nn.Linear(16, 2)
        self.register_buffer("centers", centers(6, 8))
        self.call = operators(*self.bundles)

    def forward(self, x):
        map_ = self.stem(x).relu()
        said = self.boxes(map_).flatten(2).transpose(1, 2)
        boxes = torch.cat([self.centers + said[..., :2] * 8, said[..., 2:4].exp() * 12, said[..., 4:] * 3], dim=-1)
        regions = self.call["MMCVRoIAlignRotated"](map_, numbered(boxes), 3, 3, 1 / 8, 2, 1, 1)
        scores = self.classes(self.features(regions.flatten(1)).relu()).softmax(-1).reshape(x.shape[0], 36, 2)
        return self.call["TRTBatchedRotatedNMS"](boxes.unsqueeze(2), scores, num_classes=2, topk=36, keep_topk=10,
                                                 iou_threshold=0.3)  # fmt: skip


class DeformableBackbone(nn.Module):
    """Deformable convolutions of two kinds, with instance normalization between them."""

    bundles = ("modulated_deform_conv2d", "instance_norm", "dcn_v3")
    image = (2, 3, 24, 32)
    groups, taps = 2, 9

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.moving = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 27, 3, stride=2, padding=1)
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8, 3, 3) / 8), nn.Parameter(torch.randn(8))
        self.scale, self.shift = nn.Parameter(torch.rand(8) + 0.5), nn.Parameter(torch.randn(8))
        self.into, self.out = nn.Linear(8, 8), nn.Linear(8, 8)
        self.offsets, self.masks = nn.Linear(8, self.groups * self.taps * 2), nn.Linear(8, self.groups * self.taps)
        self.last = nn.Linear(8, 5)
        self.call = operators(*self.bundles)

    def forward(self, x):
        x = self.stem(x).relu()
        moved = self.moving(x)
        x = self.call["MMCVModulatedDeformConv2d"](
            x, moved[:, :18] * 3, moved[:, 18:].sigmoid(), self.weight, self.bias, stride=[2, 2], padding=[1, 1],
            dilation=[1, 1], groups=1, deform_groups=1,
        )  # fmt: skip
        x = self.call["MMCVInstanceNormalization"](x, self.scale, self.shift, 1e-5).relu().permute(0, 2, 3, 1)
        masks = self.masks(x).unflatten(-1, (self.groups, self.taps)).softmax(-1).flatten(-2)
        x = x + self.out(self.call["TRTDCNv3"](
            self.into(x), self.offsets(x), masks, 3, 3, 1, 1, 1, 1, 1, 1, self.groups, 8 // self.groups, 1.0, 256
        ))  # fmt: skip
        return self.last(x.mean(dim=(1, 2)))


class SingleStageHead(nn.Module):
    """Anchors on two levels, of which the best candidates are taken before they are decoded and suppressed."""

    bundles = ("grid_priors", "gather_topk", "batched_nms")
    image = (2, 3, 32, 40)
    strides = (4, 8)
    anchors, classes = 2, 3

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 8, 4, stride=4), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.scoring, self.boxes = nn.Conv2d(8, self.anchors * self.classes, 1), nn.Conv2d(8, self.anchors * 4, 1)
        for level, stride in enumerate(self.strides):
            half = torch.tensor([[2.0, 2.0], [1.5, 3.0]]) * stride
            self.register_buffer(f"base{level}", torch.cat([-half, half], dim=-1))
        self.call = operators(*self.bundles)

    def forward(self, x):
        low = self.stem(x).relu()
        maps = [low, self.down(low).relu()]
        boxes, scores = [], []
        for level, (each, stride) in enumerate(zip(maps, self.strides, strict=True)):
            height, width = each.shape[2:]
            priors = self.call["GridPriorsTRT"](
                getattr(self, f"base{level}"), torch.zeros(height), torch.zeros(width), stride_h=stride, stride_w=stride
            )
            shares = self.scoring(each).permute(0, 2, 3, 1).reshape(x.shape[0], -1, self.classes).sigmoid()
            moves = self.boxes(each).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 4)
            best = shares.max(dim=-1).values.topk(24).indices
            rows = priors.unsqueeze(0).expand(x.shape[0], -1, -1)
            boxes.append(self.call["GatherTopk"](rows, best) + self.call["GatherTopk"](moves, best) * stride)
            scores.append(self.call["GatherTopk"](shares, best))
        dets, labels, _ = self.call["TRTBatchedNMS"](
            torch.cat(boxes, 1).unsqueeze(2), torch.cat(scores, 1), num_classes=self.classes, topk=32, keep_topk=10,
            iou_threshold=0.5,
        )  # fmt: skip
        return dets, labels


class Transformer(nn.Module):
    """An encoder's layer and a decoder's, with attention to itself, masked, and to the encoder."""

    bundles = ("scaled_dot_product_attention",)
    image = (2, 3, 16, 24)
    size, heads, queries = 16, 4, 6

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, self.size, 4, stride=4)
        self.wanted = nn.Parameter(torch.randn(self.queries, self.size))
        self.projections = nn.ModuleList(nn.Linear(self.size, self.size) for _ in range(12))
        self.last = nn.Linear(self.size, 5)
        self.register_buffer("mask", torch.full((self.queries, self.queries), -1e4).triu(1))
        self.call = operators(*self.bundles)["ScaledDotProductAttentionTRT"]

    def attend(self, number, to, of, *mask):
        def split(value):
            made = value.unflatten(-1, (self.heads, self.size // self.heads)).transpose(1, 2)
            return made.flatten(0, 1)

        into_q, into_k, into_v, out = self.projections[number * 4 : number * 4 + 4]
        mixed, weights = self.call(split(into_q(to)), split(into_k(of)), split(into_v(of)), *mask)
        joined = mixed.unflatten(0, (to.shape[0], self.heads)).transpose(1, 2).flatten(2)
        return to + out(joined), weights

    def forward(self, x):
        memory = self.patches(x).flatten(2).transpose(1, 2)
        memory, _ = self.attend(0, memory, memory)
        found = self.wanted.unsqueeze(0).expand(x.shape[0], -1, -1)
        found, _ = self.attend(1, found, found, self.mask)
        found, weights = self.attend(2, found, memory)
        return self.last(found), weights


NETWORKS = (TwoStageDetector, RotatedDetector, DeformableBackbone, SingleStageHead, Transformer)
