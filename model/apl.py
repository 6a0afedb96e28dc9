"""APL (ECCV 2024): RefCLIP's matching with prompts for every candidate, and a box head taught by what it finds.

    seen      v, the fused map at the candidate's cell; position and prompt of prompts.py
    u         the candidate: softmax-weighed sum of the three
    match     <u, t> + <L tag, t> with t the sentence; contrast over the batch as in RefCLIP
    recon     a three-layer network reads t, detached, out of the best candidate's u
    box       the box head (box_head.py) learns the best candidate's box; its most confident box is the answer

The release does not run as published; faults by their numbers on the method page of RefCLIP and APL:
1 (imports and settings that do not exist): BURN_IN is nowhere defined; here it is `warm_epochs`, epochs before the box
loss counts, 10 of 25 unless set, the number of WeakMCN's mask head. 2, 3, 4: see prompts.py. 5 (one slot for all images
is reconstructed, the best in sum over the batch): here each image's own best candidate, the one that answers. 6: see
box_head.py. 7 (evaluation counts as training): an epoch is an epoch.

Until the box head has learnt, that is in the first `warm_epochs`, its boxes are guesses, and so are the predictions.
Trainable parameters as published, 49,910,539, less the 924,161 that never get a gradient (official_keys.py).
Axes: B batch, K candidates, D width of the sentence vector.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import Batch, of_owner
from .box_head import BoxHead, box_loss, cell_centres, corners, overlap
from .config import ModelConfig
from .fusion import MultiScaleFusion
from .losses import anchor_contrast
from .prompts import Prompts, require_names
from .ranks import ALONE, Ranks
from .refclip import refuse_banks
from .text import text_encoder
from .vocabulary import Vocabulary
from .weakmcn import Predictions
from .wrec import Matcher, clip_to_photo, most_confident, pick, position_embedding


def fields_of(config: ModelConfig) -> tuple[str, ...]:
    """What APL reads of a batch beside tokens and letterbox.

    ConfigError if the configuration asks for banks or does not name the detector's classes.
    """
    refuse_banks(config, "APL")
    require_names(config.class_names)
    return ("dark_s8", "dark_s16", "dark_s32", "cells", "boxes", "classes", "colours")


@dataclass(frozen=True, eq=False)
class APLLosses:
    """Scalars of one step, on several ranks each rank's share of them; a term that was not computed is 0."""

    det: Tensor
    """Contrast of texts and candidates."""
    recon: Tensor
    """Squared error of the sentence as read out of the best candidate."""
    box: Tensor
    """Of the box head, against the best candidate's box."""
    total: Tensor
    """det + recon, from `warm_epochs` on + box."""


@dataclass(frozen=True, eq=False)
class _Seen:
    """What both uses of the network need of a batch."""

    text: Tensor
    """[B, D], before the linear layer of the comparison."""
    sentences: Tensor
    """t, [B, D]."""
    candidates: Tensor
    """u, [I, K, D]."""
    matched: Tensor
    """u + L tag, [I, K, D]: its dot product with t is the similarity."""
    maps: list[Tensor]
    """The fused maps of stride 8, 16, 32."""


