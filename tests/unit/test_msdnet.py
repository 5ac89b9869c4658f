"""MSDNet: costs against a count by hand, packed features against plain lists, prefixes that really run alone."""

import math

import pytest
import torch
from torch import nn

from rdi import macs
from rdi.adaptive import AdaptivePredictor
from rdi.attacks import MaxAverage
from rdi.attacks.engine import Engine, batchnorm_pairs
from rdi.backbones import msdnet
from rdi.backbones.msdnet import Coarsest
from rdi.defenses import Adversarial
from rdi.errors import UserError
from rdi.exits import CustomExits, PaperExits, PoolLinear
from rdi.thresholds import Entropy, ThresholdPolicy

SMALL = (3, 16, 16)
TINY = {"exits": 3, "base": 1, "step": 1, "channels": 4, "growth": 2, "scales": 2}


@pytest.fixture
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return PaperExits()(msdnet(SMALL, 5, **TINY)).eval()


def by_hand(size, classes, steps, width=16, growth=6, scales=3):
    """Multiply-adds of the way to each exit, from the description of the network in the paper and its appendix."""
    pixels = [(size >> scale) ** 2 for scale in range(scales)]
    run = sum(9 * (3 if s == 0 else width << (s - 1)) * (width << s) * pixels[s] for s in range(scales))
    interval, layer, finest, found = math.ceil(sum(steps) / scales), 0, 0, []
    for count in steps:
        for _ in range(count):
            before, finest = finest, layer // interval
            for s in range(finest, scales):
                made = growth << s
                if s > before:  # half of the new channels come from the scale above, strided
                    made //= 2
                    inner = min(width << (s - 1), made << (s - 1))
                    run += (width << (s - 1)) * inner * pixels[s - 1] + 9 * inner * made * pixels[s]
                inner = min(width << s, made << s)
                run += ((width << s) * inner + 9 * inner * made) * pixels[s]
            width += growth
            layer += 1
            if finest > before:
                run += sum((width << s) * ((width // 2) << s) * pixels[s] for s in range(finest, scales))
                width //= 2
        run += (
            9 * (width << (scales - 1)) * 128 * (pixels[-1] // 4) + 9 * 128 * 128 * (pixels[-1] // 16) + 128 * classes
        )
        found.append(run)
    return tuple(found)


@pytest.mark.parametrize(
    ("options", "steps"),
    [({"exits": 3}, [4, 2, 2]), ({"exits": 5, "base": 1, "step": 1, "step_mode": "grow"}, [1, 2, 3, 4, 5])],
    ids=["anytime", "budgeted"],
)
def test_costs_are_those_counted_by_hand(options, steps):
    counted = macs.count(PaperExits()(msdnet((3, 32, 32), 100, **options)), (3, 32, 32))
    assert counted.macs == by_hand(32, 100, steps)


def test_parameters_are_as_many_as_the_authors_print():
    """check_msdnet/log.txt of kalviny/MSDNet-PyTorch at 0b0c543: ten exits for CIFAR-10, and what their heads see."""
    net = PaperExits()(msdnet((3, 32, 32), 10, exits=10, base=4, step=2))
    assert sum(one.numel() for one in net.parameters()) == 4_839_544
    seen = [next(one.in_channels for one in head.modules() if isinstance(one, nn.Conv2d)) for head in net.heads]
    assert seen == [160, 208, 256, 164, 212, 260, 308, 188, 236, 284]
    assert macs.count(net, (3, 32, 32)).macs == by_hand(32, 10, [4, *[2] * 9])


def test_packed_features_give_what_plain_lists_of_scales_give(net):
    x = torch.rand(3, *SMALL)
    features, logits = x, []
    with torch.no_grad():
        for stage, head in zip(net.stages, net.heads, strict=True):
            (block,) = stage
            for layer in block.layers:
                features = layer(features)
            assert isinstance(head[0], Coarsest)
            logits.append(head[1:](features[-1]))
        assert torch.equal(net(x), torch.stack(logits, dim=1))
    # the finest of two scales goes after half of the three layers
    assert [len(one.layers) for (one,) in net.stages] == [2, 1, 2]
    assert len(features) == 1


def test_a_layer_appends_new_channels_and_keeps_the_old_ones(net):
    x = torch.rand(2, *SMALL)
    with torch.no_grad():
        before = net.stages[0][0].layers[0](x)
        after = net.stages[0][0].layers[1](before)
    assert [one.shape[1] for one in before] == [4, 8]
    assert [one.shape[1] for one in after] == [6, 12]
    assert all(torch.equal(new[:, : old.shape[1]], old) for new, old in zip(after, before, strict=True))


@pytest.mark.parametrize("compaction", ["always", "auto"])
def test_images_that_have_left_are_not_seen_by_later_blocks(net, compaction):
    x = torch.rand(8, *SMALL)
    with torch.no_grad():
        logits = net(x)
    middle = float(Entropy()(logits)[:, 0].median())
    policy = ThresholdPolicy(Entropy(), [middle, 0.0])
    seen = []
    net.stages[1].register_forward_hook(lambda module, given, out: seen.append(len(given[0])))
    found = AdaptivePredictor(net, policy, compaction=compaction)(x)
    exits = policy.choose(logits)
    assert torch.equal(found.exits, exits)
    assert torch.equal(found.labels, logits.argmax(dim=2)[torch.arange(8), exits])
    assert 0 < int((exits > 0).sum()) < 8
    if compaction == "always":
        assert seen[-1] == int((exits > 0).sum())


def test_every_batchnorm_folds_into_the_crafting_copy(net):
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(batchnorm_pairs(net)) == len(norms)
    x = torch.rand(2, *SMALL)
    with torch.no_grad():
        torch.testing.assert_close(Engine().copy(net).refresh()(x), net(x), rtol=1e-4, atol=1e-4)


def test_a_step_of_adversarial_training_reaches_every_parameter(net, batch):
    defense = Adversarial(attack=MaxAverage(eps=0.03, step_size=0.01, steps=2), engine=Engine())
    x, y = batch(count=4, shape=SMALL, classes=5)
    loss, logs = defense.loss(net.train(), x, y, torch.Generator().manual_seed(0))
    loss.backward()
    assert logs["robust_accuracy"].shape == (3,)
    assert [name for name, one in net.named_parameters() if one.grad is None] == []


def test_heads_for_feature_maps_and_bad_options_are_refused():
    with pytest.raises(UserError, match=r"backbone\.growth must be even"):
        msdnet(SMALL, 5, growth=3)
    with pytest.raises(UserError, match="at most 200 are built"):
        msdnet(SMALL, 5, exits=32, step=20)
    with pytest.raises(UserError, match="do not fit the head at tap 0"):
        CustomExits(taps=[0], heads=[PoolLinear])(msdnet(SMALL, 5, **TINY))
