"""A store gives back what was put in, refuses what is stale or damaged, and says how to mend it."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner
from weakmcn.cli.store import app
from weakmcn.shards.atomic import finished_file
from weakmcn.shards.codec import pack_masks, unpack_masks
from weakmcn.shards.columns import FAMILIES
from weakmcn.shards.errors import ConfigError, DamagedShardError, StoreError, WeakmcnError
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.geometry import Letterbox
from weakmcn.shards.layout import remember_source
from weakmcn.shards.lock import only_writer
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import Store, create_store, gc, set_current, write_stage_json
from weakmcn.shards.tables import IMAGES, REFERENCES, read_table, write_table
from weakmcn.shards.writer import Record, write_shard

SIDE, CANDIDATES, PER_SHARD = 96, 3, 2
KEYS = [f"{number:012d}" for number in (3, 14, 15, 92, 65, 35)]
KEYS.sort()


@dataclass(frozen=True)
class Small:
    """A store of six photos in three shards, with the stages detect, sam and masks, and what was put into it."""

    path: Path
    masks: dict[str, np.ndarray]
    """bool [3, 96, 96]."""
    maps: dict[str, np.ndarray]
    """float32 [4, 12, 12], detect.s8."""

    def open(self) -> Store:
        return Store.open(self.path)

    def folder(self, stage: str) -> Path:
        return self.open().families[stage].folder


def detect_values(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "s8": rng.standard_normal((4, 12, 12), dtype=np.float32),
        "s16": rng.standard_normal((4, 6, 6), dtype=np.float32),
        "s32": rng.standard_normal((4, 3, 3), dtype=np.float32),
        "cells": np.arange(CANDIDATES),
        "boxes": rng.uniform(0, SIDE, (CANDIDATES, 4, 5)),
        "classes": rng.random((CANDIDATES, 6)),
        "colours": rng.random((CANDIDATES, 3)),
    }


def masks_of(seed: int) -> np.ndarray:
    coarse = np.random.default_rng(seed).random((CANDIDATES, 12, 12)) < 0.5
    return coarse.repeat(8, axis=1).repeat(8, axis=2)


def values_of(stage: str, number: int) -> dict[str, np.ndarray]:
    if stage == "detect":
        return detect_values(number)
    if stage == "sam":
        return {"embedding": np.random.default_rng(number).standard_normal((5, 6, 6), dtype=np.float32)}
    return {"bits": pack_masks(masks_of(number)), "iou": np.full(CANDIDATES, 0.5)}


def digest_of(key: str) -> str:
    return fingerprint(f"photo {key}")


def write_images(path: Path, digests: dict[str, str]) -> None:
    count = len(KEYS)
    columns = {
        "key": KEYS,
        "source": ["pocket"] * count,
        "file": [f"{key}.jpg" for key in KEYS],
        "height": [80] * count,
        "width": [120] * count,
        "shard": [row // PER_SHARD for row in range(count)],
        "row": [row % PER_SHARD for row in range(count)],
        "sha256": [digests[key] for key in KEYS],
    }
    write_table(path / "images.parquet", pa.table(columns, schema=IMAGES))


def write_family(path: Path, stage: str, *, codec: str = "f16", checkpoint: str = "a", shards: int = 3) -> Path:
    """Write a family made from those in use, and put it in use."""
    families = Store.open(path).families
    needs = {"masks": ("detect", "sam")}.get(stage, ())
    hashed = {
        "stage": stage,
        "codec": codec,
        "checkpoint_sha256": fingerprint(checkpoint),
        "inputs": {name: families[name].fingerprint for name in needs},
    }
    folder = write_stage_json(path, stage, hashed, {"torch": "2.15.0"})
    for shard in range(shards):
        made = [
            Record(key=KEYS[number], values=values_of(stage, number), image_sha256=digest_of(KEYS[number]))
            for number in range(shard * PER_SHARD, (shard + 1) * PER_SHARD)
        ]
        write_shard(folder, shard, made, fingerprint=fingerprint(hashed), codec=codec, fields=FAMILIES[stage])
    set_current(path, stage, folder.name)
    return folder


def make_store(path: Path, codec: str = "f16") -> Small:
    create_store(path, SIDE)
    remember_source(path, "refcoco", Path("/data sets"), ["train", "val"])
    write_images(path, {key: digest_of(key) for key in KEYS})
    for stage in ("detect", "sam", "masks"):
        write_family(path, stage, codec=codec)
    return Small(
        path,
        masks={key: masks_of(number) for number, key in enumerate(KEYS)},
        maps={key: detect_values(number)["s8"] for number, key in enumerate(KEYS)},
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """Not to be changed by a test."""
    return make_store(tmp_path_factory.mktemp("made") / "store")


@pytest.fixture
def small(made: Small, tmp_path: Path) -> Small:
    """A copy of its own for every test."""
    shutil.copytree(made.path, tmp_path / "store")
    return Small(tmp_path / "store", made.masks, made.maps)


@pytest.fixture(scope="module")
def mutant(made: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, bytes]:
    """A copy whose first tar of masks may be overwritten, and that tar's bytes."""
    path = tmp_path_factory.mktemp("mutant") / "store"
    shutil.copytree(made.path, path)
    small = Small(path, made.masks, made.maps)
    return small, (small.folder("masks") / "000000.tar").read_bytes()


