"""SaG-C: sizes of the method page, symmetries of its slots, what learns from what, and that an image has one answer."""

import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weakmcn.model import shatter
from weakmcn.model.batch import Batch
from weakmcn.model.evaluate import evaluate_run
from weakmcn.model.mask_answers import photo_pixels
from weakmcn.model.methods import METHODS, recipe
from weakmcn.model.parameters import parameter_table
from weakmcn.model.schedule import learning_rate
from weakmcn.model.shatter import SaG, SaGHeads, ShatterConfig, contrast, spread
from weakmcn.model.slots import Painter, Shatter
from weakmcn.model.state import TrainState
from weakmcn.model.train import train
from weakmcn.model.train_settings import TrainSettings
from weakmcn.model.vocabulary import RESERVED, Vocabulary
from weakmcn.shards.errors import ConfigError

from . import equations, worlds
from .equations import make_batch, unlike_any_other, unmoved

VOCABULARY = Vocabulary((*RESERVED, *(f"word{number}" for number in range(equations.VOCABULARY - len(RESERVED)))))
SMALL: dict[str, Any] = {"slot_dim": 16, "gaussians": 3, "draws": 2, "rounds": 2}
SIZES: dict[str, Any] = {
    name: value for name, value in dataclasses.asdict(equations.TINY).items() if name not in ("banks", "warm_epochs")
}
CONFIG = ShatterConfig(**SIZES, **SMALL)


def build(config: ShatterConfig = CONFIG) -> SaG:
    torch.manual_seed(0)
    net = SaG(config, VOCABULARY)
    unlike_any_other(net)
    return net


def batch_of(size: int = 4) -> Batch:
    return replace(make_batch(size), images=torch.arange(100, 100 + size))


def noise_of(size: int, heads: SaGHeads) -> Tensor:
    return torch.randn(size, *heads.shatter.noise_shape, generator=torch.Generator().manual_seed(0))


# Sizes


def heads(seen: int, said: int, side: int) -> SaGHeads:
    with torch.device("meta"):
        return SaGHeads(
            seen_dim=seen, said_dim=said, width=512, side=side, gaussians=12, draws=3, rounds=6, dropout=0.1
        )


@pytest.mark.parametrize(
    ("built", "count"),
    [((768, 512, 26), 13_679_873), ((384, 768, 50), 13_429_633), ((768, 768, 26), 13_810_945)],
    ids=["as published", "at the release's widths", "with states of BERT"],
)
def test_the_heads_have_as_many_parameters_as_the_method_page_says(built: tuple[int, int, int], count: int) -> None:
    assert sum(weight.numel() for weight in heads(*built).parameters()) == count


def test_their_parts_do_too() -> None:
    parts = {
        name: sum(weight.numel() for weight in part.parameters()) for name, part in heads(768, 512, 26).named_children()
    }
    assert parts == {"see": 393_728, "shatter": 7_627_264, "gather": 4_200_448, "painter": 1_195_777, "say": 262_656}


def test_the_preset_is_that_network_with_the_sentence_encoder() -> None:
    assert parameter_table(recipe("sag-c", "refcoco")[0], "sag-c").learns == 13_679_873 + 11_101_697


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog-small"])
def test_the_recipe_is_the_method_pages_for_every_data_set(name: str) -> None:
    model: Any = recipe("sag-c", name)[0]
    train_ = recipe("sag-c", name)[1]
    assert (model.gaussians, model.draws, model.rounds, model.slot_dim, model.dropout) == (12, 3, 6, 512, 0.1)
    assert (train_.optimiser, train_.lr, train_.weight_decay, train_.batch, train_.clip_norm) == (
        "adamw",
        2e-4,
        1e-4,
        32,
        1,
    )
    assert (train_.epochs, train_.schedule, train_.ema_decay) == (50, "cosine", 0)
    assert [learning_rate(step, 1000, train_) for step in (0, 1000, 2000)] == pytest.approx([0, 1e-4, 2e-4])


# Slots


def test_what_is_shared_out_sums_to_one() -> None:
    net = build().eval()
    maps, texts = torch.randn(2, 5, 4, 4), torch.randn(1, 3, 16)
    slots, shares = net.heads.slots(maps, noise_of(2, net.heads))
    found, meant = net.heads.gather(texts, slots)
    painted, mixing = net.heads.painter(slots, (4, 4))
    assert (shares >= 0).all()
    for parts, over in ((shares, 1), (meant, 2), (mixing, 1)):
        torch.testing.assert_close(parts.sum(dim=over), torch.ones_like(parts.sum(dim=over)), rtol=0, atol=1e-5)
    assert (shares.shape, meant.shape, painted.shape) == ((2, 6, 16), (2, 3, 6), (2, 16, 5))
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(2, 3))


