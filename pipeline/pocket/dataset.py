"""The pocket world as files: a data set in the very formats of RefCOCO, RefCOCO+ and RefCOCOg.

    ROOT/images/train2014/COCO_train2014_000000000001.jpg   photographs
    ROOT/<flavour>/instances.json                           COCO: every thing of every photo; the categories are shapes
    ROOT/<flavour>/refs(unc).p   (refcocog: refs(umd).p)    pickle, protocol 2, of lists, dicts, strings and integers
    ROOT/pocket.json                                        what was asked for and what there is; written last

A photograph depends on the seed and its number alone, so the flavours of one root share them, as the real data sets
share COCO's. Splits are drawn by photo, and alike for every flavour:

| split | photos | refers to |
|---|---|---|
| train | the rest | anything |
| val | 5 % | anything |
| testA | 4 % | things with a curved outline (`ROUND_SHAPES`); RefCOCO's refers to people |
| testB | 4 % | things with straight edges; RefCOCO's refers to all but people |
| test | 8 % | anything; takes the place of testA and testB in refcocog |

The two tests take turns at the photos; one with nothing to say for its turn goes to the other test.
"""

import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np

from ...shards.atomic import finished_file, write_json
from ...shards.errors import InputError
from ...shards.records import read_json
from ..progress import Progress
from ..sources import clip
from .coco import annotation_record, category_records, image_name, image_record, reference_record
from .expressions import Flavour, describe
from .painting import pick
from .scenes import ROUND_SHAPES, Scene, draw_scene, scene_rng

PARTITIONS: dict[Flavour, str] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
MIN_IMAGES = 32
"""Eight photographs for each of four splits."""
MARKER = "pocket.json"

_STARTED = "pocket-started.json"
_VERSION = 1
_JPEG_QUALITY = 90
_SPLIT_STREAM, _WORDS_STREAM = 3, 4
"""First number of seeds that are neither of the domains of `scene_rng`."""

Split = Literal["train", "val", "testA", "testB", "test"]


@dataclass(frozen=True, kw_only=True)
class PocketSummary:
    """What a data set holds; `splits` maps a split to its counts of images (with references), references, sentences."""

    root: Path
    flavour: Flavour
    images: int
    seed: int
    splits: dict[str, dict[str, int]]
    kept: bool
    """It was there before, finished, and was left as it is."""

    @property
    def unasked(self) -> str:
        """Of the photographs without a reference, which no split has; "" where there are none."""
        count = self.images - sum(counts["images"] for counts in self.splits.values())
        return f"{count:,} of {self.images:,} photographs without a sentence, in no split" if count else ""


def require_pocket(root: Path, *, flavour: Flavour, images: int, seed: int) -> None:
    """Raise what `write_pocket` would, and write nothing."""
    _fitting(Path(root), flavour, images, seed)


def write_pocket(
    root: Path, *, flavour: Flavour, images: int, seed: int, progress: Progress | None = None
) -> PocketSummary:
    """Write a data set of `images` photographs, about two references each; same arguments, same bytes.

    A finished one is kept, one that was interrupted is written again, another flavour of the same images and seed joins
    what is there.

    Raises:
        InputError: an unknown flavour, too few images, a negative seed, or `root` holds something else.
    """
    root = Path(root)
    asked, finished = _fitting(root, flavour, images, seed)
    if flavour not in finished:
        write_json(root / _STARTED, asked)
        if progress:
            progress.begin("pocket", done=0, total=images)
        counts = _write_flavour(root, flavour, images, seed, with_photos=not finished, progress=progress)
        write_json(root / MARKER, {**asked, "flavours": {**finished, flavour: counts}})
    else:
        counts = finished[flavour]
    (root / _STARTED).unlink(missing_ok=True)
    splits = {split: counts[split] for split in get_args(Split) if split in counts}
    return PocketSummary(root=root, flavour=flavour, images=images, seed=seed, splits=splits, kept=flavour in finished)


def _fitting(
    root: Path, flavour: Flavour, images: int, seed: int
) -> tuple[dict[str, int], dict[str, dict[str, dict[str, int]]]]:
    """What a data set is made from, and its flavours that are there; InputError as `write_pocket` raises it."""
    if flavour not in PARTITIONS:
        raise InputError(f"There is no flavour '{flavour}' of the pocket world; take one of {', '.join(PARTITIONS)}.")
    if images < MIN_IMAGES:
        raise InputError(f"A pocket data set of {images} images cannot fill its splits; ask for {MIN_IMAGES} or more.")
    if seed < 0:
        raise InputError(f"The seed {seed} is negative; take 0 or more.")
    asked = {"version": _VERSION, "images": images, "seed": seed}
    return asked, _finished_flavours(root, asked)


