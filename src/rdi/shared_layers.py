"""Layers whose output hangs on the whole batch, in a process that has some rows of it: BatchNorm and dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from rdi.ranks import Ranks, Share, at_least_float32, talking

BATCHNORM = ("synchronised", "local")
DROPOUT: Mapping[type[nn.Module], bool] = {nn.Dropout: False, nn.Dropout2d: True}
"""Layer -> whether it drops whole channels."""


@contextmanager
def shared(net: nn.Module, share: Share, batchnorm: str) -> Iterator[None]:
    """Inside, `net` in training mode takes this process's rows of every batch as rows of it.

    BatchNorm normalises by the whole batch ("synchronised"), or by the rows here ("local"); dropout drops what it
    would of the whole batch, out of torch's default generator, which must be in the same state on all ranks. Copies
    made inside behave likewise, for good. In eval mode nothing changes.
    """
    changed = []
    module: Any
    for module in net.modules() if not share.ranks.alone else ():
        forward = _forward(module, share, batchnorm)
        if forward is not None:
            # a bound method: a deep copy of the module binds it to the copy, and its type stays what it is
            module.share = share
            module.forward = MethodType(forward, module)
            changed.append(module)
    try:
        yield
    finally:
        for module in changed:
            del module.forward, module.share


def _forward(module: nn.Module, share: Share, batchnorm: str) -> Callable[[Any, torch.Tensor], torch.Tensor] | None:
    if isinstance(module, _BatchNorm) and batchnorm == "synchronised":
        return _normalised
    return _dropped if type(module) in DROPOUT else None


def _normalised(module: Any, x: torch.Tensor) -> torch.Tensor:
    plain: Callable[[Any, torch.Tensor], torch.Tensor] = type(module).forward
    if not module.training:
        return plain(module, x)
    with _Synchronised(module.share.ranks):
        return plain(module, x)


def _dropped(module: Any, x: torch.Tensor) -> torch.Tensor:
    share: Share = module.share
    if not module.training or module.p in (0, 1) or not share.size or len(x) % share.size:
        plain: Callable[[Any, torch.Tensor], torch.Tensor] = type(module).forward
        return plain(module, x)
    # a joint batch is several batches one after the other, of which each is shared
    batches = len(x) // share.size
    inner = x.shape[1:2] + torch.Size([1] * (x.ndim - 2)) if DROPOUT[type(module)] else x.shape[1:]
    kept = torch.empty(batches * share.total, *inner, dtype=x.dtype, device=x.device).bernoulli_(1 - module.p)
    return x * kept.unflatten(0, (batches, share.total))[:, share.rows].flatten(0, 1).div_(1 - module.p)


class _Synchronised(TorchFunctionMode):
    """Inside, F.batch_norm in training takes the statistics of the rows of all ranks."""

    def __init__(self, ranks: Ranks) -> None:
        super().__init__()
        self.ranks = ranks

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is F.batch_norm:
            return self._batch_norm(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _batch_norm(
        self,
        x: torch.Tensor,
        running_mean: torch.Tensor | None,
        running_var: torch.Tensor | None,
        weight: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> torch.Tensor:
        if not training:
            return F.batch_norm(x, running_mean, running_var, weight, bias, False, momentum, eps)
        channels = x.shape[1]
        weight = at_least_float32(x.new_ones(channels)) if weight is None else weight
        bias = at_least_float32(x.new_zeros(channels)) if bias is None else bias
        y, mean, variance, count = _SynchronisedBatchNorm.apply(x, weight, bias, eps, self.ranks)
        if running_mean is not None and running_var is not None:
            with torch.no_grad():
                running_mean.lerp_(mean.to(running_mean.dtype), momentum)
                running_var.lerp_((variance * (count / (count - 1))).to(running_var.dtype), momentum)
        found: torch.Tensor = y
        return found


class _SynchronisedBatchNorm(torch.autograd.Function):
    """BatchNorm by the statistics of all ranks (torch's SyncBatchNorm, which has no kernels for the CPU)."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, ranks: Ranks
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
        rows = at_least_float32(x)
        variance, mean = torch.var_mean(rows, _others(x), correction=0)
        mine = torch.cat([mean, variance, mean.new_tensor([x.numel() / x.shape[1]])]).double()
        found = [torch.empty_like(mine) for _ in range(ranks.count)]
        with talking():
            dist.all_gather(found, mine)
        parts = torch.stack(found)
        counts, means, variances = parts[:, -1:], parts[:, : len(mean)], parts[:, len(mean) : -1]
        count = float(counts.sum())
        if count < 2:
            raise ValueError("Expected more than 1 value per channel when training")
        mean = (counts * means).sum(0) / count
        variance = (counts * (variances + (means - mean) ** 2)).sum(0) / count  # Chan et al. 1983, equation 2.1
        inverse = (variance + eps).rsqrt().to(rows.dtype)
        mean, variance = mean.to(rows.dtype), variance.to(rows.dtype)
        ctx.save_for_backward(x, weight, mean, inverse)
        ctx.ranks, ctx.count, ctx.eps = ranks, count, eps
        y = F.batch_norm(rows, mean, variance, weight.to(rows), bias.to(rows), False, 0.0, eps).to(x.dtype)
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor, *_: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, None, None]:
        x, weight, mean, inverse = ctx.saved_tensors
        rows, grad = at_least_float32(x), at_least_float32(grad)
        scale = weight.to(rows) * inverse
        # of the kernel only the two sums over the rows here: of grad, and of grad times the normalised rows
        _, by_weight, by_bias = torch.ops.aten.native_batch_norm_backward(
            grad, rows, weight.to(rows), None, None, mean, inverse, True, ctx.eps, [False, True, True]
        )
        sums = torch.stack([by_weight, by_bias])
        with talking():
            dist.all_reduce(sums)
        by_rows, constant = sums / ctx.count
        slope = -by_rows * inverse
        shape = [1, -1, *[1] * (x.ndim - 2)]
        # scale * (grad - constant - by_rows * normalised rows), in two passes over the rows
        line = torch.addcmul((scale * -(constant + slope * mean)).view(shape), rows, (scale * slope).view(shape))
        by_x = line.addcmul_(grad, scale.view(shape)).to(x.dtype)
        return by_x, by_weight.to(weight.dtype), by_bias.to(weight.dtype), None, None


def _others(x: torch.Tensor) -> list[int]:
    """Dimensions of x_NC... but the channels."""
    return [0, *range(2, x.ndim)]
