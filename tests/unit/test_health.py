"""The health checks: green on an honest network under honest attacks, each red for the fault that it is there for."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from rdi import health
from rdi.attacks import Average, ConfidentWrong, SingleExit, Soft, Square
from rdi.data import Split, to_float
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.health import Extent, sample
from rdi.health.gradients import zero_gradient_NE
from rdi.health.paired import above, beats, never_helps
from rdi.health.planted import line, plant
from rdi.runs import options as typed_options
from rdi.runs import preflight
from rdi.runs.health import hurry
from rdi.thresholds import ShareRule
from rdi.thresholds.scores import Entropy

README = Path(__file__).resolve().parents[2] / "results" / "README.md"
IMAGES = 40
BALL = {"eps": 0.15, "step_size": 0.03, "steps": 8}
L2 = {"eps": 1.0, "norm": "l2", "step_size": 0.25, "steps": 8}
EXTENT = Extent(steps=8, restarts=2, queries=60, draws=16, large_eps=0.5)


@pytest.fixture(scope="module")
def digits():
    raw = load_digits()
    images = torch.from_numpy(np.round(raw.images * (255 / 16)).astype(np.uint8))[:, None]
    return images, torch.from_numpy(raw.target.astype(np.int64))


@pytest.fixture(scope="module")
def trained(digits):
    """A network of three exits that knows its digits; read only."""
    images, labels = digits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        convolutions = [nn.Conv2d(inside, 12, 3, padding=1) for inside in (1, 12, 12)]
        stages = [nn.Sequential(one, nn.BatchNorm2d(12), nn.ReLU()) for one in convolutions]
        heads = [nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(192, 10)) for _ in range(3)]
        net = MultiExitNet(stages, heads)
        optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
        for _ in range(60):
            rows = torch.randint(200, len(labels), (128,))
            x = to_float(images[rows])
            logits = net.train()(x + 0.05 * torch.randn_like(x))
            loss = F.cross_entropy(logits.flatten(0, 1), labels[rows].repeat_interleave(3))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.eval()


@pytest.fixture
def make_evaluation(trained, digits):
    """make_evaluation(net=..., main=Soft, ...) -> an Evaluation of the trained network, or of another one."""
    images, labels = digits

    def make(net=trained, main=Soft, others=(ConfidentWrong,), ball=BALL, **more):
        with torch.no_grad():
            policy = ShareRule(score=Entropy()).fit_logits(net(to_float(images[100:200])))
        split = Split("test", images[:IMAGES], labels[:IMAGES], np.arange(IMAGES))
        return health.Evaluation(
            net=net,
            policy=policy,
            split=split,
            static=Average(**ball),
            adaptive=[main(**ball), *(other(**ball) for other in others)],
            seed=0,
            batch_size=25,
            **more,
        )

    return make


class Rounded(nn.Module):
    """Rounds its input: the values hardly change, the gradient is gone."""

    def forward(self, x):
        return (x * 32).round() / 32


class Scaled(nn.Module):
    """So sure that the cross-entropy is flat."""

    def forward(self, logits):
        return logits * 1e6


def rounded(net):
    return MultiExitNet([nn.Sequential(Rounded(), net.stages[0]), *net.stages[1:]], net.heads).eval()


def saturated(net):
    return MultiExitNet(net.stages, [nn.Sequential(head, Scaled()) for head in net.heads]).eval()


@dataclass(kw_only=True)
class Lazy(Soft):
    """Hands back the image that it was given when it is asked for more than `most` says."""

    def run(self, model, x, y, generator):
        return x if self.more() else super().run(model, x, y, generator)

    def more(self):
        return True


@dataclass(kw_only=True)
class Tired(Lazy):
    """Gives up in long attacks."""

    def more(self):
        return self.steps > 8


@dataclass(kw_only=True)
class Confused(Lazy):
    """Gives up with several starts."""

    def more(self):
        return self.restarts > 1


@dataclass(kw_only=True)
class Timid(Lazy):
    """Gives up in large balls."""

    def more(self):
        return self.eps > 0.15


@dataclass(kw_only=True)
class Forgetful(Soft):
    """Works, and hands back the clean image."""

    def run(self, model, x, y, generator):
        super().run(model, x, y, generator)
        return x


@dataclass(kw_only=True)
class Boundless(Soft):
    """Forgets the ball."""

    def craft(self, model, x, y, generator):
        return (super().craft(model, x, y, generator) + self.eps).clamp(max=1)


@dataclass(kw_only=True)
class Broken(Soft):
    """Returns no numbers."""

    def craft(self, model, x, y, generator):
        return super().craft(model, x, y, generator) * torch.nan


def checks(evaluation):
    return {
        check.name: check
        for check in (
            health.zero_gradients(evaluation),
            health.order(evaluation),
            health.steps(evaluation, EXTENT),
            health.restarts(evaluation, EXTENT),
            *health.eps_sweep(evaluation, EXTENT),
            health.black_box(evaluation, EXTENT),
            health.planted_weakness(evaluation, EXTENT),
            health.silent_successes(evaluation),
            health.rejudged(evaluation),
            health.ball_and_range(evaluation, {"average": (0.15, 0.15)}),
        )
    }


def test_an_honest_network_is_green_and_every_line_is_explained_in_the_results(make_evaluation):
    found = checks(make_evaluation())
    assert [(name, check.figure) for name, check in found.items() if not check.passed] == []
    text = " ".join(README.read_text().split())
    assert [name for name, check in found.items() if f"| {name} | {check.meaning} |" not in text] == []


def test_masked_gradients_are_red(make_evaluation, trained):
    found = checks(make_evaluation(rounded(trained)))
    assert "clean 100.0/100.0/100.0" in found["zero gradients"].figure
    red = {name for name, check in found.items() if not check.passed}
    # not "judged again": the few images that noise alone fools may well be wrong in every arithmetic
    assert red >= {"zero gradients", "order of attacks", "large eps", "black-box", "planted weakness"}


def test_in_an_l2_ball_an_honest_network_is_green_and_faults_are_red(make_evaluation, trained):
    found = checks(make_evaluation(ball=L2))
    assert [(name, check.figure) for name, check in found.items() if not check.passed] == []
    assert "after 60 queries" in found["black-box"].figure
    assert not checks(make_evaluation(main=Boundless, ball=L2))["ball and range"].passed
    red = {name for name, check in checks(make_evaluation(rounded(trained), ball=L2)).items() if not check.passed}
    assert red >= {"zero gradients", "order of attacks", "large eps", "planted weakness"}


def test_where_few_images_fall_a_larger_ball_tells_an_attack_from_noise(make_evaluation, trained):
    small = {**L2, "eps": 0.1, "step_size": 0.03}
    found = health.order(make_evaluation(ball=small))
    assert found.passed
    assert "too few fell to tell from noise: at eps" in found.figure
    for broken in (make_evaluation(rounded(trained), ball=small), make_evaluation(main=Lazy, others=(), ball=small)):
        assert not health.order(broken).passed


def test_logits_so_large_that_the_loss_is_flat_are_red(make_evaluation, trained):
    check = health.zero_gradients(make_evaluation(saturated(trained)))
    assert not check.passed
    assert check.meaning.startswith("Masked gradients")


def test_gradients_that_are_not_finite_count_as_none(trained, digits):
    images, labels = digits
    spoilt = MultiExitNet(trained.stages, [*trained.heads[:2], nn.Sequential(trained.heads[2], NotFinite())])
    dead = zero_gradient_NE(spoilt.eval(), to_float(images[:3]), labels[:3])
    assert dead.tolist() == [[False, False, True]] * 3


class Detached(nn.Module):
    """A head of somebody's that cuts the gradient off."""

    def __init__(self, head):
        super().__init__()
        self.head = head

    def forward(self, features):
        return self.head(features.detach())


