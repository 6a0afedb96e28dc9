"""TRIS-C's first stage: sizes and equations of the method page, what it may and may not depend on."""

import dataclasses
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from weakmcn.model import calibration, tris_refine
from weakmcn.model.batch import Batch
from weakmcn.model.calibration import candidate_masks, candidate_weights, soft_iou
from weakmcn.model.methods import METHODS, recipe
from weakmcn.model.negatives import Negatives
from weakmcn.model.parameters import parameter_table
from weakmcn.model.sampler import epoch_batches
from weakmcn.model.samples import Samples
from weakmcn.model.schedule import learning_rate
from weakmcn.model.tris import TRIS, Localiser, TrisConfig, area_term, classification_loss
from weakmcn.shards.errors import ConfigError, StoreError

from .equations import unlike_any_other, unmoved
from .tris_batches import CONFIG, VOCABULARY, batch_of, in_double, learning


def build(config: TrisConfig = CONFIG) -> TRIS:
    torch.manual_seed(2)
    net = TRIS(config, VOCABULARY)
    unlike_any_other(net)
    return net


# Sizes


@pytest.mark.parametrize(
    ("seen", "said", "width", "count"),
    [
        (1280, 512, 1024, 10_242_048),
        (1280, 512, 512, 3_023_872),
        (1280, 512, 256, 987_648),
        (2048, 1024, 1024, 11_552_768),
    ],
    ids=["as published", "light", "lighter", "at the release's widths"],
)
def test_the_localiser_has_as_many_parameters_as_the_method_page_says(
    seen: int, said: int, width: int, count: int
) -> None:
    with torch.device("meta"):
        assert learning(Localiser(seen, said, width)) == count


@pytest.mark.parametrize(("method", "millions"), [("tris-c", 21.34), ("tris-c2", 27.10)])
def test_with_the_sentence_encoder_they_are_the_totals_of_the_method_page(method: str, millions: float) -> None:
    assert round(parameter_table(recipe(method, "refcoco")[0], method).learns / 1e6, 2) == millions


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog-small"])
@pytest.mark.parametrize("method", ["tris-c", "tris-c2"])
def test_the_recipe_is_the_method_pages_for_every_data_set(name: str, method: str) -> None:
    model, train_ = recipe(method, name)
    assert (model.side_px, model.candidates, model.max_tokens, model.banks) == (416, 17, 15, ("dino",))
    assert (train_.optimiser, train_.lr, train_.weight_decay, train_.batch) == ("adamw", 2e-4, 0.01, 48)
    assert (train_.epochs, train_.schedule, train_.poly_power, train_.ema_decay) == (15, "poly", 0.9, 0)
    assert learning_rate(0, 10, train_) == 2e-4
    assert learning_rate(75, 10, train_) == pytest.approx(2e-4 * 0.5**0.9)


# Stage 1: what a response depends on


def test_permuting_cells_permutes_the_response_and_leaves_the_scores_alone() -> None:
    net = build().double().eval()
    maps, texts = torch.randn(2, 13, 4, 4).double(), net.localise.texts(torch.randn(3, 8).double())[None]
    order = torch.randperm(16, generator=torch.Generator().manual_seed(0))
    shuffled = maps.flatten(2)[..., order].unflatten(-1, (4, 4))
    one, other = net.localise(maps, texts).flatten(2), net.localise(shuffled, texts).flatten(2)
    torch.testing.assert_close(other, one[..., order], rtol=0, atol=1e-5)
    torch.testing.assert_close(classification_loss(other[:, :2]), classification_loss(one[:, :2]), rtol=0, atol=1e-5)


def test_cells_that_are_told_their_place_answer_by_it() -> None:
    net = build(replace(CONFIG, places=True)).double().eval()
    same, texts = torch.ones(1, 13, 4, 4).double(), net.localise.texts(torch.randn(1, 8).double())[None]
    assert net.localise(same, texts).std() > 1e-3
    assert build().double().eval().localise(same, texts).std() < 1e-9


def test_permuting_texts_permutes_the_responses() -> None:
    net = build().double().eval()
    maps, texts = torch.randn(2, 13, 4, 4).double(), net.localise.texts(torch.randn(3, 8).double())[None]
    order = torch.tensor([2, 0, 1])
    one, other = net.localise(maps, texts), net.localise(maps, texts[:, order])
    torch.testing.assert_close(other, one[:, order], rtol=0, atol=1e-5)


