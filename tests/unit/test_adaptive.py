"""Real early exit equals the masked computation of everything."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from rdi import adaptive, compaction_cost, cpu_batches, macs
from rdi.adaptive import COMPACTION, AdaptivePredictor
from rdi.attacks.engine import Engine
from rdi.compaction_cost import StageTimes
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.thresholds import (
    AgreementPolicy,
    Confidence,
    EnsemblePolicy,
    Entropy,
    Margin,
    PatiencePolicy,
    Policy,
    ShareRule,
    ThresholdPolicy,
)


def between_scores(score, logits, shares=None):
    """Thresholds that use every exit and lie half-way between two samples, so that rounding decides nothing."""
    return ShareRule(score=score, shares=shares).fit_logits(logits)


@pytest.mark.parametrize("samples", [1, 2])
@pytest.mark.parametrize("shape", [(1, 9, 9), (3, 8, 8)])
def test_images_of_another_size_are_refused_alone_and_in_a_batch(samples, shape):
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(2 * 64, 3)) for _ in range(2)]
    net = MultiExitNet([nn.Conv2d(1, 2, 3, padding=1), nn.ReLU()], heads)
    predict = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [0.5]))
    predict(torch.rand(samples, 1, 8, 8))
    with pytest.raises(UserError, match="does not take images of"):
        predict(torch.rand(samples, *shape))
    with pytest.raises(UserError, match="does not take images of"):
        next(predict.stream([torch.rand(samples, *shape)]))


def assert_as_masked(result, logits, policy, table):
    """The prediction is what the policy makes of the whole network's logits."""
    exits = policy.choose(logits).tolist()
    assert result.exits.tolist() == exits
    assert result.labels.tolist() == policy.predict(logits, torch.tensor(exits, dtype=torch.long)).tolist()
    assert result.macs.tolist() == [table[k] for k in exits]
    taken = policy.answers(logits)[torch.arange(len(exits)), exits]
    torch.testing.assert_close(result.probabilities, taken.softmax(dim=1).float(), rtol=1e-4, atol=1e-5)


TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["by numpy", "by torch"])
BACKBONES = [("smallcnn", (1, 16, 16), 24), ("resnet38", (3, 16, 16), 28), ("mobilenetv2", (3, 16, 16), 28)]


@pytest.mark.parametrize(("name", "shape", "samples"), BACKBONES)
def test_labels_exits_and_costs_equal_those_of_the_whole_network(name, shape, samples, paper_net):
    net = paper_net(name, shape)
    x = torch.rand(samples, *shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = net(x)
    table = macs.count(net, shape).macs
    for score in (Entropy(), Confidence(), Margin()):
        policy = between_scores(score, logits)
        assert set(policy.choose(logits).tolist()) == set(range(net.exits)), "every exit is used"
        for compaction in COMPACTION:
            assert_as_masked(AdaptivePredictor(net, policy, compaction=compaction)(x), logits, policy, table)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "last"])
@pytest.mark.parametrize(("name", "shape", "samples"), BACKBONES)
def test_the_folded_copy_in_channels_last_gives_the_same(name, shape, samples, memory_format, paper_net):
    net = Engine().copy(paper_net(name, shape)).net
    x = torch.rand(samples, *shape, generator=torch.Generator().manual_seed(3))
    x = x.contiguous(memory_format=memory_format)
    with torch.no_grad():
        logits = net(x)
    policy = between_scores(Entropy(), logits)
    table = macs.count(net, shape).macs
    for compaction in COMPACTION:
        assert_as_masked(AdaptivePredictor(net, policy, compaction=compaction)(x), logits, policy, table)


@pytest.fixture(params=[torch.float32, torch.float64], ids=["by numpy", "by torch"])
def predictor(request, tiny, batch):
    net, x = tiny(exits=4).to(request.param), batch(count=16)[0].to(request.param)
    with torch.no_grad():
        logits = net(x)
    return AdaptivePredictor(net, between_scores(Entropy(), logits), compaction="always"), x, logits


def test_one_sample_at_a_time_gives_the_same(predictor):
    predict, x, _ = predictor
    together = predict(x)
    for n in range(len(x)):
        alone = predict(x[n : n + 1])
        assert (int(alone.labels), int(alone.exits), int(alone.macs)) == (
            int(together.labels[n]),
            int(together.exits[n]),
            int(together.macs[n]),
        )


def test_samples_that_left_are_not_computed_any_further(predictor):
    predict, x, logits = predictor
    predict.costs(x.shape[1:])  # counted on a copy of the network, once per shape
    seen = []
    for stage in predict.model.stages:
        stage.register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    exits = predict.policy.choose(logits)
    predict(x)
    assert seen == [int((exits >= k).sum()) for k in range(4)]


