"""`weakmcn store`: what a store holds, whether its bytes are whole, and the space that can be given back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from ..shards.store import Store

app = typer.Typer(
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

    Needs the store, writes nothing but its derived indices. Example: weakmcn store ls store
    """
    from rich.console import Console
    from rich.table import Table

    from ..shards.store import Store, families_on_disk

    opened = Store.open(store)
    table = Table("family", "codec", "shards", "images", "skipped", "size", "state")
    for column in ("shards", "images", "skipped", "size"):
        next(each for each in table.columns if each.header == column).justify = "right"
    for folder in families_on_disk(store):
        table.add_row(folder.name, *_row(opened, folder))
    console = Console()
    console.print(f"{store}: {len(opened.keys):,} images, canvas {opened.side} px")
    for dataset in opened.datasets:
        references = opened.references(dataset)
        sentences = sum(len(each) for each in references["sentences"].to_pylist())
        console.print(f"  {dataset}: {references.num_rows:,} references, {sentences:,} sentences")
    console.print(table)
    for reason in opened.unusable.values():
        console.print(f"not usable: {reason}", markup=False)


@app.command()
def verify(
    store: StorePath,
    stages: Stages = None,
    quick: Annotated[bool, typer.Option("--quick", help="Records, sizes and keys only; read no tar.")] = False,
) -> None:
    """Compare every byte of the columns in use with its record; exit 1 if anything differs.

    Needs the store, writes nothing but its derived indices. Example: weakmcn store verify store --stages sam,masks
    """
    from rich.console import Console

    from ..shards.columns import FAMILIES
    from ..shards.errors import ConfigError
    from ..shards.store import Store

    asked = [name.strip() for name in stages.split(",")] if stages else None
    if unknown := [name for name in asked or () if name not in FAMILIES]:
        raise ConfigError(f"stage {unknown[0]!r} is not known; there are {', '.join(FAMILIES)}.")
    opened = Store.open(store)
    problems = opened.verify(asked, deep=not quick)
    console = Console()
    for problem in problems:
        console.print(problem, markup=False, highlight=False, soft_wrap=True)
    if problems:
        console.print(f"{len(problems)} problems. To mend them: weakmcn precompute --store {store}", markup=False)
        raise typer.Exit(1)
    checked = [family for stage, family in opened.families.items() if asked is None or stage in asked]
    shards = sum(len(family.survey.shards) for family in checked)
    console.print(f"{store}: {len(checked)} families, {shards} shards, all whole.")


@app.command()
def gc(
    store: StorePath,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be removed.")] = False,
) -> None:
    """Remove column families that are no longer in use and what killed runs left behind.

    Needs the store, removes folders in it for good. Example: weakmcn store gc store --dry-run
    """
    from rich.console import Console

    from ..shards.store import gc as collect

    removed = collect(store, dry_run=dry_run)
    console = Console()
    for each in removed:
        console.print(f"{each.path}  {_size(each.bytes)}", markup=False, highlight=False, soft_wrap=True)
    verb = "would be freed" if dry_run else "freed"
    console.print(f"{_size(sum(each.bytes for each in removed))} {verb}.")


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
    if current.survey.problems:
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
