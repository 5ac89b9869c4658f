"""Adaptive attacks: what the policy does, what counts as success, known optima, and what early stopping may change."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from rdi.attacks import (
    APGD,
    Average,
    ConfidentWrong,
    Joint,
    MaxAverage,
    PolicyAttack,
    Routed,
    SingleExit,
    Slowdown,
    Soft,
    Targeted,
)
from rdi.attacks.early_exit import ExitTrace, early_exit_forward
from rdi.attacks.log_odds import exit_log_odds
from rdi.attacks.norms import project
from rdi.attacks.objectives import cross_entropy, dlr, wrong_margin
from rdi.attacks.policy import PolicyJudge
from rdi.attacks.soft import log_shares
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.thresholds import (
    AgreementPolicy,
    Confidence,
    EnsemblePolicy,
    Entropy,
    Margin,
    PatiencePolicy,
    Policy,
    RandomisedPolicy,
    ShareRule,
    ThresholdPolicy,
)

EPS = 0.1
COMMON = {"eps": EPS, "step_size": 0.03, "steps": 5}
ATTACKS = {
    "routed": Routed(**COMMON),
    "routed_dlr": Routed(**COMMON, loss="dlr", restarts=2),
    "routed_apgd": Routed(eps=EPS, steps=5, rule=APGD()),
    "soft": Soft(**COMMON),
    "soft_dlr": Soft(**COMMON, loss="dlr"),
    "soft_apgd": Soft(eps=EPS, steps=5, rule=APGD()),
    "confident_wrong": ConfidentWrong(**COMMON),
    "confident_wrong_apgd": ConfidentWrong(eps=EPS, steps=5, rule=APGD()),
    "targeted": Targeted(**COMMON, classes=2),
    "targeted_apgd": Targeted(eps=EPS, steps=5, rule=APGD()),
    "slowdown": Slowdown(**COMMON),
    "slowdown_restarts": Slowdown(**COMMON, restarts=2),
    "joint": Joint(**COMMON),
    "joint_apgd": Joint(eps=EPS, steps=5, rule=APGD()),
}
FOOLING = sorted(name for name, attack in ATTACKS.items() if hasattr(attack, "early_stop"))
SCORES = [Entropy(), Confidence(), Margin()]
NEVER, ALWAYS = 0.0, 100.0  # entropy thresholds: nobody leaves, everybody does


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def entropy_policy(*values):
    return ThresholdPolicy(Entropy(), values)


def fitted(net, x, score=None):
    """Equal shares of x leave at every exit."""
    with torch.no_grad():
        return ShareRule(score=score or Entropy()).fit_logits(net(x))


def judged(net, policy, x, y):
    """(wrong under the policy, exit taken) per sample, by the whole network."""
    with torch.no_grad():
        logits = net(x)
    exits = policy.choose(logits)
    return logits[torch.arange(len(y)), exits].argmax(dim=1) != y, exits


@pytest.fixture
def routes(tiny, batch):
    """A net, images with the net's own answers as labels (so that all is right before), a policy that spreads them."""
    net, (x, _) = tiny(), batch(count=24)
    policy = fitted(net, x)
    with torch.no_grad():
        logits = net(x)
    exits = policy.choose(logits)
    assert len(exits.unique()) == 3
    return net, x, logits[torch.arange(len(x)), exits].argmax(dim=1), policy


def _agreeing(logits):
    """Half of the images leave at exit 1, of those that agree."""
    answers = AgreementPolicy(ThresholdPolicy(Entropy(), [0.0, 0.0])).answers(logits)
    return ThresholdPolicy(Entropy(), [0.0, float(Entropy()(answers[:, 1]).median())])


def other_policies(net, x):
    """Policies that are more than one threshold per exit, on the logits of x."""
    with torch.no_grad():
        logits = net(x)
    base = fitted(net, x)
    together = EnsemblePolicy(base, "arithmetic", [5.0, 1.0, 1.0])
    spread = ShareRule(score=Entropy()).fit_logits(together.answers(logits))
    return {
        "patience": PatiencePolicy(3, 1),
        "ensemble": EnsemblePolicy(spread, "arithmetic", [5.0, 1.0, 1.0]),
        "random": RandomisedPolicy(Entropy(), base.values, base.values),
        "agreement": AgreementPolicy(_agreeing(logits)),
    }


