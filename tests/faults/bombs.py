"""Small files that ask for gigabytes or for hours, put where a command reads them, and what is to be told of each."""

import os
import pickle
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from . import annotations, stores
from .photos import gif, jpeg_of_size, png, png_header
from .sound import Data, encoded, photo_path, precompute


@dataclass(frozen=True)
class Bomb:
    """One bomb."""

    name: str
    prepare: Callable[[Path], list[object] | tuple[str, ...]]
    """Writes it below a folder that holds the sound pair of stores.py; the command line that meets it."""
    says: str
    status: int = 2


def _photo(data: bytes) -> Callable[[Path], list[object]]:
    def prepare(folder: Path) -> list[object]:
        root = Data.sound().write(folder / "data")
        photo_path(root).write_bytes(data)
        return precompute(root, folder / "new")

    return prepare


def _refs(data: bytes, file: str = annotations.REFS) -> Callable[[Path], list[object]]:
    def prepare(folder: Path) -> list[object]:
        root = Data.sound().write(folder / "data")
        (root / file).write_bytes(data)
        return precompute(root, folder / "new")

    return prepare


def _weights(data: bytes) -> Callable[[Path], list[object]]:
    def prepare(folder: Path) -> list[object]:
        (folder / "detect.pth").write_bytes(data)
        root = Data.sound().write(folder / "data")
        return precompute(root, folder / "new", "--checkpoint", "detect=detect.pth")

    return prepare


def _store(change: Callable[[Path], object], words: tuple[str, ...]) -> Callable[[Path], tuple[str, ...]]:
    def prepare(folder: Path) -> tuple[str, ...]:
        change(folder)
        return words

    return prepare


def zeros(mebibytes: int) -> bytes:
    """A raw deflate stream of so many mebibytes of zeros, made in no time: one block, repeated."""
    squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
    squeezer.compress(bytes(1 << 20))
    block = squeezer.flush(zlib.Z_FULL_FLUSH)
    again = squeezer.compress(bytes(1 << 20)) + squeezer.flush(zlib.Z_FULL_FLUSH)
    last = zlib.compressobj(9, zlib.DEFLATED, -15).flush()
    return block + again * (mebibytes - 1) + last


def zip_of_zeros(name: str, mebibytes: int) -> bytes:
    """A zip whose one member unpacks to so many mebibytes, as its directory says."""
    data, file = zeros(mebibytes), name.encode()
    sizes = struct.pack("<III", 0, len(data), mebibytes << 20)
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 0) + sizes + struct.pack("<HH", len(file), 0) + file
    entry = b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0) + sizes
    entry += struct.pack("<HHHHHII", len(file), 0, 0, 0, 0, 0, 0) + file
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, len(entry), len(local) + len(data), 0)
    return local + data + entry + end


def scans(count: int, side: int = 7_000) -> bytes:
    """A progressive JPEG whose last scan, of 75 bytes, stands there so many times more."""
    data = encoded(Image.new("RGB", (side, side), (10, 20, 30)), progressive=True, quality=50)
    return data[:-2] + data[data.rindex(b"\xff\xda") : -2] * count + b"\xff\xd9"


def nested_tuples(depth: int) -> bytes:
    """A pickle whose one dict key is a tuple of 2^depth tuples: 4 bytes a level, time without end to hash."""
    levels = b"".join(b"h" + bytes([n]) + b"h" + bytes([n]) + b"\x86q" + bytes([n + 1]) for n in range(depth))
    return b"\x80\x02N\x85q\x00" + levels + b"}h" + bytes([depth]) + b"Ns."


def equal_hashes(count: int) -> bytes:
    """A pickle of a dict of integers that all hash to 0: a multiple of Python's modulus each."""
    keys = ((n * ((1 << 61) - 1)).to_bytes(10, "little") for n in range(1, count + 1))
    return b"\x80\x02}(" + b"".join(b"\x8a\x0a" + key + b"N" for key in keys) + b"u."


