"""The SimREC layout: ROOT/anns/<name>.json (or ROOT/anns/<name>/<name>.json), masks in ROOT/masks/<name>/<mask_id>.npy.

The file maps a split to entries {iid, bbox: [x, y, w, h], cat_id, refs: [sentence], mask_id}. A training entry is an
object with all its sentences, one of val or test a single sentence; entries of one object (mask_id, iid and bbox alike)
become one reference. `mask_id` is REFER's ref_id; sentences have no numbers and are counted in file order over the
whole file, which does not give the photographs' sizes: they are those of the masks, and unknown where there are none.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..shards.errors import AnnotationError
from .datasets import COCO_CATEGORIES, DatasetSpec
from .references import (
    MAX_SENTENCES,
    Loaded,
    Reference,
    as_box,
    box_fault,
    is_image_id,
    photo_keys,
    sentence_fault,
    split_fault,
)
from .segmentation import mask_size
from .sources import Faults, clip, is_whole, parse_json, read_source


@dataclass
class _Object:
    """The entries of one referred object."""

    split: str
    image_id: int
    box: Any
    category: int
    sent_ids: list[int] = field(default_factory=list)
    sentences: list[str] = field(default_factory=list)


def simrec_file(root: Path, spec: DatasetSpec) -> Path | None:
    """The JSON of a data set below ROOT, or None where there is none."""
    for name in spec.simrec:
        for path in (root / "anns" / f"{name}.json", root / "anns" / name / f"{name}.json"):
            if path.exists():
                return path
    return None


def read_simrec(path: Path, root: Path, spec: DatasetSpec) -> Loaded:
    """All references of a SimREC JSON. AnnotationError names the record."""
    source = read_source(path)
    faults = Faults(path, "correct these entries or convert the data set again")
    objects = _objects(parse_json(source), path, faults)
    file_names = {one.image_id: spec.photo_name.format(one.image_id) for one in objects.values()}
    keys = photo_keys(file_names, spec.source)
    masks: Path | None = root / "masks" / path.stem
    warnings: list[str] = []
    if not masks.is_dir():
        warnings.append(f"{masks}: no folder of masks; boxes can be evaluated, masks cannot")
        masks = None
    sizes: dict[int, tuple[int, int]] = {}
    references: list[Reference] = []
    for ref_id, one in objects.items():
        name = f"entry with mask_id {ref_id}"
        mask_file = masks / f"{ref_id}.npy" if masks else None
        if mask_file is not None and not mask_file.is_file():
            faults.add("mask", f"{name} has no mask {mask_file.relative_to(root)}")
            continue
        if one.image_id not in sizes:
            sizes[one.image_id] = mask_size(mask_file) if mask_file is not None else (0, 0)
        height, width = sizes[one.image_id]
        if fault := box_fault(one.box, height, width):
            faults.add("box", f"{name} {fault}")
            continue
        category, category_name = _category(one.category, spec)
        references.append(
            Reference(
                ref_id=ref_id,
                key=keys[one.image_id],
                image_id=one.image_id,
                file_name=file_names[one.image_id],
                height=height,
                width=width,
                split=one.split,
                category=category,
                category_name=category_name,
                box=as_box(one.box),
                mask_file=mask_file,
                sent_ids=tuple(one.sent_ids),
                sentences=tuple(one.sentences),
            )
        )
    faults.raise_if_any()
    return Loaded(references, {path.name: source.sha256}, warnings)


def sentences_in_file_order(path: Path) -> list[str]:
    """Every sentence of a SimREC JSON, split after split as they stand: their words number the authors' word tables.

    AnnotationError names the record that is broken.
    """
    faults = Faults(path, "pass the file that the checkpoint was trained with")
    sentences: list[str] = []
    for split, entries in _splits(parse_json(read_source(path)), path).items():
        for place, entry in enumerate(entries):
            fault = _entry_fault(entry) or next(filter(None, map(sentence_fault, entry["refs"])), None)
            if fault:
                faults.add(fault, f"entry {place} of {clip(split, 30)} {fault}")
            else:
                sentences += entry["refs"]
    faults.raise_if_any()
    return sentences


def _splits(value: Any, path: Path) -> dict[str, list[Any]]:
    if not isinstance(value, dict) or not all(isinstance(entries, list) for entries in value.values()):
        raise AnnotationError(f"{path}: not a list of entries for every split; is it SimREC's format?")
    return value


def _objects(value: Any, path: Path, faults: Faults) -> dict[int, _Object]:
    """The objects by mask_id, in file order; entries of one object joined."""
    objects: dict[int, _Object] = {}
    spoken = 0
    for split, entries in _splits(value, path).items():
        if fault := split_fault(split):
            faults.add("split", fault)
            continue
        for place, entry in enumerate(entries):
            name = f"entry {place} of {clip(split, 30)}"
            if fault := _entry_fault(entry):
                faults.add(fault, f"{name} {fault}")
                continue
            one = objects.setdefault(
                entry["mask_id"], _Object(split, entry["iid"], entry.get("bbox"), entry.get("cat_id"))
            )
            if (one.split, one.image_id, one.box) != (split, entry["iid"], entry.get("bbox")):
                faults.add("contradicts", f"{name} contradicts another entry of mask_id {entry['mask_id']}")
                continue
            for sentence in entry["refs"]:
                if fault := sentence_fault(sentence):
                    faults.add("sentence", f"{name} {fault}")
                one.sent_ids.append(spoken)
                one.sentences.append(sentence)
                spoken += 1
    return objects


def _entry_fault(entry: Any) -> str | None:
    if not isinstance(entry, dict) or not is_whole(entry.get("mask_id")):
        return "has no whole number as mask_id"
    if not is_image_id(entry.get("iid")):
        return "has no photo number as iid"
    if not is_whole(entry.get("cat_id")) or not 0 <= entry["cat_id"] < 2**31:
        return "has no category number as cat_id"
    if not isinstance(entry.get("refs"), list) or not 0 < len(entry["refs"]) <= MAX_SENTENCES:
        return f"has no list of 1 to {MAX_SENTENCES:,} sentences as refs"
    return None


def _category(number: int, spec: DatasetSpec) -> tuple[int, str]:
    if spec.source == "coco" and number < len(COCO_CATEGORIES):
        return COCO_CATEGORIES[number]
    return number, ""
