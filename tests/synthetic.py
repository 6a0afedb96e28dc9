"""A store on which a mask can be learned from captions alone, and on which it is known what luck would score.

Photographs are squares of G x G cells of 16 pixels. In each are two to four objects, rectangles and ellipses of three
to seven cells, each with a category (of six) and a colour (of five); the pair is unique in its image, but six of ten
share one of the two with another object there. A cell's feature is the code of the category plus that of the colour,
noise, and half of its neighbours' mean; elsewhere it is one of four textures. Nothing in the features tells objects
from one another but what captions say, and captions say it perfectly: passing a test on this set proves wiring and
learning, not accuracy on photographs.

Data set `toy` has the captions; `swapped` has the same objects with the captions of another object of the image. With
`twins`, some images hold two objects that are alike, which captions tell apart by left and right; `placed` has those
alone.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from weakmcn.model.words import write_words
from weakmcn.shards.codec import pack_masks, rle_encode
from weakmcn.shards.columns import FAMILIES
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.store import IMAGES_FILE, create_store, references_path, set_current, write_stage_json
from weakmcn.shards.tables import IMAGES, REFERENCES, write_table
from weakmcn.shards.writer import Record, write_shard

CELL = 16
CATEGORIES = ("dog", "car", "cup", "tree", "shoe", "lamp")
COLOURS = ("red", "green", "blue", "white", "black")
PROPOSALS = 9
DARK, JOINT = 48, 16
"""Channels of each of the detector's maps, and width of CLIP's space."""
CODE, JITTER, NOISE = 4.0, 0.3, 0.6
"""Length of a code; deviation of what an object and a cell add to it."""
DATASET, SWAPPED, PLACED = "toy", "swapped", "placed"


@dataclass(frozen=True, eq=False)
class Codes:
    """What stands for a category, a colour, a background: the same in every image."""

    categories: np.ndarray
    colours: np.ndarray
    textures: np.ndarray
    dark: np.ndarray
    """[DARK, C]: how the detector's maps are made of a feature."""
    joint: np.ndarray
    """[JOINT, C], the same of CLIP's."""

    @classmethod
    def of(cls, channels: int) -> "Codes":
        rng = np.random.default_rng(7)

        def codes(count: int) -> np.ndarray:
            drawn = rng.normal(size=(count, channels))
            return CODE * drawn / np.linalg.norm(drawn, axis=1, keepdims=True)

        kinds = [codes(count) for count in (len(CATEGORIES), len(COLOURS), 4)]
        scaled = [rng.normal(size=(size, channels)) / np.sqrt(channels) for size in (DARK, JOINT)]
        return cls(*kinds, *scaled)


@dataclass(frozen=True, eq=False)
class Thing:
    """An object: its cells bool [G, G], and what it is."""

    cells: np.ndarray
    category: int
    colour: int


def write_store(
    path: Path, *, grid: int, channels: int, train: int, val: int, twins: float = 0.0, seed: int = 0
) -> Path:
    """Write the store, with `vectors.safetensors`, the captions' vectors in CLIP's space, beside its tables; its path.

    channels: of DINO's tokens, which are the features. train, val: images of each split; every object is a reference.
    twins: share of the images with twins.
    """
    rng = np.random.default_rng(seed)
    codes = Codes.of(channels)
    images = [_twins(rng, grid) if rng.random() < twins else _things(rng, grid) for _ in range(train + val)]
    create_store(path, CELL * grid)
    write_table(path / IMAGES_FILE, pa.Table.from_pylist([_image_row(i, grid) for i in range(len(images))], IMAGES))
    captions = [[_captions(thing, things) for thing in things] for things in images]
    for dataset, shift in ((DATASET, 0), (SWAPPED, 1), *([(PLACED, 0)] if twins else [])):
        rows = []
        for image, things in enumerate(images):
            if dataset == PLACED and not _are_twins(things):
                continue
            for place, thing in enumerate(things):
                said = captions[image][(place + shift) % len(things)]
                rows.append(_reference(image, len(rows), thing, said, "train" if image < train else "val"))
        write_table(references_path(path, dataset), pa.Table.from_pylist(rows, REFERENCES))
    columns = [_columns(rng, things, codes, grid) for things in images]
    for stage in ("detect", "dino", "masks", "clip"):
        _write_family(path, stage, [each[stage] for each in columns])
    spoken = {
        caption: codes.joint @ (codes.categories[thing.category] + codes.colours[thing.colour])
        for things, said in zip(images, captions, strict=True)
        for thing, its in zip(things, said, strict=True)
        for caption in its
    }
    write_words(path / "vectors.safetensors", list(spoken), torch.from_numpy(np.stack([*spoken.values()])).float())
    return path


