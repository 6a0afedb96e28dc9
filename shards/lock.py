"""One writer a folder: a lock that names its holder and that no crash can leave behind.

The lock is the kernel's (`flock`) on a file in the folder, so it goes with its process however that ends. The file only
says who holds it.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from . import faults
from .errors import WeakmcnError

LOCK = ".lock"

_PATIENCE_S = 0.05
"""Longer than `refuse_if_held` keeps a lock."""


@contextmanager
def only_writer(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder`, a store or a run, for the block.

    The folder is made at need, and taken away again if it is left empty.
    what: the command that holds it, for others to read. Raises WeakmcnError naming the holder where another run has it.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    path = folder / LOCK
    descriptor = None
    try:
        try:
            faults.point("mkdir", folder)
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = _locked(path)
            _sign(path, descriptor, what)
        except OSError as error:
            raise WeakmcnError(f"{folder}: cannot be written ({error.strerror}); choose another folder.") from error
        yield
    finally:
        if descriptor is not None:
            with suppress(OSError):  # the file says nothing once its lock is gone
                path.unlink(missing_ok=True)
            os.close(descriptor)
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def refuse_if_held(folder: Path) -> None:
    """Raise WeakmcnError naming the holder where a run holds `folder` now; nothing is made or changed.

    For asking at once, before what takes long; only `only_writer` keeps others out.
    """
    path = Path(folder) / LOCK
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:  # nobody has it, or nobody may
        return
    try:
        _take(path, descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of the file now called `path`."""
    while True:
        faults.point("open", path)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            _take(path, descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
        # A holder that ended between our open and our lock has removed the file: lock the one that has its name now.
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        os.close(descriptor)


def _take(path: Path, descriptor: int, kind: int) -> None:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(_PATIENCE_S / 10)
                continue
            held_by = _holder(descriptor)
        raise WeakmcnError(f"{path.parent}: {held_by} holds this folder; wait for it to end, or stop it.")


def _sign(path: Path, descriptor: int, what: str) -> None:
    holder = {
        "what": what,
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    os.ftruncate(descriptor, 0)
    faults.point("write", path)
    os.write(descriptor, json.dumps(holder).encode("utf-8"))


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"another {holder['what']} (pid {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError, RecursionError):  # it has the lock and has not yet written who it is
        return "another run"
