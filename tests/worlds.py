"""A store of a few kilobytes in which a caption's colour word decides which candidate is meant.

Every photo has 72 rows and 96 columns and lies on a canvas of 96 pixels. Three of the four corners of the coarsest grid
of 3 x 3 cells are candidates, each a square of its own colour; all maps show the colours, plus a little noise. SAM's
mask of a candidate is its square. Keys count up from 1; training images come first.
"""

from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from weakmcn.model.config import ModelConfig, TrainConfig
from weakmcn.shards.codec import pack_masks, rle_encode
from weakmcn.shards.columns import FAMILIES
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.geometry import Letterbox
from weakmcn.shards.store import (
    IMAGES_FILE,
    create_store,
    references_path,
    set_current,
    write_stage_json,
)
from weakmcn.shards.tables import IMAGES, REFERENCES, write_table
from weakmcn.shards.writer import Record, write_shard

SIDE = 96
LETTERBOX = Letterbox.fit(72, 96, SIDE)
COLOURS = ("red", "green", "blue", "yellow", "purple", "grey", "black", "white", "pink", "brown", "orange", "cyan")
RGB = ("f00", "0f0", "00f", "ff0", "808", "888", "000", "fff", "fcd", "a62", "f80", "0ff")
"""Of the colours, a hexadecimal digit a channel."""
CANDIDATES = 3
DATASET = "toy"

TINY = ModelConfig(
    side_px=SIDE,
    candidates=CANDIDATES,
    max_tokens=4,
    dark_channels=(12, 12, 12),
    dino_channels=12,
    sam_channels=4,
    clip_channels=5,
    word_dim=8,
    text_dim=32,
    wrec_dim=32,
    wres_dim=8,
    text_heads=2,
    text_layers=1,
    text_ff_dim=16,
    text_flat_dim=8,
    train_words=True,
    aspp_dilations=(1, 2, 3),
    isl_start_epoch=2,
    warm_epochs=1,
)
RECIPE = TrainConfig(epochs=3, batch=8, lr=3e-3, min_lr=3e-4, warmup_lr=1e-4, warmup_epochs=1, ema_decay=0.9, seed=5)

Rows = list[dict]


def key_of(image: int) -> str:
    return f"{image + 1:012d}"


def make_store(
    path: Path,
    *,
    train: int = 24,
    val: int = 8,
    seed: int = 0,
    codec: str = "f16",
    skipped: Collection[int] = (),
    edit: Callable[[Rows], None] | None = None,
    stages: Collection[str] = ("detect", "dino", "sam", "masks"),
) -> Path:
    """Write the store; its path.

    train, val: images of each split, one reference with two sentences each. skipped: images that the detector's stage
    did not encode. edit: changes the rows of the references before they are written. stages: families to write.
    """
    rng = np.random.default_rng(seed)
    images = [_image(rng) for _ in range(train + val)]
    create_store(path, SIDE)
    write_table(path / IMAGES_FILE, _image_table(len(images)))
    rows = [_reference(image, scene, "train" if image < train else "val") for image, scene in enumerate(images)]
    if edit:
        edit(rows)
    write_table(references_path(path, DATASET), pa.Table.from_pylist(rows, REFERENCES))
    for stage in stages:
        write_family(path, stage, images, codec=codec, skipped=skipped if stage == "detect" else ())
    return path


def write_family(
    path: Path,
    stage: str,
    images: list[dict],
    *,
    codec: str = "f16",
    skipped: Collection[int] = (),
    code: int = 1,
    **hashed_too: Any,
) -> None:
    """Write one column family of the images and put it into use. code: another number, another fingerprint."""
    hashed = {"stage": stage, "codec": codec, "code": code, "inputs": {}, **hashed_too}
    folder = write_stage_json(path, stage, hashed, {})
    fields = [field for field in FAMILIES[stage] if field.name in images[0][stage]]
    records = [
        Record(key=key_of(image), values=scene[stage], image_sha256=_digest(image))
        for image, scene in enumerate(images)
        if image not in skipped
    ]
    reasons = [(key_of(image), "no image") for image in skipped]
    write_shard(folder, 0, records, fingerprint=fingerprint(hashed), codec=codec, fields=fields, skipped=reasons)
    set_current(path, stage, folder.name)