def flip(file: Path, position: int, bits: int = 1) -> None:
    data = bytearray(file.read_bytes())
    data[position] ^= bits
    file.write_bytes(data)


def cut(file: Path, size: int) -> None:
    file.write_bytes(file.read_bytes()[:size])


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


# A shard is finished or absent.


def test_a_tar_without_its_sidecar_does_not_exist(small: Small) -> None:
    (small.folder("sam") / "000001.json").unlink()
    store = small.open()
    assert store.missing("sam", KEYS) == KEYS[2:4]
    assert store.families["sam"].finished().keys() == {0, 2}
    assert "sam.embedding" not in store[KEYS[2]]
    with pytest.raises(StoreError, match=f"image {KEYS[2]} is not in it"):
        Reader(store, ["sam.embedding"]).gather([KEYS[2]])
    (problem,) = store.verify()
    assert "000001.tar has no sidecar" in problem
    with pytest.raises(StoreError, match=rf"2 of 6 images .*weakmcn precompute .* --store {small.path} --stages sam"):
        store.require(["sam"], KEYS)
    store.require(["sam"], KEYS[:2])


@pytest.mark.parametrize("size", [0, 512, 5000])
def test_a_tar_that_is_cut_short_is_refused_at_first_use_and_found_by_verify(small: Small, size: int) -> None:
    tar = small.folder("sam") / "000001.tar"
    whole = tar.stat().st_size
    cut(tar, size)
    store = small.open()
    reader = Reader(store, ["sam.embedding"])
    reader.gather(KEYS[:2])
    with pytest.raises(DamagedShardError, match=rf"000001\.tar.*weakmcn store repair {small.path}$"):
        reader.gather(KEYS[:4])
    (problem,) = store.verify(deep=False)
    assert f"000001.tar has {size:,} bytes, its sidecar says {whole:,}" in problem
    assert store.families["sam"].finished().keys() == {0, 2}
    with pytest.raises(StoreError, match=r"000001\.tar has"):
        store.require(["sam"], KEYS)


def test_a_flipped_bit_is_refused_by_name_at_first_touch_and_found_by_verify(small: Small) -> None:
    place = Reader(small.open(), ["sam.embedding"]).where(KEYS[3])["sam.embedding"]
    flip(place.path, place.offset + 7)
    reader = Reader(small.open(), ["sam.embedding"])
    reader.gather([key for key in KEYS if key != KEYS[3]])
    with pytest.raises(DamagedShardError, match=rf"000001\.tar: member {KEYS[3]}\.embedding\.npy .*store repair"):
        reader.gather([KEYS[3]])
    assert small.open().verify(deep=False) == []
    (problem,) = small.open().verify()
    assert f"member {KEYS[3]}.embedding.npy fails its checksum" in problem
    assert small.open().families["sam"].finished(deep=True).keys() == {0, 2}


