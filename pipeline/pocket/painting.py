"""How the pocket world is painted: grounds, patterned things, and what a camera makes of them.

While it is painted a photo is planar, float32 [3, H, W] in 0..255; only the camera returns uint8 [H, W, 3].
"""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

T = TypeVar("T")

_HUES = {"red": 0, "orange": 27, "yellow": 54, "green": 122, "cyan": 183, "blue": 226, "purple": 274, "pink": 326}
"""Degrees."""
_TILE_PX = 64
"""Edge of one period of a pattern, before it is scaled."""
_GRAIN_PX = 512
_LONGEST_PX = 320
"""No photo has a longer side."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sketch:
    """A thing before it is painted: its words and the coverage of its patch of the photo."""

    shape: str
    colour: str
    texture: str
    size: str
    diameter: float
    """Frame units."""
    angle: float
    """Radians."""
    coverage: np.ndarray
    """float32 [p, p], share of each pixel that the shape covers."""
    left: int
    top: int
    """Photo pixel of the patch's first pixel; may be negative."""

    def window(self, height: int, width: int) -> tuple[slice, slice, slice, slice]:
        """Rows and columns of the photo, then rows and columns of the patch, where the two meet."""
        side = len(self.coverage)
        top, bottom = max(self.top, 0), min(self.top + side, height)
        left, right = max(self.left, 0), min(self.left + side, width)
        return (
            slice(top, bottom),
            slice(left, right),
            slice(top - self.top, bottom - self.top),
            slice(left - self.left, right - self.left),
        )


def pick(rng: np.random.Generator, words: Sequence[T]) -> T:
    """One of them, each as likely."""
    return words[int(rng.integers(len(words)))]


@functools.cache
def _tile(kind: str) -> np.ndarray:
    """One period of a pattern, float32 [64, 64]: 1 where the second colour is."""
    v, u = np.mgrid[0:_TILE_PX, 0:_TILE_PX] / _TILE_PX
    if kind == "striped":
        tile = np.abs(u - 0.5) < 0.21
    elif kind == "dotted":
        tile = np.hypot(u - 0.5, v - 0.5) < 0.31
    else:
        tile = (u < 0.5) == (v < 0.5)
    return tile.astype(np.float32)


@functools.cache
def _grain() -> np.ndarray:
    """A large plate of sensor noise of deviation 1, float32 [3, 512, 512]; photos show random parts of it."""
    return np.random.default_rng(0).standard_normal((3, _GRAIN_PX, _GRAIN_PX), dtype=np.float32)


def _pattern(kind: str, height: int, width: int, period_px: float, angle: float, phase: np.ndarray) -> np.ndarray:
    """A repeated pattern, turned and scaled, with soft edges: float32 [h, w] in 0..1."""
    zoom = _TILE_PX / period_px
    cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
    to_tile = np.array([[cos, sin, phase[0]], [-sin, cos, phase[1]]])
    sharp = cv2.warpAffine(
        _tile(kind),
        to_tile,
        (width, height),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_WRAP,
    )
    return cv2.blur(sharp, (2, 2))


