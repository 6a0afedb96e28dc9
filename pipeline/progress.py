"""Where a long run is: a live bar on a terminal, a quiet line now and then in a log file.

Counts are images, and start from what earlier runs have finished.
"""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, Task, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from .estimate import in_words

LINE_EVERY_S = 10.0
LINE_EVERY_SHARE = 0.1
"""In a log a line comes after so many seconds or so large a part of the stage, whichever is first,"""
LINE_AT_LEAST_S = 1.0
"""but not more often than this; and one at the end of every stage. Nor is a speed told of less time."""


class _Speed(ProgressColumn):
    """Images a second over the last minutes."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f} images/s" if task.speed else "", style="progress.data.speed")


class Progress:
    """One row, or one series of lines, a stage. Use as a context manager."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars: RichProgress | None = None
        self._row = TaskID(0)
        self._stage = ""
        self._done = self._total = self._told_done = 0
        self._told_at = 0.0
        self._first: tuple[float, int] | None = None
        """Time and count of the first progress: the speed is that of the work, not of getting started."""

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            bars = RichProgress(
                TextColumn("{task.description:>7}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("images"),
                _Speed(),
                TimeRemainingColumn(),
                console=self._console,
                speed_estimate_period=600,  # a shard of large photographs takes most of a minute
            )
            bars.start()
            self._bars = bars
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def begin(self, stage: str, *, done: int, total: int) -> None:
        """Start a stage of `total` images, of which earlier runs finished `done`."""
        self._stage, self._done, self._total, self._told_done = stage, done, total, done
        self._told_at, self._first = time.monotonic(), None
        if self._bars:
            self._row = self._bars.add_task(stage, completed=done, total=total)

    def advance(self, images: int) -> None:
        """So many more images of the stage are finished."""
        self._done += images
        if self._bars:
            self._bars.advance(self._row, images)
            return
        now = time.monotonic()
        self._first = self._first or (now, self._done)
        quiet_s = now - self._told_at
        share = (self._done - self._told_done) / max(self._total, 1)
        is_time = quiet_s >= LINE_EVERY_S or share >= LINE_EVERY_SHARE
        if self._done >= self._total or (is_time and quiet_s >= LINE_AT_LEAST_S):
            self._tell(now)

    def reach(self, stage: str, *, done: int, total: int) -> None:
        """`done` of the `total` images of a stage are finished; begins the stage at need."""
        if stage != self._stage:
            self.begin(stage, done=0, total=total)
        self.advance(done - self._done)

    def _tell(self, now: float) -> None:
        line = f"{self._stage}: {self._done} of {self._total} images"
        began, done = self._first or (now, self._done)
        if now >= began + LINE_AT_LEAST_S and self._done > done:
            speed = (self._done - done) / (now - began)
            line += f", {speed:.1f} images/s"
            if self._done < self._total:
                line += f", {in_words((self._total - self._done) / speed)} left"
        self._console.print(line, highlight=False)
        self._told_at, self._told_done = now, self._done
