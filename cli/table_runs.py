"""What a table is made from: runs, trained and measured once however often they are asked for.

    OUT/runs/weakmcn-1a2b3c4d       a run; the digits are those of the fingerprint of all it is trained on and with
    OUT/results/weakmcn-1a2b3c4d-val.json   its figures, and the fingerprint of all that they depend on
    OUT/logs/weakmcn-1a2b3c4d.log   what its training told, where several train at once

A result that is there and made from the same is not made again: a killed `tables` goes on, a finished one reads files.
"""

import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from ..model.batch import SOURCES
from ..model.children import Report, received_order, run_ranks
from ..model.config import TrainConfig
from ..model.evaluate import evaluate_run
from ..model.interrupts import Interrupted
from ..model.journal import seconds_trained
from ..model.launch import report_of
from ..model.methods import method_of, recipe
from ..model.parameters import parameter_table
from ..model.preflight import check_canvas
from ..model.progress import tell
from ..model.references import FIRST_SPLIT
from ..model.samples import training_samples
from ..model.train import train
from ..model.train_settings import TrainSettings
from ..pipeline.estimate import counted
from ..shards.atomic import remove, write_json
from ..shards.errors import ConfigError, WeakmcnError
from ..shards.fingerprint import file_sha256, fingerprint, short
from ..shards.records import read_json
from ..shards.store import Store
from .settings import changed, parsed
from .table_rows import System
from .train import implied

_SERVE = "from weakmcn.cli.table_runs import serve; serve()"


@dataclass(frozen=True, kw_only=True)
class Planned:
    """One run of a system, and what is to be measured of it."""

    name: str
    training: TrainSettings
    made_from: str
    """Fingerprint of all that it is trained on and with."""
    measured: Mapping[str, str]
    """Split -> fingerprint of all that the run's figures on it depend on."""

    label: str
    """Of the first row that shows it, for people."""

    def __str__(self) -> str:
        return f"{self.label}, seed {self.training.train.seed} ({self.name})"


@dataclass(frozen=True, kw_only=True)
class Result:
    """The figures of one run on one split."""

    summary: Mapping[str, float]
    sam_head: Mapping[str, float]
    baselines: Mapping[str, Mapping[str, float]]
    notes: Sequence[str]
    training_s: float | None
    """Seconds of its training, if all were told."""
    threads: int
    """Of the process that trained it."""
    beside: int
    """How many other trainings ran at the same time."""