def key_of(image: int) -> str:
    return f"{image + 1:012d}"


def _things(rng: np.random.Generator, grid: int) -> list[Thing]:
    things: list[Thing] = []
    taken = np.zeros((grid, grid), bool)
    for _ in range(rng.integers(2, 5)):
        for _ in range(20):
            cells = _shape(rng, grid)
            if not (cells & taken).any():
                break
        else:
            continue
        pairs = {(thing.category, thing.colour) for thing in things}
        while True:
            category, colour = int(rng.integers(len(CATEGORIES))), int(rng.integers(len(COLOURS)))
            if things and rng.random() < 0.6:
                other = things[rng.integers(len(things))]
                category, colour = (other.category, colour) if rng.random() < 0.5 else (category, other.colour)
            if (category, colour) not in pairs:
                break
        taken |= cells
        things.append(Thing(cells, category, colour))
    return things if len(things) > 1 else _things(rng, grid)


def _twins(rng: np.random.Generator, grid: int) -> list[Thing]:
    """Two objects that are alike but in shape, the left one first."""
    category, colour = int(rng.integers(len(CATEGORIES))), int(rng.integers(len(COLOURS)))
    while True:
        shapes = sorted((_shape(rng, grid) for _ in range(2)), key=lambda cells: np.flatnonzero(cells.any(axis=0))[0])
        if np.flatnonzero(shapes[0].any(axis=0))[-1] < np.flatnonzero(shapes[1].any(axis=0))[0]:
            return [Thing(cells, category, colour) for cells in shapes]


def _are_twins(things: list[Thing]) -> bool:
    return len({(thing.category, thing.colour) for thing in things}) < len(things)


def _shape(rng: np.random.Generator, grid: int) -> np.ndarray:
    """A rectangle or an ellipse, bool [G, G]."""
    height, width = rng.integers(3, 8, 2)
    top, left = rng.integers(0, grid - height + 1), rng.integers(0, grid - width + 1)
    rows, columns = np.mgrid[:grid, :grid]
    inside = (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)
    if rng.random() < 0.5:
        y, x = (rows - top + 0.5) / height * 2 - 1, (columns - left + 0.5) / width * 2 - 1
        inside &= y**2 + x**2 <= 1
    return inside


def _captions(thing: Thing, things: list[Thing]) -> tuple[str, ...]:
    category, colour = CATEGORIES[thing.category], COLOURS[thing.colour]
    if _are_twins(things):
        side = "left" if thing is things[0] else "right"
        return (f"{side} {colour} {category}", f"the {side} {category}", f"{category} {side}")
    alone = sum(other.category == thing.category for other in things) == 1
    return (
        f"{colour} {category}",
        f"the {colour} {category} there",
        category if alone else f"that {colour} {category}",
    )


