"""Annotations that cannot be used. Each writes a data set below a folder and says what should be told."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .sound import DATASET, HEIGHT, SIMREC, SQUARE, WIDTH, Data, changed, write_simrec

REFS, INSTANCES = f"{DATASET}/refs(unc).p", f"{DATASET}/instances.json"


@dataclass(frozen=True)
class BadAnnotations:
    """One data set that is refused."""

    name: str
    write: Callable[[Path], object]
    """Makes the data set below a folder that is not there yet."""
    culprit: str
    """The file that the message begins with, below that folder."""
    says: str
    """Part of the message."""


def _ref(name: str, says: str, *steps: Any) -> BadAnnotations:
    """One step changed in the references."""

    def write(root: Path) -> None:
        data = Data.sound()
        data.refs = changed(data.refs, *steps)
        data.write(root)

    return BadAnnotations(name, write, REFS, says)


def _instance(name: str, says: str, *steps: Any, culprit: str = REFS) -> BadAnnotations:
    """One step changed in instances.json; what is wrong with an object is told of the reference that names it."""

    def write(root: Path) -> None:
        data = Data.sound()
        data.instances = changed(data.instances, *steps)
        data.write(root)

    return BadAnnotations(name, write, culprit, says)


def _image(name: str, says: str, *steps: Any) -> BadAnnotations:
    return _instance(name, says, "images", *steps, culprit=INSTANCES)


def _box(name: str, box: Any, says: str) -> BadAnnotations:
    return _instance(name, says, "annotations", 0, "bbox", box)


def _mask(name: str, segmentation: Any, says: str) -> BadAnnotations:
    return _instance(name, says, "annotations", 0, "segmentation", segmentation)


def _file(name: str, file: str, content: bytes, says: str) -> BadAnnotations:
    """One file of a sound data set replaced."""

    def write(root: Path) -> None:
        Data.sound().write(root)
        (root / file).write_bytes(content)

    return BadAnnotations(name, write, file, says)


def _place(name: str, file: str, change: Callable[[Path], object], says: str) -> BadAnnotations:
    """One file of a sound data set replaced by something that is no file."""

    def write(root: Path) -> None:
        Data.sound().write(root)
        (root / file).unlink()
        change(root / file)

    return BadAnnotations(name, write, file, says)


def _simrec(name: str, says: str, *steps: Any) -> BadAnnotations:
    return BadAnnotations(name, lambda root: write_simrec(root, changed(SIMREC, *steps)), f"anns/{DATASET}.json", says)


def _mask_file(name: str, write: Callable[[Path], object], says: str) -> BadAnnotations:
    def build(root: Path) -> None:
        write_simrec(root, SIMREC)
        write(root / "masks" / DATASET / "1.npy")

    return BadAnnotations(name, build, f"masks/{DATASET}/1.npy", says)


def _sparse_mask(path: Path) -> None:
    """A .npy of a terabyte that takes a few kilobytes of disk."""
    header = (
        f"{{'descr': '|u1', 'fortran_order': False, 'shape': ({1 << 20}, {1 << 20}), }}".encode().ljust(117) + b"\n"
    )
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    os.truncate(path, 128 + (1 << 40))


def _sound_json(what: str) -> bytes:
    return json.dumps(getattr(Data.sound(), what)).encode()


def _sound_pickle() -> bytes:
    return pickle.dumps(Data.sound().refs, protocol=2)


NAN, INF = float("nan"), float("inf")
_SIZE = [HEIGHT, WIDTH]
NESTED: list[Any] = []
"""A few bytes of pickle; 2^100 lists for whoever walks or prints it."""
for _ in range(100):
    NESTED = [NESTED, NESTED]

REFERENCES = (
    _ref("no such annotation", "reference 1 names annotation 999, which is not in instances.json", 0, "ann_id", 999),
    _ref("annotation as text", "names annotation '101'", 0, "ann_id", "101"),
    _ref("a nested annotation", "names annotation [a list, a list]", 0, "ann_id", NESTED),
    _ref("no such image", "reference 1 names image 9, which is not in instances.json", 0, "image_id", 9),
    _ref("another image", "but its annotation 101 lies in another", 0, "image_id", 2),
    _ref("reference twice", "reference 2 is there twice", 0, "ref_id", 2),
    _ref("reference without number", "reference at place 0 has no whole number as ref_id", 0, "ref_id", True),
    _ref("a long integer", "has no whole number as ref_id", 0, "ref_id", 1 << 10_000),
    _ref("no split", "reference 1 has the split None", 0, "split", None),
    _ref("a line feed in a split", "has the split 'tr\\nain'", 0, "split", "tr\nain"),
    _ref("an endless split", "has the split 'aaaa", 0, "split", "a" * 300),
    _ref("no sentence", "has no list of 1 to 1,000 sentences", 0, "sentences", []),
    _ref("a number as sentence", "sentence 2 has the expression 5, which is no text", 0, "sentences", 0, "sent", 5),
    _ref("half a character", "with half a character (a lone surrogate)", 0, "sentences", 0, "sent", "a\ud800"),
    _ref("a novel as sentence", "of 20,000 characters, the limit is 10,000", 0, "sentences", 0, "sent", "a " * 10_000),
    _ref("no sent_id", "a sentence without a whole number as sent_id", 0, "sentences", 0, "sent_id", None),
    _ref("not a record", "reference at place 0", 0, "left thing"),
)
BOXES = (
    _box("box of 3 numbers", [1, 2, 3], "reference 1 (annotation 101) has the box [1, 2, 3], not four finite numbers"),
    _box("box of text", [1, 2, "3", 4], "not four finite numbers"),
    _box("no box", None, "has the box None"),
    _box("box of 400 digits", [1, 2, 10**400, 4], "not four finite numbers"),
    _box("box without area", [1, 2, 0, 4], "has a box without area"),
    _box("negative box", [1, 2, -3, 4], "has a box without area"),
    _box("box right of the photo", [70, 2, 10, 10], "leaves its photo of 64x48"),
    _box("box left of the photo", [-20, 2, 10, 10], "leaves its photo"),
)
MASKS = (
    _mask("no mask", None, "has a mask that is neither polygons nor run lengths"),
    _mask("no polygon", [], "has a mask that is neither polygons nor run lengths"),
    _mask("an empty polygon", [[]], "has a polygon of 0 numbers"),
    _mask("a line", [[1, 1, 9, 9]], "has a polygon of 4 numbers"),
    _mask("odd coordinates", [[*SQUARE, 4]], "has a polygon of 9 numbers"),
    _mask("words as polygon", [["a"] * 6], "has a polygon that is no list of numbers"),
    _mask(
        "polygon far outside", [[1e9, *SQUARE[1:]]], "has a polygon that leaves its photo of 64x48 by more than 2 px"
    ),
    _mask("polygon of 400 digits", [[10**400, *SQUARE[1:]]], "a number beyond all photos"),
    _mask("an endless outline", [[0, 0, 60, 40] * 4_000], "has polygons longer than 100,000 px"),
    _mask("runs too few", {"size": _SIZE, "counts": [5, 5]}, "has run lengths that do not cover its photo exactly"),
    _mask("runs below 0", {"size": _SIZE, "counts": [HEIGHT * WIDTH + 5, -5]}, "that are no whole numbers from 0 on"),
    _mask("runs of another size", {"size": [WIDTH, HEIGHT], "counts": [HEIGHT * WIDTH]}, "for another size"),
    _mask("runs as junk", {"size": _SIZE, "counts": "zzzz"}, "that do not cover its photo exactly"),
    _mask("runs beyond ASCII", {"size": _SIZE, "counts": "é" * 99}, "that do not cover its photo exactly"),
    _mask("a run without end", {"size": _SIZE, "counts": "o" * 500_000}, "that do not cover its photo exactly"),
)
RECORDS = (
    _instance("category as text", "has category 'dog', which is no number", "annotations", 0, "category_id", "dog"),
    _instance("object twice", "annotation 102 is there twice", "annotations", 0, "id", 102, culprit=INSTANCES),
    _instance(
        "object without id", "annotation at place 0 has no whole number", "annotations", 0, {}, culprit=INSTANCES
    ),
    _instance("category twice", "category 1 is there twice", "categories", [{"id": 1}, {"id": 1}], culprit=INSTANCES),
    _image("image twice", "image 2 is there twice", 0, "id", 2),
    _image(
        "one file twice", "images 1 and 2 have the same file_name", 1, "file_name", "COCO_train2014_000000000001.jpg"
    ),
    _image("image number below 0", "image -1 has a number outside", 0, "id", -1),
    _image("no height", "image 1 has the size 64x0, not two numbers of pixels", 0, "height", 0),
    _image("width of a billion", "image 1 has the size 1000000000x48", 0, "width", 10**9),
    _image(
        "file name that climbs", "which leaves the folder of photographs; refused", 0, "file_name", "../../etc/passwd"
    ),
    _image("file name from the root", "which leaves the folder of photographs", 0, "file_name", "/etc/passwd"),
    _image("file name with NUL", "has the file_name 'a\\x00.jpg'", 0, "file_name", "a\0.jpg"),
    _image("file name with line feed", "has the file_name 'a\\nb.jpg'", 0, "file_name", "a\nb.jpg"),
    _image("file name with escape", "has the file_name '\\x1b[2J.jpg'", 0, "file_name", "\x1b[2J.jpg"),
    _image("file name of another system", "only printable characters and / are taken", 0, "file_name", "..\\a.jpg"),
    _image("an endless file name", "longer than a file system takes", 0, "file_name", "a" * 5_000),
    _image("no file name", "image 1 has no file_name", 0, "file_name", None),
    _instance("no images", "has no list 'images'; is it COCO's instances format?", "images", {}, culprit=INSTANCES),
)
FILES = (
    _file("instances cut", INSTANCES, _sound_json("instances")[:300], "broken at character"),
    _file("instances empty", INSTANCES, b"", "empty file"),
    _file("instances blank", INSTANCES, b" \n ", "empty file"),
    _file("instances a list", INSTANCES, b"[]", "has no list 'images'"),
    _file("NaN", INSTANCES, b'{"images": [NaN]}', "NaN is no number"),
    _file("infinity", INSTANCES, b'{"images": [-Infinity]}', "-Infinity is no number"),
    _file("one name twice", INSTANCES, b'{"images": [], "images": []}', "an object names 'images' twice"),
    _file("100,000 deep", INSTANCES, b"[" * 100_000, "nested too deeply"),
    _file("5,000 digits", INSTANCES, b"9" * 5_000, "Exceeds the limit"),
    _file("not UTF-8", INSTANCES, b'{"a": "\xff\xfe"}', "not UTF-8 at byte 7"),
    _file("a web page", INSTANCES, b"<!DOCTYPE html>", "broken at character 0"),
    _file("refs cut", REFS, _sound_pickle()[:-40], "not a whole pickle"),
    _file("refs empty", REFS, b"", "empty file"),
    _file("refs a number", REFS, pickle.dumps(5), "holds int, not a list of references"),
    _file("refs of nothing", REFS, pickle.dumps([]), "has no reference at all"),
    _file("refs a web page", REFS, b"<html>", "not a whole pickle"),
    _file("refs with numpy", REFS, pickle.dumps([np.int64(5)]), "asks for numpy"),
    _place("instances missing", INSTANCES, lambda path: None, "missing"),
    _place("instances a directory", INSTANCES, lambda path: path.mkdir(), "is a directory"),
    _place("instances a pipe", INSTANCES, os.mkfifo, "is a pipe or a device"),
    _place("instances a link to itself", INSTANCES, lambda path: path.symlink_to(path.name), "cannot be read"),
    _place("instances a terabyte", INSTANCES, lambda path: (path.touch(), os.truncate(path, 1 << 40)), "the limit is"),
    _place("refs a pipe", REFS, os.mkfifo, "is a pipe or a device"),
)
SIMREC_ENTRIES = (
    _simrec("mask_id as text", "entry 0 of train has no whole number as mask_id", "train", 0, "mask_id", "1"),
    _simrec("iid below 0", "entry 0 of train has no photo number as iid", "train", 0, "iid", -1),
    _simrec("no category", "entry 0 of train has no category number as cat_id", "train", 0, "cat_id", None),
    _simrec("refs as text", "has no list of 1 to 1,000 sentences as refs", "train", 0, "refs", "left"),
    _simrec("a sentence that is none", "has the expression None, which is no text", "train", 0, "refs", [None]),
    _simrec("a box outside", "entry with mask_id 1 has a box x y w h", "train", 0, "bbox", [60, 40, 9, 9]),
    _simrec("no mask file", "has no mask masks/refcoco/9.npy", "train", 0, "mask_id", 9),
    _simrec("contradiction", "entry 0 of val contradicts another entry of mask_id 1", "val", 0, "mask_id", 1),
    _simrec("no splits", "not a list of entries for every split", "train", {}),
    _simrec("a tab in a split", "has the split 'va\\tl'", "va\tl", []),
    _mask_file("mask cut", lambda path: os.truncate(path, 1_000), "not a whole .npy of numbers"),
    _mask_file("mask of objects", lambda path: np.save(path, np.array([{}]), allow_pickle=True), "not a whole .npy"),
    _mask_file("mask of text", lambda path: np.save(path, np.zeros((HEIGHT, WIDTH), "<U1")), "not one mask of numbers"),
    _mask_file(
        "mask of three axes", lambda path: np.save(path, np.zeros((HEIGHT, WIDTH, 1))), "not one mask of numbers"
    ),
    _mask_file("mask a web page", lambda path: path.write_bytes(b"<html>"), "not a whole .npy of numbers"),
    _mask_file("mask of a terabyte", _sparse_mask, "not a whole .npy of numbers"),
)
BAD_ANNOTATIONS = (*REFERENCES, *BOXES, *MASKS, *RECORDS, *FILES, *SIMREC_ENTRIES)
