"""A split, measured: what the network answers, and what anyone could answer without it.

Every sentence of the split is in the denominator. One that has no words, or whose image precompute skipped, is a miss;
so is an answer that is not a number. Boxes and masks are compared at the photo's own size (method section 15).

Beside the network stand, on the same sentences, answers that do not read them (the floor) and one that knows the truth
(the ceiling). Each is a candidate's box and SAM's mask of it:

    best_scored      the candidate with the largest objectness
    random           any candidate, in expectation
    largest          the candidate that covers most of the photo
    oracle           the candidate whose box fits the truth best: no choice can score higher boxes
    sam_mask_of_box  the candidate that the network chose: its box, with SAM's mask in place of the network's

Any system that chooses a box is measured a second time with the SAM head: SAM's mask of that box in place of its own
mask (for APL, whose boxes are no candidate's, of the candidate nearest to the box). That is the RES of a system that
predicts boxes only, whose summary holds the figures of boxes alone; where the store has no masks it has none.

A system that predicts masks only has no REC and no inconsistency. It is asked where it points instead: `pointm` is the
share of sentences whose pixel of the highest value, of those on the photo, lies in the true mask.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..shards.codec import rle_area, rle_encode
from ..shards.store import Store
from .batch import Batch
from .candidates import Candidates, Fit
from .config import ModelConfig
from .loader import Loader, ahead, columns_of
from .mask_answers import photo_pixels
from .methods import Method
from .metrics import box_iou, iou_of_areas, mask_areas, percent, summarise
from .progress import counted
from .references import Reference, references_of, truth_note
from .run import Run, device_of
from .samples import cut_note, unknown_note
from .vocabulary import Vocabulary, words_of

EMPTY = "empty expression"
SKIPPED = "precompute skipped the image"
NOT_FINITE = "the predicted box is not finite"
NO_TRUTH = "the data set has no mask of the object"

BASELINES: tuple[str, ...] = ("best_scored", "random", "largest", "oracle", "sam_mask_of_box")
READ = ("cells", "boxes")
"""Fields of a batch that the judge needs, whatever the network reads; masks too, if there are any."""

OF_BOXES = ("rec_acc50", "sentences")
"""Figures of a system that predicts no masks."""
ABOUT_BOXES = ("rec_acc50", "inconsistency")
"""Figures that a system without boxes does not have."""
NO_BOXES = "Masks only: no box is predicted, so there is no REC."
NO_MASKS = "Boxes only: no mask is predicted. RES is that of SAM's mask of the box."

Box = tuple[float, float, float, float]
"""x0 y0 x1 y1."""


@dataclass(frozen=True, kw_only=True)
class SentenceRecord:
    """One sentence, its answer and how good that is. Photo pixels."""

    key: str
    ref_id: int
    sentence: str
    truth_photo: Box
    box_photo: Box | None = None
    """The predicted box; None where there was no answer."""
    mask: str | None = None
    """The predicted mask, COCO run lengths at the photo's size; None where none was predicted, its figures then 0."""
    points: bool | None = None
    """Whether the pixel of the highest value lies in the true mask; asked of a system that predicts no boxes."""
    chosen: int | None = None
    """Which candidate."""
    score: float | None = None
    """Objectness of that candidate."""
    box_iou: float = 0.0
    mask_iou: float = 0.0
    intersection: int = 0
    """Pixels of the predicted mask that are true."""
    union: int = 0
    """Pixels of either mask."""
    sam_iou: float = 0.0
    """IoU of SAM's mask of that candidate, whatever mask the system predicted; 0 where the store has no masks."""
    sam_intersection: int = 0
    sam_union: int = 0
    miss: str | None = None
    """Why there was no answer, or none that counts."""

    def with_sam_head(self) -> "SentenceRecord":
        """The same answer with SAM's mask of the box in place of the predicted one."""
        return replace(self, mask=None, mask_iou=self.sam_iou, intersection=self.sam_intersection, union=self.sam_union)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """A split, measured."""

    dataset: str
    called: str
    """The data set as it is called beside figures."""
    split: str
    summary: dict[str, float]
    """The network's figures, see metrics.py, in percent; rec_acc50 and sentences alone if it predicts no masks."""
    sam_head: dict[str, float]
    """The same figures, all of them, with the SAM head; empty where the store has no masks."""
    baselines: dict[str, dict[str, float]]
    """Name -> rec_acc50 and, where the store has masks, res_miou; on the same sentences."""
    records: list[SentenceRecord]
    """One a sentence, in the order of the annotation file."""
    misses: dict[str, int]
    """Why sentences were counted as misses without being judged, and how many."""
    notes: list[str]
    """The same and other things to tell the user, a line each."""
    labels_of: str | None = None
    """The run whose predictions were the truth, where nobody annotated it."""

    @property
    def results(self) -> dict:
        """The figures alone, for JSON."""
        return {**self.summary, "sam_head": self.sam_head, "baselines": self.baselines}


