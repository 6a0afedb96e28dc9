"""`weakmcn store`: what a store holds, whether its bytes are whole, and the space that can be given back."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .plain_help import PlainGroup

if TYPE_CHECKING:
    from ..shards.store import Store

app = typer.Typer(
    cls=PlainGroup,
    no_args_is_help=True,
    help="Look at a store, check its bytes, give space back.\n\n"
    "A store is the folder that `weakmcn precompute --store` fills and `weakmcn train --shards` reads.",
)

StorePath = Annotated[Path, typer.Argument(metavar="STORE", help="Folder of the store.")]
Stages = Annotated[
    str | None, typer.Option(metavar="A,B", help="Only these stages, separated by commas; all without it.")
]


@app.command()
def ls(store: StorePath) -> None:
    """Show what a store holds: images, references, and every column family with its state.

    \b
    Needs    a store
    Writes   nothing but the store's derived indices
    Example  weakmcn store ls store
    """
    from ..pipeline.plain_table import plain_console, plain_table
    from ..shards.store import Store, families_on_disk

    opened = Store.open(store)
    table = plain_table()
    for head in ("family", "codec", "shards", "images", "skipped", "size", "state"):
        table.add_column(head, justify="right" if head in ("shards", "images", "skipped", "size") else "left")
    for folder in families_on_disk(store):
        table.add_row(folder.name, *_row(opened, folder))
    console = plain_console()
    console.print(f"{store}: {len(opened.keys):,} images, canvas {opened.side} px", soft_wrap=True)
    for dataset in opened.datasets:
        console.print(f"  {dataset}: {_splits(opened, dataset)}", soft_wrap=True)
    console.print(table)
    for told in (*_statistics(opened), *(f"not usable: {reason}" for reason in opened.unusable.values())):
        console.print(told, markup=False, soft_wrap=True)


@app.command()
def verify(
    store: StorePath,
    stages: Stages = None,
    quick: Annotated[bool, typer.Option("--quick", help="Records, sizes and keys only; read no tar.")] = False,
) -> None:
    """Compare every byte of the columns in use with its record; exit 1 if anything differs.

    \b
    Needs    a store
    Writes   nothing but the store's derived indices
    Example  weakmcn store verify store --stages sam,masks
    """
    from ..pipeline.estimate import counted
    from ..pipeline.plain_table import plain_console
    from ..shards.columns import FAMILIES
    from ..shards.errors import ConfigError
    from ..shards.mend import refill
    from ..shards.mend import repair as repair_command
    from ..shards.store import Store

    asked = [name.strip() for name in stages.split(",")] if stages else None
    if unknown := [name for name in asked or () if name not in FAMILIES]:
        raise ConfigError(f"stage {unknown[0]!r} is not known; there are {', '.join(FAMILIES)}.")
    opened = Store.open(store)
    with _counted("verifying", _bytes(opened, asked), quiet=quick) as told:
        problems = opened.verify(asked, deep=not quick, told=told)
    console = plain_console()
    for problem in problems:
        console.print(problem, markup=False, soft_wrap=True)
    if problems:
        told_mend = f"{counted(len(problems), 'problem')}. To mend: {repair_command(store)}"
        console.print(told_mend, markup=False, soft_wrap=True)
        raise typer.Exit(1)
    checked = [family for stage, family in opened.families.items() if asked is None or stage in asked]
    shards = sum(len(family.survey.shards) for family in checked)
    console.print(f"{store}: {len(checked)} families, {shards} shards, all whole.", soft_wrap=True)
    for family in checked:
        if missing := opened.missing(family.stage, opened.keys):
            told = f"{family.stage} lacks {counted(len(missing), 'image')}; {refill(store, stages=[family.stage])}"
            console.print(told, markup=False, soft_wrap=True)


@app.command()
def repair(
    store: StorePath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be dropped.")] = False,
    skipped: Annotated[
        bool, typer.Option("--skipped", help="Drop shards that lack images, too: these are then tried again.")
    ] = False,
) -> None:
    """Drop what is broken, shard by shard, and name the command that makes it again.

    Looks at every byte, as verify does, of families not in use too. What is whole stays as it is, and what is made
    again has the same bytes as before. store.json and images.parquet are not made from anything in the store: for these
    it says what to do.

    \b
    Needs    a store
    Removes  files of the store, for good
    Example  weakmcn store repair store --dry-run
    """
    from ..pipeline.estimate import counted
    from ..pipeline.plain_table import plain_console
    from ..shards.repair import repair as mend
    from ..shards.store import Store

    with _counted("verifying", _bytes(Store.open(store), None)) as told:
        done = mend(store, skipped=skipped, dry_run=dry_run, told=told)
    console = plain_console()

    def say(text: str) -> None:
        console.print(text, markup=False, soft_wrap=True)

    for damage in done.damages:
        say(damage.fault)
    if not done.damages:
        say(f"{store}: nothing is broken.")
        return
    verb = "would be dropped" if dry_run else "dropped"
    say(f"{store}: {counted(len(done.damages), 'fault')}, {_size(done.bytes)} {verb}.")
    for command in done.commands:
        say(f"To make it again: {command}")


@app.command()
def gc(
    store: StorePath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove column families that are no longer in use and what killed runs left behind.

    \b
    Needs    a store
    Removes  folders of the store, for good
    Example  weakmcn store gc store --dry-run
    """
    from ..pipeline.plain_table import plain_console
    from ..shards.store import gc as collect

    removed = collect(store, dry_run=dry_run)
    console = plain_console()
    for each in removed:
        console.print(f"{each.path}  {_size(each.bytes)}", markup=False, soft_wrap=True)
    verb = "would be freed" if dry_run else "freed"
    console.print(f"{_size(sum(each.bytes for each in removed))} {verb}.")


