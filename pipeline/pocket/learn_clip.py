"""Pretraining of the pocket CLIP: image-caption matching (Radford et al. 2021) on captions of pretraining scenes.

The only pocket encoder that sees words, and none of them belongs to a scene of a data set. The text tower, a mean of
word vectors through a small network, is thrown away; only the image tower ships.
"""

import itertools
import math
import re

import numpy as np
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..encoders.clip import clip_pixels
from .pool import Pool

WORDS = 2048
"""Rows of the word table."""


class Matching(nn.Module):
    """An image tower, a bag-of-words text tower and a learned temperature."""

    def __init__(self, net: VisionTransformer, width: int) -> None:
        super().__init__()
        self.image = net
        self.words = nn.EmbeddingBag(WORDS, width, mode="mean", padding_idx=0)
        self.text = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def loss(self, pixels: Tensor, words: Tensor) -> Tensor:
        """Symmetric contrastive loss of images [B, 3, S, S] and captions [B, T]."""
        images = F.normalize(self.image(pixels), dim=-1)
        texts = F.normalize(self.text(self.words(words)), dim=-1)
        logits = self.log_scale.clamp(max=math.log(100)).exp() * images @ texts.T
        own = torch.arange(len(logits))
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


def caption_ids(captions: list[str], tokens: int = 40) -> Tensor:
    """Word and word-pair ids of captions, 0 for padding: [n, tokens]; pairs keep "red star" together."""
    table: dict[str, int] = {}
    ids = torch.zeros(len(captions), tokens, dtype=torch.long)
    for row, caption in enumerate(captions):
        words = re.findall(r"[a-z]+", caption.lower())
        grams = words + [f"{a} {b}" for a, b in itertools.pairwise(words)]
        for column, gram in enumerate(grams[:tokens]):
            ids[row, column] = table.setdefault(gram, 1 + len(table) % (WORDS - 1))
    return ids


def clip_batch(pool: Pool, picks: np.ndarray, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Images [B, 3, S, S] and their captions [B, T]."""
    return clip_pixels(pool.canvases[picks], "cpu"), ids[torch.from_numpy(picks)]
