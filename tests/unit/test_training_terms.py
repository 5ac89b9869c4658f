"""The rarer parts of composed losses, each against a plain re-implementation: distillation, decision, weights, AWP."""

import copy
import math

import pytest
import torch
from torch import nn

from helpers.logits import labels, logits
from helpers.training import ATTACK, Memory, StopAfter, assert_same_tensors, recipe
from rdi.attacks.norms import Ball, project
from rdi.attacks.simplex import simplex_projection
from rdi.data import Digits, augment
from rdi.data.augment import draw
from rdi.defenses import (
    Carried,
    Composed,
    CrossEntropy,
    DeployedDecision,
    GradientSign,
    MinMaxWeights,
    NeighbourDistillation,
    OrthogonalDistillation,
    Pairing,
    WeightPerturbation,
)
from rdi.defenses.base import Origin
from rdi.defenses.distillation import dealt
from rdi.defenses.terms import Batch
from rdi.errors import Interrupted, UserError
from rdi.thresholds import Entropy, ShareRule
from rdi.training import fit
from rdi.training_settings import Settings

N, E, C = 5, 3, 4


def plain(values):
    exponentials = [math.exp(value) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def two():
    return {"clean": logits(0), "adversarial": logits(1)}


def test_the_teacher_of_an_exit_is_the_mean_of_its_neighbours_clean_predictions():
    both, y = two(), labels()
    found = NeighbourDistillation()(Batch(both, y))
    clean, adversarial = both["clean"].tolist(), both["adversarial"].tolist()
    for k, neighbours in enumerate(([0, 1], [0, 1, 2], [1, 2])):
        expected = 0.0
        for i in range(N):
            teacher = [sum(plain(clean[i][j])[c] for j in neighbours) / len(neighbours) for c in range(C)]
            student = plain(adversarial[i][k])
            expected -= sum(t * math.log(s) for t, s in zip(teacher, student, strict=True)) / N
        assert found[k].item() == pytest.approx(expected)


def test_every_wrong_class_belongs_to_one_exit_and_the_true_one_to_all():
    mask = dealt(labels(), E, C)
    for i, y in enumerate(labels().tolist()):
        assert mask[i, :, y].tolist() == [True] * E
        assert [int(mask[i, :, c].sum()) for c in range(C) if c != y] == [1] * (C - 1)
    # and they are dealt out evenly
    assert mask.sum(dim=2).unique().tolist() == [1 + (C - 1) // E]


def test_the_orthogonal_teacher_keeps_its_own_classes():
    both, y = two(), labels()
    found = OrthogonalDistillation()(Batch(both, y))
    mask = dealt(y, E, C).tolist()
    clean, adversarial = both["clean"].tolist(), both["adversarial"].tolist()
    for k in range(E):
        expected = 0.0
        for i in range(N):
            teacher = [p * keep for p, keep in zip(plain(clean[i][k]), mask[i][k], strict=True)]
            teacher = [p / sum(teacher) for p in teacher]
            expected -= sum(t * math.log(s) for t, s in zip(teacher, plain(adversarial[i][k]), strict=True)) / N
        assert found[k].item() == pytest.approx(expected)


@pytest.mark.parametrize("term", [NeighbourDistillation(), OrthogonalDistillation()], ids=lambda term: term.label)
def test_no_gradient_goes_through_a_teacher(term):
    both = two()
    gradients = torch.autograd.grad(term(Batch(both, labels())).sum(), list(both.values()), allow_unused=True)
    assert gradients[0] is None
    assert gradients[1].abs().sum() > 0


def test_the_decision_is_the_soft_policy_with_the_thresholds_of_the_clean_batch():
    both, y = two(), labels()
    found = DeployedDecision(score=Entropy(), shares=[0.4, 0.4, 0.2], temperature=0.5)(Batch(both, y))
    limits = ShareRule(score=Entropy(), shares=[0.4, 0.4, 0.2]).fit_logits(both["clean"].detach()).values
    expected = 0.0
    for i in range(N):
        left, mixed = 1.0, 0.0
        for k in range(E):
            p = plain(both["adversarial"].tolist()[i][k])
            if k < E - 1:
                entropy = -sum(q * math.log(q) for q in p) / math.log(C)
                limit = limits[k] / math.log(C)
                odds = math.log(entropy / (1 - entropy)) - math.log(limit / (1 - limit))
                leaves = 1 / (1 + math.exp(odds / 0.5))
            else:
                leaves = 1.0
            mixed += left * leaves * p[int(y[i])]
            left *= 1 - leaves
        expected -= math.log(mixed) / N
    assert found.tolist() == pytest.approx([expected] * E, rel=1e-5)


def test_a_cold_decision_is_the_loss_of_the_exit_that_is_taken():
    both, y = two(), labels()
    policy = ShareRule(score=Entropy()).fit_logits(both["clean"].detach())
    found = DeployedDecision(score=Entropy(), temperature=1e-4)(Batch(both, y))
    stays = Entropy()(both["adversarial"].detach())[:, :-1] >= torch.tensor(policy.values)
    taken = torch.where(stays.all(dim=1), E - 1, (~stays).int().argmax(dim=1))
    rows = torch.arange(N)
    expected = nn.functional.cross_entropy(both["adversarial"][rows, taken], y)
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "values", [[0.2, 0.3, 0.5], [3.0, 0.0, -1.0], [0.5, 0.5, 0.5], [-5.0, -5.1, -7.0], [1e8, 0.0, 0.0]]
)
def test_the_simplex_projection_is_the_nearest_of_many_points(values):
    found = simplex_projection(torch.tensor(values, dtype=torch.float64))
    assert float(found.sum()) == pytest.approx(1)
    assert bool((found >= 0).all())
    points = torch.distributions.Dirichlet(torch.ones(3, dtype=torch.float64)).sample((5000,))
    distances = (points - torch.tensor(values)).square().sum(dim=1)
    assert float((found - torch.tensor(values)).square().sum()) <= float(distances.min()) + 1e-9


@pytest.mark.parametrize(("direction", "most"), [("hardest", 2), ("easiest", 0)])
def test_weights_move_to_the_exit_of_their_direction_and_keep_the_floor(direction, most):
    rule = MinMaxWeights(rate=0.1, regulariser=0.5, floor=0.3, direction=direction)
    weights, losses = torch.full((3,), 1 / 3), torch.tensor([0.5, 1.0, 2.0])
    sign = 1 if direction == "hardest" else -1
    step = weights + 0.1 * (sign * losses - 0.5 * (weights - 1 / 3))
    torch.testing.assert_close(rule.moved(weights, losses), 0.1 + 0.7 * (step - (step.sum() - 1) / 3))
    for _ in range(200):
        weights = rule.moved(weights, losses)
    assert int(weights.argmax()) == most
    assert float(weights.min()) >= 0.1 - 1e-6
    assert float(weights.sum()) == pytest.approx(1)


def test_a_strong_regulariser_keeps_the_mean():
    rule = MinMaxWeights(rate=0.01, regulariser=50, floor=0)
    weights = torch.full((3,), 1 / 3)
    for _ in range(200):
        weights = rule.moved(weights, torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(weights, torch.full((3,), 1 / 3), atol=0.03, rtol=0)


def test_weights_are_moved_by_their_relative_norm_and_brought_back_to_the_bit(tiny, batch):
    net, (x, y) = tiny().train(), batch(count=6)
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}

    def loss():
        return nn.functional.cross_entropy(net(x).flatten(0, 1), y.repeat_interleave(3))

    probe = copy.deepcopy(net)
    nn.functional.cross_entropy(probe(x).flatten(0, 1), y.repeat_interleave(3)).backward()
    perturbation = WeightPerturbation(gamma=0.1)
    perturbation.perturb(net, loss)
    for name, parameter in net.named_parameters():
        old, gradient = before[name], probe.get_parameter(name).grad
        expected = old if parameter.ndim < 2 else old + 0.1 * old.norm() * gradient / gradient.norm()
        torch.testing.assert_close(parameter.detach(), expected)
    assert all(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers())
    perturbation.restore()
    assert_same_tensors(net.state_dict(), before)


def test_the_gradient_is_taken_at_the_perturbed_weights_and_starts_when_asked(tiny, batch):
    net, (x, y) = tiny().train(), batch(count=6)

    def gradient(perturbation, step=0):
        model = copy.deepcopy(net)
        terms = [CrossEntropy(images="clean")]
        defense = Composed(attack=ATTACK, terms=terms, weight_perturbation=perturbation)
        defense.begin(10)
        defense.load_state({"step": step})
        loss, _ = defense.loss(model, x, y, torch.Generator().manual_seed(0))
        loss.backward()
        defense.after_backward()
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), net.parameters(), strict=True))
        return model.stages[0][0].weight.grad

    assert torch.equal(gradient(None), gradient(WeightPerturbation(gamma=0.1, start=0.5)))
    assert not torch.equal(gradient(None, 5), gradient(WeightPerturbation(gamma=0.1, start=0.5), 5))


