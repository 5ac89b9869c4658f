"""Balls of other norms than L-infinity: the nearest point, steps, starts, and attacks that stay inside."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from rdi.attacks import APGD, Average, Ball, MaxAverage, Sign, Slowdown, Soft, Square, Targeted, Transfer
from rdi.attacks.norms import SPARSE, sparse_sign
from rdi.attacks.objectives import cross_entropy
from rdi.attacks.transfer import Surrogate
from rdi.checks import NORMS
from rdi.defenses import Carried, Certified, Composed, CrossEntropy, Fast, GradientSign
from rdi.errors import UserError
from rdi.thresholds import Entropy
from rdi.thresholds.policy import ThresholdPolicy

RADII = {"linf": 0.05, "l2": 0.5, "l1": 4.0}
OTHERS = ("l2", "l1")


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def in_ball(points, eps, norm):
    """The nearest points of the ball about 0, each row by itself."""
    if norm == "l2":
        return points * np.minimum(1, eps / np.linalg.norm(points, axis=1, keepdims=True))
    sizes = -np.sort(-np.abs(points), axis=1)
    cuts = (sizes.cumsum(axis=1) - eps) / np.arange(1, points.shape[1] + 1)
    return np.sign(points) * np.maximum(np.abs(points) - np.maximum(cuts.max(axis=1, keepdims=True), 0), 0)


def nearest(wanted, x, eps, norm):
    """The nearest points of ball and box by Dykstra's alternating projections, which need no derivative."""
    at, ball_left, box_left = wanted, 0, 0
    for _ in range(3000):
        inside = x + in_ball(at + ball_left - x, eps, norm)
        ball_left = at + ball_left - inside
        at = (inside + box_left).clip(0, 1)
        box_left = inside + box_left - at
    return at


@pytest.mark.parametrize("norm", OTHERS)
@pytest.mark.parametrize("eps", [0.3, 1.0, 2.5])
def test_the_projection_is_the_nearest_point_of_ball_and_pixel_range(norm, eps):
    x = torch.rand(6, 1, 2, 3, generator=stream(), dtype=torch.float64)
    x[0, 0, 0, 0], x[1, 0, 1, 1] = 0.0, 1.0
    wanted = x + 3 * torch.randn(x.shape, generator=stream(1), dtype=torch.float64)
    wanted[5] = x[5] + 0.01  # inside already
    found = Ball(eps, norm).project(wanted, x)
    near = nearest(wanted.flatten(1).numpy(), x.flatten(1).numpy(), eps, norm)
    np.testing.assert_allclose(found.flatten(1).numpy(), near, atol=1e-4)


@pytest.mark.parametrize("norm", NORMS)
def test_whatever_is_projected_is_inside_in_float32_and_stays_there(norm):
    x = torch.rand(8, 3, 16, 16, generator=stream()).round(decimals=1)
    ball = Ball(RADII[norm], norm)
    for scale in (1e-3, 0.3, 100.0):
        found = ball.project(x + scale * torch.randn(x.shape, generator=stream(2)), x)
        assert found.min() >= 0
        assert found.max() <= 1
        assert ball.length(found - x).max() <= ball.eps * (1 + 1e-6)
        torch.testing.assert_close(ball.project(found, x), found, atol=1e-6, rtol=0)
    assert torch.equal(Ball(0.0, norm).project(x + 1, x), x)


@pytest.mark.parametrize("norm", NORMS)
def test_the_steepest_step_has_length_one_and_climbs_most(norm):
    grad = torch.randn(4, 3, 5, 5, generator=stream(), dtype=torch.float64)
    ball, x = Ball(1.0, norm), torch.full_like(grad, 0.5)
    step = ball.steepest(grad, x)
    torch.testing.assert_close(ball.length(step), torch.ones(4, dtype=torch.float64))
    gained = (grad * step).flatten(1).sum(dim=1)
    dual = {"linf": 1, "l2": 2, "l1": torch.inf}[norm]
    # an L1 step takes the largest entries, not the one largest
    most = torch.linalg.vector_norm(grad.flatten(1), dual, dim=1)
    assert 75 * SPARSE < 1
    torch.testing.assert_close(gained, most)
    for tiny in (1e-30, 0.0):
        small = ball.steepest(grad.float() * tiny, x.float())
        assert small.isfinite().all()
        assert bool(ball.length(small).sum() > 0) == bool(tiny), "a vanishing gradient has a direction, none has none"


def test_a_sparse_step_takes_the_largest_entries_that_can_move():
    grad = torch.tensor([4.0, -3.0, 2.0, 1.0]).view(1, 1, 2, 2)
    x = torch.tensor([1.0, 0.5, 0.5, 0.5]).view(1, 1, 2, 2)
    step = sparse_sign(grad, x, torch.tensor([0.5]))
    assert step.flatten().tolist() == [0, -0.5, 0.5, 0]


