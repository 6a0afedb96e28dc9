"""Files of predictions, for `weakmcn eval --predictions`; docs/predictions.md describes them."""

from pathlib import Path
from typing import Any

from ..model.foreign import Prediction, Sentence, sentences_of
from ..pipeline.segmentation import counts_of, segmentation_fault
from ..pipeline.sources import brief, is_finite, is_whole
from ..shards.errors import InputError
from ..shards.records import read_rows
from ..shards.store import Store


def read_predictions(file: Path, store: Store, dataset: str, split: str) -> dict[Sentence, Prediction]:
    """The predictions of a file, each for another sentence of the split. InputError names the first that is none."""
    known = sentences_of(store, dataset, split)
    places: dict[Sentence, str] = {}
    found: dict[Sentence, Prediction] = {}
    for place, row in read_rows(file):
        ids: Any = (row.get("ref_id"), row.get("sent_id")) if isinstance(row, dict) else (None, None)
        if not all(map(is_whole, ids)):
            raise InputError(f"{file}: {place} has no whole numbers ref_id and sent_id; each prediction needs both.")
        if ids not in known:
            raise InputError(
                f"{file}: {place} names ref_id {ids[0]}, sent_id {ids[1]}, which is no sentence of {dataset} {split}; "
                "leave it out, or name its --split."
            )
        if ids in found:
            raise InputError(f"{file}: {places[ids]} and {place} are about one sentence; keep one of them.")
        places[ids], found[ids] = place, _prediction(f"{file}: {place}", row, *known[ids])
    return found


def _prediction(name: str, row: dict[str, Any], height: int, width: int) -> Prediction:
    box, segmentation = row.get("bbox"), row.get("segmentation") or None
    if box is None and segmentation is None:
        raise InputError(f"{name} has neither bbox nor segmentation; give one of them, or leave it out.")
    if box is not None and not (isinstance(box, list) and len(box) == 4 and all(map(is_finite, box))):
        raise InputError(f"{name} has the bbox {brief(box)}; write four finite numbers, x y w h in photo pixels.")
    if box is not None and min(box[2:]) < 0:
        raise InputError(f"{name} has the bbox {brief(box)} of negative size; write x y w h, not corners.")
    if segmentation is not None and (fault := segmentation_fault(segmentation, height, width)):
        raise InputError(f"{name} {fault}; write COCO run lengths or polygons of its photo, {width}x{height}.")
    return Prediction(
        box=None if box is None else (box[0], box[1], box[0] + box[2], box[1] + box[3]),
        mask=None if segmentation is None else counts_of(segmentation, height, width),
    )
