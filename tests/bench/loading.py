"""How fast batches come from warm local files, beside other formats: `just bench loading`.

Batches of 40 from 400 images of the paper's sizes, in a new global shuffle (or what the peer has instead) each time:
three detector maps, DINO, SAM, boxes, cells, masks. Ours are the batches that training gets: stored in our shards,
masks expanded. "The limit" copies as many records of 3.8 MB from memory into a batch used again and again.

Peers get the same values, written by their own writers, in about as many shards: one tar a shard with all members of an
image, as no stock reader joins the tars of several families; masks as the bytes they are compressed to, which nobody
but us expands, and litdata none, as its collation turns bytes into a tensor each. Peers: pip install -e '.[bench]'.
They are imported by name because the checks run where they are not installed.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.utils.data import DataLoader, Dataset
from weakmcn.model.loader import Loader
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import Store

from .harness import REPEATS, Timing, in_turn, ratio, told, written
from .paper_store import CANDIDATES, MAPS, RECORD_BYTES, SIDE, make_store, shuffled

BATCH, SHARDS = 40, 8
FIELDS = ("dark_s8", "dark_s16", "dark_s32", "dino", "sam", "cells", "boxes", "masks")
OTHERS = ("detect.cells", "detect.boxes", "masks.bits")

ROW_BYTES = RECORD_BYTES + CANDIDATES * (SIDE * SIDE // 8 + 4 * 5 * 4 + 4)
"""Of a sample in a batch: maps, expanded masks, boxes, cells."""

Sample = dict[str, np.ndarray]
Epoch = Callable[[], object]


def main(
    images: Annotated[int, typer.Option(help="A multiple of 40.")] = 400,
    repeats: int = REPEATS,
    data: Annotated[Path | None, typer.Option(help="Where the sets are made, and kept for the next time.")] = None,
    out: Path = Path("loading.json"),
) -> None:
    """Print samples a second, their share of the limit, and processor time, side by side."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="weakmcn-bench-") as scratch:
        folder = data or Path(scratch)
        store = folder / "store"
        if not store.exists():
            make_store(store, images=images, shards=SHARDS)
        opened = Store.open(store)
        variants: dict[str, Epoch] = {
            "the limit, 1 thread": _copies(images),
            "ours, 1 thread": _ours(opened, images, 1),
            "ours, 2 threads": _ours(opened, images, 2),
        }
        absent = []
        for name, (module, make, read) in PEERS.items():
            if find_spec(module) is None:
                absent.append(f"{name}: not measured, {module} is not installed (pip install -e '.[bench]')")
                continue
            path = folder / module
            if not path.exists():
                path.mkdir(parents=True)
                make(path, opened)
            variants[name] = read(path, opened)
        timings = in_turn(variants, repeats=repeats)
    _tell(timings, images, absent)
    written(out, "loading", timings, images=images, record_bytes=RECORD_BYTES, absent=absent)


def _tell(timings: dict[str, Timing], images: int, absent: list[str]) -> None:
    limit, stock = timings["the limit, 1 thread"], timings.get(STOCK)
    rows = []
    for name, timing in timings.items():
        row: list[object] = [name, f"{images / timing.median_s:,.0f}", f"{ratio(limit, timing)[0]:.2f}"]
        row.append(f"{ratio(stock, timing)[0]:.1f}" if stock else "")
        rows.append([*row, f"{1e3 * timing.cpu_median_s / images:.2f}"])
    told(
        f"Batches of {BATCH} from warm files, {images} images",
        ("", "samples/s", "of the limit", "x stock WebDataset", "CPU ms a sample"),
        rows,
        notes=[*absent, *_ratios(timings)],
    )


