"""`rdi.certify` on plain tensors: the parts that it is made of, and what an attack can do at most."""

import pytest
import torch

import rdi
from rdi import macs
from rdi.attacks import Average
from rdi.certificates import BoundedNetwork
from rdi.certificates import certify as certify_policy
from rdi.thresholds import Entropy, RandomisedPolicy, ThresholdPolicy

EPS = 0.004


@pytest.fixture
def case(tiny):
    generator = torch.Generator().manual_seed(1)
    net = tiny().eval()
    x = torch.rand(24, 1, 8, 8, generator=generator)
    logits = net(x).detach()
    # thresholds between the entropies of the images, so that they leave everywhere; labels that are mostly right
    values = Entropy()(logits)[:, :-1].quantile(0.5, dim=0).tolist()
    policy = ThresholdPolicy(Entropy(), values)
    y = policy.predict(logits, policy.choose(logits))
    y[::6] = (y[::6] + 1) % logits.shape[2]
    return net, x, y, policy


def test_the_figures_are_those_of_the_bounds_in_batches_of_any_size(case):
    net, x, y, policy = case
    found = rdi.certify(net, x, y, policy, eps=EPS, batch_size=7)
    bounds = BoundedNetwork(net).bounds(x, y, EPS)
    expected = certify_policy(policy, bounds, y)
    assert torch.equal(found.right, expected.right)
    assert 0 < found.accuracy < rdi.evaluate(net, x, y, policy)["clean"].accuracy
    assert found.accuracy == pytest.approx(float(expected.right.double().mean()))
    assert found.accuracy_low < found.accuracy < found.accuracy_high
    assert found.exit_accuracy == pytest.approx(bounds.wins().double().mean(dim=0).tolist())
    assert found.exit_may == pytest.approx(expected.taken.double().mean(dim=0).tolist())
    assert found.mean_macs == pytest.approx(float(expected.costs(macs.count(net, (1, 8, 8)).macs).mean()))


def test_no_attack_takes_what_is_certified_and_costs_no_more(case):
    net, x, y, policy = case
    found = rdi.certify(net, x, y, policy, eps=EPS)
    attack = Average(eps=EPS, step_size=EPS / 2, steps=4)
    logits = rdi.attack(net, attack, x, y)["average"].logits
    exits = policy.choose(logits)
    assert bool((policy.predict(logits, exits) == y)[found.right].all())
    assert rdi.evaluate(net, x, y, policy, attack)["average"].mean_macs <= found.mean_macs


def test_without_a_ball_it_is_what_the_network_does(case):
    net, x, y, policy = case
    found, row = rdi.certify(net, x, y, policy, eps=0), rdi.evaluate(net, x, y, policy)["clean"]
    assert (found.accuracy, found.mean_macs) == pytest.approx((row.accuracy, row.mean_macs))
    assert found.saving == pytest.approx(row.saving)


def test_what_cannot_be_certified_is_refused_before_anything_is_computed(case):
    net, x, y, policy = case
    with pytest.raises(rdi.UserError, match="no certificate for RandomisedPolicy"):
        rdi.certify(net, x, y, RandomisedPolicy(Entropy(), [0.1] * 2, [0.2] * 2), eps=EPS)
    with pytest.raises(rdi.UserError, match="eps"):
        rdi.certify(net, x, y, policy, eps=2)
    with pytest.raises(rdi.UserError, match="exits"):
        rdi.certify(net, x, y, ThresholdPolicy(Entropy(), [0.1]), eps=EPS)
