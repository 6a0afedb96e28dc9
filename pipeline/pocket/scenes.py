"""The pocket world's photographs: textured grounds with three to eight things on them.

A scene is a pure function of the random generator it is given, and carries its own truth: for every thing the exact
mask of what is visible of it, the tight box around that, and the words that hold for it.

    image   uint8 [H, W, 3]  RGB, long side 208 to 320 px, long over short side up to 1.6
    mask    bool  [H, W]     the visible part of one thing, photo pixels
    box     x y w h          tight around `mask`, photo pixels

Sizes are chosen in *frame units*: 1/192 of the photo's long side, one pixel once the photo fills a canvas of 192 px.
So a large thing is large in every photo, whatever its pixel count.

Nothing is cheap to tell apart: grounds are muted but textured, light and exposure vary, things overlap, most of them
share their shape with another one and many their colour.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .outlines import cover
from .painting import Sketch, expose, paint_ground, paint_thing, pick

SHAPES = ("circle", "square", "triangle", "star", "ring", "cross", "heart", "crescent")
"""Categories of the world; the category id of a shape is its place here plus one."""
ROUND_SHAPES = ("circle", "ring", "heart", "crescent")
"""Shapes with a curved outline; the others have straight edges only."""
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
TEXTURES = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "medium", "large")
GROUNDS = ("sand", "stone", "cloth", "tiles", "sky", "wood")

FRAME_UNITS = 192
"""Frame units along the long side of every photo."""
DIAMETERS = {"small": (25.0, 33.0), "medium": (40.0, 51.0), "large": (60.0, 76.0)}
"""Range of diameters of each size, frame units; the gaps keep the words true."""
MIN_DISTANCE = 30.0
"""Between the centres of any two things, frame units."""
MIN_VISIBLE = 0.45
"""Share of each thing's area that no other thing hides."""
MIN_VISIBLE_AREA = 150.0
"""Square frame units that are visible of each thing."""

_ASPECTS = (3 / 4, 1.0, 4 / 3, 3 / 2, 2 / 3, 16 / 10)
_DOMAINS = {"world": 1, "pretrain": 2}


