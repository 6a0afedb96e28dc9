"""Checks 5 to 11 of SaG-C."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from weakmcn.model.run import Run

from .. import synthetic
from .settings import BATCH, Check, at_least, at_most, figures, floors, losses, reported, slots, trained, world

CHANCE = math.log(BATCH)


def checks(folder: Path) -> Iterator[Check]:
    """Trains what is not in `folder` yet."""
    store = world(folder, grid=12, channels=48)
    runs = [trained(store, folder / f"sag-{seed}", slots(), "sag-c", steps=400, seed=seed) for seed in (0, 1)]
    run, found, floor = runs[0], figures(runs[0]), floors(store)
    c3 = losses(run, "c3")
    yield at_most("SaG-C 5: L_c3 at first, relative distance from ln B", abs(c3[0] / CHANCE - 1), 0.02)
    yield at_most("SaG-C 5: L_c3 at last over ln B", c3[-1] / CHANCE, 0.75)
    yield at_most("SaG-C 6: L_rec at last", losses(run, "rec")[-1], 0.85)
    yield at_least("SaG-C 7: mIoU", found["res_miou"], 0.38)
    yield at_least("SaG-C 7: PointM", found["pointm"], 0.60)
    yield at_least("SaG-C 7: mIoU less a centre box's", found["res_miou"] - floor["centre"], 0.18)
    yield at_least("SaG-C 7: mIoU less the largest proposal's", found["res_miou"] - found["largest"], 0.20)
    yield at_least("SaG-C 7: mIoU less the largest object's", found["res_miou"] - floor["largest_object"], 0.0)
    swapped = figures(run, synthetic.SWAPPED)
    yield at_least("SaG-C 9: mIoU, own caption less another object's", found["res_miou"] - swapped["res_miou"], 0.20)

    control = trained(store, folder / "sag-shuffled", slots(), "sag-c", steps=400, shuffle_captions=True)
    yield at_least("SaG-C 8: L_c3 over ln B with exchanged captions", losses(control, "c3")[-1] / CHANCE, 0.97)
    yield at_most("SaG-C 8: mIoU with exchanged captions", figures(control)["res_miou"], 0.22)

    without = [
        trained(store, folder / f"sag-unpainted-{seed}", slots(reconstruction=0.0), "sag-c", steps=400, seed=seed)
        for seed in (0, 1)
    ]
    lost = np.mean(
        [figures(one)["res_miou"] - figures(other)["res_miou"] for one, other in zip(runs, without, strict=True)]
    )
    yield at_least("SaG-C 10: mIoU lost without reconstruction, mean of two seeds", float(lost), 0.03)
    twins = world(folder, grid=12, channels=48, twins=0.3)
    placed = trained(twins, folder / "sag-twins", slots(), "sag-c", steps=400)
    told = figures(placed, synthetic.PLACED)["res_miou"]
    yield reported("SaG-C: mIoU where only left and right tell twins apart", told)
    spread = [figures(_with_noise(run, seed))["res_miou"] for seed in range(5)]
    yield at_most("SaG-C 11: mIoU, spread over five seeds of the noise", max(spread) - min(spread), 0.02)


def _with_noise(run: Run, seed: int) -> Run:
    """The same run with other slots in evaluation."""
    return replace(run, facts={**run.facts, "model": {**run.facts["model"], "noise_seed": seed}})
