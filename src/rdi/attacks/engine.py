"""The network that attacks craft on: a copy made for speed. The verdict is always the original network's."""

from __future__ import annotations

import copy
import logging
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from rdi.checks import choice
from rdi.emulation import say_if_emulated
from rdi.exits.net import MultiExitNet

PRECISIONS = {"float32": torch.float32, "bf16": torch.bfloat16}
COMPILE_MODES = ("default", "reduce-overhead", "max-autotune")

logger = logging.getLogger("rdi")


@dataclass(frozen=True, kw_only=True)
class Engine:
    """Options of the copy that attacks are crafted on; the verdict is always the original network's.

    fold: fold BatchNorm into the convolution before it (equal up to rounding).
    channels_last: memory format.
    precision: "float32" or "bf16" of weights and activations.
    compile: None, or a mode of torch.compile ("reduce-overhead" uses CUDA graphs on a GPU); where it fails, crafting
        goes on without it and says so.
    Raises UserError for other values.
    """

    fold: bool = True
    channels_last: bool = True
    precision: str = "float32"
    compile: str | None = None

    def __post_init__(self) -> None:
        choice("engine.precision", self.precision, tuple(PRECISIONS))
        if self.compile is not None:
            choice("engine.compile", self.compile, COMPILE_MODES)

    @property
    def memory_format(self) -> torch.memory_format:
        """Memory format of the copy, and best of the images that go in."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    def copy(self, model: MultiExitNet) -> FastCopy:
        """Return a crafting copy of `model`, in eval mode, frozen, with its present weights."""
        return FastCopy(model, self)


DEFAULT_ENGINE = Engine()


_copies: weakref.WeakSet[MultiExitNet] = weakref.WeakSet()


def is_copy(model: MultiExitNet) -> bool:
    """Return whether `model` is the network of a FastCopy."""
    return model in _copies


class FastCopy:
    """A frozen copy of a network that follows its weights: call `refresh` after they changed."""

    def __init__(self, source: MultiExitNet, engine: Engine) -> None:
        # weakly: who keeps copies by their networks would keep the networks
        self._source = weakref.ref(source)
        self.net = copy.deepcopy(source).eval().requires_grad_(False)
        pairs = batchnorm_pairs(self.net) if engine.fold else []
        self._folded: list[tuple[Any, Any, Any]] = []
        for conv, norm in pairs:
            fast = _with_bias(self.net.get_submodule(conv))
            _replace(self.net, conv, fast)
            _replace(self.net, norm, nn.Identity())
            self._folded.append((fast, source.get_submodule(conv), source.get_submodule(norm)))
        dtype = PRECISIONS[engine.precision]
        self.net.to(dtype=dtype, memory_format=engine.memory_format)  # type: ignore[call-overload]
        # after the conversion, which replaces buffers; before stage 0 gets a second name
        self._plain = _shared_tensors(self.net, source, tuple(f"{name}." for pair in pairs for name in pair))
        if dtype is not torch.float32:
            say_if_emulated(next(source.parameters(), torch.empty(0)).device)
            self.net.stages[0] = nn.Sequential(_Cast(dtype), self.net.stages[0])
        if engine.compile is not None:
            compile_passes(self.net, engine.compile)
        self.refresh()
        _copies.add(self.net)

    def follows(self, model: MultiExitNet) -> bool:
        """Return whether it is a copy of `model`, the very object."""
        return self._source() is model

    def refresh(self) -> MultiExitNet:
        """Bring the copy up to the source's present weights and statistics, and return it."""
        with torch.no_grad():
            for target, origin in self._plain:
                target.copy_(origin)
            for fast, conv, norm in self._folded:
                weight, bias = fuse_conv_bn_weights(
                    conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
                )
                fast.weight.copy_(weight)
                fast.bias.copy_(bias)
        return self.net


def compile_passes(net: MultiExitNet, mode: str) -> None:
    """Compile, in place, the two ways in which attacks run the network.

    mode: one of COMPILE_MODES.
    """
    # one entry per set of exits and batch size: more than the eight that torch keeps by default
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 128)
    net.logits_at = _Compiled(net.logits_at, mode)  # type: ignore[method-assign, assignment]
    net.nested = _Compiled(net.nested, mode)  # type: ignore[method-assign, assignment]


class _Compiled:
    """A pass of the network, compiled at its first call, and the plain one from the moment that this fails."""

    def __init__(self, plain: Callable[..., torch.Tensor], mode: str) -> None:
        self.plain, self.mode = plain, mode
        self.run: Callable[..., torch.Tensor] = torch.compile(plain, mode=mode, dynamic=False)

    def __call__(self, *args: Any) -> torch.Tensor:
        if self.run is self.plain:
            return self.plain(*args)
        try:
            # what an earlier pass left in the memory of a CUDA graph is used up by now
            torch.compiler.cudagraph_mark_step_begin()
            return self.run(*args)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # a compiler fails in ways that share no class
            reason = str(error).strip().splitlines()[0]
            logger.warning("engine.compile=%s does not work here (%s): going on without it", self.mode, reason)
            self.run = self.plain
            return self.plain(*args)


class _Cast(nn.Module):
    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.to(self.dtype)


def _shared_tensors(
    copied: nn.Module, source: nn.Module, folded: tuple[str, ...]
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(copy's tensor, source's tensor) of everything that folding did not touch."""
    origins = tensors(source)
    return [(target, origins[name]) for name, target in tensors(copied).items() if not name.startswith(folded)]


def tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return all parameters and buffers by name, non-persistent ones too; shared ones under every name."""
    found: dict[str, torch.Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return found | dict(model.named_buffers(remove_duplicate=False))


def batchnorm_pairs(model: MultiExitNet) -> list[tuple[str, str]]:
    """Return the names of (convolution, BatchNorm) where the second alone reads the output of the first.

    Parts that torch.fx cannot trace contribute no pairs: they are copied as they are. Nor do modules that a hook
    changes, or whose tensors are used elsewhere.
    """
    pairs = []
    for prefix, part in model.parts().items():
        try:
            graph = fx.symbolic_trace(part).graph
        except Exception:
            continue
        modules = dict(part.named_modules())
        uses = [str(node.target) for node in graph.nodes if node.op == "call_module"]
        read = {str(node.target).rpartition(".")[0] for node in graph.nodes if node.op == "get_attr"}
        for node in graph.nodes:
            before = node.args[0] if node.op == "call_module" and node.args else None
            if not (isinstance(before, fx.Node) and before.op == "call_module" and len(before.users) == 1):
                continue
            names = str(before.target), str(node.target)
            conv, norm = (modules[name] for name in names)
            if (
                type(conv) is nn.Conv2d
                and isinstance(norm, nn.BatchNorm2d)
                and norm.running_mean is not None
                and not any(one._forward_hooks or one._forward_pre_hooks for one in (conv, norm))
                and uses.count(names[0]) == uses.count(names[1]) == 1
                and read.isdisjoint(names)
            ):
                pairs.append((f"{prefix}.{names[0]}", f"{prefix}.{names[1]}"))
    return pairs


def _with_bias(module: nn.Module) -> Any:
    """A copy of a convolution, with a bias. Drawing no weights, it leaves torch's global generator alone."""
    wide = copy.deepcopy(module)
    if wide.bias is None:
        wide.register_parameter("bias", nn.Parameter(torch.zeros_like(wide.weight[:, 0, 0, 0])))
    return wide.requires_grad_(False)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
