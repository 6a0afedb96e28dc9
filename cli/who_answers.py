"""Which run and which of its checkpoints answer: what is told of them, and what the answers' files say."""

from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from ..model.run import Run


def tell_notes(run: "Run") -> None:
    """Say what a reader of its answers must know."""
    for note in run.notes:
        typer.echo(f"note: {note}", err=True)


def checkpoint_of(run: "Run") -> dict[str, Any] | None:
    """The checkpoint that answers, as JSON; None before the first. What is wrong with a newer one is told."""
    from ..model import checkpoint

    saved, faults = checkpoint.newest(run.checkpoints)
    for fault in faults:
        typer.echo(f"note: {fault}", err=True)
    return None if saved is None else {"file": saved.path.name, "step": saved.position.step, "weights": "ema"}
