"""Gated networks: what is skipped equals what is masked, costs, and the rule that holds a share of the MACs."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from helpers.training import ATTACK, SMALL, Memory, StopAfter, recipe
from rdi import health, macs
from rdi.adaptive import AdaptivePredictor
from rdi.attacks import Average, Joint, Slowdown, Soft
from rdi.attacks.early_exit import early_exit_forward
from rdi.attacks.engine import Engine
from rdi.backbones import resnet, smallcnn
from rdi.data import Digits, Split
from rdi.defenses import Adversarial, Standard
from rdi.errors import Interrupted, UserError
from rdi.evaluating import judge, summarise
from rdi.exits import CustomExits, NoExits, PoolLinear, normalised
from rdi.gates import Gates
from rdi.health import Evaluation
from rdi.ranks import ALONE
from rdi.thresholds import Confidence, ThresholdPolicy
from rdi.training import fit

SHAPE = (1, 8, 8)
WIDTHS = (3, 4, 5)
BLOCKS = (1, 2, 1)
SEED = 8
"""One by which some images run a block and others do not."""


def network(channels, exits=True, share=0.9, seed=SEED):
    """A small ResNet with gates as likely open as closed."""
    torch.manual_seed(seed)
    attach = CustomExits(taps=[2], heads=[PoolLinear]) if exits else NoExits()
    plain = normalised(attach(resnet(SHAPE, 4, blocks=BLOCKS, channels=WIDTHS)), [0.5], [0.2])
    net = Gates(channels=channels, share=share).attach(plain, SHAPE).eval()
    with torch.no_grad():
        for module in net.modules():
            if hasattr(module, "embed"):
                module.embed.weight.mul_(20)
            for layer in (getattr(module, "run", None), getattr(module, "select", None)):
                if isinstance(layer, torch.nn.Linear):
                    layer.weight.mul_(20)
                    layer.bias.zero_()
    return net


@pytest.fixture(scope="module", params=[False, True], ids=["layers", "layers_channels"])
def net(request):
    return network(request.param)


@pytest.fixture(scope="module")
def images():
    """From dark to bright: gates read the means of feature maps."""
    noise = torch.rand(40, *SHAPE, generator=torch.Generator().manual_seed(1))
    return noise * torch.linspace(0.05, 1, 40)[:, None, None, None]


@pytest.fixture(scope="module")
def digits():
    return Digits(name="digits", calibration=24, size=16).load()


def masked(net, x):
    net = copy.deepcopy(net)
    net.skipping(False)
    with torch.no_grad():
        return net.judged(x)


@torch.no_grad()
def test_what_is_skipped_equals_what_is_masked(net, images):
    logits, skipped = net.judged(images)
    expected, left = masked(net, images)
    assert torch.allclose(logits, expected, atol=1e-5)
    assert torch.equal(skipped, left)
    assert len(skipped[:, -1].unique()) > 1  # images differ in what they run
    one_by_one = torch.cat([net(image[None]) for image in images])
    assert torch.allclose(one_by_one, expected, atol=1e-5)


def test_skipped_blocks_are_not_run(net, images):
    """A block that no image runs makes no convolution: its weights may be NaN."""
    shut = copy.deepcopy(net)
    with torch.no_grad():
        controller = shut.stages[0].controller
        controller.run.weight.zero_()
        controller.run.bias.fill_(-1)
        logits = shut(images)
        for stage in shut.stages:
            for block in stage.blocks:
                if hasattr(block, "embed"):
                    block.block.conv1.weight.fill_(torch.nan)
                    block.block.conv2.weight.fill_(torch.nan)
        assert torch.equal(shut(images), logits)
    assert not masked(shut, images)[0].isfinite().all()


def test_gradients_are_straight_through(net, images):
    x = images.clone().requires_grad_(True)
    rows = net.stages[0](x)
    (grad,) = torch.autograd.grad(net.saved(rows, 0).sum(), x)
    assert grad.abs().sum() > 0
    logits = net(x)
    with torch.no_grad():
        assert torch.allclose(logits, net(images), atol=1e-5)


def by_hand(net, x):
    """Logits_NC of the last exit, and the executed channels of every gated block; straight-through: h + s - s'."""

    def bit(logit):
        share = torch.sigmoid(logit)
        return (share > 0.5).float() + share - share.detach()

    blocks = [block for stage in net.stages for block in stage.blocks]
    controller = net.stages[0].controller
    cell, hidden, memory, counts = controller.cell, torch.zeros(len(x), 10), torch.zeros(len(x), 10), []
    for block in blocks:
        if not hasattr(block, "embed"):
            x = block(x)
            continue
        pooled = block.embed(x.flatten(2).mean(dim=2))
        mixed = pooled @ cell.weight_ih.T + cell.bias_ih + hidden @ cell.weight_hh.T + cell.bias_hh
        into, forget, new, out = mixed.chunk(4, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(into) * torch.tanh(new)
        hidden = torch.sigmoid(out) * torch.tanh(memory)
        run = bit(controller.run(hidden))
        chosen = torch.ones(len(x), block.outputs) if block.select is None else bit(block.select(hidden))
        inner = block.block
        shortcut = inner.shortcut(x)
        part = torch.relu(inner.bn1(inner.conv1(x))) * chosen[:, :, None, None]
        whole = torch.relu(inner.bn2(inner.conv2(part)) + shortcut)
        counts.append((run * chosen).sum(dim=1))
        run = run[:, :, None, None]
        x = run * whole + (1 - run) * shortcut
    return net.heads[-1].head(x), torch.stack(counts, dim=1)


def test_a_pass_and_its_gradients_are_those_of_a_plain_loop(net, images):
    """One LSTM for all blocks, a bit of its state per block and channel, gradients of the sigmoid."""
    expected, counts = by_hand(net, images)
    found = net(images)[:, -1]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert 0 < (counts == 0).float().mean() < 1
    rows = images
    for stage in net.stages:
        rows = stage(rows)
    left = net.saved(rows, net.exits - 1)
    units = torch.tensor(net.units, dtype=torch.float)
    by_channel = ((torch.tensor(net.channels) - counts) * units).sum(dim=1)
    torch.testing.assert_close(left, by_channel, atol=0.01, rtol=1e-6)  # MACs
    weights = net.gate_parameters()
    for one, other in ((found.square().mean(), expected.square().mean()), (left.mean(), by_channel.mean())):
        wanted = torch.autograd.grad(other, weights, retain_graph=True, allow_unused=True)
        for got, want in zip(
            torch.autograd.grad(one, weights, retain_graph=True, allow_unused=True), wanted, strict=True
        ):
            assert (got is None) == (want is None)
            if want is not None:
                torch.testing.assert_close(got, want, atol=1e-4 * float(want.abs().max()) + 1e-7, rtol=1e-3)
        assert sum(want is not None for want in wanted) > 5


def test_costs_against_a_hand_count():
    """Stem, blocks 1-2-1 of 3, 4 and 5 channels on 8x8, 4x4 and 2x2, an LSTM of 10, pooled heads of 4 classes."""
    net = network(True)
    counted = macs.count(net, SHAPE)
    stem, first = 64 * 9 * 1 * 3, 64 * 9 * (3 * 3 + 3 * 3)
    second, shortcut = 16 * 9 * (3 * 4 + 4 * 4), 16 * 3 * 4
    third, fourth = 16 * 9 * (4 * 4 + 4 * 4), 4 * 9 * (4 * 5 + 5 * 5)
    last_shortcut = 4 * 4 * 5
    lstm = 10 * 40 + 10 * 40
    gates = [lstm + inputs * 10 + 10 + 10 * wide for inputs, wide in ((3, 4), (4, 4), (4, 5))]
    to_exit = stem + first + second + shortcut
    rest = third + fourth + last_shortcut
    # exit 0 follows block 2 (the stem is block 0): its gate has run, the next one has not
    assert counted.macs == (
        to_exit + gates[0] + 4 * 4,
        to_exit + rest + sum(gates) + 4 * 4 + 5 * 4,
    )
    assert counted.macs_plain == to_exit + rest + 5 * 4
    assert counted.macs_paper == (to_exit, to_exit + rest)
    assert net.macs == counted.macs
    assert net.macs_plain == counted.macs_plain
    assert net.whole == (second, third, fourth)


@torch.no_grad()
def test_mean_costs_are_those_of_each_image(net, images):
    """The mean over images of what each executes, counted from the channels that ran, and by early exit."""
    logits, skipped = net.judged(images)
    policy = ThresholdPolicy(Confidence(), [float(logits[:, 0].softmax(dim=1).amax(dim=1).median())])
    costs = macs.count(net, SHAPE)
    judged = judge(logits, torch.zeros(len(images), dtype=torch.long), policy, skipped)
    by_hand = [costs.macs[k] - int(skipped[n, k]) for n, k in enumerate(judged.exits.tolist())]
    assert summarise(judged, costs).mean_macs == pytest.approx(sum(by_hand) / len(images))
    for compaction in ("always", "never"):
        found = AdaptivePredictor(net, policy, compaction=compaction)(images)
        assert found.macs.tolist() == by_hand
        alone = [int(AdaptivePredictor(net, policy, compaction=compaction)(image).macs) for image in images.split(1)]
        assert alone == by_hand
    streamed = AdaptivePredictor(net, policy).stream(images.split(9), max_wait=2)
    assert torch.cat([one.macs for one in streamed]).tolist() == by_hand


def test_attacks_go_through_the_gates_on_a_folded_copy(net, images):
    y = torch.zeros(len(images), dtype=torch.long)
    with torch.no_grad():
        assert torch.allclose(Engine().copy(net).net(images), net(images), atol=1e-4)
    x_adv = Average(eps=0.1, step_size=0.05, steps=3)(net, images, y)
    with torch.no_grad():
        before, after = (torch.nn.functional.cross_entropy(net(x)[:, -1], y) for x in (images, x_adv))
    assert after > before


@pytest.mark.parametrize("exits", [True, False])
@pytest.mark.parametrize("kind", [Slowdown, Joint])
def test_slowdown_opens_gates_and_counts_them(exits, kind, images):
    """The costliest iterate is kept, gates counted, where there are exits as well and where there are none."""
    net = network(True, exits)
    with torch.no_grad():
        y = net(images)[:, -1].argmax(dim=1)
        logits, _ = net.judged(images)
    policy = ThresholdPolicy(Confidence(), [float(logits[:, 0].softmax(dim=1).amax(dim=1).median())] if exits else [])

    def cost(x):
        with torch.no_grad():
            logits, skipped = net.judged(x)
        leave = policy.choose(logits)
        spent = torch.tensor(net.macs)[leave] - skipped.gather(1, leave[:, None])[:, 0]
        trace = early_exit_forward(net, policy, x, 1, net.exits)
        assert torch.allclose(trace.cost, spent / net.macs[-1], atol=1e-5)
        return spent / net.macs[-1], policy.predict(logits, leave) != y

    ball = {"eps": 0.1, "step_size": 0.02, "steps": 8}
    attack = kind(**ball).for_policy(policy)
    spent, wrong = cost(attack(net, images, y))
    if kind is Slowdown:
        noisy = attack.ball.start(images, torch.Generator().manual_seed(0))
        assert spent.mean() > max(cost(x)[0].mean() for x in (images, noisy)) + 0.01
    else:
        others, as_wrong = cost(Average(**ball)(net, images, y))
        both = wrong & as_wrong
        assert spent[both].mean() > others[both].mean() + 0.01


def test_a_copy_made_while_passes_are_collected_begins_with_none(net, images):
    net = copy.deepcopy(net).train()
    with net.watched() as passes:
        net(images)
        other = copy.deepcopy(net)
        other(images)
        net(images)
    assert len(passes) == 2


def test_bfloat16_counts_the_same(net, images):
    """Under autocast, and on a crafting copy: every gradient is there, and what is skipped is counted exactly."""
    trained = copy.deepcopy(net).train()
    gates = Gates(channels=True, share=0.9, alone=0.0)
    with torch.autocast("cpu", torch.bfloat16), gates.step(trained, 0.5) as term:
        loss, _ = term.added(trained(images).square().mean(), {}, ALONE.share(len(images)))
    loss.backward()
    assert all(one.grad is not None and one.grad.isfinite().all() for one in trained.gate_parameters())
    fast = Engine(precision="bf16").copy(net).net
    x = images.clone().requires_grad_(True)
    rows = fast.stages[0](x)
    last = fast.stages[1](rows) if fast.exits > 1 else rows
    cost = fast.cost(last, fast.exits - 1)
    (grad,) = torch.autograd.grad(cost.sum(), x)
    assert grad.abs().sum() > 0
    with torch.no_grad():
        left = fast.saved(last, fast.exits - 1)
        assert torch.equal(left, fast.skipped(last, fast.exits - 1).float())


def test_the_cost_term_holds_the_target_share(images):
    """loss + sign * weight * executed share, the sign + above the target and - below, per training pass."""
    for target, sign in ((0.7, 1.0), (1.0, -1.0)):
        net = network(False, exits=False, share=target).train()
        with torch.no_grad():
            net.stages[0].controller.run.bias.fill_(3 * sign)
        gates = Gates(channels=False, share=target, weight=0.5, alone=0.0)
        y = torch.arange(len(images)) % 4
        with gates.step(net, 0.5) as term:
            plain = torch.nn.functional.cross_entropy(net(images)[:, 0], y)
            loss, logs = term.added(plain, {}, ALONE.share(len(images)))
        again = copy.deepcopy(net)
        rows = again.stages[0](images)
        ran = rows[:, -3:]  # of each gated block, the channels that ran
        spent = (ran / torch.tensor([4.0, 4, 5]) * torch.tensor(net.whole, dtype=torch.float)).sum(dim=1)
        fixed = net.macs_plain - sum(net.whole) + net.gate_macs
        share = ((fixed + spent) / net.macs_plain).mean()
        assert (share > target) == (sign > 0)
        assert logs["executed_share"] == pytest.approx(float(share.detach()), abs=1e-5)
        assert float(loss.detach()) == pytest.approx(
            float(plain.detach()) + sign * 0.5 * float(share.detach()), abs=1e-5
        )
        wanted = torch.autograd.grad(sign * 0.5 * share, again.stages[0].controller.run.bias)[0]
        found = torch.autograd.grad(loss - plain, net.stages[0].controller.run.bias)[0]
        assert torch.allclose(found, wanted, atol=1e-6)
        assert wanted != 0


def test_gates_are_trained_alone_first_and_opened(images):
    net = network(True).train()
    gates = Gates(channels=True, share=0.9, alone=0.1)
    with gates.step(net, 0.05) as term:
        loss, _ = term.added(net(images).square().mean(), {}, ALONE.share(len(images)))
    loss.backward()
    mine = {id(one) for one in net.gate_parameters()}
    assert {id(one) for one in net.parameters() if one.grad is not None} <= mine
    assert net.stages[0].controller.run.bias.grad is not None
    with gates.step(net, 0.1):
        assert all(one.requires_grad for one in net.parameters())


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Gates(channels=False, share=0.0), "gates.share must be in (0, 1]"),
        (lambda: Gates(channels=False, share=1.5), "gates.share must be in (0, 1]"),
        (lambda: Gates(channels=False, share=0.5, alone=1.0), "gates.alone must be below 1"),
        (lambda: network(False, share=0.1), "gates.share=0.1 cannot be reached"),
        (
            lambda: Gates(channels=False, share=0.7).attach(NoExits()(smallcnn((1, 28, 28), 10)), (1, 28, 28)),
            "gates=... are for ResNets",
        ),
    ],
)
def test_what_cannot_be_gated_is_refused(make, said):
    with pytest.raises(UserError, match=said.replace("(", r"\(").replace("]", r"\]").replace(".", r"\.")):
        make()


