"""Photo and canvas: how a photograph becomes the padded square, and how boxes and masks come back.

Two frames. *Photo*: pixels of the file as stored, h rows and w columns. *Canvas*: a square of S pixels on which the
photo lies, resized with its aspect kept, centred, on grey 127. Boxes are x0 y0 x1 y1 unless a name says otherwise.

Source: the release of WeakMCN; the order of the float operations decides the last pixel of some sizes.
"""

from dataclasses import dataclass
from typing import Self

import cv2
import numpy as np

from .errors import ImageError

PADDING = 127
"""Grey level around the photo."""


@dataclass(frozen=True, kw_only=True)
class Letterbox:
    """Where a photo lies on the canvas."""

    height: int
    """Rows of the photo."""
    width: int
    """Columns of the photo."""
    new_height: int
    """Rows the photo covers on the canvas."""
    new_width: int
    """Columns the photo covers on the canvas."""
    left: int
    """Canvas columns left of the photo (dx)."""
    top: int
    """Canvas rows above the photo (dy)."""
    side: int
    """Edge of the canvas in pixels."""

    @classmethod
    def fit(cls, height: int, width: int, side: int = 416) -> Self:
        """The letterbox of a photo of `height` x `width`; ImageError where nothing of it would be left.

        416 * (390 / 676) comes out below 240: the order of the operations is the authors' (quirk 15).
        """
        if height < 1 or width < 1:
            raise ImageError(f"a photo of {height} x {width} pixels (rows x columns) has no content.")
        aspect = width / height
        if aspect < 1:
            new_height, new_width = side, int(side * aspect)
        else:
            new_height, new_width = int(side / aspect), side
        if new_height < 1 or new_width < 1:
            raise ImageError(
                f"a photo of {height} x {width} pixels (rows x columns) is too narrow for a canvas of {side} pixels: "
                "resized with its aspect kept, less than one pixel is left of an edge; crop it."
            )
        return cls(
            height=height,
            width=width,
            new_height=new_height,
            new_width=new_width,
            left=(side - new_width) // 2,
            top=(side - new_height) // 2,
            side=side,
        )

    @classmethod
    def from_info(cls, info: np.ndarray, side: int) -> Self:
        """From the six integers h, w, nh, nw, dx, dy."""
        height, width, new_height, new_width, left, top = (int(value) for value in info)
        return cls(
            height=height,
            width=width,
            new_height=new_height,
            new_width=new_width,
            left=left,
            top=top,
            side=side,
        )

    @property
    def info(self) -> np.ndarray:
        """int64 [6]: h, w, nh, nw, dx, dy."""
        return np.array([self.height, self.width, self.new_height, self.new_width, self.left, self.top], dtype=np.int64)

    def image(self, rgb_photo: np.ndarray, side_px: int | None = None) -> np.ndarray:
        """uint8 [h, w, 3] -> uint8 [s, s, 3], the canvas with the photo on it.

        With another `side_px` than the canvas's own, the square is drawn straight from the photo, at its own
        resolution, and the photo covers the same fractions of it; a box then differs from the canvas's by the factor
        side_px / side.
        """
        if rgb_photo.shape != (self.height, self.width, 3):
            raise ImageError(f"a photo of {rgb_photo.shape}, this letterbox is for {(self.height, self.width, 3)}.")
        if side_px is None or side_px == self.side:
            square = np.full((self.side, self.side, 3), PADDING, dtype=np.uint8)
            rows, columns = self._area()
            square[rows, columns] = cv2.resize(rgb_photo, (self.new_width, self.new_height))
            return square
        return self._image_at(rgb_photo, side_px)

    def _image_at(self, rgb_photo: np.ndarray, side_px: int) -> np.ndarray:
        zoom = side_px / self.side
        scale_x, scale_y = zoom * self.new_width / self.width, zoom * self.new_height / self.height
        # Pixel centres sit at half integers: photo x + 0.5 goes to zoom * left + scale * (x + 0.5).
        to_square = np.array(
            [
                [scale_x, 0, zoom * self.left + 0.5 * scale_x - 0.5],
                [0, scale_y, zoom * self.top + 0.5 * scale_y - 0.5],
            ]
        )
        square = cv2.warpAffine(
            rgb_photo, to_square, (side_px, side_px), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        # Replicated and then painted over: blending with the border would darken the photo's own edge.
        centres = (np.arange(side_px) + 0.5) / zoom
        square[(centres < self.top) | (centres >= self.top + self.new_height)] = PADDING
        square[:, (centres < self.left) | (centres >= self.left + self.new_width)] = PADDING
        return square

    def to_photo(self, boxes_canvas: np.ndarray) -> np.ndarray:
        """[..., 4] x0 y0 x1 y1 on the canvas -> float64 [..., 4] in the photo, neither clipped nor rounded."""
        boxes = np.asarray(boxes_canvas, dtype=np.float64)
        return (boxes - self._offset()) / self._size_canvas() * self._size_photo()

    def to_canvas(self, boxes_photo: np.ndarray) -> np.ndarray:
        """[..., 4] x0 y0 x1 y1 in the photo -> float64 [..., 4] on the canvas."""
        boxes = np.asarray(boxes_photo, dtype=np.float64)
        return boxes / self._size_photo() * self._size_canvas() + self._offset()

    def clip(self, boxes_canvas: np.ndarray) -> np.ndarray:
        """[..., 4] on the canvas -> the same dtype, cut to the photo's area; a box wholly outside collapses."""
        boxes = np.asarray(boxes_canvas)
        low = self._offset().astype(boxes.dtype)
        high = (self._offset() + self._size_canvas()).astype(boxes.dtype)
        return np.clip(boxes, low, high)

    def mask_to_photo(self, mask_canvas: np.ndarray) -> np.ndarray:
        """bool or 0/1 [S, S] -> bool [h, w]: the photo's area, resized bilinearly in 8 bits, all above 0 (quirk 16)."""
        if mask_canvas.shape != (self.side, self.side):
            raise ValueError(f"a mask of {mask_canvas.shape}, the canvas is {self.side} x {self.side}")
        rows, columns = self._area()
        area = np.ascontiguousarray(mask_canvas[rows, columns]).astype(np.uint8)
        return cv2.resize(area, (self.width, self.height), interpolation=cv2.INTER_LINEAR) > 0

    def _area(self) -> tuple[slice, slice]:
        return slice(self.top, self.top + self.new_height), slice(self.left, self.left + self.new_width)

    def _offset(self) -> np.ndarray:
        return np.array([self.left, self.top, self.left, self.top], dtype=np.float64)

    def _size_canvas(self) -> np.ndarray:
        return np.array([self.new_width, self.new_height] * 2, dtype=np.float64)

    def _size_photo(self) -> np.ndarray:
        return np.array([self.width, self.height] * 2, dtype=np.float64)


def best_boxes(boxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The most confident of each cell's four boxes, the first on ties: x0 y0 x1 y1 f32 [..., 4], objectness f32 [...].

    boxes: [..., 4, 5], cx cy w h objectness, canvas pixels, unclipped. Arithmetic in float32, as the detector's own.
    """
    boxes = np.asarray(boxes, dtype=np.float32)
    best = boxes[..., 4].argmax(axis=-1)  # [...]
    chosen = np.take_along_axis(boxes, best[..., None, None], axis=-2)[..., 0, :]  # [..., 5]
    centre, size = chosen[..., :2], chosen[..., 2:4]
    low = centre - size / np.float32(2)
    return np.concatenate([low, low + size], axis=-1), chosen[..., 4]
