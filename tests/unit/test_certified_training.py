"""The certified defense against a plain re-implementation of interval and CROWN-IBP training."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rdi.attacks import Average
from rdi.certificates import BoundedNetwork
from rdi.defenses import Certified
from rdi.errors import UserError
from rdi.exits import MultiExitNet

ATTACK = Average(eps=0.1, step_size=0.05, steps=2)


def small(seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = [nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU()), nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())]
        heads = [
            nn.Sequential(nn.Flatten(), nn.Linear(108, 4)),
            nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 4)),
        ]
        return MultiExitNet(stages, heads)


def affine(layer, low, high):
    """Weights split by sign: another formula than centre and radius."""
    weight, bias = layer.weight, layer.bias
    run = F.conv2d if isinstance(layer, nn.Conv2d) else F.linear
    plus, minus = weight.clamp_min(0), weight.clamp_max(0)
    return run(low, plus, bias) + run(high, minus), run(high, plus, bias) + run(low, minus)


def worst_by_hand(net, x, y, eps):
    low, high = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)
    found = []
    for stage, head in zip(net.stages, net.heads, strict=True):
        low, high = (side.relu() for side in affine(stage[0], low, high))
        at = low.flatten(1), high.flatten(1)
        for layer in list(head)[1:-1]:
            at = affine(layer, *at) if isinstance(layer, nn.Linear) else (at[0].relu(), at[1].relu())
        rows = []
        for sample in range(len(x)):  # the last layer, elided: a matrix of differences per sample
            weight = head[-1].weight - head[-1].weight[y[sample]]
            bias = head[-1].bias - head[-1].bias[y[sample]]
            rows.append(weight.clamp_min(0) @ at[1][sample] + weight.clamp_max(0) @ at[0][sample] + bias)
        found.append(torch.stack(rows))
    return torch.stack(found, dim=1)


def gradients(net, loss):
    net.zero_grad()
    loss.backward()
    return [parameter.grad.clone() for parameter in net.parameters()]


@pytest.mark.parametrize(("step", "done"), [(0, 0.0), (20, 0.0), (40, 0.5), (60, 1.0), (99, 1.0)])
def test_loss_and_gradient_are_those_of_a_plain_implementation(step, done, batch):
    net, (x, y) = small(), batch()
    defense = Certified(attack=ATTACK, warm_up=0.2, ramp=0.4, clean_weight=0.3, eps=0.12, exit_weights=[1, 3])
    defense.begin(100)
    defense.load_state({"step": step})
    loss, logs = defense.loss(net, x, y, torch.Generator())
    weights, share = torch.tensor([0.25, 0.75]), 1 - done * 0.7
    clean = torch.stack([F.cross_entropy(net(x)[:, k], y) for k in range(2)]) @ weights
    worst = worst_by_hand(net, x, y, done * 0.12)
    bounded = torch.stack([F.cross_entropy(worst[:, k], y) for k in range(2)]) @ weights
    expected = share * clean + (1 - share) * bounded
    torch.testing.assert_close(loss, expected)
    for ours, theirs in zip(gradients(net, loss), gradients(net, expected), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    assert float(logs["eps"]) == pytest.approx(done * 0.12)
    assert defense.state() == {"step": step + 1}
    if done:
        assert torch.equal(logs["certified_accuracy"], (worst.argmax(dim=2) == y[:, None]).float().mean(dim=0))


def crown_by_hand(net, x, y, eps):
    """Of the second exit, with dense matrices made column by column."""
    (conv1, _), (conv2, _), head = net.stages[0], net.stages[1], net.heads[1]
    lows, highs = [(x - eps).clamp(0, 1)], [(x + eps).clamp(0, 1)]
    low, high = affine(conv1, lows[0], highs[0])
    boxes = [(low, high)]
    low, high = affine(conv2, low.relu(), high.relu())
    boxes.append((low, high))
    low, high = affine(head[1], low.relu().flatten(1), high.relu().flatten(1))
    boxes.append((low, high))
    shapes = [(1, 8, 8), (3, 6, 6)]
    matrices = []
    for conv, shape in zip((conv1, conv2), shapes, strict=True):
        size = torch.Size(shape).numel()
        matrices.append((conv(torch.eye(size).view(size, *shape)) - conv(torch.zeros(1, *shape))).flatten(1).T)
    matrices.append(head[1].weight)
    offsets = [conv1(torch.zeros(1, 1, 8, 8)).flatten(), conv2(torch.zeros(1, 3, 6, 6)).flatten(), head[1].bias]
    offsets[1] = (offsets[1].view(4, -1) * 0 + conv2.bias[:, None]).flatten()
    found = []
    for sample in range(len(x)):
        a = head[3].weight - head[3].weight[y[sample]]
        bound = head[3].bias - head[3].bias[y[sample]]
        for layer in (2, 1, 0):
            low, high = (side[sample].flatten() for side in boxes[layer])
            crossing = (low < 0) & (high > 0)
            upper = torch.where(crossing, high / (high - low), (low >= 0).float())
            lower = torch.where(crossing, (high > -low).float(), upper)
            bound = bound + a.clamp_min(0) @ torch.where(crossing, -low * upper, torch.zeros(()))
            a = a.clamp_min(0) * upper + a.clamp_max(0) * lower
            bound = bound + a @ offsets[layer]
            a = a @ matrices[layer]
        found.append(bound + a.clamp_min(0) @ highs[0][sample].flatten() + a.clamp_max(0) @ lows[0][sample].flatten())
    return torch.stack(found)


def test_linear_bounds_are_mixed_in_and_fall_away(batch):
    net, (x, y) = small(), batch()
    defense = Certified(attack=ATTACK, warm_up=0.2, ramp=0.4, linear=0.8)
    defense.begin(100)
    mixed = defense.worst(net, x, y, 0.05, 0.25)
    intervals, lines = worst_by_hand(net, x, y, 0.05)[:, 1], crown_by_hand(net, x, y, 0.05)
    expected = 0.25 * lines + 0.75 * intervals
    torch.testing.assert_close(mixed[:, 1], expected, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(gradients(net, mixed[:, 1].sum()), gradients(net, expected.sum()), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=1e-3)
    defense.load_state({"step": 80})
    loss, _ = defense.loss(net, x, y, torch.Generator())
    plain = Certified(attack=ATTACK, warm_up=0.2, ramp=0.4)
    plain.begin(100)
    plain.load_state({"step": 80})
    assert torch.equal(loss, plain.loss(net, x, y, torch.Generator())[0])


def test_training_on_bounds_makes_bounds_that_certify(batch):
    net = small(1)
    torch.manual_seed(0)
    x = torch.rand(64, 1, 8, 8)
    y = (x[:, 0, :4].mean(dim=(1, 2)) > x[:, 0, 4:].mean(dim=(1, 2))).long()
    x = (
        0.35 * x + 0.6 * torch.stack([1 - y.float(), y.float()], dim=1)[:, None, :, None].repeat_interleave(4, dim=2)
    ).clamp(0, 1)
    before = copy.deepcopy(net)
    defense = Certified(attack=ATTACK, eps=0.1, warm_up=0.1, ramp=0.5)
    defense.begin(60)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        defense.loss(net, x, y, torch.Generator())[0].backward()
        optimizer.step()
    certified, untrained = (BoundedNetwork(one).bounds(x, y, 0.1).wins().float().mean() for one in (net, before))
    assert float(untrained) < 0.2
    assert float(certified) > 0.9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"warm_up": 0.6, "ramp": 0.6}, "sum to at most 1"),
        ({"eps": 2}, r"defense\.eps must be in \[0, 1\]"),
        ({"linear": -1}, r"defense\.linear"),
    ],
)
def test_values_out_of_range_are_refused(options, said):
    with pytest.raises(UserError, match=said):
        Certified(attack=ATTACK, **options)


def test_a_layer_without_a_bound_is_refused_at_the_first_step_and_a_foreign_state_too(batch):
    x, y = batch()
    net = MultiExitNet([nn.GELU()], [nn.Flatten()])
    with pytest.raises(UserError, match=r"no bound is known for GELU \(stages\.0\)"):
        Certified(attack=ATTACK).loss(net, x, y, torch.Generator())
    with pytest.raises(ValueError, match="no state"):
        Certified(attack=ATTACK).load_state({"guard": 1})
