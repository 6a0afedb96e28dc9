"""Which reference, with which of its sentences, is in which batch: a pure function of (seed, epoch).

Nothing here depends on the number of ranks, threads or earlier epochs, so the whole data state of a run is
(epoch, batch index); a rank takes its share of each batch. The draws come from a counter-based generator (Philox) keyed
by seed and epoch.

Two references of one image never meet in a batch: each would be a false negative of the other in the contrastive loss.
Or all of them do (`epoch_image_batches`), and are no negatives of each other: then an image is read once an epoch.
"""

import hashlib
import heapq
from collections import Counter, deque
from collections.abc import Sequence
from itertools import groupby
from typing import TypeVar

import numpy as np

from ..shards.errors import ConfigError

T = TypeVar("T")
Draw = tuple[int, int]
"""(index of a reference, index of one of its sentences)."""


def steps_per_epoch(images: Sequence, batch: int) -> int:
    """Full batches that an epoch can hold, no image twice in one.

    images: the image of each reference, in any hashable form. It is floor(references / batch), unless a few images own
    so many of the references that these cannot be spread over as many batches. ConfigError if not even one fits.
    """
    counts = Counter(images).values()
    if len(counts) < batch:
        raise ConfigError(
            f"batch={batch} needs as many different images, the training references have {len(counts)}; "
            f"lower it: --set train.batch={len(counts)}"
        )
    steps = len(images) // batch
    while sum(min(count, steps) for count in counts) < steps * batch:
        steps -= 1
    return steps


def epoch_batches(
    images: Sequence, sentences: Sequence[Sequence[int]], *, seed: int, epoch: int, batch: int
) -> list[list[Draw]]:
    """The batches of one epoch, each of exactly `batch` draws.

    images: the image of each reference. sentences: for each reference the indices of the sentences that may be drawn;
    a reference with none is left out. Every other reference comes at most once, and once unless it is in the remainder
    that fills no batch; its sentence is uniform.

    The references are shuffled; one whose image is already in the batch waits for the next. Towards the end of the
    epoch an image with a reference left for every batch left goes first, which keeps the batches full.
    """
    rng, drawn = _drawn(sentences, seed, epoch)
    usable = list(drawn)
    queue = deque(usable[place] for place in rng.permutation(len(usable)))
    left = Counter(images[index] for index in usable)
    most = max(left.values(), default=0)
    batches: list[list[Draw]] = []
    for steps_left in range(steps_per_epoch([images[index] for index in usable], batch), 0, -1):
        if steps_left <= most:
            pressing = {image for image, count in left.items() if count >= steps_left}
            queue = deque(sorted(queue, key=lambda index: images[index] not in pressing))
        chosen: dict = {}
        waiting = []
        while len(chosen) < batch:
            index = queue.popleft()
            if images[index] in chosen:
                waiting.append(index)
            else:
                chosen[images[index]] = index
        queue.extendleft(reversed(waiting))
        left.subtract(chosen.keys())
        batches.append([(index, drawn[index]) for index in chosen.values()])
    return batches


def _drawn(sentences: Sequence[Sequence[int]], seed: int, epoch: int) -> tuple[np.random.Generator, dict[int, int]]:
    """The generator of an epoch, and for each reference that has any one of its sentences, drawn uniformly."""
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch])))
    usable = [index for index, choices in enumerate(sentences) if len(choices)]
    places = rng.integers([len(sentences[index]) for index in usable])
    return rng, {index: int(sentences[index][place]) for index, place in zip(usable, places, strict=True)}


def images_in_batch(images: Sequence, batch: int) -> int:
    """How many images have `batch` references on average, at least two; ConfigError if there are not so many.

    images: the image of each reference, in any hashable form.
    """
    count = len(set(images))
    wanted = max(2, round(batch * count / len(images)))
    if count < wanted:
        raise ConfigError(
            f"batch={batch} takes {wanted} images, the training references have {count}; lower it: "
            f"--set train.batch={batch * count // wanted}"
        )
    return wanted


def image_steps_per_epoch(images: Sequence, batch: int) -> int:
    """Full batches that an epoch of `epoch_image_batches` holds; ConfigError if not even one fits."""
    return len(set(images)) // images_in_batch(images, batch)


