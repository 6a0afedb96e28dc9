"""Pooled: the candidate is meant whose pixels look like what the sentence says. A method in one file, as an example."""

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weakmcn.model.batch import Batch
from weakmcn.model.calibration import candidate_masks
from weakmcn.model.config import ModelConfig, preset, train_preset
from weakmcn.model.methods import Method
from weakmcn.model.ranks import ALONE, Ranks
from weakmcn.model.text import text_encoder
from weakmcn.model.weakmcn import Predictions
from weakmcn.model.wrec import candidate_boxes, pick


@dataclass(frozen=True, kw_only=True)
class PooledConfig(ModelConfig):
    temperature: float = 0.1
    """What cosines are divided by."""


@dataclass(frozen=True, eq=False)
class PooledLosses:
    contrast: Tensor
    total: Tensor


class Pooled(nn.Module):
    def __init__(self, config: PooledConfig, vocabulary, words: Tensor | None) -> None:
        super().__init__()
        self.config = config
        self.text = text_encoder(config, len(vocabulary), words)
        self.see = nn.Linear(config.dino_channels, config.text_dim)

    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit vectors of the sentences [B, D] and of the candidates, DINO's tokens averaged in each mask [B, K, D]."""
        batch.check(self.config, FIELDS)
        inside = candidate_masks(batch.masks, batch.dino.shape[-2:]) + 1e-6  # [B, K, H, W], shares of the cells
        tokens = torch.einsum("bkhw,bchw->bkc", inside / inside.sum(dim=(2, 3), keepdim=True), batch.dino.float())
        return F.normalize(self.text(batch.tokens), dim=-1), F.normalize(self.see(tokens), dim=-1)

    def losses(self, batch: Batch, epoch: int, ranks: Ranks = ALONE) -> PooledLosses:
        """A sentence should fit some candidate of its own image better than any of the batch's other images."""
        sentences, candidates = self.embed(batch)
        images, first = ranks.contrasted(candidates)  # of the whole batch, if several GPUs share it
        best = torch.einsum("bd,akd->bak", sentences, images).amax(dim=-1) / self.config.temperature  # [B, A]
        contrast = ranks.share(F.cross_entropy(best, first + torch.arange(len(best), device=best.device)))
        return PooledLosses(contrast=contrast, total=contrast)

    @torch.no_grad()
    def predict(self, batch: Batch) -> Predictions:
        sentences, candidates = self.embed(batch)
        similarity = torch.einsum("bd,bkd->bk", sentences, candidates)
        chosen = similarity.argmax(dim=1)
        boxes, scores = candidate_boxes(pick(batch.boxes, chosen))
        return Predictions(similarity=similarity, chosen=chosen, boxes=boxes, scores=scores, mask_logits=None)


def recipe(preset_name: str):
    sizes, train = preset(preset_name), train_preset(preset_name)
    kept = {name: getattr(sizes, name) for name in ModelConfig.__dataclass_fields__}
    return PooledConfig(**{**kept, "banks": ("dino",)}), replace(train, epochs=15, batch=24)


FIELDS = ("dino", "masks", "boxes")
METHODS = {
    "pooled": Method(
        build=Pooled,
        fields=lambda config: FIELDS,
        only_trains=(),
        masks=False,
        shares_images=False,
        settings=PooledConfig,
        recipe=recipe,
    )
}