@pytest.mark.parametrize("norm", NORMS)
def test_starts_fill_the_ball(norm):
    x, ball = torch.full((64, 1, 4, 4), 0.5), Ball(0.2, norm)
    noise = ball.noise(x, stream())
    length = ball.length(noise)
    assert length.max() <= 0.2 * (1 + 1e-6)
    # of dimension 16: half of the volume is beyond 2^(-1/16) of the radius
    assert 0.25 < (length > 0.2 * 0.5 ** (1 / 16)).double().mean() < 0.75 or norm == "linf"
    assert abs(noise.mean()) < 0.01
    assert ball.length(ball.noise(x, stream(), 2.0)).max() > 0.2
    torch.testing.assert_close(ball.start(x, stream()), x + noise)


def attacks(norm, net):
    ball = {"eps": RADII[norm], "norm": norm}
    plain = {**ball, "steps": 5, "step_size": RADII[norm] / 3}
    policy = ThresholdPolicy(Entropy(), [0.5] * (net.exits - 1))
    inner = Average(**plain)
    return {
        "sign": inner,
        "apgd": Average(**ball, steps=8, rule=APGD()),
        "fgsm": replace(inner, steps=1, step_size=RADII[norm], random_start=False),
        "max_avg": MaxAverage(**plain),
        "soft": Soft(**ball, steps=8, rule=APGD()).for_policy(policy),
        "slowdown": Slowdown(**plain).for_policy(policy),
        "targeted": Targeted(**plain, classes=1).for_policy(policy),
        "transfer": Transfer(surrogate=Surrogate(net, "s", "0" * 64, (1, 8, 8)), inner=inner),
    }


@pytest.mark.parametrize("norm", OTHERS)
def test_attacks_stay_in_the_ball_and_climb(norm, tiny, batch):
    net, (x, y) = tiny(), batch(count=8)
    with torch.no_grad():
        before = cross_entropy(net(Ball(RADII[norm], norm).start(x, stream())), y).mean()
    for name, attack in attacks(norm, net).items():
        x_adv = attack(net, x.clone(), y, stream())
        assert ((x_adv >= 0) & (x_adv <= 1)).all(), name
        assert attack.ball.length(x_adv - x).max() <= RADII[norm] * (1 + 1e-6), name
        if name in ("sign", "apgd", "max_avg", "transfer"):
            with torch.no_grad():
                assert cross_entropy(net(x_adv), y).mean() > before, name


@pytest.mark.parametrize("norm", OTHERS)
def test_apgd_climbs_higher_than_coarse_steps(norm, tiny, batch):
    net, (x, y) = tiny(seed=1), batch(count=16)
    found = {}
    for name, rule in {"coarse": Sign(RADII[norm]), "apgd": APGD()}.items():
        x_adv = Average(eps=RADII[norm], norm=norm, steps=25, rule=rule)(net, x, y, stream())
        with torch.no_grad():
            found[name] = cross_entropy(net(x_adv), y).mean()
    assert found["apgd"] > found["coarse"]


def test_the_norm_is_part_of_an_identity_where_it_is_another_one():
    plain = Average(eps=0.1, step_size=0.1, steps=1)
    assert "norm" not in plain.identity()
    assert replace(plain, norm="l2").identity()["norm"] == "l2"


def test_radii_are_checked_in_their_norm():
    assert Average(eps=2.0, norm="l2", step_size=1.5, steps=1).eps == 2.0
    for wrong in ({"eps": 2.0}, {"step_size": 1.5}, {"norm": "l3"}, {"norm": "l2", "eps": -1}):
        with pytest.raises(UserError, match=r"attack\.(eps|step_size|norm) must be"):
            Average(**{"eps": 0.1, "step_size": 0.1, "steps": 1, **wrong})


def test_what_knows_one_norm_says_so(tiny, batch):
    with pytest.raises(UserError, match="L-infinity and L2 balls only"):
        Square(eps=0.5, norm="l1")(tiny(), *batch(count=2))
    attack = Average(eps=0.5, norm="l2", step_size=0.1, steps=2)
    with pytest.raises(UserError, match="too coarse for L2"):
        Composed(attack=attack, terms=[CrossEntropy(images="adversarial")], crafting=Carried())
    with pytest.raises(UserError, match="threat model is L2"):
        Certified(attack=attack)


@pytest.mark.parametrize("norm", OTHERS)
@pytest.mark.parametrize("start", ["uniform", "sign"])
def test_one_step_training_images_are_in_the_ball(norm, start, tiny, batch):
    net, (x, y) = tiny(), batch(count=4)
    attack = Average(eps=RADII[norm], norm=norm, step_size=RADII[norm] / 2, steps=2)
    terms = [CrossEntropy(images="adversarial")]
    made = Composed(attack=attack, terms=terms, crafting=GradientSign(start=start)).made(net, x, y, stream())
    length = attack.ball.length(made["adversarial"] - x)
    assert length.max() <= attack.eps * (1 + 1e-6)
    assert length.min() > 0.1 * attack.eps
    noisy = Fast(attack=attack, noise=0.5, step=1.0).single_step_images(net, x, y, stream())
    assert attack.ball.length(noisy - x).max() <= 1.5 * attack.eps * (1 + 1e-6)
