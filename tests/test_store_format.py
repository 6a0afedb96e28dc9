"""docs/store.md is enough to read a store: a reader written from it finds what ours finds, and sees what is wrong."""

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from weakmcn.shards.codec import CODECS, unpack_masks
from weakmcn.shards.store import Store

from . import format_reader
from .format_reader import RefusedError
from .worlds import DATASET, make_store


def same(ours: Store, theirs: format_reader.Store) -> None:
    assert theirs.side == ours.side
    assert [row["key"] for row in theirs.images] == ours.keys
    for row in theirs.images:
        key = row["key"]
        wanted, found = ours[key], theirs[key]
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            assert found[name].dtype == array.dtype, name
            np.testing.assert_array_equal(found[name], array, err_msg=name)
        box = ours.letterbox(key)
        assert theirs.canvas(row) == (box.new_height, box.new_width, box.left, box.top)


def test_the_reader_finds_the_same_arrays_tables_and_masks_in_a_pocket_store(demo: Path) -> None:
    ours, theirs = Store.open(demo / "store"), format_reader.Store(demo / "store")
    assert {"detect.s8", "dino.tokens", "sam.embedding", "masks.bits"} <= ours.columns.keys()
    same(ours, theirs)
    assert theirs.references("refcoco+") == ours.references("refcoco+").to_pylist()
    for key in ours.keys[:8]:
        columns = ours[key]
        packed = unpack_masks(columns["masks.bits"], len(columns["masks.iou"]), ours.side)
        np.testing.assert_array_equal(theirs.masks(key), np.unpackbits(packed, axis=-1).astype(bool))


@pytest.mark.parametrize("codec", CODECS)
def test_the_reader_undoes_every_codec(codec: str, tmp_path: Path) -> None:
    make_store(tmp_path / "store", train=3, val=1, codec=codec, skipped=[2])
    ours, theirs = Store.open(tmp_path / "store"), format_reader.Store(tmp_path / "store")
    same(ours, theirs)
    assert theirs.references(DATASET) == ours.references(DATASET).to_pylist()


def test_a_tar_is_as_the_page_says(demo: Path) -> None:
    """Its format, its times and owners, the order of its members, where values begin."""
    for family in format_reader.Store(demo / "store").families.values():
        for path in sorted(family.folder.glob("*.tar")):
            record = json.loads(path.with_suffix(".json").read_bytes())
            assert path.stat().st_size % 10_240 == 0
            assert path.with_suffix(".json").read_bytes() == format_reader.canonical(record) + b"\n"
            with tarfile.open(path, "r:") as tar, open(path, "rb") as file:
                entries = tar.getmembers()
                assert [entry.name for entry in entries] == [member["name"] for member in record["members"]]
                assert [entry.name for entry in entries] == sorted(entry.name for entry in entries)
                for entry, member in zip(entries, record["members"], strict=True):
                    assert (entry.type, entry.mode, entry.mtime, entry.uid, entry.gid) == (b"0", 0o444, 0, 0, 0)
                    assert (entry.uname, entry.gname) == ("", "")
                    assert entry.offset_data + entry.size == member["offset"] + member["length"]
                    is_large = member["length"] >= 65_536
                    assert (member["offset"] if is_large else member["offset"] - entry.offset_data) % (
                        4096 if is_large else 64
                    ) == 0
                    file.seek(entry.offset_data)
                    header = file.read(member["offset"] - entry.offset_data)
                    assert header[:8] == b"\x93NUMPY\x01\x00"
                    assert int.from_bytes(header[8:10], "little") == len(header) - 10
                    dtype = np.dtype(member["dtype"]).newbyteorder("<").str
                    said = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {tuple(member['shape'])}, }}"
                    assert header[10:].decode("ascii") == said + " " * (len(header) - 11 - len(said)) + "\n"


def read_all(path: Path) -> None:
    store = format_reader.Store(path)
    for row in store.images:
        store[row["key"]]


def flipped_value(store: Path) -> None:
    (tar,) = store.glob("dino-*/000000.tar")
    record = json.loads(tar.with_suffix(".json").read_bytes())
    data = bytearray(tar.read_bytes())
    data[record["members"][0]["offset"]] ^= 1
    tar.write_bytes(data)


def short_tar(store: Path) -> None:
    (tar,) = store.glob("dino-*/000000.tar")
    tar.write_bytes(tar.read_bytes()[:-512])


def changed_record(store: Path) -> None:
    (sidecar,) = store.glob("dino-*/000000.json")
    sidecar.write_bytes(sidecar.read_bytes().replace(b'"float16"', b'"uint16"', 1))


def other_settings(store: Path) -> None:
    (stage,) = store.glob("dino-*/stage.json")
    stage.write_text(stage.read_text("utf-8").replace('"code": 1', '"code": 2'))


def newer_format(store: Path) -> None:
    record = json.loads((store / "store.json").read_text("utf-8"))
    (store / "store.json").write_text(json.dumps(record | {"format": 2}))


@pytest.mark.parametrize("damage", [flipped_value, short_tar, changed_record, other_settings, newer_format])
def test_what_a_reader_must_check_shows_what_is_wrong(damage: Callable[[Path], None], tmp_path: Path) -> None:
    damage(make_store(tmp_path / "store", train=2, val=1))
    with pytest.raises(RefusedError):
        read_all(tmp_path / "store")