@pytest.mark.parametrize("name", ["patience", "ensemble", "random", "agreement"])
def test_every_policy_is_attacked_in_its_own_answer(name, tiny, batch):
    net, (x, _) = tiny(), batch(count=24)
    policy = other_policies(net, x)[name]
    with torch.no_grad():
        logits = net(x)
        trace = early_exit_forward(net, policy, x, 1, 3)
    exits = policy.choose(logits)
    labels = policy.predict(logits, exits)
    assert len(set(exits.tolist())) > 1
    assert torch.equal(trace.exit, exits)
    assert trace.wrong(labels).sum() == 0
    assert trace.wrong((labels + 1) % 4).sum() == 24
    x_adv = Routed(**COMMON).for_policy(policy)(net, x, labels, stream())
    with torch.no_grad():
        attacked = net(x_adv)
    assert (policy.predict(attacked, policy.choose(attacked)) != labels).any()
    for attack in (Soft(**COMMON), ConfidentWrong(**COMMON), Slowdown(**COMMON), Joint(**COMMON)):
        aimed = attack.for_policy(policy)
        if name == "patience":
            with pytest.raises(UserError, match="differentiates through the score of a threshold"):
                aimed(net, x, labels, stream())
        else:
            assert (aimed(net, x, labels, stream()) - x).abs().max() <= EPS + 1e-6


def linear_net(weights):
    """Exit k says logits (0, <w_k, x>)."""
    heads = []
    for weight in weights:
        layer = nn.Linear(weight.numel(), 2, bias=False)
        layer.weight.data = torch.stack([torch.zeros(weight.numel()), weight.flatten()])
        heads.append(nn.Sequential(nn.Flatten(), layer))
    return MultiExitNet([nn.Identity() for _ in weights], heads)


def weights(seed):
    return torch.randn(1, 3, 3, generator=stream(seed))


# -- the early-exit forward pass


@pytest.mark.parametrize(("least", "most"), [(1, 3), (2, 3), (3, 3), (1, 2), (2, 2), (1, 1)])
def test_an_early_exit_pass_is_the_whole_forward_pass_where_it_ran_and_nothing_elsewhere(least, most, routes):
    net, x, _, policy = routes
    rows = []
    for stage in net.stages:
        stage.register_forward_hook(lambda module, given, out: rows.append(len(out)))
    trace = early_exit_forward(net, policy, x, least, most)
    ran = list(rows)
    logits, chosen = net(x), policy.choose(net(x))
    exits = torch.arange(most)
    there = (exits < least) | (exits <= chosen[:, None])
    torch.testing.assert_close(trace.logits[there], logits[:, :most][there], rtol=1e-5, atol=1e-6)
    assert (trace.logits[~there] == 0).all()
    assert torch.equal(trace.exit, chosen.clamp(max=min(most, 2)))
    assert torch.equal(trace.known, (chosen < most))
    assert ran == there.sum(dim=0).tolist()


def test_the_gradient_of_an_early_exit_pass_is_that_of_the_whole_forward_pass(routes):
    net, x, y, policy = routes
    x = x.requires_grad_(True)
    trace = early_exit_forward(net, policy, x, 1, 3)
    (some,) = torch.autograd.grad(trace.at_exit(cross_entropy(trace.logits, y)).sum(), x)
    logits = net(x)
    loss = cross_entropy(logits, y).gather(1, policy.choose(logits)[:, None])
    (whole,) = torch.autograd.grad(loss.sum(), x)
    torch.testing.assert_close(some, whole, rtol=1e-4, atol=1e-7)


def test_an_early_exit_pass_keeps_to_policies_without_thresholds(routes):
    class Second(Policy):
        """Odd samples, by the sign of their first logit, leave at exit 1."""

        exits = 3

        def leaves(self, logits_NKC):
            return (logits_NKC[:, 0, 0] > 0) & (logits_NKC.shape[1] == 2)

    net, x, y, _ = routes
    assert torch.equal(early_exit_forward(net, Second(), x, 1, 3).exit, Second().choose(net(x)))
    assert Routed(**COMMON).for_policy(Second())(net, x, y, stream()).shape == x.shape
    for attack in (Soft(**COMMON), ConfidentWrong(**COMMON), Slowdown(**COMMON), Joint(**COMMON)):
        with pytest.raises(UserError, match="differentiates"):
            attack.for_policy(Second())(net, x, y, stream())


