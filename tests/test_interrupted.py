"""A command that is killed or interrupted and then given again ends with the bytes of one that nobody disturbed."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from .faults.commands import Commands
from .trainings import content, spelt
from .worlds import DATASET, RECIPE

WORDS = ("--dataset", DATASET, "--preset", "pocket", "--device", "cpu", *spelt(recipe=replace(RECIPE, epochs=12)))


@pytest.fixture(scope="module")
def undisturbed(commands: Commands, store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("undisturbed")
    assert commands.begin("train", "--shards", store, "--out", "run", *WORDS, folder=folder).ended() == 0
    return content(folder / "run")


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=lambda each: str(each)
)
def test_training_that_was_stopped_ends_with_the_same_bytes(
    commands: Commands, store: Path, undisturbed: dict[str, bytes], tmp_path: Path, sent: signal.Signals, status: int
) -> None:
    words = ("train", "--shards", store, "--out", "run", *WORDS)
    begun = commands.begin(*words, folder=tmp_path)
    begun.until(lambda: any((tmp_path / "run/checkpoints").glob("[0-9]*.json")))
    os.kill(begun.pid, sent)
    assert begun.ended() == status, begun.err
    assert "Traceback" not in begun.err
    assert content(tmp_path / "run") != undisturbed
    again = commands.begin(*words, folder=tmp_path)
    assert again.ended() == 0, again.err
    assert content(tmp_path / "run") == undisturbed
