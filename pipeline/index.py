"""Annotations and photographs -> the store's tables: images.parquet and refs-<dataset>.parquet.

Everything is checked before anything is written: the annotations, then every photograph of the splits asked for, which
is read, digested and, unless it is known, decoded. Photographs enter the table in key order, `images_per_shard` to a
shard; a later index appends new shards and never moves, fills up or renumbers an old one.

A photograph whose bytes differ from those indexed keeps its place and gets its new digest, which makes the shards made
from the old bytes stale. A key that another collection uses already is an error: one store, one key space.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from ..shards.errors import ImageError, StoreError
from ..shards.layout import IMAGES_FILE, STORE_FILE, create_store, references_path
from ..shards.tables import IMAGES, REFERENCES, SKIPPED, read_table, skipped_photos, write_table
from .annotations import PHOTO_FOLDERS, Annotations, find_photo, load_annotations
from .images import decode, fit_letterbox, read_bytes
from .references import Reference, box_fault
from .segmentation import run_lengths
from .sources import Faults

_LISTED = 100
"""Broken photographs named in one message."""


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


@dataclass(frozen=True)
class _Photo:
    """A sound photograph as it is now; None as height where its bytes are those indexed before."""

    file: str
    sha256: str
    height: int | None
    width: int | None


def build_index(
    store_path: Path,
    root: Path,
    dataset: str,
    splits: Sequence[str],
    *,
    side: int,
    images_per_shard: int = 64,
    skip_bad: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> IndexReport:
    """Write or extend the tables of a store for some splits of one data set below `root`.

    side: edge of the canvas. on_progress: told the photographs checked so far and their number. Raises InputError for
    an unknown data set or split, AnnotationError for annotations that are broken, ImageError listing the photographs
    that cannot be used (with `skip_bad` they are left out and reported), StoreError for a store of another side or a
    key of another collection; nothing is then written.
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
    photos, bad = _check_photos(root, wanted.values(), known, side, on_progress)
    if bad and not skip_bad:
        raise ImageError(_listed(bad, len(wanted)))
    _check_boxes(annotations, references, photos)
    references_table = _references_table(annotations)

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
        warnings=annotations.warnings + _changed_warnings(changed),
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


def _check_photos(
    root: Path,
    wanted: Iterable[Reference],
    known: Mapping[str, Mapping[str, Any]],
    side: int,
    on_progress: Callable[[int, int], None] | None,
) -> tuple[dict[str, _Photo], dict[str, str]]:
    """The sound photographs and the faults of the others, by key. One reference stands for its photograph."""
    if not any((root / folder).is_dir() for folder in PHOTO_FOLDERS):
        raise ImageError(f"{root}: no photos; put them in {root / PHOTO_FOLDERS[1]} (or link it there).")
    ordered = sorted(wanted, key=lambda reference: reference.key)
    photos: dict[str, _Photo] = {}
    bad: dict[str, str] = {}
    # Decoding and digesting leave the interpreter lock; four at a time bound the memory.
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        checks = pool.map(lambda reference: _check_photo(root, reference, known.get(reference.key), side), ordered)
        for done, (reference, found) in enumerate(zip(ordered, checks, strict=True), start=1):
            if isinstance(found, _Photo):
                photos[reference.key] = found
            else:
                bad[reference.key] = found
            if on_progress is not None:
                on_progress(done, len(ordered))
    finally:
        pool.shutdown(cancel_futures=True)
    return photos, bad


def _check_photo(root: Path, reference: Reference, row: Mapping[str, Any] | None, side: int) -> _Photo | str:
    try:
        path = find_photo(root, reference.file_name)
        data = read_bytes(path)
        file, digest = path.relative_to(root).as_posix(), hashlib.sha256(data).hexdigest()
        expect = (reference.height, reference.width) if reference.height else None
        if row is not None and row["sha256"] == digest and expect in (None, (row["height"], row["width"])):
            return _Photo(file, digest, None, None)
        height, width, _ = decode(data, path, expect=expect).shape
        fit_letterbox(path, height, width, side)
    except ImageError as error:
        return str(error)
    return _Photo(file, digest, height, width)


def _listed(bad: Mapping[str, str], total: int) -> str:
    lines = [f"{len(bad):,} of {total:,} photos cannot be used; mend them, or leave them out with --skip-bad:"]
    lines += [bad[key] for key in sorted(bad)[:_LISTED]]
    if len(bad) > _LISTED:
        lines.append(f"and {len(bad) - _LISTED:,} more")
    return "\n".join(lines)


def _check_boxes(annotations: Annotations, references: Iterable[Reference], photos: Mapping[str, _Photo]) -> None:
    """Boxes of photographs whose size the annotations did not give, now that it is known."""
    faults = Faults(annotations.root, "correct these annotations or convert the data set again")
    for reference in references:
        photo = photos.get(reference.key)
        if reference.height or photo is None or photo.height is None or photo.width is None:
            continue
        if fault := box_fault(reference.box, photo.height, photo.width):
            faults.add("box", f"reference {reference.ref_id} of {annotations.spec.name} {fault}")
    faults.raise_if_any()


def _updated(table: Iterable[Mapping[str, Any]], photos: Mapping[str, _Photo]) -> list[dict[str, Any]]:
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
    table: Sequence[Mapping[str, Any]], new: Sequence[str], photos: Mapping[str, _Photo], source: str, per_shard: int
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


def _references_table(annotations: Annotations) -> pa.Table:
    """Every split's references, split by split in the published order; file digests and data set as metadata."""
    rows = [
        {
            "ref_id": reference.ref_id,
            "key": reference.key,
            "split": reference.split,
            "category": reference.category,
            "category_name": reference.category_name,
            "box": reference.box,
            "mask": run_lengths(reference),
            "sent_ids": reference.sent_ids,
            "sentences": reference.sentences,
        }
        for reference in annotations.references
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
