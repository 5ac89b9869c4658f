"""APGD against the published algorithm written as a plain loop, and the DLR loss against its formula."""

import math

import pytest
import torch

from rdi.attacks import APGD, Average, MainExit, MaxAverage, Sign, SingleExit
from rdi.attacks.apgd import checkpoints
from rdi.attacks.norms import Ball, project
from rdi.attacks.objectives import LOSSES, cross_entropy, dlr
from rdi.errors import UserError

EPS = 0.1


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_checkpoints_are_the_published_ones():
    assert checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    assert checkpoints(20) == [5, 9, 12, 14, 16, 18, 19, 20]
    assert checkpoints(1) == [1]


def textbook(loss_and_grad, start, x, eps, steps, rho=0.75, alpha=0.75):
    """Algorithm 1 of Croce & Hein (2020) for one sample; all iterates and the step sizes after each checkpoint."""
    eta, sizes = 2 * eps, []
    before, now = start, start
    loss, grad = loss_and_grad(now)
    best, best_loss, best_grad = now, loss, grad
    rises, last, halved, checked_best = 0, 0, False, loss
    iterates = [now]
    for step in range(steps):
        if step > 0:
            new_loss, grad = loss_and_grad(now)
            rises += new_loss > loss
            loss = new_loss
            if loss > best_loss:
                best, best_loss, best_grad = now, loss, grad
            if step in checkpoints(steps):
                halve = rises < rho * (step - last) or (not halved and best_loss <= checked_best)
                rises, last, halved, checked_best = 0, step, halve, best_loss
                if halve:
                    eta, now, grad, loss = eta / 2, best, best_grad, best_loss
                sizes.append(eta)
        target = project(now + eta * grad.sign(), x, eps)
        moved = target if step == 0 else now + alpha * (target - now) + (1 - alpha) * (now - before)
        before, now = now, project(moved, x, eps)
        iterates.append(now)
    return iterates, sizes


def wavy(x):
    """A loss with many local maxima."""
    return (torch.sin(40 * x) + 3 * torch.cos(7 * x)).sum(dim=(1, 2, 3))


def test_every_sample_walks_as_in_the_published_algorithm():
    x = torch.rand(5, 1, 3, 3, generator=stream(1))
    start = project(x + EPS * (2 * torch.rand(x.shape, generator=stream(2)) - 1), x, EPS)

    def loss_and_grad(z):
        z = z.clone().requires_grad_(True)
        loss = wavy(z)
        return loss.detach(), torch.autograd.grad(loss.sum(), z)[0]

    walk, now, found = APGD().walk(x, Ball(EPS), 40), start, [start]
    for step in range(40):
        loss, grad = loss_and_grad(now)
        now = walk.step(now, loss, grad, step)
        found.append(now)
    sizes = set()
    for n in range(5):
        part = slice(n, n + 1)
        iterates, eta = textbook(loss_and_grad, start[part], x[part], EPS, 40)
        for mine, theirs in zip(found, iterates, strict=True):
            torch.testing.assert_close(mine[part], theirs)
        sizes.add(tuple(eta))
        assert eta[-1] < 2 * EPS
    assert len(sizes) > 1, "the samples have step sizes of their own"


def test_a_sample_without_progress_halves_its_step_and_goes_back_to_its_best_point():
    x = torch.full((2, 1, 1, 1), 0.5)
    walk, grad = APGD().walk(x, Ball(EPS), 20), torch.ones(2, 1, 1, 1)
    now = first = x.clone()
    for step in range(6):
        # sample 0 only gets worse, sample 1 only better
        now = walk.step(now, torch.tensor([-1.0, 1.0]) * step, grad, step)
    assert walk.numbers["size"].tolist() == pytest.approx([EPS, 2 * EPS])
    assert torch.equal(walk.images["before"][0], first[0]), "the step after the checkpoint started at the best point"


