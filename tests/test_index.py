"""Indexing turns annotations and photographs into the store's tables: checked whole first, then written whole."""

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from weakmcn.pipeline.index import IndexReport, build_index
from weakmcn.shards.codec import rle_decode
from weakmcn.shards.errors import AnnotationError, ImageError, InputError, StoreError, WeakmcnError
from weakmcn.shards.store import Store
from weakmcn.shards.tables import skipped_photos

HEIGHT, WIDTH = 24, 32
PHOTOS = "images/train2014"


def write_photo(root: Path, number: int, *, level: int = 90, height: int = HEIGHT, width: int = WIDTH) -> Path:
    """A grey JPEG, different for every number."""
    path = root / PHOTOS / f"COCO_train2014_{number:012d}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = np.full((height, width, 3), level + number, np.uint8)
    path.write_bytes(cv2.imencode(".jpg", picture)[1].tobytes())
    return path


def write_dataset(root: Path, splits: dict[str, list[int]], *, folder: str = "refcoco", partition: str = "unc") -> Path:
    """A data set with one object and one reference of two sentences in each photo; numbers of the photos by split."""
    numbers = sorted({number for listed in splits.values() for number in listed})
    instances: dict[str, Any] = {
        "images": [
            {"id": n, "file_name": f"COCO_train2014_{n:012d}.jpg", "height": HEIGHT, "width": WIDTH} for n in numbers
        ],
        "annotations": [
            {
                "id": 100 + n,
                "image_id": n,
                "category_id": 3,
                "bbox": [4, 6, 8, 10],
                "segmentation": [[4, 6, 12, 6, 12, 16, 4, 16]],
            }
            for n in numbers
        ],
        "categories": [{"id": 3, "name": "car"}],
    }
    refs = []
    for split, listed in splits.items():
        for n in listed:
            place = 2 * len(refs)
            sentences = [{"sent_id": place, "sent": f"car {n}"}, {"sent_id": place + 1, "sent": "left car"}]
            refs.append({"ref_id": len(refs), "ann_id": 100 + n, "image_id": n, "split": split, "sentences": sentences})
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / "instances.json").write_text(json.dumps(instances))
    (root / folder / f"refs({partition}).p").write_bytes(pickle.dumps(refs, protocol=2))
    for number in numbers:
        if not (root / PHOTOS / f"COCO_train2014_{number:012d}.jpg").exists():
            write_photo(root, number)
    (root / "pocket.json").write_text('{"seed": 1}')
    return root


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", {"val": [3, 9], "train": [5, 1, 8, 2, 7]})


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


def index(store: Path, data: Path, *splits: str, **options: Any) -> IndexReport:
    """Index splits of refcoco, two photographs a shard."""
    settings: dict[str, Any] = {"side": 32, "images_per_shard": 2}
    return build_index(store, data, "refcoco", list(splits), **settings | options)


def places(store: Path) -> dict[int, tuple[int, int]]:
    """Number of a photo -> its shard and its row there."""
    return {int(row["key"]): (row["shard"], row["row"]) for row in Store.open(store).images.to_pylist()}


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}


def test_a_store_opens_on_what_was_indexed(store: Path, data: Path) -> None:
    report = index(store, data, "train")
    assert (report.images_new, report.images_known, report.refs, report.sentences) == (5, 0, 5, 10)
    assert report.warnings == []
    opened = Store.open(store)
    assert opened.side == 32
    assert opened.keys == [f"{number:012d}" for number in (1, 2, 5, 7, 8)]
    first = opened.images.to_pylist()[0]
    photo = data / first["file"]
    assert first == {
        "key": "000000000001",
        "source": "pocket-1",
        "file": f"{PHOTOS}/COCO_train2014_000000000001.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "shard": 0,
        "row": 0,
        "sha256": hashlib.sha256(photo.read_bytes()).hexdigest(),
    }
    assert opened.letterbox("000000000001").info.tolist() == [HEIGHT, WIDTH, 24, 32, 0, 4]


def test_references_of_all_splits_are_kept_training_first_with_masks_at_photo_size(store: Path, data: Path) -> None:
    index(store, data, "val")
    table = Store.open(store).references("refcoco")
    rows = table.to_pylist()
    assert [(row["split"], int(row["key"])) for row in rows] == [
        *[("train", number) for number in (5, 1, 8, 2, 7)],
        *[("val", number) for number in (3, 9)],
    ]
    car = rows[0]
    assert (car["ref_id"], car["category"], car["category_name"], car["box"]) == (2, 3, "car", [4, 6, 8, 10])
    assert (car["sent_ids"], car["sentences"]) == ([4, 5], ["car 5", "left car"])
    mask = rle_decode(car["mask"], HEIGHT, WIDTH)
    assert mask.sum() == 80
    assert mask[6:16, 4:12].all()
    digests = json.loads(table.schema.metadata[b"digests"])
    refs = data / "refcoco" / "refs(unc).p"
    assert digests["refs(unc).p"] == hashlib.sha256(refs.read_bytes()).hexdigest()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, data: Path) -> None:
    index(tmp_path / "one", data, "train", "val")
    index(tmp_path / "two", data, "val", "train")
    index(tmp_path / "two", data, "train", "val")
    assert content(tmp_path / "one") == content(tmp_path / "two")


