"""Published checkpoints: where they come from, what is known of their bytes, and whether a file is one of them.

Every SHA-256 here was found alike in several unrelated public places (at least one repository publishes wrong ones for
SAM). Where the project itself publishes no digest, a git blob id of the file in its repository is as good: it hashes
the same bytes. Nothing is fetched from here; `page` is where a person goes.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["missing", "found", "verified", "differs"]

_SAM_LAYOUT = "bare state dict, image_encoder.* prompt_encoder.* mask_decoder.*"
_DINO_LAYOUT = "bare state dict, pos_embed 1x1370xC"
_SAM_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
_EFFICIENT_PAGE = "https://github.com/yformer/EfficientSAM (weights/)"
_DINO_PAGE = "https://github.com/facebookresearch/dinov2#pretrained-models"


@dataclass(frozen=True, kw_only=True)
class Published:
    """One published file; None where nothing was published or found."""

    file: str
    """Its name as published."""
    stage: str
    """The stage that uses it."""
    page: str
    """The project's page that leads to it."""
    kind: str
    """What `identify` calls the network in it."""
    layout: str
    """How its tensors are kept."""
    licence: str
    bytes: int | None = None
    sha256: str | None = None
    git_blob: str | None = None


_TABLE = (
    Published(
        file="yolov3_coco.pth",
        stage="detect",
        kind="YOLOv3 (80 classes)",
        page="https://github.com/MRUIL/WeakMCN (README: Google Drive)",
        layout="bare state dict, module_list.*",
        licence="none stated",
    ),
    Published(
        file="dinov2_vits14_pretrain.pth",
        stage="dino",
        kind="DINOv2 S",
        page=_DINO_PAGE,
        layout=_DINO_LAYOUT,
        licence="Apache-2.0",
        bytes=88_283_115,
        sha256="b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    ),
    Published(
        file="dinov2_vitb14_pretrain.pth",
        stage="dino",
        kind="DINOv2 B",
        page=_DINO_PAGE,
        layout=_DINO_LAYOUT,
        licence="Apache-2.0",
        sha256="0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    ),
    Published(
        file="dinov2_vitl14_pretrain.pth",
        stage="dino",
        kind="DINOv2 L",
        page=_DINO_PAGE,
        layout=_DINO_LAYOUT,
        licence="Apache-2.0",
        bytes=1_217_586_395,
        sha256="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    ),
    Published(
        file="dinov3_vit_b16.safetensors",
        stage="dino",
        kind="DINOv3 B",
        page="https://huggingface.co/timm/vit_base_patch16_dinov3.lvd1689m (model.safetensors, renamed)",
        layout="safetensors, timm's names",
        licence="DINOv3 License",
    ),
    Published(
        file="efficient_sam_vitt.pt",
        stage="sam",
        kind="EfficientSAM-Ti",
        page=_EFFICIENT_PAGE,
        layout='{"model": state dict}',
        licence="Apache-2.0",
        git_blob="af883c49e33c68f01107be52df0ecad26a48355f",
    ),
    Published(
        file="efficient_sam_vits.pt.zip",
        stage="sam",
        kind="EfficientSAM-S",
        page=_EFFICIENT_PAGE,
        layout='zip of a .pt, {"model": state dict}',
        licence="Apache-2.0",
        git_blob="fa4e9f05f753e109dbde052f97d37903b833cf53",
    ),
    Published(
        file="sam_vit_b_01ec64.pth",
        stage="sam",
        kind="sam_vit_b",
        page=_SAM_PAGE,
        layout=_SAM_LAYOUT,
        licence="Apache-2.0",
        bytes=375_042_383,
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    Published(
        file="sam_vit_l_0b3195.pth",
        stage="sam",
        kind="sam_vit_l",
        page=_SAM_PAGE,
        layout=_SAM_LAYOUT,
        licence="Apache-2.0",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    Published(
        file="sam_vit_h_4b8939.pth",
        stage="sam",
        kind="sam_vit_h",
        page=_SAM_PAGE,
        layout=_SAM_LAYOUT,
        licence="Apache-2.0",
        bytes=2_564_550_879,
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    Published(
        file="clip_vit_b16.safetensors",
        stage="clip",
        kind="a CLIP image tower (width 768, depth 12, patch 16, head of 512)",
        page="https://huggingface.co/timm/vit_base_patch16_clip_224.openai (model.safetensors, renamed)",
        layout="safetensors, timm's names",
        licence="Apache-2.0",
    ),
)

PUBLISHED: dict[str, Published] = {entry.file: entry for entry in _TABLE}
"""By file name. MobileSAM is not here: its image encoder (TinyViT) is none that the program builds."""


@dataclass(frozen=True, kw_only=True)
class Verification:
    """What is known about one file."""

    path: Path
    state: State
    """missing; found (nothing published to compare with); verified; differs."""
    published: Published | None
    """The entry of its name, or whose bytes it has; its `page` is where to get the file."""
    detail: str
    """What was compared, or what is wrong, in a few words."""


def verify(path: Path) -> Verification:
    """Compare a file with the published one of its name; reads all of it where a digest is known."""
    entry = PUBLISHED.get(path.name)
    if not path.is_file():
        detail = "not there" if entry else "not there, and no published file has that name"
        return Verification(path=path, state="missing", published=entry, detail=detail)
    if entry is None:
        return _unnamed(path)
    size = path.stat().st_size
    if entry.bytes is not None and size != entry.bytes:
        detail = f"{size:,} bytes, published are {entry.bytes:,}"
        return Verification(path=path, state="differs", published=entry, detail=detail)
    for name, published, hasher in (
        ("SHA-256", entry.sha256, hashlib.sha256()),
        ("git blob id", entry.git_blob, _git_blob(size)),
    ):
        if published is None:
            continue
        own = _digest(path, hasher)
        if own == published:
            return Verification(path=path, state="verified", published=entry, detail=f"{name} {own[:12]}")
        detail = f"{name} {own[:12]}, published is {published[:12]}"
        return Verification(path=path, state="differs", published=entry, detail=detail)
    return Verification(path=path, state="found", published=entry, detail="no digest is published")


def _unnamed(path: Path) -> Verification:
    """A file by another name: only its SHA-256 can tell whether it is a published one."""
    own = _digest(path, hashlib.sha256())
    for entry in PUBLISHED.values():
        if entry.sha256 == own:
            return Verification(path=path, state="verified", published=entry, detail=f"is {entry.file}, renamed")
    return Verification(path=path, state="found", published=None, detail=f"SHA-256 {own[:12]}")


def _git_blob(size: int) -> "hashlib._Hash":
    """What git names a file of `size` bytes by: SHA-1 over a header and its content."""
    return hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)


def _digest(path: Path, hasher: "hashlib._Hash") -> str:
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            hasher.update(block)
    return hasher.hexdigest()
