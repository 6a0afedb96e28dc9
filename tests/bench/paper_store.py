"""A store of random values at the paper's sizes, written by our own writer: what the benches of reading read.

Masks are what masks look like: the outlines of blobs, at all sizes. Everything else is noise, as no reader looks at
values.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from weakmcn.shards.codec import pack_masks
from weakmcn.shards.columns import FAMILIES
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.store import IMAGES_FILE, create_store, set_current, write_stage_json
from weakmcn.shards.tables import IMAGES, write_table
from weakmcn.shards.writer import Record, write_shard

SIDE, CANDIDATES = 416, 17
MAPS = {
    "detect.s8": "s8",
    "detect.s16": "s16",
    "detect.s32": "s32",
    "dino.tokens": "tokens",
    "sam.embedding": "embedding",
}
"""Column of each large map -> its field."""
RECORD_BYTES = 2 * (256 * 52 * 52 + 512 * 26 * 26 + 1024 * 13 * 13 + (768 + 256) * 26 * 26)
"""Of the large maps of an image in float16."""
STAGES = ("detect", "dino", "sam", "masks")


def make_store(
    path: Path, *, images: int, shards: int, codec: str = "f16", candidates: Sequence[int] = (CANDIDATES,)
) -> Path:
    """Write the store; its path. images: a multiple of shards. candidates: of the images of each shard, in turn."""
    keys = keys_of(images)
    size = images // shards
    create_store(path, SIDE)
    columns = {
        "key": keys,
        "source": ["bench"] * images,
        "file": [f"{key}.jpg" for key in keys],
        "height": [SIDE] * images,
        "width": [SIDE] * images,
        "shard": [row // size for row in range(images)],
        "row": [row % size for row in range(images)],
        "sha256": [fingerprint(key) for key in keys],
    }
    write_table(path / IMAGES_FILE, pa.table(columns, schema=IMAGES))
    rng = np.random.default_rng(0)
    pool = rng.standard_normal(4 * 256 * 52 * 52, dtype=np.float32)  # drawing every value anew would take minutes
    for stage in STAGES:
        hashed = {"stage": stage, "codec": codec, "inputs": {}}
        folder = write_stage_json(path, stage, hashed, {})
        for number in range(shards):
            own, count = keys[number * size : (number + 1) * size], candidates[number % len(candidates)]
            records = (
                Record(key=key, values=values_of(stage, rng, pool, count), image_sha256=fingerprint(key)) for key in own
            )
            write_shard(folder, number, records, fingerprint=fingerprint(hashed), codec=codec, fields=FAMILIES[stage])
        set_current(path, stage, folder.name)
    return path


def keys_of(images: int) -> list[str]:
    return [f"{number:012d}" for number in range(1, images + 1)]


def values_of(stage: str, rng: np.random.Generator, pool: np.ndarray, count: int = CANDIDATES) -> dict[str, np.ndarray]:
    """What a stage would give for one image. pool: random numbers to take maps from. count: of its candidates."""

    def noise(*shape: int) -> np.ndarray:
        first = int(rng.integers(len(pool) - np.prod(shape)))
        return pool[first : first + int(np.prod(shape))].reshape(shape)

    if stage == "detect":
        return {
            "s8": noise(256, 52, 52),
            "s16": noise(512, 26, 26),
            "s32": noise(1024, 13, 13),
            "cells": np.arange(count),
            "boxes": rng.uniform(0, SIDE, (count, 4, 5)),
            "classes": rng.random((count, 80)),
            "colours": rng.random((count, 3)),
        }
    if stage == "masks":
        return {"bits": pack_masks(blobs(rng, count)), "iou": rng.random(count)}
    return {"tokens": noise(768, 26, 26)} if stage == "dino" else {"embedding": noise(256, 26, 26)}


def blobs(rng: np.random.Generator, count: int) -> np.ndarray:
    """bool [K, S, S]: wavy ellipses of half-axes of 20 to 120 pixels, anywhere on the canvas."""
    rows, columns = np.mgrid[:SIDE, :SIDE].astype(np.float32)
    masks = []
    for centre, axes, phase in zip(
        rng.uniform(60, SIDE - 60, (count, 2)),
        rng.uniform(20, 120, (count, 2)),
        rng.uniform(0, 6, (count, 2)),
        strict=True,
    ):
        down, right = (rows - centre[0]) / axes[0], (columns - centre[1]) / axes[1]
        angle = np.arctan2(down, right)
        edge = 1 + 0.15 * np.sin(5 * angle + phase[0]) + 0.1 * np.sin(9 * angle + phase[1])
        masks.append(np.hypot(down, right) < edge)
    return np.stack(masks)


def shuffled(images: int, batch: int, seed: int = 0) -> Sequence[list[str]]:
    """Keys in a random order over all images, in full batches."""
    keys = keys_of(images)
    order = np.random.default_rng(seed).permutation(images)
    return [[keys[row] for row in order[start : start + batch]] for start in range(0, images - batch + 1, batch)]
