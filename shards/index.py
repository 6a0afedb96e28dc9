"""All sidecars of a family as one table: which image lies where.

The table is derived from the sidecars and kept as `index.parquet`, with the name, size and checksum of each sidecar it
was made from; when these are no longer the folder's, it is made again. A damaged sidecar is left out and told.
"""

import contextlib
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from .codec import stored_members
from .columns import FAMILIES
from .errors import DamagedShardError, StoreError, WeakmcnError
from .sidecar import Sidecar, parse_sidecar
from .tables import read_table, write_table

INDEX_FILE = "index.parquet"

_SIDECAR = re.compile(r"[0-9]{6}\.json")
_FORMAT = 3
_NOTE, _CHECKSUM = b"weakmcn", b"weakmcn.crc32"
"""Metadata of the table: what it was made from and what is no column; the checksum of it all."""


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A finished shard, without the places of its members."""

    number: int
    bytes: int
    sha256: str
    """Of the whole tar."""
    images: dict[str, str]
    """Key -> SHA-256 of the image file that was encoded."""
    skipped: dict[str, str]
    """Key -> reason."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where one member of every image lies; arrays over the rows of an Index."""

    dtype: str
    offset: np.ndarray
    """int64 [rows], bytes from the start of the tar to the values."""
    length: np.ndarray
    """int64 [rows], bytes."""
    crc32: np.ndarray
    """uint32 [rows]."""
    shapes: list[tuple[int, ...]]
    """The different shapes."""
    shape: np.ndarray
    """int32 [rows], which of `shapes`."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """All good sidecars of a family; a row an image, ascending by shard, then key."""

    rows: dict[str, int]
    """Key -> row."""
    shard: np.ndarray
    """int32 [rows]."""
    members: dict[str, Places]
    """By stored name: "s8", for codec u8 also "s8_scale" and "s8_zero"."""
    shards: dict[int, Shard]
    damaged: dict[Path, str]
    """Sidecars that were left out, and what is wrong with each."""

    @property
    def problems(self) -> list[str]:
        """The same, a line each."""
        return [f"{path}: {fault}" for path, fault in self.damaged.items()]


def load_index(folder: Path, stage: str, codec: str, fingerprint: str) -> Index:
    """The index of the family in `folder`, from index.parquet if that is current, else from the sidecars."""
    paths = sorted(path for path in folder.glob("*.json") if _SIDECAR.fullmatch(path.name))
    texts = {path.name: path.read_bytes() for path in paths}
    made_from = {
        "format": _FORMAT,
        "fingerprint": fingerprint,
        "sidecars": [[name, len(text), zlib.crc32(text)] for name, text in texts.items()],
    }
    with contextlib.suppress(StoreError, KeyError, ValueError, TypeError, RecursionError):
        table = read_table(folder / INDEX_FILE)
        metadata = table.schema.metadata or {}
        note = metadata[_NOTE]
        if metadata[_CHECKSUM] == _checksum(table, note) and json.loads(note)["made_from"] == made_from:
            return _from_table(table, folder)
    sidecars, damaged = _good_sidecars(folder, texts, stage, codec, fingerprint)
    table = _to_table(sidecars, damaged, made_from)
    with contextlib.suppress(OSError, WeakmcnError):  # a store that may only be read is used without one
        write_table(folder / INDEX_FILE, table)
    return _from_table(table, folder)


def _good_sidecars(
    folder: Path, texts: dict[str, bytes], stage: str, codec: str, fingerprint: str
) -> tuple[list[Sidecar], dict[str, str]]:
    """The sidecars that can be believed together, and file name -> what is wrong of the others."""
    good: list[Sidecar] = []
    damaged: dict[str, str] = {}
    seen: dict[str, int] = {}
    fields: dict[str, str] | None = None
    for name, text in texts.items():
        path = folder / name
        try:
            sidecar = parse_sidecar(path, text, family_fingerprint=fingerprint)
        except DamagedShardError as error:
            damaged[name] = str(error).removeprefix(f"{path}: ")
            continue
        found = {member.field: member.dtype for member in sidecar.members[: _width(sidecar)]}
        fault = _fault_of_fields(stage, codec, found)
        again = [key for key in sidecar.keys if key in seen]
        if fault:
            damaged[name] = f"{fault}."
        elif sidecar.images and fields is not None and found != fields:
            damaged[name] = f"has fields {sorted(found)}, the shards before it {sorted(fields)}."
        elif again:
            damaged[name] = f"image {again[0]} is in shard {seen[again[0]]} too."
        else:
            good.append(sidecar)
            seen |= dict.fromkeys(sidecar.keys, sidecar.shard)
            fields = found if sidecar.images else fields
    return good, damaged


def _fault_of_fields(stage: str, codec: str, found: dict[str, str]) -> str | None:
    """What is wrong with the members of an image, stored name -> dtype, for this stage and codec."""
    rest = dict(found)
    for field in FAMILIES[stage]:
        parts = stored_members(field, codec)
        present = {name: rest.pop(name) for name in parts if name in rest}
        if present and present != parts:
            return f"field {field.name} is stored as {present}, codec {codec} stores {parts}"
    return f"{sorted(rest)[0]} is not a field of {stage}" if rest else None


def _width(sidecar: Sidecar) -> int:
    return len(sidecar.members) // len(sidecar.images) if sidecar.images else 0


def _to_table(sidecars: list[Sidecar], damaged: dict[str, str], made_from: dict[str, Any]) -> pa.Table:
    """One row an image: key, shard, sha256 of the image, and a struct for each member."""
    columns: dict[str, pa.Array] = {
        "key": pa.array([key for sidecar in sidecars for key in sidecar.images], pa.string()),
        "shard": pa.array(
            [number for sidecar in sidecars for number in [sidecar.shard] * len(sidecar.images)], pa.int32()
        ),
        "image": pa.array([digest for sidecar in sidecars for digest in sidecar.images.values()], pa.string()),
    }
    first = next((sidecar for sidecar in sidecars if sidecar.images), None)
    dtypes = {member.field: member.dtype for member in first.members[: _width(first)]} if first else {}
    for place, field in enumerate(dtypes):
        members = [member for sidecar in sidecars for member in sidecar.members[place :: _width(sidecar) or 1]]
        columns[f"member.{field}"] = pa.StructArray.from_arrays(
            [
                pa.array([member.offset for member in members], pa.int64()),
                pa.array([member.length for member in members], pa.int64()),
                pa.array([member.crc32 for member in members], pa.uint32()),
                pa.array(["x".join(map(str, member.shape)) for member in members], pa.string()),
            ],
            names=["offset", "length", "crc32", "shape"],
        )
    note = {
        "made_from": made_from,
        "dtypes": dtypes,
        "shards": [[one.shard, one.bytes, one.sha256, one.skipped] for one in sidecars],
        "damaged": damaged,
    }
    table, text = pa.table(columns), json.dumps(note, sort_keys=True).encode("ascii")
    return table.replace_schema_metadata({_NOTE: text, _CHECKSUM: _checksum(table, text)})


def _checksum(table: pa.Table, note: bytes) -> bytes:
    """CRC-32 of names, types, values and note. Parquet's own, of its pages, leave out the footer that places them."""
    crc32 = zlib.crc32(note)
    for field, values in zip(table.flatten().schema, table.flatten().columns, strict=True):
        crc32 = zlib.crc32(f"{field.name} {field.type}".encode(), crc32)
        is_text = pa.types.is_string(field.type)
        data = "\n".join(map(str, values.to_pylist())).encode() if is_text else values.to_numpy().tobytes()
        crc32 = zlib.crc32(data, crc32)
    return b"%08x" % crc32


