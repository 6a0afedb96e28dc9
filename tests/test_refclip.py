"""RefCLIP: the equations of the method page, what it reads, what it refuses, and that it learns and is measured."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weakmcn.model.batch import Batch
from weakmcn.model.config import ModelConfig
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.methods import METHODS, method_of, recipe
from weakmcn.model.official import to_official
from weakmcn.model.refclip import RefCLIP
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.shards.errors import ConfigError, StoreError

from . import worlds
from .equations import TINY, VOCABULARY, Equations, close, make_batch, unlike_any_other, unmoved

CONFIG = replace(TINY, banks=(), wrec_dim=16)


def build(config: ModelConfig = CONFIG) -> RefCLIP:
    torch.manual_seed(2)
    net = RefCLIP(config, VOCABULARY)
    unlike_any_other(net)
    return net


class RefCLIPEquations(Equations):
    """The table of the method page: one fused map, no banks, no position, no segmentation."""

    def run(self) -> None:
        self.f = self.sentence(self.batch["tokens"])
        (top,) = self.fuse("multi_scale_manner", *self.dark(), outputs=["s32"])
        self.compare(self.seen(top))


def test_the_loss_is_that_of_the_equations_in_every_epoch() -> None:
    net, batch = build().double(), make_batch(config=CONFIG)
    equations = RefCLIPEquations(to_official(net), CONFIG, batch, training=True)
    for epoch in (0, 24):
        losses = net.losses(batch, epoch)
        close(losses.det, equations.contrast())
        assert losses.total == losses.det


def test_predictions_are_those_of_the_equations_and_have_no_mask() -> None:
    net, batch = build().eval(), make_batch(config=CONFIG)
    equations = RefCLIPEquations(to_official(net), CONFIG, batch, training=False)
    got = net.predict(batch)
    close(got.similarity, np.stack([own[b] for b, own in enumerate(equations.similarity)]))
    assert got.chosen.tolist() == equations.chosen.tolist()
    assert got.boxes.tolist() == [equations.chosen_box(b).tolist() for b in range(4)]
    assert got.mask_logits is None


def test_only_what_it_reads_need_be_in_a_batch() -> None:
    batch, net = make_batch(config=CONFIG), build().eval()
    kept = {"tokens", "letterbox", *METHODS["refclip"].fields(CONFIG)}
    lean = Batch(
        **{field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name in kept}
    )
    assert torch.equal(net.predict(lean).similarity, net.predict(batch).similarity)
    with pytest.raises(StoreError, match=r"no dark_s16 \(column detect.s16\).*--stages detect"):
        net.predict(replace(lean, dark_s16=None))


def test_every_weight_learns_but_those_that_cannot_matter() -> None:
    net, batch = build().double(), make_batch(config=CONFIG)
    net.losses(batch, epoch=0).total.backward()
    assert unmoved(net) == {
        *(f"text.blocks.{i}.attention.key.bias" for i in range(2)),
        "text.pool.score.bias",
        "matcher.visual.bias",
    }


def test_banks_are_refused_before_anything_is_built() -> None:
    for refused in (lambda: RefCLIP(TINY, VOCABULARY), lambda: METHODS["refclip"].fields(TINY)):
        with pytest.raises(ConfigError, match=r"banks=\['dino', 'sam'\]: RefCLIP .*--set model.banks="):
            refused()


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog", "refcoco-small"])
def test_the_recipe_is_the_releases_for_every_data_set(name: str) -> None:
    model, train_ = recipe("refclip", name)
    assert (model.wrec_dim, model.text_dim, model.banks, model.candidates, model.max_tokens) == (1024, 512, (), 17, 15)
    assert (train_.batch, train_.lr, train_.min_lr, train_.warmup_epochs, train_.epochs) == (64, 1e-4, 1e-6, 3, 25)
    assert (train_.warmup_lr, train_.clip_norm, train_.seed) == (1e-7, 0.15, 123456)


def test_the_pocket_recipe_fits_the_pocket_store() -> None:
    model, train_ = recipe("refclip", "pocket")
    own, theirs = recipe("weakmcn", "pocket")
    assert (model.side_px, model.dark_channels, model.candidates) == (own.side_px, own.dark_channels, own.candidates)
    assert (model.wrec_dim, model.banks, train_) == (2 * own.wrec_dim, (), theirs)


def test_a_method_that_does_not_exist_is_refused_with_those_that_do() -> None:
    for find in (method_of, lambda name: recipe(name, "refcoco")):
        with pytest.raises(
            ConfigError,
            match=r"method 'refclap' is not known \(did you mean 'refclip'\?\); choose one of weakmcn, refclip, apl",
        ):
            find("refclap")


# On a store.

SMALL: dict[str, Any] = {"banks": (), "wrec_dim": 32, "dropout": 0.0}


def settings(store: Path, out: Path, **more: Any) -> TrainSettings:
    return TrainSettings(
        store=store,
        dataset=worlds.DATASET,
        out=out,
        model=replace(worlds.TINY, **SMALL),
        train=replace(worlds.RECIPE, epochs=5, batch=16, lr=1e-2),
        method="refclip",
        device="cpu",
        **more,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds the detector's columns and nothing else."""
    path = worlds.make_store(tmp_path_factory.mktemp("world") / "store", train=320, val=60, stages=("detect",))
    assert not list(path.glob("masks-*"))
    return path


