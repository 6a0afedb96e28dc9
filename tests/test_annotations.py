"""Annotations of every layout become the same references, in order and counted."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from weakmcn.pipeline.annotations import find_photo, load_annotations, load_references
from weakmcn.pipeline.datasets import COCO_CATEGORIES, DATASETS, find_dataset
from weakmcn.pipeline.layouts import find_datasets
from weakmcn.pipeline.references import is_blank
from weakmcn.pipeline.segmentation import run_lengths
from weakmcn.shards.codec import rle_decode
from weakmcn.shards.errors import ImageError

from .annotated import REFS, SIMREC, reference, refusal, refused, write_simrec, write_unc


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_unc_data_set_is_read_whatever_protocol_its_pickle_has(tmp_path: Path, protocol: int) -> None:
    write_unc(tmp_path, protocol=protocol)
    woman, brush = load_references(tmp_path, "refcoco")
    assert (woman.ref_id, woman.key, woman.split) == (0, "000000000007", "train")
    assert (woman.file_name, woman.height, woman.width) == ("COCO_train2014_000000000007.jpg", 10, 12)
    assert (woman.category, woman.category_name, woman.box) == (1, "person", (2.0, 3.0, 4.0, 5.0))
    assert woman.sent_ids == (0, 1, 2)
    assert woman.sentences == ("the lady", "woman in blue", "left")
    assert (brush.ref_id, brush.split, brush.category_name) == (1, "val", "toothbrush")


def test_refs_may_be_plain_json(tmp_path: Path) -> None:
    path = write_unc(tmp_path)
    from_pickle = load_references(tmp_path, "refcoco")
    path.with_suffix(".json").write_text(json.dumps(REFS))
    path.unlink()
    assert load_references(tmp_path, "refcoco") == from_pickle


def test_training_comes_first_and_the_files_order_is_kept_inside_a_split(tmp_path: Path) -> None:
    splits = ["testB", "val", "train", "own", "testA", "train", "val"]
    refs = [reference(9 - i, 50, 7, split, ["a"], i) for i, split in enumerate(splits)]
    write_unc(tmp_path, refs)
    order = [(one.split, one.ref_id) for one in load_references(tmp_path, "refcoco")]
    expected = [("train", 7), ("train", 4), ("val", 8), ("val", 3), ("testA", 5), ("testB", 9), ("own", 6)]
    assert order == expected


def python_2_refs(text: bytes) -> bytes:
    """A refs pickle whose sentence is an 8-bit string, as Python 2 wrote it."""
    refs = pickle.dumps([reference(0, 50, 7, "train", ["PLACEHOLDER"], 0)], protocol=2)
    unicode = b"X" + len("PLACEHOLDER").to_bytes(4, "little") + b"PLACEHOLDER"
    assert unicode in refs
    return refs.replace(unicode, b"U" + bytes([len(text)]) + text, 1)


def test_eight_bit_text_is_utf_8_and_latin_1_only_with_a_warning(tmp_path: Path) -> None:
    path = write_unc(tmp_path)
    path.write_bytes(python_2_refs(b"caf\xc3\xa9"))
    annotations = load_annotations(tmp_path, "refcoco")
    assert annotations.references[0].sentences == ("café",)
    assert not any("Latin-1" in warning for warning in annotations.warnings)
    path.write_bytes(python_2_refs(b"caf\xe9"))
    annotations = load_annotations(tmp_path, "refcoco")
    assert annotations.references[0].sentences == ("café",)
    assert any("Latin-1" in warning for warning in annotations.warnings)


def test_simrec_gives_the_references_that_the_unc_layout_gives(tmp_path: Path) -> None:
    write_unc(tmp_path / "unc")
    of_unc = load_references(tmp_path / "unc", "refcoco")
    sizes = {one.ref_id: (one.height, one.width) for one in of_unc}
    masks = {one.ref_id: 2 * rle_decode(run_lengths(one) or "", *sizes[one.ref_id]).astype(np.uint8) for one in of_unc}
    write_simrec(tmp_path / "simrec", SIMREC, masks)
    for ours, theirs in zip(load_references(tmp_path / "simrec", "refcoco"), of_unc, strict=True):
        for name in ("ref_id", "key", "file_name", "height", "width", "split", "category", "category_name", "box"):
            assert getattr(ours, name) == getattr(theirs, name), name
        assert (ours.sentences, ours.sent_ids) == (theirs.sentences, theirs.sent_ids)
        assert run_lengths(ours) == run_lengths(theirs)


def test_simrec_is_also_found_in_a_folder_of_its_own_and_gives_way_to_unc(tmp_path: Path) -> None:
    path = write_simrec(tmp_path, SIMREC, None)
    (path.parent / "refcoco").mkdir()
    path.rename(path.parent / "refcoco" / "refcoco.json")
    assert [one.ref_id for one in load_references(tmp_path, "refcoco")] == [0, 1]
    write_unc(tmp_path, REFS[1:])
    assert [one.ref_id for one in load_references(tmp_path, "refcoco")] == [0]


def test_simrec_without_masks_says_so_and_leaves_sizes_open(tmp_path: Path) -> None:
    write_simrec(tmp_path, SIMREC, None)
    annotations = load_annotations(tmp_path, "refcoco")
    assert any("no folder of masks" in warning for warning in annotations.warnings)
    assert [(one.height, run_lengths(one)) for one in annotations.references] == [(0, None), (0, None)]


def test_keys_are_cocos_numbers_and_other_photos_are_counted_in_file_name_order(tmp_path: Path) -> None:
    entries = {"train": [dict(SIMREC["train"][0], iid=iid, mask_id=iid) for iid in (30, 7, 100)]}
    path = write_simrec(tmp_path, entries, None)
    path.rename(path.with_name("refclef.json"))
    keys = {one.file_name: one.key for one in load_references(tmp_path, "refclef")}
    assert keys == {"100.jpg": "000000000001", "30.jpg": "000000000002", "7.jpg": "000000000003"}
    write_simrec(tmp_path, SIMREC, None)
    assert {one.key for one in load_references(tmp_path, "refcoco")} == {"000000000007", "000000000030"}


def test_simrecs_categories_are_cocos() -> None:
    assert len(COCO_CATEGORIES) == 80
    assert COCO_CATEGORIES[0] == (1, "person")
    assert COCO_CATEGORIES[11] == (13, "stop sign")
    assert COCO_CATEGORIES[60] == (67, "dining table")
    assert COCO_CATEGORIES[79] == (90, "toothbrush")


# Names and counts


def test_every_count_that_differs_from_the_published_one_is_told_by_name(tmp_path: Path) -> None:
    write_unc(tmp_path)
    warnings = load_annotations(tmp_path, "refcoco").warnings
    assert "refcoco val: 1 references here, 3,811 published" in warnings
    assert "refcoco train: 3 sentences here, 120,624 published" in warnings
    assert "refcoco testA: 0 images here, 750 published" in warnings
    assert len(warnings) == 12


def test_published_counts_do_not_apply_to_a_pocket_world(tmp_path: Path) -> None:
    write_unc(tmp_path)
    (tmp_path / "pocket.json").write_text('{"seed": 5}')
    annotations = load_annotations(tmp_path, "refcoco")
    assert annotations.warnings == []
    assert annotations.source == "pocket-5"


def test_the_splits_of_a_data_set_sum_to_the_published_totals() -> None:
    totals = {"refcoco": 142_210, "refcoco+": 141_564, "refcocog-umd": 95_010, "refcocog-google": 95_010}
    for name, total in totals.items():
        assert sum(counts.sentences or 0 for counts in DATASETS[name].counts.values()) == total


def test_an_unknown_data_set_names_those_known_and_the_one_meant(tmp_path: Path) -> None:
    message = refused(tmp_path, "refcoc+")
    assert "did you mean 'refcoco+'?" in message
    assert all(name in message for name in DATASETS)
    assert "did you mean" not in refused(tmp_path, "flickr30k")
    assert find_dataset("refcocog").name == "refcocog-umd"


def test_an_absent_data_set_names_the_files_looked_for_and_those_present(tmp_path: Path) -> None:
    write_unc(tmp_path)
    message = refused(tmp_path, "refcocog-google")
    assert "refcocog/refs(google).p" in message
    assert "or name a data set that is: refcoco." in message
    assert find_datasets(tmp_path) == ["refcoco"]


def test_an_unknown_split_names_the_splits_present(tmp_path: Path) -> None:
    write_unc(tmp_path)
    annotations = load_annotations(tmp_path, "refcoco")
    message = refusal(lambda: annotations.of(["train", "vall"]), tmp_path)
    assert "no split 'vall' (did you mean 'val'?)" in message
    assert "present: train, val" in message
    assert [one.ref_id for one in annotations.of(["val"])] == [1]


def test_expressions_without_a_word_are_kept_and_counted(tmp_path: Path) -> None:
    write_unc(tmp_path, [reference(4, 50, 7, "val", ["", "left", "?!", " - / "], 10)])
    annotations = load_annotations(tmp_path, "refcoco")
    assert annotations.references[0].sentences == ("", "left", "?!", " - / ")
    blank = [warning for warning in annotations.warnings if "without a word" in warning]
    assert blank == [
        "refcoco: 3 expressions without a word (first: reference 4, sentence 10); training skips them, "
        "evaluation counts them as misses"
    ]
    assert not is_blank("&")  # the published rule leaves it as a word


def test_photos_of_a_test_split_that_are_also_trained_on_are_told(tmp_path: Path) -> None:
    write_unc(tmp_path, [reference(0, 50, 7, "train", ["a"], 0), reference(1, 50, 7, "val", ["b"], 1)])
    assert "refcoco: 1 photos of val are also in train" in load_annotations(tmp_path, "refcoco").warnings


# Photographs


def test_photographs_are_found_in_the_usual_places(tmp_path: Path) -> None:
    for folder in ("images/refclef", "train2014", "images/train2014", "images/mscoco/images/train2014"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "a.jpg").touch()
        assert find_photo(tmp_path, "a.jpg") == tmp_path / folder / "a.jpg"
    assert find_photo(tmp_path, "b.jpg") == tmp_path / "images/mscoco/images/train2014/b.jpg"


@pytest.mark.parametrize("name", ["../a.jpg", "/etc/passwd", "a/../../b.jpg", "a\0b", "", "a\nb", "..\\b"])
def test_a_photo_name_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError):
        find_photo(tmp_path, name)