# -- log-odds of staying


@pytest.mark.parametrize("score", SCORES, ids=lambda score: type(score).__name__)
def test_log_odds_are_negative_exactly_where_the_policy_lets_go(score):
    logits = 3 * torch.randn(200, 3, 5, generator=stream(1))
    policy = ThresholdPolicy(score, [0.4, 0.7])
    log_odds = exit_log_odds(policy, logits)
    assert log_odds.shape == (200, 2)
    for k in range(2):
        assert torch.equal(log_odds[:, k] < 0, policy.leaves(logits[:, : k + 1]))


def test_log_odds_are_the_difference_of_the_log_odds():
    logits = torch.randn(4, 2, 5, generator=stream(1))
    entropy = Entropy()(logits[:, 0]) / math.log(5)
    by_hand = entropy.logit() - torch.tensor(0.3 / math.log(5)).logit()
    torch.testing.assert_close(exit_log_odds(entropy_policy(0.3), logits)[:, 0], by_hand)
    unsure = (1 - Confidence()(logits[:, 0])) / 0.8
    by_hand = unsure.logit() - torch.tensor((1 - 0.9) / 0.8).logit()
    torch.testing.assert_close(exit_log_odds(ThresholdPolicy(Confidence(), [0.9]), logits)[:, 0], by_hand)


@pytest.mark.parametrize(("value", "leaves"), [(NEVER, False), (-1.0, False), (ALWAYS, True)])
def test_thresholds_that_nobody_or_everybody_passes(value, leaves):
    logits = torch.tensor([[[50.0, 0, 0], [0, 0, 0]], [[0.0, 0, 0], [0, 0, 0]]])
    assert ((exit_log_odds(entropy_policy(value), logits) < 0) == leaves).all()


def test_the_gradient_of_log_odds_does_not_vanish_where_the_exit_is_very_sure():
    logits = torch.tensor([[[40.0, 0.0, 0.0], [0.0, 0.0, 0.0]]], requires_grad=True)
    (grad,) = torch.autograd.grad(exit_log_odds(entropy_policy(0.5), logits).sum(), logits)
    assert grad[0, 0].abs().max() > 0.4
    (plain,) = torch.autograd.grad(Entropy()(logits[:, 0]).sum(), logits)
    assert plain.abs().max() < 1e-14


# -- success


def trace_of(policy, logits):
    return ExitTrace(logits, policy.choose(logits), torch.ones(len(logits), dtype=torch.bool))


def test_a_sample_fooled_at_an_exit_that_is_not_taken_is_no_success():
    policy = entropy_policy(0.5)
    sure, unsure, other = [9.0, 0.0, 0.0], [0.5, 0.0, 0.0], [0.0, 9.0, 0.0]
    # leaves at 0, right (exit 1 is wrong); leaves at 0, wrong (exit 1 right); goes on to 1: right, wrong
    logits = torch.tensor([[sure, other], [other, sure], [unsure, sure], [unsure, other]])
    y = torch.zeros(4, dtype=torch.long)
    trace = trace_of(policy, logits)
    assert trace.exit.tolist() == [0, 0, 1, 1]
    assert trace.wrong(y).tolist() == [0, 1, 0, 1]
    attack = Routed(**COMMON, policy=policy, sure=0.05)
    assert attack.success(trace, y).tolist() == [0, 1, 0, 1]
    assert Joint(**COMMON, policy=policy).success(trace, y).tolist() == [0, 0.5, 0, 1]
    assert Slowdown(**COMMON, policy=policy).success(trace, y).tolist() == [0, 0, 1, 1]
    torch.testing.assert_close(attack.ascent_loss(trace, y, 0, 0.0), cross_entropy(logits, y)[range(4), [0, 0, 1, 1]])


