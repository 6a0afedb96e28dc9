"""Words and their row numbers: method section 3."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from weakmcn.model.vocabulary import CLS, PAD, UNK, Vocabulary, words_of
from weakmcn.shards.errors import ConfigError


@pytest.mark.parametrize(
    ("sentence", "words"),
    [
        ("The guy's LEFT hand.", ["the", "guys", "left", "hand"]),
        ("bus at 10:30 (far)", ["bus", "at", "1030", "far"]),
        ("left-most car/truck", ["left", "most", "car", "truck"]),
        ("black & white [cat] 50% off", ["black", "&", "white", "[cat]", "50%", "off"]),
        ("“quoted” café", ["“quoted”", "café"]),
        ("cafe\u0301", ["café"]),
        ("  tabs\tand\nlines ", ["tabs", "and", "lines"]),
        ("?!.. - /", []),
        ("", []),
    ],
)
def test_spelling_is_that_of_the_released_code(sentence: str, words: list[str]) -> None:
    assert words_of(sentence) == words


def test_rows_are_numbered_in_order_of_first_appearance() -> None:
    vocabulary = Vocabulary.build(["red cat", "blue cat", "a red dog"])
    assert vocabulary.rows == ("PAD", "UNK", "CLS", "red", "cat", "blue", "a", "dog")
    assert (PAD, UNK, CLS) == (0, 1, 2)
    assert len(vocabulary) == 8


def test_ids_are_padded_on_the_right_and_cut_at_the_end() -> None:
    vocabulary = Vocabulary.build(["red cat", "blue dog"])
    assert vocabulary.ids("Blue cat", 4).tolist() == [5, 4, 0, 0]
    assert vocabulary.ids("red red green dog", 3).tolist() == [3, 3, 1]
    assert vocabulary.ids("...", 2).tolist() == [0, 0]
    assert vocabulary.ids("red", 2).dtype == np.int64


def test_the_words_pad_and_unk_are_words_like_others() -> None:
    vocabulary = Vocabulary.build(["pad unk cls"])
    assert vocabulary.ids("pad unk cls", 3).tolist() == [3, 4, 5]


@given(st.lists(st.text(max_size=20), max_size=10))
def test_every_word_that_was_seen_has_a_row_of_its_own(sentences: list[str]) -> None:
    vocabulary = Vocabulary.build(sentences)
    ids = [number for sentence in sentences for number in vocabulary.ids(sentence, len(words_of(sentence)))]
    words = [word for sentence in sentences for word in words_of(sentence)]
    assert all(number > CLS for number in ids)
    assert [vocabulary.rows[number] for number in ids] == words


def test_a_saved_vocabulary_reads_back_the_same(tmp_path: Path) -> None:
    vocabulary = Vocabulary.build(["rotes haus", "grünes Haus"])
    vocabulary.save(tmp_path / "vocabulary.json")
    assert Vocabulary.load(tmp_path / "vocabulary.json").rows == vocabulary.rows


@pytest.mark.parametrize(
    "text", ["", "{}", '["red", "cat"]', '["PAD", "UNK", "CLS", "a", "a"]', '["PAD", "UNK", "CLS", 3]']
)
def test_a_file_that_is_no_vocabulary_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "vocabulary.json").write_text(text)
    with pytest.raises(ConfigError, match="vocabulary"):
        Vocabulary.load(tmp_path / "vocabulary.json")
