"""Every open, write, fsync and rename of a run fails once; and the power goes at every one of them.

`sweep` makes each operation fail with an error of the device, `power_cuts` replays a run's operations on a disk that
forgets what was not flushed. Both run in the process that calls them.
"""

import errno
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from weakmcn.shards import faults
from weakmcn.shards.atomic import TEMPORARY
from weakmcn.shards.faults import final_name
from weakmcn.shards.index import INDEX_FILE

SWEPT = ("open", "write", "fsync", "rename")
ERRORS = ("ENOSPC", "EIO")


class Disturbable(Protocol):
    """A command that writes a folder, and what must be true of that folder."""

    def command(self, folder: Path, /) -> tuple[int, str]:
        """Run it on `folder` in this process: exit code and stderr."""
        ...

    def wrong_files(self, folder: Path, /) -> list[str]:
        """What is published there and should not be."""
        ...

    def differences(self, folder: Path, /) -> list[str]:
        """What is other than after an undisturbed run."""
        ...


@dataclass(kw_only=True)
class Swept:
    """What became of runs with one failing operation each."""

    points: int = 0
    faults: list[str] = field(default_factory=list)
    """What was wrong, a line each."""


def operations(work: Callable[[], object]) -> Counter[str]:
    """How often each operation is done by `work`."""
    counts: Counter[str] = Counter()
    with faults.observed(lambda name, _: counts.update([name])):
        work()
    return counts


def all_points(counts: Counter[str]) -> list[str]:
    """The faults that make every operation fail once with every error."""
    return [f"{error}@{name}:{nth}" for name in SWEPT for nth in range(1, counts[name] + 1) for error in ERRORS]


