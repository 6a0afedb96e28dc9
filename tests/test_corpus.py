"""Bad inputs, more than three hundred, each through the command that meets it: one clear line, soon, in little memory.

A sound data set, and a store and a run made of it, are damaged in one place at a time (faults/). Every command runs in
a process of its own with bounded memory and time, so that a crash or a hang is a failure here and nothing else.
"""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from weakmcn.shards.store import Store
from weakmcn.shards.tables import skipped_photos

from .faults import sound
from .faults.annotations import BAD_ANNOTATIONS, BadAnnotations
from .faults.bombs import BOMBS, Bomb
from .faults.commands import Commands, Ended
from .faults.lines import BAD_LINES, BadLine
from .faults.photos import BAD_PHOTOS, BadPhoto
from .faults.stores import DAMAGES, Damage
from .faults.weights import BAD_WEIGHTS, BadWeights

LONGEST_LINE = 300
SLOWEST_S = 10
"""Of processor time: others may be at work on this machine."""
GROWTH_MIB = 300
"""Memory held beyond what the command began with; a gigabyte is the limit, a bomb is not to come near it."""


def refused(ended: Ended, *, status: int = 2, lines: int = 1, folders: Sequence[Path] = ()) -> list[str]:
    """The lines with which an input was refused, the first without `weakmcn: `; the house form is checked."""
    assert not ended.timed_out, ended
    assert (ended.status, ended.out) == (status, ""), ended
    assert "Traceback" not in ended.err
    told = ended.told
    assert len(told) == lines, ended.err
    assert told[0].startswith("weakmcn: ")
    assert all(line.isprintable() for line in told)
    if folders:
        assert max(len(without(line, folders)) for line in told) <= LONGEST_LINE, told
    assert ended.cpu_s < SLOWEST_S
    assert ended.grown_mib < GROWTH_MIB
    return [told[0].removeprefix("weakmcn: "), *told[1:]]


def without(line: str, folders: Sequence[Path]) -> str:
    for folder in folders:
        line = line.replace(str(folder), "")
    return line


def has_mend(line: str) -> bool:
    """Whether a line goes on behind its fact, `<culprit>: <fact>; <mend>`, or asks what was meant."""
    return re.search(r"[;?] \S|did you mean .*\?$", line) is not None


@pytest.mark.parametrize("photo", BAD_PHOTOS, ids=lambda photo: photo.name)
def test_a_photograph_that_cannot_be_used(commands: Commands, tmp_path: Path, photo: BadPhoto) -> None:
    root = sound.Data.sound().write(tmp_path / "data")
    path = sound.photo_path(root)
    photo.write(path)
    ended = commands.run(*sound.precompute(root, tmp_path / "store"), folder=tmp_path)
    count, line = refused(ended, lines=2, folders=[tmp_path])
    assert count.startswith("1 of 2 photos cannot be used; ")
    assert line.startswith(f"{path}: ")
    assert photo.says in line
    assert "; " in line
    assert not (tmp_path / "store").exists()


def test_all_bad_photographs_are_listed_at_once_or_left_out_and_counted(commands: Commands, tmp_path: Path) -> None:
    data = sound.Data.sound()
    for number in range(4, 4 + len(BAD_PHOTOS)):
        data.add_photo(number)
    root = data.write(tmp_path / "data")
    for number, photo in enumerate(BAD_PHOTOS, start=4):
        sound.write_photo(root, number)
        photo.write(sound.photo_path(root, number))
    words = sound.precompute(root, tmp_path / "store")
    total = len(BAD_PHOTOS) + 2
    count, *listed = refused(commands.run(*words, folder=tmp_path), lines=len(BAD_PHOTOS) + 1, folders=[tmp_path])
    assert count.startswith(f"{len(BAD_PHOTOS)} of {total} photos cannot be used; ")
    for number, (photo, line) in enumerate(zip(BAD_PHOTOS, listed, strict=True), start=4):
        assert line.startswith(f"{sound.photo_path(root, number)}: ")
        assert photo.says in line
    assert not (tmp_path / "store").exists()

    ended = commands.run(*words, "--skip-bad", folder=tmp_path)
    assert (ended.status, "Traceback" in ended.err) == (3, False)
    assert f"{len(BAD_PHOTOS)} photographs skipped" in ended.out
    store = Store.open(tmp_path / "store")
    assert store.keys == [f"{number:012d}" for number in (1, 2)]
    skipped = skipped_photos(store.images)
    for number, photo in enumerate(BAD_PHOTOS, start=4):
        assert photo.says in skipped[f"{number:012d}"]