def test_a_success_by_a_hair_is_one_but_not_a_sure_one():
    policy = entropy_policy(0.5)
    logits = torch.tensor([[[0.0, 9.0, 0.0]] * 2, [[1.0, 1.01, 0.0]] * 2, [[0.0, 3.0, 0.0]] * 2])
    y = torch.zeros(3, dtype=torch.long)
    near = float(exit_log_odds(policy, logits)[2, 0])
    attack = Routed(**COMMON, policy=policy, sure=abs(near) + 0.01)
    assert attack.success(trace_of(policy, logits), y).tolist() == [1.0, 0.5, 0.5]
    assert replace(attack, sure=0.0).success(trace_of(policy, logits), y).tolist() == [1, 1, 1]


def test_what_lies_behind_the_exits_that_ran_is_no_success(routes):
    net, x, y, policy = routes
    attack = ConfidentWrong(**COMMON, policy=policy, sure=0.0, slack=0.1)
    other = (y + 1) % 4  # wrong everywhere
    _, success = PolicyJudge(net, attack, 0, other)(x)
    with torch.no_grad():
        logits = net(x)
    at_0 = (policy.choose(logits) == 0) & (logits[:, 0].argmax(dim=1) != other)
    assert torch.equal(success > 0, at_0)


# -- known optima


