"""`weakmcn eval`: a run's figures on a split, between what needs no language and what no choice could better."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AsJson, DatasetOfRun, Device, Split, StoreOfRun

if TYPE_CHECKING:
    from rich.console import Group

    from ..model.checkpoint import Position
    from ..model.evaluate import Evaluation
    from ..model.run import Run

COLUMNS = {
    "rec_acc50": "REC\nAcc@0.5",
    "res_miou": "RES\nmIoU",
    "res_oiou": "\noIoU",
    "pr50": "Pr@\n0.5",
    "pr60": "\n0.6",
    "pr70": "\n0.7",
    "pr80": "\n0.8",
    "pr90": "\n0.9",
    "inconsistency": "\nIE",
}
"""Figure -> its heading; the table fits 80 columns."""
BASELINES = {
    "best_scored": "floor: best scored",
    "random": "floor: random",
    "largest": "floor: largest",
    "oracle": "ceiling: oracle",
}


def evaluate(
    run: Annotated[Path | None, typer.Option(metavar="RUN", help="Folder of the run.")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Measure these instead of a run; with --shards and --dataset."),
    ] = None,
    split: Split = "val",
    shards: StoreOfRun = None,
    dataset: DatasetOfRun = None,
    as_json: AsJson = False,
    device: Device = "auto",
) -> None:
    """Measure a run, or anyone's predictions, on every sentence of a split; one checkpoint answers for boxes and masks.

    \b
    Needs    a run, and a store with the split: weakmcn precompute --split val
    Writes   RUN/eval-<split>.json: the figures, and how good each answer was;
             nothing of a file of predictions (docs/predictions.md)
    Example  weakmcn eval --run runs/first --split testA
             weakmcn eval --run runs/first --split val --json > val.json
             weakmcn eval --predictions theirs.json --shards store \\
                 --dataset refcoco --split val

    All figures are percentages of all sentences of the split, at the photo's own size; one without an answer is a miss,
    is told, and makes the exit code 3.

    \b
    REC Acc@0.5  box IoU > 0.5, strictly
    RES mIoU     mean over sentences of the mask IoU
    oIoU         sum of the intersections over the sum of the unions (cIoU);
                 favours large objects
    Pr@X         mask IoU > X, strictly
    IE           inconsistency: exactly one of box IoU > 0.5 and
                 mask IoU >= 0.5 holds; lower is better

    The floor needs no language: the candidate of highest objectness, a random one (in expectation), the largest, each
    with SAM's mask of it. The ceiling is the candidate that fits the true box best. The second row is the run's own
    choice with the SAM head: SAM's mask of that box in place of the mask head's. It is the only RES of a method
    without a mask head. A method that predicts masks alone has no REC, no IE and no SAM head, but a PointM: the share
    of sentences whose highest pixel lies in the true mask.
    """
    from ..model.checkpoint import newest_position
    from ..pipeline.datasets import ALIASES

    name = ALIASES.get(dataset, dataset) if dataset else None
    opened = position = None
    if predictions is None:
        opened = _opened(run)
        position = newest_position(opened.checkpoints)
        facts, found = _of_run(opened, split, shards, name, device)
    else:
        facts, found = _of_predictions(predictions, run, split, shards, name)
    if as_json:
        import json

        typer.echo(json.dumps({**facts, **found.results, "notes": found.notes}, indent=2))
    else:
        show([found])
    if found.labels_of is not None and opened is not None:
        typer.echo(f"note: not kept in {opened.path}, whose figures are of annotated truth.", err=True)
    elif opened is not None and position is not None:
        _keep(opened, found, position)
    if found.misses:
        raise typer.Exit(3)


def _keep(run: "Run", found: "Evaluation", position: "Position") -> None:
    """Keep what was measured; a folder that cannot be written is told, the figures have been printed."""
    from ..model.results import keep
    from ..shards.errors import WeakmcnError

    try:
        keep(run, found, position)
    except (OSError, WeakmcnError) as fault:
        typer.echo(f"weakmcn: the figures are not kept: {fault}", err=True)


def _opened(run: Path | None) -> "Run":
    from ..model.run import Run
    from ..shards.errors import ConfigError

    if run is None:
        raise ConfigError("missing option '--run' or '--predictions'; see weakmcn eval --help.")
    return Run.open(run)


Measured = tuple[dict[str, str], "Evaluation"]
"""What was measured, for JSON, and how it did."""


def _of_run(run: "Run", split: str, shards: Path | None, dataset: str | None, device: str) -> Measured:
    from ..model.evaluate import evaluate_run

    store = run.open_store(shards)
    found = evaluate_run(run, split, store=store, dataset=dataset, device=device)
    facts = {"run": str(run.path), "store": str(store.path), "dataset": found.dataset, "split": found.split}
    return {**facts, "weights": "ema"}, found


def _of_predictions(file: Path, run: Path | None, split: str, shards: Path | None, dataset: str | None) -> Measured:
    from ..model.foreign import score
    from ..shards.errors import ConfigError
    from ..shards.store import Store
    from .scored import read_predictions

    if run is not None:
        raise ConfigError("--run and --predictions: one at a time; each is measured alone.")
    if shards is None or dataset is None:
        raise ConfigError("--predictions needs the truth: name it with --shards STORE --dataset NAME.")
    store = Store.open(shards)
    read = read_predictions(file, store, dataset, split)
    facts = {"predictions": str(file), "store": str(store.path), "dataset": dataset, "split": split}
    return facts, score(read, store=store, dataset=dataset, split=split)


def show(evaluations: Sequence["Evaluation"]) -> None:
    """Print the table of several splits, and below it what there is to know about them."""
    from ..pipeline.plain_table import plain_console

    console = plain_console()
    console.print(results_table(evaluations))
    splits: dict[str, list[str]] = {}
    for found in evaluations:
        for note in found.notes:
            splits.setdefault(note, []).append(found.split)
    for note, named in splits.items():
        console.print(f"{evaluations[0].dataset} {', '.join(named)}: {note}", markup=False, soft_wrap=True)


def results_table(evaluations: Sequence["Evaluation"]) -> "Group":
    """One section a split: the run, the floor, the ceiling."""
    from ..pipeline.plain_table import plain_table, with_words

    table = plain_table(gap=1)
    table.add_column("", no_wrap=True)
    for head in COLUMNS.values():
        table.add_column(head, justify="right", no_wrap=True)
    for found in evaluations:
        label = f"{found.split}, {found.summary['sentences']:,.0f} sentences"
        cells = (f"{found.summary[key]:.1f}" if key in found.summary else "–" for key in COLUMNS)
        table.add_row(label, *cells, style="bold")
        if found.sam_head:
            table.add_row("  with the SAM head", *(f"{found.sam_head[key]:.1f}" for key in COLUMNS))
        for key, label in BASELINES.items():
            if figures := found.baselines.get(key):
                cells = (f"{figures[column]:.1f}" if column in figures else "" for column in COLUMNS)
                table.add_row(f"  {label}", *cells, style="dim")
        table.add_section()
    return with_words(
        table,
        above=f"{evaluations[0].called}, percent of all sentences",
        below="What each column and row means: weakmcn eval --help",
    )
