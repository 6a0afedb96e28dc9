"""An encoder of the user's own, in one Python file that no other file of the program knows: the bank `extra`.

    precompute --stages extra --checkpoint extra=FILE.py

The file has a class `Encoder` (see `Own`). It is code, so it is run only where a command line names it: what a store
or a run remembers of it is compared and never executed.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ...shards.errors import CheckpointError, StageError
from ...shards.fingerprint import file_sha256
from ...shards.own_code import run_own
from ..config import ExtraConfig, PipelineConfig
from ..images import Photo


class Own(Protocol):
    """What the class `Encoder` of such a file offers."""

    channels: int
    """C of its map."""
    batch: int
    """Photographs that `encode` gets at once: so many for a store, fewer for a question about fewer."""
    # weights: str, where there are any: the file of its weights, relative to its own folder.

    def __init__(self, side_px: int, device: str) -> None:
        """side_px: edge S of the canvas. device: "cpu" or "cuda:0"."""
        ...

    def encode(self, photos: Sequence[Photo]) -> np.ndarray:
        """float [photos, C, S/16, S/16], each photo's map on the canvas's grid, from itself alone."""
        ...


def extra_config(file: str, config: ExtraConfig) -> ExtraConfig:
    """The settings of the encoder in a file, which is executed; CheckpointError where there is none in it, ConfigError
    where it fails."""
    own = _class_in(file)
    channels, batch, weights = (getattr(own, name, None) for name in ("channels", "batch", "weights"))
    if not (isinstance(channels, int) and channels > 0 and isinstance(batch, int) and batch > 0):
        raise CheckpointError(f"{file}: Encoder.channels and Encoder.batch must be whole numbers of at least 1.")
    try:
        digest = file_sha256(Path(file).parent / weights) if weights else ""
    except OSError as fault:
        raise CheckpointError(f"{file}: its weights {weights} cannot be read ({fault.strerror}).") from None
    return replace(config, checkpoint=file, channels=channels, batch=batch, weights_sha256=digest)


def _class_in(file: str) -> Any:
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise CheckpointError(f"{file}: no Python file; name one with a class Encoder: --checkpoint extra=FILE.py")
    module, _ = run_own(path, f"--checkpoint extra={file}")
    if not isinstance(own := getattr(module, "Encoder", None), type):
        raise CheckpointError(f"{file}: has no class Encoder; docs/encoder.md shows one.")
    return own


class ExtraEncoder:
    """Stage `extra`: what the user's file makes of the photographs."""

    def __init__(self, config: PipelineConfig, device: str) -> None:
        self.batch = config.extra.batch
        self._file = config.extra.checkpoint
        self._shape = (config.extra.channels, config.side_px // 16, config.side_px // 16)
        own = _class_in(self._file)
        self._own = None if device == "meta" else own(config.side_px, device)  # nobody knows what fits its weights

    def encode(self, photos: list[Photo], inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Field tokens of each photo."""
        assert self._own is not None
        maps = np.asarray(self._own.encode(photos))
        wanted = (len(photos), *self._shape)
        if maps.shape != wanted or not np.issubdtype(maps.dtype, np.floating):
            raise StageError(f"{self._file}: encode gave {maps.dtype} {list(maps.shape)}, not float {list(wanted)}.")
        return [{"tokens": each} for each in maps]
