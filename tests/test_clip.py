"""CLIP at its published size: its position table and the space of its tokens."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn
from weakmcn.pipeline.config import ClipConfig
from weakmcn.pipeline.encoders.clip import ClipEncoder, build_clip, clip_pixels, joint_tokens
from weakmcn.shards.codec import pack_masks

from .published import PAPER, photo, saved


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
