"""Annotations of all layouts -> references, checked record by record and against the published counts.

ROOT/refcoco/instances.json, refs(unc).p          UNC layout, see unc.py; taken where both are there
ROOT/anns/refcoco.json, ROOT/masks/refcoco/*.npy  SimREC layout, see simrec.py
ROOT/images/train2014/COCO_train2014_*.jpg        photographs; other usual places in PHOTO_FOLDERS
ROOT/pocket.json                                  marks a pocket world, for which no published count holds
ROOT/export.json                                  marks what `weakmcn export` wrote; none holds for that either
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..shards.choices import did_you_mean
from ..shards.errors import AnnotationError, ImageError, InputError
from .datasets import DatasetSpec, count_warnings, find_dataset
from .layouts import annotation_file
from .references import Reference, file_name_fault, is_blank
from .simrec import read_simrec
from .sources import clip, is_whole, parse_json, read_source
from .unc import read_unc

POCKET_FILE, EXPORT_FILE = "pocket.json", "export.json"
EXPORT_BYTES = 1 << 16
"""More than `weakmcn export` ever says."""
SOURCE = re.compile(r"[a-z][a-z0-9-]{0,39}")
"""How a collection of photographs is called."""
PHOTO_FOLDERS = (
    "images/mscoco/images/train2014",
    "images/train2014",
    "train2014",
    "images/saiapr_tc-12",
    "images/refclef",
    "images",
)
"""Where photographs are looked for below ROOT, in this order."""


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """One data set, read and checked."""

    root: Path
    spec: DatasetSpec
    source: str
    """Whose photographs these are: `coco`, `saiapr`, or a pocket world by its seed."""
    references: list[Reference]
    """Split by split in the published order (training first), inside a split in file order."""
    digests: dict[str, str] = field(default_factory=dict)
    """Annotation file -> SHA-256."""
    warnings: list[str] = field(default_factory=list)
    """What a user should know and nothing stops for, one line each."""

    @property
    def splits(self) -> list[str]:
        """Splits that are there, in their order."""
        return list(dict.fromkeys(reference.split for reference in self.references))

    def of(self, splits: Sequence[str]) -> list[Reference]:
        """The references of `splits`; InputError naming the splits present where one has none."""
        for split in splits:
            if split not in self.splits:
                raise InputError(
                    f"{self.spec.name} in {self.root} has no split {split!r}{did_you_mean(split, self.splits)}; "
                    f"splits present: {clip(', '.join(self.splits), 80)}."
                )
        wanted = set(splits)
        return [reference for reference in self.references if reference.split in wanted]


def load_annotations(root: Path, dataset: str) -> Annotations:
    """Find, read and check one data set below `root`.

    Raises InputError for an unknown name and AnnotationError, naming file and record, for files that are missing,
    broken or contradict each other.
    """
    spec, root = find_dataset(dataset), Path(root)
    path, is_unc = annotation_file(root, spec)
    loaded = read_unc(path, spec) if is_unc else read_simrec(path, root, spec)
    if not loaded.references:
        raise AnnotationError(f"{path}: has no reference at all; fetch it again.")
    told = _told_source(root)
    annotations = Annotations(
        root=root,
        spec=spec,
        source=told or spec.source,
        references=_split_by_split(loaded.references, spec),
        digests=loaded.digests,
        warnings=loaded.warnings,
    )
    if is_as_published(root):
        annotations.warnings.extend(count_warnings(annotations.references, spec))
    annotations.warnings.extend(_blank_warnings(annotations))
    annotations.warnings.extend(_shared_photo_warnings(annotations))
    return annotations


def load_references(root: Path, dataset: str) -> list[Reference]:
    """The references of one data set below `root`, all splits; errors as `load_annotations`."""
    return load_annotations(root, dataset).references


def find_photo(root: Path, file_name: str) -> Path:
    """Where a photograph is: the first of PHOTO_FOLDERS that has it, or else where it should be.

    ImageError for a name that would leave the folder.
    """
    if fault := file_name_fault(file_name):
        raise ImageError(f"a photo {fault}; correct the annotations.")
    folders = [root / folder for folder in PHOTO_FOLDERS if (root / folder).is_dir()]
    for folder in folders:
        if (folder / file_name).exists():
            return folder / file_name
    return (folders[0] if folders else root / PHOTO_FOLDERS[0]) / file_name


def _split_by_split(references: Iterable[Reference], spec: DatasetSpec) -> list[Reference]:
    order = {split: place for place, split in enumerate(spec.splits)}
    for reference in references:
        order.setdefault(reference.split, len(order))
    return sorted(references, key=lambda reference: order[reference.split])


def is_as_published(root: Path) -> bool:
    """Whether data sets below `root` should have their published counts: it is no pocket world, and no export."""
    return not (root / POCKET_FILE).exists() and exported_by(root) is None


def exported_by(root: Path) -> str | None:
    """The run whose pseudo labels lie in `root`, as it was named; None where they are nobody's predictions."""
    facts = _export_facts(root)
    return facts["run"] if facts else None


def fitting_preset(root: Path) -> str:
    """The networks for the photographs of `root`: those of the pocket world for what it drew, else the paper's."""
    return "pocket" if (_told_source(root) or "").startswith("pocket") else "refcoco"


def _told_source(root: Path) -> str | None:
    """Whose photographs they are, where `root` says so: of a pocket world, by its seed, or those of an export."""
    path = root / POCKET_FILE
    if path.exists():
        record = parse_json(read_source(path))
        seed = record.get("seed") if isinstance(record, dict) else None
        return f"pocket-{seed}" if is_whole(seed) else "pocket"
    facts = _export_facts(root)
    return facts["source"] if facts and SOURCE.fullmatch(facts["source"]) else None


def _export_facts(root: Path) -> dict[str, Any] | None:
    """What `weakmcn export` says of the labels in `root`; None for none, and for a file of this name by others."""
    path = root / EXPORT_FILE
    try:
        facts = json.loads(path.read_bytes()) if path.stat().st_size <= EXPORT_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    said = [facts.get(name) for name in ("run", "source")] if isinstance(facts, dict) else [None]
    return facts if all(isinstance(word, str) and word.isprintable() for word in said) else None


def _blank_warnings(annotations: Annotations) -> list[str]:
    blank = [
        (reference.ref_id, number)
        for reference in annotations.references
        for number, sentence in zip(reference.sent_ids, reference.sentences, strict=True)
        if is_blank(sentence)
    ]
    if not blank:
        return []
    return [
        f"{annotations.spec.name}: {len(blank):,} expressions without a word (first: reference {blank[0][0]}, sentence "
        f"{blank[0][1]}); training skips them, evaluation counts them as misses"
    ]


def _shared_photo_warnings(annotations: Annotations) -> list[str]:
    """Photographs of the training split that are also evaluated on: true of partitions by object (google)."""
    photos: dict[str, set[str]] = {}
    for reference in annotations.references:
        photos.setdefault(reference.split, set()).add(reference.key)
    train = photos.pop("train", set())
    shared = {split: len(train & others) for split, others in photos.items() if train & others}
    return [
        f"{annotations.spec.name}: {number:,} photos of {split} are also in train" for split, number in shared.items()
    ]
