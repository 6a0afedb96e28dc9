"""Records in JSON, read with their size and their depth bounded: what is damaged is an error and no crash."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .errors import InputError

MAX_BYTES = 64 << 20
"""Bytes of the largest record; a sidecar of 64 images has 100 thousand."""
MAX_ROWS_BYTES, MAX_CONTAINERS = 1 << 29, 8_000_000
"""Bytes, and lists and objects, of the largest file of rows; 120 thousand sentences with masks have a tenth of them."""


def read_json(path: Path) -> Any:
    """The JSON value of the file `path`. ValueError where it is none, OSError where it cannot be read."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is no plain file")
    if status.st_size > MAX_BYTES:
        raise ValueError(f"it has {status.st_size:,} bytes, more than any record")
    try:
        return json.loads(path.read_bytes())
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_rows(path: Path) -> list[tuple[str, Any]]:
    """The rows of a file of JSON lines, of one JSON list, or of the list `annotations` of a COCO data set.

    Each with its place in words ("line 3", "entry 3"), both from 1. InputError naming the file and the place.
    """
    text = _text(path)
    try:
        whole = json.loads(text)
    except (ValueError, RecursionError) as fault:
        if text.lstrip().startswith("["):
            where = f" at line {fault.lineno}" if isinstance(fault, json.JSONDecodeError) else ""
            raise InputError(f"{path}: its list is no JSON{where}; write it again, or an object a line.") from None
        rows = [(f"line {place}", _line(path, place, line)) for place, line in _lines(text)]
    else:
        if isinstance(whole, dict) and "annotations" not in whole:  # JSON lines, a single one
            return [("line 1", whole)]
        listed = whole["annotations"] if isinstance(whole, dict) else whole
        rows = [(f"entry {place}", row) for place, row in enumerate(listed if isinstance(listed, list) else [], 1)]
    if not rows:
        raise InputError(f"{path}: has no row; write JSON lines, an object a line, or one list of objects.")
    return rows


def _text(path: Path) -> str:
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{path}: is no plain file; name a file of JSON.")
        if status.st_size > MAX_ROWS_BYTES:
            raise InputError(f"{path}: {status.st_size:,} bytes, the limit is {MAX_ROWS_BYTES:,}; split it.")
        data = path.read_bytes()
        if data.count(b"[") + data.count(b"{") > MAX_CONTAINERS:
            raise InputError(f"{path}: more than {MAX_CONTAINERS:,} lists and objects; split it.")
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise InputError(f"{path}: missing; name a file of JSON.") from None
    except OSError as fault:
        raise InputError(f"{path}: cannot be read ({fault.strerror}); make it readable.") from None
    except UnicodeDecodeError as fault:
        raise InputError(f"{path}: not UTF-8 at byte {fault.start:,}; write it as UTF-8.") from None


def _lines(text: str) -> Iterator[tuple[int, str]]:
    return ((place, line) for place, line in enumerate(text.split("\n"), 1) if line.strip())


def _line(path: Path, place: int, line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: line {place} is no JSON; write an object a line.") from None
