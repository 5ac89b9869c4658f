"""Budgets hold exactly, nothing is lost in the re-parametrisation, and published sizes come out."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn

from helpers.training import ATTACK, CPU, SMALL, Memory, StopAfter, assert_same_tensors, recipe
from rdi import macs
from rdi.backbones import mobilenetv2, resnet, smallcnn
from rdi.compression import (
    ATMC,
    BAP,
    L0,
    Channels,
    Reweighted,
    chains,
    keep_channels,
    layer_weights,
    measure,
    project,
    quantise,
)
from rdi.compression.atmc import Factors
from rdi.compression.size import factor_counts, position_bits, value_bits
from rdi.data import Digits
from rdi.defenses import Adversarial, Standard
from rdi.errors import Interrupted, UserError
from rdi.exits import NoExits
from rdi.report.reproduction import MFLOP
from rdi.training import fit

MNIST, CIFAR, SMALLEST = (1, 28, 28), (3, 32, 32), (1, 16, 16)

# models_baseline.py of the official code: middle widths per block, MFlops by the published rule, parameters
OFFICIAL = {
    "r004": ([15, 16, 16, 13, 16, 14, 32, 32, 31, 31, 27, 25, 64, 63, 59, 34, 20, 51], 69.23, 447_527),
    "r005": ([15, 12, 13, 13, 15, 10, 32, 28, 27, 18, 13, 17, 62, 62, 42, 32, 25, 50], 58.57, 398_924),
    "r006": ([16, 15, 10, 10, 11, 9, 30, 25, 15, 10, 13, 12, 56, 53, 36, 33, 13, 51], 50.38, 345_728),
    "r007": ([13, 12, 12, 13, 10, 7, 32, 25, 21, 17, 12, 13, 61, 53, 31, 21, 18, 32], 49.38, 321_491),
    "r008": ([12, 13, 9, 7, 12, 6, 31, 23, 20, 12, 10, 7, 56, 43, 26, 10, 19, 29], 42.54, 272_789),
}


@pytest.fixture(scope="module")
def digits():
    return Digits(name="digits", calibration=24, size=16).load()


def plain(backbone, shape, seed=0, **options):
    """A network without early exits, random BatchNorm included, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = NoExits()(backbone(shape, 10, **options))
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.1)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=module.in_features**-0.5)
    return net.eval()


def stored(compression):
    """Copies of what would be stored now."""
    with compression.deployed() as parts:
        return {name: part.clone() for name, part in parts.items()}


def nonzeros(tensors):
    return sum(int(tensor.count_nonzero()) for tensor in tensors)


@pytest.mark.parametrize("budget", [1, 7, 13, 30])
def test_the_projection_keeps_exactly_the_largest_entries(budget):
    chance = torch.Generator().manual_seed(0)
    tensors = [torch.randn(4, 3, generator=chance), torch.randn(2, 3, 3, 1, generator=chance)]
    tensors[1] = tensors[1].to(memory_format=torch.channels_last)
    before = [tensor.clone() for tensor in tensors]
    project(tensors, budget)
    assert nonzeros(tensors) == budget
    limit = torch.cat([tensor.abs().flatten() for tensor in before]).sort(descending=True).values[budget - 1]
    for old, new in zip(before, tensors, strict=True):
        assert torch.equal(new, torch.where(old.abs() >= limit, old, 0))


def test_the_projection_keeps_no_more_where_entries_are_equal():
    tensors = [torch.ones(5), -torch.ones(5)]
    project(tensors, 3)
    assert nonzeros(tensors) == 3


def test_the_weights_that_are_counted_are_those_of_the_paper():
    counts = {
        name: sum(weight.numel() for weight in layer_weights(net).values())
        for name, net in (("resnet38", plain(resnet, CIFAR)), ("smallcnn", plain(smallcnn, MNIST)))
    }
    assert counts["resnet38"] == 561_200
    assert L0(ratio=0.1).budget(plain(resnet, CIFAR)) == 56_120
    # 32*9 + 32*32*9 + 32*64*9 + 64*64*9 + 1024*200 + 200*200 + 200*10
    assert counts["smallcnn"] == 311_600


