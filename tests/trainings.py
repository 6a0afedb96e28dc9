"""Trainings in the toy world, and what happens to them."""

from collections.abc import Callable, Sequence
from pathlib import Path

from weakmcn.cli.settings import explained
from weakmcn.model.config import ModelConfig, TrainConfig
from weakmcn.model.sampler import epoch_batches
from weakmcn.model.samples import training_samples
from weakmcn.model.state import TrainState
from weakmcn.model.train_settings import TrainSettings
from weakmcn.shards.store import Store

from .worlds import DATASET, RECIPE, TINY

TRAIN, VAL = 24, 8
STEPS = TRAIN // RECIPE.batch  # 3 an epoch, 9 in all


def settings(
    store: Path, out: Path, *, model: ModelConfig = TINY, recipe: TrainConfig = RECIPE, **more
) -> TrainSettings:
    return TrainSettings(
        store=store, dataset=DATASET, out=out, model=model, train=recipe, device="cpu", log_steps=2, **more
    )


def content(run: Path) -> dict[str, bytes]:
    """Every file of a run that does not depend on the clock."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "timing.jsonl")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def at_step(step: int, act: Callable[[TrainState], None]) -> Callable[[TrainState], None]:
    return lambda state: act(state) if state.step == step else None


class Crash(Exception):  # noqa: N818 - not an error of the program
    """Stands for a kill: nothing after it is done."""


def crash(_: TrainState) -> None:
    raise Crash


def drawn_for(store: Path, step: int) -> tuple[str, str]:
    """The ids of the references that the sampler draws for a step (from 0), and the keys of their images."""
    samples = training_samples(Store.open(store), DATASET, "train", stages=[], max_tokens=4)
    epoch, batch = divmod(step, STEPS)
    draws = epoch_batches(samples.keys, samples.usable, seed=RECIPE.seed, epoch=epoch, batch=RECIPE.batch)[batch]
    ref_ids, keys = (", ".join(str(of[reference]) for reference, _ in draws) for of in (samples.ref_ids, samples.keys))
    return ref_ids, keys


def spelt(model: ModelConfig = TINY, recipe: TrainConfig = RECIPE, without: Sequence[str] = ()) -> list[str]:
    """Every setting as words of the command line."""
    settings = explained({"model": model, "train": recipe})
    return [part for name, value, _ in settings if name not in without for part in ("--set", f"{name}={value}")]
