"""One image by few operators: the heads' logits, the policies' decisions, and what may change between two images."""

import numpy as np
import pytest
import torch
from torch import nn

from rdi.adaptive import AdaptivePredictor
from rdi.attacks.engine import Engine
from rdi.exits import ConvPool, MultiExitNet, PoolLinear, PoolMLP
from rdi.single_image import FewOperators, SingleImage
from rdi.thresholds import (
    AgreementPolicy,
    Confidence,
    EnsemblePolicy,
    Entropy,
    Margin,
    PatiencePolicy,
    RandomisedPolicy,
    ThresholdPolicy,
    in_numpy,
)

SHAPE = (6, 8, 8)


class Odd(nn.Module):
    """A head of its own."""

    def forward(self, x):
        return x.amax(dim=(2, 3)) * 2


HEADS = {
    "linear": lambda: PoolLinear(SHAPE, 5),
    "hidden layer": lambda: PoolMLP(SHAPE, 5, hidden=16, grid=4),
    "wide": lambda: PoolMLP(SHAPE, 5, hidden=512, grid=8),
    "uneven pooling": lambda: PoolMLP(SHAPE, 5, hidden=16, grid=3),
    "convolution": lambda: ConvPool(SHAPE, 5, channels=4),
    "no pooling": lambda: nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(384, 5, bias=False)),
    "nested": lambda: nn.Sequential(nn.ReLU(), nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(6, 5)),
    "per position": lambda: nn.Sequential(
        nn.Linear(8, 5), nn.AdaptiveAvgPool2d((1, 5)), nn.Flatten(), nn.Linear(30, 5)
    ),
    "oblong pooling": lambda: nn.Sequential(nn.AdaptiveAvgPool2d((2, 1)), nn.Flatten(), nn.Linear(12, 5)),
    "partly flat": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(2), nn.Flatten(), nn.Linear(6, 5)),
    "its own": Odd,
    "nothing": nn.Flatten,
}


@pytest.fixture(params=HEADS)
def head(request):
    torch.manual_seed(0)
    return HEADS[request.param]().eval()


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@torch.no_grad()
def test_a_heads_logits_are_its_own(head, memory_format):
    features = torch.randn(1, *SHAPE).to(memory_format=memory_format)
    few = FewOperators(head)
    for _ in range(2):
        np.testing.assert_allclose(few(features), head(features)[0].numpy(), rtol=1e-4, atol=1e-5)
        for parameter in head.parameters():  # weights that change, and weights that are others
            parameter.mul_(0.5)
            parameter.data = parameter.data.clone()
    assert few(features).dtype == np.float32


@torch.no_grad()
def test_heads_of_this_projects_are_taken_apart():
    for name in ("linear", "hidden layer", "wide", "uneven pooling", "convolution", "no pooling", "nested"):
        assert FewOperators(HEADS[name]()).layers, name
    for name in ("oblong pooling", "its own", "nothing"):
        few = FewOperators(HEADS[name]())
        assert not few.pool, name


@torch.no_grad()
def test_hooks_on_a_head_are_called(head):
    few, calls = FewOperators(head), []
    features = torch.randn(1, *SHAPE)
    handle = next(iter(head.modules())).register_forward_hook(lambda *_: calls.append(1))
    few(features)
    assert calls == [1]
    handle.remove()
    few(features)
    assert calls == [1]


@torch.no_grad()
def test_other_types_are_left_to_the_head():
    head = HEADS["hidden layer"]().eval().bfloat16()
    features = torch.randn(1, *SHAPE, dtype=torch.bfloat16)
    assert FewOperators(head)(features).tolist() == head(features)[0].float().tolist()


def policies():
    """Policies of four exits whose thresholds let some of the images of `logits` leave everywhere."""
    for score, values in (
        (Entropy(), [0.5, 0.9, 1.2]),
        (Confidence(), [0.8, 0.6, 0.5]),
        (Margin(), [0.7, 0.4, 0.2]),
    ):
        plain = ThresholdPolicy(score, values)
        yield plain
        yield EnsemblePolicy(plain)
        yield EnsemblePolicy(plain, weights=[1.0, 0.5, 2.0, 3.0])
        yield EnsemblePolicy(plain, "arithmetic")
        yield EnsemblePolicy(EnsemblePolicy(plain))
        yield AgreementPolicy(plain, 2)
        yield EnsemblePolicy(AgreementPolicy(plain, 2))
    yield PatiencePolicy(4, 1)
    yield EnsemblePolicy(PatiencePolicy(4, 1))


def logits(count=200, exits=4, classes=5):
    """Logits_NEC, some of classes that an exit excludes."""
    chance = torch.Generator().manual_seed(0)
    found = 2 * torch.randn(count, exits, classes, generator=chance)
    found = found.masked_fill(torch.rand(found.shape, generator=chance) < 0.1, -float("inf"))
    found[found.isinf().all(dim=2)] = 0.0
    return found


def decision(policy):
    """How one image's logits are decided on, exit by exit."""
    stages, heads = zip(*((nn.Identity(), PoolLinear(SHAPE, 5)) for _ in range(policy.exits)), strict=True)
    return SingleImage(MultiExitNet(stages, heads), policy).decide


