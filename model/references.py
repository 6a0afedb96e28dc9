"""The references of one split, as training and evaluation see them."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..shards.choices import did_you_mean
from ..shards.errors import InputError
from ..shards.store import Store
from .vocabulary import words_of

FIRST_SPLIT = "train"


@dataclass(frozen=True, kw_only=True)
class Reference:
    """One object of one photo, and what people called it."""

    ref_id: int
    key: str
    """Of the image."""
    box_photo: tuple[float, float, float, float]
    """True box, x0 y0 x1 y1 in photo pixels."""
    mask: str | None
    """True mask, COCO run lengths at the photo's size; None where the data set has none."""
    sentences: tuple[str, ...]
    sent_ids: tuple[int, ...] = ()
    """Their numbers in the annotation file."""

    @property
    def usable(self) -> list[int]:
        """Indices of the sentences that hold at least one word."""
        return [index for index, sentence in enumerate(self.sentences) if words_of(sentence)]


def references_of(store: Store, dataset: str, split: str) -> list[Reference]:
    """The references of `split`, in the order of the annotation file; InputError if there are none, naming what is."""
    rows = store.references(dataset).to_pylist()
    chosen = [_reference(row) for row in rows if row["split"] == split]
    if not chosen:
        splits = list(dict.fromkeys(row["split"] for row in rows))
        raise InputError(
            f"split {split!r}{did_you_mean(split, splits)} has 0 of the {len(rows):,} references of {dataset} in "
            f"{store.path}; splits present: {', '.join(splits) or 'none'}."
        )
    return chosen


def sentences_in_row_order(store: Store, dataset: str) -> Iterator[str]:
    """Every sentence of the data set in the order that numbers the vocabulary: train first, then the other splits."""
    rows = store.references(dataset).select(["split", "sentences"]).to_pylist()
    for split in dict.fromkeys([FIRST_SPLIT, *(row["split"] for row in rows)]):
        for row in rows:
            if row["split"] == split:
                yield from row["sentences"]


def _reference(row: dict) -> Reference:
    x, y, width, height = row["box"]
    return Reference(
        ref_id=row["ref_id"],
        key=row["key"],
        box_photo=(x, y, x + width, y + height),
        mask=row["mask"],
        sentences=tuple(row["sentences"]),
        sent_ids=tuple(row["sent_ids"]),
    )


def truth_note(store: Store, dataset: str) -> list[str]:
    """A line where the truth is no annotation."""
    if (run := store.labels_of(dataset)) is None:
        return []
    return [f"nobody annotated it: the truth is what {run} predicted, figures tell how far they agree."]