@pytest.mark.parametrize("kind", ["crop", "crop_flip", "none"])
def test_what_is_stored_comes_back_where_it_was_seen(kind):
    generator = torch.Generator().manual_seed(0)
    stored = torch.randint(-100, 100, (7, 2, 9, 9), generator=generator, dtype=torch.int8)
    index = torch.tensor([5, 0, 3])
    placement = draw(stored[index].shape, kind, generator, torch.device("cpu"))
    seen = placement.place(stored[index])
    untouched = stored.clone()
    placement.store(stored, index, seen)
    assert torch.equal(stored, untouched)
    changed = torch.where(seen != 0, torch.full_like(seen, 77), seen)
    placement.store(stored, index, changed)
    assert torch.equal(placement.place(stored[index]), changed)
    others = [row for row in range(7) if row not in index.tolist()]
    assert torch.equal(stored[others], untouched[others])


def test_of_a_sample_that_stands_twice_in_a_batch_the_last_is_stored():
    stored = torch.zeros(3, 1, 4, 4, dtype=torch.int8)
    placement = draw(torch.Size((2, 1, 4, 4)), "none", torch.Generator(), torch.device("cpu"))
    placement.store(
        stored, torch.tensor([1, 1]), torch.stack([torch.full((1, 4, 4), v) for v in (5, 9)]).to(torch.int8)
    )
    assert stored[1].unique().tolist() == [9]


