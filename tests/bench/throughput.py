"""From a JPEG to box and mask, at the paper's sizes: `just bench throughput`.

YOLOv3 at 416, DINOv2-B at 364, EfficientSAM-Ti at 416 with a mask for each of the 17 candidates, then the heads of
preset refcoco with an expression; all weights are random, the photographs noise of COCO's sizes. Once one photograph
at a time, once in batches with the next batch read meanwhile. The masks are the one step that an answer does not need:
the heads draw their own. The paper gives 17.7 images a second on its GPU.
"""

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from weakmcn.model.batch import SOURCES, Batch
from weakmcn.model.config import preset
from weakmcn.model.weakmcn import WeakMCN
from weakmcn.pipeline.images import Photo
from weakmcn.pipeline.speed import READ, Columns, Networks, Speed

from .. import paper
from ..tiny import photo, write_data
from .harness import told, written

STAGES = ("detect", "dino", "sam", "masks")
FIELDS = ("dark_s8", "dark_s16", "dark_s32", "dino", "sam", "cells", "boxes")
WORDS, TOKENS = 10_000, 15
PAPER_FPS = 17.7


def main(
    images: Annotated[int, typer.Option(help="Photographs, one at a time and again in batches.")] = 16,
    batch: Annotated[int, typer.Option(help="Photographs in a batch.")] = 8,
    out: Path = Path("throughput.json"),
) -> None:
    """Print milliseconds an image of every step, latency of one photograph, and images a second."""
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_data(root / "data", images=images + batch, val=0, size=paper.photo_size)
        files = [photo(root / "data", number + 1) for number in range(images + batch)]
        config = paper.saved(paper.frozen_networks(files[:4]), root / "weights", batch=batch)
        networks = Networks(config, STAGES, device)
        last = {"heads": Heads(device)}
        one = networks.measured(files[: images + 1], batch=1, last=last)
        many = networks.measured(files, batch=batch, last=last, readers=min(cores, 8))
    told(
        f"From a JPEG to box and mask, {images} photographs, {device}",
        ("step", "one at a time, ms", f"batches of {batch}, ms an image"),
        [(step, f"{1000 * one.step_s(step):.1f}", f"{1000 * many.step_s(step):.1f}") for step in one.steps],
        notes=[
            f"one at a time: {1000 * one.latency_s(0.5):.0f} ms from file to answer (median), "
            f"{1000 * one.latency_s(0.95):.0f} ms (95 of 100); {one.images_per_s:.2f} images a second",
            f"in batches of {batch}: {many.images_per_s:.2f} images a second, {_without_masks(many):.2f} without masks "
            f"(the paper: {PAPER_FPS}); step {READ} is what there is to wait for",
        ],
    )
    facts = {"one": vars(one), "many": vars(many), "images_per_s": many.images_per_s}
    written(out, "throughput", {}, device=device, images=images, **facts)


class Heads:
    """The paper's trained part with random weights, asked for one expression a photograph."""

    def __init__(self, device: str) -> None:
        torch.manual_seed(1)
        self._net = WeakMCN(preset("refcoco"), WORDS).to(device).eval()
        self._device = device

    @torch.inference_mode()
    def __call__(self, photos: Sequence[Photo], columns: Sequence[Columns]) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes and masks."""
        values = {name: np.stack([seen[SOURCES[name]] for seen in columns]) for name in FIELDS}
        values["cells"] = values["cells"].astype(np.int64)
        values["letterbox"] = np.stack([each.letterbox.info for each in photos])
        values["tokens"] = np.arange(3, 3 + TOKENS)[None].repeat(len(photos), axis=0)
        batch = Batch(**{name: torch.from_numpy(value).to(self._device) for name, value in values.items()})
        found = self._net.predict(batch)
        assert found.mask_logits is not None
        return found.boxes.cpu(), (found.mask_logits > 0).cpu()


def _without_masks(speed: Speed) -> float:
    """Images a second had the masks not been drawn."""
    masks_s = sum(speed.steps["masks"])
    return speed.images_per_s * speed.wall_s / (speed.wall_s - masks_s)


if __name__ == "__main__":
    typer.run(main)