def _splits(store: "Store", dataset: str) -> str:
    """What the store has images of, split by split: "train 42,404 references, 120,624 sentences; no images of val"."""
    from ..shards.errors import StoreError

    try:
        table = store.references(dataset)
    except StoreError as error:
        return str(error)
    held = store.digests.keys()
    counts: dict[str, list[int]] = {}
    rows = zip(*(table[name].to_pylist() for name in ("split", "key", "sentences")), strict=True)
    for split, key, sentences in rows:
        count = counts.setdefault(split, [0, 0])
        if key in held:
            count[0] += 1
            count[1] += len(sentences)
    told = [
        f"{split} {refs:,} references, {sentences:,} sentences" for split, (refs, sentences) in counts.items() if refs
    ]
    absent = [split for split, (refs, _) in counts.items() if not refs]
    return "; ".join([*told, *([f"no images of {', '.join(absent)}"] if absent else [])])


def _statistics(store: "Store") -> list[str]:
    """A line where the detector's BatchNorm statistics are not its checkpoint's own."""
    detect = store.families.get("detect")
    hashed = detect.stage_json["hashed"].get("parameters", {}).get("statistics") if detect else None
    if detect is None or hashed is None:
        return []
    file = store.path / detect.stage_json["recorded"]["statistics_file"]
    place = file if file.exists() else f"{file}, missing: precompute makes them again"
    photographs = f"{hashed['images']:,} training photographs of {hashed['dataset']}"
    return [f"{detect.name}: BatchNorm statistics of {photographs} ({place})"]


@contextmanager
def _counted(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A bar of bytes on a terminal, nothing in a log file."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as bar:
        row = bar.add_task(what, total=total)
        yield lambda size: bar.advance(row, size)


def _bytes(store: "Store", stages: Collection[str] | None) -> int:
    """Of the shards of the families in use."""
    chosen = [family for stage, family in store.families.items() if stages is None or stage in stages]
    return sum(shard.bytes for family in chosen for shard in family.survey.shards.values())


def _row(store: "Store", folder: Path) -> tuple[str, ...]:
    """codec, shards, images, skipped, size and state of a family on disk."""
    from ..shards.errors import StoreError
    from ..shards.family import Family

    size = _size(sum(file.stat().st_size for file in folder.iterdir() if file.is_file()))
    try:
        family = Family.open(folder)
    except StoreError:
        return "", "", "", "", size, "damaged"
    shards = family.survey.shards.values()
    images, skipped = sum(len(each.images) for each in shards), sum(len(each.skipped) for each in shards)
    counts = (f"{len(shards):,}", f"{images:,}", f"{skipped:,}" if skipped else "")
    return family.codec, *counts, size, _state(store, family.stage, folder)


def _state(store: "Store", stage: str, folder: Path) -> str:
    current = store.families.get(stage)
    if current is None or current.folder.name != folder.name:
        return "not in use"
    if current.survey.damaged:
        return "damaged"
    if stale := store.stale_inputs(stage):
        return f"stale: another {', '.join(stale)}"
    if changed := store.stale_shards(stage):
        return f"stale: images of {len(changed)} shards changed"
    missing = len(store.missing(stage, store.keys))
    return f"in use, {missing:,} images missing" if missing else "in use"


def _size(size: float) -> str:
    """Bytes for people: 3.8 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
