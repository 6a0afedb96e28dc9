"""`kill -9` at random moments of a precompute, restarted until it is done: the bytes of an undisturbed run.

As a program it prints what it found as one line of JSON, so that a test can have it done by a process without threads:

    python -m tests.soak.kills FOLDER KILLS SEED
"""

import json
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from weakmcn.pipeline.precompute import shards_of
from weakmcn.pipeline.stages import anchored
from weakmcn.pipeline.work import ShardDone, ShardTask, Worker
from weakmcn.shards import faults
from weakmcn.shards.store import Store

from .world import World, ended, forked, kill, make_world

LATEST = 0.6
"""Latest moment of a kill, in parts of an undisturbed run: later ones would mostly find it ended."""

ORPHANS_STOP_AT = ("open:000001.tar", "rename:000001.tar", "open:000001.json", "rename:000001.json")
"""Where a worker of a dead driver is when the next run begins."""


@dataclass(kw_only=True)
class Kills:
    """What became of disturbed runs."""

    kills: int = 0
    ended: int = 0
    """Runs brought to their end, each after some kills."""
    seconds: float = 0
    faults: list[str] = field(default_factory=list)
    """What was wrong, a line each."""


def kill_precompute(world: World, folder: Path, *, kills: int, seed: int) -> Kills:
    """Kill and restart until there were so many kills and the last store is done.

    After every kill the files under final names are right, and none is taken for finished that is not; the restarted
    run encodes exactly the images that were not in a finished shard.
    """
    rng = random.Random(seed)
    store, encoded = folder / "killed", folder / "encoded"
    done, started = Kills(), time.monotonic()
    whole_s = min(_seconds(world, folder / f"timed-{again}", encoded) for again in range(2))
    while done.kills < kills:
        shutil.rmtree(store, ignore_errors=True)
        while True:
            before = world.finished_images(store)
            pid = forked(lambda: _run(world, store, encoded))
            if done.kills < kills:
                time.sleep(rng.uniform(0, LATEST * whole_s))
                kill(pid)
            status = ended(pid)
            if status != -signal.SIGKILL:
                break
            done.kills += 1
            done.faults += [f"kill {done.kills}: {wrong}" for wrong in world.wrong_files(store)]
        done.ended += 1
        if status != 0:
            done.faults.append(f"the run after kill {done.kills} ended with {status}")
        elif before + int(encoded.read_text()) != world.images:
            done.faults.append(f"of {world.images} images {before} were finished, {encoded.read_text()} encoded")
        done.faults += world.differences(store)
    done.seconds = time.monotonic() - started
    return done


def orphan_writes(world: World, folder: Path) -> list[str]:
    """A worker that outlives its driver and goes on when the next run is done: what it then changes in the store.

    It is stopped before it publishes, wakes when everything is finished, and publishes.
    """
    wrong = []
    for stop in ORPHANS_STOP_AT:
        wrong += [f"an orphan stopped at {stop}: {fault}" for fault in _orphan_writes(world, folder / "orphaned", stop)]
    return wrong


def _orphan_writes(world: World, store: Path, stop: str) -> list[str]:
    shutil.rmtree(store, ignore_errors=True)
    ended(forked(lambda: world.precompute(store).exit_code))
    family = Store.open(store).families["dino"]
    for file in family.folder.glob("000001.*"):
        file.unlink()
    task = ShardTask(
        stage="dino",
        shard=1,
        images=shards_of(store, world.root / "data")[1],
        config=anchored(world.config),
        folder=family.folder,
        fingerprint=family.fingerprint,
    )
    orphan = forked(lambda: _orphan(task, f"SIGSTOP@{stop}"))
    _, status = os.waitpid(orphan, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        return ["it did not stop"]
    exit_code = ended(forked(lambda: world.precompute(store).exit_code))
    wrong = [f"the next run ended with {exit_code}"] * (exit_code != 0)
    wrong += world.differences(store, but_temporaries=True)
    while os.WIFSTOPPED(status):  # a file is opened twice
        os.kill(orphan, signal.SIGCONT)
        _, status = os.waitpid(orphan, os.WUNTRACED)
    wrong += [f"it ended with {status}"] * (status != 0)
    return wrong + [f"after its end {difference}" for difference in world.differences(store)]


def _orphan(task: ShardTask, fault: str) -> int:
    faults.arm(fault)
    return 0 if isinstance(Worker("cpu").run(task), ShardDone) else 1


def _run(world: World, store: Path, encoded: Path) -> int:
    report = world.precompute(store)
    encoded.write_text(str(sum(report.images.values())))
    return report.exit_code


def _seconds(world: World, store: Path, encoded: Path) -> float:
    """How long an undisturbed run takes."""
    started = time.monotonic()
    ended(forked(lambda: _run(world, store, encoded)))
    return time.monotonic() - started


if __name__ == "__main__":
    root = Path(sys.argv[1])
    made = make_world(root / "world")
    found = kill_precompute(made, root, kills=int(sys.argv[2]), seed=int(sys.argv[3]))
    found.faults += orphan_writes(made, root)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
