"""Every operation on a file may fail, the disk may fill and the power may go: told in one line, and nothing is lost."""

import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from weakmcn.model import checkpoint
from weakmcn.model.checkpoint import Position
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.shards import faults
from weakmcn.shards.atomic import write_bytes
from weakmcn.shards.errors import WeakmcnError

from .soak.io_faults import all_points, one_error_each, operations, power_cuts, sweep
from .soak.training import TrainingWorld, make_training_world, newest_checkpoint
from .soak.world import World, command, make_world
from .worlds import DATASET, RECIPE, TINY


@pytest.fixture(autouse=True)
def _no_fault_stays() -> Iterator[None]:
    yield
    faults.arm("")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Three shards of one stage."""
    return make_world(tmp_path_factory.mktemp("world"), images=5, per_shard=2, stages=("dino",))


@pytest.fixture(scope="module")
def training(tmp_path_factory: pytest.TempPathFactory) -> TrainingWorld:
    torch.set_num_threads(1)
    return make_training_world(tmp_path_factory.mktemp("training"))


# Asking for a fault.


@pytest.mark.parametrize(
    "text",
    [
        "kill",
        "kill@",
        "kill@rename:0",
        "ENOSPACE@write:3",
        "SIGFOO@write",
        "kill@renames:3",
        "kill @rename",
        "@write:3",
    ],
)
def test_a_fault_that_nobody_understands_ends_a_command_at_once(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(faults.VARIABLE, text)
    status, printed = command("pocket", tmp_path / "data")
    assert status == 2
    assert printed.startswith(f"weakmcn: WEAKMCN_FAULT={text}: not a fault; write ACTION@POINT:WHICH, for instance")
    assert len(printed.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_fault_is_met_at_the_nth_passing_or_wherever_its_key_comes_by() -> None:
    faults.arm("raise@image:3, EIO@image:000000000123")
    for key in ("000000000001", "000000000002"):
        faults.point("image", key)
    with pytest.raises(RuntimeError, match=r"raise@image:3 \(000000000003\)"):
        faults.point("image", "000000000003")
    faults.point("image", "000000000004")
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            faults.point("image", "000000000123")
    faults.point("encode", "000000000123")
    faults.arm("raise@image")
    for key in ("000000000001", "000000000001"):
        with pytest.raises(RuntimeError):
            faults.point("image", key)


@pytest.mark.parametrize(
    ("which", "count", "key"),
    [("17", 17, None), ("000002", None, "000002"), ("123456789012", None, "123456789012"), ("a.tar", None, "a.tar")],
)
def test_a_number_counts_and_padded_digits_are_a_key(which: str, count: int | None, key: str | None) -> None:
    (fault,) = faults.parse(f"hang@shard:{which}")
    assert (fault.count, fault.key) == (count, key)


def test_a_files_fault_goes_by_its_final_name(tmp_path: Path) -> None:
    faults.arm("ENOSPC@write:b.json")
    write_bytes(tmp_path / "a.json", b"1")
    with pytest.raises(WeakmcnError, match=r"b\.json: could not be written: No space left on device"):
        write_bytes(tmp_path / "b.json", b"1")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    ("text", "sent"), [("kill@rename:2", signal.SIGKILL), ("segv@write:2", signal.SIGSEGV), ("SIGTERM@open:4", 15)]
)
def test_the_environment_reaches_a_process_and_kills_it_where_it_says(
    text: str, sent: signal.Signals, tmp_path: Path
) -> None:
    program = (
        "import sys; from pathlib import Path; from weakmcn.shards.atomic import write_bytes\n"
        "for name in 'abc': write_bytes(Path(sys.argv[1]) / name, b'whole')"
    )
    words = [sys.executable, "-c", program, str(tmp_path)]
    ended = subprocess.run(words, env={**os.environ, faults.VARIABLE: text}, check=False, timeout=60)
    assert ended.returncode == -sent
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert names[1:] == ["a"]
    assert names[0].endswith("-b")
    assert names[0].startswith(".tmp-")


def test_without_the_variable_a_point_is_passed_in_no_time() -> None:
    import timeit

    faults.arm("")
    assert min(timeit.repeat(lambda: faults.point("image", "000000000001"), number=10_000, repeat=5)) < 0.02


# Every operation fails once.


def test_every_failing_operation_of_a_precompute_is_one_clear_line_and_is_made_up_for(
    world: World, tmp_path: Path
) -> None:
    counts = operations(lambda: world.command(tmp_path / "counted"))
    assert world.differences(tmp_path / "counted") == []
    assert min(counts[name] for name in ("open", "write", "fsync", "rename")) > 3 * 2  # three tars, three records
    points = one_error_each(all_points(counts))
    assert {point.partition("@")[0] for point in points} == {"ENOSPC", "EIO"}
    done = sweep(world, points, tmp_path / "store")
    assert done.faults == []
    assert done.points == sum(counts[name] for name in ("open", "write", "fsync", "rename"))


def test_every_failing_operation_of_training_is_one_clear_line_and_is_made_up_for(
    training: TrainingWorld, tmp_path: Path
) -> None:
    counts = operations(lambda: training.command(tmp_path / "counted"))
    assert training.differences(tmp_path / "counted") == []
    points = one_error_each(all_points(counts))
    done = sweep(training, points[::5], tmp_path / "run")
    assert done.faults == []
    assert done.points >= 10


# The disk is full.


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: what a full disk does to a process, without filling one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_precompute_out_of_room_names_the_file_and_the_room_and_keeps_what_it_has(
    world: World, tmp_path: Path
) -> None:
    sizes = {name: (world.root / "undisturbed" / name).stat().st_size for name in world.expected}
    tars = max(size for name, size in sizes.items() if name.endswith(".tar"))
    with files_of_at_most(tars - 1):
        status, printed = world.command(tmp_path / "store")
    (line,) = [line for line in printed.splitlines() if line.startswith("weakmcn: ")]
    assert status == 1
    assert "000000.tar: could not be written: File too large (" in line
    assert " MB free" in line
    assert world.wrong_files(tmp_path / "store") == []
    assert world.command(tmp_path / "store")[0] == 0
    assert world.differences(tmp_path / "store") == []


def test_a_full_disk_at_the_second_checkpoint_leaves_the_first(training: TrainingWorld, tmp_path: Path) -> None:
    settings = TrainSettings(
        store=training.store,
        dataset=DATASET,
        out=tmp_path / "run",
        model=TINY,
        train=replace(RECIPE, epochs=2),
        device="cpu",
    )
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(WeakmcnError, match=r"00000006\.safetensors: could not be written: File too large"):
            train(
                settings,
                after_step=lambda state: (
                    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard)) if state.step == 4 else None
                ),
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    left = newest_checkpoint(tmp_path / "run")
    assert isinstance(left, checkpoint.Checkpoint)
    assert left.position.step == 3


# The power goes.


def test_no_power_cut_makes_a_shard_count_as_finished_that_is_not(world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    seen = 0

    def check(left: Path) -> list[str]:
        nonlocal seen
        seen += 1
        wrong = world.wrongly_finished(left)
        if seen % 40 == 0:  # going on from what is left
            wrong += world.wrong_after_going_on(left)
        return wrong

    done = power_cuts(lambda: world.command(store)[0], store, check, tmp_path)
    assert done.faults == []
    assert done.points > 250


def test_the_power_cuts_would_show_a_publisher_that_does_not_flush(world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    done = power_cuts(
        lambda: world.command(store)[0],
        store,
        world.wrongly_finished,
        tmp_path,
        cuts=["only tars lost"],
        is_flushing=False,
    )
    assert any("000002.tar" in fault for fault in done.faults)


def test_the_power_cuts_would_show_a_publisher_that_does_not_flush_if_being_there_meant_being_done(
    world: World, tmp_path: Path
) -> None:
    store = tmp_path / "store"

    def there_but_other(left: Path) -> list[str]:
        tars = [tar for tar in left.glob("*/*.tar") if tar.with_suffix(".json").exists()]
        names = [tar.relative_to(left).as_posix() for tar in tars]
        return [name for name, tar in zip(names, tars, strict=True) if not tar.stat().st_size]

    def cut(*, is_flushing: bool) -> list[str]:
        return power_cuts(
            lambda: world.command(store)[0],
            store,
            there_but_other,
            tmp_path,
            cuts=["renames kept"],
            is_flushing=is_flushing,
        ).faults

    assert cut(is_flushing=False)
    store.rename(tmp_path / "other")
    assert not cut(is_flushing=True)


def test_no_power_cut_while_saving_takes_the_last_checkpoint_that_loads(tmp_path: Path) -> None:
    tensors = {"net/a": torch.arange(6.0), "rng/cpu": torch.arange(5).byte()}
    run = tmp_path / "run"
    finished = 0

    def save() -> int:
        nonlocal finished
        for step in (1, 2, 3, 4):
            position = Position(epoch=step, batch=0, step=step, metrics_bytes=0, window_steps=0)
            checkpoint.save(run / "checkpoints", {**tensors, "step": torch.tensor(step)}, position)
            finished = step
        return 0

    def check(left: Path) -> list[str]:
        found = newest_checkpoint(left)
        if isinstance(found, str):
            return [found]
        step = found.position.step if found else 0
        is_whole = found is None or found.tensors["step"].item() == step
        return [] if is_whole and step >= finished else [f"step {step} is left after {finished}"]

    done = power_cuts(save, run, check, tmp_path)
    assert done.faults == []
    assert done.points > 100


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
@pytest.mark.parametrize("operation", ["open", "write", "fsync", "rename"])
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(operation: str, error: str, tmp_path: Path) -> None:
    tensors = {"net/a": torch.arange(6.0)}
    before = Position(epoch=1, batch=0, step=1, metrics_bytes=0, window_steps=0)
    checkpoint.save(tmp_path, tensors, before)
    for nth in (1, 2):
        faults.arm(f"{error}@{operation}:{nth}")
        with pytest.raises(WeakmcnError, match=os.strerror(getattr(errno, error))):
            checkpoint.save(tmp_path, tensors, replace(before, epoch=2, step=2))
        faults.arm("")
        found, _ = checkpoint.newest(tmp_path)
        assert found is not None
        assert found.position.step in (1, 2)