def test_a_budget_of_nothing_is_refused(tiny):
    with pytest.raises(UserError, match=r"compression\.ratio=0\.0001 leaves none of"):
        ATMC(ratio=0.0001).budget(tiny())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: L0(ratio=0), r"compression\.ratio must be in \(0, 1\], got 0"),
        (lambda: ATMC(ratio=1.5), r"compression\.ratio must be in \(0, 1\]"),
        (lambda: ATMC(ratio=0.1, bits=0), r"compression\.bits must be in \[1, 32\], got 0"),
        (lambda: ATMC(ratio=0.1, bits=17), r"compression\.bits must be 1 to 16, or 32 or null"),
        (lambda: ATMC(ratio=0.1, bits=8, quant_interval=0), r"compression\.quant_interval must be at least 1"),
        (lambda: Channels(), r"give one of compression\.ratio and compression\.widths"),
        (lambda: Channels(ratio=0.5, widths=[3], start="x"), r"give one of compression\.ratio and compression\.widths"),
        (lambda: Channels(ratio=0.5), r"give start=RUN"),
        (lambda: Channels(ratio=0.5, start="x", of="size"), r"compression\.of must be one of macs, weights"),
        (lambda: Channels(widths=[0]), r"compression\.widths must be at least 1"),
        (lambda: Channels(widths=8), r"compression\.widths must be a list of numbers"),
        (lambda: Channels(ratio=0.5, start=3), r"start must name a run folder"),
    ],
)
def test_options_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_32_bits_are_no_quantisation():
    assert ATMC(ratio=0.1, bits=32).bits is ATMC(ratio=0.1).bits is None
    assert ATMC(ratio=0.1, bits=8).bits == 8


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (20, 1, 3, 3), (5, 7), (7, 5), (6, 6)])
def test_factors_begin_as_the_weight_they_replace(shape):
    weight = nn.Parameter(torch.randn(shape, generator=torch.Generator().manual_seed(1)))
    before, factors = weight.detach().clone(), Factors.of(weight)
    rows, columns = shape[0], math.prod(shape[1:])
    r = min(rows, columns)
    assert (factors.a.shape, factors.b.shape, factors.c.shape) == ((r, columns), (rows, r), (rows, columns))
    assert torch.equal(factors.effective(factors.a, factors.b, factors.c).view(shape), before)


@pytest.mark.parametrize("shape", [(4, 2, 3, 3), (20, 1, 3, 3), (6, 6)])
def test_gradients_reach_the_factors_by_the_chain_rule(shape):
    chance = torch.Generator().manual_seed(2)
    weight = nn.Parameter(torch.randn(shape, generator=chance))
    factors = Factors.of(weight)
    with torch.no_grad():
        for factor in (factors.a, factors.b, factors.c):
            factor.copy_(torch.randn(factor.shape, generator=chance))
    weight.grad = torch.randn(shape, generator=chance)
    g = weight.grad.flatten(1)
    factors.pull_back()
    tall = len(factors.a) == len(weight)
    torch.testing.assert_close(factors.c.grad, g)
    torch.testing.assert_close(factors.a.grad, factors.b.detach().T @ g + (g if tall else 0))
    torch.testing.assert_close(factors.b.grad, g @ factors.a.detach().T + (0 if tall else g))
    assert weight.grad is None, "the optimiser does not hold it, so nobody else would clear it"


def test_a_network_in_factors_is_the_same_function(paper_net, batch):
    net = paper_net("smallcnn", MNIST)
    x, _ = batch(shape=MNIST)
    with torch.no_grad():
        before = net(x)
        compression = ATMC(ratio=1)
        trained = compression.prepare(net)
        compression.after_step()  # nothing was trained; the budget is all dense weights, as many as are not zero
        torch.testing.assert_close(net(x), before)
    # nine layers of the trunk and the heads, three factors each, and everybody's biases
    layers = len(layer_weights(net))
    assert len(trained) == 3 * layers + sum(name.endswith("bias") for name, _ in net.named_parameters())


