"""Two runs on the same sentences: how far they are apart, and how sure that is.

Differences are paired by sentence. Sentences of one photograph are not independent (they speak of the same objects, on
the same maps), so the bootstrap draws photographs, each with all its sentences.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..shards.errors import InputError
from .metrics import percent
from .results import Kept

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0
_DRAWN_AT_ONCE = 4_000_000
"""Photographs drawn in one call, for the memory."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One figure of both, in percent, and the interval that holds B less A with 95 % confidence."""

    figure: str
    a: float
    b: float
    difference: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """B against A."""

    dataset: str
    split: str
    images: int
    sentences: int
    figures: tuple[Difference, ...]
    right: Mapping[str, int]
    """Sentences whose box is right for "both", "only a", "only b", "neither"; empty where one predicts no boxes."""
    lacking: Mapping[str, tuple[str, ...]]
    """Figure that is not compared -> which has none of it, "a", "b" or both."""


def compare(a: Kept, b: Kept, *, resamples: int = RESAMPLES, seed: int = SEED) -> Comparison:
    """Compare two measurements of one split; InputError unless they have sentences and a figure in common."""
    first, second = _paired(a, b)
    keys, images = np.unique([record["key"] for record in first], return_inverse=True)
    hits = [_column(records, "box_iou") > 0.5 for records in (first, second)]
    columns = {"rec_acc50": hits, "res_miou": [_column(records, "mask_iou") for records in (first, second)]}
    told_of = {name: [who for who, each in (("a", a), ("b", b)) if name not in each.summary] for name in columns}
    lacking = {name: tuple(who) for name, who in told_of.items() if who}
    columns = {name: pair for name, pair in columns.items() if name not in lacking}
    if not columns:
        raise InputError(f"{a.path} and {b.path}: one predicts boxes, the other masks; no figure is of both.")
    counts = np.bincount(images)  # [I] sentences
    gaps = {name: np.bincount(images, weights=pair[1] * 1.0 - pair[0]) for name, pair in columns.items()}  # [I]
    resampled = _resampled(counts, gaps, resamples, seed)
    figures = []
    for name, (of_a, of_b) in columns.items():
        low, high = np.quantile(resampled[name], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        mean_a, mean_b = percent(float(np.mean(of_a))), percent(float(np.mean(of_b)))
        figures.append(
            Difference(figure=name, a=mean_a, b=mean_b, difference=mean_b - mean_a, low=float(low), high=float(high))
        )
    told = {}
    if "rec_acc50" in columns:
        right = {"both": hits[0] & hits[1], "only a": hits[0] & ~hits[1], "only b": ~hits[0] & hits[1]}
        told = {name: int(np.count_nonzero(which)) for name, which in right.items()}
        told["neither"] = len(first) - sum(told.values())
    return Comparison(
        dataset=a.dataset,
        split=a.split,
        images=len(keys),
        sentences=len(first),
        figures=tuple(figures),
        right=told,
        lacking=lacking,
    )


def _paired(a: Kept, b: Kept) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
    """The records of both in one order."""
    if (a.dataset, a.split) != (b.dataset, b.split):
        raise InputError(f"{a.path} is of {a.dataset} {a.split}, {b.path} of {b.dataset} {b.split}; compare the same.")
    first, second = _named(a), _named(b)
    if first.keys() != second.keys() or not first:
        lone = next(iter(sorted(first.keys() ^ second.keys())), None)
        said = f"reference {lone[0]}, {lone[1]!r:.60}, is in one alone" if lone else "there is none"
        raise InputError(
            f"{a.path} and {b.path}: not the same sentences ({len(first.keys() ^ second.keys()):,} differ; {said}); "
            "measure both on one store."
        )
    if odd := next((name for name in first if first[name]["key"] != second[name]["key"]), None):
        raise InputError(f"{a.path} and {b.path}: reference {odd[0]} is of another photograph; use one data set.")
    return list(first.values()), [second[name] for name in first]


def _named(kept: Kept) -> dict[tuple[int, str, int], Mapping[str, Any]]:
    """Each record by reference, sentence, and how often that was said before of it."""
    named: dict[tuple[int, str, int], Mapping[str, Any]] = {}
    said: dict[tuple[int, str], int] = {}
    for record in kept.records:
        name = record["ref_id"], record["sentence"]
        said[name] = said.get(name, -1) + 1
        named[(*name, said[name])] = record
    return named


def _column(records: Sequence[Mapping[str, Any]], name: str) -> np.ndarray:
    return np.array([record[name] for record in records], np.float64)


def _resampled(counts: np.ndarray, gaps: Mapping[str, np.ndarray], resamples: int, seed: int) -> dict[str, np.ndarray]:
    """Figure -> its difference in each resample, in percent of the sentences drawn.

    counts: sentences of each photograph, [I]; gaps: B less A, summed over them, [I]. A resample draws I photographs
    with replacement.
    """
    generator = np.random.default_rng(seed)
    images = len(counts)
    at_once = max(1, _DRAWN_AT_ONCE // images)
    parts: dict[str, list[np.ndarray]] = {name: [] for name in gaps}
    for start in range(0, resamples, at_once):
        drawn = generator.integers(0, images, (min(at_once, resamples - start), images))
        sentences = counts[drawn].sum(axis=1)
        for name, gap in gaps.items():
            parts[name].append(100 * gap[drawn].sum(axis=1) / sentences)
    return {name: np.concatenate(part) for name, part in parts.items()}
