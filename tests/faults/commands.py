"""`weakmcn` command lines, each in a process of its own that may take so much memory and time and no more.

`Commands` keeps one process that has imported everything (server.py); a command is a fork of it, which costs
milliseconds. So a crash, a hang and a bomb are results here, and the memory measured is the command's own.
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

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


class Commands:
    """Runs commands one after the other. Use as a context manager."""

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
        assert self._answer() == "ready"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(timeout=30)
        self._scratch.cleanup()

    def run(self, *words: object, folder: Path, seconds: float = 30, memory_mib: int = 1536) -> Ended:
        """`weakmcn WORDS` in `folder`; killed after `seconds`, refused more than `memory_mib` of address space."""
        files = {name: Path(self._scratch.name) / name for name in ("out", "err", "begun")}
        for file in files.values():
            file.write_text("")
        task = {
            "words": [str(word) for word in words],
            "folder": str(folder),
            "seconds": seconds,
            "memory_mib": memory_mib,
            **{name: str(file) for name, file in files.items()},
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(task) + "\n")
        self._server.stdin.flush()
        answer = json.loads(self._answer())
        out, err = (files[name].read_text("utf-8", "backslashreplace") for name in ("out", "err"))
        return Ended(words=tuple(task["words"]), out=out, err=err, **answer)

    def _answer(self) -> str:
        assert self._server.stdout is not None
        line = self._server.stdout.readline()
        if not line:
            raise RuntimeError(f"the server of commands ended with {self._server.wait()}")
        return line.strip()
