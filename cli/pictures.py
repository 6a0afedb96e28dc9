"""Pictures of answers: a photo with its expression, the true box and mask in green, the predicted ones in yellow.

Everything is handed in and out in the photo frame: images uint8 RGB [h, w, 3], boxes x0 y0 x1 y1, masks bool [h, w].
Marks are drawn at twice the final size and reduced, which smooths their edges.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ..shards.atomic import finished_file

Colour = tuple[int, int, int]

GREEN: Colour = (30, 200, 90)
YELLOW: Colour = (255, 210, 0)
INK: Colour = (28, 30, 34)
FAINT: Colour = (110, 114, 122)
PAPER: Colour = (255, 255, 255)
PANEL: Colour = (240, 241, 243)
RIGHT: Colour = (40, 105, 215)
WRONG: Colour = (205, 60, 50)

SMOOTHING = 2
SIDE_PER_LINE_PX = 240
"""A large picture is shown smaller than it is: of its longer side so much for a pixel of the lines."""
PIXELS_SEEN = 12
"""A photo enlarged by more shows its pixels, and its masks are drawn as they are."""
MARGIN_PX = 32
GAP_PX = 24
SHEET_COLUMNS = 4
ANSWER_COLUMNS = 3
CELL_WIDTH_PX = 340
CELL_PHOTO_PX = 300
"""Height of a cell's photo area."""
CAPTION_LINES = 2
NOTE_LINES = 3


@dataclass(frozen=True, kw_only=True, eq=False)
class Marks:
    """What one colour outlines on a photo."""

    box: np.ndarray | None
    """x0 y0 x1 y1, photo pixels."""
    mask: np.ndarray | None
    """bool [h, w]."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Answer:
    """One cell of a picture."""

    rgb: np.ndarray
    """uint8 [h, w, 3]."""
    expression: str
    note: str
    """What is said under the expression."""
    predicted: Marks
    true: Marks | None = None
    right: bool | None = None
    """Whether the note's dot is blue or red; None draws no dot."""


def save_picture(picture: Image.Image, path: Path) -> None:
    """Publish the picture as a PNG."""
    with finished_file(path) as scratch:
        picture.save(scratch, format="PNG")


def save_mask(mask: np.ndarray, path: Path) -> None:
    """Publish a mask bool [h, w] as a PNG: 255 inside, 0 outside."""
    save_picture(Image.fromarray(mask.astype(np.uint8) * 255), path)


def contact_sheet(answers: Sequence[Answer], title: str, subtitle: str) -> Image.Image:
    """Answers in rows of four, with a heading and a legend."""
    grid = _grid(_cells(answers, CELL_WIDTH_PX, CELL_PHOTO_PX), SHEET_COLUMNS)
    head = 84
    sheet = Image.new("RGB", (max(grid.width, 860) + 2 * MARGIN_PX, grid.height + head + 2 * MARGIN_PX), PAPER)
    sheet.paste(grid, (MARGIN_PX, MARGIN_PX + head))
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN_PX, MARGIN_PX), title, INK, _font(26))
    draw.text((MARGIN_PX, MARGIN_PX + 40), subtitle, FAINT, _font(16))
    _legend(draw, right=sheet.width - MARGIN_PX, top=MARGIN_PX + 6)
    return sheet


def answer_picture(answers: Sequence[Answer], longest_px: int = 720) -> Image.Image:
    """Answers on one photo, each on a large copy of its own, in rows of three: what `predict` writes."""
    height, width = answers[0].rgb.shape[:2]
    scale = longest_px / max(height, width)
    cell_width, photo_height = max(round(width * scale), 320), round(height * scale)
    grid = _grid(_cells(answers, cell_width, photo_height), ANSWER_COLUMNS)
    picture = Image.new("RGB", (grid.width + 2 * GAP_PX, grid.height + 2 * GAP_PX), PAPER)
    picture.paste(grid, (GAP_PX, GAP_PX))
    return picture


def _grid(cells: Sequence[Image.Image], columns: int) -> Image.Image:
    """Cells of one size in rows; an image without area for none."""
    if not cells:
        return Image.new("RGB", (0, 0))
    step_x, step_y = cells[0].width + GAP_PX, cells[0].height + GAP_PX
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    grid = Image.new("RGB", (columns * step_x - GAP_PX, rows * step_y - GAP_PX), PAPER)
    for place, each in enumerate(cells):
        row, column = divmod(place, columns)
        grid.paste(each, (column * step_x, row * step_y))
    return grid


def _cells(answers: Sequence[Answer], width_px: int, photo_px: int) -> list[Image.Image]:
    """Of one size: as high as the longest expression and the longest note need."""
    lines = max([1, *(len(_expression(answer, width_px)) for answer in answers)])
    note_lines = max([1, *(len(_note(answer, width_px)) for answer in answers)])
    return [cell(answer, width_px, photo_px, lines, note_lines) for answer in answers]


def _expression(answer: Answer, width_px: int) -> list[str]:
    return _wrapped(f"“{answer.expression}”", _font(18), width_px, CAPTION_LINES)


def _note(answer: Answer, width_px: int) -> list[str]:
    return _wrapped(answer.note, _font(15), width_px - _dot_px(answer), NOTE_LINES)


def _dot_px(answer: Answer) -> int:
    return 0 if answer.right is None else 18