def scenes(count: int, seed: int = 0) -> list[dict]:
    """The images that `make_store` writes for the same seed, for `write_family`."""
    rng = np.random.default_rng(seed)
    return [_image(rng) for _ in range(count)]


def _image(rng: np.random.Generator) -> dict:
    cells = np.sort(rng.choice([0, 2, 6, 8], CANDIDATES, replace=False))
    colours = rng.choice(len(COLOURS), CANDIDATES, replace=False)
    boxes = np.zeros((CANDIDATES, 4, 5), np.float32)
    masks = np.zeros((CANDIDATES, SIDE, SIDE), bool)
    painted = np.zeros((len(COLOURS), SIDE, SIDE), np.float32)
    for candidate, (cell, colour) in enumerate(zip(cells, colours, strict=True)):
        row, column = divmod(int(cell), 3)
        size = int(rng.integers(6, 9)) * 2
        centre = np.array([32 * column + 16, 24 * row + 24])  # x, y; inside the cell and the photo, rows 12 to 83
        boxes[candidate] = [*(centre + 3), 8, 8, 0.2]
        boxes[candidate, 1] = [*centre, size, size, rng.uniform(0.5, 0.9)]
        (x0, y0), (x1, y1) = centre - size // 2, centre + size // 2
        masks[candidate, y0:y1, x0:x1] = True
        painted[colour, y0:y1, x0:x1] = 1

    def shown(channels: int, stride: int) -> np.ndarray:
        blocks = painted.reshape(len(COLOURS), SIDE // stride, stride, SIDE // stride, stride).mean(axis=(2, 4))
        noise = rng.normal(0, 0.05, (channels, SIDE // stride, SIDE // stride))
        return (4 * blocks[:channels] + noise).astype(np.float32)

    return {
        "target": int(rng.integers(CANDIDATES)),
        "colours": colours,
        "boxes": boxes,
        "bits": masks,
        "detect": {
            "s8": shown(12, 8),
            "s16": shown(12, 16),
            "s32": shown(12, 32),
            "cells": cells.astype(np.int32),
            "boxes": boxes,
            "classes": rng.random((CANDIDATES, 4)).astype(np.float32),
            "colours": np.array([[17 * int(digit, 16) for digit in RGB[colour]] for colour in colours], np.float32),
        },
        "dino": {"tokens": shown(12, 16)},
        "sam": {"embedding": shown(4, 16)},
        "masks": {"bits": pack_masks(masks), "iou": np.ones(CANDIDATES, np.float32)},
    }


def _reference(image: int, scene: dict, split: str) -> dict:
    target = scene["target"]
    cx, cy, width, height, _ = scene["boxes"][target, 1]
    x0, y0, x1, y1 = LETTERBOX.to_photo(
        np.array([cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2])
    ).tolist()
    word = COLOURS[scene["colours"][target]]
    return {
        "ref_id": 1000 + image,
        "key": key_of(image),
        "split": split,
        "category": 1,
        "category_name": "square",
        "box": [x0, y0, x1 - x0, y1 - y0],
        "mask": rle_encode(LETTERBOX.mask_to_photo(scene["bits"][target])),
        "sent_ids": [2 * image, 2 * image + 1],
        "sentences": [f"the {word} square", f"{word} one"],
    }


def _image_table(count: int) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "key": key_of(image),
                "source": "toy",
                "file": f"{image}.jpg",
                "height": LETTERBOX.height,
                "width": LETTERBOX.width,
                "shard": 0,
                "row": image,
                "sha256": _digest(image),
            }
            for image in range(count)
        ],
        IMAGES,
    )


def _digest(image: int) -> str:
    return fingerprint(image)
