"""Networks compiled part by part for batches of a few sizes, so that no batch makes the compiler run again."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import nn

from rdi.exits.net import MultiExitNet

SIZES = (1, 4, 16, 64, 256)
"""Images that a part is compiled for. A batch is cut into such pieces, and the last padded: of 20 images 16 and 4."""

logger = logging.getLogger("rdi")


class CompiledPart(nn.Module):
    """A stage, a head or a whole network, compiled once per size and shape of image; plain where the compiler fails.

    part: in eval mode, one tensor in and one out, images first.
    backend: of torch.compile. compiled: whether the compiler has not failed so far.
    """

    def __init__(self, part: nn.Module, sizes: Sequence[int] = SIZES, backend: Any = "inductor") -> None:
        super().__init__()
        self.plain = part
        self.sizes = sorted(sizes)
        self.compiled = True
        self._calls = {size: torch.compile(_own(part), dynamic=False, backend=backend) for size in self.sizes}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Run the part on x_N..., in pieces of the compiled sizes."""
        if not self.compiled or not len(x):
            return self.plain(x)
        found, start = [], 0
        for size, padded in pieces(len(x), self.sizes):
            found.append(self._piece(x[start : start + size], padded))
            start += size
        return found[0] if len(found) == 1 else torch.cat(found)

    def _piece(self, x: torch.Tensor, padded: int) -> torch.Tensor:
        given = x
        if padded > len(x):
            given = torch.cat([x, x[:1].expand(padded - len(x), *x.shape[1:])])
        try:
            return self._calls[padded](given)[: len(x)]
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in ways that share no class
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            logger.warning("compile=True does not work here (%s): going on without it", reason[:200])
            self.compiled = False
            return self.plain(x)


def _own(part: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that calls the part and shares its code object with no other.

    torch keeps what it compiled by code object, and looks through all of it at every call.
    """

    def call(x: torch.Tensor) -> torch.Tensor:
        return part(x)

    return FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


def pieces(count: int, sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Cut `count` images into (images, size that they are padded to), large ones first.

    sizes: ascending.

    A piece is padded where more than half of the size is filled: less would cost more than cutting it up.
    """
    while count:
        size = next((size for size in sizes if size >= count > size / 2), None)
        if size is None:
            size = next(size for size in reversed(sizes) if size <= count)
        yield min(count, size), size
        count -= min(count, size)


def compiled(model: MultiExitNet, sizes: Sequence[int] = SIZES, backend: Any = "inductor") -> MultiExitNet:
    """Return the network with every stage and every head compiled; it shares the weights.

    sizes: as of CompiledPart.
    """
    return MultiExitNet(
        [CompiledPart(stage, sizes, backend) for stage in model.stages],
        [CompiledPart(head, sizes, backend) for head in model.heads],
    ).eval()


_shared: weakref.WeakKeyDictionary[MultiExitNet, MultiExitNet] = weakref.WeakKeyDictionary()


def shared(model: MultiExitNet) -> MultiExitNet:
    """Return the compiled network of `model`, the same for all who ask: nothing is compiled once per policy."""
    if model not in _shared:
        _shared[model] = compiled(model)
    return _shared[model]


class _Static(nn.Module):
    def __init__(self, model: MultiExitNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.logits_at(x, [self.model.exits - 1])[:, 0]


def compiled_static(model: MultiExitNet, sizes: Sequence[int] = SIZES, backend: Any = "inductor") -> CompiledPart:
    """Return the network without its early exits, compiled as a whole: x_NCHW -> logits_NC of the last exit."""
    return CompiledPart(_Static(model), sizes, backend).eval()


@torch.no_grad()
def warm_up(net: MultiExitNet | CompiledPart, images: torch.Tensor) -> None:
    """Compile for every size up to the first that holds a batch as large as images_NCHW, and say how long it takes."""
    parts = [module for module in net.modules() if isinstance(module, CompiledPart)]
    if not len(images) or not any(part.compiled for part in parts):
        return
    sizes = fitting(len(images), parts[0].sizes)
    listed = ", ".join(map(str, sizes))
    logger.info("compiling %d parts of the network for batches of %s; larger ones are cut", len(parts), listed)
    start = time.perf_counter()
    for size in sizes:
        given = images[:1].expand(size, *images.shape[1:]).contiguous(memory_format=_format(images))
        net(given)
    if all(part.compiled for part in parts):
        logger.info("compiled in %.0f s", time.perf_counter() - start)


def fitting(count: int, sizes: Sequence[int]) -> list[int]:
    """Return the sizes that batches of at most `count` images are cut into."""
    return [size for size in sizes if count > size / 2]


def _format(images: torch.Tensor) -> torch.memory_format:
    plain = images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if plain else torch.channels_last
