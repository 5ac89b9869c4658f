"""Composed training losses: every term against a plain re-implementation, the one step by hand, averaging, resuming."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from helpers.logits import C, E, N, labels, logits
from helpers.training import ATTACK, Memory, StopAfter, assert_same_tensors, recipe
from rdi.attacks import Average
from rdi.attacks.engine import Engine
from rdi.attacks.norms import Ball
from rdi.averaging import STATISTICS_BATCHES, WeightAverage
from rdi.backbones import resnet
from rdi.data import Digits
from rdi.defenses import (
    Adversarial,
    Boosted,
    Composed,
    CrossEntropy,
    Fast,
    GradientSign,
    MinMaxAttacks,
    MinMaxWeights,
    Pairing,
    Standard,
)
from rdi.defenses.terms import Batch
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet, PaperExits
from rdi.held_out import warn_of_overfitting
from rdi.training import fit
from rdi.training_settings import Settings

EPS = 0.1


def by_hand(term, clean, adversarial, y):
    """loss_E with numpy-like loops over samples and classes."""
    losses = []
    for k in range(E):
        total = 0
        if isinstance(term, CrossEntropy):
            chosen = clean if term.images == "clean" else adversarial
            for i in range(N):
                log_p = torch.log(torch.exp(chosen[i, k]) / torch.exp(chosen[i, k]).sum())
                target = torch.full((C,), term.smoothing / C, dtype=torch.float64)
                target[y[i]] += 1 - term.smoothing
                total = total - (target * log_p).sum()
            losses.append(total / N)
        elif term.distance == "kl":
            for i in range(N):
                p = torch.exp(clean[i, k]) / torch.exp(clean[i, k]).sum()
                q = torch.exp(adversarial[i, k]) / torch.exp(adversarial[i, k]).sum()
                total = total + sum(p[c] * torch.log(p[c] / q[c]) for c in range(C))
            losses.append(total / N)
        elif term.distance == "squared":
            losses.append(((clean[:, k] - adversarial[:, k]) ** 2).sum() / (N * C))
        else:
            difference = clean[:, k] - adversarial[:, k]
            # singular values as the roots of the eigenvalues of D'D
            losses.append(torch.linalg.eigvalsh(difference.T @ difference).clamp(min=0).sqrt().sum() / N)
    return torch.stack(losses)


@pytest.mark.parametrize(
    "term",
    [
        CrossEntropy(images="clean"),
        CrossEntropy(images="adversarial", smoothing=0.3),
        Pairing(distance="kl"),
        Pairing(distance="squared"),
        Pairing(distance="nuclear"),
    ],
    ids=lambda term: term.label,
)
def test_terms_and_their_gradients_are_those_of_a_plain_loop(term):
    results = []
    for loss in (lambda a, b, y: term(Batch({"clean": a, "adversarial": b}, y)), partial(by_hand, term)):
        clean, adversarial = logits(0), logits(1)
        value = loss(clean, adversarial, labels())
        assert value.shape == (E,)
        gradients = torch.autograd.grad(
            (value * torch.tensor([1.0, 2.0, 4.0])).sum(), [clean, adversarial], None, True, allow_unused=True
        )
        results.append((value, gradients))
    (value, gradients), (expected, expected_gradients) = results
    torch.testing.assert_close(value, expected)
    for found, wanted in zip(gradients, expected_gradients, strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found, wanted)


def test_a_term_reads_only_what_it_says_it_needs():
    both = {"clean": logits(0), "adversarial": logits(1)}
    for term in (CrossEntropy(images="clean"), CrossEntropy(images="adversarial"), Pairing(distance="kl")):
        term(Batch({name: value for name, value in both.items() if name in term.needs}, labels()))


def test_weights_ramp_linearly_and_stay():
    ramped, flat = Pairing(distance="kl", weight=4, ramp=0.5), Pairing(distance="kl", weight=4)
    assert [ramped.weight_at(p) for p in (0, 0.125, 0.25, 0.5, 0.9)] == [0, 1, 2, 4, 4]
    assert flat.weight_at(0) == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CrossEntropy(images="dirty"), "images must be one of clean, adversarial"),
        (lambda: CrossEntropy(images="clean", smoothing=1.0), "smoothing"),
        (lambda: Pairing(distance="cosine"), "distance must be one of kl, squared, nuclear"),
        (lambda: Pairing(distance="kl", weight=-1), "weight"),
        (lambda: Pairing(distance="kl", weight=float("nan")), "weight"),
        (lambda: Pairing(distance="kl", ramp=2), "ramp"),
        (lambda: GradientSign(start="far"), "crafting.start"),
        (lambda: GradientSign(step=0), "crafting.step"),
        (lambda: GradientSign(steps=0), "crafting.steps"),
        (lambda: GradientSign(objectives=[]), "crafting.objectives"),
        (lambda: GradientSign(objectives=["entropy"]), "crafting.objectives"),
        (lambda: Composed(attack=ATTACK, terms=[]), "defense.terms"),
        (lambda: Composed(attack=ATTACK, terms=["kl"]), "defense.terms"),
        (lambda: Composed(attack=ATTACK, terms=[Pairing(distance="kl")], crafting="fgsm"), "defense.crafting"),
        (lambda: recipe(average=1.0), "optim.average"),
        (lambda: recipe(average=-0.1), "optim.average"),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


def linear_net(*weights):
    """Exit k has the logits (w_k * x, 0): the gradient of the loss at label 1 has the sign of w_k."""
    heads = []
    for weight in weights:
        layer = nn.Linear(4, 2, bias=False)
        layer.weight = nn.Parameter(torch.stack([torch.tensor(weight), torch.zeros(4)]))
        heads.append(nn.Sequential(nn.Flatten(), layer))
    return MultiExitNet([nn.Identity() for _ in weights], heads).eval().requires_grad_(False)


MIDDLE = torch.full((6, 1, 2, 2), 0.5)
SIGN = torch.tensor([1.0, -1.0, 1.0, -1.0]).view(1, 1, 2, 2)


def draw(seed=3):
    return torch.rand(MIDDLE.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("start", ["uniform", "sign"])
@pytest.mark.parametrize("projected", [True, False])
def test_the_one_step_is_noise_and_a_step_along_the_sign(start, projected):
    net = linear_net([1.0, -2.0, 3.0, -1.0])
    craft = GradientSign(start=start, start_size=2.0, step=0.75, projected=projected)
    found = craft(net, MIDDLE, torch.ones(6, dtype=torch.long), Ball(EPS), torch.Generator().manual_seed(3))[
        "adversarial"
    ]
    noise = 2 * draw() - 1
    begin = 2 * EPS * (noise.sign() if start == "sign" else noise)
    moved = (begin.clamp(-EPS, EPS) if projected else begin) + 0.75 * EPS * SIGN
    torch.testing.assert_close(found, 0.5 + (moved.clamp(-EPS, EPS) if projected else moved))


def test_several_steps_are_those_of_pgd(tiny, batch):
    net, (x, y) = tiny().requires_grad_(False), batch(count=6)
    craft = GradientSign(start_size=1.0, step=0.5, steps=3)
    found = craft(net, x, y, Ball(EPS), torch.Generator().manual_seed(0))["adversarial"]
    noise = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1
    want = (x + EPS * noise).clamp(0, 1)
    for _ in range(3):
        want.requires_grad_(True)
        loss = nn.functional.cross_entropy(net(want).flatten(0, 1), y.repeat_interleave(net.exits))
        (grad,) = torch.autograd.grad(loss, want)
        want = (want.detach() + 0.5 * EPS * grad.sign()).clamp(x - EPS, x + EPS).clamp(0, 1)
    torch.testing.assert_close(found, want, atol=1e-6, rtol=0)


def test_objectives_alternate_by_batch(tiny, batch):
    net, (x, y) = tiny().requires_grad_(False), batch(count=6)
    alternating = GradientSign(objectives=["cross_entropy", "squared"])
    alone = {name: GradientSign(objectives=[name]) for name in alternating.objectives}

    def made(craft, step):
        return craft(net, x, y, Ball(EPS), torch.Generator().manual_seed(0), step=step)["adversarial"]

    first, second = made(alone["cross_entropy"], 0), made(alone["squared"], 0)
    assert not torch.equal(first, second)
    assert torch.equal(made(alternating, 4), first)
    assert torch.equal(made(alternating, 5), second)


def test_every_image_climbs_the_loss_of_one_exit_drawn_for_it(tiny, batch):
    net, (x, y) = tiny().requires_grad_(False), batch(count=12)
    craft = GradientSign(exits="random", start_size=0.5)
    found = craft(net, x, y, Ball(EPS), torch.Generator().manual_seed(5))["adversarial"]
    generator = torch.Generator().manual_seed(5)
    noise = 2 * torch.rand(x.shape, generator=generator) - 1
    exits = torch.randint(net.exits, y.shape, generator=generator)
    assert len(set(exits.tolist())) == net.exits
    for image, label, moved, change, chosen in zip(x, y, found, noise, exits, strict=True):
        start = (image + 0.5 * EPS * change).clamp(0, 1)[None].requires_grad_(True)
        (grad,) = torch.autograd.grad(nn.functional.cross_entropy(net(start)[:, chosen], label[None]), start)
        want = (start.detach() + 1.25 * EPS * grad.sign()).clamp(0, 1)[0]
        torch.testing.assert_close(moved, want.clamp(image - EPS, image + EPS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("objective", ["kl", "squared"])
def test_a_distance_to_the_clean_logits_is_climbed_beside_the_cross_entropy(objective, tiny, batch):
    net, (x, y) = tiny().requires_grad_(False), batch(count=6)
    craft = GradientSign(objectives=[objective], start_size=0.5, step=0.25)
    found = craft(net, x, y, Ball(EPS), torch.Generator().manual_seed(0))["adversarial"]
    noise = 2 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) - 1
    start = (x + 0.5 * EPS * noise).clamp(0, 1).requires_grad_(True)
    clean, moved = net(x), net(start)
    term = Pairing(distance=objective)
    loss = term(Batch({"clean": clean, "adversarial": moved}, y)).mean()
    loss = loss + nn.functional.cross_entropy(moved.flatten(0, 1), y.repeat_interleave(3))
    (grad,) = torch.autograd.grad(loss, start)
    torch.testing.assert_close(found, (start.detach() + 0.25 * EPS * grad.sign()).clamp(0, 1), atol=1e-6, rtol=0)


def paired(weight=2.0, **settings):
    terms = [CrossEntropy(images="clean"), Pairing(distance="kl", weight=weight, ramp=0.5)]
    return Composed(**{"attack": ATTACK, "terms": terms, "crafting": GradientSign(), **settings})


def test_the_loss_is_the_weighted_mean_over_exits_of_one_joint_batch(tiny, batch):
    net, (x, y) = tiny(), batch(count=6)
    defense = paired(exit_weights=[1, 0, 3])
    defense.begin(8)
    defense.load_state({"step": 2})  # halfway up the ramp
    x_adv = paired().made(net, x, y, torch.Generator().manual_seed(0))["adversarial"]
    joint = copy.deepcopy(net).train()(torch.cat([x, x_adv]))
    pair = Batch({"clean": joint[:6], "adversarial": joint[6:]}, y)
    losses = CrossEntropy(images="clean")(pair) + 1.0 * Pairing(distance="kl")(pair)
    loss, logs = defense.loss(copy.deepcopy(net).train(), x, y, torch.Generator().manual_seed(0))
    torch.testing.assert_close(loss, (losses[0] + 3 * losses[2]) / 4)
    assert {"loss", "clean_loss", "pairing_kl", "clean_accuracy", "robust_accuracy", "head_norm"} == set(logs)
    assert logs["head_norm"].tolist() == pytest.approx([head[3].weight.norm().item() for head in net.heads])
    assert defense.state() == {"step": 3}


def test_two_terms_of_one_kind_are_logged_together_and_other_images_apart(tiny, batch):
    net, (x, y) = tiny(), batch(count=6)

    def logged(*weights):
        terms = [CrossEntropy(images="clean"), *(Pairing(distance="squared", weight=weight) for weight in weights)]
        return paired(terms=terms).loss(copy.deepcopy(net).train(), x, y, torch.Generator().manual_seed(0))[1]

    torch.testing.assert_close(logged(1.0, 2.0)["pairing_squared"], 2 * logged(1.0)["pairing_squared"])
    assert Pairing(distance="squared", reference="carried").label == "pairing_squared_carried"


def test_nothing_is_crafted_for_terms_on_clean_images_only(tiny, batch):
    class Never(Average):
        def run(self, *words):
            raise AssertionError("crafted")

    net, (x, y) = tiny().train(), batch()
    defense = Composed(attack=Never(eps=EPS, step_size=EPS, steps=1), terms=[CrossEntropy(images="clean")])
    loss, logs = defense.loss(net, x, y, torch.Generator().manual_seed(0))
    assert "robust_accuracy" not in logs
    assert loss > 0


def test_the_attack_crafts_where_no_crafting_is_given(tiny, batch):
    net, (x, y) = tiny(), batch()
    defense = paired(crafting=None)
    found = defense.made(net, x, y, torch.Generator().manual_seed(4))["adversarial"]
    assert torch.equal(found, ATTACK(net, x, y, torch.Generator().manual_seed(4)))


def test_an_attack_of_its_own_crafts_beside_the_one_that_judges(tiny, batch):
    net, (x, y) = tiny(), batch()
    other = Average(eps=EPS, step_size=EPS / 10, steps=1)
    found = paired(crafting=other).made(net, x, y, torch.Generator().manual_seed(4))["adversarial"]
    assert torch.equal(found, other(net, x, y, torch.Generator().manual_seed(4)))
    assert not torch.equal(found, ATTACK(net, x, y, torch.Generator().manual_seed(4)))


@pytest.mark.parametrize("weights", [[0, 0, 0], [1, 1]])
def test_exit_weights_that_weigh_nothing_or_other_exits_are_refused(weights, tiny, batch):
    net, (x, y) = tiny().train(), batch()
    with pytest.raises(UserError, match=r"defense\.exit_weights"):
        paired(exit_weights=weights).loss(net, x, y, torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def digits():
    return Digits(name="digits", calibration=24, size=16).load()


def averaged_recipe():
    return recipe(average=0.5, decay_vectors=False)


SETTINGS = Settings(seed=3, evaluations=2, calibration_samples=8, augment="crop_flip")


def train(net, digits, store, **more):
    torch.manual_seed(5)
    defense = paired(engine=Engine())
    return fit(net, defense, digits.train, digits.calibration, averaged_recipe(), SETTINGS, store, **more)


@pytest.mark.parametrize(("residual", "stops"), [(False, (1, 3, 5, 7, 10)), (True, (3, 5))], ids=["plain", "residual"])
def test_an_averaged_composed_training_resumes_bit_for_bit(residual, stops, digits, tiny):
    # dropout draws where the statistics are measured, too; 5 and 10: while the held-out images are judged
    net, whole = tiny(shape=(1, 16, 16), classes=10, dropout=0.3), Memory()
    if residual:
        torch.manual_seed(3)
        net = PaperExits()(resnet((1, 16, 16), 10, depth=14, width=0.125))
    expected = train(copy.deepcopy(net), digits, whole)
    for stop_at in stops:
        first = Memory()
        with pytest.raises(Interrupted):
            train(copy.deepcopy(net), digits, first, stop=StopAfter(stop_at))
        second = Memory(first.state)
        second.weights = first.weights
        assert train(copy.deepcopy(net), digits, second) == expected
        assert_same_tensors(second.weights["last"], whole.weights["last"])


TWO = [Average(eps=EPS, step_size=EPS / 2, steps=1), Average(eps=EPS, step_size=EPS, steps=2)]
TRAINED_ON = {
    "standard": (Standard, 1),
    "adversarial": (partial(Adversarial, attack=ATTACK), 2),
    "fast": (partial(Fast, attack=ATTACK, guard_every=None), 2),
    "min_max": (partial(MinMaxAttacks, attack=ATTACK, attacks=TWO, attack_weights=MinMaxWeights()), 3),
    "boosted": (partial(Boosted, attack=ATTACK), 1),
    "boosted on both": (partial(Boosted, attack=ATTACK, adversarial_weight=0.5), 2),
    "boosted on clean": (partial(Boosted, attack=ATTACK, adversarial_weight=0.0), 1),
}


@pytest.mark.parametrize("case", TRAINED_ON)
def test_statistics_of_averaged_weights_are_measured_on_what_is_trained_on(case, tiny, batch):
    make, parts = TRAINED_ON[case]
    net, (x, y) = tiny().train(), batch(count=6)
    measured = make().images(copy.deepcopy(net).eval(), x, y, torch.Generator().manual_seed(4))
    defense, seen = make(), []
    net.register_forward_pre_hook(lambda module, images: seen.append(images[0].detach()) if module.training else None)
    defense.loss(net, x, y, torch.Generator().manual_seed(4))
    trained_on = torch.cat(seen)
    assert len(trained_on) == parts * len(x)
    assert torch.equal(measured, trained_on)


def test_what_is_kept_is_the_average_with_statistics_of_its_own(digits, tiny):
    net = tiny(shape=(1, 16, 16), classes=10)
    store = Memory()
    train(net, digits, store)
    kept, raw = store.weights["last"], net.state_dict()
    norm = next(name for name in kept if name.endswith("running_mean"))
    weight = next(name for name in kept if name.endswith("0.weight"))
    assert not torch.equal(kept[norm], raw[norm])
    assert not torch.equal(kept[weight], raw[weight])
    assert int(kept[norm.replace("running_mean", "num_batches_tracked")]) == STATISTICS_BATCHES


def test_the_average_follows_its_formula_and_measures_its_statistics(tiny):
    net = tiny()
    average = WeightAverage(net, 0.8)
    name = "stages.0.0.weight"
    expected = None
    for step in range(30):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1 * (step + 1))
        average.update(net)
        weight = net.state_dict()[name].double()
        decay = min(0.8, (1 + step) / (10 + step))
        expected = weight if expected is None else decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average.net.state_dict()[name].double(), expected, rtol=1e-5, atol=1e-5)

    batches = [torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    average.refresh(batches, lambda: torch.autocast("cpu", enabled=False))
    convolution, norm = average.net.stages[0][0], average.net.stages[0][1]
    with torch.no_grad():
        means = np.mean([convolution(batch).mean(dim=(0, 2, 3)).numpy() for batch in batches], axis=0)
    np.testing.assert_allclose(norm.running_mean.numpy(), means, rtol=1e-4)


def test_an_average_beside_a_compression_is_refused(digits, paper_net):
    from rdi.compression import L0

    with pytest.raises(UserError, match=r"optim\.average=null"):
        fit(
            paper_net("smallcnn", (1, 16, 16)),
            paired(),
            digits.train,
            digits.calibration,
            averaged_recipe(),
            SETTINGS,
            Memory(),
            compression=L0(ratio=0.5),
        )


def test_vectors_go_without_weight_decay_where_asked(tiny):
    net = tiny()
    groups = averaged_recipe().build_optimizer(net.parameters()).param_groups
    assert [group["weight_decay"] for group in groups] == [5e-4, 0]
    assert {parameter.ndim for parameter in groups[0]["params"]} == {2, 4}
    assert {parameter.ndim for parameter in groups[1]["params"]} == {1}
    together = recipe().build_optimizer(net.parameters()).param_groups
    assert [group["weight_decay"] for group in together] == [5e-4]


def test_exits_that_withstand_only_the_one_step_are_said(said, digits, paper_net):
    warn_of_overfitting(
        {"clean_accuracy": [0.9, 0.9], "one_step_accuracy": [0.6, 0.7], "robust_accuracy": [0.5, 0.1]}, 7
    )
    assert said == [
        "step 7: exits 1 withstand one step on 70 % of the held-out images and the attack on 10 %: catastrophic "
        "overfitting. Train with defense=fast, whose guard mends it, or a smaller defense.crafting.step"
    ]
    warn_of_overfitting({"clean_accuracy": [0.9], "robust_accuracy": [0.0]}, 8)
    assert len(said) == 1
    store = Memory()
    train(paper_net("smallcnn", (1, 16, 16)), digits, store)
    assert len(store.lines[-1][1]["calibration_one_step_accuracy"]) == 3
