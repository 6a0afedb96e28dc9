"""Whether a family's bytes are those that its records tell of, and which files are to go where they are not."""

import mmap
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from .atomic import TEMPORARY
from .errors import DamagedShardError, StoreError
from .family import STAGE_FILE, Family
from .fingerprint import file_sha256
from .index import INDEX_FILE, Shard
from .records import read_json
from .sidecar import Member, parse_sidecar, shard_name
from .tables import read_table

_SHARD_FILE = re.compile(r"[0-9]{6}\.(tar|json)")

Told = Callable[[int], None]
"""Called with a number of bytes that have been looked at."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something that is wrong, and what has to be taken away for it to be made again."""

    fault: str
    """One line, beginning with the file."""
    files: tuple[Path, ...]
    """Records first, then what they are records of."""


def examine_family(
    family: Family, shard_of: Mapping[str, int], *, deep: bool, told: Told = lambda size: None
) -> Iterator[Damage]:
    """What is wrong with a family, one shard after the other, then files that are none of its own.

    shard_of: key -> shard for every image of the store. Without `deep` no tar is read.
    """
    survey = family.survey
    for path, fault in survey.damaged.items():
        yield Damage(fault=f"{path}: {fault}", files=(path, path.with_suffix(".tar")))
    for number, shard in sorted(survey.shards.items()):
        files = (family.tar(number).with_suffix(".json"), family.tar(number))
        for fault in _faults(family, shard, shard_of, deep=deep):
            yield Damage(fault=fault, files=files)
        told(shard.bytes)
    yield from _strays(family.folder)


def examine_statistics(store: Path, file: str) -> Iterator[Damage]:
    """What is wrong with the detector's statistics that a family was made with (its `recorded.statistics_file`).

    Statistics that are not there at all are missing, as a shard may be, and not broken.
    """
    path = store / file
    record, images = path.with_suffix(".json"), path.with_suffix(".parquet")
    try:
        whole = read_json(record)["sha256"] == file_sha256(path)
        fault = None if whole else f"{path} has another SHA-256 than its record says."
    except FileNotFoundError as error:
        fault = f"{error.filename} is missing." if record.exists() or path.exists() else None
    except (ValueError, KeyError, TypeError):
        fault = f"{record} is damaged."
    if fault is not None:
        yield Damage(fault=fault, files=(record, path))
    try:
        read_table(images)
    except DamagedShardError:
        yield Damage(fault=f"{images} is damaged.", files=(images,))
    except StoreError:  # not there, and derived where it is needed
        return


def _faults(family: Family, shard: Shard, shard_of: Mapping[str, int], *, deep: bool) -> list[str]:
    fault = family.fault(shard)
    if fault is not None:
        return [f"{fault}."]
    return [*_misplaced(family, shard, shard_of), *(_damage(family, shard.number) if deep else ())]


def _strays(folder: Path) -> Iterator[Damage]:
    """Files that no reader uses: tars that were not finished, and what others have put there."""
    for path in sorted(folder.iterdir()):
        is_shard = _SHARD_FILE.fullmatch(path.name) is not None
        if is_shard and path.is_dir():
            yield Damage(fault=f"{path} is a folder, where a shard should be.", files=(path,))
        elif is_shard and path.suffix == ".tar" and not path.with_suffix(".json").exists():
            yield Damage(fault=f"{path} has no sidecar: it was not finished and is not used.", files=(path,))
        elif path.is_file() and not is_shard and not _is_own(path.name):
            yield Damage(fault=f"{path} is no file of a store.", files=(path,))


def _is_own(name: str) -> bool:
    """Hidden files are a system's, or temporaries, which have a lock of their own."""
    return name in (STAGE_FILE, INDEX_FILE) or name.startswith((TEMPORARY, "."))


def _misplaced(family: Family, shard: Shard, shard_of: Mapping[str, int]) -> list[str]:
    tar = family.tar(shard.number)
    problems = []
    for key in [*shard.images, *shard.skipped]:
        if key not in shard_of:
            problems.append(f"{tar}: image {key} is not in images.parquet.")
        elif shard_of[key] != shard.number:
            problems.append(f"{tar}: image {key} belongs to shard {shard_of[key]}.")
    return problems


def _damage(family: Family, number: int) -> list[str]:
    """Members whose bytes differ from the sidecar; where none does, whether the rest of the tar is as it should be."""
    tar = family.tar(number)
    sidecar_path = tar.with_name(f"{shard_name(number)}.json")
    try:
        sidecar = parse_sidecar(sidecar_path, sidecar_path.read_bytes(), family_fingerprint=family.fingerprint)
    except DamagedShardError as error:
        return [str(error)]
    if family.fault(family.survey.shards[number], deep=True) is None:
        return _wrong_headers(tar, sidecar.members)
    with open(tar, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        flipped = [
            f"{tar}: member {member.name} fails its checksum."
            for member in sidecar.members
            if zlib.crc32(data[member.offset : member.offset + member.length]) != member.crc32
        ]
    return flipped or [f"{tar} has another SHA-256 than its sidecar says; its members' values are whole."]


def _wrong_headers(tar: Path, members: tuple[Member, ...]) -> list[str]:
    """Members that another reader, going by tar and .npy headers, would find elsewhere or otherwise."""
    problems = []
    with tarfile.open(tar, "r:") as archive, open(tar, "rb") as file:
        entries = archive.getmembers()
        if [entry.name for entry in entries] != [member.name for member in members]:
            return [f"{tar} has other members than its sidecar says."]
        for entry, member in zip(entries, members, strict=True):
            file.seek(entry.offset_data)
            header = BytesIO(file.read(member.offset - entry.offset_data))
            found = (*_read_npy_header(header), entry.offset_data + entry.size)
            if found != (member.shape, member.dtype, member.offset + member.length):
                problems.append(f"{tar}: the .npy header of {member.name} differs from the sidecar.")
    return problems


def _read_npy_header(header: BytesIO) -> tuple[tuple[int, ...] | None, str | None]:
    """Shape and dtype in C order, None where the bytes are not exactly one .npy header."""
    try:
        npy.read_magic(header)
        shape, fortran_order, dtype = npy.read_array_header_1_0(header)
    except ValueError:
        return None, None
    whole = not header.read() and not fortran_order
    return (shape, str(np.dtype(dtype))) if whole else (None, None)
