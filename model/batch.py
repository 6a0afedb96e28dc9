"""What the network sees of B expressions and their images.

Sizes at paper scale: S = 416 canvas pixels, K = 17 candidates, T = 15 tokens. Everything is in the canvas frame.

    dark_s8     float [B, 256, S/8, S/8]       detector maps
    dark_s16    float [B, 512, S/16, S/16]
    dark_s32    float [B, 1024, S/32, S/32]
    dino        float [B, 768, S/16, S/16]     patch tokens on their grid
    sam         float [B, 256, S/16, S/16]     image embedding
    clip        float [B, 512, S/16, S/16]     patch tokens on their grid
    cells       int64 [B, K]                   candidate cells of the S/32 grid, raster order
    boxes       float32 [B, K, 4, 5]           cx cy w h objectness of a cell's four boxes, canvas pixels, unclipped
    letterbox   int64 [B, 6]                   h, w, nh, nw, dx, dy
    tokens      int64 [B, T]                   0 pad, 1 unknown; fewer columns are fine where every row is that short
    masks       uint8 [B, K, S, S/8]           pseudo masks, packed along the last axis, first pixel in the highest bit
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from ..shards.errors import StoreError
from .config import BANKS, ModelConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B expressions with their images; the table of this module says what each field holds.

    A bank that the configuration does not use may be None, and so may `masks` where no mask loss is asked for. Maps may
    be float16, bfloat16 or float32: the network casts them to the type of its weights.
    """

    dark_s8: Tensor
    dark_s16: Tensor
    dark_s32: Tensor
    cells: Tensor
    boxes: Tensor
    letterbox: Tensor
    tokens: Tensor
    dino: Tensor | None = None
    sam: Tensor | None = None
    clip: Tensor | None = None
    masks: Tensor | None = None

    def __len__(self) -> int:
        return self.tokens.shape[0]

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin(self) -> "Batch":
        """The same batch in page-locked memory, from where a GPU can copy while the host works."""
        return self._each(Tensor.pin_memory)

    def check(self, config: ModelConfig, *, masks: bool = False) -> None:
        """Compares types and shapes with the configuration, no value; cheap, and waits for no device.

        masks: whether `masks` is needed. Raises `StoreError` naming the first field that does not fit.
        """
        side = config.side_px
        s8, s16, s32 = ((size, side // stride) for size, stride in zip(config.dark_channels, (8, 16, 32), strict=True))
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {
            "tokens": ((min(max(1, self.tokens.shape[-1]), config.max_tokens),), torch.int64),
            "dark_s8": ((s8[0], s8[1], s8[1]), None),
            "dark_s16": ((s16[0], s16[1], s16[1]), None),
            "dark_s32": ((s32[0], s32[1], s32[1]), None),
            "cells": ((config.candidates,), torch.int64),
            "boxes": ((config.candidates, 4, 5), torch.float32),
            "letterbox": ((6,), torch.int64),
        }
        wanted |= {bank: ((size, side // 16, side // 16), None) for bank, size in config.bank_channels.items()}
        if masks:
            wanted["masks"] = ((config.candidates, side, side // 8), torch.uint8)
        for name, (shape, dtype) in wanted.items():
            self._check_field(name, shape, dtype)

    def _check_field(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
        value: Tensor | None = getattr(self, name)
        if value is None:
            stage = name if name in (*BANKS, "masks") else "detect"
            raise StoreError(
                f"The batch has no {name}, which this configuration needs. Make the column with "
                f"`weakmcn precompute --stages {stage}`"
                + (f", or leave {name} out of `banks`." if name in BANKS else ".")
            )
        if value.shape != (len(self), *shape):
            raise StoreError(
                f"{name} of the batch has shape {list(value.shape)}, the configuration wants "
                f"{[len(self), *shape]}. Use the preset that the store was made with."
            )
        if value.dtype != dtype if dtype else not value.is_floating_point():
            raise StoreError(f"{name} of the batch is {value.dtype}, it must be {dtype or 'a floating-point type'}.")
