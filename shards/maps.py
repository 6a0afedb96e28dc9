"""Parts of files as bytes, straight from memory maps that stay open."""

import mmap
import resource
import threading
from pathlib import Path

import numpy as np

from .errors import DamagedShardError
from .mend import repair


class Mapped:
    """Reads parts of tars from memory maps; may be shared by threads."""

    def __init__(self) -> None:
        self._maps: dict[str, np.ndarray] = {}
        self._capacity = max(16, open_files() // 2)
        self._lock = threading.Lock()

    def values(self, path: str, size: int, offset: int, length: int) -> np.ndarray:
        """uint8 [length] from byte `offset` of a tar that must have `size` bytes, read-only; nothing is copied.

        DamagedShardError if the tar is missing or has another size.
        """
        data = self._maps.get(path)  # without the lock: this is on every copy's way
        return (self._opened(path, size) if data is None else data)[offset : offset + length]

    def _opened(self, path: str, size: int) -> np.ndarray:
        with self._lock:
            data = self._maps[path] = np.frombuffer(_open_map(path, size), np.uint8)
            if len(self._maps) > self._capacity:
                self._maps.pop(next(iter(self._maps)))  # the oldest; closed when its last view is gone
        return data


def open_files() -> int:
    """How many files a process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(soft, 1 << 16)


def check_size(path: str, has: int, size: int) -> None:
    """DamagedShardError unless a tar has the bytes that its sidecar says."""
    if has == 0:
        raise missing(path)
    if has != size:
        raise DamagedShardError(f"{path} has {has:,} bytes, its sidecar says {size:,}; {mend(path)}")


def missing(path: str) -> DamagedShardError:
    """What a tar is refused with that is not there, or is empty."""
    return DamagedShardError(f"{path} is missing or empty; {mend(path)}")


def mend(tar: str) -> str:
    """What to do about a tar that is not what its sidecar says."""
    return f"drop what is broken: {repair(Path(tar).parent.parent)}"


def _open_map(path: str, size: int) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise missing(path) from error
    check_size(path, len(data), size)
    return data
