"""Somebody else's early-exit network, as it comes: wrapped, attacked, judged and counted, or refused in one line."""

import pytest
import torch
from torch import nn

from rdi import AdaptivePredictor, as_multi_exit
from rdi.attacks import APGD, Average, ConfidentWrong, MaxAverage, Routed, SingleExit, Slowdown, Soft, Square
from rdi.attacks.engine import Engine
from rdi.attacks.fast_copies import crafting_network
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.macs import count
from rdi.thresholds import EnsemblePolicy, Entropy, PatiencePolicy, ThresholdPolicy

SHAPE = (1, 8, 8)
BALL = {"eps": 0.1, "step_size": 0.03, "steps": 2}


class Theirs(nn.Module):
    """A tiny BranchyNet in nobody's style: it returns what `form` makes of the logits of its three exits."""

    def __init__(self, form=list, parts=None):
        super().__init__()
        self.one, self.two, self.three = parts[0]
        self.branch_a, self.branch_b, self.fc = parts[1]
        self.form = form

    def forward(self, images):
        one = self.one(images)
        two = self.two(one)
        return self.form([self.branch_a(one), self.branch_b(two), self.fc(self.three(two))])


@pytest.fixture
def pair(tiny):
    """pair(form, **options) -> a network of ours, and the same one as somebody else's, wrapped."""

    def make(form=list, **options):
        ours = tiny()
        return ours, as_multi_exit(Theirs(form, (ours.stages, ours.heads)), SHAPE, **options)

    return make


FORMS = {
    "list": (list, {}),
    "tuple": (tuple, {}),
    "early exits and the final one": (lambda out: (out[:-1], out[-1]), {}),
    "tensor, exits second": (lambda out: torch.stack(out, dim=1), {}),
    "tensor, exits first": (torch.stack, {"outputs": lambda out: out.transpose(0, 1)}),
    "mapping of exits": (lambda out: {f"exit{k}": one for k, one in enumerate(out)}, {}),
    "a key among others": (lambda out: {"features": out[0].sum(), "logits": out}, {"outputs": "logits"}),
    "a place among others": (lambda out: (torch.zeros(()), out), {"outputs": 1}),
    "a function": (lambda out: {"early": out[:2], "final": [out[2]]}, {"outputs": lambda d: d["early"] + d["final"]}),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_logits_prefixes_and_nested_passes(name, pair, batch):
    form, options = FORMS[name]
    (ours, theirs), (x, _) = pair(form, **options), batch(5)
    assert isinstance(theirs, MultiExitNet)
    assert theirs.exits == 3
    assert torch.equal(theirs(x), ours(x))
    assert torch.equal(theirs.logits_at(x, [0, 2]), ours.logits_at(x, [0, 2]))
    copies = torch.cat([x, x / 2, 1 - x])
    torch.testing.assert_close(theirs.nested(copies), ours.nested(copies))


ATTACKS = [
    MaxAverage(**BALL),
    Average(**BALL),
    Average(**BALL, rule=APGD()),
    SingleExit(**BALL, exit=1),
    Routed(**BALL),
    Soft(**BALL),
    ConfidentWrong(**BALL),
    Slowdown(**BALL),
    Square(eps=0.1, queries=5),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_every_attack_makes_of_it_what_it_makes_of_the_same_network_of_ours(attack, pair, batch):
    (ours, theirs), (x, y) = pair(), batch(6)
    aimed = attack.for_policy(ThresholdPolicy(Entropy(), [1.37, 1.36]))
    expected, found = aimed(ours, x, y), aimed(theirs, x, y)
    assert float(((found - expected).abs() > 1e-5).float().mean()) < 0.02
    assert not torch.equal(found, x)


@pytest.mark.parametrize("compaction", ["always", "never", "auto"])
def test_the_predictor_answers_as_the_policy_on_all_logits(compaction, pair, batch):
    (ours, theirs), (x, _) = pair(), batch(16)
    with torch.no_grad():
        middle = Entropy()(ours(x)).median(dim=0).values.tolist()[:2]
    kept = x.clone()
    plain = ThresholdPolicy(Entropy(), middle)
    for policy in (plain, PatiencePolicy(exits=3, patience=1), EnsemblePolicy(plain)):
        out = AdaptivePredictor(theirs, policy, compaction=compaction)(x)
        expected = AdaptivePredictor(ours, policy, compaction="never")(x)
        assert torch.equal(out.labels, expected.labels)
        assert torch.equal(out.exits, expected.exits)
        assert torch.equal(out.macs, expected.macs)
        assert torch.equal(x, kept)


def test_macs_are_those_of_what_each_exit_depends_on(pair):
    ours, theirs = pair()
    assert count(theirs, SHAPE) == count(ours, SHAPE)
    assert len(set(count(theirs, SHAPE).macs)) == 3


def test_exits_in_one_tensor_are_counted_with_the_whole_network_and_it_is_said(pair, said):
    ours, theirs = pair(lambda out: torch.stack(out, dim=1))
    everything = count(ours, SHAPE).macs[-1]
    assert count(theirs, SHAPE).macs == (everything,) * 3
    assert [line for line in said if "let it return a list of logits" in line] == said
    assert len(said) == 1


def test_the_crafting_copy_is_folded_and_follows(pair, batch):
    (_, theirs), (x, y) = pair(), batch()
    fast, layout = crafting_network(theirs, x)
    assert layout is torch.channels_last
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    Average(**BALL)(theirs, x, y)
    with torch.no_grad():
        theirs.whole.module.fc[3].bias.add_(5)
    torch.testing.assert_close(crafting_network(theirs, x)[0](x), theirs(x), rtol=1e-3, atol=1e-4)
    low = Engine(precision="bf16").copy(theirs).net(x).float()
    torch.testing.assert_close(low, theirs(x), rtol=0.1, atol=0.3)


def test_mean_and_deviation_are_applied_inside(tiny, batch):
    ours, (x, _) = tiny(), batch()
    theirs = as_multi_exit(Theirs(list, (ours.stages, ours.heads)), SHAPE, mean=[0.4], std=[0.2])
    torch.testing.assert_close(theirs(x), ours((x - 0.4) / 0.2))


def test_one_tensor_of_logits_is_one_exit(batch):
    theirs = as_multi_exit(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)), SHAPE)
    x, y = batch()
    assert theirs.exits == 1
    assert theirs(x).shape == (4, 1, 4)
    out = AdaptivePredictor(theirs, ThresholdPolicy(Entropy(), []))(MaxAverage(**BALL)(theirs, x, y))
    assert out.exits.tolist() == [0] * 4


