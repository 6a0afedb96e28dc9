"""The systems that can be trained, by name. A new one is a file of its own and a line in `METHODS`, here or there."""

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from ..shards.choices import did_you_mean
from ..shards.errors import ConfigError
from . import apl, refclip, shatter, tris, tris_segmenter, weakmcn
from .apl import APL
from .calibration import TrisLessons
from .config import COCO_CLASSES, POCKET_CLASSES, ModelConfig, TrainConfig, preset, train_preset
from .lessons import Lessons, Material
from .prompts import prompt_words
from .pseudo_labels import SegmenterLessons
from .refclip import RefCLIP
from .shatter import SaG, ShatterConfig
from .standardise import MeasuredFirst
from .tris import TRIS, TrisConfig
from .tris_segmenter import SegmenterConfig, TRISSegmenter
from .vocabulary import Vocabulary
from .weakmcn import WeakMCN


@dataclass(frozen=True, kw_only=True)
class Code:
    """The file of the user's that a method came from."""

    file: str
    """As it was named."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a system is built and what it reads.

    The network it builds answers `losses(batch, epoch, ranks=...)` with a dataclass of scalar tensors, `total` among
    them, each the rank's share of it, and `predict(batch)` with `Predictions`, or `MaskPredictions` where it predicts
    no boxes.
    """

    build: Callable[[Any, Vocabulary, Tensor | None], nn.Module]
    """(configuration, vocabulary, float32 [rows of the vocabulary, word_dim] or None) -> network."""
    fields: Callable[[Any], tuple[str, ...]]
    """The fields of `Batch` it reads, beside `tokens` and `letterbox`, which every batch has."""
    words: Callable[[ModelConfig], tuple[str, ...]] = lambda config: ()
    """The words it says itself, whether or not an expression holds them: a new vocabulary gets those it lacks, last."""
    bfloat16: bool = False
    """Whether it keeps what needs it in float32 when the rest of a step is computed in bfloat16 (precision.py)."""
    compiled: tuple[str, ...] = ()
    """Its modules that compute maps, which compiling.py may have compiled."""
    late: tuple[str, ...] = ()
    """Those of its fields that it does not read before epoch `warm_epochs`."""
    only_trains: tuple[str, ...] = ("masks", "clip_candidates")
    """Those of its fields that it reads to train and never to answer."""
    shares_images: bool = True
    """Whether several expressions of a batch may be about one image (`train.sampling=images`)."""
    masks: bool = True
    """Whether it can predict masks."""
    boxes: bool = True
    """Whether it predicts boxes. Where it does not, its masks alone are measured."""
    settings: type[ModelConfig] = ModelConfig
    """The class of its configuration."""
    recipe: Callable[[str], tuple[ModelConfig, TrainConfig]] | None = None
    """Preset -> sizes and optimisation, where the method has its own."""
    lessons: Callable[[Material], Lessons] = Lessons
    """What it learns from beside columns and words."""
    schedule: Callable[[Any, int], Sequence[str]] = lambda config, epochs: ()
    """(configuration, epochs) -> which term of the loss begins when; lines told before training."""
    remarks: Callable[[Any], Sequence[str]] = lambda config: ()
    """What a reader of its figures must know, a line each."""
    code: Code | None = None
    """Where it is from (own.py tells); None for those of the program."""

    def answers_from(self, config: ModelConfig) -> list[str]:
        """The fields of a batch that an answer needs."""
        return [name for name in self.fields(config) if name not in self.only_trains]

    def mask_head_waits(self, config: Any) -> bool:
        """Whether its mask head begins to learn after `warm_epochs` alone."""
        return self.predicts_masks(config) and "masks" in self.late

    def predicts_masks(self, config: ModelConfig) -> bool:
        """Whether it does so under `config`. Where not, its boxes are measured, and SAM's masks of them."""
        return self.masks and config.wres


