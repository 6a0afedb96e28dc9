"""Re-estimated BatchNorm statistics: the detector as the authors' evaluation sees it, made once and kept.

Their loop leaves the "frozen" detector in training mode, so its statistics drift to those of the training images
(method section 12, quirk 1). The nearest function of the image alone: one pass over those images in training mode,
cumulative averages, then frozen. The result is a checkpoint of its own, so its SHA-256 carries the list of images,
their order and the batch size into the fingerprint of every column made with it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ...shards.atomic import finished_file
from ...shards.errors import ConfigError
from ..config import PipelineConfig
from ..images import Photo
from .weights import frozen
from .yolov3 import YOLOv3, normalised


def reestimate(net: YOLOv3, batches: Iterable[Tensor]) -> None:
    """Replace every BatchNorm's running statistics by the mean over `batches` of the batch statistics.

    batches: normalised images [B, 3, S, S]; the weights stay, and `net` is left in evaluation mode.
    """
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    net.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # cumulative average
        norm.train()
    with torch.no_grad():
        for images in batches:
            net.features(images)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    net.eval()


def write_reestimated(config: PipelineConfig, photos: Iterable[Photo], out: Path, device: str) -> Path:
    """The configured detector with statistics of `photos`, as a checkpoint at `out` (.safetensors).

    Same weights, photos, order and batch size, same bytes. ConfigError where there is no photo.
    """
    detect = config.detect
    net = YOLOv3(detect.width, detect.classes, config.side_px)
    net = frozen(net, detect.checkpoint, device, prefix="visual_encoder.")
    keys = hashlib.sha256()
    seen = 0

    def canvases() -> Iterator[Tensor]:
        nonlocal seen
        waiting = iter(photos)
        while batch := list(islice(waiting, detect.batch)):
            for photo in batch:
                keys.update(f"{photo.key} {photo.sha256}\n".encode())
            seen += len(batch)
            yield normalised(np.stack([photo.letterbox.image(photo.rgb) for photo in batch]), device)

    reestimate(net, canvases())
    if not seen:
        raise ConfigError("no photo to estimate the detector's statistics from; name a split that has some.")
    note = json.dumps({"batch": detect.batch, "images": seen, "images_sha256": keys.hexdigest()}, sort_keys=True)
    with finished_file(out) as scratch:
        save_file(
            {key: value.cpu().contiguous() for key, value in net.state_dict().items()}, scratch, {"reestimated": note}
        )
    return out
