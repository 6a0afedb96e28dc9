"""The whole network: what it predicts, and the losses that train it without a box or a mask.

Axes: B batch, K candidates, S canvas pixels, D width of the sentence vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import losses as terms
from .batch import Batch, of_owner
from .config import ModelConfig
from .fusion import BankMixer, MultiScaleFusion
from .precision import in_full, wide, working_dtype
from .ranks import ALONE, Ranks
from .text import text_encoder
from .wrec import Matcher, candidate_boxes, clip_to_photo, pick, position_embedding
from .wres import MaskHead


def fields_of(config: ModelConfig) -> tuple[str, ...]:
    """What WeakMCN reads of a batch beside tokens and letterbox; masks only where a mask loss is asked for."""
    return ("dark_s8", "dark_s16", "dark_s32", *config.banks, "cells", "boxes", *(("masks",) if config.wres else ()))


def schedule(config: ModelConfig, epochs: int) -> tuple[str, ...]:
    """When in so many epochs the mask head begins to learn, and why its loss may be 0 after that; a line each."""
    if not config.wres or epochs <= config.warm_epochs:
        return ()
    told = []
    if config.warm_epochs > 0:
        told.append(f"The mask head learns from epoch {config.warm_epochs + 1} on; until then mask and scl are 0.")
    if config.isl and config.isl_start_epoch < epochs:
        told.append(
            f"From epoch {max(config.isl_start_epoch, config.warm_epochs) + 1} on a mask teaches only where it agrees "
            f"with its box, IoU > {config.isl_threshold} (ISL); mask 0 then means that none did."
        )
    return tuple(told)


@dataclass(frozen=True, eq=False)
class Losses:
    """Scalars of one step, on several ranks each rank's share of them; a term that was not computed is 0."""

    det: Tensor
    """Contrast of texts and candidates."""
    mask: Tensor
    """Cross-entropy with the pseudo masks, as it enters the sum: over samples, weighed by ISL where that holds."""
    scl: Tensor
    """Projection loss of mask and box."""
    total: Tensor
    """What is to be minimised: `det` during warm-up, afterwards the sum."""

    def detach(self) -> "Losses":
        """The same numbers without their graph."""
        return Losses(**{field.name: getattr(self, field.name).detach() for field in fields(self)})

    @staticmethod
    def mean(seen: Sequence["Losses"]) -> "Losses":
        """Term by term over several steps."""
        return Losses(
            **{field.name: torch.stack([getattr(one, field.name) for one in seen]).mean() for field in fields(Losses)}
        )


@dataclass(frozen=True, eq=False)
class Predictions:
    """Answers for B expressions, in the canvas frame."""

    similarity: Tensor
    """float [B, K], of the sentence with each candidate of its image."""
    chosen: Tensor
    """int64 [B], the candidate that answers: the most similar one. APL's boxes are its own; the one nearest to that."""
    boxes: Tensor
    """float32 [B, 4], the box, x0 y0 x1 y1 in pixels; not clipped unless the configuration says so."""
    scores: Tensor
    """float32 [B], objectness of that box: the detector's, APL's own."""
    mask_logits: Tensor | None
    """float [B, S, S]; a pixel belongs to the mask where sigmoid > 0.5. None from a system that predicts no masks."""


