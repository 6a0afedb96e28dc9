"""What several tests need and nobody wants to make twice."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from weakmcn.cli.main import app, main

from .faults.commands import Commands
from .faults.sound import make_pair

# Before torch is imported: on small tensors a second thread only waits for the first.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Ray's workers are nice by default; beside other tests on two cores they would be taken for hanging.
os.environ.setdefault("RAY_worker_niceness", "0")

DEMO = ("--images", "64", "--epochs", "2", "--executor", "local", "--seed", "3")
"""The smallest demo there is a point in: 40 photographs to train on."""


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests share a process, for what they make once; those that start Ray share one, for there is one Ray.

    First come tests that fork their process, which has no other threads then, beside them those that start Ray.
    """

    def group(item: pytest.Item) -> str:
        return "ray" if item.get_closest_marker("ray") else item.path.name

    first = ("test_io_faults.py", "ray")
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
    items.sort(key=lambda item: first.index(group(item)) if group(item) in first else len(first))


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