def test_a_text_alone_prompts_every_cell_with_one_learned_constant() -> None:
    prompt = build().double().localise.prompt
    cells, texts = torch.randn(2, 12, 4, 4).double(), torch.randn(2, 1, 12).double()
    change = (prompt(cells, texts)[0] - cells) / 0.1
    torch.testing.assert_close(change, prompt.to_cells_norm.bias[:, None, None].expand_as(change), rtol=0, atol=1e-9)
    # Said twice, it is the same text: what is computed for several texts agrees with the shortcut for one.
    twice = (prompt(cells, texts.expand(-1, 2, -1))[0] - cells) / 0.1
    torch.testing.assert_close(twice, change, rtol=0, atol=1e-5)
    four = (prompt(cells, torch.randn(2, 4, 12).double())[0] - cells) / 0.1
    assert four.std(dim=(2, 3)).mean() > 0.1


def test_an_answer_is_the_same_in_any_batch_and_is_where_the_response_is_positive() -> None:
    net, batch = build().eval(), batch_of()
    whole = net.predict(batch).mask_logits
    for row in range(4):
        alone = net.predict(batch.rows(slice(row, row + 1))).mask_logits
        torch.testing.assert_close(alone, whole[row : row + 1], rtol=0, atol=1e-4)
    response = nn.functional.interpolate(net.responses(batch)[:, None], (64, 64), mode="bilinear")[:, 0]
    assert torch.equal(whole.sigmoid() > 0.5, response > 0)
    assert 0 < (response > 0).float().mean() < 1


def test_the_area_term_rises_from_minus_4_6_to_nothing() -> None:
    share = torch.linspace(0, 0.99, 200, dtype=torch.float64)
    term = area_term(share)
    assert term[0] == pytest.approx(math.log(0.01))
    assert (term <= 0).all()
    assert (term.diff() > 0).all()


def test_the_classification_loss_is_the_one_worked_out_by_hand() -> None:
    # Two images, two texts, two cells.
    response = torch.tensor([[[2.0, 0.0], [1.0, -1.0]], [[0.0, 0.0], [3.0, 1.0]]], dtype=torch.float64)
    total = 0.0
    for image in range(2):
        for text in range(2):
            shares = [
                math.exp(response[image, text, cell])
                / (math.e + sum(math.exp(response[image, other, cell]) for other in range(2)))
                for cell in range(2)
            ]
            m = sum(shares) / 2
            z = float(response[image, text].mean() + response[image, text].max()) + (1 - m) ** 3 * math.log(0.01 + m)
            total += math.log(1 + math.exp(-z if image == text else z))
    assert classification_loss(response).item() == pytest.approx(total / 4, abs=1e-9)


def test_every_weight_learns_but_those_that_cannot_matter() -> None:
    net, batch = build().double(), in_double(batch_of())
    net.losses(batch, epoch=0).total.backward()
    # The sentences of a network as small as this are nearly one; apart, they lie on both sides of every ReLU.
    texts = nn.functional.normalize(torch.randn(1, 4, 12).double(), dim=-1)
    classification_loss(net.localise(torch.randn(4, 13, 4, 4).double(), texts).flatten(2)).backward()
    prompt = "localise.prompt"
    assert unmoved(net) == {
        *(f"text.blocks.{i}.attention.key.bias" for i in range(2)),
        "text.pool.score.bias",
        *(f"{prompt}.seen.{i}.bias" for i in range(3)),  # in front of an InstanceNorm
        f"{prompt}.to_cells.bias",
    }


def test_only_what_it_reads_need_be_in_a_batch() -> None:
    batch, net = batch_of(), build().eval()
    kept = {"tokens", "letterbox", *METHODS["tris-c"].fields(CONFIG)}
    assert "boxes" not in kept
    lean = Batch(**{each.name: getattr(batch, each.name) for each in dataclasses.fields(batch) if each.name in kept})
    assert torch.equal(net.predict(lean).mask_logits, net.predict(batch).mask_logits)
    with pytest.raises(StoreError, match=r"no dino \(column dino.tokens\)"):
        net.predict(replace(lean, dino=None))


# Calibration


