"""What a figure of the table counts: every sentence, at the photo's size, beside what needs no language."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from weakmcn.model.batch import Batch
from weakmcn.model.candidates import Candidates
from weakmcn.model.config import ModelConfig
from weakmcn.model.evaluate import Evaluation, evaluate, evaluate_run
from weakmcn.model.mask_answers import MaskPredictions
from weakmcn.model.methods import METHODS, Method
from weakmcn.model.references import sentences_in_row_order
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.model.vocabulary import RESERVED, Vocabulary
from weakmcn.model.weakmcn import Predictions, WeakMCN
from weakmcn.model.wrec import candidate_boxes
from weakmcn.shards.codec import rle_decode
from weakmcn.shards.errors import InputError, StoreError
from weakmcn.shards.store import Store

from .worlds import COLOURS, DATASET, LETTERBOX, RECIPE, TINY, Rows, key_of, make_store, scenes, write_family

VAL = 12


class Fixed(nn.Module):
    """Answers with one candidate's box and mask, whatever is said; a system of its own, as anyone may add one."""

    def __init__(self, config: ModelConfig, vocabulary: object, words: Tensor | None = None) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(()))
        self.candidate = 0
        self.box_value: float | None = None

    def predict(self, batch: Batch) -> Predictions:
        assert batch.masks is not None
        size = len(batch)
        boxes, scores = candidate_boxes(batch.boxes[:, self.candidate])
        masks = np.unpackbits(batch.masks[:, self.candidate].numpy(), axis=-1)
        return Predictions(
            similarity=torch.zeros(size, batch.cells.shape[1]),
            chosen=torch.full((size,), self.candidate),
            boxes=boxes if self.box_value is None else torch.full_like(boxes, self.box_value),
            scores=scores,
            mask_logits=torch.from_numpy(masks).float() * 20 - 10,
        )


FIXED = Method(build=Fixed, fields=lambda config: ("dark_s8", "dark_s16", "dark_s32"))


def measure(store: Path, net: nn.Module | None = None, method: Method = FIXED, **more) -> Evaluation:
    opened = Store.open(store)
    vocabulary = Vocabulary.build(sentences_in_row_order(opened, DATASET))
    network = net or Fixed(TINY, 0)
    settings = {"vocabulary": vocabulary, "config": TINY, "split": "val", "batch": 5} | more
    return evaluate(network, method=method, store=opened, dataset=DATASET, **settings)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("world") / "store", train=2, val=VAL)


@pytest.fixture(scope="module")
def targets() -> list[int]:
    """Which candidate is meant, for each image of val."""
    return [scene["target"] for scene in scenes(2 + VAL)[2:]]


def test_an_answer_that_is_the_truth_scores_everything(store: Path, targets: list[int]) -> None:
    result = measure(store)
    right = 100 * targets.count(0) / VAL
    assert 0 < right < 100
    expected = dict.fromkeys(("rec_acc50", "res_miou", "pr50", "pr60", "pr70", "pr80", "pr90"), right)
    assert {name: result.summary[name] for name in expected} == pytest.approx(expected)
    assert result.summary["inconsistency"] == 0
    assert result.summary["sentences"] == 2 * VAL
    assert result.results == {**result.summary, "sam_head": result.sam_head, "baselines": result.baselines}
    assert (result.misses, result.notes) == ({}, [])


def test_overall_iou_sums_pixels_over_sentences(store: Path, targets: list[int]) -> None:
    result = measure(store)
    sizes = [scene["boxes"][:, 1, 2] for scene in scenes(2 + VAL)[2:]]  # [VAL] of [K], edges of the squares
    right = sum(edges[0] ** 2 for edges, target in zip(sizes, targets, strict=True) if target == 0)
    wrong = sum(edges[0] ** 2 + edges[target] ** 2 for edges, target in zip(sizes, targets, strict=True) if target)
    assert result.summary["res_oiou"] == pytest.approx(100 * right / (right + wrong))


class Blank(Fixed):
    """The same boxes, and masks without a pixel."""

    def predict(self, batch: Batch) -> Predictions:
        found = super().predict(batch)
        assert found.mask_logits is not None
        return replace(found, mask_logits=torch.full_like(found.mask_logits, -1.0))


class Pointing(Fixed):
    """Predicts no boxes, and a mask of nothing whose highest pixel is inside the candidate."""

    def predict(self, batch: Batch) -> MaskPredictions:
        inside = super().predict(batch).mask_logits
        assert inside is not None
        return MaskPredictions(inside.clamp(-1, 0))


