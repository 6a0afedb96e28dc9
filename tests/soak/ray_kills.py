"""`kill -9` of the Ray driver, and of single Ray workers, in the middle of a precompute.

As a program, with one line of JSON, 0 for kills of the driver and 1 for kills of workers:

    python -m tests.soak.ray_kills FOLDER KILLS SEED 0|1
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path

from .kills import Kills
from .world import World, ended, forked, kill, make_world

WORKERS = 2
_PATIENCE_S = 120.0
"""For Ray to start on a machine that has other work."""
_AFTER_START_S = 0.7
"""How long after its first new file a run is killed, at most."""
_ORPHANS_S = 5.0
"""Longer than workers were seen to go on without their driver."""


def kill_drivers(world: World, folder: Path, *, kills: int, seed: int) -> Kills:
    """Kill the driver and start again at once, while the workers of the dead one may still be writing.

    When the last run is done and their time is over, the store has the bytes of an undisturbed one.
    """
    rng, done, started = random.Random(seed), Kills(), time.monotonic()
    store = folder / "drivers"
    while done.kills < kills:
        shutil.rmtree(store, ignore_errors=True)
        while True:
            files = _published(store)
            pid = forked(lambda: world.precompute(store, executor="ray", workers=WORKERS).exit_code)
            if done.kills < kills:
                _wait_for_work(pid, store, files)
                time.sleep(rng.uniform(0, _AFTER_START_S))
                kill(pid)
            status = ended(pid)
            if status != -signal.SIGKILL:
                break
            done.kills += 1
            done.faults += [f"driver kill {done.kills}: {wrong}" for wrong in world.wrong_files(store)]
        done.ended += 1
        if status != 0:
            done.faults.append(f"the run after driver kill {done.kills} ended with {status}")
        done.faults += world.differences(store)
    time.sleep(_ORPHANS_S)
    done.faults += [f"after the orphans' end {wrong}" for wrong in world.differences(store)]
    done.seconds = time.monotonic() - started
    return done


def kill_workers(world: World, folder: Path, *, kills: int, seed: int) -> Kills:
    """Kill one worker of a run at a random moment of its work; the run goes on and ends as if nothing had been."""
    rng, done, started = random.Random(seed), Kills(), time.monotonic()
    store = folder / "workers"
    while done.kills < kills:
        shutil.rmtree(store, ignore_errors=True)
        pid = forked(lambda: world.precompute(store, executor="ray", workers=WORKERS).exit_code)
        _wait_for_work(pid, store, 0)
        time.sleep(rng.uniform(0, _AFTER_START_S))
        for worker in working(pid)[:1]:
            kill(worker)
            done.kills += 1
        status = ended(pid)
        done.ended += 1
        if status != 0:
            done.faults.append(f"after worker kill {done.kills} the run ended with {status}")
        done.faults += world.differences(store)
    done.seconds = time.monotonic() - started
    return done


def working(driver: int, title: bytes = b"ray::Worker") -> list[int]:
    """The driver's actors, by the title that Ray gives a process and by their descent."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_actor = (folder / "cmdline").read_bytes().startswith(title)
            if is_actor and driver in _ancestors(int(folder.name)):
                found.append(int(folder.name))
        except OSError:  # it has just ended
            continue
    return found


def _ancestors(pid: int) -> set[int]:
    found: set[int] = set()
    while pid > 1:
        status = Path(f"/proc/{pid}/status").read_text()
        pid = int(status.partition("PPid:")[2].split()[0])
        found.add(pid)
    return found


def _published(store: Path) -> int:
    """Shards with a record."""
    return len(list(store.glob("*-*/[0-9]*.json")))


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait_for_work(pid: int, store: Path, files: int) -> None:
    """Until more than so many shards are published, or the process has ended."""
    deadline = time.monotonic() + _PATIENCE_S
    while _published(store) <= files and not _has_ended(pid) and time.monotonic() < deadline:
        time.sleep(0.01)


if __name__ == "__main__":
    root = Path(sys.argv[1])
    kills, seed, of_workers = map(int, sys.argv[2:])
    attack = kill_workers if of_workers else kill_drivers
    found = attack(make_world(root / "world", images=24), root, kills=kills, seed=seed)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
