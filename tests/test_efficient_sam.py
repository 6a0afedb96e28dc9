"""EfficientSAM: published keys, published arithmetic, prompts in canvas pixels, masks from the stored embedding.

`data/official_encoders.json` holds the keys and shapes of the released networks; `*` stands for every block or layer.
"""

import json
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from weakmcn.pipeline.config import PipelineConfig, SamConfig, preset
from weakmcn.pipeline.encoders.efficient_sam import EfficientSam, EfficientSamModel, position_map
from weakmcn.pipeline.encoders.sam import MaskEncoder, SamEncoder
from weakmcn.pipeline.encoders.yolov3 import normalised, prompt_boxes
from weakmcn.pipeline.images import Photo
from weakmcn.shards.codec import unpack_masks
from weakmcn.shards.errors import ConfigError
from weakmcn.shards.geometry import Letterbox

FACTS = json.loads((Path(__file__).parent / "data" / "official_encoders.json").read_text())
TI = FACTS["efficient_sam_ti"]
SIDE, KEEP = 96, 3
TINY = SamConfig(
    checkpoint="",
    family="efficient_sam",
    image_px=SIDE,
    embed_dim=24,
    depth=2,
    heads=2,
    global_blocks=(),
    window=0,
    channels=32,
    decoder_heads=4,
    decoder_mlp=64,
    batch=2,
    boxes_chunk=2,
)


