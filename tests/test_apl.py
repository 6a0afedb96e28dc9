"""APL: the equations of the method page with its faults mended, part by part, and training on a store."""

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from weakmcn.model.apl import APL
from weakmcn.model.batch import Batch
from weakmcn.model.config import COCO_CLASSES, ModelConfig, TrainConfig
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.methods import METHODS, recipe
from weakmcn.model.official import to_official
from weakmcn.model.prompts import COLOURS, nearest_colours
from weakmcn.model.state import TrainState
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.model.vocabulary import RESERVED, Vocabulary
from weakmcn.pipeline.datasets import COCO_CATEGORIES
from weakmcn.pipeline.pocket.scenes import SHAPES
from weakmcn.shards.errors import ConfigError, StoreError

from . import worlds
from .equations import TINY, Equations, close, make_batch, sigmoid, softmax, unlike_any_other, unmoved
from .test_box_head import plain_assignment, plain_iou

NAMES = ("dog", "traffic light", "cell-phone")
CONFIG = replace(TINY, banks=(), wrec_dim=16, wres_dim=12, class_names=NAMES, warm_epochs=2)
VOCABULARY = Vocabulary((*RESERVED, "a", "dog", "light", "the", *COLOURS, "traffic", "cell", "phone"))


def build(config: ModelConfig = CONFIG) -> APL:
    torch.manual_seed(0)
    net = APL(config, VOCABULARY)
    unlike_any_other(net)
    with torch.no_grad():
        for weight in net.box_head.parameters():
            weight.mul_(3 if weight.ndim > 1 else 1)  # else every image gets nearly the same box
    return net


def silu(x: np.ndarray) -> np.ndarray:
    return x * sigmoid(x)


class APLEquations(Equations):
    """The table of the method page; faults 1 to 7 mended."""

    def phrase(self, b: int, k: int) -> list[str]:
        name = NAMES[self.batch["classes"][b, k].argmax()].replace("-", " ")
        colour = self.batch["colours"][b, k].astype(np.float64) / 255
        distance = {word: ((colour - np.array(rgb)) ** 2).sum() for word, rgb in COLOURS.items()}
        return [min(distance, key=lambda word: distance[word]), *name.split()]

    def prompt(self, b: int, k: int) -> np.ndarray:
        """Vector of one prompt, alone and without any pad."""
        rows = [VOCABULARY.rows.index(word) for word in self.phrase(b, k)]
        return self.sentence(np.array([rows]), "tag_encoder")[0]

    def run(self) -> None:
        self.f = self.sentence(self.batch["tokens"])
        maps = self.fuse("multi_scale_manner", *self.dark(), outputs=["s8", "s16", "s32"])
        seen, position = self.seen(maps[2]), self.position()
        tag = np.array([[self.prompt(b, k) for k in range(seen.shape[1])] for b in range(len(seen))])
        w = softmax(self.linear("soft_weights", seen + tag + position))
        u = self.linear("linear_vs_pos", w[..., :1] * seen) + self.linear("linear_tag", w[..., 2:] * tag)
        self.u = u + w[..., 1:2] * position
        self.compare(self.u + self.linear("linear_tag", tag))
        self.decode(self.head(maps))

    def reconstruction(self) -> float:
        t, total = self.linear("linear_ts", self.f), 0.0
        for b, k in enumerate(self.chosen):
            x = self.u[b, k]
            for layer in (0, 2, 4):
                x = self.linear(f"linear_decoder.{layer}", x if layer == 0 else np.maximum(x, 0))
            total += ((x - t[b]) ** 2).mean()
        return total / len(t)

    def head(self, maps: list[np.ndarray]) -> np.ndarray:
        written = maps[2].copy()
        for b, k in np.ndindex(*self.batch["cells"].shape):
            row, column = divmod(self.batch["cells"][b, k], written.shape[-1])
            written[b, :, row, column] = self.linear("linear_vs_proj", self.u[b, k])
        modulated = [self.modulate(i, x) for i, x in enumerate([maps[0], maps[1], written])]
        (y,) = self.fuse("multi_scale_manner_sup", *modulated, outputs=["s32"])
        x = self.attend(y)
        for block in ("stems.0", "reg_convs.0.0", "reg_convs.0.1"):
            x = silu(self.norm(f"sup_head.{block}.bn", self.conv(f"sup_head.{block}.conv", x)))
        return np.concatenate([self.conv("sup_head.reg_preds.0", x), self.conv("sup_head.obj_preds.0", x)], axis=1)

    def decode(self, raw: np.ndarray) -> None:
        """Boxes [B, N, 4] cx cy w h and objectness logits [B, N]."""
        size, _, rows, columns = raw.shape
        self.columns = columns
        self.boxes, self.logits = np.zeros((size, rows * columns, 4)), raw[:, 4].reshape(size, -1)
        for b, row, column in np.ndindex(size, rows, columns):
            t = raw[b, :4, row, column]
            place = [(t[0] + column) * 32, (t[1] + row) * 32, np.exp(t[2]) * 32, np.exp(t[3]) * 32]
            self.boxes[b, row * columns + column] = place

    def label(self, b: int) -> np.ndarray:
        four = self.batch["boxes"][b, self.chosen[b]]
        return four[four[:, 4].argmax(), :4].astype(np.float64)

    def box_term(self) -> float:
        total, taught = 0.0, 0
        for b, (boxes, logits) in enumerate(zip(self.boxes, self.logits, strict=True)):
            cells = plain_assignment(boxes, self.label(b), self.columns)
            taught += len(cells)
            total += sum(5 * (1 - plain_iou(boxes[cell], self.label(b)) ** 2) for cell in cells)
            for cell, z in enumerate(logits):
                total -= np.log(sigmoid(z) if cell in cells else 1 - sigmoid(z))
        return float(total / taught)