def _finished_flavours(root: Path, asked: dict[str, int]) -> dict[str, dict[str, dict[str, int]]]:
    """Counts of the flavours that are in `root` already; InputError if anything else is."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root} is a file; name a new folder for the pocket data set.")
    for name in (MARKER, _STARTED):
        try:
            found = read_json(root / name)
            flavours = dict(found.pop("flavours", {}))
        except FileNotFoundError:
            continue
        except (ValueError, TypeError, AttributeError):
            raise InputError(f"{root / name} is damaged; remove the folder {root} or name a new one.") from None
        if found != asked:
            is_other = {key: value for key, value in found.items() if value != asked.get(key)}
            settings = clip(", ".join(f"{key} {value}" for key, value in is_other.items()), 80)
            wanted = ", ".join(f"{key} {value}" for key, value in asked.items() if found.get(key) != value)
            raise InputError(
                f"{root} holds a pocket data set of {settings}, this one is of {wanted}; ask for the same or "
                "name a new folder."
            )
        return {
            flavour: counts for flavour, counts in flavours.items() if all(p.exists() for p in _files(root, flavour))
        }
    if root.exists() and any(root.iterdir()):
        raise InputError(f"{root} is not empty and holds no pocket data set; name a new folder.")
    return {}


def _files(root: Path, flavour: Flavour) -> tuple[Path, Path]:
    """The instances and the references of a flavour."""
    return root / flavour / "instances.json", root / flavour / f"refs({PARTITIONS[flavour]}).p"


def _write_flavour(
    root: Path, flavour: Flavour, images: int, seed: int, *, with_photos: bool, progress: Progress | None
) -> dict[str, dict[str, int]]:
    """Draw every photograph, say what there is to say of it, write the files; counts by split."""
    folder = root / "images" / "train2014"
    folder.mkdir(parents=True, exist_ok=True)
    plan = _plan_splits(flavour, images, seed)
    counts = {split: {"images": 0, "references": 0, "sentences": 0} for splits in plan for split in splits}
    photos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    references: list[dict[str, Any]] = []
    for index, splits in enumerate(plan):
        scene = draw_scene(scene_rng("world", seed, index))
        if with_photos:
            _write_photo(folder / image_name(index + 1), scene.image)
        photos.append(image_record(index + 1, scene))
        # Of the splits a photo may go to, the one with the fewest photos has its turn.
        turns = sorted(splits, key=lambda split: counts[split]["images"])
        split, said = _speak(scene, flavour, turns, seed, index)
        for thing, sentences in said:
            references.append(
                reference_record(
                    ref_id=len(references),
                    ann_id=len(annotations) + thing + 1,
                    image_id=index + 1,
                    thing=scene.things[thing],
                    split=split,
                    first_sentence=sum(count["sentences"] for count in counts.values()),
                    sentences=sentences,
                )
            )
            counts[split]["references"] += 1
            counts[split]["sentences"] += len(sentences)
        counts[split]["images"] += bool(said)
        annotations += [
            annotation_record(len(annotations) + place + 1, index + 1, thing)
            for place, thing in enumerate(scene.things)
        ]
        if progress:
            progress.advance(1)
    instances_path, references_path = _files(root, flavour)
    instances = {
        "info": {"description": f"weakmcn pocket world, flavour {flavour}, seed {seed}", "version": str(_VERSION)},
        "licenses": [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}],
        "images": photos,
        "annotations": annotations,
        "categories": category_records(),
    }
    with finished_file(instances_path) as scratch:
        scratch.write_text(json.dumps(instances, separators=(",", ":"), allow_nan=False), "utf-8")
    with finished_file(references_path) as scratch:
        scratch.write_bytes(pickle.dumps(references, protocol=2))
    return counts


def _plan_splits(flavour: Flavour, images: int, seed: int) -> list[tuple[Split, ...]]:
    """The splits each photograph may go to."""
    order = np.random.default_rng(np.random.SeedSequence([_SPLIT_STREAM, seed])).permutation(images)
    val, test = max(8, round(0.05 * images)), max(16, round(0.08 * images))
    plan: list[tuple[Split, ...]] = [("train",)] * images
    for index in order[:val]:
        plan[index] = ("val",)
    for index in order[val : val + test]:
        plan[index] = ("test",) if flavour == "refcocog" else ("testA", "testB")
    return plan


def _speak(
    scene: Scene, flavour: Flavour, turns: Sequence[Split], seed: int, index: int
) -> tuple[Split, list[tuple[int, list[str]]]]:
    """One to three things of a photograph with their sentences, and the first of the splits that these may be in."""
    stream = [_WORDS_STREAM, seed, index, list(PARTITIONS).index(flavour)]
    rng = np.random.default_rng(np.random.SeedSequence(stream))
    wanted = pick(rng, (1, 2, 2, 3))
    order = rng.permutation(len(scene.things))
    for split in turns:
        said: list[tuple[int, list[str]]] = []
        for thing in map(int, order):
            is_round = scene.things[thing].shape in ROUND_SHAPES
            if (split == "testA" and not is_round) or (split == "testB" and is_round):
                continue
            sentences = describe(scene, thing, flavour, rng)
            if sentences:
                said.append((thing, sentences))
            if len(said) == wanted:
                break
        if said:
            return split, said
    return turns[0], []


def _write_photo(path: Path, rgb: np.ndarray) -> None:
    """Write a JPEG; whether it is whole is for the marker to say."""
    _, encoded = cv2.imencode(".jpg", rgb[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    path.write_bytes(encoded.tobytes())
