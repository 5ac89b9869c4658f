"""Rules: the operation on boxes that a layer or a function of torch stands for.

A rule takes the arguments of the function that it is named after, a Box in place of each feature map, and returns the
operation with the boxes that it is applied to. It raises NoBound for arguments without a known bound.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from rdi.certificates.box import Box
from rdi.certificates.nonlinear import Clamp, MaxPool, Monotone, ReLU
from rdi.certificates.operations import Average, Convolution, Joined, Linear, Operation, Reshape, Scale, Sum

Found = tuple[Operation, list[Box]]
"""An operation and the boxes that it is applied to."""


class NoBound(Exception):
    """A layer without a known bound; the text says why."""


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def conv2d(
    x: Box, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Found:
    """Convert torch.nn.functional.conv2d to a Convolution."""
    _constant(weight, bias)
    if padding == "same":
        sizes = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        if any(size % 2 for size in sizes):
            raise NoBound("padding='same' of an even kernel")
        padding = tuple(size // 2 for size in sizes)
    padding = 0 if padding == "valid" else padding
    offset = None if bias is None else bias.view(1, -1, 1, 1)
    return Convolution(weight, offset, _pair(stride), _pair(padding), _pair(dilation), groups), [x]


def linear(x: Box, weight: Any, bias: Any = None) -> Found:
    """Convert torch.nn.functional.linear to a Linear."""
    _constant(weight, bias)
    return Linear(weight, bias), [x]


def batch_norm(
    x: Box,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Found:
    """Convert torch.nn.functional.batch_norm, by its running statistics, to a Scale."""
    if running_mean is None or running_var is None:
        raise NoBound("BatchNorm without running statistics")
    # in float64: the variance may be tiny
    factor = (running_var.double() + eps).rsqrt().to(running_mean.dtype)
    factor = factor if weight is None else factor * weight
    shift = -running_mean * factor
    offset = shift if bias is None else shift + bias
    size = shift.abs() if bias is None else shift.abs() + bias.abs()
    wide = [1, -1, *[1] * (len(x.shape) - 2)]
    return Scale(factor.view(wide), offset.view(wide), size.view(wide)), [x]


def relu(x: Box, inplace: bool = False) -> Found:
    """Convert torch.nn.functional.relu to a ReLU."""
    return ReLU(), [x]


def hardtanh(x: Box, min_val: float | None = -1.0, max_val: float | None = 1.0, inplace: bool = False) -> Found:
    """Convert torch.nn.functional.hardtanh or torch.clamp to a Clamp. None: no bound."""
    least, most = -math.inf if min_val is None else min_val, math.inf if max_val is None else max_val
    if isinstance(least, torch.Tensor) or isinstance(most, torch.Tensor):
        raise NoBound("clamp with tensors as bounds")
    if least > most:
        raise NoBound(f"clamp from {least} to {most}")
    return Clamp(least, most), [x]


def leaky_relu(x: Box, negative_slope: float = 0.01, inplace: bool = False) -> Found:
    """Convert torch.nn.functional.leaky_relu to a Monotone; slopes >= 0 only."""
    if negative_slope < 0:
        raise NoBound(f"negative_slope={negative_slope}")
    return Monotone(lambda value: F.leaky_relu(value, negative_slope), 2), [x]


def smooth(run: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Box], Found]:
    """Return the rule of a smooth non-decreasing function, correct to 16 units in the last place."""
    return lambda x: (Monotone(run, 16), [x])


def max_pool2d(
    x: Box,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Found:
    """Convert torch.nn.functional.max_pool2d to a MaxPool."""
    if return_indices:
        raise NoBound("return_indices")
    stride = kernel_size if stride in (None, []) else stride
    inside = _pair(padding) == (0, 0) and _pair(dilation) == (1, 1) and not ceil_mode

    def run(value: torch.Tensor) -> torch.Tensor:
        return F.max_pool2d(value, kernel_size, stride, padding, dilation, ceil_mode)

    return (MaxPool(run, 0, _pair(kernel_size), _pair(stride)) if inside else Monotone(run)), [x]


def adaptive_max_pool2d(x: Box, output_size: Any, return_indices: bool = False) -> Found:
    """Convert torch.nn.functional.adaptive_max_pool2d to a Monotone."""
    if return_indices:
        raise NoBound("return_indices")
    return Monotone(lambda value: F.adaptive_max_pool2d(value, output_size)), [x]


def avg_pool2d(
    x: Box,
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Found:
    """Convert torch.nn.functional.avg_pool2d to an Average."""
    stride = kernel_size if stride in (None, []) else stride
    if divisor_override is not None and divisor_override < 1:
        raise NoBound(f"divisor_override={divisor_override}")

    def run(value: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(value, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    return Average(run, math.prod(_pair(kernel_size))), [x]


def adaptive_avg_pool2d(x: Box, output_size: Any) -> Found:
    """Convert torch.nn.functional.adaptive_avg_pool2d to an Average."""
    return Average(lambda value: F.adaptive_avg_pool2d(value, output_size), math.prod(x.shape[2:])), [x]


def mean(x: Box, dim: Any = None, keepdim: bool = False, *, axis: Any = None) -> Found:
    """Convert torch.mean over axes behind the first to an Average."""
    dim = axis if dim is None else dim
    dims = [dim] if isinstance(dim, int) else list(dim or [])
    if not dims or any(one % len(x.shape) == 0 for one in dims):
        raise NoBound("a mean over the samples")
    terms = math.prod(x.shape[one] for one in dims)
    return Average(lambda value: value.mean(dim=dims, keepdim=keepdim), terms), [x]


def add(first: Any, second: Any) -> Found:
    """Convert first + second, either of which may be a constant, to a Sum or Scale."""
    if isinstance(first, Box) and isinstance(second, Box):
        if first.shape != second.shape:
            raise NoBound(f"a sum of {tuple(first.shape)} and {tuple(second.shape)}")
        return Sum(), [first, second]
    box, constant = (first, second) if isinstance(first, Box) else (second, first)
    return _scaled(box, 1.0, torch.as_tensor(constant, dtype=box.low.dtype, device=box.low.device))


def sub(first: Any, second: Any) -> Found:
    """Convert first - second, where second is a constant, to a Scale."""
    if isinstance(second, Box):
        raise NoBound("a difference of two features")
    return add(first, -second)


def mul(first: Any, second: Any) -> Found:
    """Convert first * second, of which one is a constant, to a Scale."""
    if isinstance(first, Box) and isinstance(second, Box):
        raise NoBound("a product of two features")
    return _scaled(first, second) if isinstance(first, Box) else _scaled(second, first)


def div(first: Any, second: Any) -> Found:
    """Convert first / second, where second is a constant, to a Scale."""
    if isinstance(second, Box):
        raise NoBound("a division by features")
    return _scaled(first, 1 / second)


def _scaled(box: Box, factor: Any, offset: torch.Tensor | None = None) -> Found:
    for constant in (factor, offset):
        if isinstance(constant, torch.Tensor) and torch.broadcast_shapes(constant.shape, box.shape) != box.shape:
            raise NoBound(f"a constant of {tuple(constant.shape)} on features of {tuple(box.shape)}")
    return Scale(factor, offset), [box]


def cat(tensors: Any, dim: int = 0) -> Found:
    """Convert torch.cat along an axis behind the first to a Joined."""
    if not all(isinstance(one, Box) for one in tensors) or dim % len(tensors[0].shape) == 0:
        raise NoBound("a concatenation of samples or with constants")
    return Joined(dim), list(tensors)


def same(x: Box, *_: Any, **__: Any) -> Found:
    """Convert a function that changes nothing in eval mode to a Reshape."""
    return Reshape(lambda value: value), [x]


def viewed(name: str) -> Callable[..., Found]:
    """Return the rule of the tensor method `name` that reshapes without reordering elements."""

    def rule(x: Box, *args: Any, **options: Any) -> Found:
        def run(value: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = getattr(value, name)(*args, **options)
            return found

        if run(x.low).shape[:1] != x.shape[:1]:
            raise NoBound(f"{name} across samples")
        return Reshape(run), [x]

    return rule


def padded(x: Box, pad: Any, mode: str = "constant", value: float | None = None) -> Found:
    """Convert torch.nn.functional.pad to a Monotone."""
    return Monotone(lambda one: F.pad(one, pad, mode, value)), [x]


def _constant(*tensors: Any) -> None:
    if any(isinstance(one, Box) for one in tensors):
        raise NoBound("weights that depend on the image")


FUNCTIONS: dict[Any, Callable[..., Found]] = {
    **dict.fromkeys((F.conv2d, torch.conv2d), conv2d),
    F.linear: linear,
    F.batch_norm: batch_norm,
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, F.relu_, "relu", "relu_"), relu),
    F.relu6: lambda x, inplace=False: hardtanh(x, 0.0, 6.0),
    F.hardtanh: hardtanh,
    **dict.fromkeys((torch.clamp, "clamp", "clamp_"), lambda x, min=None, max=None: hardtanh(x, min, max)),
    F.leaky_relu: leaky_relu,
    **dict.fromkeys((torch.sigmoid, F.sigmoid, "sigmoid"), smooth(torch.sigmoid)),
    **dict.fromkeys((torch.tanh, F.tanh, "tanh"), smooth(torch.tanh)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), max_pool2d),
    F.adaptive_max_pool2d: adaptive_max_pool2d,
    F.avg_pool2d: avg_pool2d,
    F.adaptive_avg_pool2d: adaptive_avg_pool2d,
    **dict.fromkeys((torch.mean, "mean"), mean),
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), add),
    **dict.fromkeys((operator.sub, operator.isub, torch.sub, "sub", "sub_"), sub),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul, "mul", "mul_"), mul),
    **dict.fromkeys((operator.truediv, operator.itruediv, torch.div, "div", "div_"), div),
    **dict.fromkeys((torch.cat, torch.concat), cat),
    **dict.fromkeys((F.dropout, F.dropout2d, torch.dropout, "contiguous", "clone", "detach"), same),
    **dict.fromkeys((torch.flatten, "flatten"), viewed("flatten")),
    **dict.fromkeys((torch.reshape, "reshape"), viewed("reshape")),
    "view": viewed("view"),
    **dict.fromkeys((torch.squeeze, "squeeze"), viewed("squeeze")),
    **dict.fromkeys((torch.unsqueeze, "unsqueeze"), viewed("unsqueeze")),
    F.pad: padded,
}
"""Function, or name of a tensor method -> its rule."""


def _module_conv(module: Any, x: Box) -> Found:
    if module.padding_mode != "zeros":
        raise NoBound(f"padding_mode={module.padding_mode}")
    return conv2d(x, module.weight, module.bias, module.stride, module.padding, module.dilation, module.groups)


def _module_norm(module: Any, x: Box) -> Found:
    return batch_norm(x, module.running_mean, module.running_var, module.weight, module.bias, eps=module.eps)


MODULES: dict[type[nn.Module], Callable[[Any, Box], Found]] = {
    nn.Conv2d: _module_conv,
    nn.Linear: lambda module, x: linear(x, module.weight, module.bias),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d), _module_norm),
    nn.ReLU: lambda module, x: relu(x),
    **dict.fromkeys((nn.ReLU6, nn.Hardtanh), lambda module, x: hardtanh(x, module.min_val, module.max_val)),
    nn.LeakyReLU: lambda module, x: leaky_relu(x, module.negative_slope),
    nn.Sigmoid: lambda module, x: smooth(torch.sigmoid)(x),
    nn.Tanh: lambda module, x: smooth(torch.tanh)(x),
    nn.MaxPool2d: lambda module, x: max_pool2d(
        x, module.kernel_size, module.stride, module.padding, module.dilation, module.ceil_mode, module.return_indices
    ),
    nn.AdaptiveMaxPool2d: lambda module, x: adaptive_max_pool2d(x, module.output_size, module.return_indices),
    nn.AvgPool2d: lambda module, x: avg_pool2d(
        x,
        module.kernel_size,
        module.stride,
        module.padding,
        module.ceil_mode,
        module.count_include_pad,
        module.divisor_override,
    ),
    nn.AdaptiveAvgPool2d: lambda module, x: adaptive_avg_pool2d(x, module.output_size),
    nn.Flatten: lambda module, x: viewed("flatten")(x, module.start_dim, module.end_dim),
    nn.Unflatten: lambda module, x: viewed("unflatten")(x, module.dim, module.unflattened_size),
    **dict.fromkeys((nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout), lambda module, x: same(x)),
    nn.ZeroPad2d: lambda module, x: padded(x, module.padding),
    nn.ConstantPad2d: lambda module, x: padded(x, module.padding, value=module.value),
}
"""Layer of torch -> its rule; other modules are traced to the layers and functions that they call."""
