"""Reading what is not in memory, in random order: past the page cache or through it: `just bench cold`.

Before every epoch each file is flushed and its pages are dropped (posix_fadvise), which `mincore` confirms: the bench
stops if more than one page in a hundred is left. Batches of 40 of the paper's sizes, as in every epoch but the first:
checksums count as compared already (`just bench side` tells what that costs once).
"""

import ctypes
import mmap
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer
from weakmcn.shards.direct import Direct
from weakmcn.shards.reader import Reader
from weakmcn.shards.store import Store

from .harness import REPEATS, in_turn, ratio, told, written
from .paper_store import MAPS, RECORD_BYTES, make_store, shuffled

BATCH, SHARDS, THREADS, PIECE = 40, 8, (2, 4), 8 << 20
DISK = "the disk: direct, sequential"
COLUMNS = [*MAPS, "detect.cells", "detect.boxes", "masks.bits"]


def main(
    images: Annotated[int, typer.Option(help="A multiple of 40.")] = 400,
    repeats: int = REPEATS,
    data: Annotated[Path | None, typer.Option(help="Where the store is made, and kept for the next time.")] = None,
    out: Path = Path("cold.json"),
) -> None:
    """Print samples a second, each from files of which nothing is in memory."""
    with tempfile.TemporaryDirectory(prefix="weakmcn-bench-", dir=Path.cwd()) as scratch:  # /tmp may be in memory
        path = (data or Path(scratch)) / "store"
        if not path.exists():
            make_store(path, images=images, shards=SHARDS)
        store = Store.open(path)
        tars = sorted(path.glob("*/*.tar"))
        variants: dict[str, Callable[[], object]] = {DISK: lambda: _sequential(tars)}
        for access in ("mmap", "direct"):
            for threads in THREADS:
                variants[f"{access}, {threads} threads"] = _epoch(store, images, access, threads)
        timings = in_turn(variants, repeats=repeats, before=lambda: _drop(tars))
    rows = []
    for name, timing in timings.items():
        speed = images / timing.median_s
        rows.append([name, f"{speed:,.0f}", f"{speed * RECORD_BYTES / 1e9:.2f}", 1e3 * timing.cpu_median_s / images])
    best = {
        access: min((name for name in timings if name.startswith(access)), key=lambda name: timings[name].median_s)
        for access in ("mmap", "direct")
    }
    pairs = [(best["direct"], best["mmap"]), *((f"direct, {n} threads", f"mmap, {n} threads") for n in THREADS)]
    told(
        f"Batches of {BATCH} from files of which nothing is in memory, {images} images",
        ("", "samples/s", "GB/s", "CPU ms a sample"),
        rows,
        notes=[
            f"{one} over {other}: {middle:.2f} x ({low:.2f} to {high:.2f})"
            for one, other in pairs
            for middle, low, high in [ratio(timings[other], timings[one])]
        ],
    )
    written(out, "cold", timings, images=images, best=best)


def _sequential(tars: list[Path]) -> None:
    """Everything from begin to end: what the disk gives at most."""
    files = Direct()
    for path in tars:
        size = path.stat().st_size
        for offset in range(0, size, PIECE):
            files.values(str(path), size, offset, min(PIECE, size - offset))


def _epoch(store: Store, images: int, access: Literal["mmap", "direct"], threads: int) -> Callable[[], object]:
    first = next(iter(shuffled(images, BATCH)))
    layout = Reader(store, COLUMNS, access="mmap").layout(first)
    block = {name: np.zeros((BATCH, *shape), dtype) for name, (shape, dtype) in layout.items()}
    seed = 0

    def epoch() -> None:
        nonlocal seed
        seed += 1
        reader = Reader(store, COLUMNS, access=access, threads=threads)
        if reader.access != access:
            raise typer.BadParameter(f"{store.path}: {reader.why}; put --data on another disk")
        for member in [each for members in reader._members.values() for each in members.values()]:
            member._touched[:] = bytes([1]) * len(member._touched)
        for keys in shuffled(images, BATCH, seed):
            reader.gather(keys, block)

    return epoch


def _drop(files: list[Path]) -> None:
    """Leave nothing of the files in memory."""
    left = total = 0
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            size = os.fstat(descriptor).st_size
            left += _pages_in_memory(descriptor, size)
            total += -(-size // mmap.PAGESIZE)
        finally:
            os.close(descriptor)
    if left > total / 100:
        raise RuntimeError(f"{left:,} of {total:,} pages are still in memory")


def _pages_in_memory(descriptor: int, size: int) -> int:
    with mmap.mmap(descriptor, size, prot=mmap.PROT_READ | mmap.PROT_WRITE, flags=mmap.MAP_PRIVATE) as data:
        flags = np.zeros(-(-size // mmap.PAGESIZE), np.uint8)
        start = ctypes.c_char.from_buffer(data)
        mincore = ctypes.CDLL(None, use_errno=True).mincore
        failed = mincore(
            ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), ctypes.c_void_p(flags.ctypes.data)
        )
        del start
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        return int(np.count_nonzero(flags & 1))


if __name__ == "__main__":
    typer.run(main)
