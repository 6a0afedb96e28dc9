"""DINO (Caron et al. 2021; Oquab et al. 2023; Siméoni et al. 2025): patch tokens of a timm ViT, on their grid.

The canvas is resampled bilinearly, without antialiasing, to `input_px` (364 = 26 patches of 14 for DINOv2, so that the
tokens fall on the same 26x26 grid as the stride-16 map; 416 for DINOv3, whose patches have 16); tokens are taken after
the final norm, class and register tokens dropped. Weights come as timm, Meta or transformers name them.
"""

import math
import re
from functools import partial
from typing import Any

import numpy as np
import timm
import torch
import torch.nn.functional as F
from timm.models import Eva, VisionTransformer
from torch import Tensor

from ...shards.errors import ConfigError
from ..config import DinoConfig, PipelineConfig
from ..images import Photo
from .weights import frozen
from .yolov3 import normalised

Backbone = VisionTransformer | Eva
"""What timm builds: DINO and DINOv2 are plain vision transformers, DINOv3 (rotary positions) is its Eva."""

_TRANSFORMERS = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.(?:attention\.)?(query|key|value|q_proj|k_proj|v_proj)\.", r".attn.\1."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
"""From transformers' names for DINOv2 (4.x, and 5.x with its q_proj, o_proj) to Meta's, step by step."""
_TRANSFORMERS_V3 = (
    (r"^embeddings\.patch_embeddings\.", "patch_embed.proj."),
    (r"^embeddings\.register_tokens$", "storage_tokens"),
    (r"^embeddings\.", ""),
    (r"^(?:model\.)?layer\.", "blocks."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"\.mlp\.up_proj\.", ".mlp.fc1."),
    (r"\.mlp\.down_proj\.", ".mlp.fc2."),
)
"""The same for DINOv3."""
_TRIPLES = (("query", "key", "value"), ("q_proj", "k_proj", "v_proj"))


def build_vit(model: str, input_px: int, outputs: int, options: dict[str, Any]) -> VisionTransformer:
    """timm's network `model` at `input_px`, with a head of `outputs` (0: none); never fetches weights."""
    net = timm.create_model(model, pretrained=False, img_size=input_px, num_classes=outputs, **options)
    if not isinstance(net, VisionTransformer):
        raise ConfigError(f"timm's {model} is no plain vision transformer; name one with patch tokens")
    return net


def build_dino(config: DinoConfig) -> VisionTransformer:
    """The DINO backbone of `config`, without weights, where it is a plain vision transformer (DINO, DINOv2)."""
    return build_vit(config.model, config.input_px, 0, config.options)


def build_backbone(config: DinoConfig) -> Backbone:
    """The backbone of `config`, without weights, DINOv3's rotary transformer too."""
    options: dict[str, Any] = config.options
    net = timm.create_model(config.model, pretrained=False, img_size=config.input_px, num_classes=0, **options)
    if not isinstance(net, Backbone):
        raise ConfigError(f"dino.model={config.model} gives no patch tokens; name a DINO, DINOv2 or DINOv3 of timm.")
    return net


def patch_tokens(net: Backbone, x: Tensor) -> Tensor:
    """Patch tokens [B, C, G, G] of images [B, 3, H, W], after the final norm."""
    tokens = net.forward_features(x)[:, net.num_prefix_tokens :]
    return tokens.transpose(1, 2).unflatten(2, net.patch_embed.grid_size)


def timm_state(state: dict[str, Tensor], net: Backbone, resampling: str) -> dict[str, Tensor]:
    """A published DINO state dict in the keys of `net`, its position table on the grid of `net`.

    Understood are timm's own names, Meta's and transformers'. What is not understood is passed on, for the strict
    loader to name.
    """
    if "embeddings.cls_token" in state:
        state = _from_transformers(state)
    state = {key: value for key, value in state.items() if key != "mask_token"}
    if "storage_tokens" in state:
        return _from_dinov3(state)
    table = state.get("pos_embed")
    if table is None or net.pos_embed is None:
        return state
    if "register_tokens" in state:  # timm keeps position tables of these without the class token's
        state["reg_token"] = state.pop("register_tokens")
        state["cls_token"] = state["cls_token"] + table[:, :1]
        table = table[:, 1:]
    if net.num_prefix_tokens > 1:
        resampling = "antialias"  # networks with registers have had this one recipe from the first
    prefixes = 0 if net.no_embed_class else net.num_prefix_tokens
    return state | {"pos_embed": position_table(table, prefixes, net.patch_embed.grid_size[0], resampling)}


