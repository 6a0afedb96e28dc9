"""Where a worker is, in a small file: how one that says nothing any more is found out, and what it was busy with.

A crash in native code, a process killed for its memory and an endless loop have one thing in common: no exception tells
which photograph it was. So a worker writes down what it is about to do. The file changes with every step; a run that
sees it unchanged for too long, by its own clock, takes the worker for hung.
"""

from contextlib import suppress
from itertools import count
from pathlib import Path

from ..shards.atomic import TEMPORARY
from ..shards.sidecar import shard_name

STALL_S = 600.0
"""Longest that a worker may take for one step: loading a network, or reading and encoding a batch."""
START_S = 300.0
"""Longest that it may take to its first one, where that is more: a process starts and imports its libraries."""


class Trail:
    """Writes where the work on one shard is. Use as a context manager: the file is gone when the work ends."""

    def __init__(self, folder: Path, shard: int) -> None:
        self._path = trail_path(folder, shard)
        self._steps = count()

    def __enter__(self) -> "Trail":
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)

    def at(self, doing: str, *keys: str) -> None:
        """Note what is done next, and with which images. A disk that cannot take the note fails no shard."""
        with suppress(OSError):
            self._path.write_text(" ".join((f"{next(self._steps)}", doing, *keys)), "ascii")


def trail_path(folder: Path, shard: int) -> Path:
    """Where the trail of a shard lies; its name is a temporary's, so what a dead worker leaves is swept."""
    return Path(folder) / f"{TEMPORARY}trail-{shard_name(shard)}"


def read_trail(folder: Path, shard: int) -> str:
    """The trail's text, "" where there is none. It differs whenever the worker has gone on."""
    try:
        return trail_path(folder, shard).read_text("ascii")
    except OSError:
        return ""


def images_in(text: str) -> tuple[str, ...]:
    """Keys of the images that the work was at."""
    return tuple(text.split()[2:])
