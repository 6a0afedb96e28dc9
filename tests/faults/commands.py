"""`weakmcn` command lines, each in a process of its own that may take so much memory and time and no more.

`Commands` keeps one process that has imported everything (server.py); a command is a fork of it, which costs
milliseconds. So a crash, a hang and a bomb are results here, and the memory measured is the command's own.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SERVER = Path(__file__).with_name("server.py")


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a command ended."""

    words: tuple[str, ...]
    status: int
    """Exit code; minus the signal's number where one ended it."""
    out: str
    err: str
    seconds: float
    cpu_s: float
    """Of its processor time, which other processes do not stretch."""
    grown_mib: float
    """Most memory it held, beyond what it began with."""
    timed_out: bool

    @property
    def told(self) -> list[str]:
        """What it said on stderr from its error on; the plan, progress and notes before it left out."""
        lines = self.err.splitlines()
        first = next((place for place, line in enumerate(lines) if line.startswith("weakmcn: ")), len(lines))
        return lines[first:]


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A command under way, in a session of its own; at its end it is finalised as the console script's process is."""

    pid: int
    files: Mapping[str, Path]
    look: Callable[[], int | None]
    """Its exit code, or minus the number of the signal that ended it; None while it runs."""

    @property
    def out(self) -> str:
        """What it has written to stdout by now."""
        return self.files["out"].read_text("utf-8", "backslashreplace")

    @property
    def err(self) -> str:
        return self.files["err"].read_text("utf-8", "backslashreplace")

    def until(self, holds: Callable[[], object], seconds: float = 120) -> None:
        """Wait for something that happens while it runs."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert self.look() is None, self.err
            assert time.monotonic() < deadline, self.err
            time.sleep(0.01)

    def ended(self, seconds: float = 120) -> int:
        """Wait for its end; as `look`."""
        deadline = time.monotonic() + seconds
        while (status := self.look()) is None:
            assert time.monotonic() < deadline, self.err
            time.sleep(0.01)
        return status


class Commands:
    """Runs commands one after the other, or begins some beside. Use as a context manager."""

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
        self._server = subprocess.Popen(
            [sys.executable, str(SERVER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._scratch = tempfile.TemporaryDirectory(prefix="weakmcn-faults-")
        self._begun: list[Begun] = []
        assert self._answer() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for begun in self._begun:
            if begun.look() is None:
                os.killpg(begun.pid, signal.SIGKILL)
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._scratch.cleanup()

    def run(self, *words: object, folder: Path, seconds: float = 30, memory_mib: int = 1536) -> Ended:
        """`weakmcn WORDS` in `folder`; killed after `seconds`, refused more than `memory_mib` of address space."""
        files = self._files("", "out", "err", "begun")
        told = [str(word) for word in words]
        answer = self._ask("run", **_task(told, folder, files, {}), seconds=seconds, memory_mib=memory_mib)
        out, err = (files[name].read_text("utf-8", "backslashreplace") for name in ("out", "err"))
        return Ended(words=tuple(told), out=out, err=err, **answer)

    def begin(self, *words: object, folder: Path, environment: Mapping[str, str] | None = None) -> Begun:
        """`weakmcn WORDS` in `folder`, with more environment. It is killed with this object, if it still runs then."""
        files = self._files(f"-{len(self._begun)}", "out", "err")
        pid = self._ask("begin", **_task([str(word) for word in words], folder, files, environment or {}))["pid"]
        status: list[int] = []

        def look() -> int | None:
            if not status and (found := self._ask("look", pid=pid)["status"]) is not None:
                status.append(found)
            return status[0] if status else None

        self._begun.append(Begun(pid=pid, files=files, look=look))
        return self._begun[-1]

    def _files(self, mark: str, *names: str) -> dict[str, Path]:
        files = {name: Path(self._scratch.name) / f"{name}{mark}" for name in names}
        for file in files.values():
            file.write_text("")
        return files

    def _ask(self, request: str, **more: Any) -> dict[str, Any]:
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps({"request": request, **more}) + "\n")
        self._server.stdin.flush()
        return json.loads(self._answer())

    def _answer(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of commands ended with {self._server.wait()}")
        return line.strip()


def _task(words: list[str], folder: Path, files: Mapping[str, Path], environment: Mapping[str, str]) -> dict[str, Any]:
    named = {name: str(file) for name, file in files.items()}
    return {"words": words, "folder": str(folder), "environment": dict(environment), **named}