class Plans:
    """From systems to runs. What stores and data say is read once."""

    def __init__(
        self,
        store: Path,
        dataset: str,
        out: Path,
        *,
        preset: str,
        splits: Sequence[str],
        assignments: Sequence[str] = (),
        words: Path | None = None,
        device: str = "auto",
    ) -> None:
        """preset, assignments (`--set`), words: of every system, where it says nothing else."""
        self.store, self.dataset, self.out = store, dataset, out
        self._preset, self._splits, self._assignments = preset, tuple(splits), tuple(assignments)
        self._words, self._device = words, device
        self._stores: dict[Path, Store] = {}
        self._samples: dict[Any, Mapping[str, str]] = {}

    def plan(self, system: System, seed: int, label: str = "") -> Planned:
        """The run of a system for a seed. InputError where it cannot be: the store lacks a column, for instance."""
        usual_model, usual_train = recipe(system.method, self._preset)
        sections = {"model": usual_model, "train": usual_train}
        first = self.plan(system.after, seed) if system.after else None
        asked = parsed(sections, [*self._assignments, *system.settings, f"train.seed={seed}"])
        changes, _ = implied(sections, asked, has_words=self._words is not None)
        chosen = changed(sections, changes)
        model, optimisation = chosen["model"], chosen["train"]
        method, store = method_of(system.method), self.opened(system)
        check_canvas(store, model.side_px, self.dataset)
        stages = _stages(method.fields(model))
        self._require(store, stages)
        columns = {stage: store.families[stage].fingerprint for stage in stages}
        digests = self._digests(store, stages, model.max_tokens, method.words(model))
        made_from = fingerprint(
            {
                "method": system.method,
                "model": asdict(model),
                "train": asdict(optimisation),
                "dataset": self.dataset,
                "columns": columns,
                "samples": dict(digests),
                "words": self._words_digest,
                **({"first_stage": first.made_from} if first else {}),
                **({"code": method.code.sha256} if method.code else {}),
            }
        )
        name = f"{system.method}-{short(made_from)}"
        return Planned(
            name=name,
            training=TrainSettings(
                store=store.path,
                dataset=self.dataset,
                out=self.out / "runs" / name,
                model=model,
                train=optimisation,
                method=system.method,
                words=None if first else self._words,
                first_stage=first.training.out if first else None,
                device=self._device,
            ),
            made_from=made_from,
            measured={split: self._measured(store, split, stages, made_from) for split in self._splits},
            label=label,
        )

    def opened(self, system: System) -> Store:
        """The store that a system is trained on."""
        path = system.store or self.store
        if path not in self._stores:
            self._stores[path] = Store.open(path)
        return self._stores[path]

    @cached_property
    def _words_digest(self) -> str | None:
        if self._words is None:
            return None
        if not self._words.is_file():
            raise ConfigError(f"--words {self._words}: no such file; name the file of the word vectors.")
        return file_sha256(self._words)

    def _require(self, store: Store, stages: Sequence[str]) -> None:
        """StoreError unless the store has the columns, whole and current, for all splits that are read."""
        splits = {FIRST_SPLIT, *self._splits}
        rows = store.references(self.dataset).select(["key", "split"]).to_pylist()
        store.require(stages, {row["key"]: None for row in rows if row["split"] in splits})

    def _digests(self, store: Store, stages: Sequence[str], max_tokens: int, words: Sequence[str]) -> Mapping[str, str]:
        known = (store.path, tuple(stages), max_tokens, tuple(words))
        if known not in self._samples:
            samples = training_samples(
                store, self.dataset, FIRST_SPLIT, stages=stages, max_tokens=max_tokens, words=words
            )
            self._samples[known] = samples.digests
        return self._samples[known]

    def _measured(self, store: Store, split: str, stages: Sequence[str], run: str) -> str:
        rows = [row for row in store.references(self.dataset).to_pylist() if row["split"] == split]
        read = dict.fromkeys((*stages, *(stage for stage in ("detect", "masks") if stage in store.families)))
        photographs = {row["key"]: store.digests.get(row["key"]) for row in rows}
        columns = {stage: store.families[stage].fingerprint for stage in read}
        return fingerprint({"run": run, "references": rows, "photographs": photographs, "columns": columns})


def _stages(fields: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(SOURCES[field].partition(".")[0] for field in fields))


def result_of(out: Path, planned: Planned, split: str) -> Result | None:
    """What was measured of a run on a split; None where that is still to be done."""
    try:
        record = read_json(_result_file(out, planned.name, split))
        if record.pop("made_from") == planned.measured[split]:
            return Result(**record)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # absent, or not ours: it is made again
        pass
    return None