def test_an_exit_that_is_detached_from_its_input_is_red_and_no_attack_on_it_begins(make_evaluation, trained):
    cut = MultiExitNet(trained.stages, [trained.heads[0], Detached(trained.heads[1]), trained.heads[2]]).eval()
    evaluation = make_evaluation(cut)
    check = health.zero_gradients(evaluation)
    assert not check.passed
    assert "clean 0.0/100.0/0.0" in check.figure
    single = {"single": SingleExit(eps=0.1, step_size=0.05, steps=2, exit=1)}
    with pytest.raises(UserError, match="an exit is detached from its input"):
        preflight.suite(cut, single, evaluation.split, samples=None, batch_size=8)


class NotFinite(nn.Module):
    """Finite logits, infinite slope."""

    def forward(self, logits):
        return logits + (logits * 0).sqrt()


@pytest.mark.parametrize(
    ("fault", "check", "red"),
    [
        (Lazy, lambda evaluation: [health.order(evaluation)], ["order of attacks"]),
        (Tired, lambda evaluation: [health.steps(evaluation, EXTENT)], ["more steps"]),
        (Confused, lambda evaluation: [health.restarts(evaluation, EXTENT)], ["more restarts"]),
        (Timid, lambda evaluation: health.eps_sweep(evaluation, EXTENT), ["larger eps"]),
        (Lazy, lambda evaluation: [health.planted_weakness(evaluation, EXTENT)], ["planted weakness"]),
        (Forgetful, lambda evaluation: [health.silent_successes(evaluation)], ["silent successes"]),
        (Lazy, lambda evaluation: [health.rejudged(evaluation)], ["judged again"]),
    ],
)
def test_a_faulty_attack_is_red(fault, check, red, make_evaluation):
    found = check(make_evaluation(main=fault, others=()))
    assert [one.name for one in found if not one.passed] == red