def _many_rows(folder: Path) -> None:
    """images.parquet of 30 million equal rows, some hundred kilobytes."""
    rows = pa.table({"key": pa.array(["000000000001"] * 1_000_000)})
    with pq.ParquetWriter(folder / "store" / "images.parquet", rows.schema) as writer:
        for _ in range(30):
            writer.write_table(rows)


def _sparse(file: str, size: int) -> Callable[[Path], object]:
    return lambda folder: os.truncate(next(folder.glob(file)), size)


def _words(folder: Path) -> tuple[str, ...]:
    (folder / "glove.zip").write_bytes(zip_of_zeros("glove.300d.txt", 4_000))
    return (*stores.TRAIN, "--words", "glove.zip")


_PNG_ZEROS = zlib.compress(bytes(14_000 * (1 + 3 * 14_000) // 8), 9)

BOMBS = (
    Bomb("a JPEG of 900 Mpx", _photo(jpeg_of_size(30_000, 30_000)), "900 Mpx, the limit is 50 Mpx"),
    Bomb("a JPEG of 1,000 scans", _photo(scans(1_000)), "a JPEG of 1,010 scans, the limit is 100"),
    Bomb("a PNG of 196 Mpx", _photo(png(png_header(14_000, 14_000), (b"IDAT", _PNG_ZEROS))), "196 Mpx, the limit"),
    Bomb(
        "a PNG of much text",
        _photo(png(png_header(8, 8), (b"zTXt", b"a\0\0" + zlib.compress(bytes(300_000_000), 1)))),
        "cut short or damaged",
    ),
    Bomb("a GIF with a screen of 1,600 Mpx", _photo(gif(40_000, 1)), "1,600 Mpx, the limit"),
    Bomb("a GIF with a frame of 1,600 Mpx", _photo(gif(1, 40_000)), "exceeds limit"),
    Bomb("a pickle of a huge memo", _refs(b"\x80\x02Nr\xff\xff\xff\x0f."), "asks for memo entry 268435455"),
    Bomb("a pickle of 6 million lists", _refs(b"(" + b"]" * 6_000_000 + b"l."), "too many lists"),
    Bomb("a pickle of nested tuples", _refs(nested_tuples(60)), "a tuple that stands in several places"),
    Bomb("a pickle of equal hashes", _refs(equal_hashes(200_000)), "too many lists or numbers"),
    Bomb(
        "a pickle of nested lists", _refs(pickle.dumps([{"ref_id": annotations.NESTED}], protocol=2)), "no whole number"
    ),
    Bomb("JSON 20 million deep", _refs(b"[" * 20_000_000, annotations.INSTANCES), "more than 8,000,000 lists"),
    Bomb("JSON 5 million deep", _refs(b"[" * 5_000_000, annotations.INSTANCES), "nested too deeply"),
    Bomb(
        "JSON of 10 million lists", _refs(b"[" + b"[]," * 10_000_000 + b"[]]", annotations.INSTANCES), "8,000,000 lists"
    ),
    Bomb(
        "JSON of 200,000 names, one twice",
        _refs(b"{" + b"".join(b'"%d":0,' % n for n in range(200_000)) + b'"199999":0}', annotations.INSTANCES),
        "names '199999' twice",
    ),
    Bomb(
        "a zip of 4 GB",
        _weights(zip_of_zeros("w.pth", 4_000)),
        "a zip with 1 checkpoints in it, expected one of at most",
    ),
    Bomb("a torch file of 3 GB", _weights(zip_of_zeros("w/data.pkl", 3_000)), "a compressed torch file"),
    Bomb(
        "a sparse tar of 3 GB", _store(_sparse("store/detect-*/000000.tar", 3 << 30), stores.EVAL), "its sidecar says"
    ),
    Bomb("30 million rows", _store(_many_rows, stores.LS), "30,000,000 rows"),
    Bomb("a record of a terabyte", _store(_sparse("run/run.json", 1 << 40), stores.EVAL), "more than any record"),
    Bomb("word vectors of 4 GB", _words, "glove"),
)