def evaluate_run(
    run: Run,
    split: str,
    *,
    store: Store | None = None,
    dataset: str | None = None,
    batch: int = 64,
    ema: bool = True,
    device: str = "auto",
) -> Evaluation:
    """Measure a run's newest checkpoint on a split of its own store and data set, unless others are given.

    StoreError if that store's columns are not those the run was trained on, or lack images of the split.
    """
    store = store or run.open_store()
    run.check_columns(store)
    found = evaluate(
        run.network(ema=ema, device=device_of(device)),
        vocabulary=run.vocabulary,
        method=run.method,
        config=run.model,
        store=store,
        dataset=dataset or run.dataset,
        split=split,
        batch=batch,
    )
    return replace(found, notes=[*found.notes, *run.notes])


def evaluate(
    net: nn.Module,
    *,
    vocabulary: Vocabulary,
    method: Method,
    config: ModelConfig,
    store: Store,
    dataset: str,
    split: str,
    batch: int = 64,
) -> Evaluation:
    """Measure a network, as it is and where it is (put into eval mode), on every sentence of a split."""
    predicts_masks = method.predicts_masks(config)
    with_masks = (predicts_masks and method.boxes) or "masks" in store.families
    fields = tuple(dict.fromkeys((*method.fields(config), *READ, *(("masks",) if with_masks else ()))))
    stages = dict.fromkeys(column.partition(".")[0] for column in columns_of(fields).values())
    references = references_of(store, dataset, split)
    skipped = {key for stage in stages for key in store.skipped(stage)}
    keys = [reference.key for reference in references if reference.key not in skipped]
    store.require(list(stages), keys, dataset=dataset, split=split)

    judge = _Judge(store, clip=config.clip_boxes_in_eval, masks=with_masks)
    asked = [
        (place, text)  # the sentences of an image together, so that its masks are brought to the photo once
        for place, reference in sorted(enumerate(references), key=lambda item: item[1].key)
        if reference.key not in skipped
        for text in reference.sentences
    ]
    records: dict[int, list[SentenceRecord]] = {
        place: [judge.unanswered(reference, text, SKIPPED) for text in reference.sentences]
        for place, reference in enumerate(references)
        if reference.key in skipped
    }
    loader = Loader(store, fields, device=next(net.parameters()).device, keys=keys, reuse=True)
    make = partial(_batch, loader, references, vocabulary, config.max_tokens)
    chunks = [asked[start : start + batch] for start in range(0, len(asked), batch)]
    net.eval()
    with counted("evaluating", len(asked)) as count:
        for chunk, inputs in zip(chunks, ahead(make, chunks), strict=True):
            answers = _Answers.of(net.predict(inputs), inputs)  # pyright: ignore[reportCallIssue]
            boxes, masks = _on_host(inputs.boxes), _on_host(inputs.masks) if with_masks else None
            for row, (place, text) in enumerate(chunk):
                judge.look_at(references[place], boxes[row], None if masks is None else masks[row])
                records.setdefault(place, []).append(judge.judge(references[place], text, answers, row))
            count(len(chunk))

    ordered = [record for place in range(len(references)) for record in records[place]]
    misses = dict(Counter(record.miss for record in ordered if record.miss))
    told = [f"{count:,} of {len(ordered):,} sentences are counted as misses: {why}." for why, count in misses.items()]
    summary = summarise(ordered)
    if not method.boxes:
        summary = {name: value for name, value in summary.items() if name not in ABOUT_BOXES}
        summary["pointm"] = percent(float(np.mean([record.points is True for record in ordered])))
        told.append(f"{NO_BOXES} PointM {summary['pointm']:.1f}: the mask's highest pixel lies in the true mask.")
    if not predicts_masks:
        summary = {name: summary[name] for name in OF_BOXES}
        told.append(NO_MASKS if with_masks else f"{NO_MASKS} The store has no masks, so there is none.")
    return Evaluation(
        dataset=dataset,
        called=store.called(dataset),
        split=split,
        summary=summary,
        sam_head=summarise([record.with_sam_head() for record in ordered]) if with_masks and method.boxes else {},
        baselines=judge.baselines(len(ordered), chooses=method.boxes),
        records=ordered,
        misses=misses,
        notes=[
            *truth_note(store, dataset),
            *told,
            *unknown_note(references, vocabulary),
            *cut_note(references, config.max_tokens),
            *method.remarks(config),
        ],
        labels_of=store.labels_of(dataset),
    )


