"""TRIS-C, stage 1: where in the image is what the sentence says, learned as classification of texts.

A cached-feature port of TRIS (ICCV 2023): the heads and losses are those of the release, the encoders are not. Instead
of a fine-tuned CLIP it sees frozen maps of the detector and of DINO, each channel standardised, and the project's
sentence encoder; the table of docs/methods.md says what that loses.

    v, t     cells and sentence, each taken to width D and to length 1
    v', t'   v + 0.1 dv, t + 0.1 dt, what either learns from the other (BilateralPrompt)
    s        <v', t'> / 0.07, for every image, text and cell
    L        5 L_cls + L_fg + 2 L_neg; the last two are calibration (calibration.py)

A text alone answers: the prompt of the cells is then a learned constant, whatever the text says, as in the original;
in training it depends on all texts of the batch. The mask is where s > 0. Trainable parameters beside the sentence
encoder: 10,242,048 at the paper's sizes, exactly as the method page of TRIS has them.
Axes: B images, N texts, D width of the common space, P = H W cells, C channels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..shards.choices import require_one_of
from ..shards.errors import ConfigError
from . import calibration
from .batch import Batch
from .config import BANKS, ModelConfig, TrainConfig, preset
from .mask_answers import MaskPredictions, decided
from .ranks import ALONE, Ranks
from .slots import sine_places
from .standardise import Standardise
from .text import text_encoder
from .vocabulary import Vocabulary

STEEPNESS = 1 / 0.07
"""Of the response. A parameter in the release, but in no group of its optimiser, so it never moves."""
PROMPT_SHARE = 0.1
CLS, FG, NEG = 5, 1, 2
"""Weights of the loss terms."""


@dataclass(frozen=True, kw_only=True)
class TrisConfig(ModelConfig):
    """Shape of TRIS-C's stage 1 and of its loss. Of ModelConfig it reads canvas, words, text, maps and banks."""

    banks: Sequence[str] = ("dino",)
    """Maps that join the detector's of stride 16."""
    warm_epochs: int = 0
    """Not used: nothing waits for anything."""
    tris_dim: int = 1024
    """Width D of the space in which cells and texts are compared; 512 is the light variant."""
    places: bool = False
    """Adds fixed sines of row and column to the cells. TRIS has none: its encoders could learn places, these cannot."""
    calibration: str = "none"
    """Stands for the frozen CLIP that looks at the masked image: none, prop (CLIP's embeddings of the candidates) or
    pool (CLIP's tokens); the last two need caption_vectors."""
    negatives: int = 3
    """Captions of other objects of the image that calibration compares with, drawn anew in every epoch."""
    caption_vectors: str = ""
    """File of the captions' vectors by CLIP's text encoder, see weakmcn.model.words.write_words."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("tris_dim", "negatives"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.places and self.tris_dim % 4:
            raise ConfigError(
                f"tris_dim={self.tris_dim} must be divisible by 4 where places are told (sines and cosines)."
            )
        require_one_of("calibration", self.calibration, calibration.MODES)
        if (self.calibration == "none") != (not self.caption_vectors):
            raise ConfigError(
                f"calibration={self.calibration} and caption_vectors={self.caption_vectors!r}: calibration compares "
                "with vectors of the captions, so name both or neither."
            )
        if self.calibration == "pool" and "clip" not in self.banks:
            raise ConfigError("calibration=pool reads CLIP's tokens; add clip to banks (--set model.banks=dino,clip).")


def fields_of(config: TrisConfig) -> tuple[str, ...]:
    """What stage 1 reads of a batch beside tokens and letterbox."""
    return ("dark_s16", *config.banks, *(("clip_candidates", "masks") if config.calibration == "prop" else ()))


def recipe(preset_name: str) -> tuple[TrisConfig, TrainConfig]:
    """The release's recipe, with the method page's rate for heads alone; `pocket` has sizes and epochs of its own."""
    sizes = preset(preset_name)
    pocket = preset_name == "pocket"
    model = TrisConfig(**shared(sizes), banks=("dino",), tris_dim=128 if pocket else 1024)
    train = TrainConfig(
        epochs=15,
        batch=48,
        lr=2e-4,
        min_lr=0,
        warmup_lr=0,
        warmup_epochs=0,
        clip_norm=1e9,  # never reached: the release does not clip
        betas=(0.9, 0.999),
        eps=1e-8,
        ema_decay=0,
        seed=1234,
        optimiser="adamw",
        weight_decay=0.01,
        schedule="poly",
    )
    return model, replace(train, epochs=12, lr=1e-3) if pocket else train


PORT = "a cached-feature port, not a reproduction: {}; docs/methods.md says what else it loses."
"""The remark beside every figure of a port."""


def remarks(config: TrisConfig) -> tuple[str, ...]:
    """What a reader of stage 1's figures must know."""
    judge = {
        "none": "no CLIP judges the masks",
        "prop": "CLIP judges 17 masks",
        "pool": "CLIP's tokens judge the masks",
    }
    lost = f"frozen detector and DINO in place of a fine-tuned CLIP, {judge[config.calibration]}"
    return (f"TRIS-C{' with places' if config.places else ''}, stage 1: {PORT.format(lost)}",)


