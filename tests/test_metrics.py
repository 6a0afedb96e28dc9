"""The figures of the tables, on numbers a reader can check by hand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from weakmcn.model.metrics import box_iou, iou_of_areas, mask_areas, mask_iou, summarise
from weakmcn.pipeline.segmentation import read_mask
from weakmcn.shards.geometry import Letterbox


@dataclass
class Record:
    box_iou: float
    mask_iou: float
    intersection: float = 0
    union: float = 1


def test_box_iou_of_half_overlapping_boxes() -> None:
    assert box_iou(np.array([0, 0, 2, 3]), np.array([1, 0, 3, 3])) == pytest.approx(3 / 9)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ([0, 0, 2, 3], [0, 0, 2, 3], 1),
        ([0, 0, 1, 1], [1, 0, 2, 1], 0),  # they share an edge
        ([0, 0, 1, 1], [5, 5, 6, 6], 0),  # negative overlap on both axes is none
        ([1, 1, 1, 1], [1, 1, 1, 1], 0),  # no area
        ([0, 0, 4, 1], [0, 0, 2, 1], 0.5),
        ([-1, 0, 1, 1], [0, 0, 1, 1], 0.5),  # outside the photo counts: evaluation does not clip
    ],
)
def test_box_iou_by_hand(a: list[float], b: list[float], expected: float) -> None:
    assert box_iou(np.array(a), np.array(b)) == expected


def test_box_iou_broadcasts_candidates_against_one_truth() -> None:
    candidates = np.array([[0, 0, 2, 2], [0, 0, 1, 2], [9, 9, 10, 10]])
    assert box_iou(candidates, np.array([0, 0, 2, 2])).tolist() == [1, 0.5, 0]


@given(arrays(np.float64, (2, 4), elements=st.floats(-1e6, 1e6)))
def test_box_iou_is_symmetric_and_between_0_and_1(boxes: np.ndarray) -> None:
    iou = box_iou(boxes[0], boxes[1])
    assert 0 <= iou <= 1
    assert iou == box_iou(boxes[1], boxes[0])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_box_that_is_not_finite_exceeds_no_threshold(value: float) -> None:
    assert not box_iou(np.array([0, 0, value, 1]), np.array([0, 0, 1, 1])) > 0.5


def test_mask_iou_on_an_image_of_two_by_three() -> None:
    a = np.array([[1, 1, 0], [0, 1, 0]])
    b = np.array([[0, 1, 1], [0, 1, 0]])
    assert mask_areas(a, b) == (2, 4)
    assert mask_iou(a, b) == pytest.approx(0.5)


def test_mask_iou_of_empty_masks() -> None:
    nothing, something = np.zeros((2, 3), bool), np.ones((2, 3), bool)
    assert mask_iou(nothing, nothing) == 1
    assert mask_iou(nothing, something) == pytest.approx(1e-10 / 6)


def test_the_constant_that_makes_two_empty_masks_equal_lifts_an_exact_half_above_a_half() -> None:
    # (1 + 1e-10) / (2 + 1e-10) is 0.5 + 2.5e-11: by the released formula it counts for pr50.
    half = float(mask_iou(np.array([[1, 0]]), np.array([[1, 1]])))
    assert half == pytest.approx(0.5 + 2.5e-11, abs=1e-14)
    assert summarise([Record(0, half)])["pr50"] == 100


def test_a_figure_is_0_where_no_mask_hits() -> None:
    missed = float(mask_iou(np.array([[1, 0]]), np.array([[0, 1]])))
    assert missed > 0
    assert summarise([Record(0, missed, 0, 2)])["res_miou"] == 0


def test_mask_iou_broadcasts_candidates_against_one_truth() -> None:
    truth = np.array([[1, 1], [0, 0]], bool)
    candidates = np.array([[[1, 1], [0, 0]], [[1, 0], [0, 0]], [[0, 0], [1, 1]]], bool)
    assert mask_iou(candidates, truth) == pytest.approx([1, 0.5, 0], abs=1e-9)
    assert iou_of_areas(*mask_areas(candidates, truth)) == pytest.approx([1, 0.5, 0], abs=1e-9)


def test_the_summary_of_four_sentences() -> None:
    summary = summarise(
        [
            Record(box_iou=0.9, mask_iou=0.8, intersection=8, union=10),  # both right
            Record(box_iou=0.5, mask_iou=0.5, intersection=5, union=10),  # box misses (strict), mask holds (>=)
            Record(box_iou=0.6, mask_iou=0.2, intersection=20, union=100),  # box right, mask not
            Record(box_iou=0.0, mask_iou=0.0, intersection=0, union=80),  # both wrong
        ]
    )
    assert summary == pytest.approx(
        {
            "rec_acc50": 50.0,
            "res_miou": 37.5,
            "res_oiou": 100 * 33 / 200,
            "pr50": 25.0,  # 0.5 is not above 0.5
            "pr60": 25.0,
            "pr70": 25.0,
            "pr80": 0.0,  # 0.8 is not above 0.8
            "pr90": 0.0,
            "inconsistency": 50.0,
            "sentences": 4,
        }
    )


@pytest.mark.parametrize("percent", [50, 60, 70, 80, 90])
def test_a_mask_counts_for_a_precision_that_it_exceeds(percent: int) -> None:
    at, above = percent / 100, percent / 100 + 1e-9
    assert summarise([Record(0, at)])[f"pr{percent}"] == 0
    assert summarise([Record(0, at), Record(0, above), Record(0, 1)])[f"pr{percent}"] == pytest.approx(200 / 3)


@pytest.mark.parametrize(
    ("box", "mask", "inconsistency"),
    [
        (0.5, 0.5, 100),  # the box must exceed a half, the mask must reach it
        (0.5 + 1e-9, 0.5, 0),
        (0.5 + 1e-9, 0.5 - 1e-9, 100),
        (0.5, 0.5 - 1e-9, 0),
    ],
)
def test_box_and_mask_are_inconsistent_where_one_alone_is_right(box: float, mask: float, inconsistency: float) -> None:
    assert summarise([Record(box, mask)])["inconsistency"] == inconsistency


def test_overall_iou_weighs_a_sentence_by_its_pixels() -> None:
    large, small = Record(0, 0.9, intersection=900, union=1000), Record(0, 0.1, intersection=1, union=10)
    summary = summarise([large, small])
    assert summary["res_miou"] == pytest.approx(50)
    assert summary["res_oiou"] == pytest.approx(100 * 901 / 1010)


@pytest.mark.parametrize("tall", [False, True])
def test_from_the_canvas_to_the_figures_of_a_photo_twice_as_wide_as_high(tall: bool, tmp_path: Path) -> None:
    # 20 x 40 pixels lie on rows 5 to 15 of a canvas of 20, so a canvas pixel is two of the photo's on either axis.
    letterbox = Letterbox.fit(*((40, 20) if tall else (20, 40)), side=20)
    mask_canvas = np.zeros((20, 20), np.uint8)
    mask_canvas[:10, :10] = 1  # its rows 0 to 5 are padding: 10 x 20 pixels of the photo remain
    box_canvas = np.array([0, 5, 10, 10], np.float32)
    truth = np.zeros((20, 40), np.uint8)
    truth[:, :10] = 1
    truth[5:, :10] = 2  # a sum over two overlapping polygons: one object all the same
    np.save(tmp_path / "truth.npy", truth.T if tall else truth)

    box_photo = letterbox.to_photo(box_canvas[[1, 0, 3, 2]] if tall else box_canvas)
    mask_photo = letterbox.mask_to_photo(mask_canvas.T if tall else mask_canvas)
    truth_photo = read_mask(tmp_path / "truth.npy", letterbox.height, letterbox.width)
    intersection, union = mask_areas(mask_photo, truth_photo)
    assert (intersection, union) == (10 * 10, 20 * 10 + 20 * 10 - 10 * 10)
    box = box_iou(box_photo, np.array([0, 0, 10, 20] if tall else [0, 0, 20, 10]))
    assert box == 1
    half = box_iou(box_photo, np.array([0, 0, 10, 10]))
    assert half == 0.5

    right = Record(float(box), float(mask_iou(mask_photo, truth_photo)), int(intersection), int(union))
    wrong = Record(float(half), float(mask_iou(mask_photo, mask_photo)), 200, 200)
    expected = {"rec_acc50": 50, "res_miou": 100 * (1 / 3 + 1) / 2, "res_oiou": 60, "pr90": 50, "inconsistency": 100}
    summary = summarise([right, wrong])
    assert {name: summary[name] for name in expected} == pytest.approx(expected)


def test_an_answer_that_is_not_a_number_is_a_miss_and_stays_in_the_denominator() -> None:
    summary = summarise([Record(np.nan, np.nan), Record(0.9, 1.0, 1, 1)])
    assert summary["rec_acc50"] == 50
    assert summary["res_miou"] == 50
    assert summary["pr50"] == 50
    assert summary["inconsistency"] == 0
    assert summary["sentences"] == 2


def test_the_summary_of_no_sentences_is_zero() -> None:
    assert set(summarise([]).values()) == {0}
