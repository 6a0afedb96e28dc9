"""Score against training time on the pocket world, for the docs: `just score-against-time STORE`.

Trains on the store's train split and measures val with the averaged weights at every mark; measuring does not count.
Prints one row a mark and writes them, with the machine, as JSON.
"""

import json
import os
import platform
import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from weakmcn.cli.settings import override
from weakmcn.model.config import preset, train_preset
from weakmcn.model.evaluate import evaluate
from weakmcn.model.methods import method_of
from weakmcn.model.state import TrainState
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.model.vocabulary import Vocabulary
from weakmcn.shards.store import Store


def main(
    store: Annotated[Path, typer.Argument(help="Store of a pocket data set, train and val.")],
    minutes: Annotated[str, typer.Option(help="Marks, in minutes of training.")] = "1,2,3,5,8,12,18,24,30",
    dataset: str = "refcoco+",
    settings: Annotated[list[str] | None, typer.Option("--set", help="As `weakmcn train --set`.")] = None,
    shuffle_captions: bool = False,
    out: Path = Path("score_against_time.json"),
) -> None:
    """Train on STORE and print REC, RES and SAM's RES for the predicted box at each mark and at the end."""
    marks = [float(mark) for mark in minutes.split(",")]
    chosen = override({"model": preset("pocket"), "train": train_preset("pocket")}, settings or [])
    opened = Store.open(store)
    rows: list[dict[str, float]] = []
    clock = {"started": time.monotonic(), "measuring": 0.0}

    def trained_minutes() -> float:
        return (time.monotonic() - clock["started"] - clock["measuring"]) / 60

    def measure(state: TrainState, run: Path) -> None:
        before = time.monotonic()
        at = trained_minutes()
        net = method_of("weakmcn").build(chosen["model"], Vocabulary.load(run / "vocabulary.json"), None)
        net.load_state_dict({**state.net.state_dict(), **state.average.shadow})
        generator = torch.get_rng_state()
        found = evaluate(
            net,
            vocabulary=Vocabulary.load(run / "vocabulary.json"),
            method=method_of("weakmcn"),
            config=chosen["model"],
            store=opened,
            dataset=dataset,
            split="val",
        )
        torch.set_rng_state(generator)
        of_box = found.baselines["sam_mask_of_box"]["res_miou"]
        row = {
            "minutes": round(at, 2),
            "step": state.step,
            "epoch": state.epoch,
            "rec_acc50": round(found.summary["rec_acc50"], 2),
            "res_miou": round(found.summary["res_miou"], 2),
            "sam_mask_of_box": round(of_box, 2),
            "share_of_sam": round(100 * found.summary["res_miou"] / of_box, 1),
        }
        rows.append(row)
        typer.echo("  ".join(f"{name} {value}" for name, value in row.items()))
        clock["measuring"] += time.monotonic() - before

    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        last: list[TrainState] = []

        def after_step(state: TrainState) -> None:
            last[:] = [state]
            if marks and trained_minutes() >= marks[0]:
                marks.pop(0)
                measure(state, run)

        clock["started"] = time.monotonic()
        train(
            TrainSettings(
                store=store,
                dataset=dataset,
                out=run,
                model=chosen["model"],
                train=chosen["train"],
                shuffle_captions=shuffle_captions,
            ),
            after_step=after_step,
        )
        measure(last[0], run)
    machine = {"cores": len(os.sched_getaffinity(0)), "processor": platform.processor(), "torch": torch.__version__}
    out.write_text(json.dumps({"machine": machine, "settings": settings or [], "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