def shared(sizes: ModelConfig) -> dict:
    """The settings of a preset that any method has: canvas, columns, words and the sentence encoder."""
    names = ("side_px", "candidates", "max_tokens", "dark_channels", *(f"{bank}_channels" for bank in BANKS))
    text = ("word_dim", "text_dim", "text_heads", "text_layers", "text_ff_dim", "text_flat_dim", "train_words")
    return {name: getattr(sizes, name) for name in (*names, *text)}


@dataclass(frozen=True, eq=False)
class TrisLosses:
    """Scalars of one step, on several ranks each rank's share of them; a term that was not computed is 0."""

    cls: Tensor
    """Which text belongs to which image."""
    fg: Tensor
    """Calibration: the mask shows what the caption says."""
    neg: Tensor
    """Calibration: and not what captions of other objects say."""
    total: Tensor
    """5 cls + fg + 2 neg."""


class BilateralPrompt(nn.Module):
    """What cells learn from texts and texts from cells, a tenth of it added to either.

    With one text the softmax over texts is 1, so every cell gets the same vector, and InstanceNorm makes its bias of
    it: the text is not heard on this side, which need not be computed.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.seen = nn.ModuleList(nn.Conv2d(width, width, 1) for _ in range(3))
        self.seen_norms = nn.ModuleList(nn.InstanceNorm2d(width, affine=True) for _ in range(3))
        self.said = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.to_cells = nn.Linear(width, width)
        self.to_cells_norm = nn.InstanceNorm2d(width, affine=True)
        self.to_texts = nn.Linear(width, width)

    def forward(self, cells: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """cells: [B, D, H, W]; texts: [1 or B, N, D]; returns the prompted cells and texts [B, N, D]."""
        scale = 1 / math.sqrt(cells.shape[1])
        key, value = (self._of_cells(cells, part) for part in (1, 2))  # [B, D, P]
        attention = (self._of_texts(texts, 0) @ key * scale).softmax(dim=-1)  # [B, N, P]
        for_texts = self.to_texts(attention @ value.transpose(1, 2))  # [B, N, D]
        return cells + PROMPT_SHARE * self._for_cells(cells, texts, scale), texts + PROMPT_SHARE * for_texts

    def _for_cells(self, cells: Tensor, texts: Tensor, scale: float) -> Tensor:
        """[B, D, H, W], or [D, 1, 1] where it is the same for every cell."""
        if texts.shape[1] == 1:
            assert self.to_cells_norm.bias is not None
            return self.to_cells_norm.bias[:, None, None]
        query = self._of_cells(cells, 0).transpose(1, 2)  # [B, P, D]
        attention = (query @ self._of_texts(texts, 1).transpose(1, 2) * scale).softmax(dim=-1)  # [B, P, N]
        # The weights of a cell sum to 1, so the last map may be applied to the N texts instead of the P cells.
        learned = (attention @ self.to_cells(self._of_texts(texts, 2))).transpose(1, 2)  # [B, D, P]
        return self.to_cells_norm(learned.unflatten(-1, cells.shape[-2:]))

    def _of_cells(self, cells: Tensor, part: int) -> Tensor:
        return F.relu(self.seen_norms[part](self.seen[part](cells))).flatten(2)

    def _of_texts(self, texts: Tensor, part: int) -> Tensor:
        return F.relu(self.said[part](texts))


class Localiser(nn.Module):
    """The response of every cell to every text. seen_dim: channels of the maps; said_dim: of a sentence.

    places: whether a cell knows where it is. Else cells may be permuted, and the response is permuted with them.
    """

    def __init__(self, seen_dim: int, said_dim: int, width: int, *, places: bool = False) -> None:
        super().__init__()
        self.places = places
        self.see = nn.Conv2d(seen_dim, width, 1)
        self.say = nn.Linear(said_dim, width)
        self.prompt = BilateralPrompt(width)

    def texts(self, sentences: Tensor) -> Tensor:
        """[N, said_dim] to unit vectors [N, D]."""
        return F.normalize(self.say(sentences), dim=-1)

    def forward(self, maps: Tensor, texts: Tensor) -> Tensor:
        """maps: [B, seen_dim, H, W]; texts: unit vectors [1 or B, N, D]; returns s [B, N, H, W]."""
        seen = self.see(maps)
        if self.places:
            height, width = maps.shape[-2:]
            seen = seen + sine_places(height, width, like=texts).T.unflatten(1, (height, width))
        cells, said = self.prompt(F.normalize(seen, dim=1), texts)
        return torch.einsum("bnd,bdhw->bnhw", said, cells) * STEEPNESS


class TRIS(nn.Module):
    """Stage 1 of TRIS-C. words: float [rows of the vocabulary, word_dim], or None for random ones."""

    def __init__(self, config: TrisConfig, vocabulary: Vocabulary, words: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        channels = {"dark_s16": config.dark_channels[1], **config.bank_channels}
        self.standardise = Standardise(channels)
        self.text = text_encoder(config, len(vocabulary), words)
        seen_dim = sum(channels.values())
        self.localise = Localiser(seen_dim, config.text_dim, config.tris_dim, places=config.places)

    def losses(self, batch: Batch, epoch: int, ranks: Ranks = ALONE) -> TrisLosses:
        """The loss terms of one batch, or of this rank's part of it, the same in every epoch.

        All captions of the whole batch are scored against every image. StoreError if the batch does not fit.
        """
        del epoch
        batch.check(self.config, fields_of(self.config))
        texts, first = ranks.contrasted(self.localise.texts(self.text(batch.tokens)))
        response = self.localise(self._maps(batch), texts[None])  # [b, B, H, W]
        cls = ranks.share(classification_loss(response.flatten(2), first))
        fg = neg = torch.zeros_like(cls)
        if self.config.calibration != "none":
            own = response.diagonal(first).movedim(-1, 0)  # [b, H, W]
            fg, neg = map(ranks.share, calibration.losses(own.sigmoid(), batch, self.config.calibration))
        return TrisLosses(cls=cls, fg=fg, neg=neg, total=CLS * cls + FG * fg + NEG * neg)

    @torch.no_grad()
    def predict(self, batch: Batch) -> MaskPredictions:
        """The mask of each expression, each scored alone. StoreError if the batch does not fit."""
        side = self.config.side_px
        scores = F.interpolate(self.responses(batch)[:, None], (side, side), mode="bilinear")[:, 0]
        return MaskPredictions(decided(scores, scores > 0))

    @torch.no_grad()
    def responses(self, batch: Batch) -> Tensor:
        """s of each expression alone with its image: [B, S/16, S/16]."""
        batch.check(self.config, self._maps_read())
        texts = self.localise.texts(self.text(batch.tokens))
        return self.localise(self._maps(batch), texts[:, None])[:, 0]

    def _maps_read(self) -> tuple[str, ...]:
        return self.standardise.fields

    def _maps(self, batch: Batch) -> Tensor:
        return torch.cat([self.standardise(batch, field) for field in self._maps_read()], dim=1)


def classification_loss(response: Tensor, first: int = 0) -> Tensor:
    """Multi-label cross-entropy of which texts belong to an image, mean over images and texts: a scalar.

    response: [B, N, P]; text n belongs to image n - first. With m the mean share of a text beside all others and a
    background of response 1, z = mean + max + (1 - m)^3 ln(0.01 + m) over the cells.
    """
    background = torch.ones_like(response[:, :1])
    share = torch.cat([background, response], dim=1).softmax(dim=1)[:, 1:].mean(dim=-1)  # [B, N]
    z = response.mean(dim=-1) + response.amax(dim=-1) + area_term(share)
    own = torch.zeros_like(z)
    own.diagonal(first).fill_(1)
    return F.binary_cross_entropy_with_logits(z, own)


def area_term(share: Tensor) -> Tensor:
    """A penalty for maps that cover little: about -4.6 for none, rising to 0. share: 0..1."""
    return (1 - share) ** 3 * (0.01 + share).log()
