"""Stores and runs that cannot be used. Each damages a copy of a sound pair (sound.py) and says what should be told."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from weakmcn.shards.tables import IMAGES, read_table, write_table

from .sound import CHECKPOINT, DATASET, encoded, picture

DEEP = b"[" * 100_000
LS = ("store", "ls", "store")
VERIFY = ("store", "verify", "store")
PRECOMPUTE = ("precompute", "--data", "data", "--dataset", DATASET, "--store", "store", "--executor", "local")
EVAL = ("eval", "--run", "run", "--split", "val")
TRAIN = ("train", "--shards", "store", "--dataset", DATASET, "--out", "new", "--epochs", "1", "--set", "train.batch=2")


@dataclass(frozen=True)
class Damage:
    """One damage to a pair, and the command that should tell of it."""

    name: str
    change: Callable[[Path], object]
    """Handed the folder of the pair."""
    words: tuple[str, ...]
    """The command line, to be run in that folder."""
    culprit: str
    """What the message begins with, or where the command lists: a line of it."""
    says: str
    status: int = 2


def _family(folder: Path, stage: str = "detect") -> Path:
    return next((folder / "store").glob(f"{stage}-*"))


def _write(file: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / file).write_bytes(data)


def _in_family(file: str, change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(_family(folder) / file)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def _flip_boxes(tar: Path) -> None:
    """Change one bit of a box of the last image, which is one of val."""
    members = json.loads(tar.with_suffix(".json").read_text())["members"]
    place = [member["offset"] for member in members if member["name"].endswith(".boxes.npy")][-1]
    data = bytearray(tar.read_bytes())
    data[place + 1] ^= 0x10
    tar.write_bytes(data)


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _json(file: str, edit: Callable[[Any], object]) -> Callable[[Path], object]:
    """Change a JSON file; what `edit` returns, unless it is None, takes the place of its content."""

    def change(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text())
        instead = edit(content)
        path.write_text(json.dumps(content if instead is None else instead))

    return change


def _set(file: str, *steps: Any) -> Callable[[Path], object]:
    """In a JSON file, put the last step in the place that the others name."""
    *places, last, value = steps

    def edit(content: Any) -> None:
        for place in places:
            content = content[place]
        content[last] = value

    return _json(file, edit)


def _drop(file: str, name: str) -> Callable[[Path], object]:
    return _json(file, lambda content: content.pop(name) and None)


def _table(file: str, schema: pa.Schema, column: str, value: Any) -> Callable[[Path], object]:
    """Put one value into the first row of a column, with all checksums right."""

    def change(folder: Path) -> None:
        table = read_table(folder / "store" / file, schema)
        values = [value, *table[column].to_pylist()[1:]]
        place = table.schema.get_field_index(column)
        array = pa.array(values, table.schema.field(column).type)
        write_table(folder / "store" / file, table.set_column(place, table.schema.field(column), array))

    return change


def _other_columns(file: str) -> Callable[[Path], object]:
    return lambda folder: pq.write_table(pa.table({"a": [1]}), folder / "store" / file)


def _copy_key(folder: Path) -> None:
    first, second = read_table(folder / "store" / "images.parquet", IMAGES)["key"].to_pylist()[:2]
    assert first != second
    _table("images.parquet", IMAGES, "key", second)(folder)


IMAGES_FILE, REFS_FILE = "images.parquet", f"refs-{DATASET}.parquet"

STORES = (
    Damage(
        "a file in place of a store",
        lambda f: (shutil.rmtree(f / "store"), (f / "store").touch()),
        LS,
        "store",
        "is not a store",
    ),
    Damage(
        "no store.json",
        lambda f: (f / "store" / "store.json").unlink(),
        LS,
        "store is not a store",
        "weakmcn precompute",
    ),
    Damage("store.json cut", lambda f: _cut(f / "store" / "store.json"), LS, "store/store.json", "is damaged"),
    Damage("store.json 100,000 deep", _write("store/store.json", DEEP), LS, "store/store.json", "is damaged"),
    Damage("store.json a list", _write("store/store.json", b"[]"), LS, "store/store.json", "is damaged"),
    Damage("store.json of another format", _set("store/store.json", "format", 99), LS, "store/store.json", "format 99"),
    Damage(
        "store.json with a side of -1", _set("store/store.json", "side", -1), LS, "store/store.json", "its side is -1"
    ),
    Damage(
        "store.json that climbs",
        _set("store/store.json", "current", "detect", "../detect-00000000"),
        LS,
        "store/store.json",
        "is no family of stage 'detect'",
    ),
    Damage(
        "no images",
        lambda f: (f / "store" / IMAGES_FILE).unlink(),
        LS,
        f"store/{IMAGES_FILE} is missing",
        "weakmcn precompute",
    ),
    Damage("images cut", lambda f: _cut(f / "store" / IMAGES_FILE), LS, f"store/{IMAGES_FILE}", "is damaged"),
    Damage("images flipped", lambda f: _flip(f / "store" / IMAGES_FILE), LS, f"store/{IMAGES_FILE}", "is damaged"),
    Damage("images a text", _write(f"store/{IMAGES_FILE}", b"key,source\n"), LS, f"store/{IMAGES_FILE}", "is damaged"),
    Damage("images with other columns", _other_columns(IMAGES_FILE), LS, f"store/{IMAGES_FILE}", "has no column 'key'"),
    Damage("a key twice", _copy_key, LS, f"store/{IMAGES_FILE}", "a key occurs twice"),
    Damage(
        "a key that climbs",
        _table(IMAGES_FILE, IMAGES, "key", "../../../x"),
        LS,
        f"store/{IMAGES_FILE}",
        "key '../../../x' is not twelve digits",
    ),
    Damage("references cut", lambda f: _cut(f / "store" / REFS_FILE), EVAL, f"store/{REFS_FILE}", "is damaged"),
    Damage("references with other columns", _other_columns(REFS_FILE), EVAL, f"store/{REFS_FILE}", "has no column"),
    Damage(
        "no references",
        lambda f: (f / "store" / REFS_FILE).unlink(),
        EVAL,
        "store has no references of 'refcoco'",
        "weakmcn precompute",
    ),
    Damage("no stage.json", _in_family("stage.json", Path.unlink), EVAL, "store/detect-", "stage.json is missing"),
    Damage(
        "stage.json deep", _in_family("stage.json", lambda p: p.write_bytes(DEEP)), EVAL, "store/detect-", "is damaged"
    ),
    Damage(
        "stage.json changed",
        lambda f: _set(f"store/{_family(f).name}/stage.json", "hashed", "code", 2)(f),
        EVAL,
        "store/detect-",
        "its fingerprint is not that of its content",
    ),
    Damage("no tar", _in_family("000000.tar", Path.unlink), EVAL, "store/detect-", "000000.tar is missing"),
    Damage("a tar cut", _in_family("000000.tar", _cut), EVAL, "store/detect-", "its sidecar says"),
    Damage("a tar flipped", _in_family("000000.tar", _flip_boxes), EVAL, "store/detect-", "fails its checksum"),
    Damage("a tar that is a pipe", _in_family("000000.tar", _pipe), EVAL, "store/detect-", "its sidecar says"),
    Damage("no sidecar", _in_family("000000.json", Path.unlink), EVAL, "store/detect-", "images are not in it"),
    Damage("a sidecar cut", _in_family("000000.json", _cut), EVAL, "store/detect-", "not a valid sidecar"),
    Damage(
        "a sidecar deep",
        _in_family("000000.json", lambda p: p.write_bytes(DEEP)),
        EVAL,
        "store/detect-",
        "not a valid sidecar",
    ),
    Damage(
        "a tar flipped, verified",
        _in_family("000000.tar", _flip_boxes),
        VERIFY,
        "store/detect-",
        "fails its checksum",
        1,
    ),
    Damage(
        "a tar with a tail",
        _in_family("000000.tar", lambda p: p.write_bytes(p.read_bytes() + b"x")),
        VERIFY,
        "store/detect-",
        "its sidecar says",
        1,
    ),
    Damage(
        "a sidecar cut, verified", _in_family("000000.json", _cut), VERIFY, "store/detect-", "not a valid sidecar", 1
    ),
    Damage(
        "another data set",
        lambda f: None,
        (*TRAIN[:4], "refcco", *TRAIN[5:]),
        "store has no references of 'refcco'",
        "did you mean 'refcoco'",
    ),
)

RUNS = (
    Damage("no run", lambda f: shutil.rmtree(f / "run"), EVAL, "run: no run here", "weakmcn train"),
    Damage("no run.json", lambda f: (f / "run" / "run.json").unlink(), EVAL, "run: no run here", "weakmcn train"),
    Damage("run.json cut", lambda f: _cut(f / "run" / "run.json"), EVAL, "run/run.json", "damaged"),
    Damage("run.json 100,000 deep", _write("run/run.json", DEEP), EVAL, "run/run.json", "damaged"),
    Damage("run.json a list", _write("run/run.json", b"[]"), EVAL, "run/run.json", "damaged"),
    Damage("run.json not UTF-8", _write("run/run.json", b'{"a": "\xff"}'), EVAL, "run/run.json", "damaged"),
    Damage(
        "run.json of another format",
        _set("run/run.json", "format", 9),
        EVAL,
        "run: a run in format 9",
        "this version reads 1",
    ),
    Damage("run.json without method", _drop("run/run.json", "method"), EVAL, "run/run.json", "method"),
    Damage("run.json without data set", _drop("run/run.json", "dataset"), EVAL, "run/run.json", "dataset"),
    Damage("run.json without model", _drop("run/run.json", "model"), EVAL, "run/run.json", "model"),
    Damage("run.json with an unknown method", _set("run/run.json", "method", "magic"), EVAL, "run/run.json", "'magic'"),
    Damage(
        "run.json with an unknown setting", _set("run/run.json", "model", "magic", 1), EVAL, "run/run.json", "magic"
    ),
    Damage(
        "run.json with text for a number",
        _set("run/run.json", "model", "side_px", "big"),
        EVAL,
        "run/run.json",
        "side_px",
    ),
    Damage(
        "run.json with null for a list", _set("run/run.json", "model", "banks", None), EVAL, "run/run.json", "banks"
    ),
    Damage("no vocabulary", lambda f: (f / "run" / "vocabulary.json").unlink(), EVAL, "run/vocabulary.json", ""),
    Damage("vocabulary cut", lambda f: _cut(f / "run" / "vocabulary.json"), EVAL, "run/vocabulary.json", ""),
    Damage("vocabulary 100,000 deep", _write("run/vocabulary.json", DEEP), EVAL, "run/vocabulary.json", ""),
    Damage(
        "vocabulary of numbers",
        _write("run/vocabulary.json", b"[1, 2]"),
        EVAL,
        "run/vocabulary.json",
        "not a JSON list of words",
    ),
    Damage(
        "vocabulary without its first rows",
        _write("run/vocabulary.json", b'["a"]'),
        EVAL,
        "run/vocabulary.json",
        "begins with PAD",
    ),
    Damage(
        "another vocabulary",
        _write("run/vocabulary.json", b'["PAD", "UNK", "CLS", "a"]'),
        EVAL,
        CHECKPOINT,
        "not the weights of this network",
    ),
    Damage("no columns.json", lambda f: (f / "run" / "columns.json").unlink(), EVAL, "run/columns.json", "damaged"),
    Damage("columns.json cut", lambda f: _cut(f / "run" / "columns.json"), EVAL, "run/columns.json", "damaged"),
    Damage("columns.json 100,000 deep", _write("run/columns.json", DEEP), EVAL, "run/columns.json", "damaged"),
    Damage("columns.json a list", _write("run/columns.json", b"[]"), EVAL, "run/columns.json", "damaged"),
    Damage(
        "columns.json without fingerprint",
        _write("run/columns.json", b'{"detect": {}}'),
        EVAL,
        "run/columns.json",
        "damaged",
    ),
    Damage(
        "no checkpoint",
        lambda f: shutil.rmtree(f / "run" / "checkpoints"),
        EVAL,
        "run: no checkpoint was written yet",
        "weakmcn train",
    ),
    Damage("checkpoint cut", lambda f: _cut(f / f"{CHECKPOINT}.safetensors"), EVAL, CHECKPOINT, "damaged"),
    Damage("checkpoint flipped", lambda f: _flip(f / f"{CHECKPOINT}.safetensors"), EVAL, CHECKPOINT, "damaged"),
    Damage("checkpoint gone", lambda f: (f / f"{CHECKPOINT}.safetensors").unlink(), EVAL, CHECKPOINT, "damaged"),
    Damage("its record cut", lambda f: _cut(f / f"{CHECKPOINT}.json"), EVAL, CHECKPOINT, "damaged"),
    Damage("its record a list", _write(f"{CHECKPOINT}.json", b"[]"), EVAL, CHECKPOINT, "damaged"),
    Damage("its record 100,000 deep", _write(f"{CHECKPOINT}.json", DEEP), EVAL, CHECKPOINT, "damaged"),
    Damage("its record of another format", _set(f"{CHECKPOINT}.json", "format", 9), EVAL, CHECKPOINT, "format 9"),
)
PREDICT = ("predict", "--run", "run", "--image", "photo.jpg", "--phrase", "left thing")


def _photo(more: Callable[[Path], object] = lambda folder: None) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / "photo.jpg").write_bytes(encoded(picture()))
        more(folder)

    return change


def _without_records(folder: Path) -> None:
    for stage in ("detect", "dino", "sam", "masks"):
        _set(f"store/{_family(folder, stage).name}/stage.json", "recorded", {})(folder)


PREDICTIONS = (
    Damage("no photo", lambda f: None, PREDICT, "photo.jpg", "missing"),
    Damage("no words", _photo(), (*PREDICT[:-1], " ?! "), '--phrase " ?! "', "no words in it"),
    Damage("a picture that is no PNG", _photo(), (*PREDICT, "--out", "x.jpg"), "--out x.jpg", "write x.png"),
    Damage(
        "a picture in place of the photo",
        _photo(lambda f: (f / "photo.jpg").rename(f / "a.png")),
        (*PREDICT[:4], "a.png", *PREDICT[5:], "--out", "a.png"),
        "--out a.png",
        "is the photograph itself",
    ),
    Damage(
        "somebody's JSON",
        _photo(_write("x.json", b'{"mine": 1}')),
        (*PREDICT, "--out", "x.png"),
        "--out x.png",
        "x.json would be written too",
    ),
    Damage(
        "somebody's mask",
        _photo(_write("x-mask.png", b"mine")),
        (*PREDICT, "--out", "x.png"),
        "--out x.png",
        "x-mask.png would be written too",
    ),
    Damage("an unknown device", _photo(), (*PREDICT, "--device", "gpu"), "device='gpu'", "cannot be used here"),
    Damage(
        "weights that are none",
        _photo(_write("a.pth", b"<html>")),
        (*PREDICT, "--checkpoint", "detect=a.pth"),
        "run",
        "--checkpoint detect=FILE",
    ),
    Damage(
        "columns.json without records",
        _photo(
            _json("run/columns.json", lambda content: [content[stage].pop("recorded") for stage in content] and None)
        ),
        PREDICT,
        "run/columns.json",
        "damaged",
    ),
    Damage("run.json cut, asked", _photo(lambda f: _cut(f / "run" / "run.json")), PREDICT, "run/run.json", "damaged"),
    Damage(
        "checkpoint cut, asked", _photo(lambda f: _cut(f / f"{CHECKPOINT}.safetensors")), PREDICT, CHECKPOINT, "damaged"
    ),
)
WORDS = tuple(
    Damage(f"words: {name}", _write("words.txt", data), (*TRAIN, "--words", "words.txt"), "words.txt", says)
    for name, data, says in (
        ("empty", b"", ""),
        ("a web page", b"<!DOCTYPE html>\n<html></html>\n", ""),
        ("not UTF-8", b"left \xff\xfe 1\n", ""),
        ("another width", b"left 1 2 3\n", ""),
        ("not a number", b"left " + b"x " * 48 + b"\n", ""),
        ("a zip cut", b"PK\x03\x04" + bytes(60), ""),
        ("safetensors cut", b"\x10\0\0\0\0\0\0\0{", ""),
    )
)
RECORDS = (
    Damage(
        "stage.json that records nothing",
        _without_records,
        (*PRECOMPUTE, "--codec", "u8"),
        "the store was made with preset None",
        "--preset",
    ),
    Damage(
        "stage.json without a record",
        lambda f: _drop(f"store/{_family(f).name}/stage.json", "recorded")(f),
        EVAL,
        "store/detect-",
        "is damaged",
    ),
    Damage(
        "skips that are none",
        lambda f: _skips(f, b"[1]"),
        TRAIN,
        "images.parquet: its list of photographs left out is damaged",
        "put a copy",
    ),
    Damage(
        "skips 100,000 deep",
        lambda f: _skips(f, DEEP),
        TRAIN,
        "images.parquet: its list of photographs left out is damaged",
        "put a copy",
    ),
)


def _skips(folder: Path, content: bytes) -> None:
    table = read_table(folder / "store" / IMAGES_FILE, IMAGES)
    write_table(folder / "store" / IMAGES_FILE, table.replace_schema_metadata({"skipped": content}))


DAMAGES = (*STORES, *RUNS, *PREDICTIONS, *WORDS, *RECORDS)
