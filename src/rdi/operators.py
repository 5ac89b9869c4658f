"""Multiply-adds of single operators, as handles for fvcore, and the operators that are free by definition.

A MAC is a multiply-add of a convolution or of a product with a sum in it (matrix products, linear and recurrent
layers, attention, einsum, elementwise products that are summed up). Free are other elementwise operators, pooling,
normalisation, resampling, reductions and whatever only moves numbers. All else is unknown: fast Fourier transforms,
decompositions, operators of other packages.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from rdi.deprecations import hidden

with hidden():
    from fvcore.nn.jit_handles import get_shape

CONVOLUTION, PRODUCT = "convolution", "product"
"""The two kinds of MACs: the published cost rule knows the first only."""

Values = list[Any]
"""Inputs or outputs of a node of a traced graph."""


def _convolution(inputs: Values, outputs: Values) -> Counter[str]:
    x, weight, out = get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0])
    # aten::_convolution says whether it is transposed; aten::_convolution_mode, of padding="same", never is
    transposed = len(inputs) > 8 and inputs[6].toIValue()
    return Counter({CONVOLUTION: x[0] * math.prod(weight) * math.prod((x if transposed else out)[2:])})


def _product(of: Callable[[Values, Values], int]) -> Callable[[Values, Values], Counter[str]]:
    return lambda inputs, outputs: Counter({PRODUCT: of(inputs, outputs)})


def _matrix(left: int) -> Callable[[Values, Values], Counter[str]]:
    """Return the handle of a matrix product: one multiply-add per output and element of a row of input `left`."""
    return _product(lambda inputs, outputs: math.prod(get_shape(outputs[0])) * get_shape(inputs[left])[-1])


def _contraction(inputs: Values, outputs: Values) -> int:
    """Count a product that sums over K pairs: outputs * K, where |a| * |b| = outputs * K * K."""
    sizes = (math.prod(get_shape(value)) for value in (inputs[0], inputs[1], outputs[0]))
    return math.isqrt(math.prod(sizes))


def _summed_batches(inputs: Values, outputs: Values) -> int:
    return math.prod(get_shape(inputs[1])) * get_shape(inputs[2])[-1]


def _bilinear(inputs: Values, outputs: Values) -> int:
    """y_o = sum_j (sum_i x_i * weight_oij) * z_j."""
    wide, _, second = get_shape(inputs[2])
    first = get_shape(inputs[2])[1]
    rows = math.prod(get_shape(outputs[0])) // wide
    return int(rows * wide * (first + 1) * second)


def _attention(inputs: Values, outputs: Values) -> int:
    """Queries times keys, then weights times values; a mask saves nothing."""
    query, key, out = get_shape(inputs[0]), get_shape(inputs[1]), get_shape(outputs[0])
    return math.prod(out[:-1]) * key[-2] * (query[-1] + out[-1])


def _recurrent(inputs: Values, outputs: Values) -> int:
    """Every weight matrix once per sample and time step; input 0 is (time, sample, feature) or packed."""
    lists = [[get_shape(one) for one in value.node().inputs()] for value in inputs if _is_tensors(value)]
    steps = math.prod(get_shape(inputs[0])[:-1])
    # of several lists, as an LSTM's states and weights, the weights come last; biases are no matrices
    return steps * sum(math.prod(shape) for shape in lists[-1] if len(shape) == 2)


def _cell(inputs: Values, outputs: Values) -> int:
    return get_shape(inputs[0])[0] * sum(math.prod(get_shape(value)) for value in inputs[2:4])


_MOVES = """
to type_as contiguous clone detach alias expand expand_as view reshape flatten unflatten squeeze unsqueeze permute
transpose movedim moveaxis swapaxes swapdims t mT numpy_T
"""
MOVES = frozenset(f"aten::{name}" for name in _MOVES.split())
"""Operators that may lie between a product and the sum over it."""


def _summed(inputs: Values, outputs: Values) -> int:
    """Count a sum or mean over an elementwise product, as (x[..., None] * w).sum(1), which is x @ w.

    Only where both factors vary along what is summed over: a factor that does not only scales the sum, as a gate of
    channels before pooling does. The square of one value is a norm, and free as such.
    """
    value, moved = inputs[0], False
    while (kind := value.node().kind()) in MOVES:
        inner = next(iter(value.node().inputs()))
        moved |= get_shape(inner) != get_shape(value)
        value = inner
    if kind not in ("aten::mul", "aten::mul_", "aten::multiply", "aten::multiply_"):
        return 0
    left, right = list(value.node().inputs())[:2]
    whole, shapes = get_shape(value), (get_shape(left), get_shape(right))
    if left.debugName() == right.debugName() or None in (whole, *shapes):
        return 0
    total, kept = math.prod(whole), math.prod(get_shape(outputs[0]))
    if moved:  # the axes have changed: a factor that is no larger than the sums takes no part in them
        contracted = kept < total and all(math.prod(shape) > kept for shape in shapes)
    else:
        axes = _axes(inputs, len(whole))
        contracted = any(
            all(len(shape) >= len(whole) - axis and shape[axis - len(whole)] > 1 for shape in shapes) for axis in axes
        )
    return total if contracted else 0


def _axes(inputs: Values, dimensions: int) -> list[int]:
    """The axes that a sum or mean is over, from 0; all of them where it names none."""
    found: Any = None
    if len(inputs) > 2:  # (x, axes, keepdim, dtype), and (x, dtype) over all
        node = inputs[1].node()
        listed = node.kind() == "prim::ListConstruct"
        found = [one.toIValue() for one in node.inputs()] if listed else inputs[1].toIValue()
    if not found:
        return list(range(dimensions))
    return [axis % dimensions for axis in found]


def _is_tensors(value: Any) -> bool:
    kind = value.type()
    return bool(kind.kind() == "ListType" and kind.getElementType().kind() == "TensorType")


def _einsum(inputs: Values, outputs: Values) -> int:
    equation = inputs[0].toIValue()
    return _executed(lambda *operands: torch.einsum(equation, *operands), inputs[1])


def _chain(inputs: Values, outputs: Values) -> int:
    return _executed(lambda *operands: torch.linalg.multi_dot(operands), inputs[0])


def _executed(run: Callable[..., torch.Tensor], operands: Any) -> int:
    """Count an operator that chooses the order of its products itself, by torch's own counter."""
    shapes = [get_shape(value) for value in operands.node().inputs()]
    with FlopCounterMode(display=False) as counter:
        run(*(torch.empty(shape, device="meta") for shape in shapes))
    return counter.get_total_flops() // 2


