"""What a state dict is, told from its keys and shapes: for the message about a file that is not what was asked for."""

import re
from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]

_SAM = {768: "sam_vit_b", 1024: "sam_vit_l", 1280: "sam_vit_h"}
_EFFICIENT_SAM = {192: "EfficientSAM-Ti", 384: "EfficientSAM-S"}
_VIT = {384: "S", 768: "B", 1024: "L", 1280: "H+", 1536: "g", 4096: "7B"}

_MARKS = (
    ("sam_mask_decoder.", "a SAM 2 checkpoint"),
    ("image_encoder.trunk.", "a SAM 2 checkpoint"),
    ("image_encoder.patch_embed.seq.", "MobileSAM (TinyViT image encoder)"),
    ("mask_decoder.", "a mask decoder of Segment Anything without an image encoder"),
    ("text_model.", "a CLIP checkpoint of transformers with its text tower"),
    ("visual.conv1.", "a CLIP checkpoint in OpenAI's or OpenCLIP's layout"),
    ("vision_model.", "a CLIP image tower of transformers"),
)
"""Beginnings of keys that only one kind of file has, tried after the kinds below."""


def identify(state: State) -> str:
    """A name for the network that `state` belongs to, with its size: "sam_vit_l", "YOLOv3 (100 classes)", ..."""
    for kind in (_training, _yolo, _sam, _dino_transformers, _vit):
        name = kind(state)
        if name:
            return name
    for beginning, name in _MARKS:
        if any(key.startswith(beginning) for key in state):
            return name
    return f"an unknown network of {len(state)} tensors ({', '.join(sorted(state)[:1]) or 'none'}, ...)"


def _training(state: State) -> str | None:
    """Checkpoints of the referring systems, their frozen networks inside."""
    if not any(key.startswith("lang_encoder.") for key in state):
        return None
    if any(key.startswith("seg_head.") for key in state):
        sam = _EFFICIENT_SAM.get(_rows(state, "efficientsam.image_encoder.patch_embed.proj.weight"))
        return f"a WeakMCN checkpoint ({sam})" if sam else "a WeakMCN checkpoint without its frozen networks"
    return "an APL checkpoint" if any(key.startswith("tag_encoder.") for key in state) else "a RefCLIP checkpoint"


def _yolo(state: State) -> str | None:
    width, outputs = _rows(state, "module_list.0.conv.weight"), _rows(state, "module_list.19.conv.weight")
    if not width:
        return None
    size = "" if width == 32 else f" of width {width}"
    return f"YOLOv3{size} ({outputs // 4 - 5} classes)" if outputs else f"YOLOv3{size}, cut short"


def _sam(state: State) -> str | None:
    width = _rows(state, "image_encoder.patch_embed.proj.weight")
    if not width:
        return None
    if "image_encoder.blocks.0.attn.rel_pos_h" in state:
        return _SAM.get(width, f"a Segment Anything network of width {width}")
    return _EFFICIENT_SAM.get(width, f"an EfficientSAM of width {width}")


def _dino_transformers(state: State) -> str | None:
    width = _rows(state, "embeddings.patch_embeddings.projection.weight", "embeddings.patch_embeddings.weight")
    if not width:
        return None
    name = "DINOv2" if "embeddings.position_embeddings" in state else "DINOv3"
    registers = " with registers" if name == "DINOv2" and "embeddings.register_tokens" in state else ""
    return f"{name} {_VIT.get(width, f'of width {width}')}{registers}"


def _vit(state: State) -> str | None:
    """Vision transformers in the layout of timm, and of DINO's releases, which it shares."""
    width = _rows(state, "patch_embed.proj.weight")
    if not width or "cls_token" not in state:
        return None
    size = _VIT.get(width, f"of width {width}")
    if "storage_tokens" in state or "blocks.0.gamma_1" in state:
        return f"DINOv3 {size}"
    if "blocks.0.ls1.gamma" in state:
        registers = " with registers" if {"register_tokens", "reg_token"} & state.keys() else ""
        return f"DINOv2 {size}{registers}"
    depth = len({key.split(".")[1] for key in state if re.match(r"blocks\.\d+\.", key)})
    patch_px = state["patch_embed.proj.weight"].shape[-1]
    kind = "CLIP image tower" if "norm_pre.weight" in state else "vision transformer"
    outputs = _rows(state, "head.weight")
    head = f", head of {outputs}" if outputs else ""
    return f"a {kind} (width {width}, depth {depth}, patch {patch_px}{head})"


def _rows(state: State, *keys: str) -> int:
    """First axis of the first of `keys` that is there; 0 for none."""
    return next((state[key].shape[0] for key in keys if key in state and state[key].ndim), 0)
