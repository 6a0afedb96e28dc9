"""Boxes and masks are sound or refused, and no native code sees a number that was not looked at."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weakmcn.pipeline.references import Reference, box_fault
from weakmcn.pipeline.segmentation import run_lengths, segmentation_fault
from weakmcn.shards.codec import rle_decode, rle_encode

from .annotated import SQUARE

any_number = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.integers(), st.integers(-5, 30), st.floats(-5, 30), st.none()
)


@settings(max_examples=200, deadline=None, database=None)
@given(box=st.one_of(st.lists(any_number, min_size=3, max_size=5), any_number))
def test_a_box_is_finite_with_area_inside_its_photo_or_refused(box: Any) -> None:
    if box_fault(box, 20, 24) is not None:
        return
    left, top, width, height = (float(value) for value in box)
    assert left >= -2
    assert top >= -2
    assert width > 0
    assert height > 0
    assert left + width <= 26
    assert top + height <= 22


def as_reference(segmentation: Any, height: int, width: int) -> Reference:
    """A reference with this mask and a photo of this size."""
    return Reference(
        ref_id=0,
        key="0" * 12,
        image_id=0,
        file_name="a.jpg",
        height=height,
        width=width,
        split="train",
        category=0,
        category_name="",
        box=(0, 0, 1, 1),
        sent_ids=(0,),
        sentences=("a",),
        segmentation=segmentation,
    )


@settings(max_examples=200, deadline=None, database=None)
@given(
    segmentation=st.one_of(
        st.lists(st.lists(any_number, max_size=9), max_size=3),
        st.lists(st.lists(st.floats(-2, 22), min_size=6, max_size=6), min_size=1, max_size=3),
        st.fixed_dictionaries(
            {"size": st.just([20, 20]), "counts": st.one_of(st.text(max_size=9), st.lists(any_number, max_size=5))}
        ),
    )
)
def test_a_mask_covers_its_photo_or_is_refused_before_native_code_sees_it(segmentation: Any) -> None:
    if segmentation_fault(segmentation, 20, 20) is not None:
        return
    counts = run_lengths(as_reference(segmentation, 20, 20))
    assert counts is not None
    assert rle_decode(counts, 20, 20).shape == (20, 20)


def test_every_form_of_a_mask_gives_the_same_run_lengths() -> None:
    square = np.zeros((10, 12), bool)
    square[3:8, 2:6] = True
    runs = [2 * 10 + 3]
    for _ in range(3):
        runs += [5, 5]
    runs += [5, 120 - sum(runs) - 5]
    compressed = {"size": [10, 12], "counts": rle_encode(square)}
    for form in (
        [SQUARE],
        [[float(value) for value in SQUARE]],
        [SQUARE, SQUARE],  # overlapping parts: the union, not the sum
        {"size": [10, 12], "counts": runs},
        compressed,
        [compressed],
        [compressed, SQUARE],
    ):
        assert segmentation_fault(form, 10, 12) is None
        assert run_lengths(as_reference(form, 10, 12)) == rle_encode(square)


@pytest.mark.timeout(20)
def test_run_lengths_are_ascii_and_end() -> None:
    """Five question marks cover 105 pixels, and é is none; a number that never ends would take minutes to read."""
    assert segmentation_fault({"size": [15, 7], "counts": "?" * 5}, 15, 7) is None
    for counts in ("é" * 5, "o" * 3_000_000):
        assert "do not cover" in (segmentation_fault({"size": [15, 7], "counts": counts}, 15, 7) or "")


def test_outlines_of_one_mask_count_together() -> None:
    around = [0, 0, 12, 0, 12, 10, 0, 10] * 300
    assert segmentation_fault([around], 10, 12) is None
    assert "longer than 100,000 px" in (segmentation_fault([around] * 20, 10, 12) or "")


def test_an_endless_outline_is_refused() -> None:
    assert "longer than" in (segmentation_fault([[0, 0, 9, 9] * 60_000], 10, 12) or "")