def test_apgd_climbs_at_least_as_high_as_pgd_in_as_many_steps(tiny, batch):
    higher, found = 0, []
    for seed in range(4):
        net, (x, y) = tiny(seed=seed), batch(count=32, seed=seed)
        ends = {}
        for name, rule in {"pgd": Sign(EPS / 4), "coarse": Sign(EPS), "apgd": APGD()}.items():
            x_adv = MainExit(eps=EPS, steps=30, rule=rule)(net, x, y, stream())
            with torch.no_grad():
                ends[name] = cross_entropy(net(x_adv), y)[:, -1].mean()
        assert ends["apgd"] > ends["coarse"]
        higher += ends["apgd"] >= ends["pgd"]
        found.append(ends["apgd"] - ends["pgd"])
    assert higher >= 3
    assert sum(found) > 0


@pytest.mark.parametrize("attack", [MainExit, Average, MaxAverage], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_every_objective_can_be_climbed_with_apgd_and_either_loss(attack, loss, tiny, batch):
    net, (x, y) = tiny(), batch(count=8)
    x_adv = attack(eps=EPS, steps=8, rule=APGD(), loss=loss)(net, x, y, stream())
    assert (x_adv - x).abs().max() <= EPS + 1e-7
    exits = slice(-1, None) if attack is MainExit else slice(None)
    with torch.no_grad():
        before, after = (LOSSES[loss](net(z), y)[:, exits].mean() for z in (x, x_adv))
    assert after > before + 0.05


def test_max_average_with_another_loss_still_equals_its_single_exit_candidates(tiny, batch):
    net, (x, y) = tiny(), batch(count=5)
    settings = {"eps": EPS, "step_size": 0.03, "steps": 4, "loss": "dlr"}
    generator = stream(4)
    singles = torch.stack([SingleExit(exit=k, **settings)(net, x, y, generator) for k in range(3)])
    with torch.no_grad():
        losses = torch.stack([cross_entropy(net(z), y).mean(dim=1) for z in singles])
    chosen = singles[losses.argmax(dim=0), torch.arange(5)]
    torch.testing.assert_close(MaxAverage(**settings)(net, x, y, stream(4)), chosen)


def test_dlr_is_its_formula():
    logits = torch.tensor([[[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 4.0, 1.0]]])
    # exit 0, class 0: -(3 - 1) / (3 - 0); exit 1: -(0 - 4) / (4 - 1)
    torch.testing.assert_close(dlr(logits, torch.tensor([0])), torch.tensor([[-2 / 3, 4 / 3]]))
    torch.testing.assert_close(dlr(logits, torch.tensor([1])), torch.tensor([[2 / 3, 2 / 3]]))


def test_dlr_does_not_see_scale_and_shift_and_is_positive_where_wrong():
    logits, y = torch.randn(50, 2, 5, generator=stream(1)), torch.randint(5, (50,), generator=stream(2))
    loss = dlr(logits, y)
    torch.testing.assert_close(dlr(100 * logits + 7, y), loss, rtol=1e-3, atol=1e-4)
    assert torch.equal(loss > 0, logits.argmax(dim=2) != y[:, None])


def test_dlr_needs_three_classes():
    with pytest.raises(UserError, match="at least 3 classes"):
        dlr(torch.randn(2, 1, 2), torch.zeros(2, dtype=torch.long))


@pytest.mark.parametrize("kind", [Average, MaxAverage], ids=lambda kind: kind.__name__)
def test_an_unknown_loss_is_refused(kind):
    with pytest.raises(UserError, match="ce, dlr"):
        kind(eps=EPS, step_size=0.1, steps=1, loss="hinge")


@pytest.mark.parametrize(
    ("options", "name"), [({"rho": 2}, "rho"), ({"momentum": 0}, "momentum"), ({"rho": math.nan}, "rho")]
)
def test_settings_out_of_range_are_refused(options, name):
    with pytest.raises(UserError, match=name):
        APGD(**options)


def test_the_rule_is_part_of_the_identity():
    assert Average(eps=EPS, steps=1, rule=APGD()).identity()["rule"] == "APGD(rho=0.75, momentum=0.75)"
