"""Running an attack over a split: every batch has its own stream, and the clean pass is a plain forward."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.examples import MANIFEST
from rdi.attacking import attack_split, joined
from rdi.attacks import Average
from rdi.attacks.engine import DEFAULT_ENGINE
from rdi.banks import PartialBank
from rdi.data import Split, to_float
from rdi.errors import Interrupted, UserError
from rdi.folders import RunFolder
from rdi.records import write
from rdi.runs.crafting import Crafting, make_bank
from rdi.runs.folder import Run
from rdi.seeds import generator

ATTACK = Average(eps=0.1, step_size=0.05, steps=2)


@pytest.fixture
def split():
    rng = torch.Generator().manual_seed(2)
    images = torch.randint(0, 256, (10, 1, 8, 8), generator=rng, dtype=torch.uint8)
    return Split("test", images, torch.randint(4, (10,), generator=rng), torch.arange(10).numpy())


def run(net, split, attack, **settings):
    return joined(attack_split(net, split, attack, **{"seed": 5, "batch_size": 4, "label": "average", **settings}))


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


def made(folder, net, split):
    """make_bank(stop), of a run in `folder` with that network and images."""
    data = SimpleNamespace(test=split, name="digits", fingerprint="ab")
    manifest = replace(MANIFEST, checkpoint_sha256="cd")
    write(RunFolder(folder).manifest, manifest)
    of = Run.of(RunFolder(folder), manifest, net, data, torch.device("cpu"))
    how = Crafting(seed=5, batch_size=4, engine=DEFAULT_ENGINE)
    return lambda stop=lambda: False: make_bank(of, split, "average", ATTACK, how, stop)


def test_a_stop_before_the_first_batch_keeps_nothing(tiny, split, tmp_path):
    with pytest.raises(Interrupted, match="stopped during average; what is done is kept"):
        made(tmp_path, tiny(), split)(lambda: True)
    assert not list(tmp_path.rglob("*.npz"))


def test_an_interrupted_attack_goes_on_after_its_last_batch(tiny, split, tmp_path):
    net, answers = tiny(), iter([False, False, True])
    with pytest.raises(Interrupted):
        made(tmp_path / "a", net, split)(lambda: next(answers))
    (kept,) = (tmp_path / "a").rglob("*.begun.npz")
    with np.load(kept) as arrays:
        assert len(arrays["logits"]) == 8
        spent = float(arrays["seconds"])
    whole = made(tmp_path / "b", net, split)()
    crafted = []
    net.stages[0].register_forward_hook(lambda module, given, out: crafted.append(len(given[0])))
    rest = made(tmp_path / "a", net, split)()
    assert torch.equal(rest.logits, whole.logits)
    assert rest.manifest.linf == whole.manifest.linf
    assert rest.manifest.seconds > spent
    assert set(crafted) <= {2}, "only the last batch is run"
    assert not kept.exists()
    gallery = (tmp_path / "a" / "gallery" / "test-average.npz", tmp_path / "b" / "gallery" / "test-average.npz")
    with np.load(gallery[0]) as one, np.load(gallery[1]) as other:
        assert np.array_equal(one["images"], other["images"])


def test_work_is_kept_from_time_to_time(tiny, split, tmp_path, monkeypatch):
    monkeypatch.setattr("rdi.runs.crafting.KEEP_SECONDS", 0.0)
    kept = []
    monkeypatch.setattr(PartialBank, "save", lambda part, path: kept.append(len(part.logits)))
    made(tmp_path, tiny(), split)()
    assert kept[:2] == [4, 8]


def test_batches_come_with_their_images_as_they_are_judged(tiny, split):
    net = tiny()
    parts = list(attack_split(net, split, ATTACK, seed=5, batch_size=4, label="average"))
    assert [len(part.images) for part in parts] == [4, 4, 2]
    with torch.no_grad():
        for part in parts:
            torch.testing.assert_close(net(part.images), part.logits)
    later = list(attack_split(net, split, ATTACK, seed=5, batch_size=4, label="average", first=8))
    assert [torch.equal(part.logits, parts[2].logits) for part in later] == [True]


@pytest.mark.parametrize("attack", [None, ATTACK])
def test_a_network_whose_logits_are_no_numbers_makes_no_bank(attack, tiny, split):
    net = tiny()
    with torch.no_grad():
        net.heads[1][-1].bias[0] = torch.nan
    with pytest.raises(UserError, match=r"average: the logits of 4 of 4 images are NaN or infinite \(exits 1\)"):
        run(net, split, attack)
