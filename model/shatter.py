"""SaG-C: an image shattered into slots, of which the sentence gathers those it means.

A cached-feature port of Shatter & Gather (ICCV 2023): slots, fusion, decoder and losses are those of the release, the
encoders are not. Instead of a fine-tuned ViT-S and BERT it sees frozen DINO tokens, each channel standardised, and the
project's sentence encoder; the table of docs/methods.md says what that loses.

    e          linear(sentence); its length, free or text_length, stands for the temperature
    Z, A_slot  slots of the image and how its cells are shared among them (slots.py)
    y, A_fuse  what text t finds in image i, and its shares of the slots
    L          L_c3 + L_rec; L_c3 the cross-entropy, over the images of the batch, of sg(e_t) . y[i, t];
               L_rec the squared error of the tokens as painted from the slots
    score      sum over slots of A_fuse A_slot, spread to 0..1 over the photo; the mask is where it is at least 0.5

Slots are drawn: in training anew at every step, in evaluation by a generator seeded with the image's key, so that an
image has one answer. Trainable parameters beside the sentence encoder: 13,679,873 at the paper's sizes, exactly as the
method page of SaG has them. Warm-up is one of the learning rate; the release multiplies the loss, which Adam ignores.
Axes: B images, T texts, P = H W cells, S slots, D width of a slot, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shards.errors import ConfigError
from .batch import Batch
from .config import ModelConfig, TrainConfig, preset
from .mask_answers import MaskPredictions, decided, photo_pixels
from .ranks import ALONE, Ranks
from .slots import Gather, Painter, Shatter, sine_places
from .standardise import Standardise
from .text import text_encoder
from .tris import PORT, shared
from .vocabulary import Vocabulary

FOREGROUND = 0.5
"""Of the score, spread to 0..1; the method's own, and no setting: nothing may fit it to true masks."""


@dataclass(frozen=True, kw_only=True)
class ShatterConfig(ModelConfig):
    """Shape of SaG-C and of its loss. Of ModelConfig it reads canvas, words, text, dino_channels and dropout."""

    banks: Sequence[str] = ("dino",)
    """The maps it sees: DINO's, and no others."""
    warm_epochs: int = 0
    """Not used: nothing waits for anything."""
    slot_dim: int = 512
    """Width D of a slot."""
    gaussians: int = 12
    """Kinds of slots E, each a learned Gaussian."""
    draws: int = 3
    """Slots k drawn of each."""
    rounds: int = 6
    """How often slots look at the cells."""
    reconstruction: float = 1.0
    """Weight of L_rec."""
    temperature: float = 0.0
    """Where not 0, L_c3 compares by cosine over this temperature instead of by the raw product."""
    text_length: float = 0.0
    """What e is scaled to; 0 leaves it as it is, as the release does, whose BERT ends in a norm that keeps its length.
    Where nothing does, e outgrows what is found before anything is learned, if steps are large: L_c3 falls to chance's
    that way, and no gradient leads back."""
    noise_seed: int = 0
    """Another number, other slots in evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.banks != ("dino",):
            raise ConfigError(f"banks={list(self.banks)}: SaG-C sees DINO's tokens alone; --set model.banks=dino.")
        for name in ("gaussians", "draws", "rounds"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.slot_dim < 4 or self.slot_dim % 4:
            raise ConfigError(f"slot_dim={self.slot_dim} must be divisible by 4 (heads, and halves of a place).")
        for name in ("reconstruction", "temperature", "text_length", "noise_seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}={getattr(self, name)} must not be negative.")


def fields_of(config: ShatterConfig) -> tuple[str, ...]:
    """What SaG-C reads of a batch beside tokens, letterbox and images."""
    return tuple(config.banks)


def recipe(preset_name: str) -> tuple[ShatterConfig, TrainConfig]:
    """The release's recipe, with the method page's rate and clipping for heads alone; `pocket` has sizes of its own."""
    model = ShatterConfig(**shared(preset(preset_name)))
    train = TrainConfig(
        epochs=50,
        batch=32,
        lr=2e-4,
        min_lr=0,
        warmup_lr=0,
        warmup_epochs=0,
        warmup_steps=2000,
        clip_norm=1.0,
        betas=(0.9, 0.999),
        eps=1e-8,
        ema_decay=0,
        seed=1,
        optimiser="adamw",
        weight_decay=1e-4,
    )
    if preset_name != "pocket":
        return model, train
    return (
        replace(model, slot_dim=64, gaussians=6, draws=2, rounds=3, text_length=32.0, text_layers=0, dropout=0.0),
        replace(train, epochs=16, lr=1e-3, warmup_steps=100),
    )


def remarks(config: ShatterConfig) -> tuple[str, ...]:
    """What a reader of SaG-C's figures must know."""
    del config
    lost = "frozen DINO tokens, which are more object-like, and a GRU in place of a fine-tuned ViT-S and BERT"
    return (f"SaG-C: {PORT.format(lost)}",)


@dataclass(frozen=True, eq=False)
class ShatterLosses:
    """Scalars of one step, on several ranks each rank's share of them."""

    c3: Tensor
    """Contrast of a text's finds over the images of the batch; ln B where nothing is learned."""
    rec: Tensor
    """Mean squared error of the painted tokens; 1 for painting the mean."""
    text_norm: Tensor
    """Mean length of e, which is the inverse temperature; not minimised."""
    total: Tensor
    """c3 + reconstruction * rec."""