@settings(max_examples=40, deadline=None, database=None)
@given(data=st.data())
def test_no_mutation_of_a_tar_gives_a_wrong_array(mutant: tuple[Small, bytes], data: st.DataObject) -> None:
    small, original = mutant
    content = bytearray(original)
    start = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(1, 600))
    kind = data.draw(st.sampled_from(["flip", "zero", "delete", "insert"]))
    if kind == "flip":
        content[start] ^= data.draw(st.integers(1, 255))
    elif kind == "zero":
        content[start : start + length] = bytes(len(content[start : start + length]))
    elif kind == "delete":
        del content[start : start + length]
    else:
        content[start:start] = bytes(length)
    changed = bytes(content) != original
    (small.folder("masks") / "000000.tar").write_bytes(content)
    try:
        batch = Reader(small.open(), ["masks.bits", "masks.iou"]).gather(KEYS[:2])
    except DamagedShardError:
        assert changed
    else:
        for key, packed in zip(KEYS[:2], batch["masks.bits"], strict=True):
            np.testing.assert_array_equal(np.unpackbits(packed, axis=-1), small.masks[key])
        assert (batch["masks.iou"] == 0.5).all()
    assert bool(small.open().verify(["masks"])) == changed


def test_a_damaged_sidecar_is_refused_by_readers_and_its_shard_is_simply_not_finished(small: Small) -> None:
    flip(small.folder("sam") / "000001.json", 20)
    store = small.open()
    assert store.families["sam"].finished().keys() == {0, 2}
    assert store.missing("sam", KEYS) == KEYS[2:4]
    for use in (lambda: Reader(store, ["sam.embedding"]), lambda: store.require(["sam"], KEYS)):
        with pytest.raises(StoreError, match=r"000001\.json: not a valid sidecar"):
            use()
    assert any("000001.json" in problem for problem in store.verify(deep=False))
    Reader(store, ["detect.s8"]).gather(KEYS)


def test_a_member_of_a_dtype_that_its_family_does_not_store_is_refused(small: Small) -> None:
    path = small.folder("detect") / "000000.json"
    content = json.loads(path.read_bytes())
    del content["checksum"]
    for member in content["members"]:
        if member["name"].endswith("boxes.npy"):
            member["dtype"] = "int32"  # as many bytes, other values
    path.write_text(json.dumps(content | {"checksum": fingerprint(content)}))
    with pytest.raises(DamagedShardError, match="field boxes is stored as"):
        Reader(small.open(), ["detect.boxes"])


def test_verify_finds_images_that_are_not_in_the_table_or_in_another_shard(small: Small) -> None:
    table = read_table(small.path / "images.parquet")
    shards = [*table["shard"].to_pylist()[1:], 7]
    columns = table.to_pydict() | {"shard": shards}
    write_table(small.path / "images.parquet", pa.table(columns, schema=IMAGES))
    assert any(f"image {KEYS[1]} belongs to shard 1" in problem for problem in small.open().verify(["sam"]))
    write_table(small.path / "images.parquet", table.slice(1))
    assert any(f"image {KEYS[0]} is not in images.parquet" in problem for problem in small.open().verify(["sam"]))


# The index is only a copy.


