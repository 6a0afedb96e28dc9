"""Where things are in a store's folder, and the small records that say which of them are in use."""

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic import live_temporaries, stale_temporaries, write_json
from .errors import ConfigError, DamagedShardError, StoreError
from .family import STAGE_FILE, Family, family_name, stage_of
from .fingerprint import fingerprint
from .lock import only_writer
from .mend import SOURCES, refill, sources_of
from .records import read_json

STORE_FILE = "store.json"
IMAGES_FILE = "images.parquet"
FORMAT = 1

_STATISTICS = re.compile(r"weights/statistics-[0-9a-f]{8}\.safetensors")


def create_store(path: Path, side: int) -> None:
    """Make `path` a store with this canvas side, or see that it is one; StoreError if its side is another."""
    if side < 32 or side % 32:
        raise ConfigError(f"a canvas side of {side} pixels is not a positive multiple of 32.")
    if not (path / STORE_FILE).exists():
        write_json(path / STORE_FILE, {"format": FORMAT, "side": side, "current": {}})
        return
    require_side(path, side)


def require_side(path: Path, side: int) -> None:
    """StoreError if the store has another canvas side, or is none."""
    found = read_store_json(path)["side"]
    if found != side:
        raise StoreError(f"{path} was made for a canvas of {found} pixels, this run wants {side}; use another --store.")


def refuse_foreign(path: Path) -> None:
    """StoreError where `path` is a file, or has somebody's in it and nothing of a store; hidden files do not count."""
    if path.exists() and not path.is_dir():
        raise StoreError(f"{path} is a file, not the folder of a store; choose another --store.")
    if (path / STORE_FILE).exists() or not path.is_dir():
        return
    names = [entry.name for entry in sorted(path.iterdir())]
    foreign = [name for name in names if not name.startswith(".") and name != "lost+found"]
    is_store = families_on_disk(path) or any(name == IMAGES_FILE or name.startswith("refs-") for name in names)
    if foreign and not is_store:
        raise StoreError(
            f"{path}: no store, but a folder with other files (first: {foreign[0]}); choose a new folder for --store."
        )


def read_store_json(path: Path) -> dict[str, Any]:
    """store.json, checked: `format`, `side` and `current` (stage -> family name)."""
    file = path / STORE_FILE
    try:
        record = read_json(file)
        if record["format"] != FORMAT:
            raise StoreError(f"{file} has format {record['format']!r}, this weakmcn reads {FORMAT}; update weakmcn.")
        side, current = record["side"], record["current"]
        if type(side) is not int or side < 32 or side % 32:
            raise ValueError(f"its side is {side!r}")
        if wrong := [stage for stage, name in current.items() if stage_of(name) != stage]:
            raise ValueError(f"{current[wrong[0]]!r} is no family of stage {wrong[0]!r}")
    except (FileNotFoundError, NotADirectoryError):
        near = sorted(file.parent for file in path.glob(f"*/{STORE_FILE}"))[:3]
        mend = f"is it {' or '.join(map(str, near))}?" if near else f"make one: {refill(path)}"
        raise StoreError(f"{path} is not a store ({STORE_FILE} is missing); {mend}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedShardError(
            f"{file} is damaged ({error}); remove it and run this with its --preset and --checkpoint, finished columns "
            f"are used again: {refill(path)}"
        ) from error
    return record


def references_path(path: Path, dataset: str) -> Path:
    """Where the references of a data set are."""
    return path / f"refs-{dataset}.parquet"


def family_folder(path: Path, stage: str, digest: str) -> Path:
    """The folder of the family of `stage` with this fingerprint, there or not."""
    return path / family_name(stage, digest)


def write_stage_json(path: Path, stage: str, hashed: Mapping[str, Any], recorded: Mapping[str, Any]) -> Path:
    """Make the folder of the family that `hashed` describes, with its stage.json; the folder.

    A stage.json that is already there and hashes the same stays as it is, so `recorded` tells of the first run.
    """
    digest = fingerprint(dict(hashed))
    folder = family_folder(path, stage, digest)
    try:
        present = Family.open(folder).fingerprint
    except StoreError:
        present = None
    if present is not None and present != digest:
        raise StoreError(f"{folder} belongs to another fingerprint with the same first digits; move it away.")
    if present is None:
        content = {"stage": stage, "fingerprint": digest, "hashed": dict(hashed), "recorded": dict(recorded)}
        write_json(folder / STAGE_FILE, content)
    return folder


