"""From token ids to one sentence vector: word table, GRU, self-attention, attentive pooling.

Axes: B batch, L tokens, D width of the sentence vector, h heads. Pads (id 0) stand to the right. They never change the
result (the GRU is causal, keys are masked), so a batch may be cut to its longest expression without any effect. The one
exception is an expression without words: there every pad gets the same weight, so L must stay what it was trained with.
"""

import math

import torch
from torch import Tensor, nn

from ..shards.errors import ConfigError
from .config import ModelConfig

PAD = 0
MASKED = -1e9
"""Score of a pad. Finite on purpose: a row of pads only then softens to equal weights instead of NaN."""


class SampleNorm(nn.Module):
    """Layer normalisation as the authors wrote it: w (x - mean) / (std + 1e-6) + b.

    Differs from `nn.LayerNorm` twice, which trained weights notice (quirk 4): the standard deviation is the unbiased
    one, and the small constant is added outside of the root.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., D]."""
        std, mean = torch.std_mean(x, dim=-1, keepdim=True)
        return self.weight * (x - mean) / (std + 1e-6) + self.bias


class SelfAttention(nn.Module):
    """Multi-head attention of a sequence to itself, with dropout on the attention map."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.merge = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, pads: Tensor) -> Tensor:
        """x: [B, L, D]; pads: bool [B, L]; returns [B, L, D]."""
        query, key, value = (
            linear(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # [B, h, L, D/h]
            for linear in (self.query, self.key, self.value)
        )
        scores = query @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])  # [B, h, L, L]
        weights = scores.masked_fill(pads[:, None, None, :], MASKED).softmax(dim=-1)
        return self.merge((self.dropout(weights) @ value).transpose(1, 2).flatten(2))


class EncoderBlock(nn.Module):
    """Self-attention and a two-layer network, each added to its input and normalised afterwards."""

    def __init__(self, width: int, heads: int, ff_dim: int, dropout: float) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads, dropout)
        self.expand = nn.Linear(width, ff_dim)
        self.contract = nn.Linear(ff_dim, width)
        self.norm_attention = SampleNorm(width)
        self.norm_ff = SampleNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, pads: Tensor) -> Tensor:
        """x: [B, L, D]; pads: bool [B, L]; returns [B, L, D]."""
        x = self.norm_attention(x + self.dropout(self.attention(x, pads)))
        hidden = self.dropout(self.expand(x).relu())  # [B, L, ff_dim]
        return self.norm_ff(x + self.dropout(self.contract(hidden)))


class AttentivePool(nn.Module):
    """A learned weight for each token, the weighted sum of the tokens, a last linear layer."""

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.hidden = nn.Linear(width, hidden)
        self.score = nn.Linear(hidden, 1)
        self.merge = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, pads: Tensor) -> Tensor:
        """x: [B, L, D]; pads: bool [B, L]; returns [B, D]."""
        scores = self.score(self.dropout(self.hidden(x).relu())).squeeze(-1)  # [B, L]
        weights = scores.masked_fill(pads, MASKED).softmax(dim=-1)
        return self.merge(torch.einsum("bl,bld->bd", weights, x))


class TextEncoder(nn.Module):
    """The sentence vector of section 4 of the method page.

    words: float [vocabulary_size, word_dim], the vectors to start from; None draws them at random. They learn only
    where `train_words` is set. `ConfigError` if the table has another shape.
    """

    def __init__(
        self,
        *,
        vocabulary_size: int,
        word_dim: int,
        width: int,
        heads: int,
        layers: int,
        ff_dim: int,
        flat_dim: int,
        dropout: float,
        train_words: bool = False,
        words: Tensor | None = None,
    ) -> None:
        super().__init__()
        if words is not None and words.shape != (vocabulary_size, word_dim):
            raise ConfigError(
                f"The word table has shape {list(words.shape)}; a vocabulary of {vocabulary_size} words of "
                f"word_dim={word_dim} needs {[vocabulary_size, word_dim]}."
            )
        weight = torch.empty(vocabulary_size, word_dim)
        if not weight.is_meta:  # torch imports its compiler to draw there: seconds
            weight.normal_()
        self.words = nn.Embedding(vocabulary_size, word_dim, _weight=weight)
        if words is not None:
            with torch.no_grad():
                self.words.weight.copy_(words)
        self.words.weight.requires_grad_(train_words)
        self.gru = nn.GRU(word_dim, width, batch_first=True)
        self.blocks = nn.ModuleList(EncoderBlock(width, heads, ff_dim, dropout) for _ in range(layers))
        self.pool = AttentivePool(width, flat_dim, dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: int64 [B, L]; returns [B, D]."""
        return self.pool(self.states(tokens), tokens == PAD)

    def states(self, tokens: Tensor) -> Tensor:
        """What is known of every word before the pooling; of a pad, nothing of use. int64 [B, L] to [B, L, D]."""
        pads = tokens == PAD
        x, _ = self.gru(self.words(tokens))  # [B, L, D]
        for block in self.blocks:
            x = block(x, pads)
        return x


def text_encoder(config: ModelConfig, vocabulary_size: int, words: Tensor | None) -> TextEncoder:
    """The sentence encoder of a configuration. words: float [vocabulary_size, word_dim], None for random vectors."""
    return TextEncoder(
        vocabulary_size=vocabulary_size,
        word_dim=config.word_dim,
        width=config.text_dim,
        heads=config.text_heads,
        layers=config.text_layers,
        ff_dim=config.text_ff_dim,
        flat_dim=config.text_flat_dim,
        dropout=config.dropout,
        train_words=config.train_words,
        words=words,
    )
