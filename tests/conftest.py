"""Small networks and random batches that the tests share."""

import gc
import logging

import pytest
import torch
from torch import nn

from rdi.backbones import mobilenetv2, resnet, smallcnn
from rdi.exits import MultiExitNet, PaperExits

pytest.register_assert_rewrite("helpers")

# two cores are plenty for nets this small, and one thread sums in one order
torch.set_num_threads(1)


def pytest_collection_finish():
    """Have the garbage collector leave alone what stays to the end: libraries and thousands of tests."""
    gc.collect()
    gc.freeze()


def settled(net, x):
    """Give every BatchNorm the statistics of `x`: fresh running statistics let deep nets saturate in eval mode."""
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 1.0
    net.train()
    with torch.no_grad():
        net(x)
    for norm, momentum in zip(norms, kept, strict=True):
        norm.momentum = momentum
    return net.eval()


@pytest.fixture(scope="session")
def settle():
    """settle(net, x) -> net in eval mode, its BatchNorm statistics those of x."""
    return settled


@pytest.fixture
def batch():
    """batch(count, shape, classes, seed) -> images_NCHW in [0, 1] and labels_N."""

    def make(count=4, shape=(1, 8, 8), classes=4, seed=1):
        chance = torch.Generator().manual_seed(seed)
        return (
            torch.rand(count, *shape, generator=chance),
            torch.randint(classes, (count,), generator=chance),
        )

    return make


@pytest.fixture
def tiny():
    """tiny(exits, ...) -> an untrained MultiExitNet of a few channels with BatchNorm, in eval mode."""

    def make(exits=3, channels=4, shape=(1, 8, 8), classes=4, dropout=0.0, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            stages, heads, width = [], [], shape[0]
            for _ in range(exits):
                stages.append(
                    nn.Sequential(nn.Conv2d(width, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU())
                )
                heads.append(
                    nn.Sequential(
                        nn.AdaptiveAvgPool2d(2),
                        nn.Flatten(),
                        nn.Dropout(dropout),
                        nn.Linear(4 * channels, classes),
                    )
                )
                width = channels
            return settled(MultiExitNet(stages, heads), torch.rand(16, *shape))

    return make


@pytest.fixture
def paper_net():
    """paper_net(name, shape) -> a backbone with the paper's exits, random weights everywhere, in eval mode."""

    def make(name, shape, classes=10, seed=0):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone = {
                "smallcnn": lambda: smallcnn(shape, classes),
                "resnet14": lambda: resnet(shape, classes, depth=14),
                "resnet38": lambda: resnet(shape, classes, depth=38),
                "mobilenetv2": lambda: mobilenetv2(shape, classes),
            }[name]()
            net = PaperExits()(backbone)
            for module in net.modules():
                # SmallCNN's last layer starts at zero: without this its last exit has no gradient to follow
                if isinstance(module, nn.Linear):
                    nn.init.normal_(module.weight, std=module.in_features**-0.5)
            return settled(net, torch.rand(8, *shape))

    return make


@pytest.fixture
def said():
    """What rdi's logger says, whether or not the command line has switched its propagation off."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = logging.getLogger("rdi")
    level = logger.level
    logger.setLevel(logging.INFO)  # not by attribute: setLevel also empties logging's cache of what is enabled
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)
    logger.setLevel(level)
