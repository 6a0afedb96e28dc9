"""CLIP (Radford et al. 2021), image tower only: patch tokens and candidate embeddings in the joint space.

    tokens       [C, S/16, S/16]   patch tokens after the last block and norm, projected, resampled to the canvas grid
    candidates   [K, C]            L2-normalised embedding of the photo seen through each candidate's soft mask

A candidate's soft mask is its SAM mask blurred by a Gaussian; outside it the canvas fades to the letterbox grey.
"""

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor

from ...shards.codec import unpack_masks
from ...shards.geometry import PADDING
from ..config import ClipConfig, PipelineConfig
from ..images import Photo
from .dino import build_vit
from .weights import frozen

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def build_clip(config: ClipConfig) -> VisionTransformer:
    """The image tower of `config`, without weights; its head is the projection to the joint space.

    It sees squares of any size: timm resamples the position table (bicubic, antialiased) where they have another grid.
    """
    table_px = config.table_px or config.input_px
    return build_vit(config.model, table_px, config.channels, {"dynamic_img_size": True, **config.options})


def clip_pixels(squares: np.ndarray, device: str) -> Tensor:
    """Squares [B, s, s, 3] of 0..255 as float32 [B, 3, s, s], normalised as CLIP's inputs are."""
    x = torch.from_numpy(np.ascontiguousarray(squares)).to(device).permute(0, 3, 1, 2).float() / 255
    mean = torch.tensor(CLIP_MEAN, device=device).view(1, 3, 1, 1)
    std = torch.tensor(CLIP_STD, device=device).view(1, 3, 1, 1)
    return (x - mean) / std


def joint_tokens(net: VisionTransformer, x: Tensor) -> Tensor:
    """Every token of images [B, 3, s, s] in the joint space: [B, prefix + patches, C]."""
    return net.head(net.fc_norm(net.forward_features(x)))


def soft_views(canvas: np.ndarray, masks: np.ndarray, softness_px: float, view_px: int) -> np.ndarray:
    """The canvas through each candidate's soft mask: [K, view_px, view_px, 3] uint8.

    canvas: [S, S, 3] uint8; masks: [K, S, S] of 0 and 1.
    """
    grey = np.float32(PADDING)
    views = np.empty((len(masks), view_px, view_px, 3), np.uint8)
    for k, mask in enumerate(masks):
        soft = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), softness_px)[..., None]
        seen = soft * canvas + (1 - soft) * grey
        views[k] = cv2.resize(seen, (view_px, view_px), interpolation=cv2.INTER_AREA).round().astype(np.uint8)
    return views


class ClipEncoder:
    """Stage `clip`: projected patch tokens and candidate embeddings."""

    def __init__(self, config: PipelineConfig, device: str) -> None:
        self.batch = config.clip.batch
        self._config = config
        self._device = device
        self._net = frozen(build_clip(config.clip), config.clip.checkpoint, device)

    @torch.inference_mode()
    def encode(self, photos: list[Photo], inputs: list[dict[str, np.ndarray]]) -> list[dict[str, np.ndarray]]:
        """Fields tokens and candidates of each photo. `inputs` needs detect.boxes (for K) and masks.bits."""
        net, clip, side = self._net, self._config.clip, self._config.side_px
        canvases = [photo.letterbox.image(photo.rgb) for photo in photos]
        squares = [photo.letterbox.image(photo.rgb, clip.input_px) for photo in photos]
        tokens = joint_tokens(net, clip_pixels(np.stack(squares), self._device))[:, net.num_prefix_tokens :]
        grid = clip.input_px // net.patch_embed.patch_size[0]
        maps = tokens.transpose(1, 2).unflatten(2, (grid, grid))
        size = (side // 16, side // 16)
        maps = F.interpolate(maps, size, mode="bilinear", align_corners=False, antialias=True)
        records = []
        for canvas, patches, columns in zip(canvases, maps, inputs, strict=True):
            packed = unpack_masks(columns["masks.bits"], len(columns["detect.boxes"]), side)
            masks = np.unpackbits(packed, axis=-1)
            views = soft_views(canvas, masks, clip.softness_px, clip.candidate_px)
            embedding = F.normalize(net(clip_pixels(views, self._device)), dim=-1)
            records.append({"tokens": patches.cpu().numpy(), "candidates": embedding.cpu().numpy()})
        return records
