"""Channels that can be removed: those between two layers that nothing else reads, found by tracing the network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx, nn
from torch.nn import functional as F

from rdi.errors import UserError
from rdi.exits.net import MultiExitNet

PASSES = (
    nn.ReLU,
    nn.ReLU6,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.Dropout,
    nn.Dropout2d,
    nn.Flatten,
    nn.Identity,
)
"""Modules that treat every channel alike and by itself, and keep the order of channels."""
FUNCTIONS = (F.relu, F.relu6, F.max_pool2d, F.avg_pool2d, F.dropout, torch.relu, torch.flatten)
METHODS = ("relu", "flatten")


@dataclass(frozen=True)
class Chain:
    """Names of the modules that share channels which nothing else reads, so that these can be removed.

    producer: layer that makes the channels.
    followers: BatchNorm and depthwise layers on them.
    consumer: layer that reads them.
    """

    producer: str
    followers: tuple[str, ...]
    consumer: str


def chains(net: MultiExitNet) -> tuple[Chain, ...]:
    """Find all chains, in the order of computation: middle widths of residual blocks, plain successions.

    net: traceable by torch.fx.
    Raises UserError for a network that is not.
    """
    try:
        graph = fx.symbolic_trace(net).graph
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"compression=channels cannot follow this network's forward pass ({reason})") from error
    modules = dict(net.named_modules())
    calls = [str(node.target) for node in graph.nodes if node.op == "call_module"]
    found = []
    for node in graph.nodes:
        if node.op != "call_module" or not _mixes(modules[str(node.target)]):
            continue
        followers: list[str] = []
        reader = node
        while len(reader.users) == 1:
            (reader,) = reader.users
            module = modules[str(reader.target)] if reader.op == "call_module" else None
            if module is not None and _mixes(module):
                chain = Chain(str(node.target), tuple(followers), str(reader.target))
                # a module that is called twice has two widths to keep
                if all(calls.count(name) == 1 for name in (chain.producer, *chain.followers, chain.consumer)):
                    found.append(chain)
                break
            if isinstance(module, nn.BatchNorm2d) or _depthwise(module):
                followers.append(str(reader.target))
            elif not (
                isinstance(module, PASSES)
                or (reader.op == "call_function" and reader.target in FUNCTIONS)
                or (reader.op == "call_method" and reader.target in METHODS)
            ):
                break
    return tuple(found)


def _mixes(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1)


def _depthwise(module: nn.Module | None) -> bool:
    return isinstance(module, nn.Conv2d) and module.groups == module.in_channels == module.out_channels


def width(net: MultiExitNet, chain: Chain) -> int:
    """Return the number of channels of a chain."""
    return len(net.get_parameter(f"{chain.producer}.weight"))


@torch.no_grad()
def keep_channels(net: MultiExitNet, kept: dict[str, torch.Tensor]) -> None:
    """Remove channels in place.

    net: the network.
    kept: producer -> ascending channels that stay; every producer must be of a chain of `net`.
    Raises UserError for a producer that is of none.
    """
    by_producer = {chain.producer: chain for chain in chains(net)}
    for producer, index in kept.items():
        if producer not in by_producer:
            raise UserError(f"{producer} of this network cannot be narrowed: it belongs to another one")
        chain = by_producer[producer]
        before = width(net, chain)
        for name in (producer, *chain.followers):
            _keep_outputs(net.get_submodule(name), index)
        _keep_inputs(net.get_submodule(chain.consumer), index, before)


def _keep_outputs(module: nn.Module, index: torch.Tensor) -> None:
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, nn.Parameter(parameter[index.to(parameter.device)].clone()))
    for name, buffer in list(module.named_buffers(recurse=False)):
        if buffer.dim() > 0:
            setattr(module, name, buffer[index.to(buffer.device)].clone())
    if isinstance(module, nn.BatchNorm2d):
        module.num_features = len(index)
    elif isinstance(module, nn.Linear):
        module.out_features = len(index)
    elif isinstance(module, nn.Conv2d):
        if module.groups > 1:
            module.groups = module.in_channels = len(index)
        module.out_channels = len(index)


def _keep_inputs(module: nn.Module, index: torch.Tensor, before: int) -> None:
    """`before`: channels until now; a linear layer behind Flatten reads several positions of each, side by side."""
    assert isinstance(module, nn.Conv2d | nn.Linear), "chains end in these"
    weight = module.weight
    split = weight.detach().view(len(weight), before, -1)
    chosen = split[:, index.to(weight.device)].clone()
    if isinstance(module, nn.Linear):
        module.weight = nn.Parameter(chosen.flatten(1))
        module.in_features = module.weight.shape[1]
    else:
        module.weight = nn.Parameter(chosen.view(len(weight), len(index), *module.kernel_size))
        module.in_channels = len(index)
