"""Pretraining of the pocket detector: boxes and shape classes, and nothing else, from true boxes.

Every scale learns every thing, in the cell that holds its centre. All four boxes of that cell are drawn to it
(1 - GIoU, Rezatofighi et al. 2019); their objectness is drawn to the IoU they reach, that of every other cell to 0.
Where two things share a cell, its two larger anchors take the larger thing.

The offsets of the heads' deformable convolutions stay 0, where such a convolution is a plain one: that halves the time
of a step, and the shipped network still runs the deformable one.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import box_convert, generalized_box_iou_loss

from ..encoders.yolov3 import ANCHORS, FeatureAdaption, Head, YOLOv3, normalised
from .pool import Pool


@dataclass(frozen=True, kw_only=True)
class Targets:
    """Things of a batch: canvas boxes [M, 4] (x0 y0 x1 y1), shape [M], and the image each is in [M]."""

    boxes: Tensor
    shapes: Tensor
    image: Tensor


class _Rigid(FeatureAdaption):
    """A deformable convolution whose offsets are 0, computed as the plain one it then is."""

    def forward(self, x: Tensor, log_sizes: Tensor) -> Tensor:
        del log_sizes
        return F.conv2d(x, self.dconv.weight, self.dconv.bias, padding=1)


@contextmanager
def rigid(net: YOLOv3) -> Iterator[None]:
    """Start `net` with its offsets and guides at 0 and keep the offsets there while it is trained."""
    for head in net.heads.values():
        for parameter in (*head.guide_wh.parameters(), *head.Feature_adaption.conv_offset.parameters()):
            nn.init.zeros_(parameter)
        head.Feature_adaption.__class__ = _Rigid
    yield
    for head in net.heads.values():
        head.Feature_adaption.__class__ = FeatureAdaption


def detect_batch(pool: Pool, picks: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, Targets]:
    """Normalised canvases [B, 3, S, S], half of them mirrored, and what is on them."""
    side = pool.canvases.shape[1]
    canvases = pool.canvases[picks].copy()
    boxes, shapes, image = [], [], []
    for place, pick in enumerate(picks):
        corners = pool.boxes[pick]
        if rng.random() < 0.5:
            canvases[place] = canvases[place][:, ::-1]
            corners = np.stack([side - corners[:, 2], corners[:, 1], side - corners[:, 0], corners[:, 3]], axis=1)
        boxes.append(corners)
        shapes.append(pool.shapes[pick])
        image.append(np.full(len(corners), place))
    targets = Targets(
        boxes=torch.from_numpy(np.concatenate(boxes)),
        shapes=torch.from_numpy(np.concatenate(shapes)),
        image=torch.from_numpy(np.concatenate(image)),
    )
    return normalised(canvases, "cpu"), targets


def detect_loss(net: YOLOv3, x: Tensor, targets: Targets, strides: Sequence[int]) -> Tensor:
    """Sum over the scales of these strides of box, objectness and class losses, each a mean a thing."""
    maps = net.features(x)
    return torch.stack([_scale_loss(net.heads[stride], maps[stride], targets) for stride in strides]).sum()


def _scale_loss(head: Head, feature_map: Tensor, targets: Targets) -> Tensor:
    columns = feature_map.shape[-1]
    log_sizes, raw = head.raw(feature_map)
    decoded = head.decode(log_sizes, raw, columns)
    image, cell, anchor, thing = _assign(head, columns, targets)
    boxes = box_convert(decoded[image, cell, anchor, :4], "cxcywh", "xyxy")
    truth = targets.boxes[thing]
    giou = generalized_box_iou_loss(boxes, truth)
    wanted = torch.zeros(raw.shape[:3])
    wanted[image, cell, anchor] = _iou(boxes.detach(), truth)
    objectness = F.binary_cross_entropy_with_logits(raw[..., 4], wanted, reduction="sum")
    classes = F.one_hot(targets.shapes[thing], raw.shape[-1] - 5).float()
    classification = F.binary_cross_entropy_with_logits(raw[image, cell, anchor, 5:], classes, reduction="sum")
    return (2 * giou.sum() + objectness + 0.5 * classification) / len(thing)


def _assign(head: Head, columns: int, targets: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Image, cell, anchor and thing of every box that answers for a thing; all [P]."""
    centre = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2
    place = (centre / head.stride_px).long().clamp(0, columns - 1)
    cell = place[:, 1] * columns + place[:, 0]
    area = (targets.boxes[:, 2:] - targets.boxes[:, :2]).prod(dim=1)
    by_area = head.anchor_px.prod(dim=1).argsort(descending=True).tolist()
    owner: dict[tuple[int, int, int], int] = {}
    for thing in area.argsort(descending=True).tolist():
        here = (int(targets.image[thing]), int(cell[thing]))
        taken = (*here, by_area[0]) in owner
        for anchor in by_area[ANCHORS // 2 :] if taken else by_area:
            owner[(*here, anchor)] = thing
    places = torch.tensor([[*key, thing] for key, thing in owner.items()])
    return places[:, 0], places[:, 1], places[:, 2], places[:, 3]


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of paired boxes [P, 4]: [P]."""
    overlap = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    areas = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1)
    return overlap / (areas - overlap)
