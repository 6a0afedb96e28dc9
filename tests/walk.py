"""A page read as a newcomer does: its commands typed one after the other, what they print held against what it shows.

Shell blocks (`sh`) are run in the order of the page, in one folder; a `text` block right behind one is what the
terminal then shows. Comments in the page say what is special about the next block:

    <!-- typed by … -->         by .ci/run, or by `just clusters`, which stops all of Ray; not by the tests
    <!-- until Ctrl-C -->        it is stopped by Ctrl-C when it has told its address
    <!-- exit code 3 -->         how its last command ends; 0 if nothing is said
    <!-- file: NAME -->          no commands: what is to be written into the file NAME before what comes next
    <!-- figures of 2072c480 --> what it prints hangs on a training: compared to the letter where `demo/run` had the
                                 losses of this digest; where a machine rounds otherwise, numbers as numbers only

Put what the commands print into pages:  just pages docs/plan.md docs/runs.md
"""

import hashlib
import io
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from weakmcn.cli.main import main

ELISION = "…"
"""A line of this alone stands for any lines."""
DROPPED = (r"[\w -]+: [\d,]+ of [\d,]+ images(, .*)?",)
"""Lines that a terminal shows as a bar, and takes away."""
VARYING = (
    (r"[\d,.]+ (images|ref)/s", "N/s"),
    (r"\b\d[\d.,]* (ms|s|min|h)( \d+ (s|min))?(?!\w)", "TIME"),
    (r"\b\d+(\.\d+)? ?% (waiting|for the disk|of them waiting)|(?<=idle )\d+ %", "SHARE"),
    (r"free [\d.,]+ [kMGT]?B|[\d.,]+ [kMGT]?B (?=of it free|are free|free)", "SIZE"),
    (r"\b[0-9a-f]{8}\b", "DIGEST"),
    (r"(?<=[a-z] )\d+\.\d+\.\d+\S*", "VERSION"),
    (r"[─━]+", "─"),
    (r" +", " "),
)
"""What another machine, another moment or another version prints otherwise: pattern, what stands for it."""
NUMBER = r"[-+]?\d[\d,]*(\.\d+)?"

_BLOCK = re.compile(
    r"(?P<marks>(?:^ *<!--[^\n]*-->\n)*)^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^(?P=indent)```\n",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A shell block of a page, or a file to be written."""

    code: str
    file: str | None = None
    """The file's name."""
    by_gate: bool = False
    """Whether .ci/run or `just clusters` types it, and no test."""
    until_ctrl_c: bool = False
    exit_code: int = 0
    shown: str | None = None
    """What the page shows behind it."""
    figures_of: str = ""
    """Digest of the losses of the run whose figures it shows."""
    place: tuple[int, int] = (0, 0)
    """Where in the page the shown text stands; (0, 0) without one."""

    @property
    def name(self) -> str:
        """Its first line, cut."""
        return self.code.splitlines()[0][:80].rstrip()


def steps(text: str) -> list[Step]:
    """The shell blocks of a page, each with the text block behind it, if nothing stands between."""
    found = list(_BLOCK.finditer(text))
    made = []
    for place, block in enumerate(found):
        if named := re.search(r"<!-- file: (\S+) -->", block["marks"]):
            made.append(Step(code=block["code"], file=named[1]))
            continue
        if block["language"] not in ("sh", "bash", "console"):
            continue
        behind = found[place + 1] if place + 1 < len(found) else None
        if behind is not None and (
            behind["language"] not in ("", "text") or text[block.end() : behind.start()].strip()
        ):
            behind = None
        code = re.search(r"<!-- exit code (\d+) -->", block["marks"])
        marks = block["marks"] + (behind["marks"] if behind else "")
        figures = re.search(r"<!-- figures of (\w+) -->", marks)
        indent = len(block["indent"])
        made.append(
            Step(
                code="\n".join(line[indent:] for line in block["code"].splitlines()),
                by_gate="<!-- typed by " in block["marks"],
                until_ctrl_c="<!-- until Ctrl-C -->" in block["marks"],
                exit_code=int(code[1]) if code else 0,
                shown=behind["code"] if behind else None,
                figures_of=figures[1] if figures else "",
                place=behind.span("code") if behind else (0, 0),
            )
        )
    return made


def lines_of(code: str) -> list[str]:
    """The commands of a block, comments left out, continued lines joined."""
    joined = re.sub(r"\\\n\s*", "", code)
    return [line for line in joined.splitlines() if line.strip() and not line.lstrip().startswith("#")]


@contextmanager
def terminal(folder: Path) -> Iterator[None]:
    """Commands run in `folder`, as in a terminal of 110 columns in which the environment is active."""
    here = {"COLUMNS": "110", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "NO_COLOR": "1"}
    before = {name: os.environ.get(name) for name in here}
    handler, words = signal.getsignal(signal.SIGTERM), sys.argv
    os.environ.update(here)
    try:
        with chdir(folder):
            yield
    finally:
        signal.signal(signal.SIGTERM, handler)
        sys.argv = words
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def done(step: Step) -> tuple[int, str]:
    """Exit code of the last command of a step, and all that was printed. The first that fails is the last."""
    if step.until_ctrl_c:
        return _own(step.code, _Stopping()) if _is_own(step.code) else _stopped(step.code)
    if step.file is None:
        return typed(step.code)
    Path(step.file).parent.mkdir(parents=True, exist_ok=True)
    Path(step.file).write_text(step.code, "utf-8")
    return 0, ""


def typed(code: str) -> tuple[int, str]:
    """The same of commands."""
    status, printed = 0, ""
    for line in lines_of(code):
        status, text = _own(line) if _is_own(line) else _shell(line)
        printed += text
        if status:
            break
    return status, printed


def _is_own(line: str) -> bool:
    """Whether the line is one call of ours and nothing else: then it is made in this process, which spares seconds.

    Methods of a file of the user's would stay in the process.
    """
    return re.match(r"weakmcn (?!--with)", line) is not None and not re.search(
        r"[|&;<>$`*~]", re.sub(r"'[^']*'|\"[^\"]*\"", "", line)
    )


def _own(line: str, out: io.StringIO | None = None) -> tuple[int, str]:
    out = out or io.StringIO()
    sys.argv = shlex.split(line, comments=True)
    with redirect_stdout(out), redirect_stderr(out):
        status = main()
    return status, out.getvalue()


class _Stopping(io.StringIO):
    """A terminal in which Ctrl-C is typed behind a line with an address; what is said after that is left out."""

    told = False

    def write(self, text: str) -> int:
        if self.told:
            return len(text)
        super().write(text)
        self.told = "http://" in text
        if self.told:
            raise KeyboardInterrupt
        return len(text)


def _shell(line: str) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=250, check=False
    )
    return done.returncode, done.stdout