@pytest.mark.parametrize("kind", [Routed, Soft], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("rule", [None, APGD()], ids=["pgd", "apgd"])
@pytest.mark.parametrize(("value", "taken"), [(ALWAYS, 0), (NEVER, 1)])
def test_on_a_linear_net_the_corner_of_the_exit_that_is_taken_is_reached(kind, rule, value, taken):
    both = [weights(3), weights(9)]
    net = linear_net(both)
    x = torch.full((4, 1, 3, 3), 0.5)
    y = torch.tensor([0, 1, 0, 1])
    direction = torch.where((y == 0)[:, None, None, None], both[taken].sign(), -both[taken].sign())
    step = {"step_size": 0.02} if rule is None else {"rule": rule}
    attack = kind(eps=EPS, steps=20, early_stop=False, **step).for_policy(entropy_policy(value))
    torch.testing.assert_close(attack(net, x, y, stream()), x + EPS * direction, rtol=0, atol=1e-6)


def test_confident_wrong_reaches_an_exit_that_only_it_aims_at():
    """Exit 0 is right whatever happens unless it is not taken: only making it unsure leads to the wrong exit 1."""
    first, second = torch.zeros(1, 3, 3), torch.zeros(1, 3, 3)
    first[0, 0, 0], second[0, 2, 2] = 10.0, 10.0
    net = linear_net([first, second])
    x, y = torch.full((1, 1, 3, 3), 0.3), torch.ones(1, dtype=torch.long)
    x[0, 0, 2, 2] = 0.05
    policy = entropy_policy(0.35)
    assert judged(net, policy, x, y)[1].tolist() == [0]
    # class 1 wins at exit 1 too for every positive pixel: turn the sign of what it reads
    net.heads[1][1].weight.data *= -1
    attack = ConfidentWrong(eps=EPS, step_size=0.02, steps=20).for_policy(policy)
    wrong, exits = judged(net, policy, attack(net, x, y, stream()), y)
    assert (wrong.tolist(), exits.tolist()) == ([True], [1])


def three_classes(*heads):
    """Exit k says logits_C = weight_C * the one pixel + bias_C."""
    made = []
    for weight, bias in heads:
        layer = nn.Linear(1, len(weight))
        layer.weight.data, layer.bias.data = torch.tensor(weight)[:, None], torch.tensor(bias)
        made.append(nn.Sequential(nn.Flatten(), layer))
    return MultiExitNet([nn.Identity() for _ in made], made)


def test_a_class_that_is_not_the_nearest_is_reached_by_aiming_at_it():
    """The nearest wrong class never wins and has no gradient; the second one does at 0.6 and more."""
    net = three_classes(([0.0, 0.0, 20.0], [1.0, 0.9, -10.5]))
    x, y = torch.full((2, 1, 1, 1), 0.5), torch.zeros(2, dtype=torch.long)
    settings = {"eps": EPS, "step_size": 0.02, "steps": 10, "random_start": False}
    found = {}
    for attack in (ConfidentWrong(**settings), Targeted(**settings, classes=1), Targeted(**settings, classes=2)):
        aimed = attack.for_policy(ThresholdPolicy(Entropy(), []))
        found[type(attack), getattr(attack, "classes", None)] = net(aimed(net, x, y))[:, 0].argmax(dim=1).tolist()
    assert found == {(ConfidentWrong, None): [0, 0], (Targeted, 1): [0, 0], (Targeted, 2): [2, 2]}
    # there is no third wrong class: the second is tried again
    assert torch.equal(
        Targeted(**settings, classes=3).for_policy(ThresholdPolicy(Entropy(), []))(net, x, y),
        Targeted(**settings, classes=2).for_policy(ThresholdPolicy(Entropy(), []))(net, x, y),
    )


def test_an_attack_on_exits_keeps_what_fools_the_policy_where_asked():
    """Exit 0 is wrong at the start and right after a step, exit 1 the reverse; everybody leaves at exit 0."""
    net = three_classes(([3.0, 0.0, 0.0], [-1.5, 0.05, -9.0]), ([0.0, 30.0, 0.0], [0.5, -15.0, -9.0]))
    x, y = torch.full((3, 1, 1, 1), 0.5), torch.zeros(3, dtype=torch.long)
    policy = entropy_policy(ALWAYS)
    assert judged(net, policy, x, y)[0].all()
    for kind in (Average, SingleExit):
        which = {"exit": 1} if kind is SingleExit else {}
        plain = kind(eps=EPS, step_size=0.05, steps=2, random_start=False, **which)
        keeping = replace(plain, keep="policy")
        assert plain.for_policy(policy) is plain
        assert "policy" not in plain.identity()
        assert not judged(net, policy, plain(net, x, y), y)[0].any()
        assert judged(net, policy, keeping.for_policy(policy)(net, x, y), y)[0].all()
        with pytest.raises(UserError, match="for_policy"):
            keeping(net, x, y)


@pytest.mark.parametrize("seed", range(3))
def test_keeping_for_the_policy_gives_up_no_image_that_fools_it(seed, routes):
    net, x, y, policy = routes
    plain = Average(eps=0.04, step_size=0.01, steps=6, restarts=2)
    kept = replace(plain, keep="policy").for_policy(policy)
    before, after = (judged(net, policy, attack(net, x, y, stream(seed)), y)[0] for attack in (plain, kept))
    assert (after | ~before).all()


# -- soft


@pytest.mark.parametrize("score", SCORES, ids=lambda score: type(score).__name__)
def test_the_soft_shares_sum_to_one_and_become_the_policy_as_the_temperature_goes_to_zero(score):
    logits = 2 * torch.randn(100, 4, 5, generator=stream(2))
    policy = ThresholdPolicy(score, score(logits)[:, :3].quantile(0.5, dim=0).tolist())
    assert len(policy.choose(logits).unique()) == 4
    for temperature in (10.0, 1.0, 0.1):
        shares = log_shares(policy, logits, temperature).exp()
        torch.testing.assert_close(shares.sum(dim=1), torch.ones(100))
    hard = nn.functional.one_hot(policy.choose(logits), 4).float()
    torch.testing.assert_close(log_shares(policy, logits, 1e-6).exp(), hard)
    assert (log_shares(policy, logits, 1.0).exp() - hard).abs().max() > 0.2


def test_the_soft_loss_becomes_the_loss_of_the_exit_taken():
    logits, y = 2 * torch.randn(50, 3, 5, generator=stream(2)), torch.randint(5, (50,), generator=stream(3))
    policy = entropy_policy(0.8, 1.0)
    trace = trace_of(policy, logits)
    attack = Soft(**COMMON, policy=policy, cold=1e-6)
    torch.testing.assert_close(
        attack.ascent_loss(trace, y, 0, 1.0), trace.at_exit(cross_entropy(logits, y)), rtol=1e-4, atol=1e-5
    )
    assert (attack.ascent_loss(trace, y, 0, 0.0) - attack.ascent_loss(trace, y, 0, 1.0)).abs().max() > 0.1


@pytest.mark.parametrize("loss", ["ce", "dlr"])
def test_the_soft_loss_has_the_gradient_of_the_decision_itself(loss):
    """The first exit's confidence decides who goes on; finite differences see the same slope, and it is not zero."""
    policy = entropy_policy(0.8, 0.8)
    logits = torch.tensor([[[2.5, 0.2, -0.5, 0.0], [0.3, 1.2, 0.1, -0.2], [-1.0, 0.4, 2.0, 0.1]]])
    y = torch.tensor([0])
    attack = Soft(**COMMON, policy=policy, loss=loss, hot=0.5, cold=0.5)

    def value(z):
        return attack.ascent_loss(trace_of(policy, z), y, 0, 0.3)

    logits.requires_grad_(True)
    (grad,) = torch.autograd.grad(value(logits).sum(), logits)
    assert grad[0, 0].abs().max() > 0.05
    for k in range(3):
        for c in range(4):
            nudge = torch.zeros_like(logits)
            nudge[0, k, c] = 1e-2
            with torch.no_grad():
                slope = (value(logits + nudge) - value(logits - nudge)) / 2e-2
            assert float(grad[0, k, c]) == pytest.approx(float(slope), abs=2e-3)


# -- confident and wrong


def test_confident_wrong_lacks_nothing_exactly_when_all_three_conditions_hold():
    policy = entropy_policy(0.5, 0.5)
    unsure, wrong, right = [0.2, 0.0, 0.0], [0.0, 9.0, 0.0], [9.0, 0.0, 0.0]
    cases = [[unsure, wrong], [wrong, wrong], [unsure, unsure], [unsure, right]]
    logits, y = torch.tensor(cases), torch.zeros(4, dtype=torch.long)
    trace = ExitTrace(logits, torch.tensor([1, 0, 2, 1]), torch.ones(4, dtype=torch.bool))
    loss = ConfidentWrong(**COMMON, policy=policy, slack=0.1).ascent_loss(trace, y, 1, 0.0)
    assert loss[0] == 0
    assert (loss[1:] < -0.5).all()


def test_confident_wrong_runs_nothing_behind_its_exit(routes):
    net, x, y, policy = routes
    for k, stage in enumerate(net.stages):
        stage.register_forward_hook(lambda *_, k=k: ran.append(k))
    for k in range(3):
        ran: list[int] = []
        PolicyJudge(net, ConfidentWrong(**COMMON, policy=policy), k, y)(x)
        assert ran == list(range(k + 1))


# -- slow


def test_slowdown_delays_and_joint_fools_late(routes):
    net, x, y, policy = routes
    settings = {"eps": EPS, "step_size": 0.02, "steps": 20}
    _, clean = judged(net, policy, x, y)
    late_wrong, late = judged(net, policy, Slowdown(**settings).for_policy(policy)(net, x, y, stream()), y)
    both_wrong, both = judged(net, policy, Joint(**settings).for_policy(policy)(net, x, y, stream()), y)
    soft_wrong, soft = judged(net, policy, Soft(**settings).for_policy(policy)(net, x, y, stream()), y)
    noise = project(x + EPS * (2 * torch.rand(x.shape, generator=stream()) - 1), x, EPS)
    assert late.float().mean() > clean.float().mean() + 0.3
    assert late.float().mean() > judged(net, policy, noise, y)[1].float().mean() + 0.3
    assert late.float().mean() >= both.float().mean()
    assert both_wrong.sum() > late_wrong.sum()
    assert (both_wrong * (both + 1)).sum() > (soft_wrong * (soft + 1)).sum()


def test_slowdown_runs_the_last_exit_for_nobody(routes):
    net, x, y, policy = routes
    net.stages[2].register_forward_hook(lambda *_: pytest.fail("the last stage ran"))
    Slowdown(**COMMON).for_policy(policy)(net, x, y, stream())


def test_a_network_with_one_exit_has_nothing_to_delay(tiny, batch):
    x, y = batch()
    for attack in (Slowdown(**COMMON), Joint(**COMMON), Soft(**COMMON), Routed(**COMMON), ConfidentWrong(**COMMON)):
        assert attack.for_policy(entropy_policy())(tiny(exits=1), x, y, stream()).shape == x.shape


# -- early stopping


@pytest.mark.parametrize("name", FOOLING)
def test_early_stopping_changes_no_verdict(name, routes):
    net, x, y, policy = routes
    attack = replace(ATTACKS[name], eps=0.03, policy=policy)
    assert attack.early_stop
    attack.early_stop = False
    late = attack(net, x, y, stream(5))
    attack.early_stop = True
    early = attack(net, x, y, stream(5))
    (wrong, _), (expected, _) = judged(net, policy, early, y), judged(net, policy, late, y)
    assert torch.equal(wrong, expected)
    assert 0 < int(wrong.sum()) < len(x)
    # the noise of those who stayed did not depend on who left
    torch.testing.assert_close(early[~wrong], late[~wrong])


def test_who_left_is_not_run_again(routes):
    net, x, y, policy = routes
    rows = []
    net.stages[0].register_forward_hook(lambda module, given, out: rows.append(len(out)))
    attack = Soft(**COMMON, restarts=3, sure=0.0).for_policy(policy)
    with torch.no_grad():
        x_adv = attack(net, x, y, stream())
    ran = list(rows)
    assert ran[0] == len(x)
    assert ran == sorted(ran, reverse=True)
    standing = int((~judged(net, policy, x_adv, y)[0]).sum())
    assert standing <= ran[-1] < len(x)


def test_slowdown_makes_all_its_steps(routes):
    net, x, y, policy = routes
    rows = []
    net.stages[0].register_forward_hook(lambda module, given, out: rows.append(len(out)))
    Slowdown(**COMMON).for_policy(policy)(net, x, y, stream())
    assert rows == [len(x)] * (COMMON["steps"] + 1)


def test_early_stopping_keeps_everything_per_sample_with_apgd(tiny, batch):
    """APGD's step sizes and best points move with their samples."""
    net, (x, y) = tiny(), batch(count=16)
    policy = fitted(net, x)
    attack = Soft(eps=0.03, steps=12, rule=APGD(), early_stop=True).for_policy(policy)
    together = attack(net, x, y, stream(3))
    attack.early_stop = False
    apart = attack(net, x, y, stream(3))
    standing = ~judged(net, policy, apart, y)[0]
    assert 0 < int(standing.sum()) < len(x)
    torch.testing.assert_close(together[standing], apart[standing])


# -- the contract


@pytest.mark.parametrize("name", ATTACKS)
def test_the_result_is_in_the_ball_and_the_pixel_range_and_the_seed_decides(name, routes):
    net, x, y, policy = routes
    x = x.clone()
    x[0], x[1] = 0.0, 1.0
    attack = ATTACKS[name].for_policy(policy)
    x_adv, again, other = (attack(net, x, y, stream(seed)) for seed in (1, 1, 2))
    assert (x_adv - x).abs().max() <= EPS + 1e-7
    assert x_adv.min() >= 0
    assert x_adv.max() <= 1
    assert torch.equal(x_adv, again)
    assert not torch.equal(x_adv, other)


@pytest.mark.parametrize("name", FOOLING)
def test_adaptive_attacks_fool_more_than_noise(name, routes):
    net, x, y, policy = routes
    noise = project(x + EPS * (2 * torch.rand(x.shape, generator=stream()) - 1), x, EPS)
    wrong, _ = judged(net, policy, ATTACKS[name].for_policy(policy)(net, x, y, stream()), y)
    assert wrong.sum() > judged(net, policy, noise, y)[0].sum()


@pytest.mark.parametrize("name", ATTACKS)
def test_an_empty_batch_stays_one(name, routes):
    net, x, y, policy = routes
    assert ATTACKS[name].for_policy(policy)(net, x[:0], y[:0], stream()).shape == x[:0].shape


def test_without_a_policy_an_attack_on_it_refuses_in_one_line(routes):
    net, x, y, _ = routes
    with pytest.raises(UserError, match="for_policy") as caught:
        Routed(**COMMON)(net, x, y)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match="2 exits, the network has 3"):
        Routed(**COMMON).for_policy(entropy_policy(0.5))(net, x, y)


