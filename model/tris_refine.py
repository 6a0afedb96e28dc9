"""From stage 1's maps to pseudo masks: which caption's map, how it spreads, where it is cut.

TRIS trains a network (IRNet) that says where boundaries are and lets maps walk between them at stride 4. Here cells of
DINO's tokens that look alike stand for that, at stride 16: a_ij = max(0, cos(c_i, c_j))^10 for cells less than 5 apart,
c the tokens less the image's mean one; T = a with columns that sum to 1; a map R [P] becomes R T^4.
Axes: B images or objects, J captions of one object, C channels, P = H W cells.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .calibration import soft_iou

REFINEMENTS = ("walk", "none", "sam")
SHARPNESS = 10
RADIUS = 5
SQUARINGS = 2


def normalised(maps: Tensor) -> Tensor:
    """R: what is positive, over its largest value; zeros where nothing is. maps: [..., H, W]."""
    positive = maps.clamp(min=0)
    return positive / positive.amax(dim=(-2, -1), keepdim=True).clamp(min=1e-12)


def medoid(maps: Tensor) -> int:
    """The caption whose map fits those of the object's other captions best, by soft IoU; of two, the first.

    maps: R of one object, [J, H, W].
    """
    if len(maps) <= 2:
        return 0
    fit = soft_iou(maps[:, None], maps[None])  # [J, J]
    return int((fit.sum(dim=1) - fit.diagonal()).argmax())


def transitions(tokens: Tensor) -> Tensor:
    """T of each image, [B, P, P]; columns sum to 1. tokens: [B, C, H, W]."""
    height, width = tokens.shape[-2:]
    cells = tokens.flatten(2).float()
    cells = F.normalize(cells - cells.mean(dim=2, keepdim=True), dim=1)  # [B, C, P]
    alike = (cells.transpose(1, 2) @ cells).clamp(min=0) ** SHARPNESS
    places = torch.arange(height * width, device=tokens.device)
    rows, columns = places // width, places % width
    apart = (rows[:, None] - rows) ** 2 + (columns[:, None] - columns) ** 2
    alike = alike.masked_fill(apart >= RADIUS**2, 0)
    alike.diagonal(dim1=1, dim2=2).fill_(1)  # as it is, but for a cell that is the mean itself
    return alike / alike.sum(dim=1, keepdim=True)


def walked(maps: Tensor, steps: Tensor, squarings: int = SQUARINGS) -> Tensor:
    """R T^(2^squarings), over its largest value. maps: R, [B, H, W]; steps: T, [B, P, P]."""
    for _ in range(squarings):
        steps = steps @ steps
    spread = (maps.flatten(1)[:, None] @ steps)[:, 0]
    return normalised(spread.unflatten(-1, maps.shape[-2:]))


def cut(maps: Tensor, size: Sequence[int], share: float) -> Tensor:
    """Where maps [B, H, W], enlarged to a finer grid, have at least this share of 1: bool [B, h, w].

    At one half a mask of cells keeps its borders; at a quarter it gains a quarter of a cell all around.
    """
    return F.interpolate(maps[:, None].float(), list(size), mode="bilinear")[:, 0] >= share


def best_candidate(maps: Tensor, masks: Tensor) -> Tensor:
    """The candidate whose mask fits R best, by soft IoU: int64 [B]. maps: [B, H, W]; masks: [B, K, H, W]."""
    return soft_iou(maps[:, None], masks).argmax(dim=1)