class APL(nn.Module):
    """APL without its frozen detector, whose outputs come in the batch.

    words: float [rows of the vocabulary, word_dim], the word table, or None for a random one; sentences and prompts
    have one each, which start equal. ConfigError if the configuration asks for banks or names no classes.
    """

    def __init__(self, config: ModelConfig, vocabulary: Vocabulary, words: Tensor | None = None) -> None:
        super().__init__()
        fields_of(config)
        self.config = config
        self.text = text_encoder(config, len(vocabulary), words)
        self.prompts = Prompts(config, vocabulary, self.text.words.weight.detach())
        self.fusion = MultiScaleFusion(config.dark_channels, config.wrec_dim, outputs=("s8", "s16", "s32"))
        self.matcher = Matcher(config.wrec_dim, config.text_dim)
        width = config.text_dim
        self.decoder = nn.Sequential(
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        )
        self.box_head = BoxHead(
            visual_dim=config.wrec_dim,
            text_dim=config.text_dim,
            width=config.wres_dim,
            heads=config.attention_heads,
            dropout=config.dropout,
        )

    def losses(self, batch: Batch, epoch: int, ranks: Ranks = ALONE) -> APLLosses:
        """The loss terms of one batch, or of this rank's part of it.

        epoch: counted from 0; below `warm_epochs` the box head does not run.
        Raises `StoreError` if the batch does not fit the configuration. Needs B >= 2 in training mode, over all ranks.
        """
        seen = self._see(batch)
        images, first = ranks.contrasted(seen.matched)
        similarity = torch.einsum("bd,akd->bak", seen.sentences, images)  # [B, A, K]
        own = first + batch.own
        chosen = pick(similarity.detach(), own).argmax(dim=1)  # [B], of the text's own image
        det = ranks.share(anchor_contrast(similarity, own), batch.unequal)
        read_out = self.decoder(pick(seen.candidates, chosen, batch.own))
        recon = ranks.share(F.mse_loss(read_out, seen.sentences.detach()), batch.unequal)
        if epoch < self.config.warm_epochs:
            return APLLosses(det=det, recon=recon, box=torch.zeros_like(det), total=det + recon)
        boxes, logits = self._boxes(seen, batch)
        label = most_confident(pick(batch.boxes, chosen, batch.own))[:, :4].to(boxes.dtype)
        _, _, height, width = seen.maps[2].shape
        box = box_loss(boxes, logits, label, cell_centres(height, width, boxes), ranks)
        return APLLosses(det=det, recon=recon, box=box, total=det + recon + box)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Predictions:
        """The box of each expression; no mask. Call `eval()` first. StoreError if the batch does not fit.

        `similarity` is the matching branch's; `chosen` is the candidate whose box covers the answer best, the most
        similar one where none touches it.
        """
        seen = self._see(batch)
        similarity = torch.einsum("bd,bkd->bk", seen.sentences, of_owner(seen.matched, batch.owner))
        boxes, logits = self._boxes(seen, batch)
        best = logits.argmax(dim=1)  # [B]
        answer = pick(boxes, best).float()
        candidates = of_owner(most_confident(batch.boxes)[..., :4], batch.owner)
        fit = overlap(answer[:, None], candidates)  # [B, K]
        nearest = torch.where(fit.amax(dim=1) > 0, fit.argmax(dim=1), similarity.argmax(dim=1))
        answer = corners(answer)
        return Predictions(
            similarity=similarity,
            chosen=nearest,
            boxes=clip_to_photo(answer, of_owner(batch.letterbox, batch.owner))
            if self.config.clip_boxes_in_eval
            else answer,
            scores=pick(logits, best).float().sigmoid(),
            mask_logits=None,
        )

    def _see(self, batch: Batch) -> _Seen:
        batch.check(self.config, fields_of(self.config))
        assert batch.classes is not None
        assert batch.colours is not None
        dtype = self.matcher.visual.weight.dtype
        maps = (x.to(dtype) for x in (batch.dark_s8, batch.dark_s16, batch.dark_s32) if x is not None)
        fused = self.fusion(*maps, outputs=("s8", "s16", "s32"))
        text = self.text(batch.tokens)
        tags = self.prompts(batch.classes, batch.colours)
        position = position_embedding(batch.boxes, self.config.side_px, self.config.text_dim).to(dtype)
        candidates = self.prompts.fuse(self.matcher.candidates(fused[2], batch.cells), tags, position)
        return _Seen(
            text=text,
            sentences=self.matcher.sentences(text),
            candidates=candidates,
            matched=candidates + self.prompts.spoken(tags),
            maps=fused,
        )

    def _boxes(self, seen: _Seen, batch: Batch) -> tuple[Tensor, Tensor]:
        """Boxes cx cy w h [B, N, 4] and objectness logits [B, N] of all cells."""
        return self.box_head(*seen.maps, seen.candidates, batch.cells, seen.text, owner=batch.owner)
