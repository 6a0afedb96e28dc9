"""The small world on which runs are disturbed, and what must be true of its store at any moment."""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from unittest.mock import patch

import cv2
from rich.console import Console
from weakmcn.cli.main import main
from weakmcn.pipeline.config import PRESETS, PipelineConfig
from weakmcn.pipeline.precompute import Report, precompute
from weakmcn.shards.atomic import TEMPORARY
from weakmcn.shards.errors import StoreError
from weakmcn.shards.family import Family
from weakmcn.shards.index import INDEX_FILE
from weakmcn.shards.layout import STORE_FILE, families_on_disk
from weakmcn.shards.lock import LOCK

from ..tiny import digests, write_data, write_weights

GROWING = (STORE_FILE, INDEX_FILE)
"""Files that are published anew as a run goes on; their bytes are the expected ones at its end only."""

PRESET = "tiny"


@dataclass(frozen=True, kw_only=True)
class World:
    """Photographs, networks, and the files of the store that an undisturbed run makes of them."""

    root: Path
    config: PipelineConfig
    stages: tuple[str, ...]
    expected: dict[str, str]
    """Path in the store -> SHA-256."""

    @property
    def images(self) -> int:
        """To be encoded by an undisturbed run, an image of every stage counted."""
        return len(self.stages) * sum(1 for _ in (self.root / "data" / "images").rglob("*.jpg"))

    def precompute(self, store: Path, *, executor: str = "local", workers: int | None = None) -> Report:
        return precompute(
            self.config,
            store=store,
            data=self.root / "data",
            dataset="refcoco",
            splits=["train", "val"],
            stages=self.stages,
            executor=executor,
            workers=workers,
            console=Console(quiet=True),
        )

    def command(self, store: Path) -> tuple[int, str]:
        """`weakmcn precompute` in this process: exit code and what it wrote to stderr."""
        words = ["precompute", "--data", self.root / "data", "--dataset", "refcoco", "--split", "train,val"]
        words += ["--store", store, "--stages", ",".join(self.stages), "--preset", PRESET, "--executor", "local"]
        with patch.dict(PRESETS, {PRESET: self.config}):
            return command(*words)

    def wrong_files(self, store: Path) -> list[str]:
        """Files under a final name that are not as an undisturbed run would have made them, and wrong records."""
        found = digests(store) if store.exists() else {}
        wrong = [
            name
            for name, digest in found.items()
            if not Path(name).name.startswith(TEMPORARY)
            and Path(name).name not in (*GROWING, LOCK)
            and self.expected.get(name) != digest
        ]
        return wrong + [f"{tar} is taken for finished" for tar in self.wrongly_finished(store)]

    def differences(self, store: Path, *, but_temporaries: bool = False) -> list[str]:
        """What a store that is done has other than an undisturbed run's; temporaries are somebody's at work."""
        found = {
            name: digest
            for name, digest in digests(store).items()
            if not (but_temporaries and Path(name).name.startswith(TEMPORARY))
        }
        names = sorted(found.keys() | self.expected.keys())
        return [f"{name} differs" for name in names if found.get(name) != self.expected.get(name)]

    def wrong_after_going_on(self, store: Path) -> list[str]:
        """What a run that goes on from what is in `store` leaves other than an undisturbed one; from any thread."""
        report = self.precompute(store)
        return self.differences(store) if report.exit_code == 0 else [f"cannot be gone on with: {report.failures}"]

    def wrongly_finished(self, store: Path) -> list[str]:
        """Tars that a reader or a plan would take for finished although their bytes are others."""
        names = []
        for folder in families_on_disk(store) if store.exists() else []:
            with contextlib.suppress(StoreError):  # a family that cannot be opened is made again
                names += [f"{folder.name}/{number:06d}.tar" for number in Family.open(folder).finished()]
        found = digests(store) if names else {}  # after that: a dead run's workers may still be finishing some
        return [name for name in names if found.get(name) != self.expected.get(name)]

    def finished_images(self, store: Path) -> int:
        """Images held by the finished shards of all families."""
        count = 0
        for folder in families_on_disk(store) if store.exists() else []:
            with contextlib.suppress(StoreError):
                count += sum(len(shard.images) for shard in Family.open(folder).finished().values())
        return count


def make_world(
    root: Path, *, images: int = 7, per_shard: int = 3, stages: tuple[str, ...] = ("detect", "dino", "sam", "masks")
) -> World:
    """Write photographs and networks below `root`, run the stages once and remember the store's files."""
    config = replace(write_weights(root / "weights"), images_per_shard=per_shard)
    write_data(root / "data", images=images, val=1)
    world = World(root=root, config=config, stages=stages, expected={})
    status = ended(forked(lambda: world.precompute(root / "undisturbed").exit_code))
    assert status == 0, f"the undisturbed run ended with {status}"
    return replace(world, expected=digests(root / "undisturbed"))


def forked(work: Callable[[], int]) -> int:
    """Run `work` in a silent child of this process, its result the exit code; the child's pid.

    A fork costs milliseconds where a new interpreter costs seconds. Only for processes that have no other threads.
    """
    cv2.setNumThreads(1)  # ends OpenCV's threads here, where they are; in a child it would wait for them for ever
    pid = os.fork()
    if pid:
        return pid
    status, stderr = 1, os.dup(2)
    try:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        status = work()
    except BaseException:
        os.write(stderr, traceback.format_exc().encode())
    finally:
        os._exit(status)


def ended(pid: int) -> int:
    """Wait for a child; its exit code, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def command(*words: object) -> tuple[int, str]:
    """`weakmcn WORDS` in this process: exit code and what it wrote to stderr."""
    argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
    printed = io.StringIO()
    sys.argv = ["weakmcn", *map(str, words)]
    try:
        with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(io.StringIO()):
            status = main()
    finally:
        sys.argv = argv
        signal.signal(signal.SIGTERM, handler)
    return status, printed.getvalue()