def cell(
    answer: Answer, width_px: int, photo_px: int, lines: int = CAPTION_LINES, note_lines: int = NOTE_LINES
) -> Image.Image:
    """The photo fitted into `width_px` x `photo_px`, below it expression and note, with room for so many lines."""
    drawn = Image.new("RGB", (width_px, photo_px + 10 + 24 * lines + 4 + 22 * note_lines), PAPER)
    drawn.paste(PANEL, (0, 0, width_px, photo_px))
    photo = marked_photo(answer.rgb, answer.true, answer.predicted, width_px, photo_px)
    drawn.paste(photo, ((width_px - photo.width) // 2, (photo_px - photo.height) // 2))
    draw = ImageDraw.Draw(drawn)
    top = photo_px + 10
    for line in _expression(answer, width_px):
        draw.text((0, top), line, INK, _font(18))
        top += 24
    if answer.right is not None:
        _dot(draw, 5, top + 10, RIGHT if answer.right else WRONG)
    for line in _note(answer, width_px):
        draw.text((_dot_px(answer), top + 2), line, FAINT, _font(15))
        top += 22
    return drawn


def marked_photo(rgb: np.ndarray, true: Marks | None, predicted: Marks, width_px: int, height_px: int) -> Image.Image:
    """The photo, as large as fits, with the marks.

    The truth is the wider line below the prediction; where there is none, all but the predicted mask is dimmed, if
    it is not empty.
    """
    scale = min(width_px / rgb.shape[1], height_px / rgb.shape[0])
    size = (max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale)))
    large = (size[0] * SMOOTHING, size[1] * SMOOTHING)
    canvas = Image.fromarray(rgb).resize(large, Image.Resampling.LANCZOS)
    thin_px = max(2, round(max(size) / SIDE_PER_LINE_PX))
    layers = [*([(true, GREEN, 2 * thin_px)] if true else []), (predicted, YELLOW, thin_px)]
    masks = [None if marks.mask is None else _resized(marks.mask, large) for marks, _, _ in layers]
    if true is None and masks[0] is not None and masks[0].getbbox():
        canvas = Image.composite(canvas, Image.blend(canvas, Image.new("RGB", large, INK), 0.55), masks[0])
    for (marks, colour, line_px), mask in zip(layers, masks, strict=True):
        if mask is not None:
            _outline(canvas, mask, colour, line_px * SMOOTHING)
        if marks.box is not None:
            _frame(canvas, marks.box * scale * SMOOTHING, colour, line_px * SMOOTHING)
    return canvas.resize(size, Image.Resampling.BOX)


def _resized(mask: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The mask at another size, 0 or 255; the steps of its pixels are rounded off where they are small."""
    if size[0] > PIXELS_SEEN * mask.shape[1]:
        return Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.NEAREST)
    grey = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    soft = grey.filter(ImageFilter.GaussianBlur(size[0] / mask.shape[1] / 2))
    return soft.point([0] * 128 + [255] * 128)


def _outline(canvas: Image.Image, mask: Image.Image, colour: Colour, line_px: int) -> None:
    """A line along the inside of the mask's edge, in a thin dark one that keeps it visible on any ground."""
    inside = np.asarray(mask)
    for shade, extra in ((INK, 1), (colour, 0)):
        outer = cv2.dilate(inside, _square(extra))
        inner = cv2.erode(inside, _square(line_px + extra))
        canvas.paste(shade, mask=Image.fromarray(np.where(inner > 0, 0, outer).astype(np.uint8)))


def _square(reach_px: int) -> np.ndarray:
    return np.ones((2 * reach_px + 1, 2 * reach_px + 1), np.uint8)


def _frame(canvas: Image.Image, box: np.ndarray, colour: Colour, line_px: int) -> None:
    """A rectangle whose line is centred on the box's edge, kept inside the picture."""
    half = line_px // 2
    low = np.clip(np.round(box[:2]), half + 2, np.array(canvas.size) - half - 3)
    high = np.clip(np.round(box[2:]), low + 1, np.array(canvas.size) - half - 3)
    draw = ImageDraw.Draw(canvas)
    for shade, extra in ((INK, 2), (colour, 0)):
        corners = [*(low - half - extra), *(high + half + extra)]
        draw.rectangle([int(corner) for corner in corners], outline=shade, width=line_px + 2 * extra)


def _legend(draw: ImageDraw.ImageDraw, right: int, top: int) -> None:
    """What the colours of outlines and dots say."""
    for text, colour in (("wrong box", WRONG), ("right box", RIGHT), ("predicted", YELLOW), ("true", GREEN)):
        right -= int(draw.textlength(text, _font(16)))
        draw.text((right, top), text, INK, _font(16))
        if colour in (RIGHT, WRONG):
            right -= 17
            _dot(draw, right + 4, top + 11, colour)
        else:
            right -= 26
            draw.rectangle((right, top + 2, right + 17, top + 17), outline=INK)
            draw.rectangle((right + 1, top + 3, right + 16, top + 16), outline=colour, width=4)
        right -= 22


def _dot(draw: ImageDraw.ImageDraw, x: int, y: int, colour: Colour) -> None:
    draw.ellipse((x - 4, y - 4, x + 5, y + 5), fill=colour)


def _wrapped(text: str, font: ImageFont.FreeTypeFont, width_px: int, lines: int) -> list[str]:
    """At most `lines` lines no wider than `width_px`; what does not fit ends in an ellipsis."""
    words, found = text.split(), []
    while words and len(found) < lines:
        count = len(words)
        while count > 1 and font.getlength(" ".join(words[:count])) > width_px:
            count -= 1
        line, words = " ".join(words[:count]), words[count:]
        is_cut = bool(words) and len(found) == lines - 1
        while line and font.getlength(line + "…" * is_cut) > width_px:
            line, is_cut = line[:-1], True
        found.append(line.rstrip() + "…" * is_cut)
    return found


@cache
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: the same picture on every machine."""
    font = ImageFont.load_default(size_px)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
