"""Comprehension: candidate boxes of the detector matched with the sentence.

Axes: B batch, K candidates, N cells of the coarsest grid, D width of the common space. All boxes are in the canvas
frame, x0 y0 x1 y1 unless said otherwise.
"""

import math

import torch
from torch import Tensor, nn


def most_confident(boxes: Tensor) -> Tensor:
    """The box of a cell with the largest objectness, the first on ties: [..., 5]. boxes: float32 [..., 4, 5]."""
    best = boxes[..., 4].argmax(dim=-1)[..., None, None].expand(*boxes.shape[:-2], 1, 5)
    return boxes.gather(-2, best).squeeze(-2)


def candidate_boxes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """The most confident of a cell's four boxes: corners [..., 4], objectness [...].

    boxes: float32 [..., 4, 5], cx cy w h objectness. Corners are computed in float32 as the authors do (x1 = x0 + w,
    not cx + w/2), because masks and box bits are sensitive to the last bit.
    """
    cx, cy, width, height, objectness = most_confident(boxes).unbind(dim=-1)
    x0, y0 = cx - width / 2, cy - height / 2
    return torch.stack([x0, y0, x0 + width, y0 + height], dim=-1), objectness


def pick(values: Tensor, chosen: Tensor, own: Tensor | None = None) -> Tensor:
    """What belongs to the chosen candidate of each expression: [B, ...].

    values: [I, K, ...], of I images; chosen: int64 [B]; own: int64 [B], the image of each, None: one each.
    """
    return values[torch.arange(len(chosen), device=chosen.device) if own is None else own, chosen]


def clip_to_photo(boxes: Tensor, letterbox: Tensor) -> Tensor:
    """Boxes [B, 4] clipped to the part of the canvas that the photo covers; one in the padding collapses.

    letterbox: int64 [B, 6], h w nh nw dx dy. Training clips and evaluation does not (quirk 7).
    """
    _, _, new_height, new_width, left, top = letterbox.to(boxes.dtype).unbind(dim=-1)
    low = torch.stack([left, top, left, top], dim=-1)
    high = torch.stack([left + new_width, top + new_height] * 2, dim=-1)
    return boxes.clamp(low, high)


def position_embedding(boxes: Tensor, side_px: int, width: int) -> Tensor:
    """Sines and cosines of where a candidate is: [B, K, width], not learned.

    boxes: float32 [B, K, 4, 5]. The position is the mean centre of a cell's four boxes, not the best one's, over the
    side of the canvas; the first half encodes y, the second x (quirk 5).
    """
    x, y = boxes[..., :2].mean(dim=-2).div(side_px).unbind(dim=-1)  # [B, K] each
    half = width // 2
    pairs = torch.arange(half // 2, dtype=boxes.dtype, device=boxes.device)
    omega = 10000 ** (-2 * pairs / half)  # [half/2], shared by a sine and its cosine
    angles = 2 * math.pi * torch.stack([y, x], dim=-1)[..., None] * omega  # [B, K, 2, half/2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-3)


class Matcher(nn.Module):
    """Candidates and sentences in one space, where a dot product says how well they fit (section 10)."""

    def __init__(self, visual_dim: int, text_dim: int) -> None:
        super().__init__()
        self.visual = nn.Linear(visual_dim, text_dim)
        self.textual = nn.Linear(text_dim, text_dim)

    def candidates(self, coarse: Tensor, cells: Tensor) -> Tensor:
        """What stands at the candidate cells: [B, K, D].

        coarse: [B, C, H, W], the map of stride 32. cells: int64 [B, K].
        """
        grid = coarse.flatten(2).transpose(1, 2)  # [B, N, C]
        return self.visual(torch.take_along_dim(grid, cells[..., None], dim=1))

    def sentences(self, text: Tensor) -> Tensor:
        """text: [B, D]; returns [B, D]."""
        return self.textual(text)
