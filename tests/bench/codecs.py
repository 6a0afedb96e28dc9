"""What each codec changes in training, for the docs: `just bench codecs`.

The setting of tests/test_cached_online.py: the paper's networks at their sizes with random weights. `precompute` makes
a store in every codec (masks included, which EfficientSAM decodes from the stored embedding), the trainer's loader
reads it, and a new network takes one step on every batch. Each store is compared with the one in float32. The column
"order" has the same float32 numbers in another order in memory: what the rounding of sums does on its own.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from weakmcn.model.batch import Batch
from weakmcn.model.config import preset
from weakmcn.model.loader import Loader
from weakmcn.model.losses import unpack_bits
from weakmcn.model.weakmcn import WeakMCN
from weakmcn.pipeline.precompute import precompute
from weakmcn.shards.store import Store

from .. import paper
from ..tiny import photo, write_data

CODECS = ("f32", "f16", "bf16", "u8")
MAPS = ("dark_s8", "dark_s16", "dark_s32", "dino", "sam")
FIELDS = (*MAPS, "cells", "boxes", "masks")
CONFIG = replace(preset("refcoco"), dropout=0.0)
WORDS = 40
SHOWN: dict[str, Callable[[float], str]] = {
    "bytes": lambda value: f"{value:,.0f}",
    "of f32": lambda value: f"{value:.3f}",
    **{name: lambda value: f"{value:.1e}" for name in MAPS},
    "chosen flipped": lambda value: f"{value:.0f}",
    "mask pixels": lambda value: f"{value:.1e}",
    **{name: lambda value: f"{value:.1e}" for name in ("similarity", "mask logits", "det", "mask", "scl", "gradient")},
}
"""Measure -> how it is printed. All but the first two and the flips are relative to float32."""


def main(
    images: Annotated[int, typer.Option(help="Photographs; a multiple of the batch.")] = 16,
    batch: Annotated[int, typer.Option(help="Samples in a step, and images in an encoder's batch.")] = 4,
    out: Path = Path("codecs.json"),
) -> None:
    """Print, for every codec, bytes an image and the change of everything that training sees."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root / "data", images=images, val=0, size=paper.photo_size)
        photos = [photo(root / "data", number + 1) for number in range(images)]
        frozen = paper.frozen_networks(photos[:batch])
        config = paper.saved(frozen, root / "weights", batch=batch)
        rows: dict[str, dict[str, float]] = {}
        truth: list[dict[str, Tensor]] = []
        for codec in CODECS:
            store = _made(replace(config, codec=codec), root)
            bytes_an_image = sum(tar.stat().st_size for tar in store.path.glob("*/*.tar")) / images
            batches = list(_batches(store, batch))
            steps = [_step(each) for each in batches]
            if codec == "f32":
                truth = steps
                rows["order"] = _changes([_step(_other_order(each)) for each in batches], truth)
            rows[codec] = {"bytes": bytes_an_image} | _changes(steps, truth)
            rows[codec]["of f32"] = bytes_an_image / rows["f32"]["bytes"]
            shutil.rmtree(store.path)
    _print(rows)
    out.write_text(json.dumps({"images": images, "batch": batch, "rows": rows}, indent=2) + "\n")


def _made(config, root: Path) -> Store:
    precompute(
        config,
        store=root / config.codec,
        data=root / "data",
        dataset="refcoco",
        splits=["train"],
        executor="local",
        console=Console(quiet=True),
    )
    return Store.open(root / config.codec)


def _batches(store: Store, size: int) -> Iterator[Batch]:
    loader = Loader(store, FIELDS)
    sentences = torch.Generator().manual_seed(2)
    for first in range(0, len(store.keys), size):
        tokens = torch.randint(3, WORDS, (size, 7), generator=sentences)
        yield loader.batch(store.keys[first : first + size], tokens.numpy())


def _other_order(batch: Batch) -> Batch:
    maps = {name: getattr(batch, name).to(memory_format=torch.channels_last) for name in MAPS}
    return replace(batch, **maps)


def _step(batch: Batch) -> dict[str, Tensor]:
    """All that one step of a new network computes, the pseudo masks of the chosen candidates and the maps."""
    torch.manual_seed(1)
    net = WeakMCN(CONFIG, WORDS).train()
    seen = net.predict(batch)
    losses = net.losses(batch, CONFIG.warm_epochs)
    losses.total.backward()
    assert batch.masks is not None
    assert seen.mask_logits is not None
    gradients = [weight.grad.flatten() for weight in net.parameters() if weight.grad is not None]
    return {
        **{name: getattr(batch, name).float() for name in MAPS},
        "chosen": seen.chosen,
        "pseudo": unpack_bits(batch.masks),  # [B, K, S, S]
        "similarity": seen.similarity,
        "mask logits": seen.mask_logits,
        **{name: value for name, value in vars(losses.detach()).items()},
        "gradient": torch.cat(gradients),
    }


def _changes(steps: list[dict[str, Tensor]], truth: list[dict[str, Tensor]]) -> dict[str, float]:
    """Relative L2 over all batches of each quantity; flips counted, mask pixels as a share of all."""
    row = {}
    for name in SHOWN:
        if name in truth[0]:
            found, wanted = (torch.stack([step[name] for step in each]).double() for each in (steps, truth))
            row[name] = float((found - wanted).norm() / wanted.norm())
    pairs = list(zip(steps, truth, strict=True))
    row["chosen flipped"] = float(sum((step["chosen"] != other["chosen"]).sum() for step, other in pairs))
    flipped = sum((step["pseudo"] != other["pseudo"]).sum() for step, other in pairs)
    row["mask pixels"] = float(flipped / sum(other["pseudo"].numel() for _, other in pairs))
    return row


def _print(rows: dict[str, dict[str, float]]) -> None:
    table = Table("", *rows, title="Relative L2 change against float32", title_justify="left")
    for name, shown in SHOWN.items():
        table.add_row(name, *(shown(row[name]) if name in row else "" for row in rows.values()))
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
