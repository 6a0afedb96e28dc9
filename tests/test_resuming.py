"""Nothing can interrupt a run for good, and it goes on only as what it was."""

import json
import os
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.interrupts import Interrupted, stop_requests
from weakmcn.model.run import Run
from weakmcn.model.train import train
from weakmcn.shards.errors import CheckpointError, ConfigError, InputError, StoreError, WeakmcnError
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.lock import only_writer

from . import worlds
from .trainings import TRAIN, VAL, Crash, at_step, content, crash, settings
from .worlds import RECIPE, TINY, Rows, make_store, scenes, write_family


@pytest.mark.parametrize("step", [1, 2, 3, 4, 8])
def test_a_run_that_crashes_and_is_started_again_ends_with_the_same_bytes(
    store: Path, undisturbed: Run, tmp_path: Path, step: int
) -> None:
    wanted = settings(store, tmp_path / "run", checkpoint_minutes=0 if step == 4 else 10)
    with pytest.raises(Crash):
        train(wanted, after_step=at_step(step, crash))
    train(wanted)
    assert content(tmp_path / "run") == content(undisturbed.path)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("step", [2, 7])
def test_a_signal_saves_the_step_and_the_next_run_goes_on_from_it(
    store: Path,
    undisturbed: Run,
    tmp_path: Path,
    step: int,
    number: int,
    code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    wanted = settings(store, tmp_path / "run")
    with pytest.raises(Interrupted, match=f"after step {step}, .*same command") as stopped:
        train(wanted, after_step=at_step(step, lambda _: os.kill(os.getpid(), number)))
    assert stopped.value.exit_code == code
    assert "Goes on" not in capsys.readouterr().err
    steps: list[int] = []
    train(wanted, after_step=lambda state: steps.append(state.step))
    assert f"Goes on after step {step}, in epoch {step // 3 + 1}.\n" in capsys.readouterr().err
    assert steps[0] == step + 1
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_figures_of_a_run_that_is_not_finished_say_so(store: Path, undisturbed: Run, tmp_path: Path) -> None:
    wanted = settings(store, tmp_path / "run")
    with pytest.raises(Interrupted):
        train(wanted, after_step=at_step(2, lambda _: os.kill(os.getpid(), signal.SIGINT)))
    notes = evaluate_run(Run.open(tmp_path / "run"), "val").notes
    assert any(note == "its training is not finished: 0 of 3 epochs, 2 steps." for note in notes), notes
    assert any(note.startswith("its mask head has learned nothing") for note in notes)
    assert evaluate_run(undisturbed, "val").notes == []


def test_a_signal_during_the_last_step_lets_the_run_finish(store: Path, undisturbed: Run, tmp_path: Path) -> None:
    wanted = settings(store, tmp_path / "run")
    train(wanted, after_step=at_step(9, lambda _: os.kill(os.getpid(), signal.SIGINT)))
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_a_damaged_newest_checkpoint_is_told_and_the_older_one_used(
    store: Path, undisturbed: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "run"), after_step=at_step(8, crash))
    damaged = tmp_path / "run/checkpoints/00000006.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    train(settings(store, tmp_path / "run"))
    assert "00000006.safetensors: damaged" in capsys.readouterr().err
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_with_every_checkpoint_damaged_it_stops_and_says_so(store: Path, undisturbed: Run, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "run")
    for weights in (tmp_path / "run/checkpoints").glob("*.safetensors"):
        weights.write_bytes(b"")
    with pytest.raises(CheckpointError, match="No older one is left"):
        train(settings(store, tmp_path / "run"))


def test_a_finished_run_is_left_alone(store: Path, undisturbed: Run, capsys: pytest.CaptureFixture[str]) -> None:
    before = content(undisturbed.path)
    train(settings(store, undisturbed.path), after_step=crash)
    assert content(undisturbed.path) == before
    assert "nothing to do, epoch 3 was the last" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"recipe": replace(RECIPE, epochs=5)}, r"train\.epochs=3, this command says 5"),
        ({"model": replace(TINY, banks=("dino",))}, r"model\.banks=\['dino', 'sam'\], this command says \['dino'\]"),
        ({"shuffle_captions": True}, "shuffle_captions=False"),
    ],
)
def test_another_setting_in_the_same_folder_is_refused_by_name(
    store: Path, undisturbed: Run, change: dict, name: str
) -> None:
    with pytest.raises(ConfigError, match=name):
        train(settings(store, undisturbed.path, **change))


