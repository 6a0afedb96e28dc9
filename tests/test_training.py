"""A run: what it learns, what it leaves in its folder, and what it refuses."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from weakmcn.model import checkpoint
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.run import Run
from weakmcn.model.samples import training_samples
from weakmcn.model.train import train
from weakmcn.shards import faults
from weakmcn.shards.errors import ConfigError, InputError
from weakmcn.shards.store import Store

from .trainings import Crash, at_step, content, crash, settings
from .worlds import DATASET, RECIPE, TINY, Rows, key_of, make_store


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


def test_by_images_it_learns_the_same_from_fewer_steps_and_a_crash_changes_no_byte(tmp_path: Path) -> None:
    def again(rows: Rows) -> None:  # a second reference for every other image
        rows += [row | {"ref_id": row["ref_id"] + 5000} for row in rows[::2]]

    store = make_store(tmp_path / "store", train=320, val=60, edit=again)
    model = replace(TINY, warm_epochs=6)
    recipe = replace(RECIPE, epochs=7, batch=48, lr=1e-2, sampling="images")
    run = train(settings(store, tmp_path / "run", model=model, recipe=recipe))
    assert evaluate_run(run, "val").summary["rec_acc50"] > 65  # one of three candidates by chance
    timing = [json.loads(line) for line in run.timing.read_text().splitlines()]
    assert [line["references"] for line in timing] == [10 * 48] * 7, "32 images a step, half of them with two"
    wanted = settings(store, tmp_path / "again", model=model, recipe=recipe, checkpoint_minutes=0)
    with pytest.raises(Crash):
        train(wanted, after_step=at_step(64, crash))
    train(wanted)
    assert content(tmp_path / "again") == content(run.path)


def test_in_bfloat16_the_state_stays_in_float32_and_a_run_keeps_its_precision(store: Path, tmp_path: Path) -> None:
    run = train(settings(store, tmp_path / "run", precision="bfloat16"))
    saved, _ = checkpoint.newest(run.checkpoints)
    assert saved is not None
    kinds = {value.dtype for name, value in saved.tensors.items() if not name.startswith("rng/")}
    assert kinds == {torch.float32, torch.int64}
    assert run.facts["precision"] == "bfloat16"
    with pytest.raises(ConfigError, match="precision='bfloat16', this command says 'float32'"):
        train(settings(store, tmp_path / "run", precision="float32"))


def test_a_precision_that_the_method_or_the_program_does_not_know_is_refused(store: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="precision='half' is not known; choose one of auto, float32, bfloat16"):
        settings(store, tmp_path / "run", precision="half")
    with pytest.raises(ConfigError, match="precision='bfloat16': apl is trained in float32 alone"):
        settings(store, tmp_path / "run", precision="bfloat16", method="apl")


def test_a_run_keeps_its_compiler_and_an_unknown_one_is_refused(store: Path, tmp_path: Path) -> None:
    faults.arm("raise@step")  # before anything is compiled
    try:
        with pytest.raises(RuntimeError, match="raise@step"):
            train(settings(store, tmp_path / "run", compile="inductor"))
    finally:
        faults.arm("")
    with pytest.raises(ConfigError, match="compile='inductor', this command says None"):
        train(settings(store, tmp_path / "run"))
    with pytest.raises(ConfigError, match="compile='jit' is not known; choose one of off, inductor, graphs"):
        settings(store, tmp_path / "run", compile="jit")
    with pytest.raises(ConfigError, match="compile='graphs': tris-c is not compiled; leave it out"):
        settings(store, tmp_path / "run", compile="graphs", method="tris-c")


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


@pytest.mark.parametrize("features", ["disk", "ram"])
def test_where_columns_are_changes_no_byte(store: Path, undisturbed: Run, tmp_path: Path, features: str) -> None:
    train(settings(store, tmp_path / "run", features=features))
    assert content(tmp_path / "run") == content(undisturbed.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": replace(RECIPE, batch=25)}, "batch=25 needs as many different images"),
        (
            {"split": "trian"},
            "split 'trian' .did you mean 'train'.. has 0 of the 32 references .* splits present: train, val",
        ),
        ({"model": replace(TINY, banks=("clip",))}, "no clip column"),
        ({"model": replace(TINY, side_px=64)}, r"canvas has 96 pixels, .* has 64 \(.*; --set model.side_px=96"),
        ({"model": replace(TINY, candidates=4)}, r"cells of the batch has shape .* Use the preset"),
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
