"""Checks 6 to 11 of TRIS-C."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from weakmcn.model import tris_refine
from weakmcn.model.loader import Loader
from weakmcn.model.losses import unpack_bits
from weakmcn.model.metrics import mask_iou
from weakmcn.model.pseudo_labels import pseudo_labels
from weakmcn.model.run import Run
from weakmcn.model.tris_segmenter import SegmenterConfig

from .. import synthetic
from .settings import (
    Check,
    at_least,
    at_most,
    figures,
    floors,
    localiser,
    losses,
    material,
    reported,
    segmenter,
    trained,
    truths,
    world,
)

STAGE_2_STEPS = 250


def checks(folder: Path) -> Iterator[Check]:
    """Trains what is not in `folder` yet."""
    store = world(folder, grid=16, channels=64)
    run = trained(store, folder / "tris", localiser(), "tris-c", steps=500)
    found, floor = figures(run), floors(store)
    cls = losses(run, "cls")
    yield at_most("TRIS-C 7: L_cls, last 20 steps over the first 20", cls[-1] / cls[0], 0.45)
    yield at_least("TRIS-C 7: PointM", found["pointm"], 0.85)
    yield at_least("TRIS-C 7: mIoU", found["res_miou"], 0.60)
    yield at_least("TRIS-C 7: mIoU less a centre box's", found["res_miou"] - floor["centre"], 0.40)
    yield at_least("TRIS-C 7: mIoU less the largest proposal's", found["res_miou"] - found["largest"], 0.40)
    yield at_least("TRIS-C 7: mIoU less the largest object's", found["res_miou"] - floor["largest_object"], 0.20)
    swapped = figures(run, synthetic.SWAPPED)
    yield at_least("TRIS-C 9: mIoU, own caption less another object's", found["res_miou"] - swapped["res_miou"], 0.30)

    control = trained(store, folder / "tris-shuffled", localiser(), "tris-c", steps=500, shuffle_captions=True)
    shuffled = figures(control)
    yield at_most("TRIS-C 8: mIoU with exchanged captions", shuffled["res_miou"], 0.20)
    yield at_most("TRIS-C 8: PointM with exchanged captions", shuffled["pointm"], 0.35)

    for mode, banks in (("prop", ("dino",)), ("pool", ("dino", "clip"))):
        model = localiser(calibration=mode, caption_vectors=str(store / "vectors.safetensors"), banks=banks)
        fg = losses(trained(store, folder / f"tris-{mode}", model, "tris-c", steps=300), "fg")
        yield at_most(f"TRIS-C 6: L_fg with {mode}, last 20 steps over the first 20", fg[-1] / fg[0], 0.60)

    labelled = (segmenter(refine="none"), segmenter(cut=0.25), segmenter())
    raw, walked, own = (_fit_of_labels(run, store, model) for model in labelled)
    yield at_least("TRIS-C 10: mIoU of pseudo masks on cells, walked and cut at 0.25 less raw", _walk(run, store), 0.05)
    yield at_least("TRIS-C 10: the same of the labels, enlarged and cut at model.cut", own - raw, 0.05)
    yield reported("TRIS-C: the same, enlarged and cut at 0.25", walked - raw)
    yield at_most("TRIS-C 10: planted map chosen, share of 120", _planted(run, store), 0.05)
    yield from _two_stages(folder, store)

    twins = world(folder, grid=16, channels=64, twins=0.3)
    placed = trained(twins, folder / "tris-twins", localiser(), "tris-c", steps=500)
    yield reported(
        "TRIS-C: mIoU where only left and right tell twins apart", figures(placed, synthetic.PLACED)["res_miou"]
    )


def _two_stages(folder: Path, store: Path) -> Iterator[Check]:
    """Means of two seeds."""
    means = dict.fromkeys(("first", "walk", "none"), 0.0)
    for seed in (0, 1):
        first = trained(store, folder / f"tris-first-{seed}", localiser(), "tris-c", steps=250, seed=seed)
        means["first"] += figures(first)["res_miou"] / 2
        for refine in ("walk", "none"):
            run = trained(
                store,
                folder / f"tris-second-{refine}-{seed}",
                segmenter(refine=refine),
                "tris-c2",
                steps=STAGE_2_STEPS,
                seed=seed,
                first_stage=first.path,
            )
            means[refine] += figures(run)["res_miou"] / 2
    yield at_least("TRIS-C 11: mIoU, stage 2 less stage 1", means["walk"] - means["first"], 0.02)
    yield at_least("TRIS-C 11: mIoU, stage 2 on walked less on raw labels", means["walk"] - means["none"], 0.01)


def _fit_of_labels(run: Run, store: Path, model: SegmenterConfig) -> float:
    """Mean IoU of the training references' pseudo masks with the true ones, on the masks' grid."""
    made = unpack_bits(pseudo_labels(run, material(store, run, model))).numpy()
    true = [truth.reshape(made.shape[1], 4, -1, 4)[:, 0, :, 0] for truth in truths(store, "train")]
    return float(np.mean([mask_iou(one, other) for one, other in zip(made, true, strict=True)]))


@torch.no_grad()
def _walk(run: Run, store: Path) -> float:
    """What the walk adds to the mean IoU of 300 maps with the true masks, both of cells, cut as in the prototype."""
    given, net = material(store, run, segmenter()), run.network()
    samples, true = given.samples, truths(store, "train")
    loader, gained = Loader(given.store, run.method.fields(run.model)), []
    for reference in range(300):
        batch = loader.batch([samples.keys[reference]], samples.tokens[reference][:1])
        responses: Any = net.responses(batch)  # pyright: ignore[reportCallIssue]
        raw = tris_refine.normalised(responses)
        assert batch.dino is not None
        walked = tris_refine.walked(raw, tris_refine.transitions(batch.dino))
        cells = true[reference][synthetic.CELL // 2 :: synthetic.CELL, synthetic.CELL // 2 :: synthetic.CELL]
        ious = [mask_iou(mask[0].numpy(), cells) for mask in (walked >= 0.25, raw > 0)]
        gained.append(ious[0] - ious[1])
    return float(np.mean(gained))


@torch.no_grad()
def _planted(run: Run, store: Path) -> float:
    """Of three maps, two of an object's captions and one of another object's of the image: is the latter chosen?"""
    given = material(store, run, segmenter())
    samples, net = given.samples, run.network()
    fields = run.method.fields(run.model)
    loader, chosen = Loader(given.store, fields), 0
    for reference in range(120):
        image = [
            other for other, key in enumerate(samples.keys) if key == samples.keys[reference] and other != reference
        ]
        captions = [samples.tokens[reference][0], samples.tokens[reference][1], samples.tokens[image[0]][0]]
        batch = loader.batch([samples.keys[reference]] * 3, np.stack(captions))
        responses: Any = net.responses(batch)  # pyright: ignore[reportCallIssue]
        chosen += tris_refine.medoid(tris_refine.normalised(responses)) == 2
    return chosen / 120
