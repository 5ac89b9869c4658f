"""Attacks called from Python craft on a fast copy that is always the network as it is, made once and not twice."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

from rdi import backbones
from rdi.attacking import attack_split, joined
from rdi.attacks import Average, MaxAverage, Square, engine
from rdi.attacks.engine import Engine
from rdi.attacks.fast_copies import _copies, crafting_network
from rdi.benchmarks import textbook
from rdi.data.base import Split
from rdi.defenses import Adversarial
from rdi.errors import UserError
from rdi.exits import MultiExitNet, NoExits

BALL = {"eps": 0.1, "step_size": 0.03}
ATTACK = Average(steps=3, **BALL)


@pytest.fixture
def copies(monkeypatch):
    """Networks of which a crafting copy was made, in order."""
    found = []
    init = engine.FastCopy.__init__

    def counted(self, source, how):
        found.append(source)
        init(self, source, how)

    monkeypatch.setattr(engine.FastCopy, "__init__", counted)
    return found


def same(first, second):
    """Whether the images agree but for gradients next to zero, whose sign follows the rounding."""
    return float(((first - second).abs() > 1e-5).float().mean()) < 0.01


def test_the_images_are_those_of_the_textbook_loop_on_the_network_itself(tiny, batch):
    net, (x, y) = tiny(), batch(8)
    generator = torch.Generator().manual_seed(0)
    start = textbook.noise(x, 0.1, generator)
    by_hand = textbook.pgd(net, x, y, textbook.mean_loss, start, steps=3, **BALL)
    assert same(Average(steps=3, keep="last", **BALL)(net, x, y), by_hand)
    assert float((by_hand - x).abs().max()) > 0.05
    starts = [textbook.noise(x, 0.1, generator) for generator in [torch.Generator().manual_seed(0)] for _ in range(3)]
    by_hand = textbook.max_average(net, x, y, starts, steps=3, **BALL)
    assert same(MaxAverage(steps=3, keep="last", **BALL)(net, x, y), by_hand)


@pytest.mark.parametrize("attack", [ATTACK, MaxAverage(steps=2, **BALL), Square(eps=0.1, queries=5, target=-1)])
def test_the_copy_is_folded_and_channels_last_and_the_images_come_as_they_went_in(attack, paper_net, batch):
    net, (x, y) = paper_net("resnet14", (3, 32, 32)), batch(3, (3, 32, 32), 10)
    fast, layout = crafting_network(net, x)
    assert layout is torch.channels_last
    net.train()
    before = copy.deepcopy(net.state_dict())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    expected = attack(Engine().copy(net).net, x.to(memory_format=torch.channels_last), y)
    found = attack(net, x, y)
    assert torch.equal(found, expected)
    assert found.is_contiguous()
    assert same(found, attack(net, x, y, fast=False))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(one.requires_grad and one.grad is None for one in net.parameters())


def test_one_copy_serves_all_calls_and_goes_with_its_network(tiny, batch, copies):
    net, (x, y) = tiny(), batch()
    state = torch.get_rng_state()
    ATTACK(net, x, y)
    ATTACK(net, x[:1], y[:1])
    MaxAverage(steps=1, **BALL)(net, x, y)
    assert copies == [net]
    assert torch.equal(state, torch.get_rng_state())
    ATTACK(tiny(seed=1), x, y)
    assert len(copies) == 2
    copies.clear()
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_fast_false_makes_no_copy(tiny, batch, copies):
    ATTACK(tiny(), *batch(), fast=False)
    assert copies == []


def double_first_head(net):
    net.heads[0][3].weight.data.mul_(-2)  # of .data: no version counts it


def change_statistics(net):
    net.stages[1][1].running_mean.add_(3)


def assign(net):
    net.load_state_dict(
        {name: -tensor if "weight" in name else tensor for name, tensor in net.state_dict().items()}, assign=True
    )


def swap_a_module(net):
    net.stages[1][2] = nn.Tanh()


def swap_a_parameter(net):
    net.stages[0][0].weight = nn.Parameter(-net.stages[0][0].weight.detach())


def turn_an_option(net):
    net.stages[2][1].eps = 30.0


CHANGES = [double_first_head, change_statistics, assign, swap_a_module, swap_a_parameter, turn_an_option]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_whatever_changes_in_the_network_changes_in_the_copy(change, tiny, batch):
    net, (x, y) = tiny(), batch(8)
    before = ATTACK(net, x, y)
    with torch.no_grad():
        change(net)
    fresh = Engine().copy(net).net
    assert torch.equal(ATTACK(net, x, y), ATTACK(fresh, x.to(memory_format=torch.channels_last), y))
    assert not torch.equal(ATTACK(net, x, y), before)
    torch.testing.assert_close(crafting_network(net.eval(), x)[0](x), net(x), rtol=1e-3, atol=1e-4)


def test_buffers_that_no_checkpoint_holds_are_followed(batch):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("scale", torch.ones(()), persistent=False)

        def forward(self, x):
            return x.flatten(1)[:, :4] * self.scale

    net, (x, y) = MultiExitNet([nn.Identity()], [Scaled()]).eval(), batch()
    ATTACK(net, x, y)
    net.heads[0].scale.mul_(-3)
    assert torch.equal(crafting_network(net, x)[0](x), net(x))


def test_crafting_for_a_split_and_for_training_copies_once(tiny, batch, copies):
    net, (x, y) = tiny(), batch(6)
    split = Split("test", (x * 255).byte(), y, torch.arange(6).numpy())
    joined(attack_split(net, split, ATTACK, seed=0, batch_size=2, label="average"))
    assert copies == [net]
    defense = Adversarial(attack=ATTACK, engine=Engine())
    for _ in range(2):
        defense.loss(net, x, y, torch.Generator().manual_seed(0))
    assert copies == [net] * 2
    Adversarial(attack=ATTACK).loss(net, x, y, torch.Generator().manual_seed(0))
    assert copies == [net] * 2
    assert net not in _copies


class Flattens(nn.Module):
    """A head that channels-last features break."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4 * 8 * 8, 4)

    def forward(self, x):
        return self.linear(x.view(len(x), -1))