def one_error_each(points: list[str]) -> list[str]:
    """Every operation once, the errors in turn: half of `all_points`."""
    return [points[place + place // len(ERRORS) % len(ERRORS)] for place in range(0, len(points), len(ERRORS))]


def sweep(subject: Disturbable, points: Iterable[str], out: Path) -> Swept:
    """Run the command on `out` once for every fault in `points`, and then again without it.

    The first ends with exit code 1 and one line that names a file below `out` and the cause, and nothing wrong is
    published; the second ends with the bytes of an undisturbed run. The one file whose faults do not end a run is
    index.parquet: it is derived, and whoever opens the store makes it again.
    """
    done = Swept()
    for point in points:
        shutil.rmtree(out, ignore_errors=True)
        met: list[str] = []
        faults.arm(point)
        try:
            with faults.observed(_noting(point, met)):
                status, printed = subject.command(out)
        finally:
            faults.arm("")
        done.points += 1
        where = f"{point} ({met[-1] if met else 'never met'})"
        done.faults += [f"{where}: {wrong}" for wrong in _wrong_ending(point, met, status, printed, out)]
        done.faults += [f"{where}: {wrong}" for wrong in subject.wrong_files(out)]
        status, printed = subject.command(out)
        if status != 0:
            done.faults.append(f"{where}: the run after it ended with {status}: {printed.splitlines()[-1]}")
        done.faults += [f"{where}: after the run after it {wrong}" for wrong in subject.differences(out)]
    return done


def _noting(point: str, met: list[str]) -> Callable[[str, str | Path], None]:
    """An observer that notes which file the fault meets; for a folder, which was renamed there last."""
    operation, nth = point.partition("@")[2].split(":")
    passed = iter(range(1, 1 << 30))
    renamed = ""

    def note(name: str, subject: str | Path) -> None:
        nonlocal renamed
        path = Path(subject)
        if name == "rename":
            renamed = final_name(path)
        if name == operation and next(passed) == int(nth):
            met.append(renamed if path.is_dir() else final_name(path))

    return note


def _wrong_ending(point: str, met: list[str], status: int, printed: str, out: Path) -> Iterator[str]:
    cause = os.strerror(getattr(errno, point.partition("@")[0]))
    if met == [INDEX_FILE] and status == 0:
        return
    told = [line for line in printed.splitlines() if line.startswith("weakmcn: ")]
    if status != 1 or len(told) != 1 or "Traceback" in printed:
        yield f"exit code {status}, {printed!r}"
    elif cause not in told[0] or str(out) not in told[0]:
        yield f"the line names no file or cause: {told[0]}"


# The power goes.


@dataclass
class Disk:
    """What of a folder would be there after the power went: the content of files and the names of a folder are on the
    disk from their flush on, and until then they may be or may not be."""

    root: Path
    durable: dict[Path, bytes] = field(default_factory=dict)
    """File, under the name it has now -> its content at its last flush."""
    unsettled: list[tuple[Path, Path]] = field(default_factory=list)
    """Renames (from, to) whose folder was not flushed since, oldest first."""
    replaced: dict[Path, bytes] = field(default_factory=dict)
    """What the target of an unsettled rename, or a removed file, was before."""

    def before(self, operation: str, path: Path) -> None:
        """Take note of an operation that is about to be done."""
        if operation == "fsync" and path.is_dir():
            self.unsettled = [rename for rename in self.unsettled if rename[1].parent != path]
            self.replaced = {each: data for each, data in self.replaced.items() if each.parent != path}
        elif operation == "fsync":
            self.durable[path] = path.read_bytes()
        elif operation == "rename":
            target = path.with_name(final_name(path))
            if target.exists():
                self.replaced[target] = self.durable.get(target, b"")
            self.durable[target] = self.durable.pop(path, b"")
            self.unsettled.append((path, target))
        elif operation == "unlink":
            self.replaced[path] = self.durable.pop(path, b"")

    def after_the_cut(self, folder: Path, how: str) -> None:
        """Write to `folder` what is left: see CUTS."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.root, folder)
        for file in folder.rglob("*"):
            if file.is_file():
                file.write_bytes(self._survived(self.root / file.relative_to(folder), how))
        if how != "renames undone":
            return
        for _, target in reversed(self.unsettled):
            copy = folder / target.relative_to(self.root)
            if copy.exists():  # else an older rename to the same name is undone already
                copy.rename(copy.with_name(f"{TEMPORARY}0123456789ab-{copy.name}"))
        for path, data in self.replaced.items():
            copy = folder / path.relative_to(self.root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(data)

    def _survived(self, file: Path, how: str) -> bytes:
        now, flushed = file.read_bytes(), self.durable.get(file, b"")
        if how == "only tars lost" and file.suffix != ".tar":
            return now
        if how in ("lengths kept", "only tars lost"):
            return flushed + bytes(max(0, len(now) - len(flushed)))
        return flushed


CUTS = ("renames kept", "renames undone", "lengths kept", "only tars lost")
"""What was not flushed is gone; with it the new names of files; files keep their length and hold zeros; or only tars
do, the system happening to write everything else in time."""


def power_cuts(
    work: Callable[[], int],
    root: Path,
    check: Callable[[Path], list[str]],
    folder: Path,
    *,
    cuts: Iterable[str] = CUTS,
    is_flushing: bool = True,
) -> Swept:
    """Cut the power before every operation of `work`, which writes below `root`, in every way of `cuts`.

    work: gives its exit code. check: tells what is wrong with what is left. is_flushing: without it no flush of `work`
    has any effect.
    """
    done, disk = Swept(), Disk(root)

    def cut(operation: str, subject: str | Path) -> None:
        path = Path(subject)
        if root not in (path, *path.parents):
            return
        for how in cuts if root.exists() else ():
            disk.after_the_cut(folder / "left", how)
            done.points += 1
            done.faults += [f"cut before {operation} {path.name}, {how}: {wrong}" for wrong in check(folder / "left")]
        if is_flushing or operation != "fsync":
            disk.before(operation, path)

    with faults.observed(cut):
        if status := work():
            done.faults.append(f"the run itself ended with {status}")
    return done
