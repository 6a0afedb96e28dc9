"""The offline half as one call: index the photographs, plan, run what is missing or stale.

Nothing is lost by stopping: shards are published one by one, and the store goes over to a new column family only when
that family is whole. So a run that is interrupted, killed or out of disk is gone on with by the same call.
"""

import shutil
import tempfile
import time
from collections.abc import Container, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ..shards.atomic import sweep, write_json
from ..shards.choices import not_known
from ..shards.errors import ImageError
from ..shards.family import STAGE_FILE, Family
from ..shards.layout import (
    IMAGES_FILE,
    STORE_FILE,
    families_on_disk,
    refuse_foreign,
    remember_source,
    require_side,
    set_current,
    write_stage_json,
)
from ..shards.lock import only_writer
from ..shards.tables import IMAGES, read_table
from .annotations import exported_by, fitting_preset
from .config import PipelineConfig
from .datasets import find_dataset
from .detector_bn import check_choice, settled
from .estimate import seconds_an_image
from .index import build_index
from .layouts import annotation_file
from .measure import measure
from .plain_table import plain_console
from .plan import Plan, Shards, StagePlan, families_in_use, make_plan, workers_expected
from .probe import probed
from .progress import Progress
from .remembered import configured
from .report import Failure, Report, tell_device, tell_failures, tell_pass, tell_plan
from .sizes import codec_table, shared_note
from .stages import (
    STATISTICS_FOLDER,
    anchored,
    checkpoint_digests,
    chosen_stages,
    columns_read,
    recipes,
    recorded,
    require_fit,
    shares_pass,
    stage_named,
)
from .statistics import overlaps, plan_statistics
from .tasks import Executor, ImageRow, ShardDone, ShardTask, Spent
from .trail import STALL_S
from .work import LocalExecutor

EXECUTORS = ("ray", "local")


def settings(
    store: Path,
    *,
    data: Path | None = None,
    preset: str | None = None,
    codec: str | None = None,
    checkpoints: Mapping[str, str] | None = None,
) -> PipelineConfig:
    """The settings for a precompute of `store`: those asked for, the rest as the store was made.

    data: whose photographs they are for; a new store takes the preset that fits these, `pocket` where none are named.
    """
    in_use = {stage: family.stage_json for stage, family in families_in_use(Path(store)).items()}
    if preset is None and not in_use and data is not None:
        preset = fitting_preset(Path(data))
    return configured(in_use, preset=preset, codec=codec, checkpoints=checkpoints, store=Path(store))


