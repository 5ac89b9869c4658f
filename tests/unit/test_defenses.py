"""Training losses against hand computation, and what they do to the network's statistics."""

import copy

import pytest
import torch
from torch.nn import functional as F

from rdi.attacks import Average, MaxAverage
from rdi.attacks.engine import Engine
from rdi.defenses import Adversarial, Standard
from rdi.defenses.base import accuracy_per_exit
from rdi.errors import UserError

ATTACK = Average(eps=0.1, step_size=0.05, steps=2)


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def losses_by_hand(net, x, y):
    logits = net(x)
    return [F.cross_entropy(logits[:, k], y) for k in range(net.exits)]


def norms(net):
    return {name: buffer.clone() for name, buffer in net.named_buffers()}


def test_standard_is_the_sum_over_exits(tiny, batch):
    net, (x, y) = tiny(), batch()
    loss, logs = Standard().loss(net, x, y, stream())
    torch.testing.assert_close(loss, sum(losses_by_hand(net, x, y)))
    torch.testing.assert_close(logs["loss"], loss.detach())
    assert Standard().attack is None


def test_standard_with_exit_weights_is_the_weighted_sum(tiny, batch):
    net, (x, y) = tiny(), batch()
    loss, _ = Standard(exit_weights=[1, 0, 2.5]).loss(net, x, y, stream())
    first, _, third = losses_by_hand(net, x, y)
    torch.testing.assert_close(loss, first + 2.5 * third)


@pytest.mark.parametrize("weight", [0.0, 0.25, 0.5, 1.0])
def test_the_hybrid_loss_mixes_clean_and_adversarial_images(weight, tiny, batch):
    net, (x, y) = tiny(), batch()  # in eval mode, so that the passes by hand see the same statistics
    loss, logs = Adversarial(attack=ATTACK, adversarial_weight=weight).loss(net, x, y, stream(3))
    x_adv = ATTACK(net, x, y, stream(3))
    clean, adversarial = sum(losses_by_hand(net, x, y)), sum(losses_by_hand(net, x_adv, y))
    torch.testing.assert_close(loss, (1 - weight) * clean + weight * adversarial)
    torch.testing.assert_close(logs["clean_loss"], clean.detach())
    torch.testing.assert_close(logs["adversarial_loss"], adversarial.detach())
    assert adversarial > clean
    with torch.no_grad():
        assert torch.equal(logs["clean_accuracy"], accuracy_per_exit(net(x), y))
        assert torch.equal(logs["robust_accuracy"], accuracy_per_exit(net(x_adv), y))


def test_the_default_mixture_is_the_published_half_and_half(tiny, batch):
    net, (x, y) = tiny(), batch()
    loss, logs = Adversarial(attack=ATTACK).loss(net, x, y, stream())
    torch.testing.assert_close(loss.detach(), 0.5 * logs["clean_loss"] + 0.5 * logs["adversarial_loss"])


def test_exit_weights_count_in_both_parts(tiny, batch):
    net, (x, y) = tiny(), batch()
    loss, _ = Adversarial(attack=ATTACK, exit_weights=[0, 0, 1]).loss(net, x, y, stream(3))
    x_adv = ATTACK(net, x, y, stream(3))
    torch.testing.assert_close(loss, 0.5 * losses_by_hand(net, x, y)[2] + 0.5 * losses_by_hand(net, x_adv, y)[2])


def test_the_gradient_is_that_of_the_hand_computed_loss(tiny, batch):
    net, (x, y) = tiny(), batch()
    x_adv = ATTACK(net, x, y, stream(3))
    by_hand = 0.5 * sum(losses_by_hand(net, x, y)) + 0.5 * sum(losses_by_hand(net, x_adv, y))
    expected = torch.autograd.grad(by_hand, list(net.parameters()))
    loss, logs = Adversarial(attack=ATTACK).loss(net, x, y, stream(3))
    loss.backward()
    for parameter, gradient in zip(net.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    assert not any(value.requires_grad for value in logs.values())


@pytest.mark.parametrize("attack", [ATTACK, MaxAverage(eps=0.1, step_size=0.05, steps=2)], ids=["average", "max_avg"])
def test_statistics_move_by_the_two_training_passes_and_by_nothing_else(attack, tiny, batch):
    net, (x, y) = tiny().train(), batch(count=6)
    before = norms(net)
    twin = copy.deepcopy(net)
    Adversarial(attack=attack).loss(net, x, y, stream(3))
    x_adv = attack(twin, x, y, stream(3))
    twin(x)
    twin(x_adv)
    assert all(torch.equal(buffer, norms(twin)[name]) for name, buffer in norms(net).items())
    tracked = {name: int(buffer) for name, buffer in norms(net).items() if name.endswith("num_batches_tracked")}
    assert tracked == {name: int(before[name]) + 2 for name in tracked}
    assert all(module.training for module in net.modules())
    assert all(parameter.requires_grad for parameter in net.parameters())


def test_a_wrong_number_of_exit_weights_says_how_many_there_are(tiny, batch):
    with pytest.raises(UserError, match="must list 3 numbers, one per exit, got 2"):
        Standard(exit_weights=[1, 1]).loss(tiny(), *batch(), stream())


@pytest.mark.parametrize("weights", [[-1, 1, 1], ["a", 1, 1], [float("nan"), 1, 1]])
def test_exit_weights_that_are_no_weights_are_refused(weights):
    with pytest.raises(UserError, match="exit_weights"):
        Standard(exit_weights=weights)


@pytest.mark.parametrize("weight", [-0.1, 1.1, "half", True])
def test_adversarial_weights_out_of_range_are_refused(weight):
    with pytest.raises(UserError, match="adversarial_weight"):
        Adversarial(attack=ATTACK, adversarial_weight=weight)


def test_accuracy_per_exit_counts_each_exit_alone():
    logits = F.one_hot(torch.tensor([[0, 1], [1, 1], [2, 0], [2, 2]]), 3).float()
    assert accuracy_per_exit(logits, torch.tensor([0, 1, 1, 2])).tolist() == [0.75, 0.5]


@pytest.mark.parametrize("training", [True, False])
def test_the_engine_crafts_on_a_copy_that_follows_the_weights(training, tiny, batch):
    net, (x, y) = tiny().train(training), batch(count=6)
    defense = Adversarial(attack=ATTACK, engine=Engine())
    for _ in range(2):
        before = norms(net)
        expected = ATTACK(copy.deepcopy(net), x, y, stream(3))
        torch.testing.assert_close(defense.craft(ATTACK, net, x, y, stream(3)), expected)
        assert all(torch.equal(buffer, before[name]) for name, buffer in norms(net).items())
        assert all(module.training is training for module in net.modules())
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.3 * torch.rand_like(parameter))


def test_the_engine_s_precision_is_its_own(tiny, batch):
    net, (x, y) = tiny(), batch(count=6)
    defense = Adversarial(attack=ATTACK, engine=Engine())
    with torch.autocast("cpu", torch.bfloat16):
        crafted = defense.craft(ATTACK, net, x, y, stream(3))
    torch.testing.assert_close(crafted, ATTACK(net, x, y, stream(3)))


def test_another_network_gets_another_copy(tiny, batch):
    first, second, (x, y) = tiny(), tiny(seed=1), batch(count=6)
    defense = Adversarial(attack=ATTACK, engine=Engine())
    defense.craft(ATTACK, first, x, y, stream(3))
    torch.testing.assert_close(defense.craft(ATTACK, second, x, y, stream(3)), ATTACK(second, x, y, stream(3)))