def test_noise_permuted_inside_a_gaussian_permutes_its_slots_and_changes_nothing_else() -> None:
    net = build().eval()
    maps, texts = torch.randn(2, 5, 4, 4), torch.randn(1, 3, 16)
    noise = noise_of(2, net.heads)
    swapped = noise.clone()
    swapped[:, 1] = noise[:, 1].flip(1)
    order = [0, 1, 3, 2, 4, 5]
    (one, shares), (other, others) = net.heads.slots(maps, noise), net.heads.slots(maps, swapped)
    torch.testing.assert_close(others, shares[:, order], rtol=0, atol=1e-5)
    (found, meant), (found_too, meant_too) = net.heads.gather(texts, one), net.heads.gather(texts, other)
    torch.testing.assert_close(found_too, found, rtol=0, atol=1e-5)
    torch.testing.assert_close(meant_too @ others, meant @ shares, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        net.heads.painter(other, (4, 4))[0], net.heads.painter(one, (4, 4))[0], rtol=0, atol=1e-5
    )


def test_noise_swapped_between_gaussians_changes_the_shares() -> None:
    net = build().eval()
    maps, noise = torch.randn(2, 5, 4, 4), noise_of(2, net.heads)
    swapped = noise.clone()
    swapped[:, 0, 0], swapped[:, 1, 0] = noise[:, 1, 0], noise[:, 0, 0]
    shares, others = net.heads.slots(maps, noise)[1], net.heads.slots(maps, swapped)[1]
    assert (others[:, [2, 1, 0, 3, 4, 5]] - shares).abs().max() > 1e-3


def test_between_gaussians_self_attention_lets_nothing_pass() -> None:
    siblings = build().double().heads.shatter.siblings
    slots = torch.randn(1, 6, 16, dtype=torch.float64, requires_grad=True)
    siblings(slots)[0, 2:4].sum().backward()
    assert slots.grad is not None
    moved = slots.grad.abs().amax(dim=-1)[0] > 0
    assert moved.tolist() == [False, False, True, True, False, False]


def test_slots_without_noise_stay_the_same_as_their_siblings() -> None:
    net = build().eval()
    slots, _ = net.heads.slots(torch.randn(1, 5, 4, 4), torch.zeros(1, 3, 2, 16))
    torch.testing.assert_close(slots[:, 0::2], slots[:, 1::2])


def test_drawn_slots_are_about_as_long_as_a_unit_vector_beyond_their_mean() -> None:
    torch.manual_seed(0)
    shatter_ = Shatter(512, 12, 3, 6, 0.0)
    noise = (shatter_.log_variance[:, None] / 2).exp() * torch.randn(12, 3, 512)
    assert noise.norm(dim=-1).mean().item() == pytest.approx(1, abs=0.05)


def test_the_painter_paints_what_each_slot_alone_would_mixed() -> None:
    """Layer by layer for every slot and cell, without the rearrangement."""
    torch.manual_seed(0)
    painter, slots = Painter(16, 5, 7).double(), torch.randn(2, 3, 16, dtype=torch.float64)
    wanted = torch.zeros(2, 12, 7, dtype=torch.float64)
    for row in range(3):
        for column in range(4):
            x = slots + torch.cat([painter.rows[row], painter.columns[column]])
            for layer in (painter.first, *painter.others):
                x = layer(x).relu()
            x = painter.paint(x)  # [2, 3, 8]
            wanted[:, 4 * row + column] = (x[..., -1:].softmax(dim=1) * x[..., :-1]).sum(dim=1)
    torch.testing.assert_close(painter(slots, (3, 4))[0], wanted)


# Losses


