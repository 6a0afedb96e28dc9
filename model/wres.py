"""Segmentation: the sentence modulates three scales, which become the logits of one mask.

Axes: B batch, R width of the head, D width of the sentence vector, N cells of the stride-8 map, h attention heads,
d = R / h. The steps are those of section 11 of the method page.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .batch import of_owner
from .fusion import SLOPE, ConvBlock, MultiScaleFusion
from .precision import wide


class Modulation(nn.Module):
    """One scale times the sentence, each after its own 1 x 1 convolution, BatchNorm and LeakyReLU.

    On the text side a BatchNorm sees one value an expression, so training needs two expressions at least, and a batch
    is never split (quirk 31).
    """

    def __init__(self, visual_dim: int, text_dim: int, width: int) -> None:
        super().__init__()
        self.visual = nn.Conv2d(visual_dim, width, 1)
        self.visual_norm = nn.BatchNorm2d(width)
        self.textual = nn.Conv2d(text_dim, width, 1)
        self.textual_norm = nn.BatchNorm2d(width)
        self.norm = nn.BatchNorm2d(width)

    def forward(
        self, visual: Tensor, text: Tensor, *, owner: Tensor | None = None, added: Tensor | None = None
    ) -> Tensor:
        """The map of each sentence: [B, R, H, W].

        visual: [I, C, H, W], of I images; text: [B, D]. owner: int64 [B], the image of each sentence; None: one each.
        added: [I, R, H, W], what the convolution would give for something that is to be added to `visual`.
        """
        seen = self.visual(visual)
        seen = F.leaky_relu(self.visual_norm(seen if added is None else seen + added), SLOPE, inplace=True)
        seen = of_owner(seen, owner)
        said = F.leaky_relu(self.textual_norm(self.textual(text[:, :, None, None])), SLOPE, inplace=True)
        return F.leaky_relu(self.norm(seen * said), SLOPE, inplace=True)


class CollectDiffuse(nn.Module):
    """Collects one vector from the whole map and spreads it where a gate is open.

    pooled = sum_n softmax_n(q k_c(n) / tau) v(n), gate(n) = sigmoid(q k_d(n) / tau), tau = sqrt(d), a head each;
    Z = leaky(BN(W gate(n) pooled) + Y). The gate is used with rows and columns exchanged: an axis slip of the authors
    that square maps hide and that every released weight was trained with (quirk 2).

    Keys, values and the output are 1 x 1 convolutions whose maps are never needed: a key meets one query an image, and
    the result has rank one a head. Folding the query into the keys and the pooled vector into the output gives the same
    numbers without a map of R channels.
    """

    def __init__(self, text_dim: int, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(text_dim, width)
        self.collect_key = nn.Conv2d(width, width, 1)
        self.diffuse_key = nn.Conv2d(width, width, 1)
        self.value = nn.Conv2d(width, width, 1)
        self.merge = nn.Conv2d(width, width, 1)
        self.norm = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)

    def _scores(self, key: nn.Conv2d, query: Tensor, cells: Tensor) -> Tensor:
        """query: [B, h, d]; cells: [B, R, N]; returns [B, h, N]."""
        weight, bias = self._by_head(key)
        folded = torch.einsum("bhd,hdr->bhr", query, weight)
        scores = folded @ cells + torch.einsum("bhd,hd->bh", query, bias)[..., None]
        return scores / math.sqrt(query.shape[-1])

    def _by_head(self, layer: nn.Conv2d) -> tuple[Tensor, Tensor]:
        """Weight [h, d, R] and bias [h, d] of a 1 x 1 convolution."""
        assert layer.bias is not None
        return layer.weight.flatten(1).unflatten(0, (self.heads, -1)), layer.bias.unflatten(0, (self.heads, -1))

    def forward(self, visual: Tensor, text: Tensor) -> Tensor:
        """visual: [B, R, H, W] with H = W; text: [B, D]; returns [B, R, H, W]."""
        cells = visual.flatten(2)  # [B, R, N]
        query = self.query(text).unflatten(-1, (self.heads, -1))  # [B, h, d]
        attention = self.dropout(wide(self._scores(self.collect_key, query, cells)).softmax(dim=-1))  # [B, h, N]
        gate = self.dropout(wide(self._scores(self.diffuse_key, query, cells)).sigmoid())  # [B, h, N]
        gate = gate.unflatten(-1, visual.shape[-2:]).transpose(-1, -2).flatten(-2)

        weight, bias = self._by_head(self.value)
        collected = attention @ cells.transpose(1, 2)  # [B, h, R]
        # After dropout the attention no longer sums to 1, so the bias counts as often as a cell was kept.
        pooled = torch.einsum("hdr,bhr->bhd", weight, collected) + attention.sum(dim=-1)[..., None] * bias
        spread = torch.einsum("rhd,bhd->brh", self.merge.weight.flatten(1).unflatten(1, (self.heads, -1)), pooled)
        merged = (spread @ gate).unflatten(-1, visual.shape[-2:]) + self._column(self.merge.bias)  # [B, R, H, W]
        return F.leaky_relu(self.norm(merged) + visual, SLOPE, inplace=True)

    @staticmethod
    def _column(bias: Tensor | None) -> Tensor:
        assert bias is not None
        return bias[:, None, None]


class Pyramid(nn.Module):
    """Atrous spatial pyramid (ASPP): one cell, three dilated neighbourhoods and the mean of all, then one channel."""

    def __init__(self, width: int, dilations: Sequence[int]) -> None:
        super().__init__()
        self.point = ConvBlock(width, width, 1)
        self.dilated = nn.ModuleList(ConvBlock(width, width, 3, dilation) for dilation in dilations)
        self.overall = ConvBlock(width, width, 1)
        self.project = nn.Conv2d((2 + len(dilations)) * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, R, H, W]; returns [B, 1, H, W].

        The last convolution is taken branch by branch, so that no map of all their channels is made.
        """
        assert self.project.bias is not None
        weights = self.project.weight.flatten(1).chunk(2 + len(self.dilated), dim=1)  # [1, R] each
        *maps, overall = zip(weights, (self.point, *self.dilated, self.overall), strict=True)
        weight, block = overall
        logits = wide(weight @ block(x.mean(dim=(2, 3), keepdim=True)).flatten(2)) + self.project.bias  # [B, 1, 1]
        for weight, block in maps:
            logits = logits + wide(weight @ block(x).flatten(2))  # [B, 1, N]
        return logits.unflatten(2, x.shape[2:])


