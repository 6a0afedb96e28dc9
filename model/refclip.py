"""RefCLIP (CVPR 2023): candidates of the detector matched with the sentence, trained by their contrast alone.

WeakMCN's matching branch is this network with a narrower fusion, feature banks and a position: here the fused map of
stride 32 (1024 channels as published) is looked up at the candidate cells, taken to the width of the sentence vector by
one linear layer, and compared by dot products. It reads the detector's columns and predicts boxes.

Source: method page of RefCLIP and APL; trainable parameters as published, 27,501,057, less the 2,363,392 of the
fusion's outputs of stride 8 and 16, which never get a gradient.
Axes: B batch, K candidates, D width of the sentence vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..shards.errors import ConfigError
from .batch import Batch, of_owner
from .config import ModelConfig
from .fusion import MultiScaleFusion
from .losses import anchor_contrast
from .precision import in_full, wide, working_dtype
from .ranks import ALONE, Ranks
from .text import text_encoder
from .weakmcn import Predictions
from .wrec import Matcher, candidate_boxes, clip_to_photo, pick


def fields_of(config: ModelConfig) -> tuple[str, ...]:
    """What RefCLIP reads of a batch beside tokens and letterbox; ConfigError if the configuration asks for banks."""
    refuse_banks(config, "RefCLIP")
    return ("dark_s8", "dark_s16", "dark_s32", "cells", "boxes")


@dataclass(frozen=True, eq=False)
class RefCLIPLosses:
    """Scalars of one step, on several ranks each rank's share of them."""

    det: Tensor
    """Contrast of texts and candidates."""
    total: Tensor
    """The same: it is all there is."""


class RefCLIP(nn.Module):
    """RefCLIP without its frozen detector, whose outputs come in the batch.

    words: float [vocabulary_size, word_dim], the word table, or None for a random one. ConfigError if the configuration
    asks for feature banks.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, words: Tensor | None = None) -> None:
        super().__init__()
        fields_of(config)
        self.config = config
        self.text = text_encoder(config, vocabulary_size, words)
        self.fusion = MultiScaleFusion(config.dark_channels, config.wrec_dim, outputs=("s32",))
        self.matcher = Matcher(config.wrec_dim, config.text_dim)

    def losses(self, batch: Batch, epoch: int, ranks: Ranks = ALONE) -> RefCLIPLosses:
        """The contrast of one batch, or of this rank's part of it, the same in every epoch.

        StoreError if the batch does not fit.
        """
        del epoch
        sentences, candidates = self._embed(batch)
        images, first = ranks.contrasted(candidates)
        with in_full(images.device):
            similarity = torch.einsum("bd,akd->bak", sentences, images)  # [B, A, K]
        contrast = anchor_contrast(similarity, first + batch.own)
        det = ranks.share(contrast, batch.unequal)
        return RefCLIPLosses(det=det, total=det)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Predictions:
        """The box of each expression; no mask. Call `eval()` first. StoreError if the batch does not fit."""
        sentences, candidates = self._embed(batch)
        similarity = torch.einsum("bd,bkd->bk", sentences, of_owner(candidates, batch.owner))
        chosen = similarity.argmax(dim=1)
        boxes, scores = candidate_boxes(pick(batch.boxes, chosen, batch.own))
        if self.config.clip_boxes_in_eval:
            boxes = clip_to_photo(boxes, of_owner(batch.letterbox, batch.owner))
        return Predictions(similarity=similarity, chosen=chosen, boxes=boxes, scores=scores, mask_logits=None)

    def _embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Sentences [B, D] and candidates [I, K, D] in the space where they are compared."""
        batch.check(self.config, fields_of(self.config))
        dtype = working_dtype(self.matcher.visual.weight)
        maps = (x.to(dtype) for x in (batch.dark_s8, batch.dark_s16, batch.dark_s32) if x is not None)
        (coarse,) = self.fusion(*maps, outputs=("s32",))
        with in_full(batch.tokens.device):
            sentences = self.matcher.sentences(self.text(batch.tokens))
        return sentences, wide(self.matcher.candidates(coarse, batch.cells))


def refuse_banks(config: ModelConfig, name: str) -> None:
    """ConfigError if the configuration asks for feature banks, which only WeakMCN has."""
    if config.banks:
        raise ConfigError(
            f"banks={list(config.banks)}: {name} sees the detector's maps alone; leave banks empty "
            "(--set model.banks=)."
        )
