"""TRIS-C's calibration: a frozen CLIP judges the mask, from what it saw of the image once.

TRIS runs CLIP on the image multiplied by the current mask M and learns through it; that cannot be cached. Two things
stand for CLIP's embedding f(M) of the masked image:

    prop   unit(sum_k w_k c_k), w = softmax_k(u_k / 0.1), u_k the soft IoU of M and SAM's mask of candidate k, c_k
           CLIP's embedding of the photo under that mask: exact, but of K masks only; learns through u
    pool   unit(sum_p M_p x_p / sum_p M_p), x CLIP's tokens; says nothing about area

L_fg = -mean ln cos(f, g), L_neg = -mean ln(1 - cos(f, g')) with g and g' CLIP's vectors of the own caption and of
captions of other objects of the image; cosines are clamped to 1e-4..0.9999.
Axes: B images, K candidates, D width of CLIP's space.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .batch import Batch
from .lessons import Material
from .losses import unpack_bits
from .negatives import Negatives
from .sampler import Draw
from .standardise import MeasuredFirst
from .words import read_captions

MODES = ("none", "prop", "pool")
SHARPNESS = 1 / 0.1
LOW, HIGH = 1e-4, 0.9999


def losses(own: Tensor, batch: Batch, mode: str) -> tuple[Tensor, Tensor]:
    """L_fg and L_neg of the masks `own`, [B, H, W] in 0..1."""
    seen = masked_view(own, batch, mode)
    assert batch.texts is not None
    said = F.normalize(batch.texts.detach().to(seen.dtype), dim=-1)
    cosines = torch.einsum("bd,bnd->bn", seen, said).clamp(LOW, HIGH)
    return -cosines[:, 0].log().mean(), -(1 - cosines[:, 1:]).log().mean()


def masked_view(own: Tensor, batch: Batch, mode: str) -> Tensor:
    """f(M), unit vectors [B, D], of soft masks [B, H, W]; it learns through the masks alone."""
    if mode == "pool":
        assert batch.clip is not None
        tokens = batch.clip.detach().to(own.dtype)
        return F.normalize(torch.einsum("bhw,bdhw->bd", own, tokens) / own.sum(dim=(1, 2))[:, None], dim=-1)
    assert batch.masks is not None
    assert batch.clip_candidates is not None
    weights = candidate_weights(own, candidate_masks(batch.masks, own.shape[-2:]).to(own.dtype))
    return F.normalize(torch.einsum("bk,bkd->bd", weights, batch.clip_candidates.detach().to(own.dtype)), dim=-1)


def candidate_weights(own: Tensor, masks: Tensor) -> Tensor:
    """w, [B, K]: how much the soft masks [B, H, W] are each of the candidates' [B, K, H, W]."""
    return (SHARPNESS * soft_iou(own[:, None], masks)).softmax(dim=1)


def candidate_masks(packed: Tensor, size: Sequence[int]) -> Tensor:
    """Share of every cell that a mask covers: float32 [B, K, H, W]. packed: uint8 [B, K, S, S/8]."""
    return F.adaptive_avg_pool2d(unpack_bits(packed).float(), (size[0], size[1]))


def soft_iou(a: Tensor, b: Tensor) -> Tensor:
    """sum ab / sum (a + b - ab) over cells, of maps [..., H, W] in 0..1, broadcast: [...]. 0 where both are empty."""
    common = (a * b).sum(dim=(-2, -1))
    return common / ((a + b - a * b).sum(dim=(-2, -1))).clamp(min=1e-6)


class TrisLessons(MeasuredFirst):
    """Statistics of the channels; for calibration also vectors of the captions, and which others they are set against.

    ConfigError where the file has no vector for a caption.
    """

    def __init__(self, material: Material) -> None:
        super().__init__(material)
        config: Any = material.model
        self._vectors: dict[str, Tensor] = {}
        self._sha256 = ""
        self._count = config.negatives
        self._negatives = Negatives(material.samples, seed=material.seed)
        if config.calibration != "none":
            samples = material.samples
            spoken = [text[at] for text, places in zip(samples.sentences, samples.usable, strict=True) for at in places]
            self._vectors, self._sha256 = read_captions(Path(config.caption_vectors), spoken, config.clip_channels)

    @property
    def facts(self) -> Mapping[str, Any]:
        return {"caption_vectors": self._sha256} if self._sha256 else {}

    def vectors(self, captions: Sequence[str]) -> Tensor:
        """Of some captions of the training split: float32 [n, D], on the host."""
        return torch.stack([self._vectors[caption] for caption in captions])

    def of(self, drawn: Sequence[Draw], epoch: int) -> Mapping[str, Tensor]:
        if not self._vectors:
            return {}
        said = self.material.samples.sentences
        rows = [[draw, *self._negatives.of(draw[0], self._count, epoch=epoch)] for draw in drawn]
        texts = [self.vectors([said[reference][place] for reference, place in row]) for row in rows]
        return {"texts": torch.stack(texts).to(self.material.device)}
