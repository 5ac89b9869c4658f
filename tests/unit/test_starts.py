"""A training that begins with the weights of the same backbone without early exits, or with those it has not."""

import pytest
import torch

from rdi.backbones import resnet, smallcnn
from rdi.exits import NoExits, PaperExits, normalised
from rdi.exits.attach import adopt, chain

STATISTICS = ([0.5], [0.25])


def made(exits, backbone=smallcnn, seed=0, statistics=None, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = exits()(backbone((1, 28, 28), 10, **options))
    return normalised(net, *statistics) if statistics else net


@pytest.mark.parametrize("statistics", [None, STATISTICS], ids=["plain", "normalised"])
@pytest.mark.parametrize(("backbone", "options"), [(smallcnn, {}), (resnet, {"depth": 14})])
def test_blocks_and_classifier_come_over_and_early_heads_stay(backbone, options, statistics, batch):
    x, _ = batch(shape=(1, 28, 28))
    plain = made(NoExits, backbone, 1, statistics, **options).eval()
    for weight in plain.parameters():
        torch.nn.init.normal_(weight, std=0.1, generator=torch.Generator().manual_seed(3))
    net = made(PaperExits, backbone, 2, statistics, **options).eval()
    before = {name: tensor.clone() for name, tensor in net.heads[:-1].state_dict().items()}
    assert not torch.equal(net(x)[:, -1], plain(x)[:, 0])
    assert adopt(net, plain)
    torch.testing.assert_close(net(x)[:, -1], plain(x)[:, 0])
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.heads[:-1].state_dict().items())
    assert len(chain(net)) == len(chain(plain)) > net.exits


@pytest.mark.parametrize("statistics", [None, STATISTICS], ids=["plain", "normalised"])
@pytest.mark.parametrize(("backbone", "options"), [(smallcnn, {}), (resnet, {"depth": 14})])
def test_a_network_without_early_exits_takes_the_last_one_and_what_leads_to_it(backbone, options, statistics, batch):
    x, _ = batch(shape=(1, 28, 28))
    net = made(PaperExits, backbone, 1, statistics, **options).eval()
    plain = made(NoExits, backbone, 2, statistics, **options).eval()
    assert adopt(plain, net)
    torch.testing.assert_close(plain(x)[:, 0], net(x)[:, -1])


def test_the_same_network_comes_over_whole(batch):
    first, second = made(PaperExits, seed=1).eval(), made(PaperExits, seed=2).eval()
    assert not adopt(second, first)
    x, _ = batch(shape=(1, 28, 28))
    assert torch.equal(first(x), second(x))


@pytest.mark.parametrize(
    ("net", "trained"),
    [
        (lambda: made(NoExits, resnet, depth=14), lambda: made(PaperExits)),
        (lambda: made(PaperExits), lambda: made(NoExits, resnet, depth=14)),
        (lambda: made(PaperExits, resnet, depth=14), lambda: made(NoExits, resnet, depth=14, width=0.5)),
        (lambda: made(PaperExits, statistics=STATISTICS), lambda: made(NoExits)),
    ],
    ids=["another backbone into none", "another backbone", "another width", "without normalisation"],
)
def test_other_networks_are_refused(net, trained):
    with pytest.raises(RuntimeError):
        adopt(net(), trained())
