"""Running an attack over a split: every batch has its own stream, and the clean pass is a plain forward."""

import pytest
import torch

from rdi.attacking import attack_split
from rdi.attacks import Average
from rdi.data import Split, to_float
from rdi.errors import UserError
from rdi.seeds import generator

ATTACK = Average(eps=0.1, step_size=0.05, steps=2)


@pytest.fixture
def split():
    rng = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (10, 1, 8, 8), generator=rng, dtype=torch.uint8)
    return Split("test", images, torch.randint(4, (10,), generator=rng), torch.arange(10).numpy())


def run(net, split, attack, **settings):
    return attack_split(net, split, attack, **{"seed": 5, "batch_size": 4, "label": "average", **settings})


def test_without_an_attack_the_logits_are_those_of_the_images(tiny, split):
    net = tiny().train()
    result = run(net, split, None)
    with torch.no_grad():
        torch.testing.assert_close(result.logits, net.eval()(to_float(split.images)))
    assert result.logits.shape == (10, 3, 4)
    assert result.logits.dtype == torch.float32
    assert result.linf == 0
    assert result.seconds > 0


def test_under_attack_every_batch_is_crafted_on_its_own_named_stream(tiny, split):
    net = tiny()
    result = run(net, split, ATTACK)
    farthest = 0.0
    for begin in (0, 4, 8):
        part = slice(begin, begin + 4)
        x, y = to_float(split.images[part]), split.labels[part]
        x_adv = ATTACK(net, x, y, generator("cpu", 5, "attack", "average", begin))
        farthest = max(farthest, float((x_adv - x).abs().max()))
        with torch.no_grad():
            assert torch.equal(result.logits[part], net(x_adv))
    assert result.linf == farthest
    assert 0 < result.linf <= 0.1 + 1e-6


def test_seed_label_and_batch_size_determine_the_result(tiny, split):
    net = tiny()
    first = run(net, split, ATTACK).logits
    assert torch.equal(run(net, split, ATTACK).logits, first)
    for other in ({"seed": 6}, {"label": "other"}, {"batch_size": 3}):
        assert not torch.equal(run(net, split, ATTACK, **other).logits, first)


def test_a_stop_between_two_batches_gives_nothing(tiny, split):
    answers = iter([False, True])
    assert run(tiny(), split, ATTACK, stop=lambda: next(answers)) is None


def test_an_interrupted_attack_goes_on_after_its_last_batch(tiny, split):
    net, kept, answers = tiny(), [], iter([False, False, True])
    assert run(net, split, ATTACK, stop=lambda: next(answers), keep=kept.append) is None
    (begun,) = kept
    assert len(begun.logits) == 8
    whole = run(net, split, ATTACK)
    crafted = []
    net.stages[0].register_forward_hook(lambda module, given, out: crafted.append(len(given[0])))
    rest = run(net, split, ATTACK, begun=begun)
    assert torch.equal(rest.logits, whole.logits)
    assert rest.linf == whole.linf
    assert rest.seconds > begun.seconds
    assert set(crafted) <= {2}, "only the last batch is run"


def test_work_is_kept_from_time_to_time(tiny, split, monkeypatch):
    monkeypatch.setattr("rdi.attacking.KEEP_SECONDS", 0.0)
    kept = []
    run(tiny(), split, ATTACK, keep=kept.append)
    assert [len(done.logits) for done in kept] == [4, 8]


def test_the_images_are_shown_as_they_are_judged(tiny, split):
    net, shown = tiny(), []
    result = run(net, split, ATTACK, see=shown.append)
    assert [len(x) for x in shown] == [4, 4, 2]
    with torch.no_grad():
        torch.testing.assert_close(torch.cat([net(x) for x in shown]), result.logits)


@pytest.mark.parametrize("attack", [None, ATTACK])
def test_a_network_whose_logits_are_no_numbers_makes_no_bank(attack, tiny, split):
    net = tiny()
    with torch.no_grad():
        net.heads[1][-1].bias[0] = torch.nan
    with pytest.raises(UserError, match=r"average: the logits of 4 of 4 images are NaN or infinite \(exits 1\)"):
        run(net, split, attack)
