"""Ctrl-C and SIGTERM end a precompute in seconds, even one whose workers hang; the same command goes on."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console
from weakmcn.pipeline.precompute import precompute
from weakmcn.shards import faults

from .tiny import digests, write_data, write_weights

# A shell starts background jobs, and so perhaps these tests, with Ctrl-C ignored.
COMMAND = (
    "import signal, sys; from weakmcn.cli.main import main; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"
)
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
        stages=["detect", "dino"],
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
    world: Path, tmp_path: Path, executor: str, hang: str, number: signal.Signals, status: int
) -> None:
    store = Path(shutil.copytree(world / "store", tmp_path / "store"))
    (family,) = store.glob("dino-*")
    for shard in family.glob("00000*"):
        shard.unlink()
    words = ["precompute", "--data", str(world / "data"), "--dataset", "refcoco", "--split", "train,val"]
    words += ["--store", str(store), "--executor", executor, "--stages", "dino"]
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, *words],
        env=os.environ | {faults.VARIABLE: f"{hang}:{LAST_IMAGE}", "COLUMNS": "200"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # with the processes it starts
    )
    deadline = time.monotonic() + 120
    while len(list(family.glob("00000*.json"))) < 2 or not list(family.glob(".tmp-trail-000002")):
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sent = time.monotonic()
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert time.monotonic() - sent < GRACE_S
    assert err.rstrip().splitlines()[-1] == (
        "weakmcn: interrupted; what was finished is kept, the same command goes on from there."
    )
    assert "Traceback" not in err
    assert len(list(family.glob("*.json"))) == 2 + 1, "two shards and stage.json: nothing partial"
    assert not list(store.rglob(".tmp-*"))
    while descendants(process.pid):
        assert time.monotonic() - sent < GRACE_S + 5, "a process of the run lives on"
        time.sleep(0.1)

    again = subprocess.run([sys.executable, "-c", COMMAND, *words[:-2], "--executor", "local", "--stages", "dino"])
    assert again.returncode == 0
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
