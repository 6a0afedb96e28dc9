"""Pseudo labels in the formats that others read: COCO's data set, SimREC's JSON with masks, JSON lines.

What comes in is in photo pixels. One label is one sentence with its box and, where the method has one, its mask.

    coco    one JSON: info, licenses, images, categories, annotations; the extra keys that LABEL_KEYS names
    simrec  anns/<name>.json, an entry a sentence, masks/<name>/<mask_id>.npy; read by simrec.py, and by students
    jsonl   a line a sentence: what `weakmcn eval --predictions` takes, boxes not cut to the photo

A data set's boxes have to lie on its photos, so those of the first two are cut to them, and told to a hundredth of a
pixel. Category and photo are the annotation file's own. The same labels give the same bytes.
"""

import json
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ..shards.atomic import finished_file, output, write_bytes, write_json
from ..shards.codec import rle_area, rle_decode
from ..shards.errors import InputError
from .annotations import EXPORT_FILE
from .datasets import COCO_CATEGORIES

FORMATS = ("coco", "simrec", "jsonl")
LABEL_KEYS = ("ref_id", "sent_id", "phrase", "score", "candidate", "similarity", "agreement")

CONTRIBUTOR = b'"contributor": "weakmcn"'
"""Of a COCO export's `info`, which stands at its end."""
LOOKED_AT_BYTES = 1 << 20
"""Of a file that is there already: its first line, and its end."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class PseudoLabel:
    """One sentence and what a network says it means. Photo pixels."""

    number: int
    """Of the sentence, from 1; unique in what is exported."""
    ref_id: int
    sent_id: int
    phrase: str
    image_id: int
    file_name: str
    """Relative to the folder of the data set."""
    height: int
    width: int
    category: int
    category_name: str
    box: Box
    """x0 y0 x1 y1, as predicted: may leave the photo."""
    mask: str | None
    """COCO run lengths at the photo's size; None where there is none."""
    score: float
    """Objectness of the box, 0..1."""
    candidate: int
    """Which of the detector's candidates was chosen."""
    similarity: float
    """Of sentence and candidate."""
    agreement: float | None
    """IoU of the box and the mask's own box, 0..1; None without a mask."""

    @property
    def clipped(self) -> Box:
        """The box, cut to the photo, to a hundredth of a pixel; without area where it lies outside."""
        x0, y0, x1, y1 = (round(value, 2) for value in self.box)
        return (*_cut(x0, y0, self.width, self.height), *_cut(x1, y1, self.width, self.height))

    @property
    def extras(self) -> dict[str, Any]:
        """Its LABEL_KEYS; agreement only with a mask."""
        values = {name: getattr(self, name) for name in LABEL_KEYS}
        return {name: value for name, value in values.items() if value is not None}


NO_PIXEL = "the mask has no pixel"


def unusable(label: PseudoLabel) -> str | None:
    """Why a label can be in no data set, or None."""
    x0, y0, x1, y1 = label.clipped
    if x1 <= x0 or y1 <= y0:
        return "the box lies outside the photo"
    if label.mask is not None and not rle_area(label.mask):
        return NO_PIXEL
    return None


