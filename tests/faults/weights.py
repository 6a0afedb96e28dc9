"""Checkpoints that cannot be used. Each writes one file and says what should be told."""

import argparse
import io
import json
import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from weakmcn.pipeline.encoders.weights import SHIPPED_FOLDER

STATE = {"a.weight": torch.arange(3000.0), "a.bias": torch.ones(2, 3)}


@dataclass(frozen=True)
class BadWeights:
    """One checkpoint that is refused."""

    name: str
    write: Callable[[Path], object]
    says: str
    """Part of the message."""


def torch_file(content: object, *, legacy: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def safetensors_file(header: Any, values: bytes = b"", *, says: int | None = None) -> bytes:
    """A safetensors file with any header; `says` is the length that it claims for it."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if says is None else says) + text + values


def shipped(name: str = "detect") -> bytes:
    return (SHIPPED_FOLDER / f"{name}.safetensors").read_bytes()


def _bad(name: str, data: bytes, says: str) -> BadWeights:
    return BadWeights(name, lambda path: path.write_bytes(data), says)


def _with_flipped_bit(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


def _tensor(begin: int, end: int, *, shape: tuple[int, ...] = (1,)) -> dict[str, Any]:
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [begin, end]}


def _tiny(tensors: Mapping[str, torch.Tensor]) -> bytes:
    return save(dict(tensors))


_TORCH, _LEGACY = torch_file(STATE), torch_file(STATE, legacy=True)
_DAMAGED = "damaged or partial download; fetch it again"
_DEEP = b'{"a":' * 50_000

BAD_WEIGHTS = (
    BadWeights("missing", lambda path: None, "no such checkpoint; put the file there"),
    BadWeights("a directory", lambda path: path.mkdir(), "no such checkpoint"),
    BadWeights("a pipe", os.mkfifo, "no such checkpoint"),
    _bad("empty", b"", "is empty, not weights"),
    _bad("one byte", b"\x80", _DAMAGED),
    _bad("a web page", b"<!DOCTYPE html><html>Virus scan warning</html>", "is a web page, not weights"),
    _bad("a Git LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
    _bad("text", b"nothing that anybody asked for", "is no checkpoint, not weights"),
    *(_bad(f"torch file cut at {share}", _TORCH[: int(len(_TORCH) * share)], _DAMAGED) for share in (0.1, 0.5, 0.99)),
    *(_bad(f"old torch file cut at {share}", _LEGACY[: int(len(_LEGACY) * share)], _DAMAGED) for share in (0.1, 0.9)),
    _bad("torch file with a flipped bit", _with_flipped_bit(_TORCH), _DAMAGED),
    _bad("safetensors cut", shipped()[: len(shipped()) // 2], _DAMAGED),
    _bad("safetensors with a long header", safetensors_file(b"{}", says=1 << 60), "weights"),
    _bad(
        "safetensors beyond its end", safetensors_file({"a": _tensor(0, 1 << 40, shape=(1 << 38,))}, b"1234"), _DAMAGED
    ),
    _bad("safetensors that overlap", safetensors_file({"a": _tensor(0, 4), "b": _tensor(0, 4)}, b"1234"), _DAMAGED),
    _bad("safetensors with a hole", safetensors_file({"a": _tensor(4, 8)}, b"12345678"), _DAMAGED),
    _bad("safetensors 50,000 deep", safetensors_file(_DEEP), _DAMAGED),
    _bad("a list", torch_file([1, 2, 3]), "holds no state dict of tensors"),
    _bad("settings beside the tensors", torch_file({"args": argparse.Namespace(lr=1), **STATE}), "argparse.Namespace"),
    _bad("a whole module", torch_file({"model": torch.nn.Linear(1, 1)}), "refused, it asks for torch.nn"),
    _bad("TorchScript", zipped({"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/m.py": b""}), "TorchScript archive"),
    _bad("a zip of text", zipped({"readme.txt": b"hello"}), "a zip with 0 checkpoints in it"),
    _bad("a zip of two", zipped({"a.pt": b"", "b.pt": b""}), "a zip with 2 checkpoints in it"),
    _bad("an unknown network", _tiny(STATE), "this is an unknown network of 2 tensors"),
    _bad("another network", shipped("dino"), "YOLOv3 of width 4 (8 classes) was asked for"),
)
