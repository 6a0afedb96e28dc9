"""What made a sentence hard, and which of the supplement's two kinds of failure its answer is.

Sizes and overlaps are in photo pixels. "Other objects" are all annotated ones of the photograph but the target.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..model.evaluate import SentenceRecord
from ..model.metrics import box_iou
from ..model.vocabulary import words_of
from ..pipeline.objects import Thing
from ..shards.codec import rle_area, rle_decode

CROWDED = 0.1
"""Share of the predicted box, from which on several objects are said to overlap inside it."""
LONG = 5
"""Words from which on an expression is called long; those of RefCOCO and RefCOCO+ have 3.5 on average."""
RELATIONS = frozenset(
    (
        *("left", "right", "above", "below", "over", "under", "underneath", "beneath", "top", "bottom", "upper"),
        *("lower", "middle", "center", "centre", "corner", "between", "behind", "front", "back", "beside", "near"),
        *("nearest", "next", "close", "closest", "far", "farthest", "furthest", "inside", "outside", "around"),
        *("against", "adjacent", "opposite", "touching", "overlapping"),
    )
)
"""Words that tell where something is."""

KINDS = {
    1: (
        "the box is right, the mask takes in too much",
        f"Box IoU > 0.5, mask IoU < 0.5, more pixels wrongly taken than missed, and at least {CROWDED:.0%} of the "
        "predicted box belongs to other objects than the one that fills most of it.",
    ),
    2: (
        "a long or spatial expression, another object is found",
        f"Box IoU ≤ 0.5, the predicted box has IoU > 0.5 with another annotated object, and the expression has {LONG} "
        "words or more, or a word of place, of those listed below.",
    ),
}
"""Kind -> what it is in short, and the exact rule."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sentence: its record, and what is known of it."""

    record: SentenceRecord
    words: int
    same_class: int
    """Annotated objects of the target's class in the photograph, the target among them."""
    overlap: float | None
    """Share of the predicted box that belongs to other objects than the one that fills most of it; None without box."""
    disagreement: float | None
    """1 - IoU of predicted mask and predicted box; None where there is no mask or no box."""
    size: float
    """Share of the photograph that the true mask covers; the true box where there is no mask."""
    mask_iou: float
    """Of the system's own mask; of SAM's mask of its box where it predicts none."""
    right: bool
    """Box IoU > 0.5; of a system without boxes, mask IoU > 0.5."""
    kind: int | None
    """Which kind of failure, of `KINDS`; a system without boxes has none."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The true object of a reference, and the photograph around it."""

    category: int
    mask: str | None
    size: tuple[int, int]
    """Height and width of the photograph."""