def test_where_every_photograph_is_bad_leaving_them_out_is_no_way(commands: Commands, tmp_path: Path) -> None:
    root = sound.Data.sound().write(tmp_path / "data")
    for number in (1, 2):
        sound.photo_path(root, number).unlink()
    ended = commands.run(*sound.precompute(root, tmp_path / "store", "--skip-bad"), folder=tmp_path)
    count, *_ = refused(ended, lines=3)
    assert count.startswith("2 of 2 photos cannot be used; ")
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("case", BAD_ANNOTATIONS, ids=lambda case: case.name)
def test_annotations_that_cannot_be_used(commands: Commands, tmp_path: Path, case: BadAnnotations) -> None:
    root = tmp_path / "data"
    case.write(root)
    ended = commands.run(*sound.precompute(root, tmp_path / "store"), folder=tmp_path)
    (line,) = refused(ended, folders=[tmp_path])
    assert line.startswith(f"{root / case.culprit}: ")
    assert case.says in line
    assert has_mend(line)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("case", BAD_WEIGHTS, ids=lambda case: case.name)
def test_weights_that_cannot_be_used(commands: Commands, tmp_path: Path, case: BadWeights) -> None:
    root = sound.Data.sound().write(tmp_path / "data")
    path = tmp_path / "detect.pth"
    case.write(path)
    ended = commands.run(*sound.precompute(root, tmp_path / "store", "--checkpoint", f"detect={path}"), folder=tmp_path)
    (line,) = refused(ended, folders=[tmp_path])
    assert line.startswith(f"{path}: ")
    assert case.says in line
    assert has_mend(line)
    assert not list(tmp_path.glob("store/*-*/"))  # no column was begun


@pytest.mark.parametrize("case", DAMAGES, ids=lambda case: case.name)
def test_a_store_or_a_run_that_is_damaged(commands: Commands, pair: Path, tmp_path: Path, case: Damage) -> None:
    for part in ("store", "run"):
        shutil.copytree(pair / part, tmp_path / part)
    case.change(tmp_path)
    ended = commands.run(*case.words, folder=tmp_path)
    if case.status == 1:  # verify lists what it finds
        assert (ended.status, ended.err) == (1, "")
        assert any(line.startswith(case.culprit) and case.says in line for line in ended.out.splitlines())
        return
    (line,) = refused(ended, status=case.status, folders=[tmp_path, pair])
    assert line.startswith(case.culprit)
    assert case.says in line
    assert has_mend(line)


@pytest.mark.parametrize("case", BAD_LINES, ids=lambda case: " ".join(case.words))
def test_a_command_line_that_is_wrong(commands: Commands, tmp_path: Path, case: BadLine) -> None:
    sound.Data.sound().write(tmp_path / "data")
    case.prepare(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    ended = commands.run(*case.words, folder=tmp_path)
    (line,) = refused(ended, folders=() if case.lists else [tmp_path])
    assert case.says in line
    assert has_mend(line)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.name)
def test_a_small_file_that_asks_for_much(commands: Commands, pair: Path, tmp_path: Path, bomb: Bomb) -> None:
    for part in ("store", "run"):
        shutil.copytree(pair / part, tmp_path / part)
    ended = commands.run(*bomb.prepare(tmp_path), folder=tmp_path)
    told = refused(ended, lines=2 if "photos cannot be used" in ended.err else 1, folders=[tmp_path, pair])
    assert bomb.says in told[-1]
    assert ended.cpu_s < 1
