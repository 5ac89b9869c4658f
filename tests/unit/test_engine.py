"""The crafting copy computes what its network computes, follows its weights, and leaves it alone."""

import pytest
import torch
from torch import nn

from rdi import backbones
from rdi.attacks import Average, MaxAverage
from rdi.attacks.engine import Engine, batchnorm_pairs
from rdi.errors import UserError
from rdi.exits import MultiExitNet, PaperExits

NETS = {
    "smallcnn": (backbones.smallcnn, {}, (1, 28, 28)),
    "resnet14": (backbones.resnet, {"depth": 14}, (3, 32, 32)),
    "mobilenetv2": (backbones.mobilenetv2, {"width": 0.25}, (3, 32, 32)),
}


def make(name: str) -> tuple[MultiExitNet, torch.Tensor]:
    torch.manual_seed(0)
    build, options, shape = NETS[name]
    net = PaperExits()(build(shape, 10, **options)).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.2)
    return net, torch.rand(4, *shape)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("channels_last", [True, False])
def test_copy_equals_the_network_and_follows_its_weights(name, fold, channels_last):
    net, x = make(name)
    copied = Engine(fold=fold, channels_last=channels_last).copy(net)
    torch.testing.assert_close(copied.net(x), net(x), rtol=1e-3, atol=1e-4)
    with torch.no_grad():
        for tensor in net.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1.1)
    before = copied.net(x)
    assert not torch.allclose(before, net(x), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(copied.refresh()(x), net(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", NETS)
def test_copy_shares_nothing_with_the_network(name):
    net, x = make(name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    fast = Engine().copy(net).net
    assert not {p.data_ptr() for p in fast.parameters()} & {p.data_ptr() for p in net.parameters()}
    assert all(not parameter.requires_grad for parameter in fast.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())
    MaxAverage(eps=0.1, step_size=0.05, steps=1)(fast, x, torch.zeros(len(x), dtype=torch.long))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_every_batchnorm_behind_a_convolution_is_folded():
    net, _ = make("resnet14")
    norms = {name for name, module in net.named_modules() if isinstance(module, nn.BatchNorm2d)}
    assert {norm for _, norm in batchnorm_pairs(net)} == norms
    assert not any(isinstance(module, nn.BatchNorm2d) for module in Engine().copy(net).net.modules())


def test_a_batchnorm_that_shares_its_convolution_is_not_folded():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

        def forward(self, x):
            out = self.conv(x)
            return self.norm(out) + out

    net = MultiExitNet([Shared()], [nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2, 3))]).eval()
    net.stages[0].norm.running_mean.fill_(0.5)
    assert batchnorm_pairs(net) == []
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(Engine().copy(net).net(x), net(x))


def test_bf16_copy_takes_and_differentiates_float32_images():
    net, x = make("resnet14")
    fast = Engine(precision="bf16").copy(net).net
    x.requires_grad_(True)
    out = fast(x)
    assert out.dtype == torch.bfloat16
    (grad,) = torch.autograd.grad(out.float().sum(), x)
    assert grad.dtype == torch.float32
    assert grad.abs().sum() > 0
    torch.testing.assert_close(out.float(), net(x), rtol=0.1, atol=0.3)


@pytest.mark.parametrize("attack", [MaxAverage, Average], ids=["max_avg", "average"])
def test_compiled_crafting_gives_the_plain_one_s_images(attack, monkeypatch):
    """On a CPU without a C++ compiler this would be the fall-back, so the backend here is one that always works."""
    compiler, seen = torch.compile, []

    def compiled(function, mode, dynamic):
        seen.append(mode)
        return compiler(function, backend="aot_eager", dynamic=dynamic)

    monkeypatch.setattr(torch, "compile", compiled)
    net, x = make("smallcnn")
    y, settings = torch.arange(len(x)), {"eps": 0.1, "step_size": 0.05, "steps": 2}
    plain = attack(**settings)(Engine().copy(net).net, x, y)
    fast = attack(**settings)(Engine(compile="reduce-overhead").copy(net).net, x, y)
    assert seen == ["reduce-overhead"] * 2
    # a gradient next to zero may change its sign where a processor sums in another order
    assert float((fast != plain).float().mean()) < 0.01


def test_where_the_compiler_fails_crafting_goes_on_and_says_so_once(monkeypatch, caplog):
    def broken(*args):
        raise RuntimeError("no C++ compiler\nand a long story")

    monkeypatch.setattr(torch, "compile", lambda function, mode, dynamic: broken)
    net, x = make("resnet14")
    y, attack = torch.arange(len(x)), Average(eps=0.1, step_size=0.05, steps=3)
    fast = attack(Engine(compile="default").copy(net).net, x, y)
    assert torch.equal(fast, attack(Engine().copy(net).net, x, y))
    assert [record.getMessage() for record in caplog.records] == [
        "engine.compile=default does not work here (no C++ compiler): going on without it"
    ]


def test_an_unknown_mode_of_the_compiler_is_refused():
    with pytest.raises(UserError, match=r"engine.compile must be one of default, reduce-overhead, max-autotune"):
        Engine(compile="fast")
