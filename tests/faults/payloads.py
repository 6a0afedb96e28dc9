"""Files that run code where a careless reader opens them: each makes a folder, the canary, and does nothing else.

`fire` does what careless readers do, in this process: call it in one of its own.
"""

import io
import json
import os
import pickle
import shlex
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from .weights import safetensors_file, torch_file, zipped


class Touch:
    """Pickles as a call that makes the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


@dataclass(frozen=True)
class Payload:
    """One file."""

    name: str
    suffix: str
    """Of the name that a careless reader would open it under."""
    data: Callable[[Path], bytes]
    """Its bytes, for a canary."""
    fire: Callable[[Path], object] | None = None
    """A careless reader, handed the file; None where the installed libraries have none left."""


def _tar(name: str, data: bytes) -> bytes:
    """A shard of one sample: its picture, and a member that WebDataset decodes by its suffix."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for member, content in (("000000000001.txt", b"a"), (name, data)):
            entry = tarfile.TarInfo(member)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


def _npy(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([value], object), allow_pickle=True)
    return buffer.getvalue()


def _npz(value: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.array([value], object))
    return buffer.getvalue()


def _parquet(canary: Path) -> bytes:
    """A column whose type is a pickle, as Arrow before 14.0.1 read it."""
    metadata = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": pickle.dumps(Touch(canary), protocol=0),
    }
    field = pa.field("key", pa.string(), metadata=metadata)
    sink = io.BytesIO()
    pq.write_table(pa.table({"key": ["000000000001"]}, schema=pa.schema([field])), sink)
    return sink.getvalue()


def _torch_script(canary: Path) -> bytes:
    """A TorchScript archive whose pickles make the canary."""
    code = "class M(Module):\n  def forward(self, x):\n    return x\n"
    parts = {"data.pkl": pickle.dumps(Touch(canary)), "constants.pkl": pickle.dumps(Touch(canary), protocol=2)}
    return zipped({**{f"m/{name}": data for name, data in parts.items()}, "m/code/m.py": code.encode()})


def _setstate(canary: Path) -> bytes:
    """BUILD: a functools.partial is given the state of a call, and called."""
    state = b"(cposix\nmkdir\n(V" + str(canary).encode() + b"\nt}N"
    return b"cfunctools\npartial\n(cposix\nmkdir\ntR" + state + b"tb(tR."


def _load_tar(path: Path) -> None:
    from webdataset.compat import WebDataset

    decoded: Any = WebDataset(str(path), shardshuffle=False).decode()
    for _ in decoded:
        pass


def _load_yaml(path: Path) -> None:
    import yaml

    yaml.load(path.read_text(), Loader=yaml.UnsafeLoader)


def _load_checkpoint_folder(path: Path) -> None:
    from torch.distributed.checkpoint.filesystem import FileSystemReader

    (path.parent / "dcp").mkdir()
    (path.parent / "dcp" / ".metadata").write_bytes(path.read_bytes())
    FileSystemReader(path.parent / "dcp").read_metadata()


def _unpack(path: Path) -> None:
    (path.parent / "a" / "b").mkdir(parents=True)
    with tarfile.open(path) as archive:
        archive.extractall(path.parent / "a" / "b", filter="fully_trusted")


def _open_pipe(path: Path) -> None:
    from webdataset.compat import WebDataset

    for _ in WebDataset(path.read_text(), shardshuffle=False):
        pass


def _pickle(path: Path) -> None:
    pickle.loads(path.read_bytes())


def _numpy(path: Path) -> None:
    loaded = np.load(path, allow_pickle=True)
    if isinstance(loaded, np.lib.npyio.NpzFile):
        _ = loaded["a"]


def _torch(path: Path) -> None:
    torch.load(path, weights_only=False)


def _shell(path: Path) -> None:
    os.system(path.read_text())  # noqa: S605


def _climbing_tar(canary: Path) -> bytes:
    """A tar that unpacks the canary beside the folder it is unpacked in."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo(f"../../{canary.name}")
        entry.type = tarfile.DIRTYPE
        archive.addfile(entry)
    return buffer.getvalue()


PAYLOADS = (
    *(
        Payload(f"pickle, protocol {n}", ".p", lambda canary, n=n: pickle.dumps([Touch(canary)], protocol=n), _pickle)
        for n in (0, 2, 4)
    ),
    Payload("pickle, GLOBAL", ".p", lambda c: b"cposix\nmkdir\n(V" + str(c).encode() + b"\ntR.", _pickle),
    Payload("pickle, INST", ".p", lambda c: b"(V" + str(c).encode() + b"\niposix\nmkdir\n.", _pickle),
    Payload("pickle, OBJ", ".p", lambda c: b"(cposix\nmkdir\nV" + str(c).encode() + b"\no.", _pickle),
    Payload("pickle, BUILD", ".p", _setstate, _pickle),
    Payload(".npy of objects", ".npy", lambda c: _npy(Touch(c)), _numpy),
    Payload(".npz of objects", ".npz", lambda c: _npz(Touch(c)), _numpy),
    Payload("checkpoint", ".pth", lambda c: torch_file({"a": torch.ones(1), "b": Touch(c)}), _torch),
    Payload("old checkpoint", ".pth", lambda c: torch_file({"b": Touch(c)}, legacy=True), _torch),
    Payload("checkpoint in a zip", ".pt.zip", lambda c: zipped({"w.pt": torch_file({"b": Touch(c)})})),
    Payload("TorchScript", ".pt", _torch_script),
    Payload("distributed checkpoint", ".metadata", lambda c: pickle.dumps(Touch(c)), _load_checkpoint_folder),
    *(
        Payload(
            f"tar with .{kind}",
            ".tar",
            lambda c, kind=kind: _tar(f"000000000001.{kind}", pickle.dumps(Touch(c))),
            _load_tar,
        )
        for kind in ("pyd", "pkl", "pickle")
    ),
    Payload("tar with .pth", ".tar", lambda c: _tar("000000000001.pth", torch_file(Touch(c))), _load_tar),
    Payload("tar that climbs", ".tar", _climbing_tar, _unpack),
    Payload("zip that climbs", ".zip", lambda c: zipped({f"../../{c.name}/w.pth": torch_file({})})),
    Payload("parquet of a pickled type", ".parquet", _parquet),
    Payload(
        "safetensors with code in its notes",
        ".safetensors",
        lambda c: safetensors_file({"__metadata__": {"facts": f"__import__('os').mkdir({str(c)!r})"}}),
    ),
    Payload(
        "JSON that names a call",
        ".json",
        lambda c: json.dumps({"py/reduce": [{"py/function": "os.mkdir"}, [str(c)]]}).encode(),
    ),
    Payload(
        "YAML that names a call", ".json", lambda c: f"!!python/object/apply:os.mkdir ['{c}']\n".encode(), _load_yaml
    ),
    Payload("a shell's words", ".json", lambda c: f"mkdir {shlex.quote(str(c))}\n".encode(), _shell),
    Payload("a pipe for WebDataset", ".json", lambda c: f"pipe:mkdir {shlex.quote(str(c))}".encode(), _open_pipe),
)
