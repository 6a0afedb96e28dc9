"""The paper's frozen networks at their own sizes, with random weights, and what they say in the training loop.

`frozen_networks` builds them; `saved` puts their weights where `precompute` takes them from, in the layouts that are
published. `online_batch` is the authors' loop up to the heads: photograph, letterbox, the encoders' own forward, and
no store. Random weights are drawn so that nothing is degenerate: the detector's BatchNorm statistics are those of the
photographs (it would say the same everywhere), DINO's layers weigh as much as their residuals, and the segmenter's
layers are half as strong again as keeps the variance, so that masks follow their prompts.

Sizes: S = 416 canvas pixels, K = 17 candidates.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from weakmcn.model.batch import Batch
from weakmcn.pipeline.config import PipelineConfig, preset
from weakmcn.pipeline.encoders.efficient_sam import EfficientSam
from weakmcn.pipeline.encoders.yolov3 import YOLOv3
from weakmcn.pipeline.images import read_photo
from weakmcn.shards.geometry import Letterbox

SIDE, KEEP = 416, 17
SIZES = ((480, 640), (640, 427), (333, 500), (416, 416))
"""Rows and columns of the photographs: lying, standing, enlarged, square."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TABLE_GRID = 37
"""Side of DINOv2's published position table: 518 pixels in patches of 14."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Frozen:
    """The three networks as an online loop holds them."""

    detector: YOLOv3
    dino: nn.Module
    dino_table: Tensor
    """[1, 1 + 37 * 37, 768], DINOv2's position table as published; the network holds its resampled one."""
    segmenter: EfficientSam


@dataclass(frozen=True, kw_only=True, eq=False)
class Online:
    """A batch made in the loop; its masks are for the loop to draw."""

    batch: Batch
    prompts: Tensor
    """float32 [B, K, 4], x0 y0 x1 y1 of each candidate's box, clipped to the photo, canvas pixels."""


def photo_size(number: int) -> tuple[int, int]:
    """Rows and columns of photograph `number`, counted from 1; for `tiny.write_data`."""
    return SIZES[(number - 1) % len(SIZES)]


def frozen_networks(photos: Sequence[Path], seed: int = 0) -> Frozen:
    """The networks of preset refcoco with random weights, the detector's statistics those of `photos`."""
    torch.manual_seed(seed)
    config = preset("refcoco")
    detector = YOLOv3()
    for norm in detector.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        detector.train().features(_normalised(photos)[0])
    guide = detector.heads[32].guide_wh
    assert guide.bias is not None
    nn.init.constant_(guide.bias, 0.5)  # boxes a third of the canvas wide

    dino = timm.create_model(config.dino.model, pretrained=False, img_size=364, num_classes=0)
    for name, weight in dino.named_parameters():
        if name.endswith("gamma"):
            nn.init.uniform_(weight, 0.2, 1)
    table = 0.5 * torch.randn(1, 1 + TABLE_GRID**2, 768)
    square = table[:, 1:].reshape(1, TABLE_GRID, TABLE_GRID, 768).permute(0, 3, 1, 2)
    scale = (26 + 0.1) / TABLE_GRID  # the recipe of DINOv2's release
    moved = F.interpolate(square, scale_factor=(scale, scale), mode="bicubic", align_corners=False)
    dino.pos_embed.data = torch.cat([table[:, :1], moved.permute(0, 2, 3, 1).reshape(1, 26 * 26, 768)], dim=1)

    segmenter = EfficientSam(config.sam)
    for name, weight in segmenter.named_parameters():
        if name.endswith("pos_embed"):
            nn.init.normal_(weight, std=0.5)
        elif weight.ndim > 1 and "embed" not in name and "token" not in name:
            nn.init.normal_(weight, std=1.5 / math.sqrt(weight[0].numel()))
    return Frozen(detector=detector.eval(), dino=dino.eval(), dino_table=table, segmenter=segmenter.eval())


