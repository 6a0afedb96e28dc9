"""Annotations and photographs -> the store's tables: images.parquet and refs-<dataset>.parquet.

Everything is checked before anything is written: the annotations, then every photograph of the splits asked for, which
is read, digested, held against its annotated size and, unless it is known, decoded; then boxes and masks. Photographs
enter the table in key order, `images_per_shard` to a shard; a later index appends new shards and never moves, fills up
or renumbers an old one.

A photograph whose bytes differ from those indexed keeps its place and gets its new digest, which makes the shards made
from the old bytes stale. A key that another collection uses already is an error: one store, one key space.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from ..shards.errors import ImageError, StoreError
from ..shards.layout import IMAGES_FILE, STORE_FILE, create_store, references_path
from ..shards.tables import IMAGES, REFERENCES, SKIPPED, read_table, skipped_photos, write_table
from .annotations import Annotations, load_annotations
from .preflight import FoundPhoto, check_boxes, check_masks, check_photos, listed
from .references import Reference


@dataclass(frozen=True, kw_only=True)
class IndexReport:
    """What indexing one data set found; counts are those of the splits asked for."""

    images_new: int
    images_known: int
    """Indexed before, unchanged."""
    images_changed: int
    """Indexed before, with other bytes since; what was made from them is stale."""
    refs: int
    sentences: int
    warnings: list[str] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    """Key -> reason, photographs that were left out (`skip_bad`)."""


def build_index(
    store_path: Path,
    root: Path,
    dataset: str,
    splits: Sequence[str],
    *,
    side: int,
    images_per_shard: int = 64,
    skip_bad: bool = False,
    decoded: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> IndexReport:
    """Write or extend the tables of a store for some splits of one data set below `root`.

    side: edge of the canvas. decoded: whether new photographs are decoded whole; without it their headers must do,
    which is enough for a plan. on_progress: told the photographs checked so far and their number. Raises InputError for
    an unknown data set or split, AnnotationError for annotations that are broken, ImageError listing the photographs
    that cannot be used (with `skip_bad` they are left out and reported, unless none is left), StoreError for a store of
    another side or a key of another collection; nothing is then written.
    """
    store_path, root = Path(store_path), Path(root)
    if store_path.exists() and not store_path.is_dir():
        raise StoreError(f"{store_path} is a file, not the folder of a store; choose another --store.")
    if (store_path / STORE_FILE).exists():
        create_store(store_path, side)
    annotations = load_annotations(root, dataset)
    references = annotations.of(splits)
    table, skipped = _read_images(store_path)
    known = {row["key"]: row for row in table}
    wanted = {reference.key: reference for reference in references}
    _refuse_collisions(store_path, wanted.values(), annotations.source, known)
    photos, bad = check_photos(root, wanted.values(), known, side=side, decoded=decoded, on_progress=on_progress)
    if bad and not (skip_bad and photos):
        raise ImageError(listed(bad, len(wanted)))
    check_boxes(annotations, references, photos)
    masks, mask_warnings = check_masks(annotations)
    references_table = _references_table(annotations, masks)

    changed = [key for key, photo in photos.items() if key in known and photo.height is not None]
    new = sorted(photos.keys() - known.keys())
    rows = _updated(table, photos) + _appended(table, new, photos, annotations.source, images_per_shard)
    skipped = {key: reason for key, reason in skipped.items() if key not in photos} | bad
    create_store(store_path, side)
    write_table(store_path / IMAGES_FILE, _images_table(rows, skipped))
    write_table(references_path(store_path, annotations.spec.name), references_table)
    return IndexReport(
        images_new=len(new),
        images_known=len(photos) - len(new) - len(changed),
        images_changed=len(changed),
        refs=len(references),
        sentences=sum(len(reference.sentences) for reference in references),
        warnings=annotations.warnings + mask_warnings + _changed_warnings(changed),
        skipped=bad,
    )


def _read_images(store_path: Path) -> tuple[list[dict[str, Any]], dict[str, str]]:
    path = store_path / IMAGES_FILE
    if not path.exists():
        return [], {}
    table = read_table(path, IMAGES)
    return table.to_pylist(), skipped_photos(table)


def _refuse_collisions(
    store_path: Path, wanted: Iterable[Reference], source: str, known: Mapping[str, Mapping[str, Any]]
) -> None:
    for reference in wanted:
        row = known.get(reference.key)
        if row is None:
            continue
        theirs, ours = PurePosixPath(row["file"]).name, PurePosixPath(reference.file_name).name
        if (row["source"], theirs) != (source, ours):
            raise StoreError(
                f"{store_path}: key {reference.key} is {theirs} of {row['source']!r} there, {ours} of {source!r} here; "
                "keys of two collections would mix, use another --store."
            )


def _updated(table: Iterable[Mapping[str, Any]], photos: Mapping[str, FoundPhoto]) -> list[dict[str, Any]]:
    """The rows that were there, in their order: same shard and row, file and bytes as they are now."""
    rows = []
    for old in table:
        row, photo = dict(old), photos.get(old["key"])
        if photo is not None:
            row |= {"file": photo.file, "sha256": photo.sha256}
            if photo.height is not None:
                row |= {"height": photo.height, "width": photo.width}
        rows.append(row)
    return rows


def _appended(
    table: Sequence[Mapping[str, Any]],
    new: Sequence[str],
    photos: Mapping[str, FoundPhoto],
    source: str,
    per_shard: int,
) -> list[dict[str, Any]]:
    """Rows of new photographs, in shards of their own after the last one there is."""
    first = max((row["shard"] for row in table), default=-1) + 1
    rows = []
    for place, key in enumerate(new):
        shard, row = divmod(place, per_shard)
        photo = photos[key]
        rows.append(
            {
                "key": key,
                "source": source,
                "file": photo.file,
                "height": photo.height,
                "width": photo.width,
                "shard": first + shard,
                "row": row,
                "sha256": photo.sha256,
            }
        )
    return rows


def _images_table(rows: list[dict[str, Any]], skipped: Mapping[str, str]) -> pa.Table:
    schema = IMAGES.with_metadata({SKIPPED: json.dumps(skipped, sort_keys=True)})
    return pa.Table.from_pylist(rows, schema=schema)


def _references_table(annotations: Annotations, masks: Sequence[str | None]) -> pa.Table:
    """Every split's references, split by split in the published order; file digests and data set as metadata."""
    rows = [
        {
            "ref_id": reference.ref_id,
            "key": reference.key,
            "split": reference.split,
            "category": reference.category,
            "category_name": reference.category_name,
            "box": reference.box,
            "mask": mask,
            "sent_ids": reference.sent_ids,
            "sentences": reference.sentences,
        }
        for reference, mask in zip(annotations.references, masks, strict=True)
    ]
    metadata = {
        "dataset": annotations.spec.name,
        "source": annotations.source,
        "digests": json.dumps(annotations.digests, sort_keys=True),
    }
    return pa.Table.from_pylist(rows, schema=REFERENCES.with_metadata(metadata))


def _changed_warnings(changed: Sequence[str]) -> list[str]:
    if not changed:
        return []
    return [
        f"{len(changed):,} photos have changed since they were indexed (first: {changed[0]}); "
        "what was made from them is stale and will be made again"
    ]