def test_losses_are_those_of_the_equations_before_and_after_the_box_head_joins() -> None:
    net, batch = build().double(), make_batch(config=CONFIG)
    equations = APLEquations(to_official(net), CONFIG, batch, training=True)
    assert len({tuple(equations.phrase(b, k)) for b, k in np.ndindex(4, 3)}) > 6
    early, late = net.losses(batch, epoch=1), net.losses(batch, epoch=2)
    for losses in (early, late):
        close(losses.det, equations.contrast())
        close(losses.recon, equations.reconstruction())
    assert early.box == 0
    close(early.total, equations.contrast() + equations.reconstruction())
    close(late.box, equations.box_term())
    close(late.total, equations.contrast() + equations.reconstruction() + equations.box_term())


def test_predictions_are_those_of_the_equations() -> None:
    net, batch = build().eval(), make_batch(config=CONFIG)
    equations = APLEquations(to_official(net), CONFIG, batch, training=False)
    got = net.predict(batch)
    close(got.similarity, np.stack([own[b] for b, own in enumerate(equations.similarity)]))
    for b in range(4):
        best = equations.logits[b].argmax()
        cx, cy, w, h = equations.boxes[b, best]
        close(got.boxes[b], [cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1e-4)
        close(got.scores[b], sigmoid(equations.logits[b, best]))
        four = [four[four[:, 4].argmax(), :4].astype(np.float64) for four in equations.batch["boxes"][b]]
        fit = [plain_iou(equations.boxes[b, best], box) for box in four]
        assert got.chosen[b] == (np.argmax(fit) if max(fit) else equations.chosen[b])
    assert got.mask_logits is None


def test_a_box_that_touches_no_candidate_is_answered_for_by_the_most_similar_one() -> None:
    net, batch = build().eval(), make_batch(config=CONFIG)
    away = batch.boxes.clone()
    away[..., :2] += 10_000
    got = net.predict(replace(batch, boxes=away))
    assert torch.equal(got.chosen, got.similarity.argmax(dim=1))


def test_predicted_boxes_are_clipped_only_on_request() -> None:
    batch = make_batch(config=CONFIG)
    raw, clipped = (build(replace(CONFIG, clip_boxes_in_eval=clip)).eval().predict(batch).boxes for clip in (0, 1))
    assert raw.min() < 0
    assert clipped.min() >= 0


# Prompts.


def test_a_prompt_says_the_nearest_colour_and_every_word_of_the_name() -> None:
    net = build()
    classes = torch.eye(3)[None]
    colours = torch.tensor([[[10.0, 10.0, 250.0], [128.0, 100.0, 120.0], [255.0, 200.0, 210.0]]])
    words = [[VOCABULARY.rows[row] for row in prompt] for prompt in net.prompts.tokens(classes, colours)[0].tolist()]
    assert words == [["blue", "dog", "PAD"], ["gray", "traffic", "light"], ["pink", "cell", "phone"]]


def test_every_reference_colour_is_nearest_to_itself() -> None:
    references = torch.tensor(list(COLOURS.values())) * 255
    assert nearest_colours(references).tolist() == list(range(13))


def test_a_new_vocabulary_gets_the_words_of_the_prompts_and_an_official_one_leaves_them_unknown() -> None:
    words = METHODS["apl"].words(CONFIG)
    assert words == (*COLOURS, "dog", "traffic", "light", "cell", "phone")
    assert METHODS["weakmcn"].words(CONFIG) == METHODS["refclip"].words(CONFIG) == ()
    net = APL(CONFIG, Vocabulary((*RESERVED, "dog", "red")))
    tokens = net.prompts.tokens(torch.eye(3)[None], torch.tensor([[[255.0, 0, 0], [127.0, 0, 0], [0, 0, 0]]]))
    assert tokens.tolist() == [[[4, 3, 0], [1, 1, 1], [1, 1, 1]]]


def test_class_names_are_those_of_the_detectors_in_their_order() -> None:
    assert recipe("apl", "refcoco")[0].class_names == COCO_CLASSES == tuple(name for _, name in COCO_CATEGORIES)
    assert recipe("apl", "pocket")[0].class_names == SHAPES


@pytest.mark.parametrize("name", ["refcoco", "refcoco+-small", "refcocog"])
def test_the_recipe_is_the_releases_for_every_data_set(name: str) -> None:
    model, train_ = recipe("apl", name)
    assert (model.wrec_dim, model.wres_dim, model.text_dim, model.banks, model.warm_epochs) == (1024, 512, 512, (), 10)
    assert (train_.batch, train_.lr, train_.min_lr, train_.warmup_epochs, train_.seed) == (64, 1e-4, 1e-6, 3, 666666)


@pytest.mark.parametrize("names", [(), ("dog", "?!")])
def test_without_names_of_the_classes_nothing_is_built(names: tuple[str, ...]) -> None:
    config = replace(CONFIG, class_names=names)
    for refused in (lambda: APL(config, VOCABULARY), lambda: METHODS["apl"].fields(config)):
        with pytest.raises(ConfigError, match=r"class_names=.*--set model.class_names"):
            refused()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": None}, r"no classes \(column detect.classes\).*--stages detect"),
        ({"colours": None}, r"no colours \(column detect.colours\).*--stages detect"),
        ({"classes": torch.zeros(4, 3, 80)}, r"classes .* \[4, 3, 80\].* \[4, 3, 3\]"),
    ],
    ids=["classes", "colours", "other classes"],
)
def test_a_batch_without_what_the_prompts_say_is_refused_by_column(change: dict[str, Any], words: str) -> None:
    with pytest.raises(StoreError, match=words):
        build().losses(replace(make_batch(config=CONFIG), **change), epoch=0)


