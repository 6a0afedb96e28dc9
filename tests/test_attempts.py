"""A shard that fails is tried a bounded number of times, and only images at fault are left out of it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from weakmcn.pipeline.attempts import ATTEMPTS, INNOCENTS, Attempts
from weakmcn.pipeline.config import preset
from weakmcn.pipeline.tasks import ImageRow, Outcome, ShardDone, ShardFailed, ShardTask
from weakmcn.shards.errors import CheckpointError

BATCH = 4


def task(images: int, *, skip_bad: bool) -> ShardTask:
    rows = (
        ImageRow(key=f"{number:012d}", path=Path("x.jpg"), height=1, width=1, sha256="0") for number in range(images)
    )
    return ShardTask(
        stage="dino",
        shard=7,
        images=tuple(rows),
        config=preset("pocket"),
        folder=Path("store/dino-0"),
        fingerprint="0",
        skip_bad=skip_bad,
    )


def key(number: int) -> str:
    return f"{number:012d}"


def died(at: tuple[str, ...], reason: str = "its worker died") -> ShardFailed:
    return ShardFailed(shard=7, reason=reason, may_pass=True, worker_died=True, at=at)


def done(asked: ShardTask) -> ShardDone:
    return ShardDone(shard=7, images=len(asked.images), bytes=1, seconds=0, skipped=asked.skipped)


def machine_with(deadly: set[str]) -> Callable[[ShardTask], Outcome]:
    """Workers that die whenever they are at one of these images: in a batch, in the one read ahead, or alone."""

    def run(asked: ShardTask) -> Outcome:
        keys = [row.key for row in asked.images]
        if asked.one_by_one:
            return next((died((each,)) for each in keys if each in deadly), done(asked))
        for start in range(0, len(keys), BATCH):
            at = keys[start : start + 2 * BATCH]
            if deadly.intersection(at):
                return died(tuple(at))
        return done(asked)

    return run


def outcome_of(asked: ShardTask, run: Callable[[ShardTask], Outcome]) -> tuple[Outcome, list[ShardTask]]:
    attempts, tried = Attempts(task=asked), []
    outcome = None
    while outcome is None:
        assert len(tried) < 1000, "it does not end"
        tried.append(attempts.next_task())
        outcome = attempts.after(run(tried[-1]))
    return outcome, tried


@given(st.integers(2, 40), st.data())
def test_exactly_the_deadly_images_are_left_out_and_the_deaths_are_few(images: int, data: st.DataObject) -> None:
    deadly = data.draw(st.sets(st.integers(0, images - 1).map(key), max_size=min(images - 1, INNOCENTS)))
    outcome, tried = outcome_of(task(images, skip_bad=True), machine_with(deadly))
    assert isinstance(outcome, ShardDone)
    assert {left for left, _ in outcome.skipped} == deadly
    assert outcome.images == images - len(deadly)
    run = machine_with(deadly)
    deaths = sum(isinstance(run(each), ShardFailed) for each in tried)
    assert deaths <= 1 + (3 + INNOCENTS) * len(deadly)  # the whole shard, the look that finds it, those that make sure


def test_without_skip_bad_the_deadly_image_fails_the_shard_by_name() -> None:
    outcome, tried = outcome_of(task(10, skip_bad=False), machine_with({key(6)}))
    assert isinstance(outcome, ShardFailed)
    assert outcome.culprit == key(6)
    assert outcome.reason == ("image 000000000006: its worker died; mend it, or leave such images out with --skip-bad")
    assert [each.one_by_one for each in tried] == [False, False, True, True]
    assert [[row.key for row in each.images] for each in tried[2:]] == [
        [key(number) for number in range(8)],  # the batch and the one read ahead
        [key(5), key(6)],  # right after one that passes
    ]


def test_a_machine_on_which_everything_fails_blames_no_image() -> None:
    outcome, tried = outcome_of(
        task(10, skip_bad=True), lambda asked: died((asked.images[0].key,), "it was stopped for lack of memory")
    )
    assert isinstance(outcome, ShardFailed)
    assert outcome.culprit is None
    assert outcome.reason == "it was stopped for lack of memory"
    assert sum(not each.one_by_one for each in tried) == ATTEMPTS
    assert len(tried) == ATTEMPTS + 1 + INNOCENTS


def test_a_worker_that_never_comes_to_an_image_is_tried_three_times() -> None:
    outcome, tried = outcome_of(task(10, skip_bad=True), lambda _: died(()))
    assert isinstance(outcome, ShardFailed)
    assert len(tried) == ATTEMPTS


@pytest.mark.parametrize("deaths", range(ATTEMPTS))
def test_a_shard_whose_workers_were_killed_from_outside_is_made_whole(deaths: int) -> None:
    left = iter([True] * deaths)
    outcome, _ = outcome_of(
        task(10, skip_bad=True), lambda asked: died((key(0), key(1))) if next(left, False) else done(asked)
    )
    assert outcome == done(task(10, skip_bad=True))


def test_an_image_whose_fault_is_certain_costs_no_second_try() -> None:
    def run(asked: ShardTask) -> Outcome:
        if any(row.key == key(3) for row in asked.images):
            return ShardFailed(shard=7, reason="3.jpg: cut short", culprit=key(3))
        return done(asked)

    outcome, tried = outcome_of(task(5, skip_bad=True), run)
    assert isinstance(outcome, ShardDone)
    assert outcome.skipped == ((key(3), "3.jpg: cut short"),)
    assert len(tried) == 2


@pytest.mark.parametrize(
    "failed",
    [
        ShardFailed(shard=7, reason="the columns it reads are damaged"),
        ShardFailed(shard=7, reason="unfit weights", fatal=CheckpointError("unfit weights")),
    ],
)
def test_what_cannot_pass_is_not_tried_again(failed: ShardFailed) -> None:
    outcome, tried = outcome_of(task(5, skip_bad=True), lambda _: failed)
    assert outcome == failed
    assert len(tried) == 1
