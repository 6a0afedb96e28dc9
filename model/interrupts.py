"""Ctrl-C and a scheduler's SIGTERM: finish the step, save, leave with the code that shells expect."""

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from ..shards.errors import WeakmcnError

STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(WeakmcnError):  # noqa: N818 - the word the exit codes use
    """The run was asked to stop and is saved. Exit code 130 (SIGINT) or 143 (SIGTERM)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopRequest:
    """Whether a signal asked for the end, and which."""

    signal_number: int | None = None


@contextmanager
def stop_requests(announce: Callable[[], None] = lambda: None) -> Iterator[StopRequest]:
    """Note the first SIGINT or SIGTERM instead of dying of it; a second one acts as it did before the block.

    announce: called once, in another thread, as soon as the signal is there: Python itself handles one only between two
    instructions, and a step's backward pass is a single instruction of many seconds.
    Outside the main thread, where Python delivers no signals, no request ever comes.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.getsignal(number) for number in STOPS}

    def note(number: int, frame: FrameType | None) -> None:
        request.signal_number = number
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    with _arrivals(announce):
        for number in STOPS:
            signal.signal(number, note)
        try:
            yield request
        finally:
            restore()


@contextmanager
def _arrivals(announce: Callable[[], None]) -> Iterator[None]:
    """Call `announce` at the first signal of `STOPS`, of which the interpreter writes the number into a socket."""
    read_end, write_end = socket.socketpair()
    write_end.setblocking(False)

    def listen() -> None:
        while number := read_end.recv(1):
            if number[0] in STOPS:
                announce()
                return

    listener = threading.Thread(target=listen, name="signals", daemon=True)
    listener.start()
    previous = signal.set_wakeup_fd(write_end.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        write_end.close()  # ends the listener
        listener.join()
        read_end.close()
