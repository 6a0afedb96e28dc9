"""A store: the photographs' table, the references of each data set, and the column families that belong together.

    store/store.json             format, canvas side, and for each stage the family that is in use
    store/images.parquet         a row an image
    store/refs-<dataset>.parquet a row a reference
    store/<stage>-<fingerprint>/ a family: stage.json, NNNNNN.tar + NNNNNN.json, index.parquet

Opening reads the small files only. Nothing here trusts what it reads: every table and record is checked where it
enters, and a shard's bytes are checked when they are first touched (reader.py) or all at once (`Store.verify`).
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .choices import not_known
from .columns import FAMILIES, Field, column
from .errors import DamagedShardError, StoreError
from .family import Family, called, family_name, of_pocket
from .geometry import Letterbox
from .layout import (
    IMAGES_FILE,
    Removed,
    create_store,
    families_on_disk,
    family_folder,
    gc,
    read_store_json,
    references_path,
    set_current,
    statistics_of,
    write_stage_json,
)
from .mend import fact, refill, sources_of, with_inputs
from .reader import Reader
from .sidecar import KEY
from .tables import IMAGES, REFERENCES, read_table, skipped_photos
from .verify import Told, examine_family, examine_statistics

__all__ = [
    "IMAGES_FILE",
    "Column",
    "Removed",
    "Store",
    "create_store",
    "families_on_disk",
    "family_folder",
    "family_name",
    "gc",
    "read_store_json",
    "references_path",
    "set_current",
    "write_stage_json",
]


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of the store."""

    name: str
    field: Field
    family: str
    codec: str
    """How the values are stored, where the field is coded."""
    shapes: list[tuple[int, ...]]
    """The different shapes of its stored values; one for all but packed masks."""


