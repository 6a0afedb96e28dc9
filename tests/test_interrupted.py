"""A command that is killed or interrupted and then given again ends with the bytes of one that nobody disturbed."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RUN_MAIN = (
    "import signal, sys; from weakmcn.cli.main import main; "
    # A shell starts background jobs, and so perhaps these tests, with Ctrl-C ignored.
    "signal.signal(signal.SIGINT, signal.default_int_handler); sys.exit(main())"
)
WORDS = ("--dataset", "refcoco+", "--epochs", "4", "--seed", "5", "--set", "train.batch=8", "--set", "train.lr=1e-3")


def bytes_of(run: Path) -> dict[str, str]:
    """File -> SHA-256 of all that a run folder holds but its clock readings."""
    files = [path for path in run.rglob("*") if path.is_file() and path.name != "timing.jsonl"]
    return {str(path.relative_to(run)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def undisturbed(demo: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    words = [sys.executable, "-c", RUN_MAIN, "train", "--shards", str(demo / "store"), "--out", str(out), *WORDS]
    subprocess.run(words, check=True, timeout=200)
    return bytes_of(out)


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=lambda each: str(each)
)
def test_training_that_was_stopped_ends_with_the_same_bytes(
    demo: Path, undisturbed: dict[str, str], tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    run = tmp_path / "run"
    words = [sys.executable, "-c", RUN_MAIN, "train", "--shards", str(demo / "store"), "--out", str(run), *WORDS]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    while not any((run / "checkpoints").glob("[0-9]*.json")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(sent)
    _, err = process.communicate(timeout=120)
    assert process.returncode == status
    assert "Traceback" not in err
    assert bytes_of(run) != undisturbed
    subprocess.run(words, check=True, timeout=200)
    assert bytes_of(run) == undisturbed
