"""Training of gates: alone first, then with the network, with a cost term whose sign holds a target share of MACs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from rdi.checks import flag, integer, number
from rdi.defenses.base import Logs
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet
from rdi.gates.net import GatedNet, gated
from rdi.ranks import Share


class CostTerm:
    """The cost term of one step. Of networks without gates it adds nothing."""

    def added(self, loss: torch.Tensor, logs: Logs, share: Share) -> tuple[torch.Tensor, Logs]:
        """Return the loss with the cost term, and the logs with what is logged of the gates.

        share: how the batch is shared with other processes.
        """
        del share
        return loss, logs


class NoGates:
    """The network as it is: every block runs."""

    def attach(self, net: MultiExitNet, shape: Sequence[int]) -> MultiExitNet:
        """Return `net`."""
        del shape
        return net

    @contextmanager
    def step(self, net: MultiExitNet, progress: float) -> Iterator[CostTerm]:
        """Give the cost term of a step, which is none."""
        del net, progress
        yield CostTerm()


class Gates(NoGates):
    """One LSTM shared by all residual blocks but the first, which says per image whether the next block runs.

    In training and under attack bits are hard in the forward pass and straight-through in the backward. The training
    first opens the gates, with the rest of the network frozen, then trains all with
    loss + sign * weight * cost, cost: executed share of the MACs, sign: +1 while the batch's share is above the
    target, else -1.

    channels: whether the channels of each gated block's first convolution have bits, too.
    share: target, of the MACs of the backbone without exits and gates; gates count. In (0, 1].
    weight: of the cost, >= 0.
    alone: share of the training's steps in which the gates alone are trained, towards full execution; in [0, 1).
    width: of the LSTM.
    Sources: Wang et al., ECCV 2018 (SkipNet: recurrent gates); Wang et al., IEEE JSTSP 14(4), 2020 (dual dynamic
    inference: channels, exits on top).
    Raises UserError for values out of range.
    """

    def __init__(
        self, *, channels: bool, share: float, weight: float = 2.0, alone: float = 0.05, width: int = 10
    ) -> None:
        self.channels = flag("gates.channels", channels)
        self.share = number("gates.share", share, 0, 1, open_low=True)
        self.weight = number("gates.weight", weight, 0, math.inf)
        self.alone = number("gates.alone", alone, 0, 1)
        if self.alone == 1:
            raise UserError("gates.alone must be below 1: the network itself would never be trained")
        self.width = integer("gates.width", width, 1, 1024)

    def attach(self, net: MultiExitNet, shape: Sequence[int]) -> MultiExitNet:
        """Return `net` with gates on its residual blocks.

        shape: CHW of an image.
        Raises UserError for another network than a ResNet, and for a target below what always runs.
        """
        found = gated(net, shape, channels=self.channels, width=self.width)
        least = float(found.executed(torch.tensor(sum(found.whole))))
        if self.share < least:
            raise UserError(
                f"gates.share={self.share:g} cannot be reached: stem, first block, shortcuts, classifier and gates "
                f"always run, {least:.3f} of the MACs; take a larger share"
            )
        return found

    @contextmanager
    def step(self, net: MultiExitNet, progress: float) -> Iterator[CostTerm]:
        """Train the gates alone at the beginning; give the cost term of the passes inside.

        progress: share of the steps made.
        """
        assert isinstance(net, GatedNet), "made by attach"
        alone = progress < self.alone
        mine = {id(one) for one in net.gate_parameters()}
        for parameter in net.parameters():
            parameter.requires_grad_(not alone or id(parameter) in mine)
        with net.watched() as passes:
            yield _TargetShare(net, passes, math.inf if alone else self.share, self.weight)


class _TargetShare(CostTerm):
    """The cost term that holds the target share.

    passes: MACs that gates left out, float_N with graph, of every training pass of `net`; the last one counts.
    """

    def __init__(self, net: GatedNet, passes: list[torch.Tensor], target: float, weight: float) -> None:
        self.net, self.passes = net, passes
        self.target, self.weight = target, weight

    def added(self, loss: torch.Tensor, logs: Logs, share: Share) -> tuple[torch.Tensor, Logs]:
        """Return loss + sign * weight * mean executed share; the mean over the whole batch decides the sign."""
        if not self.passes:
            raise UserError(
                "gates=... need a defense that runs the whole network on the batch: choose another one, or gates=none"
            )
        executed = self.net.executed(self.passes[-1])
        # what a step trains on may be several batches one after the other, of which each is shared
        mean = share.gather(executed.unflatten(0, (-1, share.size)).T).mean()
        sign = 1.0 if float(mean.detach()) > self.target else -1.0
        return loss + sign * self.weight * mean, {**logs, "executed_share": mean.detach()}
