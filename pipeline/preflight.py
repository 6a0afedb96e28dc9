"""What is checked of a data set before anything is made from it: photographs, boxes and masks, record by record.

The annotations themselves are checked where they are read (annotations.py). Nothing is written here, and nothing that
was not looked at reaches native code.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..shards.codec import rle_area
from ..shards.errors import AnnotationError, ImageError
from .annotations import PHOTO_FOLDERS, Annotations, find_photo
from .images import decode, fit_letterbox, read_bytes, read_size
from .references import Reference, box_fault
from .segmentation import MEND, run_lengths
from .sources import Faults

LISTED = 100
"""Broken photographs named in one message."""


@dataclass(frozen=True)
class FoundPhoto:
    """A sound photograph as it is now; None as height and width where its bytes are those indexed before."""

    file: str
    """Relative to the data set's folder."""
    sha256: str
    height: int | None
    width: int | None


def check_photos(
    root: Path,
    wanted: Iterable[Reference],
    known: Mapping[str, Mapping[str, Any]],
    *,
    side: int,
    decoded: bool = True,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[dict[str, FoundPhoto], dict[str, str]]:
    """The sound photographs and the faults of the others, by key. One reference stands for its photograph.

    known: key -> row of images.parquet; bytes that are known are not decoded again. decoded: whether the others are
    decoded whole; without it their headers must do. ImageError where there is no folder of photographs.
    """
    if not any((root / folder).is_dir() for folder in PHOTO_FOLDERS):
        raise ImageError(f"{root}: no photos; put them in {root / PHOTO_FOLDERS[1]} (or link it there).")
    ordered = sorted(wanted, key=lambda reference: reference.key)
    rows = [known.get(reference.key) for reference in ordered]
    photos: dict[str, FoundPhoto] = {}
    bad: dict[str, str] = {}
    # Decoding and digesting leave the interpreter lock; four at a time bound the memory.
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        checks = pool.map(partial(_check_photo, root, side=side, decoded=decoded), ordered, rows)
        for done, (reference, found) in enumerate(zip(ordered, checks, strict=True), start=1):
            if isinstance(found, FoundPhoto):
                photos[reference.key] = found
            else:
                bad[reference.key] = found
            if on_progress is not None:
                on_progress(done, len(ordered))
    finally:
        pool.shutdown(cancel_futures=True)
    return photos, bad


def _check_photo(
    root: Path, reference: Reference, row: Mapping[str, Any] | None, *, side: int, decoded: bool
) -> FoundPhoto | str:
    try:
        path = find_photo(root, reference.file_name)
        data = read_bytes(path)
        file, digest = path.relative_to(root).as_posix(), hashlib.sha256(data).hexdigest()
        expect = (reference.height, reference.width) if reference.height else None
        if row is not None and row["sha256"] == digest and expect in (None, (row["height"], row["width"])):
            return FoundPhoto(file, digest, None, None)
        height, width = decode(data, path, expect=expect).shape[:2] if decoded else read_size(data, path, expect=expect)
        fit_letterbox(path, height, width, side)
    except ImageError as error:
        return str(error)
    return FoundPhoto(file, digest, height, width)


def listed(bad: Mapping[str, str], total: int) -> str:
    """The message for photographs that cannot be used (key -> fault) of `total`: one line that counts, a line each."""
    lines = [f"{len(bad):,} of {total:,} photos cannot be used; mend them, or leave them out with --skip-bad:"]
    lines += [bad[key] for key in sorted(bad)[:LISTED]]
    if len(bad) > LISTED:
        lines.append(f"and {len(bad) - LISTED:,} more")
    return "\n".join(lines)


def check_boxes(annotations: Annotations, references: Iterable[Reference], photos: Mapping[str, FoundPhoto]) -> None:
    """AnnotationError for boxes that leave photographs whose size only the photographs told."""
    faults = Faults(annotations.root, "correct these annotations or convert the data set again")
    for reference in references:
        photo = photos.get(reference.key)
        if reference.height or photo is None or photo.height is None or photo.width is None:
            continue
        if fault := box_fault(reference.box, photo.height, photo.width):
            faults.add("box", f"reference {reference.ref_id} of {annotations.spec.name} {fault}")
    faults.raise_if_any()


def check_masks(annotations: Annotations) -> tuple[list[str | None], list[str]]:
    """The run lengths of every reference's mask, and warnings; AnnotationError for mask files that cannot be used."""
    faults = Faults(annotations.root, MEND)
    masks: list[str | None] = []
    for reference in annotations.references:
        try:
            masks.append(run_lengths(reference))
        except AnnotationError as error:
            faults.add("mask", str(error).removeprefix(f"{annotations.root}/").removesuffix(f"; {MEND}."))
    faults.raise_if_any()
    return masks, _empty_warnings(annotations, masks)


def _empty_warnings(annotations: Annotations, masks: Sequence[str | None]) -> list[str]:
    empty = [
        reference.ref_id
        for reference, mask in zip(annotations.references, masks, strict=True)
        if mask is not None and not rle_area(mask)
    ]
    if not empty:
        return []
    return [
        f"{annotations.spec.name}: {len(empty):,} references have a mask without a pixel (first: {empty[0]}); in "
        "evaluation no answer can hit it"
    ]
