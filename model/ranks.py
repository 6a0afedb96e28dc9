"""Several processes that train one network: N ranks with B/N expressions each give what one process gives with B.

Every rank holds the whole network. A rank's loss terms are its *shares*: what its own expressions add to the terms of
the whole batch, so the sum over the ranks is the loss. What an expression's loss reads of other expressions crosses the
ranks with its gradient: the statistics of BatchNorm (whole_batch.py) and the images it is contrasted with
(`Ranks.contrasted`). Gradients are summed in one flat message; then all ranks take the same step.

Axes: B expressions of the whole batch, b = B/N of this rank, K candidates, D width.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..shards.errors import WeakmcnError


class LostRank(WeakmcnError):  # noqa: N818 - says what happened
    """Another rank ended or does not answer."""


class RanksDiffer(WeakmcnError):  # noqa: N818 - says what was found
    """Ranks are not about to do the same."""


class ToldElsewhere(WeakmcnError):  # noqa: N818 - says where to look
    """The run ends, and another rank says why: no message, its exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__()
        self.exit_code = exit_code


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """This process among those that train together; the usual one is alone, and then nothing here does anything.

    What several ranks exchange goes through torch's default process group, which `launch.member` sets up. Every rank
    must make the same calls in the same order. LostRank where another one cannot be reached.
    """

    rank: int = 0
    size: int = 1
    gather: bool = True
    """Whether a text is contrasted with the images of all ranks, or with its own rank's only."""

    @property
    def first(self) -> bool:
        """The one that writes files and talks to the user."""
        return self.rank == 0

    @property
    def together(self) -> bool:
        return self.size > 1

    # Loss terms

    def share(self, mean: Tensor, unequal: int | None = None) -> Tensor:
        """The mean over this rank's expressions as its share of the mean over all.

        unequal: how many expressions this rank has, where the ranks need not have equally many; they tell each other.
        """
        if not self.together:
            return mean
        if unequal is None:
            return mean / self.size
        return mean * (unequal / self.total(mean.new_tensor(unequal)))

    def contrasted(self, candidates: Tensor) -> tuple[Tensor, int]:
        """The images that a text is contrasted with, and which of them is this rank's first.

        candidates: [b, K, D], of the rank's own images. Returns [B, K, D], in the order of the ranks; the argument
        itself where each rank keeps to its own.
        """
        if not (self.together and self.gather):
            return candidates, 0
        return _Gathered.apply(candidates, self), self.rank * len(candidates)  # pyright: ignore[reportReturnType]

    def total(self, count: Tensor) -> Tensor:
        """The sum over the ranks of something without gradient."""
        if not self.together:
            return count
        count = count.clone()
        self.all_reduce(count)
        return count

    # A step

    def draw_anew(self, seed: int, step: int) -> None:
        """Let what is drawn in a step (dropout) depend on seed, step and rank alone.

        So ranks do not drop alike, and a run that goes on needs no generator but the one that it saved. A process alone
        goes on with its generator.
        """
        if self.together:
            torch.manual_seed(int(np.random.SeedSequence([seed, step, self.rank]).generate_state(1, np.uint64)[0]))

    def sum_step(self, weights: Sequence[nn.Parameter], losses: Any) -> Any:
        """Sum gradients (in place) and shares of the losses over the ranks; the losses, the same on all.

        losses: a dataclass of scalars. The same weights have a gradient on every rank.
        """
        if not self.together:
            return losses
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        names = [term.name for term in fields(losses)]
        terms = torch.stack([getattr(losses, name).detach() for name in names])
        flat = torch.cat([*(gradient.flatten() for gradient in gradients), terms])
        self.all_reduce(flat)
        *summed, terms = flat.split([*(gradient.numel() for gradient in gradients), len(names)])
        for gradient, total in zip(gradients, summed, strict=True):
            gradient.copy_(total.view_as(gradient))
        return replace(losses, **dict(zip(names, terms.unbind(), strict=True)))

    # Agreement

    def highest(self, *values: int) -> list[int]:
        """The highest of each value over the ranks; all of them get the same."""
        return [max(each) for each in zip(*self._gathered(values), strict=True)] if self.together else list(values)

    def require_same(self, facts: Mapping[str, int], where: str) -> None:
        """RanksDiffer, on every rank, naming the first fact (within 64 bits) that is not the same on all.

        where: what begins now, for the message.
        """
        if not self.together:
            return
        told = self._gathered(list(facts.values()))
        for name, *values in zip(facts, *told, strict=True):
            other = next((rank for rank, value in enumerate(values) if value != values[0]), None)
            if other is not None:
                raise RanksDiffer(
                    f"{where}: rank {other} differs from rank 0 in the {name} ({values[other]}, not {values[0]}); give "
                    "all ranks the same store, run folder and version of weakmcn, and run the same command again."
                )

    @contextmanager
    def all_or_none(self) -> Iterator[None]:
        """The block is left by all ranks or by none: what one raises ends the others with `ToldElsewhere`.

        Where several raise, the lowest keeps its exception. For what every rank does on its own; ranks are at the same
        place again behind it.
        """
        if not self.together:
            yield
            return
        try:
            yield
        except Exception as fault:
            with suppress(LostRank):
                self._end_with_the_first(getattr(fault, "exit_code", 0) or 1)
            raise
        self._end_with_the_first(0)

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank runs the block, then all others do; else as `all_or_none`."""
        if not self.first:
            self._end_with_the_first(0)
        with self.all_or_none():
            yield
        if self.first and self.together:
            self._end_with_the_first(0)

    @contextmanager
    def one_voice(self, *alike: type[WeakmcnError]) -> Iterator[None]:
        """What all ranks raise alike in the block, the first one tells and the others do not."""
        try:
            yield
        except alike as fault:
            if self.first:
                raise
            raise ToldElsewhere(fault.exit_code) from None

    def _end_with_the_first(self, status: int) -> None:
        """status: 0, or the exit code of a fault here. ToldElsewhere if a lower rank, or any if 0, has one too."""
        statuses = [told[0] for told in self._gathered([status])]
        culprit = next((rank for rank, each in enumerate(statuses) if each), self.rank)
        if culprit != self.rank:
            raise ToldElsewhere(statuses[culprit])

    def _gathered(self, values: Sequence[int]) -> list[list[int]]:
        """The values of every rank, by rank; on the host, whatever the network is on."""
        mine = torch.tensor(values, dtype=torch.int64)
        all_of_them = [torch.empty_like(mine) for _ in range(self.size)]
        with _reaching(self):
            dist.all_gather(all_of_them, mine)
        return [each.tolist() for each in all_of_them]

    # Messages

    def all_reduce(self, x: Tensor) -> None:
        """Make `x` its sum over the ranks; no gradient."""
        with _reaching(self):
            dist.all_reduce(x)

    def all_gather(self, x: Tensor) -> list[Tensor]:
        """The `x` of every rank, by rank, all of one shape; no gradient."""
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(self.size)]
        with _reaching(self):
            dist.all_gather(parts, x)
        return parts


ALONE = Ranks()


@contextmanager
def _reaching(ranks: Ranks) -> Iterator[None]:
    try:
        yield
    except RuntimeError as fault:  # torch.distributed has several kinds, all of them this
        reason = "no answer in time" if re.search("timed? ?out", str(fault), re.IGNORECASE) else "one of them has ended"
        raise LostRank(
            f"rank {ranks.rank} of {ranks.size} cannot reach the others ({reason}); run the same command again to go "
            "on from the newest checkpoint."
        ) from fault


class _Gathered(torch.autograd.Function):
    """All ranks' rows below one another; the gradient of a row goes back to where it came from."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ranks: Ranks) -> Tensor:
        ctx.ranks, ctx.rows = ranks, len(x)
        return torch.cat(ranks.all_gather(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        gradient = gradients[0].clone(memory_format=torch.contiguous_format)
        ctx.ranks.all_reduce(gradient)
        return gradient.narrow(0, ctx.ranks.rank * ctx.rows, ctx.rows), None


def bits(tensors: Sequence[Tensor]) -> int:
    """The sum of the bits, 16 at a time, of floating point tensors: equal for equal tensors, else hardly ever."""
    sums = [tensor.detach().flatten().view(torch.int16).sum(dtype=torch.int64) for tensor in tensors]
    return int(torch.stack(sums).sum())
