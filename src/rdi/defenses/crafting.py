"""Ways to make the adversarial images of a training batch that cost less than an attack."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from rdi.attacks.norms import Ball
from rdi.defenses.base import Origin
from rdi.defenses.terms import ADVERSARIAL
from rdi.exits.net import MultiExitNet


class Crafting(ABC):
    """Makes training images out of a batch.

    gives: names of the images that it makes, as terms call them.
    """

    gives: ClassVar[frozenset[str]] = frozenset({ADVERSARIAL})

    @abstractmethod
    def __call__(
        self,
        net: MultiExitNet,
        x: torch.Tensor,
        y: torch.Tensor,
        ball: Ball,
        generator: torch.Generator,
        *,
        step: int = 0,
        origin: Origin | None = None,
    ) -> dict[str, torch.Tensor]:
        """Craft images_NCHW in [0, 1], by the names in `gives`.

        net: frozen, in eval mode.
        x: images_NCHW in [0, 1].
        y: labels_N.
        ball: the threat model.
        generator: of all that is drawn.
        step: 0-based number of the batch in the training.
        origin: of the batch; None: not a batch of training images, and nothing of it is remembered.
        """

    def check(self, ball: Ball) -> None:
        """Raise UserError for a threat model that images cannot be made for."""
        del ball

    def one_step(self) -> Crafting | None:
        """Return the one step against all exits that the attack is compared with; None where there is none."""
        return None

    def state(self) -> dict[str, Any]:
        """Return what the next batch depends on; {}: on no other."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Be as the one whose `state` this is; {} is the state before the first batch."""
        del state
