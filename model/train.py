"""Training: the recipe of method section 14, resumable to the bit.

A run is a pure function of its settings and its data. Its state is small and complete (state.py), and the order of
training is a function of (seed, epoch), so an interrupted run that is started again ends with the bytes of an
undisturbed one, on the same machine. On several ranks (ranks.py) each does all of this with its part of every batch,
and the first alone writes.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..shards import faults
from ..shards.atomic import sweep, write_json
from ..shards.errors import WeakmcnError
from ..shards.lock import only_writer, refuse_if_held
from ..shards.store import Store
from . import checkpoint
from .batch import Batch
from .compiling import compile_parts
from .config import TrainConfig
from .events import FOLDER, Events, require_tensorboard
from .interrupts import Interrupted, stop_requests
from .journal import Clock, Journal, cut_to
from .lessons import Lessons, Material
from .loader import Loader, ahead, columns_of
from .methods import method_of
from .own import facts as code_facts
from .precision import computing_in, settled
from .preflight import check_canvas, check_folder, first_stage_of, odd_settings, word_vectors
from .progress import Watch, tell
from .ranks import ALONE, Ranks, RanksDiffer, bits
from .residence import choose
from .run import FORMAT, Run, device_of, placed
from .sampler import Draw, check_ranks, order_digest
from .samples import Samples, training_samples
from .schedule import learning_rate
from .state import TrainState
from .train_settings import TrainSettings
from .whole_batch import whole_batch
from .words import WordTable

Named = list[tuple[int, str]]
"""Of each reference of a batch: its id, and the key of its image."""


class NotFinite(WeakmcnError):  # noqa: N818 - says what was found
    """A loss, a gradient or a weight is NaN or infinite."""


def train_epoch(
    state: TrainState,
    batches: Iterable[tuple[Batch, Named]],
    config: TrainConfig,
    steps: int,
    ranks: Ranks = ALONE,
    *,
    precision: str = "float32",
) -> Iterator[None]:
    """What is left of an epoch; hands over after every step.

    batches: each with what it was made of; a rank has its part of the batch, and the names of all. steps: of a whole
    epoch. NotFinite, the state as before the step, where a loss or the norm of its gradient is not finite; all ranks
    see the same sums, so they take the step together or not at all. precision: see precision.py; the released loop's
    half precision does not run (quirk 26).
    """
    state.net.train()
    for batch, named in batches:
        faults.point("step", str(state.step))
        state.remember()
        ranks.draw_anew(config.seed, state.step)
        with computing_in(precision, state.device):
            losses = state.net.losses(batch, state.epoch, ranks=ranks)  # pyright: ignore[reportCallIssue]
        state.optimiser.zero_grad(set_to_none=True)
        losses.total.backward()
        losses = ranks.sum_step(state.weights, losses)
        norm = nn.utils.clip_grad_norm_(state.weights, config.clip_norm)
        if not torch.isfinite(losses.total.detach() + norm):
            state.forget_step()
            raise _not_finite(state.step, losses, named)
        state.set_rate(learning_rate(state.step, steps, config))
        state.optimiser.step()
        state.average.update(state.step)
        state.advance(losses, steps)
        yield


def train(
    settings: TrainSettings,
    *,
    ranks: Ranks = ALONE,
    after_step: Callable[[TrainState], None] | None = None,
    notes: Sequence[str] = (),
) -> Run:
    """Train, or go on with what `settings.out` holds, until the last epoch is done; a finished run is left as it is.

    ranks: those that train it together, each of which calls this; see launch.py.
    after_step: called after every step, before it is logged or saved; what it raises ends the run as a crash would.
    notes: lines for the user, told with its own once all is found to fit.
    Raises InputError (nothing was started) for settings, a store, word vectors or a run folder that do not fit;
    Interrupted when a signal asked for the end and all is saved; NotFinite, before the step and with all earlier ones
    saved, when a loss is not finite. Of several ranks, one raises these and the others `ToldElsewhere`; LostRank where
    another one ended without a word.
    """
    with ranks.all_or_none():
        if settings.tensorboard:
            require_tensorboard()
        check_folder(settings.out)
        refuse_if_held(settings.out)
        check_ranks(settings.train.batch, ranks.size, own_negatives=settings.negatives == "local")
        method = method_of(settings.method)
        needs = method.fields(settings.model)
        store = Store.open(settings.store)
        check_canvas(store, settings.model.side_px, settings.dataset)
        stages = list(dict.fromkeys(column.partition(".")[0] for column in columns_of(needs).values()))
        samples = training_samples(
            store,
            settings.dataset,
            settings.split,
            stages=stages,
            max_tokens=settings.model.max_tokens,
            words=method.words(settings.model),
            shuffle_seed=settings.train.seed if settings.shuffle_captions else None,
        )
        device = device_of(settings.device)
        loader = Loader(store, needs, device=device, keys=samples.keys, reuse=True)
        # Before anything is written: have the columns the network's sizes, is a batch filled, is there a vector?
        loader.batch(samples.keys[:1], samples.tokens[0][:1]).check(settings.model, needs)
        samples.steps(settings.train)
        if settings.train.sampling == "images":
            check_ranks(samples.contrasted(settings.train), ranks.size, own_negatives=settings.negatives == "local")
        residence = choose(settings.features, loader.reader, samples.keys, device, ranks=ranks.size)
        first_stage, remembered = first_stage_of(settings.out, settings.first_stage)
        lessons = method.lessons(
            Material(
                store=store,
                samples=samples,
                model=settings.model,
                dataset=settings.dataset,
                split=settings.split,
                out=settings.out,
                seed=settings.train.seed,
                device=device,
                first_stage=first_stage,
                remembered=remembered,
            )
        )
        table, words = word_vectors(settings.out, settings.words, samples.vocabulary, settings.model.word_dim)
    with ExitStack() as held:
        with ranks.in_turn():
            if ranks.first:
                held.enter_context(only_writer(settings.out, "weakmcn train"))
                run = _open_run(settings, ranks, device, store, samples, stages, words, lessons)
            else:
                run = Run.open(settings.out)
            lessons.ready()
            state, log_bytes = _state_of(run, device, table, ranks, lessons)
        if state.epoch >= settings.train.epochs:
            if ranks.first:
                tell(f"{run.path}: nothing to do, epoch {state.epoch} was the last.")
            return run
        compile_parts(state.net, method.compiled, settings.compile)
        with ranks.all_or_none():
            if ranks.first:
                covered = [table.summary] if table else []
                odd = odd_settings(method, settings.model, settings.train, has_words=words is not None)
                begins = method.schedule(settings.model, settings.train.epochs)
                again = [f"Goes on after step {state.step:,}, in epoch {state.epoch + 1}."] if state.step else []
                for note in (*again, *notes, *samples.notes, *covered, *odd, *begins, str(residence)):
                    tell(note)
                cut_to(run.metrics, log_bytes)
            loader.features = residence.features(loader.reader, samples.keys, device)
        _train(run, settings, ranks, state, samples, loader, lessons, after_step)
    return run


def _train(
    run: Run,
    settings: TrainSettings,
    ranks: Ranks,
    state: TrainState,
    samples: Samples,
    loader: Loader,
    lessons: Lessons,
    after_step: Callable[[TrainState], None] | None,
) -> None:
    """All steps that are left, with what surrounds them: journal, checkpoints, signals."""
    config, steps, method = settings.train, samples.steps(settings.train), method_of(settings.method)
    pause = 60 * settings.checkpoint_minutes
    saved_at = time.monotonic()
    metrics, timing = (run.metrics, run.timing) if ranks.first else (Path(os.devnull), Path(os.devnull))
    events = Events(run.path / FOLDER, step=state.step) if settings.tensorboard and ranks.first else None
    with (
        Watch(steps=steps * config.epochs, done=state.step, batch=config.batch, quiet=not ranks.first) as watch,
        Journal(metrics, timing, watch, epochs=config.epochs, events=events) as journal,
        ranks.one_voice(NotFinite, Interrupted, RanksDiffer),
        _kept(run, settings, ranks, state, journal),
        stop_requests(lambda: watch.line("Stopping: this step is finished and saved first.")) as stop,
    ):
        while (epoch := state.epoch) < config.epochs:
            clock, first = Clock(), state.batch
            draws = samples.batches(config, epoch)
            fields = method.fields(settings.model)
            if epoch < settings.model.warm_epochs:
                fields = tuple(field for field in fields if field not in method.late)
            if ranks.together:
                _check_ranks_agree(f"{run.path}: epoch {epoch + 1}", ranks, state, draws)
            batches = clock.waiting_for(
                ahead(partial(_batch, loader, samples, ranks, config, fields, lessons, epoch), draws[state.batch :])
            )
            for _ in train_epoch(state, batches, config, steps, ranks, precision=run.facts["precision"]):
                if after_step:
                    after_step(state)
                watch.step()
                at_end = state.batch == 0
                if at_end or state.window_steps == settings.log_steps:
                    rate = learning_rate(state.step - 1, steps, config)
                    journal.losses(epoch=epoch, step=state.step, rate=rate, losses=state.take_window())
                signal_number, is_time = ranks.highest(stop.signal_number or 0, time.monotonic() - saved_at > pause)
                if at_end or signal_number or is_time:
                    _save(run, ranks, state, journal)
                    saved_at = time.monotonic()
                if signal_number and state.epoch < config.epochs:
                    raise Interrupted(
                        f"{run.path}: interrupted after step {state.step:,}, which is saved; "
                        "run the same command again to go on.",
                        signal_number,
                    )
            journal.epoch(epoch, clock.stop(references=sum(map(len, draws[first:]))))
        journal.total()


def _check_ranks_agree(where: str, ranks: Ranks, state: TrainState, draws: Sequence[Sequence[Draw]]) -> None:
    """RanksDiffer, on every rank, unless all are about to take the same steps from the same weights."""
    facts = {
        "steps done": state.step,
        "steps left": len(draws) - state.batch,
        "order": int(order_digest(draws)[:15], 16),
        "weights": bits(state.weights),
    }
    ranks.require_same(facts, where)


def _save(run: Run, ranks: Ranks, state: TrainState, journal: Journal) -> None:
    """Write a checkpoint, the first rank; NotFinite, and none is written, if the state is worth nothing."""
    if (name := state.not_finite()) is not None:
        raise NotFinite(f"step {state.step - 1}: {name} is not finite after it")
    if ranks.first:
        checkpoint.save(run.checkpoints, state.tensors(), state.position(journal.flush()))


@contextmanager
def _kept(run: Run, settings: TrainSettings, ranks: Ranks, state: TrainState, journal: Journal) -> Iterator[None]:
    """Where something is not finite, save what was trained before, if that is sound, and tell what is kept."""
    try:
        yield
    except NotFinite as fault:
        if state.not_finite() is None:
            _save(run, ranks, state, journal)
            kept = f"all {state.step:,} steps before it are saved"
        else:
            any_saved = any(run.checkpoints.glob(checkpoint.RECORDS))
            kept = "the newest checkpoint is from before that" if any_saved else "no checkpoint was written yet"
        raise NotFinite(
            f"{run.path}: {fault}; {kept}. Lower the learning rate (--set train.lr=…, with a new --out), or look for "
            f"damage: weakmcn store verify {shlex.quote(str(settings.store))}"
        ) from None


def _batch(
    loader: Loader,
    samples: Samples,
    ranks: Ranks,
    config: TrainConfig,
    fields: Sequence[str],
    lessons: Lessons,
    epoch: int,
    drawn: Sequence[Draw],
) -> tuple[Batch, Named]:
    """This rank's share of the drawn batch, and what the whole of it was made of."""
    own = samples.share(drawn, config, ranks)
    tokens = np.stack([samples.tokens[reference][sentence] for reference, sentence in own])
    keys = [samples.keys[reference] for reference, _ in own]
    named = [(samples.ref_ids[reference], samples.keys[reference]) for reference, _ in drawn]
    if config.sampling == "references":
        return replace(loader.batch(keys, tokens, fields), **lessons.of(own, epoch)), named
    images = list(dict.fromkeys(keys))
    place = {key: index for index, key in enumerate(images)}
    return loader.batch(images, tokens, fields, owner=np.array([place[key] for key in keys])), named


