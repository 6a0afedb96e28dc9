"""Photo and canvas: the square is the authors' to the pixel, and boxes and masks come back where they were."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weakmcn.shards.errors import ImageError
from weakmcn.shards.geometry import PADDING, Letterbox, best_boxes

properties = settings(max_examples=40, deadline=None, database=None)
sides = st.sampled_from([96, 192, 416])
edges = st.integers(20, 900)


def photo_with_rectangle(height: int, width: int, box: tuple[int, int, int, int]) -> np.ndarray:
    """A green photo with a red rectangle x0 y0 x1 y1."""
    photo = np.zeros((height, width, 3), dtype=np.uint8)
    photo[..., 1] = 200
    x0, y0, x1, y1 = box
    photo[y0:y1, x0:x1] = (200, 0, 0)
    return photo


def extent(mask: np.ndarray) -> np.ndarray:
    """x0 y0 x1 y1 of the true pixels, in pixels."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], dtype=float)


def test_the_order_of_the_float_operations_decides_the_last_pixel() -> None:
    letterbox = Letterbox.fit(height=676, width=390, side=416)
    assert letterbox.info.tolist() == [676, 390, 416, 239, 88, 0]  # exact arithmetic would give 240


def test_a_wide_photo_fills_the_width_and_lies_in_the_middle() -> None:
    assert Letterbox.fit(100, 200, side=416).info.tolist() == [100, 200, 208, 416, 0, 104]


@properties
@given(height=edges, width=edges, side=sides)
def test_the_photo_lies_within_the_canvas_and_touches_two_edges(height: int, width: int, side: int) -> None:
    letterbox = Letterbox.fit(height, width, side)
    assert max(letterbox.new_height, letterbox.new_width) == side
    assert 0 <= letterbox.left <= side - letterbox.new_width
    assert 0 <= letterbox.top <= side - letterbox.new_height
    assert Letterbox.from_info(letterbox.info, side) == letterbox


@pytest.mark.parametrize(("height", "width"), [(0, 10), (10, 0), (10_000, 1), (1, 10_000)])
def test_a_photo_of_which_nothing_would_be_left_is_refused(height: int, width: int) -> None:
    with pytest.raises(ImageError, match=f"{height} x {width}"):
        Letterbox.fit(height, width)


@properties
@given(height=edges, width=edges, side=sides, seed=st.integers(0, 99))
def test_boxes_come_back_from_the_canvas_and_the_argument_is_untouched(
    height: int, width: int, side: int, seed: int
) -> None:
    letterbox = Letterbox.fit(height, width, side)
    boxes = np.random.default_rng(seed).uniform(-50, 950, (2, 3, 4)).astype(np.float32)
    before = boxes.copy()
    canvas = letterbox.to_canvas(boxes)
    assert canvas.dtype == np.float64
    np.testing.assert_allclose(letterbox.to_photo(canvas), boxes, rtol=0, atol=1e-9 * side * 50)
    np.testing.assert_array_equal(boxes, before)


def test_the_photos_corners_are_the_corners_of_its_area_on_the_canvas() -> None:
    letterbox = Letterbox.fit(height=50, width=100, side=200)  # covers 200 x 100, 50 from the top
    np.testing.assert_allclose(letterbox.to_canvas(np.array([0, 0, 100, 50])), [0, 50, 200, 150])
    np.testing.assert_allclose(letterbox.to_photo(np.array([100, 100, 200, 150])), [50, 25, 100, 50])


def test_boxes_are_cut_to_the_photo_and_one_in_the_padding_collapses() -> None:
    letterbox = Letterbox.fit(height=50, width=100, side=200)
    boxes = np.array([[-5, 0, 300, 199], [10, 60, 20, 70], [10, 5, 30, 20]], dtype=np.float32)
    clipped = letterbox.clip(boxes)
    np.testing.assert_array_equal(clipped, [[0, 50, 200, 150], [10, 60, 20, 70], [10, 50, 30, 50]])
    assert clipped.dtype == np.float32


