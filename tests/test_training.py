"""A run: what it learns, what it leaves in its folder, and that nothing can interrupt it for good."""

import json
import os
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from weakmcn.cli.settings import explained
from weakmcn.model import checkpoint
from weakmcn.model.config import ModelConfig, TrainConfig
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.interrupts import Interrupted, stop_requests
from weakmcn.model.progress import fitting
from weakmcn.model.run import Run
from weakmcn.model.sampler import epoch_batches
from weakmcn.model.samples import training_samples
from weakmcn.model.state import TrainState
from weakmcn.model.train import NotFinite, train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.shards.errors import CheckpointError, ConfigError, InputError, StoreError, WeakmcnError
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.lock import only_writer
from weakmcn.shards.store import Store

from . import worlds
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
    with pytest.raises(ConfigError, match="precision='half' is not known; choose auto, float32, bfloat16"):
        settings(store, tmp_path / "run", precision="half")
    with pytest.raises(ConfigError, match="precision='bfloat16': apl is trained in float32 alone"):
        settings(store, tmp_path / "run", precision="bfloat16", method="apl")


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


@pytest.mark.parametrize("features", ["disk", "ram"])
def test_where_columns_are_changes_no_byte(store: Path, undisturbed: Run, tmp_path: Path, features: str) -> None:
    train(settings(store, tmp_path / "run", features=features))
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


def drawn_for(store: Path, step: int) -> tuple[str, str]:
    """The ids of the references that the sampler draws for a step (from 0), and the keys of their images."""
    samples = training_samples(Store.open(store), DATASET, "train", stages=[], max_tokens=4)
    epoch, batch = divmod(step, STEPS)
    draws = epoch_batches(samples.keys, samples.usable, seed=RECIPE.seed, epoch=epoch, batch=RECIPE.batch)[batch]
    ref_ids, keys = (", ".join(str(of[reference]) for reference, _ in draws) for of in (samples.ref_ids, samples.keys))
    return ref_ids, keys


def all_finite(run: Path) -> bool:
    saved = [checkpoint.read(path).tensors for path in (run / "checkpoints").glob("*.safetensors")]
    return all(bool(tensor.isfinite().all()) for tensors in saved for tensor in tensors.values())


def once(value: float) -> Callable[[TrainState], None]:
    """A fault of the machine: at the next step, and only then, the network's features are `value`."""

    def fail(state: TrainState) -> None:
        def spoil(module: torch.nn.Module, args: object, output: torch.Tensor) -> torch.Tensor:
            handle.remove()
            return output * value

        handle = state.net.get_submodule("fusion.project.s32").register_forward_hook(spoil)

    return fail


def one_gradient(state: TrainState) -> None:
    """A fault of the machine: one number of the next gradient is not finite, all losses are."""

    def spoil(gradient: torch.Tensor) -> torch.Tensor:
        handle.remove()
        return gradient.index_fill(0, torch.tensor([0]), torch.inf)

    handle = state.weights[0].register_hook(spoil)


@pytest.mark.parametrize("fault", [once(torch.nan), once(torch.inf), one_gradient])
def test_a_step_that_is_not_finite_is_not_taken_names_its_references_and_costs_nothing_that_was_trained(
    store: Path, undisturbed: Run, tmp_path: Path, fault: Callable[[TrainState], None]
) -> None:
    wanted = settings(store, tmp_path / "run")
    with pytest.raises(NotFinite) as stop:
        train(wanted, after_step=at_step(5, fault))
    ref_ids, keys = drawn_for(store, 5)
    assert stop.value.exit_code == 1
    assert re.search(
        rf"step 5: a loss or its gradient is not finite \(.*\), the step was not taken; references {ref_ids} of images "
        rf"{keys}; all 5 steps before it are saved. Lower .* weakmcn store verify {re.escape(str(store))}$",
        str(stop.value),
    )
    steps: list[int] = []
    train(wanted, after_step=lambda state: steps.append(state.step))
    assert steps[0] == 6
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_a_learning_rate_that_blows_the_weights_up_ends_the_run_and_no_such_checkpoint_is_written(
    store: Path, tmp_path: Path
) -> None:
    """Nothing is wrong with the first losses; the weights of the first step are no numbers any more."""
    wild = replace(RECIPE, lr=1e300, warmup_epochs=0)
    with pytest.raises(NotFinite, match=r"step 0: \S+ is not finite after it; no checkpoint"):
        train(settings(store, tmp_path / "each", recipe=wild, checkpoint_minutes=0))
    with pytest.raises(NotFinite, match=rf"step 1: .*references {drawn_for(store, 1)[0]} of .*; no checkpoint"):
        train(settings(store, tmp_path / "epoch", recipe=wild))
    assert not list(tmp_path.rglob("*.safetensors"))


def test_weights_that_are_no_numbers_at_the_end_of_an_epoch_do_not_replace_the_sound_checkpoint(
    store: Path, undisturbed: Run, tmp_path: Path
) -> None:
    def spoil(state: TrainState) -> None:
        with torch.no_grad():
            state.weights[0].fill_(torch.nan)

    wanted = settings(store, tmp_path / "run")
    with pytest.raises(
        NotFinite, match=r"step 5: net/\S+ is not finite after it; the newest checkpoint is from before"
    ):
        train(wanted, after_step=at_step(6, spoil))
    assert [path.stem for path in (tmp_path / "run/checkpoints").glob("*.safetensors")] == ["00000003"]
    assert all_finite(tmp_path / "run")
    train(wanted)
    assert content(tmp_path / "run") == content(undisturbed.path)


def test_a_run_that_goes_on_from_weights_too_large_to_train_says_so_and_leaves_them(
    store: Path, tmp_path: Path
) -> None:
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "run"), after_step=at_step(5, crash))
    ((saved, _),) = [checkpoint.newest(tmp_path / "run/checkpoints")]
    assert saved is not None
    huge = {name: torch.full_like(x, 1e30) if name.startswith("net/gru") else x for name, x in saved.tensors.items()}
    huge = {name: x * 1e30 if name.startswith("net/matcher") else x for name, x in huge.items()}
    checkpoint.save(tmp_path / "run/checkpoints", huge, saved.position)
    before = content(tmp_path / "run")
    with pytest.raises(
        NotFinite, match=f"step 3: .*references {drawn_for(store, 3)[0]} of images .* 3 steps before it"
    ):
        train(settings(store, tmp_path / "run"))
    assert content(tmp_path / "run") == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": replace(RECIPE, batch=25)}, "batch=25 needs as many different images"),
        ({"split": "trian"}, "split 'trian' has 0 of the 32 references .* splits present: train, val"),
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


def test_a_run_too_short_for_the_mask_head_is_told(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = replace(RECIPE, epochs=1)
    train(settings(store, tmp_path / "run", recipe=short))
    assert "The mask head never trains: it begins after 1 epochs, this run has 1. " in capsys.readouterr().err
    train(settings(store, tmp_path / "other", recipe=short, model=replace(TINY, warm_epochs=0)))
    assert "mask head" not in capsys.readouterr().err


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


def spelt(model: ModelConfig = TINY, recipe: TrainConfig = RECIPE, without: Sequence[str] = ()) -> list[str]:
    """Every setting as words of the command line."""
    settings = explained({"model": model, "train": recipe})
    return [part for name, value, _ in settings if name not in without for part in ("--set", f"{name}={value}")]


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
        assert ended.err == f"weakmcn: {store} has no references of {name!r}, did you mean 'refcoco+'?\n"
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