def case_of(
    record: SentenceRecord, target: Target, things: Sequence[Thing], *, own_masks: bool, boxes: bool = True
) -> Case:
    """things: all annotated objects of the photograph. own_masks, boxes: what the system predicts."""
    words = words_of(record.sentence)
    others = [thing for thing in things if not _same_box(thing.box_photo, record.truth_photo)]
    size = target.size
    true_area = rle_area(target.mask) if target.mask else _area(record.truth_photo)
    box = _pixels(record.box_photo, size)
    mask = None if record.mask is None else rle_decode(record.mask, *size)
    overlap = None if box is None else _overlap(box, things, size)
    masked = record if own_masks else record.with_sam_head()
    kind = None
    if record.box_iou > 0.5 and target.mask is not None and masked.union and overlap is not None:
        surplus, missed = masked.union - true_area, true_area - masked.intersection
        kind = 1 if masked.mask_iou < 0.5 and surplus > missed and overlap >= CROWDED else None
    elif record.box_iou <= 0.5 and record.box_photo is not None:
        found = any(float(box_iou(np.array(record.box_photo), np.array(thing.box_photo))) > 0.5 for thing in others)
        kind = 2 if found and (len(words) >= LONG or not RELATIONS.isdisjoint(words)) else None
    return Case(
        record=record,
        words=len(words),
        same_class=1 + sum(thing.category == target.category for thing in others),
        overlap=overlap,
        disagreement=None if mask is None or box is None else 1 - _iou_with_box(mask, box),
        size=true_area / (size[0] * size[1]),
        mask_iou=masked.mask_iou,
        right=(record.box_iou if boxes else masked.mask_iou) > 0.5,
        kind=kind,
    )


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Cases that are alike in one thing."""

    label: str
    count: int
    rec: float
    """Percent that are right."""
    res: float | None
    """Mean mask IoU in percent; None where nothing has a mask."""


@dataclass(frozen=True, kw_only=True)
class Breakdown:
    """Accuracy along one thing."""

    title: str
    axis: str
    """What is told apart, with its unit."""
    value: Callable[[Case], float | None]
    edges: Sequence[float]
    """The first bin is below the first of them, the last from the last one on."""
    labels: Sequence[str]
    """One more than edges."""

    def bins(self, cases: Sequence[Case], *, masks: bool) -> list[Bin]:
        """Those that hold a case, in order. Cases of which the thing is not known are left out."""
        known = [(case, value) for case in cases if (value := self.value(case)) is not None]
        places = np.searchsorted(self.edges, [value for _, value in known], side="right")
        found = []
        for place, label in enumerate(self.labels):
            inside = [case for (case, _), own in zip(known, places, strict=True) if own == place]
            if inside:
                res = 100 * float(np.mean([case.mask_iou for case in inside])) if masks else None
                rec = 100 * float(np.mean([case.right for case in inside]))
                found.append(Bin(label=label, count=len(inside), rec=rec, res=res))
        return found


BREAKDOWNS = (
    Breakdown(
        title="Length of the expression",
        axis="words",
        value=lambda case: case.words,
        edges=(1, 2, 3, 4, 5, 6, 8, 11),
        labels=("0", "1", "2", "3", "4", "5", "6–7", "8–10", "11+"),
    ),
    Breakdown(
        title="Objects of the target's class in the photograph",
        axis="objects, the target among them",
        value=lambda case: case.same_class,
        edges=(2, 3, 4, 5),
        labels=("1", "2", "3", "4", "5+"),
    ),
    Breakdown(
        title="Overlap inside the predicted box",
        axis="percent of the box on other objects than its main one",
        value=lambda case: None if case.overlap is None else 100 * case.overlap,
        edges=(1e-9, 5, 10, 20, 40),
        labels=("0", "0–5", "5–10", "10–20", "20–40", "40+"),
    ),
    Breakdown(
        title="Disagreement of predicted mask and predicted box",
        axis="1 − IoU of mask and box",
        value=lambda case: case.disagreement,
        edges=(0.2, 0.4, 0.6, 0.8),
        labels=("0–0.2", "0.2–0.4", "0.4–0.6", "0.6–0.8", "0.8–1"),
    ),
    Breakdown(
        title="Size of the target",
        axis="percent of the photograph",
        value=lambda case: 100 * case.size,
        edges=(1, 2, 5, 10, 20),
        labels=("0–1", "1–2", "2–5", "5–10", "10–20", "20+"),
    ),
)


def counted(cases: Sequence[Case]) -> Mapping[int, int]:
    """How many failures of each kind there are."""
    return {kind: sum(case.kind == kind for case in cases) for kind in KINDS}


def _same_box(a: Sequence[float], b: Sequence[float]) -> bool:
    return bool(np.allclose(a, b, rtol=0, atol=1e-3))


def _area(box: Sequence[float]) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def _pixels(box: Sequence[float] | None, size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Rows and columns of a box on the photograph, whole pixels; None where none is inside."""
    if box is None:
        return None
    x0, y0, x1, y1 = (round(value) for value in np.clip(box, 0, [size[1], size[0]] * 2))
    return (slice(y0, y1), slice(x0, x1)) if x1 > x0 and y1 > y0 else None


def _overlap(box: tuple[slice, slice], things: Sequence[Thing], size: tuple[int, int]) -> float:
    """Share of the box that belongs to other things than the one with most pixels in it. Things without a mask count
    as their boxes."""
    inside = []
    for thing in things:
        if thing.mask is not None:
            inside.append(rle_decode(thing.mask, *size)[box])
        elif (own := _pixels(thing.box_photo, size)) is not None:
            filled = np.zeros(size, bool)
            filled[own] = True
            inside.append(filled[box])
    if len(inside) < 2:
        return 0.0
    inside.sort(key=np.count_nonzero)
    return float((np.logical_or.reduce(inside[:-1]) & ~inside[-1]).mean())


def _iou_with_box(mask: np.ndarray, box: tuple[slice, slice]) -> float:
    common = np.count_nonzero(mask[box])
    return common / (np.count_nonzero(mask) + mask[box].size - common)
