"""A data set of noise photographs in the real formats, and random frozen networks small enough to run in a moment.

Ten photographs of different sizes, four to a shard: three shards, the last one not full. Encoder batches of three: the
last batch of every shard is padded.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from weakmcn.pipeline.config import ClipConfig, DetectConfig, DinoConfig, PipelineConfig, SamConfig
from weakmcn.pipeline.encoders.clip import build_clip
from weakmcn.pipeline.encoders.dino import build_dino
from weakmcn.pipeline.encoders.sam import build_sam
from weakmcn.pipeline.encoders.yolov3 import YOLOv3

SIDE = 64
IMAGES = 10
_VIT = {"patch_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 1}


def config_with(weights: Path) -> PipelineConfig:
    """Settings for the networks that `write_weights` puts into a folder."""
    return PipelineConfig(
        name="pocket",
        side_px=SIDE,
        images_per_shard=4,
        detect=DetectConfig(checkpoint=str(weights / "detect.safetensors"), width=2, classes=3, keep=3, batch=3),
        dino=DinoConfig(
            checkpoint=str(weights / "dino.safetensors"),
            model="vit_tiny_patch16_224",
            input_px=SIDE,
            channels=16,
            options=_VIT,
            batch=3,
        ),
        sam=SamConfig(
            checkpoint=str(weights / "sam.safetensors"),
            image_px=SIDE,
            patch_px=16,
            embed_dim=16,
            depth=1,
            heads=1,
            global_blocks=(0,),
            window=2,
            channels=16,
            decoder_heads=2,
            decoder_mlp=16,
            batch=3,
        ),
        clip=ClipConfig(
            checkpoint=str(weights / "clip.safetensors"),
            model="vit_tiny_patch16_224",
            input_px=SIDE,
            channels=8,
            options=_VIT,
            candidate_px=32,
            batch=3,
        ),
    )


def write_weights(folder: Path, *, seed: int = 0) -> PipelineConfig:
    """Random weights of the four networks as `<stage>.safetensors`; the settings that name them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = config_with(folder)
    torch.manual_seed(seed)
    networks = {
        "detect": YOLOv3(config.detect.width, config.detect.classes, SIDE),
        "dino": build_dino(config.dino),
        "sam": build_sam(config.sam),
        "clip": build_clip(config.clip),
    }
    for name, network in networks.items():
        save_file(network.state_dict(), folder / f"{name}.safetensors")
    return config


def small_size(number: int) -> tuple[int, int]:
    """Rows and columns of photograph `number`."""
    return 40 + 3 * (number % 30), 60 + 5 * (number % 4)


def write_data(
    root: Path, *, images: int = IMAGES, val: int = 2, size: Callable[[int], tuple[int, int]] = small_size
) -> Path:
    """RefCOCO in UNC layout with one reference a photograph, the last `val` of them in split val; `root`."""
    (root / "refcoco").mkdir(parents=True)
    (root / "images" / "train2014").mkdir(parents=True)
    instances = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "thing", "supercategory": "thing"}]}
    refs = []
    for number in range(1, images + 1):
        height, width = size(number)
        write_photo(photo(root, number), height, width, seed=number)
        instances["images"].append(
            {"id": number, "file_name": photo(root, number).name, "height": height, "width": width}
        )
        instances["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": [4, 5, 20, 16],
                "area": 320,
                "iscrowd": 0,
                "segmentation": [[4, 5, 24, 5, 24, 21, 4, 21]],
            }
        )
        sentence = {"sent_id": number, "sent": "the thing", "raw": "the thing", "tokens": ["the", "thing"]}
        refs.append(
            {
                "ref_id": number,
                "ann_id": number,
                "image_id": number,
                "category_id": 1,
                "file_name": photo(root, number).name,
                "split": "train" if number <= images - val else "val",
                "sent_ids": [number],
                "sentences": [sentence],
            }
        )
    (root / "refcoco" / "instances.json").write_text(json.dumps(instances))
    (root / "refcoco" / "refs(unc).json").write_text(json.dumps(refs))
    return root


def photo(root: Path, number: int) -> Path:
    return root / "images" / "train2014" / f"COCO_train2014_{number:012d}.jpg"


def write_photo(path: Path, height: int, width: int, *, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height)).save(path, quality=90)


def other_weights(config: PipelineConfig, stage: str, folder: Path) -> PipelineConfig:
    """The same settings with other random weights for one network."""
    made = write_weights(folder, seed=1)
    section = replace(getattr(config, stage), checkpoint=getattr(made, stage).checkpoint)
    return replace(config, **{stage: section})


def digests(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file below `folder`."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
