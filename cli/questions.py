"""What `predict` is asked: photographs, in folders or one by one, and for each the phrases to find on it."""

import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..pipeline.images import decode, fit_letterbox, read_bytes, remark_on, shown
from ..shards.errors import ImageError, InputError
from ..shards.records import read_rows
from .answering import with_words
from .earlier import files_of_answers

SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".gif", ".bmp"),
    *(".webp", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl"),  # not read, and told so
)
"""Files of a folder that are meant as photographs; the others are passed over."""
LISTED = 100
"""Broken photographs named in one message."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One photograph and what to find on it."""

    image: Path
    name: str
    """What its answers are called: its file below the folder that was named, "sub/dog.jpg"."""
    phrases: tuple[str, ...]


def questions(images: Sequence[Path], phrases: Sequence[str], pairs: Path | None) -> tuple[list[Question], int]:
    """The photographs in the order they were named, those of a folder by name, each once.

    images: files and folders, looked through to the bottom, each asked for all `phrases`. pairs: JSON lines of
    {"image", "phrase"}. And how many pictures that earlier answers left in these folders were passed by.
    """
    passed_by = 0
    texts = tuple(dict.fromkeys(with_words(phrase) for phrase in phrases))
    asked: dict[Path, tuple[str, list[str]]] = {}
    for given in images:
        if not given.exists() and re.search(r"[*?\[]", given.name):
            raise InputError(f"--image {shown(given)}: a pattern in quotes stays one; name the folder, or each file.")
        found, ours = _in_folder(given) if given.is_dir() else ([(given, given.name)], 0)
        passed_by += ours
        for image, name in found:
            asked.setdefault(image, (name, []))[1].extend(texts)
    for image, name, phrase in [] if pairs is None else _pairs(pairs):
        asked.setdefault(image, (name, []))[1].append(phrase)
    named = [
        Question(image=image, name=name, phrases=tuple(dict.fromkeys(wanted)))
        for image, (name, wanted) in asked.items()
    ]
    return named, passed_by


def looked_at(questions: Sequence[Question], *, side: int) -> tuple[dict[Path, str], dict[Path, str]]:
    """The photographs that cannot be used, with the reason, and remarks on others; each is decoded whole.

    side: edge of the canvas.
    """
    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        images = [question.image for question in questions]
        found = list(zip(images, pool.map(partial(_look_at, side=side), images), strict=True))
        faults = {image: fault for image, (fault, _) in found if fault is not None}
        return faults, {image: remark for image, (_, remark) in found if remark is not None}
    finally:
        pool.shutdown(cancel_futures=True)


def require_sound(bad: dict[Path, str], total: int, *, skip_bad: bool) -> None:
    """ImageError that lists the broken photographs, unless they may be left out and others remain."""
    if not bad or (skip_bad and len(bad) < total):
        return
    if total == 1:
        raise ImageError(next(iter(bad.values())))
    mend = "mend some: none is left" if skip_bad else "mend them, or leave them out with --skip-bad"
    lines = [f"{len(bad):,} of {total:,} photographs cannot be used; {mend}:"]
    lines += list(bad.values())[:LISTED]
    if len(bad) > LISTED:
        lines.append(f"and {len(bad) - LISTED:,} more")
    raise ImageError("\n".join(lines))


def _look_at(image: Path, *, side: int) -> tuple[str | None, str | None]:
    """Why a photograph cannot be used, or what is to be told of it."""
    try:
        data = read_bytes(image)
        height, width = decode(data, image).shape[:2]
        fit_letterbox(image, height, width, side)
    except ImageError as fault:
        return str(fault), None
    return None, remark_on(data)


def _in_folder(folder: Path) -> tuple[list[tuple[Path, str]], int]:
    """The photographs below a folder, hidden ones left out, with their names relative to it; InputError for none.

    And how many pictures of earlier answers were passed by.
    """
    inside = sorted(folder.rglob("*"))
    answers = files_of_answers(inside)
    found, passed_by = [], 0
    for path in inside:
        below = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in below.parts)
        if is_hidden or path.suffix.lower() not in SUFFIXES or path.is_dir():
            continue
        if path in answers:
            passed_by += 1
        else:
            found.append((path, below.as_posix()))
    if not found:
        only = " but those of earlier answers" if passed_by else ""
        raise InputError(
            f"--image {shown(folder)}: no photograph in this folder{only}; name one with JPEG, PNG, GIF or BMP."
        )
    return found, passed_by


def _pairs(file: Path) -> list[tuple[Path, str, str]]:
    """(photograph, its name, phrase) of each row; a relative path starts at the file's own folder.

    What lies below that folder is named with the folders between.
    """
    return [_pair(file, place, row) for place, row in read_rows(file)]


def _pair(file: Path, place: str, row: Any) -> tuple[Path, str, str]:
    image, phrase = (row.get("image"), row.get("phrase")) if isinstance(row, dict) else (None, None)
    if not (isinstance(image, str) and image and isinstance(phrase, str)):
        raise InputError(f'--pairs {file}: {place} is no {{"image": "a.jpg", "phrase": "left dog"}}; write it so.')
    path, folder = file.parent / image, file.parent.absolute()
    is_below = folder in path.absolute().parents and ".." not in path.parts
    name = path.absolute().relative_to(folder).as_posix() if is_below else path.name
    return path, name, with_words(phrase, f"--pairs {file}: {place}")
