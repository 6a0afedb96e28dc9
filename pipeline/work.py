"""One shard of one stage, from photographs to a published tar; and the executor that does it in this process.

`Worker` is what runs everywhere: in this process, or as a Ray actor (executor.py). What it writes depends on its task
alone, so it does not matter who runs a shard, when, or after how many failures: batches are fixed within a shard, the
last one is padded, and every worker pins its threads alike.
"""

import logging
import time
import traceback
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np
import pyarrow as pa
import torch

from ..shards import faults
from ..shards.errors import ImageError, StageError, StoreError, WeakmcnError
from ..shards.family import Family
from ..shards.reader import Reader
from ..shards.sidecar import shard_name
from ..shards.store import Store
from ..shards.tables import IMAGES
from ..shards.writer import Record, write_shard
from .attempts import Attempts
from .images import Photo
from .overlap import BadImageError, Stopwatch, Writing, read_ahead
from .stages import Encoder, Stage, columns_read, encoder_class, stage_named
from .tasks import ImageRow, Outcome, ShardDone, ShardFailed, ShardTask, StatisticsTask
from .trail import Trail, images_in, read_trail

log = logging.getLogger(__name__)


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
        started, watch = time.monotonic(), Stopwatch()
        faults.point("shard", shard_name(task.shard))
        with Trail(task.folder, task.shard) as trail:
            try:
                size, skipped, beside_bytes = self._work(task, trail, watch)
            except BadImageError as error:
                return ShardFailed(shard=task.shard, reason=str(error), culprit=error.key)
            except (StageError, StoreError) as error:
                return ShardFailed(shard=task.shard, reason=str(error))
            except WeakmcnError as error:
                return ShardFailed(shard=task.shard, reason=str(error), fatal=error)
            except Exception as error:
                log.debug("%s shard %d\n%s", task.stage, task.shard, traceback.format_exc())
                at = images_in(read_trail(task.folder, task.shard))
                return ShardFailed(shard=task.shard, reason=_described(error), may_pass=True, at=at)
        images = len(task.images) - (len(skipped) - len(task.skipped))
        seconds = time.monotonic() - started
        return ShardDone(
            shard=task.shard,
            images=images,
            bytes=size,
            seconds=seconds,
            skipped=skipped,
            beside_bytes=beside_bytes,
            spent=watch.spent,
        )

    def _work(
        self, task: ShardTask, trail: Trail, watch: Stopwatch
    ) -> tuple[int, tuple[tuple[str, str], ...], int | None]:
        """Bytes written, images skipped, bytes of the shard beside."""
        beside = task.beside
        key = f"{task.fingerprint} {beside.fingerprint if beside else ''}"
        if self._kept is None or self._kept[0] != key:
            last = beside or task  # of two stages in one pass the later reads the columns of both
            stage = stage_named(last.stage)
            make = encoder_class(stage, shared=beside is not None)  # imports for seconds, which is still starting
            trail.at("load")
            faults.point("load", task.stage)
            self._kept = None  # the network before goes first, for its memory
            encoder = make(task.config, self._device)
            self._kept = key, encoder, InputColumns(last, columns_read(stage, task.config))
        _, encoder, columns = self._kept
        without = columns.skipped(task.shard)  # nothing can be made of what an input does not have
        skipped = {row.key: without[row.key] for row in task.images if row.key in without} | dict(task.skipped)
        left = tuple(row for row in task.images if row.key not in skipped)
        if task.one_by_one:
            for row in left:
                for _ in encoded(replace(task, images=(row,)), encoder, columns, trail, watch):
                    pass
            return 0, (), None
        if isinstance(task, StatisticsTask):
            return _write_statistics(task, encoder, trail, watch), (), None
        made = encoded(replace(task, images=left), encoder, columns, trail, watch)
        with closing(made), Writing(partial(_write_both, task, skipped), watch) as writing:
            for records in made:
                writing.put(records)
            size, beside_bytes = writing.end()
        return size, tuple(sorted(skipped.items())), beside_bytes


def _write_both(task: ShardTask, skipped: Mapping[str, str], records: Iterable[Record]) -> tuple[int, int | None]:
    """Publish the shard, and the one beside it; bytes of each."""
    beside = task.beside
    if beside is None:
        return _write(task, records, skipped), None
    kept: list[Record] = []  # packed masks: a few kilobytes an image
    size = _write(task, _parted(records, stage_named(task.stage), stage_named(beside.stage), kept), skipped)
    return size, _write(beside, kept, skipped)


