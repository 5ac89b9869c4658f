"""Backbones with exits: published sizes and costs, exits of one's own, gradients, prefixes."""

import math
from functools import lru_cache, partial

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rdi import macs
from rdi.backbones import feature_shapes, mobilenetv2, resnet, smallcnn
from rdi.errors import UserError
from rdi.exits import (
    ConvPool,
    CustomExits,
    MultiExitNet,
    NoExits,
    Normalise,
    PaperExits,
    PoolLinear,
    PoolMLP,
    attach,
    normalised,
)
from rdi.report.reproduction import MFLOP

MNIST, CIFAR = (1, 28, 28), (3, 32, 32)
BUILD = {
    "smallcnn": (partial(smallcnn, MNIST, 10), MNIST),
    "resnet38": (partial(resnet, CIFAR, 10, depth=38), CIFAR),
    "mobilenetv2": (partial(mobilenetv2, CIFAR, 10), CIFAR),
    "mobilenetv2_075": (partial(mobilenetv2, CIFAR, 10, width=0.75), CIFAR),
}
EXITS = {"smallcnn": 3, "resnet38": 7, "mobilenetv2": 7, "mobilenetv2_075": 7}

# the tables of costs in the official code: convolutions only, own head only, unit 2**20, truncated to two decimals
PAPER_MFLOPS = {
    "smallcnn": [0.81, 7.00, 9.25],
    "resnet38": [16.79, 30.29, 36.54, 50.04, 61.42, 74.92, 79.42],
    "mobilenetv2": [7.94, 22.90, 30.12, 36.54, 51.16, 67.90, 86.91],
    "mobilenetv2_075": [5.64, 14.47, 18.69, 22.38, 30.74, 40.26, 51.00],
}


@lru_cache
def built(name):
    torch.manual_seed(0)
    backbone, shape = BUILD[name][0](), BUILD[name][1]
    return PaperExits()(backbone).eval(), shape


@lru_cache
def costs(name):
    return macs.count(*built(name))


def parameters(net):
    return sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize(
    ("name", "with_exits", "plain"),
    [("smallcnn", 836_846, 312_202), ("resnet38", 692_310, 564_122), ("mobilenetv2", None, 2_296_922)],
)
def test_parameter_counts_are_the_published_ones(name, with_exits, plain):
    if with_exits is not None:
        assert parameters(built(name)[0]) == with_exits
    assert parameters(NoExits()(BUILD[name][0]())) == plain


@pytest.mark.parametrize("name", PAPER_MFLOPS)
def test_paper_costs_are_the_published_table(name):
    truncated = [math.floor(100 * cost / MFLOP) / 100 for cost in costs(name).macs_paper]
    assert truncated == PAPER_MFLOPS[name]


def test_smallcnn_first_exit_has_the_three_published_decimals():
    assert math.floor(1000 * costs("smallcnn").macs_paper[0] / MFLOP) == 818


def test_costs_of_smallcnn_follow_the_hand_formula():
    conv1 = 32 * 1 * 9 * 26 * 26
    conv2 = 32 * 32 * 9 * 24 * 24
    conv3 = 64 * 32 * 9 * 10 * 10
    conv4 = 64 * 64 * 9 * 8 * 8
    head1_conv, head1_linear = 16 * 32 * 9 * 12 * 12, 16 * 6 * 6 * 200 + 200 * 200 + 200 * 10
    head2_linear = 64 * 5 * 5 * 200 + 200 * 200 + 200 * 10
    last_linear = 64 * 4 * 4 * 200 + 200 * 200 + 200 * 10
    exit1 = conv1 + head1_conv + head1_linear
    exit2 = exit1 + conv2 + conv3 + head2_linear
    exit3 = exit2 + conv4 + last_linear
    counted = costs("smallcnn")
    assert counted.macs == (exit1, exit2, exit3)
    assert counted.macs_paper == (conv1 + head1_conv, conv1 + conv2 + conv3, conv1 + conv2 + conv3 + conv4)
    assert counted.macs_plain == conv1 + conv2 + conv3 + conv4 + last_linear
    assert counted.macs_plain_paper == conv1 + conv2 + conv3 + conv4


def test_honest_costs_of_resnet38_add_every_head_on_the_way():
    # the official code gives them for convolutions only, so the linear layers of the heads come off first
    linear = [32 * 10, 32 * 10, 32 * 10, 32 * 10, 64 * 10, 64 * 10, 64 * 10]
    shown = []
    for k, cost in enumerate(costs("resnet38").macs):
        shown.append(round((cost - sum(linear[: k + 1])) / MFLOP, 2))
    assert shown == [16.80, 37.67, 51.30, 65.92, 78.42, 91.92, 96.42]


