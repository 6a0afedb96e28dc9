"""Visual trunk: three scales brought together, then enriched by other networks' features (DVFE).

Axes: B batch, C channels, H W rows and columns. Scales are named by their stride in canvas pixels: s8, s16, s32.
"""

from collections.abc import Mapping, Sequence
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SLOPE = 0.1
"""Negative slope of every LeakyReLU."""


class RepeatedNorm(nn.BatchNorm2d):
    """BatchNorm of a map in which every value stands for `repeats` equal ones.

    Mean and variance do not see the difference. The running variance is the unbiased one, n / (n - 1) of the batch's,
    and n counts the repeated values.
    """

    def __init__(self, channels: int, repeats: int) -> None:
        super().__init__(channels)
        self.repeats = repeats

    def forward(self, input: Tensor) -> Tensor:
        """input: [B, C, H, W]; returns the same shape."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        if not self.training:
            return super().forward(input)
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        output = F.batch_norm(input, mean, var, self.weight, self.bias, training=True, momentum=1.0, eps=self.eps)
        count = input.numel() // self.num_features
        self.num_batches_tracked += 1
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var * (self.repeats * (count - 1) / (self.repeats * count - 1)), self.momentum)
        return output


class ConvBlock(nn.Module):
    """Convolution without bias that keeps the size, BatchNorm, LeakyReLU.

    repeats: how many equal values each one of the map stands for, see RepeatedNorm.
    """

    def __init__(
        self, channels_in: int, channels_out: int, kernel: int, dilation: int = 1, *, repeats: int = 1
    ) -> None:
        super().__init__()
        padding = kernel // 2 * dilation
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=padding, dilation=dilation, bias=False)
        self.norm = nn.BatchNorm2d(channels_out) if repeats == 1 else RepeatedNorm(channels_out, repeats)

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, channels_in, H, W]; returns [B, channels_out, H, W]."""
        return F.leaky_relu(self.norm(self.convolved(x)), SLOPE, inplace=True)

    def convolved(self, x: Tensor) -> Tensor:
        return self.conv(x)


class DoublingBlock(ConvBlock):
    """A block of kernel 3 on a map enlarged twofold (nearest neighbour), computed from the map before it is enlarged.

    Of the nine values under the kernel only four differ, so a transposed convolution with kernel 4 and stride 2, whose
    weights are sums of the kernel's, gives the same map with 4/9 of the products.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3)

    def convolved(self, x: Tensor) -> Tensor:
        """x: [B, channels_in, H, W]; returns [B, channels_out, 2 H, 2 W]."""
        turned = self.conv.weight.flip(2, 3).transpose(0, 1)
        once_more = F.pad(turned, (0, 1, 0, 0)) + F.pad(turned, (1, 0, 0, 0))  # along the columns, then the rows
        summed = F.pad(once_more, (0, 0, 0, 1)) + F.pad(once_more, (0, 0, 1, 0))  # [channels_in, channels_out, 4, 4]
        return F.conv_transpose2d(x, summed, stride=2, padding=1)


def _pair(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(ConvBlock(channels_in, channels_out, 1), ConvBlock(channels_out, channels_out, 3))


def _doubling_pair(channels_in: int, channels_out: int) -> nn.Sequential:
    """What `_pair` makes of a map enlarged twofold, from the map before: its first block's values are there 4 times."""
    return nn.Sequential(ConvBlock(channels_in, channels_out, 1, repeats=4), DoublingBlock(channels_out, channels_out))


