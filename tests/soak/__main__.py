"""`just soak`: the long form of the fault tests: 12 minutes at full counts on two cores.

    python -m tests.soak --minutes 60        all parts at full counts: what the reliability page reports
    python -m tests.soak --minutes 3         a twentieth of them
    python -m tests.soak --only kills,fuzz   some parts

Prints a line for every part and every fault; exit code 1 if there was one.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .fuzz import Victim, fuzz
from .io_faults import Disturbable, all_points, operations, power_cuts, sweep
from .training import make_training_world
from .world import make_world

FULL_MINUTES = 60
ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Part:
    """One kind of disturbance."""

    what: str
    count: int
    """At full length; 0: as many as there are."""
    run: Callable[[Path, int, float, int], tuple[int, list[str]]]
    """(folder, count, share of the points, seed) -> disturbances done, what was wrong."""


def _program(name: str, *more: int) -> Callable[[Path, int, float, int], tuple[int, list[str]]]:
    """A part that forks and therefore runs as a process of its own."""

    def run(folder: Path, count: int, share: float, seed: int) -> tuple[int, list[str]]:
        words = [sys.executable, "-m", f"tests.soak.{name}", str(folder), str(count), str(seed), *map(str, more)]
        ended = subprocess.run(words, stdout=subprocess.PIPE, text=True, cwd=ROOT, check=False)
        if ended.returncode:
            return 0, [f"{' '.join(words)} ended with {ended.returncode}"]
        found = json.loads(ended.stdout.splitlines()[-1])
        return found["kills"], found["faults"]

    return run


def _sweep(make: Callable[[Path], Disturbable]) -> Callable[[Path, int, float, int], tuple[int, list[str]]]:
    def run(folder: Path, count: int, share: float, seed: int) -> tuple[int, list[str]]:
        subject = make(folder / "world")
        points = all_points(operations(lambda: subject.command(folder / "counted")))
        every = max(1, round(1 / share))
        done = sweep(subject, points[seed % every :: every], folder / "out")
        return done.points, done.faults

    return run


def _power(folder: Path, count: int, share: float, seed: int) -> tuple[int, list[str]]:
    world = make_world(folder / "world")
    seen = 0

    def check(left: Path) -> list[str]:
        nonlocal seen
        seen += 1
        wrong = world.wrongly_finished(left)
        if seen % max(4, round(4 / share)) == 0:
            wrong += world.wrong_after_going_on(left)
        return wrong

    done = power_cuts(lambda: world.command(folder / "store")[0], folder / "store", check, folder)
    return done.points, done.faults


def _fuzz(folder: Path, count: int, share: float, seed: int) -> tuple[int, list[str]]:
    done = fuzz(Victim(folder / "store"), mutations=count, seed=seed)
    return done.mutations, done.faults


PARTS = {
    "kills": Part("kill -9 of a precompute", 200, _program("kills")),
    "drivers": Part("kill -9 of the Ray driver", 10, _program("ray_kills", 0)),
    "workers": Part("kill -9 of a Ray worker", 10, _program("ray_kills", 1)),
    "memory": Part("a photograph that takes all memory", 1, _program("memory")),
    "sweep": Part("failing operations of a precompute", 0, _sweep(make_world)),
    "training-sweep": Part("failing operations of training", 0, _sweep(make_training_world)),
    "power": Part("power cuts of a precompute", 0, _power),
    "fuzz": Part("mutations of shards and records", 20_000, _fuzz),
    "training": Part("kill -9 of training, 60 steps", 20, _program("training", 60)),
}


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="just soak", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=FULL_MINUTES, help="60 for full counts; fewer, fewer of each")
    parser.add_argument("--only", default=",".join(PARTS), help=f"some of {', '.join(PARTS)}")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    if unknown := set(asked.only.split(",")) - PARTS.keys():
        parser.error(f"--only {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    share = min(1.0, asked.minutes / FULL_MINUTES)
    failed = False
    for name in asked.only.split(","):
        part, started = PARTS[name], time.monotonic()
        with tempfile.TemporaryDirectory(prefix="weakmcn-soak-") as folder:
            done, faults = part.run(Path(folder), max(1, round(part.count * share)), share, asked.seed)
        seconds = time.monotonic() - started
        sys.stdout.write(f"{part.what:40} {done:>6,} done  {len(faults):>3} faults  {seconds:>6.0f} s\n")
        sys.stdout.writelines(f"    {fault}\n" for fault in faults)
        sys.stdout.flush()
        failed = failed or bool(faults)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