@pytest.mark.parametrize("name", ["smallcnn", "resnet38", "mobilenetv2"])
def test_costs_agree_with_torchs_own_counter_on_every_prefix(name):
    net, shape = built(name)
    counted = costs(name)
    x = torch.zeros(1, *shape)
    for k in range(net.exits):
        with FlopCounterMode(display=False) as everything, torch.no_grad():
            net.logits_at(x, range(k + 1))
        assert everything.get_total_flops() == 2 * counted.macs[k]
        with FlopCounterMode(display=False) as own_head, torch.no_grad():
            net.logits_at(x, [k])
        convolutions = own_head.get_flop_counts()["Global"][torch.ops.aten.convolution]
        assert convolutions == 2 * counted.macs_paper[k]
    assert own_head.get_total_flops() == 2 * counted.macs_plain
    assert counted.macs_plain_paper == counted.macs_paper[-1]
    assert counted.macs_plain < counted.macs[-1], "a sample that reaches the end has paid for every head"


def test_counting_leaves_the_network_as_it_was(tiny):
    net = tiny().train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    macs.count(net, (1, 8, 8))
    assert all(module.training for module in net.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())


def test_costs_of_a_plain_network_have_one_entry_without_overhead():
    counted = macs.count(NoExits()(smallcnn(MNIST, 10)), MNIST)
    assert counted.macs == (counted.macs_plain,)
    assert counted.macs_paper == (counted.macs_plain_paper,)


@pytest.mark.parametrize("name", ["smallcnn", "resnet38", "mobilenetv2"])
def test_forward_gives_one_tensor_for_all_exits(name):
    net, shape = built(name)
    with torch.no_grad():
        logits = net(torch.rand(2, *shape))
    assert logits.shape == (2, EXITS[name], 10)
    assert net.exits == EXITS[name] == len(net.stages) == len(net.heads)


@pytest.mark.parametrize("name", ["smallcnn", "resnet14", "mobilenetv2"])
def test_every_parameter_gets_a_gradient_from_the_sum_of_exits(name, paper_net):
    shape = (1, 20, 20) if name == "smallcnn" else (3, 16, 16)
    net = paper_net(name, shape).train()
    net(torch.rand(4, *shape)).square().sum().backward()
    silent = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert silent == []


def test_the_last_layer_of_smallcnn_starts_at_zero():
    net = built("smallcnn")[0]
    with torch.no_grad():
        logits = net(torch.rand(2, *MNIST))
    assert torch.equal(logits[:, 2], torch.zeros(2, 10))
    assert logits[:, :2].abs().min() > 0


@pytest.mark.parametrize("wanted", [[0], [2], [0, 2], [2, 1], [0, 1, 2], [1, 1]])
def test_logits_at_some_exits_are_those_of_forward(tiny, batch, wanted):
    net, (x, _) = tiny(), batch()
    with torch.no_grad():
        assert torch.equal(net.logits_at(x, wanted), net(x)[:, sorted(set(wanted))])


def test_logits_at_runs_nothing_behind_the_last_exit_asked_for_and_no_other_head(tiny, batch):
    net, (x, _) = tiny(exits=4), batch()
    ran = []
    for kind in ("stages", "heads"):
        for k, module in enumerate(getattr(net, kind)):
            module.register_forward_hook(lambda *_, kind=kind, k=k: ran.append((kind, k)))
    net.logits_at(x, [0, 2])
    assert ran == [("stages", 0), ("heads", 0), ("stages", 1), ("stages", 2), ("heads", 2)]


@pytest.mark.parametrize("name", ["smallcnn", "resnet14", "mobilenetv2"])
@pytest.mark.parametrize(("channels", "size", "classes"), [(1, 28, 7), (2, 24, 3), (3, 40, 10)])
def test_other_images_and_class_counts_fit_every_backbone(name, channels, size, classes, paper_net):
    net = paper_net(name, (channels, size, size), classes)
    with torch.no_grad():
        logits = net(torch.rand(2, channels, size, size))
    assert logits.shape == (2, net.exits, classes)
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", ["smallcnn", "resnet38", "mobilenetv2"])
def test_without_exits_the_network_has_one(name):
    build, shape = BUILD[name]
    net = NoExits()(build()).eval()
    with torch.no_grad():
        assert net(torch.rand(1, *shape)).shape == (1, 1, 10)


