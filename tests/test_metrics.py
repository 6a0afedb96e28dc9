"""The figures of the tables, on numbers a reader can check by hand."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from weakmcn.model.metrics import box_iou, iou_of_areas, mask_areas, mask_iou, summarise


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


def test_an_answer_that_is_not_a_number_is_a_miss_and_stays_in_the_denominator() -> None:
    summary = summarise([Record(np.nan, np.nan), Record(0.9, 1.0, 1, 1)])
    assert summary["rec_acc50"] == 50
    assert summary["res_miou"] == 50
    assert summary["pr50"] == 50
    assert summary["inconsistency"] == 0
    assert summary["sentences"] == 2


def test_the_summary_of_no_sentences_is_zero() -> None:
    assert set(summarise([]).values()) == {0}
