"""Pretraining of the pocket Segment Anything: class-agnostic masks from boxes, as Kirillov et al. 2023 train them.

A prompt is a true box with each side moved by up to a tenth of its length, as a detector would. Of the three masks only
the best one is taught (dice and cross-entropy); the IoU head is taught the IoU of all three.
"""

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling import Sam
from torch import Tensor

from ..encoders.sam import decode, embed
from .pool import Pool

PROMPTS = 5
"""Boxes an image and step."""


def sam_batch(pool: Pool, picks: np.ndarray, rng: np.random.Generator) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Canvases float [B, 3, S, S] of 0..255; a list of box prompts [n, 4] and of true masks [n, S, S]."""
    side = pool.canvases.shape[1]
    boxes, masks = [], []
    for pick in picks:
        chosen = rng.permutation(len(pool.boxes[pick]))[:PROMPTS]
        corners = pool.boxes[pick][chosen]
        lengths = np.tile(corners[:, 2:] - corners[:, :2], 2)
        shaken = corners + rng.uniform(-0.1, 0.1, corners.shape) * lengths
        boxes.append(torch.from_numpy(shaken.clip(0, side).astype(np.float32)))
        masks.append(torch.from_numpy(pool.unpacked(pick)[chosen]))
    pixels = torch.from_numpy(pool.canvases[picks]).permute(0, 3, 1, 2).float()
    return pixels, boxes, masks


def sam_loss(sam: Sam, pixels: Tensor, boxes: list[Tensor], masks: list[Tensor]) -> Tensor:
    """Mean over all prompts of the best mask's dice + 2 x cross-entropy, plus the squared error of predicted IoU."""
    embeddings = embed(sam, pixels)
    losses = []
    for embedding, prompts, truth in zip(embeddings, boxes, masks, strict=True):
        low, predicted = decode(sam, embedding[None], prompts)
        logits = F.interpolate(low, truth.shape[-2:], mode="bilinear", align_corners=False)
        wanted = truth[:, None].float().expand_as(logits)
        pixel = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=(2, 3))
        p = logits.sigmoid()
        dice = 1 - (2 * (p * wanted).sum(dim=(2, 3)) + 1) / ((p + wanted).sum(dim=(2, 3)) + 1)
        best = (dice + 2 * pixel).min(dim=1).values
        losses.append(best + F.mse_loss(predicted, mask_ious(logits > 0, truth), reduction="none").mean(dim=1))
    return torch.cat(losses).mean()


def mask_ious(masks: Tensor, truth: Tensor) -> Tensor:
    """IoU of masks [n, m, S, S] with one true mask each [n, S, S]: [n, m]."""
    both = (masks & truth[:, None]).sum(dim=(2, 3))
    either = (masks | truth[:, None]).sum(dim=(2, 3))
    return both / either.clamp(min=1)
