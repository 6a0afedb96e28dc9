"""Everything that changes while a run trains, and its way into a checkpoint and back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from .checkpoint import Checkpoint, Position, load_weights, under
from .config import TrainConfig
from .schedule import MovingAverage

ADAM = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class TrainState:
    """Weights, their moving average, the optimiser, and the place in the order of training.

    The random generators of torch belong to it too; `tensors` and `restore` include them. A run goes on from the raw
    weights, not from their average (quirk 25).
    """

    net: nn.Module
    optimiser: torch.optim.Optimizer
    average: MovingAverage
    epoch: int = 0
    """Of the next step, from 0."""
    batch: int = 0
    """Index in that epoch of the next batch."""
    step: int = 0
    """Steps finished."""
    window: dict[str, Tensor] = field(default_factory=dict)
    """Sums of the losses since the last line of metrics.jsonl, in the order of their fields; on the device."""
    window_steps: int = 0
    _buffers: list[Tensor] = field(default_factory=list)
    """The network's buffers as `remember` saw them."""
    _generators: dict[str, Tensor] = field(default_factory=dict)
    """The same of the random generators."""

    @classmethod
    def start(cls, net: nn.Module, config: TrainConfig) -> "TrainState":
        """Before the first step. net: on its device."""
        weights = [weight for weight in net.parameters() if weight.requires_grad]
        common: dict[str, Any] = {"betas": (config.betas[0], config.betas[1]), "eps": config.eps, "fused": True}
        if config.optimiser == "adamw":
            decay = config.weight_decay
            optimiser = torch.optim.AdamW(weights, lr=config.warmup_lr, weight_decay=decay, **common)
        else:
            optimiser = torch.optim.Adam(weights, lr=config.warmup_lr, **common)
        return cls(net, optimiser, MovingAverage(net, config.ema_decay))

    @property
    def device(self) -> torch.device:
        return next(self.net.parameters()).device

    @property
    def weights(self) -> list[nn.Parameter]:
        """The trained parameters."""
        return self.optimiser.param_groups[0]["params"]

    def set_rate(self, rate: float) -> None:
        self.optimiser.param_groups[0]["lr"] = rate

    def advance(self, losses: Any, steps: int) -> None:
        """Count a finished step. losses: a dataclass of scalars. steps: of an epoch."""
        # Made anew at every step, so that the order is that of the fields even where a checkpoint gave another.
        self.window = {
            item.name: self.window.get(item.name, 0) + getattr(losses, item.name).detach() for item in fields(losses)
        }
        self.window_steps += 1
        self.step += 1
        self.batch += 1
        if self.batch == steps:
            self.epoch, self.batch = self.epoch + 1, 0

    def remember(self) -> None:
        """Keep what the next forward pass changes (statistics of BatchNorm, generators), for `forget_step`."""
        buffers = list(self.net.buffers())
        if not self._buffers:
            self._buffers = [torch.empty_like(buffer) for buffer in buffers]
        if buffers:
            torch._foreach_copy_(self._buffers, buffers)  # pyright: ignore[reportPrivateImportUsage]
        self._generators = self._rng()

    def forget_step(self) -> None:
        """Undo a forward pass after which no step was taken: the state is again the one `remember` saw."""
        for buffer, before in zip(self.net.buffers(), self._buffers, strict=True):
            buffer.copy_(before)
        self._set_rng(self._generators)

    def not_finite(self) -> str | None:
        """The name of the first tensor of the state that holds a NaN or an infinity; None if all is sound."""
        return next(
            (
                name
                for name, tensor in self.tensors().items()
                if tensor.is_floating_point() and not torch.isfinite(tensor).all()
            ),
            None,
        )

    def take_window(self) -> dict[str, float]:
        """Mean losses since the last call."""
        means = {name: (total / self.window_steps).item() for name, total in self.window.items()}
        self.window, self.window_steps = {}, 0
        return means

    def position(self, metrics_bytes: int) -> Position:
        return Position(
            epoch=self.epoch,
            batch=self.batch,
            step=self.step,
            metrics_bytes=metrics_bytes,
            window_steps=self.window_steps,
        )

    def tensors(self) -> dict[str, Tensor]:
        """All of it but the position, flat, by name."""
        named = {f"net/{name}": tensor for name, tensor in self.net.state_dict().items()}
        named |= {f"ema/{name}": tensor for name, tensor in self.average.shadow.items()}
        for name, weight in self.net.named_parameters():
            for part, value in self.optimiser.state.get(weight, {}).items():
                named[f"adam/{part}/{name}"] = value
        named |= {f"window/{name}": total for name, total in self.window.items()}
        return named | {f"rng/{name}": state for name, state in self._rng().items()}

    def restore(self, saved: Checkpoint) -> None:
        """Become what was saved; CheckpointError if it is the state of another network."""
        load_weights(self.net, saved, ema=False)
        self.average.restore(under("ema/", saved.tensors))
        moments = {part: under(f"adam/{part}/", saved.tensors) for part in ADAM}
        for name, weight in self.net.named_parameters():
            if name in moments["step"]:  # a part that had no gradient yet has no moments either
                saved_moments = {part: moments[part][name] for part in ADAM}
                self.optimiser.state[weight] = {  # laid out as the weight is, or the fused step would not take them
                    part: torch.empty_like(weight).copy_(moment) if moment.ndim else moment.to(self.device)
                    for part, moment in saved_moments.items()
                }
        self.window = {name: total.to(self.device) for name, total in under("window/", saved.tensors).items()}
        self.window_steps = saved.position.window_steps
        self.epoch, self.batch, self.step = saved.position.epoch, saved.position.batch, saved.position.step
        self._set_rng(under("rng/", saved.tensors))

    def _rng(self) -> dict[str, Tensor]:
        """States of the generators: of torch on the host and, where the network is on one, on the GPU."""
        states = {"cpu": torch.get_rng_state()}
        if self.device.type == "cuda":
            states["cuda"] = torch.cuda.get_rng_state(self.device)
        return states

    def _set_rng(self, states: Mapping[str, Tensor]) -> None:
        torch.set_rng_state(states["cpu"])
        if self.device.type == "cuda" and "cuda" in states:
            torch.cuda.set_rng_state(states["cuda"], self.device)