def set_current(path: Path, stage: str, family: str) -> None:
    """Put a family (its folder name) in use for its stage; StoreError or DamagedShardError if it cannot be opened."""
    opened = Family.open(path / family)
    if opened.stage != stage:
        raise StoreError(f"{path / family} is a family of stage {opened.stage!r}, not {stage!r}.")
    record = read_store_json(path)
    if record["current"].get(stage) != family:
        record["current"][stage] = family
        write_json(path / STORE_FILE, record)


def remember_source(path: Path, dataset: str, data: Path, splits: Sequence[str], labels_of: str | None = None) -> None:
    """Note in store.json where a data set's data is, and that these splits were asked for; for `mend.refill`.

    labels_of: the run whose pseudo labels they are.
    """
    record = read_store_json(path)
    sources = sources_of(record)
    before = sources.get(dataset, {}).get("splits", [])
    source = {
        "data": str(data),
        "data_absolute": str(Path(data).absolute()),
        "splits": [*before, *(split for split in splits if split not in before)],
        **({"labels_of": labels_of} if labels_of else {}),
    }
    if sources.get(dataset) != source:
        write_json(path / STORE_FILE, record | {SOURCES: {**sources, dataset: source}})


def families_on_disk(path: Path) -> list[Path]:
    """The folders of all families, in use or not, sorted by name."""
    return sorted(folder for folder in path.iterdir() if folder.is_dir() and stage_of(folder.name) is not None)


@dataclass(frozen=True, kw_only=True)
class Removed:
    """A file or family folder that was, or with a dry run would be, removed."""

    path: Path
    bytes: int


def gc(path: Path, *, dry_run: bool = False) -> list[Removed]:
    """Remove the families not in use and the temporaries of dead writers; what was removed.

    A family into which some process is writing is left alone. StoreError if `path` is no store; WeakmcnError, naming
    it, while a precompute holds the store: the family it is filling may not be in use yet.
    """
    read_store_json(path)
    with nullcontext() if dry_run else only_writer(path, "weakmcn store gc"):
        return _gc(path, dry_run=dry_run)


def _gc(path: Path, *, dry_run: bool) -> list[Removed]:
    in_use = set(read_store_json(path)["current"].values())
    removed: list[Removed] = []
    kept = [path]
    for folder in families_on_disk(path):
        if folder.name in in_use or live_temporaries(folder):
            kept.append(folder)
            continue
        removed.append(Removed(path=folder, bytes=sum(_size(file) for file in folder.rglob("*"))))
        if not dry_run:
            _remove_family(folder)
    for file in _unused_statistics(path, kept[1:]):
        removed.append(Removed(path=file, bytes=sum(_size(each) for each in (file, *file.rglob("*")))))
        if not dry_run:
            shutil.rmtree(file) if file.is_dir() else file.unlink()
    for folder in kept:
        for file in stale_temporaries(folder):
            removed.append(Removed(path=file, bytes=_size(file)))
            if not dry_run:
                file.unlink(missing_ok=True)
    return removed


def statistics_of(family: Family) -> str | None:
    """Where the detector's re-estimated statistics that a family was made with are, relative to the store."""
    file = family.stage_json.get("recorded", {}).get("statistics_file")
    return file if isinstance(file, str) and _STATISTICS.fullmatch(file) else None


def _unused_statistics(path: Path, families: Sequence[Path]) -> list[Path]:
    """Files and folders of statistics that none of `families` was made with; none while one of these cannot be read."""
    used = set()
    for folder in families:
        try:
            used.add(statistics_of(Family.open(folder)))
        except StoreError:
            return []
    stems = {Path(file).stem for file in used if file is not None}
    return [file for file in sorted(path.glob("weights/statistics-*")) if file.name.partition(".")[0] not in stems]


def _remove_family(folder: Path) -> None:
    """Records before bytes: cut short at any point, what is left is fewer shards, never damaged ones."""
    for sidecar in folder.glob("*.json"):
        sidecar.unlink()
    shutil.rmtree(folder)


def _size(file: Path) -> int:
    return file.lstat().st_size if file.is_file() else 0
