"""DINO at its published sizes, from every published form of its weights, and its position table."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from weakmcn.pipeline.config import DinoConfig
from weakmcn.pipeline.encoders.dino import (
    Backbone,
    DinoEncoder,
    build_backbone,
    build_dino,
    patch_tokens,
    position_table,
    timm_state,
)
from weakmcn.shards.errors import ConfigError

from .published import FACTS, PAPER, photo


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
