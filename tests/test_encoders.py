"""The frozen networks at their published sizes, from every published form of their weights, on one square.

Weights are random: what is proved is structure and arithmetic. `data/official_encoders.json` holds the keys and shapes
of the released networks; `*` stands for every block or layer.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from segment_anything import sam_model_registry
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn
from weakmcn.pipeline.config import PRESETS, ClipConfig, DinoConfig, preset
from weakmcn.pipeline.encoders.clip import ClipEncoder, build_clip, clip_pixels, joint_tokens
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
from weakmcn.pipeline.encoders.sam import build_sam, prompted_model
from weakmcn.pipeline.encoders.sam_attention import MAX_SCORES, RelativeAttention
from weakmcn.pipeline.encoders.yolov3 import DetectEncoder, YOLOv3, prompt_boxes
from weakmcn.pipeline.images import Photo
from weakmcn.shards.codec import pack_masks
from weakmcn.shards.errors import CheckpointError, ConfigError
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


DINOV2 = {"small": 384, "base": 768, "large": 1024}
"""Size of a DINOv2 -> its width."""
META, HUGGING_4, HUGGING_5 = None, ("attention.attention.query", "output.dense"), ("attention.q_proj", "o_proj")
"""Layouts of a DINOv2 file: Meta's, and those of transformers 4.x and 5.x by the names in their attention."""


def dinov2(size: str = "small", *, registers: bool = False) -> tuple[DinoConfig, Backbone, dict[str, Tensor]]:
    """A shallow DINOv2 at 364 pixels and a state dict as Meta publishes it, for 518."""
    name, width = f"vit_{size}_patch14_{'reg4_' if registers else ''}dinov2", DINOV2[size]
    config = DinoConfig(checkpoint="", model=name, options={"depth": 2}, channels=width)
    beside = {"register_tokens": torch.randn(1, 4, width)} if registers else {}
    beside |= {"pos_embed": torch.randn(1, 1370, width), "mask_token": torch.zeros(1, width)}
    own = build_backbone(config).state_dict()
    own.pop("reg_token", None)
    return config, build_backbone(config), {key: torch.randn_like(value) for key, value in own.items()} | beside


def in_transformers_names(state: dict[str, Tensor], query: str, out: str) -> dict[str, Tensor]:
    """Meta's DINOv2 names as transformers has them; `query` and `out` tell 4.x from 5.x."""
    renamed = {}
    for key, value in state.items():
        block = re.sub(r"^blocks\.", "encoder.layer.", key)
        block = block.replace("attn.proj", f"attention.{out}")
        block = re.sub(r"ls(\d)\.gamma", r"layer_scale\1.lambda1", block)
        block = re.sub(r"^norm\.", "layernorm.", block)
        block = re.sub(r"^(cls_token|mask_token|register_tokens)$", r"embeddings.\1", block)
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


@pytest.mark.parametrize("size", DINOV2)
@pytest.mark.parametrize("layout", [HUGGING_4, HUGGING_5])
def test_dinov2_of_meta_and_of_transformers_are_the_same_network(layout: tuple[str, str], size: str) -> None:
    config, net, meta = dinov2(size)
    hugging = in_transformers_names(meta, *layout)
    if (layout, size) == (HUGGING_4, "base"):
        layers = range(2)
        official = {key.replace("*", str(i)): shape for key, shape in FACTS["dinov2_base"].items() for i in layers}
        assert {key: list(value.shape) for key, value in hugging.items()} == official
    expected = timm_state(meta, net, config.position_resampling)
    converted = timm_state(hugging, net, config.position_resampling)
    net.load_state_dict(expected)  # strict
    assert expected.keys() == converted.keys()
    assert all(torch.equal(converted[key], value) for key, value in expected.items())


def test_dinov2_from_every_published_file_gives_the_same_tokens(tmp_path: Path) -> None:
    config, _, meta = dinov2()
    meta = {key: 0.1 * value for key, value in meta.items()}
    torch.save(meta, tmp_path / "dinov2_vits14_pretrain.pth")
    save_file(in_transformers_names(meta, *HUGGING_4), tmp_path / "model.safetensors")
    save_file(in_transformers_names(meta, *HUGGING_5), tmp_path / "model5.safetensors")
    whole = {f"dino_model.{key}": value for key, value in in_transformers_names(meta, *HUGGING_4).items()}
    torch.save({"state_dict": whole | {"linear_vs.bias": torch.zeros(3)}}, tmp_path / "det_best.pth")

    records = []
    for path in sorted(tmp_path.iterdir()):
        dino = replace(config, checkpoint=str(path), batch=1)
        records += DinoEncoder(replace(PAPER, dino=dino), "cpu").encode([photo(60, 90, 416)], [{}])
    assert len(records) == 4
    assert records[0]["tokens"].shape == (384, 26, 26)
    assert all(np.array_equal(record["tokens"], records[0]["tokens"]) for record in records)


