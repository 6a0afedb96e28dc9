"""SAM at its published sizes, what it is shown of a photograph, and how its masks come back to the square."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything import sam_model_registry
from segment_anything.modeling.image_encoder import Attention
from torch import nn
from weakmcn.pipeline.config import preset
from weakmcn.pipeline.encoders.efficient_sam import EfficientSam
from weakmcn.pipeline.encoders.sam import build_sam, prompted_model
from weakmcn.pipeline.encoders.sam_attention import MAX_SCORES, RelativeAttention
from weakmcn.pipeline.encoders.yolov3 import prompt_boxes
from weakmcn.pipeline.images import Photo
from weakmcn.shards.errors import CheckpointError
from weakmcn.shards.geometry import PADDING, Letterbox

from .published import POCKET, saved, shapes


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
