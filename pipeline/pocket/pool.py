"""A pool of scenes in memory for pretraining the pocket encoders; none of them is ever part of a data set.

canvases   uint8 [n, S, S, 3]    letterboxed photographs, after a JPEG round trip
boxes      n arrays float32 [m, 4]   x0 y0 x1 y1 of what is visible of each thing, canvas pixels
shapes     n arrays int64 [m]        index into SHAPES
masks      n arrays uint8 [m, S, S/8]  visible parts, bits packed along the last axis
"""

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from ...shards.geometry import Letterbox
from .scenes import SHAPES, Scene, draw_scene, scene_rng


@dataclass(frozen=True, kw_only=True)
class Pool:
    """Scenes of the `pretrain` domain."""

    canvases: np.ndarray
    boxes: list[np.ndarray]
    shapes: list[np.ndarray]
    masks: list[np.ndarray]
    captions: list[str]
    """What `caption` says of each scene; empty without one."""

    def __len__(self) -> int:
        return len(self.canvases)

    def unpacked(self, index: int) -> np.ndarray:
        """Masks of one scene: bool [m, S, S]."""
        return np.unpackbits(self.masks[index], axis=-1).astype(bool)


def draw_pool(
    count: int,
    side_px: int,
    *,
    seed: int,
    first: int = 0,
    caption: Callable[[Scene, np.random.Generator], str] | None = None,
) -> Pool:
    """`count` scenes of the pretraining domain on canvases of `side_px`, starting at scene `first`."""
    canvases = np.empty((count, side_px, side_px, 3), np.uint8)
    boxes, shapes, masks, captions = [], [], [], []
    for i in range(count):
        rng = scene_rng("pretrain", seed, first + i)
        scene = draw_scene(rng)
        photo = jpeg_round_trip(scene.image)
        letterbox = Letterbox.fit(*photo.shape[:2], side=side_px)
        canvases[i] = letterbox.image(photo)
        corners = np.array([thing.box for thing in scene.things], np.float64)
        corners[:, 2:] += corners[:, :2]
        boxes.append(letterbox.to_canvas(corners).astype(np.float32))
        shapes.append(np.array([SHAPES.index(thing.shape) for thing in scene.things]))
        masks.append(np.packbits(_on_canvas(letterbox, [thing.mask for thing in scene.things]), axis=-1))
        if caption is not None:
            captions.append(caption(scene, rng))
    return Pool(canvases=canvases, boxes=boxes, shapes=shapes, masks=masks, captions=captions)


def jpeg_round_trip(rgb: np.ndarray, quality: int = 90) -> np.ndarray:
    """The photograph as it would be read back from a JPEG file: uint8 [H, W, 3]."""
    _, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    read = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert read is not None
    return cv2.cvtColor(read, cv2.COLOR_BGR2RGB)


def _on_canvas(letterbox: Letterbox, masks: list[np.ndarray]) -> np.ndarray:
    """Photo masks drawn on the canvas: bool [m, S, S]."""
    side = letterbox.side
    drawn = np.zeros((len(masks), side, side), bool)
    size = (letterbox.new_width, letterbox.new_height)
    rows = slice(letterbox.top, letterbox.top + letterbox.new_height)
    columns = slice(letterbox.left, letterbox.left + letterbox.new_width)
    for canvas, mask in zip(drawn, masks, strict=True):
        canvas[rows, columns] = cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_LINEAR) > 0.5
    return drawn
