"""A compression: what the training loop calls, and the global l0 projection that two of them share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rdi.checks import number
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet

Parts = dict[str, torch.Tensor]
"""Tensors stored in place of the weights of convolutions and linear layers, by name; {}: these weights themselves."""


class Compression:
    """Keeps a network small while it is trained. The network stays an ordinary one: attacks see no difference.

    Called in this order: `shrink` once for a new run, `prepare` once per process, then in every step `before_step` (the
    gradients are there) and `after_step` (the optimiser has stepped), and `deployed` around every evaluation. This
    class does nothing in each of them.

    bits: per stored weight; None: they are float32.
    start: run folder whose weights the training starts from, None: from scratch. The caller of `shrink` loads them.
    Raises UserError for a start that is no name.
    """

    bits: int | None = None
    steps: int = 1

    def __init__(self, *, start: str | None = None) -> None:
        if start is not None and not isinstance(start, str):
            raise UserError(f"start must name a run folder, as runs/dense, got {start!r}")
        self.start = start

    def shrink(self, net: MultiExitNet, shape: Sequence[int]) -> dict[str, int]:
        """Narrow `net` (images of `shape` CHW) in place -> name of each narrowed layer: outputs it has left."""
        return {}

    def budget(self, net: MultiExitNet) -> int | None:
        """Return the number of non-zero weights to store for `net`; None: no limit. Raises UserError if that is 0."""
        return None

    def begin(self, steps: int) -> None:
        """Learn the number of steps of the whole training, before `prepare`."""
        self.steps = steps

    def prepare(self, net: MultiExitNet) -> list[nn.Parameter]:
        """Take charge of `net`, as it is now, for the steps to come -> what the optimiser trains."""
        return list(net.parameters())

    def before_step(self) -> None:
        """Change the gradients between the backward pass and the optimiser's step."""

    def after_step(self) -> None:
        """Bring the network back within its limits after the optimiser's step."""

    @contextmanager
    def deployed(self) -> Iterator[Parts]:
        """Give the network the weights that would be deployed; yield what is stored of them."""
        yield {}

    def logs(self) -> dict[str, float]:
        """Return figures for the log; asked for at evaluations only, for it may wait for the device."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what the next step depends on apart from the network and the optimiser; {} if nothing."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a `state`, after `prepare`; {} is the state before the first step.

        Raises ValueError, KeyError or RuntimeError for the state of another one.
        """
        if state:
            raise ValueError(f"{type(self).__name__} has no state")


class NoCompression(Compression):
    """The network as it is."""

    def __init__(self) -> None:
        super().__init__()


class Budgeted(Compression):
    """A compression that may store floor(ratio * weights of convolutions and linear layers) non-zeros.

    ratio: in (0, 1].
    start: as of Compression.
    Raises UserError for other values.
    """

    def __init__(self, *, ratio: float, start: str | None = None) -> None:
        super().__init__(start=start)
        self.ratio = number("compression.ratio", ratio, 0, 1, open_low=True)

    def budget(self, net: MultiExitNet) -> int:
        """Return floor(ratio * weights). Raises UserError where that is no weight at all."""
        weights = sum(weight.numel() for weight in layer_weights(net).values())
        budget = int(self.ratio * weights)
        if budget < 1:
            raise UserError(f"compression.ratio={self.ratio:g} leaves none of {weights} weights: take a larger one")
        return budget


def layer_weights(net: nn.Module) -> dict[str, nn.Parameter]:
    """Return the weight of every convolution and linear layer by name: what ATMC counts.

    net: any module.
    """
    layers = {name: layer for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    return {name: layer.get_parameter("weight") for name, layer in layers.items()}


@torch.no_grad()
def project(tensors: Sequence[torch.Tensor], budget: int) -> None:
    """Zero, in place, all but the entries of largest magnitude over all tensors.

    tensors: of any shapes.
    budget: exactly so many entries stay.
    """
    magnitudes = torch.cat([tensor.detach().abs().flatten() for tensor in tensors])
    if budget >= len(magnitudes):
        return
    drop = torch.ones_like(magnitudes, dtype=torch.bool)
    # indices and not a limit on the magnitude: equal ones would stay together
    drop[magnitudes.topk(budget, sorted=False).indices] = False
    for tensor, part in zip(tensors, drop.split([tensor.numel() for tensor in tensors]), strict=True):
        tensor.masked_fill_(part.view(tensor.shape), 0)
