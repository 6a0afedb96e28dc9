"""A file is whole under its name, or it is not there."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from weakmcn.shards.atomic import finished_file, live_temporaries, stale_temporaries, sweep, write_json
from weakmcn.shards.errors import WeakmcnError

KILLED_MIDWAY = """
import os, signal, sys
from pathlib import Path
from weakmcn.shards.atomic import finished_file
with finished_file(Path(sys.argv[1])) as temporary:
    temporary.write_bytes(b"half a shard")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_finished_block_leaves_the_file_and_nothing_else(tmp_path: Path) -> None:
    with finished_file(tmp_path / "new" / "000000.tar") as temporary:
        assert temporary.suffix == ".tar"
        temporary.write_bytes(b"whole")
        assert not (tmp_path / "new" / "000000.tar").exists()
    assert names(tmp_path / "new") == ["000000.tar"]
    assert (tmp_path / "new" / "000000.tar").read_bytes() == b"whole"


@pytest.mark.parametrize("interruption", [KeyboardInterrupt, ValueError, SystemExit])
def test_an_interrupted_block_leaves_the_old_file_as_it_was(tmp_path: Path, interruption: type[BaseException]) -> None:
    path = tmp_path / "last.json"
    path.write_text("old")
    with pytest.raises(interruption), finished_file(path) as temporary:  # noqa: PT012
        temporary.write_text("ne")
        raise interruption
    assert names(tmp_path) == ["last.json"]
    assert path.read_text() == "old"


def test_a_killed_writer_leaves_a_temporary_that_sweep_removes(tmp_path: Path) -> None:
    killed = subprocess.run([sys.executable, "-c", KILLED_MIDWAY, str(tmp_path / "000000.tar")], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "000000.tar").exists()
    assert len(stale_temporaries(tmp_path)) == 1
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_sweep_leaves_running_writers_and_finished_files_alone(tmp_path: Path) -> None:
    (tmp_path / "000000.tar").touch()
    with finished_file(tmp_path / "000001.tar") as temporary:
        temporary.write_bytes(b"still going")
        assert live_temporaries(tmp_path) == [temporary]
        assert sweep(tmp_path) == []
    assert names(tmp_path) == ["000000.tar", "000001.tar"]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EIO])
def test_a_full_or_failing_disk_is_told_with_the_files_name_and_the_old_file_stays(tmp_path: Path, fault: int) -> None:
    path = tmp_path / "000000.tar"
    path.write_bytes(b"old")
    with pytest.raises(WeakmcnError, match=rf"000000\.tar: .*{os.strerror(fault)}"), finished_file(path):
        raise OSError(fault, os.strerror(fault))
    assert names(tmp_path) == ["000000.tar"]
    assert path.read_bytes() == b"old"


def test_json_has_sorted_keys_and_an_end_and_no_nan(tmp_path: Path) -> None:
    path = tmp_path / "stage.json"
    write_json(path, {"b": [1, 2], "a": {"d": None, "c": 0.1}})
    assert json.loads(path.read_text()) == {"a": {"c": 0.1, "d": None}, "b": [1, 2]}
    assert path.read_text().endswith("}\n")
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, float("nan"))
