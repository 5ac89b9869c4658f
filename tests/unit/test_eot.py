"""Gradients averaged over draws, of networks and policies that decide by chance."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rdi.attacks import Average, MinMax, Routed, Soft
from rdi.attacks.objectives import cross_entropy
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.thresholds import Confidence, Entropy, RandomisedPolicy, ThresholdPolicy

BALL = {"eps": 0.2, "step_size": 0.05}


class Noisy(nn.Module):
    """Dropout that stays on, as in networks that defend themselves by chance."""

    def forward(self, x):
        return F.dropout(x, 0.5, training=True)


@pytest.fixture
def net():
    torch.manual_seed(1)
    stages = [nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.Tanh()), nn.Identity()]
    heads = [nn.Sequential(Noisy(), nn.Flatten(), nn.Linear(144, 3)) for _ in range(2)]
    return MultiExitNet(stages, heads).eval()


@pytest.fixture
def batch():
    chance = torch.Generator().manual_seed(2)
    return torch.rand(5, 1, 6, 6, generator=chance), torch.randint(3, (5,), generator=chance)


def steady(net):
    """The same network without chance."""
    return MultiExitNet(net.stages, [head[1:] for head in net.heads]).eval()


def test_a_step_climbs_the_plain_average_of_the_gradients_of_all_draws(net, batch):
    x, y = batch
    attack = Average(**BALL, steps=1, eot=7, keep="last", random_start=False)
    torch.manual_seed(3)
    found = attack(net, x, y, fast=False)
    torch.manual_seed(3)
    grads = []
    for _ in range(7):
        leaf = x.clone().requires_grad_(True)
        grads.append(torch.autograd.grad(cross_entropy(net(leaf), y).mean(dim=1).sum(), leaf)[0])
    expected = (x + 0.05 * torch.stack(grads).mean(dim=0).sign()).clamp(0, 1)
    torch.testing.assert_close(found, expected)
    torch.manual_seed(3)
    assert not torch.allclose(Average(**BALL, steps=1, keep="last", random_start=False)(net, x, y, fast=False), found)


def test_more_draws_come_closer_to_the_expected_gradient(net, batch):
    x, y = batch
    weights = net.heads[0][2].weight
    assert weights.shape == (3, 144)

    def step(eot, seed):
        torch.manual_seed(seed)
        return Average(**BALL, steps=1, eot=eot, keep="last", random_start=False)(net, x, y, fast=False)

    expected = step(400, 0)
    agree = {eot: sum(float((step(eot, seed) == expected).float().mean()) for seed in (1, 2, 3)) for eot in (1, 30)}
    assert agree[30] > agree[1]


@pytest.mark.parametrize("kind", [Average, MinMax, Soft, Routed])
def test_where_nothing_is_random_two_draws_change_nothing(kind, net, batch):
    x, y = batch
    policy = ThresholdPolicy(Entropy(), [0.9])

    def crafted(eot):
        attack = kind(**BALL, steps=6, restarts=2, eot=eot).for_policy(policy)
        return attack(steady(net), x, y, torch.Generator().manual_seed(4), fast=False)

    # the mean of two equal numbers is that number, to the last bit
    assert torch.equal(crafted(1), crafted(2))


def test_an_image_that_fools_a_policy_by_chance_is_fooled_by_that_share(net, batch):
    x, _ = batch
    net = steady(net)
    with torch.no_grad():
        logits = net(x)
    # wrong at the first exit, right at the last: by which one leaves is left to chance
    y = logits[:, 1].argmax(dim=1)
    for mine, theirs in zip(net.heads[0].parameters(), net.heads[1].parameters(), strict=True):
        mine.data = -theirs.data
    with torch.no_grad():
        scores = Confidence()(net(x))[:, 0]
    share = 0.3
    low, high = float(scores.mean()) - share, float(scores.mean()) + 1 - share
    policy = RandomisedPolicy(Confidence(), [low], [high])
    attack = Routed(eps=0.0, step_size=0.05, steps=1, eot=400, sure=0.0, early_stop=False).for_policy(policy)
    best = attack.ascend(attack.judge(net, x, y, 0), x, x)
    expected = (scores - low) / (high - low)
    torch.testing.assert_close(best.fooled, expected, rtol=0, atol=0.12)


def test_no_draws_are_refused_and_banks_of_one_draw_keep_their_identity():
    with pytest.raises(UserError, match=r"^attack\.eot must be at least 1"):
        Average(**BALL, steps=1, eot=0)
    assert "eot" not in Average(**BALL, steps=1).identity()
    assert Average(**BALL, steps=1, eot=5).identity()["eot"] == 5
