"""What is moved, folded, shared or left out in the heads changes nothing but rounding: in float64, to 1e-12.

The other side is plain.py: the same weights, every step where the authors have it.
"""

import copy
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from weakmcn.model.batch import Batch
from weakmcn.model.compiling import compile_parts
from weakmcn.model.methods import method_of
from weakmcn.model.precision import computing_in
from weakmcn.model.weakmcn import Losses, WeakMCN

from . import plain
from .equations import TINY, VOCABULARY, make_batch, unlike_any_other

EXACT = 1e-12
"""Relative L2 difference that is allowed in float64."""
IMAGES = ("dark_s8", "dark_s16", "dark_s32", "dino", "sam", "clip", "cells", "boxes", "letterbox", "masks")


def network(**change: Any) -> WeakMCN:
    torch.manual_seed(0)
    net = WeakMCN(replace(TINY, **change), VOCABULARY)
    unlike_any_other(net)
    return net.double().train()


def distance(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).detach().norm() / truth.detach().norm())


def gradient(net: nn.Module) -> Tensor:
    """Of all weights; what has none counts as zero."""
    return torch.cat(
        [(torch.zeros_like(weight) if weight.grad is None else weight.grad).flatten() for weight in net.parameters()]
    )


def step(net: WeakMCN, losses: Callable[[], Losses]) -> Losses:
    net.zero_grad()
    found = losses()
    found.total.backward()
    return found


@pytest.mark.parametrize("epoch", [0, 12, 16], ids=["warm-up", "masks", "isl"])
@pytest.mark.parametrize("change", [{}, {"banks": ()}, {"banks": ("dino", "sam", "clip")}, {"dynamic": False}], ids=str)
def test_losses_and_all_gradients_are_those_of_the_authors_order(change: dict[str, Any], epoch: int) -> None:
    net, batch = network(**change), make_batch()
    other = copy.deepcopy(net)
    found, truth = step(net, lambda: net.losses(batch, epoch)), step(other, lambda: plain.losses(other, batch, epoch))
    assert distance(found.total, truth.total) <= EXACT
    if epoch >= TINY.warm_epochs:
        for term in ("det", "mask", "scl"):
            ours, theirs = getattr(found, term), getattr(truth, term)
            torch.testing.assert_close(ours, theirs, rtol=EXACT, atol=EXACT, msg=term)
    assert distance(gradient(net), gradient(other)) <= EXACT


def test_running_statistics_are_those_of_the_authors_order_but_for_branches_that_do_not_run() -> None:
    """The exception: during warm-up the mask branch is not run, so its statistics wait for the first mask loss."""
    net, batch = network(), make_batch()
    other = copy.deepcopy(net)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    for epoch in (0, 12):
        net.losses(batch, epoch)
        plain.losses(other, batch, epoch)
        waiting = ("mask_head.", "fusion.project.s8.", "fusion.project.s16.") if epoch == 0 else ()
        for (name, value), truth in zip(net.state_dict().items(), other.state_dict().values(), strict=True):
            if name.startswith(waiting):
                assert torch.equal(value, before[name]), name
            else:
                torch.testing.assert_close(value, truth, rtol=EXACT, atol=EXACT, msg=name)
        other.load_state_dict(net.state_dict())


def test_a_factor_of_the_running_variance_that_is_left_out_would_be_seen() -> None:
    net, batch = network(), make_batch()
    other = copy.deepcopy(net)
    net.fusion.down_to_s16[0].norm.repeats = 1  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]
    net.losses(batch, 0)
    plain.losses(other, batch, 0)
    name = "fusion.down_to_s16.0.norm.running_var"
    assert distance(net.state_dict()[name], other.state_dict()[name]) > 1e-4


# One image, several expressions


def shared(copies: int, batch: Batch) -> tuple[Batch, Batch]:
    """`copies` expressions for each of the first images of `batch`; and the same with every image repeated."""
    images = len(batch) // copies
    owner = torch.arange(images).repeat_interleave(copies)
    once = {name: getattr(batch, name)[:images] for name in IMAGES}
    together = replace(batch, **once, classes=None, colours=None, owner=owner)
    return together, replace(together, **{name: value[owner] for name, value in once.items()}, owner=None)


def test_expressions_of_one_image_share_what_the_image_alone_decides() -> None:
    """With equally many expressions an image, even the norms see the same statistics; only the contrast differs."""
    together, apart = shared(3, make_batch(6))
    found, gradients = [], []
    for batch in (together, apart):
        net = network()
        losses = net.losses(batch, 16)
        (losses.mask + losses.scl).backward()
        found.append(losses)
        gradients.append(gradient(net))
    assert distance(found[0].mask, found[1].mask) <= EXACT
    assert distance(found[0].scl, found[1].scl) <= EXACT
    assert distance(*gradients) <= EXACT


def test_expressions_of_one_image_are_no_negatives_of_each_other() -> None:
    net = network()
    together, apart = shared(3, make_batch(6))
    assert net.losses(together, 0).det < network().losses(apart, 0).det - 0.1


def test_owners_that_are_all_different_change_nothing() -> None:
    batch = make_batch()
    found = network().losses(replace(batch, owner=torch.arange(len(batch))), 16)
    truth = network().losses(batch, 16)
    for term in fields(Losses):
        assert torch.equal(getattr(found, term.name), getattr(truth, term.name)), term.name


def test_answers_are_those_that_each_expression_gets_with_an_image_of_its_own() -> None:
    net = network().eval()
    together, apart = shared(3, make_batch(6))
    found, truth = net.predict(together), net.predict(apart)
    for name in ("similarity", "boxes", "scores", "mask_logits"):
        torch.testing.assert_close(getattr(found, name), getattr(truth, name), rtol=EXACT, atol=EXACT, msg=name)
    assert torch.equal(found.chosen, truth.chosen)


# Precision


@pytest.mark.parametrize("epoch", [0, 12, 16], ids=["warm-up", "masks", "isl"])
def test_a_step_in_bfloat16_is_nearly_that_in_float32_and_its_losses_are_float32(epoch: int) -> None:
    batch, found, gradients = make_batch(), [], []
    for precision in ("float32", "bfloat16"):
        net = network().float()
        with computing_in(precision, torch.device("cpu")):
            losses = net.losses(batch, epoch)
        losses.total.backward()
        assert losses.total.dtype == torch.float32
        found.append(losses)
        gradients.append(gradient(net))
    for term in fields(Losses):
        full, half = (getattr(losses, term.name).detach() for losses in found)
        torch.testing.assert_close(half, full, rtol=0.02, atol=0.02, msg=term.name)
    assert not torch.equal(found[0].total, found[1].total)
    assert torch.cosine_similarity(*gradients, dim=0) > 0.99


# Compiled


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # torch asks
def test_what_is_compiled_is_traced_whole_and_gives_the_same_losses_and_gradients() -> None:
    """Of a compiler that only traces, forward and backward: generating code takes two minutes more."""
    net, batch = network(dropout=0.0), make_batch()
    other = copy.deepcopy(net)
    compile_parts(other, method_of("weakmcn").compiled, "aot_eager")
    breaks = torch._dynamo.utils.counters["graph_break"].total()
    found, truth = (step(each, lambda each=each: each.losses(batch, 12)) for each in (other, net))
    assert torch._dynamo.utils.counters["graph_break"].total() == breaks
    assert torch._dynamo.utils.counters["stats"]["calls_captured"] > 200
    assert distance(found.total, truth.total) <= EXACT
    assert distance(gradient(other), gradient(net)) <= EXACT
    assert other.state_dict().keys() == net.state_dict().keys()
