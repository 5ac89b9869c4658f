"""AL0: adversarial training with a global limit on the number of non-zero weights (Gui et al., NeurIPS 2019)."""

from __future__ import annotations

from torch import nn

from rdi.compression.base import Budgeted, layer_weights, project
from rdi.exits.net import MultiExitNet


class L0(Budgeted):
    """Projected SGD: after every step the largest weights of the whole network stay, the others become zero.

    ratio: share of the weights of convolutions and linear layers that stays, in (0, 1].
    start: as of Compression.
    Source: AL0 of Gui et al., NeurIPS 2019.
    """

    def prepare(self, net: MultiExitNet) -> list[nn.Parameter]:
        """Learn the budget; return all parameters to optimise."""
        self._weights, self._budget = list(layer_weights(net).values()), self.budget(net)
        return list(net.parameters())

    def after_step(self) -> None:
        """Project the weights onto the budget."""
        project(self._weights, self._budget)
