"""Adaptive attacks: the deployed policy, thresholds included, is what they climb against and what judges them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from rdi.attacks.base import Attack
from rdi.attacks.doubt import doubts
from rdi.attacks.gradient import Best, GradientAttack
from rdi.attacks.looking import Seen, deployed, look
from rdi.attacks.objectives import wrong_margin
from rdi.checks import number
from rdi.errors import UserError
from rdi.exits.compact import take
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy, ThresholdPolicy


class Aim(ABC):
    """What one ascent of a policy attack climbs, and what it counts as success."""

    @abstractmethod
    def span(self, exits: int, progress: float) -> tuple[int, int]:
        """(least, most) exits to run, out of `exits`: see `look`."""

    @abstractmethod
    def loss(self, seen: Seen, y_N: torch.Tensor, progress: float) -> torch.Tensor:
        """loss_N to climb; progress: share of the steps made, 0 at the start and 1 at the last iterate."""

    @abstractmethod
    def success(self, seen: Seen, y_N: torch.Tensor) -> torch.Tensor:
        """How well it has worked, success_N in [0, 1]; 1 = nothing is left to win."""


@dataclass(frozen=True, kw_only=True)
class FoolingAim(Aim):
    """An aim that is reached when `policy` answers wrong. sure: see FoolingAttack."""

    policy: Policy
    sure: float

    def success(self, seen: Seen, y_N: torch.Tensor) -> torch.Tensor:
        """See Aim: 0 where the policy is right, 1/2 where it is wrong by a hair, 1 where it is surely wrong."""
        logits = seen.logits.detach()
        surely = seen.at_exit(wrong_margin(logits, y_N)) > self.sure
        if (thresholds := self.policy.thresholds()) is not None:
            distance = doubts(thresholds, logits).abs()
            passed = torch.arange(distance.shape[1], device=logits.device) <= seen.exit[:, None]
            surely &= ((distance > self.sure) | ~passed).all(dim=1)
        return seen.wrong(y_N) * (1 + surely) / 2


class PolicyJudge:
    """A judge for `GradientAttack.ascend`. It serves one ascent: every call is the next iterate of it."""

    def __init__(self, model: MultiExitNet, policy: Policy, aim: Aim, y: torch.Tensor, steps: int) -> None:
        self.model, self.policy, self.aim, self.y = model, policy, aim, y
        self.steps = steps
        self.calls = 0

    def __call__(self, x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x_adv_MCHW -> (loss_M with graph, success_M)."""
        progress = self.calls / self.steps
        self.calls += 1
        seen = look(self.model, self.policy, x_adv, *self.aim.span(self.model.exits, progress))
        return self.aim.loss(seen, self.y, progress), self.aim.success(seen, self.y)

    def narrow(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch only."""
        self.y = self.y[rows]


@dataclass(kw_only=True)
class PolicyAttack(GradientAttack):
    """A gradient attack on the network together with its exit policy. Authors write `aims`.

    policy: the deployed one; `for_policy` gives it, and without one the attack cannot run (UserError). `steps` are
    gradient steps per aim and restart. Per sample the best iterate of all is kept, by the policy's verdict first.
    Raises UserError for keep="last".
    """

    policy: Policy | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != "best":
            raise UserError("attack.keep must be best: an attack on the policy keeps what the policy falls for")

    def for_policy(self, policy: Policy) -> Attack:
        """See Attack."""
        return replace(self, policy=policy)

    @abstractmethod
    def aims(self, policy: Policy) -> Sequence[Aim]:
        """The ascents to make, each from a start of its own."""

    def leaves_early(self) -> bool:
        """Whether a sample that the policy already fell for makes no further steps."""
        return False

    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """See Attack."""
        policy = deployed(self.policy, model, type(self).__name__)
        best: Best | None = None
        rows = torch.arange(len(x), device=x.device)
        for aim in [*self.aims(policy)] * self.restarts:
            # for the whole batch: noise must not depend on who has left it
            start = self.start(x, generator)
            if len(rows) == 0:
                continue
            judge = PolicyJudge(model, policy, aim, y[rows], self.steps)
            narrow = judge.narrow if self.leaves_early() else None
            found = self.ascend(judge, take(start, rows), take(x, rows), narrow)
            if best is None:
                best = found
            else:
                best.update(found, rows)
            if self.leaves_early():
                rows = (best.fooled < 1).nonzero()[:, 0]
        return x if best is None else best.x_adv


@dataclass(kw_only=True)
class FoolingAttack(PolicyAttack):
    """A policy attack whose goal is a wrong answer.

    early_stop: a sample that the policy surely gets wrong makes no more steps; its image is kept. Which samples are
    fooled does not depend on it. sure: how far the wrong logit must lead, and how far every score on the way must be
    from its threshold (unit of `doubts`), to be sure of it: images are crafted on a copy of the network (Engine)
    that rounds otherwise than the network that is judged. Raises UserError for values out of range.
    """

    early_stop: bool = True
    sure: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.early_stop, bool):
            raise UserError(f"attack.early_stop must be true or false, got {self.early_stop!r}")
        number("attack.sure", self.sure, 0, math.inf)

    def leaves_early(self) -> bool:
        """See PolicyAttack."""
        return self.early_stop


def with_thresholds(policy: Policy, attack: str) -> ThresholdPolicy:
    """The policy as one with scores to differentiate through. Raises UserError for any other policy."""
    thresholds = policy.thresholds()
    if thresholds is None:
        raise UserError(f"{attack} differentiates through the score of a threshold, and {policy!r} has none")
    return thresholds