@pytest.fixture(scope="module")
def checked(images):
    """checked(net) -> the lines of health on its gates, by name."""

    def check(net):
        policy = ThresholdPolicy(Confidence(), [0.4])
        ball = {"eps": 0.1, "step_size": 0.02, "steps": 4}
        labels = torch.zeros(len(images), dtype=torch.long)
        evaluation = Evaluation(
            net=net,
            policy=policy,
            split=Split("test", (images * 255).to(torch.uint8), labels, np.arange(len(images))),
            static=Average(**ball),
            adaptive=[Soft(**ball)],
            seed=0,
            batch_size=20,
        )
        return {line.name: line for line in health.gates(evaluation)}

    return check


def test_honest_gates_are_green(net, checked):
    found = checked(net)
    assert [(name, line.figure) for name, line in found.items() if not line.passed] == []
    assert list(found) == ["gates, costs", "gates, gradients"]
    assert checked(net.plain()) == {}


def detached(net):
    for stage in net.stages:
        stage.controller.register_forward_hook(lambda module, given, state: state.detach())


def saturated(net):
    """All gates open, however the image is changed, by so much that the sigmoid is flat."""
    with torch.no_grad():
        net.stages[0].controller.run.bias.fill_(200.0)


def computed(net):
    net.skipping(False)


