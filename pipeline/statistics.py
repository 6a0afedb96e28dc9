"""Which photographs the detector's BatchNorm statistics are re-estimated from, and where a store keeps the result.

    store/weights/statistics-4f1c09ab.safetensors   the statistics (encoders/reestimate.py)
    store/weights/statistics-4f1c09ab.json          the record that they are finished: what they are made from, digest
    store/weights/statistics-4f1c09ab.parquet       the photographs: key, sha256
    store/weights/statistics-4f1c09ab/              sums of the parts that are done, until all are

The list is part of the detect stage's fingerprint and known before anything is computed. It is taken once, from the
training split of one data set as it is indexed then, and stays the store's: photographs and data sets added later do
not change it. Only asking for it again (`--detector-bn reestimate`) takes a new one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..shards.errors import InputError, StoreError
from ..shards.fingerprint import file_sha256, fingerprint, short
from ..shards.layout import IMAGES_FILE, references_path
from ..shards.mend import refill
from ..shards.records import read_json
from ..shards.sidecar import shard_name
from ..shards.tables import IMAGES, REFERENCES, read_table, skipped_photos, write_table
from .config import PipelineConfig, Statistics
from .stages import STATISTICS_CODE, STATISTICS_FOLDER
from .tasks import ImageRow

TRAINING = "train"
"""Name of the training split, in every data set."""
BATCHES_A_PART = 4
"""Encoder batches that one worker does at a time; how the sum is split is part of the computation."""

_LIST = pa.schema([("key", pa.string()), ("sha256", pa.string())])

Images = Mapping[str, str]
"""Key -> SHA-256 of the photograph's file, keys ascending."""
Rows = Mapping[str, ImageRow]