HANDLES: dict[str, Callable[[Values, Values], Counter[str]]] = {
    **dict.fromkeys(("aten::_convolution", "aten::_convolution_mode"), _convolution),
    **dict.fromkeys(("aten::matmul", "aten::mm", "aten::bmm", "aten::mv", "aten::dot", "aten::vdot"), _matrix(0)),
    **dict.fromkeys(("aten::linear", "aten::linalg_matmul", "aten::linalg_vecdot"), _matrix(0)),
    **dict.fromkeys(("aten::addmm", "aten::addmv", "aten::baddbmm"), _matrix(1)),
    "aten::addbmm": _product(_summed_batches),
    **dict.fromkeys(("aten::tensordot", "aten::inner"), _product(_contraction)),
    "aten::bilinear": _product(_bilinear),
    "aten::einsum": _product(_einsum),
    **dict.fromkeys(("aten::linalg_multi_dot", "aten::chain_matmul"), _product(_chain)),
    **dict.fromkeys(("aten::addmm_", "aten::addmv_", "aten::baddbmm_"), _matrix(1)),
    "aten::addbmm_": _product(_summed_batches),
    **dict.fromkeys(("aten::sum", "aten::mean"), _product(_summed)),
    "aten::scaled_dot_product_attention": _product(_attention),
    **dict.fromkeys(("aten::gru", "aten::lstm", "aten::rnn_tanh", "aten::rnn_relu"), _product(_recurrent)),
    **dict.fromkeys(
        ("aten::gru_cell", "aten::lstm_cell", "aten::rnn_tanh_cell", "aten::rnn_relu_cell"), _product(_cell)
    ),
}
"""Kind of node in a traced graph -> handle(inputs, outputs) -> MACs of each kind."""

