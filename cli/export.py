"""`weakmcn export`: what a run says of every sentence of a split, as a data set that others train on."""

from collections import Counter
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import completion
from .options import DatasetOfRun, Device, StoreOfRun

if TYPE_CHECKING:
    from ..model.labels import Label
    from ..model.run import Run
    from ..pipeline.export import PseudoLabel
    from ..shards.store import Store


class Format(StrEnum):
    coco = "coco"
    simrec = "simrec"
    jsonl = "jsonl"


class MaskFrom(StrEnum):
    network = "network"
    sam = "sam"


class BoxFrom(StrEnum):
    predicted = "predicted"
    mask = "mask"


def export(
    run: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run.")],
    out: Annotated[Path, typer.Option(metavar="FILE|DIR", help="A file; for simrec a new folder.")],
    form: Annotated[Format, typer.Option("--format", help="Whose format.")],
    split: Annotated[str, typer.Option(help="train, val, testA, …", autocompletion=completion.splits)] = "train",
    shards: StoreOfRun = None,
    dataset: DatasetOfRun = None,
    mask: Annotated[
        MaskFrom | None,
        typer.Option(
            help="Whose masks: the network's, or SAM's of the chosen candidate.",
            show_default="network where the method has masks, else sam where the store has",
        ),
    ] = None,
    box: Annotated[
        BoxFrom, typer.Option(help="The box: predicted, or the mask's own, which holds all of the mask and no more.")
    ] = BoxFrom.predicted,
    min_score: Annotated[
        float | None,
        typer.Option(metavar="X", min=0, max=1, help="Leave out boxes of less objectness.", show_default="none"),
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            metavar="X", min=0, max=1, help="Leave out answers whose box and mask overlap less.", show_default="none"
        ),
    ] = None,
    device: Device = "auto",
) -> None:
    """Write pseudo labels: for every sentence of a split the box and mask that a run predicts.

    \b
    Needs    a run, and a store with the split: weakmcn precompute --split train
    Writes   coco     FILE, a data set for pycocotools: an annotation a sentence
             simrec   DIR/anns/DATASET.json and DIR/masks/DATASET/*.npy, an entry
                      a sentence: what RefCLIP's students are trained with
             jsonl    FILE, a line a sentence: weakmcn eval --predictions FILE
    Example  weakmcn export --run runs/first --format coco --out labels.json
             weakmcn export --run runs/first --format simrec --out labels \\
                 --mask sam --min-agreement 0.5

    Boxes of coco and simrec are cut to the photograph; a box outside of it and a mask without a pixel are left out
    there, and told. Score is the detector's objectness; agreement the IoU of the predicted box and the box around the
    mask. Sentences that get no answer (no words, photograph skipped) are told, and make the exit code 3.
    """
    from ..model.run import Run
    from ..pipeline.datasets import ALIASES
    from ..pipeline.export import refuse_strangers
    from ..shards.errors import ConfigError
    from .who_answers import checkpoint_of, tell_notes

    opened = Run.open(run)
    store = opened.open_store(shards)
    opened.check_columns(store)
    name = ALIASES.get(dataset, dataset) if dataset else opened.dataset
    masks = _masks(opened, store, mask)
    if masks is None and (box == BoxFrom.mask or min_agreement is not None):
        raise ConfigError("--box mask and --min-agreement need masks; make them: weakmcn precompute --stages masks.")
    if form != Format.simrec:
        if out.is_dir():
            raise ConfigError(f"--out {out}: is a folder; name a file, {out / f'{name}-{split}.json'} for example.")
        refuse_strangers(out)
    facts = {
        **{"run": str(run), "method": opened.facts["method"], "dataset": name, "split": split},
        **{"mask": masks, "box": str(box), "min_score": min_score, "min_agreement": min_agreement},
        "checkpoint": checkpoint_of(opened),
        "source": _source(store, name),
    }
    tell_notes(opened)
    told = _Told()
    found = _labels(opened, store, name, split, masks, device)
    rows = _kept(_pseudo(found, store, name, box, told), told, min_score=min_score, min_agreement=min_agreement)
    written = _write(form, out, name, split, rows, facts, told, store)
    typer.echo(f"{name} {split}: {told.sentences:,} sentences, {written:,} labels")
    for why, count in told.left_out.items():
        typer.echo(f"left out: {count:,}, {why}")
    typer.echo(f"wrote {out}")
    if told.unanswered:
        raise typer.Exit(3)


class _Told:
    """What is counted on the way."""

    def __init__(self) -> None:
        self.sentences = 0
        self.unanswered = 0
        self.left_out: Counter[str] = Counter()


def _masks(run: "Run", store: "Store", asked: MaskFrom | None) -> str | None:
    """Whose masks; ConfigError for those that the method does not have."""
    from ..shards.errors import ConfigError

    if not run.method.boxes:
        raise ConfigError(f"{run.path}: {run.facts['method']} predicts no boxes; export from a run that does.")
    if asked == MaskFrom.network and not run.method.predicts_masks(run.model):
        raise ConfigError(f"--mask network: {run.facts['method']} predicts no masks; write --mask sam.")
    if asked is not None:
        return str(asked)
    if run.method.predicts_masks(run.model):
        return "network"
    return "sam" if "masks" in store.families else None


