"""`weakmcn train`: learn boxes and masks from the expressions and the columns of a store."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from ..shards.store import Store


def train(
    shards: Annotated[Path, typer.Option(metavar="STORE", help="Folder of the store that precompute filled.")],
    dataset: Annotated[str, typer.Option(help="Whose expressions: refcoco, refcoco+, refcocog, …")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run; an interrupted run in it goes on.")],
    method: Annotated[str, typer.Option(help="What is trained.")] = "weakmcn",
    preset: Annotated[
        str | None,
        typer.Option(
            help="Sizes and recipe: refcoco, refcoco+, refcocog, each with -small, or pocket.",
            show_default="what fits the store and the data set",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Change one setting, model.… or train.…; may be repeated."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Short for --set train.epochs=…")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set train.seed=…")] = None,
    features: Annotated[
        Literal["disk", "ram"], typer.Option(help="Read columns from the store at every step, or once into memory.")
    ] = "disk",
    shuffle_captions: Annotated[
        bool,
        typer.Option("--shuffle-captions", help="Control: every object gets the expressions of another image's."),
    ] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, …; auto is the GPU where there is one.")] = "auto",
) -> None:
    """Learn boxes and masks from expressions alone; no annotated box or mask is read.

    \b
    Needs    a store with the columns of the chosen banks: weakmcn precompute
    Writes   RUN: settings, vocabulary, two checkpoints, metrics.jsonl
    Example  weakmcn train --shards store --dataset refcoco+ --out runs/first
             weakmcn train --shards store --dataset refcoco --out runs/dino \\
                 --set model.banks=dino --set train.lr=5e-5

    Interrupted or killed, the same command goes on and ends with the same bytes.
    """
    from ..model.config import preset as model_preset
    from ..model.config import train_preset
    from ..model.train import TrainSettings
    from ..model.train import train as run_training
    from ..pipeline.datasets import ALIASES
    from ..shards.store import Store
    from .settings import override

    dataset = ALIASES.get(dataset, dataset)
    name = preset or fitting_preset(Store.open(shards), dataset)
    short = [f"train.{key}={value}" for key, value in (("epochs", epochs), ("seed", seed)) if value is not None]
    chosen = override({"model": model_preset(name), "train": train_preset(name)}, [*(settings or ()), *short])
    run = run_training(
        TrainSettings(
            store=shards,
            dataset=dataset,
            out=out,
            model=chosen["model"],
            train=chosen["train"],
            method=method,
            shuffle_captions=shuffle_captions,
            features=features,
            device=device,
        )
    )
    typer.echo(f"{run.path}: done. Measure it: weakmcn eval --run {run.path} --split val")


def fitting_preset(store: "Store", dataset: str) -> str:
    """`pocket` for a store made with the pocket encoders, else the paper's preset of the data set.

    ConfigError where the paper has none.
    """
    from ..model.config import PRESETS
    from ..shards.errors import ConfigError

    if any(family.stage_json["recorded"].get("preset") == "pocket" for family in store.families.values()):
        return "pocket"
    name = dataset.partition("-")[0]
    if name not in PRESETS:
        raise ConfigError(
            f"there is no preset for data set {dataset!r}; name one: --preset {PRESETS[0]}, for instance."
        )
    return name
