"""Training without a defense."""

from __future__ import annotations

import torch

from rdi.defenses.base import Defense, Logs, accuracy_per_exit
from rdi.exits.net import MultiExitNet


class Standard(Defense):
    """Cross-entropy of all exits on clean images."""

    def loss(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Logs]:
        """Return the clean loss, and the accuracy per exit as a log."""
        logits, y = self.gather(model(x)), self.gather(y)
        loss = self.weighted_loss(logits, y)
        return loss, {"loss": loss.detach(), "clean_accuracy": accuracy_per_exit(logits, y)}
