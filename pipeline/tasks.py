"""What a worker is told and what it answers: one shard of one stage."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..shards.errors import WeakmcnError
from .config import PipelineConfig


@dataclass(frozen=True, kw_only=True)
class ImageRow:
    """A photograph of the store, and where its file is now."""

    key: str
    path: Path
    height: int
    width: int
    sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ShardTask:
    """All that a worker needs to make one shard of one stage."""

    stage: str
    shard: int
    images: tuple[ImageRow, ...]
    """Keys ascending."""
    config: PipelineConfig
    folder: Path
    """Of the family it belongs to."""
    fingerprint: str
    inputs: tuple[Path, ...] = ()
    """Folders of the families whose columns the stage reads."""
    skip_bad: bool = False
    """Whether an image that cannot be encoded is left out; else it fails the shard."""
    skipped: tuple[tuple[str, str], ...] = ()
    """(key, reason) of the images left out so far."""
    one_by_one: bool = False
    """Try the images one at a time and write nothing: a search for the one that makes workers fail."""
    beside: "ShardTask | None" = None
    """The same shard of another stage, which the same pass over the photographs makes; left to that stage's own turn
    as soon as anything fails."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StatisticsTask(ShardTask):
    """A part of the photographs that the detector's statistics are taken from, no shard (encoders/reestimate.py).

    `shard` is its number, `config` names the detector as its checkpoint has it.
    """

    file: Path
    """What the part becomes."""
    images_sha256: str


@dataclass(frozen=True, kw_only=True)
class Spent:
    """Where the seconds of encoding threads went."""

    encode_s: float = 0.0
    photos_s: float = 0.0
    """Idle: photographs were not read yet."""
    disk_s: float = 0.0
    """Idle: what was encoded was not written yet."""

    def __add__(self, other: "Spent") -> "Spent":
        return Spent(
            encode_s=self.encode_s + other.encode_s,
            photos_s=self.photos_s + other.photos_s,
            disk_s=self.disk_s + other.disk_s,
        )

    @property
    def total_s(self) -> float:
        return self.encode_s + self.photos_s + self.disk_s

    @property
    def idle(self) -> float:
        """Part of the time that went by waiting: 0..1."""
        return (self.photos_s + self.disk_s) / self.total_s if self.total_s else 0.0


@dataclass(frozen=True, kw_only=True)
class ShardDone:
    """A shard that was published."""

    shard: int
    images: int
    bytes: int
    seconds: float
    skipped: tuple[tuple[str, str], ...] = ()
    """(key, reason) of the images left out."""
    beside_bytes: int | None = None
    """Of the shard of the task's `beside`, where that was published too."""
    spent: Spent = Spent()
    """By the worker that made it, once its network was loaded."""


@dataclass(frozen=True, kw_only=True)
class ShardFailed:
    """A shard that could not be made."""

    shard: int
    reason: str
    may_pass: bool = False
    """Whether trying again could help: not for what is wrong with the input."""
    worker_died: bool = False
    fatal: WeakmcnError | None = None
    """What would fail every other shard too: unfit weights, a full disk."""
    at: tuple[str, ...] = ()
    """Keys of the images the worker was at."""
    culprit: str | None = None
    """Key of the image whose fault it is for certain."""


Outcome = ShardDone | ShardFailed


class Executor(Protocol):
    """Something that runs tasks and tells one outcome a task, in any order."""

    device: str

    @property
    def workers(self) -> int: ...

    def run(self, tasks: Sequence[ShardTask]) -> Iterator[Outcome]: ...
