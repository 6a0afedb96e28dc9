"""`weakmcn eval --predictions`: anyone's answers, scored as a run's are; the format of docs/predictions.md."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weakmcn.shards.codec import rle_encode

from .worlds import DATASET, Rows, make_store

Weakmcn = Callable[..., Any]
HEIGHT, WIDTH = 72, 96
"""Of every photo."""


def mask_of(x: int, y: int, width: int, height: int) -> str:
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[y : y + height, x : x + width] = True
    return rle_encode(mask)


def answer(ref_id: int, sent_id: int, box: list[float] | None, mask: tuple[int, int, int, int] | None) -> dict:
    row: dict[str, Any] = {"ref_id": ref_id, "sent_id": sent_id}
    if box is not None:
        row["bbox"] = box
    if mask is not None:
        row["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": mask_of(*mask)}
    return row


TRUTH = ((0, 0, 10, 10), (20, 20, 20, 10))
"""x y w h of the two objects of val, references 1001 and 1002; their masks fill them."""
ANSWERS = [
    answer(1001, 2, [0, 0, 10, 10], (0, 0, 10, 10)),  # box IoU 1, mask IoU 100 / 100
    answer(1001, 3, [5, 0, 10, 10], (5, 0, 10, 10)),  # 50 / 150 and 50 / 150
    answer(1002, 4, [20, 20, 10, 10], (20, 20, 15, 10)),  # 100 / 200, which is not above a half; 150 / 200
]
"""Of the four sentences the last, 5, has no answer."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def by_hand(rows: Rows) -> None:
        for row, box in zip(rows[1:], TRUTH, strict=True):
            row |= {"box": list(map(float, box)), "mask": mask_of(*box)}

    return make_store(tmp_path_factory.mktemp("world") / "store", train=1, val=2, edit=by_hand, stages=())


@pytest.fixture
def scored(run: Weakmcn, store: Path, tmp_path: Path) -> Weakmcn:
    """Write a file and score it: `eval --predictions FILE ...`."""

    def call(content: str | list[dict], *words: str) -> Any:
        file = tmp_path / "theirs.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content))
        return run("eval", "--predictions", file, "--shards", store, "--dataset", DATASET, "--split", "val", *words)

    return call


