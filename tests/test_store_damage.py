"""A shard is finished or absent: damage of any kind is refused at first touch, and verify finds it."""

import json
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weakmcn.shards.columns import FAMILIES
from weakmcn.shards.errors import DamagedShardError, StoreError
from weakmcn.shards.fingerprint import fingerprint
from weakmcn.shards.reader import Reader
from weakmcn.shards.tables import IMAGES, read_table, write_table
from weakmcn.shards.writer import Record, write_shard

from .small_store import KEYS, Small, cut, digest_of, flip


@pytest.fixture(scope="module")
def mutant(made: Small, tmp_path_factory: pytest.TempPathFactory) -> tuple[Small, bytes]:
    """A copy whose first tar of masks may be overwritten, and that tar's bytes."""
    path = tmp_path_factory.mktemp("mutant") / "store"
    shutil.copytree(made.path, path)
    small = Small(path, made.masks, made.maps)
    return small, (small.folder("masks") / "000000.tar").read_bytes()


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
