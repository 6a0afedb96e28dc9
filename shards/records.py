"""Small records in JSON, read with their size and their depth bounded: what is damaged is a ValueError and no crash."""

import json
import stat
from pathlib import Path
from typing import Any

MAX_BYTES = 64 << 20
"""Bytes of the largest record; a sidecar of 64 images has 100 thousand."""


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
