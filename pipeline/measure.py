"""The pass over training photographs that re-estimates the detector's BatchNorm statistics, before the detector runs.

Its parts are tasks like shards: any executor does them, and those that are done stay done. Here they are joined.
"""

import shutil
from collections.abc import Iterator

from ..shards.atomic import write_bytes, write_json
from ..shards.errors import StageError
from ..shards.fingerprint import file_sha256, fingerprint
from .config import PipelineConfig, with_statistics
from .progress import Progress
from .stages import anchored, versions
from .statistics import StatisticsPlan, part_sha256, write_list
from .tasks import Executor, ShardDone, ShardFailed, StatisticsTask


def measure(
    plan: StatisticsPlan, config: PipelineConfig, executor: Executor, progress: Progress
) -> Iterator[ShardFailed]:
    """Make the statistics that `plan` lacks and publish them; yields the parts that failed, and then nothing is there.

    What would fail every other part too is raised.
    """
    write_list(plan)
    tasks = _tasks(plan, config)
    total = len(plan.images)
    progress.begin("detect-bn", done=total - plan.images_due, total=total)
    is_complete = True
    for outcome in executor.run(tasks):
        if isinstance(outcome, ShardDone):
            progress.advance(outcome.images)
            continue
        if outcome.fatal is not None:
            raise outcome.fatal
        is_complete = False
        yield outcome
    if is_complete:
        _join(plan, config, executor.device)


def _tasks(plan: StatisticsPlan, config: PipelineConfig) -> list[StatisticsTask]:
    folder = plan.part_file(0).parent
    if plan.due:
        folder.mkdir(parents=True, exist_ok=True)
    return [
        StatisticsTask(
            stage="detect",
            shard=number,
            images=plan.parts[number],
            config=anchored(with_statistics(config, None)),
            folder=folder,
            fingerprint=fingerprint(dict(plan.made_from)),
            file=plan.part_file(number),
            images_sha256=part_sha256(plan.parts[number]),
        )
        for number in plan.due
    ]


def _join(plan: StatisticsPlan, config: PipelineConfig, device: str) -> None:
    from .encoders.reestimate import joined, read_part

    sums = []
    for number, part in enumerate(plan.parts):
        found = read_part(plan.part_file(number), part_sha256(part))
        if found is None:
            raise StageError(f"{plan.part_file(number)}: damaged since it was written; run the same command again.")
        sums.append(found)
    write_bytes(plan.file, joined(config.detect, sums, plan.batches))
    record = {
        "fingerprint": fingerprint(dict(plan.made_from)),
        "hashed": plan.made_from,
        "sha256": file_sha256(plan.file),
        "recorded": {"device": device, "versions": versions()},
    }
    write_json(plan.file.with_suffix(".json"), record)
    shutil.rmtree(plan.part_file(0).parent, ignore_errors=True)
