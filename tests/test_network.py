"""The network equals the equations of the method page, in evaluation and in training, part by part.

The second implementation that it is held against is in equations.py.
"""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from weakmcn.model.batch import Batch
from weakmcn.model.config import ModelConfig
from weakmcn.model.official import to_official
from weakmcn.model.weakmcn import Losses, WeakMCN
from weakmcn.shards.errors import StoreError

from .equations import TINY, VOCABULARY, Equations, close, make_batch, unlike_any_other, unmoved


def build(config: ModelConfig = TINY, seed: int = 0) -> WeakMCN:
    torch.manual_seed(seed)
    net = WeakMCN(config, VOCABULARY)
    unlike_any_other(net)
    return net


def mask_logits(net: WeakMCN, batch: Batch) -> torch.Tensor:
    logits = net.predict(batch).mask_logits
    assert logits is not None
    return logits


def check_losses(ours: Losses, equations: Equations, epoch: int) -> list[int]:
    mask, scl, kept = equations.mask_terms(epoch)
    close(ours.det, equations.contrast())
    close(ours.mask, mask)
    close(ours.scl, scl)
    warm = epoch < equations.config.warm_epochs
    close(ours.total, equations.contrast() if warm else equations.contrast() + mask + scl)
    return kept


def test_predictions_are_those_of_the_equations() -> None:
    net, batch = build().eval(), make_batch()
    equations = Equations(to_official(net), TINY, batch, training=False)
    got = net.predict(batch)
    close(got.similarity, np.stack([own[b] for b, own in enumerate(equations.similarity)]))
    assert got.chosen.tolist() == equations.chosen.tolist()
    assert got.boxes.tolist() == [equations.chosen_box(b).tolist() for b in range(4)]
    assert got.scores.tolist() == [batch.boxes[b, k, :, 4].max() for b, k in enumerate(got.chosen)]
    assert got.mask_logits is not None
    assert got.mask_logits.shape == (4, 64, 64)
    close(got.mask_logits, equations.logits)


def test_losses_are_those_of_the_equations_in_warm_up_after_it_and_with_isl() -> None:
    net, batch = build().double(), make_batch()
    equations = Equations(to_official(net), TINY, batch, training=True)
    check_losses(net.losses(batch, epoch=0, parts=True), equations, epoch=0)
    assert check_losses(net.losses(batch, epoch=12), equations, epoch=12) == [1, 1, 1, 1]
    kept = check_losses(net.losses(batch, epoch=16), equations, epoch=16)
    assert set(kept) == {0, 1}, "the samples of this test must show both sides of the gate"


@pytest.mark.parametrize(
    "change",
    [
        {"dynamic": False},
        {"scl": False},
        {"isl": False},
        {"banks": ()},
        {"banks": ("sam",)},
        {"banks": ("dino",)},
        {"banks": ("dino", "sam", "clip")},
        {"banks": ("dino", "clip"), "dynamic": False},
    ],
    ids=str,
)
def test_a_part_turned_off_is_missing_from_the_losses_and_nothing_else_is(change: dict[str, Any]) -> None:
    config = dataclasses.replace(TINY, **change)
    net, batch = build(config).double(), make_batch()
    equations = Equations(to_official(net), config, batch, training=True)
    check_losses(net.losses(batch, epoch=16), equations, epoch=16)


def test_warm_up_runs_the_matching_branch_alone() -> None:
    net, batch = build(), make_batch()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    losses = net.losses(dataclasses.replace(batch, masks=None), epoch=9)
    assert losses.total is losses.det
    assert losses.mask == 0
    assert losses.scl == 0
    losses.total.backward()
    idle = ("mask_head.", "res_banks.", "fusion.project.s8.", "fusion.project.s16.")
    for name, parameter in net.named_parameters():
        if parameter.requires_grad:
            assert (parameter.grad is None) == name.startswith(idle), name
    for name, value in net.state_dict().items():
        if name.startswith(idle):
            assert torch.equal(value, before[name]), f"{name} moved"


