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


@pytest.mark.parametrize(
    ("height", "width", "info"),
    [
        (480, 640, [480, 640, 312, 416, 0, 52]),  # 416 / (4/3) = 312 rows, 104 left for above and below
        (640, 480, [640, 480, 416, 312, 52, 0]),
        (427, 640, [427, 640, 277, 416, 0, 69]),  # 277.55 is cut to 277; of 139 rows left the odd one goes below
        (640, 427, [640, 427, 416, 277, 69, 0]),
        (50, 50, [50, 50, 416, 416, 0, 0]),  # a small photo is enlarged
    ],
)
def test_the_longer_edge_fills_the_canvas_and_the_photo_lies_in_the_middle(
    height: int, width: int, info: list[int]
) -> None:
    assert Letterbox.fit(height, width, side=416).info.tolist() == info


@pytest.mark.parametrize(
    ("height", "width", "info"),
    [
        (676, 390, [676, 390, 416, 239, 88, 0]),  # 416 * 390 / 676 is 240 exactly
        (297, 624, [297, 624, 197, 416, 0, 109]),  # 416 * 297 / 624 is 198 exactly
    ],
)
def test_the_order_of_the_float_operations_decides_the_last_pixel(height: int, width: int, info: list[int]) -> None:
    assert Letterbox.fit(height, width, side=416).info.tolist() == info


# A photo of 2 x 4 pixels on a canvas of 8: enlarged twice, two grey rows above and below. Half-way between two pixel
# centres lie two new ones, a quarter of the way from either: 0 100 200 40 becomes 0 25 75 125 175 160 80 40.
TWICE = np.array(
    [
        *[[127] * 8] * 2,
        [0, 25, 75, 125, 175, 160, 80, 40],
        [20, 39, 76, 114, 151, 140, 80, 50],  # three quarters of the row above, one of the row of 80
        [60, 66, 79, 91, 104, 100, 80, 70],
        [80] * 8,
        *[[127] * 8] * 2,
    ]
)


@pytest.mark.parametrize("tall", [False, True])
def test_a_photo_is_enlarged_bilinearly_in_8_bits_onto_grey_127(tall: bool) -> None:
    photo = np.array([[0, 100, 200, 40], [80, 80, 80, 80]], dtype=np.uint8)
    expected = TWICE.T if tall else TWICE
    rgb = np.stack([photo.T if tall else photo] * 3, axis=-1)
    canvas = Letterbox.fit(*rgb.shape[:2], side=8).image(rgb)
    assert canvas.dtype == np.uint8
    for channel in range(3):
        np.testing.assert_array_equal(canvas[..., channel], expected)


def test_a_photo_is_reduced_without_antialiasing() -> None:
    # To a third: the new centres fall on the middle one of three pixels, and the others do not count.
    red = 12 * np.arange(6)[:, None] + np.arange(12)
    rgb = np.stack([red, 0 * red, 255 - red], axis=-1).astype(np.uint8)
    canvas = Letterbox.fit(6, 12, side=4).image(rgb)
    assert canvas[1:3, :, 0].tolist() == [[13, 16, 19, 22], [49, 52, 55, 58]]
    assert canvas[1:3, :, 2].tolist() == [[242, 239, 236, 233], [206, 203, 200, 197]]


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


@pytest.mark.parametrize(
    ("height", "width", "box_photo", "box_canvas"),
    [
        # 480 x 640: both axes by 0.65, then 52 down.
        (480, 640, [100, 50, 300, 250], [65, 84.5, 195, 214.5]),
        (640, 480, [50, 100, 250, 300], [84.5, 65, 214.5, 195]),
        # 676 x 390 covers 239 columns from 88 on, all 416 rows: each axis has its own factor.
        (676, 390, [0, 169, 195, 676], [88, 104, 88 + 119.5, 416]),
        # 297 x 624 covers 197 rows from 109 on.
        (297, 624, [156, 0, 624, 148.5], [104, 109, 416, 109 + 98.5]),
        # Outside the photo is as good as inside: nothing is clipped.
        (480, 640, [-20, -80, 660, 480], [-13, 0, 429, 364]),
    ],
)
def test_boxes_go_to_the_canvas_and_back_by_hand(
    height: int, width: int, box_photo: list[float], box_canvas: list[float]
) -> None:
    letterbox = Letterbox.fit(height, width, side=416)
    np.testing.assert_allclose(letterbox.to_canvas(np.array(box_photo)), box_canvas, rtol=1e-12)
    np.testing.assert_allclose(letterbox.to_photo(np.array(box_canvas)), box_photo, rtol=1e-12, atol=1e-12)


def test_boxes_are_cut_to_the_photo_and_one_in_the_padding_collapses() -> None:
    letterbox = Letterbox.fit(height=50, width=100, side=200)
    boxes = np.array([[-5, 0, 300, 199], [10, 60, 20, 70], [10, 5, 30, 20]], dtype=np.float32)
    clipped = letterbox.clip(boxes)
    np.testing.assert_array_equal(clipped, [[0, 50, 200, 150], [10, 60, 20, 70], [10, 50, 30, 50]])
    assert clipped.dtype == np.float32
    upright = Letterbox.fit(height=100, width=50, side=200)
    np.testing.assert_array_equal(upright.clip(boxes[:, [1, 0, 3, 2]]), clipped[:, [1, 0, 3, 2]])


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


@pytest.mark.parametrize("tall", [False, True])
def test_a_mask_comes_back_bilinearly_in_8_bits(tall: bool) -> None:
    # A photo of 9 x 15 pixels on a canvas of 5, of which it covers rows 1 to 3: enlarged three times on its way back.
    # New centres lie on an old one or a third of a pixel off. Of the one true pixel, what is a third off on one axis
    # counts (2/3 rounds to 1), what is off on both does not (2/3 x 2/3 = 0.44). Nor does any of the padding.
    canvas = np.zeros((5, 5), dtype=np.uint8)
    canvas[[0, 4]] = 1
    canvas[2, 2] = 1
    expected = np.zeros((9, 15), dtype=bool)
    expected[4, 6:9] = expected[3:6, 7] = True
    letterbox = Letterbox.fit(*((15, 9) if tall else (9, 15)), side=5)
    mask = letterbox.mask_to_photo(canvas.T if tall else canvas)
    np.testing.assert_array_equal(mask, expected.T if tall else expected)


def test_a_mask_is_reduced_without_antialiasing() -> None:
    # A photo of 2 x 4 pixels on a canvas of 12: to a third, so every new pixel is the middle one of nine.
    canvas = np.zeros((12, 12), dtype=bool)
    canvas[4, 1] = canvas[7, 10] = True
    canvas[3:6, 3:6] = True
    canvas[4, 4] = False
    assert Letterbox.fit(2, 4, side=12).mask_to_photo(canvas).tolist() == [
        [True, False, False, False],
        [False, False, False, True],
    ]


def test_the_first_of_the_most_confident_boxes_of_a_cell_is_taken_as_corners() -> None:
    cell = np.zeros((1, 4, 5), dtype=np.float32)
    cell[0, :, 4] = [0.1, 0.9, 0.9, 0.2]
    cell[0, 1, :4] = [50, 40, 20, 10]
    corners, objectness = best_boxes(cell)
    np.testing.assert_array_equal(corners, [[40, 35, 60, 45]])
    np.testing.assert_array_equal(objectness, np.array([0.9], dtype=np.float32))
    assert corners.dtype == np.float32
