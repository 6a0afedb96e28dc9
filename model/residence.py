"""Where a run's columns are: in the store's files, in memory, or on the GPU.

    disk  the files; a batch's columns are read when they are needed
    ram   memory of the host, filled once: then an epoch reads nothing
    gpu   memory of the GPU, filled once: then an epoch reads nothing and copies nothing to the GPU
    auto  gpu where they leave a third of its free memory to training, else ram where they take no more than half of
          what is free there, else disk

Values are held as they are stored, masks packed; in memory of the host masks are kept compressed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from ..shards.crew import Crew
from ..shards.direct import BLOCK
from ..shards.errors import ConfigError
from ..shards.memory import available_bytes
from ..shards.quick import QuickFrames
from ..shards.reader import PACKED_MASKS, THREADS, Layout, Reader
from .progress import counted

Place = Literal["disk", "ram", "gpu"]
Asked = Literal["auto", "disk", "ram", "gpu"]
PLACES: tuple[str, ...] = get_args(Asked)

CHUNK = 64
"""Images that are loaded in one go."""
MOST = 0.9
"""Of what is free: more is refused even where it is asked for."""

Blocks = dict[str, Tensor]
"""Column (or column + codec suffix) -> memory for the values of some images [>= B, ...]."""


class HostFeatures(Protocol):
    """Gives columns in memory of the host; `Reader` is one."""

    def layout(self, keys: Sequence[str], columns: Iterable[str] | None = None) -> Layout:
        """Name of each array -> shape of one image's row, dtype."""
        ...

    def gather(
        self,
        keys: Sequence[str],
        out: Mapping[str, np.ndarray] | None = None,
        columns: Iterable[str] | None = None,
    ) -> dict[str, np.ndarray]:
        """Column (or column + codec suffix) -> stored values [len(keys), ...], in `out` if that is given."""
        ...


@dataclass(frozen=True, kw_only=True)
class Residence:
    """Where the columns are to be, and why."""

    place: Place
    images: int
    size_bytes: int
    why: str

    def __str__(self) -> str:
        how = {
            "disk": "read from the store at every step",
            "ram": "loaded into memory once",
            "gpu": "loaded onto the GPU once",
        }
        return f"Features: {_gb(self.size_bytes)} of {self.images:,} images, {how[self.place]} ({self.why})."

    def features(self, reader: Reader, keys: Iterable[str], device: torch.device) -> "HostFeatures | DeviceFeatures":
        """Load them, if that is what is to be done."""
        if self.place == "disk":
            return reader
        loaded = DeviceFeatures(reader, keys, device) if self.place == "gpu" else RamFeatures(reader, keys)
        reader.forget()
        return loaded


def choose(asked: Asked, reader: Reader, keys: Sequence[str], device: torch.device, *, ranks: int = 1) -> Residence:
    """Where the reader's columns of some images are to be; ConfigError if they do not fit where they are asked to be.

    ranks: how many processes hold them; they are taken to share a machine, each with a GPU of its own.
    """
    images = len(set(keys))
    stored = reader.stored_bytes(keys)
    unpacked = images * sum(prod(shape) * dtype.itemsize for shape, dtype in reader.layout(keys[:1]).values())
    on_gpu, in_ram = _free_on(device), available_bytes()

    def at(place: Place, why: str, size: int = stored) -> Residence:
        return Residence(place=place, images=images, size_bytes=size, why=why)

    if asked == "gpu":
        if on_gpu is None:
            raise ConfigError(f"features=gpu, but this run is on {device}; choose ram, disk or auto.")
        _refuse_if_more("gpu", unpacked, on_gpu, f"of {device}'s memory", "ram, disk or auto")
        return at("gpu", "as asked", unpacked)
    if asked == "ram":
        if in_ram is not None:
            _refuse_if_more("ram", stored * ranks, in_ram, "of memory", "disk or auto")
        return at("ram", "as asked")
    files = "past the page cache" if reader.access == "direct" else "through the page cache"
    if asked == "disk":
        return at("disk", f"as asked; {files}: {reader.why}")
    if on_gpu is not None and unpacked <= on_gpu * 2 / 3:
        return at("gpu", f"{_gb(on_gpu)} of its memory are free", unpacked)
    if in_ram is not None and stored * ranks <= in_ram / 2:
        return at("ram", f"{_gb(in_ram)} are free")
    free = "nobody can tell how much memory is free" if in_ram is None else f"{_gb(in_ram)} of memory are free"
    return at("disk", f"{free}; {files}: {reader.why}")