def test_without_the_mask_branch_the_matching_trains_alone_and_no_mask_is_read_or_predicted() -> None:
    config, batch = dataclasses.replace(TINY, wres=False), dataclasses.replace(make_batch(), masks=None)
    net = build(config)
    assert not any(name.startswith(("mask_head.", "res_banks.")) for name, _ in net.named_parameters())
    losses = net.losses(batch, epoch=16)
    assert losses.total is losses.det
    losses.total.backward()
    assert all(weight.grad is not None for weight in net.parameters() if weight.requires_grad)
    assert net.eval().predict(batch).mask_logits is None


def test_turning_a_loss_term_off_takes_exactly_it_from_the_total() -> None:
    batch = make_batch()

    def at(epoch: int, **change: Any) -> Losses:
        return build(dataclasses.replace(TINY, **change)).double().losses(batch, epoch)

    full, without_scl, without_isl = at(16), at(16, scl=False), at(16, isl=False)
    close(without_scl.total, full.total.item() - full.scl.item(), 1e-12)
    assert without_scl.scl == 0
    assert without_scl.mask == full.mask
    assert without_isl.mask == at(12).mask > full.mask
    assert (without_isl.det, without_isl.scl) == (full.det, full.scl)


def test_every_weight_learns_but_those_that_cannot_matter() -> None:
    """Zero in theory: biases in front of a norm over the batch, and shifts that a softmax does not see."""
    net, batch = build().double(), make_batch()
    net.losses(batch, epoch=12).total.backward()
    assert unmoved(net) == {
        *(f"mask_head.modulate.{i}.{side}.bias" for i in range(3) for side in ("visual", "textual")),
        "mask_head.attention.merge.bias",
        "mask_head.attention.collect_key.bias",
        *(f"text.blocks.{i}.attention.key.bias" for i in range(2)),
        "text.pool.score.bias",
        "matcher.visual.bias",
    }


def test_the_router_learns_without_pulling_at_the_map_it_looks_at() -> None:
    mixer = build().rec_banks
    assert mixer is not None
    assert mixer.router is not None
    fused = torch.randn(2, 12, 2, 2, requires_grad=True)
    banks = {"dino": torch.randn(2, 5, 2, 2), "sam": torch.randn(2, 7, 2, 2)}
    mixer(fused, banks).square().sum().backward()
    assert fused.grad is None
    assert mixer.router.weight.grad is not None
    torch.testing.assert_close(mixer.weights(fused).sum(dim=1), torch.ones(2))


def test_the_gate_is_used_with_rows_and_columns_exchanged() -> None:
    head = build().mask_head
    assert head is not None
    block = head.attention.eval()
    visual = torch.zeros(1, 8, 4, 4)
    visual[0, :, 0, 3] = 1.0  # one cell of its own, so one gate of its own
    text = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = block(visual, text)[0]
    usual = out[:, 1, 1]
    assert (out[:, 3, 0] - usual).abs().max() > 1e-4, "the gate of (0, 3) works on (3, 0)"
    others = [out[:, i, j] for i in range(4) for j in range(4) if (i, j) not in ((0, 3), (3, 0))]
    torch.testing.assert_close(torch.stack(others), usual.expand(14, 8))


def test_one_expression_alone_gets_the_answer_it_gets_in_company() -> None:
    net, batch = build().eval(), make_batch()
    together = net.predict(batch)
    for i in range(4):
        given = {field.name: getattr(batch, field.name) for field in dataclasses.fields(batch)}
        fields = {name: value[i : i + 1] for name, value in given.items() if value is not None}
        alone = net.predict(Batch(**fields))
        close(alone.similarity[0], together.similarity[i].numpy())
        close(mask_logits(net, Batch(**fields))[0], mask_logits(net, batch)[i].numpy(), 1e-4)
        assert torch.equal(alone.boxes[0], together.boxes[i])


