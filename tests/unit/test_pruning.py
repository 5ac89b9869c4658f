"""Pruning layer by layer, the cubic schedule and the adaptive penalty, each against plain loops; blind images too."""

import copy
import math

import pytest
import torch
from torch import nn

from helpers.training import ATTACK
from rdi.attacks.norms import Ball
from rdi.backbones import smallcnn
from rdi.compression import BAP, Reweighted, layer_weights
from rdi.compression.pruning import mask
from rdi.defenses import Blind, Composed, CrossEntropy
from rdi.defenses.blind import cut
from rdi.errors import UserError
from rdi.exits import MultiExitNet, NoExits

LR, STEPS = 0.1, 12


def small():
    """A convolution and a linear layer on images of 4 x 4, one exit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        stage = nn.Sequential(nn.Conv2d(1, 3, 2), nn.Tanh())
        return MultiExitNet([stage], [nn.Sequential(nn.Flatten(), nn.Linear(27, 4))]).double()


def data():
    chance = torch.Generator().manual_seed(2)
    return torch.rand(16, 1, 4, 4, generator=chance, dtype=torch.float64), torch.randint(4, (16,), generator=chance)


def groups(weight, structure):
    """Index lists of the groups of a weight, flattened."""
    rows, columns = weight.flatten(1).shape
    return {
        "weights": [[i] for i in range(rows * columns)],
        "filters": [[r * columns + c for c in range(columns)] for r in range(rows)],
        "columns": [[r * columns + c for r in range(rows)] for c in range(columns)],
    }[structure]


def norm(flat, group):
    return math.sqrt(sum(float(flat[i]) ** 2 for i in group))


def stays(weight, structure, ratio):
    """Flat positions of the groups of largest norm, max(1, floor(ratio * groups)) of them."""
    flat, listed = weight.detach().flatten(), groups(weight, structure)
    listed.sort(key=lambda group: -norm(flat, group))
    return {i for group in listed[: max(1, math.floor(ratio * len(listed) + 1e-9))] for i in group}


def keep_only(weight, positions):
    flat = weight.data.view(-1)
    for i in range(len(flat)):
        if i not in positions:
            flat[i] = 0


def trained(compression):
    """The network after every step of plain gradient descent under `compression`."""
    net, (x, y) = small(), data()
    compression.begin(STEPS)
    optimizer = torch.optim.SGD(compression.prepare(net), lr=LR)
    for _ in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(net(x)[:, 0], y).backward()
        compression.before_step()
        optimizer.step()
        compression.after_step()
        yield net


def gradients(net):
    x, y = data()
    loss = nn.functional.cross_entropy(net(x)[:, 0], y)
    return torch.autograd.grad(loss, list(net.parameters()))


def assert_like(net, other, step):
    for found, wanted in zip(net.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, msg=lambda text: f"step {step}: {text}")


@pytest.mark.parametrize("structure", ["weights", "filters", "columns"])
@pytest.mark.parametrize("ratio", [0.01, 0.4, 1.0])
def test_of_every_layer_the_groups_of_largest_norm_stay(structure, ratio):
    for weight in (small().stages[0][0].weight, torch.arange(12.0).view(3, 4)):
        found = mask(weight, structure, ratio)
        assert set(found.flatten().nonzero()[:, 0].tolist()) == stays(weight, structure, ratio)


def test_gradual_pruning_is_the_cubic_schedule_of_a_plain_loop():
    twin, pruned = small(), {}
    for step, net in enumerate(trained(BAP(ratio=0.2, until=0.5, interval=2)), 1):
        for parameter, gradient in zip(twin.parameters(), gradients(twin), strict=True):
            parameter.data -= LR * gradient
        for name, weight in layer_weights(twin).items():
            keep_only(weight, pruned.get(name, range(weight.numel())))
            if step in (2, 4, 6):  # 6 of 12: until
                share = 1 - 0.8 * (1 - (1 - step / 6) ** 3)
                pruned[name] = stays(weight, "weights", share)
                keep_only(weight, pruned[name])
        assert_like(net, twin, step)
    left = {name: int(weight.count_nonzero()) for name, weight in layer_weights(net).items()}
    assert list(left.values()) == [int(0.2 * 12 + 1e-9), int(0.2 * 108 + 1e-9)]


@pytest.mark.parametrize("structure", ["weights", "filters", "columns"])
def test_the_adaptive_penalty_the_hard_pruning_and_the_retraining_are_those_of_a_plain_loop(structure):
    compression = Reweighted(ratio=0.5, structure=structure, penalty=0.003, milestones=[0.25, 0.5], prune_at=0.75)
    twin, factors, pruned = small(), {}, {}
    for step, net in enumerate(trained(compression)):
        named = {
            name: weight for name, weight in layer_weights(twin).items() if structure != "filters" or weight.ndim == 4
        }
        if step in (0, 3, 6):
            factors = {
                name: [1 / (norm(weight.detach().flatten(), group) + 0.001) for group in groups(weight, structure)]
                for name, weight in named.items()
            }
        extra = {}
        for name, weight in named.items():
            flat, extra[name] = weight.detach().flatten(), torch.zeros(weight.numel(), dtype=torch.float64)
            for factor, group in zip(factors[name], groups(weight, structure), strict=True):
                size = norm(flat, group)
                for i in group:
                    extra[name][i] = 0.003 * factor * float(flat[i]) / size if size and step < 9 else 0.0
        found = dict(zip([name for name, _ in twin.named_parameters()], gradients(twin), strict=True))
        for name, parameter in twin.named_parameters():
            layer = name.removesuffix(".weight")
            penalty = extra[layer].view(parameter.shape) if layer in extra else 0
            parameter.data -= LR * (found[name] + penalty)
        for name, weight in named.items():
            if step == 8:  # the ninth of twelve steps ends three quarters
                pruned[name] = stays(weight, structure, 0.5)
            keep_only(weight, pruned.get(name, range(weight.numel())))
        assert_like(net, twin, step)
        if step == 7:
            assert compression.logs()["pruned_norm"] > 0
    assert compression.logs()["pruned_norm"] == pytest.approx(0)
    assert int(sum(weight.count_nonzero() for weight in layer_weights(net).values())) == compression.budget(net)


@pytest.mark.parametrize("structure", ["weights", "filters", "columns"])
def test_what_is_deployed_is_pruned_from_the_first_step_on_and_goes_away_again(structure):
    net = NoExits()(smallcnn((1, 28, 28), 10))
    compression = Reweighted(ratio=0.25, structure=structure)
    compression.prepare(net)
    before = {name: weight.detach().clone() for name, weight in layer_weights(net).items()}
    with compression.deployed():
        left = sum(int((weight != 0).sum()) for weight in layer_weights(net).values())
        assert left <= compression.budget(net) < sum(weight.numel() for weight in before.values())
        same = {name for name, weight in layer_weights(net).items() if torch.equal(weight, before[name])}
        assert {weight.ndim for name, weight in before.items() if name in same and weight.any()} == (
            {2} if structure == "filters" else set()
        )
    assert all(torch.equal(weight, before[name]) for name, weight in layer_weights(net).items())


def test_the_published_factors_are_the_default():
    factors = [Reweighted(ratio=0.1, structure=one).penalty for one in ("weights", "filters", "columns")]
    assert factors == [1e-8, 1.6e-3, 1e-4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: BAP(ratio=0), "compression.ratio"),
        (lambda: BAP(ratio=0.1, until=0), "compression.until"),
        (lambda: BAP(ratio=0.1, interval=0), "compression.interval"),
        (lambda: Reweighted(ratio=0.1, structure="rows"), "compression.structure"),
        (lambda: Reweighted(ratio=0.1, penalty=-1), "compression.penalty"),
        (lambda: Reweighted(ratio=0.1, milestones=[0.3, 0.2]), "compression.milestones must ascend"),
        (lambda: Reweighted(ratio=0.1, milestones=[0.6]), "below prune_at=0.5"),
        (lambda: Blind(steps=0), "crafting.steps"),
        (lambda: Blind(scale=0), "crafting.scale"),
    ],
)
def test_options_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


def shortest_by_hand(net, image, steps, overshoot):
    """DeepFool on one image, class by class."""
    moved, first = torch.zeros_like(image), None
    for _ in range(steps):
        point = (image + (1 + overshoot) * moved).clamp(0, 1).requires_grad_(True)
        logits = net(point[None])[0].mean(dim=0)
        if first is None:
            first = int(logits.argmax())
        if int(logits.argmax()) != first:
            break
        slopes = [torch.autograd.grad(one, point, retain_graph=True)[0] for one in logits]
        best = None
        for c in range(len(logits)):
            if c != first:
                slope, gap = slopes[c] - slopes[first], abs(float((logits[c] - logits[first]).detach()))
                distance = gap / float(slope.norm())
                if best is None or distance < best[0]:
                    best = distance, gap / float(slope.norm()) ** 2 * slope
        moved = moved + best[1]
    return (image + (1 + overshoot) * moved).clamp(0, 1) - image


def test_blind_images_are_deepfool_cut_and_scaled(tiny, batch):
    net, (x, _) = tiny().double().requires_grad_(False), batch(count=5)
    x = x.double()
    expected = torch.stack([shortest_by_hand(net, image, 4, 0.02) for image in x])
    assert expected.abs().amax(dim=(1, 2, 3)).min() > 0
    lengths = [math.sqrt(float(one.square().mean())) for one in expected]
    mean = sum(lengths) / len(lengths)
    assert min(lengths) < mean < max(lengths)
    factors = torch.tensor([min(1.0, mean / length) for length in lengths], dtype=torch.float64)
    crafting = Blind(steps=4, scale=0.9)
    # the network answers in float64, logits are taken as float32
    torch.testing.assert_close(crafting.shortest(net, x), expected, atol=1e-5, rtol=1e-4)
    by_hand = x + 0.9 * factors[:, None, None, None] * expected
    found = crafting(net, x, torch.zeros(len(x)), Ball(0.1), torch.Generator())["adversarial"]
    torch.testing.assert_close(found, by_hand, atol=1e-5, rtol=1e-4)
    assert bool((net(x + expected).mean(dim=1).argmax(dim=1) != net(x).mean(dim=1).argmax(dim=1)).any())


def test_perturbations_of_one_length_are_left_as_they_are():
    same = torch.full((3, 1, 2, 2), 0.1) * torch.tensor([1.0, -1.0, 1.0])[:, None, None, None]
    torch.testing.assert_close(cut(same), same)
    assert not cut(torch.zeros(2, 1, 2, 2)).any()


def test_the_loss_is_half_clean_and_half_blind(tiny, batch):
    net, (x, y) = tiny(), batch(count=5)
    terms = [
        CrossEntropy(images="clean", smoothing=0.1, weight=0.5),
        CrossEntropy(images="adversarial", smoothing=0.1, weight=0.5),
    ]
    defense = Composed(attack=ATTACK, terms=terms, crafting=Blind())
    loss, _ = defense.loss(net, x, y, torch.Generator())
    x_adv = Blind()(copy.deepcopy(net).requires_grad_(False), x, y, 0.1, torch.Generator())["adversarial"]
    parts = [
        nn.functional.cross_entropy(net(images)[:, k], y, label_smoothing=0.1)
        for images in (x, x_adv)
        for k in range(3)
    ]
    torch.testing.assert_close(loss, sum(parts) / 6)
    assert defense.one_step(net, x, y, torch.Generator()) is None, "no single step to compare the attack with"
