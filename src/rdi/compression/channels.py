"""Networks with fewer channels inside their blocks: really smaller dense networks, so both cost rules just count."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import nn

from rdi import macs
from rdi.checks import choice, integer, number
from rdi.compression.base import Compression, layer_weights
from rdi.compression.chains import Chain, chains, keep_channels
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet

CRITERIA = ("l1", "bn")
MEASURES = ("macs", "weights")


class Channels(Compression):
    """Fewer channels in the widths that a single layer reads (the middle of each block); shortcuts and exits stay.

    widths: channels left of each such width, in the order of computation; or give `ratio`.
    ratio: cost of the result relative to the dense network, at most, in (0, 1]. The least important channels of all
        widths go first and one of each width stays; it needs `start`, whose weights are judged.
    of: cost that ratio limits, "macs" (all that runs to the last exit) or "weights" (of convolutions and linear
        layers).
    criterion: importance of a channel: "l1", the mean magnitude of its filter over that of all filters of its layer
        (after Li et al., ICLR 2017), or "bn", the magnitude of its BatchNorm scale (after Liu et al., ICCV 2017).
    start: run folder whose weights the training starts from; the weights of the channels that stay are kept.
    Raises UserError for values out of range, and unless exactly one of widths and ratio is given.
    """

    def __init__(
        self,
        *,
        widths: Sequence[int] | None = None,
        ratio: float | None = None,
        of: str = "macs",
        criterion: str = "l1",
        start: str | None = None,
    ) -> None:
        super().__init__(start=start)
        self.of = choice("compression.of", of, MEASURES)
        self.criterion = choice("compression.criterion", criterion, CRITERIA)
        if (widths is None) == (ratio is None):
            raise UserError(
                "give one of compression.ratio and compression.widths, or choose a network of published widths, for "
                f"example compression=rn38_r006 (now ratio {ratio}, widths {widths})"
            )
        if widths is not None and not isinstance(widths, list | tuple):
            raise UserError(f"compression.widths must be a list of numbers, as [16,16,32], got {widths!r}")
        self.widths = None if widths is None else [integer("compression.widths", one, 1) for one in widths]
        self.ratio = ratio
        if ratio is not None:
            number("compression.ratio", ratio, 0, 1, open_low=True)
            if start is None:
                raise UserError(
                    "compression.ratio removes the weakest channels of a trained network: give "
                    "start=RUN, or the widths themselves in compression.widths"
                )

    def shrink(self, net: MultiExitNet, shape: Sequence[int]) -> dict[str, int]:
        """Cut the least important channels away."""
        found = chains(net)
        if not found:
            raise UserError("compression=channels finds no channels in this network that only one layer reads")
        scores = [importance(net, chain, self.criterion) for chain in found]
        if self.widths is not None:
            kept = self._given(found, scores)
        else:
            kept = self._affordable(net, shape, found, scores)
        keep_channels(net, kept)
        return {name: len(index) for name, index in kept.items()}

    def _given(self, found: Sequence[Chain], scores: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        assert self.widths is not None, "asked for only then"
        now = [len(score) for score in scores]
        if len(self.widths) != len(found) or any(new > old for new, old in zip(self.widths, now, strict=False)):
            raise UserError(
                f"compression.widths must list {len(found)} numbers for this network, at most {now}, got {self.widths}"
            )
        return {
            chain.producer: score.topk(new).indices.sort().values
            for chain, score, new in zip(found, scores, self.widths, strict=True)
        }

    def _affordable(
        self, net: MultiExitNet, shape: Sequence[int], found: Sequence[Chain], scores: Sequence[torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """The fewest of the least important channels removed that meet the ratio."""
        assert self.ratio is not None, "asked for only then"
        owner = torch.cat([torch.full((len(score),), chain) for chain, score in enumerate(scores)])
        channel = torch.cat([torch.arange(len(score)) for score in scores])
        order = torch.cat(list(scores)).argsort(stable=True)
        best = {(chain, int(score.argmax())) for chain, score in enumerate(scores)}
        leaving = [
            (int(owner[one]), int(channel[one])) for one in order if (int(owner[one]), int(channel[one])) not in best
        ]

        def kept(removed: int) -> dict[str, torch.Tensor]:
            gone = set(leaving[:removed])
            return {
                chain.producer: torch.tensor([c for c in range(len(score)) if (position, c) not in gone])
                for position, (chain, score) in enumerate(zip(found, scores, strict=True))
            }

        def cost(removed: int) -> int:
            probe = copy.deepcopy(net)
            keep_channels(probe, kept(removed))
            return COSTS[self.of](probe, shape)

        limit = self.ratio * cost(0)
        if (least := cost(len(leaving))) > limit:
            raise UserError(
                f"compression.ratio={self.ratio:g} is out of reach: with one channel left inside every block the "
                f"network still has {least / cost(0):.3f} of its {self.of}"
            )
        low, high = 0, len(leaving)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if cost(middle) <= limit else (middle + 1, high)
        return kept(low)


COSTS: dict[str, Callable[[MultiExitNet, Sequence[int]], int]] = {
    "macs": lambda net, shape: macs.count(net, shape, warn=False).macs[-1],
    "weights": lambda net, shape: sum(weight.numel() for weight in layer_weights(net).values()),
}


@torch.no_grad()
def importance(net: MultiExitNet, chain: Chain, criterion: str) -> torch.Tensor:
    """Return importance_C of each channel of a chain; comparable between chains of one network.

    criterion: one of CRITERIA.
    Raises UserError for "bn" where there is no BatchNorm.
    """
    if criterion == "l1":
        norms = net.get_parameter(f"{chain.producer}.weight").abs().flatten(1).mean(dim=1).cpu()
        return norms / norms.mean().clamp(min=torch.finfo(norms.dtype).tiny)
    for name in chain.followers:
        norm = net.get_submodule(name)
        if isinstance(norm, nn.BatchNorm2d) and norm.affine:
            return norm.weight.abs().cpu()
    raise UserError(
        f"compression.criterion=bn needs a BatchNorm behind {chain.producer}: take compression.criterion=l1"
    )