@pytest.mark.parametrize("fault", [Boundless, Broken])
def test_images_that_the_threat_model_does_not_allow_are_red(fault, make_evaluation):
    evaluation = make_evaluation(main=fault)
    evaluation.under(evaluation.main)
    assert not health.ball_and_range(evaluation, {}).passed


def test_a_stored_bank_outside_its_ball_is_red(make_evaluation):
    evaluation = make_evaluation()
    evaluation.under(evaluation.main)
    assert health.ball_and_range(evaluation, {"average": (0.1 + 1e-8, 0.1)}).passed
    check = health.ball_and_range(evaluation, {"average": (0.1, 0.1), "other": (0.12, 0.1)})
    assert not check.passed
    assert "2 stored banks: at most 2.0e-02 beyond eps" in check.figure


def test_where_nothing_was_fooled_there_is_nothing_to_explain_by_rounding(make_evaluation):
    check = health.rejudged(make_evaluation(main=Lazy, others=()))
    assert (check.passed, "fools no image" in check.figure) == (False, True)
    assert check.meaning.startswith("Nothing was fooled, so nothing shows that the attack works")
    assert "rounding" not in check.meaning


class InFloat32(nn.Module):
    """Sees black and white in any other arithmetic than float32, so that small perturbations are lost there."""

    def forward(self, x):
        return x if x.dtype == torch.float32 else x.round()


def test_successes_that_depend_on_the_arithmetic_are_red(make_evaluation, trained):
    precise = MultiExitNet([nn.Sequential(InFloat32(), trained.stages[0]), *trained.stages[1:]], trained.heads).eval()
    check = health.rejudged(make_evaluation(precise))
    assert not check.passed
    counts = dict(part.strip().rsplit(" ", 1) for part in check.figure.split(": ")[1].split(";")[0].split(","))
    assert counts["batches of 1"] == counts["batches of 7"] == "0"
    assert int(counts["float64"]) > 5
    assert int(counts["bf16"]) > 5