class RamFeatures:
    """Every image's stored values in memory, read once; masks as frames that expand quickly."""

    def __init__(self, source: Reader, keys: Iterable[str], threads: int = THREADS) -> None:
        self._row = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        distinct = list(self._row)
        self._layouts = {column: source.layout(distinct, [column]) for column in source.columns}
        self._arrays = {
            name: np.empty((len(distinct), *shape), dtype)
            for column, layout in self._layouts.items()
            for name, (shape, dtype) in layout.items()
            if column != PACKED_MASKS
        }
        self._masks = QuickFrames(budget_bytes=None)
        self._crew = Crew(threads)
        whole = [column for column in source.columns if column != PACKED_MASKS]
        with counted("loading features", len(distinct)) as count:
            for start in range(0, len(distinct), CHUNK):
                own = distinct[start : start + CHUNK]
                source.gather(own, {name: array[start : start + CHUNK] for name, array in self._arrays.items()}, whole)
                if PACKED_MASKS in self._layouts:
                    packed = source.gather(own, columns=[PACKED_MASKS])[PACKED_MASKS]
                    for row, masks in enumerate(packed, start):
                        self._masks.keep(row, masks.reshape(-1))
                count(len(own))

    def layout(self, keys: Sequence[str], columns: Iterable[str] | None = None) -> Layout:
        wanted = self._layouts if columns is None else columns
        return {name: each for column in wanted for name, each in self._layouts[column].items()}

    def gather(
        self,
        keys: Sequence[str],
        out: Mapping[str, np.ndarray] | None = None,
        columns: Iterable[str] | None = None,
    ) -> dict[str, np.ndarray]:
        rows = [self._row[key] for key in keys]
        batch = {
            name: np.empty((len(keys), *shape), dtype) if out is None else out[name]
            for name, (shape, dtype) in self.layout(keys, columns).items()
        }
        arrays = [(self._arrays[name], block) for name, block in batch.items() if name in self._arrays]

        def copy(place: int) -> None:
            for array, block in arrays:
                block[place] = array[rows[place]]

        def expand(place: int) -> None:
            self._masks.fill(rows[place], batch[PACKED_MASKS][place].reshape(-1))

        self._crew.do(copy, len(keys))
        if PACKED_MASKS in batch:
            self._crew.do(expand, len(keys))
        return batch


class DeviceFeatures:
    """Every image's stored values on a device, read once; masks packed."""

    def __init__(self, source: Reader, keys: Iterable[str], device: torch.device | str) -> None:
        self._device = torch.device(device)
        self._row = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        distinct = list(self._row)
        self._layouts = {column: source.layout(distinct, [column]) for column in source.columns}
        self._tensors = fitting({}, self.layout(source.columns), len(distinct), device=self._device)
        host: Blocks = {}
        with counted("loading features", len(distinct)) as count:
            for start in range(0, len(distinct), CHUNK):
                own = distinct[start : start + CHUNK]
                parts = fitting(host, self.layout(source.columns), len(own), pinned=self._device.type == "cuda")
                source.gather(own, {name: part.numpy() for name, part in parts.items()})
                for name, part in parts.items():
                    self._tensors[name][start : start + len(own)].copy_(part)
                count(len(own))

    def layout(self, columns: Iterable[str]) -> Layout:
        """Name of each tensor of the columns -> shape of one image's row, dtype."""
        return {name: each for column in columns for name, each in self._layouts[column].items()}

    def gather(self, keys: Sequence[str], out: Blocks, columns: Iterable[str]) -> Blocks:
        """Fill `out` with the stored values of some images: column (or column + codec suffix) -> [len(keys), ...]."""
        rows = torch.tensor([self._row[key] for key in keys], device=self._device)
        for name in self.layout(columns):
            torch.index_select(_bits(self._tensors[name]), 0, rows, out=_bits(out[name]))
        return out


def fitting(
    blocks: Blocks, layout: Layout, count: int, *, device: torch.device | str = "cpu", pinned: bool = False
) -> Blocks:
    """A block for each name of the layout, [count, ...]: those of `blocks`, in which too small ones are replaced."""
    found: Blocks = {}
    for name, (shape, dtype) in layout.items():
        block = blocks.get(name)
        if block is None or len(block) < count or block.shape[1:] != shape or block.dtype != _torch_dtype(dtype):
            block = blocks[name] = _memory((count, *shape), dtype, torch.device(device), pinned)
        found[name] = block[:count]
    return found


def _memory(shape: tuple[int, ...], dtype: np.dtype, device: torch.device, pinned: bool) -> Tensor:
    if device.type == "cpu" and not pinned:
        return torch.from_numpy(_on_a_page(shape, dtype))
    return torch.empty(shape, dtype=_torch_dtype(dtype), device=device, pin_memory=pinned)


def _on_a_page(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Memory that begins where a page does, as large members of shards do.

    A large array begins 16 bytes behind. What is stored there then seems to be, in the 12 bits of an address that a
    processor compares, what is loaded next from the file, and copying falls to two thirds of its speed. numpy asks for
    large pages, which copies are quicker into.
    """
    size = prod(shape) * dtype.itemsize
    room = np.empty(size + BLOCK, np.uint8)
    start = -room.ctypes.data % BLOCK
    return room[start : start + size].view(dtype).reshape(shape)


def _torch_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.from_numpy(np.empty(0, dtype)).dtype


def _bits(tensor: Tensor) -> Tensor:
    """The same bits in a type that every operation knows: bfloat16 is stored as uint16, which few do."""
    return tensor.view(torch.int16) if tensor.dtype == torch.uint16 else tensor


def _free_on(device: torch.device) -> int | None:
    """Free bytes of a GPU; None for any other device."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else None


def _refuse_if_more(asked: str, wanted: int, free: int, whose: str, instead: str) -> None:
    if wanted > MOST * free:
        raise ConfigError(
            f"features={asked} wants {_gb(wanted)}, and {_gb(free)} {whose} are free; choose {instead}, "
            "or precompute with --codec u8, which halves them."
        )


def _gb(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"