def _ratios(timings: dict[str, Timing]) -> Iterator[str]:
    """What is promised, a line each."""
    libraries = [timings[name] for name in LIBRARIES if name in timings]
    for name in ("ours, 1 thread", "ours, 2 threads"):
        ours = timings[name]
        if STOCK in timings:
            middle, low, high = ratio(timings[STOCK], ours)
            cpu = timings[STOCK].cpu_median_s / ours.cpu_median_s
            yield f"{name}: {middle:.1f} x stock WebDataset ({low:.1f} to {high:.1f}), 1/{cpu:.1f} of its CPU time"
        if libraries:
            best = min(libraries, key=lambda timing: timing.median_s)
            middle, low, high = ratio(best, ours)
            yield f"{name}: {middle:.1f} x the best of {', '.join(LIBRARIES)} ({low:.1f} to {high:.1f})"
    middle, low, high = ratio(timings["the limit, 1 thread"], timings["ours, 1 thread"])
    more = ROW_BYTES / RECORD_BYTES
    yield (
        f"ours, 1 thread: {middle:.2f} of the limit in samples ({low:.2f} to {high:.2f}), {more * middle:.2f} in bytes "
        f"written: with its masks expanded a sample has {ROW_BYTES / 1e6:.2f} MB, a record {RECORD_BYTES / 1e6:.2f} MB"
    )


def _orders(images: int) -> Iterator[list[list[str]]]:
    """Another global shuffle each time."""
    seed = 0
    while True:
        yield list(shuffled(images, BATCH, seed))
        seed += 1


def _copies(images: int) -> Epoch:
    records = np.random.default_rng(0).integers(0, 256, (images, RECORD_BYTES), dtype=np.uint8)
    block = np.zeros((BATCH, RECORD_BYTES), np.uint8)
    orders = _orders(images)

    def epoch() -> None:
        for keys in next(orders):
            for place, key in enumerate(keys):
                block[place] = records[int(key) - 1]

    return epoch


def _ours(store: Store, images: int, threads: int) -> Epoch:
    columns = [*MAPS, *OTHERS]
    reader = Reader(store, columns, access="mmap", threads=threads)
    loader = Loader(store, FIELDS, reuse=True, features=reader)
    tokens = np.ones((BATCH, 4), np.int64)
    orders = _orders(images)

    def epoch() -> None:
        for keys in next(orders):
            loader.batch(keys, tokens)

    return epoch


def _samples(store: Store) -> Iterator[tuple[str, Sample]]:
    """What every peer is given."""
    for key in store.keys:
        sample = store[key]
        yield key, {name.replace(".", "_"): sample[name] for name in (*MAPS, *OTHERS)}


def _shard_size(store: Store) -> int:
    return len(store.keys) // SHARDS


def _drained(batches: Callable[[], Iterable[Any]], images: int) -> Epoch:
    def epoch() -> None:
        if sum(1 for _ in batches()) * BATCH != images:
            raise RuntimeError("a peer gave another number of batches")

    return epoch


# Stock WebDataset: tars of .npy members.


def _write_tars(folder: Path, store: Store) -> None:
    webdataset: Any = import_module("webdataset")
    size = _shard_size(store)
    with webdataset.ShardWriter(str(folder / "%06d.tar"), maxcount=size, maxsize=1 << 40, verbose=0) as writer:
        for key, sample in _samples(store):
            writer.write({"__key__": key, **{f"{name}.npy": value for name, value in sample.items()}})


def _read_tars(folder: Path, store: Store) -> Epoch:
    webdataset: Any = import_module("webdataset")
    names = [f"{name.replace('.', '_')}.npy" for name in (*MAPS, "detect.cells", "detect.boxes")]

    def batches() -> Iterable[Any]:
        urls = sorted(map(str, folder.glob("*.tar")))
        data = webdataset.WebDataset(urls, shardshuffle=SHARDS).shuffle(100).decode()
        return data.to_tuple(*names).batched(BATCH)

    return _drained(batches, len(store.keys))


# mosaicml-streaming: MDS shards.


def _write_mds(folder: Path, store: Store) -> None:
    streaming: Any = import_module("streaming")

    samples = _samples(store)
    _, first = next(samples)
    columns = {
        name: "bytes" if name == "masks_bits" else f"ndarray:{value.dtype}:{','.join(map(str, value.shape))}"
        for name, value in first.items()
    }
    with streaming.MDSWriter(out=str(folder), columns=columns, size_limit=1 << 28) as writer:
        for _, sample in _samples(store):
            writer.write({**sample, "masks_bits": sample["masks_bits"].tobytes()})


def _read_mds(folder: Path, store: Store) -> Epoch:
    streaming: Any = import_module("streaming")
    import_module("streaming.base.util").clean_stale_shared_memory()
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    return _drained(lambda: DataLoader(data, batch_size=BATCH, num_workers=0), len(store.keys))


# litdata: optimised chunks.


