"""The one publisher: a file is whole under its name, or it is not there.

`finished_file` gives a temporary path in the same folder; when the block succeeds the file is flushed to the disk,
renamed over its final name, and the folder is flushed too. A killed run leaves a temporary at most. Every temporary is
locked by its writer for as long as it lives, so `sweep` tells those of dead writers from those of running ones without
looking at a clock or a process table. Every operation here can be made to fail (faults.py).
"""

import errno
import fcntl
import io
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from . import faults
from .errors import WeakmcnError
from .faults import TEMPORARY

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DEVICE_FAULTS = {*_NO_SPACE, errno.EIO, errno.EROFS}
_BUFFER_BYTES = 64 << 10


@contextmanager
def finished_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path that becomes `path` only when the block succeeds; made with all missing folders.

    Raises WeakmcnError naming `path` when the disk is full or fails; whatever else the block raises passes through. In
    both cases the temporary is gone and a file that had the name before is untouched.
    """
    path = Path(path)
    with device_faults(path):
        _make_folder(path.parent)
        temporary, lock = _locked_temporary(path)
        try:
            with device_faults(path, temporary):
                yield temporary
                flush(temporary)
            faults.point("rename", temporary)
            temporary.replace(path)
            flush(path.parent)
        finally:
            with suppress(OSError):  # a temporary that cannot be removed harms nobody, `sweep` tries again
                temporary.unlink(missing_ok=True)
            os.close(lock)


def output(temporary: Path, *, append: bool = False) -> io.BufferedWriter:
    """A file opened for writing: a temporary of `finished_file`, or with `append` a journal that grows.

    What writes through it, not through the path, is covered operation by operation (faults.py).
    """
    return io.BufferedWriter(_Raw(temporary, "ab" if append else "wb"), _BUFFER_BYTES)


def write_bytes(path: Path, data: bytes) -> None:
    """Publish `data` as the file `path`."""
    with finished_file(path) as temporary, output(temporary) as file:
        file.write(data)


def write_json(path: Path, value: Any, *, indent: int | None = 2) -> None:
    """Publish `value` as JSON with sorted keys and a newline at the end; NaN and infinity are refused (ValueError)."""
    text = json.dumps(value, sort_keys=True, indent=indent, allow_nan=False) + "\n"
    write_bytes(path, text.encode("utf-8"))


def remove(path: Path) -> None:
    """Take a published file away, durably; absent is as good."""
    with device_faults(path), suppress(FileNotFoundError):
        faults.point("unlink", path)
        path.unlink()
        flush(path.parent)


def flush(path: Path) -> None:
    """Have the system put a file's or a folder's content on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        faults.point("fsync", path)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def device_faults(path: Path, written: Path | None = None) -> Iterator[None]:
    """Turn a full or failing disk into a WeakmcnError that names `path`; every other exception passes.

    written: where the bytes are so far, for telling how many found room.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _DEVICE_FAULTS:
            raise
        raise WeakmcnError(
            f"{path}: could not be written: {error.strerror}{_space(path, written, error.errno)}; make room or mend "
            "the disk and run the same command again, what was finished is kept."
        ) from error


def stale_temporaries(folder: Path) -> list[Path]:
    """Temporaries of `folder` itself (not of its subfolders) whose writer is no longer running, sorted."""
    return sorted(path for path in Path(folder).glob(f"{TEMPORARY}*") if path.is_file() and not _is_locked(path))


def live_temporaries(folder: Path) -> list[Path]:
    """Temporaries of `folder` that some running process is writing now, sorted."""
    return sorted(path for path in Path(folder).glob(f"{TEMPORARY}*") if path.is_file() and _is_locked(path))


def sweep(folder: Path) -> list[Path]:
    """Remove what dead writers left in `folder`; the removed paths."""
    removed = []
    for path in stale_temporaries(folder):
        with suppress(OSError):  # it is in nobody's way
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


class _Raw(io.FileIO):
    """A file whose every opening and writing can be made to fail."""

    def __init__(self, path: Path, mode: str) -> None:
        self._path = path
        faults.point("open", path)
        super().__init__(path, mode)

    def write(self, data: Any) -> int:
        faults.point("write", self._path)
        return super().write(data)


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        faults.point("mkdir", folder)
        folder.mkdir(parents=True, exist_ok=True)


def _locked_temporary(path: Path) -> tuple[Path, int]:
    """A new empty file beside `path` and the descriptor that holds its lock."""
    while True:
        temporary = path.with_name(f"{TEMPORARY}{secrets.token_hex(6)}-{path.name}")
        faults.point("open", temporary)
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


def _space(path: Path, written: Path | None, fault: int) -> str:
    """For a disk that is full: what there is, in words; "" for other faults."""
    if fault not in _NO_SPACE:
        return ""
    folder = next(parent for parent in path.absolute().parents if parent.is_dir())
    free = f"{shutil.disk_usage(folder).free / 1e6:,.1f} MB free"
    size = written.stat().st_size if written is not None and written.exists() else 0
    return f" ({free}; this file had come to {size / 1e6:,.1f} MB)" if size else f" ({free})"
