"""The sidecar of a shard: the record that the shard is finished, and the truth about its bytes.

`000017.json` stands beside `000017.tar`, is published after it, and holds the tar's size and digest, the images' keys
and content digests, what was skipped and why, and for every member its place in the tar. A reader believes it and
nothing else; so everything in it is checked for type and bounds here, before it is used.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import DamagedShardError
from .fingerprint import canonical_json, fingerprint

KEY = re.compile(r"[0-9]{12}")
"""An image's key. Digits only: a dot would end the key for readers of WebDataset, a slash would leave the folder."""

DTYPE_BYTES = {"float16": 2, "float32": 4, "int32": 4, "uint8": 1, "uint16": 2}
"""All dtypes that a member may have; little-endian in the tar."""

_HEX64 = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"([0-9]{12})\.([a-z0-9_]+)\.npy")
_MAX_BYTES = 64 << 20
_TAR_BLOCK = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One array of one image, and where its values lie in the tar."""

    key: str
    field: str
    """As stored: a coded field may have several members, "s8", "s8_scale", "s8_zero"."""
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Bytes from the start of the tar to the first value, behind the .npy header."""
    length: int
    """Bytes of the values."""
    crc32: int
    """Of the values."""

    @property
    def name(self) -> str:
        return f"{self.key}.{self.field}.npy"


@dataclass(frozen=True, kw_only=True)
class Sidecar:
    """What a finished shard holds."""

    shard: int
    fingerprint: str
    """Of the family that it belongs to."""
    bytes: int
    sha256: str
    """Of the whole tar."""
    images: dict[str, str]
    """Key -> SHA-256 of the image file, ascending; the shard's keys are exactly these."""
    skipped: dict[str, str]
    """Key -> reason, of images that belong here and could not be encoded."""
    members: tuple[Member, ...]
    """In the order of the tar: keys ascending, fields ascending within a key."""

    @property
    def keys(self) -> list[str]:
        return list(self.images)

    def to_text(self) -> str:
        """The file's content; the same sidecar gives the same text."""
        content: dict[str, Any] = {
            "shard": self.shard,
            "fingerprint": self.fingerprint,
            "bytes": self.bytes,
            "sha256": self.sha256,
            "keys": self.keys,
            "images": self.images,
            "skipped": [{"key": key, "reason": reason} for key, reason in self.skipped.items()],
            "members": [
                {
                    "name": member.name,
                    "dtype": member.dtype,
                    "shape": list(member.shape),
                    "offset": member.offset,
                    "length": member.length,
                    "crc32": member.crc32,
                }
                for member in self.members
            ],
        }
        return canonical_json(content | {"checksum": fingerprint(content)}) + "\n"


def shard_name(number: int) -> str:
    """A shard's file name without suffix: 17 -> "000017"."""
    return f"{number:06d}"


def parse_sidecar(path: Path, text: bytes, *, family_fingerprint: str) -> Sidecar:
    """The sidecar in `text`, checked; DamagedShardError names `path` and what is wrong with it."""
    try:
        _require(len(text) <= _MAX_BYTES, "it is larger than any sidecar")
        content = json.loads(text)
        _require(isinstance(content, dict), "it is no JSON object")
        checksum = content.pop("checksum", None)
        _require(checksum == fingerprint(content), "its checksum does not match its content")
        sidecar = _build(content)
        _require(shard_name(sidecar.shard) == path.stem, f"it says it is shard {sidecar.shard}")
        _require(sidecar.fingerprint == family_fingerprint, "it belongs to a family with another fingerprint")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        detail = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DamagedShardError(f"{path}: not a valid sidecar: {detail}.") from error
    return sidecar


