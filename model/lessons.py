"""What a method learns from beside the columns of an image and the words of an expression.

Most methods need nothing more. One that does derives from `Lessons`: statistics of the training images that its network
keeps, vectors of captions, pseudo masks made by another run. The trainer calls, in this order, the constructor (before
anything is written), `ready` (the run folder is there), `begin` (once in the life of a run), and `of` for every batch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..shards.errors import ConfigError
from ..shards.store import Store
from .config import ModelConfig
from .sampler import Draw
from .samples import Samples

if TYPE_CHECKING:
    from .run import Run


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a run has to hand before its first step."""

    store: Store
    samples: Samples
    model: ModelConfig
    dataset: str
    split: str
    out: Path
    """The run folder, which need not exist yet."""
    seed: int
    device: torch.device
    first_stage: "Run | None" = None
    """The run that a method of two stages goes on from: as named, or, before the first step, as remembered."""
    remembered: Mapping[str, Any] = field(default_factory=dict)
    """What the run folder, if it holds a run, remembers of that one (`Lessons.facts`)."""


class Lessons:
    """The lessons of a method that needs none. ConfigError if a run is named that it would not go on from."""

    goes_on = False
    """Whether the method goes on from another run."""

    def __init__(self, material: Material) -> None:
        self.material = material
        if material.first_stage is not None and not self.goes_on:
            raise ConfigError(
                f"--from {material.first_stage.path}: this method goes on from no other run; leave it out."
            )

    @property
    def facts(self) -> Mapping[str, Any]:
        """What run.json keeps of them, to know a run again."""
        return {}

    def ready(self) -> None:
        """Make, or find, what is kept in the run folder. Of several ranks the first does it first."""

    def begin(self, net: nn.Module) -> None:
        """Give a new network what it starts from, before its first step; alike every time."""

    def of(self, drawn: Sequence[Draw], epoch: int) -> Mapping[str, Tensor]:
        """Fields of the batch made of `drawn`, a row each, on the device: a function of both and the seed."""
        return {}
