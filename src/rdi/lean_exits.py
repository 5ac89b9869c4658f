"""Few, late and cheap exits for any backbone: placed by depth in MACs, heads chosen to fit a share of the backbone."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from torch import nn

from rdi import macs
from rdi.backbones.base import Backbone, HeadFactory
from rdi.checks import number
from rdi.errors import UserError
from rdi.exits.attach import attach
from rdi.exits.net import MultiExitNet

logger = logging.getLogger("rdi")


class LeanExits:
    """Exits at given depths whose heads together cost at most a share of the plain backbone.

    depths: ascending shares of the plain backbone's MACs, in (0, 1); an exit follows the block that ends nearest.
    heads: factories from the most to the least capable; each exit, in order, takes the first one that the share
        still allows.
    share: of the plain backbone's MACs that all early heads together may cost, in (0, 1].
    Raises UserError for values out of range, for depths that fall on one block, and when no head is cheap enough.
    """

    def __init__(self, *, depths: Sequence[float], heads: Sequence[HeadFactory], share: float = 0.02) -> None:
        self.depths = [number("exits.depths", depth, 0, 0.999, open_low=True) for depth in depths]
        if not self.depths or self.depths != sorted(set(self.depths)):
            raise UserError(f"exits.depths must list ascending shares of the backbone, as [0.6, 0.8], got {depths}")
        if not heads:
            raise UserError("exits.heads must list at least one head, as rdi.exits.PoolLinear")
        self.heads = list(heads)
        self.share = number("exits.share", share, 0, 1, open_low=True)

    def __call__(self, backbone: Backbone) -> MultiExitNet:
        """Attach the exits.

        backbone: a plain network cut into blocks.
        """
        shapes = [backbone.input_shape, *backbone.shapes]
        costs = [cost(block, shape) for block, shape in zip(backbone.blocks, shapes, strict=False)]
        plain = sum(costs) + cost(backbone.classifier, backbone.shapes[-1])
        taps = [self._tap(depth * plain, costs) for depth in self.depths]
        if len(set(taps)) < len(taps):
            raise UserError(
                f"exits.depths={self.depths} fall on the blocks {taps} of this backbone: name depths further apart"
            )
        left = self.share * plain
        exits: list[tuple[int, HeadFactory]] = []
        for tap in taps:
            head, spent = self._head(tap, backbone, left)
            left -= spent
            exits.append((tap, head))
            logger.info(
                "exit %d: after block %d, at %.1f %% of the backbone's MACs; its head costs %.2f %%",
                len(exits) - 1,
                tap,
                100 * sum(costs[: tap + 1]) / plain,
                100 * spent / plain,
            )
        return attach(backbone, exits)

    def _tap(self, target: float, costs: Sequence[int]) -> int:
        """Return the block, not the last, behind which the backbone has cost nearest to `target` MACs."""
        if len(costs) < 2:
            raise UserError("this backbone has one block only, which leaves no place for an early exit")
        return min(range(len(costs) - 1), key=lambda block: abs(math.fsum(costs[: block + 1]) - target))

    def _head(self, tap: int, backbone: Backbone, left: float) -> tuple[HeadFactory, int]:
        """Return the first head that fits `left` MACs at this tap, and its cost."""
        shape = backbone.shapes[tap]
        fits = False
        for factory in self.heads:
            try:
                spent = cost(factory(shape, backbone.classes), shape)
            except RuntimeError:  # features too small for this head: a simpler one may fit
                continue
            fits = True
            if spent <= left:
                return factory, spent
        if not fits:
            raise UserError(
                f"no head of exits.heads takes the features behind block {tap}, {'x'.join(map(str, shape))}: choose "
                "exits=paper, or write a head that does"
            )
        raise UserError(
            f"no head of exits.heads fits behind block {tap} within {left:.0f} MACs: raise exits.share={self.share:g} "
            "or add a cheaper head"
        )


def cost(part: nn.Module, shape: Sequence[int]) -> int:
    """Count the multiply-adds of `part` on one sample of features of `shape`."""
    return macs.count(MultiExitNet([part], [nn.Identity()]), shape, warn=False).macs[0]
