"""Re-estimated BatchNorm statistics: the detector as the authors' evaluation sees it, made once and kept.

Their loop leaves the "frozen" detector in training mode, so its statistics drift to those of the training images
(method section 12, quirk 1). The nearest function of the image alone: one pass over those images in training mode,
the mean of all batches' statistics, then frozen.

In training mode a batch is normalised by itself, whatever the others are, so the pass falls into parts that any number
of workers may do in any order. A part is a few batches; its sums are kept in float64 and added up in the order of the
parts, so the result is the same bytes however the work was shared, interrupted or repeated.

    sums        float64 [2, C]   means and unbiased variances of every channel, module by module, summed over batches
    statistics  the BatchNorm buffers of the network by their keys: running_mean, running_var, num_batches_tracked
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from ...shards.atomic import write_bytes
from ...shards.errors import CheckpointError, StageError
from ...shards.fingerprint import file_sha256
from ..config import DetectConfig
from ..images import Photo
from ..statistics import read_record
from .weights import load_state
from .yolov3 import YOLOv3, normalised


def batch_statistics(net: YOLOv3, images: Tensor) -> Tensor:
    """Mean and unbiased variance of every BatchNorm's input, each layer normalised by them: float64 [2, C].

    images: normalised, [B, 3, S, S]; `net` is given back as it was.
    """
    with _in_training(net) as norms, torch.no_grad():
        net.features(images)
        means = torch.cat([_buffer(norm.running_mean) for norm in norms])
        return torch.stack([means, torch.cat([_buffer(norm.running_var) for norm in norms])])


def write_part(path: Path, net: YOLOv3, batches: Iterable[Sequence[Photo]], device: str, images_sha256: str) -> int:
    """Publish the sums of some batches of photographs as `path`; bytes written.

    images_sha256: digest of what the part is made from, for `read_part`. StageError where a value is not finite.
    """
    sums = torch.zeros(2, sum(norm.num_features for _, norm in _norms(net)), dtype=torch.float64)
    for photos in batches:
        canvases = np.stack([photo.letterbox.image(photo.rgb) for photo in photos])
        found = batch_statistics(net, normalised(canvases, device))
        if not found.isfinite().all():
            raise StageError(
                f"the detector's statistics on images {photos[0].key} to {photos[-1].key} are not finite; take other "
                "weights, or --detector-bn frozen."
            )
        sums += found
    note = {"images_sha256": images_sha256, "sums_sha256": _digest(sums)}
    content = save({"sums": sums}, note)
    write_bytes(path, content)
    return len(content)


def read_part(path: Path, images_sha256: str) -> Tensor | None:
    """The sums in `path`; None where they are not there, are damaged, or are of other images."""
    try:
        with safe_open(path, "pt") as file:
            note, sums = file.metadata() or {}, file.get_tensor("sums")
    except (OSError, SafetensorError):
        return None
    is_whole = note == {"images_sha256": images_sha256, "sums_sha256": _digest(sums)}
    return sums if is_whole else None


def joined(config: DetectConfig, parts: Iterable[Tensor], batches: int) -> bytes:
    """The statistics, as a safetensors file: the mean over all batches of the parts' sums, which are in their order."""
    with torch.device("meta"):
        norms = _norms(YOLOv3(config.width, config.classes))
    total = torch.zeros(2, sum(norm.num_features for _, norm in norms), dtype=torch.float64)
    for sums in parts:
        total += sums
    means, variances = (total / batches).float()
    found: dict[str, Tensor] = {}
    first = 0
    for name, norm in norms:
        own = slice(first, first := first + norm.num_features)
        found[f"{name}.running_mean"] = means[own].clone()
        found[f"{name}.running_var"] = variances[own].clone()
        found[f"{name}.num_batches_tracked"] = torch.tensor(batches)
    return save(found)


def load_statistics(net: YOLOv3, path: Path) -> None:
    """Put the statistics in `path` into `net`; CheckpointError where they are missing, damaged or another network's."""
    mend = "run weakmcn precompute on their store to have them made again"
    record = read_record(path)
    if record is None or not path.is_file():
        raise CheckpointError(f"{path}: the detector's re-estimated statistics are not there; {mend}")
    if file_sha256(path) != record["sha256"]:
        raise CheckpointError(f"{path}: damaged, its SHA-256 is not the one recorded; {mend}")
    state, own = load_state(path), {}
    for name, norm in _norms(net):
        own |= {f"{name}.{key}": value.shape for key, value in norm.named_buffers()}
    if {key: value.shape for key, value in state.items()} != own:
        raise CheckpointError(f"{path}: statistics of another detector; {mend}")
    net.load_state_dict(state, strict=False)


@contextmanager
def _in_training(net: YOLOv3) -> Iterator[list[nn.BatchNorm2d]]:
    """Every BatchNorm takes the statistics of the batch, and leaves just these in its buffers."""
    norms = [norm for _, norm in _norms(net)]
    kept = [(norm.momentum, {key: value.clone() for key, value in norm.named_buffers()}) for norm in norms]
    try:
        for norm in norms:
            norm.momentum = 1.0
            norm.reset_running_stats()
            norm.train()
        yield norms
    finally:
        for norm, (momentum, buffers) in zip(norms, kept, strict=True):
            norm.momentum = momentum
            norm.load_state_dict(buffers, strict=False)
            norm.eval()


def _norms(net: YOLOv3) -> list[tuple[str, nn.BatchNorm2d]]:
    return [(name, module) for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)]


def _buffer(value: Tensor | None) -> Tensor:
    assert value is not None  # every norm of the detector tracks its statistics
    return value.double().cpu()


def _digest(sums: Tensor) -> str:
    return hashlib.sha256(sums.numpy().tobytes()).hexdigest()