def _write_chunks(folder: Path, store: Store) -> None:
    cache: Any = import_module("litdata.streaming.cache").Cache(input_dir=str(folder), chunk_bytes=1 << 28)
    for place, (_, sample) in enumerate(_samples(store)):
        del sample["masks_bits"]
        cache[place] = {name: torch.from_numpy(value) for name, value in sample.items()}
    cache.done()
    cache.merge()


def _read_chunks(folder: Path, store: Store) -> Epoch:
    litdata: Any = import_module("litdata")
    data = litdata.StreamingDataset(str(folder), shuffle=True)
    return _drained(lambda: litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=0), len(store.keys))


# A .pt file an image.


class _Files(Dataset):
    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.glob("*.pt"))

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, place: int) -> Any:
        return torch.load(self._paths[place], weights_only=True)


def _write_files(folder: Path, store: Store) -> None:
    for key, sample in _samples(store):
        del sample["masks_bits"]
        torch.save({name: torch.from_numpy(value) for name, value in sample.items()}, folder / f"{key}.pt")


def _read_files(folder: Path, store: Store) -> Epoch:
    data = _Files(folder)
    return _drained(lambda: DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=0), len(store.keys))


# HDF5: a data set a column.


def _write_hdf5(folder: Path, store: Store) -> None:
    h5py: Any = import_module("h5py")
    with h5py.File(folder / "columns.h5", "w") as file:
        for place, (_, sample) in enumerate(_samples(store)):
            for name in (name for name in sample if name != "masks_bits"):
                value = sample[name]
                if not place:
                    file.create_dataset(name, (len(store.keys), *value.shape), value.dtype)
                file[name][place] = value


def _read_hdf5(folder: Path, store: Store) -> Epoch:
    h5py: Any = import_module("h5py")
    file = h5py.File(folder / "columns.h5", "r")
    sets: dict[str, Any] = dict(file.items())
    blocks = {name: np.zeros((BATCH, *each.shape[1:]), each.dtype) for name, each in sets.items()}
    orders = _orders(len(store.keys))

    def epoch() -> None:
        for keys in next(orders):
            for place, key in enumerate(keys):
                for name, each in sets.items():
                    each.read_direct(blocks[name], np.s_[int(key) - 1], np.s_[place])

    return epoch


# LMDB: a value an image, all its bytes.


def _write_lmdb(folder: Path, store: Store) -> None:
    lmdb: Any = import_module("lmdb")
    with lmdb.open(str(folder), map_size=1 << 34) as environment:
        for key, sample in _samples(store):
            value = b"".join(sample[name].tobytes() for name in sample if name != "masks_bits")
            with environment.begin(write=True) as transaction:
                transaction.put(key.encode(), value)


def _read_lmdb(folder: Path, store: Store) -> Epoch:
    lmdb: Any = import_module("lmdb")
    environment = lmdb.open(str(folder), readonly=True, lock=False, readahead=False, map_size=1 << 34)
    with environment.begin() as transaction:
        size = len(transaction.get(store.keys[0].encode()))
    block = np.zeros((BATCH, size), np.uint8)
    orders = _orders(len(store.keys))

    def epoch() -> None:
        with environment.begin(buffers=True) as transaction:
            for keys in next(orders):
                for place, key in enumerate(keys):
                    block[place] = np.frombuffer(transaction.get(key.encode()), np.uint8)

    return epoch


STOCK = "stock WebDataset"
PEERS: dict[str, tuple[str, Callable[[Path, Store], None], Callable[[Path, Store], Epoch]]] = {
    STOCK: ("webdataset", _write_tars, _read_tars),
    "mosaicml-streaming": ("streaming", _write_mds, _read_mds),
    "litdata": ("litdata", _write_chunks, _read_chunks),
    "a .pt file an image": ("torch", _write_files, _read_files),
    "HDF5, read_direct": ("h5py", _write_hdf5, _read_hdf5),
    "LMDB, copied": ("lmdb", _write_lmdb, _read_lmdb),
}
"""Name -> the module it needs, what writes its files, what reads them for one epoch."""
LIBRARIES = ("mosaicml-streaming", "litdata", "a .pt file an image")
"""Peers that load and shuffle by themselves; HDF5 and LMDB are formats with the same loop as ours around them."""


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    typer.run(main)
