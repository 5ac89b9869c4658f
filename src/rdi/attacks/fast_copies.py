"""The copy that an attack called from Python crafts on: made once per network, as the network is at every call."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from rdi.attacks.engine import Engine, FastCopy, is_copy, tensors
from rdi.exits.net import MultiExitNet

ENGINES = (Engine(), Engine(channels_last=False))
"""Tried in this order: modules that flatten with view() refuse channels-last features."""
AGREEMENT = 1e-3
"""Largest difference between logits of copy and network, relative to the largest logit."""
PLAIN = (bool, int, float, str, tuple, type(None))
BOOKKEEPING = frozenset(vars(nn.Module()))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

logger = logging.getLogger("rdi")


class _CachedCopy:
    """State of one network: its build, the engine's copy (None: no copy answers as it does), shapes tried."""

    def __init__(self, build: Hashable, copy: FastCopy | None, layout: torch.memory_format) -> None:
        self.build, self.copy, self.layout = build, copy, layout
        self.tried: set[tuple[int, ...]] = set()

    def answers(self, x: torch.Tensor, expected: torch.Tensor) -> bool:
        """Return whether the copy, as the network is now, gives these logits for the first of x; True without one."""
        if self.copy is None:
            return True
        try:
            found = _answers(self.copy.refresh(), x, self.layout)
        except RuntimeError:
            return False
        largest = float(expected.abs().max()) if len(expected) else 0.0
        return torch.allclose(found, expected, rtol=0, atol=AGREEMENT * (1 + largest))


_copies: weakref.WeakKeyDictionary[MultiExitNet, _CachedCopy] = weakref.WeakKeyDictionary()


def crafting_network(model: MultiExitNet, x: torch.Tensor) -> tuple[MultiExitNet, torch.memory_format]:
    """Give the network to craft on for images like x_NCHW, and the memory format that suits it.

    A copy with BatchNorm folded and channels-last, brought up to the present weights; made anew when modules, types or
    options of `model` have changed. It was seen to answer as `model` does on images of that shape. Where none does,
    `model` itself, and for a network that is such a copy already, that has hooks (whoever put them there means this
    network), or that computes in another type than float32. In eval mode, both.
    """
    if is_copy(model) or _hooked(model) or not _is_float32(model):
        return model, torch.preserve_format
    build, cached = _build(model), _copies.get(model)
    if cached is None or cached.build != build or (len(x) and _shape(x) not in cached.tried):
        # first and outside of any try: what the network has against these images is for the user to read
        expected = _answers(model, x)
        if not bool(expected.isfinite().all()):
            return model, torch.preserve_format
        if cached is None or cached.build != build or not cached.answers(x, expected):
            cached = _copies[model] = _new(model, x, expected, build)
        if len(x):
            cached.tried.add(_shape(x))
    if cached.copy is None:
        return model, cached.layout
    # all of it, not what counts as changed: a write to tensor.data is counted nowhere
    return cached.copy.refresh(), cached.layout


def _new(model: MultiExitNet, x: torch.Tensor, expected: torch.Tensor, build: Hashable) -> _CachedCopy:
    for engine in ENGINES:
        try:
            # tensors made in inference mode could not be used outside it
            with torch.inference_mode(False):
                cached = _CachedCopy(build, engine.copy(model), engine.memory_format)
            same = cached.answers(x, expected)
        except Exception as error:  # what a stranger's network does when it is copied shares no class
            logger.debug("no crafting copy (%s): %s", engine, error)
            continue
        if same:
            return cached
    logger.info("no folded copy of this network answers as it does: attacks are crafted on the network itself")
    return _CachedCopy(build, None, torch.preserve_format)


@torch.no_grad()
def _answers(net: MultiExitNet, x: torch.Tensor, layout: torch.memory_format = torch.preserve_format) -> torch.Tensor:
    """Logits of a few of the images."""
    return net(x[:2].detach().to(memory_format=layout)).float()


def _shape(x: torch.Tensor) -> tuple[int, ...]:
    return tuple(x.shape[1:])


def _hooked(model: nn.Module) -> bool:
    return any(getattr(module, name) for module in model.modules() for name in HOOKS)


def _is_float32(model: nn.Module) -> bool:
    return all(one.dtype is torch.float32 for one in tensors(model).values() if one.is_floating_point())


def _build(model: nn.Module) -> Hashable:
    """All that a copy took over once and for all: modules, which tensors where, options; not the values."""
    found: list[Any] = [(name, id(one), one.device, one.dtype, one.shape) for name, one in tensors(model).items()]
    for module in model.modules():
        found.append((id(module), type(module)))
        for name, value in vars(module).items():
            if name not in BOOKKEEPING:
                found.append((name, value if isinstance(value, PLAIN) else id(value)))
    return tuple(map(_hashable, found))


def _hashable(value: Any) -> Any:
    try:
        hash(value)
    except TypeError:
        return repr(value)
    return value
