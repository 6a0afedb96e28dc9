"""Records to a finished shard: one tar of .npy members, then its sidecar. Same input, same bytes.

The tar is plain USTAR with zeroed times and owners, readable by webdataset, tar and numpy alike. The values of large
members start on a 4096-byte boundary of the file: the .npy header before them is padded with spaces, which every reader
skips. So the tar is also an array container that can be mapped into memory or read past the page cache.
"""

import hashlib
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import numpy as np
from webdataset.writer import TarWriter

from . import codec as codecs
from .atomic import finished_file, output, remove, write_bytes
from .columns import Field
from .sidecar import KEY, Member, Sidecar, shard_name

ALIGNMENT = 4096
"""Bytes; the page of memory and the block of O_DIRECT."""
ALIGNED_FROM = 64 << 10
"""Members of at least so many bytes are aligned; for smaller ones the padding would cost more than it gives."""

_TAR_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a stage made of one image."""

    key: str
    """Twelve digits."""
    values: Mapping[str, np.ndarray]
    """Field -> array; coded fields as float maps [C, H, W], the others in or near their own dtype."""
    image_sha256: str
    """Of the image file's bytes."""


def write_shard(
    folder: Path,
    number: int,
    records: Iterable[Record],
    *,
    fingerprint: str,
    codec: str,
    fields: Sequence[Field],
    skipped: Iterable[tuple[str, str]] = (),
) -> Sidecar:
    """Write shard `number` of the family in `folder` and publish it; what it holds.

    Records come in ascending order of their keys and are written as they come, so only one is in memory; `skipped`
    (key, reason) is read after them, so that it may grow while they are made. StageError names the image and field of
    a value that cannot be stored. Until the sidecar is there, the shard is not; an older one of this number goes first.
    """
    tar_path = Path(folder) / f"{shard_name(number)}.tar"
    sidecar_path = tar_path.with_suffix(".json")
    with finished_file(tar_path) as temporary:
        with output(temporary) as file:
            shard = _Tar(file)
            try:
                for record in records:
                    shard.add(record, codec, fields)
            finally:
                shard.close()
        sidecar = Sidecar(
            shard=number,
            fingerprint=fingerprint,
            bytes=shard.file.size,
            sha256=shard.file.digest.hexdigest(),
            images=shard.images,
            skipped=dict(sorted(skipped)),
            members=tuple(shard.members),
        )
        text = sidecar.to_text().encode("ascii")
        if sidecar_path.exists() and sidecar_path.read_bytes() != text:
            remove(sidecar_path)  # never an old record beside a new tar, whatever happens next
    write_bytes(sidecar_path, text)
    return sidecar


def npy_header(dtype: str, shape: tuple[int, ...], *, start: int, align: bool) -> bytes:
    """A .npy header (format 1.0) for little-endian C-ordered values.

    start: byte of the tar at which the header begins. With `align` the values behind it begin at a multiple of 4096
    bytes of the tar, otherwise of 64 bytes of the member, as numpy writes it.
    """
    description = {"descr": np.dtype(dtype).newbyteorder("<").str, "fortran_order": False, "shape": shape}
    text = "{" + "".join(f"{name!r}: {value!r}, " for name, value in description.items()) + "}"
    least = len(b"\x93NUMPY\x01\x00") + 2 + len(text) + 1
    size = least + (-(start + least) % ALIGNMENT if align else -least % 64)
    body = text.ljust(size - 11) + "\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body.encode("ascii")


class _Tar:
    """A tar being written, and the record of what went into it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = _Hashed(file)
        self.images: dict[str, str] = {}
        self.members: list[Member] = []
        self._position = 0
        self._tar = TarWriter(cast(BinaryIO, self.file), user="", group="", mtime=0, encoder=False)

    def add(self, record: Record, codec: str, fields: Sequence[Field]) -> None:
        if not KEY.fullmatch(record.key):
            raise ValueError(f"key {record.key!r} is not twelve digits")
        last = next(reversed(self.images), "")
        if record.key <= last:
            raise ValueError(f"key {record.key} comes after {last}; the keys of a shard must ascend")
        if set(record.values) != {field.name for field in fields}:
            raise ValueError(f"image {record.key} has fields {sorted(record.values)}")
        parts: dict[str, np.ndarray] = {}
        for field in fields:
            parts |= _stored(field, record.values[field.name], codec, record.key)
        for name in sorted(parts):
            self._add_member(record.key, name, parts[name])
        self.images[record.key] = record.image_sha256

    def _add_member(self, key: str, field: str, array: np.ndarray) -> None:
        start = self._position + _TAR_BLOCK
        dtype = str(array.dtype)
        header = npy_header(dtype, array.shape, start=start, align=array.nbytes >= ALIGNED_FROM)
        values = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
        self._tar.write({"__key__": key, f"{field}.npy": header + values})
        member = Member(
            key=key,
            field=field,
            dtype=dtype,
            shape=array.shape,
            offset=start + len(header),
            length=len(values),
            crc32=zlib.crc32(values),
        )
        self.members.append(member)
        end = member.offset + member.length
        self._position = end + -end % _TAR_BLOCK

    def close(self) -> None:
        self._tar.close()


class _Hashed:
    """A file that knows the digest and the number of the bytes written to it."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)


def _stored(field: Field, value: np.ndarray, codec: str, key: str) -> dict[str, np.ndarray]:
    """The members that hold a field's value, name -> array."""
    name = f"image {key}, {field.name}"
    if field.coded:
        return {field.name + suffix: part for suffix, part in codecs.encode(codec, value, name=name).items()}
    if field.dtype == "f16":
        return {field.name: codecs.to_float16(value, name=name)}
    if field.dtype == "f32":
        codecs.check_finite(np.asarray(value), name=name)
    elif not np.can_cast(np.asarray(value).dtype, np.int64):
        raise ValueError(f"{name}: {np.asarray(value).dtype} values for a field of {field.numpy_dtype}")
    array = np.ascontiguousarray(value, dtype=field.numpy_dtype)
    if field.dtype != "f32" and not np.array_equal(array, value):
        raise ValueError(f"{name}: values do not fit {field.numpy_dtype}")
    return {field.name: array}
