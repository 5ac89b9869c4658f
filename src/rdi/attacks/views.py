"""Views: a multi-exit network as the one-output classifier that a plain attack takes it for."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn

from rdi.attacks.base import Attack
from rdi.attacks.early_exit import bound_policy, early_exit_forward
from rdi.attacks.objectives import OneExit
from rdi.checks import integer
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy

TARGETS = ("policy", "mean", "each")


class ExitView(nn.Module):
    """x_NCHW -> logits_NC (float32) of exit `exit` (0-based, -1 the last); nothing behind it runs.

    Raises UserError when the network has no such exit.
    """

    def __init__(self, model: MultiExitNet, exit: int) -> None:
        super().__init__()
        self.model = model
        self.exits = OneExit(exit).exits(model.exits)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits_NC of the exit."""
        return self.model.logits_at(x, self.exits)[:, 0].float()


class MeanView(nn.Module):
    """x_NCHW -> the mean over exits of the logits, logits_NC (float32).

    The mean of the log-softmax would be the same up to a constant per sample, which no argmax, cross-entropy, ratio
    or difference of logits sees.
    """

    def __init__(self, model: MultiExitNet) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean logits_NC."""
        return self.model(x).float().mean(dim=1)


class PolicyView(nn.Module):
    """x_NCHW -> logits_NC (float32) of the exit that `policy` takes, sample by sample: what is deployed.

    Gradients flow through the logits taken and not through the decision.

    Raises UserError for thresholds of a network with another number of exits.
    """

    def __init__(self, model: MultiExitNet, policy: Policy) -> None:
        super().__init__()
        self.model = model
        self.policy = bound_policy(policy, model, "PolicyView")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits_NC of the exit that each sample takes."""
        trace = early_exit_forward(self.model, self.policy, x, 1, self.model.exits)
        return trace.logits[torch.arange(len(x), device=x.device), trace.exit]


@dataclass(kw_only=True)
class ViewAttack(Attack):
    """An attack on a classifier with one output, aimed at one view of the network.

    target: "policy" (what is deployed), "mean" of exits, an exit (0-based, -1 the last), or in a suite "each" exit.
    policy: the deployed one, for target="policy"; `for_policy` gives it.
    Raises UserError for another target.
    """

    target: int | str = "policy"
    policy: Policy | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.target, str) and self.target not in TARGETS:
            raise UserError(f"attack.target must be {', '.join(TARGETS)} or the number of an exit; got {self.target!r}")
        if not isinstance(self.target, str):
            integer("attack.target", self.target, -1)

    def view(self, model: MultiExitNet) -> nn.Module:
        """Return the classifier x_NCHW -> logits_NC to attack. Raises UserError for what `model` has not."""
        if self.target == "policy":
            return PolicyView(model, bound_policy(self.policy, model, type(self).__name__))
        if self.target == "mean":
            return MeanView(model)
        if isinstance(self.target, str):
            raise UserError("attack.target=each is for suites; choose one exit, as attack.target=0")
        return ExitView(model, self.target)

    def for_policy(self, policy: Policy) -> Attack:
        """Return the attack with `policy` as the deployed one; itself where the target is another."""
        return replace(self, policy=policy) if self.target == "policy" else self

    def per_exit(self, exits: int) -> dict[str, Attack]:
        """Return one attack per exit for target="each", else itself."""
        if self.target != "each":
            return {"": self}
        return {f"_exit{k}": replace(self, target=k) for k in range(exits)}
