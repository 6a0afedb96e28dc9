"""The figures of the paper's tables and what they mean, exactly (method section 15). Pure numpy.

Every figure is a percentage of all sentences of the split. A sentence that got no answer, or one that is not a number,
is a miss and stays in the denominator.

    rec_acc50      box IoU > 0.5, strictly
    res_miou       mean of the per-sentence mask IoU
    res_oiou       sum of the intersections over the sum of the unions
    pr50 .. pr90   mask IoU > 0.5 .. > 0.9, strictly
    inconsistency  exactly one of (box IoU > 0.5, mask IoU >= 0.5) holds
    sentences      the denominator
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

_NO_AREA = 1e-10


class Scored(Protocol):
    """What `summarise` reads of a sentence's record."""

    @property
    def box_iou(self) -> float: ...
    @property
    def mask_iou(self) -> float: ...
    @property
    def intersection(self) -> float: ...
    @property
    def union(self) -> float: ...


def box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of boxes x0 y0 x1 y1 [..., 4], broadcast against each other: float64 [...].

    Computed in float64; sides are clamped at 0. Two boxes without area have IoU 0; a box with a NaN has IoU NaN, which
    exceeds no threshold.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    with np.errstate(invalid="ignore"):  # what is not finite comes out as NaN, silently
        overlap = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])  # [..., 2]
        intersection = np.maximum(overlap, 0).prod(axis=-1)
        areas = [np.maximum(box[..., 2:] - box[..., :2], 0).prod(axis=-1) for box in (a, b)]
        union = areas[0] + areas[1] - intersection
        return intersection / np.where(union == 0, 1, union)


def mask_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU of masks [..., H, W] of one size, non-zero inside, broadcast: float64 [...]. Two empty masks have IoU 1
    (quirk 17).
    """
    intersection, union = mask_areas(a, b)
    return iou_of_areas(intersection, union)


def mask_areas(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixels in both and pixels in either of two masks [..., H, W]: int64 [...] each."""
    a, b = np.asarray(a, bool), np.asarray(b, bool)
    intersection = np.count_nonzero(a & b, axis=(-2, -1))
    return intersection, np.count_nonzero(a, axis=(-2, -1)) + np.count_nonzero(b, axis=(-2, -1)) - intersection


def iou_of_areas(intersection: ArrayLike, union: ArrayLike) -> np.ndarray:
    """(I + 1e-10) / (U + 1e-10), float64."""
    return (np.asarray(intersection, np.float64) + _NO_AREA) / (np.asarray(union, np.float64) + _NO_AREA)


def summarise(records: Sequence[Scored]) -> dict[str, float]:
    """The figures above, in percent, over all `records`; `sentences` is their number. An empty split gives zeros.

    Every record counts once (quirk 19). For `inconsistency` a box must exceed one half and a mask reach it (quirk 18).
    """
    boxes = np.array([record.box_iou for record in records], np.float64)  # [N]
    masks = np.nan_to_num(np.array([record.mask_iou for record in records], np.float64))  # [N]
    intersection = sum(record.intersection for record in records)
    union = sum(record.union for record in records)
    return {
        "rec_acc50": _mean_percent(boxes > 0.5),
        "res_miou": _mean_percent(masks),
        "res_oiou": percent(intersection / union) if union else 0.0,
        **{f"pr{bar}": _mean_percent(masks > bar / 100) for bar in (50, 60, 70, 80, 90)},
        "inconsistency": _mean_percent((boxes > 0.5) != (masks >= 0.5)),
        "sentences": len(records),
    }


def percent(share: float) -> float:
    """A share as a percentage, without the trace that the 1e-10 of an IoU leaves where 0 is meant."""
    return round(100 * share, 7)


def _mean_percent(values: np.ndarray) -> float:
    return percent(float(np.mean(values))) if len(values) else 0.0
