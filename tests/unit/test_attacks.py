"""The contract of every attack, and exact references: linear models, hand-computed steps, the textbook loop."""

import itertools
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rdi.attacks import Attack, Average, GradientAttack, MainExit, MaxAverage, MinMax, SingleExit, Wasserstein, project
from rdi.attacks.gradient import ObjectiveAttack
from rdi.attacks.max_average import best_candidate
from rdi.attacks.objectives import MeanOfExits, OneExit, cross_entropy, share_fooled
from rdi.errors import UserError
from rdi.evaluating import judge
from rdi.exits import MultiExitNet
from rdi.thresholds import Entropy, ShareRule, ThresholdPolicy

EPS = 0.1
COMMON = {"eps": EPS, "step_size": 0.03, "steps": 4}
ATTACKS = {
    "single": SingleExit(exit=0, **COMMON),
    "single_last_iterate": SingleExit(exit=1, **COMMON, keep="last"),
    "single_restarts": SingleExit(exit=1, **COMMON, restarts=3),
    "last_iterate_restarts": SingleExit(exit=1, **COMMON, keep="last", restarts=2),
    "main": MainExit(**COMMON),
    "average": Average(**COMMON),
    "average_fgsm": Average(eps=EPS, step_size=EPS, steps=1, random_start=False),
    "average_wrm": Average(eps=EPS, steps=4, rule=Wasserstein()),
    "max_average": MaxAverage(**COMMON),
    "min_max": MinMax(**COMMON, rate=0.3, regulariser=0.5),
    "max_average_chunks": MaxAverage(**COMMON, restarts=2, max_images=6),
    "max_average_wrm": MaxAverage(eps=EPS, steps=3, rule=Wasserstein()),
    "random_start_full_step": Average(eps=EPS, step_size=EPS, steps=1),
    "no_bound": Average(eps=1, steps=4, step_size=0.5),
}
CHANCE = sorted(set(ATTACKS) - {"average_fgsm"})


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def linear_net(weights):
    """Exit k says logits (0, <w_k, x>): its loss for class 0 rises along w_k and falls for class 1."""
    stages = [nn.Identity() for _ in weights]
    heads = []
    for weight in weights:
        layer = nn.Linear(weight.numel(), 2, bias=False)
        layer.weight.data = torch.stack([torch.zeros(weight.numel()), weight.flatten()])
        heads.append(nn.Sequential(nn.Flatten(), layer))
    return MultiExitNet(stages, heads)


def random_weights(shape=(1, 3, 3), seed=3):
    weight = torch.randn(shape, generator=stream(seed))
    assert weight.abs().min() > 1e-3
    return weight


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("attack", [MainExit, Average, MaxAverage], ids=lambda kind: kind.__name__)
def test_pgd_lands_exactly_on_the_corner_for_a_linear_model(attack, keep):
    weight = random_weights()
    net = linear_net([weight])
    x = torch.rand(6, 1, 3, 3, generator=stream(4))
    y = torch.tensor([0, 1, 0, 1, 0, 1])
    direction = torch.where((y == 0)[:, None, None, None], weight.sign(), -weight.sign())
    # from any point of the ball 2 * eps reaches the far side, and 20 * 0.02 is more than that
    x_adv = attack(eps=EPS, step_size=0.02, steps=20, keep=keep)(net, x, y, stream())
    assert torch.equal(x_adv, project(x + EPS * direction, x, EPS))
    torch.testing.assert_close(x_adv, (x + EPS * direction).clamp(0, 1), rtol=0, atol=1e-7)


def test_fgsm_is_one_full_step_from_the_image():
    weight = random_weights()
    x, y = torch.rand(4, 1, 3, 3, generator=stream(5)), torch.zeros(4, dtype=torch.long)
    attack = MainExit(eps=EPS, step_size=EPS, steps=1, random_start=False)
    x_adv = attack(linear_net([weight]), x, y)
    torch.testing.assert_close(x_adv, (x + EPS * weight.sign()).clamp(0, 1), rtol=0, atol=1e-7)


