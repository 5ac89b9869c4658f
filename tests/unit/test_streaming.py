"""A stream answers every batch as the predictor does, in order, within its bound, with later stages fuller."""

import pytest
import torch

from rdi.adaptive import AdaptivePredictor
from rdi.errors import UserError
from rdi.thresholds import EnsemblePolicy, Entropy, PatiencePolicy, ShareRule, ThresholdPolicy


@pytest.fixture
def subject(tiny):
    """A network, batches of several lengths, and thresholds half-way between two images."""
    net = tiny(exits=4)
    chance = torch.Generator().manual_seed(5)
    batches = [torch.rand(count, 1, 8, 8, generator=chance) for count in (8, 8, 5, 0, 8, 1, 8)]
    with torch.no_grad():
        return net, batches, net(torch.cat(batches))


def kinds(logits):
    inner = ShareRule(score=Entropy()).fit_logits(EnsemblePolicy(ThresholdPolicy(Entropy(), [0.0] * 3)).answers(logits))
    return [ShareRule(score=Entropy()).fit_logits(logits), PatiencePolicy(4, 1), EnsemblePolicy(inner)]


@pytest.mark.parametrize("max_wait", [0, 1, 3, 100])
def test_every_batch_is_answered_as_alone_and_in_order(max_wait, subject):
    net, batches, logits = subject
    for policy in kinds(logits):
        predict = AdaptivePredictor(net, policy, compaction="always")
        found = list(predict.stream(iter(batches), max_wait=max_wait))
        assert len(found) == len(batches)
        for x, out in zip(batches, found, strict=True):
            alone = predict(x)
            assert out.exits.tolist() == alone.exits.tolist()
            assert out.labels.tolist() == alone.labels.tolist()
            assert out.macs.tolist() == alone.macs.tolist()
            torch.testing.assert_close(out.probabilities, alone.probabilities, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_wait", [0, 1, 3])
def test_no_answer_comes_later_than_the_bound(max_wait, subject):
    net, batches, logits = subject
    predict = AdaptivePredictor(net, kinds(logits)[0])
    taken, waits = [], []

    def source():
        for number, x in enumerate(batches):
            taken.append(number)
            yield x

    for number, _ in enumerate(predict.stream(source(), max_wait=max_wait, full=1000)):
        waits.append(taken[-1] - number)
    assert max(waits) == max_wait, "pools that never fill wait as long as they may, and no longer"
    assert taken == list(range(len(batches)))


def test_later_stages_run_full(subject):
    net, batches, logits = subject
    predict = AdaptivePredictor(net, kinds(logits)[0], compaction="always")
    predict.costs((1, 8, 8))  # counted on a copy of the network, once per shape
    sizes = [[] for _ in net.stages]
    for stage, seen in zip(net.stages, sizes, strict=True):
        stage.register_forward_hook(lambda module, given, out, seen=seen: seen.append(len(given[0])))
    for x in batches:
        predict(x)
    alone, sizes[:] = [list(seen) for seen in sizes], [seen.clear() or seen for seen in sizes]
    list(predict.stream(batches, max_wait=100, full=8))
    for k in (1, 2, 3):
        assert sum(sizes[k]) == sum(alone[k])
        assert len(sizes[k]) < len(alone[k])
        assert set(sizes[k][:-1]) <= {8}, "only what the end of the stream leaves is less than full"


def test_images_that_come_one_by_one_are_run_together(subject):
    net, batches, logits = subject
    predict = AdaptivePredictor(net, kinds(logits)[0], compaction="always")
    predict.costs((1, 8, 8))
    sizes = []
    net.stages[0].register_forward_hook(lambda module, given, out: sizes.append(len(given[0])))
    images = torch.cat(batches)
    found = list(predict.stream(images.split(1), max_wait=5))
    assert sizes == [6] * 6 + [2], "38 images, each of which may wait for five others"
    sizes.clear()
    list(predict.stream(images.split(1), max_wait=100))
    assert sizes == [16, 16, 6], "by default 16 do not wait for more"
    alone = predict(images)
    assert [out.exits.item() for out in found] == alone.exits.tolist()
    assert [out.labels.item() for out in found] == alone.labels.tolist()


def test_images_that_wait_are_not_the_callers_tensor(subject):
    net, batches, logits = subject
    predict = AdaptivePredictor(net, kinds(logits)[0], compaction="always")
    images, buffer = torch.cat(batches), torch.empty(1, 1, 8, 8)

    def refilled():
        for image in images.split(1):
            yield buffer.copy_(image)

    found = list(predict.stream(refilled(), max_wait=5))
    alone = predict(images)
    assert [out.exits.item() for out in found] == alone.exits.tolist()
    assert [out.labels.item() for out in found] == alone.labels.tolist()


def test_what_no_stream_takes_is_refused(tiny, subject):
    predict = AdaptivePredictor(subject[0], ThresholdPolicy(Entropy(), [0.1] * 3))
    with pytest.raises(UserError, match="max_wait must be at least 0, got -1"):
        predict.stream([], max_wait=-1)
    with pytest.raises(UserError, match="full must be at least 1, got 0"):
        predict.stream([], full=0)
    with pytest.raises(UserError, match="must have one size: 1x8x8 came first, then 1x9x9"):
        list(predict.stream([torch.zeros(2, 1, 8, 8), torch.zeros(2, 1, 9, 9)]))
    with pytest.raises(UserError, match=r"takes tensors .* got list: of a loader's pairs give the images alone"):
        list(predict.stream([[torch.zeros(2, 1, 8, 8), torch.zeros(2)]]))
    with pytest.raises(UserError, match=r"got one of shape \(8, 8\)"):
        list(predict.stream([torch.zeros(8, 8)]))
    with pytest.raises(UserError, match=r"batches must be an iterable of tensors .* got NoneType"):
        predict.stream(None)
    assert list(predict.stream([])) == []