class Agreement(Policy):
    """Leave where the label is the same as at the exit before: a decision on all logits seen so far."""

    def __init__(self, exits):
        self.exits = exits

    def leaves(self, logits_NKC):
        labels = logits_NKC.argmax(dim=2)
        if labels.shape[1] == 1:
            return torch.zeros(len(labels), dtype=torch.bool)
        return labels[:, -1] == labels[:, -2]


def test_a_policy_sees_each_samples_own_earlier_logits(tiny, batch):
    net, (x, _) = tiny(exits=5), batch(count=32)
    with torch.no_grad():
        # untrained exits agree by chance only once their favourite classes are levelled
        for head in net.heads:
            head[-1].weight.normal_(std=2.0, generator=torch.Generator().manual_seed(len(net.heads)))
        logits = net(x)
    assert len(set(Agreement(5).choose(logits).tolist())) > 2, "samples leave at different exits"
    table = macs.count(net, x.shape[1:]).macs
    for compaction in COMPACTION:
        result = AdaptivePredictor(net, Agreement(5), compaction=compaction)(x)
        assert_as_masked(result, logits, Agreement(5), table)
        assert not result.compacted[0], "nobody can leave at the first exit"


def test_nothing_behind_exit_0_runs_when_everybody_leaves_there(tiny, batch):
    net, (x, _) = tiny(), batch()
    predict = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [99.0, 0.0]), compaction="always")
    cheapest = predict.costs(x.shape[1:]).macs[0]
    for module in (net.stages[1], net.heads[1], net.stages[2], net.heads[2]):
        module.register_forward_hook(lambda *_: pytest.fail("a later part ran"))
    result = predict(x)
    assert result.exits.tolist() == [0] * len(x)
    assert result.macs.tolist() == [cheapest] * len(x)
    assert result.compacted == (True, False)


def test_everybody_reaches_the_end_when_no_threshold_lets_go(tiny, batch):
    net, (x, _) = tiny(), batch()
    for compaction in COMPACTION:
        result = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [-1.0, -1.0]), compaction=compaction)(x)
        with torch.no_grad():
            assert result.labels.tolist() == net(x)[:, 2].argmax(1).tolist()
        assert result.exits.tolist() == [2] * len(x)
        assert result.compacted == (False, False)


@TYPES
def test_nothing_is_copied_where_nobody_leaves(dtype, tiny, batch, monkeypatch):
    net, x = tiny().to(dtype), batch()[0].to(dtype)
    for module in (adaptive, cpu_batches):
        monkeypatch.setattr(module, "close_up", lambda *_: pytest.fail("the features were copied"))
    AdaptivePredictor(net, ThresholdPolicy(Entropy(), [-1.0, -1.0]), compaction="always")(x)


@pytest.mark.parametrize("compaction", COMPACTION)
def test_a_batch_without_samples_gives_none_back(tiny, compaction):
    policy = ThresholdPolicy(Entropy(), [0.5, 0.5])
    result = AdaptivePredictor(tiny(), policy, compaction=compaction)(torch.zeros(0, 1, 8, 8))
    assert result.labels.shape == result.exits.shape == result.macs.shape == (0,)


def test_the_model_is_put_into_eval_mode(tiny):
    net = tiny().train()
    AdaptivePredictor(net, ThresholdPolicy(Entropy(), [0.5, 0.5]))
    assert not any(module.training for module in net.modules())


def test_a_model_that_was_trained_since_answers_in_eval_mode(tiny, batch):
    net, (x, _) = tiny(dropout=0.5), batch(count=20)
    predict = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [1.2, 1.2]))
    before = predict(x)
    net.train()
    assert torch.equal(predict(x).probabilities, before.probabilities)


@pytest.mark.parametrize("option", ["check", "compile"])
def test_flags_are_true_or_false(option, tiny):
    with pytest.raises(UserError, match=f"{option} must be true or false, got 'no'"):
        AdaptivePredictor(tiny(), ThresholdPolicy(Entropy(), [0.5, 0.5]), **{option: "no"})


def test_thresholds_for_another_number_of_exits_are_refused(tiny):
    with pytest.raises(UserError, match="for 2 exits, the network has 3"):
        AdaptivePredictor(tiny(), ThresholdPolicy(Entropy(), [0.5]))


@TYPES
@pytest.mark.parametrize("compaction", COMPACTION)
def test_another_policy_may_be_set_between_two_batches(compaction, dtype, tiny, batch):
    net, x = tiny().to(dtype), batch()[0].to(dtype)
    predict = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [-1.0, -1.0]), compaction=compaction)
    for images in (x, x[:1]):
        for policy, exit in [(Agreement(3), None), (ThresholdPolicy(Entropy(), [99.0, 0.0]), 0)]:
            predict.policy = policy
            wanted = policy.choose(net(images)).tolist() if exit is None else [exit] * len(images)
            assert predict(images).exits.tolist() == wanted
    with pytest.raises(UserError, match="for 2 exits, the network has 3"):
        predict.policy = ThresholdPolicy(Entropy(), [0.5])


