"""The gradient that attacks climb, and what to say where there is none."""

from __future__ import annotations

import torch

from rdi.errors import UserError


def input_gradient(loss: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a scalar loss at the images x. Raises UserError where the loss does not depend on them."""
    grad = torch.autograd.grad(loss, x, allow_unused=True)[0] if loss.requires_grad else None
    if grad is None:
        raise UserError(
            "the logits under attack do not depend on the image: an exit is detached from its input (detach(), "
            "no_grad(), or a constant in its head), so no gradient attack can find anything; mend that exit"
        )
    return grad
