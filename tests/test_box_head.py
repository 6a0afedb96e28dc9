"""APL's box head: which cells are taught, what they are taught, and where the candidates are written."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from weakmcn.model.box_head import STRIDE, assigned, box_loss, cell_centres, corners, decode, overlap, write_back

SIDE = 13
CENTRES = cell_centres(SIDE, SIDE, torch.zeros(()))


def drawn(seed: int, images: int = 3, side: int = SIDE) -> tuple[Tensor, Tensor, Tensor]:
    """Predicted boxes [B, N, 4], objectness [B, N] and labels [B, 4]; some boxes near the label, some anywhere."""
    g = torch.Generator().manual_seed(seed)
    centres = cell_centres(side, side, torch.zeros(()))
    label = torch.rand(images, 4, generator=g) * side * STRIDE
    label[:, 2:] = label[:, 2:].clamp(min=4) * torch.rand(images, 1, generator=g).clamp(min=0.05)
    boxes = torch.cat([centres, torch.full_like(centres, 60)], dim=1).repeat(images, 1, 1)
    boxes += torch.randn(boxes.shape, generator=g) * 12
    close_by = torch.rand(images, side**2, 1, generator=g) < 0.3
    boxes = torch.where(close_by, label[:, None] * (1 + 0.1 * torch.randn(boxes.shape, generator=g)), boxes)
    boxes[..., 2:] = boxes[..., 2:].abs().clamp(min=1)
    return boxes, torch.randn(images, side**2, generator=g), label


def plain_iou(a: np.ndarray, b: np.ndarray) -> float:
    x = min(a[0] + a[2] / 2, b[0] + b[2] / 2) - max(a[0] - a[2] / 2, b[0] - b[2] / 2)
    y = min(a[1] + a[3] / 2, b[1] + b[3] / 2) - max(a[1] - a[3] / 2, b[1] - b[3] / 2)
    common = max(x, 0) * max(y, 0)
    return common / (a[2] * a[3] + b[2] * b[3] - common)


def plain_assignment(boxes: np.ndarray, label: np.ndarray, side: int) -> set[int]:
    """One cell after the other."""
    cost, ious = {}, []
    for cell in range(side * side):
        x, y = cell % side * STRIDE + STRIDE / 2, cell // side * STRIDE + STRIDE / 2
        inside = abs(x - label[0]) < label[2] / 2 and abs(y - label[1]) < label[3] / 2
        near = max(abs(x - label[0]), abs(y - label[1])) < 2.5 * STRIDE
        if not (inside or near):
            continue
        ious.append(plain_iou(boxes[cell], label))
        cost[cell] = -3 * np.log(ious[-1] + 1e-8) + (0 if inside and near else 1e5)
    count = max(1, int(np.sum(sorted(ious)[-10:])))
    return set(sorted(cost, key=lambda cell: cost[cell])[:count])


@given(seed=st.integers(0, 10_000), side=st.sampled_from([2, 3, 6, 13]))
@settings(max_examples=40, deadline=None)
def test_the_cells_that_are_taught_and_the_loss_are_those_of_plain_loops(seed: int, side: int) -> None:
    boxes, logits, label = (x.double() for x in drawn(seed, side=side))
    centres = cell_centres(side, side, boxes)
    got = assigned(boxes, label, centres)
    total, count = 0.0, 0
    for b in range(len(boxes)):
        cells = plain_assignment(boxes[b].numpy(), label[b].numpy(), side)
        assert set(got[b].nonzero().flatten().tolist()) == cells
        count += len(cells)
        for cell, z in enumerate(logits[b].tolist()):
            p = 1 / (1 + np.exp(-z))
            total -= np.log(p if cell in cells else 1 - p)
            if cell in cells:
                total += 5 * (1 - plain_iou(boxes[b, cell].numpy(), label[b].numpy()) ** 2)
    assert box_loss(boxes, logits, label, centres).item() == pytest.approx(total / count)


def test_a_box_over_many_cells_teaches_as_many_as_its_best_overlaps_sum_to() -> None:
    label = torch.tensor([[208.0, 208.0, 400.0, 400.0]])
    perfect = label.expand(SIDE**2, 4)[None]
    cells = assigned(perfect, label, CENTRES)[0].nonzero().flatten()
    assert len(cells) == 10
    assert (CENTRES[cells] - 208).abs().max() < 2.5 * STRIDE  # those near the centre come first
    hopeless = torch.tensor([900.0, 900.0, 4.0, 4.0]).expand(1, SIDE**2, 4)
    assert assigned(hopeless, label, CENTRES).sum() == 1


def test_a_perfect_and_certain_answer_costs_nothing() -> None:
    label = torch.tensor([[100.0, 60.0, 50.0, 30.0]])
    boxes = label.expand(SIDE**2, 4)[None]
    logits = torch.where(assigned(boxes, label, CENTRES), 100.0, -100.0)
    assert box_loss(boxes, logits, label, CENTRES) == pytest.approx(0, abs=1e-6)


def test_only_the_cells_that_are_taught_learn_their_boxes() -> None:
    boxes, logits, label = drawn(3)
    boxes, logits = boxes.requires_grad_(), logits.requires_grad_()
    box_loss(boxes, logits, label, CENTRES).backward()
    assert boxes.grad is not None
    assert logits.grad is not None
    taught = assigned(boxes.detach(), label, CENTRES)
    assert torch.equal(boxes.grad.abs().sum(dim=-1) > 0, taught & (overlap(boxes.detach(), label[:, None]) > 0))
    assert (logits.grad != 0).all()


def test_zeros_are_boxes_of_a_stride_at_the_cells_corners() -> None:
    boxes = decode(torch.zeros(1, 4, 2, 3))[0]
    assert boxes.tolist() == [[32.0 * x, 32.0 * y, 32, 32] for y in (0, 1) for x in (0, 1, 2)]
    assert cell_centres(2, 3, torch.zeros(())).tolist() == [
        [32.0 * x + 16, 32.0 * y + 16] for y in (0, 1) for x in range(3)
    ]
    raw = torch.tensor([0.5, -1.0, 1.0, 2.0]).reshape(1, 4, 1, 1)
    expected = torch.tensor([16.0, -32.0, 32 * np.e, 32 * np.e**2])
    torch.testing.assert_close(decode(raw)[0, 0], expected)
    torch.testing.assert_close(
        corners(expected),
        torch.tensor([16 - 16 * np.e, -32 - 16 * np.e**2, 16 + 16 * np.e, -32 + 16 * np.e**2]).float(),
    )


def test_a_candidate_is_written_where_it_was_read_and_nowhere_else() -> None:
    grid = torch.arange(2 * 2 * 3 * 3.0).reshape(2, 2, 3, 3)
    cells = torch.tensor([[1, 8], [0, 5]])
    values = torch.tensor([[[-1.0, -2.0], [-3.0, -4.0]], [[-5.0, -6.0], [-7.0, -8.0]]])  # [B, K, C]
    written = write_back(grid, values, cells)
    for b, k in np.ndindex(2, 2):
        row, column = divmod(int(cells[b, k]), 3)
        assert torch.equal(written[b, :, row, column], values[b, k])
    assert (written != grid).sum() == 8
    assert grid[0, 0, 0, 1] == 1, "the map that was given is as it was"
