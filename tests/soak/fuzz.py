"""Damage of every kind to the files of a store, and an epoch read from it: the right arrays, or a refusal.

A mutation changes one file at random (or exchanges two). The reader may refuse the store, which is the rule, or deliver
every image bit for bit as it was written, where what was changed does not matter (padding, a derived index). It must
not deliver other values or fewer images, and must not fail in any other way.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from weakmcn.shards.codec import pack_masks
from weakmcn.shards.columns import FAMILIES, column
from weakmcn.shards.errors import WeakmcnError
from weakmcn.shards.family import Family
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import IMAGES_FILE, Store, create_store, set_current, write_stage_json
from weakmcn.shards.tables import IMAGES, write_table
from weakmcn.shards.writer import Record, write_shard

SIDE, CANDIDATES, SHARDS, PER_SHARD = 64, 3, 2, 3
KEYS = [f"{7 * number:012d}" for number in range(1, SHARDS * PER_SHARD + 1)]
CODECS = {"detect": "u8", "sam": "f16", "masks": "f16"}
_RUN_BYTES = 700
"""Longest run of bytes that is changed."""
_ENOUGH_FAULTS = 20
"""Where nothing holds, it need not be told thousands of times."""

Bytes = bytearray
Rng = np.random.Generator
T = TypeVar("T")


@dataclass(kw_only=True)
class Fuzzed:
    """What became of the mutations."""

    mutations: int = 0
    refused: int = 0
    equal: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    """Refusals by kind of mutation."""
    faults: list[str] = field(default_factory=list)
    """Wrong arrays, missing images, foreign exceptions; a line each."""


class Victim:
    """A store to be damaged: written once, put right after every mutation."""

    def __init__(self, path: Path) -> None:
        self.store = Store.open(_make_store(path))
        self.expected = {stage: self.read_epoch(stage) for stage in CODECS}  # which also writes the derived indices
        self.files = {file: file.read_bytes() for file in sorted(path.rglob("*")) if file.parent != path}

    def read_epoch(self, stage: str) -> dict[str, np.ndarray]:
        """Every column of a stage for every image, through the doors that training uses."""
        family = Family.open(self.store.families[stage].folder)
        store = Store(self.store.path, side=SIDE, images=self.store.images, families={stage: family}, unusable={})
        store.require([stage], store.keys)
        return Reader(store, [column(stage, each.name) for each in FAMILIES[stage]]).gather(store.keys)

    def restore(self) -> None:
        for file, data in self.files.items():
            if not file.exists() or file.read_bytes() != data:
                file.write_bytes(data)

    def named(self, stage: str, suffix: str) -> list[Path]:
        """The files of a family whose name ends like this."""
        folder = self.store.families[stage].folder
        return [file for file in self.files if file.parent == folder and file.name.endswith(suffix)]


def fuzz(victim: Victim, *, mutations: int, seed: int) -> Fuzzed:
    """Mutate a family, read an epoch of it, put it right; so many times."""
    rng = np.random.default_rng(seed)
    done = Fuzzed()
    kinds = {**{kind: _editing(kind) for kind in _EDITS}, **_EXCHANGES}
    for _ in range(mutations):
        kind = _one_of(list(kinds), rng)
        stage = _one_of(list(CODECS), rng)
        told = f"{stage}: {kind} {kinds[kind](victim, stage, rng)}"
        done.mutations += 1
        try:
            found = victim.read_epoch(stage)
        except WeakmcnError:
            done.refused += 1
            done.kinds[kind] += 1
        except Exception as error:
            done.faults.append(f"{told}: {type(error).__name__}: {error}")
        else:
            done.equal += 1
            done.faults += [f"{told}: {wrong}" for wrong in _differences(found, victim.expected[stage])]
        victim.restore()
        if len(done.faults) >= _ENOUGH_FAULTS:
            break
    return done


def _differences(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> list[str]:
    if found.keys() != expected.keys():
        return [f"columns {sorted(found)}"]
    wrong = []
    for name, values in expected.items():
        if len(found[name]) != len(values):
            wrong.append(f"{len(found[name])} images of {name}")
        elif found[name].dtype != values.dtype or found[name].tobytes() != values.tobytes():
            wrong.append(f"wrong values of {name}")
    return wrong


# Changes to the bytes of one file.


def _flip(data: Bytes, at: int, length: int, rng: Rng) -> None:
    data[at] ^= 1 << int(rng.integers(8))


def _overwrite(data: Bytes, at: int, length: int, rng: Rng) -> None:
    data[at : at + length] = rng.bytes(len(data[at : at + length]))


def _zero(data: Bytes, at: int, length: int, rng: Rng) -> None:
    data[at : at + length] = bytes(len(data[at : at + length]))


def _cut(data: Bytes, at: int, length: int, rng: Rng) -> None:
    del data[at:]


def _delete(data: Bytes, at: int, length: int, rng: Rng) -> None:
    del data[at : at + length]


def _insert(data: Bytes, at: int, length: int, rng: Rng) -> None:
    data[at:at] = rng.bytes(length)


def _append(data: Bytes, at: int, length: int, rng: Rng) -> None:
    data += data[at:] if length % 2 else bytes(length)


def _swap(data: Bytes, at: int, length: int, rng: Rng) -> None:
    """Exchange two runs of the same length."""
    length = min(length, len(data) // 2)
    first, second = sorted(int(each) for each in rng.integers(len(data) - length + 1, size=2))
    if second - first < length:
        return
    one, other = data[first : first + length], data[second : second + length]
    data[first : first + length], data[second : second + length] = other, one


_EDITS: dict[str, Callable[[Bytes, int, int, Rng], None]] = {
    "flip": _flip,
    "overwrite": _overwrite,
    "zero": _zero,
    "cut": _cut,
    "delete": _delete,
    "insert": _insert,
    "append": _append,
    "swap": _swap,
}
_SUFFIXES = (".tar", ".tar", ".tar", ".json", ".json", "index.parquet")
"""Which files are edited, the likelier the more often named; stage.json is one of the .json."""


Mutation = Callable[[Victim, str, Rng], str]
"""Damages the family of a stage; says where."""


def _editing(kind: str) -> Mutation:
    def edit(victim: Victim, stage: str, rng: Rng) -> str:
        file = _one_of(victim.named(stage, _one_of(_SUFFIXES, rng)), rng)
        data = Bytes(victim.files[file])
        at, length = int(rng.integers(len(data))), int(rng.integers(1, _RUN_BYTES))
        _EDITS[kind](data, at, length, rng)
        file.write_bytes(data)
        return f"of {file.name} at {at}, {length} bytes"

    return edit


# Files or members in the place of others.


def _exchange_members(victim: Victim, stage: str, rng: Rng) -> str:
    """The values of two members of one field of a shard take each other's place."""
    family = victim.store.families[stage]
    tar = family.tar(int(rng.integers(SHARDS)))
    field = _one_of(sorted(family.index.members), rng)
    place = family.index.members[field]
    rows = [row for row in range(len(KEYS)) if family.tar(int(family.index.shard[row])) == tar]
    one, other = rng.choice(rows, 2, replace=False)
    data = Bytes(victim.files[tar])
    size = min(int(place.length[one]), int(place.length[other]))
    (a, b) = (slice(int(place.offset[row]), int(place.offset[row]) + size) for row in (one, other))
    data[a], data[b] = data[b], data[a]
    tar.write_bytes(data)
    return f"{field} of {KEYS[one]} and {KEYS[other]}"