class Store:
    """An opened store; a snapshot: what is written later is seen by opening it again."""

    def __init__(
        self,
        path: Path,
        *,
        side: int,
        images: pa.Table,
        families: Mapping[str, Family],
        unusable: Mapping[str, str],
        sources: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.path = path
        self.side = side
        """Edge of the canvas, pixels."""
        self.images = images
        """images.parquet, see tables.IMAGES."""
        self.families = dict(families)
        """Stage -> the family in use."""
        self.unusable = dict(unusable)
        """Stage -> why the family that should be in use is not."""
        self._sources = dict(sources or {})

    @classmethod
    def open(cls, path: Path | str) -> "Store":
        """Open the store in `path`; StoreError if there is none, DamagedShardError if its tables are broken.

        A family that is missing or damaged does not keep the others from use; it is in `unusable`.
        """
        path = Path(path)
        record = read_store_json(path)
        images = read_table(path / IMAGES_FILE, IMAGES)
        families: dict[str, Family] = {}
        unusable: dict[str, str] = {}
        for stage, name in sorted(record["current"].items()):
            try:
                families[stage] = Family.open(path / name)
            except StoreError as error:
                unusable[stage] = fact(str(error))
        store = cls(
            path, side=record["side"], images=images, families=families, unusable=unusable, sources=sources_of(record)
        )
        bad = next((key for key in store.keys if KEY.fullmatch(key) is None), None)
        if bad is not None or len(store._rows) != len(store.keys):
            fault = f"key {bad!r} is not twelve digits" if bad is not None else "a key occurs twice"
            raise DamagedShardError(f"{path / IMAGES_FILE}: {fault}; restore it or make the store again.")
        return store

    @cached_property
    def keys(self) -> list[str]:
        """All images, in the order of the table."""
        return self.images["key"].to_pylist()

    @cached_property
    def digests(self) -> dict[str, str]:
        """Key -> SHA-256 of the image file as indexed."""
        return dict(zip(self.keys, self.images["sha256"].to_pylist(), strict=True))

    @cached_property
    def columns(self) -> dict[str, Column]:
        """Column name ("detect.s8") -> what it is, for all families in use."""
        found: dict[str, Column] = {}
        for stage, family in self.families.items():
            members = family.survey.members
            for field in FAMILIES[stage]:
                if field.name in members:
                    name = column(stage, field.name)
                    found[name] = Column(
                        name=name,
                        field=field,
                        family=family.name,
                        codec=family.codec,
                        shapes=members[field.name].shapes,
                    )
        return found

    @property
    def datasets(self) -> list[str]:
        """Names of the data sets whose references are indexed, sorted."""
        return sorted(path.stem.removeprefix("refs-") for path in self.path.glob("refs-*.parquet"))

    @property
    def is_pocket(self) -> bool:
        """Whether the pocket networks filled it."""
        return of_pocket(family.stage_json for family in self.families.values())

    def called(self, dataset: str) -> str:
        """A data set as it is called beside figures."""
        name = called(dataset, (family.stage_json for family in self.families.values()))
        return name if self.labels_of(dataset) is None else f"pseudo labels of {name}"

    def labels_of(self, dataset: str) -> str | None:
        """The run that predicted the boxes and masks of a data set; None where they are annotated."""
        return self._sources.get(dataset, {}).get("labels_of")

    def references(self, dataset: str) -> pa.Table:
        """`refs-<dataset>.parquet`, see tables.REFERENCES; StoreError naming those there are."""
        if dataset not in self.datasets:
            known = ", ".join(self.datasets) or "none"
            raise StoreError(
                f"{self.path} has no references of {dataset!r} (it has: {known}); name one of those with --dataset, or "
                f"add these: {refill(self.path, dataset=dataset)}"
            )
        return read_table(references_path(self.path, dataset), REFERENCES)

    def letterbox(self, key: str) -> Letterbox:
        """Where the photo `key` lies on the canvas."""
        row = self._row(key)
        return Letterbox.fit(int(self._sizes[0][row]), int(self._sizes[1][row]), self.side)

    def __getitem__(self, key: str) -> dict[str, np.ndarray]:
        """All columns of one image that are there: float maps as float16 or, from other codecs, as float32.

        `masks.bits` stays the compressed frame (see codec.unpack_masks). The arrays are the caller's own.
        """
        self._row(key)
        held = [name for name, info in self.columns.items() if key in self._family(info).index.rows]
        return self._reader.sample(key, held)

    def missing(self, stage: str, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that the stage has neither encoded nor skipped, in the order given."""
        family = self.families.get(stage)
        if family is None:
            return list(keys)
        known = family.survey.rows.keys() | self.skipped(stage).keys()
        return [key for key in keys if key not in known]

    def skipped(self, stage: str) -> dict[str, str]:
        """Key -> reason, for the images that the stage could not encode, those left out of the index included."""
        family = self.families.get(stage)
        shards = family.survey.shards.values() if family else ()
        return skipped_photos(self.images) | {key: reason for shard in shards for key, reason in shard.skipped.items()}

    def stale_inputs(self, stage: str) -> list[str]:
        """Stages whose family in use is not the one that this stage's family, or one of its inputs, was made from."""
        family = self.families.get(stage)
        stale: list[str] = []
        for name, made_from in sorted(family.inputs.items() if family else ()):
            now = self.families.get(name)
            if now is not None and now.fingerprint != made_from:
                stale.append(name)
            stale += self.stale_inputs(name)
        return stale

    def stale_shards(self, stage: str) -> list[int]:
        """Shards made from images that have changed since, or are not those of the plan."""
        family = self.families.get(stage)
        shards = family.survey.shards.values() if family else ()
        return [
            shard.number
            for shard in shards
            if any(self.digests.get(key) != digest for key, digest in shard.images.items())
        ]

    def require(
        self, stages: Sequence[str], keys: Iterable[str], *, dataset: str | None = None, split: str | None = None
    ) -> None:
        """StoreError, one line with the command that mends it, unless all `stages` are whole and current for `keys`.

        Checks that a column is there, was made from the columns in use, holds every key (skipped ones count as held),
        and that its shards have their size and were made from the images as they are now. dataset, split: whose images
        these are, for the command.
        """
        keys = list(dict.fromkeys(keys))
        if unknown := self._unknown(stages, keys):
            faults = [f"{self.path}: {len(unknown)} of {len(keys)} images are not in it (first: {unknown[0]})"]
            renew = [stage for stage in FAMILIES if stage in with_inputs(stages)]
        else:
            found = {stage: fault for stage in stages if (fault := self._fault(stage, keys)) is not None}
            faults = list(found.values())
            renew = self.to_renew(found)
        if faults:
            command = refill(self.path, dataset=dataset, splits=[split] if split else (), stages=renew)
            raise StoreError(f"{'; '.join(faults)}; make them: {command}")

    def verify(
        self, stages: Sequence[str] | None = None, deep: bool = True, told: Told = lambda size: None
    ) -> list[str]:
        """Everything that is wrong with the families in use, one line each; empty if all is well.

        Without `deep` only what needs no tar's content: records, sizes, keys, strays. told: called with the bytes that
        have been looked at.
        """
        problems = [f"{reason}." for stage, reason in self.unusable.items() if stages is None or stage in stages]
        shard_of = dict(zip(self.keys, self.images["shard"].to_pylist(), strict=True))
        for stage, family in self.families.items():
            if stages is None or stage in stages:
                problems += [each.fault for each in examine_family(family, shard_of, deep=deep, told=told)]
                if file := statistics_of(family):
                    problems += [each.fault for each in examine_statistics(self.path, file)]
        if stages is None:
            problems += self._broken_references()
        return problems

    def to_renew(self, stages: Collection[str]) -> list[str]:
        """`stages` with those of their inputs that are not whole and current for all images, in table order."""
        wanted = with_inputs(stages)
        renew = [stage for stage in wanted if stage in stages or self._fault(stage, self.keys) is not None]
        return [stage for stage in FAMILIES if stage in renew]

    def _unknown(self, stages: Sequence[str], keys: Iterable[str]) -> list[str]:
        """Those of `keys` that were never indexed; ConfigError for a stage that there is not."""
        if wrong := [stage for stage in stages if stage not in FAMILIES]:
            raise not_known(f"stage {wrong[0]!r}", wrong[0], FAMILIES)
        indexed = self.digests.keys() | skipped_photos(self.images).keys()
        return [key for key in keys if key not in indexed]

    def _fault(self, stage: str, keys: list[str]) -> str | None:
        if stage in self.unusable:
            return self.unusable[stage]
        if stage not in self.families:
            return f"{self.path} has no {stage} column"
        family = self.families[stage]
        if stale := self.stale_inputs(stage):
            now = self.families[stale[0]].name
            return f"{family.folder}: made from another {stale[0]} column (now {now})"
        if family.survey.problems:
            return family.survey.problems[0].rstrip(".")
        wanted = {int(family.survey.shard[family.survey.rows[key]]) for key in keys if key in family.survey.rows}
        for number in sorted(wanted):
            if (fault := family.fault(family.survey.shards[number])) is not None:
                return fault
        if changed := sorted(wanted.intersection(self.stale_shards(stage))):
            return f"{family.folder}: images of {len(changed)} shards have changed (first: shard {changed[0]})"
        if missing := self.missing(stage, keys):
            return f"{family.folder}: {len(missing)} of {len(keys)} images are not in it (first: {missing[0]})"
        return None

    def _broken_references(self) -> list[str]:
        problems = []
        for dataset in self.datasets:
            try:
                self.references(dataset)
            except StoreError as error:
                problems.append(f"{fact(str(error))}.")
        return problems

    def _family(self, info: Column) -> Family:
        return self.families[info.name.partition(".")[0]]

    def _row(self, key: str) -> int:
        row = self._rows.get(key)
        if row is None:
            raise StoreError(f"{self.path} has no image {key!r}; keys are twelve digits, see Store.keys.")
        return row

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {key: row for row, key in enumerate(self.keys)}

    @cached_property
    def _sizes(self) -> tuple[np.ndarray, np.ndarray]:
        return self.images["height"].to_numpy(), self.images["width"].to_numpy()

    @cached_property
    def _reader(self) -> Reader:
        return Reader(self, list(self.columns), access="mmap")
