"""Word vectors from a file: which are kept, and what a bad file is told."""

import io
import json
import math
import re
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from weakmcn.model.vocabulary import RESERVED, Vocabulary
from weakmcn.model.words import WordTable, read_words, write_words
from weakmcn.shards.errors import ConfigError

ROWS = Vocabulary.build(["red cat", "the guy's hand-made cant"])
"""PAD UNK CLS red cat the guys hand made cant"""
GLOVE = "the 0.5 -1 2\nred 1e-1 .25 3\nguys 4 5 6\n. . . 7 7 7\nThe 9 9 9\nred 8 8 8\n"


def read(path: Path, content: str | bytes, dim: int = 3) -> WordTable:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_words(path, ROWS, dim)


def zipped(**texts: str) -> bytes:
    """A zip of texts; two underscores in a name stand for a dot."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, text in texts.items():
            file.writestr(name.replace("__", "."), text)
    return packed.getvalue()


def test_the_rows_of_the_vocabulary_are_kept_and_everything_else_is_zeros(tmp_path: Path) -> None:
    table = read(tmp_path / "glove.txt", GLOVE)
    assert table.vectors.dtype == torch.float32
    expected = {word: [0.0, 0.0, 0.0] for word in ROWS.rows} | {
        "the": [0.5, -1, 2],
        "red": [0.1, 0.25, 3],
        "guys": [4, 5, 6],
    }
    torch.testing.assert_close(table.vectors, torch.tensor([expected[word] for word in ROWS.rows]))
    assert (table.found, table.missing) == (3, ("cat", "hand", "made", "cant"))
    assert [ROWS.rows[row] for row in range(3)] == list(RESERVED)


def test_coverage_is_told_in_one_line_with_examples(tmp_path: Path) -> None:
    assert read(tmp_path / "glove.txt", GLOVE).summary == (
        "glove.txt: 3 of 7 words have vectors; 'cat', 'hand', 'made', 'cant' have none: zeros."
    )
    assert read(tmp_path / "glove.txt", "red 1 1 1\n").summary == (
        "glove.txt: 1 of 7 words have vectors; the rest, e.g. 'cat', 'the', 'guys', 'hand', 'made', are zeros."
    )
    everything = "".join(f"{word} 1 2 3\n" for word in ROWS.rows)
    assert read(tmp_path / "glove.txt", everything).summary == "glove.txt: all 7 words have vectors."


@pytest.mark.parametrize(
    "text",
    [
        "3 3\nred 1 2 3\nat name@domain.com 4 5 6\nthe 7 8 9\n",  # the header of word2vec
        "red 1 2 3 \nthe 7 8 9 \n",  # fastText ends its lines with a space
        "red 1 2 3\r\nthe 7 8 9\r\n",
        "red 1 2 3\nthe 7 8 9",
        ". . . 0 0 0\nred 1 2 3\nthe 7 8 9\n",
        "1998 0 0 0\nred 1 2 3\nthe 7 8 9\n",
        "\x85 0 0 0\nred 1 2 3\n\u00a0 0 0 0\nthe 7 8 9\n",  # in GloVe's Twitter file: white space for Python's split
    ],
)
def test_the_dialects_in_which_such_files_are_distributed_are_read(tmp_path: Path, text: str) -> None:
    table = read(tmp_path / "words.txt", text)
    assert table.vectors[[3, 5]].tolist() == [[1, 2, 3], [7, 8, 9]]
    assert table.found == 2


words = st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1, max_size=8).filter(
    lambda word: not re.search(r"(^| )[-+.\d]\S*$", word) and word == word.strip(" ")
)
numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(st.dictionaries(words, st.lists(numbers, min_size=4, max_size=4), min_size=1, max_size=6), st.data())
def test_text_zip_and_safetensors_give_the_same_rows(
    tmp_path_factory: pytest.TempPathFactory, table: dict[str, list[float]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("tables")
    wanted = data.draw(st.lists(st.sampled_from(sorted(table)), min_size=1, unique=True))
    vocabulary = Vocabulary([*RESERVED, *(word for word in wanted if word not in RESERVED), "\x00never"])
    text = "".join(f"{word} {' '.join(map(repr, vector))}\n" for word, vector in table.items())
    (folder / "a.txt").write_bytes(text.encode())
    (folder / "a.zip").write_bytes(zipped(**{"inner__txt": text}))
    write_words(folder / "a.safetensors", list(table), torch.tensor(list(table.values())))
    expected = [table.get(word, [0.0] * 4) if row > 2 else [0.0] * 4 for row, word in enumerate(vocabulary.rows)]
    if not vocabulary.rows[3:-1]:
        return
    for name in ("a.txt", "a.zip", "a.safetensors"):
        found = read_words(folder / name, vocabulary, 4)
        assert found.vectors.tolist() == expected
        assert found.missing == ("\x00never",)


def test_of_several_texts_in_a_zip_the_one_of_the_width_is_taken(tmp_path: Path) -> None:
    """As in glove.6B.zip."""
    archive = zipped(glove__6B__2d__txt="red 1 2\n", glove__6B__3d__txt="red 1 2 3\n")
    assert read(tmp_path / "glove.zip", archive).vectors[3].tolist() == [1, 2, 3]
    assert read(tmp_path / "glove.zip", archive, dim=2).vectors[3].tolist() == [1, 2]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_table_of_any_floating_point_type_is_read_as_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    write_words(tmp_path / "t.safetensors", ["x", "red"], torch.tensor([[9, 9, 9], [0.5, -2, 3]], dtype=dtype))
    table = read_words(tmp_path / "t.safetensors", ROWS, 3)
    assert (table.vectors[3].tolist(), table.vectors.dtype) == ([0.5, -2, 3], torch.float32)


BAD_TEXTS: list[tuple[str | bytes, str]] = [
    ("", "{path}: is empty"),
    ("the 1 2 3\nred 1 2\n", "{path}: line 2 has 2 numbers, 3 are wanted"),
    ("the 1 2 3\nred\n", "{path}: line 2 has 0 numbers, 3 are wanted"),
    ("the 1 2 3\n\nred 1 2 3\n", "{path}: line 2 has 0 numbers, 3 are wanted"),
    ("the 1 2 3\nred 1 2 3 4\n", "{path}: line 2 has more than 3 numbers"),
    ("the 1 2 3\nother\nred 1 2 3\n", "{path}: line 2 has 0 numbers"),
    ("the 1 2 3\nred 1 two 3\n", "{path}: line 2: 'two' is not a number"),
    ("the 1 2 3\nred 1 2 nan\n", "{path}: line 2 holds a number that is not finite"),
    ("the 1 2 3\nred 1 -inf 3\n", "{path}: line 2 holds a number that is not finite"),
    ("the 1 2 3\nred 1 1e39 3\n", "{path}: line 2 holds a number that is not finite"),
    (b"the 1 2 3\n\xff\xfe 1 2 3\nred 1 2 3\n", "{path}: line 2 is not UTF-8"),
    ("the 1 2\nred 1 2\n", "{path}: its vectors have 2 numbers, model.word_dim is 3; add --set model.word_dim=2"),
    ("2 5\nred 1 2 3 4 5\n", "{path}: its vectors have 5 numbers, model.word_dim is 3; add --set model.word_dim=5"),
    ("3 3\nred 1 2 3\nthe 1 2 3\n", "{path}: line 1 promises 3 vectors, 2 are there"),
    ("<!DOCTYPE html>\n", "{path}: line 1 is not a word and numbers"),
    ("the\t1\t2\t3\n", "{path}: line 1 is not a word and numbers"),
    ("rouge 1 2 3\nchat 1 2 3\n", "{path}: has none of the 7 words, 'red', 'cat', 'the', 'guys', 'hand' for instance"),
    ("red 1 2 3\n" + "a" * 1_100_000, "{path}: line 2 is longer than 1,048,576 bytes"),
    (b"\x1f\x8b\x08\x00", "{path}: packed by gzip; unpack it first: gunzip -k "),
]


def truncated(content: bytes) -> bytes:
    return content[: len(content) // 2]


def with_flag(content: bytes) -> bytes:
    """The zip, its member said to be encrypted."""
    place = content.index(b"PK\x01\x02") + 8
    return content[:place] + b"\x01" + content[place + 1 :]


def damaged(content: bytes) -> bytes:
    """The zip, one byte of its member flipped; stored, so that only its checksum can tell."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as file:
        file.writestr("a.txt", zipfile.ZipFile(io.BytesIO(content)).read("a.txt"))
    stored = bytearray(packed.getvalue())
    stored[stored.index(b"4 5 6")] ^= 1
    return bytes(stored)


