"""Activation checkpointing: a network keeps few activations for the backward pass, and computes the others again.

Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; by torch.utils.checkpoint.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from rdi.exits.net import MultiExitNet


@contextmanager
def recomputed(net: MultiExitNet, on: bool = True) -> Iterator[None]:
    """Inside, `net` in training mode keeps the inputs of its blocks alone, if `on`; losses and gradients are the same.

    A block is an entry of a stage that is a nn.Sequential, or a whole stage. BatchNorm counts every batch once.
    """
    changed: list[Any] = []
    for stage in net.stages if on else ():
        for block in stage if isinstance(stage, nn.Sequential) else (stage,):
            if any(True for _ in block.parameters()):  # what has none keeps next to nothing
                # a bound method, as in shared_layers: a deep copy of the block binds it to the copy
                block.forward = MethodType(_forward, block)
                changed.append(block)
    try:
        yield
    finally:
        for block in changed:
            del block.forward


def _forward(module: nn.Module, x: torch.Tensor) -> Any:
    plain = MethodType(type(module).forward, module)
    if not (module.training and torch.is_grad_enabled()):
        return plain(x)
    return checkpoint(plain, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _uncounted(module)))


@contextmanager
def _uncounted(module: nn.Module) -> Iterator[None]:
    """Leave running statistics as the first pass has made them."""
    norms = [one for one in module.modules() if isinstance(one, _BatchNorm) and one.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked -= 1


@dataclass(frozen=True)
class Price:
    """Memory that recomputing saves and time that it costs, of one loss and backward pass on a few images.

    kept, kept_before: bytes an image that are kept for the backward pass, with and without.
    slowdown: time with, over time without.
    """

    kept: float
    kept_before: float
    slowdown: float

    def __str__(self) -> str:
        kept, before = self.kept / 2**20, self.kept_before / 2**20
        return f"{kept:.2f} MiB of activations an image are kept, not {before:.2f}, a pass takes {self.slowdown:.2f}x"


def price(net: MultiExitNet, x: torch.Tensor) -> Price:
    """Measure on a copy of `net` that may be spoilt, and x_NCHW, the better of two passes each."""
    net.train()
    found = []
    for on in (False, True):
        with recomputed(net, on):
            kept, seconds = zip(*(_pass(net, x) for _ in range(2)), strict=True)
        found.append((kept[0] / len(x), min(seconds)))
    (before, plain), (kept_now, slow) = found
    return Price(kept_now, before, slow / plain)


def _pass(net: MultiExitNet, x: torch.Tensor) -> tuple[int, float]:
    """Return the bytes that are kept for the backward pass, weights left out, and the seconds of both passes."""
    weights = {one.untyped_storage().data_ptr() for one in net.parameters()}
    found: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    began = time.perf_counter()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = net(x).float().square().mean()
    kept = sum(found.values())
    loss.backward()
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
    return kept, time.perf_counter() - began
