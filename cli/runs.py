"""`weakmcn runs`: the runs below some folders, and two of them compared sentence by sentence."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import completion
from .options import AsJson, Split
from .plain_help import PlainGroup

if TYPE_CHECKING:
    from ..model.compare import Comparison
    from ..model.results import Kept
    from ..model.run import Run

USUAL = Path("runs")
DEPTH = 2
"""Folders deep that runs are looked for."""
SHOWN_CHANGES = 3
SPLITS = ("val", "test", "testA", "testB", "testC", "train")
"""Of several that were measured at one step, the first is shown."""
OPTIONS = {
    "shuffle_captions": False,
    "split": "train",
    "negatives": "gathered",
    "precision": "float32",
    "compile": "off",
}
"""Options of `train` that change what a run learns, and their usual values. The first makes it a control."""
FIGURES = {"rec_acc50": "REC Acc@0.5", "res_miou": "RES mIoU"}


class _ListFirst(PlainGroup):
    """A group whose command `list` may go unsaid: `weakmcn runs DIR`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        is_completed = ctx.resilient_parsing  # by the shell: the word may be the beginning of a command
        known = (*self.commands, "--help", "-h")
        if not is_completed and (not args or args[0] not in known):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListFirst,
    help="Show the runs below a folder, or compare two of them.\n\n"
    "`weakmcn runs DIR` is short for `weakmcn runs list DIR`; without DIR it looks in ./runs, or here.",
)


@dataclass(kw_only=True)
class Row:
    """What is told of one run."""

    run: str
    method: str = ""
    preset: str = ""
    """The one its settings are nearest to."""
    changes: dict[str, Any] = field(default_factory=dict)
    """Setting or option of `train` -> value, where it is not the preset's or the usual one."""
    dataset: str = ""
    epochs: int = 0
    """Finished."""
    epochs_total: int = 0
    converted: bool = False
    seconds: float = 0.0
    """Of training."""
    masks_mean_nothing: bool = False
    """Its mask head has not begun to learn, and RES says nothing."""
    measured: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Data set and split -> figures, and the epoch they are of."""
    fault: str | None = None


@app.command("list")
def list_runs(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="DIR", help="Folders that hold runs.", show_default="./runs, or here"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show every run: method, settings, epochs, newest figures, training time.

    \b
    Needs    runs, two folders deep at most
    Writes   nothing
    Example  weakmcn runs list runs

    Settings are told as a preset and what differs from it. Figures are those of `weakmcn eval`, which keeps them in the
    run; where the run was trained further since, they are marked with the epoch they belong to.
    """
    from ..shards.errors import InputError

    places = folders or [USUAL if USUAL.is_dir() else Path()]
    for place in places:
        if not place.is_dir():
            raise InputError(f"{place}: no such folder; name one that holds runs.")
    paths = list(dict.fromkeys(path for place in places for path in _runs_below(place)))
    if not paths:
        where = ", ".join(map(str, places))
        raise InputError(f"{where}: no run (a folder with run.json) in it, {DEPTH} folders deep; name another folder.")
    rows = [_row(path) for path in paths]
    if as_json:
        typer.echo(json.dumps([asdict(row) for row in rows], indent=2))
    else:
        _show_rows(rows)


