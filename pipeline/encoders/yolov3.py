"""YOLOv3 with guided anchors: the detector under RefCLIP, APL and WeakMCN, and the candidates it proposes.

DarkNet-53, spatial pyramid pooling and three branches (Redmon & Farhadi 2018; layer list and head: the SimREC release).
Module numbers are those of the published state dict, `module_list.<i>`, so that its files load strictly. `width` is the
number of channels of the first convolution (32 as published); every other width follows from it.

Per image, with S the canvas side, N = (S/32)^2 cells, A = 4 anchors a cell, K cells kept:

    s8, s16, s32   [8w, S/8, S/8], [16w, S/16, S/16], [32w, S/32, S/32]
    grid           [N, A, 5 + classes]    cx cy w h (canvas pixels), objectness, class scores; coarsest map only
"""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import DeformConv2d

from ...shards.geometry import best_boxes
from ..config import PipelineConfig
from ..images import Photo
from .weights import frozen

ANCHORS = 4
ANCHOR_SIZES_PX = {
    32: ((116, 90), (156, 198), (121, 240)),
    16: ((30, 61), (62, 45), (42, 119)),
    8: ((10, 13), (16, 30), (33, 23)),
}
"""Width and height at a 416 canvas; the fourth box of a cell is anchor-free, four strides wide. (121, 240) is what the
release has, not the usual (373, 326)."""
PUBLISHED_SIDE_PX = 416
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Conv(nn.Module):
    """Convolution without bias, BatchNorm, LeakyReLU 0.1; "same" padding."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        self.batch_norm = nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.batch_norm(self.conv(x)), 0.1)


class Pairs(nn.Module):
    """`count` pairs (1x1 to half the width, 3x3 back), each added to its input where `shortcut`."""

    def __init__(self, width: int, count: int = 1, *, shortcut: bool = True) -> None:
        super().__init__()
        self.shortcut = shortcut
        self.module_list = nn.ModuleList(
            nn.ModuleList([Conv(width, width // 2, 1), Conv(width // 2, width, 3)]) for _ in range(count)
        )

    def forward(self, x: Tensor) -> Tensor:
        for pair in self.module_list:
            first, second = pair  # type: ignore[misc]
            y = second(first(x))
            x = x + y if self.shortcut else y
        return x


class Pyramid(nn.Module):
    """Spatial pyramid pooling: the input beside its 5, 9 and 13 pixel maxima."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, *(F.max_pool2d(x, size, 1, size // 2) for size in (5, 9, 13))], dim=1)