@pytest.mark.parametrize("bits", [1, 3, 6])
def test_quantised_tensors_have_few_values_and_everything_is_nearest(bits):
    tensor = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    tensor[::3] = 0
    found = quantise(tensor, bits)
    values = found[found != 0].unique()
    assert 0 < len(values) <= 2**bits
    assert (found[::3] == 0).all()
    centres = torch.cat([values, torch.zeros(1)])
    assert torch.equal((tensor - found).abs(), (tensor[..., None] - centres).abs().min(dim=-1).values)


def test_quantisation_beats_an_even_grid_and_finds_clusters_that_are_there():
    chance = torch.Generator().manual_seed(4)
    tensor = torch.randn(3000, generator=chance) ** 3
    grid = torch.linspace(float(tensor.min()), float(tensor.max()), 16)
    even = (tensor[:, None] - grid).abs().min(dim=1).values.square().sum()
    assert (quantise(tensor, 4) - tensor).square().sum() < even / 2
    clusters = torch.tensor([-2.0, -1.0, 1.0, 3.0])
    drawn = clusters[torch.randint(4, (400,), generator=chance)] + 0.01 * torch.randn(400, generator=chance)
    torch.testing.assert_close(quantise(drawn, 2).unique(), clusters, atol=5e-3, rtol=0)


def test_tensors_of_few_nonzeros_are_not_quantised():
    tensor = torch.tensor([0.0, 0.1, 0.25, 0.0, -0.7])
    assert torch.equal(quantise(tensor, 2), tensor)


def regression(compression, steps, lr=0.05):
    """Full-batch training of two linear layers under `compression`; yields the loss after every step."""
    chance = torch.Generator().manual_seed(5)
    x, y = torch.randn(64, 6, generator=chance), torch.randn(64, 3, generator=chance)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(compression.prepare(net), lr=lr, momentum=0.9)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = (net(x) - y).square().mean()
        loss.backward()
        compression.before_step()
        optimizer.step()
        compression.after_step()
        yield float(loss.detach())


def test_admm_brings_the_weights_and_their_quantised_copy_together():
    # rho above the curvature of the loss, and steps enough between two updates: below, the two chase one another
    compression = ATMC(ratio=0.6, bits=2, quant_interval=20, rho=1)
    gaps, losses = [], []
    for loss in regression(compression, 300):
        losses.append(loss)
        gaps.append(compression.logs().get("quantisation_gap"))
    assert gaps[0] is None, "before the first update there is no copy"
    assert gaps[-1] < 0.2 * gaps[19]
    assert losses[-1] < 0.9 * losses[0]


def test_quantisation_begins_when_it_is_told_to():
    compression = ATMC(ratio=0.5, bits=2, quant_interval=3, quantise_after=4)
    begun = [bool(compression.logs()) for _ in regression(compression, 8)]
    assert begun == [False] * 6 + [True] * 2


@pytest.mark.parametrize("begun", [True, False], ids=["ADMM", "before ADMM"])
def test_what_is_deployed_keeps_both_limits_and_goes_away_again(begun):
    compression = ATMC(ratio=0.5, bits=2, quant_interval=2, quantise_after=0 if begun else 99)
    for _ in regression(compression, 9):
        pass
    weights = [layer.weight for layer in compression._layers.values()]
    before = [weight.detach().clone() for weight in weights]
    with compression.deployed() as parts:
        assert 0 < nonzeros(parts.values()) <= int(0.5 * (6 * 12 + 12 * 3))
        assert all(len(part[part != 0].unique()) <= 4 for part in parts.values())
        for name, layer in compression._layers.items():
            expected = layer.effective(*(parts[f"{name}.{letter}"] for letter in "ABC"))
            assert torch.equal(layer.weight.detach(), expected)
        assert any(not torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))
    assert all(torch.equal(weight, old) for weight, old in zip(weights, before, strict=True))


CASES = {
    "l0": partial(L0, ratio=0.2),
    "atmc": partial(ATMC, ratio=0.2),
    "bap": partial(BAP, ratio=0.2, until=0.7, interval=2),
    "reweighted": partial(Reweighted, ratio=0.4, structure="filters", penalty=0.01, milestones=[0.5], prune_at=0.6),
    "atmc_3_bits": partial(ATMC, ratio=0.2, bits=3, quant_interval=2, quantise_after=1),
}


