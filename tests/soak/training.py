"""`kill -9` at random moments of a training run, given again until it is done: the bytes of an undisturbed one.

As a program, with one line of JSON:  python -m tests.soak.training FOLDER KILLS SEED STEPS
"""

import json
import random
import shutil
import signal
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from weakmcn.model import checkpoint
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.shards.errors import WeakmcnError

from ..tiny import digests
from ..worlds import DATASET, RECIPE, TINY, make_store
from .kills import LATEST, Kills
from .world import command, ended, forked, kill

STEPS = 3
"""Of an epoch."""
CLOCK = "timing.jsonl"
"""The one file of a run that tells what the clock said."""


def kill_training(folder: Path, *, kills: int, seed: int, steps: int) -> Kills:
    """Kill and give again until there were so many kills and the last run is done; a checkpoint is tried every step.

    Once a run has had a checkpoint it has one that loads after every kill; weights, moving average, optimiser and
    metrics of a finished run are bit for bit those of one that nobody disturbed.
    """
    rng = random.Random(seed)
    store, run = make_store(folder / "store", train=STEPS * RECIPE.batch, val=1), folder / "run"
    done, started = Kills(), time.monotonic()
    ended(forked(lambda: _train(store, folder / "undisturbed", steps)))
    whole_s, expected = time.monotonic() - started, _content(folder / "undisturbed")
    while done.kills < kills:
        shutil.rmtree(run, ignore_errors=True)
        has_saved = False
        while True:
            pid = forked(lambda: _train(store, run, steps))
            if done.kills < kills:
                time.sleep(rng.uniform(0, LATEST * whole_s))
                kill(pid)
            status = ended(pid)
            if status != -signal.SIGKILL:
                break
            done.kills += 1
            found = newest_checkpoint(run)
            if isinstance(found, str) or (found is None and has_saved):
                done.faults.append(f"kill {done.kills}: {found or 'no checkpoint is left'}")
            has_saved = has_saved or found is not None
        done.ended += 1
        if status != 0:
            done.faults.append(f"the run after kill {done.kills} ended with {status}")
        done.faults += _differences(_content(run), expected)
    done.seconds = time.monotonic() - started
    return done


@dataclass(frozen=True, kw_only=True)
class TrainingWorld:
    """A small store, and the files of the run that two undisturbed epochs on it make."""

    store: Path
    expected: dict[str, str]
    """Path in the run -> SHA-256."""

    def command(self, run: Path) -> tuple[int, str]:
        """`weakmcn train` in this process: exit code and what it wrote to stderr."""
        torch.set_num_threads(1)
        words = ["train", "--shards", self.store, "--dataset", DATASET, "--out", run, "--preset", "pocket"]
        for section, values in (("model", TINY), ("train", replace(RECIPE, epochs=2))):
            for name, value in asdict(values).items():
                text = ",".join(map(str, value)) if isinstance(value, tuple) else value
                words += ["--set", f"{section}.{name}={text}"]
        return command(*words, "--device", "cpu")

    def wrong_files(self, run: Path) -> list[str]:
        """Small files that are not as they should be, and checkpoints of which none loads."""
        newest = newest_checkpoint(run)
        content = _content(run) if run.exists() else {}
        wrong = [
            name
            for name, digest in content.items()
            if name in ("run.json", "vocabulary.json", "columns.json") and self.expected[name] != digest
        ]
        return wrong + ([newest] if isinstance(newest, str) else [])

    def differences(self, run: Path) -> list[str]:
        """What a finished run has other than an undisturbed one."""
        return _differences(_content(run), self.expected)


def make_training_world(root: Path) -> TrainingWorld:
    """Write a store below `root`, train on it once and remember the run's files."""
    world = TrainingWorld(store=make_store(root / "store", train=STEPS * RECIPE.batch, val=1), expected={})
    status, printed = world.command(root / "undisturbed")
    assert status == 0, printed
    return replace(world, expected=_content(root / "undisturbed"))


def newest_checkpoint(run: Path) -> checkpoint.Checkpoint | str | None:
    """The newest sound checkpoint, None if none was ever finished, or what is wrong."""
    try:
        return checkpoint.newest(run / "checkpoints")[0]
    except WeakmcnError as fault:
        return str(fault)


def _train(store: Path, run: Path, steps: int) -> int:
    torch.set_num_threads(1)
    recipe = replace(RECIPE, epochs=steps // STEPS)
    settings = TrainSettings(
        store=store, dataset=DATASET, out=run, model=TINY, train=recipe, device="cpu", log_steps=2, checkpoint_minutes=0
    )
    train(settings)
    return 0


def _content(run: Path) -> dict[str, str]:
    return {name: digest for name, digest in digests(run).items() if name != CLOCK}


def _differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    return [
        f"{name} differs" for name in sorted(found.keys() | expected.keys()) if found.get(name) != expected.get(name)
    ]


if __name__ == "__main__":
    numbers = dict(zip(("kills", "seed", "steps"), map(int, sys.argv[2:]), strict=True))
    found = kill_training(Path(sys.argv[1]), **numbers)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")
