"""Whether a family's bytes are those that its records tell of."""

import mmap
import tarfile
import zlib
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from .errors import DamagedShardError
from .family import Family
from .index import Shard
from .sidecar import Member, parse_sidecar, shard_name


def verify_family(family: Family, shard_of: Mapping[str, int], *, deep: bool) -> list[str]:
    """What is wrong with a family, one line each.

    shard_of: key -> shard for every image of the store. Without `deep` no tar is read.
    """
    problems = list(family.survey.problems)
    for number, shard in sorted(family.survey.shards.items()):
        fault = family.fault(shard)
        if fault is not None:
            problems.append(f"{fault}.")
            continue
        problems += _misplaced(family, shard, shard_of)
        if deep:
            problems += _damage(family, number)
    recorded = {path.stem for path in family.folder.glob("*.json")}
    for tar in sorted(family.folder.glob("[0-9]*.tar")):
        if tar.stem not in recorded:
            problems.append(f"{tar} has no sidecar: it was not finished and is not used.")
    return problems


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