def test_new_photos_go_to_new_shards_and_old_ones_never_move(store: Path, data: Path) -> None:
    index(store, data, "train")
    before = places(store)
    assert before == {1: (0, 0), 2: (0, 1), 5: (1, 0), 7: (1, 1), 8: (2, 0)}
    report = index(store, data, "train", "val")
    assert (report.images_new, report.images_known) == (2, 5)
    assert places(store) == before | {3: (3, 0), 9: (3, 1)}
    index(store, data, "val", images_per_shard=64)
    assert places(store) == before | {3: (3, 0), 9: (3, 1)}


def test_data_sets_share_the_photos_they_share(store: Path, data: Path) -> None:
    index(store, data, "train")
    write_dataset(data, {"train": [2, 4], "test": [5]}, folder="refcocog", partition="umd")
    report = build_index(store, data, "refcocog", ["train", "test"], side=32)
    assert (report.images_new, report.images_known) == (1, 2)
    opened = Store.open(store)
    assert opened.datasets == ["refcoco", "refcocog-umd"]
    assert opened.references("refcocog-umd")["key"].to_pylist() == [f"{n:012d}" for n in (2, 4, 5)]
    assert places(store)[4] == (3, 0)


def test_all_photos_that_cannot_be_used_are_listed_and_nothing_is_written(store: Path, data: Path) -> None:
    write_photo(data, 1).unlink()
    write_photo(data, 5).write_bytes(b"<html>")
    half = write_photo(data, 7)
    half.write_bytes(half.read_bytes()[:-40])
    write_photo(data, 8, height=HEIGHT + 1)
    with pytest.raises(ImageError) as caught:
        index(store, data, "train")
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("4 of 5 photos cannot be used; ")
    assert "--skip-bad" in first
    for line, (number, word) in zip(
        lines, [(1, "missing"), (5, "not an image"), (7, "cut short"), (8, "is 32x25")], strict=True
    ):
        assert f"{number:012d}.jpg: " in line
        assert word in line
    assert not store.exists()


def test_bad_photos_are_left_out_and_recorded_when_asked_for(store: Path, data: Path) -> None:
    write_photo(data, 5).write_bytes(b"")
    report = index(store, data, "train", skip_bad=True)
    assert list(report.skipped) == ["000000000005"]
    assert "empty file" in report.skipped["000000000005"]
    opened = Store.open(store)
    assert "000000000005" not in opened.keys
    assert skipped_photos(opened.images) == report.skipped
    assert "000000000005" in opened.references("refcoco")["key"].to_pylist()  # evaluation counts it as a miss
    write_photo(data, 5)
    assert index(store, data, "train").images_new == 1
    assert skipped_photos(Store.open(store).images) == {}
    assert places(store)[5] == (2, 0)


def test_where_no_photo_can_be_used_leaving_them_out_is_no_way(store: Path, data: Path) -> None:
    for number in (1, 2, 5, 7, 8):
        write_photo(data, number).unlink()
    with pytest.raises(ImageError, match="5 of 5 photos cannot be used"):
        index(store, data, "train", skip_bad=True)
    assert not store.exists()


def test_without_decoding_headers_sizes_and_bytes_are_checked_all_the_same(store: Path, data: Path) -> None:
    half = write_photo(data, 7)
    half.write_bytes(half.read_bytes()[:-8])
    assert index(store, data, "train", decoded=False).images_new == 5
    write_photo(data, 8, height=HEIGHT + 1)
    write_photo(data, 1).write_bytes(b"<html>")
    with pytest.raises(ImageError) as caught:
        index(store, data, "train", decoded=False)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("2 of 5 photos")
    assert "not an image" in lines[0]
    assert "is 32x25" in lines[1]


def test_masks_that_cannot_be_used_are_counted_and_the_first_is_named(store: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "masks", {"train": [1, 2, 3]})
    (data / "refcoco" / "refs(unc).p").unlink()
    (data / "anns").mkdir()
    entries = [{"iid": n, "bbox": [4, 6, 8, 10], "cat_id": 0, "refs": ["a"], "mask_id": n} for n in (1, 2, 3)]
    # Of the third, a second object, whose mask is of another size than the first's.
    entries += [{"iid": 3, "bbox": [0, 0, 8, 10], "cat_id": 0, "refs": ["a"], "mask_id": n} for n in (4, 5)]
    (data / "anns" / "refcoco.json").write_text(json.dumps({"train": entries}))
    (data / "masks" / "refcoco").mkdir(parents=True)
    for number in (1, 2, 3, 4, 5):
        size = (HEIGHT, WIDTH) if number < 4 else (9, 9)
        np.save(data / "masks" / "refcoco" / f"{number}.npy", np.ones(size, np.uint8))
    with pytest.raises(AnnotationError) as caught:
        index(store, data, "train")
    assert str(caught.value) == (
        f"{data}: masks/refcoco/4.npy: a mask of 9x9, its photo is 32x24 (2 such); make the masks again."
    )
    assert not store.exists()