def test_predicted_boxes_are_clipped_only_on_request() -> None:
    batch = make_batch()
    raw = build().eval().predict(batch).boxes
    clipped = build(dataclasses.replace(TINY, clip_boxes_in_eval=True)).eval().predict(batch).boxes
    assert raw.min() < 0
    assert clipped.min() == 0
    left, top = batch.letterbox[:, 4], batch.letterbox[:, 5]
    assert torch.equal(clipped[:, 0], torch.maximum(raw[:, 0], left).minimum(left + batch.letterbox[:, 3]))
    assert torch.equal(clipped[:, 1], torch.maximum(raw[:, 1], top).minimum(top + batch.letterbox[:, 2]))


def test_an_expression_without_words_gives_finite_losses_and_gradients() -> None:
    net, batch = build(), make_batch()
    tokens = batch.tokens.clone()
    tokens[0] = 0
    losses = net.losses(dataclasses.replace(batch, tokens=tokens), epoch=16)
    losses.total.backward()
    assert torch.isfinite(losses.total)
    assert all(torch.isfinite(p.grad).all() for p in net.parameters() if p.grad is not None)


def test_half_precision_maps_are_taken_as_they_come() -> None:
    net, batch = build().eval(), make_batch()
    half = {name: getattr(batch, name).half() for name in ("dark_s8", "dark_s16", "dark_s32", "dino", "sam")}
    close(net.predict(dataclasses.replace(batch, **half)).similarity, net.predict(batch).similarity.numpy(), 1e-2)


def test_dropout_is_the_only_chance_in_training() -> None:
    batch = make_batch()
    calm, shaky = build(), build(dataclasses.replace(TINY, dropout=0.5))
    assert calm.losses(batch, 12).total == calm.losses(batch, 12).total
    assert shaky.losses(batch, 12).total != shaky.losses(batch, 12).total
    assert torch.equal(mask_logits(shaky.eval(), batch), mask_logits(shaky, batch))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sam": None}, r"no sam \(column sam.embedding\).*--stages sam.*out of `banks`"),
        ({"masks": None}, r"no masks \(column masks.bits\).*--stages masks"),
        ({"dark_s8": None}, r"no dark_s8 \(column detect.s8\).*--stages detect"),
        ({"dark_s16": torch.zeros(4, 8, 8, 8)}, r"dark_s16 .* \[4, 8, 8, 8\].* \[4, 8, 4, 4\]"),
        ({"cells": torch.zeros(4, 3, dtype=torch.int32)}, r"cells .* torch.int32.* torch.int64"),
        ({"dino": torch.zeros(4, 5, 4, 4, dtype=torch.uint8)}, r"dino .* torch.uint8.* floating-point"),
        ({"tokens": torch.ones(4, 6, dtype=torch.int64)}, r"tokens .* \[4, 6\].* \[4, 5\]"),
        ({"letterbox": torch.zeros(3, 6, dtype=torch.int64)}, r"letterbox .* \[3, 6\].* \[4, 6\]"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_batch_that_does_not_fit_is_refused_by_field(change: dict[str, Any], words: str) -> None:
    with pytest.raises(StoreError, match=words):
        build().losses(dataclasses.replace(make_batch(), **change), epoch=12)


def test_a_batch_moves_as_one_and_keeps_what_is_absent() -> None:
    batch = dataclasses.replace(make_batch(), clip=None)
    moved = batch.to("meta")
    assert moved.clip is None
    for field in dataclasses.fields(batch):
        value = getattr(moved, field.name)
        assert value is None or (value.is_meta and value.shape == getattr(batch, field.name).shape)
    assert len(moved) == 4


def test_losses_average_term_by_term() -> None:
    def losses(det: float, mask: float) -> Losses:
        return Losses(
            det=torch.tensor(det, requires_grad=True),
            mask=torch.tensor(mask),
            scl=torch.tensor(1.0),
            total=torch.tensor(det + mask + 1),
        )

    mean = Losses.mean([losses(1.0, 2.0).detach(), losses(3.0, 6.0).detach()])
    assert (mean.det, mean.mask, mean.scl, mean.total) == (2, 4, 1, 7)
    assert not mean.det.requires_grad
