"""`weakmcn train`: learn boxes and masks from the expressions and the columns of a store."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from . import completion
from .completion import SHIPPED
from .options import Device, FilledStore

if TYPE_CHECKING:
    from ..shards.store import Store

METHOD_HELP = f"What is trained: {', '.join(SHIPPED[:-1])} or {SHIPPED[-1]}."
EXAMPLE_PRESET = "refcoco"
"""Whose values `--set help` shows where no preset is named."""


def _show_settings(context: typer.Context, assignments: list[str] | None) -> list[str] | None:
    """`--set help`: print all settings and stop."""
    if assignments is None or "help" not in assignments:
        return assignments
    from rich.table import Table

    from ..model.methods import recipe
    from ..pipeline.plain_table import plain_console
    from .settings import explained

    method, preset = context.params.get("method") or "weakmcn", context.params.get("preset") or EXAMPLE_PRESET
    model, train = recipe(method, preset)
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, max_width=44)
    table.add_column(overflow="fold")
    for name, value, meaning in explained({"model": model, "train": train}):
        table.add_row(f"{name}={value}", meaning)
    console = plain_console(markup=False)
    console.print(f"Settings with the values of --method {method} --preset {preset}; change them: --set NAME=VALUE\n")
    console.print(table)
    raise typer.Exit()


def train(
    shards: FilledStore,
    dataset: Annotated[
        str,
        typer.Option(help="Whose expressions: refcoco, refcoco+, refcocog, …", autocompletion=completion.datasets),
    ],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run; an interrupted run in it goes on.")],
    method: Annotated[
        str, typer.Option(help=METHOD_HELP, is_eager=True, autocompletion=completion.methods)
    ] = "weakmcn",
    preset: Annotated[
        str | None,
        typer.Option(
            help="Sizes and recipe: refcoco, refcoco+, refcocog, each with -small, or pocket.",
            show_default="what fits the store and the data set",
            is_eager=True,
            autocompletion=completion.presets,
        ),
    ] = None,
    words: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Word vectors: GloVe's .txt or .zip, or .safetensors; they stay as they are.",
            show_default="random, and learned",
        ),
    ] = None,
    first_stage: Annotated[
        Path | None,
        typer.Option("--from", metavar="RUN", help="tris-c2: the finished run of tris-c whose masks it learns from."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change one setting, model.… or train.…; may be repeated. --set help lists them all.",
            callback=_show_settings,
            autocompletion=completion.settings,
        ),
    ] = None,
    sampling: Annotated[
        Literal["references", "images"] | None,
        typer.Option(
            help="Go through references one by one, or through images, each with all its references at once. Short for "
            "--set train.sampling=…",
            show_default="references",
        ),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Short for --set train.epochs=…")] = None,
    seed: Annotated[int | None, typer.Option(help="Short for --set train.seed=…")] = None,
    features: Annotated[
        Literal["auto", "disk", "ram", "gpu"],
        typer.Option(
            help="Where columns are: read from the store at every step, or once into memory or onto the GPU; "
            "auto decides from sizes and says so."
        ),
    ] = "auto",
    shuffle_captions: Annotated[
        bool,
        typer.Option("--shuffle-captions", help="Control: every object gets the expressions of another image's."),
    ] = False,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="Of the convolutions in a step; auto is bfloat16 on a GPU that has it, float32 elsewhere."),
    ] = "auto",
    compiler: Annotated[
        Literal["off", "inductor", "graphs"],
        typer.Option("--compile", help="Compile what computes maps, for a GPU; graphs: launch it as CUDA graphs too."),
    ] = "off",
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Losses for TensorBoard too, in RUN/tensorboard; needs its package.")
    ] = False,
    device: Device = "auto",
    devices: Annotated[
        int,
        typer.Option(metavar="N", help="Processes that share every batch, a GPU each; or start them with torchrun."),
    ] = 1,
    negatives: Annotated[
        Literal["gathered", "local"],
        typer.Option(help="With several: contrast a text with the images of the whole batch, or of its process alone."),
    ] = "gathered",
) -> None:
    """Learn boxes and masks from expressions alone; no annotated box or mask is read.

    \b
    Needs    a store with the columns of the chosen banks: weakmcn precompute
    Writes   RUN: settings, vocabulary, two checkpoints, metrics.jsonl
    Example  weakmcn train --shards store --dataset refcoco+ --out runs/first
             weakmcn train --shards store --dataset refcoco --out runs/dino \\
                 --words glove.6B.zip --set model.banks=dino --set train.lr=5e-5

    Told are, an epoch a line, the terms of the loss (weakmcn: det, contrast of expressions and candidates; mask,
    cross-entropy with SAM's masks; scl, shadows of mask and box; others: docs/methods.md), references a second, seconds
    and the share of them spent waiting for data.

    Interrupted or killed, the same command goes on and ends with the same bytes. The word vectors are kept in the run:
    their file is read once. With --devices N every process takes the Nth part of a batch: the order of training, losses
    and gradients are those of one process, up to rounding, and a run may go on with another N.
    """
    from ..shards.lock import refuse_if_held

    refuse_if_held(out)  # at once: importing torch takes long

    from ..model.launch import train_on
    from ..model.methods import recipe
    from ..model.preflight import next_step
    from ..model.train_settings import TrainSettings
    from ..shards.store import Store
    from .settings import changed, parsed

    store = Store.open(shards)
    dataset = dataset_in(store, dataset)
    model, optimisation = recipe(method, preset or fitting_preset(store, dataset))
    sections = {"model": model, "train": optimisation}
    short = [
        f"train.{key}={value}"
        for key, value in (("epochs", epochs), ("seed", seed), ("sampling", sampling))
        if value is not None
    ]
    changes, notes = implied(sections, parsed(sections, [*(settings or ()), *short]), has_words=words is not None)
    chosen = changed(sections, changes)
    run = train_on(
        TrainSettings(
            store=shards,
            dataset=dataset,
            out=out,
            model=chosen["model"],
            train=chosen["train"],
            method=method,
            words=words,
            first_stage=first_stage,
            shuffle_captions=shuffle_captions,
            features=features,
            precision=precision,
            compile=compiler,
            device=device,
            negatives=negatives,
            tensorboard=tensorboard,
        ),
        devices,
        notes=notes,
    )
    if run:  # else another process of torchrun says so
        typer.echo(f"{run.path}: done. {next_step(run.path)}")


def dataset_in(store: "Store", name: str) -> str:
    """The data set of the store that is meant; ConfigError if it is none of them, with the nearest."""
    from ..pipeline.datasets import ALIASES
    from ..shards.choices import did_you_mean
    from ..shards.errors import ConfigError

    meant = ALIASES.get(name, name)
    if meant not in store.datasets:
        if hint := did_you_mean(ALIASES.get(name.lower(), name.lower()), store.datasets):
            raise ConfigError(f"{store.path} has no references of {name!r}{hint}; it has {', '.join(store.datasets)}.")
        store.references(meant)  # raises, naming those there are
    return meant


def implied(
    sections: Mapping[str, Any], changes: Mapping[str, Mapping[str, Any]], *, has_words: bool
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The changes, with what follows from them where the user did not say otherwise; and a line about each such thing.

    Word vectors learn unless they come from a file. The warm-up ends with the training at the latest.
    """
    model, train = dict(changes["model"]), dict(changes["train"])
    notes = []
    if "train_words" not in model:
        model["train_words"] = not has_words
        if not has_words:
            notes.append("Word vectors begin at random and are learned; --words FILE takes GloVe's.")
    epochs, warmup = train.get("epochs"), sections["train"].warmup_epochs
    if epochs is not None and "warmup_epochs" not in train and 0 < epochs < warmup:
        train["warmup_epochs"] = epochs
        notes.append(f"The learning rate grows over all {epochs} epochs instead of {warmup} (train.warmup_epochs).")
    return {"model": model, "train": train}, notes


def fitting_preset(store: "Store", dataset: str) -> str:
    """`pocket` for a store made with the pocket encoders, else the paper's preset of the data set.

    ConfigError where the paper has none.
    """
    from ..model.config import PRESETS
    from ..shards.errors import ConfigError

    if store.is_pocket:
        return "pocket"
    name = dataset.partition("-")[0]
    if name not in PRESETS:
        raise ConfigError(
            f"there is no preset for data set {dataset!r}; name one: --preset {PRESETS[0]}, for instance."
        )
    return name