@pytest.mark.parametrize("name", ["smallcnn", "resnet14", "mobilenetv2"])
@pytest.mark.parametrize(
    "heads",
    [
        [PoolLinear],
        [partial(ConvPool, channels=3, layers=2)],
        [partial(PoolMLP, hidden=5, grid=2)],
        [PoolLinear, partial(ConvPool, channels=2), PoolMLP],
    ],
    ids=["linear", "conv", "mlp", "one_per_tap"],
)
def test_custom_heads_fit_behind_any_block_of_any_backbone(name, heads):
    shape = (3, 20, 20)
    backbone = {
        "smallcnn": partial(smallcnn, shape, 5),
        "resnet14": partial(resnet, shape, 5, depth=14),
        "mobilenetv2": partial(mobilenetv2, shape, 5, width=0.25),
    }[name]()
    last = len(backbone.blocks) - 1
    taps = [0, 1, last - 1]
    net = CustomExits(taps=taps, heads=heads)(backbone).eval()
    assert [len(stage) for stage in net.stages] == [1, 1, last - 2, 1]
    with torch.no_grad():
        logits = net(torch.rand(2, *shape))
    assert logits.shape == (2, 4, 5)


def test_custom_exits_leave_the_last_exit_what_the_plain_network_gives():
    backbone = resnet((3, 16, 16), 4, depth=14)
    x = torch.rand(2, 3, 16, 16)
    plain = NoExits()(backbone).eval()
    cut = CustomExits(taps=[0, 3, 5], heads=[PoolLinear])(backbone).eval()
    with torch.no_grad():
        assert torch.equal(cut(x)[:, -1], plain(x)[:, 0])


@pytest.mark.parametrize("taps", [[3], [4], [1, 1], [2, 0]])
def test_taps_that_do_not_exist_or_do_not_ascend_are_refused(taps):
    with pytest.raises(UserError, match="ascending block numbers from 0 to 2"):
        CustomExits(taps=taps, heads=[PoolLinear])(smallcnn(MNIST, 10))


@pytest.mark.parametrize("taps", [[-1], [True], [0.5]])
def test_taps_that_are_no_block_numbers_are_refused(taps):
    with pytest.raises(UserError, match=r"exits\.taps"):
        CustomExits(taps=taps, heads=[PoolLinear])


def test_heads_that_do_not_match_the_taps_are_refused():
    with pytest.raises(UserError, match="2 heads, 3 taps"):
        CustomExits(taps=[0, 1, 2], heads=[PoolLinear, PoolLinear])


def test_a_head_with_a_wrong_number_of_classes_is_refused():
    with pytest.raises(UserError, match="tap 1 returns"):
        attach(smallcnn(MNIST, 10), [(1, lambda features, classes: PoolLinear(features, classes + 1))])


def test_a_backbone_without_published_exits_says_what_to_do():
    backbone = smallcnn(MNIST, 10)
    bare = type(backbone)(**{**vars(backbone), "paper_exits": ()})
    with pytest.raises(UserError, match="exits=custom"):
        PaperExits()(bare)


def test_stages_and_heads_must_come_in_pairs():
    with pytest.raises(UserError, match="2 stages, 1 heads"):
        MultiExitNet([nn.Identity(), nn.Identity()], [nn.Flatten()])
    with pytest.raises(UserError, match="0 stages"):
        MultiExitNet([], [])


@pytest.mark.parametrize("depth", [8, 13, 15, 19, 37, 39, 150])
def test_depths_other_than_6n_plus_2_are_refused(depth):
    with pytest.raises(UserError, match=r"backbone\.depth"):
        resnet(CIFAR, 10, depth=depth)


@pytest.mark.parametrize(
    ("depth", "taps"),
    [
        # n = 2..4: the second tap of group 3 would be the last block, which has the classifier already
        (14, [1, 2, 3, 4, 5]),
        (20, [1, 3, 4, 6, 7]),
        (26, [2, 4, 6, 8, 10]),
        (38, [2, 5, 8, 11, 14, 17]),
    ],
)
def test_resnet_exits_sit_where_the_paper_puts_them(depth, taps):
    backbone = resnet((3, 8, 8), 10, depth=depth)
    assert [tap for tap, _ in backbone.paper_exits] == taps
    assert len(backbone.blocks) == depth // 2
    assert PaperExits()(backbone).exits == len(taps) + 1
    assert [shape[0] for shape in backbone.shapes].count(16) == 1 + (depth - 2) // 6


def test_mobilenet_exits_sit_behind_layer_19k_over_7():
    backbone = mobilenetv2((3, 16, 16), 10, width=0.25)
    assert len(backbone.blocks) == 19
    assert [tap + 1 for tap, _ in backbone.paper_exits] == [2, 5, 8, 10, 13, 16]


@pytest.mark.parametrize(
    "build",
    [partial(smallcnn, MNIST, 10, dropout=1.5), partial(mobilenetv2, CIFAR, 10, width=0)],
    ids=["dropout", "width"],
)
def test_backbone_options_out_of_range_are_refused(build):
    with pytest.raises(UserError, match="must be in"):
        build()