def test_only_what_it_reads_need_be_in_a_batch() -> None:
    batch, net = make_batch(config=CONFIG), build().eval()
    kept = {"tokens", "letterbox", *METHODS["apl"].fields(CONFIG)}
    lean = Batch(
        **{field.name: getattr(batch, field.name) for field in dataclasses.fields(batch) if field.name in kept}
    )
    assert torch.equal(net.predict(lean).boxes, net.predict(batch).boxes)


# What learns from what.


def learned_from(term: str, epoch: int = 2) -> set[str]:
    net, batch = build().double(), make_batch(config=CONFIG)
    getattr(net.losses(batch, epoch), term).backward()
    moved = {name for name, weight in net.named_parameters() if weight.grad is not None and weight.grad.abs().max() > 0}
    return {name.partition(".")[0] for name in moved}


def test_the_sentence_learns_from_the_match_alone() -> None:
    assert learned_from("det") == {"text", "prompts", "fusion", "matcher"}
    assert learned_from("recon") == {"prompts", "fusion", "matcher", "decoder"}
    assert learned_from("box") == {"prompts", "fusion", "matcher", "box_head"}


def test_the_box_head_is_idle_until_it_joins() -> None:
    assert "box_head" not in learned_from("total", epoch=1)
    assert "box_head" in learned_from("total", epoch=2)