@app.command("compare")
def compare_runs(
    a: Annotated[Path, typer.Argument(metavar="A", help="Folder of a run.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Folder of the one that is held against it.")],
    split: Split = "val",
    dataset: Annotated[
        str | None,
        typer.Option(
            help="Whose expressions: refcoco, refcoco+, …",
            show_default="that of A",
            autocompletion=completion.datasets,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hold run B against run A on the same sentences, with confidence intervals.

    \b
    Needs    both runs measured on the split, as weakmcn eval does
    Writes   nothing
    Example  weakmcn runs compare runs/first runs/second --split testA

    The interval holds the difference with 95 % confidence. It comes from 10,000 bootstrap resamples of photographs,
    each with all its sentences, since sentences of one photograph are not independent. It tells how far the split's
    photographs decide, not what another seed of training would give.
    """
    from ..model.compare import compare
    from ..model.results import read_results, results_file
    from ..model.run import Run
    from ..pipeline.datasets import ALIASES
    from ..shards.errors import InputError

    runs = [Run.open(path) for path in (a, b)]
    wanted = ALIASES.get(dataset, dataset) if dataset else runs[0].dataset
    kept = []
    for run in runs:
        file = results_file(run, wanted, split)
        if not file.is_file():
            command = f"weakmcn eval --run {run.path} --split {split}"
            other = f" --dataset {wanted}" if wanted != run.dataset else ""
            raise InputError(f"{run.path}: not measured on {wanted} {split} yet; {command}{other}")
        kept.append(read_results(file))
    found = compare(*kept)
    notes = [note for run, each in zip(runs, kept, strict=True) if (note := _age(run, each))]
    notes += [f"{run.path}: {note}" for run, each in zip(runs, kept, strict=True) for note in each.notes]
    if as_json:
        facts = {"a": str(a), "b": str(b), **asdict(found), "resamples_of": "images", "notes": notes}
        typer.echo(json.dumps(facts, indent=2))
    else:
        _show_comparison(a, b, found, notes)


def _runs_below(folder: Path) -> Iterator[Path]:
    level = [folder]
    for _ in range(DEPTH + 1):
        runs = {path for path in level if (path / "run.json").is_file()}
        yield from sorted(runs)
        level = [inner for path in level if path not in runs for inner in sorted(path.iterdir()) if inner.is_dir()]


def _row(path: Path) -> Row:
    from ..model.checkpoint import newest_position
    from ..model.results import all_results
    from ..model.run import Run
    from ..shards.errors import WeakmcnError

    try:
        run = Run.open(path)
        preset, changes = nearest_preset(run)
        unlike = {name: run.facts[name] for name, usual in OPTIONS.items() if run.facts.get(name, usual) != usual}
        position = newest_position(run.checkpoints)
    except WeakmcnError as fault:
        return Row(run=str(path), fault=str(fault))
    step = position.step if position else 0
    return Row(
        run=str(path),
        method=run.facts["method"],
        preset=preset,
        changes=unlike | changes,
        dataset=run.dataset,
        epochs=position.epoch if position else 0,
        epochs_total=run.train.epochs,
        converted=run.converted is not None,
        seconds=_seconds(run),
        masks_mean_nothing=position is not None and run.masks_mean_nothing_at(position),
        measured={
            f"{each.dataset} {each.split}": {**each.summary, "epoch": each.epoch, "is_newest": each.step == step}
            for each in sorted(all_results(run), key=lambda each: _rank(run, each))
        },
    )


def nearest_preset(run: "Run") -> tuple[str, dict[str, Any]]:
    """The preset that most settings of a run are of, and the others with their values."""
    from ..model.config import PRESETS
    from ..model.methods import recipe

    has = {f"model.{name}": value for name, value in asdict(run.model).items()}
    has |= {f"train.{name}": value for name, value in asdict(run.train).items()}
    found: list[tuple[str, dict[str, Any]]] = []
    for name in PRESETS:
        model, train = recipe(run.facts["method"], name)
        usual = {f"model.{key}": value for key, value in asdict(model).items()}
        usual |= {f"train.{key}": value for key, value in asdict(train).items()}
        found.append((name, {key: value for key, value in has.items() if usual[key] != value}))
    own = run.dataset.partition("-")[0]
    return min(found, key=lambda each: (len(each[1]), each[0].partition("-")[0] != own))


def _seconds(run: "Run") -> float:
    """Training time by timing.jsonl; lines that a crash cut short do not count."""
    total = 0.0
    try:
        lines = run.timing.read_text("ascii").splitlines()
    except (OSError, ValueError):
        return 0.0
    for line in lines:
        try:
            total += float(json.loads(line)["seconds"])
        except (ValueError, KeyError, TypeError):
            continue
    return total


def _rank(run: "Run", kept: "Kept") -> tuple[int, bool, int]:
    """The newest first, then the run's own data set, then the usual splits."""
    return -kept.step, kept.dataset != run.dataset, SPLITS.index(kept.split) if kept.split in SPLITS else len(SPLITS)


def _age(run: "Run", kept: "Kept") -> str | None:
    from ..model.checkpoint import newest_position

    position = newest_position(run.checkpoints)
    if position is None or position.step == kept.step:
        return None
    return f"{run.path}: measured after step {kept.step:,}, trained on to step {position.step:,} since."


def _show_rows(rows: Sequence[Row]) -> None:
    from rich.markup import escape

    from ..pipeline.estimate import in_words
    from ..pipeline.plain_table import plain_console, plain_table

    table = plain_table(gap=1)
    table.add_column("run", overflow="fold")
    table.add_column("method and settings", overflow="fold", min_width=20)
    table.add_column("data set", no_wrap=True)
    for head in ("epochs", "REC", "RES", "of", "time"):
        table.add_column(head, justify="left" if head == "of" else "right", no_wrap=True)
    for row in rows:
        if row.fault:
            table.add_row(row.run, f"[red]{escape(row.fault.removeprefix(row.run).lstrip('/: '))}[/]")
            continue
        split, figures = next(iter(row.measured.items()), ("", {}))
        of = split.removeprefix(f"{row.dataset} ")
        if figures and not figures["is_newest"]:
            of += f", epoch {figures['epoch']}"
        told = {name: f"{figures[name]:.1f}" for name in FIGURES if name in figures}
        if row.masks_mean_nothing and "res_miou" in told:
            told["res_miou"] = "–"
        cells = (told.get(name, "") for name in FIGURES)
        epochs = "converted" if row.converted else f"{row.epochs}/{row.epochs_total}"
        time = in_words(row.seconds) if row.seconds else ""
        table.add_row(row.run, _settings(row), row.dataset, epochs, *cells, of, time)
    plain_console().print(table)


def _settings(row: Row) -> str:
    """Method, preset and the first few settings that are not the preset's."""
    names = [f"{name.rpartition('.')[2]}={_short(value)}" for name, value in row.changes.items()]
    rest = [f"and {len(names) - SHOWN_CHANGES} more"] if len(names) > SHOWN_CHANGES else []
    return ", ".join([f"{row.method} {row.preset}", *names[:SHOWN_CHANGES], *rest])


def _short(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return "+".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _show_comparison(a: Path, b: Path, found: "Comparison", notes: Sequence[str]) -> None:
    from ..pipeline.plain_table import plain_console, plain_table, with_words

    console = plain_console()
    title = f"{found.dataset} {found.split}: {found.sentences:,} sentences of {found.images:,} photographs, percent"
    table = plain_table()
    for head in ("", "A", "B", "B - A", "95 % interval"):
        table.add_column(head, justify="right" if head else "left", no_wrap=True)
    for each in found.figures:
        gap = f"{each.difference:+.2f}"
        colour = ("green" if each.difference > 0 else "red") if each.is_clear else "dim"
        interval = f"{each.low:+.2f} to {each.high:+.2f}"
        table.add_row(FIGURES[each.figure], f"{each.a:.2f}", f"{each.b:.2f}", f"[{colour}]{gap}[/]", interval)
    console.print(f"A  {a}\nB  {b}", markup=False, soft_wrap=True)
    console.print()
    console.print(with_words(table, above=title))
    console.print()
    if found.right:
        said = {"both": "both", "only a": "A alone", "only b": "B alone", "neither": "neither"}
        console.print(f"the right box: {', '.join(f'{said[name]} {count:,}' for name, count in found.right.items())}")
    clear = [FIGURES[each.figure] for each in found.figures if each.is_clear]
    console.print(
        f"{' and '.join(clear)}: the interval leaves out zero."
        if clear
        else "Every interval holds zero: no difference shown."
    )
    for figure, who in found.lacking.items():
        what = {"rec_acc50": "boxes, so REC", "res_miou": "masks, so RES"}[figure]
        told = " and ".join(name.upper() for name in who)
        console.print(f"{told} {'predict' if len(who) > 1 else 'predicts'} no {what} is not compared.")
    for note in notes:
        console.print(f"note: {note}", markup=False, soft_wrap=True, style="yellow")