def test_a_mask_without_a_pixel_is_told(store: Path, data: Path) -> None:
    path = data / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    instances["annotations"][0]["segmentation"] = {"size": [HEIGHT, WIDTH], "counts": [HEIGHT * WIDTH]}
    path.write_text(json.dumps(instances))
    (warning,) = index(store, data, "train").warnings
    assert "1 references have a mask without a pixel (first: 3)" in warning


def test_a_photo_too_narrow_for_the_canvas_is_found_before_the_work_starts(store: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "narrow", {"train": [1]})
    entries = {"train": [{"iid": 1, "bbox": [0, 0, 2, 1], "cat_id": 0, "refs": ["a"], "mask_id": 0}]}
    write_photo(data, 1, height=1, width=40)
    (data / "refcoco" / "refs(unc).p").unlink()
    (data / "anns").mkdir()
    (data / "anns" / "refcoco.json").write_text(json.dumps(entries))
    with pytest.raises(ImageError, match=r"000000000001\.jpg: a photo of 1 x 40"):
        index(store, data, "train")
    assert not store.exists()


def test_a_box_that_leaves_a_photo_whose_size_only_the_photo_tells_is_named(store: Path, tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "boxes", {"train": [1]})
    (data / "refcoco" / "refs(unc).p").unlink()
    (data / "anns").mkdir()
    entry = {"iid": 1, "bbox": [20, 0, 20, 5], "cat_id": 0, "refs": ["a"], "mask_id": 17}
    (data / "anns" / "refcoco.json").write_text(json.dumps({"train": [entry]}))
    with pytest.raises(AnnotationError, match=r"reference 17 of refcoco has a box .* leaves its photo of 32x24"):
        index(store, data, "train")
    entry["bbox"] = [20, 0, 12, 5]
    (data / "anns" / "refcoco.json").write_text(json.dumps({"train": [entry]}))
    assert index(store, data, "train").refs == 1
    assert Store.open(store).references("refcoco")["mask"].to_pylist() == [None]


def test_a_photo_that_changed_keeps_its_place_and_makes_its_shards_stale(store: Path, data: Path) -> None:
    index(store, data, "train")
    before = Store.open(store)
    path = write_photo(data, 5, level=120)
    report = index(store, data, "train")
    assert (report.images_new, report.images_known, report.images_changed) == (0, 4, 1)
    assert any(
        "1 photos have changed since they were indexed (first: 000000000005)" in line for line in report.warnings
    )
    after = Store.open(store)
    assert after.digests == before.digests | {"000000000005": hashlib.sha256(path.read_bytes()).hexdigest()}
    assert after.keys == before.keys


def test_photos_that_moved_to_another_folder_are_the_same_photos(store: Path, data: Path) -> None:
    index(store, data, "train", "val")
    (data / PHOTOS).rename(data / "train2014")
    report = index(store, data, "train")
    assert (report.images_known, report.images_changed) == (5, 0)
    assert Store.open(store).images["file"][0].as_py() == "train2014/COCO_train2014_000000000001.jpg"


def test_a_key_that_another_collection_uses_is_refused(store: Path, data: Path, tmp_path: Path) -> None:
    index(store, data, "train")
    before = content(store)
    other = write_dataset(tmp_path / "other", {"train": [4, 5]})
    (other / "pocket.json").write_text('{"seed": 2}')
    with pytest.raises(StoreError, match=r"key 000000000005 .* of 'pocket-1' there, .* of 'pocket-2' here; .*--store"):
        index(store, other, "train")
    assert content(store) == before


def test_a_store_of_another_side_is_refused(store: Path, data: Path) -> None:
    index(store, data, "train")
    with pytest.raises(StoreError, match="made for a canvas of 32 pixels, this run wants 64"):
        index(store, data, "train", side=64)


def test_an_unknown_split_leaves_nothing_behind(store: Path, data: Path) -> None:
    with pytest.raises(InputError, match=r"no split 'trian' \(did you mean 'train'"):
        index(store, data, "trian")
    assert not store.exists()


def test_no_photographs_at_all_is_one_fault_and_not_one_a_photo(store: Path, data: Path) -> None:
    (data / "images").rename(data / "elsewhere")
    with pytest.raises(ImageError) as caught:
        index(store, data, "train")
    assert str(caught.value).startswith(f"{data}: no photos; put them in ")


def test_a_file_in_the_place_of_the_store_is_refused(store: Path, data: Path) -> None:
    store.touch()
    with pytest.raises(StoreError, match="is a file"):
        index(store, data, "train")


def test_a_damaged_table_is_refused_and_kept(store: Path, data: Path) -> None:
    index(store, data, "train")
    table = store / "images.parquet"
    table.write_bytes(table.read_bytes()[:-1])
    before = content(store)
    with pytest.raises(WeakmcnError, match=r"images\.parquet is damaged"):
        index(store, data, "val")
    assert content(store) == before


def test_progress_counts_photographs(store: Path, data: Path) -> None:
    told: list[tuple[int, int]] = []
    index(store, data, "train", on_progress=lambda done, total: told.append((done, total)))
    assert told == [(number, 5) for number in range(1, 6)]
