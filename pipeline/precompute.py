"""The offline half as one call: index the photographs, plan, run what is missing or stale.

Nothing is lost by stopping: shards are published one by one, and the store goes over to a new column family only when
that family is whole. So a run that is interrupted, killed or out of disk is gone on with by the same call.
"""

import shutil
import tempfile
from collections.abc import Container, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from ..shards.atomic import sweep, write_json
from ..shards.errors import ImageError, InputError
from ..shards.family import STAGE_FILE, Family
from ..shards.layout import IMAGES_FILE, STORE_FILE, families_on_disk, set_current, write_stage_json
from ..shards.lock import only_writer
from ..shards.tables import IMAGES, read_table
from .config import PipelineConfig
from .estimate import in_bytes
from .index import IndexReport, build_index
from .plan import Plan, Shards, StagePlan, families_in_use, make_plan, plan_table, recorded_of, workers_expected
from .progress import Progress
from .stages import anchored, chosen_stages, columns_read, configured, recipes, recorded
from .work import Executor, ImageRow, LocalExecutor, ShardDone, ShardTask

EXECUTORS = ("ray", "local")
_SHOWN_FAILURES = 5


@dataclass(frozen=True, kw_only=True)
class Failure:
    """A shard that failed for good."""

    stage: str
    shard: int
    reason: str


@dataclass(kw_only=True)
class Report:
    """What a precompute did."""

    index: IndexReport
    plan: Plan
    dry_run: bool
    images: dict[str, int] = field(default_factory=dict)
    """Stage -> photographs encoded."""
    bytes: int = 0
    failures: list[Failure] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 done, 1 some shards failed, 3 done but photographs were skipped."""
        if self.failures:
            return 1
        return 3 if self.index.skipped else 0

    def summary(self) -> str:
        """One line that says how it ended."""
        store = self.plan.store
        skipped = f"; {len(self.index.skipped)} photographs skipped" if self.index.skipped else ""
        if self.dry_run:
            return f"{store}: planned only, nothing was written{skipped}"
        if self.failures:
            return f"{store}: {len(self.failures)} shards failed, what was finished is kept{skipped}"
        if self.plan.is_done:
            return f"{store}: up to date{skipped}"
        made = ", ".join(f"{stage} {images:,}" for stage, images in self.images.items() if images)
        return f"{store}: images encoded: {made}; {in_bytes(self.bytes)} written{skipped}"


def settings(
    store: Path,
    *,
    preset: str | None = None,
    codec: str | None = None,
    checkpoints: Mapping[str, str] | None = None,
) -> PipelineConfig:
    """The settings for a precompute of `store`: those asked for, the rest as the store was made, else `pocket`."""
    in_use = {stage: family.stage_json for stage, family in families_in_use(Path(store)).items()}
    return configured(in_use, preset=preset, codec=codec, checkpoints=checkpoints)


def precompute(
    config: PipelineConfig,
    *,
    store: Path,
    data: Path,
    dataset: str,
    splits: Sequence[str],
    stages: Sequence[str] | None = None,
    executor: str = "ray",
    address: str | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    insecure_ray: bool = False,
    console: Console | None = None,
) -> Report:
    """Bring `store` up to date for `splits` of `dataset` below `data`.

    stages: names, ["all"], or None for the default ones and those the store has. dry_run: plan and write nothing.
    Raises InputError (and its kinds) before anything is encoded, WeakmcnError where going on is pointless (unfit
    weights, a full disk); shards that fail on their own are in the report.
    """
    store, data = Path(store), Path(data)
    console = console or Console(stderr=True)
    if executor not in EXECUTORS:
        raise InputError(f"executor {executor!r} is not known; choose {' or '.join(EXECUTORS)}.")
    chosen = chosen_stages(stages, families_in_use(store))
    made_from = recipes(config, chosen)  # before anything is written: weights may be missing
    expected, gpu = workers_expected(executor, workers)

    def planned(index_folder: Path) -> Report:
        with Progress(console) as progress:
            index = build_index(
                index_folder,
                data,
                dataset,
                splits,
                side=config.side_px,
                images_per_shard=config.images_per_shard,
                skip_bad=skip_bad,
                on_progress=lambda done, total: progress.reach("photos", done=done, total=total),
            )
        shards = shards_of(index_folder, data)
        plan = make_plan(config, store, shards, chosen, made_from, workers=expected, gpu=gpu)
        _tell(console, index, plan)
        report = Report(index=index, plan=plan, dry_run=dry_run, images={stage.stage.name: 0 for stage in plan.stages})
        if not dry_run:
            plan.require_space()
            _require_photos(plan, shards, data)
            with _executor(executor, address, workers, insecure_ray, idle=plan.is_done) as running:
                _run(report, shards, running, console)
        return report

    if dry_run:
        with tempfile.TemporaryDirectory(prefix="weakmcn-plan-") as shadow:
            _copy_tables(store, Path(shadow))
            return planned(Path(shadow))
    with only_writer(store, "precompute"):
        _sweep(store)
        try:
            return planned(store)
        finally:
            _sweep(store)  # workers that were stopped by force leave temporaries


def shards_of(index_folder: Path, data: Path) -> Shards:
    """Shard number -> its photographs as images.parquet assigns them, with their files below `data`."""
    table = read_table(index_folder / IMAGES_FILE, IMAGES)
    shards: dict[int, list[ImageRow]] = {}
    for row in table.to_pylist():
        image = ImageRow(
            key=row["key"],
            path=(data / row["file"]).absolute(),
            height=row["height"],
            width=row["width"],
            sha256=row["sha256"],
        )
        shards.setdefault(row["shard"], []).append(image)
    return {number: tuple(sorted(rows, key=lambda row: row.key)) for number, rows in sorted(shards.items())}


def _require_photos(plan: Plan, shards: Shards, data: Path) -> None:
    """ImageError where a shard to be made has photographs of a data set that was indexed from elsewhere."""
    due = {number for stage in plan.stages for number in stage.due}
    absent = [row for number in sorted(due) for row in shards[number] if not row.path.is_file()]
    if absent:
        raise ImageError(
            f"{len(absent)} photographs of the store are not below {data} (first: {absent[0].path}); put or link the "
            "photographs of all its data sets there."
        )


def _executor(
    name: str, address: str | None, workers: int | None, insecure_ray: bool, *, idle: bool
) -> AbstractContextManager[Executor]:
    if name == "local" or idle:  # Ray takes seconds to start; an up-to-date store should not
        return LocalExecutor()
    from .executor import RayExecutor

    return RayExecutor(address=address, workers=workers, insecure_ray=insecure_ray)


def _run(report: Report, shards: Shards, executor: Executor, console: Console) -> None:
    """Run every stage of the plan in order; put the new families in use."""
    plan, store = report.plan, report.plan.store
    in_use = families_in_use(store)
    whole: list[StagePlan] = []
    failed: dict[str, set[int]] = {}
    _tell_device(console, plan, executor.device)
    with Progress(console) as progress:
        for stage in plan.stages:
            folder = _begin(plan, stage, executor.device)
            if stage.stage.name not in in_use:
                set_current(store, stage.stage.name, folder.name)
            missing = failed[stage.stage.name] = set().union(*(failed.get(need, ()) for need in stage.stage.needs))
            tasks = _tasks(plan, stage, shards, folder, without=missing)
            progress.begin(stage.stage.name, done=stage.images_total - stage.images_due, total=stage.images_total)
            for outcome in executor.run(tasks):
                if isinstance(outcome, ShardDone):
                    report.images[stage.stage.name] += outcome.images
                    report.bytes += outcome.bytes
                    progress.advance(outcome.images)
                    continue
                if outcome.fatal is not None:
                    raise outcome.fatal
                missing.add(outcome.shard)
                report.failures.append(Failure(stage=stage.stage.name, shard=outcome.shard, reason=outcome.reason))
            if tasks:
                _ = Family.open(folder).survey  # its derived index, once here and not in every reader
            if missing.isdisjoint(stage.due):
                whole.append(stage)
    _tell_failures(console, report)
    for stage in whole:
        set_current(store, stage.stage.name, stage.recipe.family)


def _begin(plan: Plan, stage: StagePlan, device: str) -> Path:
    """The folder of the stage's family with its stage.json, which is told where the weights are now."""
    beside = recorded(stage.recipe, plan.config, device)
    folder = write_stage_json(plan.store, stage.stage.name, stage.recipe.hashed, beside)
    content = Family.open(folder).stage_json
    if content["recorded"].get("checkpoint") != stage.recipe.checkpoint:
        write_json(
            folder / STAGE_FILE, content | {"recorded": content["recorded"] | {"checkpoint": stage.recipe.checkpoint}}
        )
    return folder


