"""Killed at any moment, a run that is given again ends with the bytes of one that nobody disturbed.

Most kills are done by programs of their own (tests/soak), whose processes have no threads and can fork.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from weakmcn.shards import faults
from weakmcn.shards.lock import LOCK, refuse_if_held
from weakmcn.shards.store import Store

from .faults.commands import Commands
from .soak.world import command
from .tiny import write_data

ROOT = Path(__file__).parent.parent


def kills(program: str, *numbers: int, folder: Path) -> dict[str, Any]:
    """What a program of the soak found."""
    words = [sys.executable, "-m", f"tests.soak.{program}", str(folder), *map(str, numbers)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=280, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stderr
    return json.loads(ended.stdout.splitlines()[-1])


def test_30_kills_of_a_precompute_leave_no_wrong_byte_and_cost_no_finished_shard(tmp_path: Path) -> None:
    """Nor do the writes of a worker that outlives its driver change one."""
    found = kills("kills", 30, 0, folder=tmp_path)
    assert found["faults"] == []
    assert found["kills"] == 30
    assert found["ended"] >= 2


def test_kills_of_training_leave_a_checkpoint_that_loads_and_change_no_bit(tmp_path: Path) -> None:
    found = kills("training", 6, 0, 12, folder=tmp_path)
    assert found["faults"] == []
    assert found["kills"] == 6


@pytest.mark.ray
def test_a_ray_driver_that_is_killed_and_its_orphans_change_no_byte(tmp_path: Path) -> None:
    found = kills("ray_kills", 1, 0, 0, folder=tmp_path)
    assert found["faults"] == []
    assert found["kills"] == 1


def test_a_second_run_is_refused_in_less_than_a_second_and_told_who_holds_the_store(
    commands: Commands, tmp_path: Path
) -> None:
    write_data(tmp_path / "data", images=3, val=1)
    words = ["precompute", "--data", tmp_path / "data", "--dataset", "refcoco", "--store", tmp_path / "store"]
    words += ["--preset", "pocket", "--executor", "local", "--stages", "dino"]
    holder = commands.begin(*words, folder=tmp_path, environment={faults.VARIABLE: "hang@write:000000.tar"})
    holder.until(lambda: list(tmp_path.glob("store/dino-*/.tmp-*.tar")))
    started = time.monotonic()
    status, printed = command(*words)
    assert time.monotonic() - started < 1
    os.kill(holder.pid, signal.SIGKILL)
    assert holder.ended() == -signal.SIGKILL
    assert status == 1
    (line,) = printed.splitlines()
    since = time.strftime("%Y-%m-%dT")
    by = f"another precompute (pid {holder.pid} on {socket.gethostname()}, since {since}"
    assert line.startswith(f"weakmcn: {tmp_path / 'store'}: {by}")
    assert line.endswith("holds this folder; wait for it to end, or stop it.")

    assert (tmp_path / "store" / LOCK).exists()  # left by the kill; nobody holds it
    refuse_if_held(tmp_path / "store")
    assert command(*words)[0] == 0
    assert Store.open(tmp_path / "store").verify() == []


def test_asking_who_holds_a_folder_makes_nothing(tmp_path: Path) -> None:
    refuse_if_held(tmp_path / "nowhere")
    assert list(tmp_path.iterdir()) == []
