"""A run: what it learns, what it leaves in its folder, and that nothing can interrupt it for good."""

import json
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from weakmcn.model.config import ModelConfig, TrainConfig
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.interrupts import Interrupted
from weakmcn.model.run import Run
from weakmcn.model.sampler import epoch_batches
from weakmcn.model.samples import training_samples
from weakmcn.model.state import TrainState
from weakmcn.model.train import TrainSettings, train
from weakmcn.shards.errors import CheckpointError, ConfigError, InputError, StoreError, WeakmcnError
from weakmcn.shards.lock import only_writer
from weakmcn.shards.store import Store

from .worlds import DATASET, RECIPE, TINY, Rows, key_of, make_store, scenes, write_family

TRAIN, VAL = 24, 8
STEPS = TRAIN // RECIPE.batch  # 3 an epoch, 9 in all


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("world") / "store", train=TRAIN, val=VAL)


@pytest.fixture(scope="module")
def undisturbed(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(settings(store, tmp_path_factory.mktemp("undisturbed") / "run"))


def settings(
    store: Path, out: Path, *, model: ModelConfig = TINY, recipe: TrainConfig = RECIPE, **more
) -> TrainSettings:
    return TrainSettings(
        store=store, dataset=DATASET, out=out, model=model, train=recipe, device="cpu", log_steps=2, **more
    )


def content(run: Path) -> dict[str, bytes]:
    """Every file of a run that does not depend on the clock."""
    files = (path for path in sorted(run.rglob("*")) if path.is_file() and path.name != "timing.jsonl")
    return {str(path.relative_to(run)): path.read_bytes() for path in files}


def at_step(step: int, act: Callable[[TrainState], None]) -> Callable[[TrainState], None]:
    return lambda state: act(state) if state.step == step else None


class Crash(Exception):  # noqa: N818 - not an error of the program
    """Stands for a kill: nothing after it is done."""


def crash(_: TrainState) -> None:
    raise Crash


def test_it_learns_what_the_captions_say_and_nothing_from_captions_of_other_images(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", train=320, val=60)
    model = replace(TINY, dropout=0.0, warm_epochs=8)
    recipe = replace(RECIPE, epochs=8, batch=32, lr=1e-2)
    learned = evaluate_run(train(settings(store, tmp_path / "run", model=model, recipe=recipe)), "val")
    control = settings(store, tmp_path / "control", model=model, recipe=recipe, shuffle_captions=True)
    shuffled = evaluate_run(train(control), "val")
    assert learned.summary["rec_acc50"] > 65  # one of three candidates by chance
    assert shuffled.summary["rec_acc50"] < 50
    assert learned.baselines["random"]["rec_acc50"] == pytest.approx(100 / 3)


def test_the_run_folder_is_self_contained(undisturbed: Run, store: Path) -> None:
    assert sorted(content(undisturbed.path)) == [
        "checkpoints/00000006.json",
        "checkpoints/00000006.safetensors",
        "checkpoints/00000009.json",
        "checkpoints/00000009.safetensors",
        "columns.json",
        "metrics.jsonl",
        "run.json",
        "vocabulary.json",
    ]
    run = Run.open(undisturbed.path)
    assert (run.model, run.train, run.dataset, run.finished) == (TINY, RECIPE, DATASET, True)
    assert run.store == store
    assert {stage: made_from["fingerprint"] for stage, made_from in run.columns.items()} == {
        stage: family.fingerprint for stage, family in Store.open(store).families.items()
    }
    assert run.network().training is False


def test_metrics_tell_the_mean_losses_of_every_step_once(undisturbed: Run) -> None:
    lines = [json.loads(line) for line in undisturbed.metrics.read_text().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(0, 2), (0, 3), (1, 5), (1, 6), (2, 8), (2, 9)]
    assert set(lines[0]) == {"epoch", "step", "lr", "det", "mask", "scl", "total"}
    assert lines[0]["total"] == lines[0]["det"]  # warm-up
    assert lines[2]["total"] == pytest.approx(lines[2]["det"] + lines[2]["mask"] + lines[2]["scl"])
    assert lines[1]["lr"] == pytest.approx(1e-4 + 2 / 3 * (3e-3 - 1e-4))  # of step 2, warm-up is 3 steps
    timing = [json.loads(line) for line in undisturbed.timing.read_text().splitlines()]
    assert [line["references"] for line in timing] == [24, 24, 24]


def test_the_average_is_what_a_run_gives_and_raw_weights_on_request(undisturbed: Run) -> None:
    averaged, raw = undisturbed.network().state_dict(), undisturbed.network(ema=False).state_dict()
    assert not torch.equal(averaged["matcher.visual.weight"], raw["matcher.visual.weight"])


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
    store: Path, undisturbed: Run, tmp_path: Path, step: int, number: int, code: int
) -> None:
    wanted = settings(store, tmp_path / "run")
    with pytest.raises(Interrupted, match=f"after step {step}, .*same command") as stopped:
        train(wanted, after_step=at_step(step, lambda _: os.kill(os.getpid(), number)))
    assert stopped.value.exit_code == code
    steps: list[int] = []
    train(wanted, after_step=lambda state: steps.append(state.step))
    assert steps[0] == step + 1
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_a_signal_during_the_last_step_lets_the_run_finish(store: Path, undisturbed: Run, tmp_path: Path) -> None:
    wanted = settings(store, tmp_path / "run")
    train(wanted, after_step=at_step(9, lambda _: os.kill(os.getpid(), signal.SIGINT)))
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_features_in_memory_give_the_same_bytes(store: Path, undisturbed: Run, tmp_path: Path) -> None:
    train(settings(store, tmp_path / "run", features="ram"))
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
    assert "all 3 epochs are done" in capsys.readouterr().err


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


def test_another_column_or_caption_than_the_run_was_trained_on_is_refused(undisturbed: Run, tmp_path: Path) -> None:
    shutil.copytree(undisturbed.path, tmp_path / "run")

    def reword(rows: Rows) -> None:
        rows[3]["sentences"][0] = "another square"

    reworded = make_store(tmp_path / "reworded", train=TRAIN, val=VAL, edit=reword)
    with pytest.raises(StoreError, match="other references or words"):
        train(settings(reworded, tmp_path / "run"))
    renewed = make_store(tmp_path / "renewed", train=TRAIN, val=VAL)
    write_family(renewed, "sam", scenes(TRAIN + VAL), code=2)
    with pytest.raises(StoreError, match=r"trained on sam-[0-9a-f]{8}, the store has sam-[0-9a-f]{8}"):
        train(settings(renewed, tmp_path / "run"))


def test_a_store_that_was_moved_is_the_same_store(store: Path, undisturbed: Run, tmp_path: Path) -> None:
    shutil.copytree(store, tmp_path / "moved")
    shutil.copytree(undisturbed.path, tmp_path / "run")
    assert train(settings(tmp_path / "moved", tmp_path / "run"), after_step=crash).finished


def test_a_loss_that_is_not_finite_stops_before_the_step_and_names_the_references(store: Path, tmp_path: Path) -> None:
    def spoil(state: TrainState) -> None:
        with torch.no_grad():
            state.weights[0].fill_(torch.nan)

    with pytest.raises(
        WeakmcnError, match=r"step 4: .*not finite \(det nan.* references (10\d\d, ){7}10\d\d\. "
    ) as stop:
        train(settings(store, tmp_path / "run"), after_step=at_step(4, spoil))
    assert stop.value.exit_code == 1
    kept = Run.open(tmp_path / "run").network(ema=False)
    assert all(torch.isfinite(weight).all() for weight in kept.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": replace(RECIPE, batch=25)}, "batch=25 needs as many different images"),
        ({"split": "trian"}, "split 'trian' has 0 of the 32 references .* splits present: train, val"),
        ({"model": replace(TINY, banks=("clip",))}, "no clip column"),
        ({"model": replace(TINY, side_px=64)}, r"dark_s8 of the batch has shape .* Use the preset"),
        ({"method": "weakmnc"}, "method 'weakmnc' is not known"),
        ({"device": "tpu"}, "device='tpu' cannot be used here"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    store: Path, tmp_path: Path, change: dict, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        train(replace(settings(store, tmp_path / "run"), **change))
    assert not (tmp_path / "run").exists()


def test_two_trainings_in_one_folder_are_refused(store: Path, tmp_path: Path) -> None:
    with only_writer(tmp_path / "run", "weakmcn train"), pytest.raises(WeakmcnError, match="another weakmcn train"):
        train(settings(store, tmp_path / "run"))


def test_references_without_image_or_words_are_left_out_and_counted(tmp_path: Path) -> None:
    def empty(rows: Rows) -> None:
        rows[2]["sentences"] = ["", " ?! "]
        rows[3]["sentences"] = ["...", "blue one"]
        rows[4]["sentences"] = ["a very long one indeed", "red"]

    store = Store.open(make_store(tmp_path / "store", train=10, val=2, skipped=[0], edit=empty))
    samples = training_samples(store, DATASET, "train", stages=["detect", "dino"], max_tokens=4)
    assert samples.keys == [key_of(image) for image in range(10) if image not in (0, 2)]
    assert samples.usable[:3] == [[0, 1], [1], [0, 1]]
    assert samples.notes == [
        "1 of 10 references are left out: precompute skipped their image.",
        "1 of 10 references are left out: empty expression.",
        "1 of 16 expressions have more than 4 words; the rest is cut.",
    ]


def test_shuffled_captions_come_from_other_images_and_stay_the_same_words(store: Path) -> None:
    def sampled(seed: int | None) -> list[np.ndarray]:
        opened = Store.open(store)
        return training_samples(opened, DATASET, "train", stages=[], max_tokens=4, shuffle_seed=seed).tokens

    def words(tokens: list[np.ndarray]) -> list[list]:
        return sorted(sentence.tolist() for sentence in tokens)

    assert words(sampled(1)) == words(sampled(None))
    assert not all(map(np.array_equal, sampled(1), sampled(None)))


def test_the_vocabulary_numbers_the_training_split_first(tmp_path: Path) -> None:
    def reverse(rows: Rows) -> None:
        rows.reverse()
        rows[0]["sentences"] = ["valword"]
        rows[-1]["sentences"] = ["trainword"]

    store = Store.open(make_store(tmp_path / "store", train=2, val=2, edit=reverse))
    rows = training_samples(store, DATASET, "train", stages=[], max_tokens=4).vocabulary.rows
    assert rows.index("trainword") < rows.index("valword")
    assert rows[:4] == ("PAD", "UNK", "CLS", "the")


def test_every_batch_is_the_one_the_sampler_names(store: Path, tmp_path: Path) -> None:
    """The order of a run is the sampler's: a batch that is spoilt names the references that were drawn for it."""
    samples = training_samples(Store.open(store), DATASET, "train", stages=[], max_tokens=4)
    (_, second, _) = epoch_batches(samples.keys, samples.usable, seed=RECIPE.seed, epoch=0, batch=RECIPE.batch)
    drawn = ", ".join(str(samples.ref_ids[reference]) for reference, _ in second)

    def spoil(state: TrainState) -> None:
        with torch.no_grad():
            state.weights[0].fill_(torch.inf)

    with pytest.raises(WeakmcnError, match=drawn):
        train(settings(store, tmp_path / "run"), after_step=at_step(1, spoil))
