"""The detector: its published weights; boxes and candidates by hand on maps of a few cells (method sections 5, 7)."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from weakmcn.pipeline.encoders.yolov3 import DetectEncoder, Head, YOLOv3, candidate_cells, prompt_boxes
from weakmcn.pipeline.images import Photo
from weakmcn.shards.geometry import Letterbox

from .published import FACTS, POCKET, photo, shapes


def silent_head(stride_px: int = 32, side_px: int = 416) -> Head:
    """A head of 2 classes whose every weight is zero, so that its biases alone speak."""
    head = Head(8, stride_px, classes=2, side_px=side_px)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.zero_()
    return head


def decoded(head: Head, height: int, width: int) -> Tensor:
    """[cells, 4, 7] of a map of zeros."""
    with torch.no_grad():
        return head.decode(*head.raw(torch.zeros(1, 8, height, width)), columns=width)[0]


@pytest.mark.parametrize(
    ("stride_px", "sizes"),
    [
        (32, [[116, 90], [156, 198], [121, 240], [128, 128]]),
        (16, [[30, 61], [62, 45], [42, 119], [64, 64]]),
        (8, [[10, 13], [16, 30], [33, 23], [32, 32]]),
    ],
)
def test_three_boxes_have_the_released_sizes_and_the_fourth_is_four_strides_wide(
    stride_px: int, sizes: list[list[int]]
) -> None:
    boxes = decoded(silent_head(stride_px), 1, 1)
    assert boxes[0, :, 2:4].tolist() == sizes
    assert boxes[0, :, :2].tolist() == [[stride_px / 2, stride_px / 2]] * 4


def test_centres_follow_their_cell_in_raster_order_and_stay_inside_it() -> None:
    head = silent_head()
    log_sizes = torch.zeros(1, 6, 4, 2)
    raw = torch.zeros(1, 6, 4, 7)
    raw[0, 4, 1, 0], raw[0, 4, 1, 1] = math.log(3), -math.log(3)  # sigmoid 3/4 and 1/4
    raw[0, 5, :, 0] = 99.0
    boxes = head.decode(log_sizes, raw, columns=3)[0]  # 2 rows of 3 cells
    centres = boxes[:, 0, :2].tolist()
    assert centres == [[16, 16], [48, 16], [80, 16], [16, 48], [48, 48], [96, 48]]
    assert boxes[4, 1, :2].tolist() == pytest.approx([32 + 24, 32 + 8])


def test_a_size_is_the_predicted_times_the_guided_times_the_anchors() -> None:
    raw = torch.zeros(1, 1, 4, 7)
    raw[0, 0, :, 2], raw[0, 0, :, 3] = math.log(2), math.log(0.5)
    log_sizes = torch.zeros(1, 1, 4, 2)
    log_sizes[0, 0, 2] = torch.tensor([math.log(3), math.log(5)])
    sizes = silent_head().decode(log_sizes, raw, columns=1)[0, 0, :, 2:4]
    expected = [[232, 45], [312, 99], [121 * 2 * 3, 240 * 0.5 * 5], [256, 64]]
    np.testing.assert_allclose(sizes, expected, rtol=1e-6)


def test_objectness_and_every_class_have_a_sigmoid_of_their_own() -> None:
    raw = torch.zeros(1, 1, 4, 7)
    raw[0, 0, 3, 4:] = torch.tensor([math.log(4), math.log(9), -math.log(9)])
    scores = silent_head().decode(torch.zeros(1, 1, 4, 2), raw, columns=1)[0, 0, :, 4:]
    np.testing.assert_allclose(scores[3], [0.8, 0.9, 0.1], rtol=1e-6)
    assert (scores[:3] == 0.5).all()


def test_channels_run_anchor_first_in_the_guide_and_in_the_prediction() -> None:
    head = silent_head()
    assert head.conv.bias is not None
    assert head.guide_wh.bias is not None
    with torch.no_grad():
        head.conv.bias[2 * 7 + 4] = math.log(4)  # third anchor, fifth attribute: objectness 0.8
        head.guide_wh.bias[1 * 2 + 1] = math.log(2)  # second anchor, second number: its height doubles
    boxes = decoded(head, 2, 3)
    np.testing.assert_allclose(boxes[..., 4], [[0.5, 0.5, 0.8, 0.5]] * 6, rtol=1e-6)
    np.testing.assert_allclose(boxes[..., 3], [[90, 2 * 198, 240, 128]] * 6, rtol=1e-6)


def test_on_another_canvas_the_three_anchors_scale_with_it() -> None:
    sizes = decoded(silent_head(side_px=208), 1, 1)[0, :, 2:4]
    assert sizes.tolist() == [[58, 45], [78, 99], [60.5, 120], [128, 128]]


def test_the_adaption_looks_where_the_guided_sizes_point() -> None:
    """Offsets are (dy, dx) for each tap, one group of channels an anchor; beyond the border there is zero."""
    head = silent_head()
    adaption, middle = head.Feature_adaption, 4  # of the 9 taps
    assert adaption.conv_offset.bias is not None
    with torch.no_grad():
        adaption.dconv.weight[range(8), range(8), 1, 1] = 1  # passes on what the middle tap sees
        adaption.conv_offset.bias[1 * 18 + 2 * middle + 1] = 1  # second group: one column right
        adaption.conv_offset.bias[2 * 18 + 2 * middle] = 1  # third group: one row down
        adaption.conv_offset.weight[3 * 18 + 2 * middle + 1, 1] = -1  # fourth: left by the log height of its anchor
        log_sizes = torch.zeros(1, 8, 2, 3)
        log_sizes[0, 3 * 2 + 1] = 0.5
        x = torch.tensor([[1.0, 2, 4], [8, 16, 32]]).expand(1, 8, 2, 3)
        seen = adaption(x, log_sizes)[0, ::2]  # of each pair of channels the first
    assert seen.tolist() == [
        [[1, 2, 4], [8, 16, 32]],
        [[2, 4, 0], [16, 32, 0]],
        [[8, 16, 32], [0, 0, 0]],
        [[0.5, 1.5, 3], [4, 12, 24]],
    ]


def test_candidates_are_the_cells_of_largest_mean_objectness_in_raster_order() -> None:
    objectness = torch.tensor(
        [
            [0.1, 0.1, 0.1, 0.1],
            [0.9, 0.0, 0.0, 0.0],  # the surest box, yet a mean of 0.225
            [0.5, 0.5, 0.5, 0.5],
            [0.2, 0.3, 0.2, 0.3],  # 0.25
            [0.9, 0.9, 0.9, 0.1],  # 0.7
            [0.0, 0.0, 0.0, 0.0],
        ]
    )
    both = torch.stack([objectness, objectness.flip(0)])
    assert candidate_cells(both, 3).tolist() == [[2, 3, 4], [1, 2, 3]]
    assert candidate_cells(both, 4).tolist() == [[1, 2, 3, 4], [1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("height", "width", "expected"),
    [
        # 240 x 320 on a canvas of 64 covers rows 8 to 56; 320 x 240 columns 8 to 56.
        (240, 320, [[10, 8, 40, 30], [0, 20, 64, 56], [30, 56, 50, 56]]),
        (320, 240, [[10, 0, 40, 30], [8, 20, 56, 64], [30, 58, 50, 62]]),
    ],
)
def test_masks_are_asked_for_with_the_surest_box_cut_to_the_photo(
    height: int, width: int, expected: list[list[float]]
) -> None:
    photo = Photo(key="0" * 12, rgb=np.zeros((height, width, 3), np.uint8), letterbox=Letterbox.fit(height, width, 64))
    boxes = np.full((3, 4, 5), 7, np.float32)
    boxes[:, :, 4] = 0.1
    boxes[0, 3] = [25, 10, 30, 40, 0.9]  # 10 -10 40 30: beyond the top
    boxes[1, 0] = [32, 50, 90, 60, 0.9]  # -13 20 77 80: beyond three edges
    boxes[2, 2] = [40, 60, 20, 4, 0.9]  # 30 58 50 62: in the padding of the wide photo
    prompts = prompt_boxes(photo, boxes)
    assert prompts.dtype == np.float32
    assert prompts.tolist() == expected


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