class ByNumpy(nn.Module):
    """Knows the types of numpy, bf16 not among them, and passes the gradient on."""

    def forward(self, x):
        return x + (torch.from_numpy(x.detach().numpy()) - x.detach())


def test_a_network_that_knows_float32_alone_is_judged_in_what_it_knows(make_evaluation, trained):
    net = MultiExitNet([nn.Sequential(ByNumpy(), trained.stages[0]), *trained.stages[1:]], trained.heads).eval()
    check = health.rejudged(make_evaluation(net))
    assert check.passed
    assert "float64 0, bf16 not judged: the network does not run in it; with pixels" in check.figure


class Moody(nn.Module):
    """Sees black and white when it is given a single image, so that small perturbations are lost."""

    def forward(self, x):
        return x.round() if len(x) == 1 else x


def test_successes_that_depend_on_the_batch_size_are_red(make_evaluation, trained):
    moody = MultiExitNet([nn.Sequential(Moody(), trained.stages[0]), *trained.stages[1:]], trained.heads).eval()
    assert not health.rejudged(make_evaluation(moody)).passed


def test_an_attack_without_gradients_does_not_need_them(make_evaluation, trained):
    evaluation = make_evaluation(rounded(trained))
    found = evaluation.under(Square(eps=0.15, queries=60))
    assert float(found.right.double().mean()) < float(evaluation.under(None).right.double().mean()) - 0.2


def test_a_planted_weakness_is_where_it_was_planted_and_nowhere_around(make_evaluation):
    evaluation = make_evaluation()
    planted = plant(evaluation, evaluation.split.sample(evaluation.batch_size), EXTENT)
    assert planted.holds.double().mean() > 0.9
    assert (
        evaluation.verdict(planted.net, planted.policy, planted.split, None, evaluation.engine)
        .right[planted.holds]
        .all()
    )


def test_nothing_can_be_planted_in_a_network_that_sees_no_difference(make_evaluation, trained):
    blind = MultiExitNet([nn.Sequential(Blind(), trained.stages[0]), *trained.stages[1:]], trained.heads).eval()
    check = health.planted_weakness(make_evaluation(blind), EXTENT)
    assert not check.passed
    assert f"planted in 0 of {IMAGES} images" in check.figure


class Blind(nn.Module):
    """Sees nothing."""

    def forward(self, x):
        return x * 0


def test_the_line_passes_between_the_corner_and_all_points_around():
    chance = torch.Generator().manual_seed(3)
    inner = torch.randn(30, 4, 6, generator=chance)
    corner = 8 * F.normalize(torch.randn(4, 6, generator=chance), dim=1)
    weight, bias = line(inner, corner)
    margins = (inner * weight).sum(dim=2) + bias
    at_corner = (corner * weight).sum(dim=1) + bias
    torch.testing.assert_close(margins[0], torch.full((4,), -3.0))
    far = margins.amax(dim=0)
    assert (far < 0).all()
    # nine tenths of the way from the farthest point to the corner
    torch.testing.assert_close(at_corner, (at_corner - far) * 0.1)


def test_an_attack_that_ran_already_does_not_run_again(make_evaluation, monkeypatch):
    evaluation = make_evaluation()
    first = evaluation.under(evaluation.main)
    monkeypatch.setattr(Soft, "run", None)
    assert evaluation.under(replace(evaluation.main)) is first
    assert len(evaluation.history) == 1


def flags(wrong, total=20):
    return torch.arange(total) >= wrong


@pytest.mark.parametrize(
    ("only_strong", "only_weak", "verdict"),
    [(6, 0, False), (7, 0, True), (9, 1, False), (10, 1, True), (0, 9, False), (0, 0, False)],
)
def test_a_difference_counts_when_a_coin_would_not_make_it(only_strong, only_weak, verdict):
    """Seven heads in a row come in 1 of 128 times, six in 1 of 64."""
    strong, weak = torch.ones(2, 30, dtype=torch.bool)
    strong[:only_strong] = False
    weak[20 : 20 + only_weak] = False
    assert beats(strong, weak) is verdict
    assert not beats(strong, weak, comparisons=1000)


