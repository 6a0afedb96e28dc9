"""WeakMCN's heads in torch, every step where the authors have it: no convolution moved, folded, shared or left out.

The other side of the rearrangements of model/fusion.py and model/wres.py: on the weights of the same network, the same
losses and gradients but for rounding, at the cost that the released order has. Sections are those of the method page.
"""

import math
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from weakmcn.model import losses as terms
from weakmcn.model.batch import Batch
from weakmcn.model.fusion import BankMixer, ConvBlock, MultiScaleFusion
from weakmcn.model.weakmcn import Losses, WeakMCN
from weakmcn.model.wrec import candidate_boxes, clip_to_photo, pick, position_embedding
from weakmcn.model.wres import CollectDiffuse, MaskHead, Modulation, Pyramid

T = TypeVar("T")


def losses(net: WeakMCN, batch: Batch, epoch: int) -> Losses:
    """The loss terms of one batch; the mask branch runs during warm-up too, for nothing, as the authors' does."""
    config, dtype = net.config, net.matcher.visual.weight.dtype
    maps = [_given(getattr(batch, name)).to(dtype) for name in ("dark_s8", "dark_s16", "dark_s32")]
    banks = {bank: _given(getattr(batch, bank)).to(dtype) for bank in config.banks}
    text = net.text(batch.tokens)
    fine, middle, coarse = fuse(net.fusion, *maps, outputs=("s8", "s16", "s32"))
    coarse = coarse + _mixed(net.rec_banks, coarse, banks, halve=True)
    fine = fine + _mixed(net.res_banks, fine, banks, halve=False)

    position = position_embedding(batch.boxes, config.side_px, config.text_dim).to(dtype)
    candidates = net.matcher.candidates(coarse, batch.cells) + position
    similarity = torch.einsum("bd,akd->bak", net.matcher.sentences(text), candidates)
    det = terms.anchor_contrast(similarity, torch.arange(len(batch)))
    chosen = similarity.detach().diagonal().argmax(dim=0)

    logits = mask_logits(_given(net.mask_head), (fine, middle, coarse), text)
    boxes, _ = candidate_boxes(pick(batch.boxes, chosen))
    box = terms.box_bits(clip_to_photo(boxes, batch.letterbox), config.side_px)
    bce = terms.mask_bce(logits, terms.unpack_bits(pick(_given(batch.masks), chosen)))
    if config.isl and epoch >= config.isl_start_epoch:
        bce = bce * terms.agreement(logits, box, config.isl_threshold)
    mask, scl = bce.sum(), terms.projection_loss(logits, box) if config.scl else logits.new_zeros(())
    return Losses(det=det, mask=mask, scl=scl, total=det if epoch < config.warm_epochs else det + mask + scl)


def block(layer: ConvBlock, x: Tensor) -> Tensor:
    """The norm as torch has it, whatever the layer's own would do: here every value of the map stands for itself."""
    return F.leaky_relu(nn.BatchNorm2d.forward(layer.norm, layer.conv(x)), 0.1)


def fuse(net: MultiScaleFusion, s8: Tensor, s16: Tensor, s32: Tensor, outputs: Sequence[str]) -> list[Tensor]:
    """Section 8: enlarge first, then convolve."""

    def pair(layers: nn.Sequential, x: Tensor) -> Tensor:
        first, second = layers
        assert isinstance(first, ConvBlock)
        assert isinstance(second, ConvBlock)
        return block(second, block(first, x))

    middle = torch.cat([pair(net.down_to_s16, F.interpolate(s32, scale_factor=2)), s16], dim=1)
    fine = torch.cat([pair(net.down_to_s8, F.interpolate(middle, scale_factor=2)), s8], dim=1)
    merged = {"s8": fine}
    if list(outputs) != ["s8"]:
        merged["s16"] = torch.cat([pair(net.up_to_s16, F.avg_pool2d(fine, 2)), middle], dim=1)
        merged["s32"] = torch.cat([pair(net.up_to_s32, F.avg_pool2d(merged["s16"], 2)), s32], dim=1)
    return [block(_block(net.project[scale]), merged[scale]) for scale in outputs]


def _mixed(mixer: BankMixer | None, fused: Tensor, banks: dict[str, Tensor], *, halve: bool) -> Tensor | float:
    """Section 9: SAM is projected and then resampled, the others the other way round."""
    if mixer is None:
        return 0.0

    def resampled(x: Tensor) -> Tensor:
        return F.avg_pool2d(x, 2) if halve else F.interpolate(x, scale_factor=2, mode="bilinear")

    def projected(linear: nn.Module, x: Tensor) -> Tensor:
        return linear(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    weights = mixer.weights(fused)
    total: Tensor | float = 0.0
    for place, (bank, linear) in enumerate(mixer.project.items()):
        x = banks[bank]
        x = resampled(projected(linear, x)) if bank == "sam" else projected(linear, resampled(x))
        total = total + weights[:, place, None, None, None] * x
    return total


def mask_logits(head: MaskHead, maps: Sequence[Tensor], text: Tensor) -> Tensor:
    """Section 11."""
    modulated = [modulate(_modulation(layer), x, text) for layer, x in zip(head.modulate, maps, strict=True)]
    (fine,) = fuse(head.fusion, *modulated, outputs=("s8",))
    logits = pyramid(head.pyramid, attend(head.attention, fine, text))
    return F.interpolate(logits, scale_factor=8, mode="bilinear", align_corners=True).squeeze(1)


def modulate(layer: Modulation, x: Tensor, text: Tensor) -> Tensor:
    seen = F.leaky_relu(layer.visual_norm(layer.visual(x)), 0.1)
    said = F.leaky_relu(layer.textual_norm(layer.textual(text[:, :, None, None])), 0.1)
    return F.leaky_relu(layer.norm(seen * said), 0.1)


def attend(layer: CollectDiffuse, y: Tensor, text: Tensor) -> Tensor:
    """Keys, values and the output as maps of all channels."""
    query = layer.query(text).unflatten(-1, (layer.heads, -1))  # [B, h, d]
    by_head = [
        conv(y).flatten(2).unflatten(1, (layer.heads, -1))
        for conv in (layer.collect_key, layer.diffuse_key, layer.value)
    ]
    collect, diffuse, value = by_head  # [B, h, d, N] each
    tau = math.sqrt(query.shape[-1])
    attention = layer.dropout((torch.einsum("bhd,bhdn->bhn", query, collect) / tau).softmax(dim=-1))
    gate = layer.dropout((torch.einsum("bhd,bhdn->bhn", query, diffuse) / tau).sigmoid())
    gate = gate.unflatten(-1, y.shape[-2:]).transpose(-1, -2).flatten(-2)  # quirk 2
    pooled = torch.einsum("bhn,bhdn->bhd", attention, value)
    spread = torch.einsum("bhd,bhn->bhdn", pooled, gate).flatten(1, 2).view_as(y)
    return F.leaky_relu(layer.norm(layer.merge(spread)) + y, 0.1)


def pyramid(layer: Pyramid, x: Tensor) -> Tensor:
    """All branches in one map, then one channel."""
    branches = [block(layer.point, x), *(block(_block(each), x) for each in layer.dilated)]
    overall = block(layer.overall, F.adaptive_avg_pool2d(x, 1)).expand_as(x)
    return layer.project(torch.cat([*branches, overall], dim=1))


def _given(x: T | None) -> T:
    assert x is not None
    return x


def _block(module: nn.Module) -> ConvBlock:
    assert isinstance(module, ConvBlock)
    return module


def _modulation(module: nn.Module) -> Modulation:
    assert isinstance(module, Modulation)
    return module
