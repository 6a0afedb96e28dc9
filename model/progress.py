"""How training goes, for a person: a live line on a terminal, one line an epoch everywhere."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text


def tell(message: str) -> None:
    """One line on standard error."""
    Console(stderr=True).print(message, soft_wrap=True, markup=False, highlight=False)


class Watch:
    """Shows epoch, steps, losses, references a second and the time left while the block runs."""

    def __init__(self, *, steps: int, done: int, batch: int) -> None:
        """steps: of the whole run, of which `done` were finished earlier. batch: references a step."""
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Speed(batch),
            TimeRemainingColumn(elapsed_when_finished=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._progress.add_task("training", total=steps, completed=done)

    def step(self) -> None:
        self._progress.advance(self._task)

    def losses(self, epoch: int, epochs: int, losses: Mapping[str, float]) -> None:
        """epoch: from 0."""
        shown = "  ".join(f"{name} {value:.3g}" for name, value in losses.items())
        self._progress.update(self._task, description=f"epoch {epoch + 1}/{epochs}  {shown}")

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
        return Text(f"{task.speed * self._batch:,.0f} ref/s" if task.speed else "")


@contextmanager
def counted(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, nothing elsewhere; the block calls what it gets with the number of things just done."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
