"""Random access to the store's columns, by image, straight from its tars into the rows of a batch.

A reader goes by the sidecars alone. The first time a member is touched its checksum is compared; from then on its
values are copied once, by a few threads, and nothing else happens to them. Where they are copied from (`access`):

    mmap    memory maps that stay open: the page cache itself, for what fits into memory
    direct  reads past the page cache (direct.py), for what does not
    auto    direct where the wanted columns of the wanted images are larger than the memory that is free, else mmap

Whatever it is, the samples are the same.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from .choices import require_one_of
from .codec import decode, stored_members, unpack_masks
from .columns import field_of
from .crew import Crew
from .direct import Direct, is_possible
from .errors import DamagedShardError, StoreError
from .maps import Mapped
from .member import Location, Member
from .memory import available_bytes
from .mend import refill, with_inputs
from .quick import QuickFrames

if TYPE_CHECKING:
    from .store import Store

PACKED_MASKS = "masks.bits"
"""The one column of varying length: a compressed frame that `gather` unpacks."""
ACCESS = ("auto", "mmap", "direct")
THREADS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""That copy together; more than a few only share the memory's speed."""
MASKS_SHARE = 16
"""What part of the memory that is available expanded masks may take; eight ranks of a machine then leave half of it."""
DIRECT_THREADS = 4
"""At least so many reads past the page cache are under way together, whatever the number of cores: they mostly wait."""

Layout = dict[str, tuple[tuple[int, ...], np.dtype]]
"""Name of a gathered array -> shape of one image's row, dtype."""