def _from_table(table: pa.Table, folder: Path) -> Index:
    note = json.loads(table.schema.metadata[_NOTE])
    keys = table["key"].to_pylist()
    shard = table["shard"].to_numpy()
    images: dict[int, dict[str, str]] = {number: {} for number, *_ in note["shards"]}
    for number, key, digest in zip(shard.tolist(), keys, table["image"].to_pylist(), strict=True):
        images[number][key] = digest
    return Index(
        rows={key: row for row, key in enumerate(keys)},
        shard=shard,
        members={field: _places(dtype, table[f"member.{field}"]) for field, dtype in note["dtypes"].items()},
        shards={
            number: Shard(number=number, bytes=size, sha256=sha256, images=images[number], skipped=skipped)
            for number, size, sha256, skipped in note["shards"]
        },
        damaged={folder / name: fault for name, fault in note["damaged"].items()},
    )


def _places(dtype: str, column: pa.ChunkedArray) -> Places:
    struct = column.combine_chunks()
    if isinstance(struct, pa.ChunkedArray):
        struct = struct.chunk(0)
    shapes = struct.field("shape").dictionary_encode()
    return Places(
        dtype=dtype,
        offset=struct.field("offset").to_numpy(),
        length=struct.field("length").to_numpy(),
        crc32=struct.field("crc32").to_numpy(),
        shapes=[tuple(int(size) for size in text.split("x") if size) for text in shapes.dictionary.to_pylist()],
        shape=shapes.indices.to_numpy(),
    )