def test_a_mask_that_is_a_candidates_is_known_as_that_candidates() -> None:
    masks = candidate_masks(torch.from_numpy(np.packbits(rectangles(72), axis=-1)).view(8, 9, 64, 8), (16, 16))
    for candidate in range(9):
        assert candidate_weights(masks[:, candidate], masks).argmax(dim=1).tolist() == [candidate] * 8


def rectangles(count: int, side: int = 64) -> np.ndarray:
    """bool [count, side, side]."""
    rng = np.random.default_rng(4)
    found = np.zeros((count, side, side), bool)
    for mask in found:
        (y0, x0), (height, width) = rng.integers(0, 40, 2), rng.integers(8, 24, 2)
        mask[y0 : y0 + height, x0 : x0 + width] = True
    return found


def test_soft_iou_is_the_iou_of_hard_masks_and_less_for_soft_ones() -> None:
    a = torch.tensor([[1.0, 1.0], [0.0, 0.0]])
    b = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    assert soft_iou(a, b).item() == pytest.approx(1 / 3)
    assert soft_iou(a / 2, b).item() == pytest.approx(0.5 / 2.5)  # common 1/2, union 2 + 1 - 1/2
    assert soft_iou(torch.zeros(2, 2), torch.zeros(2, 2)).item() == 0


@pytest.mark.parametrize("mode", ["prop", "pool"])
def test_calibration_moves_the_masks_and_never_the_teacher(mode: str) -> None:
    config = replace(CONFIG, calibration=mode, caption_vectors="vectors", banks=("dino", "clip"))
    net, batch = build(config), batch_of()
    losses = net.losses(batch, epoch=0)
    (losses.fg + losses.neg).backward()
    moved = net.localise.see.weight.grad
    assert moved is not None
    assert moved.abs().max() > 0
    teacher = {name: getattr(batch, name).clone().requires_grad_() for name in ("texts", "clip_candidates", "clip")}
    own = torch.rand(4, 4, 4, requires_grad=True)
    torch.stack(calibration.losses(own, replace(batch, **teacher), mode)).sum().backward()
    assert own.grad is not None
    assert all(tensor.grad is None for tensor in teacher.values())
    assert losses.total.item() == pytest.approx((5 * losses.cls + losses.fg + 2 * losses.neg).item(), rel=1e-6)


def test_calibration_falls_by_two_fifths_when_nothing_else_is_learned() -> None:
    """The mask alone moves: free logits, a teacher whose space has one direction for each candidate."""
    masks = torch.from_numpy(rectangles(9)).float()[None].expand(4, -1, -1, -1)
    packed = torch.from_numpy(np.packbits(masks.bool().numpy(), axis=-1))
    vectors = torch.eye(9).expand(4, 9, 9)
    batch = replace(batch_of(), masks=packed, clip_candidates=vectors, texts=torch.eye(9)[[0, 1, 2, 3]].expand(4, 4, 9))
    logits = torch.zeros(4, 16, 16, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.1)
    seen = []
    for _ in range(150):
        fg, neg = calibration.losses(logits.sigmoid(), batch, "prop")
        optimiser.zero_grad()
        (fg + 2 * neg).backward()
        optimiser.step()
        seen.append(fg.item())
    assert seen[-1] <= 0.6 * seen[0]


def test_calibration_without_vectors_of_captions_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"calibration=prop and caption_vectors='': .*name both or neither"):
        replace(CONFIG, calibration="prop")
    with pytest.raises(ConfigError, match=r"calibration=pool reads CLIP's tokens; add clip to banks"):
        replace(CONFIG, calibration="pool", caption_vectors="vectors.safetensors")
    with pytest.raises(ConfigError, match=r"calibration='clip' is not known; choose one of none, prop, pool"):
        replace(CONFIG, calibration="clip")


# The sampler


def samples_of(keys: list[str]) -> Samples:
    return Samples(
        keys=keys,
        ref_ids=list(range(len(keys))),
        tokens=[np.ones((2, 3), np.int64)] * len(keys),
        usable=[[0, 1]] * len(keys),
        sentences=[(f"{place} a", f"{place} b") for place in range(len(keys))],
        vocabulary=VOCABULARY,
        digests={},
        notes=[],
    )


