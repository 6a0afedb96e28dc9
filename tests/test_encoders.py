"""The frozen networks at their published sizes, from every published form of their weights, on one square.

Weights are random: what is proved is structure and arithmetic. `data/official_encoders.json` holds the keys and shapes
of the released networks; `*` stands for every block or layer.
"""

import json
import os
import re
import resource
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from segment_anything import sam_model_registry
from torch import Tensor, nn
from weakmcn.pipeline.config import PRESETS, ClipConfig, DinoConfig, PipelineConfig, preset
from weakmcn.pipeline.encoders.clip import build_clip, joint_tokens
from weakmcn.pipeline.encoders.dino import (
    Backbone,
    DinoEncoder,
    build_backbone,
    build_dino,
    patch_tokens,
    position_table,
    timm_state,
)
from weakmcn.pipeline.encoders.efficient_sam import EfficientSam
from weakmcn.pipeline.encoders.reestimate import reestimate, write_reestimated
from weakmcn.pipeline.encoders.sam import MaskEncoder, SamEncoder, build_sam
from weakmcn.pipeline.encoders.yolov3 import DetectEncoder, YOLOv3, prompt_boxes
from weakmcn.pipeline.images import Photo
from weakmcn.shards.codec import unpack_masks
from weakmcn.shards.errors import ConfigError
from weakmcn.shards.geometry import PADDING, Letterbox

FACTS = json.loads((Path(__file__).parent / "data" / "official_encoders.json").read_text())
POCKET = preset("pocket")
PAPER = preset("refcoco")


def shapes(net: nn.Module) -> dict[str, list[int]]:
    return {key: list(value.shape) for key, value in net.state_dict().items()}


def photo(height: int, width: int, side: int, seed: int = 0) -> Photo:
    rgb = np.random.RandomState(seed).randint(0, 256, (height, width, 3), np.uint8)
    return Photo(key=f"{seed:012}", rgb=rgb, letterbox=Letterbox.fit(height, width, side), sha256=f"{seed:064x}")


def saved(net: nn.Module, path: Path) -> str:
    save_file({key: value.contiguous() for key, value in net.state_dict().items()}, path)
    return str(path)


# Detector


def test_the_detector_has_the_published_keys_shapes_and_size() -> None:
    with torch.device("meta"):
        net = YOLOv3()
    assert shapes(net) == FACTS["yolov3"]
    assert sum(parameter.numel() for parameter in net.parameters()) == 75_554_428
    with torch.device("meta"):
        assert shapes(YOLOv3(classes=100)) == FACTS["yolov3"] | FACTS["yolov3_referit100"]