def saved(frozen: Frozen, folder: Path, *, batch: int, codec: str = "f32") -> PipelineConfig:
    """Write the weights into `folder`, in published layouts; settings of preset refcoco that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.safetensors" for name in ("detect", "dino", "sam")}
    mask_token = torch.zeros(1, 768)
    save_file(frozen.detector.state_dict(), files["detect"])
    save_file(frozen.dino.state_dict() | {"pos_embed": frozen.dino_table, "mask_token": mask_token}, files["dino"])
    save_file(frozen.segmenter.state_dict(), files["sam"])
    config = preset("refcoco")
    sections = {name: replace(getattr(config, name), checkpoint=str(path), batch=batch) for name, path in files.items()}
    return replace(config, codec=codec, images_per_shard=batch, **sections)


def online_batch(frozen: Frozen, photos: Sequence[Path], tokens: Tensor) -> Online:
    """What the frozen networks say about `photos`, as the authors' loop has them say it (method sections 2 to 7).

    tokens: int64 [B, T].
    """
    x, letterbox = _normalised(photos)
    with torch.inference_mode():
        maps = frozen.detector.features(x)
        grid = frozen.detector.grid(maps[32])  # [B, 169, 4, 5 + classes]
        small = F.interpolate(x, (364, 364), mode="bilinear", align_corners=False)
        patches = frozen.dino.forward_features(small)[:, 1:]  # type: ignore[operator]
        embedding = frozen.segmenter.image_encoder(x)
    cells = grid[..., 4].mean(dim=2).topk(KEEP).indices.sort(dim=1).values
    boxes = torch.stack([rows[own, :, :5] for rows, own in zip(grid, cells, strict=True)])  # [B, K, 4, 5]
    batch = Batch(
        dark_s8=maps[8],
        dark_s16=maps[16],
        dark_s32=maps[32],
        dino=patches.transpose(1, 2).reshape(-1, 768, 26, 26),
        sam=embedding,
        cells=cells,
        boxes=boxes,
        letterbox=letterbox,
        tokens=tokens,
    )
    return Online(batch=_plain(batch), prompts=_prompts(boxes, letterbox))


def online_masks(frozen: Frozen, online: Online, chosen: Tensor) -> Tensor:
    """The pseudo mask of each sample, its segmenter prompted with the chosen candidate's box alone: bool [B, S, S]."""
    masks = []
    with torch.inference_mode():
        assert online.batch.sam is not None
        for embedding, boxes, k in zip(online.batch.sam, online.prompts, chosen, strict=True):
            logits, iou = frozen.segmenter.decode(embedding, boxes[k][None])
            best = logits[:, [int(iou.argmax())]]
            masks.append(F.interpolate(best, (SIDE, SIDE), mode="bicubic", align_corners=False)[0, 0] >= 0)
    return torch.stack(masks).clone()


def with_masks(online: Online, chosen: Tensor, masks: Tensor) -> Batch:
    """The batch with `masks` at the chosen candidates and their complements at all others, which nobody may look at."""
    slots = (~masks)[:, None].repeat(1, KEEP, 1, 1)
    slots[torch.arange(len(chosen)), chosen] = masks
    return replace(online.batch, masks=torch.from_numpy(np.packbits(slots.numpy(), axis=-1)))


def _normalised(photos: Sequence[Path]) -> tuple[Tensor, Tensor]:
    """Letterboxed photographs float32 [B, 3, S, S], and h w nh nw dx dy of each: int64 [B, 6]."""
    canvases, places = [], []
    for path in photos:
        rgb = read_photo(path)
        letterbox = Letterbox.fit(*rgb.shape[:2], side=SIDE)
        canvases.append(letterbox.image(rgb))
        places.append(letterbox.info)
    x = torch.from_numpy(np.stack(canvases)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, DEVIATION))
    return (x - mean) / deviation, torch.from_numpy(np.stack(places))


def _prompts(boxes: Tensor, letterbox: Tensor) -> Tensor:
    """Of each candidate's four boxes the most confident, clipped to the photo: [B, K, 4]."""
    best = boxes[..., 4].argmax(dim=2)[..., None, None].expand(-1, -1, 1, 5)
    cx, cy, width, height, _ = boxes.gather(2, best)[:, :, 0].unbind(dim=-1)  # [B, K] each
    x0, y0 = cx - width / 2, cy - height / 2
    _, _, rows, columns, left, top = letterbox[:, :, None].float().unbind(dim=1)  # [B, 1] each
    horizontal = [x.clamp(left, left + columns) for x in (x0, x0 + width)]
    vertical = [y.clamp(top, top + rows) for y in (y0, y0 + height)]
    return torch.stack([horizontal[0], vertical[0], horizontal[1], vertical[1]], dim=-1)


def _plain(batch: Batch) -> Batch:
    """Without the mark of inference mode, which autograd refuses, and laid out in memory in the order of the axes."""
    contiguous = torch.contiguous_format
    values = {n: value.clone(memory_format=contiguous) for n, value in vars(batch).items() if value is not None}
    return replace(batch, **values)