class WeakMCN(nn.Module):
    """WeakMCN without its frozen encoders, whose outputs come in the batch.

    words: float [vocabulary_size, word_dim], the word table, or None for a random one. Weights of the released network
    that never get a gradient (both down-modules, `mid_proj` and `top_proj` of the second fusion, `w_m` of the attention
    block) are left out (quirk 28): 643,329 of 21,551,879 parameters of the Ti configurations.
    """

    def __init__(self, config: ModelConfig, vocabulary_size: int, words: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.text = text_encoder(config, vocabulary_size, words)
        self.fusion = MultiScaleFusion(
            config.dark_channels, config.wrec_dim, outputs=("s8", "s16", "s32") if config.wres else ("s32",)
        )
        self.rec_banks, self.res_banks = (
            BankMixer(config.bank_channels, config.wrec_dim, config.dynamic) if config.banks and built else None
            for built in (True, config.wres)
        )
        self.matcher = Matcher(config.wrec_dim, config.text_dim)
        self.mask_head: MaskHead | None = None
        if config.wres:
            self.mask_head = MaskHead(
                visual_dim=config.wrec_dim,
                text_dim=config.text_dim,
                width=config.wres_dim,
                heads=config.attention_heads,
                dilations=config.aspp_dilations,
                dropout=config.dropout,
            )

    def losses(self, batch: Batch, epoch: int, parts: bool = False, ranks: Ranks = ALONE) -> Losses:
        """The loss terms of one batch, or of this rank's part of it.

        epoch: counted from 0; below `warm_epochs` the total is `det` alone, from `isl_start_epoch` on ISL weighs the
        mask loss (quirk 11). parts: compute the mask terms during warm-up too, though they do not enter the total.

        Without `parts` a warm-up step does not run the mask branch at all. The authors' does, for nothing but its
        BatchNorm statistics, which start moving here only after the warm-up (quirk 27).
        Raises `StoreError` if the batch does not fit the configuration. Needs B >= 2 in training mode, over all ranks:
        a BatchNorm sees one value an expression.
        """
        warm = epoch < self.config.warm_epochs
        with_masks = self.config.wres and (parts or not warm)
        batch.check(self.config, self._needs(masks=with_masks))
        text, sentences = self._said(batch)
        coarse, *finer = self._fuse(batch, self._scales(with_masks))
        coarse, candidates = self._candidates(coarse, batch)
        images, first = ranks.contrasted(candidates)
        own = first + batch.own
        with in_full(images.device):
            similarity = torch.einsum("bd,akd->bak", sentences, images)  # [B, A, K]
        det = ranks.share(terms.anchor_contrast(similarity, own), batch.unequal)
        if not with_masks:
            nothing = torch.zeros_like(det)
            return Losses(det=det, mask=nothing, scl=nothing, total=det)

        fine, middle = finer
        logits = self._mask_logits(fine, middle, coarse, text, batch)
        chosen = pick(similarity.detach(), own).argmax(dim=1)  # [B], of the text's own image
        mask, scl = self._mask_terms(logits, chosen, batch, epoch)
        scl = ranks.share(scl, batch.unequal)
        return Losses(det=det, mask=mask, scl=scl, total=det if warm else det + mask + scl)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Predictions:
        """Box and mask of each expression. Call `eval()` first; B = 1 is fine then.

        Raises `StoreError` if the batch does not fit the configuration.
        """
        batch.check(self.config, self._needs(masks=False))
        text, sentences = self._said(batch)
        coarse, *finer = self._fuse(batch, self._scales(self.config.wres))
        coarse, candidates = self._candidates(coarse, batch)
        similarity = torch.einsum("bd,bkd->bk", sentences, of_owner(candidates, batch.owner))
        chosen = similarity.argmax(dim=1)
        boxes, scores = candidate_boxes(pick(batch.boxes, chosen, batch.own))
        if self.config.clip_boxes_in_eval:
            boxes = clip_to_photo(boxes, of_owner(batch.letterbox, batch.owner))
        return Predictions(
            similarity=similarity,
            chosen=chosen,
            boxes=boxes,
            scores=scores,
            mask_logits=self._mask_logits(finer[0], finer[1], coarse, text, batch) if finer else None,
        )

    @staticmethod
    def _scales(with_masks: bool) -> tuple[str, ...]:
        """Fused maps that are asked for: all that a mask needs, or what the matching needs."""
        return ("s32", "s8", "s16") if with_masks else ("s32",)

    def _needs(self, *, masks: bool) -> tuple[str, ...]:
        return tuple(field for field in fields_of(self.config) if masks or field != "masks")

    def _said(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The sentences as the mask head takes them, and in the space of the candidates: [B, D] each."""
        with in_full(batch.tokens.device):
            text = self.text(batch.tokens)
            return text, self.matcher.sentences(text)

    def _cast(self, x: Tensor | None) -> Tensor:
        assert x is not None  # the batch was checked
        return x.to(working_dtype(self.matcher.visual.weight))

    def _banks(self, batch: Batch) -> dict[str, Tensor]:
        return {bank: self._cast(getattr(batch, bank)) for bank in self.config.banks}

    def _fuse(self, batch: Batch, outputs: Sequence[str]) -> list[Tensor]:
        maps = (batch.dark_s8, batch.dark_s16, batch.dark_s32)
        return self.fusion(*map(self._cast, maps), outputs=outputs)

    def _candidates(self, coarse: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The map of stride 32 with its banks [B, C, S/32, S/32], and the candidates' embeddings [B, K, D]."""
        if self.rec_banks is not None:
            pooled = {bank: F.avg_pool2d(x, 2) for bank, x in self._banks(batch).items()}
            coarse = coarse + self.rec_banks(coarse, pooled)
        position = position_embedding(batch.boxes, self.config.side_px, self.config.text_dim)
        seen = self.matcher.candidates(coarse, batch.cells)
        return coarse, wide(seen) + position.to(self.matcher.visual.weight.dtype)

    def _mask_logits(self, fine: Tensor, middle: Tensor, coarse: Tensor, text: Tensor, batch: Batch) -> Tensor:
        """fine, middle: fused maps of stride 8 and 16; coarse: that of stride 32 with its banks; returns [B, S, S].

        Only the outer two scales are enhanced; the middle one goes in as it is. What the banks add to the finest one is
        taken through the head's first convolution before it is enlarged, where it has a quarter of the cells and fewer
        channels.
        """
        assert self.mask_head is not None  # nothing else asks
        added = None
        if self.res_banks is not None:
            mixed = self.res_banks(fine, self._banks(batch), then=self.mask_head.first_weight)
            added = F.interpolate(mixed, scale_factor=2, mode="bilinear", align_corners=False)
        return self.mask_head(fine, middle, coarse, text, owner=batch.owner, added=added)

    def _mask_terms(self, logits: Tensor, chosen: Tensor, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
        """Cross-entropy with the chosen candidates' pseudo masks, and the projection loss on their clipped boxes."""
        assert batch.masks is not None
        target = terms.unpack_bits(pick(batch.masks, chosen, batch.own))
        boxes, _ = candidate_boxes(pick(batch.boxes, chosen, batch.own))
        box = terms.box_bits(clip_to_photo(boxes, of_owner(batch.letterbox, batch.owner)), self.config.side_px)
        bce = terms.mask_bce(logits, target)  # [B]
        if self.config.isl and epoch >= self.config.isl_start_epoch:
            bce = bce * terms.agreement(logits, box, self.config.isl_threshold)
        scl = terms.projection_loss(logits, box) if self.config.scl else logits.new_zeros(())
        return bce.sum(), scl