def _batch(
    loader: Loader,
    references: Sequence[Reference],
    vocabulary: Vocabulary,
    max_tokens: int,
    chunk: Sequence[tuple[int, str]],
) -> Batch:
    tokens = np.stack([vocabulary.ids(text, max_tokens) for _, text in chunk])
    return loader.batch([references[place].key for place, _ in chunk], tokens)


def _on_host(tensor: Tensor | None) -> np.ndarray:
    assert tensor is not None
    return tensor.cpu().numpy()


@dataclass(frozen=True)
class _Answers:
    """Predictions on the host, in the canvas frame."""

    boxes: np.ndarray | None
    """float32 [B, 4]; None from a system that predicts none, as are the next two."""
    chosen: np.ndarray | None
    scores: np.ndarray | None
    masks: np.ndarray | None
    """uint8 [B, S, S]."""
    points: np.ndarray | None
    """int64 [B, 2], column and row of the highest pixel on the photo; None from a system that predicts boxes."""

    @classmethod
    def of(cls, predictions: Any, batch: Batch) -> "_Answers":
        logits = predictions.mask_logits
        masks = None if logits is None else _on_host((logits.sigmoid() > 0.5).to(torch.uint8))
        if predictions.boxes is None:
            assert logits is not None
            points = _on_host(highest_pixels(logits, batch.letterbox))
            return cls(boxes=None, chosen=None, scores=None, masks=masks, points=points)
        return cls(
            boxes=_on_host(predictions.boxes),
            chosen=_on_host(predictions.chosen),
            scores=_on_host(predictions.scores),
            masks=masks,
            points=None,
        )


