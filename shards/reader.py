"""Random access to the store's columns, by image, straight from memory-mapped tars.

A reader goes by the sidecars alone. The first time a member is touched its checksum is compared; from then on its
values are copied from the map into the batch and nothing else happens to them.
"""

import mmap
import resource
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .codec import decode, stored_members, unpack_masks
from .columns import field_of
from .errors import DamagedShardError, StoreError
from .family import Family
from .mend import refill, repair, with_inputs

if TYPE_CHECKING:
    from .store import Store

PACKED_MASKS = "masks.bits"
"""The one column of varying length: a compressed frame that `gather` unpacks."""


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


class Reader:
    """Reads the given columns of a store for any images, in any order; may be shared by threads.

    Raises StoreError where a column or an image is not there, DamagedShardError where bytes differ from the sidecar.
    """

    def __init__(self, store: "Store", columns: Sequence[str]) -> None:
        if absent := [name for name in columns if name not in store.columns]:
            command = refill(store.path, stages=with_inputs(name.partition(".")[0] for name in absent))
            raise StoreError(f"{store.path} has no column {', '.join(map(repr, absent))}; make it: {command}")
        self.columns = tuple(columns)
        self._side = store.side
        self._families = {name: store.families[name.partition(".")[0]] for name in self.columns}
        maps = _Maps()
        self._members: dict[str, dict[str, _Member]] = {}
        """Column -> suffix ("", "_scale", "_zero") -> member."""
        for name, family in self._families.items():
            field = field_of(name)
            self._members[name] = {
                member.removeprefix(field.name): _Member(family, member, maps)
                for member in stored_members(field, family.codec)
            }

    def gather(self, keys: Sequence[str], out: Mapping[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        """The values of every column for the images `keys`, as stored, stacked: [B, ...].

        A coded column of codec u8 brings two more, `<column>_scale` and `<column>_zero` [B, C]. `masks.bits` comes
        unpacked from its frame: uint8 [B, K, S, S/8]. With `out`, arrays of the right shape to be filled and returned.
        """
        batch: dict[str, np.ndarray] = {}
        for name in self.columns:
            rows = self._rows(name, keys)
            if name == PACKED_MASKS:
                batch[name] = _stack(name, [self._masks(row) for row in rows], out)
                continue
            for suffix, member in self._members[name].items():
                batch[name + suffix] = _stack(name + suffix, [member.view(row) for row in rows], out)
        return batch

    def sample(self, key: str, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """The values of `columns` for one image, their codec undone, `masks.bits` as its frame; fresh arrays."""
        values: dict[str, np.ndarray] = {}
        for name in columns:
            (row,) = self._rows(name, [key])
            parts = {suffix: member.view(row) for suffix, member in self._members[name].items()}
            decoded = decode(self._families[name].codec, parts) if field_of(name).coded else parts[""]
            values[name] = decoded.copy()
        return values

    def decode(self, column: str, batch: Mapping[str, np.ndarray]) -> np.ndarray:
        """A column of a gathered batch as floats: float16 for f16, float32 for the other codecs; else as it is."""
        if not field_of(column).coded:
            return batch[column]
        return decode(
            self._families[column].codec, {suffix: batch[column + suffix] for suffix in self._members[column]}
        )

    def where(self, key: str) -> dict[str, Location]:
        """Member ("detect.s8", "detect.s8_scale") -> where its values lie for the image `key`."""
        found: dict[str, Location] = {}
        for name in self.columns:
            (row,) = self._rows(name, [key])
            found |= {name + suffix: member.location(row) for suffix, member in self._members[name].items()}
        return found

    def _rows(self, column: str, keys: Sequence[str]) -> list[int]:
        """Where the images are in the index of the column's family."""
        family = self._families[column]
        rows = family.index.rows
        try:
            return [rows[key] for key in keys]
        except KeyError as error:
            key = error.args[0]
        skipped = next((shard.skipped[key] for shard in family.index.shards.values() if key in shard.skipped), None)
        fact = f"was skipped: {skipped}" if skipped else f"is not in it; make it: {refill(family.folder.parent)}"
        raise StoreError(f"{family.folder}: image {key} {fact}")

    def _masks(self, row: int) -> np.ndarray:
        """uint8 [K, S, S/8]; K is the length of the family's own `iou`."""
        bits = self._members[PACKED_MASKS][""]
        scores = self._families[PACKED_MASKS].index.members["iou"]
        count = scores.shapes[scores.shape[row]][0]
        try:
            return unpack_masks(bits.view(row), count, self._side)
        except DamagedShardError as error:
            raise DamagedShardError(f"{bits.location(row).path}: {error}") from error


class _Member:
    """One stored member of a family, for all images."""

    def __init__(self, family: Family, name: str, maps: "_Maps") -> None:
        index = family.index
        self._family = family
        self._name = name
        self._maps = maps
        self._places = index.members[name]
        self._shard = index.shard
        self._tars = {number: (family.tar(number), shard.bytes) for number, shard in index.shards.items()}
        self._touched = np.zeros(len(index.rows), dtype=bool)

    def location(self, row: int) -> Location:
        places = self._places
        return Location(
            path=self._tars[int(self._shard[row])][0],
            offset=int(places.offset[row]),
            length=int(places.length[row]),
            dtype=places.dtype,
            shape=places.shapes[places.shape[row]],
            crc32=int(places.crc32[row]),
        )

    def view(self, row: int) -> np.ndarray:
        """The stored values in the map, read-only; DamagedShardError if their checksum is wrong at first touch."""
        places = self._places
        data = self._maps.get(*self._tars[int(self._shard[row])])
        shape = places.shapes[places.shape[row]]
        offset, length = int(places.offset[row]), int(places.length[row])
        if not self._touched[row]:
            if zlib.crc32(memoryview(data)[offset : offset + length]) != places.crc32[row]:
                raise DamagedShardError(self._damage(row))
            self._touched[row] = True
        return np.ndarray(shape, places.dtype, buffer=data, offset=offset)

    def _damage(self, row: int) -> str:
        key = next(key for key, each in self._family.index.rows.items() if each == row)
        tar = self.location(row).path
        return f"{tar}: member {key}.{self._name}.npy fails its checksum; {_mend(tar)}"


class _Maps:
    """Memory maps of tars, the most recently used kept open, within half of the files a process may open."""

    def __init__(self) -> None:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._capacity = max(16, min(soft, 1 << 16) // 2)
        self._maps: OrderedDict[Path, mmap.mmap] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, size: int) -> mmap.mmap:
        """The map of a tar that must have `size` bytes; DamagedShardError if it is missing or has another size."""
        with self._lock:
            data = self._maps.get(path)
            if data is None:
                data = self._maps[path] = _open_map(path, size)
                if len(self._maps) > self._capacity:
                    self._maps.popitem(last=False)  # closed when its last view is gone
            else:
                self._maps.move_to_end(path)
            return data


def _open_map(path: Path, size: int) -> mmap.mmap:
    try:
        with open(path, "rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (FileNotFoundError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise DamagedShardError(f"{path} is missing or empty; {_mend(path)}") from error
    if len(data) != size:
        raise DamagedShardError(f"{path} has {len(data):,} bytes, its sidecar says {size:,}; {_mend(path)}")
    return data


def _mend(tar: Path) -> str:
    return f"drop what is broken: {repair(tar.parent.parent)}"


def _stack(name: str, values: list[np.ndarray], out: Mapping[str, np.ndarray] | None) -> np.ndarray:
    shapes = {value.shape for value in values}
    if len(shapes) > 1:
        raise StoreError(f"{name} has the shapes {sorted(shapes)}; images in one batch must agree.")
    return np.stack(values, out=None if out is None else out[name])