class Reader:
    """Reads the given columns of a store for any images, in any order; may be shared by threads.

    Raises StoreError where a column or an image is not there, DamagedShardError where bytes differ from the sidecar.
    """

    def __init__(
        self,
        store: "Store",
        columns: Sequence[str],
        *,
        access: Literal["auto", "mmap", "direct"] = "auto",
        keys: Iterable[str] | None = None,
        threads: int | None = None,
    ) -> None:
        """keys: the images that will be read, for `auto`; all of them if None. threads: that fill a batch together."""
        require_one_of("access", access, ACCESS)
        if absent := [name for name in columns if name not in store.columns]:
            command = refill(store.path, stages=with_inputs(name.partition(".")[0] for name in absent))
            raise StoreError(f"{store.path} has no column {', '.join(map(repr, absent))}; make it: {command}")
        self.columns = tuple(columns)
        self._side = store.side
        self._families = {name: store.families[name.partition(".")[0]] for name in self.columns}
        self._maps = Mapped()
        self._members: dict[str, dict[str, Member]] = {}
        """Column -> suffix ("", "_scale", "_zero") -> member."""
        for name, family in self._families.items():
            field = field_of(name)
            self._members[name] = {
                member.removeprefix(field.name): Member(family, member)
                for member in stored_members(field, family.codec)
            }
        self.access, self.why = self._chosen(access, keys)
        """How the tars are read, "mmap" or "direct", and why, in words for the user."""
        self._source = Direct() if self.access == "direct" else self._maps
        plain_bytes = (available_bytes() or 0) // MASKS_SHARE if PACKED_MASKS in self.columns else 0
        self._unpacked = QuickFrames(plain_bytes=plain_bytes)
        self._crew = Crew(threads or (max(THREADS, DIRECT_THREADS) if self.access == "direct" else THREADS))

    def gather(
        self,
        keys: Sequence[str],
        out: Mapping[str, np.ndarray] | None = None,
        columns: Iterable[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """The values of every column for the images `keys`, as stored, a row an image: [B, ...].

        A coded column of codec u8 brings two more, `<column>_scale` and `<column>_zero` [B, C]. `masks.bits` comes
        unpacked from its frame: uint8 [B, K, S, S/8]. out: contiguous arrays, as `layout` tells, to be filled and
        returned; what lies in files is copied into their rows and nowhere else. columns: only these of the reader's.
        """
        parts = self._parts(keys, columns)
        batch: dict[str, np.ndarray] = {}
        copied, unpacked = [], []
        for part in parts:
            wanted = (len(keys), *part.shape)
            block = batch[part.name] = np.empty(wanted, part.dtype) if out is None else out[part.name]
            if block.shape != wanted or block.dtype != part.dtype or not block.flags.c_contiguous:
                raise ValueError(f"out[{part.name!r}] must be {part.dtype} {list(wanted)}, contiguous")
            lines = block.reshape(len(keys), -1).view(np.uint8)
            (unpacked if part.name == PACKED_MASKS else copied).append((part, lines))
        for some in (copied, unpacked):  # one after the other: what expands a frame wants the processor's cache

            def fill(place: int, some: list[tuple[_Part, np.ndarray]] = some) -> None:
                for part, lines in some:
                    part.copy(part.rows[place], lines[place])

            if some:
                self._crew.do(fill, len(keys))
        return batch

    def forget(self) -> None:
        """Let go of the expanded masks that are kept for the next time; for those who have them elsewhere now."""
        self._unpacked = QuickFrames()

    def layout(self, keys: Sequence[str], columns: Iterable[str] | None = None) -> Layout:
        """What `gather` would give for these: name -> shape of one image's row, and dtype.

        StoreError if the images have different shapes: no batch can hold them.
        """
        return {part.name: (part.shape, part.dtype) for part in self._parts(keys, columns)}

    def stored_bytes(self, keys: Iterable[str], columns: Iterable[str] | None = None) -> int:
        """Bytes in the tars of the columns of some images, each counted once; those that are not there count nothing.

        columns: only these of the reader's.
        """
        distinct = list(dict.fromkeys(keys))
        total = 0
        for name in self.columns if columns is None else columns:
            known = self._families[name].index.rows
            rows = [known[key] for key in distinct if key in known]
            total += sum(member.stored_bytes(rows) for member in self._members[name].values())
        return total

    def sample(self, key: str, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """The values of `columns` for one image, their codec undone, `masks.bits` as its frame; fresh arrays."""
        values: dict[str, np.ndarray] = {}
        for name in columns:
            (row,) = self._rows(name, [key])
            parts = {suffix: member.values(row, self._maps) for suffix, member in self._members[name].items()}
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

    def _parts(self, keys: Sequence[str], columns: Iterable[str] | None) -> list["_Part"]:
        """The arrays that hold the columns of these images."""
        parts: list[_Part] = []
        for name in self.columns if columns is None else columns:
            rows = self._rows(name, keys)
            if name == PACKED_MASKS:
                shapes = {(*shape, self._side, -(-self._side // 8)) for shape in self._scores.shapes(rows)}
                parts.append(_Part(name, rows, _agreed(name, shapes), np.dtype(np.uint8), self._unpack))
                continue
            for suffix, member in self._members[name].items():
                shape = _agreed(name + suffix, member.shapes(rows))
                parts.append(_Part(name + suffix, rows, shape, member.dtype, self._copier(member)))
        return parts

    def _copier(self, member: "Member") -> Callable[[int, np.ndarray], None]:
        def copy(row: int, line: np.ndarray) -> None:
            line[:] = member.bytes(row, self._source)

        return copy

    def _unpack(self, row: int, line: np.ndarray) -> None:
        """Fill `line`, uint8 [K * S * S/8], from the frame of an image."""
        if self._unpacked.fill(row, line):
            return
        bits = self._members[PACKED_MASKS][""]
        (count,) = self._scores.shape(row)
        try:
            line[:] = unpack_masks(bits.bytes(row, self._source), count, self._side).reshape(-1)
        except DamagedShardError as error:
            raise DamagedShardError(f"{bits.location(row).path}: {error}") from error
        self._unpacked.keep(row, line)

    @cached_property
    def _scores(self) -> "Member":
        """The masks' `iou`: one a mask, so its shape tells how many there are."""
        return Member(self._families[PACKED_MASKS], "iou")

    def _chosen(self, access: str, keys: Iterable[str] | None) -> tuple[str, str]:
        """How the tars are read, and why."""
        if access == "mmap":
            return "mmap", "as asked"
        why = "as asked"
        if access == "auto":
            families = self._families.values()
            wanted = self.stored_bytes(
                {key for family in families for key in family.index.rows} if keys is None else keys
            )
            free = available_bytes()
            if free is None or wanted <= free:
                return "mmap", "they fit into memory"
            why = f"{wanted / 1e9:,.1f} GB are more than the {free / 1e9:,.1f} GB of memory that are free"
        tars = (family.tar(number) for family in self._families.values() for number in family.index.shards)
        tar = next(tars, None)
        if tar is None or not is_possible(str(tar)):
            return "mmap", f"{why}, but the file system has no reads past the page cache"
        return "direct", why

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


@dataclass(frozen=True)
class _Part:
    """One array of a batch, and what fills its rows."""

    name: str
    rows: list[int]
    """Of the images, in the index."""
    shape: tuple[int, ...]
    """Of one image's values."""
    dtype: np.dtype
    copy: Callable[[int, np.ndarray], None]
    """Called with a row of the index and the bytes to fill."""


def _agreed(name: str, shapes: set[tuple[int, ...]]) -> tuple[int, ...]:
    if len(shapes) != 1:
        raise StoreError(f"{name} has the shapes {sorted(shapes)}; images in one batch must agree.")
    return next(iter(shapes))
