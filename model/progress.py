"""How training goes, for a person: a live line on a terminal, one line an epoch everywhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text


def tell(message: str) -> None:
    """One line on standard error."""
    Console(stderr=True).print(message, soft_wrap=True, markup=False, highlight=False)


def fitting(*parts: str, width: int = 80) -> str:
    """The parts in one line of at most `width` characters; the last ones are left out where there is no room."""
    line, *others = parts
    for part in others:
        if len(line) + 2 + len(part) > width:
            break
        line = f"{line}  {part}"
    return line


class Watch:
    """Shows epoch, losses, share done, references a second and time left while the block runs, in 80 columns."""

    def __init__(self, *, steps: int, done: int, batch: int, quiet: bool = False) -> None:
        """steps: of the whole run, of which `done` were finished earlier. batch: references a step."""
        console = Console(stderr=True, quiet=quiet)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),
            TaskProgressColumn(),
            _Speed(batch),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=steps, completed=done)

    def step(self) -> None:
        self._progress.advance(self._task)

    def losses(self, epoch: int, epochs: int, losses: Mapping[str, float]) -> None:
        """epoch: from 0."""
        shown = (f"{name} {value:.3g}" for name, value in losses.items())
        self._progress.update(self._task, description=fitting(f"epoch {epoch + 1}/{epochs}", *shown, width=43))

    def line(self, message: str) -> None:
        """A line that stays, above the live one where there is a terminal."""
        self._progress.console.print(message, soft_wrap=True, markup=False, highlight=False)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, fault: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()


class _Speed(ProgressColumn):
    """References a second."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self._batch = batch

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed * self._batch:,.0f} ref/s" if task.speed else "", no_wrap=True)


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; the block calls what it gets with the number of things just done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