def _open_run(
    settings: TrainSettings,
    ranks: Ranks,
    device: torch.device,
    store: Store,
    samples: Samples,
    stages: Sequence[str],
    words: Mapping[str, Any] | None,
    lessons: Lessons,
) -> Run:
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
        "precision": settled(settings.precision, device) if method_of(settings.method).bfloat16 else "float32",
        "store": str(settings.store),
        "store_absolute": str(settings.store.absolute()),
        "samples": samples.digests,
        "words": words,
        **code_facts(method_of(settings.method)),
        **lessons.facts,
    }
    if settings.compile != "off":
        facts["compile"] = settings.compile
    if settings.negatives == "local" and ranks.together:  # then, and only then, their number changes the loss
        facts["negatives"] = f"local, {ranks.size} ranks"
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


def _state_of(
    run: Run, device: torch.device, table: WordTable | None, ranks: Ranks, lessons: Lessons
) -> tuple[TrainState, int]:
    """The state to go on from, and the length that metrics.jsonl had then; a damaged newest checkpoint is told."""
    torch.manual_seed(run.train.seed)
    vectors = table.vectors if table else None
    net = placed(whole_batch(run.method.build(run.model, run.vocabulary, vectors), ranks), device)
    newest, faults = checkpoint.newest(run.checkpoints)
    if newest is None:
        lessons.begin(net)
    state = TrainState.start(net, run.train)
    if newest is None:
        return state, 0
    if ranks.first:
        for fault in faults:
            tell(f"{fault} Going on from {newest.path.name}.")
        checkpoint.prune(run.checkpoints, newest.position)
    state.restore(newest)
    return state, newest.position.metrics_bytes


def _not_finite(step: int, losses: Any, named: Named) -> NotFinite:
    terms = ", ".join(f"{term.name} {getattr(losses, term.name).item():.4g}" for term in fields(losses))
    ref_ids, keys = zip(*named, strict=True)
    return NotFinite(
        f"step {step}: a loss or its gradient is not finite ({terms}), the step was not taken; references "
        f"{', '.join(map(str, ref_ids))} of images {', '.join(keys)}"
    )