def test_binding_makes_a_new_attack_and_leaves_others_as_they_are():
    policy = entropy_policy(0.5)
    routed, average = Routed(**COMMON), Average(**COMMON)
    bound = routed.for_policy(policy)
    assert (bound.policy, routed.policy) == (policy, None)
    assert (bound.steps, bound.loss) == (routed.steps, routed.loss)
    assert average.for_policy(policy) is average
    assert bound.per_exit(2) == {"": bound}
    assert bound.brief().policy is policy


def test_the_identity_of_a_bound_attack_names_score_and_thresholds():
    values = [0.1 + 1e-12, 2 / 3]
    settings = Soft(**COMMON).for_policy(entropy_policy(*values)).identity()
    assert settings["policy"] == f"ThresholdPolicy(Entropy, {values})"
    assert all(isinstance(value, bool | int | float | str | None) for value in settings.values())
    same = Soft(**COMMON).for_policy(entropy_policy(*values)).identity()
    assert settings == same
    for policy in (entropy_policy(0.1, 2 / 3), ThresholdPolicy(Margin(), values)):
        assert Soft(**COMMON).for_policy(policy).identity() != settings


def test_settings_at_their_default_leave_the_identity_of_older_attacks_alone():
    assert "loss" not in Average(**COMMON).identity()
    assert "loss" not in MaxAverage(**COMMON).identity()
    assert SingleExit(exit=0, **COMMON, loss="dlr").identity()["loss"] == "dlr"
    assert Routed(**COMMON).identity()["loss"] == "ce"


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (Routed, {"warmup": 1.5}, "warmup"),
        (Routed, {"loss": "l2"}, "ce, dlr"),
        (Routed, {"keep": "last"}, "keep must be best"),
        (Routed, {"early_stop": "no"}, "early_stop"),
        (Routed, {"sure": -1}, "sure"),
        (Soft, {"hot": 0}, "hot"),
        (Soft, {"cold": 2.0}, "cold"),
        (Soft, {"loss": "l2"}, "ce, dlr"),
        (ConfidentWrong, {"slack": -1}, "slack"),
        (ConfidentWrong, {"lead": -1}, "lead"),
        (Targeted, {"classes": 0}, "classes"),
        (Targeted, {"classes": 1.5}, "classes"),
        (Average, {"keep": "all"}, "best, last, policy"),
        (MaxAverage, {"keep": "policy"}, "best, last"),
        (Slowdown, {"slack": -1}, "slack"),
        (Joint, {"weight": -1}, "weight"),
        (Joint, {"lead": -1}, "lead"),
    ],
)
def test_settings_out_of_range_are_refused(kind, options, message):
    with pytest.raises(UserError, match=message):
        kind(**{**COMMON, **options})