def seeded(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Weights that depend on a key's name and shape alone, in the ranges of a trained network."""
    state = {}
    for key, shape in shapes.items():
        values = np.random.RandomState(zlib.crc32(key.encode())).standard_normal(shape)
        if len(shape) == 1:
            values = values * 0.1 + ("norm" in key and key.endswith("weight"))
        elif "weight" in key and shape[0] > 4:
            values = values / np.sqrt(np.prod(shape[1:]))
        state[key] = torch.from_numpy(values.astype(np.float32))
    return state


def with_weights(net: EfficientSam) -> EfficientSam:
    net.load_state_dict(seeded({key: tuple(value.shape) for key, value in net.state_dict().items()}))
    return net.eval()


def photo(height: int = 60, width: int = 90) -> Photo:
    rgb = np.random.RandomState(0).randint(0, 256, (height, width, 3), np.uint8)
    return Photo(key="0" * 12, rgb=rgb, letterbox=Letterbox.fit(height, width, SIDE))


def candidates(seed: int) -> np.ndarray:
    """Boxes float32 [K, 4, 5] of a detector, in canvas pixels."""
    return np.random.RandomState(seed).uniform(10, 80, (KEEP, 4, 5)).astype(np.float32)


@pytest.fixture
def config(tmp_path: Path) -> PipelineConfig:
    path = tmp_path / "tiny.safetensors"
    save_file(with_weights(EfficientSam(TINY)).state_dict(), path)
    pocket = preset("pocket")
    return replace(
        pocket, side_px=SIDE, detect=replace(pocket.detect, keep=KEEP), sam=replace(TINY, checkpoint=str(path))
    )


@pytest.mark.parametrize(("name", "official"), [("refcoco", TI), ("refcoco-small", TI | FACTS["efficient_sam_s"])])
def test_keys_and_shapes_are_the_published_ones(name: str, official: dict[str, list[int]]) -> None:
    with torch.device("meta"):
        net = EfficientSam(preset(name).sam)
    own = {key: list(value.shape) for key, value in net.state_dict().items()}
    blocks = range(preset(name).sam.depth)
    assert own == {key.replace("*", str(i)): shape for key, shape in official.items() for i in blocks}


def test_the_published_implementation_and_this_one_agree_on_the_same_weights() -> None:
    """The numbers come from the layers of the public code, run once with these weights, image and boxes."""
    net = with_weights(EfficientSam(preset("refcoco").sam))
    y, x = np.mgrid[0:416, 0:416]
    image = np.stack([(x * 3 + y) % 256, (x + y * 2) % 256, (x * y // 64) % 256], axis=-1).astype(np.uint8)
    boxes = torch.tensor([[10.0, 20.0, 200.0, 300.0], [100.5, 0.0, 416.0, 416.0]])
    with torch.inference_mode():
        embedding = net.image_encoder(normalised(image[None], "cpu"))[0]
        logits, iou = net.decode(embedding, boxes)

    places = [(0, 0, 0), (100, 13, 5), (255, 25, 25), (7, 3, 20)]
    np.testing.assert_allclose([embedding[at] for at in places], [-0.09913, 0.1857, 0.01039, 0.04047], atol=2e-5)
    spread = [[0.03854, 0.05628, 0.08604], [0.0376, 0.06172, 0.07847]]
    np.testing.assert_allclose(
        logits.mean(dim=(2, 3)), [[0.10434, 0.02172, -0.20676], [0.10488, 0.00754, -0.21089]], atol=5e-4
    )
    np.testing.assert_allclose(logits.std(dim=(2, 3)), spread, atol=5e-4)
    best_first = [[7.807706, -1.516728, -3.324432], [5.858510, -0.877968, -4.191668]]
    np.testing.assert_allclose(iou.sort(dim=1, descending=True).values, best_first, atol=5e-3)


def test_the_position_table_keeps_its_class_token_out_and_its_own_grid_untouched() -> None:
    table = torch.randn(1, 1 + 14 * 14, 5)
    assert torch.equal(position_map(table, 14).flatten(2).transpose(1, 2), table[:, 1:])
    assert position_map(table, 26).shape == (1, 5, 26, 26)
    assert torch.allclose(position_map(torch.ones(1, 197, 2), 26), torch.ones(1, 2, 26, 26), atol=1e-6)


def test_a_box_is_two_labelled_corners_half_a_pixel_in_and_four_points_that_stand_for_none() -> None:
    prompts = with_weights(EfficientSam(TINY)).prompt_encoder
    tokens = prompts(torch.tensor([[3.0, 7.0, 40.0, 90.0]]), SIDE)[0]  # [6, C]

    frequencies = prompts.pe_layer.get_buffer("positional_encoding_gaussian_matrix")
    for token, point, kind in (
        (0, (3.5, 7.5), prompts.bbox_top_left_embeddings),
        (1, (40.5, 90.5), prompts.bbox_bottom_right_embeddings),
        *((spare, (-0.5, -0.5), prompts.invalid_points) for spare in range(2, 6)),
    ):
        turns = 2 * torch.pi * (2 * torch.tensor(point) / SIDE - 1) @ frequencies
        assert torch.allclose(tokens[token], torch.cat([turns.sin(), turns.cos()]) + kind.weight[0], atol=1e-4)


def test_the_mask_is_the_one_of_best_predicted_iou_where_its_logit_is_not_negative(config: PipelineConfig) -> None:
    model = EfficientSamModel(config.sam, "cpu")
    boxes = prompt_boxes(photo(), candidates(1))
    with torch.inference_mode():
        embedding = model.embed([photo()])[0]
        masks, iou = model.masks(embedding, boxes, SIDE)
        for k, box in enumerate(boxes):
            logits, predicted = model.net.decode(embedding, torch.from_numpy(box)[None])
            best = int(predicted.argmax())
            large = torch.nn.functional.interpolate(logits[:, [best]], (SIDE, SIDE), mode="bicubic")
            assert torch.equal(masks[k], large[0, 0] >= 0)
            torch.testing.assert_close(iou[k], predicted[0, best])
    assert 0 < masks.float().mean() < 1


def test_masks_are_drawn_from_the_stored_embedding_and_not_from_the_photo(config: PipelineConfig) -> None:
    assert config.sam.mask_inputs == ("detect.boxes", "sam.embedding")
    embeddings = [record["embedding"] for record in SamEncoder(config, "cpu").encode([photo(), photo()], [{}, {}])]
    encoder = MaskEncoder(config, "cpu")

    def bits(stored: np.ndarray, shown: Photo) -> np.ndarray:
        columns = {"detect.boxes": candidates(1), "sam.embedding": stored}
        record = encoder.encode([shown, shown], [columns, columns])[0]
        return np.unpackbits(unpack_masks(record["bits"], KEEP, SIDE), axis=-1)

    online, _ = EfficientSamModel(config.sam, "cpu").masks(
        torch.from_numpy(embeddings[0]), prompt_boxes(photo(), candidates(1)), SIDE
    )
    dark = replace(photo(), rgb=np.zeros_like(photo().rgb))
    assert np.array_equal(bits(embeddings[0], photo()), online.numpy())
    assert np.array_equal(bits(embeddings[0], dark), online.numpy())
    assert not np.array_equal(bits(-embeddings[0], photo()), online.numpy())
    rounded = bits(embeddings[0].astype(np.float16), photo())
    assert (rounded != online.numpy()).mean() < 0.01


def test_an_input_size_that_would_need_a_resampled_embedding_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"64 patches a side, the canvas grid has 26; choose 416"):
        replace(preset("refcoco"), sam=replace(preset("refcoco").sam, image_px=1024))
