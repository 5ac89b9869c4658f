"""What a deployed policy sees of a batch: a forward pass with gradients that stops where nobody needs more."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.attacks.objectives import wrong_margin
from rdi.errors import UserError
from rdi.exits.compact import take
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy


@dataclass(frozen=True)
class Seen:
    """logits_NKC float32 that the policy answers with at the exits that ran, with graph; for most policies those of
    the exits themselves. Without meaning where an exit did not run for a sample.

    exit_N: where the policy lets each sample go, counting on after the exits that ran (at most E-1).
    known_N: whether that exit ran, so that its verdict is known.
    """

    logits: torch.Tensor
    exit: torch.Tensor
    known: torch.Tensor

    def at_exit(self, value_NK: torch.Tensor) -> torch.Tensor:
        """value_NK -> value_N at the exit taken, 0 where that exit did not run."""
        column = self.exit.clamp(max=value_NK.shape[1] - 1)
        # not a product: an infinite margin behind an exit that did not run is no NaN
        return torch.where(self.known, value_NK.gather(1, column[:, None])[:, 0], 0)

    def wrong(self, y_N: torch.Tensor) -> torch.Tensor:
        """1.0 where the policy's answer is known and wrong, else 0.0. The policy alone decides, not the other exits."""
        return (self.at_exit(wrong_margin(self.logits.detach(), y_N)) > 0).float()


def deployed(policy: Policy | None, model: MultiExitNet, attack: str) -> Policy:
    """The policy, if there is one and it is for as many exits as the network has. Raises UserError, naming `attack`."""
    if policy is None:
        raise UserError(f"{attack} attacks a network with its thresholds: bind them with attack.for_policy(policy)")
    if policy.exits != model.exits:
        raise UserError(f"the thresholds are for {policy.exits} exits, the network has {model.exits}")
    return policy


def look(model: MultiExitNet, policy: Policy, x: torch.Tensor, least: int, most: int) -> Seen:
    """Run x_NCHW through the first `least` exits, and each sample on until the policy lets it go, at most `most`.

    A sample that nobody needs any more is taken out of the batch. 1 <= most <= E, least <= most.
    """
    exit_N = torch.full((len(x),), min(most, model.exits - 1), device=x.device)
    known = torch.full((len(x),), most == model.exits, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    gone = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    seen: list[torch.Tensor] = []
    features = x
    for k in range(most):
        features = model.stages[k](features)
        logits = model.heads[k](features).float()
        seen.append(
            logits if len(rows) == len(x) else logits.new_zeros(len(x), logits.shape[1]).index_copy(0, rows, logits)
        )
        if k == model.exits - 1:
            break
        with torch.no_grad():
            leaving = policy.leaves(torch.stack([one[rows] for one in seen], dim=1)) & ~gone[rows]
        left = rows[leaving]
        exit_N[left], known[left], gone[left] = k, True, True
        if k + 1 >= least:
            stay = (~gone[rows]).nonzero()[:, 0]
            if len(stay) == 0:
                break
            if len(stay) < len(rows):
                rows, features = rows[stay], take(features, stay)
    return Seen(policy.answers(torch.stack(seen, dim=1)), exit_N, known)
