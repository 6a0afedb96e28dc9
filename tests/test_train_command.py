"""`weakmcn train`: what its words mean, what it tells, and how settings are spelt."""

import json
import re
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from weakmcn.cli.settings import explained
from weakmcn.model.methods import method_of
from weakmcn.model.progress import fitting
from weakmcn.model.run import Run
from weakmcn.model.state import TrainState
from weakmcn.model.train import train

from .trainings import settings, spelt
from .worlds import DATASET, RECIPE, TINY, make_store


def test_a_run_too_short_for_the_mask_head_is_told(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(RECIPE, epochs=1)
    train(settings(store, tmp_path / "run", recipe=short))
    assert "The mask head never trains: it begins after 1 epochs, this run has 1. " in capsys.readouterr().err
    train(settings(store, tmp_path / "other", recipe=short, model=replace(TINY, warm_epochs=0)))
    assert "mask head" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"warm_epochs": 2, "isl_start_epoch": 5}, ["epoch 3 on; until then mask and scl are 0", "From epoch 6 on"]),
        ({"warm_epochs": 0, "isl_start_epoch": 5}, ["From epoch 6 on"]),
        ({"warm_epochs": 2, "isl_start_epoch": 8}, ["epoch 3 on"]),  # eight epochs end before
        ({"warm_epochs": 2, "isl": False}, ["epoch 3 on"]),
        ({"warm_epochs": 8}, []),
        ({"wres": False}, []),
    ],
)
def test_it_is_told_when_the_mask_head_learns_and_when_its_loss_may_be_nothing(
    changes: dict[str, Any], told: list[str]
) -> None:
    lines = method_of("weakmcn").schedule(replace(TINY, **changes), 8)
    assert len(lines) == len(told)
    for line, part in zip(lines, told, strict=True):
        assert part in line


def test_losses_are_told_in_the_order_of_their_fields_whatever_order_a_checkpoint_gave_them(store: Path) -> None:
    @dataclass
    class Two:
        second: torch.Tensor
        first: torch.Tensor

    state = TrainState.start(torch.nn.Linear(2, 2), RECIPE)
    state.window, state.window_steps = {"first": torch.tensor(5.0), "second": torch.tensor(1.0)}, 1
    state.advance(Two(second=torch.tensor(2.0), first=torch.tensor(7.0)), steps=9)
    assert list(state.take_window().items()) == [("second", 1.5), ("first", 6.0)]


@given(st.lists(st.integers(1, 40), min_size=1))
@example([40, 38])
@example([40, 39])
def test_a_line_about_an_epoch_holds_as_many_parts_as_80_characters_do(lengths: list[int]) -> None:
    parts = ["x" * length for length in lengths]
    kept = max(n for n in range(1, len(parts) + 1) if len("  ".join(parts[:n])) <= 80)
    assert fitting(*parts) == "  ".join(parts[:kept])


def test_every_line_about_an_epoch_fits_a_terminal(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(settings(store, tmp_path / "run"))
    told = capsys.readouterr().err.splitlines()
    lines = [line for line in told if line.startswith("epoch")]
    assert [line.split()[1] for line in lines] == ["1/3", "2/3", "3/3"]
    number = r"[\d.e+-]+"
    shape = rf"epoch \d/\d  det {number}  mask {number}  scl {number}  [\d,]+ ref/s  [\d.]+ s  \d+% waiting"
    assert all(re.fullmatch(shape, line) and len(line) <= 80 for line in lines)
    assert re.fullmatch(r"[\d.]+ s of training, [\d.]+% of them waiting for data", told[-1])


def test_the_command_trains_what_its_words_say(run, store: Path, undisturbed: Run, tmp_path: Path) -> None:
    words = ("--shards", store, "--dataset", DATASET, "--preset", "pocket", "--device", "cpu", *spelt())
    ended = run("train", "--out", tmp_path / "a run", *words)
    assert (ended.status, ended.out) == (
        0,
        f"{tmp_path / 'a run'}: done. Measure it: weakmcn eval --run '{tmp_path / 'a run'}' --split val\n",
    )
    made = Run.open(tmp_path / "a run")
    assert (made.model, made.train) == (TINY, RECIPE)
    weights = made.network().state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in undisturbed.network().state_dict().items())


