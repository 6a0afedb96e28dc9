"""What a stage will cost, before it runs: bytes on the disk and seconds.

Bytes follow from the shapes of the fields and are close. Seconds are arithmetic: multiply-adds counted from the layer
sizes, twice over, at a round rate a core and a GPU; within a factor of two or so, which is what a plan needs.
"""

import math
import re

from ..shards.codec import stored_members
from ..shards.writer import ALIGNED_FROM, ALIGNMENT
from .config import PipelineConfig
from .stages import Stage

CORE_FLOPS = 50e9
"""Sustained on one core: the published networks ran at 50 to 60 GFLOP/s on an AMD Milan core in float32."""
GPU_FLOPS = 20e12
IMAGE_SECONDS = 0.015
"""Reading, decoding and letterboxing one photograph, and writing its record."""

_BLOCK, _NPY_HEADER = 512, 128
"""Of a tar; before the values of a member."""
_ITEM_BYTES = {"float16": 2, "float32": 4, "int32": 4, "uint8": 1, "uint16": 2}
_VIT_SIZES = {"tiny": (192, 12), "small": (384, 12), "base": (768, 12), "large": (1024, 24), "giant": (1536, 40)}
"""Width and depth of the vision transformers that timm knows by these words."""


def field_shapes(stage: str, config: PipelineConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each field of a stage; for the packed masks, the bytes they compress to."""
    side, keep = config.side_px, config.detect.keep
    grid = (side // 16, side // 16)
    width = config.detect.width
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "detect": {
            "s8": (8 * width, side // 8, side // 8),
            "s16": (16 * width, *grid),
            "s32": (32 * width, side // 32, side // 32),
            "cells": (keep,),
            "boxes": (keep, 4, 5),
            "classes": (keep, config.detect.classes),
            "colours": (keep, 3),
        },
        "dino": {"tokens": (config.dino.channels, *grid)},
        "sam": {"embedding": (config.sam.channels, *grid)},
        "masks": {"bits": (keep * side,), "iou": (keep,)},
        "clip": {"tokens": (config.clip.channels, *grid), "candidates": (keep, config.clip.channels)},
        "extra": {"tokens": (config.extra.channels, *grid)},
    }
    return shapes[stage]


def bytes_an_image(stage: Stage, config: PipelineConfig) -> int:
    """Bytes that one image adds to the stage's shards, tar headers included."""
    return sum(bytes_by_column(stage, config, config.codec).values())


def bytes_by_column(stage: Stage, config: PipelineConfig, codec: str, *, frame: int | None = None) -> dict[str, int]:
    """Column ("detect.s8") -> bytes that it adds for one image under `codec`, tar headers included.

    frame: of the packed masks, where their size is known.
    """
    shapes = field_shapes(stage.name, config)
    if frame is not None and stage.name == "masks":
        shapes["bits"] = (frame,)
    return {
        f"{stage.name}.{field.name}": sum(
            _member_bytes(math.prod(shapes[field.name][: None if name == field.name else 1]) * _ITEM_BYTES[dtype])
            for name, dtype in stored_members(field, codec).items()
        )
        for field in stage.fields
    }


def _member_bytes(size: int) -> int:
    """Of a member of the tar with `size` bytes of values: its header, numpy's, and what rounds both up."""
    if size < ALIGNED_FROM:
        return _BLOCK + -(-(_NPY_HEADER + size) // _BLOCK) * _BLOCK
    return _BLOCK + ALIGNMENT // 2 + -(-size // _BLOCK) * _BLOCK  # half the boundary, on average


def seconds_an_image(stage: Stage, config: PipelineConfig, *, gpu: bool) -> float:
    """Rough seconds that one worker spends on one image."""
    return flops_an_image(stage.name, config) / (GPU_FLOPS if gpu else CORE_FLOPS) + IMAGE_SECONDS


def flops_an_image(stage: str, config: PipelineConfig) -> float:
    """Rough floating-point operations of one image (a multiply-add is two)."""
    keep, sam = config.detect.keep, config.sam
    embed = _vit((sam.image_px // sam.patch_px) ** 2, sam.embed_dim, sam.depth)
    if stage == "detect":  # 76 GFLOP counted at width 32 on 416 pixels
        return 76e9 * (config.detect.width / 32) ** 2 * (config.side_px / 416) ** 2
    if stage == "extra":  # nobody knows; --dry-run measures it
        return 0
    if stage == "dino":
        return _named_vit(config.dino.model, config.dino.options, config.dino.input_px)
    if stage == "sam":
        return embed
    if stage == "masks":
        positions = (4 * sam.image_px // sam.patch_px) ** 2
        again = embed if "sam.embedding" not in sam.mask_inputs else 0
        return again + keep * positions * 20 * sam.channels * (sam.channels / 8)
    clip = config.clip
    views = keep * _named_vit(clip.model, clip.options, clip.candidate_px)
    return _named_vit(clip.model, clip.options, clip.input_px) + views


def _vit(tokens: int, width: int, depth: int) -> float:
    return depth * (24 * tokens * width**2 + 4 * tokens**2 * width)


def _named_vit(model: str, options: dict[str, int], input_px: int) -> float:
    size = next((size for word, size in _VIT_SIZES.items() if word in model), _VIT_SIZES["base"])
    patch = re.search(r"patch(\d+)", model)
    patch_px = options.get("patch_size", int(patch.group(1)) if patch else 16)
    width, depth = options.get("embed_dim", size[0]), options.get("depth", size[1])
    return _vit((input_px // patch_px) ** 2, width, depth)


def in_words(seconds: float) -> str:
    """A duration to two places: "8 s", "3 min 20 s", "7 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{max(whole, 1)} s"
    large, small, unit, under = (
        (whole // 60, whole % 60, "min", "s") if whole < 3600 else (whole // 3600, whole % 3600 // 60, "h", "min")
    )
    return f"{large} {unit} {small} {under}" if small else f"{large} {unit}"


def counted(number: int, what: str) -> str:
    """A number of things: "1 mask", "1,200 masks"."""
    return f"{number:,} {what}{'s' * (number != 1)}"


def in_bytes(count: float) -> str:
    """A size in decimal units: "812 kB", "64.7 GB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit in ("B", "kB") or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