def test_policy_attacks_are_abstract():
    with pytest.raises(TypeError):
        PolicyAttack(**COMMON)


def test_margins_are_positive_exactly_where_the_exit_is_wrong():
    logits, y = torch.randn(40, 3, 5, generator=stream(1)), torch.randint(5, (40,), generator=stream(2))
    assert torch.equal(wrong_margin(logits, y) > 0, logits.argmax(dim=2) != y[:, None])


class Excluding(torch.nn.Module):
    """Excludes the classes but the likeliest one where that leads by `lead`, as a masked head does."""

    def __init__(self, lead):
        super().__init__()
        self.lead = lead

    def forward(self, logits):
        top = logits.max(dim=1, keepdim=True).values
        return logits.masked_fill(logits < top - self.lead, -torch.inf)


@pytest.mark.parametrize("name", ATTACKS)
def test_logits_of_minus_infinity_leave_images_that_are_numbers(name, tiny, batch):
    net, (x, y) = tiny(), batch(count=6)
    for lead in (0.0, 0.3):
        heads = [torch.nn.Sequential(head, Excluding(lead)) for head in net.heads]
        excluding = MultiExitNet(net.stages, heads).eval()
        with torch.no_grad():
            assert bool(excluding(x).isneginf().any())
        x_adv = ATTACKS[name].for_policy(ThresholdPolicy(Entropy(), [0.1, 0.2]))(excluding, x, y)
        assert x_adv.isfinite().all()
        assert float((x_adv - x).abs().max()) <= EPS + 1e-6


def test_the_ratio_of_differences_has_its_limits_at_excluded_classes():
    logits = torch.tensor([[[0.0, -torch.inf, -torch.inf]], [[0.0, -1.0, -torch.inf]], [[0.0, -torch.inf, -torch.inf]]])
    assert dlr(logits, torch.tensor([0, 0, 1])).flatten().tolist() == pytest.approx([-1.0, 0.0, 1.0])