def epoch_image_batches(
    images: Sequence, sentences: Sequence[Sequence[int]], *, seed: int, epoch: int, batch: int
) -> list[list[Draw]]:
    """The batches of one epoch, each of `images_in_batch` images with their references, those of one together.

    Arguments as for `epoch_batches`. Every image with a usable reference comes at most once, and once unless it is in
    the remainder that fills no batch; each of its references with one sentence, drawn uniformly.

    All batches have equally many references, because kernels are made for a size: images go, those with most references
    first and else at random, to the batch that has fewest yet. What a batch then has too many is left out, at random,
    though never all of an image.
    """
    rng, drawn = _drawn(sentences, seed, epoch)
    draws: dict = {}
    for draw in drawn.items():
        draws.setdefault(images[draw[0]], []).append(draw)
    having = [images[index] for index in drawn]
    steps, size = image_steps_per_epoch(having, batch), images_in_batch(having, batch)
    groups = list(draws.values())
    chosen = [groups[place] for place in rng.permutation(len(groups))[: steps * size]]
    filling = [(0, int(turn), []) for turn in rng.permutation(steps)]  # references, order among equals, images
    heapq.heapify(filling)
    full: list[list[list[Draw]]] = []
    for group in sorted(chosen, key=len, reverse=True):
        count, turn, members = heapq.heappop(filling)
        members.append(group)
        if len(members) < size:
            heapq.heappush(filling, (count + len(group), turn, members))
        else:
            full.append(members)
    fewest = min(sum(map(len, members)) for members in full)
    batches = []
    for place in rng.permutation(steps):
        members = full[place]
        spare = [draw for group in members for draw in group[1:]]
        surplus = sum(map(len, members)) - fewest
        dropped = {spare[index] for index in rng.permutation(len(spare))[:surplus]}
        order = rng.permutation(size)
        batches.append([draw for index in order for draw in members[index] if draw not in dropped])
    return batches


def share_of(batch: Sequence[T], rank: int, ranks: int) -> Sequence[T]:
    """The draws of one rank; the shares of all, one after the other, are the batch.

    ranks: how many there are; `check_ranks` says whether the batch can be dealt out to them.
    """
    size = len(batch) // ranks
    return batch[rank * size : (rank + 1) * size]


def image_share_of(batch: Sequence[Draw], images: Sequence, rank: int, ranks: int) -> Sequence[Draw]:
    """The draws of one rank where batches are of images: those of an equal part of the images.

    images: the image of each reference.
    """
    groups = [list(group) for _, group in groupby(batch, key=lambda draw: images[draw[0]])]
    return [draw for group in share_of(groups, rank, ranks) for draw in group]


def check_ranks(batch: int, ranks: int, *, own_negatives: bool = False) -> None:
    """ConfigError unless a batch can be dealt out equally. own_negatives: a text meets its own rank's images only."""
    least = 2 if own_negatives else 1
    fits = [number for number in range(1, batch // least + 1) if batch % number == 0]
    if ranks in fits:
        return
    why = "leaves a rank one image and nothing to contrast it with" if batch % ranks == 0 else "is no equal share"
    fewer = max((number for number in fits if number < ranks), default=1)
    nearest = max(batch // ranks, least) * ranks
    raise ConfigError(
        f"batch={batch} for {ranks} ranks {why}; train on {fewer} (--devices {fewer}), or --set train.batch={nearest}."
    )


def order_digest(batches: Sequence[Sequence[Draw]]) -> str:
    """SHA-256 of an order: of its draws one after the other, and of where a batch ends."""
    numbers = [number for batch in batches for draw in (*batch, (-1, -1)) for number in draw]
    return hashlib.sha256(np.array(numbers, "<i8").tobytes()).hexdigest()


def strangers(images: Sequence, seed: int) -> np.ndarray:
    """int64 [references]: for each reference another one, of a different image, to take the captions of.

    A permutation, for the control experiment in which captions say nothing about their image: what is then learned
    above the language-blind floor is not learned from language. ConfigError if one image owns more than half of the
    references.
    """
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, len(images)])))
    counts = Counter(images)
    most = max(counts.values(), default=0)
    if 2 * most > len(images) or not most:
        raise ConfigError("captions cannot be exchanged between images: one image owns more than half the references.")
    rank = dict(zip(counts, rng.permutation(len(counts)), strict=True))
    order = np.array(sorted(rng.permutation(len(images)), key=lambda index: rank[images[index]]))
    giver = np.empty_like(order)
    giver[order] = np.roll(order, rng.integers(most, len(images) - most, endpoint=True))
    return giver
