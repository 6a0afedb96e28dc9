"""The candidates of an image, brought to its photo, and how well each fits a true object."""

from dataclasses import dataclass

import numpy as np

from ..shards.codec import rle_decode
from ..shards.geometry import Letterbox, best_boxes
from .metrics import box_iou, iou_of_areas
from .references import Reference


@dataclass(frozen=True, kw_only=True, eq=False)
class Candidates:
    """K boxes with SAM's masks of them, at the photo's own size."""

    key: str
    letterbox: Letterbox
    boxes_photo: np.ndarray
    """float64 [K, 4], x0 y0 x1 y1."""
    objectness: np.ndarray
    """float32 [K]."""
    covered: np.ndarray
    """float64 [K], photo pixels inside the box."""
    masks_photo: np.ndarray | None
    """bool [K, h, w]; None where the store has no masks."""
    areas: np.ndarray
    """int64 [K], pixels of each mask; zeros without masks."""

    @classmethod
    def of(
        cls, key: str, letterbox: Letterbox, boxes: np.ndarray, masks: np.ndarray | None, *, clip: bool
    ) -> "Candidates":
        """boxes: float32 [K, 4, 5] as the detector's. masks: uint8 [K, S, S/8], packed. clip: boxes to the photo."""
        corners, objectness = best_boxes(boxes)
        inside = letterbox.to_photo(letterbox.clip(corners))
        masks_photo, areas = None, np.zeros(len(boxes), np.int64)
        if masks is not None:
            canvas = np.unpackbits(masks, axis=-1, count=letterbox.side)  # [K, S, S]
            masks_photo = np.stack([letterbox.mask_to_photo(mask) for mask in canvas])
            areas = np.array([np.count_nonzero(mask) for mask in masks_photo])
        return cls(
            key=key,
            letterbox=letterbox,
            boxes_photo=inside if clip else letterbox.to_photo(corners),
            objectness=objectness,
            covered=(inside[:, 2:] - inside[:, :2]).prod(axis=1),
            masks_photo=masks_photo,
            areas=areas,
        )

    def best_scored(self) -> int:
        """The candidate with the largest objectness, the first on ties."""
        return int(self.objectness.argmax())

    def largest(self) -> int:
        """The candidate whose box covers most of the photo, the first on ties."""
        return int(self.covered.argmax())


@dataclass(frozen=True, kw_only=True, eq=False)
class Fit:
    """How well each candidate fits one true object."""

    reference: Reference
    truth: np.ndarray | None
    """bool [h, w]; None where the data set has no mask."""
    box_iou: np.ndarray
    """float64 [K]."""
    mask_iou: np.ndarray
    """float64 [K]; zeros where there is no true mask, or no mask of a candidate."""
    intersection: np.ndarray
    """int64 [K], true pixels of the candidate's mask; zeros likewise."""
    union: np.ndarray
    """int64 [K], pixels of either mask: the true one's where no candidate has one; zeros without a true mask."""

    @classmethod
    def of(cls, reference: Reference, candidates: Candidates) -> "Fit":
        letterbox = candidates.letterbox
        truth, masks = None, candidates.masks_photo
        intersection = union = np.zeros_like(candidates.areas)
        if reference.mask is not None:
            truth = rle_decode(reference.mask, letterbox.height, letterbox.width)
            if masks is not None:
                intersection = np.count_nonzero(masks[:, truth], axis=1)  # [K]
            union = candidates.areas + np.count_nonzero(truth) - intersection
        measurable = truth is not None and masks is not None
        return cls(
            reference=reference,
            truth=truth,
            box_iou=box_iou(candidates.boxes_photo, np.array(reference.box_photo)),
            mask_iou=iou_of_areas(intersection, union) if measurable else np.zeros(len(union)),
            intersection=intersection,
            union=union,
        )

    def oracle(self) -> int:
        """The candidate whose box fits best, the first on ties."""
        return int(self.box_iou.argmax())