@pytest.mark.parametrize("policy", [*policies()], ids=str)
def test_a_policys_decisions_and_answers_are_its_own(policy):
    given = logits()
    decide, wanted, answers = decision(policy), policy.choose(given).tolist(), policy.answers(given)
    for n, rows in enumerate(given.numpy()):
        seen = [decide(list(rows[: k + 1])) for k in range(4)]
        left = next((k for k, (_, leaves) in enumerate(seen) if leaves), 3)
        assert left == wanted[n]
        for k, (answer, _) in enumerate(seen):
            theirs = answers[n, k] if k == 3 else policy.answers(given[n : n + 1, : k + 1])[0, k]
            np.testing.assert_allclose(torch.from_numpy(answer).softmax(0), theirs.softmax(0), rtol=1e-4, atol=1e-6)
    assert len(set(wanted)) > 1


@pytest.mark.parametrize("policy", [*policies()], ids=str)
def test_many_rows_are_decided_on_as_torch_does_or_left_to_it(policy):
    decide, given = in_numpy.decision(policy), logits()
    known = type(policy) is ThresholdPolicy or (policy.describe().get("mean"), policy.draws) == ("geometric", 1)
    if decide is None:
        assert not known or type(policy.policy) is not ThresholdPolicy
        return
    for k in range(4):
        seen = given[:, : k + 1]
        answers, leaves = decide([one.numpy() for one in seen.unbind(1)])
        torch.testing.assert_close(torch.from_numpy(answers), policy.answers(seen)[:, k], rtol=1e-4, atol=1e-5)
        assert leaves.tolist() == (policy.leaves(seen).tolist() if k < 3 else [False] * len(given))
        assert answers.dtype == np.float32


@pytest.mark.parametrize("score", [Entropy(), Confidence(), Margin()], ids=lambda score: type(score).__name__)
@pytest.mark.parametrize("around", [lambda policy: policy, EnsemblePolicy], ids=["plain", "ensemble"])
def test_an_image_at_its_threshold_is_decided_on_as_torch_does(score, around):
    """A score is not beyond itself; numpy's may be, by its last digit."""
    given = logits()
    combined = around(ThresholdPolicy(score, [0.0] * 3)).answers(given)
    for n in range(len(given)):
        policy = around(ThresholdPolicy(score, score(combined[n])[:3].tolist()))
        assert not in_numpy.decision(policy)([given[n, 0].numpy()])[1]
        assert in_numpy.decision(policy)([given[:, 0].numpy()])[1].tolist() == policy.leaves(given[:, :1]).tolist()


def test_thresholds_without_end_let_nobody_or_everybody_leave():
    rows = list(logits(1)[0].numpy())
    decide = decision(ThresholdPolicy(Entropy(), [-float("inf"), float("inf"), 0.0]))
    assert [decide(rows[: k + 1])[1] for k in range(4)] == [False, True, False, False]


def test_random_thresholds_are_drawn_as_often_as_in_a_batch():
    low, high = [0.2, 0.4, 0.6], [1.0, 1.2, 1.4]
    given = logits(50)
    batch = RandomisedPolicy(Entropy(), low, high, draws=1, seed=3).with_draw(0)
    alone = decision(RandomisedPolicy(Entropy(), low, high, draws=1, seed=3).with_draw(0))
    for rows in given:
        seen = [rows[None, : k + 1] for k in range(3)]
        wanted = [bool(batch.leaves(one)) for one in seen]
        assert [alone(list(one[0].numpy()))[1] for one in seen] == wanted


def test_no_image_is_written_to_nor_are_results_inference_tensors(batch):
    """Also where a stage hands the image itself on, and the caller's image has a gradient."""
    images = batch(count=1)[0].requires_grad_()
    before = images.detach().clone()
    net = MultiExitNet([nn.Identity(), nn.Identity()], [PoolLinear((1, 8, 8), 4), PoolMLP((1, 8, 8), 4)])
    found = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [0.0]))(images)
    assert torch.equal(images.detach(), before)
    tensors = [one for one in vars(found).values() if isinstance(one, torch.Tensor)]
    assert [str(one.dtype) for one in tensors] == ["torch.int64"] * 3 + ["torch.float32"]
    assert not any(one.is_inference() or one.requires_grad for one in tensors)
    assert found.exits.tolist() == [1]
    assert found.compacted == (False,)


def test_under_autocast_one_image_is_answered_as_a_batch_is(tiny, batch):
    net, (images, _) = tiny(), batch(count=12)
    predict = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [1.0, 1.2]), compaction="always")
    with torch.autocast("cpu", torch.bfloat16):
        together = predict(images)
        for n, image in enumerate(images.split(1)):
            close = torch.isclose(predict(image).probabilities[0], together.probabilities[n], atol=0.05)
            assert close.all()


def test_the_folded_copy_takes_one_image_as_the_network_does(paper_net, batch):
    net = paper_net("resnet14", (3, 16, 16))
    images = batch(count=16, shape=(3, 16, 16))[0]
    with torch.no_grad():
        given = net(images)
    values = [float(Entropy()(given[:, k]).median()) + 1e-4 for k in range(net.exits - 1)]
    policy = ThresholdPolicy(Entropy(), values)
    folded = SingleImage(Engine().copy(net).net, policy)
    with torch.no_grad():
        found = [folded(image) for image in images.split(1)]
    assert [exit for exit, _ in found] == policy.choose(given).tolist()
    for n, (exit, answer) in enumerate(found):
        np.testing.assert_allclose(answer, given[n, exit].numpy(), rtol=1e-3, atol=1e-4)
