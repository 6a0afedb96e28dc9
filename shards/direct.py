"""Parts of files as bytes, past the page cache (O_DIRECT): for what is larger than memory.

Such a read has no second copy in the kernel and evicts nothing, and, unlike a page fault, it asks for all of a member
at once. It begins and ends on blocks of 4096 bytes, where large members begin (writer.py). Small members come through
the page cache, where all those of a store find room, without the neighbours that the kernel would read along.
"""

import mmap
import os
import threading
from collections import OrderedDict

import numpy as np

from .errors import DamagedShardError, WeakmcnError
from .maps import check_size, mend, missing, open_files

BLOCK = 4096
"""Bytes; offset, length and address of a direct read are multiples of it."""
DIRECT_FROM = 64 << 10
"""Bytes from which on a part is read past the page cache; members of that size are aligned."""

_O_DIRECT = getattr(os, "O_DIRECT", None)
"""None where the system has no such thing."""


class Direct:
    """Reads parts of tars past the page cache; may be shared by threads."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, _File] = OrderedDict()
        self._capacity = max(8, open_files() // 4)  # two descriptors a file
        self._lock = threading.Lock()
        self._own = threading.local()

    def values(self, path: str, size: int, offset: int, length: int) -> np.ndarray:
        """uint8 [length] from byte `offset` of a tar that must have `size` bytes.

        The values are good until the same thread asks again. DamagedShardError if the tar is missing or has another
        size, WeakmcnError if it cannot be read.
        """
        file = self._file(path, size)
        if length < DIRECT_FROM:
            start, end, descriptor = offset, offset + length, file.cached
        else:
            start, end, descriptor = offset - offset % BLOCK, _up(offset + length), file.direct
        room = self._room(end - start)
        try:
            has = _read(descriptor, room[: end - start], start)
        except OSError as error:
            raise WeakmcnError(f"{path}: could not be read: {error.strerror}; mend the disk.") from error
        if has < offset + length - start:
            raise DamagedShardError(f"{path} ends {offset + length - start - has:,} bytes early; {mend(path)}")
        return room[offset - start : offset - start + length]

    def _file(self, path: str, size: int) -> "_File":
        with self._lock:
            file = self._files.get(path)
            if file is None:
                file = self._files[path] = _File(path, size)
                if len(self._files) > self._capacity:
                    self._files.popitem(last=False)  # closed when its last reader is done
            else:
                self._files.move_to_end(path)
            return file

    def _room(self, size: int) -> np.ndarray:
        """Memory of this thread's own, aligned, that grows to what is asked for."""
        room = getattr(self._own, "room", None)
        if room is None or len(room) < size:
            room = self._own.room = np.frombuffer(mmap.mmap(-1, _up(size)), np.uint8)
        return room


class _File:
    """A tar opened twice, past the page cache and through it; closed when nobody holds it."""

    def __init__(self, path: str, size: int) -> None:
        self.direct = self.cached = -1
        assert _O_DIRECT is not None
        try:
            self.direct = os.open(path, os.O_RDONLY | _O_DIRECT)
            self.cached = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            raise missing(path) from None
        check_size(path, os.fstat(self.cached).st_size, size)
        os.posix_fadvise(self.cached, 0, 0, os.POSIX_FADV_RANDOM)

    def __del__(self) -> None:
        for descriptor in (self.direct, self.cached):
            if descriptor >= 0:
                os.close(descriptor)


def is_possible(path: str) -> bool:
    """Whether this file can be read past the page cache: not every system and file system can."""
    if _O_DIRECT is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | _O_DIRECT)
    except OSError:
        return False
    try:
        os.preadv(descriptor, [mmap.mmap(-1, BLOCK)], 0)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


def _read(descriptor: int, room: np.ndarray, offset: int) -> int:
    """Fill `room` from byte `offset`; how much there was, less than asked for only where the file ends."""
    done = 0
    while done < len(room):
        got = os.preadv(descriptor, [room[done:].data], offset + done)
        done += got
        if got == 0 or (got % BLOCK and done < len(room)):  # a direct read ends within a block only at the file's end
            break
    return done


def _up(size: int) -> int:
    return size + -size % BLOCK
