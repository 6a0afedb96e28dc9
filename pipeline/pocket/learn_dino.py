"""Pretraining of the pocket DINO: self-distillation without labels.

The image-level objective is that of Caron et al. 2021, the one of masked patches that of iBOT (Zhou et al. 2022).
A teacher, the running mean of the student, sees two crops of a scene; the student sees the same crops with patches
hidden and must give the teacher's answer for the image (from the other crop) and for every hidden patch. Teacher
answers are centred and sharpened.
"""

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

from ..encoders.yolov3 import normalised
from .pool import Pool

PROTOTYPES = 512
HIDDEN_SHARE = 0.35
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.05


class _Head(nn.Module):
    """Projection to prototypes; thrown away after pretraining."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.utils.parametrizations.weight_norm(nn.Linear(64, PROTOTYPES, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.prototypes(F.normalize(self.mlp(x), dim=-1))


class SelfDistillation(nn.Module):
    """Student, teacher, their heads and the running centres."""

    def __init__(self, net: VisionTransformer) -> None:
        super().__init__()
        self.student = net
        self.mask_token = nn.Parameter(torch.zeros(1, 1, net.embed_dim))
        self.heads = nn.ModuleList([_Head(net.embed_dim), _Head(net.embed_dim)])
        self.teacher = deepcopy(net).requires_grad_(False)
        self.teacher_heads = deepcopy(self.heads).requires_grad_(False)
        self.centres: Tensor
        self.register_buffer("centres", torch.zeros(2, PROTOTYPES))

    def trained(self) -> Iterator[nn.Parameter]:
        """Parameters that take gradients."""
        return (parameter for parameter in self.parameters() if parameter.requires_grad)

    def loss(self, crops: Tensor, rng: np.random.Generator) -> Tensor:
        """crops: two views of each scene, [2B, 3, S, S], first views first."""
        hidden = torch.from_numpy(rng.random((len(crops), self.student.patch_embed.num_patches)) < HIDDEN_SHARE)
        with torch.no_grad():
            seen = self.teacher.forward_features(crops)
            answers = [
                head(part) for head, part in zip(self.teacher_heads, (seen[:, 0], seen[:, 1:][hidden]), strict=True)
            ]
            targets = [
                ((answer - centre) / TEACHER_TEMPERATURE).softmax(dim=-1)
                for answer, centre in zip(answers, self.centres, strict=True)
            ]
            for centre, answer in zip(self.centres, answers, strict=True):
                centre.lerp_(answer.mean(dim=0), 0.1)
        tokens = self._masked_tokens(crops, hidden)
        of_image = self.heads[0](tokens[:, 0]) / STUDENT_TEMPERATURE
        of_patch = self.heads[1](tokens[:, 1:][hidden]) / STUDENT_TEMPERATURE
        crossed = torch.cat(targets[0].chunk(2)[::-1])  # each view answers for the other one
        return F.cross_entropy(of_image, crossed) + F.cross_entropy(of_patch, targets[1])

    @torch.no_grad()
    def follow(self, momentum: float) -> None:
        """Move the teacher towards the student."""
        pairs = [(self.teacher, self.student), (self.teacher_heads, self.heads)]
        for slow, fast in pairs:
            for ours, theirs in zip(slow.parameters(), fast.parameters(), strict=True):
                ours.lerp_(theirs, 1 - momentum)

    def _masked_tokens(self, crops: Tensor, hidden: Tensor) -> Tensor:
        net = self.student
        patches = net.patch_embed(crops)
        patches = torch.where(hidden[..., None], self.mask_token.expand_as(patches), patches)
        return net.norm(net.blocks(net.norm_pre(net.patch_drop(net._pos_embed(patches)))))


def dino_crops(pool: Pool, picks: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Two random crops of each scene, mirrored and re-lit at random: [2B, 3, S, S]."""
    pixels = torch.from_numpy(pool.canvases[picks]).permute(0, 3, 1, 2).float()
    side = pixels.shape[-1]
    views = []
    for _ in range(2):
        for scene in pixels:
            extent = int(side * rng.uniform(0.5, 1.0))
            top, left = rng.integers(0, side - extent + 1, 2)
            view = scene[None, :, top : top + extent, left : left + extent]
            view = F.interpolate(view, (side, side), mode="bilinear", align_corners=False)
            view = view.flip(-1) if rng.random() < 0.5 else view
            views.append(view * rng.uniform(0.8, 1.2) + rng.uniform(-20, 20))
    shown = torch.cat(views).clamp(0, 255).to(torch.uint8)
    return normalised(shown.permute(0, 2, 3, 1).numpy(), "cpu")
