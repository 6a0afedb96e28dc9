"""How long the checks before a precompute take at RefCOCO's size: 19,994 photographs, 50,000 references.

    python tests/bench/preflight.py FOLDER [--share 0.1] [--decode]

FOLDER gets a data set of photographs of 640x480 in RefCOCO's layout and counts, 1.1 GB, if it has none yet; the index
goes to a temporary store beside it. Printed: seconds of each part, and the most memory this process held.
"""

import json
import pickle
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import cv2
import numpy as np
import typer
from weakmcn.pipeline.annotations import load_annotations
from weakmcn.pipeline.index import build_index
from weakmcn.pipeline.preflight import check_masks

IMAGES, OBJECTS, REFERENCES = 19_994, 196_771, 50_000
SPLITS = (("train", 16_994), ("val", 1_500), ("testA", 750), ("testB", 750))
HEIGHT, WIDTH = 480, 640
PATTERNS = 16
"""Different pictures; the files differ all the same, by a comment."""
T = TypeVar("T")


def write(root: Path, share: float) -> None:
    """Write the data set, or `share` of it."""
    images, objects, references = (max(8, round(share * number)) for number in (IMAGES, OBJECTS, REFERENCES))
    rng = np.random.default_rng(0)
    (root / "images" / "train2014").mkdir(parents=True)
    patterns = [_picture(rng) for _ in range(PATTERNS)]
    for number in range(images):
        data = patterns[number % PATTERNS]
        comment = f"photo {number}".encode()
        data = data[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + data[2:]
        (root / "images" / "train2014" / _name(number)).write_bytes(data)
    folder = root / "refcoco"
    folder.mkdir()
    instances = {
        "images": [{"id": n, "file_name": _name(n), "height": HEIGHT, "width": WIDTH} for n in range(images)],
        "annotations": [_object(number, number % images, rng) for number in range(objects)],
        "categories": [{"id": 1, "name": "person"}],
    }
    (folder / "instances.json").write_text(json.dumps(instances))
    (folder / "refs(unc).p").write_bytes(pickle.dumps(_references(images, references, share), protocol=2))


def _picture(rng: np.random.Generator) -> bytes:
    coarse = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(coarse, (WIDTH, HEIGHT)), [cv2.IMWRITE_JPEG_QUALITY, 80])[1].tobytes()


def _name(number: int) -> str:
    return f"COCO_train2014_{number:012d}.jpg"


def _object(number: int, image: int, rng: np.random.Generator) -> dict[str, Any]:
    """An object with an outline of 12 to 60 points."""
    width, height = (float(value) for value in rng.integers(20, 300, 2))
    left, top = float(rng.uniform(0, WIDTH - width)), float(rng.uniform(0, HEIGHT - height))
    angles = np.linspace(0, 2 * np.pi, int(rng.integers(12, 60)))
    outline = np.stack([left + width * (1 + np.cos(angles)) / 2, top + height * (1 + np.sin(angles)) / 2], axis=1)
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "bbox": [left, top, width, height],
        "segmentation": [[round(value, 2) for value in outline.ravel().tolist()]],
        "area": width * height,
        "iscrowd": 0,
    }


def _references(images: int, references: int, share: float) -> list[dict[str, Any]]:
    split_of = [split for split, count in SPLITS for _ in range(round(share * count))]
    found, spoken = [], 0
    for number in range(references):
        image = number % images
        sentences = []
        for _ in range(3 if number % 6 else 2):
            words = ["the", f"thing{spoken % 5_000}", "on", "the", "left"]
            sentences.append({"sent_id": spoken, "sent": " ".join(words), "raw": " ".join(words), "tokens": words})
            spoken += 1
        found.append(
            {
                "ref_id": number,
                "ann_id": number,
                "image_id": image,
                "category_id": 1,
                "file_name": f"{_name(image)[:-4]}_{number}.jpg",
                "split": split_of[min(image, len(split_of) - 1)],
                "sent_ids": [sentence["sent_id"] for sentence in sentences],
                "sentences": sentences,
            }
        )
    return found


def timed(what: str, work: Callable[[], T]) -> T:
    """The result of `work`; its seconds are printed."""
    begun = time.perf_counter()
    result = work()
    typer.echo(f"{what:<40} {time.perf_counter() - begun:6.1f} s")
    return result


def main(
    folder: Annotated[Path, typer.Argument(help="Of the data set.")],
    share: Annotated[float, typer.Option(help="Part of RefCOCO's size.")] = 1.0,
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode the photographs; else their headers must do, as in a dry run.")
    ] = False,
) -> None:
    """Time the checks, annotations first."""
    if not (folder / "refcoco" / "refs(unc).p").exists():
        timed("writing the data set", lambda: write(folder, share))
    annotations = timed("annotations", lambda: load_annotations(folder, "refcoco"))
    timed("masks", lambda: check_masks(annotations))
    store = folder.with_name(f"{folder.name}-store")
    report = timed(
        "everything, photographs decoded" if decode else "everything, photographs by their headers",
        lambda: build_index(store, folder, "refcoco", [split for split, _ in SPLITS], side=416, decoded=decode),
    )
    shutil.rmtree(store)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    typer.echo(f"{report.images_new:,} photographs, {report.refs:,} references; {peak:.1f} GB held at most")


if __name__ == "__main__":
    typer.run(main)
