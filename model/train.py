"""Training: the recipe of method section 14, resumable to the bit.

A run is a pure function of its settings and its data. Its state is small and complete (state.py), and the order of
training is a function of (seed, epoch), so an interrupted run that is started again ends with the bytes of an
undisturbed one, on the same machine.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from ..shards.atomic import sweep, write_json
from ..shards.errors import ConfigError, WeakmcnError
from ..shards.lock import only_writer
from ..shards.store import Store
from . import checkpoint
from .batch import Batch
from .config import ModelConfig, TrainConfig
from .interrupts import Interrupted, stop_requests
from .journal import Clock, Journal, cut_to
from .loader import Loader, RamFeatures, ahead, columns_of
from .methods import method_of
from .progress import Watch, tell
from .references import FIRST_SPLIT
from .run import FORMAT, Run, device_of
from .sampler import Draw, epoch_batches
from .samples import Samples, training_samples
from .schedule import learning_rate
from .state import TrainState


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """One run: what is trained, on what, and where it is kept."""

    store: Path
    dataset: str
    out: Path
    """The run folder; made if absent, continued if it holds this run."""
    model: ModelConfig
    train: TrainConfig
    method: str = "weakmcn"
    split: str = FIRST_SPLIT
    shuffle_captions: bool = False
    """Control experiment: every reference gets the captions of another image's, so that they say nothing about it."""
    features: Literal["disk", "ram"] = "disk"
    """Where a step's columns come from: the store's files, or memory, filled once at the start."""
    device: str = "auto"
    """A torch device; "auto" is the GPU where there is one."""
    checkpoint_minutes: float = 10
    """Between two checkpoints inside an epoch; every epoch ends with one anyway."""
    log_steps: int = 20
    """Steps averaged in one line of metrics.jsonl."""

    def __post_init__(self) -> None:
        for name in ("store", "out"):
            object.__setattr__(self, name, Path(getattr(self, name)))
        method_of(self.method)
        if self.features not in ("disk", "ram"):
            raise ConfigError(f"features={self.features!r} is not known; choose disk or ram.")
        if self.log_steps < 1:
            raise ConfigError(f"log_steps={self.log_steps} must be at least 1.")


def train_epoch(
    state: TrainState, batches: Iterable[tuple[Batch, list[int]]], config: TrainConfig, steps: int
) -> Iterator[None]:
    """What is left of an epoch; hands over after every step.

    batches: each with the ids of its references. steps: of a whole epoch.
    """
    state.net.train()
    for batch, ref_ids in batches:
        losses = state.net.losses(batch, state.epoch)  # pyright: ignore[reportCallIssue]
        state.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        norm = nn.utils.clip_grad_norm_(state.weights, config.clip_norm)
        if not torch.isfinite(losses.total.detach() + norm):
            raise _not_finite(state.step, losses, ref_ids)
        state.set_rate(learning_rate(state.step, steps, config))
        state.optimiser.step()
        state.average.update(state.step)
        state.advance(losses, steps)
        yield


def train(settings: TrainSettings, *, after_step: Callable[[TrainState], None] | None = None) -> Run:
    """Train, or go on with what `settings.out` holds, until the last epoch is done; a finished run is left as it is.

    after_step: called after every step, before it is logged or saved; what it raises ends the run as a crash would.
    Raises InputError (nothing was started) for settings, a store or a run folder that do not fit; Interrupted when a
    signal asked for the end and all is saved; WeakmcnError, before the step, when a loss is not finite.
    """
    needs = method_of(settings.method).fields(settings.model)
    store = Store.open(settings.store)
    stages = list(dict.fromkeys(column.partition(".")[0] for column in columns_of(needs).values()))
    samples = training_samples(
        store,
        settings.dataset,
        settings.split,
        stages=stages,
        max_tokens=settings.model.max_tokens,
        shuffle_seed=settings.train.seed if settings.shuffle_captions else None,
    )
    device = device_of(settings.device)
    loader = Loader(store, needs, device=device)
    # Before anything is written: can a batch be filled, and do the columns have the network's sizes?
    samples.steps(settings.train.batch)
    loader.batch(samples.keys[:1], samples.tokens[0][:1]).check(settings.model, masks="masks" in needs)
    with only_writer(settings.out, "weakmcn train"):
        run = _open_run(settings, store, samples, stages)
        state, log_bytes = _state_of(run, device)
        if state.epoch >= settings.train.epochs:
            tell(
                f"{run.path}: all {state.epoch} epochs are done. Measure it: weakmcn eval --run {run.path} --split val"
            )
            return run
        for note in samples.notes:
            tell(note)
        if settings.features == "ram":
            loader.features = RamFeatures(loader.features, samples.keys)
        cut_to(run.metrics, log_bytes)
        _train(run, settings, state, samples, loader, after_step)
    return run


