"""EfficientSAM (Xiong et al. 2024), Ti and S: the segmenter of the paper, on the canvas itself.

A plain ViT (every block attends over the whole image) under SAM's two-way mask decoder. Module names are those of the
published state dict, so that its files load strictly. It differs from SAM's decoder where a reader would not look:
GELU throughout; a token's position encoding stays in its residual and in its values; no dense prompt; no mask input.
Run at 416 pixels as in WeakMCN's release (method sections 6, 11 and quirk 14), not at the published 1024.

    image       float32 [B, 3, S, S]     0..1, ImageNet mean and deviation taken off
    embedding   float32 [B, C, G, G]     G = S / 16: the decoder's own input, and what the store keeps
    boxes       float32 [n, 4]           x0 y0 x1 y1 in pixels of that image
"""

import math
from collections import OrderedDict
from itertools import pairwise
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from segment_anything.modeling.transformer import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ..config import SamConfig
from ..images import Photo
from .weights import frozen
from .yolov3 import normalised

TABLE_GRID = 14
"""Side of the published position table: 224 pixels in patches of 16."""
PROMPT_POINTS = 6
"""Points a prompt is padded to."""
MASKS = 4
"""Outputs of the decoder; the first answers unambiguous prompts and is left out."""


class VitNorm(nn.LayerNorm):
    """LayerNorm with the epsilon of the published vision transformers."""

    def __init__(self, width: int, **placement: Any) -> None:
        super().__init__(width, eps=1e-6, **placement)


class ImageEncoder(nn.Module):
    """Images [B, 3, S, S] to embeddings [B, C, G, G]."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        width, channels = config.embed_dim, config.channels
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + TABLE_GRID**2, width))  # a class token's first; unused
        self.patch_embed = nn.Sequential(OrderedDict(proj=nn.Conv2d(3, width, config.patch_px, config.patch_px)))
        self.blocks = nn.Sequential(
            *(Block(width, config.heads, qkv_bias=True, norm_layer=VitNorm) for _ in range(config.depth))
        )
        self.neck = nn.Sequential(
            nn.Conv2d(width, channels, 1, bias=False),
            LayerNorm2d(channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            LayerNorm2d(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patch_embed(x)  # [B, D, G, G]
        patches = patches + position_map(self.pos_embed, patches.shape[-1])
        tokens = self.blocks(patches.flatten(2).transpose(1, 2))  # [B, G * G, D]
        return self.neck(tokens.transpose(1, 2).unflatten(2, patches.shape[2:]))


def position_map(table: Tensor, grid: int) -> Tensor:
    """The position table [1, 1 + T * T, D], class token dropped, brought bicubically to [1, D, grid, grid]."""
    side = math.isqrt(table.shape[1] - 1)
    square = table[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    return square if side == grid else F.interpolate(square, (grid, grid), mode="bicubic", align_corners=False)


class PromptEncoder(nn.Module):
    """Boxes [n, 4] to prompt tokens [n, 6, C]: two corners, then points that stand for none."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.pe_layer = PositionEmbeddingRandom(channels // 2)
        self.invalid_points = nn.Embedding(1, channels)
        self.point_embeddings = nn.Embedding(1, channels)  # of clicked points, which are never given here
        self.bbox_top_left_embeddings = nn.Embedding(1, channels)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, channels)

    def forward(self, boxes: Tensor, image_px: int) -> Tensor:
        spare = PROMPT_POINTS - 2
        points = F.pad(boxes.reshape(-1, 2, 2), (0, 0, 0, spare), value=-1.0)  # [n, 6, 2]
        kinds = torch.cat(
            [
                self.bbox_top_left_embeddings.weight,
                self.bbox_bottom_right_embeddings.weight,
                self.invalid_points.weight.expand(spare, -1),
            ]
        )  # [6, C]
        return self.pe_layer.forward_with_coords(points + 0.5, (image_px, image_px)) + kinds


class Perceptron(nn.Module):
    """`layers` times linear and GELU, then a linear layer to `outputs`."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = pairwise([inputs] + [hidden] * layers)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(a, b), nn.GELU()) for a, b in widths))
        self.fc = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x))


class TwoWayBlock(nn.Module):
    """Tokens attend to each other and to the image, then the image to the tokens."""

    def __init__(self, channels: int, heads: int, hidden: int, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(channels, heads)
        self.norm1 = nn.LayerNorm(channels)
        self.cross_attn_token_to_image = Attention(channels, heads, downsample_rate=2)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = Perceptron(channels, hidden, channels, layers=1)
        self.norm3 = nn.LayerNorm(channels)
        self.norm4 = nn.LayerNorm(channels)
        self.cross_attn_image_to_token = Attention(channels, heads, downsample_rate=2)

    def forward(self, tokens: Tensor, image: Tensor, prompts: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens [n, t, C] and image [n, G * G, C]; `prompts` (the first tokens) and `places` tell where they stand."""
        if not self.first:
            tokens = tokens + prompts
        tokens = self.norm1(tokens + self.self_attn(tokens, tokens, tokens))
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + prompts, image + places, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        return tokens, self.norm4(image + self.cross_attn_image_to_token(image + places, tokens + prompts, tokens))