@properties
@given(height=edges, width=edges, side=sides)
def test_around_the_photo_the_canvas_is_grey(height: int, width: int, side: int) -> None:
    letterbox = Letterbox.fit(height, width, side)
    canvas = letterbox.image(np.zeros((height, width, 3), dtype=np.uint8))
    photo = np.zeros((side, side), dtype=bool)
    photo[
        letterbox.top : letterbox.top + letterbox.new_height, letterbox.left : letterbox.left + letterbox.new_width
    ] = True
    assert canvas.shape == (side, side, 3)
    assert (canvas[photo] == 0).all()
    assert (canvas[~photo] == PADDING).all()


@pytest.mark.parametrize(("height", "width"), [(480, 640), (390, 676), (676, 390), (333, 517), (101, 640)])
@pytest.mark.parametrize("side_px", [96, 416, 1024])
def test_a_rectangle_lies_at_the_same_fractions_of_every_square(height: int, width: int, side_px: int) -> None:
    box = (width // 4, height // 3, width // 2, height * 4 // 5)
    letterbox = Letterbox.fit(height, width, side=192)
    square = letterbox.image(photo_with_rectangle(height, width, box), side_px)
    found = extent(square[..., 0].astype(int) > square[..., 1].astype(int) + 20)  # red, and not grey
    expected = letterbox.to_canvas(np.array(box)) * side_px / 192
    np.testing.assert_allclose(found, expected, atol=1.01)


@pytest.mark.parametrize(("height", "width"), [(300, 200), (211, 300)])
def test_the_square_at_another_size_is_the_canvas_itself_where_both_are_smooth(height: int, width: int) -> None:
    y, x = np.mgrid[:height, :width]
    photo = np.stack([255 * y / height, 255 * x / width, 128 + 0 * x], axis=-1).astype(np.uint8)
    letterbox = Letterbox.fit(height, width, side=192)
    square = letterbox.image(photo, 384)[1::2, 1::2].astype(int)
    rows = slice(letterbox.top + 2, letterbox.top + letterbox.new_height - 2)
    columns = slice(letterbox.left + 2, letterbox.left + letterbox.new_width - 2)
    assert np.abs(square[rows, columns] - letterbox.image(photo)[rows, columns]).max() <= 2


def test_the_photos_own_edge_is_not_mixed_with_the_grey_at_another_size() -> None:
    letterbox = Letterbox.fit(40, 80, side=192)
    square = letterbox.image(np.full((40, 80, 3), 255, dtype=np.uint8), 1024)
    assert set(np.unique(square)) == {PADDING, 255}


@properties
@given(height=st.integers(40, 300), width=st.integers(40, 300), seed=st.integers(0, 99))
def test_a_mask_comes_back_to_the_photo_within_a_pixel_of_its_edge(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    letterbox = Letterbox.fit(height, width, side=416)
    low = rng.uniform(0.05, 0.4, 2)
    high = rng.uniform(0.6, 0.95, 2)
    box = np.array([low[0] * width, low[1] * height, high[0] * width, high[1] * height])
    x0, y0, x1, y1 = letterbox.to_canvas(box)
    centres = np.arange(416) + 0.5
    canvas = ((centres > y0) & (centres < y1))[:, None] & ((centres > x0) & (centres < x1))
    mask = letterbox.mask_to_photo(canvas)
    assert (mask.shape, mask.dtype) == ((height, width), bool)
    np.testing.assert_allclose(extent(mask), box, atol=1.5)


def test_a_mask_over_the_padding_alone_leaves_nothing_in_the_photo() -> None:
    letterbox = Letterbox.fit(50, 100, side=192)
    canvas = np.zeros((192, 192), dtype=np.uint8)
    canvas[: letterbox.top] = 1
    assert not letterbox.mask_to_photo(canvas).any()
    assert letterbox.mask_to_photo(1 - canvas).all()


def test_the_first_of_the_most_confident_boxes_of_a_cell_is_taken_as_corners() -> None:
    cell = np.zeros((1, 4, 5), dtype=np.float32)
    cell[0, :, 4] = [0.1, 0.9, 0.9, 0.2]
    cell[0, 1, :4] = [50, 40, 20, 10]
    corners, objectness = best_boxes(cell)
    np.testing.assert_array_equal(corners, [[40, 35, 60, 45]])
    np.testing.assert_array_equal(objectness, np.array([0.9], dtype=np.float32))
    assert corners.dtype == np.float32
