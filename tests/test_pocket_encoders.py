"""The frozen networks that ship with the package are what their table says, and see what they are said to see."""

import json

import numpy as np
import pytest
import torch
from weakmcn.pipeline.config import preset
from weakmcn.pipeline.encoders.sam import build_sam
from weakmcn.pipeline.encoders.weights import SHIPPED_FOLDER, frozen, load_state
from weakmcn.pipeline.encoders.yolov3 import YOLOv3, normalised
from weakmcn.pipeline.pocket import pretrain
from weakmcn.pipeline.pocket.expressions import captions
from weakmcn.pipeline.pocket.learn_detect import rigid
from weakmcn.pipeline.pocket.pool import Pool, draw_pool
from weakmcn.shards.fingerprint import file_sha256

POCKET = preset("pocket")
NAMES = ("detect", "sam", "dino", "clip")


@pytest.fixture(scope="module")
def held_out() -> Pool:
    return draw_pool(60, POCKET.side_px, seed=99, first=pretrain.HELD_OUT)


def table() -> dict[str, dict]:
    return json.loads((SHIPPED_FOLDER / "weights.json").read_text())


def test_the_weights_are_those_of_the_table_and_small() -> None:
    rows = table()
    assert set(rows) == set(NAMES)
    for name, row in rows.items():
        path = SHIPPED_FOLDER / f"{name}.safetensors"
        assert file_sha256(path) == row["sha256"]
        assert path.stat().st_size == row["bytes"]
    assert sum(row["bytes"] for row in rows.values()) < 12e6


def test_the_detector_proposes_what_its_figure_says(held_out: Pool) -> None:
    net = frozen(YOLOv3(POCKET.detect.width, POCKET.detect.classes, POCKET.side_px), "pocket:detect", "cpu")
    measured = pretrain.detect_figures(net, held_out)
    for figure, value in table()["detect"]["figures"].items():
        assert measured[figure] == pytest.approx(value, abs=5), figure
    assert measured["recall@9"] > 90


def test_sam_draws_what_its_figures_say(held_out: Pool) -> None:
    net = frozen(build_sam(POCKET.sam), "pocket:sam", "cpu")
    measured = pretrain.sam_figures(net, held_out)
    for figure, value in table()["sam"]["figures"].items():
        assert measured[figure] == pytest.approx(value, abs=4), figure


def test_the_shipped_detector_runs_its_deformable_heads_at_offset_zero() -> None:
    state = load_state(SHIPPED_FOLDER / "detect.safetensors")
    offsets = [value for key, value in state.items() if "conv_offset" in key]
    assert len(offsets) == 6
    assert all(not value.any() for value in offsets)


def test_a_rigid_head_computes_what_the_deformable_one_does() -> None:
    torch.manual_seed(0)
    net = YOLOv3(2, 3, 64).eval()
    x = normalised(np.random.default_rng(0).integers(0, 255, (2, 64, 64, 3), np.uint8), "cpu")
    with rigid(net), torch.no_grad():
        s32 = net.features(x)[32]
        plain = net.grid(s32)
    with torch.no_grad():
        assert torch.allclose(net.grid(s32), plain, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_each_encoder_can_be_made_again(name: str) -> None:
    """Two steps of its recipe on a few scenes change its weights and leave them finite."""
    torch.manual_seed(0)
    pool = draw_pool(8, POCKET.side_px, seed=1, caption=captions if name == "clip" else None)
    recipe = pretrain.Recipe(steps=2, batch=4, scenes=8, peak_lr=1e-3)
    before = {key: value.clone() for key, value in load_state(SHIPPED_FOLDER / f"{name}.safetensors").items()}
    state = pretrain.LEARN[name](pool, recipe).state_dict()
    assert state.keys() == before.keys()
    assert all(torch.isfinite(value).all() for value in state.values())