def _clouds(rng: np.random.Generator, height: int, width: int, cells: int) -> np.ndarray:
    """Smooth random blotches, float32 [h, w], mean about 0, within about -1..1."""
    coarse = rng.uniform(-1, 1, (max(2, round(cells * height / max(height, width))), cells)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def _hsv(hue: float, saturation: float, value: float) -> np.ndarray:
    """float32 [3, 1, 1] RGB in 0..255 of a hue in degrees."""
    sector = (np.array([5.0, 3.0, 1.0]) + hue / 60) % 6
    ramp = np.clip(np.minimum(sector, 4 - sector), 0, 1)
    return (255 * value * (1 - saturation * ramp)).astype(np.float32)[:, None, None]


def paint_ground(rng: np.random.Generator, ground: str, height: int, width: int, unit_px: float) -> np.ndarray:
    """The photo before anything stands on it: float32 [3, H, W], 0..255."""
    value = float(rng.uniform(0.35, 0.82))
    angle, phase = float(rng.uniform(0, math.pi)), rng.uniform(0, _TILE_PX, 2)
    rows, cols = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
    match ground:
        case "sand":
            base, strength = _hsv(rng.uniform(32, 48), rng.uniform(0.15, 0.33), value), 0.11
            relief = 0.6 * _clouds(rng, height, width, 90) + 0.4 * _clouds(rng, height, width, 8)
        case "stone":
            base, strength = _hsv(rng.uniform(0, 360), rng.uniform(0.0, 0.08), value), 0.16
            relief = 0.6 * _clouds(rng, height, width, 7) + 0.4 * _clouds(rng, height, width, 30)
        case "cloth":
            base, strength = _hsv(rng.uniform(0, 360), rng.uniform(0.05, 0.22), value), 0.10
            relief = 2 * _pattern("striped", height, width, rng.uniform(14, 30) * unit_px, angle, phase) - 1
        case "tiles":
            base, strength = _hsv(rng.uniform(0, 360), rng.uniform(0.03, 0.18), value), 0.09
            relief = 2 * _pattern("checked", height, width, rng.uniform(34, 64) * unit_px, angle, phase) - 1
        case "sky":
            base, strength = _hsv(rng.uniform(195, 235), rng.uniform(0.10, 0.28), value), 0.22
            relief = (math.sin(angle) * rows + math.cos(angle) * cols) * 0.7 + 0.3 * _clouds(rng, height, width, 6)
        case "wood":
            base, strength = _hsv(rng.uniform(18, 34), rng.uniform(0.22, 0.38), value), 0.13
            grain = _clouds(rng, height, width, 5) * 3 + (rows if angle < math.pi / 2 else cols) * rng.uniform(12, 22)
            relief = 0.75 * np.sin(grain) + 0.25 * _clouds(rng, height, width, 60)
        case _:
            raise ValueError(f"no ground '{ground}'")
    return base * (1 + np.float32(strength) * relief.astype(np.float32))


def paint_thing(rng: np.random.Generator, photo: np.ndarray, sketch: Sketch, unit_px: float) -> None:
    """Paint one thing over what `photo` (float32 [3, H, W], changed in place) shows so far."""
    hue = _HUES[sketch.colour] + rng.uniform(-6, 6)
    pale = sketch.colour == "pink"
    saturation = rng.uniform(0.40, 0.55) if pale else rng.uniform(0.72, 0.98)
    # A dark yellow is olive and a dark orange brown: those, and pink, are bright or they are not themselves.
    value = rng.uniform(0.88, 1.0) if sketch.colour in ("yellow", "orange", "pink") else rng.uniform(0.74, 0.98)
    colour = _hsv(hue, saturation, value)
    side = len(sketch.coverage)
    paint = colour
    if sketch.texture != "plain":
        second = _hsv(hue, 0.08, 0.97) if rng.random() < 0.4 else _hsv(hue, saturation, 0.42 * value)
        period = rng.uniform(7.5, 9.5) if sketch.texture == "striped" else rng.uniform(9.5, 12.0)
        period_px = period * unit_px * math.sqrt(sketch.diameter / 45)
        angle = sketch.angle + (pick(rng, (0.0, 0.25, 0.5)) * math.pi if sketch.texture == "striped" else 0.0)
        mix = _pattern(sketch.texture, side, side, period_px, angle, rng.uniform(0, _TILE_PX, 2))
        paint = colour + mix * (second - colour)
    lean = rng.uniform(-0.16, 0.16, 2)
    ramp = np.linspace(-1, 1, side, dtype=np.float32)
    shade = 1 + np.float32(lean[0]) * ramp + np.float32(lean[1]) * ramp[:, None]
    rows, cols, patch_rows, patch_cols = sketch.window(*photo.shape[1:])
    here = photo[:, rows, cols]
    here += sketch.coverage[patch_rows, patch_cols] * ((paint * shade)[:, patch_rows, patch_cols] - here)


def expose(rng: np.random.Generator, painted: np.ndarray) -> np.ndarray:
    """What a camera makes of it: uneven light, a colour cast, a little blur and noise. uint8 [H, W, 3]."""
    height, width = painted.shape[1:]
    light = cv2.resize(rng.uniform(0.84, 1.12, (2, 2)).astype(np.float32), (width, height))
    cast = rng.uniform(0.96, 1.04, (3, 1, 1)).astype(np.float32)
    sigma = float(rng.uniform(0.3, 0.9))
    top, left = rng.integers(0, _GRAIN_PX - _LONGEST_PX, 2, endpoint=True)
    photo = painted * light
    photo *= cast
    grain = _grain()[:, top : top + height, left : left + width]
    photo += np.float32(rng.uniform(2.0, 7.0)) * grain
    # The blur comes last: it is the lens and the camera's own smoothing of noise at once.
    planes = [cv2.GaussianBlur(plane, (3, 3), sigma) for plane in photo]
    return cv2.merge([cv2.convertScaleAbs(np.maximum(plane, 0)) for plane in planes])
