"""How fast photographs go through the frozen networks, and through whatever comes behind them, step by step.

Nothing is stored: each photograph is read from its file, and what one network says of it is handed to the next in
memory. That is what an answer about a new photograph costs. `precompute` is told apart by its own clock (report.py).
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from .config import PipelineConfig
from .images import Photo
from .stages import Encoder, columns_read, load_encoder, stage_named

READ = "read"
"""The first step: file, decoding."""

Columns = dict[str, np.ndarray]
"""Column ("detect.boxes") -> value, of one photograph."""
Last = Callable[[Sequence[Photo], Sequence[Columns]], object]
"""A step behind the networks."""


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What batches of photographs took."""

    batch: int
    """Photographs in each."""
    steps: Mapping[str, tuple[float, ...]]
    """Step -> seconds of every batch, in their order."""
    wall_s: float
    """From the first batch's beginning to the last one's end."""

    def latency_s(self, quantile: float) -> float:
        """Seconds from file to answer that this part of all batches did not exceed: 0.5 the median, 0.95 nearly all."""
        return float(np.quantile(np.sum(list(self.steps.values()), axis=0), quantile))

    def step_s(self, step: str) -> float:
        """Median of a step, an image."""
        return float(np.median(self.steps[step])) / self.batch

    @property
    def images_per_s(self) -> float:
        return self.batch * len(self.steps[READ]) / self.wall_s


class Networks:
    """The frozen networks of some stages, loaded, in the order of the stages."""

    def __init__(self, config: PipelineConfig, stages: Sequence[str], device: str) -> None:
        self.config = config
        self.device = device
        self._encoders: dict[str, Encoder] = {
            stage: load_encoder(stage_named(stage), config, device) for stage in stages
        }

    def measured(
        self, files: Sequence[Path], *, batch: int, last: Mapping[str, Last] | None = None, readers: int = 0
    ) -> Speed:
        """Take the photographs through in batches; the first batch is not counted, nor are those that fill none.

        last: steps behind the networks. readers: threads that read the next batch during this one, so that step
        `read` is what is left to wait for; 0: a batch is read when its turn comes.
        """
        batches = [files[first : first + batch] for first in range(0, len(files) - batch + 1, batch)]
        seconds: list[dict[str, float]] = []
        ends: list[float] = []
        for took in self._taken(batches, last or {}, readers):
            seconds.append(took)
            ends.append(time.perf_counter())
        steps = {name: tuple(took[name] for took in seconds[1:]) for name in seconds[0]}
        return Speed(batch=batch, steps=steps, wall_s=ends[-1] - ends[0])

    def _taken(
        self, batches: Sequence[Sequence[Path]], last: Mapping[str, Last], readers: int
    ) -> Iterator[dict[str, float]]:
        """Step -> seconds, of one batch after the other."""
        with ThreadPoolExecutor(max(readers, 1)) as pool:
            coming: list[Future[Photo]] = []
            for number, files in enumerate(batches):
                marks = [time.perf_counter()]
                photos = [each.result() for each in coming] or [self._read(file) for file in files]
                if readers and number + 1 < len(batches):
                    coming = [pool.submit(self._read, file) for file in batches[number + 1]]
                marks.append(time.perf_counter())
                columns: list[Columns] = [{} for _ in photos]
                for stage, encoder in self._encoders.items():
                    wanted = columns_read(stage_named(stage), self.config)
                    inputs = [{name: seen[name] for name in wanted} for seen in columns]
                    for seen, values in zip(columns, encoder.encode(photos, inputs), strict=True):
                        seen |= {f"{stage}.{name}": value for name, value in values.items()}
                    marks.append(self._now())
                for step in last.values():
                    step(photos, columns)
                    marks.append(self._now())
                names = (READ, *self._encoders, *last)
                yield {name: end - begin for name, (begin, end) in zip(names, pairwise(marks), strict=True)}

    def _read(self, file: Path) -> Photo:
        return Photo.read("0" * 12, file, side=self.config.side_px)

    def _now(self) -> float:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()
