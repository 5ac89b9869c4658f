"""Compiled parts answer as plain ones, are compiled once for all lengths, and give way in one line where that fails."""

import pytest
import torch

from rdi import adaptive
from rdi.adaptive import AdaptivePredictor
from rdi.compiled import CompiledNet, CompiledPart, compiled_static, warm_up
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.exporting.write import export
from rdi.thresholds import Entropy, ShareRule, ThresholdPolicy


@pytest.fixture
def compiler():
    """A backend of torch.compile that runs graphs as they are and counts them; one per compilation."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    backend.graphs = graphs
    yield backend
    torch._dynamo.reset()


def test_nothing_is_compiled_after_the_warm_up(tiny, compiler, monkeypatch):
    net = tiny(exits=2)
    images = torch.rand(70, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        logits = net(images)
    policy = ShareRule(score=Entropy()).fit_logits(logits)
    compiled = CompiledNet(net, compiler).eval()
    monkeypatch.setattr(adaptive, "shared", lambda model: compiled)
    predict = AdaptivePredictor(net, policy, compaction="always", compile=True)
    predict(images[:1])
    assert len(compiler.graphs) == 2, "two stages with their heads"
    predict(images[:2])
    before = len(compiler.graphs)
    assert before == 2 * 3, "alone, few and many"
    for count in range(1, 71):
        out = predict(images[:count])
        assert out.exits.tolist() == policy.choose(logits[:count]).tolist()
        assert out.labels.tolist() == policy.predict(logits[:count], out.exits).tolist()
    found = list(predict.stream(images.split(7), max_wait=2))
    assert torch.cat([out.exits for out in found]).tolist() == policy.choose(logits).tolist()
    assert AdaptivePredictor(net, policy, compaction="never", compile=True)(images).exits.tolist() == [
        int(exit) for exit in policy.choose(logits)
    ]
    assert len(compiler.graphs) == before
    assert not vars(images), "no mark of the compiler is left on the caller's images"


def test_the_static_network_too(tiny, compiler):
    net = tiny()
    static = compiled_static(net, compiler)
    images = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    warm_up(static, images)
    assert len(compiler.graphs) == 3
    with torch.no_grad():
        torch.testing.assert_close(static(images), net(images)[:, -1])
    assert len(compiler.graphs) == 3


def test_a_compiler_that_fails_is_told_in_one_line(tiny, said):
    def broken(graph, inputs):
        raise RuntimeError("no C++ compiler\nsearched everywhere")

    torch._dynamo.reset()
    net = tiny(exits=1)
    part = CompiledPart(net.stages[0], broken)
    images = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(part(images), net.stages[0](images))
    assert not part.compiled
    assert len(said) == 1
    assert "compile=True does not work here" in said[0]
    assert "\n" not in said[0]


@pytest.mark.parametrize("samples", [1, 3])
def test_images_that_do_not_fit_are_refused_and_the_compiler_stays(samples, tiny, compiler, monkeypatch, said):
    net = tiny(exits=2)
    compiled = CompiledNet(net, compiler).eval()
    monkeypatch.setattr(adaptive, "shared", lambda model: compiled)
    predict = AdaptivePredictor(net, ThresholdPolicy(Entropy(), [0.5]), compile=True)
    with pytest.raises(UserError, match="does not take images of"):
        predict(torch.rand(samples, 3, 8, 8))
    with torch.no_grad(), pytest.raises(RuntimeError):
        compiled.steps[0](torch.rand(samples, 3, 8, 8))
    assert compiled.steps[0].compiled
    assert not said


def test_a_network_with_a_step_of_its_own_is_not_compiled(tiny):
    class Own(MultiExitNet):
        def step(self, features, exit):
            features, logits = super().step(features, exit)
            return features, -logits

    net = tiny(exits=2)
    own = Own(net.stages, net.heads).eval()
    policy = ThresholdPolicy(Entropy(), [0.5])
    with pytest.raises(UserError, match=r"Own has step\(\) of its own"):
        AdaptivePredictor(own, policy, compile=True)
    images = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    with pytest.raises(UserError, match=r"Own has step\(\) of its own"):
        export(own, policy, images, "never")


def test_the_warm_up_says_what_it_does(tiny, compiler, said):
    net = CompiledNet(tiny(exits=2), compiler).eval()
    warm_up(net, torch.rand(5, 1, 8, 8))
    assert said[0] == "compiling 2 parts of the network for batches of any length"
    assert said[1].startswith("compiled in ")
