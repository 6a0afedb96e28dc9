"""Settings of the offline half: which frozen networks, at which sizes, from which weights.

The pocket world and the published networks differ here and nowhere else. Every value except `checkpoint` and
`statistics_file` is part of a stage's fingerprint; of a checkpoint the SHA-256 of the file is, never its path.
"""

from dataclasses import dataclass, field, replace

from ..shards.choices import not_known, require_one_of
from ..shards.codec import check_codec
from ..shards.errors import ConfigError

SHIPPED = "pocket:"
"""Prefix of a checkpoint name that means a file shipped with the package (`pipeline/pocket/weights`)."""


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """The photographs whose BatchNorm statistics the detector uses: the training split of one data set.

    Fixed when they are first asked for; what a store gains later does not change them.
    """

    dataset: str
    images: int
    """How many there are."""
    images_sha256: str
    """Digest of the list: every key with the SHA-256 of its file, keys ascending."""


@dataclass(frozen=True, kw_only=True)
class DetectConfig:
    """YOLOv3: three feature maps and the K candidate boxes (WeakMCN, method sections 5 and 7)."""

    checkpoint: str
    """The detector's own file, or a WeakMCN or RefCLIP checkpoint, whose detector is taken out of it."""
    width: int = 32
    """Channels of the first convolution; every other width follows. 32 is the published network."""
    classes: int = 80
    keep: int = 17
    """K, candidate cells kept of the coarsest grid."""
    batch: int = 16
    statistics: Statistics | None = None
    """Where BatchNorm's statistics come from: None, those of the checkpoint, frozen; or re-estimated (quirk 1)."""
    statistics_file: str = ""
    """Where the re-estimated ones are; recorded, not hashed."""


@dataclass(frozen=True, kw_only=True)
class DinoConfig:
    """A timm ViT whose patch tokens are the DINO bank."""

    checkpoint: str
    model: str = "vit_base_patch14_dinov2"
    """Name of the network in timm."""
    input_px: int = 364
    """Side of the square it sees, resampled from the canvas; a multiple of its patch."""
    channels: int = 768
    position_resampling: str = "meta"
    """How the position table is brought to another grid: "meta" (as DINOv2's release and the paper do) or "size"
    (as transformers does since 4.48); see encoders/dino.py."""
    options: dict[str, int] = field(default_factory=dict)
    """Further arguments of timm's constructor (embed_dim, depth, …) for sizes that have no name."""
    batch: int = 16

    def __post_init__(self) -> None:
        require_one_of("dino.position_resampling", self.position_resampling, ("meta", "size"))


@dataclass(frozen=True, kw_only=True)
class SamConfig:
    """Segment Anything (`segment-anything` package) or EfficientSAM (own code); the defaults are SAM's ViT-B."""

    checkpoint: str
    family: str = "sam"
    """Whose: sam or efficient_sam."""
    image_px: int = 1024
    """Side of the square it sees, drawn straight from the photograph."""
    patch_px: int = 16
    embed_dim: int = 768
    depth: int = 12
    heads: int = 12
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    """Blocks that attend over the whole image, the others inside windows; EfficientSAM has no windows."""
    window: int = 14
    channels: int = 256
    """Channels of the image embedding and of the mask decoder."""
    decoder_heads: int = 8
    decoder_mlp: int = 2048
    batch: int = 4
    boxes_chunk: int = 64
    """Boxes decoded in one call."""

    def __post_init__(self) -> None:
        require_one_of("sam.family", self.family, ("sam", "efficient_sam"))
        if self.image_px % self.patch_px:
            below = self.image_px // self.patch_px * self.patch_px
            raise ConfigError(f"sam.image_px={self.image_px} is no multiple of patch_px={self.patch_px}; try {below}.")

    @property
    def mask_inputs(self) -> tuple[str, ...]:
        """Columns that stage `masks` reads: the stored embedding too, where it is the decoder's own input."""
        return ("detect.boxes", "sam.embedding") if self.family == "efficient_sam" else ("detect.boxes",)


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """A timm CLIP image tower: patch tokens and candidate embeddings, both in the joint space."""

    checkpoint: str
    model: str = "vit_base_patch16_clip_quickgelu_224.openai"
    """Name of the network in timm. OpenAI's weights need the quickgelu variant."""
    input_px: int = 416
    """Side of the square its patch tokens are taken from."""
    table_px: int | None = None
    """Side of the square the position table belongs to, where that is not `input_px`; resampled at need."""
    channels: int = 512
    """Width of the joint space."""
    options: dict[str, int] = field(default_factory=dict)
    candidate_px: int = 224
    """Side of the square a candidate's masked photo is shown at."""
    softness_px: float = 8.0
    """Standard deviation, in canvas pixels, of the Gaussian that softens a candidate's mask."""
    batch: int = 16


@dataclass(frozen=True, kw_only=True)
class ExtraConfig:
    """An encoder of the user's own; all but `checkpoint` comes from its file (encoders/extra.py)."""

    checkpoint: str = ""
    """The Python file with it. Code: never taken from a store or a run, only from a command line."""
    channels: int = 0
    weights_sha256: str = ""
    """Of the file of its weights, where it has one."""
    batch: int = 1


