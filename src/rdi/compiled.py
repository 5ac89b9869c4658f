"""Networks compiled exit by exit, for batches of any length, so that no batch makes the compiler run again."""

from __future__ import annotations

import logging
import time
import weakref
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn

from rdi.exits.net import MultiExitNet

# a module as it was compiled: checking all of its attributes at every call takes as long as a small stage
OPTIONS = {"guard_filter_fn": torch.compiler.skip_guard_on_all_nn_modules_unsafe}

SIZES = (1, 2, 16)
"""Images that are compiled for: those of more than one stand for all up to the next, as torch chooses convolutions."""

logger = logging.getLogger("rdi")


class CompiledPart(nn.Module):
    """Part of a network, compiled for one image and for batches of any other length; plain where the compiler fails.

    part: in eval mode, one tensor in, a tensor or several out, images first. It must stay as it is, its weights apart.
    backend: of torch.compile. compiled: whether the compiler has not failed so far.
    """

    def __init__(self, part: nn.Module, backend: Any = "inductor") -> None:
        super().__init__()
        self.plain = part
        self.compiled = True
        self._alone, self._many = (
            torch.compile(_own(part), dynamic=dynamic, backend=backend, options=dict(OPTIONS))
            for dynamic in (False, None)
        )

    def forward(self, x: torch.Tensor) -> Any:
        """Run the part on x_N...."""
        if not self.compiled or not len(x):
            return self.plain(x)
        try:
            if len(x) == 1:
                return self._alone(x)
            x = x.view_as(x)  # the mark is left on the tensor, which may be the caller's
            torch._dynamo.mark_dynamic(x, 0)
            return self._many(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in ways that share no class
            found = self.plain(x)  # raises where the images are wrong, and not the compiler
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            logger.warning("compile=True does not work here (%s): going on without it", reason[:200])
            self.compiled = False
            return found


def _own(part: nn.Module) -> Callable[[torch.Tensor], Any]:
    """Return a function that calls the part and shares its code object with no other.

    torch keeps what it compiled by code object, and looks through all of it at every call.
    """

    def call(x: torch.Tensor) -> Any:
        return part(x)

    return FunctionType(call.__code__.replace(), call.__globals__, closure=call.__closure__)


class _Step(nn.Module):
    def __init__(self, stage: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.stage, self.head = stage, head

    def forward(self, features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.stage(features)
        return features, self.head(features)


class CompiledNet(MultiExitNet):
    """The network with every stage compiled together with its head; it shares the modules.

    backend: as of CompiledPart.
    """

    def __init__(self, model: MultiExitNet, backend: Any = "inductor") -> None:
        super().__init__(model.stages, model.heads)
        self.steps = nn.ModuleList(
            CompiledPart(_Step(stage, head), backend) for stage, head in zip(self.stages, self.heads, strict=True)
        )

    def step(self, features: torch.Tensor, exit: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Run a stage and its head, compiled."""
        found: tuple[torch.Tensor, torch.Tensor] = self.steps[exit](features)
        return found

    def judged(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Compute logits_NEC for x_NCHW, and None: there are no gates."""
        outputs = []
        for exit in range(self.exits):
            x, out = self.step(x, exit)
            outputs.append(out)
        return torch.stack(outputs, dim=1), None


_shared: weakref.WeakKeyDictionary[MultiExitNet, CompiledNet] = weakref.WeakKeyDictionary()


def shared(model: MultiExitNet) -> CompiledNet:
    """Return the compiled network of `model`, the same for all who ask: nothing is compiled once per policy."""
    if model not in _shared:
        _shared[model] = CompiledNet(model).eval()
    return _shared[model]


class _Static(nn.Module):
    def __init__(self, model: MultiExitNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model.logits_at(x, [self.model.exits - 1])[:, 0]


def compiled_static(model: MultiExitNet, backend: Any = "inductor") -> CompiledPart:
    """Return the network without its early exits, compiled as a whole: x_NCHW -> logits_NC of the last exit."""
    return CompiledPart(_Static(model), backend).eval()


@torch.no_grad()
def warm_up(net: CompiledNet | CompiledPart, images: torch.Tensor) -> None:
    """Compile for images like images_NCHW, for one alone or for batches of any length, and say how long it takes."""
    parts = [module for module in net.modules() if isinstance(module, CompiledPart)]
    if not len(images) or not all(part.compiled for part in parts):
        return
    sizes = SIZES if len(images) > 1 else SIZES[:1]
    logger.info("compiling %d parts of the network for batches of %s", len(parts), "any length" if sizes[1:] else "1")
    start = time.perf_counter()
    for size in sizes:
        given = images[:1].expand(size, *images.shape[1:]).contiguous(memory_format=_format(images))
        (net.judged if isinstance(net, CompiledNet) else net)(given)
    if all(part.compiled for part in parts):
        logger.info("compiled in %.0f s", time.perf_counter() - start)


def _format(images: torch.Tensor) -> torch.memory_format:
    plain = images.is_contiguous() or not images.is_contiguous(memory_format=torch.channels_last)
    return torch.contiguous_format if plain else torch.channels_last
