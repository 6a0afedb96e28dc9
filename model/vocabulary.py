"""Words to row numbers.

Row 0 pads, row 1 stands for every word that was not seen, row 2 is kept for parity with released checkpoints and never
used; then the words in order of first appearance over all splits of a data set, the training split first. The order is
part of a trained network: it numbers the rows of the word table (quirk 21).
"""

import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from ..shards.atomic import write_json
from ..shards.errors import ConfigError
from ..shards.records import read_json

PAD, UNK, CLS = 0, 1, 2
RESERVED = ("PAD", "UNK", "CLS")
"""The strings of rows 0, 1, 2. No word can equal one of them: words are lower case."""

_SPELLING = str.maketrans({mark: None for mark in ".,'!?\"()*#:;"} | {"-": " ", "/": " "})


def words_of(sentence: str) -> list[str]:
    """The words of an expression: lower case, some marks dropped, hyphen and slash as gaps (method section 3).

    Composed and decomposed accents are the same word (NFC). An expression of marks alone has no words.
    """
    return unicodedata.normalize("NFC", sentence).lower().translate(_SPELLING).split()


class Vocabulary:
    """The rows of one data set's word table."""

    def __init__(self, rows: Sequence[str]) -> None:
        if tuple(rows[: len(RESERVED)]) != RESERVED or len(set(rows)) != len(rows):
            raise ConfigError(
                f"a vocabulary begins with {', '.join(RESERVED)} and names every word once; this does not."
            )
        self.rows = tuple(rows)
        self._row_of = {word: row for row, word in enumerate(self.rows)}

    @classmethod
    def build(cls, sentences: Iterable[str]) -> "Vocabulary":
        """Number the words of `sentences` in order of first appearance; pass the training split first."""
        seen: dict[str, None] = dict.fromkeys(RESERVED)
        for sentence in sentences:
            seen.update(dict.fromkeys(words_of(sentence)))
        return cls(tuple(seen))

    def ids(self, sentence: str, max_tokens: int) -> np.ndarray:
        """int64 [max_tokens]: the first `max_tokens` words, padded on the right; unknown words are UNK."""
        ids = np.full(max_tokens, PAD, np.int64)
        for place, word in enumerate(words_of(sentence)[:max_tokens]):
            ids[place] = self._row_of.get(word, UNK)
        return ids

    def unknown(self, sentence: str) -> list[str]:
        """The words of a sentence that have no row, in their order; `ids` reads each as UNK."""
        return [word for word in words_of(sentence) if word not in self._row_of]

    def __len__(self) -> int:
        return len(self.rows)

    def __contains__(self, word: object) -> bool:
        return word in self._row_of

    def save(self, path: Path) -> None:
        """Write the rows as a JSON list."""
        write_json(path, list(self.rows))

    @classmethod
    def load(cls, path: Path) -> "Vocabulary":
        """Read what `save` wrote; ConfigError if it is something else."""
        try:
            rows = read_json(path)
        except (OSError, ValueError) as fault:
            reason = fault.strerror if isinstance(fault, OSError) else fault
            raise ConfigError(f"{path}: no vocabulary can be read from it ({reason}); restore it.") from fault
        if not isinstance(rows, list) or not all(isinstance(row, str) for row in rows):
            raise ConfigError(f"{path}: not a JSON list of words, so not a vocabulary; restore it.")
        try:
            return cls(rows)
        except ConfigError as fault:
            raise ConfigError(f"{path}: {fault}") from fault
