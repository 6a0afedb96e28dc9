"""TRIS-C on a store: its two stages one after the other, interrupted, measured, and refused where they do not fit."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weakmcn.model.config import ModelConfig
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.methods import recipe
from weakmcn.model.run import Run
from weakmcn.model.samples import training_samples
from weakmcn.model.state import TrainState
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.model.tris import TrisConfig
from weakmcn.model.tris_segmenter import SegmenterConfig
from weakmcn.model.words import write_words
from weakmcn.shards.errors import ConfigError
from weakmcn.shards.store import Store

from . import worlds

WORLD: dict[str, Any] = {
    name: value for name, value in dataclasses.asdict(worlds.TINY).items() if name not in ("banks", "warm_epochs")
}
MODEL = TrisConfig(**{**WORLD, "dropout": 0.0}, tris_dim=32)
MODEL_2 = SegmenterConfig(**{**WORLD, "dropout": 0.0}, decoder_dims=(16, 16, 12, 8))
FAST = replace(recipe("tris-c", "pocket")[1], epochs=3, batch=16, lr=5e-3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.make_store(tmp_path_factory.mktemp("world") / "store", train=320, val=60)


def settings(store: Path, out: Path, model: ModelConfig = MODEL, method: str = "tris-c", **more: Any) -> TrainSettings:
    common: dict[str, Any] = {"train": FAST, "device": "cpu"}
    return TrainSettings(store=store, dataset=worlds.DATASET, out=out, model=model, method=method, **{**common, **more})


@pytest.fixture(scope="module")
def first(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(settings(store, tmp_path_factory.mktemp("runs") / "first"))


def test_stage_1_trains_and_is_measured_by_masks_alone(first: Run) -> None:
    assert set(first.columns) == {"detect", "dino"}
    lines = [json.loads(line) for line in first.metrics.read_text().splitlines()]
    assert lines[-1]["cls"] < 0.6 * lines[0]["cls"]
    result = evaluate_run(first, "val")
    assert {"res_miou", "res_oiou", "pointm", "sentences"} <= set(result.summary)
    assert not {"rec_acc50", "inconsistency"} & set(result.summary)
    assert "sam_mask_of_box" not in result.baselines
    assert any("a cached-feature port, not a reproduction" in note for note in result.notes)
    assert all(record.box_photo is None and record.mask and record.points is not None for record in result.records)


def test_boxes_and_masks_that_are_annotated_change_no_byte_of_training(first: Run, tmp_path: Path) -> None:
    def forged(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["box"], row["mask"] = [0.0, 0.0, 1.0, 1.0], rows[0]["mask"]

    other = train(settings(worlds.make_store(tmp_path / "store", train=320, val=60, edit=forged), tmp_path / "run"))
    (one,), (two,) = ([sorted(run.checkpoints.glob("*.safetensors"))[-1].read_bytes()] for run in (first, other))
    assert one == two


def test_its_channels_are_standardised_by_the_training_images(first: Run, store: Path) -> None:
    opened = Store.open(store)
    keys = [worlds.key_of(image) for image in range(320)]
    maps = np.stack([opened[key]["dino.tokens"] for key in keys]).astype(np.float64)
    net: Any = first.network()
    np.testing.assert_allclose(
        net.standardise.dino_mean.flatten().numpy(), maps.mean(axis=(0, 2, 3)), rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(1 / net.standardise.dino_scale.flatten().numpy(), maps.std(axis=(0, 2, 3)), rtol=1e-4)


def test_stage_2_goes_on_from_stage_1_and_keeps_its_pseudo_masks(first: Run, store: Path, tmp_path: Path) -> None:
    quick = replace(FAST, epochs=1, batch=80)
    run = train(settings(store, tmp_path / "second", MODEL_2, "tris-c2", first_stage=first.path, train=quick))
    assert run.facts["first_stage"]["run"] == str(first.path)
    (kept,) = (run.path / "labels").glob("*.safetensors")
    before = kept.read_bytes()
    assert evaluate_run(run, "val").summary["sentences"] == 120
    # The same command finds all done, needs stage 1 no more, and leaves the labels alone.
    train(settings(store, tmp_path / "second", MODEL_2, "tris-c2", train=quick))
    assert kept.read_bytes() == before


@pytest.mark.parametrize("step", [1, 3])
def test_stage_2_that_crashes_goes_on_to_the_same_bytes(first: Run, store: Path, tmp_path: Path, step: int) -> None:
    class Crash(Exception):  # noqa: N818 - stands for a kill
        pass

    def crash(state: TrainState) -> None:
        if state.step == step:
            raise Crash

    quick = {"train": replace(FAST, epochs=1, batch=80), "checkpoint_minutes": 0, "first_stage": first.path}
    undisturbed = train(settings(store, tmp_path / "one", MODEL_2, "tris-c2", **quick))
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "other", MODEL_2, "tris-c2", **quick), after_step=crash)
    resumed = train(settings(store, tmp_path / "other", MODEL_2, "tris-c2", **{**quick, "first_stage": None}))
    states = (run.network().state_dict() for run in (undisturbed, resumed))
    for (name, one), (_, other) in zip(*(state.items() for state in states), strict=True):
        assert torch.equal(one, other), name


def test_sams_masks_may_be_the_pseudo_masks_and_that_is_another_system(first: Run, store: Path, tmp_path: Path) -> None:
    model = replace(MODEL_2, refine="sam")
    quick = replace(FAST, epochs=1, batch=80)
    run = train(settings(store, tmp_path / "run", model, "tris-c2", first_stage=first.path, train=quick))
    assert any(note.startswith("TRIS-C+SAM, stage 2") for note in evaluate_run(run, "val").notes)


def test_stage_2_is_refused_without_a_finished_stage_1_of_the_same_samples(
    first: Run, store: Path, tmp_path: Path
) -> None:
    def refused(match: str, *, model: ModelConfig = MODEL_2, method: str = "tris-c2", **more: Any) -> None:
        with pytest.raises(ConfigError, match=match):
            train(settings(store, tmp_path / "none", model, method, **more))
        assert not (tmp_path / "none" / "run.json").exists()

    refused("goes on from a finished run of tris-c; name it: --from RUN")
    refused("goes on from no other run", model=MODEL, method="tris-c", first_stage=first.path)
    refused("other captions than those", first_stage=first.path, shuffle_captions=True)
    refused(
        r"model.text_dim=16.*has 32.*--set model.text_dim=32",
        first_stage=first.path,
        model=replace(MODEL_2, text_dim=16),
    )


def test_calibration_reads_vectors_of_the_captions_and_refuses_a_file_that_lacks_one(tmp_path: Path) -> None:
    opened = Store.open(store_with_clip(tmp_path / "store"))
    samples = training_samples(opened, worlds.DATASET, "train", stages=("detect",), max_tokens=4)
    captions = [caption for spoken in samples.sentences for caption in spoken]
    vectors = tmp_path / "vectors.safetensors"
    model = replace(MODEL, calibration="prop", caption_vectors=str(vectors))
    write_words(vectors, captions, torch.randn(len(captions), 5))
    quick = replace(FAST, epochs=1, batch=8)
    run = train(settings(opened.path, tmp_path / "run", model, train=quick))
    (line, *_) = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert line["fg"] > 0
    assert line["neg"] > 0
    labelled = train(settings(opened.path, tmp_path / "second", MODEL_2, "tris-c2", train=quick, first_stage=run.path))
    assert list((labelled.path / "labels").glob("*.json"))
    others = [caption for caption in captions if caption != captions[0]]
    write_words(vectors, others, torch.randn(len(others), 5))
    with pytest.raises(ConfigError, match=r"captions have no vector, '.*' for instance"):
        train(settings(opened.path, tmp_path / "lacking", model, train=quick))


def store_with_clip(path: Path) -> Path:
    worlds.make_store(path, train=24, val=2)
    scenes = worlds.scenes(26)
    rng = np.random.default_rng(0)
    for scene in scenes:
        scene["clip"] = {
            "tokens": rng.normal(size=(5, 6, 6)).astype(np.float32),
            "candidates": rng.normal(size=(worlds.CANDIDATES, 5)).astype(np.float32),
        }
    worlds.write_family(path, "clip", scenes)
    return path


def test_eval_prints_a_dash_where_there_is_no_box(first: Run, run: Callable[..., Any]) -> None:
    ended = run("eval", "--run", first.path)
    assert ended.status == 0, ended.err
    (row,) = [line for line in ended.out.splitlines() if line.strip().startswith("val, ")]
    assert row.split()[3] == "–"
    assert "PointM" in ended.out
