"""The systems that can be trained, by name. A new one is a file of its own and a line in `METHODS`."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from ..shards.errors import ConfigError
from .config import ModelConfig
from .weakmcn import WeakMCN


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a system is built and what it reads.

    The network it builds answers `losses(batch, epoch)` with a dataclass of scalar tensors, `total` among them (a field
    may be None), and `predict(batch)` with `Predictions`.
    """

    build: Callable[[ModelConfig, int, Tensor | None], nn.Module]
    """(configuration, rows of the vocabulary, word vectors or None) -> network."""
    fields: Callable[[ModelConfig], tuple[str, ...]]
    """The fields of `Batch` it reads, beside `tokens` and `letterbox`, which every batch has."""


def _fields_of_weakmcn(config: ModelConfig) -> tuple[str, ...]:
    return ("dark_s8", "dark_s16", "dark_s32", *config.banks, "cells", "boxes", "masks")


METHODS: dict[str, Method] = {
    "weakmcn": Method(build=WeakMCN, fields=_fields_of_weakmcn),
}


def method_of(name: str) -> Method:
    """The method of that name; ConfigError naming those that exist."""
    if name not in METHODS:
        raise ConfigError(f"method {name!r} is not known; choose one of {', '.join(METHODS)}.")
    return METHODS[name]