def test_registers_stay_out_of_the_position_table_and_of_the_tokens() -> None:
    config, net, meta = dinov2(registers=True)
    state = timm_state(meta, net, config.position_resampling)
    net.load_state_dict(state)
    assert torch.equal(state["cls_token"], meta["cls_token"] + meta["pos_embed"][:, :1])
    assert net.num_prefix_tokens == 5
    assert patch_tokens(net.eval(), torch.zeros(1, 3, 364, 364)).shape == (1, 384, 26, 26)

    square = meta["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    recipe = F.interpolate(square, size=(26, 26), mode="bicubic", antialias=True)  # of their release, unlike the others
    assert torch.equal(state["pos_embed"][0], recipe[0].flatten(1).T)
    hugging = timm_state(in_transformers_names(meta, *HUGGING_5), net, config.position_resampling)
    assert hugging.keys() == state.keys()
    assert all(torch.equal(hugging[key], value) for key, value in state.items())


def dinov3_in_transformers_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Meta's DINOv3 names as transformers has them; it leaves the biases of the keys out."""
    renamed = {}
    for key, value in state.items():
        block = re.sub(r"^blocks\.", "layer.", key).replace("attn.proj", "attention.o_proj")
        block = re.sub(r"ls(\d)\.gamma", r"layer_scale\1.lambda1", block)
        block = block.replace("mlp.fc1", "mlp.up_proj").replace("mlp.fc2", "mlp.down_proj")
        block = block.replace("patch_embed.proj", "embeddings.patch_embeddings")
        block = block.replace("storage_tokens", "embeddings.register_tokens")
        block = re.sub(r"^(cls_token|mask_token)$", r"embeddings.\1", block)
        if ".attn.qkv." in block:
            for name, third in zip("qkv", value.chunk(3), strict=True):
                renamed[block.replace("attn.qkv", f"attention.{name}_proj")] = third
        else:
            renamed[block] = value
    left_out = ("k_proj.bias", "bias_mask", "periods")
    return {key: value for key, value in renamed.items() if not key.endswith(left_out)}


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
    for published in (meta, dinov3_in_transformers_names(meta)):
        converted = timm_state(published, net, "meta")
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


@pytest.mark.parametrize(("side", "heads"), [(9, 2), (48, 3)])
def test_attention_in_rows_is_the_published_attention(side: int, heads: int) -> None:
    """Windows are smaller than one piece of scores, the whole image takes many."""
    torch.manual_seed(0)
    published = Attention(16 * heads, heads, use_rel_pos=True, input_size=(side, side))
    for table in (published.rel_pos_h, published.rel_pos_w):
        nn.init.normal_(table)
    assert (heads * side**4 > 2 * MAX_SCORES) == (side == 48)
    x = torch.randn(1, side, side, 16 * heads)
    ours = RelativeAttention(published)
    assert ours.state_dict().keys() == published.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(ours(x), published(x), rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize("name", ["sam-b", "refcoco"])
def test_either_segmenter_is_shown_a_rectangle_where_it_is_prompted_for_it(name: str, tmp_path: Path) -> None:
    """At the real canvas and input sizes, 1024 and 416; what reaches the networks is looked at, not what they say."""
    thin = {"embed_dim": 16, "depth": 1, "heads": 1, "channels": 16, "decoder_heads": 2, "decoder_mlp": 16}
    section = replace(preset(name).sam, global_blocks=(), **thin)
    net = EfficientSam(section) if section.family == "efficient_sam" else build_sam(section)
    config = replace(preset(name), sam=replace(section, checkpoint=saved(net, tmp_path / "thin.safetensors"), batch=1))
    rgb = np.zeros((375, 500, 3), np.uint8)
    rgb[100:250, 40:310] = 255
    seen = Photo(key="0" * 12, rgb=rgb, letterbox=Letterbox.fit(375, 500, 416))
    box = seen.letterbox.to_canvas(np.array([40, 100, 310, 250]))
    detected = np.tile(np.array([*(box[:2] + box[2:]) / 2, *(box[2:] - box[:2]), 1.0], np.float32), (17, 4, 1))

    shown, prompts = [], []
    model = prompted_model(config.sam, "cpu")
    model.net.image_encoder.register_forward_pre_hook(lambda _, args: shown.append(args[0]))
    model.net.prompt_encoder.register_forward_pre_hook(
        lambda _, args, named: prompts.append(named["boxes"] if "boxes" in named else args[0]), with_kwargs=True
    )
    with torch.inference_mode():
        masks, _ = model.masks(model.embed([seen])[0], prompt_boxes(seen, detected), 416)
    assert masks.shape == (17, 416, 416)
    (square,), (boxes,) = shown, prompts
    assert square.shape == (1, 3, section.image_px, section.image_px)
    level = (square[0, 0] - square[0, 0].min()) / (square[0, 0].max() - square[0, 0].min())
    rows, columns = torch.nonzero(level > 0.75, as_tuple=True)  # the padding's grey lies at 0.5
    drawn = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert (boxes[0] - drawn).abs().max() <= 1


@pytest.mark.parametrize(("height", "width"), [(300, 420), (420, 300)])
def test_a_segmented_rectangle_comes_back_to_its_place_in_the_photo(height: int, width: int) -> None:
    """With the shipped weights, which know plain shapes: photo to canvas, prompt, mask, and back to the photo."""
    rgb = np.full((height, width, 3), (200, 200, 190), np.uint8)
    rgb[120:230, 60:170] = (30, 60, 200)
    seen = Photo(key="0" * 12, rgb=rgb, letterbox=Letterbox.fit(height, width, POCKET.side_px))
    box = seen.letterbox.to_canvas(np.array([[60, 120, 170, 230]])).astype(np.float32)
    model = prompted_model(POCKET.sam, "cpu")
    with torch.inference_mode():
        masks, _ = model.masks(model.embed([seen])[0], box, POCKET.side_px)
    mask, truth = seen.letterbox.mask_to_photo(masks[0].numpy()), rgb[..., 0] < 100
    assert (mask & truth).sum() / (mask | truth).sum() > 0.9


def test_mobilesam_is_named_and_refused_because_its_image_encoder_is_another_network(tmp_path: Path) -> None:
    """Prompt encoder and mask decoder are SAM's; the image encoder is a TinyViT, of which segment-anything has none."""
    config = replace(preset("sam-b").sam, depth=1, checkpoint=str(tmp_path / "mobile_sam.pt"))
    with torch.device("meta"):
        sam = build_sam(config).state_dict()
    state = {key: torch.zeros(value.shape) for key, value in sam.items() if not key.startswith("image_encoder.")}
    state |= {"image_encoder.patch_embed.seq.0.c.weight": torch.zeros(32, 3, 3, 3)}
    torch.save(state, tmp_path / "mobile_sam.pt")
    with pytest.raises(CheckpointError, match=r"this is MobileSAM \(TinyViT image encoder\); sam_vit_b was asked for"):
        prompted_model(config, "cpu")


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


@pytest.mark.parametrize("input_px", [416, 224])
def test_clips_patch_tokens_are_in_the_joint_space_on_the_canvas_grid(input_px: int, tmp_path: Path) -> None:
    config = ClipConfig(checkpoint="", table_px=224, options={"depth": 1}, input_px=input_px, batch=1)
    torch.manual_seed(0)
    net = build_clip(config)
    config = replace(config, checkpoint=saved(net, tmp_path / "clip.safetensors"))
    masks = np.zeros((2, 416, 416), bool)
    masks[0, 100:200, 100:200] = masks[1, 50:300] = True
    inputs = {"detect.boxes": np.zeros((2, 4, 5), np.float32), "masks.bits": pack_masks(masks)}
    (record,) = ClipEncoder(replace(PAPER, clip=config), "cpu").encode([photo(60, 90, 416)], [inputs])
    assert {name: value.shape for name, value in record.items()} == {"tokens": (512, 26, 26), "candidates": (2, 512)}

    square = photo(60, 90, 416).letterbox.image(photo(60, 90, 416).rgb, input_px)
    with torch.inference_mode():
        tokens = net.eval().forward_features(clip_pixels(square[None], "cpu"))  # after the last norm
        assert isinstance(net.head, nn.Linear)
        joint = tokens[0, 1:] @ net.head.weight.T + net.head.bias
        assert torch.equal(net.forward_head(tokens), tokens[:, 0] @ net.head.weight.T + net.head.bias)
    grid = joint.T.reshape(1, 512, input_px // 16, input_px // 16)
    wanted = F.interpolate(grid, (26, 26), mode="bilinear", antialias=True)[0]
    np.testing.assert_allclose(record["tokens"], wanted, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(record["candidates"], axis=1), 1, atol=1e-5)


# Presets


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
