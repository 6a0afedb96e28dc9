"""Batches hold what the store holds, in every codec, made ahead and in order."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from weakmcn.model.loader import SOURCES, Loader, RamFeatures, ahead
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


def test_features_in_memory_are_those_on_disk(tmp_path: Path) -> None:
    source = Loader(Store.open(make_store(tmp_path / "store", train=4, val=1, codec="u8")), FIELDS).features
    held = RamFeatures(source, [key_of(image) for image in (0, 1, 3, 0)], chunk=2).gather(KEYS)
    wanted = source.gather(KEYS)
    assert held.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(held[name], wanted[name])


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