def test_every_weight_learns_but_those_that_cannot_matter() -> None:
    """Zero in theory: biases in front of a norm over the batch, and shifts that a softmax does not see."""
    net, batch = build().double(), make_batch(config=CONFIG)
    net.losses(batch, epoch=2).total.backward()
    assert unmoved(net) == {
        *(f"box_head.modulate.{i}.{side}.bias" for i in range(3) for side in ("visual", "textual")),
        *("box_head.attention.merge.bias", "box_head.attention.collect_key.bias"),
        *(f"{text}.blocks.{i}.attention.key.bias" for text in ("text", "prompts.text") for i in range(2)),
        *("text.pool.score.bias", "prompts.text.pool.score.bias"),
    }


def test_sentences_and_prompts_start_with_the_same_words() -> None:
    torch.manual_seed(0)
    net = APL(CONFIG, VOCABULARY)
    assert torch.equal(net.text.words.weight, net.prompts.text.words.weight)
    assert net.text.words.weight is not net.prompts.text.words.weight


# On a store.

MODEL = replace(worlds.TINY, banks=(), wrec_dim=32, wres_dim=32, dropout=0.0, class_names=("a b", *"cde"))
FAST = replace(worlds.RECIPE, epochs=5, batch=16, lr=5e-3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return worlds.make_store(tmp_path_factory.mktemp("world") / "store", train=320, val=60, stages=("detect", "masks"))


def settings(store: Path, out: Path, recipe: TrainConfig = FAST, **more: Any) -> TrainSettings:
    return TrainSettings(
        store=store,
        dataset=worlds.DATASET,
        out=out,
        model=MODEL,
        train=recipe,
        method="apl",
        device="cpu",
        log_steps=20,
        **more,
    )


def test_it_learns_the_match_and_then_boxes_of_its_own(store: Path, tmp_path: Path) -> None:
    run = train(settings(store, tmp_path / "run"))
    lines = [json.loads(line) for line in run.metrics.read_text().splitlines()]
    assert lines[0]["box"] == 0
    assert lines[-1]["det"] < 0.6 * lines[0]["det"]
    assert 0 < lines[-1]["box"] < 0.8 * lines[1]["box"]
    result = evaluate_run(run, "val")
    assert set(result.summary) == {"rec_acc50", "sentences"}
    # Its boxes, of a hundred steps, are still coarse: counted is the candidate that each is nearest to.
    nearest = result.baselines["sam_mask_of_box"]
    assert nearest["rec_acc50"] > 50  # one of three candidates by chance
    assert nearest["res_miou"] == pytest.approx(nearest["rec_acc50"])  # the squares do not overlap
    assert {"maroon", "turquoise", "b"} <= set(run.vocabulary.rows)


def test_from_captions_of_other_images_it_learns_no_match(store: Path, tmp_path: Path) -> None:
    result = evaluate_run(train(settings(store, tmp_path / "control", shuffle_captions=True)), "val")
    assert result.baselines["sam_mask_of_box"]["rec_acc50"] < 45  # one of three candidates by chance


@pytest.mark.parametrize("step", [2, 5])
def test_a_run_that_crashes_goes_on_to_the_same_bytes(tmp_path: Path, step: int) -> None:
    store = worlds.make_store(tmp_path / "store", train=24, val=2, stages=("detect",))
    recipe = replace(worlds.RECIPE, epochs=2)

    class Crash(Exception):  # noqa: N818 - stands for a kill
        pass

    def crash(state: TrainState) -> None:
        if state.step == step:
            raise Crash

    undisturbed = train(settings(store, tmp_path / "undisturbed", recipe))
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "run", recipe, checkpoint_minutes=0), after_step=crash)
    resumed = train(settings(store, tmp_path / "run", recipe, checkpoint_minutes=0))
    for one, other in zip(
        undisturbed.network().state_dict().items(), resumed.network().state_dict().items(), strict=True
    ):
        assert one[0] == other[0]
        assert torch.equal(one[1], other[1]), one[0]
    assert undisturbed.metrics.read_bytes() == resumed.metrics.read_bytes()
