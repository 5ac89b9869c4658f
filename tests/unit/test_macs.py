"""Multiply-adds of every operator that multiplies and sums, against formulas by hand; the rest is free or named."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rdi import macs
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.operators import FREE, is_free

SHAPE = (3, 8, 8)


class Computed(nn.Module):
    """`run` of the features and a weight of `shape`, brought to (N, classes) without a multiply-add."""

    def __init__(self, run, *shapes):
        super().__init__()
        self.run = run
        self.weights = nn.ParameterList([nn.Parameter(torch.zeros(shape)) for shape in shapes])

    def forward(self, x):
        return self.run(x, *self.weights).reshape(1, -1).mean(dim=1, keepdim=True).expand(-1, 4)


class OverRows(nn.Module):
    """A layer that reads an image row by row, 24 rows of 8."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        out = self.layer(x.flatten(1, 2))
        return (out[0] if isinstance(out, tuple) else out).flatten(0, 1).mean(dim=0, keepdim=True)[:, :4]


def head_costs(head, shape=SHAPE, **more):
    return macs.count(MultiExitNet([nn.Identity()], [head]), shape, **more)


def tokens(x):
    return x.flatten(2)  # (N, 3, 64)


PRODUCTS = {
    "matrix": (lambda x, w: x.flatten(1) @ w, [(192, 5)], 192 * 5),
    "matrix from the left": (lambda x, w: w @ tokens(x), [(7, 3)], 7 * 3 * 64),
    "vector from the left": (lambda x, v: v @ x.flatten(1).T, [(192,)], 192),
    "matrix times vector": (lambda x, v: x.flatten(1) @ v, [(192,)], 192),
    "mv": (lambda x, w: torch.mv(w, x.flatten())[None], [(5, 192)], 5 * 192),
    "dot": (lambda x, v: torch.dot(x.flatten(), v)[None], [(192,)], 192),
    "broadcast": (lambda x, w: tokens(x)[:, None] @ w, [(2, 64, 5)], 2 * 3 * 64 * 5),
    "mm": (lambda x, w: torch.mm(x.flatten(1), w), [(192, 5)], 192 * 5),
    "bmm": (lambda x: torch.bmm(tokens(x), tokens(x).mT), [], 3 * 64 * 3),
    "baddbmm": (lambda x, b: torch.baddbmm(b, tokens(x), tokens(x).mT), [(1, 3, 3)], 3 * 64 * 3),
    "addbmm": (lambda x, b: torch.addbmm(b, tokens(x), tokens(x).mT)[None], [(3, 3)], 3 * 64 * 3),
    "addmm": (lambda x, b, w: torch.addmm(b, x.flatten(1), w), [(5,), (192, 5)], 192 * 5),
    "addmm_": (lambda x, b, w: (b + 0).addmm_(x.flatten(1), w), [(1, 5), (192, 5)], 192 * 5),
    "addmv": (lambda x, b, w: torch.addmv(b, w, x.flatten())[None], [(5,), (5, 192)], 5 * 192),
    "linear on every row": (lambda x, w: F.linear(x, w), [(5, 8)], 3 * 8 * 8 * 5),
    "inner": (lambda x, w: torch.inner(x, w), [(5, 8)], 3 * 8 * 8 * 5),
    "tensordot": (lambda x, w: torch.tensordot(x, w, dims=([1, 3], [0, 2])), [(3, 5, 8)], 8 * 5 * 3 * 8),
    "vecdot": (lambda x, w: torch.linalg.vecdot(x, w), [(8,)], 3 * 8 * 8),
    "multi_dot": (
        lambda x, a, b: torch.linalg.multi_dot([x.flatten(1), a, b]),
        [(192, 5), (5, 6)],
        192 * 5 + 5 * 6,
    ),
    "einsum": (lambda x, w: torch.einsum("bchw,cd->bdhw", x, w), [(3, 5)], 3 * 5 * 64),
    "einsum with an ellipsis": (lambda x, w: torch.einsum("...w,wd->...d", x, w), [(8, 5)], 3 * 8 * 8 * 5),
    "einsum that is elementwise": (lambda x, w: torch.einsum("bchw,c->bchw", x, w), [(3,)], 0),
    "bilinear": (lambda x, w: F.bilinear(x.mean(1), x.mean(1), w), [(5, 8, 8)], 8 * (5 * 8 * 8 + 5 * 8)),
    "sum of products": (lambda x, w: (x.flatten(1)[:, :, None] * w).sum(1), [(192, 5)], 192 * 5),
    "sum of products, moved": (lambda x, w: (x.flatten(1)[:, None] * w).mT.sum(1), [(5, 192)], 192 * 5),
    "mean of products": (lambda x, w: torch.mean(x * w, (2, 3)), [(3, 8, 8)], 192),
    "sum of all products": (lambda x, w: (w * x).sum()[None], [(8, 1)], 192),
    "attention": (
        lambda x, v: F.scaled_dot_product_attention(tokens(x), tokens(x), v[None]),
        [(3, 5)],
        3 * 3 * 64 + 3 * 3 * 5,
    ),
}
LAYERS = {
    "linear": (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), 192 * 4),
    "GRU": (OverRows(nn.GRU(8, 6, batch_first=True)), 24 * 3 * 6 * (8 + 6)),
    "GRU of two layers, both ways": (
        OverRows(nn.GRU(8, 6, num_layers=2, bidirectional=True, batch_first=True)),
        24 * 2 * 3 * 6 * ((8 + 6) + (12 + 6)),
    ),
    "LSTM": (OverRows(nn.LSTM(8, 6, batch_first=True)), 24 * 4 * 6 * (8 + 6)),
    "LSTM that projects": (OverRows(nn.LSTM(8, 6, proj_size=5, batch_first=True)), 24 * (4 * 6 * (8 + 5) + 6 * 5)),
    "RNN": (OverRows(nn.RNN(8, 6, batch_first=True, nonlinearity="relu")), 24 * 6 * (8 + 6)),
    "GRU cell": (nn.Sequential(nn.Flatten(), nn.GRUCell(192, 6)), 3 * 6 * (192 + 6)),
    "RNN cell": (nn.Sequential(nn.Flatten(), nn.RNNCell(192, 6)), 6 * (192 + 6)),
    # three maps in, one out, the perceptron, and what 24 tokens say to 24 tokens in 2 heads of 4
    "transformer": (
        OverRows(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()),
        24 * (4 * 8 * 8 + 2 * 8 * 16) + 2 * 2 * 24 * 24 * 4,
    ),
}
CONVOLUTIONS = {
    "2d": (nn.Conv2d(3, 4, 3), 6 * 6 * 4 * 3 * 9),
    "padding by name": (nn.Conv2d(3, 4, 3, padding="same"), 8 * 8 * 4 * 3 * 9),
    "depthwise": (nn.Conv2d(3, 3, 3, groups=3), 6 * 6 * 3 * 9),
    "transposed": (nn.ConvTranspose2d(3, 4, 2, stride=2), 8 * 8 * 3 * 4 * 4),
    "1d": (nn.Sequential(nn.Flatten(2), nn.Conv1d(3, 4, 5)), 60 * 4 * 3 * 5),
    "3d": (nn.Sequential(nn.Unflatten(1, (1, 3)), nn.Conv3d(1, 4, 3)), 6 * 6 * 4 * 27),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_count_in_the_honest_rule_and_not_in_the_published_one(name, said):
    run, shapes, expected = PRODUCTS[name]
    found = head_costs(Computed(run, *shapes))
    assert found.macs == (expected,)
    assert found.macs_plain == expected
    assert found.macs_paper == (0,), "the published rule counts convolutions only"
    assert said == []


@pytest.mark.parametrize("name", LAYERS)
def test_layers_count_every_weight_matrix_at_every_step(name, said):
    layer, expected = LAYERS[name]
    for frozen in (False, True):  # torch fuses frozen attention into one operator
        found = head_costs(layer.requires_grad_(not frozen))
        assert (found.macs, found.macs_paper) == ((expected,), (0,))
    assert said == []


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_every_kind_count_in_both_rules(name, said):
    layer, expected = CONVOLUTIONS[name]
    head = nn.Sequential(layer, nn.Flatten(), Computed(lambda x: x))
    found = head_costs(head)
    assert found.macs == found.macs_paper == (expected,)
    assert said == []


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_zeros_of_a_convolution_of_any_kind_are_left_out_when_asked(name):
    layer, expected = CONVOLUTIONS[name]
    (convolution,) = (module for module in layer.modules() if hasattr(module, "kernel_size"))
    with torch.no_grad():
        convolution.weight.fill_(1).view(-1)[::2] = 0
    kept = int(convolution.weight.sum())
    found = head_costs(nn.Sequential(layer, nn.Flatten(), Computed(lambda x: x)), sparse=True)
    assert found.macs == (expected,)
    assert abs(found.macs_paper[0] - expected * kept / convolution.weight.numel()) < 1


class Doubled(torch.autograd.Function):
    """An operator of the user's own."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


@pytest.mark.parametrize(
    ("run", "name"),
    [
        (lambda x: torch.fft.rfft2(x).abs(), "fft_rfft2"),
        (lambda x: torch.stft(x.flatten(1), 16, window=torch.ones(16), return_complex=True).abs(), "stft"),
        (lambda x: torch.cdist(x, x), "cdist"),
        (lambda x: torch.linalg.solve(torch.eye(8), x), "linalg_solve"),
        (lambda x: torch.linalg.matrix_power(x, 3), "linalg_matrix_power"),
        (Doubled.apply, "Doubled"),
    ],
)
def test_what_cannot_be_counted_is_named_with_its_place(run, name, said):
    stage = nn.Sequential(nn.Conv2d(3, 3, 1), Computed(run))
    found = macs.count(MultiExitNet([nn.Identity(), stage], [Computed(run), nn.Identity()]), SHAPE)
    assert found.macs_paper == (0, 8 * 8 * 9)
    (line,) = said
    assert name in line
    assert "heads.0, stages.1" in line


def test_elementwise_pooling_normalisation_and_moves_are_free_and_silent(said):
    free = nn.Sequential(
        nn.BatchNorm2d(3),
        nn.GroupNorm(3, 3),
        nn.InstanceNorm2d(3),
        nn.Hardswish(),
        nn.SiLU(inplace=True),
        nn.ReLU6(inplace=True),
        nn.PReLU(),
        nn.GELU(),
        nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2, mode="bilinear"),
        nn.PixelUnshuffle(2),
        nn.ReflectionPad2d(1),
        nn.AvgPool2d(3, 1),
        nn.Dropout(),
        nn.AdaptiveMaxPool2d(2),
        nn.Flatten(),
        nn.LayerNorm(48),
        nn.Softmax(dim=1),
        Computed(lambda x: torch.cat([x * x.sum(), x.roll(1).sort().values, F.normalize(x).cumsum(1)])),
        # gates, norms and scales are no products with a sum in them
        Computed(lambda x: torch.stack([(x * x).mean(1), (x * x[:, :1]).mean(1), (2 * x).mean(1)])),
    )
    assert head_costs(free).macs == (0,)
    assert said == []


@pytest.mark.parametrize("pool", [lambda x: x.mean((2, 3)), lambda x: x.flatten(2).mean(2), lambda x: x.sum(3).sum(2)])
def test_a_gate_of_channels_before_pooling_is_free(pool, said):
    def gated(x):
        return pool(x * x.mean((2, 3), keepdim=True).sigmoid())

    assert head_costs(Computed(gated)).macs == (0,)
    assert said == []


def test_a_module_that_parts_share_costs_in_each_of_them():
    head = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    stage = nn.Conv2d(3, 3, 1)
    found = macs.count(MultiExitNet([stage, stage], [head, head]), SHAPE)
    assert found.macs == (576 + 768, 2 * (576 + 768))
    assert found.macs_paper == (576, 2 * 576)
    assert found.macs_plain == 2 * 576 + 768


def test_free_operators_are_those_of_torch():
    assert [name for name in FREE if not hasattr(torch.ops.aten, name)] == []
    assert not any(map(is_free, ("aten::fft_fft", "aten::matmul", "torchvision::deform_conv2d", "prim::PythonOp.F")))


@pytest.mark.parametrize("kind", ["script", "trace", "compile"])
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_compiled_module_is_refused_by_name(kind):
    layer = nn.Sequential(nn.Flatten(), nn.Linear(192, 4))
    compiled = {
        "script": lambda: torch.jit.script(layer),
        "trace": lambda: torch.jit.trace(layer, torch.zeros(1, *SHAPE)),
        "compile": lambda: torch.compile(layer),
    }[kind]()
    with pytest.raises(UserError, match=r"heads\.0\.1 is compiled .* give the plain module"):
        head_costs(nn.Sequential(nn.Identity(), compiled))


def test_an_operator_in_place_is_as_free_as_out_of_it():
    assert is_free("aten::squeeze_")
    assert is_free("aten::add_")
    assert not is_free("aten::linalg_inv_")
