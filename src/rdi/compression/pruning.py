"""Pruning layer by layer: of every layer the weights, filters or columns of the largest norm stay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from rdi.checks import choice, number
from rdi.compression.base import Compression, Parts, layer_weights
from rdi.exits.net import MultiExitNet

STRUCTURES = ("weights", "filters", "columns")


class LayerPruning(Compression):
    """A network of which, in every layer, max(1, floor(ratio * groups)) groups of weights stay.

    ratio: in (0, 1].
    structure: what a group is: "weights", one weight; "filters", all weights of one output channel, in convolutions
        only, for the outputs of a last linear layer are the classes; "columns", the weights of all outputs at one
        place of the kernel and input channel, that is a column of the flattened weight.
    start: see Compression.
    What is judged and saved is always the pruned network. Raises UserError for values out of range.
    """

    def __init__(self, *, ratio: float, structure: str = "weights", start: str | None = None) -> None:
        super().__init__(start=start)
        self.ratio = number("compression.ratio", ratio, 0, 1, open_low=True)
        self.structure = choice("compression.structure", structure, STRUCTURES)
        self._masks: Parts = {}
        self._step = 0

    def budget(self, net: MultiExitNet) -> int:
        """Return the number of weights that stay in the end, those of layers that are left alone included."""
        pruned = prunable(net, self.structure)
        total = 0
        for name, weight in layer_weights(net).items():
            groups = len(norms(weight, self.structure)) if name in pruned else 1
            total += weight.numel() // groups * (kept(self.ratio, groups) if name in pruned else 1)
        return total

    def prepare(self, net: MultiExitNet) -> list[nn.Parameter]:
        """Learn which layers to prune; return all parameters to optimise."""
        self._layers = prunable(net, self.structure)
        self._masks, self._step = {}, 0
        return list(net.parameters())

    @torch.no_grad()
    def prune(self, ratio: float) -> None:
        """Keep a share of every layer as it is now; the rest is zero until the next call.

        ratio: share of the groups of each layer, in (0, 1].
        """
        self._masks = {name: mask(weight, self.structure, ratio) for name, weight in self._layers.items()}
        self.apply_masks()

    @torch.no_grad()
    def apply_masks(self) -> None:
        """Zero what was pruned."""
        for name, kept_here in self._masks.items():
            self._layers[name].mul_(kept_here)

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Zero the gradients of what was pruned, so that no momentum gathers for it."""
        for name, kept_here in self._masks.items():
            gradient = self._layers[name].grad
            if gradient is not None:
                gradient.mul_(kept_here)

    @contextmanager
    def deployed(self) -> Iterator[Parts]:
        """Give the network the weights pruned to the final ratio."""
        before = {name: weight.detach().clone() for name, weight in self._layers.items()}
        with torch.no_grad():
            for weight in self._layers.values():
                weight.mul_(mask(weight, self.structure, self.ratio))
        try:
            yield {}
        finally:
            with torch.no_grad():
                for name, weight in self._layers.items():
                    weight.copy_(before[name])

    def state(self) -> dict[str, Any]:
        """Return the step and what was pruned."""
        return {"step": self._step, "masks": self._masks}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the step and what was pruned."""
        if not state:
            return
        if state["masks"] and state["masks"].keys() != self._layers.keys():
            raise ValueError("these masks are of another network")
        self._step, self._masks = state["step"], dict(state["masks"])


def prunable(net: nn.Module, structure: str) -> dict[str, nn.Parameter]:
    """Return layer name -> weight of the layers that are pruned: with filters, convolutions only."""
    weights = layer_weights(net)
    return {name: weight for name, weight in weights.items() if structure != "filters" or weight.ndim == 4}


def norms(weight: torch.Tensor, structure: str) -> torch.Tensor:
    """Return the norm of every group of a weight, out x in (x k x k): |w| of weights, L2 of filters and columns."""
    if structure == "weights":
        return weight.detach().abs().flatten()
    return weight.detach().flatten(1).norm(dim=1 if structure == "filters" else 0)


def spread(groups: torch.Tensor, weight: torch.Tensor, structure: str) -> torch.Tensor:
    """Return one value per group as one per weight, in the shape of `weight`."""
    if structure == "weights":
        return groups.view(weight.shape)
    flat = groups[:, None] if structure == "filters" else groups[None]
    return flat.expand(weight.flatten(1).shape).reshape(weight.shape)


def kept(ratio: float, groups: int) -> int:
    """Return how many of so many groups stay."""
    # 1e-9: 0.29 of 100 are 29, whatever their product says
    return max(1, int(ratio * groups + 1e-9))


def mask(weight: torch.Tensor, structure: str, ratio: float) -> torch.Tensor:
    """Return bool of the shape of `weight`, True for the groups of largest norm that stay."""
    values = norms(weight, structure)
    stays = torch.zeros_like(values, dtype=torch.bool)
    # indices and not a limit on the norm: equal ones would stay together
    stays[values.topk(kept(ratio, len(values)), sorted=False).indices] = True
    return spread(stays, weight, structure)