def test_negatives_are_captions_of_other_objects_of_the_image() -> None:
    samples = samples_of(["a", "a", "a", "b", "b", "c"])
    negatives = Negatives(samples, seed=3)
    for reference, others in {0: {1, 2}, 1: {0, 2}, 3: {4}}.items():
        drawn = [negatives.of(reference, 3, epoch=epoch) for epoch in range(20)]
        assert all(len(each) == 3 for each in drawn)
        assert {other for each in drawn for other, _ in each} == others
        assert {sentence for each in drawn for _, sentence in each} == {0, 1}
    # An image with one object borrows from all the others.
    assert {other for epoch in range(60) for other, _ in negatives.of(5, 3, epoch=epoch)} == {0, 1, 2, 3, 4}
    assert negatives.of(0, 3, epoch=1) == Negatives(samples, seed=3).of(0, 3, epoch=1)
    assert [negatives.of(0, 3, epoch=epoch) for epoch in range(9)] != [
        Negatives(samples, seed=4).of(0, 3, epoch=epoch) for epoch in range(9)
    ]


def test_no_two_entries_of_a_batch_share_an_image() -> None:
    keys = [str(place // 3) for place in range(60)]
    for batch in epoch_batches(keys, [[0, 1]] * 60, seed=1, epoch=2, batch=12):
        assert len({keys[reference] for reference, _ in batch}) == 12


# Refinement


def test_the_walk_keeps_a_constant_map_and_without_steps_any_map() -> None:
    steps = tris_refine.transitions(torch.randn(2, 7, 8, 8))
    torch.testing.assert_close(steps.sum(dim=1), torch.ones(2, 64), rtol=0, atol=1e-5)
    constant = torch.ones(2, 8, 8)
    torch.testing.assert_close(tris_refine.walked(constant, steps), constant, rtol=0, atol=1e-4)
    some = tris_refine.normalised(torch.rand(2, 8, 8))
    torch.testing.assert_close(tris_refine.walked(some, torch.eye(64).expand(2, -1, -1)), some)


def test_the_walk_goes_to_cells_that_are_alike_and_near() -> None:
    steps = tris_refine.transitions(halves(16))[0].unflatten(0, (16, 16)).unflatten(-1, (16, 16))
    left, right, far = steps[8, 4, 9, 6], steps[8, 4, 8, 8], steps[8, 4, 8, 9]
    assert left > 0
    assert right == 0  # another half
    assert far == 0  # five columns apart


def halves(side: int) -> Tensor:
    """Tokens [1, 2, side, side] of which the left half are alike, and the right."""
    tokens = torch.zeros(1, 2, side, side)
    tokens[:, 0, :, : side // 2], tokens[:, 1, :, side // 2 :] = 1, 1
    return tokens


def test_a_map_without_a_positive_value_is_nowhere() -> None:
    maps = torch.tensor([[[-1.0, 2.0], [0.4, 0.6]], [[-1.0, -2.0], [-3.0, 0.0]]])
    assert tris_refine.normalised(maps).tolist() == [
        [[0, 1], [pytest.approx(0.2), pytest.approx(0.3)]],
        [[0, 0], [0, 0]],
    ]


def test_a_mask_of_cells_keeps_its_borders_when_it_is_enlarged() -> None:
    cells = torch.zeros(1, 6, 6, dtype=torch.bool)
    cells[0, 1:4, 2:6] = True
    fine = tris_refine.cut(cells, (24, 24), 0.5)[0]
    exact = cells[0].repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert (fine & ~exact).sum() == 0
    assert (exact & ~fine).sum() <= 2 * 3  # corners inside the grid are rounded
    grown = tris_refine.cut(cells, (24, 24), 0.25)[0]
    assert grown[3, 10:24].all(), "at a quarter a pixel of the finer grid is gained, a quarter of a cell"
    assert not grown[2].any()


def test_the_caption_that_agrees_with_the_others_is_chosen_in_any_order() -> None:
    rng = np.random.default_rng(0)
    planted = 0
    for number in range(120):
        own, other = rectangles(240)[2 * number : 2 * number + 2].astype(np.float32)
        maps = torch.from_numpy(np.stack([own, own, other]) + rng.normal(0, 0.05, (3, 64, 64)).astype(np.float32))
        maps = tris_refine.normalised(maps)
        chosen = tris_refine.medoid(maps)
        planted += chosen == 2
        order = [2, 0, 1]
        assert order[tris_refine.medoid(maps[order])] == chosen
    assert planted <= 6
    assert tris_refine.medoid(maps[:2]) == 0
