"""Small TRIS batches, and what both of its stages are built with."""

import dataclasses
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from weakmcn.model.batch import Batch
from weakmcn.model.tris import TrisConfig
from weakmcn.model.vocabulary import RESERVED, Vocabulary

from . import equations
from .equations import make_batch

VOCABULARY = Vocabulary((*RESERVED, *(f"word{number}" for number in range(equations.VOCABULARY - len(RESERVED)))))
SIZES: dict[str, Any] = {
    name: value for name, value in dataclasses.asdict(equations.TINY).items() if name not in ("banks", "warm_epochs")
}
CONFIG = TrisConfig(**SIZES, tris_dim=12)
TEXTS = 1 + CONFIG.negatives


def batch_of(size: int = 4, seed: int = 1) -> Batch:
    g = torch.Generator().manual_seed(seed)
    batch = make_batch(size, seed=seed)
    return replace(
        batch,
        clip_candidates=torch.randn(size, CONFIG.candidates, CONFIG.clip_channels, generator=g),
        texts=torch.randn(size, TEXTS, CONFIG.clip_channels, generator=g),
        pseudo=torch.randint(0, 256, (size, 16, 2), generator=g, dtype=torch.uint8),
    )


def in_double(batch: Batch) -> Batch:
    return batch._each(lambda value: value.double() if value.is_floating_point() and value.ndim == 4 else value)


def learning(net: nn.Module) -> int:
    return sum(weight.numel() for weight in net.parameters() if weight.requires_grad)