def test_another_compaction_is_refused(tiny):
    with pytest.raises(UserError, match="one of auto, always, never; got 'sometimes'"):
        AdaptivePredictor(tiny(), ThresholdPolicy(Entropy(), [0.5, 0.5]), compaction="sometimes")


def policies(logits):
    """One policy of every kind that decides without randomness."""
    exits = logits.shape[1]
    plain = between_scores(Confidence(), logits)
    others = [between_scores(score, logits) for score in (Entropy(), Margin())]
    combined = [
        policy.around(between_scores(Confidence(), policy.combine(logits)))
        for policy in (EnsemblePolicy(plain), AgreementPolicy(plain))
    ]
    together = [*combined, PatiencePolicy(exits, 1), Agreement(exits)]
    return [plain, *others, *together]


@TYPES
@pytest.mark.parametrize("compaction", COMPACTION)
@pytest.mark.parametrize("number", range(7))
def test_batches_of_any_length_answer_as_the_whole_network(compaction, number, dtype, tiny, batch):
    net, x = tiny(exits=4).to(dtype), batch(count=24)[0].to(dtype)
    with torch.no_grad():
        for k, head in enumerate(net.heads):  # untrained exits always say the same
            head[-1].weight.normal_(std=2.0, generator=torch.Generator().manual_seed(k))
        logits = net(x)
    policy = policies(logits)[number]
    assert len(set(policy.choose(logits).tolist())) > 1, "images leave at different exits"
    predict = AdaptivePredictor(net, policy, compaction=compaction)
    table = predict.costs(x.shape[1:]).macs
    for start, end in [(0, 1), (1, 3), (3, 6), (6, 24), *((n, n + 1) for n in range(24))]:
        found = predict(x[start:end])
        assert_as_masked(found, logits[start:end], policy, table)
        assert not any(one.is_inference() for one in vars(found).values() if isinstance(one, torch.Tensor))


def test_one_image_that_numpy_does_not_take_stops_where_the_plan_looks(tiny, batch, monkeypatch):
    net, x = tiny(exits=4).double(), batch(count=1)[0].double()
    predict = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [99.0, -1.0, 99.0]))
    for looks, compacted in [
        ((True, True, True), (True, False, False)),
        ((False, True, True), (False, True, False)),
        ((False, False, True), (False, False, True)),
        ((False, False, False), (False, False, False)),
    ]:
        monkeypatch.setattr(predict, "_planned", lambda x, looks=looks: (looks, None))
        found = predict(x)
        assert (found.exits.tolist(), found.compacted) == ([0], compacted)


