"""Every annotated object of a photograph, those too that no reference names: what a report tells answers from."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from .datasets import find_dataset
from .references import as_box, box_fault
from .segmentation import counts_of, segmentation_fault
from .sources import read_source
from .unc import read_instances


@dataclass(frozen=True, kw_only=True)
class Thing:
    """One annotated object."""

    category: int
    box_photo: tuple[float, float, float, float]
    """x0 y0 x1 y1, photo pixels."""
    mask: str | None
    """COCO run lengths at the photo's size; None where there is none that can be used."""


def things_of(root: Path, dataset: str, keys: Collection[str]) -> dict[str, list[Thing]] | None:
    """The objects of each photograph of `keys`; None where the layout lists none but those that references name.

    Crowds and objects without a sound box are left out. AnnotationError where instances.json is broken.
    """
    spec = find_dataset(dataset)
    path = root / spec.folder / "instances.json"
    if not path.exists():
        return None
    instances = read_instances(read_source(path), spec)
    found: dict[str, list[Thing]] = {key: [] for key in keys}
    for record in instances.annotations.values():
        photo = instances.photos.get(record.get("image_id"))  # pyright: ignore[reportArgumentType]
        if photo is None or photo.key not in found or record.get("iscrowd"):
            continue
        if box_fault(record.get("bbox"), photo.height, photo.width):
            continue
        left, top, width, height = as_box(record["bbox"])
        segmentation = record.get("segmentation")
        sound = segmentation_fault(segmentation, photo.height, photo.width) is None
        found[photo.key].append(
            Thing(
                category=record["category_id"],
                box_photo=(left, top, left + width, top + height),
                mask=counts_of(segmentation, photo.height, photo.width) if sound else None,
            )
        )
    return found