def uncounted(net):
    net.units = tuple(2 * unit for unit in net.units)


@pytest.mark.parametrize(
    ("fault", "red"),
    [
        (detached, "gates, gradients"),
        (saturated, "gates, gradients"),
        (computed, "gates, costs"),
        (uncounted, "gates, costs"),
    ],
)
def test_a_fault_of_gates_is_red(fault, red, checked):
    net = network(False)
    fault(net)
    assert [name for name, line in checked(net).items() if not line.passed] == [red]


@pytest.mark.parametrize("target", [0.75, 0.95])
def test_the_share_of_macs_is_held(target, digits):
    """The mean of the last 80 of 200 steps is within 0.05 of the target; the training begins with open gates."""
    shares = []

    class Recorded(Gates):
        @contextmanager
        def step(self, net, progress):
            with super().step(net, progress) as term:
                yield term
                shares.append(float(net.executed(term.passes[-1].detach()).mean()))

    torch.manual_seed(3)
    plain = normalised(NoExits()(resnet((1, 16, 16), 10, blocks=BLOCKS, channels=WIDTHS)), [0.3], [0.3])
    gates = Recorded(channels=True, share=target, alone=0.1)
    net = gates.attach(plain, (1, 16, 16))
    settings = replace(SMALL, evaluations=1)
    fit(net, Standard(), digits.train, digits.calibration, recipe(200), settings, Memory(), gates=gates)
    assert len(shares) == 200
    assert min(shares[:20]) > 1
    assert sum(shares[-80:]) / 80 == pytest.approx(target, abs=0.05)


def test_a_gated_training_resumes_bit_for_bit(digits):
    """Stopped while the gates are trained alone, and after."""
    gates = Gates(channels=True, share=0.8, alone=0.4)

    def begin():
        torch.manual_seed(3)
        return gates.attach(
            CustomExits(taps=[2], heads=[PoolLinear])(resnet((1, 16, 16), 10, blocks=BLOCKS, channels=WIDTHS)),
            (1, 16, 16),
        )

    def go_on(store, **more):
        return fit(
            begin(),
            Adversarial(attack=ATTACK),
            digits.train,
            digits.calibration,
            recipe(),
            SMALL,
            store,
            gates=gates,
            **more,
        )

    whole = Memory()
    go_on(whole)
    for steps in (2, 4):
        first = Memory()
        with pytest.raises(Interrupted):
            go_on(first, stop=StopAfter(steps))
        second = Memory(first.state)
        go_on(second)
        assert all(torch.equal(whole.weights["last"][name], one) for name, one in second.weights["last"].items())
