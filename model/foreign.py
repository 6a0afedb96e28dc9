"""Anyone's predictions, from any model, measured as `evaluate` measures a network's.

Every sentence of the split is in the denominator; one without a prediction is a miss. Where no prediction at all has a
mask (a box), the figures of masks (of boxes) are left out.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from ..shards.codec import rle_area, rle_decode
from ..shards.store import Store
from .evaluate import NO_TRUTH, OF_BOXES, Box, Evaluation, SentenceRecord
from .metrics import box_iou, iou_of_areas, mask_areas, summarise
from .references import Reference, references_of, truth_note

NO_PREDICTION = "no prediction"
OF_BOTH = ("rec_acc50", "inconsistency")
"""Figures that need boxes, whether or not there are masks."""

Sentence = tuple[int, int]
"""ref_id, sent_id."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """An answer to one sentence, photo pixels."""

    box: Box | None
    """x0 y0 x1 y1, finite."""
    mask: str | None
    """COCO run lengths at the photo's size."""


def sentences_of(store: Store, dataset: str, split: str) -> dict[Sentence, tuple[int, int]]:
    """Every sentence of a split -> rows and columns of its photo."""
    found = {}
    for reference in references_of(store, dataset, split):
        letterbox = store.letterbox(reference.key)
        found |= {(reference.ref_id, sent_id): (letterbox.height, letterbox.width) for sent_id in reference.sent_ids}
    return found


def score(predictions: Mapping[Sentence, Prediction], *, store: Store, dataset: str, split: str) -> Evaluation:
    """Measure predictions on every sentence of a split; its baselines are left out."""
    has_boxes = any(prediction.box is not None for prediction in predictions.values())
    has_masks = any(prediction.mask is not None for prediction in predictions.values())
    records = [
        _record(store, reference, text, predictions.get((reference.ref_id, sent_id)))
        for reference in references_of(store, dataset, split)
        for sent_id, text in zip(reference.sent_ids, reference.sentences, strict=True)
    ]
    misses = dict(Counter(record.miss for record in records if record.miss))
    notes = [f"{count:,} of {len(records):,} sentences are counted as misses: {why}." for why, count in misses.items()]
    summary = summarise(records)
    if not has_masks:
        summary = {name: summary[name] for name in OF_BOXES}
        notes.append("the predictions have no masks.")
    if not has_boxes:
        summary = {name: value for name, value in summary.items() if name not in OF_BOTH}
        notes.append("the predictions have no boxes.")
    for what, is_there, lacking in (
        ("box", has_boxes, sum(prediction.box is None for prediction in predictions.values())),
        ("mask", has_masks, sum(prediction.mask is None for prediction in predictions.values())),
    ):
        if is_there and lacking:
            notes.append(f"{lacking:,} of {len(predictions):,} predictions have no {what}: misses in its figures.")
    return Evaluation(
        dataset=dataset,
        called=store.called(dataset),
        split=split,
        summary=summary,
        sam_head={},
        baselines={},
        records=records,
        misses=misses,
        notes=[*truth_note(store, dataset), *notes],
        labels_of=store.labels_of(dataset),
    )


def _record(store: Store, reference: Reference, text: str, prediction: Prediction | None) -> SentenceRecord:
    record = SentenceRecord(
        key=reference.key,
        ref_id=reference.ref_id,
        sentence=text,
        truth_photo=reference.box_photo,
        union=rle_area(reference.mask) if reference.mask else 0,
    )
    if prediction is None:
        return replace(record, miss=NO_PREDICTION)
    if prediction.box is not None:
        overlap = float(box_iou(np.array(prediction.box), np.array(reference.box_photo)))
        record = replace(record, box_photo=prediction.box, box_iou=overlap)
    if prediction.mask is None:
        return record
    record = replace(record, mask=prediction.mask)
    if reference.mask is None:
        return replace(record, miss=NO_TRUTH)
    letterbox = store.letterbox(reference.key)
    size = letterbox.height, letterbox.width
    intersection, union = map(int, mask_areas(rle_decode(prediction.mask, *size), rle_decode(reference.mask, *size)))
    return replace(record, mask_iou=float(iou_of_areas(intersection, union)), intersection=intersection, union=union)