def _stopped(line: str) -> tuple[int, str]:
    """The same of a server: Ctrl-C is typed behind the line with its address, what it says then is left out.

    One that lets the signal end it has ended well.
    """
    printed = ""
    # In a job of a shell this process may ignore Ctrl-C, and what it starts would too.
    words = ["env", "--default-signal=INT", "bash", "-c", f"exec {line}"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as server:
        assert server.stdout is not None
        for said in server.stdout:
            printed += said
            if "http://" in said:
                break
        server.send_signal(signal.SIGINT)
        server.stdout.read()
    return 0 if server.returncode == -signal.SIGINT else server.returncode, printed


def trained(run: Path = Path("demo/run")) -> str:
    """Digest of the losses of a run: runs of one digest answer alike. "" where there is no run."""
    losses = run / "metrics.jsonl"
    return hashlib.sha256(losses.read_bytes()).hexdigest()[:8] if losses.exists() else ""


def plain(text: str, *, varies: bool = False) -> list[str]:
    """The lines of an output, with words in place of what is not the same everywhere.

    varies: as another training could print it.
    """
    lines = []
    for line in text.replace(f"{Path.cwd()}/", "").splitlines():
        if any(re.fullmatch(pattern, line) for pattern in DROPPED):
            continue
        for pattern, word in VARYING:
            line = re.sub(pattern, word, line)
        if varies:
            line = line.replace("mask empty", "mask 0 px")
            line = re.sub(r".*\binterval leaves out zero\.|Every interval holds zero: .*", "INTERVALS", line)
        lines.append(re.sub(NUMBER, "#", line.strip()) if varies else line.strip())
    return [*"\n".join(lines).strip().splitlines()]


def is_shown(shown: list[str], printed: list[str]) -> bool:
    """Whether the page shows what was printed; a line of `…` stands for any lines."""
    pattern = "".join(r"(?:.*\n)*?" if line == ELISION else re.escape(line) + r"\n" for line in shown)
    return re.fullmatch(pattern, "".join(f"{line}\n" for line in printed)) is not None


def shown_again(text: str, outputs: list[str | None]) -> str:
    """The page with other outputs, one a step; None leaves a step's as it is.

    ValueError where one is shown with an elision and is another now.
    """
    text = re.sub(r"<!-- figures of \w+ -->", f"<!-- figures of {trained()} -->", text)
    for step, output in reversed(list(zip(steps(text), outputs, strict=True))):
        if output is None or step.shown is None:
            continue
        if is_shown(plain(step.shown), plain(output)):
            continue
        if ELISION in step.shown.splitlines():
            raise ValueError(f"{step.name}: mend by hand what is shown with an elision; it prints\n{output}")
        kept = [line.rstrip() for line in output.splitlines() if not any(re.fullmatch(p, line) for p in DROPPED)]
        text = text[: step.place[0]] + "\n".join(kept).strip("\n") + "\n" + text[step.place[1] :]
    return text


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as in the tests, before torch is imported
    from .walked import rewrite

    rewrite([Path(page) for page in sys.argv[1:]])
