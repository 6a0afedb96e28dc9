"""Word vectors from a file, for the rows of a vocabulary.

Three kinds of file, D numbers a word:

    text           a line a word: the word, then D numbers, one space between; UTF-8, as GloVe is distributed. A word
                   may hold spaces itself (glove.840B has such), so a line is read from its right end. A first line of
                   two whole numbers, rows and D (word2vec, fastText), is a promise that is checked.
    .zip           with one such text, or several of which one is named for its width: `….300d.txt` (glove.6B.zip)
    .safetensors   tensor `vectors`, floating point [N, D]; metadata `words`, a JSON list of N words (`write_words`)

A text is streamed, a table mapped: what is held is the vocabulary's rows and one line. Words are looked up as they are
spelt in the vocabulary, without their marks ("cant", "guys"): the authors took spaCy's vector of the word as a document
instead, which splits some words and averages the parts (quirk 22), so for a released checkpoint its own table is the
one to use. As there, a word without vector is zeros; so are the rows PAD, UNK and CLS: a word never seen before says
nothing, and PAD is masked. Of two vectors for one word the first counts.
"""

import json
import shlex
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..shards.atomic import write_bytes
from ..shards.errors import ConfigError
from ..shards.fingerprint import file_sha256
from .vocabulary import RESERVED, Vocabulary
from .word_text import check_width, from_text, from_zip

EXAMPLES = 5
"""Words without vector that are named."""


@dataclass(frozen=True, kw_only=True, eq=False)
class WordTable:
    """The vectors of a vocabulary, and what is known of their file."""

    path: Path
    sha256: str
    """Of the file, as it was given."""
    vectors: Tensor
    """float32 [rows of the vocabulary, D]."""
    missing: tuple[str, ...]
    """The words that have none, in the order of their rows."""

    @property
    def found(self) -> int:
        """Words that have a vector."""
        return len(self.vectors) - len(RESERVED) - len(self.missing)

    @property
    def summary(self) -> str:
        """Coverage in one line."""
        words = self.found + len(self.missing)
        if not self.missing:
            return f"{self.path.name}: all {words:,} words have vectors."
        shown = ", ".join(map(repr, self.missing[:EXAMPLES]))
        rest = f"the rest, e.g. {shown}, are zeros" if len(self.missing) > EXAMPLES else f"{shown} have none: zeros"
        return f"{self.path.name}: {self.found:,} of {words:,} words have vectors; {rest}."

    @property
    def facts(self) -> dict[str, Any]:
        """What run.json keeps of it."""
        return {"file": self.path.name, "sha256": self.sha256, "found": self.found, "rows": len(self.vectors)}


def read_words(path: Path, vocabulary: Vocabulary, dim: int) -> WordTable:
    """The rows of `vocabulary` from a file of vectors of `dim` numbers.

    Every line must have its columns; that they hold finite numbers is asked of the rows that are kept. ConfigError
    naming the file, and the line where there is one, for anything that is not as this module's table says, for another
    width, and if no word at all is found.
    """
    path = Path(path)
    rows = {word: row for row, word in enumerate(vocabulary.rows) if row >= len(RESERVED)}
    vectors = np.zeros((len(vocabulary), dim), np.float32)
    with _faults_told(path):
        digest = file_sha256(path)
        with open(path, "rb") as file:
            magic = file.read(4)
            file.seek(0)
            if not magic:
                raise ConfigError(f"{path}: is empty; name a file of word vectors.")
            if path.suffix == ".safetensors":
                found = _from_safetensors(path, rows, vectors)
            elif magic == b"PK\x03\x04":
                found = from_zip(path, file, rows, vectors)
            elif magic[:2] == b"\x1f\x8b":
                raise ConfigError(f"{path}: packed by gzip; unpack it first: gunzip -k {shlex.quote(str(path))}")
            else:
                found = from_text(file, path.stat().st_size, str(path), rows, vectors)
    if rows and not found:
        raise ConfigError(
            f"{path}: has none of the {len(rows):,} words, {', '.join(map(repr, list(rows)[:EXAMPLES]))} for instance; "
            "name a table of the language of the expressions."
        )
    missing = tuple(word for word, row in rows.items() if row not in found)
    return WordTable(path=path, sha256=digest, vectors=torch.from_numpy(vectors), missing=missing)