def _refclip_recipe(preset_name: str) -> tuple[ModelConfig, TrainConfig]:
    """The preset's sizes, the fusion twice as wide and no banks; the release's own recipe, the same for all data sets.

    `pocket` keeps its recipe.
    """
    model, train = preset(preset_name), train_preset(preset_name)
    if preset_name != "pocket":
        train = replace(train, batch=64, lr=1e-4, min_lr=1e-6, warmup_epochs=3)
    return replace(model, wrec_dim=2 * model.wrec_dim, banks=()), train


def _apl_recipe(preset_name: str) -> tuple[ModelConfig, TrainConfig]:
    """RefCLIP's, with a seed of its own; the box head is as wide as the preset's fusion.

    It joins after 10 of 25 epochs, a number of ours: the release's (BURN_IN) was not published.
    """
    sizes, (model, train) = preset(preset_name), _refclip_recipe(preset_name)
    pocket = preset_name == "pocket"
    own = replace(
        model,
        wres_dim=sizes.wrec_dim,
        warm_epochs=sizes.warm_epochs if pocket else 10,
        class_names=POCKET_CLASSES if pocket else COCO_CLASSES,
    )
    return own, replace(train, seed=666666)


METHODS: dict[str, Method] = {
    "weakmcn": Method(
        build=lambda config, vocabulary, words: WeakMCN(config, len(vocabulary), words),
        fields=weakmcn.fields_of,
        bfloat16=True,
        compiled=("fusion", "rec_banks", "res_banks", "mask_head"),
        late=("masks",),
        schedule=weakmcn.schedule,
    ),
    "refclip": Method(
        build=lambda config, vocabulary, words: RefCLIP(config, len(vocabulary), words),
        fields=refclip.fields_of,
        bfloat16=True,
        compiled=("fusion",),
        masks=False,
        recipe=_refclip_recipe,
    ),
    "apl": Method(
        build=APL, fields=apl.fields_of, words=prompt_words, compiled=("fusion",), masks=False, recipe=_apl_recipe
    ),
    "tris-c": Method(
        build=TRIS,
        fields=tris.fields_of,
        boxes=False,
        shares_images=False,
        settings=TrisConfig,
        recipe=tris.recipe,
        lessons=TrisLessons,
        remarks=tris.remarks,
    ),
    "tris-c2": Method(
        build=TRISSegmenter,
        fields=tris_segmenter.fields_of,
        boxes=False,
        shares_images=False,
        settings=SegmenterConfig,
        recipe=tris_segmenter.recipe,
        lessons=SegmenterLessons,
        remarks=tris_segmenter.remarks,
    ),
    "sag-c": Method(
        build=SaG,
        fields=shatter.fields_of,
        boxes=False,
        shares_images=False,
        settings=ShatterConfig,
        recipe=shatter.recipe,
        lessons=MeasuredFirst,
        remarks=shatter.remarks,
    ),
}


def method_of(name: str, file: str | None = None) -> Method:
    """The method of that name; ConfigError naming those that exist.

    file: where a run says it is from, of the user's own. It is told and not run: that takes `--with`.
    """
    if name in METHODS:
        return METHODS[name]
    if file is not None:
        raise ConfigError(
            f"method {name!r} is in {file!r}, a file of its user's. To run the code of that file, name it before the "
            f"command: weakmcn --with {shlex.quote(file)} …"
        )
    raise ConfigError(
        f"method {name!r} is not known{did_you_mean(name, METHODS)}; choose one of {', '.join(METHODS)}, or name the "
        "file of your own before the command: weakmcn --with FILE …"
    )


def recipe(method: str, preset_name: str) -> tuple[ModelConfig, TrainConfig]:
    """Sizes and optimisation of a method under a preset, the preset's own where the method has no recipe.

    ConfigError for a name that does not exist.
    """
    if (own := method_of(method).recipe) is not None:
        return own(preset_name)
    return preset(preset_name), train_preset(preset_name)