def _tasks(plan: Plan, stage: StagePlan, shards: Shards, folder: Path, *, without: Container[int]) -> list[ShardTask]:
    """The stage's tasks; every path in them is absolute, a worker may stand elsewhere."""
    columns = columns_read(stage.stage, plan.config)
    read = dict.fromkeys(column.partition(".")[0] for column in columns)
    config = anchored(plan.config)
    inputs = tuple((plan.store / plan.families[name]).absolute() for name in read)
    return [
        ShardTask(
            stage=stage.stage.name,
            shard=number,
            images=shards[number],
            config=config,
            folder=folder.absolute(),
            fingerprint=stage.recipe.fingerprint,
            inputs=inputs,
        )
        for number in stage.due
        if number not in without
    ]


def _sweep(store: Path) -> None:
    for folder in [store, *families_on_disk(store)]:
        sweep(folder)


def _copy_tables(store: Path, shadow: Path) -> None:
    """The small files that the index is built on, so that a dry run writes beside the store and not into it."""
    for pattern in (STORE_FILE, "*.parquet"):
        for file in store.glob(pattern):
            shutil.copy2(file, shadow / file.name)


def _tell(console: Console, index: IndexReport, plan: Plan) -> None:
    for warning in index.warnings:
        console.print(f"note: {warning}", markup=False, highlight=False, soft_wrap=True)
    console.print(plan_table(plan))
    for note in plan.notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _tell_device(console: Console, plan: Plan, device: str) -> None:
    """One line if kept shards of a stage that goes on were made on another device; no reason to make them again."""
    for stage in plan.stages:
        made_on = recorded_of(plan.store, stage.recipe).get("device", device)
        if stage.due and stage.images_due < stage.images_total and made_on != device:
            console.print(
                f"note: {stage.stage.name} was begun on {made_on}, goes on on {device}; kept.", highlight=False
            )


def _tell_failures(console: Console, report: Report) -> None:
    for failure in report.failures[:_SHOWN_FAILURES]:
        text = f"{failure.stage}: shard {failure.shard} failed: {failure.reason}"
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    rest = len(report.failures) - _SHOWN_FAILURES
    if rest > 0:
        console.print(f"and {rest} more shards", highlight=False)
