"""Differentiable early-exit forward pass; samples the policy has released leave the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.attacks.objectives import wrong_margin
from rdi.errors import UserError
from rdi.exits.compact import take
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy, checked_policy


@dataclass(frozen=True)
class ExitTrace:
    """Trace of N samples under a policy, through the first K of E exits.

    logits: logits_NKC, float32, with graph: what the policy answers with at each exit (for most policies the exit's own
        logits); meaningless where the exit did not run for the sample.
    exit: exit_N, int64: exit taken; min(K, E-1), with known=False, for a sample that none of the K exits has released.
    known: bool_N: whether the exit taken ran, so that its answer is known.
    cost: float_N, with graph: MACs up to the exit taken, or up to the last that ran, as of MultiExitNet.cost; None of a
        network without gates.
    """

    logits: torch.Tensor
    exit: torch.Tensor
    known: torch.Tensor
    cost: torch.Tensor | None = None

    def at_exit(self, value_NK: torch.Tensor) -> torch.Tensor:
        """Select value_N at the exit taken out of value_NK; 0 where that exit did not run."""
        column = self.exit.clamp(max=value_NK.shape[1] - 1)
        # not a product: an infinite margin behind an exit that did not run is no NaN
        return torch.where(self.known, value_NK.gather(1, column[:, None])[:, 0], 0)

    def wrong(self, y_N: torch.Tensor) -> torch.Tensor:
        """Return wrong_N: 1.0 where the policy's answer is known and not y_N, else 0.0."""
        return (self.at_exit(wrong_margin(self.logits.detach(), y_N)) > 0).float()


def bound_policy(policy: Policy | None, model: MultiExitNet, attack: str) -> Policy:
    """Return the policy. Raises UserError, naming `attack`, for None and for one of another number of exits."""
    if policy is None:
        raise UserError(
            f"{attack} attacks a network with its thresholds, and here are none: to train "
            "against, choose another, as attack=max_avg; from Python, bind them with attack.for_policy(policy)"
        )
    return checked_policy(policy, model.exits)


def early_exit_forward(model: MultiExitNet, policy: Policy, x: torch.Tensor, least: int, most: int) -> ExitTrace:
    """Run each sample of x_NCHW until the policy releases it, through at least `least` and at most `most` exits.

    Samples that are released and have run `least` exits leave the batch. 1 <= least <= most <= E.
    """
    exit_N = torch.full((len(x),), min(most, model.exits - 1), device=x.device)
    known = torch.full((len(x),), most == model.exits, device=x.device)
    rows = torch.arange(len(x), device=x.device)
    released = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    outputs: list[torch.Tensor] = []
    costs: list[torch.Tensor] = []
    features = x

    def placed(part: torch.Tensor) -> torch.Tensor:
        """Lay what the present rows have out for all samples."""
        return part if len(rows) == len(x) else part.new_zeros(len(x), *part.shape[1:]).index_copy(0, rows, part)

    for k in range(most):
        features = model.stages[k](features)
        outputs.append(placed(model.heads[k](features).float()))
        if (cost := model.cost(features, k)) is not None:
            costs.append(placed(cost))
        if k == model.exits - 1:
            break
        with torch.no_grad():
            leaving = policy.leaves(torch.stack([one[rows] for one in outputs], dim=1)) & ~released[rows]
        left = rows[leaving]
        exit_N[left], known[left], released[left] = k, True, True
        if k + 1 >= least:
            stay = (~released[rows]).nonzero()[:, 0]
            if len(stay) == 0:
                break
            if len(stay) < len(rows):
                rows, features = rows[stay], take(features, stay)
    spent = None
    if costs:
        spent = torch.stack(costs, dim=1).gather(1, exit_N.clamp(max=len(costs) - 1)[:, None])[:, 0]
    return ExitTrace(policy.answers(torch.stack(outputs, dim=1)), exit_N, known, spent)