def lines(rows: list[dict]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


EXPECTED = {
    "rec_acc50": 25,
    "res_miou": 100 * (1 + 1 / 3 + 3 / 4 + 0) / 4,
    "res_oiou": 100 * (100 + 50 + 150 + 0) / (100 + 150 + 200 + 200),
    "pr50": 50,
    "pr60": 50,
    "pr70": 50,
    "pr80": 25,
    "pr90": 25,
    "inconsistency": 25,  # sentence 4: the mask is right, the box is not
    "sentences": 4,
}


@pytest.mark.parametrize("form", [json.dumps, lines, lambda rows: json.dumps({"images": [], "annotations": rows})])
def test_a_file_made_by_hand_gets_the_scores_worked_out_by_hand(scored: Weakmcn, form: Callable) -> None:
    ended = scored(form(ANSWERS), "--json")
    assert ended.status == 3  # a sentence has no answer
    told = json.loads(ended.out)
    assert {name: told[name] for name in EXPECTED} == pytest.approx(EXPECTED)
    assert told["notes"] == ["1 of 4 sentences are counted as misses: no prediction."]
    assert (told["dataset"], told["split"], told["baselines"]) == (DATASET, "val", {})


def test_with_an_answer_to_every_sentence_the_exit_code_is_0(scored: Weakmcn) -> None:
    ended = scored([*ANSWERS, answer(1002, 5, [0, 0, 5, 5], (0, 0, 5, 5))])
    assert ended.status == 0
    assert "val, 4 sentences" in ended.out
    assert "floor" not in ended.out
    assert "misses" not in ended.out


def test_boxes_alone_have_no_figures_of_masks(scored: Weakmcn) -> None:
    boxes = [{name: value for name, value in row.items() if name != "segmentation"} for row in ANSWERS]
    told = json.loads(scored(boxes, "--json").out)
    assert told["rec_acc50"] == 25
    assert "res_miou" not in told
    assert "the predictions have no masks." in told["notes"]
    (row,) = [line for line in scored(boxes).out.splitlines() if line.startswith("val, 4 sentences")]
    assert row.split()[-9:] == ["25.0", *["–"] * 8]


def test_masks_alone_have_no_figures_of_boxes(scored: Weakmcn) -> None:
    masks = [{name: value for name, value in row.items() if name != "bbox"} for row in ANSWERS]
    told = json.loads(scored(masks, "--json").out)
    assert told["res_miou"] == pytest.approx(EXPECTED["res_miou"])
    assert told.keys().isdisjoint({"rec_acc50", "inconsistency"})


def test_a_prediction_without_a_mask_among_others_that_have_one_misses_the_mask(scored: Weakmcn) -> None:
    told = json.loads(scored([answer(1001, 2, [0, 0, 10, 10], None), *ANSWERS[1:]], "--json").out)
    assert told["rec_acc50"] == 25
    assert told["res_miou"] == pytest.approx(100 * (0 + 1 / 3 + 3 / 4) / 4)
    assert told["res_oiou"] == pytest.approx(100 * 200 / 650)  # the whole object is missed
    assert told["notes"][-1] == "1 of 3 predictions have no mask: misses in its figures."


def test_masks_may_be_polygons_or_plain_run_lengths(scored: Weakmcn) -> None:
    polygon = ANSWERS[0] | {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]}
    plain = [0, *[10, HEIGHT - 10] * 10]  # columns of 72, the upper ten pixels of the first ten
    plain[-1] += HEIGHT * (WIDTH - 10)
    counted = ANSWERS[0] | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": plain}}
    for first in (polygon, counted):
        told = json.loads(scored([first, *ANSWERS[1:]], "--json").out)
        assert told["res_miou"] == pytest.approx(EXPECTED["res_miou"])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "has no row"),
        ("[]", "has no row"),
        ('{"ref_id": 1001,\n', "line 1 is no JSON"),
        ("[1]", "entry 1 has no whole numbers ref_id and sent_id"),
        ([{"ref_id": "1001", "sent_id": 2}], "entry 1 has no whole numbers ref_id and sent_id"),
        (lines([*ANSWERS, answer(1000, 0, [0, 0, 1, 1], None)]), "line 4 names ref_id 1000, sent_id 0, which is no"),
        (
            [answer(1001, 4, [0, 0, 1, 1], None)],
            "entry 1 names ref_id 1001, sent_id 4, which is no sentence of toy val",
        ),
        ([*ANSWERS, ANSWERS[1]], "entry 2 and entry 4 are about one sentence"),
        ([answer(1001, 2, None, None)], "entry 1 has neither bbox nor segmentation"),
        ([answer(1001, 2, [0, 0, 1], None)], "entry 1 has the bbox [0, 0, 1]"),
        ('[{"ref_id": 1001, "sent_id": 2, "bbox": [0, 0, NaN, 1]}]', "entry 1 has the bbox [0, 0, nan, 1]"),
        ([answer(1001, 2, [9, 9, -1, 2], None)], "of negative size; write x y w h, not corners"),
        (
            [answer(1001, 2, None, None) | {"segmentation": {"size": [5, 5], "counts": "95"}}],
            "entry 1 has run lengths for another size than its photo's [72, 96]",
        ),
        (
            [answer(1001, 2, None, None) | {"segmentation": {"size": [HEIGHT, WIDTH], "counts": "95"}}],
            "entry 1 has run lengths that do not cover its photo exactly",
        ),
    ],
)
def test_what_is_no_prediction_is_told_by_its_place_and_scores_nothing(
    scored: Weakmcn, content: str | list[dict], says: str
) -> None:
    ended = scored(content)
    assert (ended.status, ended.out) == (2, "")
    assert says in ended.err
    assert ended.err.count("\n") == 1
    assert "; " in ended.err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--split", "val"], "missing option '--run' or '--predictions'"),
        (["--predictions", "a.json"], "--predictions needs the truth: name it with --shards STORE --dataset NAME"),
        (["--predictions", "a.json", "--run", "r"], "--run and --predictions: one at a time"),
    ],
)
def test_predictions_need_a_truth_and_nothing_else(run: Weakmcn, words: list[str], says: str) -> None:
    ended = run("eval", *words)
    assert (ended.status, ended.out) == (2, "")
    assert says in ended.err
