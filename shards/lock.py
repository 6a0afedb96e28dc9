"""One writer a folder: a lock that names its holder and that no crash can leave behind.

The lock is the kernel's (`flock`) on a file in the folder, so it goes with its process however that ends. The file only
says who holds it.
"""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from .errors import WeakmcnError

LOCK = ".lock"


@contextmanager
def only_writer(folder: Path, what: str) -> Iterator[None]:
    """Hold the lock of `folder`, a store or a run, for the block.

    The folder is made at need, and taken away again if it is left empty.
    what: the command that holds it, for others to read. Raises WeakmcnError naming the holder where another run has it.
    """
    folder = Path(folder)
    is_new = not folder.exists()
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = _locked(path)
    except OSError as error:
        raise WeakmcnError(f"{folder}: cannot be written ({error.strerror}); choose another folder.") from error
    try:
        holder = {
            "what": what,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now().astimezone().isoformat(timespec="seconds"),
        }
        os.ftruncate(descriptor, 0)
        os.write(descriptor, json.dumps(holder).encode("utf-8"))
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)
        if is_new:
            with suppress(OSError):
                folder.rmdir()


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of the file now called `path`."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held_by = _holder(descriptor)
            os.close(descriptor)
            raise WeakmcnError(f"{path.parent}: {held_by} holds this folder; wait for it to end, or stop it.") from None
        # A holder that ended between our open and our lock has removed the file: lock the one that has its name now.
        with suppress(FileNotFoundError):
            if os.fstat(descriptor).st_ino == os.stat(path).st_ino:
                return descriptor
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"another {holder['what']} (pid {holder['pid']} on {holder['host']}, since {holder['since']})"
    except (ValueError, KeyError, TypeError):  # it has the lock and has not yet written who it is
        return "another run"