def _source(store: "Store", dataset: str) -> str:
    """Whose photographs a data set is about."""
    sources = dict(zip(store.keys, store.images["source"].to_pylist(), strict=True))
    return sources[store.references(dataset)["key"][0].as_py()]


def _labels(run: "Run", store: "Store", dataset: str, split: str, masks: str | None, device: str) -> Iterator["Label"]:
    from ..model.labels import labels
    from ..model.run import device_of

    return labels(
        run.network(device=device_of(device)),
        vocabulary=run.vocabulary,
        method=run.method,
        config=run.model,
        store=store,
        dataset=dataset,
        split=split,
        masks=masks,
    )


def _pseudo(
    found: Iterator["Label"], store: "Store", dataset: str, box: BoxFrom, told: _Told
) -> Iterator["PseudoLabel"]:
    """The labels as they are exported; sentences without an answer are counted."""
    import numpy as np

    from ..model.metrics import box_iou
    from ..pipeline.export import PseudoLabel, image_ids, tight_box
    from ..shards.codec import rle_encode

    files = dict(zip(store.keys, store.images["file"].to_pylist(), strict=True))
    numbers = image_ids(files)
    table = store.references(dataset).select(["ref_id", "category", "category_name"]).to_pylist()
    categories = {row["ref_id"]: (row["category"], row["category_name"]) for row in table}
    for label in found:
        told.sentences += 1
        if label.box is None:
            told.unanswered += 1
            told.left_out[str(label.miss)] += 1
            continue
        key = label.reference.key
        letterbox = store.letterbox(key)
        corners = label.box.clip(0, [letterbox.width, letterbox.height] * 2)
        around = None if label.mask is None else tight_box(label.mask)
        agreement = None
        if label.mask is not None:
            agreement = 0.0 if around is None else float(box_iou(corners, np.array(around)))
        category, category_name = categories[label.reference.ref_id]
        exported = around if box == BoxFrom.mask and around is not None else tuple(label.box.tolist())
        yield PseudoLabel(
            number=label.number,
            ref_id=label.reference.ref_id,
            sent_id=label.reference.sent_ids[label.place],
            phrase=label.sentence,
            image_id=numbers[key],
            file_name=files[key],
            height=letterbox.height,
            width=letterbox.width,
            category=category,
            category_name=category_name,
            box=exported,
            mask=None if label.mask is None else rle_encode(label.mask),
            score=label.objectness,
            candidate=label.candidate,
            similarity=label.similarity,
            agreement=agreement,
        )


def _kept(
    rows: Iterator["PseudoLabel"], told: _Told, *, min_score: float | None, min_agreement: float | None
) -> Iterator["PseudoLabel"]:
    """The labels that pass the filters; the others are counted, each for the first that it fails."""
    for row in rows:
        if min_score is not None and row.score < min_score:
            told.left_out[f"objectness below {min_score:g} (--min-score)"] += 1
        elif min_agreement is not None and (row.agreement or 0.0) < min_agreement:
            told.left_out[f"box and mask overlap less than {min_agreement:g} (--min-agreement)"] += 1
        else:
            yield row


def _usable(rows: Iterator["PseudoLabel"], told: _Told) -> Iterator["PseudoLabel"]:
    """The labels that can be in a data set; the others are counted."""
    from ..pipeline.export import unusable

    for row in rows:
        if why := unusable(row):
            told.left_out[why] += 1
        else:
            yield row


def _write(
    form: Format,
    out: Path,
    dataset: str,
    split: str,
    rows: Iterator["PseudoLabel"],
    facts: Mapping[str, Any],
    told: _Told,
    store: "Store",
) -> int:
    """Write the labels; how many."""
    from ..pipeline.export import prepare_simrec, write_coco, write_lines, write_simrec

    if form == Format.jsonl:
        return write_lines(out, _some(rows, told))
    usable = _some(_usable(rows, told), told)
    if form == Format.simrec:
        prepare_simrec(out, dataset, facts, needed=_mask_bytes(store, dataset, split) if facts["mask"] else 0)
        return write_simrec(out, dataset, split, usable)
    labels = list(usable)
    table = store.references(dataset).select(["category", "category_name"]).to_pylist()
    write_coco(out, labels, facts, {row["category"]: row["category_name"] for row in table})
    return len(labels)


def _some(rows: Iterator["PseudoLabel"], told: _Told) -> Iterator["PseudoLabel"]:
    """The rows; WeakmcnError at the end if there was none, so that nothing is published."""
    from ..pipeline.export import NO_PIXEL
    from ..shards.errors import WeakmcnError

    count = 0
    for row in rows:
        count += 1
        yield row
    if not count:
        why = "; ".join(f"{count:,}: {reason}" for reason, count in told.left_out.items())
        mend = "write --mask sam" if NO_PIXEL in told.left_out else "ask for less"
        raise WeakmcnError(f"no label is left, so nothing was written ({why}); {mend}.")


def _mask_bytes(store: "Store", dataset: str, split: str) -> int:
    """What the masks of all sentences take as SimREC keeps them, a byte a pixel."""
    rows = store.references(dataset).select(["key", "split", "sentences"]).to_pylist()
    sizes = {key: store.letterbox(key) for key in {row["key"] for row in rows if row["split"] == split}}
    return sum(
        sizes[row["key"]].height * sizes[row["key"]].width * len(row["sentences"])
        for row in rows
        if row["split"] == split
    )