BAD_ZIPS: list[tuple[bytes, str]] = [
    (truncated(zipped(a__txt=GLOVE)), "{path}: the zip is damaged or incomplete"),
    (damaged(zipped(a__txt=GLOVE)), "{path}: the zip is damaged or incomplete (Bad CRC-32"),
    (with_flag(zipped(a__txt=GLOVE)), "{path}: 'a.txt': encrypted, or packed in a way"),
    (zipped(readme__md="hello"), "{path}: holds no .txt, wanted is one .txt with vectors of 3 numbers"),
    (zipped(a__txt=GLOVE, b__txt=GLOVE), "{path}: holds 'a.txt', 'b.txt', wanted is one"),
    (zipped(a__txt="the 1 2 3\nred 1 2\n"), "{path}: 'a.txt': line 2 has 2 numbers, 3 are wanted"),
    (zipped(a__txt=""), "{path}: 'a.txt': is empty"),
    (zipped(a__txt="0" * 50_000_000), "{path}: 'a.txt' would unpack to "),
]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [*(("bad.txt", *bad) for bad in BAD_TEXTS), *(("bad.zip", *bad) for bad in BAD_ZIPS)],
    ids=lambda value: value[:50] if isinstance(value, str) else "",
)
def test_a_bad_file_is_one_line_that_names_it_and_its_line(
    tmp_path: Path, name: str, content: str | bytes, says: str
) -> None:
    path = tmp_path / name
    with pytest.raises(ConfigError) as fault:
        read(path, content)
    assert str(fault.value).startswith(says.format(path=path))
    assert "\n" not in str(fault.value)


