"""A store gives back what was put in, refuses what is stale, and says how to mend it."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weakmcn.shards.atomic import finished_file
from weakmcn.shards.codec import unpack_masks
from weakmcn.shards.columns import FAMILIES
from weakmcn.shards.errors import ConfigError, DamagedShardError, StoreError
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.geometry import Letterbox
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import Store, create_store, gc
from weakmcn.shards.tables import REFERENCES, read_table, write_table
from weakmcn.shards.writer import Record, write_shard

from .small_store import (
    CANDIDATES,
    KEYS,
    SIDE,
    Small,
    detect_values,
    digest_of,
    flip,
    make_store,
    values_of,
    write_family,
    write_images,
)

# What was put in comes out.


@pytest.mark.parametrize(
    ("codec", "dtype", "error"), [("f16", "f2", 2e-3), ("bf16", "f4", 2e-2), ("u8", "f4", 2e-2), ("f32", "f4", 0)]
)
def test_every_codec_gives_the_maps_back_undone(tmp_path: Path, codec: str, dtype: str, error: float) -> None:
    small = make_store(tmp_path / "store", codec)
    for key in KEYS:
        sample = small.open()[key]
        assert sample["detect.s8"].dtype == np.dtype(dtype)
        np.testing.assert_allclose(sample["detect.s8"], small.maps[key], atol=error)
        np.testing.assert_array_equal(sample["detect.cells"], np.arange(CANDIDATES))


def test_boxes_are_kept_to_the_last_bit_of_float32(made: Small) -> None:
    np.testing.assert_array_equal(made.open()[KEYS[4]]["detect.boxes"], detect_values(4)["boxes"].astype(np.float32))


def test_masks_come_back_bit_for_bit(made: Small) -> None:
    store = made.open()
    batch = Reader(store, ["masks.bits"]).gather(KEYS)["masks.bits"]
    assert batch.shape == (len(KEYS), CANDIDATES, SIDE, SIDE // 8)
    for key, packed in zip(KEYS, batch, strict=True):
        np.testing.assert_array_equal(np.unpackbits(packed, axis=-1), made.masks[key])
        np.testing.assert_array_equal(unpack_masks(store[key]["masks.bits"], CANDIDATES, SIDE), packed)


@settings(max_examples=20, deadline=None, database=None)
@given(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=9))
def test_a_batch_is_its_images_in_the_order_asked_for(made: Small, keys: list[str]) -> None:
    store = made.open()
    columns = ["sam.embedding", "detect.s8", "detect.boxes", "masks.iou"]
    batch = Reader(store, columns).gather(keys)
    assert list(batch) == columns
    for name in columns:
        np.testing.assert_array_equal(batch[name], np.stack([store[key][name] for key in keys]))


def test_8_bit_maps_are_gathered_with_their_scales_and_decoded_on_demand(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", "u8").open()
    reader = Reader(store, ["detect.s8", "detect.cells"])
    batch = reader.gather(KEYS[:2])
    assert {name: (part.dtype.str, part.shape) for name, part in batch.items()} == {
        "detect.s8": ("|u1", (2, 4, 12, 12)),
        "detect.s8_scale": ("<f4", (2, 4)),
        "detect.s8_zero": ("<f4", (2, 4)),
        "detect.cells": ("<i4", (2, 3)),
    }
    np.testing.assert_array_equal(reader.decode("detect.s8", batch), [store[key]["detect.s8"] for key in KEYS[:2]])
    np.testing.assert_array_equal(reader.decode("detect.cells", batch), batch["detect.cells"])


def test_a_batch_fills_the_arrays_it_is_given(made: Small) -> None:
    reader = Reader(made.open(), ["detect.s8"])
    block = np.zeros((2, 4, 12, 12), dtype=np.float16)
    assert reader.gather(KEYS[:2], out={"detect.s8": block})["detect.s8"] is block
    np.testing.assert_array_equal(block, reader.gather(KEYS[:2])["detect.s8"])


def test_threads_may_share_a_reader(made: Small) -> None:
    reader = Reader(made.open(), ["detect.s8", "masks.bits"])
    expected = Reader(made.open(), ["detect.s8"]).gather(KEYS)["detect.s8"]
    with ThreadPoolExecutor(8) as pool:
        for batch in pool.map(reader.gather, [KEYS] * 32):
            np.testing.assert_array_equal(batch["detect.s8"], expected)


def test_where_tells_the_place_of_a_members_values(made: Small) -> None:
    store = made.open()
    place = Reader(store, ["detect.boxes"]).where(KEYS[3])["detect.boxes"]
    raw = place.path.read_bytes()[place.offset : place.offset + place.length]
    np.testing.assert_array_equal(np.frombuffer(raw, place.dtype).reshape(place.shape), store[KEYS[3]]["detect.boxes"])


def test_a_store_knows_its_columns_keys_and_letterboxes(made: Small) -> None:
    store = made.open()
    assert store.keys == KEYS
    assert set(store.columns) == {f"{stage}.{field.name}" for stage in store.families for field in FAMILIES[stage]}
    assert store.columns["detect.s8"].shapes == [(4, 12, 12)]
    assert store.letterbox(KEYS[0]) == Letterbox.fit(80, 120, SIDE)
    assert store.verify() == []
    store.require(["detect", "sam", "masks"], KEYS)


def test_references_are_read_by_data_set_and_an_absent_one_is_named(small: Small) -> None:
    rows: dict[str, list[Any]] = {
        "ref_id": [1],
        "key": [KEYS[0]],
        "split": ["val"],
        "category": [2],
        "category_name": ["disc"],
        "box": [[1.5, 2.0, 3.0, 4.0]],
        "mask": [None],
        "sent_ids": [[7, 8]],
        "sentences": [["red disc", "the disc"]],
    }
    table = pa.table(rows, schema=REFERENCES).replace_schema_metadata({"dataset": "refcoco+"})
    write_table(small.path / "refs-refcoco+.parquet", table)
    store = small.open()
    assert store.datasets == ["refcoco+"]
    assert store.references("refcoco+").to_pylist() == pa.table(rows, schema=REFERENCES).to_pylist()
    assert read_table(small.path / "refs-refcoco+.parquet").schema.metadata[b"dataset"] == b"refcoco+"
    with pytest.raises(StoreError, match=r"no references of 'refcoco' .*refcoco\+"):
        store.references("refcoco")


# What is stale is refused.


def test_another_sam_makes_the_masks_stale_and_nothing_else(small: Small) -> None:
    new = write_family(small.path, "sam", checkpoint="b")
    store = small.open()
    assert {stage: store.stale_inputs(stage) for stage in store.families} == {
        "detect": [],
        "sam": [],
        "masks": ["sam"],
    }
    store.require(["detect", "sam"], KEYS)
    with pytest.raises(StoreError) as refusal:
        store.require(["detect", "masks"], KEYS)
    line = str(refusal.value)
    assert f"made from another sam column (now {new.name})" in line
    assert line.endswith(
        f"; make them: weakmcn precompute --data '/data sets' --dataset refcoco --split train,val --store {small.path} "
        "--stages masks"
    )
    assert "\n" not in line
    write_family(small.path, "masks")
    small.open().require(["detect", "sam", "masks"], KEYS)


def test_a_changed_image_makes_its_shard_stale_and_no_other(small: Small) -> None:
    write_images(small.path, {key: digest_of(key) for key in KEYS} | {KEYS[2]: fingerprint("retouched")})
    store = small.open()
    assert store.stale_shards("sam") == [1]
    store.require(["sam"], KEYS[:2] + KEYS[4:])
    with pytest.raises(StoreError, match=r"images of 1 shards have changed .*--stages detect,sam,masks"):
        store.require(["sam", "masks"], KEYS)


def test_a_command_renews_the_inputs_that_are_not_whole_either(small: Small) -> None:
    for stage in ("sam", "masks"):
        (small.folder(stage) / "000001.json").unlink()
    with pytest.raises(StoreError, match=r"--stages sam,masks$"):
        small.open().require(["masks"], KEYS)


def test_an_absent_and_an_unknown_stage_are_refused(made: Small) -> None:
    with pytest.raises(StoreError, match=r"has no dino column; make them: weakmcn precompute --.* --stages dino$"):
        made.open().require(["detect", "dino"], KEYS)
    with pytest.raises(StoreError, match=r"no column 'dino.tokens'"):
        Reader(made.open(), ["dino.tokens"])
    with pytest.raises(ConfigError, match="'depth' is not known"):
        made.open().require(["depth"], KEYS)


def test_skipped_images_count_as_done_and_are_told_when_asked_for(small: Small) -> None:
    store = small.open()
    folder, digest = store.families["sam"].folder, store.families["sam"].fingerprint
    rest = [Record(key=KEYS[0], values=values_of("sam", 0), image_sha256=digest_of(KEYS[0]))]
    write_shard(
        folder,
        0,
        rest,
        fingerprint=digest,
        codec="f16",
        fields=FAMILIES["sam"],
        skipped=[(KEYS[1], "truncated")],
    )
    store = small.open()
    assert store.skipped("sam") == {KEYS[1]: "truncated"}
    assert store.missing("sam", KEYS) == []
    store.require(["sam"], KEYS)
    with pytest.raises(StoreError, match=f"image {KEYS[1]} was skipped: truncated"):
        Reader(store, ["sam.embedding"]).gather(KEYS)


# Families come and go alone.


@pytest.mark.parametrize("harm", ["remove the folder", "remove stage.json", "change what was hashed"])
def test_a_lost_or_altered_family_does_not_keep_the_others_from_use(small: Small, harm: str) -> None:
    folder = small.folder("sam")
    if harm == "remove the folder":
        shutil.rmtree(folder)
    elif harm == "remove stage.json":
        (folder / "stage.json").unlink()
    else:
        content = json.loads((folder / "stage.json").read_text())
        content["hashed"]["codec"] = "bf16"
        (folder / "stage.json").write_text(json.dumps(content))
    store = small.open()
    assert set(store.families) == {"detect", "masks"}
    assert set(store[KEYS[0]]) == {f"{stage}.{each.name}" for stage in store.families for each in FAMILIES[stage]}
    assert any(folder.name in problem for problem in store.verify())
    with pytest.raises(StoreError, match=folder.name):
        store.require(["sam"], KEYS)


def test_gc_removes_what_is_not_in_use_and_dead_temporaries_only(small: Small) -> None:
    old = small.folder("sam")
    size = sum(file.stat().st_size for file in old.iterdir())
    write_family(small.path, "sam", checkpoint="b")
    dead = small.folder("detect") / ".tmp-0badc0ffee00-000009.tar"
    dead.write_bytes(b"half")
    (small.path / "notes").mkdir()
    with finished_file(small.path / "images.parquet") as live:
        live.write_bytes((small.path / "images.parquet").read_bytes())
        planned = gc(small.path, dry_run=True)
        assert [(each.path, each.bytes) for each in planned] == [(old, size), (dead, 4)]
        assert old.exists()
        assert gc(small.path) == planned
    assert not old.exists()
    assert not dead.exists()
    assert (small.path / "notes").exists()
    assert small.open().verify() == []
    assert gc(small.path) == []


def test_gc_leaves_a_family_alone_that_is_being_written(small: Small) -> None:
    old = small.folder("sam")
    write_family(small.path, "sam", checkpoint="b")
    with finished_file(old / "000003.tar") as temporary:
        temporary.write_bytes(b"more")
        assert gc(small.path) == []
    assert [each.path for each in gc(small.path)] == [old]


def test_a_store_keeps_its_canvas_side(small: Small) -> None:
    create_store(small.path, SIDE)
    with pytest.raises(StoreError, match="canvas of 96 pixels, this run wants 416"):
        create_store(small.path, 416)
    with pytest.raises(ConfigError, match="100 pixels"):
        create_store(small.path / "new", 100)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is damaged"),
        (b"[]", "is damaged"),
        (b'{"format": 2, "side": 96, "current": {}}', "update weakmcn"),
        (b'{"format": 1, "side": "96", "current": {}}', "is damaged"),
        (b'{"format": 1, "side": 96, "current": {"sam": "../../sam-00000000"}}', "is damaged"),
        (b'{"format": 1, "side": 96, "current": {"sam": "dino-00000000"}}', "is damaged"),
    ],
)
def test_a_store_json_that_cannot_be_true_is_refused(small: Small, content: bytes, fault: str) -> None:
    (small.path / "store.json").write_bytes(content)
    with pytest.raises(StoreError, match=fault):
        small.open()


def test_a_folder_that_is_no_store_and_a_lost_or_damaged_table_are_told_apart(small: Small) -> None:
    with pytest.raises(StoreError, match=r"is not a store \(store.json is missing\)"):
        Store.open(small.path / "masks")
    table = small.path / "images.parquet"
    flip(table, 60)
    with pytest.raises(DamagedShardError, match=r"images\.parquet is damaged"):
        small.open()
    table.unlink()
    with pytest.raises(StoreError, match=r"images\.parquet is missing"):
        small.open()
