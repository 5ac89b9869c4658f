"""Networks of libraries: cut where they are chains, refused where they are not, and the same network as before."""

import pytest
import torch
from torch import nn
from torchvision.models import resnet18

from rdi import macs
from rdi.attacks.engine import batchnorm_pairs
from rdi.backbones import timm_model, torchvision_model
from rdi.backbones.cutting import cut
from rdi.errors import UserError
from rdi.exits import CustomExits, NoExits, PoolLinear
from rdi.runs.foreign import import_state

SHAPE = (3, 32, 32)


class Small(nn.Module):
    """A chain with a shortcut around its middle, as many networks are written."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4))
        self.body = nn.Conv2d(4, 4, 3, padding=1)
        self.tail = nn.Sequential(nn.Conv2d(4, 6, 3, 2), nn.ReLU())
        self.fc = nn.Linear(6, 5)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = x + self.body(x)
        return self.fc(self.tail(x).mean((2, 3)))


def same(net, network, shape):
    x = torch.rand(2, *shape)
    with torch.no_grad():
        torch.testing.assert_close(net.eval()(x)[:, -1], network.eval()(x))


def test_a_chain_is_cut_at_every_place_that_one_tensor_passes():
    network = Small()
    backbone = cut(network, (3, 8, 8), 5, "small")
    assert backbone.names == ("stem.0", "stem.1", "", "body", "tail.0", "tail.1")
    assert backbone.shapes[-1] == (6, 3, 3)
    net = CustomExits(taps=["stem", "body", "tail.0"], heads=[PoolLinear])(backbone)
    assert [len(stage) for stage in net.stages] == [2, 2, 1, 1]
    same(net, network, (3, 8, 8))
    assert macs.count(net, (3, 8, 8)).macs_plain == macs.count(NoExits()(backbone), (3, 8, 8)).macs[0]


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("layer1.0.conv1", r"lies inside layer1\.0, which runs as a whole: name layer1\.0"),
        ("layer9", r"cannot be cut behind layer9; there are conv1, bn1, relu, maxpool, layer1, layer2"),
    ],
)
def test_a_tap_where_nothing_can_be_cut_names_the_module(tap, message):
    with torch.device("meta"):
        names = [name for name, _ in resnet18().named_modules()]
    assert "layer1.0.conv1" in names
    backbone = torchvision_model(SHAPE, 4, name="resnet18")
    with pytest.raises(UserError, match=message):
        CustomExits(taps=[tap], heads=[PoolLinear])(backbone)


def test_a_network_of_torchvision_with_exits_by_name_is_the_network_itself():
    backbone = torchvision_model(SHAPE, 4, name="resnet18")
    net = CustomExits(taps=["layer1", "layer2"], heads=[PoolLinear])(backbone)
    assert net.exits == 3
    assert len(batchnorm_pairs(net)) == 20
    # the library's own names find their places, those of the exits are missing
    theirs = resnet18(num_classes=4)
    plain = NoExits()(torchvision_model(SHAPE, 4, name="resnet18"))
    import_state(plain, theirs.state_dict())
    same(plain, theirs, SHAPE)
    with pytest.raises(UserError, match=r"missing in the file: heads\.0"):
        import_state(net, theirs.state_dict())


class Twice(Small):
    """Runs a layer twice."""

    def forward(self, x):
        return self.fc(self.tail(self.body(self.body(self.stem(x)))).mean((2, 3)))


class Branching(Small):
    """Decides by its input."""

    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Entangled(Small):
    """Reads the image again at the end."""

    def forward(self, x):
        return self.fc(self.tail(self.stem(x)).mean((2, 3))) + x.mean()


class Pair(Small):
    """Returns two outputs."""

    def forward(self, x):
        return super().forward(x), x


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Twice, "its module body is run twice"),
        (Branching, "does not follow its forward pass"),
        (Entangled, "is no chain of blocks and cannot be cut: its module tail"),
        (Pair, "rdi.as_multi_exit"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_line(kind, message):
    with pytest.raises(UserError, match=message) as error:
        cut(kind(), (3, 8, 8), 5, "mine")
    assert "\n" not in str(error.value)


def test_names_are_looked_up_in_the_registry_and_nowhere_else():
    with pytest.raises(UserError, match=r"torchvision has no classifier 'os\.system'"):
        torchvision_model(SHAPE, 4, name="os.system")
    with pytest.raises(UserError, match="torchvision has no classifier 'fcn_resnet50'"):
        torchvision_model(SHAPE, 4, name="fcn_resnet50")
    with pytest.raises(UserError, match="networks take images of 3 channels, and these have 1"):
        torchvision_model((1, 32, 32), 4, name="squeezenet1_1")
    pytest.importorskip("timm")
    for name in ("hf-hub:someone/net", "local-dir:/tmp", "resnet18.tv_in1k", "no_such_net"):
        with pytest.raises(UserError, match="timm has no network"):
            timm_model(SHAPE, 4, name=name)


def test_a_network_of_timm_is_cut_by_the_names_of_its_modules():
    timm = pytest.importorskip("timm")
    net = CustomExits(taps=["layer1", "layer2"], heads=[PoolLinear])(timm_model((1, 32, 32), 4, name="test_resnet"))
    assert net.exits == 3
    plain = NoExits()(timm_model((1, 32, 32), 4, name="test_resnet"))
    theirs = timm.create_model("test_resnet", num_classes=4, in_chans=1)
    import_state(plain, theirs.state_dict())
    same(plain, theirs, (1, 32, 32))
