"""The one publisher: a file is whole under its name, or it is not there.

`finished_file` gives a temporary path in the same folder; when the block succeeds the file is flushed to the disk,
renamed over its final name, and the folder is flushed too. A killed run leaves a temporary at most. Every temporary is
locked by its writer for as long as it lives, so `sweep` tells those of dead writers from those of running ones without
looking at a clock or a process table.
"""

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import WeakmcnError

TEMPORARY = ".tmp-"
"""How the name of every temporary begins; the final name is its end, so suffixes stay readable to libraries."""

_DEVICE_FAULTS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


@contextmanager
def finished_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` only when the block succeeds; made with all missing folders.

    Raises WeakmcnError naming `path` when the disk is full or fails; whatever the block raises passes through. In both
    cases the temporary is gone and a file that had the name before is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, lock = _locked_temporary(path)
    try:
        yield temporary
        flush(temporary)
        temporary.replace(path)
        flush(path.parent)
    except OSError as error:
        if error.errno not in _DEVICE_FAULTS:
            raise
        raise WeakmcnError(
            f"{path}: could not be written: {error.strerror}; make room or mend the disk and run the same command "
            "again, what was finished is kept."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
        os.close(lock)


def write_bytes(path: Path, data: bytes) -> None:
    """Publish `data` as the file `path`."""
    with finished_file(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Publish `value` as JSON with sorted keys and a newline at the end; NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, sort_keys=True, indent=indent, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"))


def flush(path: Path) -> None:
    """Have the system put a file's or a folder's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stale_temporaries(folder: Path) -> list[Path]:
    """Temporaries of `folder` itself (not of its subfolders) whose writer is no longer running, sorted."""
    return sorted(path for path in Path(folder).glob(f"{TEMPORARY}*") if path.is_file() and not _is_locked(path))


def live_temporaries(folder: Path) -> list[Path]:
    """Temporaries of `folder` that some running process is writing now, sorted."""
    return sorted(path for path in Path(folder).glob(f"{TEMPORARY}*") if path.is_file() and _is_locked(path))


def sweep(folder: Path) -> list[Path]:
    """Remove what dead writers left in `folder`; the removed paths."""
    stale = stale_temporaries(folder)
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _locked_temporary(path: Path) -> tuple[Path, int]:
    """A new empty file beside `path` and the descriptor that holds its lock."""
    while True:
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{path.name}")
        lock = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        fcntl.flock(lock, fcntl.LOCK_EX)
        if temporary.exists():  # a sweep may have taken it between its creation and its lock
            return temporary, lock
        os.close(lock)


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:  # its writer has just finished
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
