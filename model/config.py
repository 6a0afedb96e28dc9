"""Settings of the network and of its training, and the presets that carry the released values.

Every size of the network is a field of `ModelConfig`, so the pocket world and the paper run the same classes. The
presets follow the authors' configuration files: `refcoco`, `refcoco+` and `refcocog` are their `*_tuning` files (with
EfficientSAM ViT-Ti), the `-small` ones their `*_tuning_v2` files (ViT-S, which the authors' README calls "base"), with
what these have by mistake put right (quirk 29).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ..shards.choices import not_known, require_one_of
from ..shards.errors import ConfigError

BANKS = ("dino", "sam", "clip", "extra")
"""Feature banks that may be added to the detector maps, in the order of the router's outputs."""

SAMPLINGS = ("references", "images")


OPTIMISERS = ("adam", "adamw")
SCHEDULES = ("cosine", "poly")


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise ConfigError(what)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the network and of its losses. Defaults are the released `refcoco_tuning` values.

    Any sequence is taken for the tuple fields, so a configuration read back from JSON is equal to the one written. Each
    field is read somewhere; released keys that nothing reads are gone (quirk 32).
    """

    side_px: int = 416
    """Edge S of the padded square (the canvas)."""
    candidates: int = 17
    """Candidate cells K of an image (SELECT_NUM)."""
    max_tokens: int = 15
    """Tokens T of an expression; longer ones are cut (MAX_TOKEN)."""
    dark_channels: Sequence[int] = (256, 512, 1024)
    """Channels of the detector maps of stride 8, 16 and 32."""
    banks: Sequence[str] = ("dino", "sam")
    """Banks in use: any subset of dino, sam, clip, extra in this order. Empty leaves the detector maps alone."""
    dino_channels: int = 768
    """Channels of DINO's patch tokens."""
    sam_channels: int = 256
    """Channels of SAM's image embedding."""
    clip_channels: int = 512
    """Channels of CLIP's patch tokens, in the space it shares with texts."""
    extra_channels: int = 256
    """Channels of the map of an encoder of the user's own."""
    word_dim: int = 300
    """Width of a word vector."""
    text_dim: int = 512
    """Width of the sentence vector, and of the space in which candidates and sentences are compared (HIDDEN_SIZE)."""
    wrec_dim: int = 512
    """Width of the fused visual maps (WREC_DIM). RefCLIP keeps text_dim 512 and has 1024 here."""
    wres_dim: int = 256
    """Width R of the mask head (WRES_DIM). APL: of its box head."""
    text_heads: int = 8
    """Heads of the sentence encoder's self-attention."""
    text_layers: int = 3
    """Layers of self-attention after the GRU."""
    text_ff_dim: int = 2048
    """Hidden width of the two-layer network in each of them."""
    text_flat_dim: int = 256
    """Hidden width of the pooling that weighs the words."""
    attention_heads: int = 2
    """Heads of the mask head's attention block."""
    dropout: float = 0.1
    """Probability of dropping, everywhere in the text encoder and in the mask head's attention."""
    train_words: bool = False
    """Whether the word table learns; the released one (GloVe) is frozen."""
    aspp_dilations: Sequence[int] = (6, 12, 18)
    """Dilations, in cells of the stride-8 map, of the three 3 x 3 branches of the mask head's pyramid."""
    dynamic: bool = True
    """DVFE's router weighs the banks for each image. False: each of n banks weighs 1/n and there is no router."""
    wres: bool = True
    """Builds and trains the mask branch. False: WREC alone, which predicts boxes (Table 1's WeakMCN without WRES)."""
    scl: bool = True
    """Adds the box projection loss of the mask (spatial consistency)."""
    isl: bool = True
    """From `isl_start_epoch`, a sample's mask loss counts only if the predicted mask agrees with the box."""
    isl_start_epoch: int = 15
    """First epoch, counted from 0, of that gate; written into the authors' code, a setting here."""
    isl_threshold: float = 0.4
    """IoU above which mask and box agree, strictly. Released value (IOU_THRESH); the paper's text says 0.3."""
    warm_epochs: int = 10
    """Epochs trained on the matching loss alone (WARM_EPOCH). APL: before its box head joins (BURN_IN, which the
    release defines nowhere)."""
    class_names: Sequence[str] = ()
    """What the detector's classes are called, in its order. Only APL says them; its recipe names them."""
    clip_boxes_in_eval: bool = False
    """Clips predicted boxes to the photo. The authors clip in training only; clipping here raises box IoU."""

    def __post_init__(self) -> None:
        for name in ("dark_channels", "banks", "aspp_dilations", "class_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        cells, spare_px = divmod(self.side_px, 32)
        _require(
            cells > 0 and spare_px == 0,
            f"side_px={self.side_px} is no multiple of 32, the stride of the coarsest map; try {max(1, cells) * 32}.",
        )
        _require(
            2 <= self.candidates <= cells**2,
            f"candidates={self.candidates} must be at least 2 (the second best is a negative) and at most the "
            f"{cells**2} cells of a canvas of {self.side_px} pixels.",
        )
        _require(
            self.banks == tuple(bank for bank in BANKS if bank in self.banks),
            f"banks={list(self.banks)} must be a subset of {', '.join(BANKS)}, in this order, each once.",
        )
        _require(len(self.dark_channels) == 3, "dark_channels needs three numbers: strides 8, 16 and 32.")
        _require(len(self.aspp_dilations) == 3, "aspp_dilations needs three numbers.")
        sizes = {
            name: getattr(self, name)
            for name in (
                *("max_tokens", "word_dim", "text_dim", "wrec_dim", "wres_dim", "text_heads", "text_ff_dim"),
                *("text_flat_dim", "attention_heads", *(f"{bank}_channels" for bank in BANKS)),
            )
        }
        sizes |= {f"dark_channels[{i}]": size for i, size in enumerate(self.dark_channels)}
        sizes |= {f"aspp_dilations[{i}]": size for i, size in enumerate(self.aspp_dilations)}
        for name, size in sizes.items():
            _require(size >= 1, f"{name}={size} must be at least 1.")
        for name in ("text_layers", "warm_epochs", "isl_start_epoch"):
            _require(getattr(self, name) >= 0, f"{name}={getattr(self, name)} must not be negative.")
        for name, divisor, why in (
            ("text_dim", self.text_heads, "text_heads"),
            ("text_dim", 4, "sine and cosine of two coordinates"),
            ("wrec_dim", 2, "the half-width blocks of the fusion"),
            ("wres_dim", 2, "the half-width blocks of the fusion"),
            ("wres_dim", self.attention_heads, "attention_heads"),
        ):
            _require(
                getattr(self, name) % divisor == 0,
                f"{name}={getattr(self, name)} must be divisible by {divisor} ({why}).",
            )
        _require(0 <= self.dropout < 1, f"dropout={self.dropout} must be in 0..1, 1 excluded.")
        _require(0 <= self.isl_threshold <= 1, f"isl_threshold={self.isl_threshold} must be in 0..1.")

    @property
    def bank_channels(self) -> dict[str, int]:
        """Channels of each bank in use, in the order of the router's outputs."""
        return {bank: getattr(self, f"{bank}_channels") for bank in self.banks}


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """The optimisation recipe. Defaults are the released `refcoco_tuning` values.

    The mask loss is multiplied by the batch size and the gradient is clipped to a small norm, so `batch` sets the
    balance of the two tasks: nothing rescales it for other sizes.
    """

    epochs: int = 25
    """Passes over the training references."""
    batch: int = 40
    """Expressions in a step; the contrast and the BatchNorms see all of them."""
    sampling: str = "references"
    """What an epoch goes through. references: each once, in batches of different images, as released. images: each
    once with all its references, which share what the image alone decides and are no negatives of each other; a step
    has as many images as have `batch` references on average."""
    lr: float = 1e-4
    """Learning rate after the warm-up."""
    min_lr: float = 3e-5
    """Learning rate at the end of the cosine."""
    warmup_lr: float = 1e-7
    """Learning rate of the first step."""
    warmup_epochs: int = 4
    """Epochs of linear growth from `warmup_lr` to `lr`; not the model's `warm_epochs`."""
    clip_norm: float = 0.15
    """Largest norm of the whole gradient."""
    betas: Sequence[float] = (0.9, 0.98)
    """Of Adam: how slowly the means of the gradient and of its square follow."""
    eps: float = 1e-9
    """Of Adam: added to the root of the mean square."""
    ema_decay: float = 0.9997
    """Largest decay of the averaged weights; after step j it is min(ema_decay, (1 + j) / (10 + j)). 0: no average."""
    optimiser: str = "adam"
    """adam or adamw."""
    weight_decay: float = 0.0
    """Of AdamW, of every weight that learns: its share that a step takes away, times the learning rate."""
    schedule: str = "cosine"
    """How the learning rate falls after the warm-up, step by step: cosine, or poly, a power of the steps left."""
    poly_power: float = 0.9
    """That power."""
    warmup_steps: int = 0
    """Steps of warm-up beside those of `warmup_epochs`, where whole epochs are too coarse."""
    seed: int = 123456
    """Of the first weights, the order of training and dropout."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "betas", tuple(self.betas))
        _require(self.epochs >= 1, f"epochs={self.epochs} must be at least 1.")
        require_one_of("sampling", self.sampling, SAMPLINGS)
        _require(self.batch >= 2, f"batch={self.batch} must be at least 2: the loss contrasts images of a batch.")
        for name in ("lr", "clip_norm", "eps"):
            _require(0 < getattr(self, name) < math.inf, f"{name}={getattr(self, name)} must be positive and finite.")
        for name in ("min_lr", "warmup_lr"):
            value = getattr(self, name)
            _require(0 <= value <= self.lr, f"{name}={value} must be in 0..lr={self.lr}.")
        _require(
            0 <= self.warmup_epochs <= self.epochs,
            f"warmup_epochs={self.warmup_epochs} must be in 0..epochs={self.epochs}.",
        )
        _require(
            len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas),
            f"betas={list(self.betas)} must be two numbers in 0..1, 1 excluded.",
        )
        _require(0 <= self.ema_decay < 1, f"ema_decay={self.ema_decay} must be in 0..1, 1 excluded.")
        require_one_of("optimiser", self.optimiser, OPTIMISERS)
        require_one_of("schedule", self.schedule, SCHEDULES)
        for name in ("weight_decay", "poly_power", "warmup_steps"):
            value = getattr(self, name)
            _require(0 <= value < math.inf, f"{name}={value} must not be negative, and finite.")
        _require(
            self.weight_decay == 0 or self.optimiser == "adamw",
            f"weight_decay={self.weight_decay} needs optimiser=adamw; {self.optimiser} has none.",
        )


COCO_CLASSES = (
    *("person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light"),
    *("fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow"),
    *("elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee"),
    *("skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard"),
    *("tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple"),
    *("sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch"),
    *("potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone"),
    *("microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear"),
    *("hair drier", "toothbrush"),
)
"""Of the published detector, in its order."""
POCKET_CLASSES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent")
"""Of the pocket detector: the shapes."""

_PRESETS: dict[str, tuple[ModelConfig, TrainConfig]] = {
    "refcoco": (
        ModelConfig(),
        TrainConfig(),
    ),
    "refcoco+": (
        ModelConfig(warm_epochs=8),
        TrainConfig(min_lr=4e-5),
    ),
    "refcocog": (
        ModelConfig(warm_epochs=7),
        TrainConfig(lr=1.2e-4, min_lr=7e-5),
    ),
    "refcoco-small": (
        ModelConfig(wres_dim=512),
        TrainConfig(batch=56, min_lr=4e-5),
    ),
    # The released file says batch 2, with 56 in a comment: 56 is the batch of its sister and the only usable one.
    "refcoco+-small": (
        ModelConfig(wres_dim=512, warm_epochs=9),
        TrainConfig(batch=56, min_lr=6e-5),
    ),
    # Unlike the other two small configurations, the released file keeps R = 256.
    "refcocog-small": (
        ModelConfig(warm_epochs=8),
        TrainConfig(batch=64, lr=1.2e-4, min_lr=7e-5),
    ),
    # Our own sizes, for the small world that ships with the package; nothing here comes from the paper.
    "pocket": (
        ModelConfig(
            side_px=192,
            candidates=9,
            dark_channels=(32, 64, 128),
            dino_channels=96,
            sam_channels=64,
            clip_channels=96,
            word_dim=64,
            text_dim=128,
            wrec_dim=96,
            wres_dim=48,
            text_heads=4,
            text_layers=1,
            text_ff_dim=256,
            text_flat_dim=64,
            train_words=True,
            aspp_dilations=(3, 6, 9),
            isl_start_epoch=5,
            warm_epochs=3,
        ),
        TrainConfig(
            epochs=7,
            batch=48,
            lr=2e-3,
            min_lr=2e-4,
            warmup_lr=1e-5,
            warmup_epochs=1,
            ema_decay=0.998,
        ),
    ),
}

PRESETS = tuple(_PRESETS)


def _find(name: str) -> tuple[ModelConfig, TrainConfig]:
    if name not in _PRESETS:
        raise not_known(f"preset {name!r}", name.lower().replace("_", "-"), PRESETS)
    return _PRESETS[name]


def preset(name: str) -> ModelConfig:
    """The network of a preset; `ConfigError` with the nearest name where there is none."""
    return _find(name)[0]


def train_preset(name: str) -> TrainConfig:
    """The recipe of a preset; `ConfigError` with the nearest name where there is none."""
    return _find(name)[1]
