"""Checkpoints: every published container is read, no code in one runs, and a wrong file is named as what it is."""

import argparse
import hashlib
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from weakmcn.pipeline.config import PRESETS, PipelineConfig, preset
from weakmcn.pipeline.encoders import weights
from weakmcn.pipeline.encoders.clip import build_clip
from weakmcn.pipeline.encoders.dino import build_backbone, build_dino
from weakmcn.pipeline.encoders.efficient_sam import EfficientSam
from weakmcn.pipeline.encoders.identify import identify
from weakmcn.pipeline.encoders.published import PUBLISHED, verify
from weakmcn.pipeline.encoders.sam import build_sam
from weakmcn.pipeline.encoders.weights import examine, frozen, load_state, load_strict, resolve, resolve_all
from weakmcn.pipeline.encoders.yolov3 import YOLOv3
from weakmcn.shards.errors import CheckpointError

from .faults.weights import torch_file, zipped
from .tiny import write_data

STATE = {"a.weight": torch.arange(3000.0), "a.bias": torch.ones(2, 3)}


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.victim),)


def safetensors_bytes(tmp_path: Path) -> bytes:
    save_file(STATE, tmp_path / "made.safetensors")
    return (tmp_path / "made.safetensors").read_bytes()


def in_meta(build: Callable[[], nn.Module]) -> dict[str, Tensor]:
    with torch.device("meta"):
        return build().state_dict()


