"""`weakmcn tables`: the paper's tables, each row trained and measured on one store."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import completion
from .folders import require_own
from .options import Device, FilledStore
from .table_rows import ALL_METHODS, PAPER_SPLIT, SAMS, TABLES, TEACHERS, Row, System, Table, teachers

if TYPE_CHECKING:
    from ..shards.store import Store
    from .table_text import Grid

NAMES = [*(table.name for table in TABLES), TEACHERS]
OF_THE_PAPER = [name for name in NAMES if name.isdecimal()]
MOST_JOBS = 4


def tables(
    which: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="1-5|ablations|teachers",
            help="Which tables.",
            show_default="1-5",
            autocompletion=lambda incomplete: [name for name in NAMES if name.startswith(incomplete)],
        ),
    ] = None,
    shards: FilledStore = Path("store"),
    dataset: Annotated[
        str, typer.Option(help="Whose expressions: refcoco, refcoco+, …", autocompletion=completion.datasets)
    ] = "refcoco+",
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Folder of runs, results and tables; what is there is not made again.")
    ] = Path("tables"),
    preset: Annotated[
        str | None,
        typer.Option(
            help="Sizes and recipe, as for train.",
            show_default="what fits the store and the data set",
            autocompletion=completion.presets,
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Only the rows of this method; repeatable.",
            show_default="all rows",
            autocompletion=completion.methods,
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(metavar="N", min=1, help="Runs a row: seeds 0 to N-1.")] = 1,
    split: Annotated[
        str,
        typer.Option(help="What is measured: val, or several, separated by commas.", autocompletion=completion.splits),
    ] = PAPER_SPLIT,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="NAME=VALUE",
            help="Change a setting of every row, as for train; repeatable.",
            autocompletion=completion.settings,
        ),
    ] = None,
    words: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Word vectors, as for train.", show_default="random, learned")
    ] = None,
    teacher: Annotated[
        list[Path] | None,
        typer.Option(metavar="STORE", help="For the table of teachers: a store with another SAM; repeatable."),
    ] = None,
    speed: Annotated[bool, typer.Option("--speed/--no-speed", help="Whether tables 4 and 5 time the answers.")] = True,
    data: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="The photographs, for timing.", show_default="where the store was made from"),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, help="Trainings at once.", show_default="one a core and 4 at most; 1 on a GPU"
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Train and measure every system of the paper's tables on one store, and write the tables.

    \b
    Needs    a store with train and val: weakmcn precompute --split train,val
    Writes   DIR: tables.md, table-1.csv, table-1.tex and so on; runs, results
    Example  weakmcn tables --shards demo/store --dataset refcoco+
             weakmcn tables 1 2 ablations --shards demo/store --seeds 3
             weakmcn --with mine.py tables 5 --shards demo/store \\
                 --method mine --no-speed

    \b
    1  the mask head, no mask head, and SAM in its place
    2  ISL's threshold, 0.1 to 0.4
    3  banks: dino, + sam, + clip; REC and RES
    4  the same from the detector alone on, with frames a second
    5  all methods, your own (--with) too: parameters, training time,
       frames a second
    ablations  without SCL, ISL, DVFE's router, all of DVFE
    teachers   SAM's sizes, a store each

    A row is one run a seed, known by a fingerprint of all that it is trained on and with: rows that are the same train
    once, an interrupted command goes on, a finished one takes seconds. A row that this store cannot give stays in the
    table, with the command that makes what it lacks; the exit code is then 3. The paper's figures stand beside those of
    the paper's own data only: COCO's photographs behind a paper's preset, on val.
    """
    from ..model.references import references_of
    from ..model.run import device_of
    from ..pipeline.plain_table import plain_console
    from ..shards.errors import ConfigError, InputError, WeakmcnError
    from ..shards.lock import only_writer
    from ..shards.store import Store
    from .table_fill import Filler, Plan, is_the_papers
    from .table_runs import Plans, make
    from .table_text import printed
    from .train import dataset_in, fitting_preset

    names = chosen(which or OF_THE_PAPER)
    splits = list(dict.fromkeys(part.strip() for part in split.split(",") if part.strip()))
    if not splits:
        raise ConfigError("--split: no split is named; val, for example.")
    store = Store.open(shards)
    dataset = dataset_in(store, dataset)
    for named in splits:
        references_of(store, dataset, named)  # raises, naming those there are
    preset = preset or fitting_preset(store, dataset)
    plans = Plans(
        shards, dataset, out, preset=preset, splits=splits, assignments=settings or (), words=words, device=device
    )
    wanted = [table for table in TABLES if table.name in names]
    if TEACHERS in names:
        wanted.append(table_of_teachers([store, *map(Store.open, teacher or ())], dataset, splits))
    wanted = [rows_of(with_own(table), method) for table in wanted]
    if not speed:
        wanted = [replace(table, costs=tuple(cost for cost in table.costs if cost != "speed")) for table in wanted]
    console = plain_console()
    require_own(out, {"runs", "results"}, "tables")
    with only_writer(out, "weakmcn tables"):
        plan = Plan.of(plans, wanted, seeds)
        if not plan.runs:
            raise InputError(next(iter(plan.absent.values())))
        make(out, list(plan.runs.values()), jobs or _jobs(device_of(device).type))
        beside_paper = is_the_papers(store, dataset, preset)
        filler = Filler(plan, out, splits, data, beside_paper, device)
        grids = [grid for table in wanted for grid in filler.grids(table)]
        title = f"{store.called(dataset)}, preset {preset}, {seeds} seed{'s' if seeds > 1 else ''}"
        _write(out, title, filler.context(), grids)
    for grid in grids:
        console.print()
        console.print(grid.title, style="bold", markup=False)
        console.print(printed(grid))
        for note in grid.notes:
            console.print(note, markup=False, soft_wrap=True)
    console.print()
    for line in filler.context():
        console.print(line, markup=False, soft_wrap=True)
    typer.echo(out / "tables.md")
    if failed := filler.failed():
        count = f"{len(failed)} runs" if len(failed) > 1 else "one run"
        raise WeakmcnError(f"{out}: {count} failed, told below the tables; the same command tries again.")
    if plan.absent:
        raise typer.Exit(3)


