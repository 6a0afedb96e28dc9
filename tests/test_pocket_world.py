"""The pocket world keeps its rules: scenes that are no gift, and real files in the real formats."""

import hashlib
import json
import pickle
import pickletools
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from weakmcn.pipeline.pocket.coco import segmentation
from weakmcn.pipeline.pocket.dataset import write_pocket
from weakmcn.pipeline.pocket.expressions import Flavour, describe
from weakmcn.pipeline.pocket.scenes import (
    COLOURS,
    ROUND_SHAPES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    draw_scene,
    scene_rng,
)
from weakmcn.shards.errors import InputError

FLAVOURS: tuple[Flavour, ...] = ("refcoco", "refcoco+", "refcocog")
DECODE_WARNS = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
"""pycocotools 2.0 under NumPy 2."""


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(scene_rng("world", 11, index)) for index in range(200)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pocket") / "data"
    for flavour in FLAVOURS:
        write_pocket(folder, flavour=flavour, images=40, seed=5)
    return folder


class Classless(pickle.Unpickler):
    """Reads plain values and no class at all."""

    def find_class(self, module: str, name: str) -> object:
        raise AssertionError(f"{module}.{name}")


def refs(root: Path, flavour: Flavour) -> list[dict]:
    partition = "umd" if flavour == "refcocog" else "unc"
    with (root / flavour / f"refs({partition}).p").open("rb") as file:
        return Classless(file).load()


