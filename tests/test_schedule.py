"""The learning rate, a step and the moving average of method section 14, worked by hand."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from weakmcn.model.config import TrainConfig, train_preset
from weakmcn.model.ranks import Ranks
from weakmcn.model.schedule import MovingAverage, averaged, learning_rate
from weakmcn.model.state import TrainState
from weakmcn.model.train import train_epoch
from weakmcn.shards.errors import ConfigError

RECIPE = TrainConfig(epochs=6, warmup_epochs=2, warmup_lr=1e-3, lr=9e-3, min_lr=1e-3)
STEPS = 4  # an epoch: 8 steps of warm-up, 16 of cosine


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-3),
        (1, 2e-3),  # an eighth of the way from 1e-3 to 9e-3
        (7, 8e-3),
        (8, 9e-3),
        (12, 1e-3 + 4e-3 * (1 + 0.5**0.5)),  # a quarter of the cosine: cos(pi / 4)
        (16, 5e-3),  # half of it
        (24, 1e-3),  # the end, one after the last step
    ],
)
def test_the_rate_rises_linearly_and_falls_along_a_cosine(step: int, rate: float) -> None:
    assert learning_rate(step, STEPS, RECIPE) == pytest.approx(rate)


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 1e-7),
        (1, 1e-7 + 9.99e-5 / 4240),
        (1060, 2.5075e-5),  # after one of four epochs a quarter of the way
        (4239, 1e-4 - 9.99e-5 / 4240),
        (4240, 1e-4),
        (11660, 8.25e-5),  # a third of the cosine's 22,260 steps: cos(pi / 3) = 1/2
        (15370, 6.5e-5),
        (19080, 4.75e-5),  # two thirds
        (26500, 3e-5),
    ],
)
def test_the_released_rates_of_refcoco(step: int, rate: float) -> None:
    # 42,404 references in batches of 40 are 1,060 steps an epoch: 4,240 of warm-up, 26,500 in all.
    assert learning_rate(step, 42_404 // 40, train_preset("refcoco")) == pytest.approx(rate, rel=1e-9)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(0, STEPS, TrainConfig(warmup_epochs=0)) == pytest.approx(1e-4)


@pytest.mark.parametrize(("step", "rate"), [(0, 1e-3), (8, 9e-3), (16, 5e-3), (24, 1e-3)])
def test_the_rate_may_fall_along_a_power_of_the_steps_left(step: int, rate: float) -> None:
    linear = replace(RECIPE, schedule="poly", poly_power=1.0)
    assert learning_rate(step, STEPS, linear) == pytest.approx(rate)
    steep = replace(RECIPE, schedule="poly", poly_power=2.0)
    assert learning_rate(16, STEPS, steep) == pytest.approx(1e-3 + 8e-3 / 4)


def test_warm_up_may_be_counted_in_steps_too() -> None:
    finer = replace(RECIPE, warmup_epochs=1, warmup_steps=4)
    assert [learning_rate(step, STEPS, finer) for step in range(25)] == [
        learning_rate(step, STEPS, RECIPE) for step in range(25)
    ]


@pytest.mark.parametrize(("optimiser", "weight"), [("adam", 1.0), ("adamw", 1 - 0.1 * 0.25)])
def test_adamw_takes_a_share_of_the_weight_away_at_every_step(optimiser: str, weight: float) -> None:
    config = replace(RECIPE, optimiser=optimiser, weight_decay=0.25 if optimiser == "adamw" else 0.0)
    net = one_weight(1.0)
    state = TrainState.start(net, config)
    state.set_rate(0.1)
    net.weight.grad = torch.zeros(1, 1)
    state.optimiser.step()
    assert net.weight.item() == pytest.approx(weight)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"optimiser": "sgd"}, "optimiser='sgd' is not known; choose one of adam, adamw"),
        ({"schedule": "step"}, "schedule='step' is not known; choose one of cosine, poly"),
        ({"weight_decay": 0.1}, "weight_decay=0.1 needs optimiser=adamw"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must not be negative"),
    ],
)
def test_recipes_that_cannot_be_are_refused(change: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(RECIPE, **change)


def one_weight(value: float) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        net.weight.fill_(value)
    return net


def test_the_average_follows_ever_more_slowly() -> None:
    net = one_weight(10)
    average = MovingAverage(net, decay=0.25)
    with torch.no_grad():
        net.weight.fill_(20)
    average.update(0)  # decay (1 + 0) / (10 + 0) = 0.1
    assert average.shadow["weight"].item() == pytest.approx(0.1 * 10 + 0.9 * 20)
    average.update(1)  # 2 / 11
    assert average.shadow["weight"].item() == pytest.approx(2 / 11 * 19 + 9 / 11 * 20)
    before = average.shadow["weight"].item()
    average.update(100)  # 101 / 110 is more than the largest decay, 0.25
    assert average.shadow["weight"].item() == pytest.approx(0.25 * before + 0.75 * 20)
    assert net.weight.item() == 20


def test_trained_weights_and_batchnorm_statistics_are_averaged_and_nothing_else() -> None:
    net = nn.Sequential(nn.Embedding(2, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    net[0].weight.requires_grad_(False)
    net.register_buffer("table", torch.ones(2))
    assert set(averaged(net)) == {
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
        "2.running_mean",
        "2.running_var",
    }


@pytest.mark.parametrize(
    ("step", "decay"),
    [
        (0, 0.1),
        (8, 0.5),  # 9 / 18
        (90, 0.91),  # 91 / 100
        (26_499, 26_500 / 26_509),  # the last step of RefCOCO: still below the largest decay
        (29_990, 0.9997),  # 29,991 / 30,000, from here on the same
        (60_000, 0.9997),
    ],
)
def test_the_released_decay_at_a_step(step: int, decay: float) -> None:
    net = one_weight(0).double()
    average = MovingAverage(net, train_preset("refcoco").ema_decay)
    with torch.no_grad():
        net.weight.fill_(1)
    average.update(step)
    assert average.shadow["weight"].item() == pytest.approx(1 - decay, rel=1e-9)


def test_the_average_is_exact_for_statistics_of_a_batchnorm_and_counts_of_batches_are_left_alone() -> None:
    net = nn.BatchNorm1d(1)
    average = MovingAverage(net, decay=0.9)
    net(torch.tensor([[1.0], [5.0]]))  # mean 3, unbiased variance 8, momentum 0.1: running mean 0.3, variance 1.7
    average.update(0)
    assert average.shadow["running_mean"].item() == pytest.approx(0.9 * 0.3)
    assert average.shadow["running_var"].item() == pytest.approx(0.1 * 1 + 0.9 * 1.7)
    assert net.num_batches_tracked is not None
    assert net.num_batches_tracked.item() == 1
    assert "num_batches_tracked" not in average.shadow


# A step


@dataclass
class Total:
    total: Tensor


class Slopes(nn.Module):
    """Two weights whose gradients a batch dictates; None leaves the second one out of the graph."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def losses(self, batch: tuple[float, float | None], epoch: int, ranks: Ranks) -> Total:
        first, second = batch
        return Total(self.first * first if second is None else self.first * first + self.second * second)