def test_a_run_from_before_a_setting_existed_goes_on_with_the_value_it_had_by_itself(
    store: Path, undisturbed: Run, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(undisturbed.path, old)
    facts = json.loads((old / "run.json").read_text())
    for name in ("optimiser", "weight_decay", "schedule", "poly_power", "warmup_steps"):
        del facts["train"][name]
    (old / "run.json").write_text(json.dumps(facts))
    assert Run.open(old).train == undisturbed.train
    assert train(settings(store, old)).path == old


def reworded(rows: Rows) -> None:
    rows[3]["sentences"].reverse()


def one_less(rows: Rows) -> None:
    del rows[TRAIN - 1]


def elsewhere(rows: Rows) -> None:
    rows[3]["key"], rows[4]["key"] = rows[4]["key"], rows[3]["key"]


def a_new_word_in_val(rows: Rows) -> None:
    rows[TRAIN]["sentences"][0] = "the unheard-of square"


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (reworded, "the captions of toy train are not those"),
        (one_less, "the captions and photographs and references of toy train are not those"),
        (elsewhere, "the photographs and references of toy train are not those"),
        (a_new_word_in_val, "the vocabulary of toy train are not those"),
    ],
)
def test_other_data_than_the_run_was_trained_on_are_refused_and_named(
    undisturbed: Run, tmp_path: Path, edit: Callable[[Rows], None], named: str
) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "run")
    before = content(tmp_path / "run")
    other = make_store(tmp_path / "store", train=TRAIN, val=VAL, edit=edit)
    with pytest.raises(StoreError, match=named):
        train(settings(other, tmp_path / "run"))
    assert content(tmp_path / "run") == before


def test_the_columns_of_other_photographs_are_refused_though_the_settings_that_made_them_are_the_same(
    undisturbed: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "run")
    monkeypatch.setattr(worlds, "_digest", lambda image: fingerprint(["another photograph", image]))
    other = make_store(tmp_path / "store", train=TRAIN, val=VAL)
    with pytest.raises(StoreError, match="the photographs of toy train are not those"):
        train(settings(other, tmp_path / "run"))


def test_another_column_than_the_run_was_trained_on_is_refused(undisturbed: Run, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "run")
    renewed = make_store(tmp_path / "renewed", train=TRAIN, val=VAL)
    write_family(renewed, "sam", scenes(TRAIN + VAL), code=2)
    with pytest.raises(StoreError, match=r"trained on sam-[0-9a-f]{8}, the store has sam-[0-9a-f]{8}"):
        train(settings(renewed, tmp_path / "run"))


def test_a_store_that_was_moved_is_the_same_store(store: Path, undisturbed: Run, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "moved")
    shutil.copytree(undisturbed.path, tmp_path / "run")
    assert train(settings(tmp_path / "moved", tmp_path / "run"), after_step=crash).finished


def test_two_trainings_in_one_folder_are_refused(store: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path / "run", "weakmcn train"), pytest.raises(WeakmcnError, match="another weakmcn train"):
        train(settings(store, tmp_path / "run"))


@pytest.mark.parametrize("there", ["photo.jpg", "run/metrics.jsonl", ".hidden"])
def test_a_folder_that_holds_something_else_is_refused_and_left_alone(store: Path, tmp_path: Path, there: str) -> None:
    out = tmp_path / "out"
    (out / there).parent.mkdir(parents=True)
    (out / there).write_text("mine")
    with pytest.raises(
        InputError, match=rf"is not empty \(it has {there.partition('/')[0]}\) and no run; choose a new"
    ):
        train(settings(store, out))
    assert [path for path in out.rglob("*") if path.is_file()] == [out / there]


def test_a_file_in_place_of_the_folder_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        train(settings(store, tmp_path / "out"))


def test_an_empty_folder_and_one_where_a_run_was_killed_at_its_birth_are_fine(
    store: Path, undisturbed: Run, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/vocabulary.json").write_text("[")
    (tmp_path / "run/.tmp-0123-run.json").write_text("{")
    (tmp_path / "run/.lock").write_text("")
    train(settings(store, tmp_path / "run"))
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_a_stop_is_announced_while_the_step_still_runs() -> None:
    """A step's backward pass is one call into native code: Python handles a signal when it returns, the user knows."""
    announced: list[float] = []
    matrix, began = torch.randn(1500, 1500), threading.Event()
    press = threading.Thread(target=lambda: began.wait() and os.kill(os.getpid(), signal.SIGINT))
    press.start()
    with stop_requests(lambda: announced.append(time.monotonic())) as stop:
        began.set()
        torch.linalg.matrix_power(matrix, 2**8)  # about a second
        ended = time.monotonic()
        press.join()
    assert stop.signal_number == signal.SIGINT
    assert [when < ended - 0.1 for when in announced] == [True]


def test_a_signal_that_asks_for_nothing_is_not_announced() -> None:
    announced = threading.Event()
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with stop_requests(announced.set) as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not announced.wait(0.1)
            assert stop.signal_number is None
            os.kill(os.getpid(), signal.SIGTERM)
            assert announced.wait(5)
            assert stop.signal_number == signal.SIGTERM
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_stopping_is_told_once(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Interrupted):
        train(settings(store, tmp_path / "run"), after_step=at_step(2, lambda _: os.kill(os.getpid(), signal.SIGINT)))
    assert capsys.readouterr().err.count("Stopping: this step is finished and saved first.") == 1
