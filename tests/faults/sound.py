"""Sound inputs of a few kilobytes: everything in this package is a damaged copy of them."""

import copy
import io
import json
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .commands import Commands

DATASET = "refcoco"
CHECKPOINT = "run/checkpoints/00000001"
"""Of the run of `make_pair`, without suffix."""
HEIGHT, WIDTH = 48, 64
SQUARE = [10, 8, 40, 8, 40, 30, 10, 30]
"""x 10 to 40, y 8 to 30."""


def name_of(image: int) -> str:
    return f"COCO_train2014_{image:012d}.jpg"


def picture(seed: int = 7, height: int = HEIGHT, width: int = WIDTH) -> Image.Image:
    """A picture with content in every block, so that no part of its file is idle."""
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


@dataclass
class Data:
    """A RefCOCO of three photographs, two of them in train, still in memory: to be changed, then written."""

    refs: Any
    instances: Any

    @classmethod
    def sound(cls) -> "Data":
        images = [{"id": n, "file_name": name_of(n), "height": HEIGHT, "width": WIDTH} for n in (1, 2, 3)]
        annotations = [
            {
                "id": 100 + n,
                "image_id": n,
                "category_id": 1,
                "bbox": [10, 8, 30, 22],
                "area": 660,
                "iscrowd": 0,
                "segmentation": [list(SQUARE)],
            }
            for n in (1, 2, 3)
        ]
        refs = [
            {
                "ref_id": n,
                "ann_id": 100 + n,
                "image_id": n,
                "category_id": 1,
                "file_name": f"{name_of(n)[:-4]}_{n}.jpg",
                "split": "val" if n == 3 else "train",
                "sent_ids": [2 * n, 2 * n + 1],
                "sentences": [
                    {"sent_id": 2 * n + i, "sent": text, "raw": text, "tokens": text.split()}
                    for i, text in enumerate(("left thing", "the grey one"))
                ],
            }
            for n in (1, 2, 3)
        ]
        categories = [{"id": 1, "name": "thing", "supercategory": "thing"}]
        return cls(refs, {"images": images, "annotations": annotations, "categories": categories})

    def add_photo(self, number: int) -> None:
        """One more photograph in train, with one reference."""
        name = name_of(number)
        image, annotation, ref = self.instances["images"][0], self.instances["annotations"][0], self.refs[0]
        self.instances["images"].append(image | {"id": number, "file_name": name})
        self.instances["annotations"].append(annotation | {"id": 100 + number, "image_id": number})
        self.refs.append(ref | {"ref_id": number, "ann_id": 100 + number, "image_id": number})

    def write(self, root: Path) -> Path:
        """Write photographs and annotations in the UNC layout; `root`."""
        write_photos(root)
        (root / DATASET).mkdir(parents=True)
        (root / DATASET / "instances.json").write_text(json.dumps(self.instances))
        (root / DATASET / "refs(unc).p").write_bytes(pickle.dumps(self.refs, protocol=2))
        return root


def write_photos(root: Path) -> None:
    folder = root / "images" / "train2014"
    folder.mkdir(parents=True)
    for number in (1, 2, 3):
        write_photo(root, number)


def write_photo(root: Path, number: int) -> None:
    photo_path(root, number).write_bytes(encoded(picture(number), quality=90))


def photo_path(root: Path, number: int = 2) -> Path:
    return root / "images" / "train2014" / name_of(number)


SIMREC: dict[str, Any] = {
    "train": [
        {"iid": n, "bbox": [10, 8, 30, 22], "cat_id": 0, "refs": ["left thing", "grey one"], "mask_id": n}
        for n in (1, 2)
    ],
    "val": [{"iid": 3, "bbox": [10, 8, 30, 22], "cat_id": 0, "refs": ["left thing"], "mask_id": 3}],
}
"""The same data set as a SimREC JSON."""


def write_simrec(root: Path, entries: Any) -> Path:
    """Write photographs, masks and a SimREC JSON; `root`."""
    write_photos(root)
    (root / "anns").mkdir(parents=True)
    (root / "anns" / f"{DATASET}.json").write_text(json.dumps(entries))
    (root / "masks" / DATASET).mkdir(parents=True)
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[8:30, 10:40] = 1
    for number in (1, 2, 3):
        np.save(root / "masks" / DATASET / f"{number}.npy", mask)
    return root


def changed(value: Any, *steps: Any) -> Any:
    """A copy of a nested value in which the place named by all but the last step holds the last step."""
    *places, last, new = steps
    value = copy.deepcopy(value)
    inner = value
    for place in places:
        inner = inner[place]
    inner[last] = new
    return value


def precompute(root: Path, store: Path, *more: object, split: str = "train") -> list[object]:
    """The command line that checks the data set below `root`, and would make one column of it."""
    words = ["precompute", "--data", root, "--dataset", DATASET, "--split", split, "--store", store]
    return [*words, "--preset", "pocket", "--stages", "detect", "--executor", "local", *more]


def make_pair(commands: Commands, folder: Path) -> None:
    """Write `data`, the `store` made of it with the pocket networks, and a `run` trained on that, as a user would."""
    Data.sound().write(folder / "data")
    made = ("precompute", "--data", "data", "--dataset", DATASET, "--split", "train,val", "--store", "store")
    trained = ("train", "--shards", "store", "--dataset", DATASET, "--out", "run", "--epochs", "1")
    for words in ((*made, "--preset", "pocket", "--executor", "local"), (*trained, "--set", "train.batch=2")):
        ended = commands.run(*words, folder=folder, seconds=120)
        assert ended.status == 0, ended.err
