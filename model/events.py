"""Losses for TensorBoard, beside metrics.jsonl: event files below RUN/tensorboard, if they are asked for."""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..shards.errors import ConfigError

FOLDER = "tensorboard"


def require_tensorboard() -> None:
    """ConfigError, with the line that installs it, where the package is missing."""
    if find_spec("tensorboard") is None:
        raise ConfigError("--tensorboard needs a package that is not installed; pip install 'weakmcn[tensorboard]'.")


class Events:
    """Writes scalars; steps beyond `step`, which an interrupted run had told already, are taken back."""

    def __init__(self, folder: Path, *, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # pyright: ignore[reportPrivateImportUsage]

        self._writer: Any = SummaryWriter(str(folder), purge_step=step + 1)

    def scalars(self, prefix: str, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{prefix}/{name}", value, step)

    def close(self) -> None:
        self._writer.close()
