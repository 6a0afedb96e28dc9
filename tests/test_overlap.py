"""A worker reads the next photographs and writes the last ones while it encodes; what fails fails as if it did not.

Seven photographs, three to a batch, each record larger than what a file keeps back before it writes.
"""

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path

import cv2
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from weakmcn.pipeline.config import PipelineConfig
from weakmcn.pipeline.encoders.dino import build_dino
from weakmcn.pipeline.precompute import precompute
from weakmcn.pipeline.tasks import ImageRow, Outcome, ShardDone, ShardFailed, ShardTask
from weakmcn.pipeline.work import Worker
from weakmcn.shards import faults

from .tiny import photo, small_size, write_data, write_photo, write_weights

IMAGES, BATCH = 7, 3
WIDTH = 1024
"""Of a token: 16 tokens in float32 are 64 KB."""
PATIENCE_S = 30.0


@dataclass(frozen=True, kw_only=True)
class World:
    root: Path
    config: PipelineConfig

    def task(self, store: Path, **changes) -> ShardTask:
        rows = []
        for number in range(1, IMAGES + 1):
            path, (height, width) = photo(self.root, number), small_size(number)
            sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
            rows.append(ImageRow(key=key(number), path=path, height=height, width=width, sha256=sha256))
        task = ShardTask(
            stage="dino",
            shard=0,
            images=tuple(rows),
            config=self.config,
            folder=store / "dino-0a0a0a0a",
            fingerprint="0" * 64,
        )
        return replace(task, **changes)

    def with_weights(self, folder: Path, name: str, value: float) -> PipelineConfig:
        """The settings with one weight of the network changed."""
        state = load_file(self.config.dino.checkpoint)
        state[name][0] = value
        save_file(state, folder / "other.safetensors")
        return replace(self.config, dino=replace(self.config.dino, checkpoint=str(folder / "other.safetensors")))


def key(number: int) -> str:
    return f"{number:012d}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("overlap")
    write_data(root / "data", images=IMAGES)
    config = write_weights(root / "weights")
    wide = replace(config.dino, channels=WIDTH, options=dict(config.dino.options, embed_dim=WIDTH, mlp_ratio=0.1))
    save_file(build_dino(wide).state_dict(), wide.checkpoint)
    return World(root=root / "data", config=replace(config, codec="f32", dino=wide))


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """No fault stays, no thread is left, other tests have their threads for arithmetic."""
    torch_threads, cv2_threads, running = torch.get_num_threads(), cv2.getNumThreads(), set(threading.enumerate())
    yield
    faults.arm("")
    torch.set_num_threads(torch_threads)
    cv2.setNumThreads(cv2_threads)
    assert set(threading.enumerate()) <= running


def run(task: ShardTask, seen: Callable[[str, str | Path], None] = lambda _name, _subject: None) -> Outcome:
    """What a new worker makes of the task, while `seen` is told what it is about to do."""
    with faults.observed(seen):
        return Worker("cpu").run(task)


def test_while_a_batch_is_encoded_the_next_is_read_and_the_one_before_is_written(world: World, tmp_path: Path) -> None:
    read_next, wrote_last = threading.Event(), threading.Event()
    overlapped: list[bool] = []

    def meet(name: str, subject: str | Path) -> None:
        if name == "image" and subject == key(2 * BATCH + 1):
            read_next.set()
        elif name == "write" and Path(subject).name.endswith(".tar"):
            wrote_last.set()
        elif name == "encode" and subject == key(2 * BATCH):  # the last of the second batch
            overlapped.extend([read_next.wait(PATIENCE_S), wrote_last.wait(PATIENCE_S)])

    done = run(world.task(tmp_path), meet)
    assert isinstance(done, ShardDone)
    assert overlapped == [True, True]


def test_the_encoder_waits_when_more_than_two_batches_are_not_written(world: World, tmp_path: Path) -> None:
    """A disk that hangs for a while fills no memory."""
    encoded: list[str] = []
    at_most: list[int] = []

    def slow(name: str, subject: str | Path) -> None:
        if name == "encode":
            encoded.append(str(subject))
        elif name == "open" and Path(subject).name.endswith(".tar") and not at_most:
            time.sleep(0.5)
            at_most.append(len(encoded))

    config = replace(world.config, dino=replace(world.config.dino, batch=1))
    assert isinstance(run(world.task(tmp_path, config=config), slow), ShardDone)
    assert at_most[0] <= 3  # two that wait, one that waits to be taken
    assert len(encoded) == IMAGES