def _train(
    run: Run,
    settings: TrainSettings,
    state: TrainState,
    samples: Samples,
    loader: Loader,
    after_step: Callable[[TrainState], None] | None,
) -> None:
    """All steps that are left, with what surrounds them: journal, checkpoints, signals."""
    config, steps = settings.train, samples.steps(settings.train.batch)
    pause = 60 * settings.checkpoint_minutes
    saved_at = time.monotonic()
    with (
        Watch(steps=steps * config.epochs, done=state.step, batch=config.batch) as watch,
        Journal(run.metrics, run.timing, watch, epochs=config.epochs) as journal,
        stop_requests() as stop,
    ):
        while (epoch := state.epoch) < config.epochs:
            clock, first = Clock(), state.step
            draws = epoch_batches(samples.keys, samples.usable, seed=config.seed, epoch=epoch, batch=config.batch)
            batches = clock.waiting_for(ahead(partial(_batch, loader, samples), draws[state.batch :]))
            for _ in train_epoch(state, batches, config, steps):
                if after_step:
                    after_step(state)
                watch.step()
                at_end = state.batch == 0
                if at_end or state.window_steps == settings.log_steps:
                    rate = learning_rate(state.step - 1, steps, config)
                    journal.losses(epoch=epoch, step=state.step, rate=rate, losses=state.take_window())
                if at_end or stop.signal_number or time.monotonic() - saved_at > pause:
                    checkpoint.save(run.checkpoints, state.tensors(), state.position(journal.flush()))
                    saved_at = time.monotonic()
                if stop.signal_number and state.epoch < config.epochs:
                    raise Interrupted(
                        f"{run.path}: interrupted after step {state.step:,}, which is saved; "
                        "run the same command again to go on.",
                        stop.signal_number,
                    )
            journal.epoch(epoch, clock.stop(references=(state.step - first) * config.batch))


def _batch(loader: Loader, samples: Samples, drawn: Sequence[Draw]) -> tuple[Batch, list[int]]:
    """The drawn batch, and the ids of its references."""
    tokens = np.stack([samples.tokens[reference][sentence] for reference, sentence in drawn])
    keys = [samples.keys[reference] for reference, _ in drawn]
    return loader.batch(keys, tokens), [samples.ref_ids[reference] for reference, _ in drawn]


def _open_run(settings: TrainSettings, store: Store, samples: Samples, stages: Sequence[str]) -> Run:
    """The run in `settings.out`, made now or found; ConfigError or StoreError if what is found is another run."""
    facts = {
        "format": FORMAT,
        "version": version("weakmcn"),
        "method": settings.method,
        "model": asdict(settings.model),
        "train": asdict(settings.train),
        "dataset": settings.dataset,
        "split": settings.split,
        "shuffle_captions": settings.shuffle_captions,
        "log_steps": settings.log_steps,
        "store": str(settings.store),
        "store_absolute": str(settings.store.absolute()),
        "samples": samples.digest,
    }
    out = settings.out
    sweep(out)
    sweep(out / "checkpoints")
    if (out / "run.json").exists():
        run = Run.open(out)
        run.check_same(facts)
        run.check_columns(store)
        return run
    samples.vocabulary.save(out / "vocabulary.json")
    write_json(out / "columns.json", {stage: store.families[stage].stage_json for stage in stages})
    write_json(out / "run.json", facts)
    return Run.open(out)


def _state_of(run: Run, device: torch.device) -> tuple[TrainState, int]:
    """The state to go on from, and the length that metrics.jsonl had then; a damaged newest checkpoint is told."""
    torch.manual_seed(run.train.seed)
    state = TrainState.start(run.method.build(run.model, len(run.vocabulary), None).to(device), run.train)
    newest, faults = checkpoint.newest(run.checkpoints)
    if newest is None:
        return state, 0
    for fault in faults:
        tell(f"{fault} Going on from {newest.path.name}.")
    checkpoint.prune(run.checkpoints, newest.position)
    state.restore(newest)
    return state, newest.position.metrics_bytes


def _not_finite(step: int, losses: Any, ref_ids: Sequence[int]) -> WeakmcnError:
    terms = ", ".join(f"{term.name} {getattr(losses, term.name).item():.4g}" for term in fields(losses))
    return WeakmcnError(
        f"step {step}: a loss or its gradient is not finite ({terms}), the step was not taken; references "
        f"{', '.join(map(str, ref_ids))}. Check the store with `weakmcn store verify`, or lower the learning rate."
    )
