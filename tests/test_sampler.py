"""The order of training: a pure function of (seed, epoch), every batch full, no image twice in one."""

import re
from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from weakmcn.model.sampler import (
    check_ranks,
    epoch_batches,
    epoch_image_batches,
    image_share_of,
    image_steps_per_epoch,
    images_in_batch,
    order_digest,
    share_of,
    steps_per_epoch,
    strangers,
)
from weakmcn.shards.errors import ConfigError

WORLDS = (1, 2, 4, 8)
IMAGES = st.lists(st.integers(0, 12), min_size=1, max_size=60)


def one_sentence_each(images: list[int]) -> list[list[int]]:
    return [[0] for _ in images]


@given(IMAGES, st.integers(1, 12), st.integers(0, 3))
def test_a_reference_comes_at_most_once_and_no_image_twice_in_a_batch(
    images: list[int], batch: int, epoch: int
) -> None:
    assume(len(set(images)) >= batch)
    batches = epoch_batches(images, one_sentence_each(images), seed=1, epoch=epoch, batch=batch)
    drawn = [reference for one in batches for reference, _ in one]
    assert len(drawn) == len(set(drawn)) == batch * steps_per_epoch(images, batch)
    for one in batches:
        assert len({images[reference] for reference, _ in one}) == batch


@given(IMAGES, st.integers(1, 12))
def test_as_many_batches_are_filled_as_can_be(images: list[int], batch: int) -> None:
    assume(len(set(images)) >= batch)
    steps = steps_per_epoch(images, batch)
    assert 1 <= steps <= len(images) // batch

    def places(steps: int) -> int:
        return sum(min(count, steps) for count in Counter(images).values())

    assert places(steps) >= steps * batch
    assert steps == len(images) // batch or places(steps + 1) < (steps + 1) * batch