def test_where_it_points_is_told_apart_from_what_it_covers(store: Path, targets: list[int]) -> None:
    result = measure(store, Pointing(TINY, 0), replace(FIXED, boxes=False))
    assert result.summary["pointm"] == pytest.approx(100 * targets.count(0) / VAL)
    assert result.summary["res_miou"] == pytest.approx(0, abs=1e-6)
    assert [record.points for record in result.records[::2]] == [target == 0 for target in targets]


def test_the_sam_head_puts_sams_mask_of_the_box_in_place_of_the_predicted_one(store: Path) -> None:
    own, blank = measure(store), measure(store, Blank(TINY, 0))
    assert blank.summary["res_miou"] == pytest.approx(0, abs=1e-6)
    assert blank.sam_head == own.sam_head == own.summary  # the masks that Fixed answers with are SAM's


def test_the_baselines_are_those_of_the_candidates(store: Path, targets: list[int]) -> None:
    boxes = np.stack([scene["boxes"][:, 1] for scene in scenes(2 + VAL)[2:]])  # [VAL, K, 5], the best of each four
    answers = {
        "best_scored": boxes[..., 4].argmax(axis=1),
        "largest": boxes[..., 2].argmax(axis=1),
        "oracle": np.array(targets),
        "sam_mask_of_box": np.zeros(VAL),
    }
    expected = {name: 100 * float(np.mean(chosen == np.array(targets))) for name, chosen in answers.items()}
    expected["random"] = 100 / 3
    result = measure(store)
    assert {name: figures["rec_acc50"] for name, figures in result.baselines.items()} == pytest.approx(expected)
    # The squares do not overlap, so a wrong one has mask IoU 0 and the two figures are the same.
    assert {name: figures["res_miou"] for name, figures in result.baselines.items()} == pytest.approx(expected)


def test_baselines_count_an_object_as_often_as_it_has_sentences(tmp_path: Path) -> None:
    scene = scenes(3)[1:]

    def many(rows: Rows) -> None:
        rows[1] |= {"sentences": ["red"] * 9, "sent_ids": list(range(9))}
        rows[2] |= {"sentences": ["red"], "sent_ids": [9]}

    result = measure(make_store(tmp_path / "store", train=1, val=2, edit=many))
    hits = [one["boxes"][:, 1, 4].argmax() == one["target"] for one in scene]
    assert result.baselines["best_scored"]["rec_acc50"] == pytest.approx(90 * hits[0] + 10 * hits[1])