def _columns(rng: np.random.Generator, things: list[Thing], codes: Codes, grid: int) -> dict[str, dict]:
    features = np.tile(codes.textures[rng.integers(len(codes.textures))][:, None, None], (1, grid, grid))
    for thing in things:
        code = codes.categories[thing.category] + codes.colours[thing.colour]
        features[:, thing.cells] = (code + rng.normal(0, JITTER, len(code)))[:, None]
    features += rng.normal(0, NOISE, features.shape)
    features = (features + _blurred(features)) / 2

    masks = [thing.cells for thing in things]
    while len(masks) < PROPOSALS:
        masks.append(_shape(rng, grid))
    masks = np.stack([masks[place] for place in rng.permutation(PROPOSALS)])
    boxes = np.zeros((PROPOSALS, 4, 5), np.float32)
    boxes[:] = np.array([_box(mask) for mask in masks])[:, None]
    dark = np.einsum("dc,chw->dhw", codes.dark, features)
    halved = dark.reshape(DARK, grid // 2, 2, grid // 2, 2).mean(axis=(2, 4))
    joint = np.einsum("dc,chw->dhw", codes.joint, features)
    return {
        "detect": {
            "s8": dark.repeat(2, axis=1).repeat(2, axis=2) + rng.normal(0, 0.1, (DARK, 2 * grid, 2 * grid)),
            "s16": dark,
            "s32": halved,
            "cells": np.sort(rng.permutation((grid // 2) ** 2)[:PROPOSALS]).astype(np.int32),
            "boxes": boxes,
        },
        "dino": {"tokens": features.astype(np.float32)},
        "masks": {
            "bits": pack_masks(np.stack([_enlarged(mask) for mask in masks])),
            "iou": np.ones(PROPOSALS, np.float32),
        },
        "clip": {
            "tokens": joint.astype(np.float32),
            "candidates": np.stack([joint[:, mask].mean(axis=1) for mask in masks]).astype(np.float32),
        },
    }


def _blurred(features: np.ndarray) -> np.ndarray:
    """The mean of each cell and its neighbours."""
    padded = np.pad(features, ((0, 0), (1, 1), (1, 1)), mode="edge")
    size = features.shape[1]
    return np.mean([padded[:, y : y + size, x : x + size] for y in range(3) for x in range(3)], axis=0)


def _enlarged(cells: np.ndarray) -> np.ndarray:
    return cells.repeat(CELL, axis=0).repeat(CELL, axis=1)


def _box(cells: np.ndarray) -> tuple[float, float, float, float, float]:
    """cx cy w h objectness, pixels."""
    rows, columns = np.flatnonzero(cells.any(axis=1)), np.flatnonzero(cells.any(axis=0))
    top, bottom, left, right = CELL * rows[0], CELL * (rows[-1] + 1), CELL * columns[0], CELL * (columns[-1] + 1)
    return ((left + right) / 2, (top + bottom) / 2, right - left, bottom - top, 0.9)


def _reference(image: int, number: int, thing: Thing, captions: tuple[str, ...], split: str) -> dict:
    cx, cy, width, height, _ = _box(thing.cells)
    return {
        "ref_id": 1000 + number,
        "key": key_of(image),
        "split": split,
        "category": thing.category + 1,
        "category_name": CATEGORIES[thing.category],
        "box": [cx - width / 2, cy - height / 2, width, height],
        "mask": rle_encode(_enlarged(thing.cells)),
        "sent_ids": [3 * number + place for place in range(len(captions))],
        "sentences": list(captions),
    }


def _image_row(image: int, grid: int) -> dict:
    side = CELL * grid
    return {
        "key": key_of(image),
        "source": "toy",
        "file": f"{image}.jpg",
        "height": side,
        "width": side,
        "shard": 0,
        "row": image,
        "sha256": fingerprint(image),
    }


def _write_family(path: Path, stage: str, images: list[dict]) -> None:
    hashed = {"stage": stage, "codec": "f16", "code": 1, "inputs": {}}
    folder = write_stage_json(path, stage, hashed, {})
    records = [
        Record(key=key_of(image), values=values, image_sha256=fingerprint(image)) for image, values in enumerate(images)
    ]
    fields = [field for field in FAMILIES[stage] if field.name in images[0]]
    write_shard(folder, 0, records, fingerprint=fingerprint(hashed), codec="f16", fields=fields)
    set_current(path, stage, folder.name)
