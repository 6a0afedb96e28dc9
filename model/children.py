"""The ranks that this process starts on this machine: started, watched, and ended together.

Each is tied to this process by a pipe, whose end is the end of the rank, and says how it ended through another one
(`Report`). When one fails or is killed the others are stopped, and one line tells why. They talk over the loopback
device, so no port is open to the network.
"""

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from ..shards.errors import WeakmcnError
from .interrupts import STOPS, Interrupted

GRACE_S = 10
"""How long ranks may take to end by themselves once one has failed."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """How a rank ended, in its own words."""

    status: int = 0
    message: str = ""
    lost: bool = False
    """It could not reach another one, which will know better what happened."""
    told_elsewhere: bool = False
    """Another one tells what happened, or does what is left to do."""

    def send(self, descriptor: int) -> None:
        os.write(descriptor, json.dumps(asdict(self)).encode() + b"\n")


def received_order() -> dict[str, Any]:
    """What `run_ranks` asks of this process; from now on this one ends with the one that started it, as with a kill.

    Knows the methods that the other one knows.
    """
    order = json.loads(sys.stdin.readline())
    for file in order.pop("with"):
        from .own import add_methods  # which imports torch; nothing else here does, so a child starts in a moment

        add_methods(file)

    def wait() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=wait, name="parent", daemon=True).start()
    return order


@dataclass
class _Child:
    """A rank that this process started."""

    rank: int
    process: subprocess.Popen
    report_end: int
    """Descriptor through which it says how it ended."""
    said: bytes = b""
    stopped: bool = False
    """Whether this process killed it."""

    @property
    def report(self) -> Report | None:
        """What it said; None from one that was killed before it could."""
        return Report(**json.loads(self.said)) if self.said.endswith(b"\n") else None

    @property
    def failed(self) -> bool:
        """Whether it ended in a way that the others may not know of."""
        return self.report is None or (self.report.status != 0 and not self.report.told_elsewhere)

    def kill(self) -> None:
        self.stopped = self.stopped or self.process.poll() is None
        self.process.kill()


class RankFailed(WeakmcnError):  # noqa: N818 - says what happened
    """What a rank ended with, told by the process that started it."""

    def __init__(self, message: str, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run_ranks(code: str, orders: Sequence[Mapping[str, Any]], out: Path) -> None:
    """Run the Python `code` in a process for each order (JSON), until all have ended.

    Each takes its order by `received_order`, and sends a `Report` to the descriptor `report_end` that this adds to it.
    out: the run folder, for messages. Raises what a rank reports, or that one was killed; Interrupted where a signal
    asked for the end.
    """
    from .own import files

    known = files()
    children: list[_Child] = []
    with _passing_on(children) as came:
        try:
            for rank, order in enumerate(orders):
                children.append(_start(rank, code, {**order, "with": known}, len(orders)))
            _watch(children)
        finally:
            for child in children:
                child.kill()
                child.process.wait()
                os.close(child.report_end)
                with suppress(BrokenPipeError):
                    child.process.stdin.close()  # pyright: ignore[reportOptionalMemberAccess]
    _judge(children, out, came)


def _start(rank: int, code: str, order: Mapping[str, Any], size: int) -> _Child:
    environment = dict(os.environ)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment.setdefault("OMP_NUM_THREADS", str(max(1, cores // size)))
    loopback = next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
    for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
        environment.setdefault(name, loopback)
    read_end, write_end = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        env=environment,
        pass_fds=(write_end,),
        start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
    )
    os.close(write_end)
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it has ended already: `_watch` finds out
        told = {**order, "report_end": write_end}
        process.stdin.write(json.dumps(told, default=str).encode() + b"\n")
        process.stdin.flush()
    return _Child(rank, process, read_end)


@contextmanager
def _passing_on(children: Sequence[_Child]) -> Iterator[list[int]]:
    """Pass the first SIGINT or SIGTERM on to all children, who save and end; a second one kills them. Those that came.

    Outside the main thread, where Python delivers no signals, none ever comes.
    """
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return

    def pass_on(number: int, frame: FrameType | None) -> None:
        came.append(number)
        for child in children:
            if len(came) == 1:
                child.process.send_signal(signal.SIGTERM)
            else:
                child.kill()

    before = {number: signal.signal(number, pass_on) for number in STOPS}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(children: Sequence[_Child]) -> None:
    """Wait until all have ended; once one has failed, the others have `GRACE_S` for it."""
    deadline = None
    with selectors.DefaultSelector() as selector:
        for child in children:
            selector.register(child.report_end, selectors.EVENT_READ, child)
        while selector.get_map():
            ready = selector.select(None if deadline is None else max(0, deadline - time.monotonic()))
            if not ready and deadline is not None and time.monotonic() >= deadline:
                for child in children:
                    child.kill()
                deadline = time.monotonic() + GRACE_S
            for key, _ in ready:
                child: _Child = key.data
                if said := os.read(child.report_end, 1 << 16):
                    child.said += said
                    continue
                selector.unregister(child.report_end)
                child.process.wait()
                if child.failed and deadline is None:
                    deadline = time.monotonic() + GRACE_S


def _judge(children: Sequence[_Child], out: Path, came: Sequence[int]) -> None:
    """Raise what ended the run, if it is not done: what a rank says for itself, else that one was killed."""
    reports = [child.report for child in children if child.report is not None]
    if len(reports) == len(children) and not any(report.status for report in reports):
        return
    own = next((report for report in reports if report.message and not report.lost), None)
    if came and (own is None or own.status in (128 + number for number in STOPS)):
        told = "interrupted; what was finished is kept, the same command goes on from there."
        raise Interrupted(own.message if own else f"{out}: {told}", came[0])
    if own is not None:
        raise RankFailed(own.message, own.status)
    size = len(children)
    for child in children:
        if child.report is None and not child.stopped:
            raise RankFailed(
                f"{out}: rank {child.rank} of {size} {_how(child.process.returncode)}, the others were stopped; run "
                "the same command again to go on from the newest checkpoint."
            )
    raise RankFailed(next((report.message for report in reports if report.message), f"{out}: a rank failed."))


def _how(status: int) -> str:
    """How a process ended, by its return code."""
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