def test_empty_expressions_and_skipped_images_are_misses_and_are_told(tmp_path: Path) -> None:
    def empty(rows: Rows) -> None:
        rows[4]["sentences"] = ["...", "red one"]

    store = make_store(tmp_path / "store", train=2, val=6, skipped=[3], edit=empty)
    result = measure(store, batch=3)
    assert result.summary["sentences"] == 12
    assert len(result.records) == 12
    assert result.misses == {"precompute skipped the image": 2, "empty expression": 1}
    assert result.notes == [
        "2 of 12 sentences are counted as misses: precompute skipped the image.",
        "1 of 12 sentences are counted as misses: empty expression.",
    ]
    missed = [record for record in result.records if record.miss]
    assert [record.key for record in missed] == [key_of(3), key_of(3), key_of(4)]
    assert all(record.box_iou == record.mask_iou == record.intersection == 0 for record in missed)
    assert all(record.union > 0 for record in missed)  # the whole object was missed
    assert result.baselines["oracle"]["rec_acc50"] == pytest.approx(100 * 10 / 12)  # it reads no sentence
    whole = measure(make_store(tmp_path / "whole", train=2, val=6))
    lost = sum(record.box_iou > 0.5 for record, kept in zip(whole.records, result.records, strict=True) if kept.miss)
    assert result.summary["rec_acc50"] == pytest.approx(whole.summary["rec_acc50"] - 100 * lost / 12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_box_that_is_not_finite_is_a_miss_and_is_told(store: Path, value: float) -> None:
    net = Fixed(TINY, 0)
    net.box_value = value
    result = measure(store, net)
    assert result.summary["rec_acc50"] == 0
    assert result.misses == {"the predicted box is not finite": 2 * VAL}
    assert all(record.box_photo is None for record in result.records)


def test_records_hold_what_a_picture_needs_in_photo_pixels(store: Path, targets: list[int]) -> None:
    result = measure(store)
    assert [record.key for record in result.records] == [key_of(2 + number // 2) for number in range(2 * VAL)]
    record = next(record for record in result.records if record.box_iou > 0.5)
    assert record.sentence.split()[1] in (*COLOURS, "one")
    assert record.box_photo == pytest.approx(record.truth_photo)
    assert record.mask is not None
    mask = rle_decode(record.mask, LETTERBOX.height, LETTERBOX.width)
    x0, y0, x1, y1 = (round(value) for value in record.truth_photo)
    assert mask[y0:y1, x0:x1].all()
    assert mask.sum() == (y1 - y0) * (x1 - x0)
    assert record.chosen == 0
    assert record.score is not None
    assert 0.5 <= record.score <= 0.9


def test_a_reference_without_a_true_mask_is_a_miss_of_the_mask_only(tmp_path: Path) -> None:
    def unmask(rows: Rows) -> None:
        for row in rows:
            row["mask"] = None

    result = measure(make_store(tmp_path / "store", train=2, val=VAL, edit=unmask))
    assert result.summary["res_miou"] == 0
    assert result.summary["rec_acc50"] > 0
    assert result.misses == {"the data set has no mask of the object": 2 * VAL}


@pytest.mark.parametrize(("clip", "y1_photo"), [(False, 84), (True, 72)])
def test_a_candidates_box_is_clipped_only_on_request_and_its_size_is_what_the_photo_sees(
    clip: bool, y1_photo: float
) -> None:
    # Canvas rows 12 to 83 are the photo: the first box reaches 12 rows below it, the second is smaller, all inside.
    boxes = np.zeros((2, 4, 5), np.float32)
    boxes[0, 0] = [20, 86, 10, 20, 0.4]
    boxes[1, 2] = [50, 40, 12, 12, 0.9]
    masks = np.packbits(np.ones((2, 96, 96), bool), axis=-1)
    candidates = Candidates.of(key_of(0), LETTERBOX, boxes, masks, clip=clip)
    np.testing.assert_allclose(candidates.boxes_photo, [[15, 64, 25, y1_photo], [44, 22, 56, 34]], atol=1e-5)
    np.testing.assert_allclose(candidates.covered, [80, 144], atol=1e-4)
    assert candidates.masks_photo is not None
    assert candidates.masks_photo.shape == (2, 72, 96)
    assert (candidates.best_scored(), candidates.largest()) == (1, 1)


def test_the_batch_size_changes_nothing(store: Path) -> None:
    torch.manual_seed(3)
    net = WeakMCN(TINY, 40)
    one, other = (measure(store, net, METHODS["weakmcn"], batch=batch) for batch in (1, 24))
    assert one.summary == pytest.approx(other.summary)
    for name, figures in one.baselines.items():
        assert figures == pytest.approx(other.baselines[name])


def test_a_long_expression_is_told(tmp_path: Path) -> None:
    def prolong(rows: Rows) -> None:
        rows[2]["sentences"][0] = "the red square that is red"

    result = measure(make_store(tmp_path / "store", train=2, val=2, edit=prolong))
    assert result.notes == ["1 of 4 expressions have more than 4 words; the rest is cut."]


def test_words_that_the_run_has_never_seen_are_told(tmp_path: Path) -> None:
    def other(rows: Rows) -> None:
        rows[2]["sentences"] = ["blorp square", "dog blorp"]
        rows[3]["sentences"] = ["square"]

    few = Vocabulary((*RESERVED, "square"))
    result = measure(make_store(tmp_path / "store", train=2, val=2, edit=other), vocabulary=few)
    assert result.notes == ["3 of 5 words were never seen by the run, to which all are one: blorp, dog."]


def test_an_unknown_split_is_refused_naming_those_there_are(store: Path) -> None:
    with pytest.raises(InputError, match=r"split 'testA' has 0 of the 14 references .*: train, val"):
        measure(store, split="testA")


def missing_masks(path: Path) -> None:
    (folder,) = path.glob("masks-*")
    (folder / "000000.json").unlink()


def newer_masks(path: Path) -> None:
    write_family(path, "masks", scenes(2 + VAL), code=2)


@pytest.mark.parametrize(
    ("change", "message"),
    [(missing_masks, "images are not in it"), (newer_masks, "trained on masks-")],
)
def test_a_store_that_is_not_the_runs_is_refused(tmp_path: Path, change: Callable[[Path], None], message: str) -> None:
    store = make_store(tmp_path / "store", train=8, val=VAL - 6)
    recipe = replace(RECIPE, epochs=1, warmup_epochs=0)
    run = train(
        TrainSettings(store=store, dataset=DATASET, out=tmp_path / "run", model=TINY, train=recipe, device="cpu")
    )
    assert evaluate_run(run, "val").summary["sentences"] == 12
    change(store)
    with pytest.raises(StoreError, match=message):
        evaluate_run(run, "val")