def test_the_time_that_the_encoder_waits_is_in_the_outcome(world: World, tmp_path: Path) -> None:
    def slow(name: str, subject: str | Path) -> None:
        if name == "image":
            time.sleep(0.1)
        elif name == "rename" and Path(subject).name.endswith(".tar"):
            time.sleep(0.3)

    done = run(world.task(tmp_path), slow)
    assert isinstance(done, ShardDone)
    spent = done.spent
    assert spent.photos_s > 0.1 * BATCH  # nothing is encoded while the first batch is read
    assert spent.disk_s > 0.3  # nor while the shard is published
    assert spent.encode_s > 0
    assert spent.idle == pytest.approx(1 - spent.encode_s / spent.total_s)
    assert spent.total_s < done.seconds  # which counts the network's loading too


def test_the_first_failure_is_told_though_a_later_image_fails_before(world: World, tmp_path: Path) -> None:
    """A value of the first batch cannot be stored; the second batch cannot be encoded, and that is met first."""
    second_begun = threading.Event()

    def later(name: str, subject: str | Path) -> None:
        if name == "encode" and subject == key(BATCH + 1):
            second_begun.set()
            raise RuntimeError("the second batch")
        if name == "open" and Path(subject).name.endswith(".tar"):
            assert second_begun.wait(PATIENCE_S)

    config = world.with_weights(tmp_path, "norm.bias", torch.nan)
    failed = run(world.task(tmp_path, config=config), later)
    assert isinstance(failed, ShardFailed)
    assert failed.culprit == key(1)
    assert "image 000000000001, tokens: 16 of 16384 values are NaN" in failed.reason
    assert list((tmp_path / "dino-0a0a0a0a").iterdir()) == []


def test_a_photograph_that_changed_blames_none_of_those_being_written(world: World, tmp_path: Path) -> None:
    task = world.task(tmp_path)
    moved = tmp_path / "changed.jpg"
    write_photo(moved, *small_size(BATCH + 1), seed=99)
    rows = tuple(replace(row, path=moved) if row.key == key(BATCH + 1) else row for row in task.images)
    failed = run(replace(task, images=rows))
    assert isinstance(failed, ShardFailed)
    assert "changed.jpg: changed since it was indexed" in failed.reason
    assert (failed.culprit, failed.may_pass) == (None, False)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        (f"raise@encode:{key(5)}", "raise@encode"),
        (f"raise@image:{key(5)}", "raise@image"),
        ("raise@write:2", "raise@write"),
        ("ENOSPC@write:2", "No space left on device"),
        ("EIO@rename:000000.tar", "Input/output error"),
    ],
)
def test_whatever_fails_is_told_and_leaves_no_thread_and_no_file(
    world: World, tmp_path: Path, fault: str, told: str
) -> None:
    running = set(threading.enumerate())
    faults.arm(fault)
    failed = run(world.task(tmp_path))
    assert set(threading.enumerate()) <= running, "a thread outlives its task"
    assert isinstance(failed, ShardFailed)
    assert told in failed.reason
    assert list((tmp_path / "dino-0a0a0a0a").iterdir()) == []


def test_ctrl_c_in_the_middle_ends_all_three(world: World, tmp_path: Path) -> None:
    running = set(threading.enumerate())

    def interrupt(name: str, subject: str | Path) -> None:
        if name == "encode" and subject == key(BATCH + 1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(world.task(tmp_path), interrupt)
    assert set(threading.enumerate()) <= running
    assert list((tmp_path / "dino-0a0a0a0a").iterdir()) == []


def test_precompute_says_what_the_encoder_of_every_pass_waited_for(tmp_path: Path) -> None:
    told = StringIO()
    report = precompute(
        write_weights(tmp_path / "weights"),
        store=tmp_path / "store",
        data=write_data(tmp_path / "data", images=4),
        dataset="refcoco",
        splits=["train", "val"],
        executor="local",
        console=Console(file=told, width=80),
    )
    lines = re.findall(
        r"^(.*): 4 images in [^,]+, encoder idle (\d+) % \((\d+) % waiting for photographs, (\d+) % for the disk\)$",
        told.getvalue(),
        flags=re.MULTILINE,
    )
    assert [line[0] for line in lines] == ["detect", "dino", "sam and masks"]
    assert list(report.spent) == ["detect", "dino", "sam"]
    for (_, *percent), spent in zip(lines, report.spent.values(), strict=True):
        shares = [spent.idle, spent.photos_s / spent.total_s, spent.disk_s / spent.total_s]
        assert [int(each) for each in percent] == [round(100 * share) for share in shares]