CONSTANT = TrainConfig(epochs=1, warmup_epochs=0, lr=0.01, min_lr=0.01, warmup_lr=0.01)


def steps(
    *slopes: tuple[float, float | None], recipe: TrainConfig = CONSTANT
) -> tuple[list[float], list[float], TrainState]:
    """Both weights after each step of an epoch, and the state at its end."""
    net = Slopes()
    state = TrainState.start(net, recipe)
    first, second = [], []
    for _ in train_epoch(state, [(pair, []) for pair in slopes], recipe, steps=len(slopes)):  # type: ignore[list-item]
        first.append(net.first.item())
        second.append(net.second.item())
    return first, second, state


def test_two_steps_of_adam_by_hand() -> None:
    # Gradients 0.1, then 0.05, both below the largest norm. With betas 0.9 and 0.98, the moments after the second are
    # 0.9 * 0.01 + 0.1 * 0.05 = 0.014 and 0.98 * 0.0002 + 0.02 * 0.0025 = 0.000246, undone of their start by 1 - 0.81
    # and 1 - 0.9604: 0.0736842 / sqrt(0.00621212) = 0.934877.
    first, second, _ = steps((0.1, None), (0.05, None))
    assert first == pytest.approx([-0.01, -0.01 - 0.00934877], rel=1e-6)
    assert second == [0, 0]


def test_each_step_is_taken_at_its_own_rate() -> None:
    # Equal gradients: Adam's steps have the size of the rate, which warms up from 0.001 by 0.002 a step.
    recipe = TrainConfig(epochs=2, warmup_epochs=1, warmup_lr=0.001, lr=0.009, min_lr=0)
    first, _, _ = steps(*[(0.1, None)] * 4, recipe=recipe)
    assert first == pytest.approx([-0.001, -0.004, -0.009, -0.016], rel=1e-6)


def test_the_gradient_of_all_weights_together_is_cut_before_the_step() -> None:
    # (3, 4) has norm 5 and becomes (0.09, 0.12); (0.06, -0.08) has 0.1 and stays.
    # First weight: 0.9 * 0.009 + 0.1 * 0.06 = 0.0141, 0.98 * 0.000162 + 0.02 * 0.0036 = 0.00023076:
    # 0.0742105 / sqrt(0.00582727) = 0.972149. Second: 0.0028 / 0.19 over sqrt(0.00041024 / 0.0396): 0.144788.
    first, second, state = steps((3, 4), (0.06, -0.08))
    assert first == pytest.approx([-0.01, -0.01972149], rel=1e-5)
    assert second == pytest.approx([-0.01, -0.01144788], rel=1e-5)
    # The average after both: a tenth of the start and nine of the first, then 2/11 and 9/11.
    assert state.average.shadow["first"].item() == pytest.approx(2 / 11 * -0.009 + 9 / 11 * -0.01972149, rel=1e-5)


def test_a_weight_without_gradient_is_passed_over_and_starts_counting_when_it_gets_one() -> None:
    _, second, state = steps((0.1, None), (0.1, None), (0.1, 0.07))
    assert second == pytest.approx([0, 0, -0.01], rel=1e-6)  # a first step of Adam has the size of the rate
    net = state.net
    assert isinstance(net, Slopes)
    assert state.optimiser.state[net.first]["step"] == 3
    assert state.optimiser.state[net.second]["step"] == 1
