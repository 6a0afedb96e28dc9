"""A shard is plain, exact and the same every time, and its sidecar is believed only where it can be true."""

import errno
import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from weakmcn.shards.codec import pack_masks
from weakmcn.shards.columns import FAMILIES
from weakmcn.shards.errors import DamagedShardError, StageError, WeakmcnError
from weakmcn.shards.fingerprint import file_sha256, fingerprint
from weakmcn.shards.index import load_index
from weakmcn.shards.sidecar import Sidecar, parse_sidecar
from weakmcn.shards.writer import ALIGNED_FROM, Record, npy_header, write_shard
from webdataset.compat import WebDataset

FAMILY = fingerprint("a family")
properties = settings(max_examples=40, deadline=None, database=None)


def records(count: int, seed: int = 0) -> Iterator[Record]:
    """Detector output of `count` images with K = 3 candidates and 6 classes; the map s8 is large enough to align."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        values = {
            "s8": rng.standard_normal((60, 24, 24), dtype=np.float32),
            "s16": rng.standard_normal((8, 12, 12), dtype=np.float32),
            "s32": rng.standard_normal((8, 6, 6), dtype=np.float32),
            "cells": np.arange(3) + number,
            "boxes": rng.uniform(0, 192, (3, 4, 5)),
            "classes": rng.random((3, 6)),
            "colours": rng.random((3, 3)),
        }
        yield Record(key=f"{10 * number:012d}", values=values, image_sha256=fingerprint(number))


def write(folder: Path, *, count: int = 3, seed: int = 0, codec: str = "f16", number: int = 0) -> Sidecar:
    return write_shard(folder, number, records(count, seed), fingerprint=FAMILY, codec=codec, fields=FAMILIES["detect"])


def parse(text: bytes) -> Sidecar:
    return parse_sidecar(Path("000000.json"), text, family_fingerprint=FAMILY)


def finished(folder: Path) -> dict[int, str]:
    """Shards that a reader would see, number -> digest, after checking that their tars are those."""
    shards = load_index(folder, "detect", "f16", FAMILY).shards
    assert all(file_sha256(folder / f"{number:06d}.tar") == shard.sha256 for number, shard in shards.items())
    return {number: shard.sha256 for number, shard in shards.items()}


def test_webdataset_opens_a_shard_and_numpy_reads_its_members(tmp_path: Path) -> None:
    write(tmp_path)
    samples = list(WebDataset([str(tmp_path / "000000.tar")], shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == ["000000000000", "000000000010", "000000000020"]
    for sample, record in zip(samples, records(3), strict=True):
        for name, values in record.values.items():
            found = np.load(io.BytesIO(sample[f"{name}.npy"]))
            np.testing.assert_array_equal(found, values.astype(found.dtype))


def test_a_shard_is_plain_ustar_without_times_and_owners(tmp_path: Path) -> None:
    write(tmp_path)
    data = (tmp_path / "000000.tar").read_bytes()
    with tarfile.open(tmp_path / "000000.tar", "r:") as archive:
        for entry in archive:
            assert entry.isreg()
            assert (entry.mtime, entry.uid, entry.gid, entry.uname, entry.gname) == (0, 0, 0, "", "")
            assert data[entry.offset + 257 : entry.offset + 265] == b"ustar\x0000"


@pytest.mark.parametrize("codec", ["f16", "bf16", "u8", "f32"])
def test_the_same_input_gives_the_same_bytes(tmp_path: Path, codec: str) -> None:
    first, second = write(tmp_path / "a", codec=codec), write(tmp_path / "b", codec=codec)
    assert first == second
    for name in ("000000.tar", "000000.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert first.sha256 == file_sha256(tmp_path / "a" / "000000.tar")
    assert first.bytes == (tmp_path / "a" / "000000.tar").stat().st_size


def test_the_sidecar_tells_where_every_value_lies_and_large_members_start_on_a_page(tmp_path: Path) -> None:
    sidecar = write(tmp_path)
    data = (tmp_path / "000000.tar").read_bytes()
    originals = {record.key: record.values for record in records(3)}
    for member in sidecar.members:
        found = np.frombuffer(data, member.dtype, np.prod(member.shape, dtype=int), member.offset)
        np.testing.assert_array_equal(
            found.reshape(member.shape), originals[member.key][member.field].astype(member.dtype)
        )
        assert member.offset % (4096 if member.length >= ALIGNED_FROM else 64) == 0
    assert {member.field for member in sidecar.members if member.length >= ALIGNED_FROM} == {"s8"}


@properties
@given(
    shape=hnp.array_shapes(min_dims=1, max_dims=5, min_side=0, max_side=70_000),
    dtype=st.sampled_from(["float16", "float32", "int32", "uint8", "uint16"]),
    blocks=st.integers(1, 10**7),
    align=st.booleans(),
)
def test_numpy_reads_every_padded_header(shape: tuple[int, ...], dtype: str, blocks: int, align: bool) -> None:
    header = npy_header(dtype, shape, start=512 * blocks, align=align)
    stream = io.BytesIO(header)
    assert np.lib.format.read_magic(stream) == (1, 0)
    assert np.lib.format.read_array_header_1_0(stream) == (shape, False, np.dtype(dtype))
    assert stream.tell() == len(header)
    assert (512 * blocks + len(header)) % (4096 if align else 64) == 0


@properties
@given(array=hnp.arrays(np.float32, hnp.array_shapes(max_dims=4, max_side=6)), blocks=st.integers(1, 99))
def test_numpy_loads_an_array_behind_a_padded_header(array: np.ndarray, blocks: int) -> None:
    header = npy_header("float32", array.shape, start=512 * blocks, align=True)
    np.testing.assert_array_equal(np.load(io.BytesIO(header + array.tobytes())), array)


@pytest.mark.parametrize("key", ["1", "00000000001a", "0000000000001", "000000.00001", "../000000001", ""])
def test_a_key_that_is_not_twelve_digits_is_refused(tmp_path: Path, key: str) -> None:
    record = next(records(1))
    with pytest.raises(ValueError, match="twelve digits"):
        write_shard(
            tmp_path,
            0,
            [Record(key=key, values=record.values, image_sha256=record.image_sha256)],
            fingerprint=FAMILY,
            codec="f16",
            fields=FAMILIES["detect"],
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", [(1, 0), (0, 0)])
def test_keys_out_of_order_or_twice_are_refused(tmp_path: Path, order: tuple[int, int]) -> None:
    made = list(records(2))
    with pytest.raises(ValueError, match="ascend"):
        write_shard(tmp_path, 0, (made[i] for i in order), fingerprint=FAMILY, codec="f16", fields=FAMILIES["detect"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", range(3))
def test_an_encoder_that_fails_at_any_image_leaves_nothing(tmp_path: Path, failing: int) -> None:
    def until_it_fails() -> Iterator[Record]:
        for number, record in enumerate(records(3)):
            if number == failing:
                raise RuntimeError("out of memory")
            yield record

    with pytest.raises(RuntimeError, match="out of memory"):
        write_shard(tmp_path, 0, until_it_fails(), fingerprint=FAMILY, codec="f16", fields=FAMILIES["detect"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("field", "value"), [("s8", np.inf), ("s32", 1e6), ("boxes", np.nan), ("classes", np.nan), ("colours", np.inf)]
)
def test_a_value_that_cannot_be_stored_is_named_with_its_image_and_leaves_nothing(
    tmp_path: Path, field: str, value: float
) -> None:
    made = list(records(2))
    made[1].values[field][1, 1] = value
    with pytest.raises(StageError, match=f"image 000000000010, {field}"):
        write_shard(tmp_path, 0, made, fingerprint=FAMILY, codec="f16", fields=FAMILIES["detect"])
    assert list(tmp_path.iterdir()) == []


def test_skipped_images_are_recorded_with_their_reasons(tmp_path: Path) -> None:
    skipped: list[tuple[str, str]] = []

    def skipping_the_second() -> Iterator[Record]:
        for number, record in enumerate(records(3)):
            if number == 1:
                skipped.append((record.key, "truncated"))
            else:
                yield record

    write_shard(
        tmp_path,
        0,
        skipping_the_second(),
        fingerprint=FAMILY,
        codec="f16",
        fields=FAMILIES["detect"],
        skipped=skipped,
    )
    content = json.loads((tmp_path / "000000.json").read_bytes())
    assert content["keys"] == ["000000000000", "000000000020"]
    assert content["skipped"] == [{"key": "000000000010", "reason": "truncated"}]


def test_a_shard_of_masks_holds_frames_of_different_lengths(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frames = [pack_masks(rng.random((3, 96, 96)) < share) for share in (0.0, 0.5)]
    made = [
        Record(key=f"{n:012d}", values={"bits": frame, "iou": np.ones(3)}, image_sha256=fingerprint(n))
        for n, frame in enumerate(frames)
    ]
    sidecar = write_shard(tmp_path, 7, made, fingerprint=FAMILY, codec="f16", fields=FAMILIES["masks"])
    shapes = [member.shape for member in sidecar.members if member.field == "bits"]
    assert shapes == [frame.shape for frame in frames]
    assert shapes[0] != shapes[1]


@pytest.mark.parametrize("operation", ["fsync", "replace"])
def test_whatever_fails_while_a_shard_is_renewed_no_record_stands_beside_other_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    old = write(tmp_path / "old", seed=1).sha256
    new = write(tmp_path / "new", seed=2).sha256
    genuine: Callable[..., Any] = getattr(os, operation)
    seen = []
    for failing in range(20):
        calls = iter(range(99))

        def fail(*args: Any, calls: Iterator[int] = calls, failing: int = failing, **kwargs: Any) -> Any:
            if next(calls) == failing:
                raise OSError(errno.EIO, "Input/output error")
            return genuine(*args, **kwargs)

        folder = tmp_path / f"{failing}"
        write(folder, seed=1)
        with monkeypatch.context() as patched:
            patched.setattr(os, operation, fail)
            try:
                write(folder, seed=2)
            except WeakmcnError:
                seen.append(finished(folder))
        write(folder, seed=2)
        assert finished(folder) == {0: new}
        if next(calls) <= failing:
            break
    assert seen
    assert all(state in ({0: old}, {0: new}, {}) for state in seen)


def test_a_sidecar_comes_back_as_it_was_written(tmp_path: Path) -> None:
    sidecar = write(tmp_path, codec="u8")
    assert parse((tmp_path / "000000.json").read_bytes()) == sidecar


@pytest.fixture(scope="module")
def sidecar_text(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("family")
    write(folder, count=2)
    return (folder / "000000.json").read_bytes()


@settings(max_examples=150, deadline=None, database=None)
@given(data=st.data())
def test_no_changed_byte_of_a_sidecar_goes_unnoticed(sidecar_text: bytes, data: st.DataObject) -> None:
    position = data.draw(st.integers(0, len(sidecar_text) - 2))  # the last is the end of the line
    changed = bytearray(sidecar_text)
    changed[position] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DamagedShardError, match=r"000000\.json"):
        parse(bytes(changed))


@properties
@given(data=st.data())
def test_a_sidecar_that_is_cut_short_is_refused(sidecar_text: bytes, data: st.DataObject) -> None:
    with pytest.raises(DamagedShardError):
        parse(sidecar_text[: data.draw(st.integers(0, len(sidecar_text) - 2))])


def _first_member(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda content: content["members"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (_first_member(offset=1 << 40), "overlaps|end at byte"),
        (_first_member(offset=-1), "natural numbers"),
        (_first_member(offset=1.5), "natural numbers"),
        (_first_member(offset=True), "natural numbers"),
        (_first_member(dtype="object"), "dtype 'object'"),
        (_first_member(dtype="float16"), "has .* bytes"),
        (_first_member(shape=[3, 4, -5]), "natural numbers"),
        (_first_member(shape=[3, 4]), "has .* bytes"),
        (_first_member(shape="345"), "place of member"),
        (_first_member(name="../etc/passwd"), "<key>.<field>.npy"),
        (_first_member(name="000000000099.boxes.npy"), "not together"),
        (_first_member(crc32=1 << 32), "crc32"),
        (lambda content: content.update(bytes=100), "the tar has 100"),
        (lambda content: content.update(shard=1), "says it is shard 1"),
        (lambda content: content.update(fingerprint="0" * 64), "another fingerprint"),
        (lambda content: content.update(sha256="zz"), "SHA-256"),
        (lambda content: content.update(members=content["members"][:-1]), "members for 2 images"),
        (lambda content: content["skipped"].append({"key": content["keys"][0], "reason": "x"}), "both held"),
        (lambda content: content["keys"].reverse(), "keys and images differ"),
        (lambda content: content.pop("members"), "no 'members'"),
    ],
)
def test_a_sidecar_that_cannot_be_true_is_refused_although_its_checksum_is_right(
    sidecar_text: bytes, change: Callable[[dict[str, Any]], Any], fault: str
) -> None:
    content = json.loads(sidecar_text)
    del content["checksum"]
    change(content)
    content["checksum"] = fingerprint(content)
    with pytest.raises(DamagedShardError, match=fault):
        parse(json.dumps(content).encode())
