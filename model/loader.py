"""From columns of the store to batches on the training device, ahead of their use.

Large maps travel as they are stored; the codec is undone on the device. Masks stay packed. A byte is copied once into a
block of memory that is used again and again and, where there is a GPU, once more to it: from page-locked memory, while
the next column is being filled.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from ..shards.reader import Reader
from ..shards.store import Store
from .batch import SOURCES, Batch
from .residence import Blocks, DeviceFeatures, HostFeatures, fitting

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2
"""Batches that are ready, or being made, when one is in use."""
RING = AHEAD + 2
"""Blocks in turn: of the batch in use, of those ahead of it, of the one that is begun when the next is asked for."""


def columns_of(fields: Iterable[str]) -> dict[str, str]:
    """Field -> column, for some fields of a batch."""
    return {field: SOURCES[field] for field in fields}


class Loader:
    """Makes batches of (image, token ids) pairs; for one thread at a time.

    With `reuse` the tensors of a batch may lie in blocks that later batches are written to: it is good until the
    `RING`th batch after it is begun. Under `ahead` that is: until the next but one is asked for. Whoever keeps batches
    for longer leaves `reuse` out, and each has memory of its own.
    """

    def __init__(
        self,
        store: Store,
        fields: Iterable[str],
        *,
        device: torch.device | str = "cpu",
        keys: Iterable[str] | None = None,
        reuse: bool = False,
        features: HostFeatures | DeviceFeatures | None = None,
    ) -> None:
        """fields: of `Batch`, to be filled. keys: of the images that will be asked for, all if None; see reader.py.

        features: where the columns come from, see residence.py; the store's files if None.
        """
        self._columns = columns_of(fields)
        self._store = store
        self._device = torch.device(device)
        self.reader = Reader(store, list(self._columns.values()), keys=keys)
        self.features: HostFeatures | DeviceFeatures = features or self.reader
        self._ring: list[Blocks] = [{} for _ in range(RING)] if reuse else []
        self._begun = 0
        self._pinned: Blocks = {}
        self._copies = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None

    def batch(
        self,
        keys: Sequence[str],
        tokens: np.ndarray,
        fields: Iterable[str] | None = None,
        *,
        owner: np.ndarray | None = None,
    ) -> Batch:
        """keys: of the images, repeated where several sentences share one and `owner` does not say so.

        tokens: int64 [B, T]. owner: int64 [B], the image of each sentence; None: one key each. fields: only these of
        the loader's are filled. All is on the device when this returns; it is for the stream that is current here, the
        default one unless somebody has chosen another.
        """
        columns = self._columns if fields is None else {field: self._columns[field] for field in fields}
        parts = self._parts(keys, list(columns.values()))
        longest = max(1, np.count_nonzero(tokens, axis=1).max())  # pads change nothing, so none are carried along
        letterbox = np.stack([self._store.letterbox(key).info for key in keys])
        return Batch(
            **{field: self._field(parts, column) for field, column in columns.items()},
            letterbox=torch.from_numpy(letterbox).to(self._device),
            images=torch.tensor([int(key) for key in keys], device=self._device),
            tokens=torch.from_numpy(tokens[:, :longest]).to(self._device),
            owner=None if owner is None else torch.from_numpy(owner).to(self._device),
        )

    def _parts(self, keys: Sequence[str], columns: Sequence[str]) -> dict[str, Tensor]:
        """Column (or column + codec suffix) -> its stored values on the device."""
        features = self.features
        if isinstance(features, DeviceFeatures):
            blocks = fitting(self._next_blocks(), features.layout(columns), len(keys), device=self._device)
            return features.gather(keys, blocks, columns)
        if self._copies is None:
            return _gathered(features, keys, columns, self._next_blocks())
        return self._sent(features, keys, columns, self._copies)

    def _sent(
        self, features: HostFeatures, keys: Sequence[str], columns: Sequence[str], copies: torch.cuda.Stream
    ) -> dict[str, Tensor]:
        """The columns on the GPU, in memory of their own: one is on its way while the next is gathered."""
        sent: dict[str, Tensor] = {}
        use = torch.cuda.current_stream(self._device)
        for column in columns:
            for name, block in _gathered(features, keys, [column], self._pinned, pinned=True).items():
                with torch.cuda.stream(copies):
                    sent[name] = block.to(self._device, non_blocking=True)
                sent[name].record_stream(use)  # its memory is not given away while that stream may still read it
        copies.synchronize()  # this thread waits, not the training; then the blocks may be written to again
        return sent

    def _next_blocks(self) -> Blocks:
        """The blocks whose turn it is; new ones where none are used again."""
        self._begun += 1
        return self._ring[self._begun % RING] if self._ring else {}

    def _field(self, parts: Mapping[str, Tensor], column: str) -> Tensor:
        own = {suffix: parts[column + suffix] for suffix in ("", "_scale", "_zero") if column + suffix in parts}
        if column == "detect.cells":
            return own[""].long()
        stored = self._store.columns[column]
        return decoded(stored.codec, own) if stored.field.coded else own[""]


def _gathered(
    features: HostFeatures, keys: Sequence[str], columns: Sequence[str], blocks: Blocks, *, pinned: bool = False
) -> dict[str, Tensor]:
    """The columns of the images in blocks of the host; those that do not fit are replaced."""
    parts = fitting(blocks, features.layout(keys, columns), len(keys), pinned=pinned)
    features.gather(keys, {name: part.numpy() for name, part in parts.items()}, columns)
    return parts


def decoded(codec: str, parts: Mapping[str, Tensor]) -> Tensor:
    """Undo a map's codec where it lies: float16, bfloat16 or float32 as stored, float32 from 8 bits; see codec.py."""
    stored = parts[""]
    if codec == "u8":
        zero, scale = parts["_zero"][..., None, None], parts["_scale"][..., None, None]
        if stored.is_cuda:
            return torch.addcmul(zero, stored, scale)  # one kernel
        return stored.float().mul_(scale).add_(zero)  # types mixed in one call take a CPU three times as long
    return stored.view(torch.bfloat16) if codec == "bf16" else stored


def ahead(make: Callable[[T], R], items: Iterable[T], depth: int = AHEAD) -> Iterator[R]:
    """`make` of each item, in order, made by one thread up to `depth` items before it is asked for."""
    waiting: deque[Future[R]] = deque()
    with ThreadPoolExecutor(1, "loader") as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > depth:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
