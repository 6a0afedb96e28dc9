"""The figures of a run that was measured, kept in its folder: sentence by sentence, so that runs can be compared.

    RUN/eval-val.json            of the run's own data set
    RUN/eval-refcoco+-val.json   of another one

One file a split, the last measurement's; a sentence has no mask in it, only how good its mask was.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ..shards.atomic import write_json
from ..shards.errors import InputError
from ..shards.records import read_json
from .checkpoint import Position
from .evaluate import Evaluation
from .run import Run

FORMAT = 1
PATTERN = "eval-*.json"
RECORD = ("key", "ref_id", "sentence", "box_photo", "box_iou", "mask_iou", "intersection", "union", "chosen", "miss")
"""What is kept of a sentence, under the names of `SentenceRecord`."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """One measurement, read back."""

    path: Path
    dataset: str
    split: str
    epoch: int
    """Epochs that its checkpoint had finished."""
    step: int
    """Steps that it had."""
    summary: Mapping[str, float]
    """As `Evaluation` has it."""
    records: Sequence[Mapping[str, Any]]
    """One a sentence, in the order of the annotation file; see RECORD."""
    notes: Sequence[str]
    """What was told of it."""


def results_file(run: Run, dataset: str, split: str) -> Path:
    """Where a measurement of a run is kept."""
    name = split if dataset == run.dataset else f"{dataset}-{split}"
    return run.path / f"eval-{quote(name, safe='+')}.json"


def keep(run: Run, found: Evaluation, position: Position) -> Path:
    """Write a measurement into the folder of its run; the file. position: of the checkpoint that was measured."""
    path = results_file(run, found.dataset, found.split)
    facts = {
        "format": FORMAT,
        "version": version("weakmcn"),
        "dataset": found.dataset,
        "split": found.split,
        "epoch": position.epoch,
        "step": position.step,
        "weights": "ema",
        "summary": found.summary,
        "baselines": found.baselines,
        "notes": found.notes,
        "records": [{name: getattr(record, name) for name in RECORD} for record in found.records],
    }
    write_json(path, facts, indent=None)
    return path


def read_results(path: Path) -> Kept:
    """A measurement that was kept; InputError for a file that is damaged or of another version."""
    try:
        facts = read_json(path)
        if facts["format"] != FORMAT:
            raise ValueError(f"format {facts['format']!r}, this version reads {FORMAT}")
        records = facts["records"]
        for record in records:
            _check(record)
        return Kept(
            path=path,
            dataset=str(facts["dataset"]),
            split=str(facts["split"]),
            epoch=int(facts["epoch"]),
            step=int(facts["step"]),
            summary={str(name): float(value) for name, value in facts["summary"].items()},
            records=records,
            notes=[str(note) for note in facts["notes"]],
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as fault:
        detail = f"no {fault}" if isinstance(fault, KeyError) else fault
        raise InputError(f"{path}: damaged ({detail}); measure the run again with weakmcn eval.") from fault


def all_results(run: Run) -> list[Kept]:
    """Every sound measurement in the run's folder, by file name."""
    found = []
    for path in sorted(run.path.glob(PATTERN)):
        try:
            found.append(read_results(path))
        except InputError:  # of a kill of an older version, or edited: `runs compare` says what is wrong with it
            continue
    return found


def _check(record: Any) -> None:
    figures = (record["box_iou"], record["mask_iou"])
    named = isinstance(record["key"], str) and isinstance(record["sentence"], str) and type(record["ref_id"]) is int
    if not named or not all(type(value) in (int, float) and 0 <= value <= 1 for value in figures):
        raise ValueError("a sentence has no key or no figures")