class MultiScaleFusion(nn.Module):
    """Coarse features flow down to the fine maps and back up; section 8 of the method page.

    channels: of the maps of stride 8, 16, 32. width: channels of every output.
    outputs: the scales that will be asked for. Layers that none of them needs are not built: they would never get a
    gradient (the mask head uses s8 only, RefCLIP s32 only).
    """

    def __init__(self, channels: Sequence[int], width: int, outputs: Sequence[str]) -> None:
        super().__init__()
        s8, s16, s32 = channels
        half = width // 2
        merged = {"s8": half + s8, "s16": 2 * half + s16, "s32": half + s32}
        self.down_to_s16 = _doubling_pair(s32, half)
        self.down_to_s8 = _doubling_pair(half + s16, half)
        if "s16" in outputs or "s32" in outputs:
            self.up_to_s16 = _pair(merged["s8"], half)
        if "s32" in outputs:
            self.up_to_s32 = _pair(merged["s16"], half)
        self.project = nn.ModuleDict({scale: ConvBlock(merged[scale], width, 1) for scale in outputs})

    def forward(self, s8: Tensor, s16: Tensor, s32: Tensor, outputs: Sequence[str]) -> list[Tensor]:
        """The fused maps of the scales in `outputs`, each [B, width, H, W]; what they do not need is not computed."""
        merged = {"s16": torch.cat([self.down_to_s16(s32), s16], dim=1)}
        merged["s8"] = torch.cat([self.down_to_s8(merged["s16"]), s8], dim=1)
        if "s16" in outputs or "s32" in outputs:
            merged["s16"] = torch.cat([self.up_to_s16(F.avg_pool2d(merged["s8"], 2)), merged["s16"]], dim=1)
        if "s32" in outputs:
            merged["s32"] = torch.cat([self.up_to_s32(F.avg_pool2d(merged["s16"], 2)), s32], dim=1)
        return [self.project[scale](merged[scale]) for scale in outputs]


class BankMixer(nn.Module):
    """Dynamic visual feature enhancement of one task: the banks in one space, weighed for each image (section 9).

    bank_channels: channels of each bank, in the order of the router's outputs; at least one.
    dynamic: False gives every one of n banks the weight 1/n and builds no router.
    """

    def __init__(self, bank_channels: Mapping[str, int], width: int, dynamic: bool) -> None:
        super().__init__()
        self.project = nn.ModuleDict({bank: nn.Linear(size, width) for bank, size in bank_channels.items()})
        self.router = nn.Linear(width, len(bank_channels)) if dynamic else None

    def weights(self, fused: Tensor) -> Tensor:
        """Weight of each bank: [B, n], rows sum to 1.

        fused: [B, width, H, W]; the router learns from it without changing it (it is detached).
        """
        if self.router is None:
            return fused.new_full((len(fused), len(self.project)), 1 / len(self.project))
        return self.router(fused.detach().mean(dim=(2, 3))).softmax(dim=-1)

    def forward(self, fused: Tensor, banks: Mapping[str, Tensor], then: Tensor | None = None) -> Tensor:
        """The weighted sum of the projected banks: [B, width, H', W'].

        fused: [B, width, H, W], decides the weights. banks: [B, C, H', W'] each. Resampling and projection commute
        (weights of the resampling sum to 1), so the caller resamples on the side with fewer numbers: banks before a
        reduction, this result before an enlargement.
        then: [R, width], a linear map that the sum is to be taken through at each position; the result is
        [B, R, H', W'] then, and no map of `width` channels is made.
        """
        weights = self.weights(fused)[..., None, None, None].unbind(dim=1)  # n times [B, 1, 1, 1]
        mixed = (
            weight * _project(linear, banks[bank], then)
            for weight, (bank, linear) in zip(weights, self.project.items(), strict=True)
        )
        return reduce(torch.add, mixed)


def _project(linear: nn.Module, x: Tensor, then: Tensor | None) -> Tensor:
    """A linear layer, and another linear map after it, at each position: [B, C, H, W] to [B, width or R, H, W]."""
    assert isinstance(linear, nn.Linear)
    weight, bias = (linear.weight, linear.bias) if then is None else (then @ linear.weight, then @ linear.bias)
    return F.conv2d(x, weight[:, :, None, None], bias)