class NoWaiting(TorchDispatchMode):
    """Fails on operators whose result the host reads: on a GPU each waits for all work before it."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func.overloadpacket.__name__ not in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("predictor", [torch.float64], indirect=True, ids=[""])
def test_the_masked_computation_never_waits_for_the_device(predictor):
    staged, x, _ = predictor
    masked = AdaptivePredictor(staged.model, staged.policy, compaction="never", check=False)
    masked(x)  # counts the MACs
    with NoWaiting():
        masked(x)
    with pytest.raises(AssertionError), NoWaiting():
        staged(x)


@pytest.fixture
def costs(monkeypatch):
    """costs(fixed, per_sample, decision, gather): the break-even is made of these seconds instead of measured."""

    def make(fixed=0.0, per_sample=0.0, decision=0.0, gather=0.0):
        def times(model, policy, images):
            parts = (fixed + per_sample * len(images),) * model.exits
            return StageTimes(parts, decision, (gather * len(images),) * (model.exits - 1))

        monkeypatch.setattr(compaction_cost, "measure", times)

    return make


@pytest.mark.parametrize(
    ("given", "compacted"),
    [
        ({"per_sample": 1.0}, (True, True, True)),  # time follows the samples: a CPU
        ({"fixed": 1.0}, (False, False, False)),  # time does not: a GPU with few samples
        ({"per_sample": 1.0, "decision": 1e9}, (False, False, False)),
        ({"per_sample": 1.0, "gather": 1e9}, (False, False, False)),
    ],
    ids=["saves", "saves nothing", "deciding costs", "copying costs"],
)
def test_the_batch_is_compacted_where_that_pays(predictor, costs, given, compacted):
    always, x, logits = predictor
    costs(**given)
    predict = AdaptivePredictor(always.model, always.policy)
    result = predict(x)
    assert result.compacted == compacted
    assert_as_masked(result, logits, always.policy, predict.costs(x.shape[1:]).macs)
    assert ("runs the whole network" in predict.describe(x.shape[1:], len(x))) == (not any(compacted))


def test_samples_that_are_carried_along_keep_their_exit(predictor, monkeypatch):
    always, x, logits = predictor
    table = always.costs(x.shape[1:]).macs
    for looks in [(True, True, True), (False, True, False), (True, False, True)]:
        for paying in [(), (0,), (1,), (2,), (0, 2)]:
            way = (looks, lambda k, samples, stay, paying=paying: k in paying)
            monkeypatch.setattr(always, "_planned", lambda x, way=way: way)
            result = always(x)
            assert result.compacted == tuple(looks[k] and k in paying for k in range(3))
            assert_as_masked(result, logits, always.policy, table)


def test_the_choice_follows_the_exits_that_were_taken(tiny, batch, costs):
    net, (x, _) = tiny(), batch(count=64)
    costs(per_sample=1.0, decision=20.0)
    nobody, everybody = ThresholdPolicy(Entropy(), [-1.0, -1.0]), ThresholdPolicy(Entropy(), [99.0, 99.0])
    predict = AdaptivePredictor(net, nobody)
    assert "compacts at exits" in predict.describe(x.shape[1:], len(x))
    for _ in range(5):
        predict(x)
    assert "runs the whole network" in predict.describe(x.shape[1:], len(x))
    predict.policy = everybody
    assert not any(predict(x).compacted), "it cannot know yet"
    for _ in range(5):
        last = predict(x)
    assert last.compacted == (True, False)


def test_what_was_asked_for_is_said(predictor):
    always, x, _ = predictor
    never = AdaptivePredictor(always.model, always.policy, compaction="never")
    assert always.describe(x.shape[1:], 8) == "batch 8: compacts at every exit, as asked"
    assert never.describe(x.shape[1:], 8) == "batch 8: runs the whole network, as asked"


@TYPES
def test_images_that_a_stage_hands_on_are_not_written_to(dtype, batch):
    heads = [nn.Sequential(nn.Flatten(), nn.Linear(64, 4)) for _ in range(3)]
    net = MultiExitNet([nn.Identity(), nn.Identity(), nn.Identity()], heads).eval().to(dtype)
    x = batch(count=12)[0].to(dtype)
    with torch.no_grad():
        logits = net(x)
    policy, before = between_scores(Entropy(), logits), x.clone()
    result = AdaptivePredictor(net, policy, compaction="always")(x)
    assert any(result.compacted)
    assert torch.equal(x, before)
    assert result.exits.tolist() == policy.choose(logits).tolist()


def test_probabilities_are_those_of_the_policys_answer(tiny, batch):
    net, (x, _) = tiny(), batch(count=8)
    policy = EnsemblePolicy(ThresholdPolicy(Entropy(), [-1.0, 9.0]), "arithmetic")
    with torch.no_grad():
        expected = net(x)[:, :2].softmax(dim=2).mean(dim=1)
    for compaction in COMPACTION:
        result = AdaptivePredictor(net, policy, compaction=compaction)(x)
        torch.testing.assert_close(result.probabilities, expected)
        assert torch.equal(result.probabilities.argmax(dim=1), result.labels)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda x: (255 * x).to(torch.uint8),
            r"float tensor of shape NCHW, got torch\.uint8 .*give x\.float\(\) / 255",
        ),
        (lambda x: 255 * x, r"x must lie in \[0, 1\]"),
        (lambda x: x - 0.5, r"x must lie in \[0, 1\]"),
        (lambda x: torch.where(x > 0.9, torch.nan, x), r"x must lie in \[0, 1\]"),
        (lambda x: x[0], r"shape NCHW, got torch\.float32 of shape \(1, 8, 8\)"),
        (lambda x: x.tolist(), "shape NCHW, got list"),
        (lambda x: x.double(), r"x is torch\.float64 on cpu, the network torch\.float32 on cpu: give x\.to"),
        (lambda x: x.repeat(1, 3, 1, 1), r"does not take images of 3x8x8 \(CxHxW\): "),
    ],
    ids=["uint8", "0 to 255", "normalised", "NaN", "one image", "a list", "float64", "channels"],
)
@pytest.mark.parametrize("compaction", COMPACTION)
def test_images_that_are_none_are_refused_in_one_line(compaction, spoil, message, tiny, batch):
    net, (x, _) = tiny(), batch(count=8)
    with pytest.raises(UserError, match=message) as caught:
        AdaptivePredictor(net, ThresholdPolicy(Entropy(), [0.5, 0.5]), compaction=compaction)(spoil(x))
    assert "\n" not in str(caught.value)


def test_a_batch_of_no_images_is_one(predictor):
    predict, x, _ = predictor
    assert predict(x[:0]).probabilities.shape == (0, 4)
