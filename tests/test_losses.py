"""Each loss term against numbers worked by hand, on canvases of a few pixels."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weakmcn.model.batch import Batch
from weakmcn.model.config import ModelConfig
from weakmcn.model.losses import agreement, anchor_contrast, box_bits, mask_bce, projection_loss, unpack_bits
from weakmcn.model.weakmcn import WeakMCN
from weakmcn.model.wrec import candidate_boxes, clip_to_photo, position_embedding


def logits_of(bits: list[list[int]], strength: float = 50.0) -> Tensor:
    """Logits of a mask that is certain of every pixel: [1, S, S]."""
    return (torch.tensor([bits], dtype=torch.float64) * 2 - 1) * strength


def bits_of(bits: list[list[int]]) -> Tensor:
    return torch.tensor([bits]).bool()


class TestAnchorContrast:
    def test_two_images_of_two_candidates(self) -> None:
        # Text 0: own image best log 4 (its second, log 2, is no negative), other image log 3 and log 1.
        # Text 1: own image best log 5, other image log 2 and log 1.
        similarity = torch.tensor([[[4.0, 2.0], [1.0, 3.0]], [[2.0, 1.0], [1.0, 5.0]]]).log()
        expected = -(math.log(4 / (4 + 3 + 1)) + math.log(5 / (5 + 2 + 1))) / 2
        assert anchor_contrast(similarity, torch.arange(len(similarity))).item() == pytest.approx(expected, rel=1e-6)

    def test_only_the_two_best_candidates_of_another_image_are_negatives(self) -> None:
        similarity = torch.zeros(2, 2, 4)
        similarity[:, :, 0], similarity[:, :, 1] = 2.0, 1.0
        similarity.requires_grad_()
        anchor_contrast(similarity, torch.arange(len(similarity))).backward()
        assert similarity.grad is not None
        touched = similarity.grad != 0
        assert touched[0, 0].tolist() == [True, False, False, False], "own image: the best alone"
        assert touched[0, 1].tolist() == [True, True, False, False], "other image: best and second best"

    def test_it_looks_from_texts_to_images_and_not_back(self) -> None:
        similarity = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(0))
        own = torch.arange(3)
        backwards = anchor_contrast(similarity.transpose(0, 1), own)
        assert anchor_contrast(similarity, own).item() != pytest.approx(backwards.item())

    def test_two_texts_of_one_image_are_no_negatives_of_each_other(self) -> None:
        # Texts 0 and 1 belong to image 0, text 2 to image 1: each meets the other image alone.
        similarity = torch.tensor([[[4.0, 2.0], [3.0, 1.0]], [[6.0, 1.0], [2.0, 1.0]], [[2.0, 1.0], [5.0, 1.0]]]).log()
        expected = -(math.log(4 / (4 + 3 + 1)) + math.log(6 / (6 + 2 + 1)) + math.log(5 / (5 + 2 + 1))) / 3
        assert anchor_contrast(similarity, torch.tensor([0, 0, 1])).item() == pytest.approx(expected, rel=1e-6)

    def test_a_single_image_has_nothing_to_be_told_from(self) -> None:
        assert anchor_contrast(torch.tensor([[[3.0, 1.0]]]), torch.tensor([0])).item() == 0

    def test_large_similarities_do_not_overflow(self) -> None:
        assert anchor_contrast(torch.eye(2)[:, :, None].repeat(1, 1, 2) * 1e4, torch.arange(2)).item() == 0


class TestBoxBits:
    def test_corners_are_truncated_and_the_far_ones_reach_one_pixel_on(self) -> None:
        bits = box_bits(torch.tensor([[1.9, 2.2, 3.1, 3.9]]), 6)[0]
        assert bits.nonzero().tolist() == [[row, column] for row in (2, 3) for column in (1, 2, 3)]

    def test_a_box_may_reach_one_row_into_the_padding(self) -> None:
        # Photo rows 2..4 (the edge at y = 4): int(4 + 1) = 5, so row 4 is set.
        assert box_bits(torch.tensor([[0.0, 2.0, 6.0, 4.0]]), 6)[0].any(dim=1).tolist() == [0, 0, 1, 1, 1, 0]

    def test_a_box_collapsed_on_the_far_border_is_empty_and_inside_it_is_one_pixel_wide(self) -> None:
        assert not box_bits(torch.tensor([[6.0, 1.0, 6.0, 3.0]]), 6).any()
        assert box_bits(torch.tensor([[3.0, 1.0, 3.0, 3.0]]), 6)[0].any(dim=0).tolist() == [0, 0, 0, 1, 0, 0]

    def test_the_sum_before_the_truncation_is_made_in_float32(self) -> None:
        # 255.99999 + 1 is 256.99999, which float32 rounds to 257: the row 256 is set.
        box = torch.tensor([[0.0, 0.0, 1.0, np.nextafter(np.float32(256), np.float32(0))]])
        assert box_bits(box, 416)[0].any(dim=1).sum() == 257

    @settings(deadline=None)
    @given(st.lists(st.floats(0, 16, width=32), min_size=4, max_size=4))
    def test_it_equals_painting_the_rectangle(self, corners: list[float]) -> None:
        x0, x1 = sorted(corners[:2])
        y0, y1 = sorted(corners[2:])
        painted = np.zeros((16, 16), dtype=bool)
        painted[int(y0) : int(np.float32(y1) + np.float32(1)), int(x0) : int(np.float32(x1) + np.float32(1))] = True
        assert np.array_equal(box_bits(torch.tensor([[x0, y0, x1, y1]]), 16)[0].numpy(), painted)


class TestCandidateBoxes:
    def test_the_most_confident_of_four_stands_for_the_cell_and_the_first_on_ties(self) -> None:
        four = torch.tensor(
            [[10.0, 10, 2, 4, 0.5], [20, 20, 4, 8, 0.9], [30, 30, 6, 2, 0.9], [40, 40, 8, 8, 0.1]],
        )
        corners, objectness = candidate_boxes(four[None, None])
        assert corners.tolist() == [[[18, 16, 22, 24]]]
        assert objectness.item() == pytest.approx(0.9)

    def test_the_far_corner_is_the_near_one_plus_the_side_in_float32(self) -> None:
        centre, width = np.float32(0.1), np.float32(123.456)
        boxes = torch.tensor([[[[centre, centre, width, width, 1.0]] * 4]])
        near = centre - width / np.float32(2)
        assert candidate_boxes(boxes)[0][0, 0].tolist() == [near, near, near + width, near + width]

    def test_clipping_keeps_to_the_photo_and_collapses_what_lies_in_the_padding(self) -> None:
        # A photo of 40 x 80 on a canvas of 32: 16 rows from 8 on, all 32 columns.
        letterbox = torch.tensor([[40, 80, 16, 32, 0, 8]] * 2)
        boxes = torch.tensor([[-3.0, 1, 40, 20], [4, 26, 9, 31]])
        assert clip_to_photo(boxes, letterbox).tolist() == [[0, 8, 32, 20], [4, 24, 9, 24]]
        # One of 80 x 40 lies upright on it: 16 columns from 8 on, all 32 rows.
        upright = torch.tensor([[80, 40, 32, 16, 8, 0]] * 2)
        assert clip_to_photo(boxes, upright).tolist() == [[8, 1, 24, 20], [8, 26, 9, 31]]


class TestPositionEmbedding:
    def test_y_comes_first_and_sines_alternate_with_cosines(self) -> None:
        # Width 8: four numbers for y, four for x; frequencies 1 and 10000^(-2/4) = 0.01.
        boxes = torch.zeros(1, 1, 4, 5)
        boxes[..., 0], boxes[..., 1] = 16.0, 0.0  # x at a quarter of the canvas, y at its top
        quarter = 2 * math.pi * 0.25
        expected = [0, 1, 0, 1, 1, 0, math.sin(quarter * 0.01), math.cos(quarter * 0.01)]
        assert position_embedding(boxes, 64, 8)[0, 0].tolist() == pytest.approx(expected, abs=1e-6)

    def test_it_is_that_of_the_mean_centre_of_the_four_boxes(self) -> None:
        boxes = torch.rand(1, 1, 4, 5) * 64
        mean = boxes.clone()
        mean[..., :2] = boxes[..., :2].mean(dim=2, keepdim=True)
        torch.testing.assert_close(position_embedding(boxes, 64, 8), position_embedding(mean, 64, 8))


class TestMaskBce:
    def test_each_sample_is_the_mean_over_its_pixels(self) -> None:
        logits = torch.tensor([[[0.0, 2.0], [0.0, -2.0]], [[1.0, 1.0], [1.0, 1.0]]])
        target = torch.tensor([[[1, 1], [0, 1]], [[0, 0], [0, 0]]]).bool()
        soft = math.log(1 + math.exp(-2))
        expected = [(2 * math.log(2) + soft + soft + 2) / 4, math.log(1 + math.e)]
        assert mask_bce(logits, target).tolist() == pytest.approx(expected, rel=1e-6)

    def test_packed_bits_come_back_highest_bit_first(self) -> None:
        assert unpack_bits(torch.tensor([[0b10000001, 0b01000000]], dtype=torch.uint8)).int().tolist() == [
            [1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]
        ]
        bits = np.random.default_rng(0).random((3, 16, 16)) > 0.5
        packed = torch.from_numpy(np.packbits(bits, axis=-1))
        assert np.array_equal(unpack_bits(packed).numpy(), bits)


class TestAgreement:
    def test_an_iou_equal_to_the_threshold_does_not_count(self) -> None:
        mask = logits_of([[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
        box = bits_of([[1, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])  # 2 of 5
        assert agreement(mask.float(), box, 0.4).tolist() == [0]
        assert agreement(mask.float(), box, 0.39).tolist() == [1]

    def test_a_logit_of_zero_is_no_part_of_the_mask_and_an_empty_union_fits_nothing(self) -> None:
        assert agreement(torch.zeros(1, 2, 2), torch.ones(1, 2, 2).bool(), 0.0).tolist() == [0]
        assert agreement(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2).bool(), 0.0).tolist() == [0]

    def test_no_gradient_goes_through_the_weight(self) -> None:
        logits = torch.ones(1, 2, 2, requires_grad=True)
        assert not agreement(logits, torch.ones(1, 2, 2).bool(), 0.4).requires_grad


class TestProjectionLoss:
    def test_a_mask_that_fills_its_box_costs_almost_nothing(self) -> None:
        mask = [[0, 1, 1], [0, 1, 1], [0, 0, 0]]
        # Shadows of two pixels on either axis: 1 - 4 / (4 + 1e-5), twice.
        expected = 2 * (1 - 4 / (4 + 1e-5))
        assert projection_loss(logits_of(mask), bits_of(mask)).item() == pytest.approx(expected, abs=1e-12)

    def test_shadows_are_compared_axis_by_axis(self) -> None:
        mask, box = [[1, 0, 0], [0, 0, 0], [0, 0, 1]], [[1, 1, 0], [1, 1, 0], [0, 0, 0]]
        # Mask shadow 1 0 1, box shadow 1 1 0 on both axes: 1 - 2 * 1 / (2 + 2).
        assert projection_loss(logits_of(mask), bits_of(box)).item() == pytest.approx(1.0, abs=1e-4)
        # A rectangle of rows 0, 1 and columns 0 against rows 0, 1 and all columns: only the columns differ.
        mask, box = [[1, 0, 0], [1, 0, 0], [0, 0, 0]], [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
        assert projection_loss(logits_of(mask), bits_of(box)).item() == pytest.approx(1 - 2 / 4, abs=1e-4)

    def test_half_certain_pixels_count_by_their_probability(self) -> None:
        # Every shadow of the mask is 1/2 in both pixels; the box fills the canvas: 1 - 2 * 1 / (1/2 + 2).
        loss = projection_loss(torch.zeros(1, 2, 2, dtype=torch.float64), torch.ones(1, 2, 2).bool())
        assert loss.item() == pytest.approx(2 * (1 - 2 / (2.5 + 1e-5)), abs=1e-12)

    def test_it_is_the_mean_over_samples_and_an_empty_box_costs_the_most(self) -> None:
        full = [[1, 1], [1, 1]]
        logits = torch.cat([logits_of(full)] * 2)
        loss = projection_loss(logits, torch.cat([bits_of(full), bits_of([[0, 0], [0, 0]])]))
        assert loss.item() == pytest.approx((0 + 2) / 2, abs=1e-4)


class TestTheSumOfAll:
    """Four samples on a canvas of 64 whose every mask logit is 1 and whose every similarity is 0.

    |   | photo  | lies on           | box, clipped        | its bits | of 4,096 | pseudo mask |
    | 0 | wide   | rows 16 to 48     | all of the photo    | 33 x 64  | 0.516    | everything  |
    | 1 | tall   | columns 16 to 48  | all of the photo    | 64 x 33  | 0.516    | nothing     |
    | 2 | wide   | rows 16 to 48     | its upper 24 rows   | 25 x 64  | 0.391    | left half   |
    | 3 | square | everything        | collapsed at a corner | none   | 0        | everything  |
    """

    CONFIG = ModelConfig(
        side_px=64,
        candidates=2,
        max_tokens=2,
        dark_channels=(2, 2, 2),
        banks=(),
        word_dim=2,
        text_dim=4,
        wrec_dim=2,
        wres_dim=2,
        text_heads=1,
        text_layers=1,
        text_ff_dim=2,
        text_flat_dim=2,
        attention_heads=1,
        dropout=0.0,
        aspp_dilations=(1, 1, 1),
        warm_epochs=10,
    )
    YES, NO = 0.3132617, 1.3132617
    """log(1 + 1/e) and log(1 + e): what a pixel costs whose logit is 1."""
    BCE = (YES, NO, (YES + NO) / 2, YES)
    # sigmoid(1) = 0.7310586, its square 0.5344466. An axis of which n of 64 pixels are box costs
    # 1 - 2 n 0.7310586 / (64 * 0.5344466 + n): 0.0471373 for 64, 0.2820451 for 33, 0.3825998 for 25 and 1 for none.
    SCL = (2 * (0.2820451 + 0.0471373) + (0.3825998 + 0.0471373) + 2) / 4
    DET = math.log(7)
    """One of 4 best and 3 second-best candidates, all alike."""

    def losses(self, epoch: int, threshold: float = 0.4):
        torch.manual_seed(0)
        net = WeakMCN(dataclasses.replace(self.CONFIG, isl_threshold=threshold), 5)
        assert net.mask_head is not None
        with torch.no_grad():
            for layer, bias in ((net.mask_head.pyramid.project, 1.0), (net.matcher.textual, 0.0)):
                layer.weight.zero_()
                assert layer.bias is not None
                layer.bias.fill_(bias)
        boxes = torch.tensor([[32.0, 32, 99, 99, 1], [32, 32, 99, 99, 1], [32, 28, 64, 24, 1], [80, 80, 9, 9, 1]])
        masks = torch.zeros(4, 2, 64, 8, dtype=torch.uint8)
        masks[0], masks[3], masks[2, ..., :4] = 255, 255, 255
        wide, tall, square = [50, 100, 32, 64, 0, 16], [100, 50, 64, 32, 16, 0], [80, 80, 64, 64, 0, 0]
        batch = Batch(
            dark_s8=torch.randn(4, 2, 8, 8),
            dark_s16=torch.randn(4, 2, 4, 4),
            dark_s32=torch.randn(4, 2, 2, 2),
            cells=torch.tensor([[0, 3]] * 4),
            boxes=boxes[:, None, None].expand(4, 2, 4, 5),
            letterbox=torch.tensor([wide, tall, wide, square]),
            tokens=torch.tensor([[3, 0], [4, 3], [4, 0], [3, 4]]),
            masks=masks,
        )
        return net.losses(batch, epoch, parts=True)

    def test_the_cross_entropies_of_a_batch_are_summed_and_the_projections_averaged(self) -> None:
        losses = self.losses(epoch=10)
        assert losses.det.item() == pytest.approx(self.DET, rel=1e-6)
        assert losses.mask.item() == pytest.approx(sum(self.BCE), rel=1e-6)  # 2.753, four times the mean
        assert losses.scl.item() == pytest.approx(self.SCL, rel=1e-6)  # 0.772
        assert losses.total.item() == pytest.approx(self.DET + sum(self.BCE) + self.SCL, rel=1e-6)

    def test_the_contrast_stands_alone_until_the_warm_up_is_over(self) -> None:
        assert self.losses(epoch=9).total.item() == pytest.approx(self.DET, rel=1e-6)

    @pytest.mark.parametrize(
        ("epoch", "threshold", "kept"),
        [
            (14, 0.4, (1, 1, 1, 1)),
            (15, 0.4, (1, 1, 0, 0)),
            (24, 0.4, (1, 1, 0, 0)),
            (15, 0.3, (1, 1, 1, 0)),
            (15, 25 / 64, (1, 1, 0, 0)),  # equal is not above
            (15, 33 / 64, (0, 0, 0, 0)),
        ],
    )
    def test_from_epoch_15_on_disagreeing_samples_are_left_out_and_the_others_weigh_no_more(
        self, epoch: int, threshold: float, kept: tuple[int, ...]
    ) -> None:
        losses = self.losses(epoch, threshold)
        expected = sum(share * bce for share, bce in zip(kept, self.BCE, strict=True))
        assert losses.mask.item() == pytest.approx(expected, rel=1e-6)
        assert losses.scl.item() == pytest.approx(self.SCL, rel=1e-6)  # the gate does not touch it
