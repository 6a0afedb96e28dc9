"""Dropping what is broken in a store, so that the next precompute makes it again, the same bytes.

Only what can be made again is dropped: shards, records, statistics, references. `store.json` and `images.parquet` say
which shard holds which image; they are not made from anything in the store, so for them an error says what to do.
"""

import shutil
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from . import mend
from .atomic import remove, stale_temporaries
from .errors import StoreError
from .family import STAGE_FILE, Family
from .layout import families_on_disk, read_store_json, references_path, statistics_of
from .lock import only_writer
from .store import Store
from .verify import Damage, Told, examine_family, examine_statistics


@dataclass(frozen=True, kw_only=True)
class Repaired:
    """What was, or with a dry run would be, dropped."""

    damages: tuple[Damage, ...]
    bytes: int
    """Of the files that went."""
    commands: tuple[str, ...]
    """Commands that make again what went; none where nothing in use did."""


def repair(path: Path, *, skipped: bool = False, dry_run: bool = False, told: Told = lambda size: None) -> Repaired:
    """Look at every byte of all families of the store `path`, in use or not, and drop what is broken.

    skipped: drop whole shards too, from which images were left out, so that these are tried again. told: called with
    the bytes that have been looked at. Raises StoreError where there is no store, or where its `store.json` or
    `images.parquet` is what is broken; WeakmcnError naming it while another run holds the store.
    """
    Store.open(path)
    with nullcontext() if dry_run else only_writer(path, "weakmcn store repair"):
        store = Store.open(path)
        damages, freed = [], 0
        stages: dict[str, None] = {}
        references = {references_path(path, name): name for name in store.datasets}
        for stage, damage in _examine(store, told, skipped):
            damages.append(damage)
            if stage is not None:
                stages[stage] = None
            for file in damage.files:
                freed += _size(file)
                if not dry_run:
                    _drop(file)
        lost = [references[file] for damage in damages for file in damage.files if file in references]
        return Repaired(damages=tuple(damages), bytes=freed, commands=_commands(path, stages, lost, dry_run=dry_run))


def _examine(store: Store, told: Told, skipped: bool) -> Iterator[tuple[str | None, Damage]]:
    """Everything that is wrong, with the stage that has to be made again for it, if it is one in use."""
    shard_of = dict(zip(store.keys, store.images["shard"].to_pylist(), strict=True))
    in_use = {family.folder: stage for stage, family in store.families.items()}
    named = read_store_json(store.path)["current"]
    for stage, fault in store.unusable.items():
        folder = store.path / named[stage]
        yield stage, Damage(fault=_lost_settings(folder, fault), files=(folder / STAGE_FILE,))
    for folder in families_on_disk(store.path):
        try:
            family = Family.open(folder)
        except StoreError:  # told above, if it is in use
            continue
        stage = in_use.get(folder)
        found = [*examine_family(family, shard_of, deep=True, told=told), *(_left_out(family) if skipped else ())]
        for damage in found:
            yield stage, damage
        if stage is not None and (file := statistics_of(family)):
            for damage in examine_statistics(store.path, file):
                yield stage, damage
    for name in store.datasets:
        try:
            store.references(name)
        except StoreError as error:
            yield None, Damage(fault=f"{mend.fact(str(error))}.", files=(references_path(store.path, name),))
    for folder in (store.path, store.path / "weights", *families_on_disk(store.path)):
        for file in stale_temporaries(folder):
            yield None, Damage(fault=f"{file} was left by a run that was killed.", files=(file,))


def _left_out(family: Family) -> Iterator[Damage]:
    """Shards that lack images of theirs."""
    for number, shard in sorted(family.survey.shards.items()):
        for key, reason in list(shard.skipped.items())[:1]:
            tar = family.tar(number)
            count = f"image {key}" if len(shard.skipped) == 1 else f"{len(shard.skipped)} images ({key} first)"
            yield Damage(fault=f"{tar}: left out: {count}, {reason}.", files=(tar.with_suffix(".json"), tar))


def _lost_settings(folder: Path, fault: str) -> str:
    if not folder.exists():
        return f"{folder} is gone."
    return (
        f"{fault}; its shards stay: a precompute with the --preset, --codec and --checkpoint they were made with uses "
        "them again."
    )


def _commands(path: Path, stages: Iterable[str], lost: list[str], *, dry_run: bool) -> tuple[str, ...]:
    """One command for each data set whose references went; else one for the columns."""
    broken = list(stages)
    if lost:
        return tuple(mend.refill(path, dataset=name) for name in lost)
    if not broken:
        return ()
    return (mend.refill(path, stages=broken if dry_run else Store.open(path).to_renew(broken)),)


def _drop(file: Path) -> None:
    if file.is_dir():
        shutil.rmtree(file)
    else:
        remove(file)


def _size(file: Path) -> int:
    return file.lstat().st_size if file.is_file() else 0