def read_captions(path: Path, captions: Sequence[str], dim: int) -> tuple[dict[str, Tensor], str]:
    """The vector, float32 [dim], of every caption, and the file's SHA-256.

    The file is a .safetensors table as `write_words` makes it, with whole captions for words, as they are written in
    the annotations. ConfigError as `read_words` raises it, and naming a caption that has no vector.
    """
    path = Path(path)
    rows = {caption: row for row, caption in enumerate(dict.fromkeys(captions))}
    vectors = np.zeros((len(rows), dim), np.float32)
    with _faults_told(path):
        digest = file_sha256(path)
        found = _from_safetensors(path, rows, vectors)
    if missing := [caption for caption, row in rows.items() if row not in found]:
        raise ConfigError(
            f"{path}: {len(missing):,} of {len(rows):,} captions have no vector, {missing[0]!r} for instance; "
            "weakmcn.model.words.write_words writes such a table."
        )
    return {caption: torch.from_numpy(vectors[row]) for caption, row in rows.items()}, digest


def write_words(path: Path, words: Sequence[str], vectors: Tensor) -> None:
    """Write a .safetensors table that `read_words` reads; vectors: floating point [len(words), D]."""
    if vectors.ndim != 2 or len(vectors) != len(words) or not vectors.is_floating_point():
        raise ConfigError(f"{path}: {len(words)} words need vectors [{len(words)}, D], not {list(vectors.shape)}.")
    tensors = {"vectors": vectors.detach().cpu().contiguous()}
    write_bytes(path, save(tensors, metadata={"words": json.dumps(list(words), ensure_ascii=False)}))


def check_same_words(run: Path, recorded: Mapping[str, Any] | None, path: Path | None) -> None:
    """ConfigError unless a run that recorded those facts (None: no table) can go on with the file `path` (None: none).

    The table is in the run's checkpoints, so the file need not be there any more; one that is must be the same.
    """
    if path is None:
        if recorded is not None:
            raise ConfigError(
                f"{run} was made with --words {recorded['file']}; say it again (the file itself is no longer needed), "
                "or choose a new --out."
            )
        return
    if recorded is None:
        raise ConfigError(f"{run} was made without --words; leave it out, or choose a new --out.")
    with _faults_told(path):
        same = file_sha256(path) == recorded["sha256"] if path.exists() else path.name == recorded["file"]
    if not same:
        raise ConfigError(
            f"{path}: not the word vectors that {run} was made with ({recorded['file']}, sha256 "
            f"{recorded['sha256'][:12]}…); name those, or choose a new --out."
        )


@contextmanager
def _faults_told(path: Path) -> Iterator[None]:
    """What the libraries raise for a file that cannot be read, as one line."""
    try:
        yield
    except FileNotFoundError as fault:
        raise ConfigError(
            f"{path}: no such file; --words names a file of word vectors, GloVe's for instance."
        ) from fault
    except OSError as fault:
        raise ConfigError(f"{path}: cannot be read ({fault.strerror or fault}).") from fault
    except SafetensorError as fault:
        raise ConfigError(f"{path}: no sound safetensors file ({fault}); copy it again.") from fault
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, UnicodeDecodeError, NotImplementedError) as fault:
        raise ConfigError(f"{path}: the zip is damaged or incomplete ({fault}); copy it again.") from fault


def _from_safetensors(path: Path, rows: Mapping[str, int], vectors: np.ndarray) -> set[int]:
    """Fill the rows that the table has; which they are."""
    found: set[int] = set()
    with safe_open(path, framework="pt") as opened:
        words = _listed_words(path, opened.metadata())
        if "vectors" not in opened.keys():  # noqa: SIM118 - not a mapping
            raise ConfigError(f"{path}: has no tensor `vectors`; see weakmcn.model.words.write_words.")
        table = opened.get_slice("vectors")
        shape, dtype = table.get_shape(), table.get_dtype()
        if len(shape) != 2 or shape[0] != len(words) or dtype not in ("F64", "F32", "F16", "BF16"):
            raise ConfigError(f"{path}: `vectors` is {dtype} {shape}; {len(words):,} words need floats [words, D].")
        check_width(str(path), shape[1], vectors.shape[1])
        for place, word in enumerate(words):
            row = rows.get(word)
            if row is not None and row not in found:
                vectors[row] = table[place : place + 1].float().numpy()[0]
                if not np.isfinite(vectors[row]).all():
                    raise ConfigError(f"{path}: row {place}, {word!r}, is not finite; mend the table.")
                found.add(row)
    return found


def _listed_words(path: Path, metadata: Mapping[str, str] | None) -> list[str]:
    try:
        words = json.loads((metadata or {})["words"])
    except (KeyError, ValueError, RecursionError) as fault:
        raise ConfigError(
            f"{path}: its metadata have no `words`, a JSON list; write it with weakmcn.model.words.write_words."
        ) from fault
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise ConfigError(f"{path}: `words` in its metadata is not a JSON list of words.")
    return words
