"""Learning rates at the steps that the papers name, and refused recipes."""

from functools import partial

import pytest
import torch

from rdi.errors import UserError
from rdi.optim import Recipe

SGD = partial(torch.optim.SGD, lr=0.1)


def recipe(**settings):
    return Recipe(**{"optimizer": SGD, "batch_size": 10, "lr": 1.0, "iterations": 100, **settings})


@pytest.mark.parametrize(
    ("length", "lr", "milestones", "rates"),
    [
        (
            64_000,
            0.1,
            [0.5, 0.75],
            {0: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001},
        ),
        (
            13_100,
            0.033,
            [0.893130, 0.984733],
            {0: 0.033, 11_699: 0.033, 11_700: 0.0033, 12_899: 0.0033, 12_900: 0.00033, 13_099: 0.00033},
        ),
        (
            82_000,
            0.05,
            [0.752439, 0.853659, 0.951220],
            {61_699: 0.05, 61_700: 0.005, 69_999: 0.005, 70_000: 0.0005, 77_999: 0.0005, 78_000: 0.00005},
        ),
    ],
)
def test_the_papers_rates_change_at_the_papers_steps(length, lr, milestones, rates):
    paper = recipe(iterations=length, lr=lr, milestones=milestones)
    assert {step: paper.rate(step, length) for step in rates} == pytest.approx(rates)


def test_warm_up_rises_linearly_and_then_the_schedule_begins():
    warm = recipe(schedule="constant", warmup=0.1, lr=2.0)
    assert [warm.rate(step, 100) for step in range(12)] == pytest.approx([0.2 * (k + 1) for k in range(10)] + [2.0] * 2)


def test_cosine_falls_from_the_peak_to_nothing():
    cosine = recipe(schedule="cosine", lr=2.0)
    rates = [cosine.rate(step, 1000) for step in range(1000)]
    assert rates[0] == 2.0
    assert rates[500] == pytest.approx(1.0)
    assert 0 < rates[-1] < 1e-5
    assert rates == sorted(rates, reverse=True)
    warmed = recipe(schedule="cosine", warmup=0.2, lr=2.0)
    assert warmed.rate(200, 1000) == 2.0
    assert warmed.rate(600, 1000) == pytest.approx(1.0)


def test_one_cycle_rises_to_the_peak_and_falls_to_nothing_in_straight_lines():
    cycle = recipe(schedule="one_cycle", warmup=0.3, lr=2.0)
    rates = [cycle.rate(step, 1000) for step in range(1000)]
    assert rates[0] == pytest.approx(2.0 / 300)
    assert rates[299] == rates[300] == 2.0
    assert rates[650] == pytest.approx(1.0)
    assert rates[-1] == pytest.approx(2.0 / 700)
    assert max(rates) == 2.0


def test_constant_is_constant():
    assert {recipe(schedule="constant").rate(step, 100) for step in range(100)} == {1.0}


def test_gamma_and_milestones_are_what_they_say():
    steps = recipe(milestones=[0.2, 0.5], gamma=0.5)
    assert [steps.rate(step, 10) for step in range(10)] == [1, 1, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25]


@pytest.mark.parametrize(
    ("settings", "samples", "steps"),
    [
        ({"iterations": 123}, 1000, 123),
        ({"iterations": None, "epochs": 3}, 100, 30),
        ({"iterations": None, "epochs": 0.5}, 100, 5),
        ({"iterations": None, "epochs": 3}, 105, 32),
        ({"iterations": None, "epochs": 0.001}, 10, 1),
    ],
)
def test_the_length_is_given_in_steps_or_in_epochs(settings, samples, steps):
    assert recipe(**settings).steps(samples) == steps


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 3}, r"one of optim\.iterations and optim\.epochs"),
        ({"iterations": None}, r"one of optim\.iterations and optim\.epochs"),
        ({"iterations": 0}, r"optim\.iterations"),
        ({"iterations": 2.5}, r"optim\.iterations"),
        ({"iterations": None, "epochs": 0}, r"optim\.epochs"),
        ({"iterations": None, "epochs": float("inf")}, r"optim\.epochs"),
        ({"lr": 0}, r"optim\.lr"),
        ({"lr": -0.1}, r"optim\.lr"),
        ({"lr": "0.1"}, r"optim\.lr"),
        ({"batch_size": 0}, r"optim\.batch_size"),
        ({"batch_size": True}, r"optim\.batch_size"),
        ({"schedule": "step"}, "constant, multistep, cosine, one_cycle"),
        ({"gamma": 0}, r"optim\.gamma"),
        ({"gamma": 2}, r"optim\.gamma"),
        ({"warmup": 1.0}, r"optim\.warmup"),
        ({"warmup": -0.1}, r"optim\.warmup"),
        ({"milestones": [0]}, r"optim\.milestones"),
        ({"milestones": [32_000]}, r"optim\.milestones"),
    ],
)
def test_recipes_out_of_range_are_refused_by_name(settings, message):
    with pytest.raises(UserError, match=message):
        recipe(**settings)


def test_a_batch_larger_than_the_training_set_is_refused():
    whole = recipe(batch_size=10, iterations=3, epochs=None)
    assert whole.steps(10) == 3
    for one in (whole, recipe(batch_size=10, iterations=None, epochs=2)):
        with pytest.raises(UserError, match=r"optim\.batch_size=10, but there are 9 images to train on"):
            one.steps(9)
