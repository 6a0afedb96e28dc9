"""A reader of stores written from docs/store.md alone: nothing of weakmcn, only json, numpy and pyarrow."""

import hashlib
import json
import math
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

CODED = {"s8", "s16", "s32", "tokens", "embedding"}
SIZES = {"float16": 2, "float32": 4, "int32": 4, "uint8": 1, "uint16": 2}


class RefusedError(Exception):
    """Something that a reader must check is not so."""


def require(holds: bool, what: object) -> None:
    if not holds:
        raise RefusedError(str(what))


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Family:
    def __init__(self, folder: Path, stage: str) -> None:
        self.folder = folder
        content = json.loads((folder / "stage.json").read_text("utf-8"))
        self.fingerprint = sha256(canonical(content["hashed"]))
        require(content["fingerprint"] == self.fingerprint, "fingerprint")
        require(content["stage"] == stage and folder.name == f"{stage}-{self.fingerprint[:8]}", folder)
        self.codec = content["hashed"].get("codec", "f16")
        self.inputs = content["hashed"].get("inputs", {})
        self.images: dict[str, str] = {}
        self.members: dict[str, dict[str, tuple[Path, dict]]] = {}
        for path in sorted(folder.glob("[0-9]*.json")):
            self._add(path)

    def _add(self, path: Path) -> None:
        record = json.loads(path.read_bytes())
        checksum = record.pop("checksum")
        require(checksum == sha256(canonical(record)), f"{path}: checksum")
        require(record["fingerprint"] == self.fingerprint and path.stem == f"{record['shard']:06d}", path)
        require(list(record["images"]) == record["keys"] == sorted(record["keys"]), f"{path}: keys")
        tar = path.with_suffix(".tar")
        require(tar.stat().st_size == record["bytes"], f"{tar}: size")
        end, fields = 0, {key: {} for key in record["keys"]}
        for member in record["members"]:
            found = re.fullmatch(r"([0-9]{12})\.([a-z0-9_]+)\.npy", member["name"])
            require(found is not None and found[1] in fields, member["name"])
            assert found is not None
            require(member["offset"] >= end + 512, f"{member['name']}: overlaps")
            end = member["offset"] + member["length"]
            require(end <= record["bytes"], f"{member['name']}: beyond the tar")
            require(math.prod(member["shape"]) * SIZES[member["dtype"]] == member["length"], member["name"])
            fields[found[1]][found[2]] = (tar, member)
        require(len({tuple((name, at[1]["dtype"]) for name, at in each.items()) for each in fields.values()}) < 2, path)
        require(not self.members.keys() & fields.keys(), f"{path}: a key is in two shards")
        self.members |= fields
        self.images |= record["images"]

    def fields(self, key: str) -> dict[str, np.ndarray]:
        """The fields of an image, codecs undone."""
        parts = {name: values(*at) for name, at in self.members[key].items()}
        scales = {name for name in parts if name.endswith(("_scale", "_zero")) and self.codec == "u8"}
        return {name: self._decoded(name, parts) for name in parts if name not in scales}

    def _decoded(self, name: str, parts: dict[str, np.ndarray]) -> np.ndarray:
        stored = parts[name]
        if name not in CODED or self.codec in ("f16", "f32"):
            return stored
        if self.codec == "bf16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        scale, zero = (parts[f"{name}_{part}"][:, None, None] for part in ("scale", "zero"))
        return stored.astype(np.float32) * scale + zero


def values(tar: Path, member: dict) -> np.ndarray:
    with open(tar, "rb") as file:
        file.seek(member["offset"])
        data = file.read(member["length"])
    require(zlib.crc32(data) == member["crc32"], f"{member['name']}: CRC-32")
    return np.frombuffer(data, np.dtype(member["dtype"]).newbyteorder("<")).reshape(member["shape"])


class Store:
    def __init__(self, path: Path) -> None:
        record = json.loads((path / "store.json").read_text("utf-8"))
        require(record["format"] == 1, "format")
        self.path, self.side = path, record["side"]
        require(self.side % 32 == 0, "side")
        self.images = self._table("images.parquet").to_pylist()
        self.digests = {row["key"]: row["sha256"] for row in self.images}
        require(len(self.digests) == len(self.images), "a key occurs twice")
        self.families = {stage: Family(path / name, stage) for stage, name in record["current"].items()}
        for family in self.families.values():
            for stage, fingerprint in family.inputs.items():
                require(self.families[stage].fingerprint == fingerprint, f"{family.folder}: stale")
            for key, digest in family.images.items():
                require(self.digests[key] == digest, f"{key}: another image was encoded")

    def references(self, dataset: str) -> list[dict]:
        return self._table(f"refs-{dataset}.parquet").to_pylist()

    def __getitem__(self, key: str) -> dict[str, np.ndarray]:
        return {
            f"{stage}.{name}": array
            for stage, family in self.families.items()
            if key in family.members
            for name, array in family.fields(key).items()
        }

    def masks(self, key: str) -> np.ndarray:
        """bool [K, S, S]."""
        fields = self.families["masks"].fields(key)
        count, side = len(fields["iou"]), self.side
        frame = pa.Codec("zstd").decompress(fields["bits"].tobytes(), decompressed_size=count * side * side // 8)
        bits = np.frombuffer(frame, np.uint8).reshape(count, side, side // 8)
        return np.unpackbits(bits, axis=-1).astype(bool)  # the first pixel is the highest bit

    def canvas(self, row: dict) -> tuple[int, int, int, int]:
        """nh, nw, left, top of an image."""
        aspect = row["width"] / row["height"]
        if aspect < 1:
            high, wide = self.side, math.floor(self.side * aspect)
        else:
            high, wide = math.floor(self.side / aspect), self.side
        return high, wide, (self.side - wide) // 2, (self.side - high) // 2

    def _table(self, name: str) -> pa.Table:
        return pq.read_table(self.path / name, page_checksum_verification=True)
