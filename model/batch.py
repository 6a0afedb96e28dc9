"""What the network sees of B expressions and their images.

Sizes at paper scale: S = 416 canvas pixels, K = 17 candidates, T = 15 tokens. Everything is in the canvas frame. Each
expression has an image of its own, so I = B, unless `owner` says which of I < B images each is about.

    dark_s8     float [I, 256, S/8, S/8]       detector maps
    dark_s16    float [I, 512, S/16, S/16]
    dark_s32    float [I, 1024, S/32, S/32]
    dino        float [I, 768, S/16, S/16]     patch tokens on their grid
    sam         float [I, 256, S/16, S/16]     image embedding
    clip        float [I, 512, S/16, S/16]     patch tokens on their grid
    extra       float [I, C, S/16, S/16]       map of an encoder of the user's own
    cells       int64 [I, K]                   candidate cells of the S/32 grid, raster order
    boxes       float32 [I, K, 4, 5]           cx cy w h objectness of a cell's four boxes, canvas pixels, unclipped
    letterbox   int64 [I, 6]                   h, w, nh, nw, dx, dy
    tokens      int64 [B, T]                   0 pad, 1 unknown; fewer columns are fine where every row is that short
    masks       uint8 [I, K, S, S/8]           pseudo masks, packed along the last axis, first pixel in the highest bit
    classes     float [I, K, classes]          class probabilities, mean of a cell's four boxes
    colours     float32 [I, K, 3]              mean RGB in the mean of a cell's four boxes, 0..255
    owner       int64 [B]                      which of the images an expression is about; None: expression b, image b
    clip_candidates  float [I, K, 512]         image embedding of the photo under each candidate's mask
    images      int64 [I]                      the images' keys, as numbers
    pseudo      uint8 [B, S/4, S/32]           pseudo mask of the expression's object, packed as `masks` are
    texts       float32 [B, n, 512]            vectors of n captions by CLIP's text encoder, the expression's own first
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace
from functools import partial

import torch
from torch import Tensor

from ..shards.errors import StoreError
from .config import BANKS, ModelConfig

SOURCES = {
    "dark_s8": "detect.s8",
    "dark_s16": "detect.s16",
    "dark_s32": "detect.s32",
    "dino": "dino.tokens",
    "sam": "sam.embedding",
    "clip": "clip.tokens",
    "extra": "extra.tokens",
    "cells": "detect.cells",
    "boxes": "detect.boxes",
    "masks": "masks.bits",
    "classes": "detect.classes",
    "colours": "detect.colours",
    "clip_candidates": "clip.candidates",
}
"""Field of a batch -> column of the store. Tokens, letterbox and images come from the tables of the store; pseudo and
texts belong to expressions and come from a method's lessons (lessons.py)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """B expressions with their images; the table of this module says what each field holds.

    A field that the network does not read may be None: a bank that is not in use, masks where no mask loss is asked
    for, and so on; cells and boxes are empty then. Maps may be float16, bfloat16 or float32: the network casts them to
    the type of its weights.
    """

    letterbox: Tensor
    tokens: Tensor
    cells: Tensor = field(default_factory=partial(torch.empty, 0))
    boxes: Tensor = field(default_factory=partial(torch.empty, 0))
    dark_s8: Tensor | None = None
    dark_s16: Tensor | None = None
    dark_s32: Tensor | None = None
    dino: Tensor | None = None
    sam: Tensor | None = None
    clip: Tensor | None = None
    extra: Tensor | None = None
    masks: Tensor | None = None
    classes: Tensor | None = None
    colours: Tensor | None = None
    clip_candidates: Tensor | None = None
    images: Tensor | None = None
    pseudo: Tensor | None = None
    texts: Tensor | None = None
    owner: Tensor | None = None

    def __len__(self) -> int:
        """Expressions."""
        return self.tokens.shape[0]

    @property
    def own(self) -> Tensor:
        """int64 [B], the image of each expression."""
        return torch.arange(len(self), device=self.tokens.device) if self.owner is None else self.owner

    @property
    def unequal(self) -> int | None:
        """For `Ranks.share`: how many expressions, where another rank may have more or fewer; None where not."""
        return None if self.owner is None else len(self)

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return replace(self, **{name: change(value) for name, value in values.items() if value is not None})

    def rows(self, rows: slice) -> "Batch":
        """Some of the expressions."""
        return self._each(lambda value: value[rows])

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> "Batch":
        """The same batch on another device."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin(self) -> "Batch":
        """The same batch in page-locked memory, from where a GPU can copy while the host works."""
        return self._each(Tensor.pin_memory)

    def check(self, config: ModelConfig, fields: Iterable[str]) -> None:
        """Compares types and shapes with the configuration, no value; cheap, and waits for no device.

        fields: those that must be there, beside tokens and letterbox. Raises `StoreError` naming the first that is not
        there or does not fit.
        """
        side, k = config.side_px, config.candidates
        sizes = config.dark_channels
        maps = {"dark_s8": (sizes[0], 8), "dark_s16": (sizes[1], 16), "dark_s32": (sizes[2], 32)}
        maps |= {bank: (size, 16) for bank, size in config.bank_channels.items()}
        wanted: dict[str, tuple[tuple[int, ...], torch.dtype | None]] = {
            name: ((size, side // stride, side // stride), None) for name, (size, stride) in maps.items()
        }
        wanted |= {
            "tokens": ((min(max(1, self.tokens.shape[-1]), config.max_tokens),), torch.int64),
            "letterbox": ((6,), torch.int64),
            "cells": ((k,), torch.int64),
            "boxes": ((k, 4, 5), torch.float32),
            "masks": ((k, side, side // 8), torch.uint8),
            "classes": ((k, len(config.class_names)), None),
            "colours": ((k, 3), torch.float32),
            "clip_candidates": ((k, config.clip_channels), None),
        }
        self._check_field("tokens", *wanted["tokens"], rows=len(self))
        if self.owner is not None:
            self._check_field("owner", (), torch.int64, rows=len(self))
        images = len(self) if self.owner is None else len(self.letterbox)
        for name in (*fields, "letterbox"):
            self._check_field(name, *wanted[name], rows=images)

    def _check_field(self, name: str, shape: tuple[int, ...], dtype: torch.dtype | None, *, rows: int) -> None:
        value: Tensor | None = getattr(self, name)
        if value is None or value.shape == (0,):
            column = SOURCES[name]
            raise StoreError(
                f"The batch has no {name} (column {column}), which this configuration needs. Make the column with "
                f"`weakmcn precompute --stages {column.partition('.')[0]}`"
                + (f", or leave {name} out of `banks`." if name in BANKS else ".")
            )
        if value.shape != (rows, *shape):
            is_width = name in BANKS and value.shape[2:] == shape[1:]
            mend = f"Set --set model.{name}_channels={value.shape[1]}, or use" if is_width else "Use"
            raise StoreError(
                f"{name} of the batch has shape {list(value.shape)}, the configuration wants "
                f"{[rows, *shape]}. {mend} the preset that the store was made with."
            )
        if value.dtype != dtype if dtype else not value.is_floating_point():
            raise StoreError(f"{name} of the batch is {value.dtype}, it must be {dtype or 'a floating-point type'}.")


def of_owner(x: Tensor, owner: Tensor | None) -> Tensor:
    """What belongs to the image of each sentence: [B, ...]. x: [I, ...]; owner: int64 [B], None: one each."""
    return x if owner is None else x.index_select(0, owner)
