"""A reference: one object of one photograph, and the sentences that people said of it.

Boxes are x y w h in photo pixels, floats, as COCO writes them. Whatever is wrong with a record is told as the rest of a
sentence that begins with its name ("reference 17 ...").
"""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from .sources import brief, is_finite

SLACK_PX = 2.0
"""How far a box or an outline may leave its photo; published boxes are rounded."""
MAX_SENTENCES = 1_000
"""Sentences of one reference."""
MAX_ALL_SENTENCES = 1_000_000
"""Sentences of one data set: a few bytes of pickle can share one long list among many references."""
MAX_CHARACTERS = 10_000
"""Characters of one sentence."""
MAX_NAME = 255
"""Characters of one part of a file name, as file systems have it, and of a split's name."""

_NO_WORD = frozenset(".,'!?\"()*#:;-/")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One referred object."""

    ref_id: int
    key: str
    """Key of its photo in the store: twelve digits."""
    image_id: int
    """Its photo's number in the annotation file."""
    file_name: str
    """Its photo's file below the folder of photographs."""
    height: int
    """Rows of the photo; 0 where the annotations do not say."""
    width: int
    """Columns of the photo; 0 where the annotations do not say."""
    split: str
    category: int
    category_name: str
    box: tuple[float, float, float, float]
    """x y w h, photo pixels."""
    segmentation: Any = None
    """COCO polygons, one COCO RLE or a list of them; None where there is no mask or it lies in `mask_file`."""
    mask_file: Path | None = None
    """A .npy with the mask, [h, w], not zero on the object."""
    sent_ids: tuple[int, ...]
    sentences: tuple[str, ...]


class Loaded(NamedTuple):
    """What one layout's files hold."""

    references: list[Reference]
    """In the order of the files."""
    digests: dict[str, str]
    """File name -> SHA-256 of every annotation file that was read."""
    warnings: list[str]


def is_blank(sentence: str) -> bool:
    """Whether the published text rule (delete . , ' ! ? " ( ) * # : ; and cut at - / and space) leaves no word."""
    return all(character in _NO_WORD or character.isspace() for character in sentence)


def box_fault(box: object, height: int, width: int) -> str | None:
    """What is wrong with a box x y w h of a photo of `height` x `width` (0 x 0: unknown), or None."""
    if not isinstance(box, (list, tuple)) or len(box) != 4 or not all(is_finite(value) for value in box):
        return f"has the box {brief(box)}, not four finite numbers x y w h"
    left, top, box_width, box_height = box
    if box_width <= 0 or box_height <= 0:
        return f"has a box without area: {brief(box, 60)}"
    outside = left < -SLACK_PX or top < -SLACK_PX
    if height and width:
        outside |= left + box_width > width + SLACK_PX or top + box_height > height + SLACK_PX
    if outside:
        return f"has a box x y w h {brief(box, 60)} that leaves its photo of {width}x{height}"
    return None


def split_fault(split: object) -> str | None:
    """Why a value cannot be the name of a split, or None."""
    if isinstance(split, str) and split and split.isprintable() and len(split) <= MAX_NAME:
        return None
    return f"has the split {brief(split, 30)}, which is no word"


def as_box(box: Any) -> tuple[float, float, float, float]:
    """The four numbers of a box that passed `box_fault`."""
    left, top, width, height = (float(value) for value in box)
    return left, top, width, height


def sentence_fault(sentence: object) -> str | None:
    """What is wrong with an expression, or None. An empty one is no fault: it is counted, and a miss in evaluation."""
    if not isinstance(sentence, str):
        return f"has the expression {brief(sentence, 40)}, which is no text"
    if len(sentence) > MAX_CHARACTERS:
        return f"has an expression of {len(sentence):,} characters, the limit is {MAX_CHARACTERS:,}"
    try:
        sentence.encode("utf-8")
    except UnicodeEncodeError:
        return f"has the expression {brief(sentence, 40)} with half a character (a lone surrogate)"
    return None


def file_name_fault(name: object) -> str | None:
    """Why a photo's file name cannot be used, or None; it must stay in the folder of photographs."""
    if not isinstance(name, str) or not name:
        return "has no file_name"
    if not name.isprintable() or "\\" in name:
        return f"has the file_name {brief(name, 60)}; only printable characters and / are taken"
    if len(name) > 4 * MAX_NAME or any(len(part.encode()) > MAX_NAME for part in PurePosixPath(name).parts):
        return f"has the file_name {brief(name, 60)}, which is longer than a file system takes"
    if name.startswith("/") or ".." in PurePosixPath(name).parts:
        return f"has the file_name {brief(name, 60)}, which leaves the folder of photographs; refused"
    return None


def is_image_id(value: object) -> bool:
    """Whether a value can be a photo's number: 0 or more, twelve digits at most."""
    return type(value) is int and 0 <= value < 10**12


def photo_keys(file_names: dict[int, str], source: str) -> dict[int, str]:
    """Photo number -> key, twelve digits: COCO's own numbers, other sources counted from 1 in file-name order."""
    if source == "coco":
        return {number: f"{number:012d}" for number in file_names}
    ordered = sorted(file_names, key=lambda number: (file_names[number], number))
    return {number: f"{place:012d}" for place, number in enumerate(ordered, start=1)}
