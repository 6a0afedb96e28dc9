"""A store of six photos in three shards, to read, to spoil and to renew."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from weakmcn.shards.codec import pack_masks
from weakmcn.shards.columns import FAMILIES
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.layout import remember_source
from weakmcn.shards.store import Store, create_store, set_current, write_stage_json
from weakmcn.shards.tables import IMAGES, write_table
from weakmcn.shards.writer import Record, write_shard

SIDE, CANDIDATES, PER_SHARD = 96, 3, 2
KEYS = [f"{number:012d}" for number in (3, 14, 15, 92, 65, 35)]
KEYS.sort()


@dataclass(frozen=True)
class Small:
    """A store of six photos in three shards, with the stages detect, sam and masks, and what was put into it."""

    path: Path
    masks: dict[str, np.ndarray]
    """bool [3, 96, 96]."""
    maps: dict[str, np.ndarray]
    """float32 [4, 12, 12], detect.s8."""

    def open(self) -> Store:
        return Store.open(self.path)

    def folder(self, stage: str) -> Path:
        return self.open().families[stage].folder


def detect_values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "s8": rng.standard_normal((4, 12, 12), dtype=np.float32),
        "s16": rng.standard_normal((4, 6, 6), dtype=np.float32),
        "s32": rng.standard_normal((4, 3, 3), dtype=np.float32),
        "cells": np.arange(CANDIDATES),
        "boxes": rng.uniform(0, SIDE, (CANDIDATES, 4, 5)),
        "classes": rng.random((CANDIDATES, 6)),
        "colours": rng.random((CANDIDATES, 3)),
    }


def masks_of(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((CANDIDATES, 12, 12)) < 0.5
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def values_of(stage: str, number: int) -> dict[str, np.ndarray]:
    if stage == "detect":
        return detect_values(number)
    if stage == "sam":
        return {"embedding": np.random.default_rng(number).standard_normal((5, 6, 6), dtype=np.float32)}
    return {"bits": pack_masks(masks_of(number)), "iou": np.full(CANDIDATES, 0.5)}


def digest_of(key: str) -> str:
    return fingerprint(f"photo {key}")


def write_images(path: Path, digests: dict[str, str]) -> None:
    count = len(KEYS)
    columns = {
        "key": KEYS,
        "source": ["pocket"] * count,
        "file": [f"{key}.jpg" for key in KEYS],
        "height": [80] * count,
        "width": [120] * count,
        "shard": [row // PER_SHARD for row in range(count)],
        "row": [row % PER_SHARD for row in range(count)],
        "sha256": [digests[key] for key in KEYS],
    }
    write_table(path / "images.parquet", pa.table(columns, schema=IMAGES))


def write_family(path: Path, stage: str, *, codec: str = "f16", checkpoint: str = "a", shards: int = 3) -> Path:
    """Write a family made from those in use, and put it in use."""
    families = Store.open(path).families
    needs = {"masks": ("detect", "sam")}.get(stage, ())
    hashed = {
        "stage": stage,
        "codec": codec,
        "checkpoint_sha256": fingerprint(checkpoint),
        "inputs": {name: families[name].fingerprint for name in needs},
    }
    folder = write_stage_json(path, stage, hashed, {"torch": "2.15.0"})
    for shard in range(shards):
        made = [
            Record(key=KEYS[number], values=values_of(stage, number), image_sha256=digest_of(KEYS[number]))
            for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        ]
        write_shard(folder, shard, made, fingerprint=fingerprint(hashed), codec=codec, fields=FAMILIES[stage])
    set_current(path, stage, folder.name)
    return folder


def make_store(path: Path, codec: str = "f16") -> Small:
    create_store(path, SIDE)
    remember_source(path, "refcoco", Path("/data sets"), ["train", "val"])
    write_images(path, {key: digest_of(key) for key in KEYS})
    for stage in ("detect", "sam", "masks"):
        write_family(path, stage, codec=codec)
    return Small(
        path,
        masks={key: masks_of(number) for number, key in enumerate(KEYS)},
        maps={key: detect_values(number)["s8"] for number, key in enumerate(KEYS)},
    )


def flip(file: Path, position: int, bits: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= bits
    file.write_bytes(data)


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])
