"""What several tests need and nobody wants to make twice."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from weakmcn.cli.main import app, main
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from .faults.commands import Commands
from .faults.sound import make_pair

if TYPE_CHECKING:  # imported where they are used, once the next lines hold
    from weakmcn.model.run import Run

    from .small_store import Small

# Before torch is imported: on small tensors a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What commands print is to fit a small terminal, wherever the tests run.
os.environ["COLUMNS"] = "80"
# Ray's workers are nice by default; beside other tests on two cores they would be taken for hanging.
os.environ.setdefault("RAY_worker_niceness", "0")

TOGETHER = ("test_cached_online.py", "test_own_methods.py", "test_walk.py")
"""Files with a fixture that takes many seconds."""

DEMO = ("--images", "64", "--epochs", "2", "--executor", "local", "--seed", "3")
"""The smallest demo there is a point in: 40 photographs to train on."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order in which tests are given to the processes: first those that fork, in a process that has no other
    threads yet, then what stays together, then all others; those that start Ray are spread among them, for they take
    all cores there are.
    """
    forking = [item for item in items if item.path.name == "test_io_faults.py"]
    long = [item for item in items if item.path.name in TOGETHER]
    ray = [item for item in items if item.get_closest_marker("ray")]
    apart = {*forking, *long, *ray}
    others = [item for item in items if item not in apart]
    every = max(1, len(others) // max(1, len(ray)))
    spread = []
    for place, item in enumerate(others):
        if ray and place % every == 0:
            spread.append(ray.pop(0))
        spread.append(item)
    items[:] = [*forking, *long, *spread, *ray]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Tests go to the process that asks first, but those of a costly fixture stay together, so that it is made once."""

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, _ = nodeid.partition("::")
            return file if file.endswith(TOGETHER) else nodeid

    return Scheduling(config, log)


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished `weakmcn demo`: data, store, run, contact_sheet.png, results.json. Not to be changed."""
    out = tmp_path_factory.mktemp("pocket") / "demo"
    app(["demo", "--out", str(out), *DEMO], standalone_mode=False)
    return out


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Runs commands, each in a process of its own with bounded memory and time."""
    with Commands() as started:
        yield started


@pytest.fixture(scope="session")
def pair(commands: Commands, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sound `data`, `store` and `run` of faults/sound.py, a few kilobytes each. Not to be changed."""
    folder = tmp_path_factory.mktemp("sound")
    make_pair(commands, folder)
    return folder


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 24 photographs to train on and 8 to measure on. Not to be changed."""
    from .trainings import TRAIN, VAL
    from .worlds import make_store

    return make_store(tmp_path_factory.mktemp("world") / "store", train=TRAIN, val=VAL)


@pytest.fixture(scope="session")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> "Run":
    """A run on `store` that nothing happened to. Not to be changed."""
    from weakmcn.model.train import train

    from .trainings import settings

    return train(settings(store, tmp_path_factory.mktemp("undisturbed") / "run"))


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> "Small":
    """The store of small_store.py. Not to be changed."""
    from .small_store import make_store

    return make_store(tmp_path_factory.mktemp("made") / "store")


@pytest.fixture
def small(made: "Small", tmp_path: Path) -> "Small":
    """A copy of its own for every test."""
    shutil.copytree(made.path, tmp_path / "store")
    return replace(made, path=tmp_path / "store")


@dataclass
class Ended:
    """How a command ended."""

    status: int
    out: str
    err: str


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Run `weakmcn WORDS` in this process, as its console script does."""
    handler = signal.getsignal(signal.SIGTERM)

    def call(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["weakmcn", *map(str, words)])
        status = main()
        printed = capsys.readouterr()
        return Ended(status, printed.out, printed.err)

    yield call
    signal.signal(signal.SIGTERM, handler)