def test_fewer_epochs_than_the_warm_up_shorten_it_and_say_so(run, store: Path, tmp_path: Path) -> None:
    words = ("--shards", store, "--dataset", DATASET, "--preset", "refcoco", "--epochs", "2")
    ended = run("train", "--out", tmp_path / "run", *words, *spelt(without=["train.warmup_epochs", "train.epochs"]))
    assert ended.status == 0
    assert "grows over all 2 epochs instead of 4 (train.warmup_epochs)." in ended.err
    assert Run.open(tmp_path / "run").train.warmup_epochs == 2
    ended = run("train", "--out", tmp_path / "other", *words, "--set", "train.warmup_epochs=3")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert "warmup_epochs=3 must be in 0..epochs=2" in ended.err


def test_the_nearest_data_set_of_the_store_is_proposed(run, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", train=2, val=1)
    (store / f"refs-{DATASET}.parquet").rename(store / "refs-refcoco+.parquet")
    for name in ("RefCOCO+", "refcoco_plus", "refcoco"):
        ended = run("train", "--shards", store, "--dataset", name, "--out", tmp_path / "run")
        assert ended.status == 2
        assert (
            ended.err
            == f"weakmcn: {store} has no references of {name!r} (did you mean 'refcoco+'?); it has refcoco+.\n"
        )
    ended = run("train", "--shards", store, "--dataset", "flickr", "--out", tmp_path / "run")
    assert f"{store} has no references of 'flickr' (it has: refcoco+)" in ended.err


@pytest.mark.parametrize(("side", "fits", "wrong"), [(192, "pocket", "refcocog"), (416, "refcoco+", "pocket")])
def test_a_preset_of_another_canvas_is_refused_first_of_all_and_the_fitting_one_is_named(
    run, tmp_path: Path, side: int, fits: str, wrong: str
) -> None:
    """There are fewer photographs than a batch of refcocog wants, too; that would mend nothing."""
    store = make_store(tmp_path / "store", train=4, val=1)
    (store / f"refs-{DATASET}.parquet").rename(store / "refs-refcoco+.parquet")
    facts = json.loads((store / "store.json").read_text())
    (store / "store.json").write_text(json.dumps(facts | {"side": side}))
    ended = run("train", "--shards", store, "--dataset", "refcoco+", "--preset", wrong, "--out", tmp_path / "run")
    assert ended.status == 2
    assert ended.err.startswith(f"weakmcn: {store}: its canvas has {side} pixels, ")
    assert ended.err.endswith(f" (model.side_px); use --preset {fits}.\n")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["--set", "help"], ["--preset refcoco;", "model.side_px=416", "train.lr=0.0001", "model.train_words=false"]),
        (["--preset", "pocket", "--set", "help"], ["--preset pocket;", "model.side_px=192", "train.betas=0.9,0.98"]),
        (["--set", "help", "--preset", "pocket"], ["--preset pocket;", "model.side_px=192"]),
        (["--method", "refclip", "--set", "help"], ["--method refclip", "model.wrec_dim=1024", "model.banks= "]),
    ],
)
def test_all_settings_are_shown_with_the_values_of_the_preset_on_request(
    run, words: list[str], shown: list[str]
) -> None:
    ended = run("train", *words)
    assert (ended.status, ended.err) == (0, "")
    for text in (*shown, "Learning rate after the warm-up."):
        assert text in ended.out
    names = [f"{kind}.{field.name}=" for kind, made in (("model", TINY), ("train", RECIPE)) for field in fields(made)]
    assert [name for name in names if name not in ended.out] == []


def test_every_setting_says_what_it_is() -> None:
    assert [name for name, _, meaning in explained({"model": TINY, "train": RECIPE}) if len(meaning) < 10] == []


@pytest.mark.parametrize("name", ["lr", "clip_norm", "eps"])
@pytest.mark.parametrize("value", ["0", "-1", "inf", "nan"])
def test_a_setting_that_no_training_can_have_is_refused(
    run, store: Path, tmp_path: Path, name: str, value: str
) -> None:
    words = ("--shards", store, "--dataset", DATASET, "--preset", "pocket", "--out", tmp_path / "run")
    ended = run("train", *words, "--set", f"train.{name}={value}")
    assert (ended.status, ended.err.count("\n")) == (2, 1)
    assert f"{name}={float(value)} must be positive and finite" in ended.err


def test_a_setting_that_is_not_known_says_how_to_see_them_all(run, store: Path, tmp_path: Path) -> None:
    words = ("--shards", store, "--dataset", DATASET, "--preset", "pocket", "--out", tmp_path / "run")
    for setting in ("model.depth=3", "depth"):
        ended = run("train", *words, "--set", setting)
        assert (ended.status, ended.err.count("\n")) == (2, 1)
        assert ended.err.endswith("all of them: weakmcn train --set help.\n")
