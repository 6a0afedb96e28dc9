"""Slots that share an image out among themselves, and the decoder that paints the image back from them.

The first half of Shatter & Gather, without the layers of the release that nothing reads.
Axes: B images, P = H W cells, D width of a slot, S = E k slots: E Gaussians with k slots each, beside one another; T
texts, C channels of the maps, h heads.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEADS = 4


class Attention(nn.Module):
    """Parts of multi-head attention: queries, keys and values without bias, one output layer.

    inner: width of all heads together.
    """

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__()
        self.query = nn.Linear(width, inner, bias=False)
        self.key = nn.Linear(width, inner, bias=False)
        self.value = nn.Linear(width, inner, bias=False)
        self.merge = nn.Linear(inner, width)
        self.dropout = nn.Dropout(dropout)

    @staticmethod
    def by_head(x: Tensor) -> Tensor:
        """[..., n, inner] to [..., h, n, inner / h]."""
        return x.unflatten(-1, (HEADS, -1)).transpose(-2, -3)

    def scores(self, query: Tensor, key: Tensor) -> Tensor:
        """Scaled products of what `by_head` gave: [..., h, n, m]."""
        return query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])

    def merged(self, heads: Tensor) -> Tensor:
        """[..., h, n, inner / h] to [..., n, width]."""
        return self.dropout(self.merge(heads.transpose(-2, -3).flatten(-2)))


class FeedForward(nn.Module):
    """Two layers behind a norm, to be added to what they read."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.contract(self.dropout(F.gelu(self.expand(self.norm(x))))))


class SiblingAttention(nn.Module):
    """Self-attention of the slots of one Gaussian: nothing passes between Gaussians."""

    def __init__(self, width: int, draws: int, dropout: float) -> None:
        super().__init__()
        self.draws = draws
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, width, dropout)

    def forward(self, slots: Tensor) -> Tensor:
        """slots: [B, S, D]; returns the same shape, to be added."""
        x = self.norm(slots).unflatten(1, (-1, self.draws))  # [B, E, k, D]
        attend = self.attention
        query, key, value = (attend.by_head(layer(x)) for layer in (attend.query, attend.key, attend.value))
        return attend.merged(attend.scores(query, key).softmax(dim=-1) @ value).flatten(1, 2)


