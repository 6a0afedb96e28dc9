"""TRIS-C, stage 2: a segmenter that reads the words, trained on what stage 1 found.

A cached-feature port, as stage 1 (tris.py) is. Pixel-word attention on three maps, then a path from the coarsest to the
finest that adds a map at each step; every step has logits of its own, and the loss is the sum of their cross-entropies
with the pseudo mask at a quarter of the canvas. The last step's logits answer; the mask is where they are positive.

    c4   the detector's map of stride 32, with words
    c3   a 1 x 1 convolution of the detector's of stride 16 and the banks of that stride, with words
    c2   the detector's map of stride 8, with words
    c1   SAM's embedding, where sam is among the banks, without words, on a grid twice as fine as c2's

Two things differ from the release by intent: padding words are masked, and a mask without a positive logit is empty
instead of everything. Cells hear the sentence beside its words, where CLIP's words end with a token for it. The
sentence encoder starts as stage 1's ended. Trainable parameters beside it: 15,998,057 at the paper's sizes, 16,173,452
with SAM's map.
Axes: B batch, C channels, H W rows and columns, L words, D width of a word.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shards.choices import require_one_of
from ..shards.errors import ConfigError
from .batch import Batch
from .config import ModelConfig, TrainConfig, preset
from .losses import unpack_bits
from .mask_answers import MaskPredictions, decided
from .ranks import ALONE, Ranks
from .standardise import Standardise
from .text import MASKED, PAD, text_encoder
from .tris import PORT, shared
from .tris import recipe as stage_1_recipe
from .tris_refine import REFINEMENTS
from .vocabulary import Vocabulary


@dataclass(frozen=True, kw_only=True)
class SegmenterConfig(ModelConfig):
    """Shape of TRIS-C's stage 2. Of ModelConfig it reads canvas, words, text, maps and banks."""

    banks: Sequence[str] = ("dino",)
    """dino and clip join the detector's map of stride 16; sam is a finer map of its own."""
    warm_epochs: int = 0
    """Not used: nothing waits for anything."""
    decoder_dims: Sequence[int] = (512, 256, 128, 64)
    """Widths of the path from the coarsest map to the finest; with sam one more."""
    refine: str = "walk"
    """How stage 1's map becomes a pseudo mask: walk (random walk over DINO's tokens), none (as it is), or sam (the
    candidate's mask that fits best; TRIS has no SAM, so that is another system, TRIS-C+SAM)."""
    cut: float = 0.5
    """Share of its largest value from which a map that has walked, enlarged, is foreground. TRIS: 0.25, at stride 4."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.cut <= 1:
            raise ConfigError(f"cut={self.cut} must be in 0..1, 0 excluded.")
        object.__setattr__(self, "decoder_dims", tuple(self.decoder_dims))
        require_one_of("refine", self.refine, REFINEMENTS)
        steps = 5 if "sam" in self.banks else 4
        if len(self.decoder_dims) != steps or min(self.decoder_dims) < 1:
            raise ConfigError(
                f"decoder_dims={list(self.decoder_dims)}: {steps} widths of at least 1 are needed with banks "
                f"{', '.join(self.banks) or 'none'}."
            )

    @property
    def merged(self) -> tuple[str, ...]:
        """Fields that make c3."""
        return ("dark_s16", *(bank for bank in self.banks if bank != "sam"))


def fields_of(config: SegmenterConfig) -> tuple[str, ...]:
    """What stage 2 reads of a batch beside tokens and letterbox; `pseudo` comes from its lessons."""
    return ("dark_s8", "dark_s16", "dark_s32", *config.banks)


def recipe(preset_name: str) -> tuple[SegmenterConfig, TrainConfig]:
    """Stage 1's recipe of training, as in the release; `pocket` has widths and epochs of its own."""
    _, train = stage_1_recipe(preset_name)
    model = SegmenterConfig(**shared(preset(preset_name)))
    if preset_name != "pocket":
        return model, train
    return replace(model, decoder_dims=(96, 64, 48, 32)), replace(train, epochs=4)


def remarks(config: SegmenterConfig) -> tuple[str, ...]:
    """What a reader of stage 2's figures must know."""
    how = {
        "walk": "a random walk over DINO's tokens in place of IRNet",
        "none": "stage 1's maps unrefined in place of IRNet's",
        "sam": "SAM's masks in place of IRNet, which makes it a stronger, different system",
    }
    name = "TRIS-C+SAM" if config.refine == "sam" else "TRIS-C"
    lost = f"frozen detector and DINO in place of a fine-tuned CLIP, {how[config.refine]}"
    return (f"{name}, stage 2: {PORT.format(lost)}",)


@dataclass(frozen=True, eq=False)
class SegmenterLosses:
    """Scalars of one step, on several ranks each rank's share of them."""

    final: Tensor
    """Cross-entropy of the finest logits."""
    total: Tensor
    """The sum of all steps'."""


class WordAttention(nn.Module):
    """Every cell asks the words and is changed by what it hears: x + relu(conv(relu(conv x) * norm(conv heard)))."""

    def __init__(self, width: int, word_dim: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(width, width, 1)
        self.query_norm = nn.InstanceNorm2d(width, affine=True)
        self.key = nn.Linear(word_dim, width)
        self.value = nn.Linear(word_dim, width)
        self.heard = nn.Linear(width, width)
        self.heard_norm = nn.InstanceNorm2d(width, affine=True)
        self.seen = nn.Conv2d(width, width, 1)
        self.merge = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor, words: Tensor, pads: Tensor) -> Tensor:
        """x: [B, C, H, W]; words: [B, L, D]; pads: bool [B, L]; returns [B, C, H, W]."""
        query = self.query_norm(self.query(x)).flatten(2).transpose(1, 2)  # [B, P, C]
        scores = query @ self.key(words).transpose(1, 2) / math.sqrt(x.shape[1])  # [B, P, L]
        attention = scores.masked_fill(pads[:, None], MASKED).softmax(dim=-1)
        # The weights of a cell sum to 1, so the layer may be applied to the L words instead of the P cells.
        heard = (attention @ self.heard(self.value(words))).transpose(1, 2).unflatten(-1, x.shape[-2:])
        return x + F.relu(self.merge(F.relu(self.seen(x)) * self.heard_norm(heard)))