@dataclass(frozen=True, kw_only=True)
class PipelineConfig:
    """All stages of one precompute."""

    name: str
    side_px: int = 416
    """S, edge of the padded square every network sees."""
    detect: DetectConfig
    dino: DinoConfig
    sam: SamConfig
    clip: ClipConfig
    extra: ExtraConfig = ExtraConfig()
    codec: str = "f16"
    """How the large maps are kept: f16, bf16, u8 or f32."""
    images_per_shard: int = 64

    def __post_init__(self) -> None:
        if self.side_px % 32:
            raise ConfigError(f"side_px={self.side_px} is not a multiple of 32; try {self.side_px // 32 * 32}.")
        cells = (self.side_px // 32) ** 2
        if not 2 <= self.detect.keep <= cells:
            raise ConfigError(f"detect.keep={self.detect.keep} of {cells} cells; choose 2 to {cells}.")
        check_codec(self.codec)
        sam = self.sam
        if sam.family == "efficient_sam" and sam.image_px // sam.patch_px != self.side_px // 16:
            raise ConfigError(
                f"sam.image_px={sam.image_px} gives {sam.image_px // sam.patch_px} patches a side, the canvas grid has "
                f"{self.side_px // 16}; choose {self.side_px // 16 * sam.patch_px}."
            )


def with_statistics(config: PipelineConfig, statistics: Statistics | None, file: str = "") -> PipelineConfig:
    """The same settings with other statistics for the detector; file: where they are or will be."""
    return replace(config, detect=replace(config.detect, statistics=statistics, statistics_file=file))


def sam_vit(size: str, checkpoint: str) -> SamConfig:
    """Segment Anything (Kirillov et al. 2023) with the image encoder "b", "l" or "h"."""
    embed_dim, depth, heads, global_blocks = {
        "b": (768, 12, 12, (2, 5, 8, 11)),
        "l": (1024, 24, 16, (5, 11, 17, 23)),
        "h": (1280, 32, 16, (7, 15, 23, 31)),
    }[size]
    # One image a batch: its 4,096 tokens are a batch in themselves, and the last batch is never padded.
    return SamConfig(
        checkpoint=checkpoint, embed_dim=embed_dim, depth=depth, heads=heads, global_blocks=global_blocks, batch=1
    )


def efficient_sam(size: str, checkpoint: str) -> SamConfig:
    """EfficientSAM (Xiong et al. 2024), "ti" or "s", on the 416 canvas as WeakMCN runs it (method section 6)."""
    embed_dim, heads = {"ti": (192, 3), "s": (384, 6)}[size]
    return SamConfig(
        checkpoint=checkpoint,
        family="efficient_sam",
        image_px=416,
        embed_dim=embed_dim,
        heads=heads,
        global_blocks=(),
        window=0,
        batch=16,
    )


_POCKET_VIT = {"patch_size": 16, "embed_dim": 96, "depth": 4, "num_heads": 3}

_POCKET = PipelineConfig(
    name="pocket",
    side_px=192,
    detect=DetectConfig(checkpoint="pocket:detect", width=4, classes=8, keep=9, batch=16),
    dino=DinoConfig(
        checkpoint="pocket:dino",
        model="vit_tiny_patch16_224",
        input_px=192,
        channels=96,
        options=_POCKET_VIT,
        batch=16,
    ),
    sam=SamConfig(
        checkpoint="pocket:sam",
        image_px=192,
        patch_px=12,
        embed_dim=96,
        depth=4,
        heads=4,
        global_blocks=(1, 3),
        window=8,
        channels=64,
        decoder_heads=4,
        decoder_mlp=128,
        batch=8,
    ),
    clip=ClipConfig(
        checkpoint="pocket:clip",
        model="vit_tiny_patch16_224",
        input_px=192,
        channels=96,
        options=_POCKET_VIT,
        candidate_px=96,
        softness_px=4.0,
        batch=16,
    ),
)


def _published(name: str, sam: SamConfig) -> PipelineConfig:
    return PipelineConfig(
        name=name,
        detect=DetectConfig(checkpoint="weights/yolov3_coco.pth"),
        dino=DinoConfig(checkpoint="weights/dinov2_vitb14_pretrain.pth"),
        sam=sam,
        clip=ClipConfig(checkpoint="weights/clip_vit_b16.safetensors", table_px=224),
    )


_PAPER = _published("refcoco", efficient_sam("ti", "weights/efficient_sam_vitt.pt"))
_SMALL = _published("refcoco-small", efficient_sam("s", "weights/efficient_sam_vits.pt.zip"))
_DINOV3 = DinoConfig(checkpoint="weights/dinov3_vit_b16.safetensors", model="vit_base_patch16_dinov3", input_px=416)

PRESETS: dict[str, PipelineConfig] = {
    each.name: each
    for each in (
        _POCKET,
        _PAPER,
        replace(_PAPER, name="refcoco+"),
        replace(_PAPER, name="refcocog"),
        _SMALL,
        replace(_SMALL, name="refcoco+-small"),
        replace(_SMALL, name="refcocog-small"),
        _published("sam-b", sam_vit("b", "weights/sam_vit_b_01ec64.pth")),
        _published("sam-l", sam_vit("l", "weights/sam_vit_l_0b3195.pth")),
        _published("sam-h", sam_vit("h", "weights/sam_vit_h_4b8939.pth")),
        replace(_PAPER, name="dinov3", dino=_DINOV3),
    )
}
"""The paper's networks go by the names of the training presets; the three data sets share them, and their columns,
which belong to images. `sam-*` and `dinov3` put another network in the place of one."""


def preset(name: str) -> PipelineConfig:
    """The settings called `name`. Raises ConfigError, with the nearest name, for an unknown one."""
    if name in PRESETS:
        return PRESETS[name]
    raise not_known(f"preset {name!r}", name, PRESETS)
