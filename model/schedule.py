"""Learning rate and moving average of the recipe (method section 14)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .config import TrainConfig


def learning_rate(step: int, steps_per_epoch: int, config: TrainConfig) -> float:
    """The rate of step `step` (from 0): linear from warmup_lr, after the warm-up by `schedule` down to min_lr."""
    warm = config.warmup_epochs * steps_per_epoch + config.warmup_steps
    if step < warm:
        return config.warmup_lr + step * (config.lr - config.warmup_lr) / warm
    falling = config.epochs * steps_per_epoch - warm
    if config.schedule == "poly":
        return config.min_lr + (config.lr - config.min_lr) * (1 - (step - warm) / falling) ** config.poly_power
    turn = math.pi * (step - warm) / falling
    return config.min_lr + (config.lr - config.min_lr) / 2 * (1 + math.cos(turn))


def averaged(net: nn.Module) -> dict[str, Tensor]:
    """What the moving average follows: trained parameters and BatchNorm's floating point statistics (quirk 24)."""
    tensors: dict[str, Tensor] = {name: weight for name, weight in net.named_parameters() if weight.requires_grad}
    for prefix, module in net.named_modules():
        if isinstance(module, _BatchNorm):
            for name, buffer in module.named_buffers(prefix, recurse=False):
                if buffer.is_floating_point():
                    tensors[name] = buffer
    return tensors


class MovingAverage:
    """A slow copy of the trained state, the one that is evaluated: shadow <- d shadow + (1 - d) state.

    d = min(decay, (1 + j) / (10 + j)) after step j. It starts from the network's state when it is made.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = averaged(net)
        self.shadow = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the network after step `step` (from 0)."""
        share = 1 - min(self.decay, (1 + step) / (10 + step))
        live = [tensor.detach() for tensor in self._live.values()]
        torch._foreach_lerp_(list(self.shadow.values()), live, share)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def restore(self, shadow: Mapping[str, Tensor]) -> None:
        """Take over a saved shadow of the same network."""
        for name, tensor in self.shadow.items():
            tensor.copy_(shadow[name])
