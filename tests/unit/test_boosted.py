"""Boosted exits: the averaged logits by hand, the rounds of frozen stages, and the attack on the mean."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from helpers.training import ATTACK, SMALL, Memory, StopAfter, assert_same_tensors, recipe
from rdi import held_out
from rdi.attacks import Average, Ensemble, SingleExit
from rdi.attacks.engine import Engine
from rdi.data import Digits
from rdi.defenses import Boosted, Standard
from rdi.defenses.boosted import running_means
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.optim import Recipe
from rdi.thresholds import Entropy, ThresholdPolicy
from rdi.thresholds.ensemble import EnsemblePolicy
from rdi.training import fit

BALL = {"eps": 0.1, "step_size": 0.03, "steps": 3}


def stream(seed=0):
    return torch.Generator().manual_seed(seed)


def mean_losses(net, x, y):
    """Cross-entropy of the mean logits up to each exit, exit by exit."""
    logits = net(x)
    return [F.cross_entropy(sum(logits[:, j] for j in range(k + 1)) / (k + 1), y) for k in range(net.exits)]


def test_the_mean_is_what_the_ensemble_policy_answers_with(tiny, batch):
    logits = tiny()(batch()[0])
    policy = EnsemblePolicy(ThresholdPolicy(Entropy(), [0.5, 0.5]))
    torch.testing.assert_close(running_means(logits).softmax(dim=2), policy.answers(logits).softmax(dim=2))


def test_all_at_once_every_exit_is_trained_on_the_mean_up_to_it(tiny, batch):
    net, (x, y) = tiny(), batch(count=6)
    x_adv = ATTACK(net, x, y, stream(3), fast=False)
    clean, attacked = mean_losses(net, x, y), mean_losses(net, x_adv, y)
    weights = [1.0, 2.0, 0.5]
    expected = sum(w * (0.25 * a + 0.75 * b) for w, a, b in zip(weights, clean, attacked, strict=True))
    gradients = torch.autograd.grad(expected, list(net.parameters()))
    loss, logs = Boosted(attack=ATTACK, adversarial_weight=0.75, exit_weights=weights).loss(net, x, y, stream(3))
    torch.testing.assert_close(loss, expected)
    for found, wanted in zip(torch.autograd.grad(loss, list(net.parameters())), gradients, strict=True):
        torch.testing.assert_close(found, wanted)
    right = running_means(net(x)).argmax(dim=2) == y[:, None]
    torch.testing.assert_close(logs["clean_accuracy"], right.float().mean(dim=0))


@pytest.mark.parametrize("engine", [None, Engine()], ids=["itself", "copy"])
@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_round_trains_one_stage_and_its_head_on_the_exits_so_far(number, engine, tiny, batch):
    net, (x, y) = tiny().train(), batch(count=6)
    twin, before = copy.deepcopy(net), copy.deepcopy(net.state_dict())
    attack = Ensemble(**BALL)
    defense = Boosted(attack=attack, frozen=True, engine=engine)
    defense.begin(9)
    defense.load_state({"step": 3 * number + 2})
    loss, logs = defense.loss(net, x, y, stream(3))
    loss.backward()
    # by hand: the earlier part in use, the newest in training
    part = MultiExitNet(twin.stages[: number + 1], twin.heads[: number + 1])
    x_adv = attack(part, x, y, stream(3), fast=False)
    features, total = x_adv, 0
    for k in range(number + 1):
        twin.stages[k].train(k == number)
        features = twin.stages[k](features)
        logits = twin.heads[k](features)
        total = total + logits
        features, total = (features, total) if k == number else (features.detach(), total.detach())
    expected = F.cross_entropy(total / (number + 1), y)
    expected.backward()
    torch.testing.assert_close(loss, expected)
    assert len(logs["robust_accuracy"]) == number + 1
    for (name, parameter), other in zip(net.named_parameters(), twin.parameters(), strict=True):
        trained = name.split(".")[1] == str(number)
        assert (parameter.grad is not None) == (other.grad is not None) == trained, name
        if trained:
            torch.testing.assert_close(parameter.grad, other.grad, atol=1e-5, rtol=1e-4)
    moved = {name.split(".")[1] for name, tensor in net.state_dict().items() if not torch.equal(tensor, before[name])}
    assert moved == {str(number)}, "statistics of the round's own stage move"
    assert all(module.training for module in net.modules())


def test_held_out_images_are_judged_by_the_mean_up_to_each_exit(tiny):
    """An exit that is right as part of the mean alone: the best weights are chosen by what the policy answers with."""
    net, digits = tiny(classes=10), Digits(name="digits", calibration=200).load()
    with torch.no_grad():
        logits = net(digits.calibration.images / 255)
    means = torch.stack([logits[:, : k + 1].mean(dim=1) for k in range(3)], dim=1)
    own = held_out.calibrate(net, Standard(), digits.calibration, SMALL, 7)["clean_accuracy"]
    found = held_out.calibrate(net, Boosted(attack=ATTACK), digits.calibration, SMALL, 7)["clean_accuracy"]
    wanted = (means.argmax(dim=2) == digits.calibration.labels[:, None]).double().mean(dim=0)
    assert found == pytest.approx(wanted.tolist())
    assert found[0] == own[0]
    assert found != own


def test_every_round_goes_through_the_whole_schedule():
    defense = Boosted(attack=ATTACK, frozen=True)
    seen = [defense.schedule(3, step, 10) for step in range(10)]
    assert seen == [(0, 3), (1, 3), (2, 3), (0, 3), (1, 3), (2, 3), (0, 4), (1, 4), (2, 4), (3, 4)]
    assert [Boosted.round(3, step, 10) for step in range(10)] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]
    assert Boosted(attack=ATTACK).schedule(3, 4, 10) == (4, 10)
    assert [Boosted.round(3, step, 2) for step in range(2)] == [1, 2], "fewer steps than exits: a round is left out"


def test_the_rounds_of_a_training_resume_bit_for_bit_and_leave_earlier_stages_alone(paper_net):
    digits = Digits(name="digits", calibration=24, size=16).load()
    net = paper_net("smallcnn", (1, 16, 16))
    slow = replace(recipe(), schedule="cosine")
    assert isinstance(slow, Recipe)

    def train(store, **more):
        torch.manual_seed(5)
        defense = Boosted(attack=ATTACK, frozen=True, engine=Engine())
        fit(copy.deepcopy(net), defense, digits.train, digits.calibration, slow, SMALL, store, **more)

    whole, first = Memory(), Memory()
    train(whole)
    with pytest.raises(Interrupted):
        train(first, stop=StopAfter(7))  # after step 5 of 6, in the last round: asked twice more where step 3 is judged
    held = torch.load(io.BytesIO(first.state), weights_only=True)["model"]
    assert_same_tensors(
        {name: tensor for name, tensor in held.items() if ".2." not in name[:9]},
        {name: tensor for name, tensor in whole.weights["last"].items() if ".2." not in name[:9]},
    )
    second = Memory(first.state)
    second.weights = first.weights
    train(second)
    assert_same_tensors(second.weights["last"], whole.weights["last"])


def test_the_attack_on_the_mean_is_that_of_a_plain_loop(tiny, batch):
    net, (x, y) = tiny(), batch(count=5)
    for exit, last in ((1, 1), (-1, 2)):
        x_adv = x
        for _ in range(BALL["steps"]):
            x_adv = x_adv.detach().requires_grad_(True)
            gradient = torch.autograd.grad(mean_losses(net, x_adv, y)[last], x_adv)[0]
            x_adv = torch.minimum(torch.maximum(x_adv + 0.03 * gradient.sign(), x - 0.1), x + 0.1).clamp(0, 1)
        found = Ensemble(**BALL, exit=exit, random_start=False, keep="last")(net, x, y, fast=False)
        torch.testing.assert_close(found, x_adv.detach())
    alone = SingleExit(**BALL, exit=0)(net, x, y, stream())
    assert torch.equal(Ensemble(**BALL, exit=0)(net, x, y, stream()), alone), "a mean of one exit"
    assert not torch.equal(found, Average(**BALL, random_start=False, keep="last")(net, x, y, fast=False))


def test_the_best_iterate_is_chosen_by_the_mean():
    logits, y = torch.tensor([[[2.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 2.0]]]), torch.zeros(2, dtype=torch.long)
    assert Ensemble(**BALL).fooled(logits, y).tolist() == [0.0, 1.0]
    assert list(Ensemble(**BALL, exit="each").per_exit(2)) == ["_exit0", "_exit1"]


def test_what_cannot_be_is_refused(tiny, batch):
    with pytest.raises(UserError, match="exit=5 does not exist"):
        Ensemble(**BALL, exit=5)(tiny(), *batch())
    with pytest.raises(UserError, match="is for suites"):
        Ensemble(**BALL, exit="each")(tiny(), *batch())
    with pytest.raises(UserError, match="frozen must be true or false"):
        Boosted(attack=ATTACK, frozen="yes")
    net = tiny()
    net.stages[0].requires_grad_(False)
    with pytest.raises(UserError, match="stage 0 has no weights"):
        Boosted(attack=ATTACK, frozen=True).loss(net, *batch(), stream())
    with pytest.raises(ValueError, match="no state"):
        Boosted(attack=ATTACK).load_state({"weights": 1})