def tensors(path: Path, vectors: torch.Tensor, words: object, name: str = "vectors") -> None:
    save_file({name: vectors}, path, metadata={"words": json.dumps(words)})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: save_file({"vectors": torch.ones(1, 3)}, path), "{path}: its metadata have no `words`"),
        (lambda path: tensors(path, torch.ones(1, 3), {"red": 0}), "{path}: `words` in its metadata is not a JSON"),
        (lambda path: tensors(path, torch.ones(1, 3), ["red"], "weight"), "{path}: has no tensor `vectors`"),
        (lambda path: tensors(path, torch.ones(2, 3), ["red"]), "{path}: `vectors` is F32 [2, 3]; 1 words need"),
        (lambda path: tensors(path, torch.ones(1, 3).int(), ["red"]), "{path}: `vectors` is I32 [1, 3]"),
        (lambda path: tensors(path, torch.ones(1, 5), ["red"]), "{path}: its vectors have 5 numbers, model.word_dim"),
        (lambda path: tensors(path, torch.tensor([[0, math.nan, 0]]), ["red"]), "{path}: row 0, 'red', is not finite"),
        (lambda path: path.write_bytes(b"\x00" * 100), "{path}: no sound safetensors file"),
        (lambda path: path.mkdir(), "{path}: cannot be read (Is a directory)"),
        (lambda path: None, "{path}: no such file; --words names"),
    ],
)
def test_a_bad_table_is_one_line_that_names_it(tmp_path: Path, make: Callable[[Path], None], says: str) -> None:
    path = tmp_path / "bad.safetensors"
    make(path)
    with pytest.raises(ConfigError) as fault:
        read_words(path, ROWS, 3)
    assert str(fault.value).startswith(says.format(path=path))
    assert "\n" not in str(fault.value)


def test_a_table_that_cannot_be_one_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"2 words need vectors \[2, D\]"):
        write_words(tmp_path / "t.safetensors", ["a", "b"], torch.ones(3, 3))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("packed", [False, True])
def test_a_large_file_is_never_held(tmp_path: Path, packed: bool) -> None:
    """16 MB of text; the table of the vocabulary and a line of it take next to nothing."""
    rng = np.random.default_rng(0)
    vectors = [" ".join(f"{x:.5f}" for x in rng.normal(size=300)) for _ in range(20)]
    text = "".join(f"word{i} {vectors[i % 20]}\n" for i in range(6_000)) + f"red {vectors[0]}\n"
    path = tmp_path / ("glove.zip" if packed else "glove.txt")
    path.write_bytes(zipped(a__txt=text) if packed else text.encode())
    del text
    tracemalloc.start()
    try:
        assert read_words(path, ROWS, 300).found == 1
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4_000_000
