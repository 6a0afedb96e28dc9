"""Runs `weakmcn` command lines, each in a fork of this process; started by commands.py, a JSON request a line on stdin.

This process imports what the commands import and does no work, so that a fork is a command about to begin: what it adds
to the memory, and how long it takes, is the command's own.
"""

import contextlib
import gc
import importlib
import io
import json
import os
import resource
import signal
import sys
import time
import traceback
from typing import Any, NoReturn

PRELOADED = (
    "weakmcn.cli.main",
    "weakmcn.pipeline.precompute",
    "weakmcn.pipeline.encoders.dino",
    "weakmcn.pipeline.encoders.sam",
    "weakmcn.pipeline.encoders.yolov3",
    "weakmcn.model.train",
    "weakmcn.model.evaluate",
    "weakmcn.cli.pictures",
    "rich.console",
    "rich.table",
)


def serve() -> None:
    for name in PRELOADED:
        importlib.import_module(name)
    with contextlib.redirect_stderr(io.StringIO()):  # typer imports more for the first command it parses
        _command(["eval", "--run", "/nowhere"])
    gc.collect()
    gc.freeze()  # or the first collection of every fork would copy all of this process's memory
    _answer("ready")
    requests = {"run": _run, "begin": _begin, "look": _look}
    for line in sys.stdin:
        asked = json.loads(line)
        _answer(json.dumps(requests[asked.pop("request")](asked)))


def _answer(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _run(task: dict[str, Any]) -> dict[str, Any]:
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _become(task)
    ended, timed_out = 0, False
    while not ended:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if not ended and time.monotonic() - begun > task["seconds"] and not timed_out:
            os.killpg(child, signal.SIGKILL)
            timed_out = True
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what it may have left behind
    with open(task["begun"]) as file:
        at_first = int(file.read() or 0)
    return {
        "status": os.waitstatus_to_exitcode(status),
        "seconds": time.monotonic() - begun,
        "timed_out": timed_out,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "grown_mib": (usage.ru_maxrss - at_first) / 1024,
    }


def _begin(task: dict[str, Any]) -> dict[str, int]:
    child = os.fork()
    if child == 0:
        _detach(task)
        sys.exit(_command(task["words"]))  # out of `serve`: this process ends as the console script's does
    return {"pid": child}


def _look(asked: dict[str, int]) -> dict[str, int | None]:
    ended, status = os.waitpid(asked["pid"], os.WNOHANG)
    return {"status": os.waitstatus_to_exitcode(status) if ended else None}


def _detach(task: dict[str, Any]) -> None:
    """A session, a folder, an environment and streams of its own."""
    os.setsid()
    os.chdir(task["folder"])
    os.environ.update(task["environment"])
    for stream, file in ((0, os.devnull), (1, task["out"]), (2, task["err"])):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT, 0o600), stream)
    sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w", 1), os.fdopen(2, "w", 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts background jobs with Ctrl-C ignored


def _become(task: dict[str, Any]) -> NoReturn:
    """The command, with no more memory than it may have; never returns."""
    status = 1
    try:
        _detach(task)
        with open("/proc/self/statm") as file:
            virtual, resident = (int(pages) * resource.getpagesize() for pages in file.read().split()[:2])
        with open(task["begun"], "w") as file:
            file.write(str(resident // 1024))
        limit = virtual + (task["memory_mib"] << 20)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        status = _command(task["words"])
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _command(words: list[str]) -> int:
    from weakmcn.cli.main import main

    sys.argv = ["weakmcn", *words]
    return main()


if __name__ == "__main__":
    serve()
    os._exit(0)  # some libraries tell on their way out what they leak