def test_the_index_is_made_again_when_it_is_gone_broken_or_of_other_sidecars(small: Small) -> None:
    folder = small.folder("sam")
    expected = small.open()[KEYS[2]]["sam.embedding"]
    index = folder / "index.parquet"
    assert index.exists()
    other = small.folder("detect") / "index.parquet"
    changes: list[Callable[[], Any]] = [
        index.unlink,
        lambda: index.write_bytes(b"PAR1 no more"),
        lambda: flip(index, index.stat().st_size // 2),
        lambda: shutil.copy(other, index),
    ]
    for change in changes:
        change()
        np.testing.assert_array_equal(small.open()[KEYS[2]]["sam.embedding"], expected)


def test_a_sidecar_renewed_with_the_same_size_is_noticed(small: Small) -> None:
    store = small.open()
    folder, digest = store.families["sam"].folder, store.families["sam"].fingerprint
    size = (folder / "000000.json").stat().st_size
    changed = [
        Record(key=key, values={"embedding": np.full((5, 6, 6), 2.5)}, image_sha256=digest_of(key)) for key in KEYS[:2]
    ]
    for _ in range(40):  # until the numbers in the record happen to have as many digits
        sidecar = write_shard(folder, 0, changed, fingerprint=digest, codec="f16", fields=FAMILIES["sam"])
        if len(sidecar.to_text()) == size:
            break
        changed[0].values["embedding"][0, 0, 0] += 0.5
    assert (folder / "000000.json").stat().st_size == size
    assert small.open()[KEYS[1]]["sam.embedding"][1, 1, 1] == 2.5


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
        f"; renew: weakmcn precompute --data '/data sets' --dataset refcoco --split train,val --store {small.path} "
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
    with pytest.raises(StoreError, match=r"has no dino column; renew: weakmcn precompute --.* --stages dino$"):
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


# The command.


def run(*arguments: str | Path) -> tuple[int, str]:
    result = CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(app, [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output


def test_ls_shows_every_family_and_its_state(small: Small) -> None:
    old = small.folder("sam")
    write_family(small.path, "sam", checkpoint="b", shards=2)
    code, text = run("ls", small.path)
    lines = {name: line for line in text.splitlines() for name in (old.name, "masks-", "detect-") if name in line}
    assert code == 0
    assert "6 images, canvas 96 px" in text
    assert "not in use" in lines[old.name]
    assert "stale: another sam" in lines["masks-"]
    assert "2 images missing" in text
    assert "in use" in lines["detect-"]


def test_ls_counts_the_references_whose_images_are_there_split_by_split(small: Small) -> None:
    def row(ref_id: int, key: str, split: str, sentences: list[str]) -> dict[str, Any]:
        what = {"category": 1, "category_name": "disc", "box": [0.0, 0.0, 1.0, 1.0], "mask": None}
        said = {"sentences": sentences, "sent_ids": [ref_id] * len(sentences)}
        return {"ref_id": ref_id, "key": key, "split": split} | what | said

    rows = [
        row(1, KEYS[0], "train", ["a", "b"]),
        row(2, KEYS[1], "train", ["c"]),
        row(3, "000000000999", "train", ["d"]),
        row(4, "000000000998", "val", ["e"]),
    ]
    write_table(small.path / "refs-refcoco.parquet", pa.Table.from_pylist(rows, schema=REFERENCES))
    assert "  refcoco: train 2 references, 3 sentences; no images of val\n" in run("ls", small.path)[1]
    cut(small.path / "refs-refcoco.parquet", 100)
    assert "refs-refcoco.parquet is damaged" in run("ls", small.path)[1]


def test_verify_ends_with_1_on_damage_and_0_without(small: Small) -> None:
    assert run("verify", small.path)[0] == 0
    place = Reader(small.open(), ["sam.embedding"]).where(KEYS[3])["sam.embedding"]
    flip(place.path, place.offset)
    code, text = run("verify", small.path)
    assert code == 1
    assert f"{KEYS[3]}.embedding.npy fails its checksum" in text
    assert text.endswith(f"1 problem. To mend: weakmcn store repair {small.path}\n")
    assert run("verify", small.path, "--quick")[0] == 0
    assert run("verify", small.path, "--stages", "detect,masks")[0] == 0
    with pytest.raises(ConfigError, match="'depth' is not known"):
        run("verify", small.path, "--stages", "depth")


def test_gc_says_what_it_would_remove_and_then_removes_it(small: Small) -> None:
    old = small.folder("sam")
    write_family(small.path, "sam", checkpoint="b")
    code, text = run("gc", small.path, "--dry-run")
    assert (code, old.exists()) == (0, True)
    assert "would be freed" in text
    assert run("gc", small.path)[0] == 0
    assert not old.exists()


def test_gc_waits_for_no_one_and_touches_nothing_while_a_precompute_holds_the_store(small: Small) -> None:
    with only_writer(small.path, "weakmcn precompute"), pytest.raises(WeakmcnError, match="weakmcn precompute"):
        gc(small.path)
