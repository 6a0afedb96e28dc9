"""Small annotation files in the formats of REFER and SimREC, for tests to read, bend and break."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weakmcn.pipeline.annotations import load_references
from weakmcn.shards.errors import WeakmcnError

SQUARE = [2, 3, 6, 3, 6, 8, 2, 8]
"""x 2 to 6, y 3 to 8."""

INSTANCES: dict[str, Any] = {
    "images": [
        {"id": 7, "file_name": "COCO_train2014_000000000007.jpg", "height": 10, "width": 12},
        {"id": 30, "file_name": "COCO_train2014_000000000030.jpg", "height": 20, "width": 20},
    ],
    "annotations": [
        {"id": 50, "image_id": 7, "category_id": 1, "bbox": [2, 3, 4, 5], "segmentation": [SQUARE], "iscrowd": 0},
        {"id": 51, "image_id": 30, "category_id": 90, "bbox": [0.5, 1, 3, 4], "segmentation": [[0, 1, 4, 1, 4, 5]]},
    ],
    "categories": [{"id": 1, "name": "person"}, {"id": 90, "name": "toothbrush"}],
}


def reference(ref_id: int, ann_id: int, image_id: int, split: str, sentences: list[str], first: int) -> dict[str, Any]:
    """One record as REFER writes it, what we do not read included."""
    return {
        "ref_id": ref_id,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 1,
        "file_name": f"COCO_train2014_{image_id:012d}_{ann_id}.jpg",
        "split": split,
        "sent_ids": [first + i for i in range(len(sentences))],
        "sentences": [
            {"sent_id": first + i, "sent": sent, "raw": sent.upper(), "tokens": sent.split()}
            for i, sent in enumerate(sentences)
        ],
    }


REFS: list[dict[str, Any]] = [
    reference(1, 51, 30, "val", ["thing on the left", "brush"], 3),
    reference(0, 50, 7, "train", ["the lady", "woman in blue", "left"], 0),
]


def write_unc(root: Path, refs: Any = REFS, instances: Any = INSTANCES, protocol: int = 2) -> Path:
    """A data set in the UNC layout; the path of its refs."""
    folder = root / "refcoco"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "instances.json").write_text(json.dumps(instances))
    path = folder / "refs(unc).p"
    path.write_bytes(pickle.dumps(refs, protocol=protocol))
    return path


def write_simrec(root: Path, entries: dict[str, list[dict[str, Any]]], masks: dict[int, np.ndarray] | None) -> Path:
    """A data set in the SimREC layout; the path of its JSON."""
    path = root / "anns" / "refcoco.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(entries))
    for mask_id, mask in (masks or {}).items():
        (root / "masks" / "refcoco").mkdir(parents=True, exist_ok=True)
        np.save(root / "masks" / "refcoco" / f"{mask_id}.npy", mask)
    return path


def refusal(action: Callable[[], object], root: Path) -> str:
    """The one line of at most 300 characters (the folder's name aside) with which the input is refused."""
    with pytest.raises(WeakmcnError) as caught:
        action()
    message = str(caught.value)
    assert caught.value.exit_code == 2
    assert "\n" not in message
    assert len(message.replace(str(root), "ROOT")) <= 300
    return message.replace(str(root), "ROOT")


def refused(root: Path, dataset: str = "refcoco") -> str:
    """The line with which the data set in `root` is refused."""
    return refusal(lambda: load_references(root, dataset), root)


SIMREC = {
    "train": [
        {"iid": 7, "bbox": [2, 3, 4, 5], "cat_id": 0, "refs": ["the lady", "woman in blue", "left"], "mask_id": 0}
    ],
    "val": [
        {"iid": 30, "bbox": [0.5, 1, 3, 4], "cat_id": 79, "refs": ["thing on the left"], "mask_id": 1},
        {"iid": 30, "bbox": [0.5, 1, 3, 4], "cat_id": 79, "refs": ["brush"], "mask_id": 1},
    ],
}
"""The same data set as a SimREC JSON."""
