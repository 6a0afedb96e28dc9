"""What the benches of precompute share: photographs, networks of the paper's sizes, and the tasks of a stage."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from weakmcn.pipeline.config import PipelineConfig, preset
from weakmcn.pipeline.encoders.efficient_sam import EfficientSam
from weakmcn.pipeline.encoders.yolov3 import YOLOv3
from weakmcn.pipeline.tasks import ImageRow, ShardTask

from .. import paper
from ..tiny import photo, write_data


@dataclass(frozen=True, kw_only=True)
class World:
    """Photographs of COCO's sizes, and settings whose weights are there."""

    config: PipelineConfig
    images: tuple[ImageRow, ...]


def make_world(root: Path, *, images: int, detector_width: int) -> World:
    """Noise photographs, EfficientSAM-Ti as in the paper and a detector of so many channels, with random weights."""
    write_data(root / "data", images=images, val=0, size=paper.photo_size)
    config = preset("refcoco")
    torch.manual_seed(0)
    detector, sam = YOLOv3(width=detector_width), EfficientSam(config.sam)
    save_file(detector.state_dict(), root / "detect.safetensors")
    save_file(sam.state_dict(), root / "sam.safetensors")
    detect = replace(config.detect, checkpoint=str(root / "detect.safetensors"), width=detector_width)
    config = replace(config, detect=detect, sam=replace(config.sam, checkpoint=str(root / "sam.safetensors")))
    return World(config=config, images=tuple(_row(root / "data", number + 1) for number in range(images)))


def _row(data: Path, number: int) -> ImageRow:
    path, (height, width) = photo(data, number), paper.photo_size(number)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return ImageRow(key=f"{number:012d}", path=path, height=height, width=width, sha256=sha256)


def tasks(world: World, stage: str, folder: Path, *, shard: int, batch: int) -> list[ShardTask]:
    """The photographs as shards of `shard` images of a stage, encoded in batches of `batch`."""
    config = world.config
    section = replace(getattr(config, stage), batch=batch)
    return [
        ShardTask(
            stage=stage,
            shard=number,
            images=world.images[first : first + shard],
            config=replace(config, **{stage: section}),
            folder=folder,
            fingerprint="0" * 64,
        )
        for number, first in enumerate(range(0, len(world.images), shard))
    ]


def digests(folder: Path) -> Sequence[str]:
    """Of every file of a family, in the order of their names."""
    return [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())]