class Shatter(nn.Module):
    """Finds the slots of an image, by a few rounds with shared weights."""

    def __init__(self, width: int, gaussians: int, draws: int, rounds: int, dropout: float) -> None:
        super().__init__()
        self.draws, self.rounds = draws, rounds
        self.mean = nn.Parameter(nn.init.xavier_uniform_(torch.empty(gaussians, width)))
        # So that a drawn slot is about as long as a unit vector, whatever the width.
        self.log_variance = nn.Parameter(nn.init.xavier_uniform_(torch.empty(gaussians, width)) - math.log(width))
        self.norm_slots = nn.LayerNorm(width)
        self.norm_cells = nn.LayerNorm(width)
        self.attention = Attention(width, 2 * width, dropout)
        self.first = FeedForward(width, dropout)
        self.siblings = SiblingAttention(width, draws, dropout)
        self.second = FeedForward(width, dropout)
        self.out = nn.Linear(width, width)
        self.norm_out = nn.LayerNorm(width)

    @property
    def noise_shape(self) -> tuple[int, int, int]:
        """E, k, D: of what an image's slots are drawn with."""
        return (len(self.mean), self.draws, self.mean.shape[1])

    def forward(self, cells: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """cells: [B, P, D]; noise: standard normal [B, E, k, D]. Without noise a Gaussian's slots would stay one.

        Returns the slots [B, S, D] and how the cells are shared among them, [B, S, P], a cell's shares summing to 1.
        """
        slots = (self.mean[:, None] + (self.log_variance[:, None] / 2).exp() * noise).flatten(1, 2)  # [B, S, D]
        attend = self.attention
        cells = self.norm_cells(cells)
        key, value = attend.by_head(attend.key(cells)), attend.by_head(attend.value(cells))  # [B, h, P, 2D/h]
        shares = slots.new_zeros(())
        for _ in range(self.rounds):
            query = attend.by_head(attend.query(self.norm_slots(slots)))  # [B, h, S, 2D/h]
            shares = attend.scores(query, key).softmax(dim=-2)  # over the slots: [B, h, S, P]
            slots = slots + attend.merged(shares / shares.sum(dim=-1, keepdim=True).clamp(min=1e-8) @ value)
            slots = slots + self.first(slots)
            slots = slots + self.siblings(slots)
            slots = slots + self.second(slots)
        return self.norm_out(self.out(slots)), shares.mean(dim=1)


class Painter(nn.Module):
    """Every slot paints every cell; where more than one does, a softmax over slots mixes. side: rows, and columns."""

    def __init__(self, width: int, side: int, channels: int) -> None:
        super().__init__()
        self.rows = nn.Parameter(torch.randn(side, width // 2) * 0.02)
        self.columns = nn.Parameter(torch.randn(side, width // 2) * 0.02)
        self.first = nn.Linear(width, width)
        self.others = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.paint = nn.Linear(width, channels + 1)

    def forward(self, slots: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """slots: [B, S, D]; size: H, W. Returns the painted maps [B, P, C] and the mixing weights [B, S, P].

        The first layer is applied to slots and to places before they are added, and the last one to the mixture: linear
        layers, so the numbers are the same, for a fraction of the work.
        """
        height, width = size
        rows = self.rows[:height, None].expand(height, width, -1)
        columns = self.columns[None, :width].expand(height, width, -1)
        places = torch.cat([rows, columns], dim=-1).flatten(0, 1)  # [P, D]
        hidden = F.relu(F.linear(slots, self.first.weight)[:, :, None] + self.first(places))  # [B, S, P, D]
        for layer in self.others:
            hidden = F.relu(layer(hidden))
        assert self.paint.bias is not None
        mixing = (hidden @ self.paint.weight[-1] + self.paint.bias[-1]).softmax(dim=1)  # [B, S, P]
        mixed = torch.einsum("bsp,bspd->bpd", mixing, hidden)
        return F.linear(mixed, self.paint.weight[:-1], self.paint.bias[:-1]), mixing


class Gather(nn.Module):
    """A text picks slots: cross-attention with the text as its only query."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_texts = nn.LayerNorm(width)
        self.norm_slots = nn.LayerNorm(width)
        self.attention = Attention(width, 2 * width, dropout)
        self.last = FeedForward(width, dropout)

    def forward(self, texts: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        """texts: [1 or B, T, D]; slots: [B, S, D].

        Returns what each text finds in each image, unit vectors [B, T, D], and its shares of the slots, [B, T, S],
        which sum to 1.
        """
        attend, slots = self.attention, self.norm_slots(slots)
        query = attend.by_head(attend.query(self.norm_texts(texts)))  # [1 or B, h, T, 2D/h]
        key, value = attend.by_head(attend.key(slots)), attend.by_head(attend.value(slots))
        shares = attend.scores(query, key).softmax(dim=-1)  # [B, h, T, S]
        found = texts + attend.merged(shares @ value)
        return F.normalize(found + self.last(found), dim=-1), shares.mean(dim=1)


def sine_places(height: int, width: int, like: Tensor) -> Tensor:
    """Fixed sines and cosines of row (first half) and column: [H W, D], with the width and type of `like` [..., D]."""
    quarter = like.shape[-1] // 4
    omega = 10000 ** (-torch.arange(quarter, dtype=like.dtype, device=like.device) / quarter)

    def waves(size: int) -> Tensor:
        angles = torch.arange(size, dtype=like.dtype, device=like.device)[:, None] * omega
        return torch.cat([angles.sin(), angles.cos()], dim=1)  # [size, D / 2]

    rows = waves(height)[:, None].expand(height, width, -1)
    columns = waves(width)[None].expand(height, width, -1)
    return torch.cat([rows, columns], dim=-1).flatten(0, 1)