def test_it_learns_and_is_measured_from_the_detectors_columns_alone(store: Path, tmp_path: Path) -> None:
    run = train(settings(store, tmp_path / "run"))
    assert set(run.columns) == {"detect"}
    result = evaluate_run(run, "val")
    assert set(result.summary) == {"rec_acc50", "sentences"}
    assert result.summary["rec_acc50"] > 65  # one of three candidates by chance
    assert result.baselines["sam_mask_of_box"] == {"rec_acc50": pytest.approx(result.summary["rec_acc50"])}
    assert result.notes == [
        "Boxes only: no mask is predicted. RES is that of SAM's mask of the box. The store has no masks, so there is "
        "none."
    ]
    assert all(record.mask is None and record.box_photo for record in result.records)


def test_from_captions_of_other_images_it_learns_nothing(store: Path, tmp_path: Path) -> None:
    result = evaluate_run(train(settings(store, tmp_path / "control", shuffle_captions=True)), "val")
    assert result.summary["rec_acc50"] < 50  # one of three candidates by chance


def test_where_there_are_masks_its_res_is_that_of_sams_mask_of_its_box(tmp_path: Path) -> None:
    store = worlds.make_store(tmp_path / "store", train=64, val=20)
    quick = settings(store, tmp_path / "run")
    result = evaluate_run(train(replace(quick, train=replace(quick.train, epochs=2))), "val")
    assert set(result.summary) == {"rec_acc50", "sentences"}
    # The squares do not overlap and SAM's mask of each is the square itself, so the two figures are the same.
    assert result.baselines["sam_mask_of_box"]["res_miou"] == pytest.approx(result.summary["rec_acc50"])
    assert result.misses == {}


@pytest.mark.parametrize("method", ["refclip", "apl"])
def test_the_pocket_recipe_trains_and_answers_a_photo_with_a_box(
    demo: Path, tmp_path: Path, run: Callable[..., Any], method: str
) -> None:
    trained = tmp_path / "run"
    ended = run(
        *("train", "--shards", demo / "store", "--dataset", "refcoco+", "--out", trained, "--method", method),
        *("--set", "train.epochs=1", "--set", "train.batch=20", "--set", "model.warm_epochs=0"),
    )
    assert ended.status == 0, ended.err
    photo = sorted((demo / "data").rglob("*.jpg"))[0]
    ended = run("predict", "--run", trained, "--image", photo, "--phrase", "red star", "--out", tmp_path / "found.png")
    assert ended.status == 0, ended.err
    assert "mask" not in ended.out
    (answer,) = json.loads((tmp_path / "found.json").read_text())["answers"]
    assert set(answer) == {"phrase", "unknown_words", "box_xyxy", "box_xywh", "objectness"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["found.json", "found.png", "run"]
    ended = run("eval", "--run", trained, "--split", "val", "--json")
    measured = json.loads(ended.out)
    assert {"rec_acc50", "sentences"} <= set(measured)
    assert "res_miou" not in measured
    assert set(measured["baselines"]["sam_mask_of_box"]) == {"rec_acc50", "res_miou"}