class Early(nn.Module):
    """Stops at the first exit where there are few images, as some do while testing."""

    def __init__(self):
        super().__init__()
        self.flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))

    def forward(self, x):
        return [self.flat(x)] * (1 if len(x) < 3 else 2)


class Sees(Early):
    """Stops at the first exit where the images are dark."""

    def forward(self, x):
        return [self.flat(x)] * (1 if float(x.max()) < 0.1 else 2)


REFUSED = [
    (lambda out: [out[0], out[1][:, :2]], {}, r"disagree in the number of classes \(exit 0: 4, exit 1: 2\)"),
    (torch.stack, {}, r"shape \(3, 2, 4\) for 2 images.*give outputs=lambda out: out.transpose\(0, 1\)"),
    (lambda out: [one.softmax(1) for one in out], {}, "exit 0 returns probabilities, .*take the softmax off"),
    (lambda out: [out[0], out[1] / 0], {}, "the logits of exit 1 are NaN or infinite"),
    (lambda out: [one.argmax(1) for one in out], {}, r"returns torch.int64 of shape \(2,\) for 2 images"),
    (lambda out: [one[:, :1] for one in out], {}, "the exits have 1 class"),
    (lambda out: {"logits": out}, {"outputs": "logit"}, r"outputs='logit' is not in what the network returns \(\['log"),
    (lambda out: [], {}, "returns no exits: outputs="),
    (lambda out: [out[0], None], {}, "returns a NoneType where logits should be: give outputs=KEY"),
    (list, {"mean": [0.5, 0.5]}, "mean must list 1 numbers, one per channel"),
    (list, {"std": [0.0]}, r"std must be in \(0, inf\), got 0.0"),
    (list, {"mean": 0.5}, "mean must list 1 numbers, one per channel, got 0.5"),
]


@pytest.mark.parametrize(("form", "options", "message"), REFUSED)
def test_what_gives_no_logits_per_exit_is_refused_in_one_line(form, options, message, pair):
    with pytest.raises(UserError, match=message) as caught:
        pair(form, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "shape", "message"),
    [
        (Early(), SHAPE, "gives 1 exits for 2 images and 2 for 3"),
        (Early(), (3, 8, 8), r"does not take images of 3x8x8 \(CxHxW\): mat1 and mat2"),
        (Early(), (8, 8), r"shape must be \(C, H, W\) of an image, got \(8, 8\)"),
        (Early(), 28, r"shape must be \(C, H, W\) of an image, got 28"),
        (Early(), (0, 8, 8), "shape must be at least 1, got 0"),
        (len, SHAPE, "takes a torch.nn.Module, got builtin_function_or_method"),
    ],
)
def test_other_networks_and_shapes_are_refused_in_one_line(module, shape, message):
    with pytest.raises(UserError, match=message) as caught:
        as_multi_exit(module, shape)
    assert "\n" not in str(caught.value)


def test_a_number_of_exits_that_depends_on_the_images_is_refused_when_it_shows():
    theirs = as_multi_exit(Sees(), SHAPE)
    assert theirs(torch.ones(2, *SHAPE)).shape == (2, 2, 4)
    with pytest.raises(UserError, match=r"gave 1 exits of \[4\] classes, and 2 of 4 when it was looked at first"):
        theirs(torch.zeros(2, *SHAPE))


def test_the_predictor_refuses_what_is_no_multi_exit_network():
    with pytest.raises(UserError, match=r"the model is no MultiExitNet \(Early\): .*rdi.as_multi_exit\(model, shape="):
        AdaptivePredictor(Early(), ThresholdPolicy(Entropy(), [1.0]))
