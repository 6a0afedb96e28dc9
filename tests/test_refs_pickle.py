"""A refs pickle is data: whatever else it holds is refused, and runs nothing."""

import contextlib
import os
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from weakmcn.pipeline.annotations import load_references
from weakmcn.shards.errors import AnnotationError

from .annotated import reference, refused, write_unc


class _Touch:
    """Pickles as a call that makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def payloads(canary: Path) -> dict[str, bytes]:
    """Refs pickles that run code, or exhaust the memory, where a plain `pickle.load` reads them."""
    name = str(canary).encode()
    found = {f"reduce {protocol}": pickle.dumps([_Touch(canary)], protocol=protocol) for protocol in range(6)}
    found["global"] = b"cposix\nmkdir\n(S'" + name + b"'\ntR."
    found["inst"] = b"(S'" + name + b"'\niposix\nmkdir\n."
    found["stack global"] = b"\x80\x04\x8c\x05posix\x8c\x05mkdir\x93\x8c" + bytes([len(name)]) + name + b"\x85R."
    found["obj"] = b"(cposix\nmkdir\nS'" + name + b"'\no."
    found["build"] = b"}}b."
    found["persistent id"] = b"Pname\n."
    found["extension code"] = b"\x80\x02\x82\x01."
    found["numpy integer"] = pickle.dumps([np.int64(5)], protocol=2)
    found["memo bomb"] = b"\x80\x02Nr\xff\xff\xff\x0f."
    found["memo bomb, text"] = b"Np268435455\n."
    return found


@pytest.mark.parametrize("kind", sorted(payloads(Path("canary"))))
def test_a_pickle_that_is_more_than_data_is_refused_and_runs_nothing(tmp_path: Path, kind: str) -> None:
    canary = tmp_path / "canary"
    path = write_unc(tmp_path)
    path.write_bytes(payloads(canary)[kind])
    message = refused(tmp_path)
    assert message.startswith("ROOT/refcoco/refs(unc).p: asks for ")
    assert "refs(unc).json" in message
    assert not canary.exists()


def test_the_payloads_do_run_where_a_plain_pickle_load_reads_them(tmp_path: Path) -> None:
    for kind in ("reduce 0", "reduce 2", "reduce 4", "global", "inst", "stack global", "obj"):
        canary = tmp_path / kind
        pickle.loads(payloads(canary)[kind])
        assert canary.exists(), kind


def test_the_code_asked_for_is_named(tmp_path: Path) -> None:
    path = write_unc(tmp_path)
    for kind in ("global", "inst", "stack global"):
        path.write_bytes(payloads(tmp_path / "canary")[kind])
        assert "asks for posix.mkdir while being read" in refused(tmp_path)
    path.write_bytes(payloads(tmp_path / "canary")["numpy integer"])
    assert "multiarray.scalar" in refused(tmp_path)


def test_a_long_list_shared_by_many_references_does_not_fill_the_memory(tmp_path: Path) -> None:
    shared = reference(0, 50, 7, "train", ["left"] * 1000, 0)
    write_unc(tmp_path, [dict(shared, ref_id=number) for number in range(1_001)])
    assert (tmp_path / "refcoco" / "refs(unc).p").stat().st_size < 150_000
    assert "more than 1,000,000 sentences" in refused(tmp_path)


@pytest.mark.parametrize("protocol", range(6))
def test_a_tuple_in_place_of_a_list_is_read(tmp_path: Path, protocol: int) -> None:
    refs = [reference(number, 50, 7, "train", ["left", "it"], 2 * number) for number in range(3)]
    write_unc(tmp_path, [dict(ref, sentences=tuple(ref["sentences"])) for ref in refs], protocol=protocol)
    assert [one.sentences for one in load_references(tmp_path, "refcoco")] == [("left", "it")] * 3


def test_a_tuple_that_stands_in_several_places_is_refused(tmp_path: Path) -> None:
    """Nested, 2^n of them: as the key of a dict they would be hashed one by one."""
    nested: tuple[Any, ...] = ("a",)
    for _ in range(60):
        nested = (nested, nested)
    for protocol in range(6):
        write_unc(tmp_path, [{"ref_id": nested}], protocol=protocol)
        assert "a tuple that stands in several places" in refused(tmp_path)


def test_a_hidden_tuple_is_refused_too(tmp_path: Path) -> None:
    """Something else pushed and taken away between the tuple and its memo entry."""
    path = write_unc(tmp_path)
    path.write_bytes(b"\x80\x02N\x85N0q\x00h\x00h\x00\x86.")
    assert "a memo entry behind POP" in refused(tmp_path)


def test_integers_whose_hashes_agree_are_few(tmp_path: Path) -> None:
    modulus = sys.hash_info.modulus
    write_unc(tmp_path, [{n * modulus: None for n in range(1, 1_002)}])
    assert "too many lists or numbers" in refused(tmp_path)


@pytest.mark.parametrize("value", [{}, [], "refs", 5, None, [[]], [None], [{"ref_id": 1}]], ids=repr)
def test_a_pickle_of_something_else_is_refused(tmp_path: Path, value: Any) -> None:
    write_unc(tmp_path, value)
    assert "ROOT" in refused(tmp_path)


@settings(max_examples=120, deadline=None, database=None)
@given(data=st.data())
def test_a_damaged_pickle_is_refused_or_read_but_never_breaks(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("damaged")
    protocol = data.draw(st.sampled_from([0, 2, 4]))
    path = write_unc(root, protocol=protocol)
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        del content[place:]
        path.write_bytes(content)
        assert "ROOT/refcoco/refs(unc).p" in refused(root)
        return
    content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with contextlib.suppress(AnnotationError):
        load_references(root, "refcoco")