def _build(content: Mapping[str, Any]) -> Sidecar:
    size = _natural(content["bytes"], "bytes")
    images = content["images"]
    _require(isinstance(images, dict) and list(images) == content["keys"], "keys and images differ")
    _require(list(images) == sorted(images), "keys are not ascending")
    for key, digest in images.items():
        _require(KEY.fullmatch(key) is not None, f"{key!r} is not a key of twelve digits")
        _require(isinstance(digest, str) and _HEX64.fullmatch(digest) is not None, f"no SHA-256 of image {key}")
    skipped = {_text(skip["key"]): _text(skip["reason"]) for skip in content["skipped"]}
    for key in skipped:
        _require(KEY.fullmatch(key) is not None, f"{key!r} is not a key of twelve digits")
        _require(key not in images, f"image {key} is both held and skipped")
    members = tuple(_member(entry) for entry in content["members"])
    _check_places(members, size)
    _check_same_fields(members, list(images))
    return Sidecar(
        shard=_natural(content["shard"], "shard"),
        fingerprint=_digest(content["fingerprint"]),
        bytes=size,
        sha256=_digest(content["sha256"]),
        images=images,
        skipped=skipped,
        members=members,
    )


def _member(entry: Mapping[str, Any]) -> Member:
    """One member. A store has hundreds of thousands: a message is only made once something is wrong."""
    match = _NAME.fullmatch(entry["name"])
    shape, length, offset, crc32 = entry["shape"], entry["length"], entry["offset"], entry["crc32"]
    numbers = [length, offset, crc32, *shape]
    if match is None:
        raise ValueError(f"{entry['name']!r} is not <key>.<field>.npy")
    if type(shape) is not list or len(shape) > 8 or {type(number) for number in numbers} != {int} or min(numbers) < 0:
        raise ValueError(f"the shape or place of member {match[0]} is not made of natural numbers")
    size = DTYPE_BYTES.get(entry["dtype"])
    if size is None:
        raise ValueError(f"member {match[0]} has dtype {entry['dtype']!r}")
    if math.prod(shape) * size != length:
        raise ValueError(f"member {match[0]} of shape {shape} and dtype {entry['dtype']} has {length} bytes")
    if crc32 >= 1 << 32:
        raise ValueError(f"member {match[0]} has no valid crc32")
    return Member(
        key=match[1],
        field=match[2],
        dtype=entry["dtype"],
        shape=tuple(shape),
        offset=offset,
        length=length,
        crc32=crc32,
    )


def _check_places(members: tuple[Member, ...], size: int) -> None:
    """Members lie inside the tar, one behind the other, each behind a tar header of its own."""
    end = 0
    for member in members:
        if member.offset < end + _TAR_BLOCK:
            raise ValueError(f"member {member.name} overlaps the one before")
        end = member.offset + member.length
    _require(end <= size, f"its members end at byte {end}, the tar has {size}")


def _check_same_fields(members: tuple[Member, ...], keys: list[str]) -> None:
    """Every key has the same fields, in the same order, with the same dtypes."""
    width, spare = divmod(len(members), len(keys)) if keys else (0, len(members))
    _require(not spare, f"{len(members)} members for {len(keys)} images")
    expected = [(member.field, member.dtype) for member in members[:width]]
    _require(expected == sorted(set(expected)), "the fields of an image are not ascending")
    for position, key in enumerate(keys):
        block = members[position * width : (position + 1) * width]
        _require(all(member.key == key for member in block), f"the members of image {key} are not together")
        found = [(member.field, member.dtype) for member in block]
        _require(found == expected, f"image {key} has other fields than the first image")


def _require(condition: bool, fault: str) -> None:
    if not condition:
        raise ValueError(fault)


def _natural(value: Any, name: str) -> int:
    _require(type(value) is int and 0 <= value < 1 << 62, f"{name} is {value!r}, not a natural number")
    return value


def _text(value: Any) -> str:
    _require(isinstance(value, str), f"{value!r} is not text")
    return value


def _digest(value: Any) -> str:
    _require(isinstance(value, str) and _HEX64.fullmatch(value) is not None, f"{value!r} is not a SHA-256")
    return value