class Block(nn.Sequential):
    """3 x 3 convolution, BatchNorm, PReLU."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(nn.Conv2d(inside, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside), nn.PReLU())


class WordSegmenter(nn.Module):
    """Logits at every step of the path. worded: channels of the maps with words, coarsest first; plain: of one finer
    map without; dims: widths of the path, one more than there are maps."""

    def __init__(self, worded: Sequence[int], plain: int | None, word_dim: int, dims: Sequence[int]) -> None:
        super().__init__()
        self.attention = nn.ModuleList(WordAttention(channels, word_dim) for channels in worded)
        maps = (*worded, *([] if plain is None else [plain]))
        self.reduce = nn.ModuleList(Block(channels, width) for channels, width in zip(maps, dims, strict=False))
        self.path = nn.ModuleList(Block(inside, outside) for inside, outside in pairwise(dims))
        self.sides = nn.ModuleList(self._side(width) for width in dims[1:])

    @staticmethod
    def _side(width: int) -> nn.Sequential:
        hidden = min(64, max(32, width // 2))
        return nn.Sequential(Block(width, hidden), nn.Conv2d(hidden, 1, 1, bias=False))

    def forward(self, maps: Sequence[Tensor], words: Tensor, pads: Tensor) -> list[Tensor]:
        """maps: coarsest first, [B, C, H, W] each, every next one twice as fine; returns [B, h, w] each likewise.

        The last step leaves the grid of the finest map as it is.
        """
        heard = [attend(x, words, pads) for attend, x in zip(self.attention, maps, strict=False)]
        reduced = [layer(x) for layer, x in zip(self.reduce, [*heard, *maps[len(heard) :]], strict=True)]
        logits, x = [], reduced[0]
        for layer, side, finer in zip(self.path, self.sides, [*reduced[1:], None], strict=True):
            x = layer(x)
            if finer is not None:
                x = _resized(x, finer.shape[-2:])
            logits.append(side(x)[:, 0])
            x = x if finer is None else x + finer
        return logits


class TRISSegmenter(nn.Module):
    """Stage 2 of TRIS-C. words: float [rows of the vocabulary, word_dim], or None for random ones."""

    def __init__(self, config: SegmenterConfig, vocabulary: Vocabulary, words: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        fine, middle, coarse = config.dark_channels
        dark = {"dark_s8": fine, "dark_s16": middle, "dark_s32": coarse}
        channels = {**dark, **config.bank_channels}
        self.standardise = Standardise(channels)
        self.text = text_encoder(config, len(vocabulary), words)
        self.merge = nn.Conv2d(sum(channels[field] for field in config.merged), middle, 1)
        plain = config.sam_channels if "sam" in config.banks else None
        self.segment = WordSegmenter((coarse, middle, fine), plain, config.text_dim, config.decoder_dims)

    def losses(self, batch: Batch, epoch: int, ranks: Ranks = ALONE) -> SegmenterLosses:
        """The loss terms of one batch, or of this rank's part of it, the same in every epoch.

        StoreError if the batch does not fit. Needs B >= 2 in training mode, over all ranks.
        """
        del epoch
        assert batch.pseudo is not None
        target = unpack_bits(batch.pseudo)  # [B, S/4, S/4]
        terms = [
            F.binary_cross_entropy_with_logits(_resized(x[:, None], target.shape[-2:])[:, 0], target.to(x.dtype))
            for x in self.logits(batch)
        ]
        return SegmenterLosses(final=ranks.share(terms[-1]), total=ranks.share(torch.stack(terms).sum()))

    @torch.no_grad()
    def predict(self, batch: Batch) -> MaskPredictions:
        """The mask of each expression. StoreError if the batch does not fit."""
        side = self.config.side_px
        scores = _resized(self.logits(batch)[-1][:, None], (side, side))[:, 0]
        return MaskPredictions(decided(scores, scores > 0))

    def logits(self, batch: Batch) -> list[Tensor]:
        """Of every step, coarsest first: [B, h, w] each."""
        batch.check(self.config, fields_of(self.config))
        merged = self.merge(torch.cat([self.standardise(batch, field) for field in self.config.merged], dim=1))
        maps = [self.standardise(batch, "dark_s32"), merged, self.standardise(batch, "dark_s8")]
        if "sam" in self.config.banks:
            quarter = self.config.side_px // 4
            maps.append(_resized(self.standardise(batch, "sam"), (quarter, quarter)))
        return self.segment(maps, *self._said(batch.tokens))

    def _said(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """What cells attend to, [B, 1 + L, D], and which of it are pads, bool: the sentence, then its words.

        CLIP's words too end with a token for the whole. Without it a word that stands alone would not be heard: every
        cell's attention to it is 1, and InstanceNorm makes its bias of what is the same everywhere.
        """
        words, pads = self.text.states(tokens), tokens == PAD
        sentence = self.text.pool(words, pads)
        return torch.cat([sentence[:, None], words], dim=1), F.pad(pads, (1, 0), value=False)


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, list(size), mode="bilinear")