def digests(root: Path) -> dict[str, str]:
    files = (path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# ---------------------------------------------------------------- scenes


def test_a_scene_holds_three_to_eight_things_of_known_kinds(scenes: list[Scene]) -> None:
    assert {len(scene.things) for scene in scenes} == {3, 4, 5, 6, 7, 8}
    things = [thing for scene in scenes for thing in scene.things]
    assert {thing.shape for thing in things} == set(SHAPES)
    assert {thing.colour for thing in things} == set(COLOURS)
    assert {thing.texture for thing in things} == set(TEXTURES)
    assert {thing.size for thing in things} == set(SIZES)


def test_boxes_are_tight_around_the_visible_masks_and_masks_do_not_overlap(scenes: list[Scene]) -> None:
    for scene in scenes[:60]:
        seen = np.zeros(scene.image.shape[:2], int)
        for thing in scene.things:
            rows, cols = np.nonzero(thing.mask)
            x, y, w, h = thing.box
            assert (x, y, x + w, y + h) == (cols.min(), rows.min(), cols.max() + 1, rows.max() + 1)
            assert thing.area == len(rows)
            seen += thing.mask
        assert seen.max() == 1


def test_every_thing_stays_visible_and_apart_from_the_others(scenes: list[Scene]) -> None:
    overlaps = 0
    for scene in scenes:
        for place, thing in enumerate(scene.things):
            hidden = sum(other.hides.get(place, 0.0) for other in scene.things)
            overlaps += hidden > 0.02
            assert hidden <= 0.55 + 1e-9
            assert thing.area >= 150 * scene.frame_unit_px**2
    assert overlaps > 0.1 * sum(len(scene.things) for scene in scenes)


def test_the_paint_of_a_thing_is_where_its_mask_is() -> None:
    # A plain thing has one hue: inside the mask the photo shows it, outside it does not.
    for scene in (draw_scene(scene_rng("world", 12, index)) for index in range(20)):
        hsv = cv2.cvtColor(scene.image, cv2.COLOR_RGB2HSV)
        everything = np.any([thing.mask for thing in scene.things], axis=0)
        core = cv2.erode(everything.astype(np.uint8), np.ones((3, 3))).astype(bool)
        ground = cv2.erode((~everything).astype(np.uint8), np.ones((5, 5))).astype(bool)
        assert np.percentile(hsv[..., 1][ground], 90) < np.median(hsv[..., 1][core])
        for thing in scene.things:
            if thing.texture == "plain" and thing.colour == "green":
                inside = cv2.erode(thing.mask.astype(np.uint8), np.ones((3, 3))).astype(bool)
                assert abs(np.median(hsv[..., 0][inside]) - 61) < 8  # OpenCV counts hues in halves of a degree


def test_a_scene_is_a_function_of_domain_seed_and_index() -> None:
    def picture(domain, seed, index) -> bytes:
        return draw_scene(scene_rng(domain, seed, index)).image.tobytes()

    assert picture("world", 3, 7) == picture("world", 3, 7)
    others = {picture("pretrain", 3, 7), picture("world", 4, 7), picture("world", 3, 8)}
    assert len(others | {picture("world", 3, 7)}) == 4


def test_photos_vary_in_size_and_shape(scenes: list[Scene]) -> None:
    sides = {scene.image.shape[:2] for scene in scenes}
    aspects = [width / height for height, width in sides]
    assert len(sides) > 100
    assert min(aspects) < 0.7
    assert max(aspects) > 1.5
    assert max(aspects) <= 1.65


# ---------------------------------------------------------------- files


def test_most_targets_share_their_shape_with_another_thing_and_many_their_colour(scenes: list[Scene]) -> None:
    shapes, colours = [], []
    for number, scene in enumerate(scenes):
        rng = np.random.default_rng(number)
        for target in rng.permutation(len(scene.things))[:2]:
            if describe(scene, int(target), "refcoco+", rng):
                it, others = scene.things[target], [o for place, o in enumerate(scene.things) if place != target]
                shapes.append(any(other.shape == it.shape for other in others))
                colours.append(any(other.colour == it.colour for other in others))
    assert len(shapes) > 350
    assert np.mean(shapes) >= 0.6
    assert np.mean(colours) >= 0.3


@DECODE_WARNS
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_files_are_those_of_coco_and_refer(flavour: Flavour, root: Path, capsys: pytest.CaptureFixture) -> None:
    coco = COCO(str(root / flavour / "instances.json"))
    assert [category["name"] for category in coco.loadCats(coco.getCatIds())] == list(SHAPES)
    assert len(coco.imgs) == 40
    for image in coco.imgs.values():
        photo = cv2.imdecode(np.fromfile(root / "images/train2014" / image["file_name"], np.uint8), cv2.IMREAD_COLOR)
        assert photo is not None
        assert photo.shape == (image["height"], image["width"], 3)
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        assert mask.sum() == annotation["area"]
        assert cv2.boundingRect(mask) == tuple(annotation["bbox"])
    for ref in refs(root, flavour):
        annotation = coco.anns[ref["ann_id"]]
        assert (annotation["image_id"], annotation["category_id"]) == (ref["image_id"], ref["category_id"])
        assert ref["file_name"] == f"COCO_train2014_{ref['image_id']:012d}_{ref['ann_id']}.jpg"
        assert ref["sent_ids"] == [sentence["sent_id"] for sentence in ref["sentences"]]
        assert all(sentence["tokens"] == sentence["sent"].split() for sentence in ref["sentences"])
        assert len(ref["sentences"]) == 3


@DECODE_WARNS
def test_a_mask_comes_back_from_either_form_to_the_pixel(scenes: list[Scene]) -> None:
    forms = set()
    for it in (it for scene in scenes[:60] for it in scene.things):
        form: Any = segmentation(it)
        forms.add(type(form))
        whole = coco_mask.merge(coco_mask.frPyObjects(form, *it.mask.shape)) if isinstance(form, list) else form
        assert np.array_equal(coco_mask.decode(whole), it.mask)
    assert forms == {list, dict}


def test_references_are_a_pickle_that_python_2_reads_and_that_names_no_class(root: Path) -> None:
    written = (root / "refcoco" / "refs(unc).p").read_bytes()
    assert written[:2] == b"\x80\x02"
    assert {opcode.name for opcode, _, _ in pickletools.genops(written)}.isdisjoint({"GLOBAL", "REDUCE", "BUILD"})


def test_splits_share_no_photo_and_each_has_enough(root: Path) -> None:
    for flavour in FLAVOURS:
        photos: dict[str, set[int]] = {}
        for ref in refs(root, flavour):
            photos.setdefault(ref["split"], set()).add(ref["image_id"])
        expected = {"train", "val", "test"} if flavour == "refcocog" else {"train", "val", "testA", "testB"}
        assert set(photos) == expected
        assert min(map(len, photos.values())) >= 7
        assert sum(map(len, photos.values())) == len(set.union(*photos.values()))


def test_photographs_that_no_split_has_are_counted(root: Path) -> None:
    kept = write_pocket(root, flavour="refcoco", images=40, seed=5)
    assert kept.unasked == ""
    more = replace(kept, images=42)  # a scene of 900 or so has nothing that could be told from the rest
    assert more.unasked == "2 of 42 photographs without a sentence, in no split"


def test_flavours_of_one_root_split_alike(root: Path) -> None:
    held_out = [{ref["image_id"] for ref in refs(root, flavour) if ref["split"] != "train"} for flavour in FLAVOURS]
    trained = [{ref["image_id"] for ref in refs(root, flavour) if ref["split"] == "train"} for flavour in FLAVOURS]
    assert not set.union(*held_out) & set.union(*trained)


def test_test_a_refers_to_round_things_and_test_b_to_the_others(root: Path) -> None:
    for ref in refs(root, "refcoco"):
        if ref["split"].startswith("test"):
            is_round = SHAPES[ref["category_id"] - 1] in ROUND_SHAPES
            assert is_round == (ref["split"] == "testA")


def test_same_arguments_same_bytes_whatever_else_is_in_the_folder(root: Path, tmp_path: Path) -> None:
    write_pocket(tmp_path, flavour="refcocog", images=40, seed=5)
    mine = digests(tmp_path)
    del mine["pocket.json"]
    assert mine.items() <= digests(root).items()


def test_a_finished_data_set_is_kept(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    summary = write_pocket(root, flavour="refcoco", images=40, seed=5)
    assert summary.kept
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_an_interrupted_run_is_simply_run_again(root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"

    class Impatient:
        def begin(self, stage: str, *, done: int, total: int) -> None:
            assert (stage, done, total) == ("pocket", 0, 40)

        def advance(self, images: int) -> None:
            if len(list((folder / "images/train2014").iterdir())) == 10:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_pocket(folder, flavour="refcoco", images=40, seed=5, progress=Impatient())  # pyright: ignore[reportArgumentType]
    assert not (folder / "pocket.json").exists()
    with pytest.raises(InputError, match="seed 5"):
        write_pocket(folder, flavour="refcoco", images=40, seed=6)
    write_pocket(folder, flavour="refcoco", images=40, seed=5)
    mine = digests(folder)
    assert json.loads((folder / "pocket.json").read_text())["flavours"].keys() == {"refcoco"}
    del mine["pocket.json"]
    assert mine.items() <= digests(root).items()


def test_what_is_there_already_is_never_overwritten(root: Path, tmp_path: Path) -> None:
    before = digests(root)
    with pytest.raises(InputError, match="data set of seed 5, this one is of seed 6"):
        write_pocket(root, flavour="refcoco", images=40, seed=6)
    assert digests(root) == before
    (tmp_path / "holiday.txt").write_text("photos")
    with pytest.raises(InputError, match="holds no pocket data set"):
        write_pocket(tmp_path, flavour="refcoco", images=40, seed=6)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.txt"]


@pytest.mark.parametrize(("images", "seed", "flavour"), [(31, 0, "refcoco"), (40, -1, "refcoco"), (40, 0, "coco")])
def test_what_cannot_be_written_is_refused_before_anything_is(
    images: int, seed: int, flavour: Flavour, tmp_path: Path
) -> None:
    with pytest.raises(InputError):
        write_pocket(tmp_path / "data", flavour=flavour, images=images, seed=seed)
    assert not (tmp_path / "data").exists()


def test_the_marker_says_what_there_is(root: Path) -> None:
    marker = json.loads((root / "pocket.json").read_text())
    assert (marker["images"], marker["seed"]) == (40, 5)
    for flavour in FLAVOURS:
        counted = marker["flavours"][flavour]
        assert sum(split["references"] for split in counted.values()) == len(refs(root, flavour))