def test_augmenting_is_placing():
    images = torch.rand(4, 1, 8, 8)
    found = augment(images, "crop_flip", torch.Generator().manual_seed(1))
    placement = draw(images.shape, "crop_flip", torch.Generator().manual_seed(1), torch.device("cpu"))
    assert torch.equal(found, placement.place(images))


def test_a_carried_perturbation_is_that_of_the_last_epoch_and_one_step_from_it(tiny, batch):
    net, (x, y) = tiny().requires_grad_(False), batch(count=6)
    eps, craft = 0.1, Carried(momentum=0.5, reset=3)
    generator = torch.Generator().manual_seed(0)
    still = draw(x.shape, "none", generator, x.device)

    def epoch(number):
        made = craft(net, x, y, Ball(eps), generator, origin=Origin(torch.arange(6), still, 6, number))
        return made["adversarial"], made["carried"]

    def sign_at(point):
        point = point.clone().requires_grad_(True)
        loss = nn.functional.cross_entropy(net(point).flatten(0, 1), y.repeat_interleave(3))
        return torch.autograd.grad(loss, point)[0]

    x_adv, carried = epoch(0)
    assert (carried - x).abs().max() <= eps + 1e-6
    torch.testing.assert_close(x_adv, project(carried + eps * sign_at(carried).sign(), x, eps), atol=1e-6, rtol=0)
    first = sign_at(carried)
    onward = (carried - x + eps * first.sign()).clamp(-eps, eps)
    x_adv, second = epoch(1)
    # stored as int8: half a level of rounding
    torch.testing.assert_close(second, project(x + onward, x, eps), atol=0.5 * eps / 127 + 1e-6, rtol=0)
    _, again = epoch(2)
    assert not torch.equal(again, second)
    before = craft.state()["delta"].clone()
    epoch(3)
    assert craft.state()["period"] == 1
    assert not torch.equal(before, craft.state()["delta"])


