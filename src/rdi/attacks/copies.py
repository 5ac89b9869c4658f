"""The copy that an attack called from Python crafts on: made once per network, as the network is at every call."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import nn

from rdi.attacks.engine import CraftingCopy, Engine, is_copy, tensors
from rdi.exits.net import MultiExitNet

ENGINES = (Engine(), Engine(channels_last=False))
"""Tried in this order: modules that flatten with view() refuse channels-last features."""
AGREEMENT = 1e-3
"""How far the logits of a copy may be from the network's, by the largest of them."""
PLAIN = (bool, int, float, str, tuple, type(None))
BOOKKEEPING = frozenset(vars(nn.Module()))
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")

logger = logging.getLogger("rdi")


class _Kept:
    """What is known of one network: its build, the engine's copy (None: no copy answers as it does), shapes tried."""

    def __init__(self, build: Hashable, made: CraftingCopy | None, layout: torch.memory_format) -> None:
        self.build, self.made, self.layout = build, made, layout
        self.tried: set[tuple[int, ...]] = set()


_kept: weakref.WeakKeyDictionary[MultiExitNet, _Kept] = weakref.WeakKeyDictionary()


def crafting_network(model: MultiExitNet, x: torch.Tensor) -> tuple[MultiExitNet, torch.memory_format]:
    """Give the network to craft on for images like x_NCHW, and the memory format that suits it.

    A copy with BatchNorm folded and channels-last, brought up to the present weights; made anew when modules, types or
    options of `model` have changed. It was seen to answer as `model` does on images of that shape. Where none does,
    `model` itself, and for a network that is such a copy already, that has hooks (whoever put them there means this
    network), or that computes in another type than float32. In eval mode, both.
    """
    if is_copy(model) or _hooked(model) or not _is_float32(model):
        return model, torch.preserve_format
    build = _build(model)
    kept = _kept.get(model)
    if kept is not None and kept.build == build:
        # all of it, not what counts as changed: a write to tensor.data is counted nowhere
        if kept.made is not None:
            kept.made.refresh()
        if (
            not len(x)
            or _shape(x) in kept.tried
            or (kept.made is None or _agrees(kept.made.net, model, x, kept.layout))
        ):
            kept.tried.add(_shape(x))
            return (model if kept.made is None else kept.made.net), kept.layout
    kept = _kept[model] = _new(model, x, build)
    return (model if kept.made is None else kept.made.net), kept.layout


def _new(model: MultiExitNet, x: torch.Tensor, build: Hashable) -> _Kept:
    for engine in ENGINES:
        try:
            # tensors made in inference mode could not be used outside it
            with torch.inference_mode(False):
                made = engine.copy(model)
            same = _agrees(made.net, model, x, engine.memory_format)
        except Exception as error:  # what a stranger's network does when it is copied shares no class
            logger.debug("no crafting copy (%s): %s", engine, error)
            continue
        if same:
            kept = _Kept(build, made, engine.memory_format)
            if len(x):
                kept.tried.add(_shape(x))
            return kept
    logger.info("no folded copy of this network answers as it does: attacks are crafted on the network itself")
    return _Kept(build, None, torch.preserve_format)


@torch.no_grad()
def _agrees(copied: MultiExitNet, model: MultiExitNet, x: torch.Tensor, layout: torch.memory_format) -> bool:
    few = x[:2].detach()
    expected = model(few).float()
    try:
        found = copied(few.to(memory_format=layout)).float()
    except RuntimeError:
        return False
    return torch.allclose(found, expected, rtol=0, atol=AGREEMENT * (1 + float(expected.abs().nan_to_num().max())))


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