def test_with_few_references_an_image_only_the_remainder_is_left_out() -> None:
    images = [number // 3 for number in range(1000)]
    assert steps_per_epoch(images, 40) == 25
    drawn = Counter(
        reference
        for epoch in range(4)
        for one in epoch_batches(images, one_sentence_each(images), seed=7, epoch=epoch, batch=40)
        for reference, _ in one
    )
    assert set(drawn.values()) == {4}
    assert len(drawn) == 1000


def test_the_same_seed_and_epoch_give_the_same_order_and_another_gives_another() -> None:
    images = list(range(50))
    sentences = [[0, 1, 2]] * 50

    def order(seed: int, epoch: int) -> list[list[tuple[int, int]]]:
        return epoch_batches(images, sentences, seed=seed, epoch=epoch, batch=10)

    assert order(3, 4) == order(3, 4)
    assert order(3, 4) != order(3, 5)
    assert order(3, 4) != order(4, 4)


@given(
    st.lists(st.integers(0, 40), min_size=30, max_size=120),
    st.sampled_from((8, 16)),
    st.integers(0, 2**32),
    st.data(),
)
def test_the_order_is_the_same_for_any_number_of_ranks_and_from_any_batch_on(
    images: list[int], batch: int, seed: int, data: st.DataObject
) -> None:
    """Ranks and the place where a run goes on may change as often as they like."""
    assume(len(set(images)) >= batch)
    whole = epoch_batches(images, [[0, 1]] * len(images), seed=seed, epoch=3, batch=batch)
    seen, begin = [], 0
    while begin < len(whole):
        end = data.draw(st.integers(begin + 1, len(whole)), label="interrupted after")
        world = data.draw(st.sampled_from(WORLDS), label="ranks")
        # Every rank finds the order by itself, and takes its part of what is left.
        orders = [epoch_batches(images, [[0, 1]] * len(images), seed=seed, epoch=3, batch=batch) for _ in range(world)]
        parts = [[share_of(each, rank, world) for each in order[begin:end]] for rank, order in enumerate(orders)]
        assert {len(steps) for steps in parts} == {end - begin}, "every rank takes as many steps"
        assert {len(draws) for steps in parts for draws in steps} == {batch // world}, "and equally large ones"
        seen += [[draw for part in step for draw in part] for step in zip(*parts, strict=True)]
        begin = end
    assert order_digest(seen) == order_digest(whole)


def test_the_digest_of_an_order_tells_apart_what_differs() -> None:
    orders = [[[(0, 0), (1, 0)]], [[(1, 0), (0, 0)]], [[(0, 0)], [(1, 0)]], [[(0, 1), (1, 0)]], [[(0, 0), (1, 0)], []]]
    assert len({order_digest(order) for order in orders}) == len(orders)


@given(st.integers(2, 200), st.integers(1, 40), st.booleans())
def test_a_batch_is_shared_equally_or_refused_with_numbers_that_would_do(batch: int, ranks: int, own: bool) -> None:
    if batch % ranks == 0 and batch // ranks >= (2 if own else 1):
        return check_ranks(batch, ranks, own_negatives=own)
    with pytest.raises(ConfigError) as refused:
        check_ranks(batch, ranks, own_negatives=own)
    found = re.fullmatch(
        rf"batch={batch} for {ranks} ranks .*; train on (\d+) \(--devices \1\), or --set train.batch=(\d+)\.",
        str(refused.value),
    )
    assert found
    check_ranks(batch, int(found[1]), own_negatives=own)
    check_ranks(int(found[2]), ranks, own_negatives=own)


def test_a_sentence_is_drawn_uniformly_from_those_allowed() -> None:
    images, sentences = list(range(20)), [[0, 2, 5]] * 20
    drawn = Counter(
        sentence
        for epoch in range(150)
        for one in epoch_batches(images, sentences, seed=0, epoch=epoch, batch=10)
        for _, sentence in one
    )
    assert set(drawn) == {0, 2, 5}
    assert max(abs(count - 1000) for count in drawn.values()) < 100  # 3000 draws, standard deviation 26


def test_a_reference_without_a_usable_sentence_is_left_out() -> None:
    sentences = [[0], [], [1], [], [0]]
    (batch,) = epoch_batches(list("abcde"), sentences, seed=0, epoch=0, batch=3)
    assert sorted(batch) == [(0, 0), (2, 1), (4, 0)]


def test_a_batch_larger_than_the_number_of_images_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch=4 .* have 3"):
        epoch_batches([1, 2, 3, 3], [[0]] * 4, seed=0, epoch=0, batch=4)


@given(IMAGES, st.integers(0, 5))
def test_every_caption_goes_to_another_image(images: list[int], seed: int) -> None:
    most = max(Counter(images).values())
    if 2 * most > len(images):
        with pytest.raises(ConfigError, match="more than half"):
            strangers(images, seed)
        return
    giver = strangers(images, seed)
    assert sorted(giver) == list(range(len(images)))
    assert all(images[giver[taker]] != images[taker] for taker in range(len(images)))
    assert np.array_equal(giver, strangers(images, seed))


# By images


@given(IMAGES, st.integers(1, 12), st.integers(0, 3))
def test_an_image_comes_at_most_once_an_epoch_with_all_its_references_beside_one_another(
    images: list[int], batch: int, epoch: int
) -> None:
    assume(len(set(images)) >= max(2, batch))
    batches = epoch_image_batches(images, one_sentence_each(images), seed=1, epoch=epoch, batch=batch)
    size = images_in_batch(images, batch)
    assert len(batches) == image_steps_per_epoch(images, batch) == len(set(images)) // size
    order = [images[reference] for one in batches for reference, _ in one]
    runs = [image for image, _ in groupby(order)]
    assert len(runs) == len(set(runs)) == size * len(batches)
    assert len({reference for one in batches for reference, _ in one}) == len(order)
    assert all(len({images[reference] for reference, _ in one}) == size for one in batches)


@given(IMAGES, st.integers(1, 12), st.integers(0, 3))
def test_batches_of_images_have_equally_many_references_and_few_are_left_out_for_it(
    images: list[int], batch: int, epoch: int
) -> None:
    assume(len(set(images)) >= max(2, batch))
    batches = epoch_image_batches(images, one_sentence_each(images), seed=1, epoch=epoch, batch=batch)
    assert len({len(one) for one in batches}) == 1
    drawn = {images[reference] for one in batches for reference, _ in one}
    left_out = sum(image in drawn for image in images) - sum(map(len, batches))
    assert left_out < len(batches) * max(Counter(images).values())


def test_of_usual_photographs_less_than_a_reference_a_batch_is_left_out() -> None:
    rng = np.random.default_rng(0)
    images = [image for image in range(2000) for _ in range(rng.integers(1, 5))]
    batches = epoch_image_batches(images, one_sentence_each(images), seed=1, epoch=0, batch=40)
    assert len(images) - sum(map(len, batches)) < len(batches) + 40  # and a last batch that is not full


@given(IMAGES, st.integers(0, 3))
def test_the_shares_of_a_batch_of_images_are_the_batch_with_equally_many_images_each(
    images: list[int], epoch: int
) -> None:
    assume(len(set(images)) >= 4)
    batch = 4 * len(images) // len(set(images))
    assume(images_in_batch(images, batch) == 4)
    for one in epoch_image_batches(images, one_sentence_each(images), seed=1, epoch=epoch, batch=batch):
        for ranks in (1, 2, 4):
            shares = [image_share_of(one, images, rank, ranks) for rank in range(ranks)]
            assert [draw for share in shares for draw in share] == one
            assert {len({images[reference] for reference, _ in share}) for share in shares} == {4 // ranks}


def test_by_images_too_the_order_is_a_function_of_seed_and_epoch() -> None:
    images = [number // 3 for number in range(90)]
    sentences = [[0, 2]] * 90

    def digest(seed: int, epoch: int) -> str:
        return order_digest(epoch_image_batches(images, sentences, seed=seed, epoch=epoch, batch=5))

    assert digest(1, 2) == digest(1, 2)
    assert len({digest(1, 2), digest(1, 3), digest(2, 2)}) == 3
    drawn = {s for one in epoch_image_batches(images, sentences, seed=1, epoch=0, batch=5) for _, s in one}
    assert drawn == {0, 2}


def test_a_step_has_as_many_images_as_have_the_batchs_references_and_is_refused_where_there_are_fewer() -> None:
    images = [number // 3 for number in range(90)]
    assert images_in_batch(images, 12) == 4
    assert images_in_batch(images, 1) == 2, "a text needs another image to be told from"
    assert [len(one) for one in epoch_image_batches(images, [[0]] * 90, seed=0, epoch=0, batch=12)] == [12] * 7
    with pytest.raises(
        ConfigError, match=r"batch=99 takes 33 images, the training references have 30; lower it: --set train.batch=90"
    ):
        epoch_image_batches(images, [[0]] * 90, seed=0, epoch=0, batch=99)
