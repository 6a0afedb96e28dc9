"""Records of the pocket world in the forms of COCO's instances and REFER's references.

Masks come in both forms that COCO knows: polygons, and compressed run lengths for outlines with a hole or of many
corners. Either gives back the very pixels of the mask when pycocotools draws it.
"""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from .scenes import ROUND_SHAPES, SHAPES, Scene, Thing

_MOST_CORNERS = 100
_UPSCALE = 3


def image_name(image_id: int) -> str:
    """File name of a photograph, as in COCO 2014."""
    return f"COCO_train2014_{image_id:012d}.jpg"


def image_record(image_id: int, scene: Scene) -> dict[str, Any]:
    """An entry of `images`."""
    height, width = scene.image.shape[:2]
    return {"id": image_id, "file_name": image_name(image_id), "height": height, "width": width, "license": 1}


def category_records() -> list[dict[str, Any]]:
    """All entries of `categories`: the shapes, in order, from 1."""
    return [
        {"id": number, "name": shape, "supercategory": "round" if shape in ROUND_SHAPES else "angular"}
        for number, shape in enumerate(SHAPES, start=1)
    ]


def annotation_record(annotation_id: int, image_id: int, thing: Thing) -> dict[str, Any]:
    """An entry of `annotations`; box x y w h and area are those of the mask, photo pixels."""
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": SHAPES.index(thing.shape) + 1,
        "segmentation": segmentation(thing),
        "area": float(thing.area),
        "bbox": list(thing.box),
        "iscrowd": 0,
    }


def reference_record(
    *,
    ref_id: int,
    ann_id: int,
    image_id: int,
    thing: Thing,
    split: str,
    first_sentence: int,
    sentences: Sequence[str],
) -> dict[str, Any]:
    """An entry of `refs(*).p`. Its `file_name` carries the annotation's number, as in the published files."""
    sent_ids = list(range(first_sentence, first_sentence + len(sentences)))
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "category_id": SHAPES.index(thing.shape) + 1,
        "image_id": image_id,
        "file_name": image_name(image_id).replace(".jpg", f"_{ann_id}.jpg"),
        "split": split,
        "sent_ids": sent_ids,
        "sentences": [
            {"sent_id": sent_id, "sent": sentence, "raw": sentence, "tokens": sentence.split()}
            for sent_id, sentence in zip(sent_ids, sentences, strict=True)
        ],
    }


def segmentation(thing: Thing) -> list[list[float]] | dict[str, Any]:
    """Polygons, flat x y lists in photo pixels, or {"size": [h, w], "counts": str}."""
    polygons = _polygons(thing)
    if polygons is not None:
        return polygons
    encoded: Any = coco_mask.encode(np.asfortranarray(thing.mask.view(np.uint8)))
    return {"size": list(thing.mask.shape), "counts": encoded["counts"].decode("ascii")}


def _polygons(thing: Thing) -> list[list[float]] | None:
    """The outlines of a mask, or None where they have a hole or too many corners."""
    x, y, w, h = map(int, thing.box)
    # Enlarged, so that the outline runs along the edges of the pixels instead of through their middles.
    patch = thing.mask[y : y + h, x : x + w].view(np.uint8)
    fine = cv2.resize(patch, (w * _UPSCALE, h * _UPSCALE), interpolation=cv2.INTER_NEAREST)
    contours, hierarchy = cv2.findContours(fine, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    corners = [cv2.approxPolyDP(contour, 1.0, closed=True)[:, 0] for contour in contours]
    has_hole = (hierarchy[0, :, 3] >= 0).any()
    if has_hole or sum(map(len, corners)) > _MOST_CORNERS or min(map(len, corners)) < 3:
        return None
    return [((points + 0.5) / _UPSCALE + (x, y)).round(1).ravel().tolist() for points in corners]