def tight_box(mask: np.ndarray) -> Box | None:
    """x0 y0 x1 y1 of a mask bool [h, w], its last pixels inside; None for an empty one."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def image_ids(files: Mapping[str, str]) -> dict[str, int]:
    """Key -> the photo's number: that at the end of its file's name, as data sets have it, if each has its own.

    files: key -> file, for all photos of a store.
    """
    ends = {key: re.search(r"\d{1,12}$", PurePosixPath(file).stem) for key, file in files.items()}
    numbers = {key: int(end[0]) for key, end in ends.items() if end is not None}
    is_clear = len(numbers) == len(files) == len(set(numbers.values()))
    return numbers if is_clear else {key: int(key) for key in files}


def refuse_strangers(path: Path) -> None:
    """InputError where anything but an earlier export of coco or jsonl would be written over."""
    if not path.exists():
        return
    with path.open("rb") as file:
        line = file.readline(LOOKED_AT_BYTES)
        file.seek(max(0, path.stat().st_size - LOOKED_AT_BYTES))
        is_coco = CONTRIBUTOR in file.read()
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        row = None
    is_label = isinstance(row, dict) and {"ref_id", "sent_id", "phrase", "candidate", "similarity"} <= row.keys()
    if not (is_coco or is_label):
        raise InputError(f"--out {path}: is there already, and no export; choose another name.")


def write_lines(path: Path, labels: Iterable[PseudoLabel]) -> int:
    """Write JSON lines; how many."""
    count = 0
    with finished_file(path) as temporary, output(temporary) as file:
        for label in labels:
            row = {
                **label.extras,
                "image_id": label.image_id,
                "file_name": label.file_name,
                "bbox": _xywh(label.box),
                **_segmentation(label),
            }
            file.write(f"{_dumped(row)}\n".encode())
            count += 1
    return count


def write_coco(
    path: Path, labels: Sequence[PseudoLabel], facts: Mapping[str, Any], categories: Mapping[int, str]
) -> None:
    """Write a COCO data set. facts: of the run, for `info`; categories: all of the data set, whatever the split."""
    images = {
        label.image_id: {
            "id": label.image_id,
            "file_name": label.file_name,
            "height": label.height,
            "width": label.width,
            "license": 1,
        }
        for label in labels
    }
    names = {number: name or f"category {number}" for number, name in categories.items()}
    description = "Pseudo labels: boxes and masks that a network predicted from expressions; nobody annotated them."
    value = {
        "info": {"description": description, "contributor": "weakmcn", "url": "", "version": "1.0", **facts},
        "licenses": [{"id": 1, "name": "that of the photographs", "url": ""}],
        "images": list(images.values()),
        "categories": [{"id": number, "name": name, "supercategory": name} for number, name in sorted(names.items())],
        "annotations": [_annotation(label) for label in labels],
    }
    write_bytes(path, f"{_dumped(value)}\n".encode())


def prepare_simrec(folder: Path, name: str, facts: Mapping[str, Any], *, needed: int) -> None:
    """Make the folder of a SimREC export, or take up the one of a killed export of the same labels.

    needed: bytes of all masks. InputError where the disk has not so many, and for a folder that holds anything else, a
    finished export too: its masks would be mixed with others.
    """
    known = folder / EXPORT_FILE  # written first, so that a killed export is known as ours
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder}: is a file; SimREC's format needs a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        wanted = f"{json.dumps(facts, sort_keys=True, indent=2, allow_nan=False)}\n"
        if not known.is_file():
            raise InputError(f"--out {folder}: holds other things; choose a new folder.")
        if known.read_text("utf-8") != wanted:
            raise InputError(
                f"--out {folder}: holds labels of other settings ({known.name}); choose a new folder, or remove it."
            )
        if (folder / "anns" / f"{name}.json").exists():
            raise InputError(
                f"--out {folder}: holds these labels already, all of them; to write them again, remove it."
            )
    parent = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    if needed > (free := shutil.disk_usage(parent).free):
        raise InputError(
            f"--out {folder}: SimREC's masks take up to {needed / 1e9:,.1f} GB, {free / 1e9:,.1f} GB are free; make "
            "room, or write --format coco."
        )
    write_json(known, facts)


def write_simrec(folder: Path, name: str, split: str, labels: Iterable[PseudoLabel]) -> int:
    """Write masks, then the JSON of entries, into a folder that `prepare_simrec` made; how many entries."""
    entries = []
    for label in labels:
        if label.mask is not None:
            path = folder / "masks" / name / f"{label.number}.npy"
            with finished_file(path) as temporary, output(temporary) as file:
                np.save(file, rle_decode(label.mask, label.height, label.width).astype(np.uint8))
        entries.append(
            {
                "iid": label.image_id,
                "bbox": _on_photo(label),
                "cat_id": _simrec_category(label),
                "refs": [label.phrase],
                "mask_id": label.number,
                **label.extras,
            }
        )
    write_bytes(folder / "anns" / f"{name}.json", f"{_dumped({split: entries})}\n".encode())
    return len(entries)


def _annotation(label: PseudoLabel) -> dict[str, Any]:
    x, y, width, height = _on_photo(label)
    return {
        "id": label.number,
        "image_id": label.image_id,
        "category_id": label.category,
        "bbox": [x, y, width, height],
        "area": float(rle_area(label.mask)) if label.mask is not None else width * height,
        "iscrowd": 0,
        **_segmentation(label),
        **label.extras,
    }


def _segmentation(label: PseudoLabel) -> dict[str, Any]:
    if label.mask is None:
        return {}
    return {"segmentation": {"size": [label.height, label.width], "counts": label.mask}}


def _simrec_category(label: PseudoLabel) -> int:
    """SimREC numbers COCO's categories 0 to 79; another data set's keep their number."""
    category = (label.category, label.category_name)
    return COCO_CATEGORIES.index(category) if category in COCO_CATEGORIES else label.category


def _on_photo(label: PseudoLabel) -> list[float]:
    return [round(value, 2) for value in _xywh(label.clipped)]


def _xywh(box: Box) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1 - x0, y1 - y0]


def _cut(x: float, y: float, width: int, height: int) -> tuple[float, float]:
    return min(max(x, 0.0), float(width)), min(max(y, 0.0), float(height))


def _dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, allow_nan=False)
