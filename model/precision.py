"""How many bits the products of a training step have.

Weights, their moving average, BatchNorm, softmax, the contrast and all losses are float32 always. In bfloat16 the
convolutions and linear layers of the visual half round their factors to 8 bits and sum in float32, which a GPU's tensor
cores do several times as fast.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Literal, get_args

import torch
from torch import Tensor

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[str, ...] = get_args(Precision)


def settled(name: str, device: torch.device) -> str:
    """The precision on a device; "auto" is bfloat16 on a GPU that computes in it, float32 elsewhere."""
    if name != "auto":
        return name
    fast = device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)
    return "bfloat16" if fast else "float32"


def computing_in(precision: str, device: torch.device) -> AbstractContextManager:
    """Run the block's convolutions and linear layers in that precision."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)


def in_full(device: torch.device) -> AbstractContextManager:
    """Run the block in float32 within a block that does not."""
    return torch.autocast(device.type, enabled=False)


def working_dtype(weight: Tensor) -> torch.dtype:
    """What a map should be in when it meets `weight`: the lower precision where the block runs in one."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


def wide(x: Tensor) -> Tensor:
    """The same numbers in float32 at least."""
    return x if x.dtype.itemsize >= 4 else x.float()