def highest_pixels(logits: Tensor, letterbox: Tensor) -> Tensor:
    """Column and row, on the canvas, of each answer's highest pixel on the photo: int64 [B, 2]; the first on ties.

    logits: [B, S, S]; letterbox: int64 [B, 6].
    """
    best = logits.masked_fill(~photo_pixels(letterbox, logits.shape[-1]), -torch.inf).flatten(1).argmax(dim=1)
    return torch.stack([best % logits.shape[-1], best // logits.shape[-1]], dim=1)


class _Judge:
    """Compares answers with the truth, one reference after another, and keeps the score of the baselines.

    What belongs to an image, then to a reference, is worked out once and kept until the next comes.
    """

    def __init__(self, store: Store, *, clip: bool, masks: bool) -> None:
        self._store = store
        self._clip = clip
        self._has_masks = masks
        self._image: Candidates | None = None
        self._fit: Fit | None = None
        self._right = dict.fromkeys(BASELINES, 0.0)
        self._mask_iou = dict.fromkeys(BASELINES, 0.0)

    def look_at(self, reference: Reference, boxes: np.ndarray, masks: np.ndarray | None) -> None:
        """The reference that is judged next. boxes: float32 [K, 4, 5]; masks: uint8 [K, S, S/8] if there are any."""
        if self._image is None or self._image.key != reference.key:
            letterbox = self._store.letterbox(reference.key)
            self._image = Candidates.of(reference.key, letterbox, boxes, masks, clip=self._clip)
        if self._fit is None or self._fit.reference is not reference:
            image, fit = self._image, Fit.of(reference, self._image)
            answers = {"best_scored": image.best_scored(), "largest": image.largest(), "oracle": fit.oracle()}
            for name, chosen in answers.items():
                self._count(name, fit, chosen, weight=len(reference.sentences))
            self._count("random", fit, slice(None), weight=len(reference.sentences))
            self._fit = fit

    def judge(self, reference: Reference, text: str, answers: _Answers, row: int) -> SentenceRecord:
        """The record of one sentence of the reference that was looked at last."""
        if not words_of(text):
            return self.unanswered(reference, text, EMPTY)
        image, fit = self._image, self._fit
        assert image is not None
        assert fit is not None
        record = SentenceRecord(
            key=reference.key, ref_id=reference.ref_id, sentence=text, truth_photo=reference.box_photo
        )
        if answers.boxes is not None:
            record = self._judge_box(record, image, fit, answers, row)
        if answers.masks is None:
            return record
        mask_photo = image.letterbox.mask_to_photo(answers.masks[row])
        if fit.truth is None:
            return replace(record, mask=rle_encode(mask_photo), miss=record.miss or NO_TRUTH)
        if answers.points is not None:
            column, line = image.letterbox.to_photo(np.tile(answers.points[row] + 0.5, 2))[:2].astype(int)
            height, width = fit.truth.shape
            record = replace(record, points=bool(fit.truth[min(line, height - 1), min(column, width - 1)]))
        intersection, union = map(int, mask_areas(mask_photo, fit.truth))
        return replace(
            record,
            mask=rle_encode(mask_photo),
            mask_iou=float(iou_of_areas(intersection, union)),
            intersection=intersection,
            union=union,
        )

    def _judge_box(
        self, record: SentenceRecord, image: Candidates, fit: Fit, answers: _Answers, row: int
    ) -> SentenceRecord:
        assert answers.boxes is not None
        assert answers.chosen is not None
        assert answers.scores is not None
        chosen = int(answers.chosen[row])
        self._count("sam_mask_of_box", fit, chosen, weight=1)
        box_photo = image.letterbox.to_photo(answers.boxes[row])
        overlap = float(box_iou(box_photo, np.array(record.truth_photo)))
        miss = None if np.isfinite(overlap) else NOT_FINITE
        return replace(
            record,
            box_photo=None if miss else tuple(box_photo.tolist()),
            chosen=chosen,
            score=float(answers.scores[row]),
            box_iou=0.0 if miss else overlap,
            sam_iou=float(fit.mask_iou[chosen]),
            sam_intersection=int(fit.intersection[chosen]),
            sam_union=int(fit.union[chosen]),
            miss=miss,
        )

    def unanswered(self, reference: Reference, text: str, why: str) -> SentenceRecord:
        """The record of a sentence without an answer: a miss, the whole true mask missed."""
        true_area = rle_area(reference.mask) if reference.mask else 0
        return SentenceRecord(
            key=reference.key,
            ref_id=reference.ref_id,
            sentence=text,
            truth_photo=reference.box_photo,
            union=true_area,
            sam_union=true_area,
            miss=why,
        )

    def baselines(self, sentences: int, *, chooses: bool) -> dict[str, dict[str, float]]:
        """Over all sentences of the split, those of skipped images included.

        chooses: whether the system answers with a candidate, which could then be given SAM's mask.
        """
        names = [name for name in BASELINES if chooses or name != "sam_mask_of_box"]
        total = max(1, sentences)
        right = {name: {"rec_acc50": percent(self._right[name] / total)} for name in names}
        if not self._has_masks:
            return right
        return {name: {**right[name], "res_miou": percent(self._mask_iou[name] / total)} for name in names}

    def _count(self, name: str, fit: Fit, chosen: int | slice, weight: int) -> None:
        """chosen: the candidate that answers, or several, each as likely as the others."""
        self._right[name] += weight * float(np.mean(fit.box_iou[chosen] > 0.5))
        self._mask_iou[name] += weight * float(np.mean(fit.mask_iou[chosen]))