def failure_of(out: Path, planned: Planned) -> str | None:
    """Why the run failed when it was last tried; None where it did not, or has all that is asked for."""
    if is_done(out, planned):
        return None
    try:
        return str(read_json(_failure_file(out, planned.name))["why"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_done(out: Path, planned: Planned) -> bool:
    return all(result_of(out, planned, split) for split in planned.measured)


def make(out: Path, runs: Sequence[Planned], jobs: int) -> None:
    """Train and measure what is not done, `jobs` at once; a run that fails is noted and keeps no other from being made.

    Interrupted where a signal asked for the end; what was done is kept.
    """
    missing = [planned for planned in runs if not is_done(out, planned)]
    missing.sort(key=_turn)
    if min(jobs, len(missing)) <= 1:
        for number, planned in enumerate(missing, 1):
            tell(f"[{number}/{len(missing)}] {planned}")
            tell(_made(out, planned, beside=0))
        return
    with tempfile.TemporaryDirectory(prefix="weakmcn-") as claims:
        tell(f"{counted(len(missing), 'run')}, {min(jobs, len(missing))} at once; their progress: {out / 'logs'}")
        order = {"out": out, "claims": claims, "runs": [asdict(planned) for planned in missing], "jobs": jobs}
        run_ranks(_SERVE, [order] * min(jobs, len(missing)), out)


def _turn(planned: Planned) -> tuple[int, bool, int, int]:
    """Longest schedules and largest networks of a seed first, so that no long training is left alone at the end."""
    training = planned.training
    learns = parameter_table(training.model, training.method).learns
    return training.train.seed, training.first_stage is not None, -training.train.epochs, -learns


def serve() -> None:
    """Be one of the processes that `make` starts: take one run after the other that nobody has taken yet.

    A second stage is taken when its first has ended; whoever finds nothing else waits for that.
    """
    order = received_order()
    out, runs = Path(order["out"]), [_planned(told) for told in order["runs"]]
    beside = min(order["jobs"], len(runs)) - 1
    claims = Path(order["claims"])
    names = {run.name for run in runs}
    waiting = dict(enumerate(runs, 1))

    def ready(run: Planned) -> bool:
        first = run.training.first_stage
        return first is None or first.name not in names or (claims / f"{first.name}.ended").exists()

    try:
        while waiting:
            number = next((number for number, run in waiting.items() if ready(run)), None)
            if number is None:
                time.sleep(0.5)
                continue
            planned = waiting.pop(number)
            try:
                os.close(os.open(claims / planned.name, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                continue
            log = out / "logs" / f"{planned.name}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file, redirect_stderr(file):
                said = _made(out, planned, beside=beside)
            (claims / f"{planned.name}.ended").touch()
            tell(f"[{number}/{len(runs)}] {planned}: {said}")
        report = Report()
    except Exception as fault:
        report = report_of(fault)
    sys.stderr.flush()
    report.send(order["report_end"])
    os._exit(report.status)


def _made(out: Path, planned: Planned, *, beside: int) -> str:
    """Train a run and measure it; what came of it, in a line. Interrupted passes, other faults are noted."""
    try:
        run = train(planned.training)
        said = []
        for split, made_from in planned.measured.items():
            found = evaluate_run(run, split, device=planned.training.device)
            result = Result(
                summary=found.summary,
                sam_head=found.sam_head,
                baselines=found.baselines,
                notes=found.notes,
                training_s=seconds_trained(run.timing, run.train.epochs),
                threads=torch.get_num_threads(),
                beside=beside,
            )
            write_json(_result_file(out, planned.name, split), {**asdict(result), "made_from": made_from})
            figures = {"REC": "rec_acc50", "RES": "res_miou"}
            told = [f"{name} {found.summary[key]:.1f}" for name, key in figures.items() if key in found.summary]
            said.append(f"{split} {', '.join(told)}")
        remove(_failure_file(out, planned.name))
        return "; ".join(said)
    except Interrupted:
        raise
    except WeakmcnError as fault:
        write_json(_failure_file(out, planned.name), {"why": str(fault)})
        return f"failed: {fault}"


def _planned(told: Mapping[str, Any]) -> Planned:
    training = told["training"]
    model = method_of(training["method"]).settings(**training["model"])
    sections = {"model": model, "train": TrainConfig(**training["train"])}
    return Planned(**{**told, "training": TrainSettings(**{**training, **sections})})


def _result_file(out: Path, name: str, split: str) -> Path:
    return out / "results" / f"{name}-{split}.json"


def _failure_file(out: Path, name: str) -> Path:
    return out / "results" / f"{name}.failed.json"