UNBROKEN = {}
"""Case -> what a compression without interruption comes to: the same for every place where another one stops."""


@pytest.mark.parametrize(
    ("case", "stop_at"),
    # an evaluation saves at 3; the copies are made after 3 and 5
    [*((case, stop_at) for stop_at in (3, 4, 5) for case in CASES), ("residual", 4)],
)
def test_an_interrupted_compression_resumes_bit_for_bit(case, stop_at, digits, tiny):
    make, defense = CASES.get(case, CASES["atmc"]), partial(Adversarial, attack=ATTACK)

    def network(seed):
        if case == "residual":
            return plain(resnet, SMALLEST, seed=seed, depth=14, width=0.125).train()
        return tiny(shape=SMALLEST, classes=10, seed=seed)

    net = network(0)
    arguments = (digits.train, digits.calibration, recipe(), SMALL)
    if case not in UNBROKEN:
        UNBROKEN[case] = Memory()
        torch.manual_seed(5)
        fit(copy.deepcopy(net), defense(), *arguments, UNBROKEN[case], compression=make())
    whole, first = UNBROKEN[case], Memory()
    torch.manual_seed(5)
    with pytest.raises(Interrupted):
        fit(copy.deepcopy(net), defense(), *arguments, first, compression=make(), stop=StopAfter(stop_at))
    torch.manual_seed(99)
    second = Memory(first.state)
    resumed = network(8)
    compression = make()
    fit(resumed, defense(), *arguments, second, compression=compression)
    assert_same_tensors(second.weights["last"], whole.weights["last"])
    saved = {**first.weights, **second.weights}
    assert_same_tensors(saved["best"], whole.weights["best"])
    lines = {step: line for step, line in [*first.lines, *second.lines]}
    assert [{**line, "seconds": 0} for line in lines.values()] == [{**line, "seconds": 0} for _, line in whole.lines]
    assert nonzeros(stored(compression).values() or layer_weights(resumed).values()) <= compression.budget(net)


def test_a_trained_l0_network_has_exactly_its_budget_and_the_saved_one_too(digits, paper_net):
    net, store, compression = paper_net("smallcnn", SMALLEST), Memory(), L0(ratio=0.05)
    budget = compression.budget(net)
    fit(net, Standard(), digits.train, digits.calibration, recipe(3), SMALL, store, compression=compression)
    saved = [store.weights["last"][f"{name}.weight"] for name in layer_weights(net)]
    assert nonzeros(saved) == nonzeros(layer_weights(net).values()) == budget


def test_the_state_of_another_compression_is_refused(digits, tiny):
    store = Memory()
    settings = (digits.train, digits.calibration, recipe(4), SMALL)
    net = tiny(shape=SMALLEST, classes=10)
    with pytest.raises(Interrupted):
        fit(net, Standard(), *settings, store, compression=ATMC(ratio=0.5), stop=StopAfter(3))
    state = store.load_state(CPU)
    with pytest.raises(ValueError, match="has no state"):
        L0(ratio=0.5).load_state(state["compression"])
    other = ATMC(ratio=0.5)
    other.prepare(tiny(exits=2))
    with pytest.raises(ValueError, match="of another network"):
        other.load_state(state["compression"])
    with pytest.raises(UserError, match="of another training"):
        fit(tiny(shape=SMALLEST, classes=10), Standard(), *settings, store, compression=L0(ratio=0.5))


@pytest.mark.parametrize("name", OFFICIAL)
def test_published_widths_have_the_published_cost_and_parameters(name):
    widths, mflops, parameters = OFFICIAL[name]
    net = plain(resnet, CIFAR, depth=38)
    assert macs.count(net, CIFAR).macs_paper[-1] / MFLOP == pytest.approx(79.42, abs=0.005)
    left = Channels(widths=widths).shrink(net, CIFAR)
    assert list(left.values()) == widths
    costs = macs.count(net, CIFAR)
    assert costs.macs_paper[-1] / MFLOP == pytest.approx(mflops, abs=0.005)
    # the published networks scale every middle channel once more behind its BatchNorm, which has a scale already
    assert sum(p.numel() for p in net.parameters()) + sum(widths) == parameters
    with torch.no_grad():
        assert net(torch.rand(1, *CIFAR)).shape == (1, 1, 10)