class MaskHead(nn.Module):
    """Logits of the mask of a sentence, from the three enhanced scales."""

    def __init__(
        self,
        *,
        visual_dim: int,
        text_dim: int,
        width: int,
        heads: int,
        dilations: Sequence[int],
        dropout: float,
    ) -> None:
        super().__init__()
        self.modulate = nn.ModuleList(Modulation(visual_dim, text_dim, width) for _ in range(3))
        self.fusion = MultiScaleFusion((width, width, width), width, outputs=("s8",))
        self.attention = CollectDiffuse(text_dim, width, heads, dropout)
        self.pyramid = Pyramid(width, dilations)

    @property
    def first_weight(self) -> Tensor:
        """[R, C], the convolution that the finest map meets first."""
        finest = self.modulate[0]
        assert isinstance(finest, Modulation)
        return finest.visual.weight.flatten(1)

    def forward(
        self,
        s8: Tensor,
        s16: Tensor,
        s32: Tensor,
        text: Tensor,
        *,
        owner: Tensor | None = None,
        added: Tensor | None = None,
    ) -> Tensor:
        """The mask of each sentence as float [B, S, S], on the canvas.

        s8, s16, s32: [I, C, H, W] each, of I images; text: [B, D]; owner, and added to the first scale: as `Modulation`
        has them. The enlargement is bilinear with aligned corners (quirk 3).
        """
        modulated = [
            layer(x, text, owner=owner, added=extra)
            for layer, x, extra in zip(self.modulate, (s8, s16, s32), (added, None, None), strict=True)
        ]
        (fine,) = self.fusion(*modulated, outputs=("s8",))
        logits = self.pyramid(self.attention(fine, text))  # [B, 1, S/8, S/8]
        return F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=True).squeeze(1)