def test_a_batch_of_nowhere_leaves_no_trace(tiny, batch):
    net, (x, y) = tiny().requires_grad_(False), batch(count=6)
    craft = Carried()
    x_adv, carried = craft(net, x, y, Ball(0.1), torch.Generator().manual_seed(0)).values()
    assert craft.state() == Carried().state()
    assert (x_adv - x).abs().max() <= 0.1 + 1e-6
    assert not torch.equal(carried, x)


@pytest.fixture(scope="module")
def digits():
    return Digits(name="digits", calibration=24, size=16).load()


def everything():
    return Composed(
        attack=ATTACK,
        crafting=Carried(reset=1),
        terms=[
            CrossEntropy(images="adversarial", smoothing=0.1),
            Pairing(distance="squared", reference="carried", weight=0.01),
            NeighbourDistillation(),
            OrthogonalDistillation(),
            DeployedDecision(score=Entropy()),
        ],
        exit_weights=MinMaxWeights(),
        weight_perturbation=WeightPerturbation(gamma=0.01, start=0.4),
    )


def test_a_training_with_every_part_resumes_bit_for_bit(digits, paper_net):
    net = paper_net("smallcnn", (1, 16, 16))
    settings = Settings(seed=3, evaluations=2, calibration_samples=8, augment="crop_flip")
    few = digits.train.sample(20)  # 6 steps of 8 are more than two epochs: perturbations are carried, then reset

    def train(store, **more):
        torch.manual_seed(5)
        return fit(
            copy.deepcopy(net), everything(), few, digits.calibration, recipe(average=0.5), settings, store, **more
        )

    whole = Memory()
    expected = train(whole)
    assert {"exit_weights", "deployed_decision", "neighbour_distillation"} <= set(whole.lines[-1][1])
    for stop_at in (2, 5):
        first = Memory()
        with pytest.raises(Interrupted):
            train(first, stop=StopAfter(stop_at))
        second = Memory(first.state)
        second.weights = first.weights
        assert train(second) == expected
        assert_same_tensors(second.weights["last"], whole.weights["last"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Carried(step=0), "crafting.step"),
        (lambda: Carried(momentum=1), "crafting.momentum"),
        (lambda: Carried(reset=0), "crafting.reset"),
        (lambda: MinMaxWeights(rate=0), "exit_weights.rate"),
        (lambda: MinMaxWeights(direction="up"), "exit_weights.direction"),
        (lambda: MinMaxWeights(floor=2), "exit_weights.floor"),
        (lambda: WeightPerturbation(gamma=-1), "weight_perturbation.gamma"),
        (lambda: DeployedDecision(score=Entropy(), temperature=0), "temperature"),
        (lambda: DeployedDecision(score=Entropy(), shares=[0.5, 0.4]), "shares"),
        (lambda: Pairing(distance="kl", reference="dirty"), "reference"),
        (
            lambda: Composed(
                attack=ATTACK, terms=[Pairing(distance="kl", reference="carried")], crafting=GradientSign()
            ),
            "reference=carried",
        ),
        (lambda: Composed(attack=ATTACK, terms=[CrossEntropy(images="clean")], weight_perturbation=3), "perturbation"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()