@dataclass(frozen=True, kw_only=True, eq=False)
class Thing:
    """One object of a scene; positions are photo pixels."""

    shape: str
    colour: str
    texture: str
    size: str
    diameter: float
    """Nominal diameter in frame units, before anything hides a part."""
    box: tuple[float, float, float, float]
    """x y w h, tight around `mask`."""
    mask: np.ndarray
    """bool [H, W], the visible part."""
    area: int
    """Pixels of `mask`."""
    hides: Mapping[int, float]
    """For each earlier thing that this one lies over: the share of its area that this one took from sight."""

    @property
    def centre(self) -> tuple[float, float]:
        """x y of the middle of the box."""
        x, y, w, h = self.box
        return x + w / 2, y + h / 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A photograph and all that is in it, in the order it was painted: a later thing hides an earlier one."""

    image: np.ndarray
    """uint8 [H, W, 3], RGB."""
    things: tuple[Thing, ...]
    ground: str

    @property
    def frame_unit_px(self) -> float:
        """Photo pixels of one frame unit."""
        return max(self.image.shape[:2]) / FRAME_UNITS


def scene_rng(domain: Literal["world", "pretrain"], seed: int, index: int) -> np.random.Generator:
    """The generator of one scene; no scene of one domain is a scene of the other, whatever their seeds."""
    return np.random.default_rng(np.random.SeedSequence([_DOMAINS[domain], seed, index]))


def draw_scene(rng: np.random.Generator) -> Scene:
    """Draw one photograph and keep what is true of it."""
    height, width = _photo_size(rng)
    unit_px = max(height, width) / FRAME_UNITS
    table = _arrange(rng, height, width, unit_px)
    ground = pick(rng, GROUNDS)
    photo = paint_ground(rng, ground, height, width, unit_px)
    for sketch in table.sketches:
        paint_thing(rng, photo, sketch, unit_px)
    return Scene(image=expose(rng, photo), things=table.things(), ground=ground)


def _photo_size(rng: np.random.Generator) -> tuple[int, int]:
    """Height and width in pixels."""
    long_px = int(rng.integers(208, 321))
    aspect = pick(rng, _ASPECTS) * float(rng.uniform(0.97, 1.03))
    width_over_height = min(max(aspect, 1 / 1.6), 1.6)
    if width_over_height >= 1:
        return round(long_px / width_over_height), long_px
    return long_px, round(long_px * width_over_height)


def _arrange(rng: np.random.Generator, height: int, width: int, unit_px: float) -> "_Table":
    """Choose things and lay them down one after the other; a thing that finds no place is left out."""
    while True:
        table = _Table(height, width, unit_px)
        for shape, colour, texture, size in _choose_words(rng, count=int(rng.integers(3, 9))):
            diameter = float(rng.uniform(*DIAMETERS[size]))
            # A crescent may lie any way, the others stand more or less upright.
            angle = float(rng.uniform(-math.pi, math.pi) if shape == "crescent" else rng.uniform(-0.5, 0.5))
            coverage = cover(shape, diameter * unit_px, angle, rng.uniform(-0.5, 0.5, 2))
            for _ in range(24):
                x, y = table.propose(rng, diameter * unit_px)
                if table.is_crowded(x, y, diameter * unit_px):
                    continue
                sketch = Sketch(
                    shape=shape,
                    colour=colour,
                    texture=texture,
                    size=size,
                    diameter=diameter,
                    angle=angle,
                    coverage=coverage,
                    left=round(x) - len(coverage) // 2,
                    top=round(y) - len(coverage) // 2,
                )
                if table.lay(sketch, (x, y, diameter * unit_px)):
                    break
        if len(table.sketches) >= 3:
            return table


def _choose_words(rng: np.random.Generator, count: int) -> list[tuple[str, str, str, str]]:
    """Shape, colour, texture and size of each thing; shapes come in groups, as cups or sheep do in photographs."""
    # A crowd of large things would not fit: the more there are, the smaller they tend to be.
    large = max(0.12, 0.40 - 0.045 * count)
    small = min(0.45, 0.16 + 0.045 * count)
    chosen: list[tuple[str, str, str, str]] = []
    for place in range(count):
        repeat = chosen[int(rng.integers(place))] if place else None
        shape = repeat[0] if repeat and rng.random() < 0.45 else pick(rng, SHAPES)
        colour = repeat[1] if repeat and rng.random() < 0.15 else pick(rng, COLOURS)
        texture = "plain" if rng.random() < 0.46 else pick(rng, TEXTURES[1:])
        lot = rng.random()
        size = "small" if lot < small else "large" if lot < small + large else "medium"
        chosen.append((shape, colour, texture, size))
    return chosen


class _Table:
    """What lies where while a scene is laid out; lengths are photo pixels."""

    def __init__(self, height: int, width: int, unit_px: float) -> None:
        self.sketches: list[Sketch] = []
        self._unit_px = unit_px
        self._owner = np.full((height, width), -1, np.int8)
        """int8 [H, W]: which thing is seen at a pixel, -1 where the ground is."""
        self._spots: list[tuple[float, float, float]] = []
        """x, y, diameter of each thing."""
        self._areas: list[int] = []
        """Pixels of each thing, hidden or not."""
        self._hides: list[dict[int, float]] = []

    def propose(self, rng: np.random.Generator, diameter_px: float) -> tuple[float, float]:
        """A centre inside the photo, now and then close to an earlier thing, so that things overlap."""
        height, width = self._owner.shape
        margin = 0.46 * diameter_px
        if self._spots and rng.random() < 0.3:
            x, y, other_px = self._spots[int(rng.integers(len(self._spots)))]
            angle, near = rng.uniform(0, 2 * math.pi), rng.uniform(0.3, 0.5) * (diameter_px + other_px)
            x, y = x + near * math.cos(angle), y + near * math.sin(angle)
            return float(np.clip(x, margin, width - margin)), float(np.clip(y, margin, height - margin))
        return float(rng.uniform(margin, width - margin)), float(rng.uniform(margin, height - margin))

    def is_crowded(self, x: float, y: float, diameter_px: float) -> bool:
        """Whether a thing centred here would stand too close to the centre of another."""
        least = MIN_DISTANCE * self._unit_px
        return any(
            math.hypot(x - other_x, y - other_y) < max(least, 0.3 * (diameter_px + other_px))
            for other_x, other_y, other_px in self._spots
        )

    def lay(self, sketch: Sketch, spot: tuple[float, float, float]) -> bool:
        """Put the thing on top of all others; False, and nothing done, where too little of one would stay visible."""
        rows, cols, patch_rows, patch_cols = sketch.window(*self._owner.shape)
        covers = sketch.coverage[patch_rows, patch_cols] >= 0.5
        place = len(self.sketches)
        least = MIN_VISIBLE_AREA * self._unit_px**2
        below = self._owner[rows, cols]
        hidden = np.bincount(below[covers] + 1, minlength=place + 1)[1:]
        for other in np.flatnonzero(hidden):
            left = np.count_nonzero(self._owner == other) - hidden[other]
            if left < max(MIN_VISIBLE * self._areas[other], least):
                return False
        area = int(np.count_nonzero(covers))
        if area < least:
            return False
        self._hides.append({int(other): float(hidden[other] / self._areas[other]) for other in np.flatnonzero(hidden)})
        below[covers] = place
        self.sketches.append(sketch)
        self._spots.append(spot)
        self._areas.append(area)
        return True

    def things(self) -> tuple[Thing, ...]:
        """What is seen of each, in painting order."""
        return tuple(self._thing(place) for place in range(len(self.sketches)))

    def _thing(self, place: int) -> Thing:
        sketch, mask = self.sketches[place], self._owner == place
        cols, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
        return Thing(
            shape=sketch.shape,
            colour=sketch.colour,
            texture=sketch.texture,
            size=sketch.size,
            diameter=sketch.diameter,
            box=(float(cols[0]), float(rows[0]), float(cols[-1] - cols[0] + 1), float(rows[-1] - rows[0] + 1)),
            mask=mask,
            area=int(np.count_nonzero(mask)),
            hides=self._hides[place],
        )
