"""HopSkipJump on a policy whose distance to the other class is known."""

import pytest
import torch
from torch import nn

from rdi.attacks import HopSkipJump
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.thresholds import Confidence, ThresholdPolicy

pytest.importorskip("art")


@pytest.fixture
def net():
    """Two exits; class 1 where the mean of four pixels exceeds 0.5, which the policy asks the second exit."""
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for _ in range(2)]
    for head, sign in zip(heads, (-1.0, 1.0), strict=True):
        head[1].weight.data = sign * torch.tensor([[0.0] * 4, [1.0] * 4])
        head[1].bias.data = sign * torch.tensor([0.0, -2.0])
    return MultiExitNet([nn.Identity(), nn.Identity()], heads).eval()


@pytest.fixture
def last():
    """A policy under which no image leaves at the first exit."""
    return ThresholdPolicy(score=Confidence(), values=(2.0,))


def asked(net):
    """Count the images whose label is asked for."""
    counts = []
    net.heads[1].register_forward_hook(lambda head, inputs, output: counts.append(len(output)))
    return counts


def test_labels_alone_lead_to_the_other_class_where_the_ball_reaches_it(net, last):
    x, y = torch.full((2, 1, 2, 2), 0.4), torch.tensor([0, 0])

    def crafted(eps):
        return HopSkipJump(eps=eps, queries=1500, policy=last)(net, x, y, torch.Generator().manual_seed(0), fast=False)

    for eps, wrong in ((0.13, True), (0.09, False)):
        found = crafted(eps)
        assert float((found - x).abs().max()) <= eps + 1e-6
        assert bool((found.flatten(1).mean(dim=1) > 0.5).all()) is wrong
    assert torch.equal(crafted(0.13), crafted(0.13))


def test_no_more_labels_are_asked_for_than_stated(net, last):
    counts = asked(net)
    x, y = torch.full((1, 1, 2, 2), 0.1), torch.tensor([0])
    HopSkipJump(eps=0.05, queries=300, policy=last)(net, x, y, fast=False)
    # one more, to learn the number of classes
    assert 250 < sum(counts) <= 301


def test_an_image_that_is_wrong_already_is_left_alone(net, last):
    x, y = torch.full((1, 1, 2, 2), 0.7), torch.tensor([0])
    assert torch.equal(HopSkipJump(eps=0.1, policy=last)(net, x, y), x)


def test_no_queries_are_refused():
    with pytest.raises(UserError, match=r"^attack\.queries must be at least 1"):
        HopSkipJump(eps=0.1, queries=0)
