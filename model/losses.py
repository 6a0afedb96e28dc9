"""The loss terms of section 13 of the method page, as pure functions, and the bits they compare.

Axes: B texts or samples, A images of the batch, K candidates, S canvas pixels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def anchor_contrast(similarity: Tensor, own: Tensor) -> Tensor:
    """The text's own image against all images of the batch, by their best candidates: a scalar, the mean over texts.

    similarity: [B, A, K], of text b, image a and candidate k; own: int64 [B], the image that text b belongs to. With M
    the best and N the second best candidate of each pair, and o the own image,
    L = -1/B sum_b log( exp M_bo / (sum_a exp M_ba + sum_{a != o} exp N_ba) ).
    One direction only, no temperature; the own image's second best is no negative (quirk 12).
    """
    best, second = similarity.topk(2, dim=-1).values.unbind(dim=-1)  # [B, A] each
    own = own[:, None]
    is_own = own == torch.arange(best.shape[1], device=best.device)  # [B, A]
    logits = torch.cat([best, second.masked_fill(is_own, -torch.inf)], dim=1)  # [B, 2A]
    return (logits.logsumexp(dim=1) - best.gather(1, own).squeeze(1)).mean()


def box_bits(boxes: Tensor, side_px: int) -> Tensor:
    """The rectangles as bits of the canvas: bool [B, S, S].

    boxes: float32 [B, 4], clipped (not negative). Rows int(y0) to int(y1 + 1), the latter excluded, columns alike, in
    float32 with truncation: a box may reach one pixel into the padding, and is empty when it collapsed on the far
    border (quirk 8).
    """
    first = boxes[:, :2].to(torch.int64)[..., None]  # [B, 2, 1], x then y
    last = (boxes[:, 2:] + 1).to(torch.int64)[..., None]
    pixels = torch.arange(side_px, device=boxes.device)
    columns, rows = ((pixels >= first) & (pixels < last)).unbind(dim=1)  # [B, S] each
    return rows[:, :, None] & columns[:, None, :]


def unpack_bits(packed: Tensor) -> Tensor:
    """uint8 [..., S/8] to bool [..., S]; the first pixel is the highest bit, as numpy.packbits has it."""
    place = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8, device=packed.device)
    return (packed[..., None] & place).ne(0).flatten(-2)


def mask_bce(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each sample, mean over its pixels: [B].

    logits: [B, S, S]; target: bool [B, S, S]. Their *sum* enters the total: the authors multiply the batch mean by B,
    so the balance with the contrast depends on the batch size (quirk 9).
    """
    return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none").mean(dim=(1, 2))


@torch.no_grad()
def agreement(logits: Tensor, box: Tensor, threshold: float) -> Tensor:
    """ISL's weight of each sample, 1 where the predicted mask fits the box, else 0: [B], without gradient.

    logits: [B, S, S]; box: bool [B, S, S]. Fits: IoU(sigmoid(logits) > 0.5, box) > threshold, strictly; an empty union
    does not. The weights are not renormalised (quirk 9).
    """
    mask = logits.sigmoid() > 0.5
    inside = (mask & box).sum(dim=(1, 2))
    either = (mask | box).sum(dim=(1, 2))
    return (inside / either.clamp(min=1) > threshold).to(logits.dtype)


def projection_loss(logits: Tensor, box: Tensor) -> Tensor:
    """SCL: the mask's shadow on either axis against the box's, mean over samples: a scalar.

    logits: [B, S, S]; box: bool [B, S, S]. An axis adds 1 - 2 sum pg / (sum p^2 + sum g^2 + 1e-5), with p and g the
    largest value of sigmoid(logits) and of the box along it. Not multiplied by B and never gated (quirk 10).
    """
    loss = logits.new_zeros(())
    for axis in (1, 2):
        # The sigmoid rises, so it may follow the maximum: S of them instead of S * S.
        mask_shadow = logits.max(dim=axis).values.sigmoid()  # [B, S]
        box_shadow = box.any(dim=axis).to(logits.dtype)
        overlap = 2 * (mask_shadow * box_shadow).sum(dim=1)
        size = mask_shadow.square().sum(dim=1) + box_shadow.square().sum(dim=1) + 1e-5
        loss = loss + (1 - overlap / size).mean()
    return loss