class TwoWayTransformer(nn.Module):
    """Two blocks and a last look of the tokens at the image."""

    def __init__(self, channels: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(channels, heads, hidden, first=first) for first in (True, False))
        self.final_attn_token_to_image = Attention(channels, heads, downsample_rate=2)
        self.norm_final_attn = nn.LayerNorm(channels)

    def forward(self, prompts: Tensor, image: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        tokens = prompts
        for layer in self.layers:
            tokens, image = layer(tokens, image, prompts, places)
        tokens = tokens + self.final_attn_token_to_image(tokens + prompts, image + places, image)
        return self.norm_final_attn(tokens), image


class MaskDecoder(nn.Module):
    """Prompt tokens and one image's embedding to mask logits and predicted IoU."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        channels = config.channels
        self.transformer = TwoWayTransformer(channels, config.decoder_heads, config.decoder_mlp)
        self.iou_token = nn.Embedding(1, channels)
        self.mask_tokens = nn.Embedding(MASKS, channels)
        half, thin = channels // 4, channels // 8
        self.final_output_upscaling_layers = nn.Sequential(
            nn.Sequential(nn.ConvTranspose2d(channels, half, 2, 2), nn.GroupNorm(1, half), nn.GELU()),
            nn.Sequential(nn.ConvTranspose2d(half, thin, 2, 2), nn.GELU()),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            Perceptron(channels, channels, thin, layers=2) for _ in range(MASKS)
        )
        self.iou_prediction_head = Perceptron(channels, channels, MASKS, layers=2)

    def forward(self, embedding: Tensor, places: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, 4, 4G, 4G] and predicted IoU [n, 4] of prompts [n, 6, C].

        embedding: [C, G, G] of one image; places: [C, G, G], position encoding of its cells.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])  # [1 + 4, C]
        tokens = torch.cat([own.expand(len(prompts), -1, -1), prompts], dim=1)
        image = embedding.flatten(1).T.expand(len(prompts), -1, -1)  # [n, G * G, C]
        tokens, image = self.transformer(tokens, image, places.flatten(1).T)
        large = self.final_output_upscaling_layers(image.transpose(1, 2).unflatten(2, embedding.shape[1:]))
        filters = [mlp(tokens[:, 1 + k]) for k, mlp in enumerate(self.output_hypernetworks_mlps)]
        logits = torch.einsum("nmc,nchw->nmhw", torch.stack(filters, dim=1), large)
        return logits, self.iou_prediction_head(tokens[:, 0])


class EfficientSam(nn.Module):
    """The whole network; keys and shapes of Ti and S are the published ones."""

    def __init__(self, config: SamConfig) -> None:
        super().__init__()
        self.image_px = config.image_px
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config.channels)
        self.mask_decoder = MaskDecoder(config)

    def decode(self, embedding: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [n, 3, 4G, 4G] and predicted IoU [n, 3] of n boxes [n, 4] on one image [C, G, G]."""
        places = self.prompt_encoder.pe_layer(embedding.shape[1:])
        logits, iou = self.mask_decoder(embedding, places, self.prompt_encoder(boxes, self.image_px))
        return logits[:, 1:], iou[:, 1:]


class EfficientSamModel:
    """A frozen EfficientSAM on one device, with the methods of `sam.SamModel`."""

    def __init__(self, config: SamConfig, device: str) -> None:
        self.config = config
        self.device = device
        self.net = frozen(EfficientSam(config), config.checkpoint, device, prefix="efficientsam.")

    def embed(self, photos: list[Photo]) -> Tensor:
        """Image embeddings [B, C, G, G]."""
        squares = np.stack([photo.letterbox.image(photo.rgb, self.config.image_px) for photo in photos])
        return self.net.image_encoder(normalised(squares, self.device))

    def masks(self, embedding: Tensor, boxes_canvas: np.ndarray, side_px: int) -> tuple[Tensor, Tensor]:
        """Masks bool [K, S, S] and predicted IoU [K] for boxes [K, 4] (x0 y0 x1 y1, canvas pixels) of one image.

        embedding: [C, G, G]. Of the three masks the one of best predicted IoU; logits are resampled bicubically and a
        pixel belongs to the mask where they are not negative (method section 11).
        """
        boxes = torch.from_numpy(boxes_canvas).to(self.device) * (self.config.image_px / side_px)
        masks, ious = [], []
        for chunk in boxes.split(self.config.boxes_chunk):
            logits, iou = self.net.decode(embedding, chunk)
            best = iou.argmax(dim=1)
            low = logits[torch.arange(len(best), device=best.device), best][:, None]  # [n, 1, 4G, 4G]
            masks.append(F.interpolate(low, (side_px, side_px), mode="bicubic", align_corners=False)[:, 0] >= 0)
            ious.append(iou.amax(dim=1))
        return torch.cat(masks), torch.cat(ious)
