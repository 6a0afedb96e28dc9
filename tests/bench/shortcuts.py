"""Whether what saves time or bytes costs score on the pocket world: `just bench shortcuts STORE STORE_U8`.

Trains the same network with the preset's settings, with `--sampling images`, and from the columns of a store in codec
u8, several seeds of each, and measures val. Trainings have a thread each; one that is done in --runs is not done again.
The stores: `weakmcn pocket data --flavour refcoco+`, then `weakmcn precompute` of train and val, once with --codec u8.
"""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Annotated

import typer

from .harness import told, written

BAR = 1.0
"""Points between the means."""
WEAKMCN = Path(sys.executable).with_name("weakmcn")


def main(
    store: Annotated[Path, typer.Argument(help="Of a pocket data set, in f16.")],
    store_u8: Annotated[Path, typer.Argument(help="Of the same data set, in u8.")],
    dataset: str = "refcoco+",
    seeds: int = 5,
    at_once: Annotated[int, typer.Option(help="Trainings at a time.")] = 2,
    runs: Annotated[Path, typer.Option(help="Folder of the trainings.")] = Path("shortcuts"),
    out: Path = Path("shortcuts.json"),
) -> None:
    """Print REC and RES of val of each kind, mean and standard deviation, and its distance from the preset's."""
    kinds = {"preset": (store, ()), "images": (store, ("--sampling", "images")), "u8": (store_u8, ())}

    def score(job: tuple[int, str]) -> tuple[float, float]:
        seed, kind = job
        shards, more = kinds[kind]
        run = runs / f"{kind}-{seed}"
        words = ["--shards", str(shards), "--dataset", dataset, "--out", str(run), "--set", f"train.seed={seed}", *more]
        _run("train", *words)
        _run("eval", "--run", str(run), "--split", "val")
        found = json.loads((run / "eval-val.json").read_text())["summary"]
        return found["rec_acc50"], found["res_miou"]

    jobs = list(product(range(seeds), kinds))
    with ThreadPoolExecutor(at_once) as pool:
        scores = dict(zip(jobs, pool.map(score, jobs), strict=True))
    means = {kind: [mean(scores[seed, kind][task] for seed in range(seeds)) for task in (0, 1)] for kind in kinds}
    rows = []
    for kind, both in means.items():
        spreads = [stdev(scores[seed, kind][task] for seed in range(seeds)) for task in (0, 1)]
        distances = [own - other for own, other in zip(both, means["preset"], strict=True)]
        told_scores = [f"{middle:.1f} ± {spread:.1f}" for middle, spread in zip(both, spreads, strict=True)]
        verdict = "" if kind == "preset" else "holds" if max(map(abs, distances)) <= BAR else "MISSED"
        rows.append([kind, *told_scores, *(f"{distance:+.2f}" for distance in distances), verdict])
    told(
        f"{dataset} val, {seeds} seeds",
        ["columns, sampling", "REC", "RES", "REC less preset's", "RES less preset's", f"within {BAR:g}"],
        rows,
    )
    each = {f"{kind}-{seed}": found for (seed, kind), found in scores.items()}
    written(out, "shortcuts", {}, scores=each, means=means, bar=BAR)


def _run(*words: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([str(WEAKMCN), *words], env=environment, stdout=subprocess.DEVNULL, check=True)


if __name__ == "__main__":
    typer.run(main)
