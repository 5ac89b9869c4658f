"""The Square attack in L2 balls: its patterns and moves against plain loops, and what it finds without gradients."""

import numpy as np
import pytest
import torch
from torch import nn

from rdi.attacks import Square
from rdi.attacks.norms import Ball
from rdi.attacks.square_l2 import Draw, bump, moved, pattern, tiled
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.thresholds import Confidence, ThresholdPolicy

EPS = 0.7


def test_the_weights_of_a_bump_fall_off_from_its_middle_as_published():
    for height, width in ((3, 5), (4, 4), (2, 7)):
        n = max(height, width) // 2
        expected = np.zeros((height, width))
        for r in range(1, height + 1):
            for s in range(1, width + 1):
                most = n - max(abs(r - height // 2 - 1), abs(s - width // 2 - 1))
                expected[r - 1, s - 1] = sum(1 / (n + 1 - k) ** 2 for k in range(most + 1))
        np.testing.assert_allclose(bump(height, width).numpy(), expected, rtol=1e-5, atol=1e-6)
    both = pattern(5)
    assert float(both.norm()) == pytest.approx(1)
    assert (both[:2] > 0).all()
    assert (both[2:] < 0).all()


def by_hand(best, x, first, second, side, signs, turned):
    """One image (C, H, W) after the steps of Algorithm 3, before it is brought into [0, 1]."""
    nu = (best - x).astype(np.float64)
    eta = pattern(side).numpy().astype(np.float64)
    eta = eta.T if turned else eta
    unused = max(EPS**2 - (nu**2).sum(), 0)
    (a, b), (c, d) = first, second
    before = nu.copy()
    union = np.zeros(nu.shape[1:], bool)
    union[a : a + side, b : b + side] = union[c : c + side, d : d + side] = True
    for channel in range(len(nu)):
        window = before[channel, a : a + side, b : b + side]
        length = np.sqrt((window**2).sum())
        shape = signs[channel] * eta + (window / length if length else 0)
        reach = np.sqrt((before[channel][union] ** 2).sum() + unused / len(nu))
        nu[channel, c : c + side, d : d + side] = 0
        nu[channel, a : a + side, b : b + side] = shape / np.sqrt((shape**2).sum()) * reach
    return x + nu


def test_a_move_is_that_of_algorithm_3():
    chance = torch.Generator().manual_seed(0)
    x = torch.full((4, 2, 9, 8), 0.5)
    start = tiled(x, EPS, torch.rand(4, 2, 9, 8, generator=chance).round() * 2 - 1, torch.rand(4, 1, 9, 8) < 0.5)
    best = x + 0.8 * (start - x)  # something of the ball is unused
    first, second = torch.tensor([[0, 0], [6, 5], [2, 1], [3, 3]]), torch.tensor([[5, 4], [0, 0], [3, 2], [3, 3]])
    signs = torch.tensor([[1.0, -1], [-1, 1], [1, 1], [-1, -1]])
    turned = torch.tensor([False, True, True, False])
    found = moved(best, x, EPS, 3, Draw(first, second, signs[:, :, None, None], turned[:, None, None, None]))
    for n in range(4):
        corners = (first[n].tolist(), second[n].tolist())
        expected = by_hand(best[n].numpy(), x[n].numpy(), *corners, 3, signs[n].tolist(), bool(turned[n]))
        np.testing.assert_allclose(found[n].numpy(), expected, atol=1e-5)
    # nothing of the ball is left over
    torch.testing.assert_close(Ball(EPS, "l2").length(found - x), torch.full((4,), EPS).double(), rtol=1e-4, atol=0)


@pytest.fixture
def net():
    """Class 1 where the left half is brighter than the right one, seen through steps that have no slope."""

    class Steps(nn.Module):
        def forward(self, x):
            return (x * 500).round() / 500

    heads = [nn.Sequential(nn.Flatten(), nn.Linear(100, 2)) for _ in range(2)]
    for head in heads:
        left = (torch.arange(10) < 5).float() * 2 - 1
        head[1].weight.data = torch.stack([-left.repeat(10), left.repeat(10)])
        head[1].bias.data = torch.tensor([1.0, -1.0])
    return MultiExitNet([Steps(), nn.Identity()], heads).eval()


def test_it_finds_without_gradients_what_the_ball_holds_and_nothing_else(net):
    policy = ThresholdPolicy(Confidence(), [0.9])
    x, y = torch.full((6, 1, 10, 10), 0.5), torch.zeros(6, dtype=torch.long)

    def crafted(eps, seed=0):
        attack = Square(eps=eps, norm="l2", queries=300, sure=0.01).for_policy(policy)
        return attack(net, x, y, torch.Generator().manual_seed(seed))

    # the nearest image of class 1 lies at 0.1: one hundredth more in all pixels of a side, less in those of the other
    near, far = crafted(0.25), crafted(0.08)
    assert (net(near).argmax(dim=2) == 1).all()
    assert (net(far).argmax(dim=2) == 0).all()
    assert (Ball(0.25, "l2").length(near - x) <= 0.25 + 1e-6).all()
    assert torch.equal(near, crafted(0.25))
    assert not torch.equal(near, crafted(0.25, seed=1))
    with pytest.raises(UserError, match="L-infinity and L2 balls only, the threat model is L1"):
        Square(eps=1, norm="l1", target=0)(net, x, y)
