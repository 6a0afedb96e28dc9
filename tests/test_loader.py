"""Batches hold what the store holds, in every codec, made ahead and in order."""

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from weakmcn.model.batch import Batch
from weakmcn.model.loader import RING, SOURCES, Loader, ahead
from weakmcn.shards.errors import StoreError
from weakmcn.shards.store import Store

from .worlds import LETTERBOX, TINY, key_of, make_store

FIELDS = ("dark_s8", "dark_s16", "dark_s32", "dino", "sam", "cells", "boxes", "masks")
KEYS = [key_of(image) for image in (3, 0, 3)]
TOKENS = np.array([[5, 0, 0, 0], [3, 4, 0, 0], [6, 0, 0, 0]])


@pytest.mark.parametrize(
    ("codec", "dtype"),
    [("f16", torch.float16), ("bf16", torch.bfloat16), ("u8", torch.float32), ("f32", torch.float32)],
)
def test_a_batch_holds_the_stores_values_in_every_codec(tmp_path: Path, codec: str, dtype: torch.dtype) -> None:
    store = Store.open(make_store(tmp_path / "store", train=4, val=1, codec=codec))
    batch = Loader(store, FIELDS).batch(KEYS, TOKENS)
    batch.check(TINY, FIELDS)
    for field in ("dark_s8", "dark_s16", "dark_s32", "dino", "sam"):
        values = getattr(batch, field)
        assert values.dtype == dtype
        wanted = np.stack([store[key][SOURCES[field]] for key in KEYS]).astype(np.float32)
        np.testing.assert_allclose(values.float().numpy(), wanted, rtol=1e-6, atol=1e-6)
    for field in ("cells", "boxes"):
        wanted = np.stack([store[key][SOURCES[field]] for key in KEYS])
        np.testing.assert_array_equal(getattr(batch, field).numpy(), wanted)
    assert batch.letterbox.tolist() == [LETTERBOX.info.tolist()] * 3


def test_pads_that_every_sentence_has_are_not_carried(tmp_path: Path) -> None:
    loader = Loader(Store.open(make_store(tmp_path / "store", train=4, val=1)), FIELDS)
    assert loader.batch(KEYS, TOKENS).tokens.tolist() == [[5, 0], [3, 4], [6, 0]]
    assert loader.batch(KEYS, np.zeros((3, 4), np.int64)).tokens.shape == (3, 1)


def test_some_fields_are_filled_alone(tmp_path: Path) -> None:
    loader = Loader(Store.open(make_store(tmp_path / "store", train=4, val=1)), FIELDS)
    batch = loader.batch(KEYS, TOKENS, fields=("dark_s32", "cells", "boxes"))
    assert batch.dark_s32 is not None
    assert (batch.dark_s8, batch.dino, batch.masks) == (None, None, None)


def test_a_bank_of_another_width_is_told_with_the_setting_that_takes_it(tmp_path: Path) -> None:
    batch = Loader(Store.open(make_store(tmp_path / "store", train=4, val=1)), FIELDS).batch(KEYS, TOKENS)
    with pytest.raises(StoreError, match=r"Set --set model.sam_channels=4, or use the preset"):
        batch.check(replace(TINY, sam_channels=5), FIELDS)
    with pytest.raises(StoreError, match=r"dark_s8 of the batch has shape .*\. Use the preset"):
        batch.check(replace(TINY, dark_channels=(13, 12, 12)), FIELDS)


def contents(batch: Batch) -> dict[str, bytes]:
    return {field: getattr(batch, field).numpy().tobytes() for field in ("dark_s8", "sam", "boxes", "masks")}


def test_a_batch_in_reused_blocks_is_good_until_the_fourth_after_it_is_begun(tmp_path: Path) -> None:
    store = Store.open(make_store(tmp_path / "store", train=4, val=1))
    loader, plain = Loader(store, FIELDS, reuse=True), Loader(store, FIELDS)
    order = [[key_of((start + step) % 5) for step in range(3)] for start in range(12)]
    batches = [loader.batch(keys, TOKENS) for keys in order[:RING]]
    wanted = [contents(plain.batch(keys, TOKENS)) for keys in order]
    assert [contents(batch) for batch in batches] == wanted[:RING]
    again = loader.batch(order[RING], TOKENS)  # takes the place of the first
    assert contents(again) == wanted[RING] == contents(batches[0])
    assert [contents(batch) for batch in batches[1:]] == wanted[1:RING]


def test_batches_made_ahead_in_reused_blocks_are_whole_until_the_next_but_one_is_asked_for(tmp_path: Path) -> None:
    store = Store.open(make_store(tmp_path / "store", train=4, val=1))
    loader, plain = Loader(store, FIELDS, reuse=True), Loader(store, FIELDS)
    order = [[key_of((start + step) % 5) for step in range(3)] for start in range(40)]
    wanted = [contents(plain.batch(keys, TOKENS)) for keys in order]
    before: Batch | None = None
    for place, batch in enumerate(ahead(lambda keys: loader.batch(keys, TOKENS), order)):
        time.sleep(0.002)  # the thread ahead does all it may
        assert contents(batch) == wanted[place]
        if before is not None:
            assert contents(before) == wanted[place - 1]
        before = batch


def test_blocks_follow_the_size_and_the_fields_of_a_batch(tmp_path: Path) -> None:
    store = Store.open(make_store(tmp_path / "store", train=4, val=1))
    loader, plain = Loader(store, FIELDS, reuse=True), Loader(store, FIELDS)
    for count, fields in ((1, FIELDS), (3, FIELDS[:7]), (2, FIELDS), (3, FIELDS), (1, FIELDS[:7])) * 3:
        one, other = (each.batch(KEYS[:count], TOKENS[:count], (*fields,)) for each in (loader, plain))
        for field in fields:
            assert torch.equal(getattr(one, field), getattr(other, field))


def test_batches_without_reuse_are_for_keeps(tmp_path: Path) -> None:
    store = Store.open(make_store(tmp_path / "store", train=4, val=1))
    loader = Loader(store, FIELDS)
    kept = [loader.batch([key_of(image % 5)], TOKENS[:1]) for image in range(10)]
    assert len({batch.boxes.data_ptr() for batch in kept}) == 10
    assert contents(kept[0]) == contents(loader.batch([key_of(0)], TOKENS[:1]))


def test_items_are_made_ahead_by_one_thread_in_order() -> None:
    made: list[int] = []
    threads = set()

    def make(item: int) -> int:
        made.append(item)
        threads.add(threading.get_ident())
        return 10 * item

    results = ahead(make, range(5), depth=2)
    assert next(results) == 0
    assert list(results) == [10, 20, 30, 40]
    assert made == list(range(5))
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_a_fault_while_making_is_raised_where_the_item_is_asked_for() -> None:
    def make(item: int) -> int:
        return 1 // (2 - item)

    results = ahead(make, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_thread_outlives_a_loop_that_ends_early() -> None:
    before = threading.active_count()
    results = ahead(lambda item: item, range(1000))
    next(results)
    results.close()  # pyright: ignore[reportAttributeAccessIssue] - it is a generator
    assert threading.active_count() == before