def precompute(
    config: PipelineConfig,
    *,
    store: Path,
    data: Path,
    dataset: str,
    splits: Sequence[str],
    stages: Sequence[str] | None = None,
    detector_bn: str | None = None,
    executor: str = "ray",
    address: str | None = None,
    workers: int | None = None,
    skip_bad: bool = False,
    dry_run: bool = False,
    probe: bool = False,
    insecure_ray: bool = False,
    stall_s: float = STALL_S,
    console: Console | None = None,
    plan_console: Console | None = None,
) -> Report:
    """Bring `store` up to date for `splits` of `dataset` below `data`.

    stages: names, ["all"], or None for the default ones and those the store has. detector_bn: "frozen", "reestimate"
    (from the training photographs of `dataset`), or None for what `config` says. dry_run: plan and write nothing;
    probe: send some photographs through the networks, so that the plan's figures are measured.
    stall_s: a Ray worker that takes no step for so long is stopped, and its shard tried again. console: for what is
    told on the way, stderr if None; plan_console: for the plan, if that belongs elsewhere.
    Raises InputError (and its kinds) before anything is encoded, WeakmcnError where going on is pointless (unfit
    weights, a full disk); shards that fail on their own are in the report.
    """
    store, data = Path(store), Path(data)
    console = console or plain_console(stderr=True)
    plan_console = plan_console or console
    if executor not in EXECUTORS:
        raise not_known(f"executor {executor!r}", executor, EXECUTORS)
    refuse_foreign(store)
    if (store / STORE_FILE).exists():
        require_side(store, config.side_px)  # told of the store, not of a dry run's copy
    in_use = families_in_use(store)
    chosen = chosen_stages(stages, in_use)
    kept = settings(store).detect.statistics if "detect" in in_use else None
    check_choice(detector_bn, store, kept, dataset, splits, chosen)
    annotation_file(data, find_dataset(dataset))
    digests = checkpoint_digests(config, chosen)  # before anything is written: weights may be missing
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
                decoded=not dry_run,
                on_progress=lambda done, total: progress.reach("photos", done=done, total=total),
            )
        if not dry_run:
            remember_source(store, find_dataset(dataset).name, data, splits, exported_by(data))
        shards = shards_of(index_folder, data)
        decided = settled(config, detector_bn, index_folder, dataset, store, digests)
        statistics = None
        if decided.detect.statistics and "detect" in [stage.name for stage in chosen]:
            statistics = plan_statistics(
                decided,
                store,
                index_folder,
                {row.key: row for rows in shards.values() for row in rows},
                digests[decided.detect.checkpoint],
                seconds_an_image=seconds_an_image(stage_named("detect"), decided, gpu=gpu),
                workers=expected,
            )
        made_from = recipes(decided, chosen, digests)
        plan = make_plan(decided, store, shards, chosen, made_from, workers=expected, gpu=gpu, statistics=statistics)
        if statistics is not None:
            plan = replace(plan, notes=(*plan.notes, *overlaps(index_folder, statistics)))
        if dry_run and probe and not plan.is_done:
            require_fit(plan.networks, decided)
            with console.status("") as status:
                told = lambda stage: status.update(f"trying {stage} on some photographs")  # noqa: E731
                plan = probed(plan, shards, workers=expected, told=told)
        if dry_run and not plan.is_done:
            shared = shared_note(plan, index_folder, dataset, splits, shards)
            plan = replace(plan, notes=(*shared, *plan.notes))
        tell_plan(plan_console, index, plan, on_ray=executor == "ray")
        if dry_run and any(stage.due for stage in plan.stages):
            plan_console.print()
            plan_console.print(codec_table(plan))
        require_fit(plan.networks, decided)
        report = Report(index=index, plan=plan, dry_run=dry_run, images={stage.stage.name: 0 for stage in plan.stages})
        if not dry_run:
            plan.require_space()
            _require_photos(plan, shards, data)
            if executor == "ray" and not plan.is_done:
                console.print("starting Ray …", highlight=False)  # it takes seconds, on a large machine a minute
            with _executor(executor, address, workers, insecure_ray, stall_s, idle=plan.is_done) as running:
                _run(report, shards, running, console, skip_bad=skip_bad)
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
    """ImageError where what is to be made has photographs of a data set that was indexed from elsewhere."""
    due = {number for stage in plan.stages for number in stage.due}
    rows = [row for number in sorted(due) for row in shards[number]]
    if plan.statistics is not None:
        rows += [row for number in plan.statistics.due for row in plan.statistics.parts[number]]
    absent = [row for row in dict.fromkeys(rows) if not row.path.is_file()]
    if absent:
        raise ImageError(
            f"{len(absent)} photographs of the store are not below {data} (first: {absent[0].path}); put or link the "
            "photographs of all its data sets there."
        )


def _executor(
    name: str, address: str | None, workers: int | None, insecure_ray: bool, stall_s: float, *, idle: bool
) -> AbstractContextManager[Executor]:
    if name == "local" or idle:  # Ray takes seconds to start; an up-to-date store should not
        return LocalExecutor()
    from .executor import RayExecutor

    return RayExecutor(address=address, workers=workers, insecure_ray=insecure_ray, stall_s=stall_s)


