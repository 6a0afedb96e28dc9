"""What the checks train: sizes, recipes, and the figures that need no language."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from weakmcn.model.config import ModelConfig
from weakmcn.model.evaluate import Evaluation, evaluate_run
from weakmcn.model.lessons import Material
from weakmcn.model.methods import recipe
from weakmcn.model.metrics import mask_iou
from weakmcn.model.references import Reference, references_of
from weakmcn.model.run import Run
from weakmcn.model.samples import training_samples
from weakmcn.model.shatter import ShatterConfig
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.model.tris import TrisConfig
from weakmcn.model.tris_segmenter import SegmenterConfig
from weakmcn.shards.codec import rle_decode
from weakmcn.shards.store import Store

from .. import synthetic

BATCH = 24
SLOTS_RATE, SEGMENTER_RATE = 1e-3, 3e-3


@dataclass(frozen=True)
class Check:
    """One figure and whether it is as it must be."""

    name: str
    found: float
    wanted: str
    holds: bool

    def __str__(self) -> str:
        return f"{'ok    ' if self.holds else 'FAILED'} {self.name}: {self.found:.3f}, wanted {self.wanted}"


def at_least(name: str, found: float, wanted: float) -> Check:
    return Check(name, found, f">= {wanted:g}", found >= wanted)


def reported(name: str, found: float) -> Check:
    """Told, and never wrong."""
    return Check(name, found, "only told", holds=True)


def at_most(name: str, found: float, wanted: float) -> Check:
    return Check(name, found, f"<= {wanted:g}", found <= wanted)


COMMON: dict[str, Any] = {
    "candidates": synthetic.PROPOSALS,
    "max_tokens": 5,
    "dark_channels": (synthetic.DARK,) * 3,
    "clip_channels": synthetic.JOINT,
    "word_dim": 32,
    "text_dim": 64,
    "text_heads": 4,
    "text_layers": 1,
    "text_ff_dim": 128,
    "text_flat_dim": 32,
    "train_words": True,
}


def localiser(grid: int = 16, channels: int = 64, **more: Any) -> TrisConfig:
    return TrisConfig(side_px=synthetic.CELL * grid, dino_channels=channels, **{**COMMON, "tris_dim": 64, **more})


def segmenter(grid: int = 16, channels: int = 64, **more: Any) -> SegmenterConfig:
    sizes: dict[str, Any] = {**COMMON, "dropout": 0.0, "decoder_dims": (32, 32, 24, 16), **more}
    return SegmenterConfig(side_px=synthetic.CELL * grid, dino_channels=channels, **sizes)


def slots(grid: int = 12, channels: int = 48, **more: Any) -> ShatterConfig:
    # Four hundred steps are too few for a sentence encoder with attention, or with dropout, to tell images apart.
    quick: dict[str, Any] = {**COMMON, "word_dim": 64, "text_layers": 0, "dropout": 0.0}
    sizes: dict[str, Any] = {**quick, "slot_dim": 64, "gaussians": 4, "draws": 2, "rounds": 3, **more}
    return ShatterConfig(side_px=synthetic.CELL * grid, dino_channels=channels, **sizes)


def trained(store: Path, out: Path, model: ModelConfig, method: str, *, steps: int, seed: int = 0, **more: Any) -> Run:
    """The run in `out`, trained to the last epoch that ends within `steps`."""
    references = len(references_of(Store.open(store), synthetic.DATASET, "train"))
    fast = replace(
        recipe(method, "pocket")[1],
        batch=BATCH,
        epochs=steps // (references // BATCH),
        lr=1e-3,
        seed=seed,
    )
    if method == "tris-c2":
        fast = replace(fast, lr=SEGMENTER_RATE)
    if method == "sag-c":  # a steady rate after a short warm-up
        fast = replace(fast, lr=SLOTS_RATE, warmup_steps=40, schedule="poly", poly_power=0.0)
    settings = TrainSettings(
        store=store, dataset=synthetic.DATASET, out=out, model=model, train=fast, method=method, device="cpu", **more
    )
    return train(settings)


def world(folder: Path, *, grid: int, channels: int, twins: float = 0.0) -> Path:
    """The synthetic store of that size in `folder`: 500 training images, 120 to measure on."""
    store = folder / f"store-{grid}{'-twins' if twins else ''}"
    if not (store / "vectors.safetensors").exists():  # written last
        synthetic.write_store(store, grid=grid, channels=channels, train=500, val=120, twins=twins)
    return store


def losses(run: Run, term: str) -> list[float]:
    """A loss term, its means of 20 steps each."""
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    return [line[term] for line in lines]


def material(store: Path, run: Run, model: ModelConfig) -> Material:
    """What a run on the same samples has to hand."""
    opened = Store.open(store)
    samples = training_samples(
        opened, synthetic.DATASET, "train", stages=("detect", "dino"), max_tokens=run.model.max_tokens
    )
    return Material(
        store=opened,
        samples=samples,
        model=model,
        dataset=synthetic.DATASET,
        split="train",
        out=store,
        seed=0,
        device=torch.device("cpu"),
    )


def figures(run: Run, dataset: str = synthetic.DATASET) -> dict[str, float]:
    """res_miou and pointm on val, 0..1."""
    found: Evaluation = evaluate_run(run, "val", dataset=dataset)
    return {name: found.summary[name] / 100 for name in ("res_miou", "pointm")} | {
        name: floor["res_miou"] / 100 for name, floor in found.baselines.items()
    }


def floors(store: Path) -> dict[str, float]:
    """mIoU on val of a box in the centre, of the size that is best there, and of the image's largest true object."""
    references = references_of(Store.open(store), synthetic.DATASET, "val")
    truths = [_truth(each, Store.open(store).side) for each in references]
    side = truths[0].shape[0]
    best = 0.0
    for edge in range(synthetic.CELL, side + 1, synthetic.CELL):
        low = (side - edge) // 2
        box = np.zeros((side, side), bool)
        box[low : low + edge, low : low + edge] = True
        best = max(best, float(np.mean([mask_iou(box, truth) for truth in truths])))
    largest: dict[str, np.ndarray] = {}
    for reference, truth in zip(references, truths, strict=True):
        if truth.sum() > largest.get(reference.key, np.zeros(1)).sum():
            largest[reference.key] = truth
    of_image = [mask_iou(largest[each.key], truth) for each, truth in zip(references, truths, strict=True)]
    return {"centre": best, "largest_object": float(np.mean(of_image))}


def _truth(reference: Reference, side: int) -> np.ndarray:
    assert reference.mask is not None
    return rle_decode(reference.mask, side, side)


def truths(store: Path, split: str) -> Sequence[np.ndarray]:
    """The true masks of a split's references, bool [S, S] each."""
    opened = Store.open(store)
    return [_truth(each, opened.side) for each in references_of(opened, synthetic.DATASET, split)]
