"""An annotation that cannot be used is named, in one line, before anything starts."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weakmcn.pipeline.annotations import load_references
from weakmcn.pipeline.segmentation import run_lengths

from .annotated import INSTANCES, REFS, SIMREC, SQUARE, reference, refusal, refused, write_simrec, write_unc
from .faults.sound import changed

NESTED: list[Any] = []
"""A few bytes of pickle; 2^100 lists for whoever walks or prints it."""
for _ in range(100):
    NESTED = [NESTED, NESTED]


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        ((1, "ann_id", 999), "refs(unc).p: reference 0 names annotation 999, which is not in instances.json"),
        ((1, "ann_id", "50"), "names annotation '50'"),
        ((1, "ann_id", 1 << 99_999), "names annotation a very long integer"),
        ((1, "ann_id", NESTED), "names annotation [a list, a list]"),
        ((1, "image_id", 8), "reference 0 names image 8, which is not in instances.json"),
        ((1, "image_id", 30), "reference 0 names image 30, but its annotation 50 lies in another"),
        ((1, "ref_id", 1), "reference 1 is there twice"),
        ((1, "ref_id", True), "reference at place 1 has no whole number as ref_id"),
        ((1, "ref_id", 2**70), "reference at place 1 has no whole number"),
        ((1, "split", None), "reference 0 has the split None"),
        ((1, "split", "tr\nain"), "has the split 'tr\\nain'"),
        ((1, "sentences", []), "reference 0 has no list of 1 to 1,000 sentences"),
        ((1, "sentences", 0, "sent", 5), "reference 0, sentence 0 has the expression 5, which is no text"),
        ((1, "sentences", 0, "sent", "\ud800"), "sentence 0 has the expression '\\ud800' with half a character"),
        ((1, "sentences", 0, "sent_id", None), "reference 0 has a sentence without a whole number as sent_id"),
        ((1, "not a reference"), "reference at place 1"),
    ],
)
def test_a_reference_that_cannot_be_used_is_named(tmp_path: Path, steps: tuple[Any, ...], words: str) -> None:
    write_unc(tmp_path, changed(REFS, *steps))
    message = refused(tmp_path)
    assert words in message
    assert message.startswith("ROOT/refcoco/refs(unc).p: ")
    assert message.endswith("correct these records or fetch the file again.")


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (("annotations", 0, "bbox", [2, 3, 4]), "(annotation 50) has the box [2, 3, 4], not four finite numbers"),
        (("annotations", 0, "bbox", [2, 3, "4", 5]), "not four finite numbers"),
        (("annotations", 0, "bbox", [2, 3, 10**400, 5]), "not four finite numbers"),
        (("annotations", 0, "bbox", [2, 3, 0, 5]), "has a box without area"),
        (("annotations", 0, "bbox", [2, 3, -4, 5]), "has a box without area"),
        (("annotations", 0, "bbox", [2, 3, 13, 5]), "leaves its photo of 12x10"),
        (("annotations", 0, "bbox", [-3, 3, 4, 5]), "leaves its photo"),
        (("annotations", 0, "bbox", None), "has the box None"),
        (("annotations", 0, "segmentation", None), "neither polygons nor run lengths"),
        (("annotations", 0, "segmentation", []), "neither polygons nor run lengths"),
        (("annotations", 0, "segmentation", [[]]), "polygon of 0 numbers"),
        (("annotations", 0, "segmentation", [[1, 1, 2, 2]]), "polygon of 4 numbers"),
        (("annotations", 0, "segmentation", [[*SQUARE, 4]]), "polygon of 9 numbers"),
        (("annotations", 0, "segmentation", [["a"] * 6]), "no list of numbers"),
        (("annotations", 0, "segmentation", [[1e9, *SQUARE[1:]]]), "polygon that leaves its photo"),
        (("annotations", 0, "segmentation", {"size": [10, 12], "counts": [1, 2]}), "do not cover its photo"),
        (("annotations", 0, "segmentation", {"size": [10, 12], "counts": [121, -1]}), "no whole numbers"),
        (("annotations", 0, "segmentation", {"size": [12, 10], "counts": [120]}), "another size"),
        (("annotations", 0, "segmentation", {"size": [10, 12], "counts": "zzzz"}), "do not cover its photo"),
        (("annotations", 0, "category_id", "person"), "has category 'person', which is no number"),
        (("annotations", 1, "id", 50), "instances.json: annotation 50 is there twice"),
        (("annotations", 1, "id", None), "annotation at place 1 has no whole number as id"),
        (("images", 1, "id", 7), "instances.json: image 7 is there twice"),
        (("images", 1, "id", -1), "image -1 has a number outside"),
        (("images", 0, "height", 0), "image 7 has the size 12x0"),
        (("images", 0, "width", 10**9), "image 7 has the size 1000000000x10"),
        (("images", 0, "file_name", "../../etc/passwd"), "image 7 has the file_name '../../etc/passwd', which leaves"),
        (("images", 0, "file_name", "/etc/passwd"), "which leaves the folder of photographs; refused"),
        (("images", 0, "file_name", "a\0.jpg"), "image 7 has the file_name 'a\\x00.jpg'"),
        (("images", 0, "file_name", 7), "image 7 has no file_name"),
        (("images", {}), "instances.json: has no list 'images'"),
    ],
)
def test_an_annotation_that_cannot_be_used_is_named(tmp_path: Path, steps: tuple[Any, ...], words: str) -> None:
    write_unc(tmp_path, instances=changed(INSTANCES, *steps))
    assert words in refused(tmp_path)


def test_like_faults_are_counted_and_two_kinds_are_shown(tmp_path: Path) -> None:
    refs = [reference(17 + i, 999, 7, "train", ["a"], i) for i in range(3)]
    refs += [reference(1, 50, 30, "train", ["a"], 9), reference(2, 50, 7, "train", [], 9)]
    write_unc(tmp_path, refs)
    message = refused(tmp_path)
    assert "reference 17 names annotation 999, which is not in instances.json (3 such); reference 1 names" in message
    assert "1 other kinds of fault" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"images": [', "broken at character 12"),
        (b"", "empty file"),
        (b'{"images": [NaN]}', "NaN is no number"),
        (b'{"images": [-Infinity]}', "-Infinity is no number"),
        (b'{"images": [], "images": []}', "names 'images' twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b"9" * 5000, "instances.json: "),
        (b"\xff\xfe", "not UTF-8 at byte 0"),
        (b"[]", "has no list 'images'"),
    ],
)
def test_a_broken_instances_json_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    path = write_unc(tmp_path).with_name("instances.json")
    path.write_bytes(content)
    message = refused(tmp_path)
    assert message.startswith("ROOT/refcoco/instances.json: ")
    assert words in message


def test_absent_files_are_named(tmp_path: Path) -> None:
    path = write_unc(tmp_path).with_name("instances.json")
    path.unlink()
    assert refused(tmp_path).startswith("ROOT/refcoco/instances.json: missing")
    path.mkdir()
    assert "is a directory" in refused(tmp_path)


@pytest.mark.parametrize(
    ("steps", "words"),
    [
        (("train", 0, "mask_id", "0"), "entry 0 of train has no whole number as mask_id"),
        (("train", 0, "iid", -1), "entry 0 of train has no photo number as iid"),
        (("train", 0, "cat_id", None), "entry 0 of train has no category number"),
        (("train", 0, "refs", "left"), "entry 0 of train has no list of 1 to 1,000 sentences"),
        (("train", 0, "refs", [None]), "entry 0 of train has the expression None"),
        (("train", 0, "bbox", [2, 3, 14, 8]), "entry with mask_id 0 has a box x y w h [2, 3, 14, 8] that leaves"),
        (("train", 0, "mask_id", 9), "entry with mask_id 9 has no mask masks/refcoco/9.npy"),
        (("val", 1, "iid", 7), "entry 1 of val contradicts another entry of mask_id 1"),
        (("val", 1, "mask_id", 0), "entry 1 of val contradicts another entry of mask_id 0"),
        (("train", {}), "not a list of entries for every split"),
        (("va\nl", []), "has the split 'va\\nl'"),
    ],
)
def test_a_simrec_entry_that_cannot_be_used_is_named(tmp_path: Path, steps: tuple[Any, ...], words: str) -> None:
    masks = {0: np.zeros((10, 12), np.uint8), 1: np.zeros((20, 20), np.uint8)}
    write_simrec(tmp_path, changed(SIMREC, *steps), masks)
    message = refused(tmp_path)
    assert words in message
    assert message.startswith("ROOT/anns/refcoco.json: ")


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((10, 12, 1), np.uint8), "not one mask of numbers"),
        (np.zeros((10, 12), "<U1"), "not one mask of numbers"),
        (np.array([{}]), "not a whole .npy"),
    ],
)
def test_a_simrec_mask_that_is_none_is_named(tmp_path: Path, mask: np.ndarray, words: str) -> None:
    write_simrec(tmp_path, SIMREC, {0: mask, 1: np.zeros((20, 20), np.uint8)})
    message = refused(tmp_path)
    assert message.startswith("ROOT/masks/refcoco/0.npy: ")
    assert words in message


def test_a_simrec_mask_of_another_size_than_its_photo_is_named(tmp_path: Path) -> None:
    entries = changed(SIMREC, "train", 0, "iid", 30)
    write_simrec(tmp_path, entries, {0: np.zeros((10, 12), np.uint8), 1: np.zeros((20, 20), np.uint8)})
    references = load_references(tmp_path, "refcoco")
    message = refusal(lambda: [run_lengths(one) for one in references], tmp_path)
    assert message.startswith("ROOT/masks/refcoco/1.npy: a mask of 20x20, its photo is 12x10")
