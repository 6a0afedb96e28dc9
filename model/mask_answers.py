"""What a system answers that predicts masks and no boxes."""

from dataclasses import dataclass

import torch
from torch import Tensor

DECIDED = 1e-6
"""The least logit whose sigmoid float32 still tells from one half, with room."""


@dataclass(frozen=True, eq=False)
class MaskPredictions:
    """Answers for B expressions, in the canvas frame: masks, and nothing where other systems have a box."""

    mask_logits: Tensor
    """float [B, S, S]; a pixel belongs to the mask where sigmoid > 0.5, and the highest one is where it points."""
    similarity: None = None
    chosen: None = None
    boxes: None = None
    scores: None = None


def decided(scores: Tensor, foreground: Tensor) -> Tensor:
    """Logits in the order of `scores` of which exactly those of the foreground have a sigmoid above one half.

    scores: float, positive in the foreground, else not. foreground: bool, of the same shape.
    """
    return torch.where(foreground, scores.clamp(min=DECIDED), scores.clamp(max=0))


def photo_pixels(letterbox: Tensor, side_px: int) -> Tensor:
    """Which pixels of the canvas the photo covers: bool [B, S, S]. letterbox: int64 [B, 6], h w nh nw dx dy."""
    _, _, height, width, left, top = letterbox[..., None].unbind(dim=1)  # [B, 1] each
    pixels = torch.arange(side_px, device=letterbox.device)
    rows, columns = (pixels >= top) & (pixels < top + height), (pixels >= left) & (pixels < left + width)
    return rows[:, :, None] & columns[:, None, :]