def test_where_channels_last_does_not_work_the_copy_does_without(batch):
    torch.manual_seed(0)
    net = MultiExitNet([nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4))], [Flattens()]).eval()
    x, y = batch()
    fast, layout = crafting_network(net, x)
    assert layout is torch.contiguous_format
    assert fast is not net
    assert same(ATTACK(net, x, y), ATTACK(net, x, y, fast=False))


class Stubborn(nn.Identity):
    """A part that cannot be copied."""

    def __deepcopy__(self, memo):
        raise TypeError("there is only one of me")


class Watching(nn.Identity):
    """A part that answers otherwise in a copy."""

    def __init__(self):
        super().__init__()
        self.first = id(self)

    def forward(self, x):
        return x if id(self) == self.first else x.flip(1)


@pytest.mark.parametrize("part", [Stubborn, Watching])
def test_where_no_copy_answers_as_the_network_the_network_itself_is_used(part, tiny, batch, said):
    made = tiny()
    net, (x, y) = MultiExitNet(made.stages, [nn.Sequential(head, part()) for head in made.heads]).eval(), batch()
    assert crafting_network(net, x)[0] is net
    assert torch.equal(ATTACK(net, x, y), ATTACK(net, x, y, fast=False))
    assert [line for line in said if "on the network itself" in line] == said
    assert len(said) == 1


def test_networks_with_hooks_and_in_float64_are_used_themselves(tiny, batch):
    net, (x, y) = tiny(), batch()
    seen = []
    net.heads[0].register_forward_hook(lambda *args: seen.append(1))
    assert crafting_network(net, x)[0] is net
    ATTACK(net, x, y)
    assert len(seen) == 4
    wide = tiny().double()
    assert crafting_network(wide, x.double())[0] is wide
    assert ATTACK(wide, x.double(), y).dtype is torch.float64


def test_what_is_no_multi_exit_network_is_refused_in_one_line(batch):
    with pytest.raises(
        UserError, match=r"the model is no MultiExitNet \(Linear\): .*give rdi.as_multi_exit\(model, shape="
    ):
        ATTACK(nn.Linear(2, 2), *batch())


def test_an_empty_batch_stays_empty(batch):
    x, y = batch(3, (1, 28, 28), 10)
    net = NoExits()(backbones.smallcnn((1, 28, 28), 10)).eval()
    assert ATTACK(net, x[:0], y[:0]).shape == (0, 1, 28, 28)
    assert ATTACK(net, x, y).shape == x.shape


def test_images_that_do_not_fit_spoil_nothing_for_later_ones(tiny, batch, copies):
    net, (x, y) = tiny(), batch()
    with pytest.raises(RuntimeError, match="channels"):
        ATTACK(net, x.repeat(1, 3, 1, 1), y)
    assert copies == []
    weight = net.heads[0][3].weight.data.clone()
    net.heads[0][3].weight.data.fill_(torch.nan)
    assert crafting_network(net, x)[0] is net
    net.heads[0][3].weight.data.copy_(weight)
    assert crafting_network(net, x)[0] is not net
    assert crafting_network(net, batch(2, (1, 12, 12))[0])[0] is not net
    assert copies == [net]