def test_images_too_small_for_smallcnn_are_refused_and_the_smallest_that_fit_work():
    with pytest.raises(UserError, match="images of 1x15x15 do not fit"):
        smallcnn((1, 15, 15), 10)
    net = PaperExits()(smallcnn((1, 16, 16), 10)).eval()
    with torch.no_grad():
        assert net(torch.rand(1, 1, 16, 16)).shape == (1, 3, 10)


def test_images_too_small_for_a_head_are_refused():
    # the trunk of a ResNet takes 2x2 images, the pooled convolutions of its first exit do not
    with pytest.raises(UserError, match="features of 16x2x2 do not fit the head at tap 1"):
        PaperExits()(resnet((3, 2, 2), 10, depth=14))


def test_feature_shapes_are_those_of_a_real_pass_and_leave_the_mode_alone():
    backbone = mobilenetv2((3, 24, 24), 10, width=0.25)
    assert all(block.training for block in backbone.blocks)
    features = torch.rand(1, 3, 24, 24)
    for block, shape in zip(backbone.blocks, backbone.shapes, strict=True):
        features = block.eval()(features)
        assert tuple(features.shape[1:]) == shape
    assert feature_shapes(backbone.blocks, (3, 24, 24)) == backbone.shapes


def test_normalisation_is_the_first_step_of_stage_0_and_a_buffer():
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
    plain = NoExits()(resnet((3, 8, 8), 4, depth=14)).eval()
    net = normalised(plain, mean, std).eval()
    x = torch.rand(2, 3, 8, 8)
    by_hand = torch.stack([(x[:, c] - mean[c]) / std[c] for c in range(3)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(net(x), plain(by_hand))
    assert isinstance(net.stages[0][0], Normalise)
    assert parameters(net) == parameters(plain)
    assert {"stages.0.0.mean", "stages.0.0.std"} <= set(net.state_dict())
    assert net.exits == 1


def test_a_wider_resnet_costs_the_square_of_its_width():
    plain, wide = (NoExits()(resnet((3, 32, 32), 10, depth=20, width=width)) for width in (1, 2))
    costs = [macs.count(net, (3, 32, 32)).macs_plain for net in (plain, wide)]
    stem, classifier = 3 * 16 * 9 * 1024, 64 * 10  # these two grow with the width alone
    assert costs[1] == 4 * (costs[0] - stem - classifier) + 2 * (stem + classifier)
    assert [block.conv1.out_channels for block in resnet((3, 32, 32), 10, depth=20, width=1.5).blocks[1::3]] == [
        24,
        48,
        96,
    ]


@pytest.mark.parametrize("width", [0, -1, float("nan"), "wide", 1e9])
def test_a_width_out_of_range_is_refused_by_name(width):
    with pytest.raises(UserError, match=r"backbone\.width"):
        resnet((3, 32, 32), 10, depth=20, width=width)


def test_groups_of_any_length_and_width():
    plain = NoExits()(resnet((3, 32, 32), 10, blocks=[1, 3, 3], channels=[32, 48, 96]))
    middle = 9 * 256 * (32 * 48 + 5 * 48 * 48) + 256 * 32 * 48
    last = 9 * 64 * (48 * 96 + 5 * 96 * 96) + 64 * 48 * 96
    # the convolutions by hand, then the classifier, its bias and the pooling
    convolutions = 9 * 1024 * (3 * 32 + 2 * 32 * 32) + middle + last
    assert convolutions < macs.count(plain, (3, 32, 32)).macs_plain < convolutions + 64 * 96 * 2
    halved = resnet((3, 8, 8), 4, blocks=[1, 1, 1, 1])
    assert halved.shapes == ((16, 8, 8), (16, 8, 8), (32, 4, 4), (64, 2, 2), (128, 1, 1))
    assert resnet((3, 8, 8), 4, blocks=[2, 2, 2]).shapes == resnet((3, 8, 8), 4, depth=14).shapes


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"blocks": []}, "blocks"),
        ({"blocks": [1, 0]}, "blocks"),
        ({"blocks": "133"}, "blocks"),
        ({"blocks": 3}, "blocks"),
        ({"blocks": [1, 2.5]}, "blocks"),
        ({"channels": [16, 32]}, "channels"),
        ({"blocks": [1, 2], "channels": [16, -1]}, "channels"),
        ({"channels": 16}, "channels"),
    ],
)
def test_groups_that_are_no_list_of_positive_numbers_are_refused(settings, name):
    with pytest.raises(UserError, match=rf"backbone\.{name}"):
        resnet((3, 8, 8), 4, **settings)
