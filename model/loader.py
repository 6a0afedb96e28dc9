"""From columns of the store to batches on the training device, ahead of their use.

Large maps travel as they are stored; the codec is undone on the device. Masks stay packed.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..shards.reader import Reader
from ..shards.store import Store
from .batch import SOURCES, Batch

Arrays = dict[str, np.ndarray]
T = TypeVar("T")
R = TypeVar("R")


class Features(Protocol):
    """Where the stored values of the images come from."""

    def gather(self, keys: Sequence[str]) -> Arrays:
        """Column (or column + codec suffix) -> stored values [len(keys), ...]."""
        ...


class RamFeatures:
    """Every image's stored values in memory, read once."""

    def __init__(self, source: Features, keys: Sequence[str], chunk: int = 64) -> None:
        self._row = {key: row for row, key in enumerate(dict.fromkeys(keys))}
        distinct = list(self._row)
        self._arrays: Arrays = {}
        for start in range(0, len(distinct), chunk):
            for name, part in source.gather(distinct[start : start + chunk]).items():
                whole = self._arrays.setdefault(name, np.empty((len(distinct), *part.shape[1:]), part.dtype))
                whole[start : start + len(part)] = part

    def gather(self, keys: Sequence[str]) -> Arrays:
        rows = [self._row[key] for key in keys]
        return {name: whole[rows] for name, whole in self._arrays.items()}


def columns_of(fields: Iterable[str]) -> dict[str, str]:
    """Field -> column, for some fields of a batch."""
    return {field: SOURCES[field] for field in fields}


class Loader:
    """Makes batches of (image, token ids) pairs."""

    def __init__(
        self,
        store: Store,
        fields: Iterable[str],
        *,
        device: torch.device | str = "cpu",
        features: Features | None = None,
    ) -> None:
        """fields: of `Batch`, to be filled. features: where from; the store's files if None."""
        self._columns = columns_of(fields)
        self._store = store
        self._device = device
        self.features: Features = features or Reader(store, list(self._columns.values()))

    def batch(self, keys: Sequence[str], tokens: np.ndarray) -> Batch:
        """keys: of the images, repeated where several sentences share one. tokens: int64 [len(keys), T]."""
        arrays = self.features.gather(keys)
        longest = max(1, np.count_nonzero(tokens, axis=1).max())  # pads change nothing, so none are carried along
        letterbox = np.stack([self._store.letterbox(key).info for key in keys])
        fields = {field: self._on_device(arrays, column) for field, column in self._columns.items()}
        return Batch(
            **fields,
            letterbox=torch.from_numpy(letterbox).to(self._device),
            images=torch.tensor([int(key) for key in keys], device=self._device),
            tokens=torch.from_numpy(tokens[:, :longest]).to(self._device),
        )

    def _on_device(self, arrays: Arrays, column: str) -> Tensor:
        parts = {
            suffix: torch.from_numpy(arrays[column + suffix]).to(self._device)
            for suffix in ("", "_scale", "_zero")
            if column + suffix in arrays
        }
        if column == "detect.cells":
            return parts[""].long()
        stored = self._store.columns[column]
        return decoded(stored.codec, parts) if stored.field.coded else parts[""]


def decoded(codec: str, parts: Mapping[str, Tensor]) -> Tensor:
    """Undo a map's codec where it lies: float16, bfloat16 or float32 as stored, float32 from 8 bits; see codec.py."""
    stored = parts[""]
    if codec == "u8":
        return torch.addcmul(parts["_zero"][..., None, None], stored, parts["_scale"][..., None, None])
    return stored.view(torch.bfloat16) if codec == "bf16" else stored


def ahead(make: Callable[[T], R], items: Iterable[T], depth: int = 2) -> Iterator[R]:
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
