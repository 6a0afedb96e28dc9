"""One stored member of a family, for all images: where it lies, and its bytes, compared with the sidecar once."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from .errors import DamagedShardError
from .family import Family
from .maps import mend


class Source(Protocol):
    """Where the bytes of tars come from: maps.py, direct.py."""

    def values(self, path: str, size: int, offset: int, length: int) -> np.ndarray:
        """uint8 [length] from byte `offset` of a tar that must have `size` bytes."""
        ...


@dataclass(frozen=True, kw_only=True)
class Location:
    """Where the values of one member of one image lie."""

    path: Path
    offset: int
    """Bytes from the start of the file."""
    length: int
    dtype: str
    shape: tuple[int, ...]
    crc32: int


class Member:
    """One stored member of a family, for all images."""

    def __init__(self, family: Family, name: str) -> None:
        index = family.index
        self._family = family
        self._name = name
        self._places = places = index.members[name]
        self.dtype = np.dtype(places.dtype)
        tars = {number: (str(family.tar(number)), shard.bytes) for number, shard in index.shards.items()}
        self._tar = [tars[number] for number in index.shard.tolist()]
        self._offset, self._length = places.offset.tolist(), places.length.tolist()  # a list's items come quicker
        self._touched = bytearray(len(index.rows))

    def location(self, row: int) -> Location:
        places = self._places
        return Location(
            path=Path(self._tar[row][0]),
            offset=self._offset[row],
            length=self._length[row],
            dtype=places.dtype,
            shape=self.shape(row),
            crc32=int(places.crc32[row]),
        )

    def shape(self, row: int) -> tuple[int, ...]:
        return self._places.shapes[self._places.shape[row]]

    def shapes(self, rows: Sequence[int]) -> set[tuple[int, ...]]:
        """The different shapes of some images' values; of all images', where those are none or alike."""
        if len(self._places.shapes) == 1 or not rows:
            return set(self._places.shapes)
        return {self.shape(row) for row in rows}

    def stored_bytes(self, rows: Sequence[int]) -> int:
        return int(self._places.length[rows].sum())

    def bytes(self, row: int, source: Source) -> np.ndarray:
        """uint8 [n], read-only, good until this thread asks again; DamagedShardError if wrong at first touch."""
        path, size = self._tar[row]
        data = source.values(path, size, self._offset[row], self._length[row])
        if not self._touched[row]:
            if zlib.crc32(data.data) != self._places.crc32[row]:
                raise DamagedShardError(self._damage(row))
            self._touched[row] = True
        return data

    def values(self, row: int, source: Source) -> np.ndarray:
        """The same as what they are."""
        return self.bytes(row, source).view(self.dtype).reshape(self.shape(row))

    def _damage(self, row: int) -> str:
        key = next(key for key, each in self._family.index.rows.items() if each == row)
        tar, _ = self._tar[row]
        return f"{tar}: member {key}.{self._name}.npy fails its checksum; {mend(tar)}"
