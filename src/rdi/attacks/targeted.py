"""Multi-targeted: for each exit and each of its most likely wrong classes, leave there as that class."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rdi.attacks.confident_wrong import ConfidentWrong
from rdi.attacks.early_exit import ExitTrace
from rdi.attacks.policy import PolicyJudge
from rdi.checks import integer
from rdi.exits.net import MultiExitNet


@dataclass(kw_only=True)
class Targeted(ConfidentWrong):
    """ConfidentWrong with a fixed wrong class: one ascent per exit and class (Gowal et al. 2019, multi-targeted PGD).

    classes: how many wrong classes are tried per exit, at least 1: those of the largest logits that the exit gives the
        unchanged image; all wrong classes where there are no more.

    An untargeted ascent goes to the class that is nearest at its start and seldom leaves it; an image may be fooled
    only as another one. classes * E ascents per restart, all first choices before the second ones.
    Raises UserError for values out of range.
    """

    classes: int = 3

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("attack.classes", self.classes, 1)

    def ascents(self, exits: int) -> int:
        """Return classes * E: ascent a is for exit a mod E and the class of rank a // E."""
        return self.classes * exits

    def span(self, exits: int, ascent: int, progress: float) -> tuple[int, int]:
        """Return the exits up to the one of this ascent."""
        return super().span(exits, ascent % exits, progress)

    def judge(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, ascent: int) -> PolicyJudge:
        """Return the judge of one ascent, which knows the class that every image is pushed to."""
        return TargetedJudge(model, self, x, y, ascent)


class TargetedJudge(PolicyJudge):
    """Judge the iterates of an ascent towards one wrong class per image."""

    def __init__(self, model: MultiExitNet, attack: Targeted, x: torch.Tensor, y: torch.Tensor, ascent: int) -> None:
        super().__init__(model, attack, ascent, y)
        self.targeted, self.exit = attack, ascent % model.exits
        with torch.no_grad():
            logits = model.logits_at(x, [self.exit]).float()[:, 0]
        wrong = logits.scatter(1, y[:, None], -torch.inf).argsort(dim=1, descending=True)
        # the true class is the last of every row
        self.target = wrong[:, min(ascent // model.exits, wrong.shape[1] - 2)]

    def loss(self, trace: ExitTrace, progress: float) -> torch.Tensor:
        """Return the hinges of leaving at the exit of this ascent as the target, loss_M <= 0."""
        logits = trace.logits[:, self.exit]
        target, true = (logits.gather(1, label[:, None])[:, 0] for label in (self.target, self.y))
        return self.targeted.hinges(trace, target - true, self.exit)

    def narrow(self, rows: torch.Tensor) -> None:
        """Go on with these rows of the batch only."""
        super().narrow(rows)
        self.target = self.target[rows]
