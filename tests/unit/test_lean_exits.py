"""Lean exits: late, few, and within their share of every backbone's cost."""

from functools import partial

import pytest
import torch

from rdi import macs
from rdi.backbones import mobilenetv2, resnet, smallcnn
from rdi.errors import UserError
from rdi.exits import ConvPool, PoolLinear, PoolMLP
from rdi.lean_exits import LeanExits

HEADS = [partial(ConvPool, channels=64, layers=1), partial(PoolMLP, hidden=128, grid=4), PoolLinear]
BACKBONES = {
    "smallcnn": lambda: smallcnn((1, 28, 28), 10),
    "resnet20": lambda: resnet((3, 32, 32), 10, depth=20),
    "resnet38": lambda: resnet((3, 32, 32), 10, depth=38),
    "mobilenetv2": lambda: mobilenetv2((3, 32, 32), 10),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_heads_together_cost_at_most_their_share_of_any_backbone(name):
    net = LeanExits(depths=[0.5, 0.8], heads=HEADS)(BACKBONES[name]())
    shape = (1, 28, 28) if name == "smallcnn" else (3, 32, 32)
    costs = macs.count(net, shape)
    assert net.exits == 3
    assert costs.macs[-1] - costs.macs_plain <= 0.02 * costs.macs_plain
    assert net(torch.rand(2, *shape)).shape == (2, 3, 10)


def test_exits_of_resnet38_sit_behind_the_blocks_nearest_to_their_depths():
    net = LeanExits(depths=[0.62, 0.78], heads=HEADS)(resnet((3, 32, 32), 10, depth=38))
    assert [len(stage) for stage in net.stages] == [12, 3, 4]
    assert isinstance(net.heads[0], ConvPool)
    assert isinstance(net.heads[1], PoolMLP)  # a convolution there would exceed the 2 % together with the first


def test_the_first_head_that_still_fits_is_taken():
    backbone = resnet((3, 32, 32), 10, depth=20)
    generous = LeanExits(depths=[0.5, 0.8], heads=HEADS, share=0.5)(backbone)
    strict = LeanExits(depths=[0.5, 0.8], heads=HEADS, share=0.0005)(resnet((3, 32, 32), 10, depth=20))
    assert [type(head) for head in generous.heads[:2]] == [ConvPool, ConvPool]
    assert [type(head) for head in strict.heads[:2]] == [PoolLinear, PoolLinear]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": []}, r"exits\.depths"),
        ({"depths": [0.8, 0.5]}, r"exits\.depths"),
        ({"depths": [0.5, 0.5]}, r"exits\.depths"),
        ({"depths": [1.0]}, r"exits\.depths"),
        ({"depths": [0.5], "heads": []}, r"exits\.heads"),
        ({"depths": [0.5], "share": 0.0}, r"exits\.share"),
        ({"depths": [0.5], "share": 1e-9}, "raise exits.share"),
        ({"depths": [0.50, 0.51]}, "fall on the blocks"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        LeanExits(**{"heads": HEADS, **settings})(smallcnn((1, 28, 28), 10))
    assert "\n" not in str(caught.value)