def position_table(table: Tensor, prefixes: int, grid: int, resampling: str = "meta") -> Tensor:
    """A position table [1, prefixes + n * n, C] on another grid: [1, prefixes + grid * grid, C]; its own is left as is.

    "meta" is the recipe of DINOv2's release, and of transformers up to 4.47: bicubic with the scale (grid + 0.1) / n,
    which shifts every sample a little. The paper's features were made with it (method section 6, quirk 13). "size" is
    that of later transformers: bicubic to exactly `grid`; "antialias" is the same with a filter as wide as the step.
    """
    side = math.isqrt(table.shape[1] - prefixes)
    if side == grid or side * side != table.shape[1] - prefixes:
        return table
    square = table[:, prefixes:].transpose(1, 2).unflatten(2, (side, side)).float()
    bicubic = partial(F.interpolate, square, mode="bicubic", align_corners=False)
    scale = (grid + 0.1) / side
    if resampling == "meta":
        moved = bicubic(scale_factor=(scale, scale))
    else:
        moved = bicubic(size=(grid, grid), antialias=resampling == "antialias")
    return torch.cat([table[:, :prefixes], moved.flatten(2).transpose(1, 2)], dim=1)


def _from_transformers(state: dict[str, Tensor]) -> dict[str, Tensor]:
    patterns = _TRANSFORMERS if "embeddings.position_embeddings" in state else _TRANSFORMERS_V3
    named = {}
    for key, value in state.items():
        for pattern, replacement in patterns:
            key = re.sub(pattern, replacement, key)
        named[key] = value
    for first in [key for key in named if re.search(r"\.attn\.(query|q_proj)\.", key)]:
        names = next(names for names in _TRIPLES if f".{names[0]}." in first)
        keys = [first.replace(f".{names[0]}.", f".{name}.") for name in names]
        if all(key in named for key in keys):
            named[first.replace(f".{names[0]}.", ".qkv.")] = torch.cat([named.pop(key) for key in keys])
    return named


def _from_dinov3(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's DINOv3 in timm's names. timm has no bias on queries, keys and values: those published are zero."""
    kept = {}
    for key, value in state.items():
        zero_bias = re.search(r"\.attn\.(qkv|[qkv]_proj)\.bias$", key) and not value.any()
        if zero_bias or key.endswith((".bias_mask", "rope_embed.periods")):
            continue
        key = re.sub(r"\.ls([12])\.gamma$", r".gamma_\1", key)
        kept["reg_token" if key == "storage_tokens" else key] = value
    return kept


class DinoEncoder:
    """Stage `dino`: patch tokens on the canvas grid [C, S/16, S/16]."""

    def __init__(self, config: PipelineConfig, device: str) -> None:
        dino = config.dino
        self.batch = dino.batch
        self._input_px = dino.input_px
        self._device = device
        net = build_backbone(dino)
        tokens = net.patch_embed.grid_size[0]
        if tokens != config.side_px // 16:
            raise ConfigError(
                f"dino.input_px={self._input_px} gives {tokens} patches a side, the canvas grid has "
                f"{config.side_px // 16}; choose {self._input_px // tokens * (config.side_px // 16)}."
            )
        convert = partial(timm_state, net=net, resampling=dino.position_resampling)
        self._net = frozen(net, dino.checkpoint, device, prefix="dino_model.", convert=convert)

    @torch.inference_mode()
    def encode(self, photos: list[Photo], inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Field tokens of each photo. `inputs` is not read."""
        del inputs
        x = normalised(np.stack([photo.letterbox.image(photo.rgb) for photo in photos]), self._device)
        if x.shape[-1] != self._input_px:
            x = F.interpolate(x, (self._input_px, self._input_px), mode="bilinear", align_corners=False)
        return [{"tokens": tokens.cpu().numpy()} for tokens in patch_tokens(self._net, x)]
