"""Compiled parts answer as plain ones, are compiled once per size, and give way in one line where that fails."""

import pytest
import torch

from rdi import adaptive
from rdi.adaptive import AdaptivePredictor
from rdi.compiled import SIZES, CompiledPart, compiled, compiled_static, fitting, pieces, warm_up
from rdi.thresholds import Entropy, ShareRule


@pytest.fixture
def compiler():
    """A backend of torch.compile that runs graphs as they are and notes the batch of each; one per compilation."""
    torch._dynamo.reset()
    batches = []

    def backend(graph, inputs):
        batches.append(max(given.shape[0] for given in inputs if given.dim() in (2, 4) and not given.requires_grad))
        return graph.forward

    backend.batches = batches
    yield backend
    torch._dynamo.reset()


def test_a_batch_is_cut_into_few_sizes_and_mostly_full():
    for count in range(1, 600):
        cut = list(pieces(count, SIZES))
        assert sum(images for images, _ in cut) == count
        assert all((padded in SIZES and images <= padded < 2 * images) or images == padded for images, padded in cut)
        assert {padded for _, padded in cut} <= set(fitting(count, SIZES))
    assert list(pieces(20, SIZES)) == [(16, 16), (4, 4)]
    assert list(pieces(50, SIZES)) == [(50, 64)]


def test_nothing_is_compiled_after_the_warm_up(tiny, compiler, monkeypatch):
    net = tiny(exits=2)
    images = torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = net(images)
    policy = ShareRule(score=Entropy()).fit_logits(logits)
    monkeypatch.setattr(adaptive, "compiled", lambda model: compiled(model, (1, 4, 16), compiler))
    predict = AdaptivePredictor(net, policy, compaction="always", compile=True)
    predict(images)
    before = len(compiler.batches)
    assert before == 3 * 4, "three sizes of two stages and two heads"
    for count in range(1, 21):
        out = predict(images[:count])
        assert out.exits.tolist() == policy.choose(logits[:count]).tolist()
        assert out.labels.tolist() == policy.predict(logits[:count], out.exits).tolist()
    found = list(predict.stream(images.split(7), max_wait=2))
    assert torch.cat([out.exits for out in found]).tolist() == policy.choose(logits).tolist()
    assert len(compiler.batches) == before


def test_the_static_network_too(tiny, compiler):
    net = tiny()
    static = compiled_static(net, (1, 4), compiler)
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    warm_up(static, images)
    assert len(compiler.batches) == 2
    with torch.no_grad():
        torch.testing.assert_close(static(images), net(images)[:, -1])
    assert len(compiler.batches) == 2


def test_a_compiler_that_fails_is_told_in_one_line(tiny, said):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler\nsearched everywhere")

    torch._dynamo.reset()
    net = tiny(exits=1)
    part = CompiledPart(net.stages[0], (1, 4), broken)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(part(images), net.stages[0](images))
    assert not part.compiled
    assert len(said) == 1
    assert "compile=True does not work here" in said[0]
    assert "\n" not in said[0]


def test_the_warm_up_says_what_it_does(tiny, compiler, said):
    net = compiled(tiny(exits=2), (1, 4, 16), compiler)
    warm_up(net, torch.rand(5, 1, 8, 8))
    assert said[0] == "compiling 4 parts of the network for batches of 1, 4; larger ones are cut"
    assert said[1].startswith("compiled in ")