_NAMES = """
Bool Float Int ScalarImplicit __and__ __not__ __or__ _weight_norm adaptive_avg_pool1d adaptive_avg_pool2d
adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d addr affine_grid_generator all
alpha_dropout alpha_dropout_ amax amin aminmax any arange argmax argmin argsort atleast_1d atleast_2d atleast_3d
avg_pool1d avg_pool2d avg_pool3d batch_norm bernoulli bincount block_diag broadcast_tensors bucketize cat
channel_shuffle col2im column_stack combinations complex concat concatenate constant_pad_nd copy_ count_nonzero
cummax cummin cumprod cumsum detach_ diag diag_embed diff dropout dropout_ dstack embedding embedding_bag empty
empty_like eye feature_alpha_dropout feature_alpha_dropout_ feature_dropout feature_dropout_ fill_ flip fliplr
flipud floor_divide fractional_max_pool2d fractional_max_pool3d frobenius_norm full full_like gather ger glu
grid_sampler group_norm hardswish hardswish_ histc hstack im2col index index_add index_copy index_fill index_put
index_put_ index_select instance_norm is_floating_point isclose isin item kron kthvalue layer_norm linalg_norm
linalg_vector_norm linspace log_sigmoid log_softmax logcumsumexp logsumexp masked_fill_ masked_scatter
masked_select max_pool1d max_pool1d_with_indices max_pool2d max_pool2d_with_indices max_pool3d mean median
meshgrid mode multinomial nanmean nanmedian nanquantile nansum narrow_copy native_batch_norm native_dropout
native_group_norm native_layer_norm new_empty new_full new_ones new_zeros nonzero norm norm_except_dim normal
normal_ numel one_hot ones ones_like outer pad pixel_shuffle pixel_unshuffle polar prelu prod quantile rand
rand_like randint randn randn_like randperm range reflection_pad1d reflection_pad2d reflection_pad3d relu6_
hardtanh_ renorm
repeat repeat_interleave replication_pad1d replication_pad2d replication_pad3d rms_norm roll rot90 rrelu_ scatter
scatter_ scatter_add scatter_add_ scatter_reduce searchsorted size softmax sort stack std std_mean sum take
take_along_dim tile topk tril triu type_as uniform_ unique_consecutive unsafe_chunk unsafe_split
unsafe_split_with_sizes upsample_bicubic2d upsample_bilinear2d upsample_linear1d upsample_nearest1d
upsample_nearest2d upsample_nearest3d upsample_trilinear3d var var_mean vstack zero_ zeros zeros_like
"""
FREE = frozenset(_NAMES.split())
"""Operators that are free, beside the elementwise ones and views, which torch itself marks as such."""


def is_free(kind: str) -> bool:
    """Return whether an operator, as a traced graph names it ("aten::add_"), costs no MACs by definition."""
    space, _, name = kind.partition("::")
    if space != "aten":
        return False
    # in place ("squeeze_") as out of it
    spellings = {name, name.removesuffix("_")}
    if spellings & FREE:
        return True
    packets = [packet for one in spellings if (packet := getattr(torch.ops.aten, one, None)) is not None]
    overloads = [getattr(packet, overload) for packet in packets for overload in packet.overloads()]
    return any(torch.Tag.pointwise in overload.tags or overload.is_view for overload in overloads)