def _run(report: Report, shards: Shards, executor: Executor, console: Console, *, skip_bad: bool) -> None:
    """Run every stage of the plan in order; put the new families in use."""
    plan, store = report.plan, report.plan.store
    in_use = families_in_use(store)
    whole: list[StagePlan] = []
    failed: dict[str, set[int]] = {}
    made: dict[str, set[int]] = {}
    """Stage -> shards that another stage's pass has made already."""
    tell_device(console, plan, executor.device)
    with Progress(console) as progress:
        for stage in plan.stages:
            folder = _begin(plan, stage, executor.device)
            if stage.stage.name not in in_use:
                set_current(store, stage.stage.name, folder.name)
            missing = failed[stage.stage.name] = set().union(*(failed.get(need, ()) for need in stage.stage.needs))
            if stage.stage.name == "detect" and not _measured(report, executor, progress):
                missing.update(stage.due)
            ready = made.get(stage.stage.name, set())
            tasks = _tasks(plan, stage, shards, folder, without=missing | ready, skip_bad=skip_bad)
            later = _sharing(plan, stage)
            if later is not None:
                besides = _beside(plan, later, shards, executor.device, failed)
                tasks = [replace(task, beside=besides.get(task.shard)) for task in tasks]
            done = stage.images_total - stage.images_due + report.images[stage.stage.name]
            progress.begin(stage.stage.name, done=done, total=stage.images_total)
            began, images, spent = time.monotonic(), 0, Spent()
            for outcome in executor.run(tasks):
                if isinstance(outcome, ShardDone):
                    if later is not None and outcome.beside_bytes is not None:
                        made.setdefault(later.stage.name, set()).add(outcome.shard)
                        report.images[later.stage.name] += outcome.images
                        report.bytes += outcome.beside_bytes
                    report.images[stage.stage.name] += outcome.images
                    report.bytes += outcome.bytes
                    images, spent = images + outcome.images, spent + outcome.spent
                    progress.advance(outcome.images)
                    continue
                if outcome.fatal is not None:
                    raise outcome.fatal
                missing.add(outcome.shard)
                report.failures.append(Failure(stage=stage.stage.name, shard=outcome.shard, reason=outcome.reason))
            if images:
                report.spent[stage.stage.name] = spent
                both = f" and {later.stage.name}" if later is not None and later.stage.name in made else ""
                tell_pass(console, stage.stage.name + both, images, time.monotonic() - began, spent)
            finished = Family.open(folder).survey.shards.values()  # makes its index, once here and not in every reader
            skipped = {key: f"{stage.stage.name}: {why}" for each in finished for key, why in each.skipped.items()}
            report.left_out = skipped | report.left_out  # the first stage that lacks it tells why
            if missing.isdisjoint(stage.due):
                whole.append(stage)
    tell_failures(console, report)
    for stage in whole:
        set_current(store, stage.stage.name, stage.recipe.family)


def _sharing(plan: Plan, stage: StagePlan) -> StagePlan | None:
    """The stage of the plan that the pass of `stage` over the photographs can make too."""
    for later in plan.stages:
        if later.stage.shares == stage.stage.name and shares_pass(later.stage, plan.config):
            return later
    return None


def _beside(
    plan: Plan, later: StagePlan, shards: Shards, device: str, failed: Mapping[str, set[int]]
) -> dict[int, ShardTask]:
    """Shard -> task of a later stage, where all that it reads is there and no image is left out."""
    without = set().union(*(failed.get(need, ()) for need in later.stage.needs))
    for need in dict.fromkeys(column.partition(".")[0] for column in columns_read(later.stage, plan.config)):
        survey = Family.open(plan.store / plan.families[need]).survey
        without |= {number for number in later.due if number not in survey.shards or survey.shards[number].skipped}
    tasks = _tasks(plan, later, shards, _begin(plan, later, device), without=without, skip_bad=False)
    return {task.shard: task for task in tasks}


def _measured(report: Report, executor: Executor, progress: Progress) -> bool:
    """Whether the statistics that the detector needs are there; they are made at need."""
    plan = report.plan
    if plan.statistics is None or plan.statistics.is_whole:
        return True
    failures = [
        Failure(stage="detect-bn", shard=outcome.shard, reason=outcome.reason)
        for outcome in measure(plan.statistics, plan.config, executor, progress)
    ]
    report.failures += failures
    return not failures


def _begin(plan: Plan, stage: StagePlan, device: str) -> Path:
    """The folder of the stage's family with its stage.json, which is told where the weights are now."""
    beside = recorded(stage.recipe, plan.config, device)
    folder = write_stage_json(plan.store, stage.stage.name, stage.recipe.hashed, beside)
    content = Family.open(folder).stage_json
    places = {name: beside[name] for name in ("checkpoint", "statistics_file") if name in beside}
    if not places.items() <= content["recorded"].items():
        write_json(folder / STAGE_FILE, content | {"recorded": content["recorded"] | places})
    return folder


def _tasks(
    plan: Plan, stage: StagePlan, shards: Shards, folder: Path, *, without: Container[int], skip_bad: bool
) -> list[ShardTask]:
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
            skip_bad=skip_bad,
        )
        for number in stage.due
        if number not in without
    ]


def _sweep(store: Path) -> None:
    weights = store / STATISTICS_FOLDER
    for folder in [store, *families_on_disk(store), weights, *weights.glob("statistics-*/")]:
        sweep(folder)


def _copy_tables(store: Path, shadow: Path) -> None:
    """The small files that the index is built on, so that a dry run writes beside the store and not into it."""
    for pattern in (STORE_FILE, "*.parquet"):
        for file in store.glob(pattern):
            shutil.copy2(file, shadow / file.name)
