"""Ctrl-C and SIGTERM end a precompute in seconds, even one whose workers hang; the same command goes on."""

import os
import shutil
import signal
import time
from pathlib import Path

import pytest
from rich.console import Console
from weakmcn.pipeline.precompute import precompute
from weakmcn.shards import faults

from .faults.commands import Commands
from .tiny import digests, write_data, write_weights

GRACE_S = 10
LAST_IMAGE = "000000000010"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a whole store."""
    folder = tmp_path_factory.mktemp("signals")
    report = precompute(
        write_weights(folder / "weights"),
        store=folder / "store",
        data=write_data(folder / "data"),
        dataset="refcoco",
        splits=["train", "val"],
        stages=["detect"],
        executor="local",
        console=Console(quiet=True),
    )
    assert report.exit_code == 0
    return folder


@pytest.mark.parametrize(
    ("executor", "hang", "number", "status"),
    [
        ("local", "hang@encode", signal.SIGTERM, 143),
        ("local", "hang@image", signal.SIGINT, 130),
        pytest.param("ray", "hang@encode", signal.SIGTERM, 143, marks=pytest.mark.ray),
    ],
)
def test_a_signal_ends_a_run_that_hangs(
    commands: Commands, world: Path, tmp_path: Path, executor: str, hang: str, number: signal.Signals, status: int
) -> None:
    store = Path(shutil.copytree(world / "store", tmp_path / "store"))
    (family,) = store.glob("detect-*")
    for shard in family.glob("00000*"):
        shard.unlink()
    words = ["precompute", "--data", world / "data", "--dataset", "refcoco", "--split", "train,val"]
    words += ["--store", store, "--stages", "detect", "--executor"]
    begun = commands.begin(*words, executor, folder=tmp_path, environment={faults.VARIABLE: f"{hang}:{LAST_IMAGE}"})
    begun.until(lambda: len(list(family.glob("00000*.json"))) == 2 and list(family.glob(".tmp-trail-000002")))
    sent = time.monotonic()
    os.kill(begun.pid, number)
    assert begun.ended() == status, begun.err
    assert time.monotonic() - sent < GRACE_S
    assert begun.err.rstrip().splitlines()[-1] == (
        "weakmcn: interrupted; what was finished is kept, the same command goes on from there."
    )
    assert "Traceback" not in begun.err
    assert len(list(family.glob("*.json"))) == 2 + 1, "two shards and stage.json: nothing partial"
    assert not list(store.rglob(".tmp-*"))
    while descendants(begun.pid):
        assert time.monotonic() - sent < GRACE_S + 5, "a process of the run lives on"
        time.sleep(0.1)

    assert commands.begin(*words, "local", folder=tmp_path).ended() == 0
    assert digests(store) == digests(world / "store")


def descendants(session: int) -> list[int]:
    """Living processes of a session."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            _, _, rest = (folder / "stat").read_text().rpartition(") ")
        except OSError:  # it has just ended
            continue
        state, _, _, owner = rest.split()[:4]
        if int(owner) == session and state != "Z":
            found.append(int(folder.name))
    return found
