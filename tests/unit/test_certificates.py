"""Bounds hold for everything inside: sampled points, vertices, brute force over grids; and are as tight as they say."""

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rdi.backbones.mobilenetv2 import InvertedResidual
from rdi.backbones.resnet import BasicBlock
from rdi.certificates import BoundedNetwork, Box, ball, certify, certify_each, score_bounds
from rdi.certificates.bounds import Bounds, difference_bounds
from rdi.certificates.nonlinear import Clamp, ReLU
from rdi.certificates.tracing import Traced
from rdi.errors import UserError
from rdi.exits import MultiExitNet, Normalise
from rdi.thresholds import (
    Confidence,
    EnsemblePolicy,
    Entropy,
    Margin,
    PatiencePolicy,
    RandomisedPolicy,
    ThresholdPolicy,
)


class Functional(nn.Module):
    """Ordinary layers written as functions, as a plugin's may be."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding="same")
        self.scale = nn.Parameter(torch.rand(1, 4, 1, 1) - 0.5)

    def forward(self, x):
        y = torch.tanh(self.conv(2 * x - 0.5)) * self.scale
        y = torch.cat([F.leaky_relu(y), F.max_pool2d(y, 3, 1, 1)], dim=1)
        y = F.avg_pool2d(y.clamp(-0.2, 0.3), 2)
        return y.mean(dim=(2, 3)).view(y.size(0), -1) - 1


LAYERS = {
    "conv": lambda: nn.Conv2d(3, 5, 3, 2, 1),
    "grouped": lambda: nn.Conv2d(3, 6, 3, groups=3, dilation=2, bias=False),
    "linear": lambda: nn.Sequential(nn.Flatten(), nn.Linear(192, 7)),
    "norm": lambda: nn.BatchNorm2d(3),
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "max": lambda: nn.MaxPool2d(2),
    "max_overlapping": lambda: nn.MaxPool2d(3, 2, 1),
    "average": lambda: nn.AvgPool2d(3, 2, 1),
    "adaptive": lambda: nn.AdaptiveAvgPool2d(3),
    "adaptive_max": lambda: nn.AdaptiveMaxPool2d(3),
    "flatten": nn.Flatten,
    "dropout": nn.Dropout,
    "normalise": lambda: Normalise([0.4, 0.5, 0.6], [0.2, 0.3, 0.25]),
    "residual": lambda: BasicBlock(3, 4, 2),
    "inverted": lambda: InvertedResidual(3, 3, 6, 1),
    "functional": Functional,
    "network": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 8), nn.ReLU(), nn.Linear(8, 5)
    ),
}


def made(name):
    torch.manual_seed(3)
    layer = LAYERS[name]()
    for module in layer.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.01, 2)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return layer.eval()


def boxes(count, shape, dtype, seed=0, scale=3.0):
    chance = torch.Generator().manual_seed(seed)
    middle = scale * torch.randn(count, *shape, generator=chance, dtype=torch.double)
    # radii over many sizes, down to where nothing but rounding is left
    radius = 10 ** (8 * torch.rand(count, *[1] * len(shape), generator=chance, dtype=torch.double) - 8)
    return Box((middle - radius).to(dtype), (middle + radius).to(dtype)), chance


def points(box, chance, count):
    """Vertices and inner points, by turns."""
    for turn in range(count):
        share = torch.rand(box.shape, generator=chance, dtype=box.low.dtype)
        share = share.round() if turn % 2 else share
        yield (box.low + share * (box.high - box.low)).clamp(box.low, box.high)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_no_point_of_a_box_leaves_the_bounds_of_a_layer(name, dtype):
    layer = made(name).to(dtype)
    box, chance = boxes(300, (3, 8, 8), dtype)
    steps = []
    with torch.no_grad():
        found = Traced(layer, name).run(box, steps, True)
        assert (found.low <= found.high).all()
        for x in points(box, chance, 6):
            y = layer(x)
            assert ((y >= found.low) & (y <= found.high)).all()
            # one image at a time sums in another order
            assert ((layer(x[:1]) >= found.low[:1]) & (layer(x[:1]) <= found.high[:1])).all()


@pytest.mark.parametrize("name", ["conv", "linear", "norm", "average", "relu", "max", "normalise"])
def test_bounds_of_one_layer_are_reached(name):
    """Of a single layer intervals are exact: the vertex that maximises an output gives its bound."""
    layer = made(name).double()
    box, _ = boxes(3, (3, 8, 8), torch.double, seed=1)
    found = Traced(layer, name).run(box, [], True)
    x = ((box.low + box.high) / 2).requires_grad_(True)
    out = layer(x)
    if name in ("relu", "max"):
        assert torch.equal(found.low, layer(box.low))
        assert torch.equal(found.high, layer(box.high))
        return
    for sample, row in itertools.product(range(3), (0, -1)):
        (grad,) = torch.autograd.grad(out[sample].flatten()[row], x, retain_graph=True)
        at = layer(torch.where(grad > 0, box.high, box.low)).detach()[sample].flatten()[row]
        assert float(found.high.detach()[sample].flatten()[row] - at) == pytest.approx(0, abs=1e-10)


def three_exits(seed=0, classes=4, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        stages = [
            nn.Sequential(Normalise([0.5], [0.5]), nn.Conv2d(1, 6, 3), nn.ReLU()),
            nn.Sequential(nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2)),
            BasicBlock(8, 8),
        ]
        heads = [
            nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(24, classes)),
            nn.Sequential(nn.Flatten(), nn.Linear(32, 10), nn.ReLU(), nn.Dropout(0.5), nn.Linear(10, classes)),
            nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)),
        ]
        net = MultiExitNet(stages, heads)
        with torch.no_grad():
            net(torch.rand(64, 1, 8, 8))  # settles the running statistics half way
            for head in heads:
                head[-1].weight.mul_(6)
    return net.eval().to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("linear", [False, True])
def test_no_image_of_the_ball_leaves_the_bounds_of_a_network(dtype, linear):
    net = three_exits(dtype=dtype)
    chance = torch.Generator().manual_seed(5)
    x, y = torch.rand(250, 1, 8, 8, generator=chance).to(dtype), torch.randint(4, (250,), generator=chance)
    for eps in (0.0, 1e-3, 0.03):
        found = BoundedNetwork(net).bounds(x, y, eps, linear=linear)
        image = Box((x - eps).clamp(0, 1), (x + eps).clamp(0, 1))
        with torch.no_grad():
            for x_adv in [x, *points(image, chance, 6)]:
                logits = net(x_adv)
                pairs = logits - logits.gather(2, y[:, None, None].expand(-1, 3, 1))
                assert ((logits >= found.low) & (logits <= found.high)).all()
                assert ((pairs >= found.below) & (pairs <= found.above)).all()
                right = (logits.argmax(dim=2) == y[:, None])[found.wins()]
                assert right.all()
        if not eps:
            assert float((found.high - found.low).max()) < (1e-2 if dtype is torch.float32 else 1e-10)


def test_linear_bounds_are_tighter_than_intervals_and_reached_by_a_linear_network():
    net = three_exits(dtype=torch.double)
    x, y = torch.rand(40, 1, 8, 8).double(), torch.randint(4, (40,))
    alone, both = (BoundedNetwork(net).bounds(x, y, 0.02, linear=linear) for linear in (False, True))
    assert (both.above <= alone.above).all()
    assert (both.below >= alone.below).all()
    assert (both.above < alone.above - 1e-3).any()
    flat = MultiExitNet([nn.Flatten()], [nn.Sequential(nn.Linear(64, 9), nn.Linear(9, 4))]).eval().double()
    done = BoundedNetwork(flat).run(ball(x, 0.02), rounded=True)
    bounds_SN = difference_bounds(done, 0, y, torch.double)
    image = x.clone().requires_grad_(True)
    logits = flat(image)[:, 0]
    for j in range(4):
        pair = logits[:, j] - logits.gather(1, y[:, None])[:, 0]
        (grad,) = torch.autograd.grad(pair.sum(), image, retain_graph=True)
        worst = flat(torch.where(grad > 0, (x + 0.02).clamp(0, 1), (x - 0.02).clamp(0, 1)))[:, 0]
        reached = worst[:, j] - worst.gather(1, y[:, None])[:, 0]
        torch.testing.assert_close(bounds_SN[j], reached.detach(), atol=1e-9, rtol=0)


@pytest.mark.parametrize("ends", [(0.0, 6.0), (-1.0, 1.0), (-math.inf, 0.5), (-0.5, math.inf), (0.0, 0.0)])
def test_linear_bounds_of_clamping_hold_and_touch(ends):
    clamp, chance = Clamp(*ends), torch.Generator().manual_seed(2)
    low, high = (8 * torch.rand(2, 4000, generator=chance).double() - 3).sort(dim=0).values
    boxes = [Box(low[:, None], high[:, None])]
    x = low + (high - low) * torch.linspace(0, 1, 101).double()[:, None]
    for sign in (1.0, -1.0):
        (slope,), offset = clamp.back(torch.full((1, 4000, 1), sign).double(), boxes)
        above = slope[0, :, 0] * x + offset[0]
        values = sign * x.clamp(*ends)
        assert (above >= values - 1e-12).all()
        # no line that lies higher everywhere
        assert float((above - values).amin(dim=0).max()) < 0.2


def test_clamping_from_zero_has_the_linear_bounds_of_relu():
    chance = torch.Generator().manual_seed(3)
    low, high = (2 * torch.rand(2, 50, 3, generator=chance).double() - 1).sort(dim=0).values
    a = torch.randn(2, 50, 3, generator=chance).double()
    (one,), first = Clamp(0.0, math.inf).back(a, [Box(low, high)])
    (other,), second = ReLU().back(a, [Box(low, high)])
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(first, second)


def test_networks_with_relu6_have_linear_bounds_tighter_than_intervals():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        stage = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU6(), InvertedResidual(6, 6, 2, 1))
        net = MultiExitNet([stage], [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3))])
    net = net.eval().double()
    with torch.no_grad():
        stage[0].weight.mul_(10)
        net.heads[0][2].bias.zero_()
    x = torch.rand(20, 1, 8, 8).double()
    with torch.no_grad():
        y = net(x)[:, 0].argmax(dim=1)
    # large enough that intervals leave images open
    alone, both = (BoundedNetwork(net).bounds(x, y, 0.1, linear=linear) for linear in (False, True))
    assert not alone.wins().all()
    assert (both.above <= alone.above).all()
    assert (both.above < alone.above - 1e-4).any()


@pytest.mark.parametrize("run", [lambda x: x.clamp(1.0, -1.0), lambda x: torch.clamp(x, torch.zeros(1), None)])
def test_clamping_without_fixed_ascending_ends_is_refused(run):
    class Clamping(nn.Module):
        def forward(self, x):
            return run(x)

    net = MultiExitNet([Clamping()], [nn.Sequential(nn.Flatten(), nn.Linear(64, 4))]).eval()
    with pytest.raises(UserError, match="clamp"):
        BoundedNetwork(net).bounds(torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), 0.1, linear=False)


def test_differences_through_the_last_layer_are_tighter_than_differences_of_bounds():
    net = three_exits()
    x, y = torch.rand(30, 1, 8, 8), torch.randint(4, (30,))
    found = BoundedNetwork(net).bounds(x, y, 0.02, linear=False)
    apart = found.high - found.low.gather(2, y[:, None, None].expand(-1, 3, 1))
    other = F.one_hot(y, 4)[:, None].expand(-1, 3, -1) == 0
    assert (found.above[other] <= apart[other] + 1e-5).all()
    assert float((apart - found.above)[other].mean()) > 0.05


class Unknown(nn.Module):
    def forward(self, x):
        return x.sort(dim=1).values


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.GELU()), r"no bound is known for GELU \(stages\.0\.1\)$"),
        (nn.Sequential(nn.BatchNorm2d(1, track_running_stats=False)), "BatchNorm without running statistics"),
        (Unknown(), r"no bound is known for sort in Unknown \(stages\.0\)"),
        (nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), "padding_mode=circular"),
    ],
)
def test_a_layer_without_a_bound_is_refused_by_name(layer, said):
    net = MultiExitNet([layer], [nn.Flatten()])
    with pytest.raises(UserError, match=said):
        BoundedNetwork(net).bounds(torch.rand(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), 0.1)


def test_layers_with_hooks_and_other_types_are_refused():
    net = MultiExitNet([nn.Sequential(nn.ReLU())], [nn.Flatten()])
    with pytest.raises(UserError, match="float32 and float64"):
        BoundedNetwork(net).bounds(torch.rand(2, 1, 8, 8).half(), torch.zeros(2, dtype=torch.long), 0.1)
    net.stages[0][0].register_forward_hook(lambda *_: None)
    with pytest.raises(UserError, match=r"hooks \(stages\.0\.0\)"):
        BoundedNetwork(net)


SCORES = [Entropy(), Confidence(), Margin()]


@pytest.mark.parametrize("score", SCORES, ids=lambda score: type(score).__name__)
def test_no_logits_of_a_box_leave_the_bounds_of_a_score(score):
    for classes, scale in ((2, 1.0), (3, 4.0), (10, 3.0), (10, 30.0)):
        chance = torch.Generator().manual_seed(classes)
        middle = scale * torch.randn(2500, classes, generator=chance)
        radius = 10 ** (3 * torch.rand(2500, 1, generator=chance) - 2.5) * torch.rand(2500, classes, generator=chance)
        box = Box(middle - radius, middle + radius)
        found = score_bounds(score, box)
        assert (found.low <= found.high).all()
        for z in points(box, chance, 40):
            assert ((score(z) >= found.low) & (score(z) <= found.high)).all()


@pytest.mark.parametrize("score", SCORES, ids=lambda score: type(score).__name__)
def test_bounds_of_a_score_are_as_tight_as_a_search_over_the_box_says(score):
    """Against the best of a grid with the vertices in it: exact but for the smallest entropy of a wide box."""
    chance = torch.Generator().manual_seed(2)
    middle = 2 * torch.randn(60, 3, generator=chance).double()
    radius = torch.rand(60, 3, generator=chance).double() * torch.tensor([[0.05], [0.3], [1.0]]).repeat(20, 1)
    box = Box(middle - radius, middle + radius)
    found = score_bounds(score, box)
    shares = torch.cartesian_prod(*[torch.linspace(0, 1, 31).double()] * 3)
    values = score(box.low[:, None] + shares * (box.high - box.low)[:, None]).double()
    gap_low, gap_high = values.amin(dim=1) - found.low, found.high - values.amax(dim=1)
    assert (gap_low >= 0).all()
    assert (gap_high >= 0).all()
    assert float(gap_high.max()) < 2e-2  # the grid misses an inner maximum
    assert float(gap_high.median()) < 2e-3
    narrow = radius.amax(dim=1) < 0.35
    assert float(gap_low[narrow].max()) < 0.02  # as where two are level
    assert float(gap_low.median()) < 1e-3


def random_bounds(seed, samples=400, exits=3, classes=4, wide=1.0):
    chance = torch.Generator().manual_seed(seed)
    middle = 3 * torch.randn(samples, exits, classes, generator=chance)
    y = torch.randint(classes, (samples,), generator=chance)
    middle.scatter_add_(2, y[:, None, None].expand(-1, exits, 1), torch.full((samples, exits, 1), 5.0))
    radius = wide * torch.rand(samples, exits, classes, generator=chance)
    low, high = middle - radius, middle + radius
    at = y[:, None, None].expand(-1, exits, 1)
    below, above = (low - high.gather(2, at)).scatter(2, at, 0.0), (high - low.gather(2, at)).scatter(2, at, 0.0)
    return Bounds(low, high, below, above), y, chance


POLICIES = [
    ThresholdPolicy(Entropy(), (0.4, 0.5)),
    ThresholdPolicy(Confidence(), (0.9, 0.8)),
    ThresholdPolicy(Margin(), (0.9, 0.5)),
    PatiencePolicy(3, 1),
    EnsemblePolicy(ThresholdPolicy(Entropy(), (0.4, 0.5))),
    EnsemblePolicy(ThresholdPolicy(Confidence(), (0.9, 0.8)), "arithmetic", [1.0, 2.0, 3.0]),
    EnsemblePolicy(PatiencePolicy(3, 1), "geometric", [1.0, 2.0, 3.0]),
]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
@pytest.mark.parametrize("wide", [0.01, 0.7, 2.5])
def test_no_logits_of_a_box_do_what_the_certificate_of_a_policy_rules_out(policy, wide):
    bounds, y, chance = random_bounds(7, wide=wide)
    found = certify(policy, bounds, y)
    seen = torch.zeros_like(found.taken)
    fooled = torch.zeros_like(found.right)
    for z in points(Box(bounds.low, bounds.high), chance, 200):
        exits = policy.choose(z)
        seen[torch.arange(len(y)), exits] = True
        fooled |= policy.predict(z, exits) != y
    assert not (seen & ~found.taken).any()
    assert not (fooled & found.right).any()
    assert (found.costs([10, 20, 50]) >= torch.tensor([10.0, 20.0, 50.0]).double()[found.last]).all()
    # and it is not much more careful than it must be: 200 samples find most of what it does not rule out
    missed = 0.12 if wide < 1 else 0.2
    assert float((found.taken & ~seen).double().mean()) < missed
    assert float((~fooled & ~found.right).double().mean()) < missed
    assert found.right.any()
    assert not found.right.all()


@pytest.mark.parametrize("score", [Entropy(), Margin()], ids=["entropy", "margin"])
def test_policies_that_differ_in_their_thresholds_are_certified_as_one_by_one(score, monkeypatch):
    bounds, y, _ = random_bounds(5)
    policies = [ThresholdPolicy(score, values) for values in ((0.2, 0.9), (0.5, 0.5), (-math.inf, math.inf))]
    monkeypatch.setattr("rdi.certificates.policies.CHUNK", 150)
    for policy, found in zip(policies, certify_each(policies, bounds, y), strict=True):
        alone = certify(policy, bounds, y)
        assert torch.equal(found.right, alone.right)
        assert torch.equal(found.taken, alone.taken)
    with pytest.raises(UserError, match="2 exits"):
        list(certify_each([ThresholdPolicy(score, (0.1,))], bounds, y))


def test_a_policy_with_chance_or_with_an_unknown_score_is_refused():
    bounds, y, _ = random_bounds(1)

    class Own(Entropy):
        pass

    for policy, said in (
        (RandomisedPolicy(Entropy(), [0.1, 0.1], [0.2, 0.2]), "by chance"),
        (EnsemblePolicy(RandomisedPolicy(Entropy(), [0.1, 0.1], [0.2, 0.2])), "by chance"),
        (ThresholdPolicy(Own(), [0.1, 0.1]), "Own has no known bounds"),
        (ThresholdPolicy(Entropy(), [0.1]), "2 exits"),
    ):
        with pytest.raises(UserError, match=said):
            certify(policy, bounds, y)


def test_entropy_bounds_stand_extreme_logits():
    box = Box(
        torch.tensor([[-1e4, 0.0, 900.0], [-5.0, -5.0, -5.0]]), torch.tensor([[1e4, 0.0, 900.0], [5.0, 5.0, 5.0]])
    )
    for score in SCORES:
        found = score_bounds(score, box)
        assert found.low.isfinite().all()
        assert found.high.isfinite().all()
    found = score_bounds(Entropy(), box)
    assert float(found.high[1]) == pytest.approx(math.log(3), abs=1e-4)
    assert float(found.low[0]) <= 1e-4
