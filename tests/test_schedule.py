"""The learning rate and the moving average of method section 14, worked by hand."""

import pytest
import torch
from torch import nn
from weakmcn.model.config import TrainConfig
from weakmcn.model.schedule import MovingAverage, averaged, learning_rate

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


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert learning_rate(0, STEPS, TrainConfig(warmup_epochs=0)) == pytest.approx(1e-4)


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
