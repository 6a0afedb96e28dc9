"""Word vectors in a text, as GloVe is distributed, plain or in a zip: read line by line, never held whole.

A line is a word, which may hold spaces, and D numbers, one space between. Its columns are always counted; the numbers
are read where the word is wanted. Every fault is a ConfigError that names file and line.
"""

import io
import re
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from ..shards.errors import ConfigError
from .progress import counted

MAX_LINE_BYTES = 1 << 20
"""A longer line is no word and its vector."""
MAX_EXPANSION = 100
"""A text in a zip may have so many times its packed bytes; vectors have two to four times."""

_NUMBER = re.compile(rb"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_UNREADABLE = 0x61
"""Flags of a zip member: encrypted, in one of two ways, or a patch."""
_LINES_A_TICK = 4096


def from_text(file: BinaryIO, size: int, where: str, rows: Mapping[str, int], vectors: np.ndarray) -> set[int]:
    """Fill the rows that the text has; which they are. size: of the text, bytes. where: its name, for messages."""
    dim = vectors.shape[1]
    found: set[int] = set()
    promised: int | None = None
    number = 0
    for number, line in _lines(file, size, where):
        if number == 1:
            promised = _promise(line, where, dim)
            if promised is not None:
                continue
            check_width(where, _width(line, dim, where), dim)
        row = rows.get(_word(line, dim, f"{where}: line {number}"))
        if row is not None and row not in found:
            vectors[row] = _vector(line, dim, f"{where}: line {number}")
            found.add(row)
    if not number:
        raise ConfigError(f"{where}: is empty; name a file of word vectors.")
    if promised is not None and number - 1 != promised:
        raise ConfigError(
            f"{where}: line 1 promises {promised:,} vectors, {number - 1:,} are there; copy the whole file."
        )
    return found


def from_zip(path: Path, file: BinaryIO, rows: Mapping[str, int], vectors: np.ndarray) -> set[int]:
    """As `from_text`, from the one text in the zip that can be meant."""
    with zipfile.ZipFile(file) as opened:
        texts = [member for member in opened.infolist() if _is_text(member.filename)]
        fitting = [member for member in texts if f".{vectors.shape[1]}d." in member.filename]
        if len(texts) > 1 and len(fitting) == 1:
            texts = fitting
        if len(texts) != 1:
            names = ", ".join(repr(member.filename) for member in texts[:5]) or "no .txt"
            raise ConfigError(
                f"{path}: holds {names}, wanted is one .txt with vectors of {vectors.shape[1]} numbers "
                "(model.word_dim); unpack it and name the text."
            )
        (text,) = texts
        where = f"{path}: {text.filename!r}"
        if text.flag_bits & _UNREADABLE or text.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ConfigError(f"{where}: encrypted, or packed in a way that is not read here; unpack it first.")
        expansion = text.file_size / max(1, text.compress_size)
        if expansion > MAX_EXPANSION:
            raise ConfigError(f"{where} would unpack to {expansion:,.0f} times its size; that is no table of vectors.")
        with opened.open(text) as unpacked:
            return from_text(io.BufferedReader(unpacked, 1 << 16), text.file_size, where, rows, vectors)  # pyright: ignore[reportArgumentType]


def _is_text(name: str) -> bool:
    return name.endswith((".txt", ".vec")) and not name.startswith("__MACOSX/")


def _lines(file: BinaryIO, size: int, where: str) -> Iterator[tuple[int, bytes]]:
    """Number (from 1) and content of each line, without what ends it."""
    with counted("word vectors", size) as count:
        read = number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise ConfigError(
                    f"{where}: line {number} is longer than {MAX_LINE_BYTES:,} bytes; that is no text of word vectors."
                )
            yield number, line.rstrip(b" \r\n")
            read += len(line)
            if number % _LINES_A_TICK == 0:
                count(read)
                read = 0


def _word(line: bytes, dim: int, where: str) -> str:
    """The word of a line, whose columns are counted and not read."""
    numbers = line.count(b" ")
    word = line.partition(b" ")[0] if numbers == dim else line.rsplit(b" ", dim)[0]
    if numbers < dim:
        raise ConfigError(
            f"{where} has {numbers} numbers, {dim} are wanted; the file is damaged or cut short, copy it again."
        )
    if numbers > dim and _NUMBER.fullmatch(word.rpartition(b" ")[2]):
        raise ConfigError(f"{where} has more than {dim} numbers; the file is damaged, copy it again.")
    try:
        return word.decode("utf-8")
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8; name a file of word vectors as text.") from None


def _vector(line: bytes, dim: int, where: str) -> np.ndarray:
    """float32 [D]."""
    numbers = line.rsplit(b" ", dim)[1:]
    wrong = next((number for number in numbers if not _is_number(number)), None)
    if wrong is not None:
        raise ConfigError(f"{where}: {ascii(wrong[:20])[1:]} is not a number; copy the file again.")
    with np.errstate(over="ignore"):
        vector = np.array([float(number) for number in numbers]).astype(np.float32)
    if not np.isfinite(vector).all():
        raise ConfigError(f"{where} holds a number that is not finite; mend the line or remove it.")
    return vector


def _is_number(text: bytes) -> bool:
    """Whether it is one, infinity and NaN included."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def _promise(line: bytes, where: str, dim: int) -> int | None:
    """How many vectors a first line promises, None if it is a vector itself."""
    if dim == 1 or re.fullmatch(rb"\d{1,15} \d{1,9}", line) is None:
        return None
    count, width = map(int, line.split())
    check_width(where, width, dim)
    return count


def _width(line: bytes, dim: int, where: str) -> int:
    """Numbers of the first line, `dim` if they can be so many: its word may hold spaces or be a number itself."""
    _, *parts = line.split(b" ")
    width = next((place for place, part in enumerate(reversed(parts)) if not _is_number(part)), len(parts))
    if not width:
        raise ConfigError(
            f"{where}: line 1 is not a word and numbers; name a file of word vectors (GloVe text, .zip, .safetensors)."
        )
    return dim if len(parts) == dim else width


def check_width(where: str, width: int, dim: int) -> None:
    if width != dim:
        raise ConfigError(
            f"{where}: its vectors have {width} numbers, model.word_dim is {dim}; add --set model.word_dim={width}"
        )