def test_average_follows_the_mean_of_the_exit_gradients():
    first, second = random_weights(seed=6), random_weights(seed=7)
    x, y = torch.full((1, 1, 3, 3), 0.5), torch.zeros(1, dtype=torch.long)
    by_hand = torch.zeros_like(first)
    for weight in (first, second):
        by_hand += 0.5 * torch.sigmoid((weight * x[0]).sum()) * weight  # d/dx of log(1 + exp(<w, x>))
    x_adv = Average(eps=0.01, step_size=0.01, steps=1, random_start=False)(linear_net([first, second]), x, y)
    torch.testing.assert_close(x_adv[0], x[0] + 0.01 * by_hand.sign(), rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_result_is_in_the_ball_and_in_the_pixel_range(name, tiny, batch):
    net, (x, y), attack = tiny(), batch(), ATTACKS[name]
    x[0], x[1] = 0.0, 1.0  # images at the edge, where the ball sticks out
    x_adv = attack(net, x, y, stream())
    assert x_adv.shape == x.shape
    assert x_adv.dtype == x.dtype
    assert (x_adv - x).abs().max() <= attack.eps + 1e-7
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert not x_adv.requires_grad
    assert not torch.equal(x_adv, x)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_loss_that_an_attack_climbs_is_higher_than_before(name, tiny, batch):
    net, (x, y), attack = tiny(), batch(count=8), ATTACKS[name]
    exits = [attack.exit] if isinstance(attack, SingleExit) else [2] if isinstance(attack, MainExit) else [0, 1, 2]
    with torch.no_grad():
        before = cross_entropy(net(x), y)[:, exits].mean()
        after = cross_entropy(net(attack(net, x, y, stream())), y)[:, exits].mean()
    assert after > before


def state_of(net):
    return {
        "modes": [module.training for module in net.modules()],
        "trained": [parameter.requires_grad for parameter in net.parameters()],
        "gradients": [None if p.grad is None else p.grad.clone() for p in net.parameters()],
        "tensors": {name: tensor.clone() for name, tensor in net.state_dict().items()},
    }


def assert_same_state(before, after):
    assert after["modes"] == before["modes"]
    assert after["trained"] == before["trained"]
    for old, new in zip(before["gradients"], after["gradients"], strict=True):
        assert (old is None) == (new is None)
        assert old is None or torch.equal(old, new)
    assert before["tensors"].keys() == after["tensors"].keys()
    assert all(torch.equal(tensor, after["tensors"][name]) for name, tensor in before["tensors"].items())


@pytest.fixture
def mixed(tiny, batch):
    """A network in a state that a careless restore would lose: modes, frozen parameters and gradients all mixed."""
    net, (x, y) = tiny(dropout=0.3), batch()
    net.train()
    net.stages[1].eval()
    next(net.heads[0].parameters()).requires_grad_(False)
    net(x).sum().backward()
    assert len(set(state_of(net)["modes"])) == 2
    return net, x, y


@pytest.mark.parametrize("fast", [True, False], ids=["copy", "itself"])
@pytest.mark.parametrize("name", ATTACKS)
def test_the_model_is_left_as_it_was_found(name, fast, mixed):
    net, x, y = mixed
    before, kept = state_of(net), (x.clone(), y.clone())
    ATTACKS[name](net, x, y, stream(), fast=fast)
    assert_same_state(before, state_of(net))
    assert torch.equal(x, kept[0])
    assert torch.equal(y, kept[1])
    assert x.grad is None


@pytest.mark.parametrize("fast", [True, False], ids=["copy", "itself"])
def test_the_model_is_left_as_it_was_found_when_the_attack_raises(fast, mixed):
    @dataclass(kw_only=True)
    class Broken(Attack):
        def run(self, model, x, y, generator):
            model(x)
            raise ZeroDivisionError

    net, x, y = mixed
    before = state_of(net)
    with pytest.raises(ZeroDivisionError):
        Broken(eps=EPS)(net, x, y, fast=fast)
    assert_same_state(before, state_of(net))


@pytest.mark.parametrize("fast", [True, False], ids=["copy", "itself"])
def test_crafting_happens_in_eval_mode_with_frozen_parameters(fast, mixed):
    seen = []

    @dataclass(kw_only=True)
    class Spy(Attack):
        def run(self, model, x, y, generator):
            seen.append(any(module.training for module in model.modules()))
            seen.append(any(parameter.requires_grad for parameter in model.parameters()))
            return x

    Spy(eps=EPS)(*mixed, fast=fast)
    assert seen == [False, False]


def test_whatever_an_author_returns_is_projected(tiny, batch):
    @dataclass(kw_only=True)
    class Far(Attack):
        def run(self, model, x, y, generator):
            return x + 5

    x, y = batch()
    assert torch.equal(Far(eps=EPS)(tiny(), x, y), (x + EPS).clamp(max=1))


@pytest.mark.parametrize("name", CHANCE)
def test_same_seed_same_bytes_and_another_seed_other_bytes(name, tiny, batch):
    net, (x, y) = tiny(), batch()
    first, again, other = (ATTACKS[name](net, x, y, stream(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_generator_the_stream_is_that_of_seed_0_and_the_global_one_is_untouched(tiny, batch):
    net, (x, y), attack = tiny(), batch(), ATTACKS["average"]
    state = torch.get_rng_state()
    assert torch.equal(attack(net, x, y), attack(net, x, y, stream(0)))
    assert torch.equal(state, torch.get_rng_state())


def test_an_attack_inside_no_grad_is_the_same_attack(tiny, batch):
    net, (x, y), attack = tiny(), batch(), ATTACKS["max_average"]
    outside = attack(net, x, y, stream())
    with torch.no_grad():
        assert torch.equal(attack(net, x, y, stream()), outside)
        assert not torch.is_grad_enabled()


def test_random_starts_fill_the_ball_and_stay_in_the_pixel_range():
    x = torch.full((1, 1, 64, 64), 0.5)
    x[..., 32:] = 0.02
    start = MainExit(eps=EPS, step_size=0.01, steps=1).start(x, stream())
    inner, edge = (start - x)[..., :32], start[..., 32:]
    assert inner.abs().max() <= EPS
    assert inner.max() > 0.99 * EPS
    assert inner.min() < -0.99 * EPS
    assert abs(float(inner.mean())) < 0.1 * EPS
    assert edge.min() == 0
    # a start of the image below 0.02 - 0.1 is cut off at 0: (0.08 / 0.2 of them)
    assert 0.3 < float((edge == 0).float().mean()) < 0.5


def test_random_start_off_starts_at_the_image(tiny, batch):
    x, _ = batch()
    assert torch.equal(MainExit(eps=EPS, step_size=0.01, steps=1, random_start=False).start(x, stream()), x)


@pytest.mark.parametrize("exit", [0, 1, 2])
def test_the_loss_of_an_exit_has_no_gradient_behind_it_and_runs_nothing_there(exit, tiny, batch):
    net, (x, y) = tiny(exits=4), batch()
    ran = []
    for kind in ("stages", "heads"):
        for k, module in enumerate(getattr(net, kind)):
            module.register_forward_hook(lambda *_, kind=kind, k=k: ran.append((kind, k)))
    SingleExit(exit=exit, **COMMON)(net, x, y, stream())
    steps = COMMON["steps"] + 1  # the last iterate is judged too
    assert {place: ran.count(place) for place in ran} == {
        **{("stages", k): steps for k in range(exit + 1)},
        ("heads", exit): steps,
    }
    logits = net(x)
    cross_entropy(logits, y)[:, exit].sum().backward()
    for k, stage in enumerate(net.stages):
        strength = sum(0.0 if p.grad is None else float(p.grad.abs().sum()) for p in stage.parameters())
        assert (strength > 0) == (k <= exit), f"stage {k}"
    for k, head in enumerate(net.heads):
        strength = sum(0.0 if p.grad is None else float(p.grad.abs().sum()) for p in head.parameters())
        assert (strength > 0) == (k == exit), f"head {k}"


@dataclass(kw_only=True)
class Scripted(ObjectiveAttack):
    """Climbs one-dimensional images along a given path; loss and success of the iterates are scripted."""

    losses: tuple
    fooled: tuple

    def objective(self):
        raise AssertionError("not needed")

    def run(self, model, x, y, generator):
        script = iter(zip(self.losses, self.fooled, strict=True))

        def judge(x_adv):
            loss, fooled = next(script)
            return x_adv.sum(dim=(1, 2, 3)) * 0 + x_adv.new_tensor(loss), x_adv.new_tensor(fooled)

        best = self.ascend(judge, self.start(x, generator), x)
        for _ in range(self.restarts - 1):
            best.join(self.ascend(judge, self.start(x, generator), x))
        return best.x_adv


@dataclass(frozen=True)
class Walk:
    """A step rule that moves by 0.1 however the gradient looks."""

    def walk(self, x, ball, steps):
        return self

    def step(self, x_adv, loss, grad, step):
        return x_adv + 0.1

    def narrow(self, rows):
        del rows


@pytest.mark.parametrize(
    ("losses", "fooled", "winner"),
    [
        # a success with a lower loss beats a later failure with a higher one
        ([1.0, 2.0, 9.0], [0.0, 1.0, 0.0], 1),
        # among successes the largest loss
        ([1.0, 5.0, 2.0], [1.0, 1.0, 1.0], 1),
        # among failures the largest loss
        ([3.0, 1.0, 2.0], [0.0, 0.0, 0.0], 0),
        # the share of fooled exits counts, not only all or nothing
        ([3.0, 1.0, 2.0], [0.25, 0.75, 0.5], 1),
        # the first of equals
        ([2.0, 2.0, 2.0], [1.0, 1.0, 1.0], 0),
        # the last iterate is judged too
        ([1.0, 2.0, 3.0], [0.0, 0.0, 1.0], 2),
    ],
)
def test_the_best_iterate_is_kept_success_first_loss_second(losses, fooled, winner, tiny):
    attack = Scripted(
        eps=0.5,
        steps=2,
        rule=Walk(),
        random_start=False,
        losses=tuple([loss] for loss in losses),
        fooled=tuple([share] for share in fooled),
    )
    x = torch.full((1, 1, 8, 8), 0.4)
    x_adv = attack(tiny(), x, torch.zeros(1, dtype=torch.long))
    torch.testing.assert_close(x_adv, x + 0.1 * winner)


def test_the_best_iterate_is_chosen_for_each_sample_on_its_own(tiny):
    attack = Scripted(
        eps=0.5,
        steps=1,
        rule=Walk(),
        random_start=False,
        losses=([1.0, 2.0], [2.0, 1.0]),
        fooled=([0.0, 0.0], [0.0, 0.0]),
    )
    x = torch.full((2, 1, 8, 8), 0.4)
    x_adv = attack(tiny(), x, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(x_adv[:, 0, 0, 0], torch.tensor([0.5, 0.4]))


def test_keep_last_returns_the_last_iterate_whatever_came_before(tiny):
    attack = Scripted(
        eps=0.5,
        steps=2,
        rule=Walk(),
        random_start=False,
        keep="last",
        losses=([9.0], [1.0]),
        fooled=([1.0], [0.0]),
    )
    x = torch.full((1, 1, 8, 8), 0.4)
    torch.testing.assert_close(attack(tiny(), x, torch.zeros(1, dtype=torch.long)), x + 0.2)


def test_a_second_start_replaces_the_first_only_where_it_is_better(tiny):
    attack = Scripted(
        eps=0.5,
        steps=1,
        rule=Walk(),
        random_start=False,
        restarts=2,
        losses=([0.0, 0.0], [5.0, 1.0], [6.0, 0.0], [0.0, 0.0]),
        fooled=([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]),
    )
    x = torch.full((2, 1, 8, 8), 0.4)
    x_adv = attack(tiny(), x, torch.zeros(2, dtype=torch.long))
    # sample 0: iterate 0 of start 2 (loss 6); sample 1: iterate 1 of start 2 (the only success)
    torch.testing.assert_close(x_adv[:, 0, 0, 0], torch.tensor([0.4, 0.5]))


def policies(exits):
    """Every way to send all samples to one exit."""
    for k in range(exits):
        yield ThresholdPolicy(Entropy(), [-1.0] * k + [99.0] * (exits - 1 - k))


@pytest.mark.parametrize("attack", [MaxAverage, Average])
@pytest.mark.parametrize("extra", [{}, {"keep": "last"}, {"random_start": True, "steps": 2}])
def test_a_success_that_one_start_found_is_not_given_up_for_another_start(attack, extra, tiny, batch):
    """Whatever policy is deployed: which exit answers is not known to these attacks."""
    net, (x, y) = tiny(), batch(count=40)
    settings = {"eps": 0.02, "step_size": 0.01, "steps": 3, **extra}
    with torch.no_grad():
        y = net(x)[:, 1].argmax(dim=1)  # so that some are right
        wrong = [net(attack(**settings, restarts=n)(net, x, y, stream())).argmax(2) != y[:, None] for n in (1, 2, 5)]
        logits = [net(attack(**settings, restarts=n)(net, x, y, stream())) for n in (1, 2, 5)]
    assert bool((wrong[0] & ~wrong[0].all(dim=1, keepdim=True)).any()), "some images fool a part of the exits"
    for less, more in itertools.pairwise(wrong):
        assert not bool((less & ~more).any())
    scored = [ShareRule(score=Entropy()).fit_logits(logits[0]), *policies(net.exits)]
    for policy in scored:
        right = [judge(one, y, policy).correct for one in logits]
        for less, more in itertools.pairwise(right):
            assert not bool((~less & more).any())


def test_more_restarts_never_do_worse_on_the_loss_that_is_climbed(tiny, batch):
    net, (x, y) = tiny(), batch(count=8)
    with torch.no_grad():
        one = net(SingleExit(exit=2, **COMMON)(net, x, y, stream()))[:, 2:]
        four = net(SingleExit(exit=2, **COMMON, restarts=4)(net, x, y, stream()))[:, 2:]
    better = share_fooled(four, y) > share_fooled(one, y)
    as_good = (share_fooled(four, y) == share_fooled(one, y)) & (cross_entropy(four, y) >= cross_entropy(one, y))[:, 0]
    assert bool((better | as_good).all())
    assert not torch.equal(one, four)


@pytest.mark.parametrize("steps", [1, 2])
def test_wrm_makes_the_published_steps(steps):
    """x <- x_t + (grad of the loss - penalty * (x_t - x)) / sqrt(t + 2), on a model whose gradient is known."""
    weight = random_weights()
    x, y = torch.full((1, 1, 3, 3), 0.5), torch.zeros(1, dtype=torch.long)
    expected = x.clone()
    for step in range(steps):
        gradient = torch.sigmoid((weight * expected).sum()) * weight
        expected = (expected + (gradient - 0.7 * (expected - x)) / math.sqrt(step + 2)).clamp(0, 1)
    attack = MainExit(eps=1, steps=steps, rule=Wasserstein(penalty=0.7), random_start=False, keep="last")
    torch.testing.assert_close(attack(linear_net([weight]), x, y), expected)


def test_wrm_does_not_depend_on_the_batch_size(tiny, batch):
    net, (x, y) = tiny(), batch()
    attack = Average(eps=1, steps=3, rule=Wasserstein(), random_start=False)
    alone = torch.cat([attack(net, x[i : i + 1], y[i : i + 1]) for i in range(len(x))])
    torch.testing.assert_close(attack(net, x, y), alone, rtol=1e-5, atol=1e-6)


def test_each_expands_to_one_attack_per_exit():
    attack = SingleExit(exit="each", **COMMON, restarts=2)
    expanded = attack.per_exit(4)
    assert list(expanded) == ["_exit0", "_exit1", "_exit2", "_exit3"]
    assert [one.exit for one in expanded.values()] == [0, 1, 2, 3]
    assert {(one.eps, one.steps, one.restarts) for one in expanded.values()} == {(EPS, 4, 2)}
    for other in (SingleExit(exit=1, **COMMON), Average(**COMMON), MaxAverage(**COMMON)):
        assert other.per_exit(4) == {"": other}


def test_each_alone_is_refused_with_what_to_type(tiny, batch):
    with pytest.raises(UserError, match=r"attack\.exit=0"):
        SingleExit(exit="each", **COMMON)(tiny(), *batch())


def test_exit_minus_one_is_the_last_and_equals_the_main_attack(tiny, batch):
    net, (x, y) = tiny(), batch()
    main = MainExit(**COMMON)(net, x, y, stream())
    assert torch.equal(SingleExit(exit=-1, **COMMON)(net, x, y, stream()), main)
    assert torch.equal(SingleExit(exit=2, **COMMON)(net, x, y, stream()), main)
    assert not torch.equal(SingleExit(exit=0, **COMMON)(net, x, y, stream()), main)


def test_an_exit_that_does_not_exist_is_refused(tiny, batch):
    with pytest.raises(UserError, match="exits 0 to 2"):
        SingleExit(exit=3, **COMMON)(tiny(), *batch())


def test_objectives_are_the_cross_entropies_of_their_exits():
    logits, y = torch.randn(5, 3, 4, generator=stream(1)), torch.tensor([0, 1, 2, 3, 0])
    by_hand = torch.tensor(
        [[float(logits[n, k].logsumexp(0) - logits[n, k, y[n]]) for k in range(3)] for n in range(5)]
    )
    torch.testing.assert_close(cross_entropy(logits, y), by_hand)
    torch.testing.assert_close(MeanOfExits()(logits, y), by_hand.mean(dim=1))
    torch.testing.assert_close(OneExit(1)(logits[:, 1:2], y), by_hand[:, 1])
    assert MeanOfExits().exits(3) == [0, 1, 2]
    assert OneExit(1).exits(3) == [1]
    assert OneExit(-1).exits(3) == [2]


def test_share_fooled_counts_the_exits_that_are_wrong():
    logits = F.one_hot(torch.tensor([[0, 1, 2], [1, 1, 1]]), 3).float()
    assert share_fooled(logits, torch.tensor([1, 1])).tolist() == [pytest.approx(2 / 3), 0.0]


def textbook_max_average(net, x, y, generator, *, restarts=1, **settings):
    """E single-exit attacks one after the other, on the same stream; then the largest mean loss over the exits.

    A later start counts where the ones before fooled no exit, or where it fools all.
    """
    chosen, best = [None] * len(x), [(0, -math.inf)] * len(x)
    for _ in range(restarts):
        candidates = [SingleExit(exit=k, **settings)(net, x, y, generator) for k in range(net.exits)]
        with torch.no_grad():
            logits = [net(candidate).float() for candidate in candidates]
        for n in range(len(x)):
            means = [
                float(torch.stack([F.cross_entropy(out[n, k], y[n]) for k in range(net.exits)]).mean())
                for out in logits
            ]
            winner = means.index(max(means))
            fooled = sum(int(logits[winner][n, k].argmax() != y[n]) for k in range(net.exits))
            before = best[n]
            if (before[0] == 0 or fooled == net.exits) and (fooled, means[winner]) > before:
                best[n], chosen[n] = (fooled, means[winner]), candidates[winner][n]
    return torch.stack(chosen)


SMALL_STEPS = {"eps": 0.05, "step_size": 0.02, "steps": 2}


@pytest.mark.parametrize(
    ("name", "shape", "count", "options"),
    [
        ("smallcnn", (1, 16, 16), 4, {"steps": 3}),
        ("smallcnn", (1, 16, 16), 4, {"restarts": 2}),
        ("smallcnn", (1, 16, 16), 4, {"keep": "last"}),
        ("smallcnn", (1, 16, 16), 4, {"keep": "last", "restarts": 2}),
        ("resnet14", (3, 16, 16), 3, {"steps": 3, "restarts": 2}),
        ("resnet38", (3, 16, 16), 3, {}),
        ("mobilenetv2", (3, 16, 16), 3, {}),
    ],
)
def test_nested_max_average_equals_the_textbook_loop(name, shape, count, options, paper_net, batch):
    # in double precision: two ways that sum in another order must not differ by the sign of a gradient near zero
    net, (x, y) = paper_net(name, shape).double(), batch(count, shape, 10)
    x, settings = x.double(), {**SMALL_STEPS, **options}
    nested = MaxAverage(**settings)(net, x, y, stream(11), fast=False)
    torch.testing.assert_close(nested, textbook_max_average(net, x, y, stream(11), **settings), rtol=0, atol=1e-9)
    assert not torch.equal(nested, x)


@pytest.mark.parametrize("max_images", [1, 3, 7, 100])
def test_cutting_the_batch_does_not_change_max_average(max_images, tiny, batch):
    net, (x, y) = tiny(), batch(count=5)
    whole = MaxAverage(**COMMON, restarts=2)(net, x, y, stream())
    assert torch.equal(MaxAverage(**COMMON, restarts=2, max_images=max_images)(net, x, y, stream()), whole)


def test_max_images_bounds_the_copies_in_flight(tiny, batch):
    net, (x, y) = tiny(), batch(count=5)
    sizes = []
    net.stages[0].register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    MaxAverage(**COMMON, max_images=7)(net, x, y)
    assert max(sizes) == 6  # two images, three copies each


def test_nested_logits_are_those_of_every_copy_at_its_own_exit(tiny, batch):
    net, (x, _) = tiny(), batch(count=6)
    with torch.no_grad():
        logits = net.nested(x)
        assert logits.shape == (3, 2, 4)
        for k in range(3):
            torch.testing.assert_close(logits[k], net(x[2 * k : 2 * k + 2])[:, k])


def test_every_stage_runs_only_the_copies_that_need_it(tiny, batch):
    net, (x, y) = tiny(), batch(count=2)
    sizes = {}
    for k, stage in enumerate(net.stages):
        stage.register_forward_hook(lambda module, given, out, k=k: sizes.setdefault(k, []).append(len(given[0])))
    MaxAverage(**COMMON)(net, x, y)
    crafting = COMMON["steps"] + 1
    assert {k: found[:crafting] for k, found in sizes.items()} == {
        0: [6] * crafting,
        1: [4] * crafting,
        2: [2] * crafting,
    }


def test_the_candidate_is_chosen_by_the_mean_over_all_exits_and_the_first_on_a_tie():
    first, second = random_weights(seed=6), random_weights(seed=7)
    net = linear_net([first, second])
    y = torch.zeros(1, dtype=torch.long)
    x = torch.full((1, 1, 3, 3), 0.5)
    # candidate 0 is best at exit 0 alone, candidate 1 on the mean of both
    candidates = torch.stack([x + 0.2 * (first - second), x + 0.2 * (first + second), x])
    means = [float(cross_entropy(net(c), y).mean().detach()) for c in candidates]
    assert max(means) == means[1]
    assert torch.equal(best_candidate(net, candidates, y).x_adv, candidates[1])
    assert torch.equal(best_candidate(net, torch.stack([x, x.clone()]), y).x_adv, x)


def test_max_average_is_at_least_as_strong_on_the_mean_loss_as_each_of_its_candidates(tiny, batch):
    net, (x, y) = tiny(), batch(count=6)
    generator = stream(2)
    singles = [SingleExit(exit=k, **COMMON)(net, x, y, generator) for k in range(3)]
    chosen = MaxAverage(**COMMON)(net, x, y, stream(2))
    with torch.no_grad():
        strength = cross_entropy(net(chosen), y).mean(dim=1)
        for single in singles:
            assert bool((strength >= cross_entropy(net(single), y).mean(dim=1)).all())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, y: (x * 255, y), r"\[0, 1\]"),
        (lambda x, y: (x - 0.5, y), r"\[0, 1\]"),
        (lambda x, y: (x * float("nan"), y), r"\[0, 1\]"),
        (lambda x, y: ((x * 255).byte(), y), "float tensor of shape NCHW"),
        (lambda x, y: (x[0], y), "float tensor of shape NCHW"),
        (lambda x, y: (x, y[:2]), "4 int64 labels"),
        (lambda x, y: (x, y.int()), "4 int64 labels"),
        (lambda x, y: (x, y[:, None]), "4 int64 labels"),
        (lambda x, y: (x, F.one_hot(y)), "4 int64 labels"),
        (lambda x, y: (x, y - 4), "y must be labels from 0"),
        (lambda x, y: (x, torch.full_like(y, 4)), "y holds the label 4, and the network has no such class"),
    ],
)
def test_batches_outside_the_contract_are_refused(change, message, tiny, batch):
    with pytest.raises(UserError, match=message):
        ATTACKS["average"](tiny(), *change(*batch()))


def test_inference_mode_is_refused_by_name(tiny, batch):
    with torch.inference_mode(), pytest.raises(UserError, match=r"torch\.inference_mode\(\)"):
        ATTACKS["average"](tiny(), *batch())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eps": -0.1}, "eps"),
        ({"eps": 8}, "eps"),
        ({"eps": "8/255"}, r"px:8"),
        ({"eps": float("nan")}, "eps"),
        ({"steps": 0}, "steps"),
        ({"steps": 2.5}, "steps"),
        ({"step_size": 0}, "step_size"),
        ({"step_size": None}, "step_size is missing"),
        ({"restarts": 0}, "restarts"),
        ({"keep": "worst"}, "best, last"),
        ({"random_start": "no"}, "random_start"),
        ({"max_images": 0}, "max_images"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        MaxAverage(**{**COMMON, **options})


@pytest.mark.parametrize("exit", [-2, 1.5, "last", True])
def test_exits_that_are_no_exit_numbers_are_refused(exit):
    with pytest.raises(UserError, match=r"attack\.exit"):
        SingleExit(exit=exit, **COMMON)


def test_a_penalty_of_zero_is_refused():
    with pytest.raises(UserError, match="penalty"):
        Wasserstein(penalty=0)


def test_identity_names_the_attack_and_every_setting():
    assert MaxAverage(**COMMON, restarts=2).identity() == {
        "attack": "MaxAverage",
        "eps": EPS,
        "steps": 4,
        "step_size": 0.03,
        "restarts": 2,
        "random_start": True,
        "rule": None,
        "keep": "best",
        "max_images": None,
    }
    assert Average(eps=1, steps=2, rule=Wasserstein()).identity()["rule"] == "Wasserstein(penalty=1.3)"


def test_an_eps_of_zero_gives_the_images_back(tiny, batch):
    x, y = batch()
    assert torch.equal(MaxAverage(eps=0, step_size=0.1, steps=2)(tiny(), x, y), x)


def test_projection_is_the_nearest_point_of_the_ball_and_the_pixel_range():
    x = torch.tensor([0.05, 0.5, 0.95, 0.5])
    moved = torch.tensor([-1.0, 0.9, 2.0, 0.52])
    torch.testing.assert_close(project(moved, x, 0.1), torch.tensor([0.0, 0.6, 1.0, 0.52]))


def test_gradient_attacks_are_abstract():
    with pytest.raises(TypeError):
        GradientAttack(**COMMON)


@pytest.mark.parametrize("constant", [False, True])
def test_an_exit_that_is_detached_from_its_input_is_said_in_one_line(constant):
    from rdi.attacks.slopes import input_gradient
    from rdi.errors import UserError

    x = torch.rand(2, 3, requires_grad=True)
    weight = torch.ones(3, requires_grad=True)
    assert input_gradient((x * weight).sum(), x).shape == x.shape
    loss = x.detach().sum() if constant else (x.detach() * weight).sum()
    with pytest.raises(UserError, match="detached from its input"):
        input_gradient(loss, x)


@pytest.mark.parametrize("given", [torch.float64, torch.float16, torch.bfloat16])
def test_images_of_another_type_than_the_network_are_refused_in_one_line(given, tiny, batch):
    x, y = batch()
    with pytest.raises(UserError, match=rf"x is {given} on cpu, the network torch.float32 on cpu: give x.to"):
        Average(eps=0.1, step_size=0.05, steps=1)(tiny(), x.to(given), y)


def test_a_network_in_float64_takes_images_in_float64(tiny, batch):
    x, y = batch()
    x_adv = Average(eps=0.1, step_size=0.05, steps=1)(tiny().double(), x.double(), y)
    assert x_adv.dtype is torch.float64
    assert 0 < float((x_adv - x.double()).abs().max()) <= 0.1