def chosen(words: Sequence[str]) -> list[str]:
    """The tables that are asked for: names, and ranges as "1-5". ConfigError for one that there is not."""
    from ..shards.errors import ConfigError

    found: list[str] = []
    for word in words:
        ends = re.fullmatch(r"(\d)-(\d)", word)
        named = [str(number) for number in range(int(ends[1]), int(ends[2]) + 1)] if ends else [word]
        if not named or not set(named) <= set(NAMES):
            raise ConfigError(f"there is no table {word!r}; choose from {', '.join(NAMES)}, or a range like 1-5.")
        found += named
    return found


def with_own(table: Table) -> Table:
    """Table 5 with a row for each method of the user's own (`--with`); any other as it is."""
    from ..model.methods import METHODS

    if table.name != ALL_METHODS:
        return table
    own = {name: method for name, method in METHODS.items() if method.code}
    rows = [
        Row(label=name, system=System(method=name), rec=method.boxes, res="own" if method.masks else "SAM head")
        for name, method in own.items()
    ]
    return replace(table, rows=(*table.rows, *rows))


def rows_of(table: Table, methods: Sequence[str] | None) -> Table:
    """The rows of some methods, all where none is named; ConfigError where that leaves none."""
    from ..model.methods import method_of
    from ..shards.errors import ConfigError

    rows = tuple(row for row in table.rows if not methods or row.system.method in methods)
    if not rows:
        for name in methods or ():
            method_of(name)  # raises, naming those there are
        raise ConfigError(f"table {table.name} has no row of {' or '.join(methods or ())}; leave it, or --method, out.")
    return replace(table, rows=rows)


def table_of_teachers(stores: "Sequence[Store]", dataset: str, splits: Sequence[str]) -> Table:
    """A row a store, called by the SAM that made its masks; the published ones that are missing are told.

    ConfigError where two stores have the same SAM, StoreError where one has no masks.
    """
    from ..shards.errors import ConfigError
    from ..shards.mend import refill

    found: dict[str, Path] = {}
    for store in stores:
        store.require(["masks"], [])
        made_from = store.families["masks"].stage_json
        parameters = made_from["hashed"].get("parameters", {})
        kind = parameters.get("family"), parameters.get("embed_dim")
        name = SAMS[kind][0] if kind in SAMS else f"the SAM of {made_from['recorded'].get('preset', store.path.name)}"
        if name in found:
            raise ConfigError(f"{store.path} and {found[name]} have masks of the same SAM, {name}; leave one out.")
        found[name] = store.path
    notes = []
    for name, preset in SAMS.values():
        if name not in found:
            place = stores[0].path.with_name(f"{stores[0].path.name}-{preset}")
            command = refill(stores[0].path, dataset=dataset, splits=["train", *splits], into=place)
            notes.append(f"{name}: {command} --preset {preset}, then here --teacher {shlex.quote(str(place))}")
    return teachers(found, notes)


def _jobs(device: str) -> int:
    return 1 if device == "cuda" else min(MOST_JOBS, len(os.sched_getaffinity(0)))


def _write(out: Path, title: str, context: Sequence[str], grids: "Sequence[Grid]") -> None:
    """tables.md with all that there are, and each as Markdown, CSV and LaTeX."""
    from importlib.metadata import version

    from ..shards.atomic import write_bytes
    from .table_text import as_csv, latex, markdown

    command = shlex.join(["weakmcn", *sys.argv[1:]])
    head = [f"# {title}", "", f"weakmcn {version('weakmcn')}: `{command}`", "", *(f"- {line}" for line in context), ""]
    for grid in grids:
        told = [markdown(grid), f"Made by `{command}`: {title}.", "", *(f"- {line}" for line in context), ""]
        write_bytes(out / f"{grid.name}.md", "\n".join(told).encode())
        write_bytes(out / f"{grid.name}.csv", as_csv(grid).encode())
        write_bytes(out / f"{grid.name}.tex", latex(grid).encode())
    new = {f"{grid.name}.md" for grid in grids}
    others = [file.read_text("utf-8") for file in sorted(out.glob("table-*.md")) if file.name not in new]
    write_bytes(out / "tables.md", "\n".join([*head, *map(markdown, grids), *others]).encode())
