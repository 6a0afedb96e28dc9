"""Faults on demand: the code that users run fails where the environment variable WEAKMCN_FAULT says.

    WEAKMCN_FAULT=ENOSPC@write:3             this process's third write to a file meets a full disk
    WEAKMCN_FAULT=EIO@fsync:000001.tar       every flush of a file of this name fails
    WEAKMCN_FAULT=segv@image:000000000123    a worker crashes whenever it is about to read this image
    WEAKMCN_FAULT=kill@step:17,hang@shard:2  several, with commas

A fault is ACTION@POINT or ACTION@POINT:WHICH. ACTION is the name of an error number (ENOSPC, EIO, ...: the operation
fails with it), the name of a signal (SIGTERM, ...: sent to this process; `kill` and `segv` for short), `raise` (a
RuntimeError), `hang` (sleeps for ever) or `memory` (takes memory until there is none). POINT is one of POINTS. WHICH is
a number, counted from 1 in every process; or a key, met every time: a file's final name, a shard's six digits, an
image's twelve. Without WHICH it is met every time the point is passed.

The code calls `point` just before it does what the point is named after. Without the variable that costs one
comparison.
"""

import errno
import os
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from .errors import ConfigError

VARIABLE = "WEAKMCN_FAULT"

TEMPORARY = ".tmp-"
"""How the name of every temporary begins (atomic.py); behind it twelve random digits, a dash and the final name."""

OPERATIONS = ("open", "write", "fsync", "rename", "unlink", "mkdir")
"""What the one publisher and the run's journals do to files and folders; their key is the file's final name."""
BOUNDARIES = ("shard", "load", "image", "encode", "step")
"""A worker begins a shard (key: six digits), loads a network (the stage), is about to read an image, to encode one
(twelve digits); training begins a step (its number)."""
POINTS = OPERATIONS + BOUNDARIES

_SHORT = {"kill": "SIGKILL", "segv": "SIGSEGV"}
_WORDS = ("hang", "raise", "memory")
_SPECIFICATION = re.compile(r"(?P<action>[A-Za-z]\w*)@(?P<point>[a-z]+)(:(?P<which>[^\s,@]+))?")
_KEY_DIGITS = 12
_MEMORY_STEP_BYTES = 64 << 20


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One fault, as asked for."""

    action: str
    """The name of an error number or of a signal, or one of "hang", "raise", "memory"."""
    point: str
    count: int | None = None
    """Which passing of the point in this process, from 1."""
    key: str | None = None
    """Which file, image or shard; with neither this nor `count`, every passing."""

    def __str__(self) -> str:
        which = self.key if self.count is None else self.count
        return f"{self.action}@{self.point}" + ("" if which is None else f":{which}")

    def is_met(self, key: str, count: int) -> bool:
        return self.count in (None, count) and self.key in (None, key)


Observer = Callable[[str, str | Path], None]
"""Told the name and the subject of every point before it is passed."""

_armed: tuple[Fault, ...] | None = None
"""None: the environment has not been asked yet."""
_observer: Observer | None = None
_passed: Counter[str] = Counter()
_lock = threading.Lock()


def point(name: str, subject: str | Path = "") -> None:
    """Tell that the operation `name` is about to be done, to a file (its path) or to what else has the key `subject`.

    Returns at once unless a fault waits here; then it does not return, or raises what the fault asks for: OSError for
    an error number, RuntimeError for `raise`, MemoryError for `memory`. ConfigError where WEAKMCN_FAULT says what
    nobody understands.
    """
    if _armed == () and _observer is None:
        return
    for fault in _waiting(name, subject):
        _happen(fault, subject)


def arm(text: str) -> None:
    """Have this process meet the faults of `text` instead of those of its environment; "" for none."""
    global _armed
    faults = parse(text)
    with _lock:
        _armed = faults
        _passed.clear()


def parse(text: str) -> tuple[Fault, ...]:
    """The faults that `text` asks for; ConfigError naming the first that cannot be understood."""
    return tuple(_fault(part.strip()) for part in text.split(",") if part.strip())


def check_environment() -> None:
    """ConfigError where WEAKMCN_FAULT says what nobody understands; for asking before anything is started."""
    parse(os.environ.get(VARIABLE, ""))


@contextmanager
def observed(observer: Observer) -> Iterator[None]:
    """For the block, tell `observer` of every point that this process passes, before it is passed."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before


def final_name(path: Path) -> str:
    """The name under which a file is or will be published: that of a temporary without its beginning."""
    name = path.name
    return name[len(TEMPORARY) + 13 :] if name.startswith(TEMPORARY) else name


def _waiting(name: str, subject: str | Path) -> list[Fault]:
    global _armed
    if _observer is not None:
        _observer(name, subject)
    with _lock:
        if _armed is None:
            _armed = parse(os.environ.get(VARIABLE, ""))
        _passed[name] += 1
        key = final_name(subject) if isinstance(subject, Path) else subject
        return [fault for fault in _armed if fault.point == name and fault.is_met(key, _passed[name])]


def _fault(text: str) -> Fault:
    match = _SPECIFICATION.fullmatch(text)
    action = _SHORT.get(match["action"], match["action"]) if match else ""
    known = action in _WORDS or action in signal.Signals.__members__ or action in errno.errorcode.values()
    if match is None or not known or match["point"] not in POINTS or match["which"] == "0":
        raise ConfigError(
            f"{VARIABLE}={text}: not a fault; write ACTION@POINT:WHICH, for instance ENOSPC@write:3 or "
            f"kill@image:000000000123 (points: {', '.join(POINTS)}), or unset it."
        )
    which = match["which"]
    if which and which.isdecimal() and not which.startswith("0") and len(which) < _KEY_DIGITS:
        return Fault(action=action, point=match["point"], count=int(which))
    return Fault(action=action, point=match["point"], key=which)


def _happen(fault: Fault, subject: str | Path) -> None:
    if fault.action in signal.Signals.__members__:
        os.kill(os.getpid(), signal.Signals[fault.action])
    elif fault.action == "hang":
        _hang()
    elif fault.action == "memory":
        _take_memory()
    elif fault.action == "raise":
        raise RuntimeError(f"{VARIABLE} asked for {fault} ({subject})")
    else:
        number = getattr(errno, fault.action)
        raise OSError(number, os.strerror(number), str(subject))


def _hang() -> NoReturn:
    while True:
        time.sleep(3600)


def _take_memory() -> NoReturn:
    taken = []
    while True:
        block = bytearray(_MEMORY_STEP_BYTES)
        block[::4096] = b"x" * len(block[::4096])  # only touched pages count
        taken.append(block)
