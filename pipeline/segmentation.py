"""Ground-truth masks in all the forms data sets bring them -> COCO's compressed run lengths at photo size.

Every number is looked at before pycocotools sees it: a NaN in a polygon ends the process, an odd count of coordinates
silently drops a point, run lengths of the wrong sum decode as if nothing were wrong.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import open_memmap
from pycocotools import mask as coco_mask

from ..shards.codec import rle_decode, rle_encode
from ..shards.errors import AnnotationError, DamagedShardError
from .references import SLACK_PX, Reference
from .sources import is_whole

MEND = "make the masks again"
"""What to do about a mask file that cannot be used."""
MAX_OUTLINE_PX = 100_000
"""Length of one mask's polygons; pycocotools needs 50 bytes and 0.14 µs for each pixel of it."""
MAX_ALL_OUTLINES_PX = 300_000_000
"""Length of all polygons of a data set."""


def segmentation_fault(segmentation: Any, height: int, width: int) -> str | None:
    """What is wrong with a COCO segmentation of a photo of `height` x `width`, or None."""
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        return "has a mask that is neither polygons nor run lengths"
    for part in segmentation:
        fault = _rle_fault(part, height, width) if isinstance(part, dict) else _polygon_fault(part, height, width)
        if fault:
            return fault
    if outline_px(segmentation) > MAX_OUTLINE_PX:
        return f"has polygons longer than {MAX_OUTLINE_PX:,} px"
    return None


def outline_px(segmentation: Any) -> float:
    """Length of the polygons of a mask that passed the checks of its numbers, rows and columns counted apart."""
    polygons = [part for part in segmentation if isinstance(part, list)] if isinstance(segmentation, list) else []
    return sum(abs(here - there) for polygon in polygons for here, there in zip(polygon, polygon[2:], strict=False))


def run_lengths(reference: Reference) -> str | None:
    """A reference's mask as COCO's `counts` (ASCII), the union of its parts; None where it has none.

    Its segmentation must have passed `segmentation_fault`. AnnotationError for a mask file that is missing, no array of
    numbers or of another size than the photo.
    """
    if reference.mask_file is not None:
        return rle_encode(read_mask(reference.mask_file, reference.height, reference.width))
    if reference.segmentation is None:
        return None
    return counts_of(reference.segmentation, reference.height, reference.width)


def counts_of(segmentation: Any, height: int, width: int) -> str:
    """A COCO segmentation that passed `segmentation_fault` as COCO's `counts` (ASCII), the union of its parts."""
    parts = [segmentation] if isinstance(segmentation, dict) else segmentation
    # Published masks are sums over the parts: where parts overlap the object counts once.
    merged: Any = coco_mask.merge([_compressed(part, height, width) for part in parts])
    return merged["counts"].decode("ascii")


def read_mask(path: Path, height: int, width: int) -> np.ndarray:
    """The mask of a SimREC .npy as bool [h, w]; values above 0.5 are the object (quirk 20)."""
    array = _open_mask(path)
    if array.shape != (height, width):
        raise AnnotationError(
            f"{path}: a mask of {array.shape[1]}x{array.shape[0]}, its photo is {width}x{height}; {MEND}."
        )
    return np.asarray(array) > 0.5


def mask_size(path: Path) -> tuple[int, int]:
    """Rows and columns of the mask in a .npy, from its header. AnnotationError as `read_mask`."""
    height, width = _open_mask(path).shape
    return height, width


def _open_mask(path: Path) -> np.ndarray:
    try:
        array = open_memmap(path, mode="r")  # knows nothing of pickles and zips, as numpy.load does
    except Exception as error:  # a damaged header raises of every kind, depending on the byte
        reason = "missing" if isinstance(error, FileNotFoundError) else "not a whole .npy of numbers"
        raise AnnotationError(f"{path}: {reason}; {MEND}.") from None
    if array.ndim != 2 or array.dtype.kind not in "biuf":
        raise AnnotationError(f"{path}: not one mask of numbers with rows and columns; {MEND}.")
    return array


def _polygon_fault(polygon: Any, height: int, width: int) -> str | None:
    if not isinstance(polygon, list) or not all(type(value) in (int, float) for value in polygon):
        return "has a polygon that is no list of numbers"
    if len(polygon) < 6 or len(polygon) % 2:
        return f"has a polygon of {len(polygon)} numbers; three points or more have an even count of at least 6"
    try:
        points = np.array(polygon, np.float64).reshape(-1, 2)  # [points, 2], x y
    except OverflowError:
        return "has a polygon with a number beyond all photos"
    if not np.isfinite(points).all():
        return "has a polygon with a number that is not finite"
    if (points < -SLACK_PX).any() or (points > np.array([width, height]) + SLACK_PX).any():
        return f"has a polygon that leaves its photo of {width}x{height} by more than {SLACK_PX:g} px"
    return None


def _rle_fault(rle: dict[str, Any], height: int, width: int) -> str | None:
    counts = rle.get("counts")
    if rle.get("size") != [height, width]:
        return f"has run lengths for another size than its photo's [{height}, {width}]"
    if isinstance(counts, str):
        try:
            rle_decode(counts, height, width)
        except DamagedShardError:
            return "has run lengths that do not cover its photo exactly"
        return None
    if not isinstance(counts, list) or not all(is_whole(run) and run >= 0 for run in counts):
        return "has run lengths that are no whole numbers from 0 on"
    return None if sum(counts) == height * width else "has run lengths that do not cover its photo exactly"


def _compressed(part: Any, height: int, width: int) -> Any:
    """One polygon or RLE as pycocotools' own RLE, whose counts are bytes."""
    if isinstance(part, list):
        return coco_mask.frPyObjects([part], height, width)[0]
    if isinstance(part["counts"], list):
        return coco_mask.frPyObjects(part, height, width)
    return {"size": part["size"], "counts": part["counts"].encode("ascii")}