def test_the_contrast_is_a_cross_entropy_over_images_for_a_fixed_text() -> None:
    texts = torch.tensor([[1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
    found = nn.functional.normalize(torch.randn(2, 2, 2, dtype=torch.float64), dim=-1)  # image, text
    total = 0.0
    for t in range(2):
        logits = [float(texts[t] @ found[i, t]) for i in range(2)]
        total += math.log(sum(map(math.exp, logits))) - logits[t]
    assert contrast(texts, found).item() == pytest.approx(total / 2)
    # By cosine, over a temperature.
    cosines = nn.functional.cosine_similarity(texts[:, None], found.transpose(0, 1), dim=-1)  # text, image
    expected = nn.functional.cross_entropy(cosines / 0.1, torch.arange(2))
    assert contrast(texts, found, temperature=0.1).item() == pytest.approx(expected.item())


def test_a_text_may_be_held_at_one_length_and_keeps_its_direction() -> None:
    free, held = build(), build(replace(CONFIG, text_length=8.0))
    batch = batch_of()
    (_, texts), (_, scaled) = free.seen_and_said(batch), held.seen_and_said(batch)
    torch.testing.assert_close(scaled, 8 * texts / texts.norm(dim=-1, keepdim=True))
    assert held.losses(batch, epoch=0).text_norm.item() == pytest.approx(8)


def test_before_training_the_contrast_is_that_of_chance() -> None:
    torch.manual_seed(0)
    net, batch = SaG(CONFIG, VOCABULARY), batch_of(16)
    assert net.losses(batch, epoch=0).c3.item() == pytest.approx(math.log(16), rel=0.02)


def test_the_compared_text_gets_no_gradient_and_the_asking_one_does() -> None:
    net, batch = build().double(), batch_of()
    asked = net.heads.say(net.text(batch.tokens))
    asked.retain_grad()
    slots = torch.randn(4, 6, 16, dtype=torch.float64)
    found, _ = net.heads.gather(asked[None], slots)
    contrast(asked, found.detach().requires_grad_()).backward()
    assert asked.grad is None
    found, _ = net.heads.gather(asked[None], slots)
    contrast(asked, found).backward()
    assert asked.grad is not None
    assert asked.grad.abs().max() > 0


def test_the_painted_tokens_are_compared_with_tokens_that_do_not_learn() -> None:
    net, batch = build(), batch_of()
    assert batch.dino is not None
    batch.dino.requires_grad_()
    maps, _ = net.seen_and_said(batch)
    assert not [name for name, _ in net.standardise.named_parameters()]
    painted, _ = net.heads.painter(torch.randn(4, 6, 16), (4, 4))
    (painted - maps.flatten(2).transpose(1, 2)).square().mean().backward()
    assert net.heads.painter.paint.weight.grad is not None


def test_the_total_weighs_reconstruction() -> None:
    for weight in (1.0, 0.0, 0.5):
        torch.manual_seed(1)
        losses = build(replace(CONFIG, reconstruction=weight)).losses(batch_of(), epoch=3)
        assert losses.total.item() == pytest.approx((losses.c3 + weight * losses.rec).item())
        assert losses.text_norm > 0


def test_every_weight_learns_but_those_that_cannot_matter() -> None:
    net, batch = build().double(), batch_of()
    net.losses(batch, epoch=0).total.backward()
    assert unmoved(net) == {
        *(f"text.blocks.{i}.attention.key.bias" for i in range(2)),
        "text.pool.score.bias",
        "heads.shatter.norm_slots.bias",  # shifts all slots' scores alike
    }


# Answers


def test_the_mask_is_where_the_score_spread_over_the_photo_is_at_least_one_half() -> None:
    net, batch = build().eval(), batch_of()
    scores = nn.functional.interpolate(net.scores(batch)[:, None], (64, 64), mode="bilinear")[:, 0]
    mask = net.predict(batch).mask_logits.sigmoid() > 0.5
    for row, (h, w, left, top) in enumerate(batch.letterbox[:, 2:].tolist()):
        photo = scores[row, top : top + h, left : left + w]
        wanted = (photo - photo.min()) / (photo.max() - photo.min()) >= 0.5
        assert torch.equal(mask[row, top : top + h, left : left + w], wanted)
    assert (batch.letterbox[0, 2], batch.letterbox[0, 5]) == (32, 16)


def test_the_threshold_is_one_half_and_no_setting() -> None:
    assert shatter.FOREGROUND == 0.5
    assert not [name for name in inspect.signature(ShatterConfig).parameters if "foreground" in name]
    exactly = torch.tensor([[[0.0, 0.5, 1.0, 0.49999]]])
    inside = torch.ones(1, 1, 4, dtype=torch.bool)
    assert (spread(exactly, inside) >= shatter.FOREGROUND).tolist() == [[[False, True, True, False]]]


def test_the_photos_pixels_are_those_inside_the_letterbox() -> None:
    inside = photo_pixels(torch.tensor([[2, 4, 4, 8, 0, 2]]), 8)[0]
    assert inside.sum(dim=1).tolist() == [0, 0, 8, 8, 8, 8, 0, 0]


def test_an_image_has_one_answer_in_any_batch() -> None:
    net, batch = build().eval(), batch_of()
    whole = net.scores(batch)
    for row in range(4):
        torch.testing.assert_close(net.scores(batch.rows(slice(row, row + 1)))[0], whole[row], rtol=0, atol=1e-5)
    again = replace(batch, images=batch.images.flip(0) if batch.images is not None else None)
    assert (net.scores(again) - whole).abs().max() > 1e-4
    other = build(replace(CONFIG, noise_seed=1)).eval()
    assert (other.scores(batch) - whole).abs().max() > 1e-4


def test_only_what_it_reads_need_be_in_a_batch() -> None:
    batch, net = batch_of(), build().eval()
    kept = {"tokens", "letterbox", "images", *METHODS["sag-c"].fields(CONFIG)}
    assert kept == {"tokens", "letterbox", "images", "dino"}
    lean = Batch(**{each.name: getattr(batch, each.name) for each in dataclasses.fields(batch) if each.name in kept})
    assert torch.equal(net.predict(lean).mask_logits, net.predict(batch).mask_logits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"banks": ("dino", "sam")}, r"SaG-C sees DINO's tokens alone; --set model.banks=dino"),
        ({"slot_dim": 10}, "slot_dim=10 must be divisible by 4"),
        ({"draws": 0}, "draws=0 must be at least 1"),
        ({"temperature": -1.0}, "temperature=-1.0 must not be negative"),
        ({"text_length": -1.0}, "text_length=-1.0 must not be negative"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(CONFIG, **change)


def test_several_expressions_of_one_image_in_a_batch_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sampling='images': sag-c sees an image once in a batch"):
        replace(settings(tmp_path, tmp_path), train=replace(FAST, sampling="images"))


# On a store

WORLD: dict[str, Any] = {
    name: value for name, value in dataclasses.asdict(worlds.TINY).items() if name not in ("banks", "warm_epochs")
}
MODEL = ShatterConfig(**WORLD, **SMALL)
FAST = replace(recipe("sag-c", "pocket")[1], epochs=2, batch=8, warmup_steps=2)


def settings(store: Path, out: Path, **more: Any) -> TrainSettings:
    return TrainSettings(
        store=store, dataset=worlds.DATASET, out=out, model=MODEL, train=FAST, method="sag-c", device="cpu", **more
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that holds DINO's tokens, the detector's columns and nothing else."""
    path = tmp_path_factory.mktemp("world") / "store"
    return worlds.make_store(path, train=24, val=6, stages=("detect", "dino"))


def test_it_trains_on_dinos_tokens_alone_and_is_measured_by_masks(store: Path, tmp_path: Path) -> None:
    run = train(settings(store, tmp_path / "run"))
    assert set(run.columns) == {"dino"}
    one, other = (evaluate_run(run, "val", batch=size) for size in (5, 12))
    assert one.records == other.records
    assert {"res_miou", "res_oiou", "pointm", "sentences"} <= set(one.summary)
    assert "rec_acc50" not in one.summary
    assert any(note.startswith("SaG-C: a cached-feature port, not a reproduction") for note in one.notes)


@pytest.mark.parametrize("step", [1, 4])
def test_a_run_that_crashes_goes_on_to_the_same_bytes(store: Path, tmp_path: Path, step: int) -> None:
    """The slots that are drawn are a part of the state."""

    class Crash(Exception):  # noqa: N818 - stands for a kill
        pass

    def crash(state: TrainState) -> None:
        if state.step == step:
            raise Crash

    undisturbed = train(settings(store, tmp_path / "one"))
    with pytest.raises(Crash):
        train(settings(store, tmp_path / "other", checkpoint_minutes=0), after_step=crash)
    resumed = train(settings(store, tmp_path / "other", checkpoint_minutes=0))
    states = (run.network().state_dict() for run in (undisturbed, resumed))
    for (name, one), (_, other) in zip(*(state.items() for state in states), strict=True):
        assert torch.equal(one, other), name
    assert undisturbed.metrics.read_bytes() == resumed.metrics.read_bytes()


@pytest.mark.parametrize("method", ["tris-c", "sag-c"])
def test_the_pocket_recipe_trains_and_answers_a_photo_with_a_mask(
    demo: Path, tmp_path: Path, run: Callable[..., Any], method: str
) -> None:
    trained = tmp_path / "run"
    ended = run(
        *("train", "--shards", demo / "store", "--dataset", "refcoco+", "--out", trained, "--method", method),
        *("--set", "train.epochs=1", "--set", "train.batch=20"),
    )
    assert ended.status == 0, ended.err
    photo = sorted((demo / "data").rglob("*.jpg"))[0]
    ended = run("predict", "--run", trained, "--image", photo, "--phrase", "red star", "--out", tmp_path / "found.png")
    assert ended.status == 0, ended.err
    assert ended.out.startswith("“red star”: mask ")
    assert {path.name for path in tmp_path.iterdir()} == {"found.json", "found.png", "found-mask.png", "run"}
