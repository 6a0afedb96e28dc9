"""Batches from files, from memory and from the GPU, side by side: `just bench residence`.

The trainer's loader on images of the paper's sizes, batches of 40 globally shuffled, in f16 and in u8. Files are warm.
The GPU's rows are there where there is one; every variant then ends with the batch on it.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import typer
from weakmcn.model.loader import Loader
from weakmcn.model.residence import choose
from weakmcn.shards.store import Store

from .harness import REPEATS, in_turn, ratio, told, written
from .paper_store import keys_of, make_store, shuffled

BATCH, SHARDS = 40, 4
FIELDS = ("dark_s8", "dark_s16", "dark_s32", "dino", "sam", "cells", "boxes", "masks")


def main(images: int = 160, repeats: int = REPEATS, out: Path = Path("residence.json")) -> None:
    """Print samples a second for each place and codec."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    places = ("disk", "ram", "gpu") if device.type == "cuda" else ("disk", "ram")
    with tempfile.TemporaryDirectory(prefix="weakmcn-bench-") as folder:
        variants: dict[str, Callable[[], object]] = {}
        for codec in ("f16", "u8"):
            store = Store.open(make_store(Path(folder) / codec, images=images, shards=SHARDS, codec=codec))
            for place in places:
                loader = Loader(store, FIELDS, device=device, reuse=True)
                residence = choose(place, loader.reader, keys_of(images), device)
                loader.features = residence.features(loader.reader, keys_of(images), device)
                variants[f"{place}, {codec}"] = _epoch(loader, images, device)
        timings = in_turn(variants, repeats=repeats)
    rows = []
    for name, timing in timings.items():
        base = timings[f"disk, {name.rpartition(' ')[2]}"]
        rows.append([name, f"{images / timing.median_s:,.0f}", f"{ratio(base, timing)[0]:.2f}"])
    notes = [] if device.type == "cuda" else ["gpu: not measured, there is none"]
    told(f"Batches of {BATCH}, {images} images", ("", "samples/s", "x disk"), rows, notes=notes)
    written(out, "residence", timings, images=images, notes=notes)


def _epoch(loader: Loader, images: int, device: torch.device) -> Callable[[], object]:
    tokens = np.ones((BATCH, 4), np.int64)
    seed = 0

    def epoch() -> None:
        nonlocal seed
        seed += 1
        for keys in shuffled(images, BATCH, seed):
            loader.batch(keys, tokens)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return epoch


if __name__ == "__main__":
    typer.run(main)