class SaGHeads(nn.Module):
    """All that learns beside the sentence encoder. side: rows, and columns, of the largest map."""

    def __init__(
        self,
        *,
        seen_dim: int,
        said_dim: int,
        width: int,
        side: int,
        gaussians: int,
        draws: int,
        rounds: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.see = nn.Linear(seen_dim, width)
        self.say = nn.Linear(said_dim, width)
        self.shatter = Shatter(width, gaussians, draws, rounds, dropout)
        self.gather = Gather(width, dropout)
        self.painter = Painter(width, side, seen_dim)

    def slots(self, maps: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """maps: [B, C, H, W]; noise: [B, E, k, D]; returns slots [B, S, D] and shares of the cells [B, S, P]."""
        cells = self.see(maps.flatten(2).transpose(1, 2))  # [B, P, D]
        height, width = maps.shape[-2:]
        return self.shatter(cells + sine_places(height, width, like=cells), noise)


class SaG(nn.Module):
    """SaG-C. words: float [rows of the vocabulary, word_dim], or None for random ones."""

    def __init__(self, config: ShatterConfig, vocabulary: Vocabulary, words: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        self.standardise = Standardise({"dino": config.dino_channels})
        self.text = text_encoder(config, len(vocabulary), words)
        self.heads = SaGHeads(
            seen_dim=config.dino_channels,
            said_dim=config.text_dim,
            width=config.slot_dim,
            side=config.side_px // 16,
            gaussians=config.gaussians,
            draws=config.draws,
            rounds=config.rounds,
            dropout=config.dropout,
        )

    def losses(self, batch: Batch, epoch: int, ranks: Ranks = ALONE) -> ShatterLosses:
        """The loss terms of one batch, or of this rank's part of it, the same in every epoch; draws slots.

        StoreError if the batch does not fit.
        """
        del epoch
        maps, texts = self.seen_and_said(batch)
        noise = torch.randn(len(maps), *self.heads.shatter.noise_shape, dtype=maps.dtype, device=maps.device)
        slots, _ = self.heads.slots(maps, noise)
        painted, _ = self.heads.painter(slots, (maps.shape[-2], maps.shape[-1]))
        rec = ranks.share(F.mse_loss(painted, maps.flatten(2).transpose(1, 2)))
        everywhere, first = ranks.contrasted(slots)
        found, _ = self.heads.gather(texts[None], everywhere)  # [B, b, D]
        c3 = ranks.share(contrast(texts, found, first, self.config.temperature))
        text_norm = ranks.share(texts.detach().norm(dim=-1).mean())
        return ShatterLosses(c3=c3, rec=rec, text_norm=text_norm, total=c3 + self.config.reconstruction * rec)

    @torch.no_grad()
    def predict(self, batch: Batch) -> MaskPredictions:
        """The mask of each expression, the same in any batch. StoreError if the batch does not fit."""
        side = self.config.side_px
        scores = F.interpolate(self.scores(batch)[:, None], (side, side), mode="bilinear")[:, 0]
        scores = spread(scores, photo_pixels(batch.letterbox, side))
        return MaskPredictions(decided(scores - FOREGROUND, scores >= FOREGROUND))

    @torch.no_grad()
    def scores(self, batch: Batch) -> Tensor:
        """Sum over slots of A_fuse A_slot: [B, S/16, S/16]."""
        maps, texts = self.seen_and_said(batch)
        assert batch.images is not None
        slots, shares = self.heads.slots(maps, self.noise_of(batch.images).to(maps))
        _, meant = self.heads.gather(texts[:, None], slots)  # [B, 1, S]
        return (meant @ shares).unflatten(-1, maps.shape[-2:])[:, 0]

    def noise_of(self, images: Tensor) -> Tensor:
        """What an image's slots are drawn with in evaluation, by its key: float32 [B, E, k, D], on the host."""
        shape = self.heads.shatter.noise_shape
        seeds = (np.random.SeedSequence([self.config.noise_seed, key]) for key in images.tolist())
        drawn = [np.random.Generator(np.random.Philox(seed)).standard_normal(shape, np.float32) for seed in seeds]
        return torch.from_numpy(np.stack(drawn))

    def seen_and_said(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Standardised tokens [B, C, H, W] and text vectors e [B, D]."""
        batch.check(self.config, fields_of(self.config))
        texts = self.heads.say(self.text(batch.tokens))
        if self.config.text_length:
            texts = F.normalize(texts, dim=-1) * self.config.text_length
        return self.standardise(batch, "dino"), texts


def contrast(texts: Tensor, found: Tensor, first: int = 0, temperature: float = 0.0) -> Tensor:
    """L_c3: cross-entropy, over images, of what a text finds in its own: a scalar.

    texts: e, [T, D]; found: y, unit vectors [B, T, D]; text t belongs to image first + t. The compared e gets no
    gradient: only by finding is it learned.
    """
    compared = texts.detach()
    if temperature:
        compared = F.normalize(compared, dim=-1) / temperature
    similarity = torch.einsum("td,btd->tb", compared, found)
    return F.cross_entropy(similarity, first + torch.arange(len(texts), device=texts.device))


def spread(scores: Tensor, inside: Tensor) -> Tensor:
    """Scores [B, S, S] taken to 0..1 by their least and largest value `inside` the photo, bool [B, S, S]."""
    low = scores.masked_fill(~inside, torch.inf).amin(dim=(1, 2), keepdim=True)
    high = scores.masked_fill(~inside, -torch.inf).amax(dim=(1, 2), keepdim=True)
    return (scores - low) / (high - low).clamp(min=1e-12)