class FeatureAdaption(nn.Module):
    """Deformable 3x3 convolution whose offsets follow the guided anchor sizes (Wang et al. 2019).

    torchvision's operator takes a batch of any size (quirk 30).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv_offset = nn.Conv2d(2 * ANCHORS, 18 * ANCHORS, 1, groups=ANCHORS)
        self.dconv = DeformConv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor, log_sizes: Tensor) -> Tensor:
        return self.dconv(x, self.conv_offset(log_sizes))


class Head(nn.Module):
    """Guided-anchor head of one scale: four boxes a cell."""

    def __init__(self, width: int, stride_px: int, classes: int, side_px: int) -> None:
        super().__init__()
        self.stride_px = stride_px
        self.guide_wh = nn.Conv2d(width, 2 * ANCHORS, 1)
        self.Feature_adaption = FeatureAdaption(width)
        self.conv = nn.Conv2d(width, ANCHORS * (5 + classes), 1)
        scale = side_px / PUBLISHED_SIDE_PX
        sizes = [(w * scale, h * scale) for w, h in ANCHOR_SIZES_PX[stride_px]] + [(4 * stride_px, 4 * stride_px)]
        self.anchor_px: Tensor
        self.register_buffer("anchor_px", torch.tensor(sizes, dtype=torch.float32), persistent=False)

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Guide log-sizes [B, N, A, 2] and raw predictions [B, N, A, 5 + classes] of a map [B, C, H, W]."""
        log_sizes = self.guide_wh(x)
        raw = self.conv(self.Feature_adaption(x, log_sizes))
        return _by_cell(log_sizes, 2), _by_cell(raw, raw.shape[1] // ANCHORS)

    def decode(self, log_sizes: Tensor, raw: Tensor, columns: int) -> Tensor:
        """Boxes in canvas pixels and scores in 0..1: [B, N, A, 5 + classes]; `columns` cells a row."""
        cell = torch.arange(raw.shape[1], device=raw.device)
        corner = torch.stack([cell % columns, cell // columns], dim=-1)[:, None]  # [N, 1, 2], x then y
        centre = (corner + raw[..., :2].sigmoid()) * self.stride_px
        size = raw[..., 2:4].exp() * log_sizes.exp() * self.anchor_px
        return torch.cat([centre, size, raw[..., 4:].sigmoid()], dim=-1)


def _by_cell(x: Tensor, attributes: int) -> Tensor:
    """[B, A * attributes, H, W] to [B, H * W, A, attributes]; channels run anchor first."""
    batch, _, height, width = x.shape
    return x.view(batch, ANCHORS, attributes, height * width).permute(0, 3, 1, 2)


class YOLOv3(nn.Module):
    """The detector; keys and order as published (75,554,428 parameters at width 32 with 80 classes)."""

    def __init__(self, width: int = 32, classes: int = 80, side_px: int = PUBLISHED_SIDE_PX) -> None:
        super().__init__()
        w = width
        upsample = nn.Upsample(scale_factor=2, mode="nearest")
        layers: list[nn.Module] = [
            Conv(3, w, 3),
            Conv(w, 2 * w, 3, 2),
            Pairs(2 * w, 1),
            Conv(2 * w, 4 * w, 3, 2),
            Pairs(4 * w, 2),
            Conv(4 * w, 8 * w, 3, 2),
            Pairs(8 * w, 8),  # 6, route A
            Conv(8 * w, 16 * w, 3, 2),
            Pairs(16 * w, 8),  # 8, route B
            Conv(16 * w, 32 * w, 3, 2),
            Pairs(32 * w, 4),
            Pairs(32 * w, 1, shortcut=False),
            Conv(32 * w, 16 * w, 1),
            Pyramid(),
            Conv(64 * w, 16 * w, 1),
            Conv(16 * w, 32 * w, 3),
            nn.Identity(),
            Conv(32 * w, 16 * w, 1),  # 17, route C
            Conv(16 * w, 32 * w, 3),  # 18, s32
            Head(32 * w, 32, classes, side_px),
            Conv(16 * w, 8 * w, 1),
            upsample,
            Conv(24 * w, 8 * w, 1),
            Conv(8 * w, 16 * w, 3),
            nn.Identity(),
            Pairs(16 * w, 1, shortcut=False),
            Conv(16 * w, 8 * w, 1),  # 26, route D
            Conv(8 * w, 16 * w, 3),  # 27, s16
            Head(16 * w, 16, classes, side_px),
            Conv(8 * w, 4 * w, 1),
            upsample,
            Conv(12 * w, 4 * w, 1),
            Conv(4 * w, 8 * w, 3),
            nn.Identity(),
            Pairs(8 * w, 1, shortcut=False),
            Conv(8 * w, 4 * w, 1),
            Conv(4 * w, 8 * w, 3),  # 36, s8
            Head(8 * w, 8, classes, side_px),
        ]
        self.module_list = nn.ModuleList(layers)

    @property
    def heads(self) -> dict[int, Head]:
        """The head of each stride."""
        return {head.stride_px: head for head in self.module_list if isinstance(head, Head)}

    def features(self, x: Tensor) -> dict[int, Tensor]:
        """The three maps of normalised images [B, 3, S, S], by stride in pixels."""
        run = self._run
        route_a = run(x, 0, 6)
        route_b = run(route_a, 7, 8)
        route_c = run(route_b, 9, 17)
        s32 = run(route_c, 18, 18)
        route_d = run(torch.cat([run(route_c, 20, 21), route_b], dim=1), 22, 26)
        s16 = run(route_d, 27, 27)
        s8 = run(torch.cat([run(route_d, 29, 30), route_a], dim=1), 31, 36)
        return {8: s8, 16: s16, 32: s32}

    def grid(self, s32: Tensor) -> Tensor:
        """Decoded boxes of the coarsest map: [B, N, A, 5 + classes], cells in raster order."""
        head = self.heads[32]
        return head.decode(*head.raw(s32), columns=s32.shape[-1])

    def _run(self, x: Tensor, first: int, last: int) -> Tensor:
        for layer in self.module_list[first : last + 1]:
            x = layer(x)
        return x


def candidate_cells(objectness: Tensor, keep: int) -> Tensor:
    """The `keep` cells of largest mean objectness, in raster order (quirk 6): [B, keep] (method section 7).

    objectness: [B, N, A], in 0..1.
    """
    return objectness.mean(dim=2).topk(keep, dim=1).indices.sort(dim=1).values


def mean_colours(rgb: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Mean RGB, 0..255, inside each candidate's mean box: [K, 3] float32 (for APL's colour prompt).

    rgb: [S, S, 3] uint8 canvas; boxes: [K, A, 5]. A box outside the canvas gives the colour of its nearest pixel.
    """
    side = rgb.shape[0]
    cx, cy, w, h = boxes[..., :4].mean(axis=1).T
    colours = np.empty((len(boxes), 3), np.float32)
    for k in range(len(boxes)):
        x0, x1 = _span(cx[k], w[k], side)
        y0, y1 = _span(cy[k], h[k], side)
        colours[k] = rgb[y0:y1, x0:x1].mean(axis=(0, 1))
    return colours


def _span(centre: float, size: float, side: int) -> tuple[int, int]:
    """First and last-plus-one pixel of an interval, at least one pixel, inside 0..side."""
    first = min(max(math.floor(centre - size / 2), 0), side - 1)
    return first, max(min(math.ceil(centre + size / 2), side), first + 1)


def normalised(canvases: np.ndarray, device: str) -> Tensor:
    """Canvases [B, S, S, 3] uint8 as ImageNet-normalised float32 [B, 3, S, S]."""
    x = torch.from_numpy(canvases).to(device).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(IMAGENET_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=device).view(1, 3, 1, 1)
    return (x - mean) / std


class DetectEncoder:
    """Stage `detect`: three maps, K candidate cells with their four boxes, class scores and mean colours."""

    def __init__(self, config: PipelineConfig, device: str) -> None:
        self.batch = config.detect.batch
        self.device = device
        self._keep = config.detect.keep
        net = YOLOv3(config.detect.width, config.detect.classes, config.side_px)
        self.net = frozen(net, config.detect.checkpoint, device, prefix="visual_encoder.")
        if config.detect.statistics is not None:
            from .reestimate import load_statistics

            load_statistics(self.net, Path(config.detect.statistics_file))

    @torch.inference_mode()
    def encode(self, photos: list[Photo], inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Fields s8, s16, s32, cells, boxes, classes, colours of each photo. `inputs` is not read."""
        del inputs
        net = self.net
        canvases = np.stack([photo.letterbox.image(photo.rgb) for photo in photos])
        maps = net.features(normalised(canvases, self.device))
        grid = net.grid(maps[32])
        cells = candidate_cells(grid[..., 4], self._keep)
        kept = grid.gather(1, cells[..., None, None].expand(-1, -1, *grid.shape[2:]))  # [B, K, A, 5 + classes]
        boxes = kept[..., :5].cpu().numpy()
        return [
            {
                "s8": maps[8][i].cpu().numpy(),
                "s16": maps[16][i].cpu().numpy(),
                "s32": maps[32][i].cpu().numpy(),
                "cells": cells[i].to(torch.int32).cpu().numpy(),
                "boxes": boxes[i],
                "classes": kept[i, ..., 5:].mean(dim=1).cpu().numpy(),
                "colours": mean_colours(canvases[i], boxes[i]),
            }
            for i in range(len(photos))
        ]


def prompt_boxes(photo: Photo, boxes: np.ndarray) -> np.ndarray:
    """Each candidate's box as the mask decoder is prompted with it: [K, 4] float32, x0 y0 x1 y1 in canvas pixels.

    The most confident of a cell's four boxes, clipped to the photograph's area of the canvas (method sections 7, 11).
    """
    corners, _ = best_boxes(boxes)
    return photo.letterbox.clip(corners).astype(np.float32)
