"""What a stage takes on this machine: some of the photographs it is due for, sent through its frozen network.

As a worker does it: on one thread, or the GPU, in whole batches, the records written as a shard. That shard goes into a
temporary folder and is forgotten with it, so a stage that reads another one's columns finds them there, and the store
is not touched. What a network cannot do with these photographs is a note, and its estimate stays arithmetic.
"""

import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from ..shards.errors import ImageError, WeakmcnError
from ..shards.family import Family
from ..shards.layout import write_stage_json
from ..shards.reader import PACKED_MASKS, Reader
from ..shards.store import Store
from ..shards.tables import IMAGES
from ..shards.writer import Record, write_shard
from .config import with_statistics
from .estimate import bytes_by_column
from .images import Photo
from .plan import Plan, Shards, StagePlan
from .stages import columns_read, load_encoder, shares_pass
from .tasks import ImageRow
from .work import LocalExecutor

PHOTOS = 20
"""Photographs a stage, less what does not fill its last batch."""
LONG_ENOUGH_S = 10.0
"""Of encoding; then no further batch is begun."""
QUICK_S = 1.0
"""A first batch that took less is done again: the first call of a network is slower."""


@dataclass(kw_only=True)
class _Took:
    """Seconds, an image where nothing else is said."""

    load_s: float = 0.0
    """Once."""
    encode_s: float = 0.0
    """An image of a batch, padding included."""
    read_s: float = 0.0
    write_s: float = 0.0
    photos: int = 0
    frame: int | None = None
    """Bytes of the packed masks."""


@dataclass(kw_only=True)
class _Probe:
    """What the stages before have left in the temporary folder."""

    plan: Plan
    folder: Path
    shards: Shards
    device: str
    made: dict[str, Path] = field(default_factory=dict)
    """Stage -> its family in the temporary folder."""
    unreadable: set[str] = field(default_factory=set)
    """Faults of photographs."""


def probed(plan: Plan, shards: Shards, *, workers: int, told: Callable[[str], None] = lambda stage: None) -> Plan:
    """The plan with seconds as measured, and bytes with masks as long as these photographs' are.

    told: called with the name of each stage before its network is loaded. The weights must have passed `require_fit`.
    """
    device = "cuda:0" if torch.cuda.is_available() else "cpu"
    stages = {stage.stage.name: stage for stage in plan.stages}
    notes = []
    with LocalExecutor(), tempfile.TemporaryDirectory(prefix="weakmcn-probe-") as folder:
        probe = _Probe(plan=plan, folder=Path(folder), shards=shards, device=device)
        for name, stage in list(stages.items()):
            if not stage.due or stages[name].made_with:
                continue
            told(name)
            later = _sharing(plan, stage)
            try:
                took = _take(probe, stage, later)
            except (WeakmcnError, torch.OutOfMemoryError) as fault:
                notes.append(f"probe of {name}: {str(fault).splitlines()[0]}; its figures are arithmetic")
                continue
            if took is None:
                continue
            stages[name] = _with(plan, stage, took, shards, workers)
            if later is not None:
                stages[later.stage.name] = replace(_with(plan, later, took, shards, workers), seconds=0, made_with=name)
    notes += [f"probe: {fault}" for fault in sorted(probe.unreadable)]
    statistics = plan.statistics
    detect = stages.get("detect")
    if statistics is not None and detect is not None and detect.probed:
        at_once = max(1, min(workers, len(statistics.due)))
        an_image = detect.seconds * max(1, min(workers, len(detect.due))) / detect.images_due
        statistics = replace(statistics, seconds=statistics.images_due * an_image / at_once)
    return replace(plan, stages=tuple(stages.values()), statistics=statistics, notes=(*plan.notes, *notes))


def _sharing(plan: Plan, stage: StagePlan) -> StagePlan | None:
    """The stage that the pass of `stage` makes too, for the very same shards."""
    for later in plan.stages:
        if later.stage.shares == stage.stage.name and later.due == stage.due and shares_pass(later.stage, plan.config):
            return later
    return None