@dataclass(frozen=True, kw_only=True)
class StatisticsPlan:
    """The statistics that a plan's detect stage uses, and what is left to do for them."""

    statistics: Statistics
    made_from: Mapping[str, Any]
    file: Path
    images: Images
    parts: tuple[tuple[ImageRow, ...], ...]
    due: tuple[int, ...]
    """Parts that have to be made; none where all that is left is to join them."""
    is_whole: bool
    """Whether the file is there and sound."""
    seconds: float

    @property
    def images_due(self) -> int:
        return sum(len(self.parts[number]) for number in self.due)

    @property
    def batches(self) -> int:
        return sum(-(-len(part) // self.made_from["batch"]) for part in self.parts)

    @property
    def why(self) -> str:
        """The state in words."""
        if self.is_whole:
            return "up to date"
        if len(self.due) == len(self.parts):
            return "not computed yet"
        return f"{len(self.due)} of {len(self.parts)} parts missing"

    def part_file(self, number: int) -> Path:
        return _part_file(self.file, number)


def made_from(config: PipelineConfig, checkpoint_sha256: str) -> dict[str, Any]:
    """All that decides the statistics; `config.detect.statistics` is set."""
    detect = config.detect
    assert detect.statistics is not None
    return {
        "code": STATISTICS_CODE,
        "batches_a_part": BATCHES_A_PART,
        "checkpoint_sha256": checkpoint_sha256,
        "batch": detect.batch,
        "width": detect.width,
        "classes": detect.classes,
        "side_px": config.side_px,
        "statistics": asdict(detect.statistics),
    }


def statistics_path(store: Path, source: Mapping[str, Any]) -> Path:
    """Where a store keeps the statistics made from `source`; an absolute path."""
    return (store / STATISTICS_FOLDER / f"statistics-{short(fingerprint(dict(source)))}.safetensors").absolute()


def training_images(index_folder: Path, dataset: str) -> tuple[set[str], dict[str, str]]:
    """The keys of a data set's training photographs without the skipped ones, and those indexed with their digests."""
    references = read_table(references_path(index_folder, dataset), REFERENCES)
    images = read_table(index_folder / IMAGES_FILE, IMAGES)
    pairs = zip(references["key"].to_pylist(), references["split"].to_pylist(), strict=True)
    wanted = {key for key, split in pairs if split == TRAINING} - skipped_photos(images).keys()
    digests = zip(images["key"].to_pylist(), images["sha256"].to_pylist(), strict=True)
    return wanted, dict(sorted((key, digest) for key, digest in digests if key in wanted))


def list_sha256(images: Images) -> str:
    return fingerprint([[key, digest] for key, digest in images.items()])


def plan_statistics(
    config: PipelineConfig,
    store: Path,
    index_folder: Path,
    rows: Rows,
    checkpoint_sha256: str,
    *,
    seconds_an_image: float,
    workers: int,
) -> StatisticsPlan:
    """What is there of the statistics that `config` names, and what is missing.

    rows: all photographs of the store. InputError where they are missing and cannot be made again, because a photograph
    of their list has changed or the list is lost.
    """
    from .encoders.reestimate import read_part

    statistics = config.detect.statistics
    assert statistics is not None
    source = made_from(config, checkpoint_sha256)
    file = statistics_path(store, source)
    whole = is_whole(file, source)
    images = _images(file, index_folder, statistics)
    changed = [key for key, digest in images.items() if key not in rows or rows[key].sha256 != digest]
    if not whole and (changed or not images):
        fact = f"{len(changed)} of their photographs have changed (first: {changed[0]})" if changed else "list is lost"
        raise InputError(
            f"{file}: not there, and these statistics cannot be made again: {fact}; take new ones: "
            f"{refill(store, dataset=statistics.dataset)} --detector-bn reestimate"
        )
    parts = _parts([] if whole else [rows[key] for key in images], config.detect.batch)
    due = tuple(
        number for number, part in enumerate(parts) if read_part(_part_file(file, number), part_sha256(part)) is None
    )
    seconds = sum(len(parts[number]) for number in due) * seconds_an_image
    return StatisticsPlan(
        statistics=statistics,
        made_from=source,
        file=file,
        images=images,
        parts=parts,
        due=due,
        is_whole=whole,
        seconds=seconds / max(1, min(workers, len(due))),
    )


def part_sha256(part: Sequence[ImageRow]) -> str:
    return list_sha256({row.key: row.sha256 for row in part})


def write_list(plan: StatisticsPlan) -> None:
    """Keep the list of photographs beside the statistics."""
    path = plan.file.with_suffix(".parquet")
    if _listed(path, plan.statistics) is None:
        write_table(path, pa.table({"key": list(plan.images), "sha256": list(plan.images.values())}, schema=_LIST))


def is_whole(file: Path, source: Mapping[str, Any]) -> bool:
    """Whether the statistics in `file` are finished, sound, and made from `source`."""
    record = read_record(file)
    return (
        record is not None
        and record.get("hashed") == source
        and file.is_file()
        and file_sha256(file) == record["sha256"]
    )


def read_record(file: Path) -> dict[str, Any] | None:
    """The record beside the statistics `file`; None where there is none, or it is damaged."""
    try:
        record = read_json(file.with_suffix(".json"))
        return record if isinstance(record["sha256"], str) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def overlaps(index_folder: Path, plan: StatisticsPlan) -> list[str]:
    """One line for every data set of the store with evaluated photographs among those the statistics are taken from."""
    found = []
    for path in sorted(index_folder.glob("refs-*.parquet")):
        dataset = path.stem.removeprefix("refs-")
        try:
            table = read_table(path, REFERENCES)
        except StoreError:  # it is made again with the index of its data set
            continue
        shared: dict[str, set[str]] = {}
        for key, split in zip(table["key"].to_pylist(), table["split"].to_pylist(), strict=True):
            if split != TRAINING and key in plan.images:
                shared.setdefault(split, set()).add(key)
        if shared:
            counts = ", ".join(f"{len(keys):,} of {split}" for split, keys in shared.items())
            found.append(
                f"the detector's statistics are taken from training photographs of {plan.statistics.dataset}, among "
                f"them photographs that {dataset} evaluates on: {counts}."
            )
    return found


def _images(file: Path, index_folder: Path, statistics: Statistics) -> dict[str, str]:
    """The list that `statistics` names: as kept beside the file, else as the index has it; {} where neither is it."""
    listed = _listed(file.with_suffix(".parquet"), statistics)
    if listed is None and references_path(index_folder, statistics.dataset).exists():
        try:
            _, listed = training_images(index_folder, statistics.dataset)
        except StoreError:
            return {}
    return listed if listed and list_sha256(listed) == statistics.images_sha256 else {}


def _part_file(file: Path, number: int) -> Path:
    return file.with_suffix("") / f"{shard_name(number)}.safetensors"


def _listed(path: Path, statistics: Statistics) -> dict[str, str] | None:
    try:
        table = read_table(path, _LIST)
    except StoreError:
        return None
    images = dict(zip(table["key"].to_pylist(), table["sha256"].to_pylist(), strict=True))
    return images if list_sha256(images) == statistics.images_sha256 else None


def _parts(rows: Sequence[ImageRow], batch: int) -> tuple[tuple[ImageRow, ...], ...]:
    waiting = iter(rows)
    parts = []
    while part := tuple(islice(waiting, batch * BATCHES_A_PART)):
        parts.append(part)
    return tuple(parts)