@pytest.mark.parametrize("module", ["", "module."])
def test_a_checkpoint_of_a_whole_system_gives_its_own_detector(module: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = YOLOv3(POCKET.detect.width, POCKET.detect.classes, POCKET.side_px)
    bare, whole = tmp_path / "yolov3.pth", tmp_path / "det_best.pth"
    state = net.state_dict()
    torch.save(state, bare)
    inside = {f"{module}visual_encoder.{key}": value for key, value in state.items()}
    others = {f"{module}lang_encoder.lstm.bias_ih_l0": torch.zeros(3), f"{module}linear_vs.bias": torch.zeros(3)}
    torch.save({"epoch": 3, "state_dict": inside | others, "optimizer": {}, "scheduler": {}, "lr": 1e-4}, whole)

    records = []
    for checkpoint in (bare, whole):
        config = replace(POCKET, detect=replace(POCKET.detect, checkpoint=str(checkpoint), batch=1))
        records += DetectEncoder(config, "cpu").encode([photo(60, 90, POCKET.side_px)], [{}])
    assert all(np.array_equal(records[0][field], records[1][field]) for field in records[0])


def test_reestimated_statistics_are_the_mean_over_batches_and_the_same_bytes_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = YOLOv3(4, 8, 192).eval()
    weights = {key: value.clone() for key, value in net.state_dict().items() if "running" not in key}
    batches = [torch.randn(2, 3, 192, 192), 3 + torch.randn(2, 3, 192, 192)]
    first = net.module_list[0]
    with torch.no_grad():
        seen = [first.conv(batch) for batch in batches]  # type: ignore[union-attr]
        reestimate(net, batches)
    norm = first.batch_norm
    assert isinstance(norm, nn.BatchNorm2d)
    torch.testing.assert_close(norm.running_mean, sum(x.mean(dim=(0, 2, 3)) for x in seen) / 2)
    torch.testing.assert_close(norm.running_var, sum(x.var(dim=(0, 2, 3)) for x in seen) / 2)
    assert norm.momentum == 0.1
    assert not net.training
    assert all(torch.equal(net.state_dict()[key], value) for key, value in weights.items() if "tracked" not in key)

    config = replace(
        POCKET, detect=replace(POCKET.detect, checkpoint=saved(net, tmp_path / "net.safetensors"), batch=2)
    )
    photos = [photo(60, 90, POCKET.side_px, seed) for seed in range(3)]
    one, two = (
        write_reestimated(config, photos, tmp_path / name, "cpu") for name in ("1.safetensors", "2.safetensors")
    )
    assert one.read_bytes() == two.read_bytes()
    assert load_file(one)["module_list.0.batch_norm.num_batches_tracked"] == 2
    with pytest.raises(ConfigError, match="no photo"):
        write_reestimated(config, [], tmp_path / "none.safetensors", "cpu")


# DINO


def bicubic_by_hand(square: np.ndarray, outputs: int, scale: float) -> np.ndarray:
    """[n, n] to [outputs, outputs]: Keys' kernel with a = -0.75, half-pixel centres, edge values repeated."""
    size = len(square)

    def rows() -> np.ndarray:
        weights = np.zeros((outputs, size))
        for i in range(outputs):
            centre = (i + 0.5) / scale - 0.5
            for tap in range(int(np.floor(centre)) - 1, int(np.floor(centre)) + 3):
                x = abs(centre - tap)
                near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
                weights[i, min(max(tap, 0), size - 1)] += near if x <= 1 else far if x < 2 else 0
        return weights

    return rows() @ square @ rows().T


def test_the_position_table_is_resampled_by_the_recipe_of_dinov2s_release() -> None:
    torch.manual_seed(0)
    table = torch.randn(1, 1 + 37 * 37, 6)
    square = table[:, 1:].reshape(1, 37, 37, 6).permute(0, 3, 1, 2)
    recipe = F.interpolate(square, scale_factor=((26 + 0.1) / 37, (26 + 0.1) / 37), mode="bicubic", align_corners=False)
    ours = position_table(table, 1, 26)

    assert ours.shape == (1, 1 + 26 * 26, 6)
    assert torch.equal(ours[:, :1], table[:, :1])
    assert torch.equal(ours[0, 1:], recipe[0].flatten(1).T)  # 0.0 away
    by_hand = bicubic_by_hand(square[0, 2].double().numpy(), 26, 26.1 / 37)
    np.testing.assert_allclose(ours[0, 1:, 2].reshape(26, 26), by_hand, atol=1e-4)
    to_size = bicubic_by_hand(square[0, 2].double().numpy(), 26, 26 / 37)
    np.testing.assert_allclose(position_table(table, 1, 26, "size")[0, 1:, 2].reshape(26, 26), to_size, atol=1e-4)
    assert torch.equal(position_table(table, 1, 37), table)


def dinov2(name: str = "vit_small_patch14_dinov2") -> tuple[DinoConfig, Backbone, dict[str, Tensor]]:
    """A shallow DINOv2 at 364 pixels and a state dict as Meta publishes it, for 518."""
    config = DinoConfig(checkpoint="", model=name, options={"depth": 2}, channels=384)
    registers = {"register_tokens": torch.randn(1, 4, 384)} if "reg4" in name else {}
    table = {"pos_embed": torch.randn(1, 1370, 384), "mask_token": torch.zeros(1, 384), **registers}
    own = build_backbone(config).state_dict()
    own.pop("reg_token", None)
    return config, build_backbone(config), {key: torch.randn_like(value) for key, value in own.items()} | table


def in_transformers_names(state: dict[str, Tensor], query: str, out: str) -> dict[str, Tensor]:
    """Meta's DINOv2 names as transformers has them; `query` and `out` tell 4.x from 5.x."""
    renamed = {}
    for key, value in state.items():
        block = re.sub(r"^blocks\.", "encoder.layer.", key)
        block = block.replace("attn.proj", f"attention.{out}")
        block = re.sub(r"ls(\d)\.gamma", r"layer_scale\1.lambda1", block)
        block = re.sub(r"^norm\.", "layernorm.", block)
        block = re.sub(r"^(cls_token|mask_token)$", r"embeddings.\1", block)
        block = block.replace("pos_embed", "embeddings.position_embeddings")
        block = block.replace("patch_embed.proj", "embeddings.patch_embeddings.projection")
        if ".attn.qkv." in block:
            names = [query.replace("query", name) for name in ("query", "key", "value")]
            if query == "attention.q_proj":
                names = ["attention.q_proj", "attention.k_proj", "attention.v_proj"]
            for name, third in zip(names, value.chunk(3), strict=True):
                renamed[block.replace("attn.qkv", name)] = third
        else:
            renamed[block] = value
    return renamed


@pytest.mark.parametrize(
    ("query", "out"), [("attention.attention.query", "output.dense"), ("attention.q_proj", "o_proj")]
)
def test_dinov2_of_meta_and_of_transformers_are_the_same_network(query: str, out: str) -> None:
    config, net, meta = dinov2()
    hugging = in_transformers_names(meta, query, out)
    if out == "output.dense":
        layers = range(2)
        official = {key.replace("*", str(i)) for key in FACTS["dinov2_base"] for i in layers}
        assert hugging.keys() == official
    expected = timm_state(meta, net, config.position_resampling)
    converted = timm_state(hugging, net, config.position_resampling)
    assert expected.keys() == net.state_dict().keys() == converted.keys()
    assert all(torch.equal(converted[key], value) for key, value in expected.items())


def test_registers_stay_out_of_the_position_table_and_of_the_tokens() -> None:
    config, net, meta = dinov2("vit_small_patch14_reg4_dinov2")
    state = timm_state(meta, net, config.position_resampling)
    net.load_state_dict(state)
    assert torch.equal(state["cls_token"], meta["cls_token"] + meta["pos_embed"][:, :1])
    assert net.num_prefix_tokens == 5
    assert patch_tokens(net.eval(), torch.zeros(1, 3, 364, 364)).shape == (1, 384, 26, 26)


def test_dinov3_gives_26_by_26_tokens_at_416_without_its_five_prefix_tokens() -> None:
    config = DinoConfig(
        checkpoint="", model="vit_small_patch16_dinov3", input_px=416, channels=384, options={"depth": 2}
    )
    torch.manual_seed(0)
    net = build_backbone(config).eval()
    x = torch.randn(1, 3, 416, 416)
    with torch.inference_mode():
        tokens = patch_tokens(net, x)
        assert torch.equal(tokens[0, :, 3, 7], net.forward_features(x)[0, 5 + 3 * 26 + 7])
    assert tokens.shape == (1, 384, 26, 26)

    own = net.state_dict()
    meta = {re.sub(r"gamma_(\d)", r"ls\1.gamma", key): value for key, value in own.items() if key != "reg_token"}
    meta |= {
        "storage_tokens": own["reg_token"],
        "mask_token": torch.zeros(1, 384),
        "rope_embed.periods": torch.ones(16),
        "blocks.0.attn.qkv.bias": torch.zeros(3 * 384),
        "blocks.0.attn.qkv.bias_mask": torch.full((3 * 384,), torch.nan),
    }
    converted = timm_state(meta, net, "meta")
    assert converted.keys() == own.keys()
    assert all(torch.equal(converted[key], value) for key, value in own.items())
    with pytest.raises(ConfigError, match="no plain vision transformer"):
        build_dino(config)


def test_an_input_whose_tokens_miss_the_canvas_grid_is_refused() -> None:
    config = replace(PAPER, dino=replace(PAPER.dino, input_px=420, options={"depth": 1}))
    with pytest.raises(ConfigError, match="30 patches a side, the canvas grid has 26; choose 364"):
        DinoEncoder(config, "cpu")


# SAM


@pytest.mark.parametrize("size", ["b", "l", "h"])
def test_sam_has_the_published_keys_and_shapes(size: str) -> None:
    with torch.device("meta"):
        ours, official = build_sam(preset(f"sam-{size}").sam), sam_model_registry[f"vit_{size}"]()
    assert shapes(ours) == shapes(official)


@settings(max_examples=40, deadline=None)
@given(
    height=st.integers(40, 500),
    width=st.integers(40, 500),
    image_px=st.sampled_from([416, 1024]),
    corners=st.tuples(*(st.floats(0, 1) for _ in range(4))),
)
def test_a_rectangle_of_the_photo_and_its_box_prompt_meet_on_the_square_sam_sees(
    height: int, width: int, image_px: int, corners: tuple[float, float, float, float]
) -> None:
    left, right = sorted(round(at * (width - 16)) for at in corners[:2])
    top, bottom = sorted(round(at * (height - 16)) for at in corners[2:])
    right, bottom = right + 16, bottom + 16
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[top:bottom, left:right] = 255
    seen = Photo(key="0" * 12, rgb=rgb, letterbox=Letterbox.fit(height, width, 416))

    box = seen.letterbox.to_canvas(np.array([left, top, right, bottom]))
    centre_size = np.array([*(box[:2] + box[2:]) / 2, *(box[2:] - box[:2]), 1.0], np.float32)
    detected = np.tile(centre_size, (1, 4, 1))  # one candidate, its four boxes alike
    prompt = prompt_boxes(seen, detected)[0] * (image_px / 416)

    square = seen.letterbox.image(rgb, image_px)
    rows, columns = np.nonzero(square[..., 0] > PADDING)
    drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert np.abs(prompt - drawn).max() <= 1


# CLIP


def test_clip_resamples_its_published_table_for_tokens_and_uses_it_as_is_for_candidates() -> None:
    config = ClipConfig(
        checkpoint="", model="vit_base_patch16_clip_quickgelu_224.openai", table_px=224, options={"depth": 1}
    )
    torch.manual_seed(0)
    net = build_clip(config).eval()
    assert net.pos_embed is not None
    assert net.pos_embed.shape == (1, 1 + 14 * 14, 768)
    plain = timm.create_model(config.model, pretrained=False, num_classes=512, depth=1).eval()
    plain.load_state_dict(net.state_dict())
    with torch.inference_mode():
        assert joint_tokens(net, torch.zeros(1, 3, 416, 416)).shape == (1, 1 + 26 * 26, 512)
        x = torch.randn(1, 3, 224, 224)
        torch.testing.assert_close(net(x), plain(x))


# Presets and real sizes


def test_presets_name_the_papers_networks_and_their_replacements() -> None:
    paper = {"refcoco", "refcoco+", "refcocog"}
    assert set(PRESETS) == paper | {f"{name}-small" for name in paper} | {"pocket", "sam-b", "sam-l", "sam-h", "dinov3"}
    assert {PRESETS[name].sam.embed_dim for name in paper} == {192}
    assert all(PRESETS[f"{name}-small"].sam.embed_dim == 384 for name in paper)
    assert preset("sam-h").sam.mask_inputs == ("detect.boxes",)
    assert preset("dinov3").dino.input_px == preset("dinov3").side_px
    with pytest.raises(ConfigError, match="did you mean 'refcoco-small'"):
        preset("refcoco_small")
    with pytest.raises(ConfigError, match="choose meta or size"):
        replace(PAPER.dino, position_resampling="bilinear")
    with pytest.raises(ConfigError, match="choose sam or efficient_sam"):
        replace(PAPER.sam, family="sam2")


def one_image(config: PipelineConfig) -> PipelineConfig:
    return replace(
        config,
        detect=replace(config.detect, batch=1),
        dino=replace(config.dino, batch=1),
        sam=replace(config.sam, batch=1),
    )


def detect(config: PipelineConfig, seen: Photo, path: Path) -> None:
    config = replace(config, detect=replace(config.detect, checkpoint=saved(YOLOv3(), path)))
    record = DetectEncoder(config, "cpu").encode([seen], [{}])[0]
    assert {name: record[name].shape for name in ("s8", "s16", "s32", "boxes", "classes")} == {
        "s8": (256, 52, 52),
        "s16": (512, 26, 26),
        "s32": (1024, 13, 13),
        "boxes": (17, 4, 5),
        "classes": (17, 80),
    }


def dino(config: PipelineConfig, seen: Photo, path: Path) -> None:
    config = replace(config, dino=replace(config.dino, checkpoint=saved(build_dino(config.dino), path)))
    assert DinoEncoder(config, "cpu").encode([seen], [{}])[0]["tokens"].shape == (768, 26, 26)


def segment(config: PipelineConfig, seen: Photo, path: Path) -> None:
    efficient = config.sam.family == "efficient_sam"
    net = EfficientSam(config.sam) if efficient else build_sam(config.sam)
    config = replace(config, sam=replace(config.sam, checkpoint=saved(net, path)))
    stored = SamEncoder(config, "cpu").encode([seen], [{}])[0]["embedding"] if efficient else np.zeros(0)
    boxes = np.random.RandomState(0).uniform(50, 300, (17, 4, 5)).astype(np.float32)
    record = MaskEncoder(config, "cpu").encode([seen], [{"detect.boxes": boxes, "sam.embedding": stored}])[0]
    assert stored.shape == ((256, 26, 26) if efficient else (0,))
    assert unpack_masks(record["bits"], 17, 416).shape == (17, 416, 52)
    assert record["iou"].shape == (17,)


REAL_SIZES = pytest.mark.skipif(
    "WEAKMCN_REAL_SIZES" not in os.environ, reason="half a minute of one core; set WEAKMCN_REAL_SIZES=1 to run it"
)


@pytest.mark.parametrize(
    ("name", "run"),
    [("refcoco", detect), ("refcoco", dino), ("refcoco", segment), pytest.param("sam-b", segment, marks=REAL_SIZES)],
)
def test_a_network_of_the_real_size_runs_on_a_photo_within_8_gib(
    name: str, run: Callable[[PipelineConfig, Photo, Path], None], tmp_path: Path
) -> None:
    run(one_image(preset(name)), photo(480, 640, 416), tmp_path / "random.safetensors")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 8 << 20  # KiB
