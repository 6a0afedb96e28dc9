"""APL's box head: a detector of one object, the one that the sentence means, taught by the matching branch's own box.

The candidates' vectors are written back into the coarsest map; three scales are modulated by the sentence, fused to the
coarsest and passed through the attention block, all as in WeakMCN's mask head; then each of the N cells gives a box and
an objectness, and the most confident one answers. Head and assignment are YOLOX's (Ge et al. 2021) as SimREC has them:
one box a cell, cx cy = (t + cell) * stride, w h = exp(t) * stride, SimOTA, IoU loss.

The release writes the vectors, which are in raster order, into the cells in order of their score, so each lands at
another candidate's place; here each is written where it was read (fault 6 of the method page).

Axes: B batch, K candidates, N cells of the coarsest grid in raster order, R width of the head, D of the sentence.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .fusion import MultiScaleFusion
from .ranks import ALONE, Ranks
from .wres import CollectDiffuse, Modulation

STRIDE = 32
CENTRE_RADIUS = 2.5
"""Strides around the label's centre within which a cell may be taught it, though the box does not cover it."""
MOST_CELLS = 10
"""Best overlaps that are summed to say how many cells are taught."""
IOU_COST, FAR_COST = 3.0, 1e5
IOU_WEIGHT = 5.0


class SiluBlock(nn.Module):
    """Convolution without bias that keeps the size, BatchNorm, SiLU."""

    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(channels_out)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, channels_in, H, W]; returns [B, channels_out, H, W]."""
        return F.silu(self.norm(self.conv(x)), inplace=True)


class BoxHead(nn.Module):
    """A box and an objectness for every cell, from the three fused maps, the candidates and the sentence."""

    def __init__(self, *, visual_dim: int, text_dim: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        half = width // 2
        self.write = nn.Linear(text_dim, visual_dim)
        self.modulate = nn.ModuleList(Modulation(visual_dim, text_dim, width) for _ in range(3))
        self.fusion = MultiScaleFusion((width, width, width), width, outputs=("s32",))
        self.attention = CollectDiffuse(text_dim, width, heads, dropout)
        self.stem = SiluBlock(width, half, 1)
        self.convs = nn.Sequential(SiluBlock(half, half, 3), SiluBlock(half, half, 3))
        self.regress = nn.Conv2d(half, 4, 1)
        self.objectness = nn.Conv2d(half, 1, 1)

    def forward(
        self,
        s8: Tensor,
        s16: Tensor,
        s32: Tensor,
        candidates: Tensor,
        cells: Tensor,
        text: Tensor,
        *,
        owner: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Boxes [B, N, 4], cx cy w h in canvas pixels, and objectness logits [B, N].

        s8, s16, s32: fused maps [I, C, H, W]. candidates: [I, K, D]; cells: int64 [I, K]. text: [B, D], which learns
        nothing from the boxes (it is detached). owner: int64 [B], the image of each sentence; None: one each.
        """
        text = text.detach()
        s32 = write_back(s32, self.write(candidates), cells)
        modulated = [layer(x, text, owner=owner) for layer, x in zip(self.modulate, (s8, s16, s32), strict=True)]
        (coarse,) = self.fusion(*modulated, outputs=("s32",))
        x = self.convs(self.stem(self.attention(coarse, text)))  # [B, R/2, S/32, S/32]
        return decode(self.regress(x)), self.objectness(x).flatten(1)


def write_back(grid: Tensor, values: Tensor, cells: Tensor) -> Tensor:
    """A copy of `grid` [B, C, H, W] with `values` [B, K, C] in the cells int64 [B, K]."""
    place = cells[:, None, :].expand(-1, grid.shape[1], -1)  # [B, C, K]
    return grid.flatten(2).scatter(2, place, values.transpose(1, 2)).unflatten(2, grid.shape[2:])


def decode(raw: Tensor) -> Tensor:
    """Boxes [B, N, 4], cx cy w h in canvas pixels. raw: [B, 4, H, W]."""
    corners = cell_centres(raw.shape[2], raw.shape[3], raw) - STRIDE / 2  # [N, 2]
    x = raw.flatten(2).transpose(1, 2)  # [B, N, 4]
    return torch.cat([x[..., :2] * STRIDE + corners, x[..., 2:].exp() * STRIDE], dim=-1)


def cell_centres(height: int, width: int, like: Tensor) -> Tensor:
    """x y of the cells' centres in canvas pixels, raster order: [N, 2], type and device as `like`."""
    rows, columns = (torch.arange(size, dtype=like.dtype, device=like.device) + 0.5 for size in (height, width))
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij")[::-1], dim=-1).flatten(0, 1) * STRIDE


def overlap(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boxes cx cy w h [..., 4], broadcast: [...]."""
    low = torch.maximum(a[..., :2] - a[..., 2:] / 2, b[..., :2] - b[..., 2:] / 2)
    high = torch.minimum(a[..., :2] + a[..., 2:] / 2, b[..., :2] + b[..., 2:] / 2)
    common = (high - low).clamp(min=0).prod(dim=-1)
    return common / (a[..., 2:].prod(dim=-1) + b[..., 2:].prod(dim=-1) - common + 1e-16)


@torch.no_grad()
def assigned(boxes: Tensor, label: Tensor, centres: Tensor) -> Tensor:
    """SimOTA for one label an image, without class cost: which cells are taught it, bool [B, N].

    boxes: [B, N, 4] predicted, label: [B, 4], cx cy w h; centres: [N, 2]. A cell may be taught if its centre is inside
    the label or within 2.5 strides of the label's; the best of these by cost are, as many as their ten best IoUs sum to
    (truncated, at least one). Cost: -3 log(IoU + 1e-8), and 1e5 for a cell of which only one of the two holds.
    """
    away = (centres - label[:, None, :2]).abs()  # [B, N, 2]
    inside = (away < label[:, None, 2:] / 2).all(dim=-1)
    near = (away < CENTRE_RADIUS * STRIDE).all(dim=-1)
    allowed = inside | near
    iou = overlap(boxes, label[:, None]) * allowed
    count = iou.topk(min(MOST_CELLS, iou.shape[1]), dim=1).values.sum(dim=1).int().clamp(min=1)  # [B]
    cost = -IOU_COST * (iou + 1e-8).log() + FAR_COST * ~(inside & near)
    rank = cost.masked_fill(~allowed, torch.inf).argsort(dim=1, stable=True).argsort(dim=1)
    return allowed & (rank < count[:, None])


def box_loss(boxes: Tensor, logits: Tensor, label: Tensor, centres: Tensor, ranks: Ranks = ALONE) -> Tensor:
    """5 (1 - IoU^2) of the cells that are taught plus the cross-entropy of every cell's objectness, over their count.

    boxes: [B, N, 4], cx cy w h; logits: [B, N]; label: [B, 4]; centres: [N, 2]. A scalar, on several ranks this rank's
    share of it: the count is of the cells that are taught on any.
    """
    taught = assigned(boxes, label, centres)
    misfit = (1 - overlap(boxes, label[:, None]).square()).masked_fill(~taught, 0)
    objectness = F.binary_cross_entropy_with_logits(logits, taught.to(logits.dtype), reduction="sum")
    return (IOU_WEIGHT * misfit.sum() + objectness) / ranks.total(taught.sum()).clamp(min=1)


def corners(boxes: Tensor) -> Tensor:
    """cx cy w h [..., 4] to x0 y0 x1 y1, as the authors compute it: x1 = x0 + w."""
    low = boxes[..., :2] - boxes[..., 2:] / 2
    return torch.cat([low, low + boxes[..., 2:]], dim=-1)
