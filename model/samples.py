"""What a run trains on: the references of a split that have columns and words."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from ..shards.fingerprint import fingerprint
from ..shards.store import Store
from .config import TrainConfig
from .ranks import Ranks
from .references import Reference, references_of, sentences_in_row_order
from .sampler import (
    Draw,
    epoch_batches,
    epoch_image_batches,
    image_share_of,
    image_steps_per_epoch,
    images_in_batch,
    share_of,
    steps_per_epoch,
    strangers,
)
from .vocabulary import Vocabulary, words_of


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Training references, in the order of the annotation file, and their expressions as token ids."""

    keys: list[str]
    """Image of each reference."""
    ref_ids: list[int]
    tokens: list[np.ndarray]
    """For each reference int64 [sentences, T]."""
    usable: list[list[int]]
    """For each reference the sentences that have words, at least one."""
    sentences: list[tuple[str, ...]]
    """For each reference all of them as they are written."""
    vocabulary: Vocabulary
    digests: dict[str, str]
    """Of all of the above and of the photographs, by what it is, in words for the user."""
    notes: list[str]
    """What was left out or cut, and how much: one line each, for the user."""

    def steps(self, config: TrainConfig) -> int:
        """Steps of an epoch; ConfigError if no batch of that size can be filled."""
        count = image_steps_per_epoch if config.sampling == "images" else steps_per_epoch
        return count(self.keys, config.batch)

    def contrasted(self, config: TrainConfig) -> int:
        """Images in a batch."""
        return images_in_batch(self.keys, config.batch) if config.sampling == "images" else config.batch

    def batches(self, config: TrainConfig, epoch: int) -> list[list[Draw]]:
        """The order of an epoch."""
        order = epoch_image_batches if config.sampling == "images" else epoch_batches
        return order(self.keys, self.usable, seed=config.seed, epoch=epoch, batch=config.batch)

    def share(self, drawn: Sequence[Draw], config: TrainConfig, ranks: Ranks) -> Sequence[Draw]:
        """This rank's part of a batch."""
        if config.sampling == "images":
            return image_share_of(drawn, self.keys, ranks.rank, ranks.size)
        return share_of(drawn, ranks.rank, ranks.size)


def training_samples(
    store: Store,
    dataset: str,
    split: str,
    *,
    stages: Sequence[str],
    max_tokens: int,
    words: Iterable[str] = (),
    shuffle_seed: int | None = None,
) -> Samples:
    """The samples of a split. StoreError unless the columns of `stages` are there, current and whole.

    words: the network's own, in the vocabulary after those of the expressions. shuffle_seed: the control experiment;
    every reference gets the expressions of a reference of another image.
    """
    references = references_of(store, dataset, split)
    skipped = {key for stage in stages for key in store.skipped(stage)}
    pictured = [reference for reference in references if reference.key not in skipped]
    store.require(stages, [reference.key for reference in pictured], dataset=dataset, split=split)
    kept = [reference for reference in pictured if reference.usable]
    keys = [reference.key for reference in kept]
    speakers = kept if shuffle_seed is None else [kept[giver] for giver in strangers(keys, shuffle_seed)]

    vocabulary = Vocabulary.build(chain(sentences_in_row_order(store, dataset), words))
    ref_ids = [reference.ref_id for reference in kept]
    return Samples(
        keys=keys,
        ref_ids=ref_ids,
        tokens=[np.stack([vocabulary.ids(text, max_tokens) for text in speaker.sentences]) for speaker in speakers],
        usable=[speaker.usable for speaker in speakers],
        sentences=[speaker.sentences for speaker in speakers],
        vocabulary=vocabulary,
        digests={
            "references": fingerprint([ref_ids, keys]),
            "captions": fingerprint([speaker.sentences for speaker in speakers]),
            "vocabulary": fingerprint(vocabulary.rows),
            "photographs": fingerprint([store.digests[key] for key in keys]),
        },
        notes=[
            *([] if shuffle_seed is None else ["Control experiment: captions are exchanged between images."]),
            *_left_out(len(references) - len(pictured), len(references), "precompute skipped their image"),
            *_left_out(len(pictured) - len(kept), len(references), "empty expression"),
            *cut_note(kept, max_tokens),
        ],
    )


def cut_note(references: Sequence[Reference], max_tokens: int) -> list[str]:
    """A line that tells how many sentences lose their tail, if any does."""
    lengths = [len(words_of(text)) for reference in references for text in reference.sentences]
    cut = sum(length > max_tokens for length in lengths)
    return (
        [f"{cut:,} of {len(lengths):,} expressions have more than {max_tokens} words; the rest is cut."] if cut else []
    )


def cut_remark(sentence: str, max_tokens: int) -> str:
    """What is to be told of one sentence that loses its tail; "" of any other."""
    words = words_of(sentence)
    if len(words) <= max_tokens:
        return ""
    return f"only its first {max_tokens} words are read, up to “{words[max_tokens - 1]}”"


def unknown_note(references: Sequence[Reference], vocabulary: Vocabulary) -> list[str]:
    """A line that tells how many words the vocabulary does not have, and the first of them, if any is missing."""
    sentences = [text for reference in references for text in reference.sentences]
    unknown = [word for text in sentences for word in vocabulary.unknown(text)]
    if not unknown:
        return []
    count, some = sum(len(words_of(text)) for text in sentences), ", ".join([*dict.fromkeys(unknown)][:3])
    return [f"{len(unknown):,} of {count:,} words were never seen by the run, to which all are one: {some}."]


def _left_out(count: int, total: int, reason: str) -> list[str]:
    return [f"{count:,} of {total:,} references are left out: {reason}."] if count else []
