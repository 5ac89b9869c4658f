"""Real early exit equals the masked computation of everything."""

import pytest
import torch

from rdi import macs
from rdi.adaptive import AdaptivePredictor
from rdi.errors import UserError
from rdi.thresholds import Confidence, Entropy, Margin, Policy, ShareRule, ThresholdPolicy


def between_scores(score, logits, shares=None):
    """Thresholds that use every exit and lie half-way between two samples, so that rounding decides nothing."""
    fitted = ShareRule(score=score, shares=shares).fit(logits)
    values = []
    for k, value in enumerate(fitted.values):
        scores = sorted(score(logits[:, k]).tolist())
        position = min(range(len(scores)), key=lambda i: abs(scores[i] - value))
        neighbour = position + 1 if score.higher_is_surer else position - 1
        values.append((scores[position] + scores[neighbour]) / 2)
    return ThresholdPolicy(score, values)


@pytest.mark.parametrize("score", [Entropy(), Confidence(), Margin()], ids=["entropy", "confidence", "margin"])
@pytest.mark.parametrize(
    ("name", "shape", "samples"),
    [("smallcnn", (1, 16, 16), 24), ("resnet38", (3, 16, 16), 28), ("mobilenetv2", (3, 16, 16), 28)],
)
def test_labels_exits_and_costs_equal_those_of_the_whole_network(name, shape, samples, score, paper_net):
    net = paper_net(name, shape)
    x = torch.rand(samples, *shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        logits = net(x)
    policy = between_scores(score, logits)
    exits = policy.choose(logits)
    assert set(exits.tolist()) == set(range(net.exits)), "every exit is used"
    result = AdaptivePredictor(net, policy)(x)
    assert result.exits.tolist() == exits.tolist()
    assert result.labels.tolist() == [int(logits[n, k].argmax()) for n, k in enumerate(exits.tolist())]
    table = macs.count(net, shape).macs
    assert result.macs.tolist() == [table[k] for k in exits.tolist()]


@pytest.fixture
def predictor(tiny, batch):
    net, (x, _) = tiny(exits=4), batch(count=16)
    with torch.no_grad():
        logits = net(x)
    return AdaptivePredictor(net, between_scores(Entropy(), logits)), x, logits


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
    exits = Agreement(5).choose(logits)
    assert len(set(exits.tolist())) > 2, "samples leave at different exits"
    assert AdaptivePredictor(net, Agreement(5))(x).exits.tolist() == exits.tolist()


def test_nothing_behind_exit_0_runs_when_everybody_leaves_there(tiny, batch):
    net, (x, _) = tiny(), batch()
    predict = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [99.0, 0.0]))
    cheapest = predict.costs(x.shape[1:]).macs[0]
    for module in (net.stages[1], net.heads[1], net.stages[2], net.heads[2]):
        module.register_forward_hook(lambda *_: pytest.fail("a later part ran"))
    result = predict(x)
    assert result.exits.tolist() == [0] * len(x)
    assert result.macs.tolist() == [cheapest] * len(x)


def test_everybody_reaches_the_end_when_no_threshold_lets_go(tiny, batch):
    net, (x, _) = tiny(), batch()
    result = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [-1.0, -1.0]))(x)
    with torch.no_grad():
        assert result.labels.tolist() == net(x)[:, 2].argmax(1).tolist()
    assert result.exits.tolist() == [2] * len(x)


def test_a_batch_without_samples_gives_none_back(tiny):
    result = AdaptivePredictor(tiny(), ThresholdPolicy(Entropy(), [0.5, 0.5]))(torch.zeros(0, 1, 8, 8))
    assert result.labels.shape == result.exits.shape == result.macs.shape == (0,)


def test_the_model_is_put_into_eval_mode(tiny):
    net = tiny().train()
    AdaptivePredictor(net, ThresholdPolicy(Entropy(), [0.5, 0.5]))
    assert not any(module.training for module in net.modules())


def test_thresholds_for_another_number_of_exits_are_refused(tiny):
    with pytest.raises(UserError, match="for 2 exits, the network has 3"):
        AdaptivePredictor(tiny(), ThresholdPolicy(Entropy(), [0.5]))
