"""What a network says of every sentence of a split, told sentence by sentence. The truth is not looked at.

Photographs come in the order of their keys, the sentences of one in the order of the annotation file. The batches are
those of `evaluate`, so what is labelled here is what is scored there.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from ..shards.geometry import Letterbox
from ..shards.store import Store
from .batch import Batch
from .config import ModelConfig
from .evaluate import EMPTY, NOT_FINITE, READ, SKIPPED
from .loader import Loader, ahead, columns_of
from .methods import Method
from .progress import counted
from .references import Reference, references_of
from .vocabulary import Vocabulary, words_of

MASKS = ("network", "sam")
"""Whose mask: the network's own, or SAM's of the chosen candidate."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Label:
    """One sentence and its answer, photo frame."""

    number: int
    """Which sentence of the split, from 1, in the order of the annotation file."""
    reference: Reference
    place: int
    """Which sentence of the reference."""
    box: np.ndarray | None = None
    """float64 [4], x0 y0 x1 y1, not clipped; None where there is no answer."""
    objectness: float = 0.0
    candidate: int = 0
    """Which candidate was chosen."""
    similarity: float = 0.0
    """Of the sentence with that candidate; comparable within an image only."""
    mask: np.ndarray | None = None
    """bool [h, w]; None where none is asked for."""
    miss: str | None = None
    """Why there is no answer."""

    @property
    def sentence(self) -> str:
        return self.reference.sentences[self.place]


def labels(
    net: nn.Module,
    *,
    vocabulary: Vocabulary,
    method: Method,
    config: ModelConfig,
    store: Store,
    dataset: str,
    split: str,
    masks: str | None,
    batch: int = 64,
) -> Iterator[Label]:
    """Answers of a network, as it is and where it is (put into eval mode), on every sentence of a split.

    masks: one of MASKS, or None for boxes alone. StoreError, before anything is answered, if a column is missing.
    """
    fields = tuple(dict.fromkeys((*method.fields(config), *READ, *(("masks",) if masks == "sam" else ()))))
    stages = list(dict.fromkeys(column.partition(".")[0] for column in columns_of(fields).values()))
    references = references_of(store, dataset, split)
    skipped = {key for stage in stages for key in store.skipped(stage)}
    keys = [reference.key for reference in references if reference.key not in skipped]
    store.require(stages, keys, dataset=dataset, split=split)
    loader = Loader(store, fields, device=next(net.parameters()).device)
    net.eval()
    return _answered(net, loader, store, _asked(references), skipped, vocabulary, config.max_tokens, masks, batch)


def _asked(references: Sequence[Reference]) -> list[Label]:
    """Every sentence, not answered yet, those of a photograph together."""
    rows = [(reference, place) for reference in references for place in range(len(reference.sentences))]
    asked = [Label(number=number, reference=row[0], place=row[1]) for number, row in enumerate(rows, 1)]
    return sorted(asked, key=lambda label: label.reference.key)


def _answered(
    net: Any,
    loader: Loader,
    store: Store,
    asked: Sequence[Label],
    skipped: set[str],
    vocabulary: Vocabulary,
    max_tokens: int,
    masks: str | None,
    batch: int,
) -> Iterator[Label]:
    def make(chunk: Sequence[Label]) -> Batch:
        tokens = np.stack([vocabulary.ids(label.sentence, max_tokens) for label in chunk])
        return loader.batch([label.reference.key for label in chunk], tokens)

    yield from (replace(label, miss=SKIPPED) for label in asked if label.reference.key in skipped)
    seen = [label for label in asked if label.reference.key not in skipped]
    chunks = [seen[start : start + batch] for start in range(0, len(seen), batch)]
    with counted("answering", len(seen)) as count:
        for chunk, inputs in zip(chunks, ahead(make, chunks), strict=True):
            predictions = net.predict(inputs)
            drawn = _masks(predictions, inputs, masks)
            for row, label in enumerate(chunk):
                letterbox = store.letterbox(label.reference.key)
                yield _label(label, letterbox, predictions, row, None if drawn is None else drawn[row])
            count(len(chunk))


def _masks(predictions: Any, inputs: Batch, masks: str | None) -> np.ndarray | None:
    """bool [B, S, S], canvas frame."""
    if masks == "network":
        return (predictions.mask_logits.sigmoid() > 0.5).cpu().numpy()
    if masks is None or inputs.masks is None:
        return None
    rows = torch.arange(len(inputs), device=inputs.masks.device)
    chosen = inputs.masks[rows, predictions.chosen].cpu().numpy()  # [B, S, S/8]
    return np.unpackbits(chosen, axis=-1, count=chosen.shape[1]).astype(bool)


def _label(label: Label, letterbox: Letterbox, predictions: Any, row: int, mask: np.ndarray | None) -> Label:
    if not words_of(label.sentence):
        return replace(label, miss=EMPTY)
    box = letterbox.to_photo(predictions.boxes[row].cpu().numpy())
    if not np.isfinite(box).all():
        return replace(label, miss=NOT_FINITE)
    chosen = int(predictions.chosen[row])
    return replace(
        label,
        box=box,
        objectness=float(predictions.scores[row]),
        candidate=chosen,
        similarity=float(predictions.similarity[row, chosen]),
        mask=None if mask is None else letterbox.mask_to_photo(mask),
    )