def _write(task: ShardTask, records: Iterable[Record], skipped: Mapping[str, str]) -> int:
    """Publish the shard; bytes written."""
    sidecar = write_shard(
        task.folder,
        task.shard,
        records,
        fingerprint=task.fingerprint,
        codec=task.config.codec,
        fields=stage_named(task.stage).fields,
        skipped=skipped.items(),
    )
    return sidecar.bytes


def _parted(records: Iterable[Record], stage: Stage, other: Stage, kept: list[Record]) -> Iterator[Record]:
    """Of records that hold the fields of two stages those of the first; those of the other are added to `kept`."""
    for record in records:
        own, others = (
            replace(record, values={field.name: record.values[field.name] for field in each.fields})
            for each in (stage, other)
        )
        yield own
        kept.append(others)


def _described(error: Exception) -> str:
    place = traceback.extract_tb(error.__traceback__)[-1]
    text = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return f"{text}; use fewer --workers, or a network with a smaller batch"
    return f"{text} ({Path(place.filename).name}, line {place.lineno})"


def encoded(
    task: ShardTask, encoder: Encoder, columns: "InputColumns", trail: Trail, watch: Stopwatch
) -> Generator[list[Record], None, None]:
    """The records of a shard in order of their keys, a batch at a time. To be closed."""

    def read(rows: Sequence[ImageRow]) -> tuple[list[Photo], list[dict[str, np.ndarray]]]:
        return _read_photos(rows, task.config.side_px), [columns[row.key] for row in rows]

    batches = _batches(task, encoder)
    with closing(read_ahead(batches, read, trail, watch)) as ready:
        for batch, (photos, inputs) in zip(batches, ready, strict=True):
            for photo in photos:
                faults.point("encode", photo.key)
            surplus = encoder.batch - len(photos)
            with watch.on("encode_s"):
                outputs = encoder.encode(photos + photos[-1:] * surplus, inputs + inputs[-1:] * surplus)
            yield [
                Record(key=row.key, values=values, image_sha256=row.sha256)
                for row, values in zip(batch, outputs[: len(batch)], strict=True)
            ]


def _write_statistics(task: StatisticsTask, detector: Any, trail: Trail, watch: Stopwatch) -> int:
    """Publish the sums of one part of the detector's statistics; bytes written."""
    from .encoders.reestimate import write_part

    read = partial(_read_photos, side_px=task.config.side_px)
    with closing(read_ahead(_batches(task, detector), read, trail, watch)) as batches:
        return write_part(task.file, detector.net, batches, detector.device, task.images_sha256)


def _batches(task: ShardTask, encoder: Encoder) -> list[tuple[ImageRow, ...]]:
    return [task.images[first : first + encoder.batch] for first in range(0, len(task.images), encoder.batch)]


def _read_photos(rows: Sequence[ImageRow], side_px: int) -> list[Photo]:
    photos = []
    for row in rows:
        faults.point("image", row.key)
        try:
            photo = Photo.read(row.key, row.path, side=side_px, expect=(row.height, row.width))
        except ImageError as error:
            raise BadImageError(row.key, str(error)) from error
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
        families = {family.stage: family for family in map(Family.open, task.inputs)}
        self._families = tuple(families.values())
        if columns:
            store = Store(
                task.folder.parent, side=task.config.side_px, images=_NO_IMAGES, families=families, unusable={}
            )
            self._reader = Reader(store, columns)

    def __getitem__(self, key: str) -> dict[str, np.ndarray]:
        return self._reader.sample(key, self._columns) if self._columns else {}

    def skipped(self, shard: int) -> dict[str, str]:
        """Images of a shard that an input family lacks, with its reason: key -> reason."""
        return {
            key: f"{family.stage} skipped it: {reason}"
            for family in self._families
            if shard in family.survey.shards
            for key, reason in family.survey.shards[shard].skipped.items()
        }


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
        """Run the tasks in order. A worker's death is this process's, and nothing here can tell that it hangs."""
        assert self._worker is not None
        for task in tasks:
            attempts = Attempts(task=task)
            outcome = None
            while outcome is None:
                outcome = attempts.after(self._worker.run(attempts.next_task()))
            yield outcome
