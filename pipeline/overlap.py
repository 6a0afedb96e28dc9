"""Three things at once in a worker: photographs are read, encoded and written.

    reading    a thread a batch: files, decoding, the columns that the stage reads    one batch ahead
    encoding   the worker's own thread, which has the network                         the present batch
    writing    a thread a shard: codec, checksums, tar, flush, rename                 up to two batches behind

Only the waiting is spared: batches, their order and every byte are those of one thread that does all three in turn. So
are the failures. An error comes out where the encoding thread needs what the other did not do, and what was handed to
be written before something failed is looked at first: the earliest failure is the one that is told.

No thread outlives its task, but for one that the system itself does not let go, which nobody waits for at length: a
disk that hangs stops no Ctrl-C.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from queue import SimpleQueue
from types import TracebackType
from typing import Generic, Self, TypeVar

from ..shards.errors import ImageError, StageError
from ..shards.writer import Record
from .tasks import ImageRow, Spent
from .trail import Trail

WAITING_BATCHES = 2
"""Encoded batches in memory that are not written yet, the one under way counted."""
_PATIENCE_S = 3.0
"""How long a thread is waited for once its task has failed."""

T = TypeVar("T")


class BadImageError(ImageError):
    """An image at fault for certain: it cannot be read, or what was made of it cannot be stored."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(reason)
        self.key = key


class Stopwatch:
    """What the encoding thread's time goes to."""

    def __init__(self) -> None:
        self.spent = Spent()

    @contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Count the block as the field `what` of Spent."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent += Spent(**{what: time.perf_counter() - started})


def read_ahead(
    batches: Sequence[Sequence[ImageRow]], read: Callable[[Sequence[ImageRow]], T], trail: Trail, watch: Stopwatch
) -> Generator[T, None, None]:
    """What `read` makes of each batch, in order; the next one is read while this one is used. To be closed."""
    coming: _Aside[T] | None = None
    try:
        for batch, soon in zip_longest(batches, batches[1:], fillvalue=()):
            trail.at("encode", *(row.key for row in (*batch, *soon)))
            with watch.on("photos_s"):
                found = (coming or _Aside("photos", partial(read, batch))).result()
            coming = _Aside("photos", partial(read, soon)) if soon else None
            yield found
    finally:
        if coming is not None:
            coming.wait(_PATIENCE_S)


class Writing(Generic[T]):
    """A shard being written by a thread of its own while its next records are made. Use as a context manager.

    write: takes the records in order, and answers when the shard is published. `BadImageError` names the record where
    it raises StageError.
    """

    def __init__(self, write: Callable[[Iterable[Record]], T], watch: Stopwatch) -> None:
        self._write = write
        self._watch = watch
        self._batches: SimpleQueue[list[Record] | None] = SimpleQueue()
        self._room = threading.Semaphore(WAITING_BATCHES)
        self._is_given_up = self._is_stopped = self._is_over = False
        self._key: str | None = None
        self._thread = _Aside("writing", self._run)

    def put(self, records: list[Record]) -> None:
        """Hand the next records over; waits while too many are not written. Raises what kept earlier ones from it."""
        with self._watch.on("disk_s"):
            self._room.acquire()
        if self._is_over:
            self._thread.result()
        self._batches.put(records)

    def end(self) -> T:
        """There are no more records: what `write` answers."""
        self._batches.put(None)
        with self._watch.on("disk_s"):
            return self._thread.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if value is None:
            return
        self._is_given_up = True
        self._is_stopped = not isinstance(value, Exception)  # told to end: what came first is of no interest
        self._batches.put(None)
        earlier = self._thread.wait(_PATIENCE_S)
        if not (self._is_stopped or earlier is None or isinstance(earlier, _GivenUpError)):
            raise earlier

    def _run(self) -> T:
        try:
            return self._write(self._records())
        except StageError as error:
            if self._key is None:
                raise
            raise BadImageError(self._key, str(error)) from error
        finally:
            self._is_over = True
            self._room.release()  # who waits for room learns of it

    def _records(self) -> Iterator[Record]:
        while (batch := self._batches.get()) is not None:
            for record in batch:
                if self._is_stopped:
                    raise _GivenUpError
                self._key = record.key
                yield record
            self._key = None
            self._room.release()
        if self._is_given_up:
            raise _GivenUpError


class _GivenUpError(Exception):
    """Nothing is published: what was to come will not."""


class _Aside(Generic[T]):
    """Something done by a thread of its own, which no exit of the program waits for."""

    def __init__(self, name: str, work: Callable[[], T]) -> None:
        self._work = work
        self._outcome: Future[T] = Future()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def result(self) -> T:
        """What it gave or raised, once it is over."""
        try:
            return self._outcome.result()
        finally:
            if self._outcome.done():  # not so where a signal ended the waiting
                self._thread.join()

    def wait(self, timeout_s: float) -> BaseException | None:
        """Wait so long at most; what it raised."""
        self._thread.join(timeout_s)
        return self._outcome.exception() if self._outcome.done() else None

    def _run(self) -> None:
        try:
            self._outcome.set_result(self._work())
        except BaseException as error:  # it belongs to whoever asks for the result
            self._outcome.set_exception(error)
