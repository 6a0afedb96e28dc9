"""Answers of `predict` on the disk: beside one picture, or in a folder for several photographs.

    FILE.png  FILE.json  FILE-mask.png       one photograph; several phrases have masks -mask-1, -mask-2, ...
    DIR/answers.jsonl                        a line a photograph, each as FILE.json is; written last
    DIR/<photograph>.png, -mask.png, ...     the same pictures, folders below the one that was named kept

Nothing is written over but an earlier answer.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..pipeline.estimate import counted
from ..pipeline.images import Photo
from ..shards.atomic import write_bytes, write_json
from ..shards.codec import rle_encode
from ..shards.errors import ConfigError
from .answering import Found
from .earlier import LINES, files_of_answer
from .pictures import Answer, Marks, answer_picture, save_mask, save_picture
from .questions import SUFFIXES, Question

_MASK = re.compile(r"-mask(-\d+)?$")


@dataclass(kw_only=True)
class Output:
    """Where answers are written: beside one picture, into a folder, or nowhere."""

    picture: Path | None = None
    folder: Path | None = None
    stems: dict[Path, str]
    """In a folder: photograph -> what its files begin with."""

    @classmethod
    def of(cls, target: Path | None, picture: Path | None, asked: Sequence[Question]) -> "Output":
        """InputError where files that nobody named would be written over, unless an earlier answer wrote them."""
        if picture is not None:
            _refuse_strangers(picture, len(asked[0].phrases))
        elif target is not None:
            _refuse_other_folder(target)
        return cls(picture=picture, folder=None if picture else target, stems=_stems(asked))

    def begin(self) -> None:
        """Mark the folder as ours, before anything else is in it."""
        if self.folder is not None:
            write_bytes(self.folder / LINES, b"")

    def write(self, question: Question, photo: Photo, found: Sequence[Found], remark: str) -> dict[str, Any]:
        """Write picture and masks, if anything is written; the answers as JSON, with the names of these files.

        Names are relative to where the numbers will stand. remark: on the photograph, "" for none.
        """
        height, width = photo.rgb.shape[:2]
        answers = [answer_row(each) for each in found]
        row: dict[str, Any] = {"image": str(question.image), "height": height, "width": width, "answers": answers}
        if remark:
            row["remark"] = remark
        if self.picture is None and self.folder is None:
            return row
        picture = self.picture or Path(f"{self.folder}") / f"{self.stems[question.image]}.png"
        base = self.folder or picture.parent
        for answer, each, file in zip(answers, found, _mask_files(picture, len(found)), strict=True):
            if each.mask is not None:
                save_mask(each.mask, file)
                answer["mask_file"] = file.relative_to(base).as_posix()
        _draw(photo, found, picture, remark)
        return {**row, "picture": picture.relative_to(base).as_posix()}

    def end(self, rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> list[str]:
        """Write the numbers, with the facts that hold for all of them; what was written, in words."""
        if self.picture is not None:
            numbers = self.picture.with_suffix(".json")
            write_json(numbers, {**facts, **rows[0]})
            masks = [self.picture.parent / each["mask_file"] for each in rows[0]["answers"] if "mask_file" in each]
            return [str(path) for path in (self.picture, numbers, *masks)]
        if self.folder is None:
            return []
        lines = [json.dumps({**facts, **row}, sort_keys=True, allow_nan=False) for row in rows]
        write_bytes(self.folder / LINES, "".join(f"{line}\n" for line in lines).encode("utf-8"))
        masks = sum("mask_file" in answer for row in rows for answer in row["answers"])
        return [f"{self.folder / LINES}, and beside it {counted(len(rows), 'picture')}, {counted(masks, 'mask')}"]


def _draw(photo: Photo, found: Sequence[Found], path: Path, remark: str) -> None:
    cells = [
        Answer(
            rgb=photo.rgb,
            expression=each.phrase,
            note=_note(each, remark),
            predicted=Marks(box=cut_to(photo, each.box), mask=each.mask),
        )
        for each in found
    ]
    save_picture(answer_picture(cells), path)


def _note(found: Found, remark: str) -> str:
    told = []
    if found.objectness is not None:
        told.append(f"objectness {found.objectness:.2f}")
    if found.mask is not None and not found.mask.any():
        told.append("mask empty")
    told += filter(None, [found.told, remark])
    return " · ".join(told)


def cut_to(photo: Photo, box: np.ndarray | None) -> np.ndarray | None:
    """The part of a box x0 y0 x1 y1 that lies on the photo; None where none does, and for no box."""
    if box is None:
        return None
    height, width = photo.rgb.shape[:2]
    cut = box.clip(0, [width, height, width, height])
    return cut if (cut[2:] > cut[:2]).all() else None


def answer_row(found: Found) -> dict[str, Any]:
    """One answer as JSON, without the box or the mask of a method that predicts none; to a hundredth of a pixel."""
    row: dict[str, Any] = {"phrase": found.phrase, "unknown_words": found.unknown_words}
    if found.told:
        row["remark"] = found.told
    if found.box is not None:
        x0, y0, x1, y1 = (float(value) for value in found.box)
        row["box_xyxy"] = [round(value, 2) for value in (x0, y0, x1, y1)]
        row["box_xywh"] = [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]
    if found.objectness is not None:
        row["objectness"] = round(found.objectness, 4)
    if found.mask is not None:
        row["mask"] = {"size": list(found.mask.shape), "counts": rle_encode(found.mask)}
    return row


def _mask_files(picture: Path, count: int) -> list[Path]:
    """Where the masks of so many phrases go."""
    numbers = [f"-{number}" for number in range(1, count + 1)] if count > 1 else [""]
    return [picture.with_name(f"{picture.stem}-mask{number}.png") for number in numbers]


def _stems(asked: Sequence[Question]) -> dict[Path, str]:
    """Photograph -> its name without suffix; a number is added where it is taken, or is what a mask is called."""
    taken: dict[str, Path] = {}
    for question in asked:
        stem = Path(question.name).with_suffix("").as_posix()
        number, free = 2, stem
        while free in taken or _MASK.search(free):
            number, free = number + 1, f"{stem} ({number})"
        taken[free] = question.image
    return {image: stem for stem, image in taken.items()}


def picture_of(target: Path, image: Path) -> Path | None:
    """The picture of one photograph, or None where a folder is named; ConfigError for a name that cannot be."""
    if target.suffix.lower() not in SUFFIXES:
        return None
    if target.suffix.lower() != ".png":
        raise ConfigError(f"--out {target}: the picture is a PNG; write {target.with_suffix('.png')}.")
    if target.resolve() == image.resolve():
        raise ConfigError(f"--out {target}: that is the photograph itself; choose another name.")
    return target


def _refuse_strangers(picture: Path, count: int) -> None:
    """ConfigError where anything but an earlier answer would be written over."""
    numbers = picture.with_suffix(".json")
    ours = files_of_answer(numbers)
    for file in (numbers, picture, *_mask_files(picture, count)):
        if file.exists() and file not in ours:
            what = "is there" if file == picture else f"{file} would be written too, it is there"
            raise ConfigError(f"--out {picture}: {what} and no earlier answer; choose another name, or move it away.")


def _refuse_other_folder(folder: Path) -> None:
    """ConfigError where a folder holds anything but earlier answers, or is none."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out {folder}: is a file; the answers about several photographs need a folder.")
    if folder.suffix.lower() in SUFFIXES:
        raise ConfigError(f"--out {folder}: several photographs need a folder; write {folder.with_suffix('')}.")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / LINES).is_file():
        raise ConfigError(f"--out {folder}: holds other things, and no {LINES}; choose a new folder.")
