"""What a run writes down while it trains: losses by step, and, apart from them, what depends on the clock."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self, TypeVar

from ..shards import faults
from ..shards.atomic import device_faults, output
from ..shards.errors import CheckpointError, InputError
from .events import Events
from .progress import Watch, fitting

T = TypeVar("T")


class Journal:
    """metrics.jsonl, timing.jsonl, the display, and what TensorBoard reads where that is asked for.

    A line of metrics.jsonl is a function of the run's settings and data alone.
    """

    def __init__(self, metrics: Path, timing: Path, watch: Watch, *, epochs: int, events: Events | None = None) -> None:
        self._timing = timing
        self._watch = watch
        self._epochs = epochs
        self._shown: Mapping[str, float] = {}
        self._metrics = metrics
        self._seconds = self._waited = 0.0
        self._events = events
        with device_faults(metrics):
            self._file = output(metrics, append=True)

    def losses(self, *, epoch: int, step: int, rate: float, losses: Mapping[str, float]) -> None:
        """Mean losses of the steps since the last call; the last of them had learning rate `rate`."""
        self._shown = {name: value for name, value in losses.items() if name != "total"}  # the sum: no news
        self._file.write(_line({"epoch": epoch, "step": step, "lr": rate, **losses}))
        self._watch.losses(epoch, self._epochs, self._shown)
        if self._events:
            self._events.scalars("train", {"lr": rate, **losses}, step)

    def flush(self) -> int:
        """Put metrics.jsonl on the disk; its length in bytes."""
        with device_faults(self._metrics):
            self._file.flush()
            faults.point("fsync", self._metrics)
            os.fsync(self._file.fileno())
            return self._file.tell()

    def epoch(self, epoch: int, timing: Mapping[str, float]) -> None:
        """An epoch is done; timing: as `Clock.stop` gives it."""
        self._seconds += timing["seconds"]
        self._waited += timing["seconds"] * timing["waiting_share"]
        with device_faults(self._timing), output(self._timing, append=True) as file:
            file.write(_line({"epoch": epoch, **timing}))
        if self._events:
            self._events.scalars("epoch", timing, epoch + 1)
        self._watch.line(
            fitting(
                f"epoch {epoch + 1}/{self._epochs}",
                *(f"{name} {value:.3g}" for name, value in self._shown.items()),
                f"{timing['references_per_s']:,.0f} ref/s",
                f"{timing['seconds']:,.{1 if timing['seconds'] < 10 else 0}f} s",
                f"{timing['waiting_share']:.0%} waiting",
            )
        )

    def total(self) -> None:
        """All epochs are done; how long those since the journal was opened took."""
        self._watch.line(
            f"{self._seconds:,.{1 if self._seconds < 10 else 0}f} s of training, "
            f"{self._waited / self._seconds:.1%} of them waiting for data"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._events:
            self._events.close()
        with device_faults(self._metrics):
            self._file.close()


def cut_to(metrics: Path, length: int) -> None:
    """Forget the lines behind `length` bytes: they were written after the checkpoint that the run goes on from.

    CheckpointError if the file is shorter than that.
    """
    has = metrics.stat().st_size if metrics.exists() else 0
    if has < length:
        raise CheckpointError(
            f"{metrics}: {has} bytes, its checkpoint says {length}; restore it or train in a new folder."
        )
    if has > length:
        os.truncate(metrics, length)


class Clock:
    """How long an epoch took, and how much of it was spent waiting for data."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0

    def waiting_for(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the time until each is there counts as waiting."""
        source = iter(items)
        while True:
            asked = time.perf_counter()
            try:
                item = next(source)
            except StopIteration:
                return
            self._waited += time.perf_counter() - asked
            yield item

    def stop(self, *, references: int) -> dict[str, float]:
        """references: trained on since the start."""
        seconds = time.perf_counter() - self._started
        return {
            "references": references,
            "seconds": seconds,
            "references_per_s": references / seconds,
            "waiting_share": self._waited / seconds,
        }


def _line(values: Mapping[str, Any]) -> bytes:
    return (json.dumps(values, sort_keys=True, allow_nan=False) + "\n").encode("ascii")


def read_journal(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl or timing.jsonl; none where there is no file. InputError for one that is damaged."""
    try:
        lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as fault:
        raise InputError(f"{path}: damaged ({fault}); restore it or train again.") from fault
    if not all(isinstance(line, dict) for line in lines):
        raise InputError(f"{path}: damaged (a line is no object); restore it or train again.")
    return lines


def seconds_trained(timing: Path, epochs: int) -> float | None:
    """How long all epochs took by timing.jsonl; None where one is not told. Of an epoch that was interrupted only the
    last part is told: the whole is reckoned at its speed.
    """
    told = {line["epoch"]: line for line in read_journal(timing)}
    if told.keys() != set(range(epochs)):
        return None
    references = max(line["references"] for line in told.values())
    return sum(references * line["seconds"] / line["references"] for line in told.values())
