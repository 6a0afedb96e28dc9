"""A column family: one stage's output for all images, in one folder of the store.

The folder's `stage.json` says what made it, its sidecars say what it holds (index.py).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .codec import check_codec
from .columns import FAMILIES
from .errors import ConfigError, DamagedShardError, StoreError
from .fingerprint import file_sha256, fingerprint, short
from .index import Index, Shard, load_index
from .mend import refill, repair
from .records import read_json
from .sidecar import shard_name

STAGE_FILE = "stage.json"

_FOLDER = re.compile(r"([a-z]+)-([0-9a-f]{8})")


@dataclass(frozen=True, eq=False)
class Family:
    """An opened family; a snapshot of the moment when its index was first asked for."""

    stage: str
    folder: Path
    fingerprint: str
    stage_json: dict[str, Any]
    codec: str

    @classmethod
    def open(cls, folder: Path) -> "Family":
        """The family in `folder`; StoreError or DamagedShardError if its stage.json does not fit the folder."""
        stage = stage_of(folder.name)
        if stage is None:
            raise StoreError(f"{folder} is not a column family: its name is not <stage>-<8 hex digits>.")
        content = _read_stage_json(folder / STAGE_FILE)
        if content["stage"] != stage or short(content["fingerprint"]) != folder.name.removeprefix(f"{stage}-"):
            raise DamagedShardError(f"{folder / STAGE_FILE} belongs to another family; restore or remove {folder}.")
        try:
            codec = check_codec(content["hashed"].get("codec") or "f16")
        except ConfigError as error:
            raise StoreError(f"{folder / STAGE_FILE}: {error}") from error
        return cls(stage, folder, content["fingerprint"], content, codec)

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def inputs(self) -> dict[str, str]:
        """Stage -> fingerprint of the family that this one was made from."""
        return self.stage_json["hashed"].get("inputs") or {}

    def finished(self, *, deep: bool = False) -> dict[int, Shard]:
        """The shards that are whole: a good sidecar, a tar of its size, with `deep` also of its SHA-256.

        Never raises for damage: a damaged shard is one that is not finished.
        """
        return {number: shard for number, shard in self.survey.shards.items() if self.fault(shard, deep=deep) is None}

    def tar(self, number: int) -> Path:
        """Where shard `number` is or would be."""
        return self.folder / f"{shard_name(number)}.tar"

    def fault(self, shard: Shard, *, deep: bool = False) -> str | None:
        """What is wrong with a shard's tar, None if nothing is."""
        tar = self.tar(shard.number)
        try:
            size = tar.stat().st_size
        except FileNotFoundError:
            return f"{tar} is missing"
        if size != shard.bytes:
            return f"{tar} has {size:,} bytes, its sidecar says {shard.bytes:,}"
        if deep and file_sha256(tar) != shard.sha256:
            return f"{tar} has another SHA-256 than its sidecar says"
        return None

    @cached_property
    def survey(self) -> Index:
        """What the sidecars say, those that are damaged left out and told in `problems`."""
        return load_index(self.folder, self.stage, self.codec, self.fingerprint)

    @property
    def index(self) -> Index:
        """The survey; DamagedShardError if any sidecar is damaged."""
        if self.survey.problems:
            raise DamagedShardError(
                f"{self.survey.problems[0].rstrip('.')}; drop what is broken: {repair(self.folder.parent)}"
            )
        return self.survey


def family_name(stage: str, digest: str) -> str:
    """The folder name of a family: stage "sam" and its fingerprint -> "sam-4f1c09ab"."""
    return f"{stage}-{short(digest)}"


def stage_of(folder_name: str) -> str | None:
    """The stage of a family's folder name, None for any other name."""
    match = _FOLDER.fullmatch(folder_name)
    return match[1] if match and match[1] in FAMILIES else None


def of_pocket(stages: Iterable[Mapping[str, Any]]) -> bool:
    """Whether the pocket networks made a column, so that its photographs are drawn. stages: content of stage.json's."""
    return any(each.get("recorded", {}).get("preset") == "pocket" for each in stages)


def called(dataset: str, stages: Iterable[Mapping[str, Any]]) -> str:
    """A data set as it is called beside figures: a drawn one is no RefCOCO."""
    return f"pocket {dataset}" if of_pocket(stages) else dataset


def _read_stage_json(path: Path) -> dict[str, Any]:
    """A stage.json whose fingerprint is that of what it says was hashed."""
    try:
        content = read_json(path)
        hashed = content["hashed"]
        if not isinstance(content["recorded"], dict):
            raise ValueError("it records nothing")
        if not isinstance(content["stage"], str) or fingerprint(hashed) != content["fingerprint"]:
            raise ValueError("its fingerprint is not that of its content")
        inputs = hashed.get("inputs") or {}
        if not all(isinstance(value, str) for value in inputs.values()):
            raise ValueError("its inputs are not fingerprints")
    except FileNotFoundError:
        raise StoreError(f"{path} is missing; make it again: {refill(path.parent.parent)}") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DamagedShardError(f"{path} is damaged ({error}); make it again: {refill(path.parent.parent)}") from error
    return content