CONTAINERS: dict[str, Callable[[Path], bytes]] = {
    "torch": lambda _: torch_file(STATE),
    "torch, old format": lambda _: torch_file(STATE, legacy=True),
    "EfficientSAM's wrapper": lambda _: torch_file({"model": STATE}),
    "a training checkpoint": lambda _: torch_file({"epoch": 3, "state_dict": STATE, "lr": 1e-4, "optimizer": {}}),
    "several processes": lambda _: torch_file({f"module.{key}": value for key, value in STATE.items()}),
    "a zip of one": lambda _: zipped({"vits/w.pt": torch_file({"model": STATE}), "__MACOSX/vits/._w.pt": b"\0"}),
    "safetensors": safetensors_bytes,
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_published_container_gives_the_same_tensors_whatever_its_name(container: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(CONTAINERS[container](tmp_path))
    state = load_state(path)
    assert state.keys() == STATE.keys()
    assert all(torch.equal(state[key], value) for key, value in STATE.items())


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_cut_short_anywhere_is_one_clear_line(container: str, tmp_path: Path) -> None:
    data = CONTAINERS[container](tmp_path)
    path = tmp_path / "weights.pth"
    for size in [0, 1, 4, 9, *range(64, len(data), len(data) // 12), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError) as caught:
            load_state(path)
        message = str(caught.value)
        assert message.startswith(f"{path}: ")
        assert "fetch" in message
        assert len(message.splitlines()) == 1


def test_a_flipped_bit_in_a_torch_file_is_found_by_its_checksum(tmp_path: Path) -> None:
    data = bytearray(torch_file(STATE))
    data[len(data) // 2] ^= 1
    (tmp_path / "flipped.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged or partial download"):
        load_state(tmp_path / "flipped.pth")


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("inside", [False, True])
def test_no_code_in_a_checkpoint_runs(legacy: bool, inside: bool, tmp_path: Path) -> None:
    victim = tmp_path / "ran"
    data = torch_file(STATE | {"payload": Payload(victim)}, legacy=legacy)
    path = tmp_path / "payload.pth"
    path.write_bytes(zipped({"w.pth": data}) if inside else data)
    with pytest.raises(CheckpointError, match=r"refused, it asks for posix.mkdir, .* nothing in it was run"):
        load_state(path)
    assert not victim.exists()


def test_settings_and_scripts_saved_with_the_weights_are_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "args.pth").write_bytes(torch_file({"args": argparse.Namespace(lr=1), "state_dict": STATE}))
    with pytest.raises(CheckpointError, match=r"it asks for argparse.Namespace"):
        load_state(tmp_path / "args.pth")
    (tmp_path / "script.pt").write_bytes(zipped({"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/m.py": b""}))
    with pytest.raises(CheckpointError, match="a TorchScript archive"):
        load_state(tmp_path / "script.pt")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><html>Google Drive - Virus scan warning</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (b"just some text that nobody asked for", "is no checkpoint"),
        (torch_file([1, 2, 3]), "holds no state dict of tensors"),
        (zipped({"readme.txt": b"hello"}), "a zip with 0 checkpoints"),
        (zipped({"a.pt": b"", "b.pt": b""}), "a zip with 2 checkpoints"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_named_as_what_it_is(data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "yolov3_coco.pth").write_bytes(data)
    with pytest.raises(CheckpointError, match=said):
        load_state(tmp_path / "yolov3_coco.pth")


def test_a_zip_that_would_fill_the_memory_is_refused_before_it_is_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bomb.pt.zip").write_bytes(zipped({"w.pt": bytes(1 << 20)}))
    monkeypatch.setattr(weights, "MAX_INNER_BYTES", 1 << 19)
    with pytest.raises(CheckpointError, match="expected one of at most 524,288 bytes"):
        load_state(tmp_path / "bomb.pt.zip")
    monkeypatch.setattr(weights, "MAX_UNPACKED_BYTES", 1 << 19)
    with pytest.raises(CheckpointError, match="unpacks to more than 524,288 bytes"):
        load_state(tmp_path / "bomb.pt.zip")


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "sam_vit_b": lambda: build_sam(preset("sam-b").sam),
    "sam_vit_l": lambda: build_sam(preset("sam-l").sam),
    "sam_vit_h": lambda: build_sam(preset("sam-h").sam),
    "EfficientSAM-Ti": lambda: EfficientSam(preset("refcoco").sam),
    "EfficientSAM-S": lambda: EfficientSam(preset("refcoco-small").sam),
    "YOLOv3 (80 classes)": YOLOv3,
    "YOLOv3 (100 classes)": lambda: YOLOv3(classes=100),
    "YOLOv3 of width 4 (8 classes)": lambda: YOLOv3(width=4, classes=8),
    "DINOv2 S": lambda: build_dino(replace(preset("refcoco").dino, model="vit_small_patch14_dinov2")),
    "DINOv2 B": lambda: build_dino(preset("refcoco").dino),
    "DINOv2 L": lambda: build_dino(replace(preset("refcoco").dino, model="vit_large_patch14_dinov2")),
    "DINOv2 B with registers": lambda: build_dino(
        replace(preset("refcoco").dino, model="vit_base_patch14_reg4_dinov2")
    ),
    "a vision transformer (width 96, depth 4, patch 16)": lambda: build_dino(preset("pocket").dino),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_known_by_its_keys_and_shapes(name: str) -> None:
    assert identify(in_meta(NETWORKS[name])) == name


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"lang_encoder.x": [1], "seg_head.x": [1]}, "a WeakMCN checkpoint without its frozen networks"),
        (
            {
                "lang_encoder.x": [1],
                "seg_head.x": [1],
                "efficientsam.image_encoder.patch_embed.proj.weight": [192, 3, 16, 16],
            },
            "a WeakMCN checkpoint (EfficientSAM-Ti)",
        ),
        ({"lang_encoder.x": [1], "linear_vs.weight": [1]}, "a RefCLIP checkpoint"),
        ({"lang_encoder.x": [1], "tag_encoder.x": [1]}, "an APL checkpoint"),
        ({"image_encoder.patch_embed.seq.0.c.weight": [1]}, "MobileSAM (TinyViT image encoder)"),
        ({"image_encoder.trunk.x": [1], "sam_mask_decoder.x": [1]}, "a SAM 2 checkpoint"),
        (
            {"embeddings.patch_embeddings.projection.weight": [1024, 3], "embeddings.position_embeddings": [1]},
            "DINOv2 L",
        ),
        ({"cls_token": [1], "storage_tokens": [1], "patch_embed.proj.weight": [768, 3, 16, 16]}, "DINOv3 B"),
        ({"visual.conv1.weight": [1]}, "a CLIP checkpoint in OpenAI's or OpenCLIP's layout"),
        ({"b": [1], "a": []}, "an unknown network of 2 tensors (a, ...)"),
        ({}, "an unknown network of 0 tensors (none, ...)"),
    ],
)
def test_other_files_people_have_are_known_too(keys: dict[str, list[int]], name: str) -> None:
    assert identify({key: torch.zeros(shape, device="meta") for key, shape in keys.items()}) == name


def test_a_wrong_file_is_named_beside_what_was_asked_for() -> None:
    asked = NETWORKS["sam_vit_b"]
    with torch.device("meta"):
        net = asked()
    with pytest.raises(CheckpointError, match=r"x\.pth: this is sam_vit_l; sam_vit_b was asked for: ") as caught:
        load_strict(net, in_meta(NETWORKS["sam_vit_l"]), Path("x.pth"))
    assert len(str(caught.value)) < 500


def test_missing_and_surplus_keys_of_the_right_network_are_named(tmp_path: Path) -> None:
    state = YOLOv3(width=4, classes=8, side_px=192).state_dict()
    bias = state.pop("module_list.19.conv.bias")
    state = {f"visual_encoder.{key}": value for key, value in state.items()}
    torch.save(state | {"visual_encoder.extra": bias, "lang_encoder.x": bias}, tmp_path / "ckpt.pth")
    with pytest.raises(CheckpointError) as caught:
        frozen(YOLOv3(width=4, classes=8), str(tmp_path / "ckpt.pth"), "cpu", prefix="visual_encoder.")
    for said in (
        "is not all of YOLOv3 of width 4 (8 classes)",
        "1 keys missing (module_list.19.conv.bias)",
        "1 keys surplus (extra)",
    ):
        assert said in str(caught.value)


def test_a_checkpoint_of_another_width_names_the_first_shape_that_differs() -> None:
    with pytest.raises(
        CheckpointError, match=r"shapes differ \(module_list.0.batch_norm.bias is \[4\], wanted \[2\]\)"
    ):
        load_strict(YOLOv3(width=2, classes=8), YOLOv3(width=4, classes=8).state_dict(), Path("x.pth"))


def test_published_files_are_found_verified_or_told_to_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = b"weights"
    blob = hashlib.sha1(b"blob 7\0" + content).hexdigest()  # what `git hash-object` gives
    digest = hashlib.sha256(content).hexdigest()
    known = replace(PUBLISHED["sam_vit_b_01ec64.pth"], bytes=len(content), sha256=digest)
    by_git = replace(PUBLISHED["efficient_sam_vitt.pt"], git_blob=blob)
    monkeypatch.setitem(PUBLISHED, known.file, known)
    monkeypatch.setitem(PUBLISHED, by_git.file, by_git)
    for name in (known.file, by_git.file, "yolov3_coco.pth"):
        assert verify(tmp_path / name).state == "missing"
        (tmp_path / name).write_bytes(content)
    assert verify(tmp_path / known.file).state == verify(tmp_path / by_git.file).state == "verified"
    assert verify(tmp_path / "yolov3_coco.pth").state == "found"

    (tmp_path / by_git.file).write_bytes(b"another")
    assert "git blob id" in verify(tmp_path / by_git.file).detail
    (tmp_path / known.file).write_bytes(b"another")
    assert verify(tmp_path / known.file).state == "differs"
    (tmp_path / known.file).write_bytes(b"short")
    assert "5 bytes, published are 7" in verify(tmp_path / known.file).detail


def test_a_published_file_under_another_name_is_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.pth").write_bytes(b"weights")
    assert verify(tmp_path / "mine.pth").published is None
    entry = replace(PUBLISHED["sam_vit_l_0b3195.pth"], sha256=hashlib.sha256(b"weights").hexdigest())
    monkeypatch.setitem(PUBLISHED, entry.file, entry)
    assert verify(tmp_path / "mine.pth").detail == "is sam_vit_l_0b3195.pth, renamed"


def test_every_file_a_preset_asks_for_is_in_the_table_and_an_absent_one_names_its_source() -> None:
    for config in PRESETS.values():
        for section in (config.detect, config.dino, config.sam, config.clip):
            if config.name != "pocket":
                entry = PUBLISHED[Path(section.checkpoint).name]
                with pytest.raises(
                    CheckpointError, match=re.escape(f"no such checkpoint; put the file there (from {entry.page})")
                ):
                    resolve(f"nowhere/{entry.file}")


def test_weights_that_are_missing_are_told_all_at_once_with_their_pages() -> None:
    config = PRESETS["refcoco"]
    names = [f"nowhere/{Path(section.checkpoint).name}" for section in (config.detect, config.dino, config.sam)]
    with pytest.raises(CheckpointError) as caught:
        resolve_all([*names, "pocket:detect", names[0]])
    message = str(caught.value)
    assert message.startswith("3 checkpoints are missing: nowhere/yolov3_coco.pth (from https://")
    assert all(f"{name} (from {PUBLISHED[Path(name).name].page})" in message for name in names)
    assert "\n" not in message


def networks_of(config: PipelineConfig) -> dict[str, Callable[[], nn.Module]]:
    """Checkpoint -> its network, of every stage of a preset."""
    sam = config.sam
    return {
        config.detect.checkpoint: lambda: YOLOv3(config.detect.width, config.detect.classes),
        config.dino.checkpoint: lambda: build_backbone(config.dino),
        sam.checkpoint: lambda: EfficientSam(sam) if sam.family == "efficient_sam" else build_sam(sam),
        config.clip.checkpoint: lambda: build_clip(config.clip),
    }


def test_every_published_file_says_what_the_network_in_it_is_called() -> None:
    builders = {Path(name).name: build for each in PRESETS.values() for name, build in networks_of(each).items()}
    asked = {file: identify(in_meta(build)) for file, build in builders.items() if file in PUBLISHED}
    others = {"dinov2_vits14_pretrain.pth": "DINOv2 S", "dinov2_vitl14_pretrain.pth": "DINOv2 L"}  # of no preset
    assert {file: entry.kind for file, entry in PUBLISHED.items()} == asked | others


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("container", CONTAINERS)
def test_a_file_is_looked_at_without_its_numbers_being_loaded(container: str, mapped: bool, tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(CONTAINERS[container](tmp_path))
    shapes = {key: value.shape for key, value in load_state(path, mapped=mapped).items()}
    assert shapes == {key: value.shape for key, value in STATE.items()}


def thin_yolo(path: Path, *, classes: int) -> Path:
    """The detector's file with one number a tensor: keys and shapes are all that is asked for."""
    shapes = {key: value.shape for key, value in in_meta(lambda: YOLOv3(classes=classes)).items()}
    torch.save({key: torch.zeros(()).expand(shape) for key, shape in shapes.items()}, path)
    return path


def test_a_file_without_published_digest_is_told_by_the_network_in_it(tmp_path: Path) -> None:
    seen = examine(thin_yolo(tmp_path / "yolov3_coco.pth", classes=80))
    assert (seen.state, seen.detail) == ("found", "YOLOv3 (80 classes); no digest is published")
    seen = examine(thin_yolo(tmp_path / "yolov3_coco.pth", classes=100))
    assert (seen.state, seen.detail) == ("differs", "this is YOLOv3 (100 classes); YOLOv3 (80 classes) was asked for")
    seen = examine(thin_yolo(tmp_path / "mine.pth", classes=100))
    assert (seen.state, seen.detail) == ("found", "YOLOv3 (100 classes)")


def test_a_file_of_another_size_or_digest_is_told_to_be_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {key: torch.zeros(1).expand(value.shape) for key, value in in_meta(NETWORKS["sam_vit_l"]).items()}
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(large, path)
    seen = examine(path)
    assert (seen.state, seen.detail) == ("differs", "this is sam_vit_l; sam_vit_b was asked for")

    monkeypatch.setitem(PUBLISHED, path.name, replace(PUBLISHED[path.name], kind="sam_vit_l"))
    assert re.fullmatch(r"sam_vit_l; [\d,]+ bytes, published are 375,042,383", examine(path).detail)
    content = path.read_bytes()
    digest = hashlib.sha256(content).hexdigest()
    monkeypatch.setitem(PUBLISHED, path.name, replace(PUBLISHED[path.name], bytes=len(content), sha256=digest))
    assert (examine(path).state, examine(path).detail) == ("verified", f"SHA-256 {digest[:12]}")
    path.write_bytes(content[:-1000] + bytes(1000))
    assert (examine(path).state, examine(path).detail[:7]) == ("differs", "damaged")


@pytest.mark.parametrize("legacy", [False, True])
def test_looking_at_a_file_runs_no_code_in_it(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "sam_vit_h_4b8939.pth"
    path.write_bytes(torch_file({"a": Payload(tmp_path / "ran")}, legacy=legacy))
    seen = examine(path)
    assert seen.state == "differs"
    assert seen.detail.startswith("refused, it asks for posix.mkdir")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"<!DOCTYPE html><html>quota exceeded</html>", "is a web page, not weights"),
        (torch_file(STATE)[:2000], "damaged or partial download"),
        (torch_file({"module_list.0.conv.weight": torch.ones(8, 3, 3, 3)}), "this is YOLOv3 of width 8, cut short; "),
        ("payload", "refused, it asks for posix.mkdir"),
        ("old payload", "refused, it asks for posix.mkdir"),
    ],
    ids=["web page", "cut", "other network", "code", "code, old format"],
)
def test_precompute_refuses_a_bad_checkpoint_before_a_shard_is_made_and_runs_no_code(
    run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_data(Path("data"), images=2, val=1)
    if isinstance(content, str):
        content = torch_file({"a": Payload(tmp_path / "ran")}, legacy=content == "old payload")
    Path("bad.pth").write_bytes(content)
    words = ["--data", "data", "--dataset", "refcoco", "--store", "store", "--executor", "local"]
    ended = run("precompute", *words, "--preset", "pocket", "--checkpoint", "detect=bad.pth")
    assert ended.status == 2
    assert ended.err.splitlines()[-1].startswith(f"weakmcn: bad.pth: {says}")
    assert "Traceback" not in ended.err
    assert list(Path("store").rglob("*.tar")) == []
    assert not (tmp_path / "ran").exists()


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "yolov3_coco.pth"
    path.symlink_to("/proc/self/mem")  # a plain file whose first byte no process can read
    assert (examine(path).state, examine(path).detail) == ("differs", "Input/output error")
