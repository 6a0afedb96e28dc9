"""The UNC layout of REFER: FOLDER/instances.json in COCO's format, and FOLDER/refs(<partition>).p beside it.

A refs file is a list of {ref_id, ann_id, image_id, split, sentences: [{sent_id, sent, ...}], ...}. Box, mask and
category are those of the annotation it names; the photograph is the one of instances.json, because the refs' own
`file_name` carries a suffix and names no file. The refs may also be plain JSON, refs(<partition>).json.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..shards.errors import AnnotationError
from .datasets import DatasetSpec
from .images import MAX_PIXELS
from .references import (
    MAX_ALL_SENTENCES,
    MAX_SENTENCES,
    Loaded,
    Reference,
    as_box,
    box_fault,
    file_name_fault,
    is_image_id,
    photo_keys,
    sentence_fault,
    split_fault,
)
from .refs_pickle import parse_refs
from .segmentation import MAX_ALL_OUTLINES_PX, outline_px, segmentation_fault
from .sources import Faults, Source, brief, clip, is_whole, parse_json, read_source

_MEND = "correct these records or fetch the file again"


@dataclass(frozen=True)
class _Photo:
    key: str
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Instances:
    """What an instances.json holds, by id. Of its annotations only the ids are checked."""

    photos: dict[int, _Photo]
    annotations: dict[int, dict[str, Any]]
    categories: dict[int, str]


def refs_file(folder: Path, spec: DatasetSpec) -> Path | None:
    """The refs of a data set in FOLDER, or None where there are none."""
    for suffix in ("json", "p"):
        path = folder / f"refs({spec.partition}).{suffix}"
        if path.exists():
            return path
    return None


def read_unc(refs_path: Path, spec: DatasetSpec) -> Loaded:
    """All references of a refs file, checked against the instances.json beside it. AnnotationError names the record."""
    refs_source = read_source(refs_path)
    warnings: list[str] = []
    if refs_path.suffix == ".json":
        refs = parse_json(refs_source)
    else:
        refs, warnings = parse_refs(refs_source)
    instances_source = read_source(refs_path.with_name("instances.json"))
    instances = read_instances(instances_source, spec)
    if not isinstance(refs, list):
        raise AnnotationError(f"{refs_path}: holds {type(refs).__name__}, not a list of references; fetch it again.")
    faults = Faults(refs_path, _MEND)
    references: list[Reference] = []
    seen: set[int] = set()
    sentences, outlines_px = 0, 0.0
    for place, ref in enumerate(refs):
        ref_id = ref.get("ref_id") if isinstance(ref, dict) else None
        if not is_whole(ref_id):
            faults.add("record", f"reference at place {place} has no whole number as ref_id")
        elif ref_id in seen:
            faults.add("twice", f"reference {ref_id} is there twice")
        elif (reference := _reference(ref, ref_id, instances, faults)) is not None:
            references.append(reference)
            sentences += len(reference.sentences)
            outlines_px += outline_px(reference.segmentation)
            seen.add(ref_id)
        if sentences > MAX_ALL_SENTENCES:
            raise AnnotationError(f"{refs_path}: more than {MAX_ALL_SENTENCES:,} sentences; fetch the file again.")
        if outlines_px > MAX_ALL_OUTLINES_PX:
            raise AnnotationError(
                f"{instances_source.path}: polygons of more than {MAX_ALL_OUTLINES_PX:,} px; fetch the file again."
            )
    faults.raise_if_any()
    return Loaded(references, {source.path.name: source.sha256 for source in (refs_source, instances_source)}, warnings)


def read_instances(source: Source, spec: DatasetSpec) -> Instances:
    """The content of an instances.json; AnnotationError names what is no COCO format in it."""
    value = parse_json(source)
    for name in ("images", "annotations", "categories"):
        if not isinstance(value, dict) or not isinstance(value.get(name), list):
            raise AnnotationError(f"{source.path}: has no list {name!r}; is it COCO's instances format?")
    faults = Faults(source.path, _MEND)
    records = _by_id("image", value["images"], faults)
    annotations = _by_id("annotation", value["annotations"], faults)
    categories = _by_id("category", value["categories"], faults)
    owners: dict[str, int] = {}
    for number, record in records.items():
        if fault := _photo_fault(number, record):
            faults.add("image", f"image {number} {fault}")
        elif (owner := owners.setdefault(record["file_name"], number)) != number:
            name = brief(record["file_name"], 60)
            faults.add("file twice", f"images {owner} and {number} have the same file_name {name}")
    faults.raise_if_any()
    keys = photo_keys({number: record["file_name"] for number, record in records.items()}, spec.source)
    photos = {
        number: _Photo(keys[number], record["file_name"], record["height"], record["width"])
        for number, record in records.items()
    }
    names = {number: clip(str(record.get("name", "")), 60) for number, record in categories.items()}
    return Instances(photos, annotations, names)


def _by_id(kind: str, records: list[Any], faults: Faults) -> dict[int, dict[str, Any]]:
    found: dict[int, dict[str, Any]] = {}
    for place, record in enumerate(records):
        number = record.get("id") if isinstance(record, dict) else None
        if not is_whole(number):
            faults.add(f"{kind} id", f"{kind} at place {place} has no whole number as id")
        elif number in found:
            faults.add(f"{kind} twice", f"{kind} {number} is there twice")
        else:
            found[number] = record
    return found


def _photo_fault(number: int, record: dict[str, Any]) -> str | None:
    height, width = record.get("height"), record.get("width")
    if not is_image_id(number):
        return "has a number outside 0 to 999999999999"
    if type(height) is not int or type(width) is not int or height < 1 or width < 1 or height * width > MAX_PIXELS:
        return f"has the size {brief(width, 20)}x{brief(height, 20)}, not two numbers of pixels"
    return file_name_fault(record.get("file_name"))


def _reference(ref: dict[str, Any], ref_id: int, instances: Instances, faults: Faults) -> Reference | None:
    """One record of the refs, or None with its fault noted."""
    name = f"reference {ref_id}"
    annotation_id, image_id, split = ref.get("ann_id"), ref.get("image_id"), ref.get("split")
    if not is_whole(annotation_id) or (annotation := instances.annotations.get(annotation_id)) is None:
        label = brief(annotation_id, 30)
        faults.add("annotation", f"{name} names annotation {label}, which is not in instances.json")
        return None
    if not is_whole(image_id) or (photo := instances.photos.get(image_id)) is None:
        faults.add("photo", f"{name} names image {brief(image_id, 30)}, which is not in instances.json")
        return None
    if annotation.get("image_id") != image_id:
        faults.add("other photo", f"{name} names image {image_id}, but its annotation {annotation_id} lies in another")
        return None
    if not isinstance(split, str) or split_fault(split):
        faults.add("split", f"{name} {split_fault(split)}")
        return None
    sentences = _sentences(ref.get("sentences"), name, faults)
    box, segmentation = annotation.get("bbox"), annotation.get("segmentation")
    fault = box_fault(box, photo.height, photo.width) or segmentation_fault(segmentation, photo.height, photo.width)
    if fault:
        faults.add("box or mask", f"{name} (annotation {annotation_id}) {fault}")
        return None
    category = annotation.get("category_id")
    if not is_whole(category) or abs(category) >= 2**31:
        label = brief(category, 30)
        faults.add("category", f"{name} (annotation {annotation_id}) has category {label}, which is no number")
        return None
    return Reference(
        ref_id=ref_id,
        key=photo.key,
        image_id=image_id,
        file_name=photo.file_name,
        height=photo.height,
        width=photo.width,
        split=split,
        category=category,
        category_name=instances.categories.get(category, ""),
        box=as_box(box),
        segmentation=segmentation,
        sent_ids=tuple(number for number, _ in sentences),
        sentences=tuple(text for _, text in sentences),
    )


def _sentences(records: Any, name: str, faults: Faults) -> list[tuple[int, str]]:
    """(sent_id, sentence) of one reference; those that cannot be used are noted."""
    if not isinstance(records, (list, tuple)) or not 0 < len(records) <= MAX_SENTENCES:
        faults.add("sentences", f"{name} has no list of 1 to {MAX_SENTENCES:,} sentences")
        return []
    sentences = []
    for record in records:
        number = record.get("sent_id") if isinstance(record, dict) else None
        text = record.get("sent") if isinstance(record, dict) else None
        if not is_whole(number):
            faults.add("sent_id", f"{name} has a sentence without a whole number as sent_id")
        elif fault := sentence_fault(text):
            faults.add("sentence", f"{name}, sentence {number} {fault}")
        else:
            sentences.append((number, text))
    return sentences
