"""One shard of one stage, from photographs to a published tar; and the executor that does it in this process.

`Worker` is what runs everywhere: in this process, or as a Ray actor (executor.py). What it writes depends on its task
alone, so it does not matter who runs a shard, when, or after how many failures: batches are fixed within a shard, the
last one is padded, and every worker pins its threads alike.
"""

import logging
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

import cv2
import numpy as np
import pyarrow as pa
import torch

from ..shards.errors import ImageError, StageError, StoreError, WeakmcnError
from ..shards.family import Family
from ..shards.reader import Reader
from ..shards.store import Store
from ..shards.tables import IMAGES
from ..shards.writer import Record, write_shard
from .config import PipelineConfig
from .images import Photo
from .stages import Encoder, columns_read, load_encoder, stage_named

log = logging.getLogger(__name__)

ATTEMPTS = 3
"""Times a shard is tried before it has failed for good."""


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


@dataclass(frozen=True, kw_only=True)
class ShardDone:
    """A shard that was published."""

    shard: int
    images: int
    bytes: int
    seconds: float


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


Outcome = ShardDone | ShardFailed


class Executor(Protocol):
    """Something that runs tasks and tells one outcome a task, in any order."""

    device: str

    @property
    def workers(self) -> int: ...

    def run(self, tasks: Sequence[ShardTask]) -> Iterator[Outcome]: ...


class Worker:
    """Runs tasks one at a time, keeping the frozen network of the stage it is at and the columns that stage reads."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._kept: tuple[str, Encoder, InputColumns] | None = None
        # One thread on every worker: how a sum is split must not depend on the machine. Workers are the parallelism.
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        torch.backends.cudnn.benchmark = False
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False  # its 10 bits would cost more than storing in float16 does

    def device_name(self) -> str:
        """What stage.json records: "cpu" or the name of the GPU."""
        return "cpu" if self._device == "cpu" else torch.cuda.get_device_name(self._device)

    def run(self, task: ShardTask) -> Outcome:
        """Make one shard. Every exception becomes a ShardFailed, so that nothing unpicklable travels."""
        started = time.monotonic()
        try:
            size = self._write(task)
        except (StageError, ImageError, StoreError) as error:
            return ShardFailed(shard=task.shard, reason=str(error))
        except WeakmcnError as error:
            return ShardFailed(shard=task.shard, reason=str(error), fatal=error)
        except Exception as error:
            log.debug("%s shard %d\n%s", task.stage, task.shard, traceback.format_exc())
            place = traceback.extract_tb(error.__traceback__)[-1]
            reason = f"{type(error).__name__}: {error} ({Path(place.filename).name}, line {place.lineno})"
            return ShardFailed(shard=task.shard, reason=reason, may_pass=True)
        return ShardDone(shard=task.shard, images=len(task.images), bytes=size, seconds=time.monotonic() - started)

    def _write(self, task: ShardTask) -> int:
        stage = stage_named(task.stage)
        if self._kept is None or self._kept[0] != task.fingerprint:
            self._kept = None  # the network before goes first, for its memory
            encoder = load_encoder(stage, task.config, self._device)
            self._kept = task.fingerprint, encoder, InputColumns(task, columns_read(stage, task.config))
        _, encoder, columns = self._kept
        sidecar = write_shard(
            task.folder,
            task.shard,
            encoded(task, encoder, columns),
            fingerprint=task.fingerprint,
            codec=task.config.codec,
            fields=stage.fields,
        )
        return sidecar.bytes


def encoded(task: ShardTask, encoder: Encoder, columns: "InputColumns") -> Iterator[Record]:
    """The records of a shard in order of their keys; the next batch is read while this one is encoded."""
    batches = [task.images[i : i + encoder.batch] for i in range(0, len(task.images), encoder.batch)]
    with ThreadPoolExecutor(max_workers=1) as ahead:
        coming = [ahead.submit(_read_photos, batch, task.config.side_px) for batch in batches[:1]]
        for number, batch in enumerate(batches):
            photos = coming.pop().result()
            coming += [
                ahead.submit(_read_photos, later, task.config.side_px) for later in batches[number + 1 : number + 2]
            ]
            inputs = [columns[photo.key] for photo in photos]
            surplus = encoder.batch - len(photos)
            outputs = encoder.encode(photos + photos[-1:] * surplus, inputs + inputs[-1:] * surplus)
            for row, values in zip(batch, outputs[: len(batch)], strict=True):
                yield Record(key=row.key, values=values, image_sha256=row.sha256)


def _read_photos(rows: Sequence[ImageRow], side_px: int) -> list[Photo]:
    photos = []
    for row in rows:
        photo = Photo.read(row.key, row.path, side=side_px, expect=(row.height, row.width))
        if photo.sha256 != row.sha256:
            raise StageError(f"{row.path}: changed since it was indexed; run the same command again.")
        photos.append(photo)
    return photos


class InputColumns:
    """The columns that a stage reads, from the families its fingerprint names: key -> column -> array.

    Sees the input families as they are when the first shard of the stage is made, which is after they are finished.
    """

    def __init__(self, task: ShardTask, columns: tuple[str, ...]) -> None:
        self._columns = columns
        if columns:
            families = {family.stage: family for family in map(Family.open, task.inputs)}
            store = Store(
                task.folder.parent, side=task.config.side_px, images=_NO_IMAGES, families=families, unusable={}
            )
            self._reader = Reader(store, columns)

    def __getitem__(self, key: str) -> dict[str, np.ndarray]:
        return self._reader.sample(key, self._columns) if self._columns else {}


_NO_IMAGES = pa.Table.from_pylist([], schema=IMAGES)


class LocalExecutor:
    """Runs tasks one after the other in this process, on its GPU if there is one. Use as a context manager."""

    workers = 1

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self.device = "cpu"

    def __enter__(self) -> Self:
        self._threads = torch.get_num_threads(), cv2.getNumThreads()
        self._worker = Worker("cuda:0" if torch.cuda.is_available() else "cpu")
        self.device = self._worker.device_name()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._worker = None
        torch.set_num_threads(self._threads[0])
        cv2.setNumThreads(self._threads[1])

    def run(self, tasks: Sequence[ShardTask]) -> Iterator[Outcome]:
        """Run the tasks in order, each tried at most ATTEMPTS times."""
        assert self._worker is not None
        for task in tasks:
            for attempt in range(1, ATTEMPTS + 1):
                outcome = self._worker.run(task)
                if isinstance(outcome, ShardDone) or not outcome.may_pass or attempt == ATTEMPTS:
                    yield outcome
                    break
