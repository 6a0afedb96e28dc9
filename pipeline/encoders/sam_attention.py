"""SAM's attention with relative positions (Li et al. 2022), a few rows of queries at a time.

The published code holds all scores of an image at once and copies them for each of the two position terms: 0.8 to
1.1 GB a copy where a block of ViT-B, L or H attends over the whole 1024 pixel image. Every row of queries is a softmax
of its own, so taking them in turn gives the same numbers from scores that stay small; adding the terms in place spares
the copies.
"""

import torch
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn

MAX_SCORES = 6 << 20
"""Scores held at once, where a single row of queries does not need more: 24 MiB, small enough for malloc to reuse."""


class RelativeAttention(nn.Module):
    """Multi-head attention over maps [B, H, W, C], with the weights of a published module under their own names.

    The score of query (y, x) and key (v, u) is q k / sqrt(d) + q r_h[y - v] + q r_w[x - u], with d = C / heads.
    """

    def __init__(self, published: Attention) -> None:
        super().__init__()
        self.heads = published.num_heads
        self.qkv, self.proj = published.qkv, published.proj
        self.rel_pos_h, self.rel_pos_w = published.rel_pos_h, published.rel_pos_w

    def forward(self, x: Tensor) -> Tensor:
        batch, height, width, _ = x.shape
        parts = self.qkv(x).view(batch, height * width, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        query, key, value = parts.flatten(1, 2).unbind()  # [B * h, H * W, d] each
        rows = query.unflatten(1, (height, width))
        by_row = torch.einsum("nyxd,yvd->nyxv", rows, _relative(self.rel_pos_h, height))  # [B * h, H, W, H]
        by_column = torch.einsum("nyxd,xud->nyxu", rows, _relative(self.rel_pos_w, width))  # [B * h, H, W, W]

        query = query * query.shape[-1] ** -0.5
        step = max(1, MAX_SCORES // (len(query) * width * height * width))
        seen = []
        for top in range(0, height, step):
            few = slice(top, top + step)
            scores = query[:, top * width : (top + step) * width] @ key.transpose(1, 2)  # [B * h, few * W, H * W]
            grid = scores.view(len(query), -1, width, height, width)
            grid.add_(by_row[:, few, :, :, None]).add_(by_column[:, few, :, None, :])
            seen.append(scores.softmax(dim=-1) @ value)
        merged = torch.cat(seen, dim=1).unflatten(0, (batch, self.heads)).transpose(1, 2)  # [B, H * W, h, d]
        return self.proj(merged.reshape(x.shape))


def _relative(table: Tensor, side: int) -> Tensor:
    """The vector of every query's distance to every key along one axis: [side, side, d]; table: [2 * side - 1, d]."""
    place = torch.arange(side, device=table.device)
    return table[place[:, None] - place + side - 1]