def test_only_a_stronger_attack_that_leaves_more_right_is_refused():
    assert never_helps([flags(0), flags(5), flags(5), flags(20)], 3)
    assert never_helps([flags(5), flags(3), flags(20)], 2)
    assert not never_helps([flags(0), flags(20), flags(3)], 2)


def test_a_share_counts_as_too_large_beyond_chance():
    assert not above(0, 100, 0.01)
    assert not above(4, 100, 0.01)
    assert above(5, 100, 0.01)
    assert above(1, 100, 0)


def test_quick_takes_fewer_and_larger_steps_unless_they_were_typed():
    def hurried(*typed):
        counts = dict.fromkeys(("samples", "restarts", "queries", "draws"), 1000)
        options = typed_options.Health(quick=True, threat=typed_options.TestThreat(0.3, 0.01, 40), **counts)
        hurry(options, set(typed))
        return options.threat

    quick = hurried()
    assert quick.test_steps < 40
    assert quick.step_size * quick.test_steps == pytest.approx(2.5 * 0.3)
    assert hurried("threat.step_size").step_size == 0.01
    assert hurried("threat.test_steps") == typed_options.TestThreat(0.3, 0.01, 40)


class Noise(nn.Module):
    """A little noise, in eval mode too."""

    def forward(self, x):
        return x + 1e-4 * torch.randn_like(x)


class Dropping(nn.Dropout):
    """Dropout that does not know eval mode."""

    def forward(self, x):
        return F.dropout(x, 0.01, training=True)


class Functional(nn.Sequential):
    """Random between its layers, in no layer of its own."""

    def forward(self, x):
        return super().forward(x) * (1 + 1e-4 * torch.rand(()))


@pytest.mark.parametrize(
    ("weaken", "named"),
    [
        (
            lambda net: MultiExitNet([net.stages[0], nn.Sequential(net.stages[1], Noise()), net.stages[2]], net.heads),
            "stages.1.1 (Noise)",
        ),
        (
            lambda net: MultiExitNet(net.stages, [*net.heads[:2], nn.Sequential(Dropping(), net.heads[2])]),
            "heads.2.0 (Dropping)",
        ),
        (
            lambda net: MultiExitNet([net.stages[0], Functional(net.stages[1]), net.stages[2]], net.heads),
            "stages.1 (Functional)",
        ),
    ],
)
def test_a_layer_that_is_random_in_eval_mode_is_red_and_named(weaken, named, make_evaluation, trained):
    found = health.repeatable(make_evaluation(net=weaken(trained).eval()))
    assert not found.passed
    assert f"differ from {named} by" in found.figure


def test_two_passes_of_a_network_without_chance_agree(make_evaluation):
    found = health.repeatable(make_evaluation())
    assert found.passed
    assert f"twice the same on {IMAGES} images" in found.figure


@pytest.mark.parametrize(("count", "passed", "asked"), [(8, False, "give samples="), (40, True, "samples=")])
def test_a_small_sample_is_told_how_many_images_it_needs(count, passed, asked, make_evaluation):
    evaluation = make_evaluation()
    few = evaluation.split.images[:count], evaluation.split.labels[:count], evaluation.split.indices[:count]
    evaluation.split = Split("test", *few)
    found = health.enough(evaluation)
    assert found.passed == passed
    assert asked in found.figure


def test_the_number_of_images_asked_for_is_the_first_that_suffices():
    needed = 9
    for share in (0.05, 0.5):
        count = sample.images(share, needed)
        chance = [
            1 - sum(math.comb(n, k) * share**k * (1 - share) ** (n - k) for k in range(needed))
            for n in (count - 1, count)
        ]
        assert chance[0] < sample.POWER <= chance[1]
    assert sample.smallest_share(sample.images(0.5, needed), needed) in (0.49, 0.5)
    assert sample.smallest_share(needed - 1, needed) is None
