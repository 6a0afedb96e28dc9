"""BatchNorm over the batches of all ranks, on any device.

torch's own needs CUDA. Mean and variance of the ranks' parts cross in one message forward, the two sums of the gradient
in one message back.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .fusion import RepeatedNorm
from .precision import wide
from .ranks import Ranks


class _Normalised(torch.autograd.Function):
    """(x - mean) / sqrt(var + eps) * weight + bias, a channel each, with the statistics of all ranks' rows.

    Gradients of weight and bias are this rank's share, as those of every other weight. Ranks may have unequally many
    rows. Statistics are in float32 at least, whatever x is in.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, ranks: Ranks
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Also returns mean and variance (not the unbiased one) of the whole batch, [C] each, and its rows."""
        over = [axis for axis in range(x.ndim) if axis != 1]
        var, mean = torch.var_mean(wide(x), dim=over, correction=0)
        values = torch.full_like(mean, x.numel() // x.shape[1])
        told = torch.stack(ranks.all_gather(torch.stack([mean, var, values])))  # [N, 3, C]
        means, variances, counts = told.unbind(dim=1)
        count = counts.sum(dim=0)[0]
        weights = counts / count
        mean = (weights * means).sum(dim=0)
        var = (weights * (variances + (means - mean).square())).sum(dim=0)
        ctx.save_for_backward(x, weight, mean, var, count)
        ctx.eps, ctx.ranks, ctx.over = eps, ranks, over
        ctx.mark_non_differentiable(mean, var, count)
        return F.batch_norm(x, mean, var, weight, bias, training=False, eps=eps), mean, var, count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, var, count = ctx.saved_tensors
        gradient, shape = wide(gradients[0]), [1, -1, *[1] * (x.ndim - 2)]
        scale = (var + ctx.eps).rsqrt()
        centred = wide(x) - mean.view(shape)
        of_bias = gradient.sum(dim=ctx.over)
        of_weight = (gradient * centred).sum(dim=ctx.over) * scale
        both = torch.stack([of_bias, of_weight])
        ctx.ranks.all_reduce(both)
        level, slope = both / count  # means over the whole batch
        of_x = gradient - level.view(shape) - centred * (slope * scale).view(shape)
        return (of_x * (weight * scale).view(shape)).to(x.dtype), of_weight, of_bias, None, None


class WholeBatchNorm(_BatchNorm):
    """The given BatchNorm, its parameters and buffers themselves, with the statistics of the batches of all ranks."""

    def __init__(self, norm: _BatchNorm, ranks: Ranks) -> None:
        super().__init__(norm.num_features, norm.eps, norm.momentum, affine=False, track_running_stats=False)
        assert norm.affine
        assert norm.track_running_stats
        assert norm.momentum is not None
        self.affine = self.track_running_stats = True
        self.weight, self.bias = norm.weight, norm.bias
        self.running_mean, self.running_var = norm.running_mean, norm.running_var
        self.num_batches_tracked = norm.num_batches_tracked
        self.ranks = ranks
        self.repeats = norm.repeats if isinstance(norm, RepeatedNorm) else 1
        self.train(norm.training)

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim >= 2

    def forward(self, input: Tensor) -> Tensor:
        """input: [b, C, ...]; returns the same shape."""
        if not self.training:
            return super().forward(input)
        assert self.momentum is not None
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        output: Any = _Normalised.apply(input, self.weight, self.bias, self.eps, self.ranks)
        normalised, mean, var, count = output
        with torch.no_grad():
            count = count * self.repeats
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * (count / (count - 1)), self.momentum)
        return normalised


def whole_batch(net: nn.Module, ranks: Ranks) -> nn.Module:
    """`net`, its BatchNorms changed in place to those of the whole batch; a process alone keeps them as they are."""
    if ranks.together:
        for module in list(net.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, _BatchNorm):
                    setattr(module, name, WholeBatchNorm(child, ranks))
    return net