def _exchange_files(suffixes: tuple[str, ...]) -> Mutation:
    """Shards 0 and 1 exchange the files with these suffixes."""

    def exchange(victim: Victim, stage: str, rng: Rng) -> str:
        folder = victim.store.families[stage].folder
        for suffix in suffixes:
            one, other = folder / f"000000{suffix}", folder / f"000001{suffix}"
            one.write_bytes(victim.files[other])
            other.write_bytes(victim.files[one])
        return folder.name

    return exchange


def _take_from_another_family(victim: Victim, stage: str, rng: Rng) -> str:
    """A shard becomes that of another stage, record and all."""
    tar = _one_of(victim.named(stage, ".tar"), rng)
    other = _one_of([each for each in CODECS if each != stage], rng)
    for file in (tar, tar.with_suffix(".json")):
        file.write_bytes(victim.files[victim.store.families[other].folder / file.name])
    return f"{tar.name} is that of {other}"


def _remove(victim: Victim, stage: str, rng: Rng) -> str:
    file = _one_of(victim.named(stage, ""), rng)
    file.unlink()
    return file.name


_EXCHANGES: dict[str, Mutation] = {
    "members exchanged": _exchange_members,
    "tars exchanged": _exchange_files((".tar",)),
    "records exchanged": _exchange_files((".json",)),
    "shards exchanged": _exchange_files((".tar", ".json")),
    "another family's shard": _take_from_another_family,
    "removed": _remove,
}


def _one_of(choices: Sequence[T], rng: Rng) -> T:
    return choices[int(rng.integers(len(choices)))]


def _make_store(path: Path) -> Path:
    create_store(path, SIDE)
    columns = {
        "key": KEYS,
        "source": ["fuzz"] * len(KEYS),
        "file": [f"{key}.jpg" for key in KEYS],
        "height": [48] * len(KEYS),
        "width": [64] * len(KEYS),
        "shard": [row // PER_SHARD for row in range(len(KEYS))],
        "row": [row % PER_SHARD for row in range(len(KEYS))],
        "sha256": [fingerprint(key) for key in KEYS],
    }
    write_table(path / IMAGES_FILE, pa.table(columns, schema=IMAGES))
    for stage, codec in CODECS.items():
        hashed = {"stage": stage, "codec": codec, "inputs": {}}
        folder = write_stage_json(path, stage, hashed, {})
        for shard in range(SHARDS):
            records = [
                Record(key=key, values=_values(stage, key), image_sha256=fingerprint(key))
                for key in KEYS[shard * PER_SHARD : (shard + 1) * PER_SHARD]
            ]
            write_shard(folder, shard, records, fingerprint=fingerprint(hashed), codec=codec, fields=FAMILIES[stage])
        set_current(path, stage, folder.name)
    return path


def _values(stage: str, key: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(int(key))
    if stage == "detect":
        return {
            "s8": rng.standard_normal((2, 8, 8), dtype=np.float32),
            "s16": rng.standard_normal((2, 4, 4), dtype=np.float32),
            "s32": rng.standard_normal((8, 2, 2), dtype=np.float32),
            "cells": np.arange(CANDIDATES),
            "boxes": rng.uniform(0, SIDE, (CANDIDATES, 4, 5)),
            "classes": rng.random((CANDIDATES, 6)),
            "colours": rng.random((CANDIDATES, 3)),
        }
    if stage == "sam":
        return {"embedding": rng.standard_normal((8, 4, 4), dtype=np.float32)}
    return {"bits": pack_masks(rng.random((CANDIDATES, SIDE, SIDE)) < 0.5), "iou": rng.random(CANDIDATES)}
