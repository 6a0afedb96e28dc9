"""What believing nothing costs, for the docs: `just bench integrity`.

A store of random values at the paper's sizes. Processor time of one core, so that other work on the machine counts
little: comparing checksums at a member's first touch, beside a training step on the same images; hashing for
`weakmcn store verify`; and what a precompute looks at when it begins.
"""

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from weakmcn.model.loader import Loader
from weakmcn.model.methods import method_of, recipe
from weakmcn.model.vocabulary import Vocabulary
from weakmcn.shards.codec import pack_masks
from weakmcn.shards.columns import FAMILIES
from weakmcn.shards.family import Family
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import IMAGES_FILE, Store, create_store, set_current, write_stage_json
from weakmcn.shards.tables import IMAGES, write_table
from weakmcn.shards.writer import Record, write_shard

SIDE, CANDIDATES, IMAGES_WRITTEN, BATCH = 416, 17, 64, 4
KEYS = [f"{number:012d}" for number in range(1, IMAGES_WRITTEN + 1)]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="weakmcn-bench-") as folder:
        store = Store.open(_make_store(Path(folder) / "store"))
        mb = sum(file.stat().st_size for file in store.path.rglob("*.tar")) / 1e6
        reader = Reader(store, [name for name in store.columns if name not in ("detect.classes", "detect.colours")])
        first, again = _cpu_s(lambda: _epoch(reader)), min(_cpu_s(lambda: _epoch(reader)) for _ in range(3))
        checked_ms = 1e3 * (first - again) / IMAGES_WRITTEN
        step_ms = 1e3 * min(_steps(store)) / BATCH
        verified_s = _cpu_s(store.verify)
        folders = [family.folder for family in store.families.values()]
        opened_s = _cpu_s(lambda: [Family.open(each).finished() for each in folders])
    sys.stdout.write(
        f"{IMAGES_WRITTEN} images, {mb / IMAGES_WRITTEN:.1f} MB each\n"
        f"checksums at first touch: {checked_ms:.1f} ms an image; a training step: {step_ms:.0f} ms a reference; "
        f"share of a first epoch: {checked_ms / (checked_ms + step_ms):.1%}\n"
        f"store verify: {mb / verified_s:,.0f} MB a second\n"
        f"what is finished, at the start of a precompute: {1e3 * opened_s:.0f} ms\n"
    )


def _cpu_s(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def _epoch(reader: Reader) -> None:
    for start in range(0, IMAGES_WRITTEN, BATCH):
        reader.gather(KEYS[start : start + BATCH])


def _steps(store: Store) -> Iterator[float]:
    """Processor seconds of training steps of `refcoco` on batches of the store."""
    config, _ = recipe("weakmcn", "refcoco")
    method, words = method_of("weakmcn"), Vocabulary.build(["the red cup on the left"])
    loader = Loader(store, method.fields(config), device=torch.device("cpu"))
    net = method.build(config, words, None).train()
    tokens = np.stack([words.ids("the red cup", config.max_tokens)] * BATCH)
    for start in (0, BATCH, 2 * BATCH):
        batch = loader.batch(KEYS[start : start + BATCH], tokens)
        yield _cpu_s(lambda batch=batch: net.losses(batch, config.warm_epochs).total.backward())  # pyright: ignore[reportCallIssue]


def _make_store(path: Path) -> Path:
    create_store(path, SIDE)
    count = len(KEYS)
    columns = {
        "key": KEYS,
        "source": ["bench"] * count,
        "file": [f"{key}.jpg" for key in KEYS],
        "height": [SIDE] * count,
        "width": [SIDE] * count,
        "shard": [0] * count,
        "row": list(range(count)),
        "sha256": [fingerprint(key) for key in KEYS],
    }
    write_table(path / IMAGES_FILE, pa.table(columns, schema=IMAGES))
    rng = np.random.default_rng(0)
    for stage in ("detect", "dino", "sam", "masks"):
        hashed = {"stage": stage, "codec": "f16", "inputs": {}}
        folder = write_stage_json(path, stage, hashed, {})
        records = (Record(key=key, values=_values(stage, rng), image_sha256=fingerprint(key)) for key in KEYS)
        write_shard(folder, 0, records, fingerprint=fingerprint(hashed), codec="f16", fields=FAMILIES[stage])
        set_current(path, stage, folder.name)
    return path


def _values(stage: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    if stage == "detect":
        return {
            "s8": normal(256, 52, 52),
            "s16": normal(512, 26, 26),
            "s32": normal(1024, 13, 13),
            "cells": np.arange(CANDIDATES),
            "boxes": rng.uniform(0, SIDE, (CANDIDATES, 4, 5)),
            "classes": rng.random((CANDIDATES, 80)),
            "colours": rng.random((CANDIDATES, 3)),
        }
    if stage == "masks":
        coarse = rng.random((CANDIDATES, 26, 26)) < 0.5
        return {"bits": pack_masks(coarse.repeat(16, axis=1).repeat(16, axis=2)), "iou": rng.random(CANDIDATES)}
    return {"tokens": normal(768, 26, 26)} if stage == "dino" else {"embedding": normal(256, 26, 26)}


if __name__ == "__main__":
    main()
