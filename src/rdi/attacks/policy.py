"""Adaptive attacks: the deployed policy, thresholds included, is what they climb against and what judges them."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch

from rdi.attacks.base import Attack
from rdi.attacks.early_exit import ExitTrace, bound_policy, early_exit_forward
from rdi.attacks.gradient import Best, GradientAttack
from rdi.attacks.log_odds import exit_log_odds
from rdi.attacks.objectives import wrong_margin
from rdi.checks import number
from rdi.errors import UserError
from rdi.exits.compact import take
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy, ThresholdPolicy


@dataclass(kw_only=True)
class PolicyAttack(GradientAttack):
    """A gradient attack on the network together with its exit policy. Authors write span, ascent_loss and success.

    Per sample the best iterate of all ascents is kept, by success first, loss second.

    policy: the deployed one; `for_policy` gives it, and without one the attack cannot run (UserError).
    steps: gradient steps per ascent.
    restarts: each makes all ascents, every one from a start of its own.
    Raises UserError for keep="last".
    """

    policy: Policy | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.keep != "best":
            raise UserError("attack.keep must be best: an attack on the policy keeps what the policy falls for")

    def for_policy(self, policy: Policy) -> Attack:
        """Return the same attack with `policy` as the deployed one."""
        return replace(self, policy=policy)

    def ascents(self, exits: int) -> int:
        """Return the number of ascents per restart on a network of `exits` exits; by default 1."""
        del exits
        return 1

    @abstractmethod
    def span(self, exits: int, ascent: int, progress: float) -> tuple[int, int]:
        """Return (least, most) exits to run out of `exits`, for `early_exit_forward`.

        ascent: number of the ascent, 0-based.
        progress: share of its steps made, 0 at the start and 1 at the last iterate.
        """

    @abstractmethod
    def ascent_loss(self, trace: ExitTrace, y_N: torch.Tensor, ascent: int, progress: float) -> torch.Tensor:
        """Return loss_N to climb.

        ascent, progress: as of `span`.
        """

    @abstractmethod
    def success(self, trace: ExitTrace, y_N: torch.Tensor) -> torch.Tensor:
        """Return success_N in [0, 1], comparable between ascents; 1: nothing is left to win."""

    def leaves_early(self) -> bool:
        """Return whether a sample of success 1 makes no further steps; by default it makes them all."""
        return False

    def judge(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, ascent: int) -> PolicyJudge:
        """Return the judge of one ascent on the images x_MCHW with labels y_M."""
        del x
        return PolicyJudge(model, self, ascent, y)

    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW: all ascents of all restarts, the best iterate per sample."""
        bound_policy(self.policy, model, type(self).__name__)
        best: Best | None = None
        rows = torch.arange(len(x), device=x.device)
        for ascent in [*range(self.ascents(model.exits))] * self.restarts:
            # for the whole batch: noise must not depend on who has left it
            start = self.start(x, generator)
            if len(rows) == 0:
                continue
            images = take(x, rows)
            judge = self.judge(model, images, y[rows], ascent)
            narrow = judge.narrow if self.leaves_early() else None
            found = self.ascend(judge, take(start, rows), images, narrow)
            if best is None:
                best = found
            else:
                best.update(found, rows)
            if self.leaves_early():
                rows = (best.fooled < 1).nonzero()[:, 0]
        return x if best is None else best.x_adv

    def thresholds(self) -> ThresholdPolicy:
        """Return the policy as one with scores to differentiate through. Raises UserError for a policy without."""
        thresholds = None if self.policy is None else self.policy.thresholds()
        if thresholds is None:
            name = type(self).__name__
            raise UserError(f"{name} differentiates through the score of a threshold, and {self.policy!r} has none")
        return thresholds


class PolicyJudge:
    """Judge the iterates of one ascent, for `GradientAttack.ascend`: after `eot` calls comes the next one."""

    def __init__(self, model: MultiExitNet, attack: PolicyAttack, ascent: int, y: torch.Tensor) -> None:
        self.model, self.attack, self.ascent, self.y = model, attack, ascent, y
        self.policy = bound_policy(attack.policy, model, type(attack).__name__)
        self.calls = 0

    def __call__(self, x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (loss_M with graph, success_M) of x_adv_MCHW."""
        progress = self.calls // self.attack.eot / self.attack.steps
        self.calls += 1
        least, most = self.span(progress)
        trace = early_exit_forward(self.model, self.policy, x_adv, least, most)
        return self.loss(trace, progress), self.attack.success(trace, self.y)

    def span(self, progress: float) -> tuple[int, int]:
        """Return (least, most) exits to run, for `early_exit_forward`."""
        return self.attack.span(self.model.exits, self.ascent, progress)

    def loss(self, trace: ExitTrace, progress: float) -> torch.Tensor:
        """Return loss_M to climb, with graph."""
        return self.attack.ascent_loss(trace, self.y, self.ascent, progress)

    def narrow(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch only."""
        self.y = self.y[rows]


@dataclass(kw_only=True)
class FoolingAttack(PolicyAttack):
    """A policy attack whose goal is a wrong answer.

    early_stop: a sample of success 1 makes no more steps; its image is kept. Which samples are fooled does not depend
        on it.
    sure: margin to stop, >= 0. For success 1 the largest wrong logit must exceed the true one by it (logits), and every
        score on the way its threshold (log-odds): the copy of the network that images are crafted on rounds otherwise
        than the network that is judged.
    Raises UserError for values out of range.
    """

    early_stop: bool = True
    sure: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.early_stop, bool):
            raise UserError(f"attack.early_stop must be true or false, got {self.early_stop!r}")
        number("attack.sure", self.sure, 0, math.inf)

    def success(self, trace: ExitTrace, y_N: torch.Tensor) -> torch.Tensor:
        """Return success_N: 0 where the policy is right, 1/2 where wrong, 1 where by more than the margin to stop."""
        logits = trace.logits.detach()
        surely = trace.at_exit(wrong_margin(logits, y_N)) > self.sure
        if self.policy is not None and (thresholds := self.policy.thresholds()) is not None:
            distance = exit_log_odds(thresholds, logits).abs()
            passed = torch.arange(distance.shape[1], device=logits.device) <= trace.exit[:, None]
            surely &= ((distance > self.sure) | ~passed).all(dim=1)
        return trace.wrong(y_N) * (1 + surely) / 2

    def leaves_early(self) -> bool:
        """Return whether a sample of success 1 makes no further steps: `early_stop`."""
        return self.early_stop