NETWORKS = {
    "smallcnn": (smallcnn, MNIST),
    "resnet14": (partial(resnet, depth=14), CIFAR),
    "mobile": (mobilenetv2, CIFAR),
}


@pytest.mark.parametrize(("name", "criterion"), [("smallcnn", "l1"), ("resnet14", "bn"), ("mobile", "bn")])
def test_channels_that_do_nothing_go_first_and_are_not_missed(name, criterion):
    backbone, shape = NETWORKS[name]
    net = plain(backbone, shape)
    found = chains(net)
    chance = torch.Generator().manual_seed(7)
    dead = {}
    with torch.no_grad():
        for chain in found:
            width = len(net.get_parameter(f"{chain.producer}.weight"))
            dead[chain.producer] = torch.randperm(width, generator=chance)[: width // 4]
            for part in (chain.producer, *chain.followers):
                for parameter in net.get_submodule(part).parameters(recurse=False):
                    if part == chain.producer or parameter.dim() == 1:
                        parameter[dead[chain.producer]] = 0
    x = torch.rand(2, *shape, generator=chance)
    with torch.no_grad():
        before = net(x)
        widths = [len(net.get_parameter(f"{chain.producer}.weight")) * 3 // 4 for chain in found]
        Channels(widths=widths, criterion=criterion).shrink(net, shape)
        torch.testing.assert_close(net(x), before, rtol=1e-4, atol=1e-4)
    assert [len(net.get_parameter(f"{chain.producer}.weight")) for chain in found] == widths


def test_only_widths_that_one_layer_reads_are_found(paper_net):
    names = [chain.producer for chain in chains(plain(resnet, CIFAR, depth=14))]
    assert names == [f"stages.0.{block}.conv1" for block in range(1, 7)]
    # with exits after convolutions 1 and 3, these are read twice
    trunk = [chain.producer for chain in chains(paper_net("smallcnn", MNIST)) if chain.producer.startswith("stages")]
    assert trunk == ["stages.1.0.0", "stages.2.0.0"]


@pytest.mark.parametrize(("of", "ratio"), [("macs", 0.6), ("weights", 0.3)])
def test_a_ratio_is_met_as_closely_as_one_channel_allows(of, ratio):
    from rdi.compression.channels import COSTS

    net = plain(resnet, CIFAR, depth=14)
    dense = COSTS[of](net, CIFAR)
    Channels(ratio=ratio, of=of, start="runs/dense").shrink(net, CIFAR)
    left = COSTS[of](net, CIFAR) / dense
    assert ratio - 0.02 < left <= ratio


def test_a_ratio_out_of_reach_says_what_is_left():
    net = plain(resnet, CIFAR, depth=14)
    with pytest.raises(UserError, match=r"out of reach.*of its macs"):
        Channels(ratio=0.001, start="runs/dense").shrink(net, CIFAR)


def test_widths_of_another_network_are_refused():
    net = plain(resnet, CIFAR, depth=14)
    with pytest.raises(UserError, match=r"compression\.widths must list 6 numbers"):
        Channels(widths=[3, 4]).shrink(net, CIFAR)
    with pytest.raises(UserError, match="at most"):
        Channels(widths=[17] * 6).shrink(net, CIFAR)
    with pytest.raises(UserError, match="needs a BatchNorm"):
        Channels(widths=[1] * 6, criterion="bn").shrink(plain(smallcnn, MNIST), MNIST)
    with pytest.raises(UserError, match="cannot be narrowed"):
        keep_channels(net, {"stages.0.1.conv2": torch.arange(3)})


def test_zeros_save_multiply_adds_by_the_published_rule_only():
    net = plain(smallcnn, MNIST)
    dense = macs.count(net, MNIST)
    assert macs.count(net, MNIST, sparse=True) == dense
    with torch.no_grad():
        net.stages[0][0][0].weight[:8] = 0  # 8 filters of 9 weights on 26x26 pixels
        net.stages[0][1][0].weight[0, :3] = 0  # 27 weights on 24x24 pixels
    sparse = macs.count(net, MNIST, sparse=True)
    assert dense.macs_paper[-1] - sparse.macs_paper[-1] == 8 * 9 * 26 * 26 + 27 * 24 * 24
    assert (sparse.macs, sparse.macs_plain) == (dense.macs, dense.macs_plain)
    assert sparse.macs_plain_paper == sparse.macs_paper[-1]
    assert macs.count(net, MNIST) == dense


def test_bits_of_values_and_positions_by_hand():
    tensor = torch.zeros(100)
    tensor[:10] = torch.tensor([1.0, 2, 3, 1, 2, 3, 1, 2, 3, 3])
    assert value_bits(tensor, None) == 320
    assert value_bits(tensor, 2) == 10 * 2 + 3 * 32  # three values: two bits each, and the three
    assert value_bits(tensor, 8) == 320  # too few entries for a dictionary of 256
    assert position_bits(tensor) == 10 * 7  # indices below 128
    tensor[10:30] = 1
    assert position_bits(tensor) == 100  # now a bit per entry is cheaper
    assert position_bits(torch.ones(5)) == position_bits(torch.zeros(5)) == 0


def test_the_size_of_a_factorised_network(tiny):
    dense = tiny(exits=1)
    net, compression = copy.deepcopy(dense), ATMC(ratio=0.25)
    compression.prepare(net)
    compression.after_step()
    costs = macs.count(dense, (1, 8, 8))
    with compression.deployed() as parts:
        size = measure(compression, dense, net, parts, costs)
    weights = 4 * 9 + 16 * 4
    assert (size.dense_weights, size.weights, size.budget, size.nonzeros) == (weights, weights, 25, 25)
    assert size.nonzeros_effective == nonzeros(layer_weights(net).values())
    assert (size.bits_dense, size.bits_published, size.bits_per_weight) == (32 * weights, 32 * 25, 32)
    assert size.bits == 32 * 25 + sum(position_bits(part) for part in parts.values())
    # biases of both layers; scale, shift, mean and variance of the BatchNorm
    assert size.bits_outside == 32 * (4 + 4 + 4 * 4)
    assert (size.ratio, size.size_published) == (0.25, 0.25)
    assert size.size == size.bits / size.bits_dense > 0.25


def test_the_factors_are_counted_by_what_they_are():
    tall, wide = torch.ones(5, 2), torch.ones(2, 5)
    square = torch.eye(2)
    parts = {"a.A": square, "a.B": tall, "a.C": torch.zeros(5, 2), "b.A": wide, "b.B": 0 * square, "b.C": wide}
    assert factor_counts(parts) == {"full": 20, "square": 2, "sparse": 10}
    even = {"c.A": torch.ones(2, 2), "c.B": square, "c.C": 0 * square}
    assert factor_counts(even) == {"full": 4, "square": 2, "sparse": 0}
    assert factor_counts({}) == {}


def test_atmc_from_an_l0_network_keeps_it_in_the_full_factor_until_training_moves_it(tiny):
    net = tiny()
    l0 = L0(ratio=0.3)
    l0.prepare(net)
    l0.after_step()
    compression = ATMC(ratio=0.3)
    compression.prepare(net)
    found = factor_counts(stored(compression))
    assert found == {"full": l0.budget(net), "square": 0, "sparse": 0}


def test_the_size_of_a_narrowed_network_is_what_it_holds():
    dense = plain(resnet, CIFAR, depth=14)
    net, compression = copy.deepcopy(dense), Channels(widths=[8, 8, 16, 16, 32, 32])
    compression.shrink(net, CIFAR)
    size = measure(compression, dense, net, {}, macs.count(dense, CIFAR))
    left = sum(weight.numel() for weight in layer_weights(net).values())
    assert (size.weights, size.nonzeros, size.nonzeros_effective) == (left, left, left)
    assert size.bits == size.bits_published == 32 * left
    assert size.budget is None
    assert size.ratio == left / size.dense_weights < 0.6