def _take(probe: _Probe, stage: StagePlan, later: StagePlan | None) -> _Took | None:
    """Run the stage's network over some photographs; None where none can be used."""
    config = with_statistics(probe.plan.config, None)  # re-estimated ones are not there yet, and take as long
    last = later or stage
    columns = columns_read(last.stage, config)
    reader = _reader(probe, columns)
    took = _Took()
    started = time.perf_counter()
    encoder = load_encoder(last.stage, config, probe.device, shared=later is not None)
    took.load_s = time.perf_counter() - started

    photos, rows, took.read_s = _photos(probe, stage, encoder.batch, columns)
    if not photos:
        return None
    inputs = [reader.sample(photo.key, columns) if reader else {} for photo in photos]
    values: list[Mapping[str, Any]] = []
    encoding_s, slots = 0.0, 0
    for first in range(0, len(photos), encoder.batch):
        batch, beside = photos[first : first + encoder.batch], inputs[first : first + encoder.batch]
        surplus = encoder.batch - len(batch)
        padded = batch + batch[-1:] * surplus, beside + beside[-1:] * surplus
        outputs, seconds = _timed(lambda padded=padded: encoder.encode(*padded))
        if first == 0 and (seconds < QUICK_S or probe.device != "cpu"):
            outputs, seconds = _timed(lambda padded=padded: encoder.encode(*padded))
        values += outputs[: len(batch)]
        encoding_s, slots = encoding_s + seconds, slots + encoder.batch
        if encoding_s > LONG_ENOUGH_S:
            break
    took.photos, took.encode_s = len(values), encoding_s / slots
    for each in (stage, later) if later else (stage,):
        _, seconds = _timed(lambda each=each: _write(probe, each, rows, values))
        took.write_s += seconds / len(values)
    frames = [len(value["bits"]) for value in values if "bits" in value]
    took.frame = round(sum(frames) / len(frames)) if frames else None
    return took


def _timed(action: Callable[[], Any]) -> tuple[Any, float]:
    started = time.perf_counter()
    answer = action()
    return answer, time.perf_counter() - started


def _photos(
    probe: _Probe, stage: StagePlan, batch: int, columns: Iterable[str]
) -> tuple[list[Photo], list[ImageRow], float]:
    """Photographs evenly spaced over those that are due, keys ascending, in whole batches; seconds to read one."""
    due = [row for number in stage.due for row in probe.shards[number]]
    for need in dict.fromkeys(column.partition(".")[0] for column in columns):
        if need in probe.made:
            there = set(Family.open(probe.made[need]).survey.shards[0].images)
            due = [row for row in due if row.key in there]
    wanted = max(batch, PHOTOS // batch * batch)
    chosen = [due[place * len(due) // wanted] for place in range(wanted)] if len(due) > wanted else due
    photos, rows = [], []
    started = time.perf_counter()
    for row in sorted(chosen, key=lambda row: row.key):
        try:
            photos.append(Photo.read(row.key, row.path, side=probe.plan.config.side_px, expect=(row.height, row.width)))
            rows.append(row)
        except ImageError as fault:
            probe.unreadable.add(str(fault))
    return photos, rows, (time.perf_counter() - started) / max(1, len(photos))


def _reader(probe: _Probe, columns: Sequence[str]) -> Reader | None:
    """Reads the columns that the stage is handed, from the temporary folder or else from the store."""
    if not columns:
        return None
    folders = {
        need: probe.made.get(need, probe.plan.store / probe.plan.families[need])
        for need in dict.fromkeys(column.partition(".")[0] for column in columns)
    }
    families = {need: Family.open(folder) for need, folder in folders.items()}
    no_images = pa.Table.from_pylist([], schema=IMAGES)
    store = Store(probe.folder, side=probe.plan.config.side_px, images=no_images, families=families, unusable={})
    return Reader(store, columns)


def _write(probe: _Probe, stage: StagePlan, rows: Sequence[ImageRow], values: Sequence[Mapping[str, Any]]) -> None:
    """Write the stage's shard of what was encoded, as the stage itself would."""
    folder = write_stage_json(probe.folder, stage.stage.name, stage.recipe.hashed, {})
    names = [each.name for each in stage.stage.fields]
    records = (
        Record(key=row.key, values={name: value[name] for name in names}, image_sha256=row.sha256)
        for row, value in zip(rows, values, strict=False)  # a long probe ends before its last photographs
    )
    codec, fields = probe.plan.config.codec, stage.stage.fields
    write_shard(folder, 0, records, fingerprint=stage.recipe.fingerprint, codec=codec, fields=fields)
    probe.made[stage.stage.name] = folder


def _with(plan: Plan, stage: StagePlan, took: _Took, shards: Shards, workers: int) -> StagePlan:
    """The stage's plan by what was measured. A worker on a GPU reads and writes while it encodes."""
    batch = stage.recipe.batch
    slots = sum(-(-len(shards[number]) // batch) * batch for number in stage.due)
    encode_s, read_s, write_s = took.encode_s * slots, took.read_s * stage.images_due, took.write_s * stage.images_due
    busy_s = max(encode_s, read_s, write_s) if torch.cuda.is_available() else encode_s + read_s + write_s
    frame = took.frame if PACKED_MASKS.startswith(f"{stage.stage.name}.") else None
    an_image = bytes_by_column(stage.stage, plan.config, plan.config.codec, frame=frame)
    columns = {name: stage.images_due * size for name, size in an_image.items()}
    return replace(
        stage,
        seconds=took.load_s + busy_s / max(1, min(workers, len(stage.due))),
        columns=columns,
        bytes=sum(columns.values()),
        frame=frame,
        probed=took.photos,
    )
