"""Maps with mean 0 and deviation 1 in every channel, by statistics of the training images.

They are measured once, before the first step of a run, and belong to the network: a checkpoint holds them.
"""

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from .batch import Batch
from .lessons import Lessons
from .loader import Loader
from .progress import counted

CHUNK = 64
"""Images measured at a time."""
SILENT = 1e-3
"""A channel whose deviation is below this share of the mean one says nothing, and becomes 0 everywhere."""


class Standardise(nn.Module):
    """Subtracts a channel's mean and divides by its deviation. channels: how many each field of a batch has."""

    def __init__(self, channels: Mapping[str, int]) -> None:
        super().__init__()
        self.fields = tuple(channels)
        for field, size in channels.items():
            self.register_buffer(f"{field}_mean", torch.zeros(size, 1, 1))
            self.register_buffer(f"{field}_scale", torch.ones(size, 1, 1))

    def forward(self, batch: Batch, field: str) -> Tensor:
        """The standardised map: [B, C, H, W], in the type of the statistics."""
        mean, scale = self.get_buffer(f"{field}_mean"), self.get_buffer(f"{field}_scale")
        return (getattr(batch, field).to(mean.dtype) - mean) * scale

    @torch.no_grad()
    def measure(self, batches: Iterable[Batch]) -> None:
        """Take the statistics of these images, every cell counted once; sums are kept in float64."""
        sums = {field: torch.zeros(()) for field in self.fields}
        squares, cells = dict(sums), dict.fromkeys(self.fields, 0)
        for batch in batches:
            for field in self.fields:
                x = getattr(batch, field).double()
                sums[field] = x.sum(dim=(0, 2, 3)) + sums[field].to(x.device)  # [C]
                squares[field] = x.square().sum(dim=(0, 2, 3)) + squares[field].to(x.device)
                cells[field] += x[:, 0].numel()
        for field, count in cells.items():
            mean = sums[field] / count
            deviation = (squares[field] / count - mean.square()).clamp(min=0).sqrt()
            silent = deviation <= SILENT * deviation.mean()
            scale = torch.where(silent, 0.0, 1 / deviation.masked_fill(silent, 1))
            self.get_buffer(f"{field}_mean").copy_(mean[:, None, None])
            self.get_buffer(f"{field}_scale").copy_(scale[:, None, None])


class MeasuredFirst(Lessons):
    """Lessons of a network with a `standardise`: its statistics are measured before the first step."""

    def begin(self, net: nn.Module) -> None:
        standardise = net.get_submodule("standardise")
        assert isinstance(standardise, Standardise)
        standardise.measure(self._images(standardise.fields))

    def _images(self, fields: tuple[str, ...]) -> Iterator[Batch]:
        """Every training image once, in the order of the keys."""
        keys = sorted(set(self.material.samples.keys))
        loader = Loader(self.material.store, fields, device=self.material.device)
        words = self.material.samples.tokens[0][:1]  # a batch has some
        with counted("measuring channels", len(keys)) as count:
            for start in range(0, len(keys), CHUNK):
                chunk = keys[start : start + CHUNK]
                yield loader.batch(chunk, words.repeat(len(chunk), axis=0))
                count(len(chunk))
