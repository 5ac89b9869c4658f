"""The one loop of all gradient attacks, and the attacks that climb a single objective with it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch

from rdi.attacks.base import Attack, added
from rdi.attacks.early_exit import bound_policy
from rdi.attacks.objectives import MeanOfExits, Objective, OneExit, loss_named, share_fooled
from rdi.attacks.slopes import input_gradient
from rdi.attacks.steps import Sign, StepRule
from rdi.checks import choice, distance, integer
from rdi.errors import UserError
from rdi.exits.compact import take
from rdi.exits.net import MultiExitNet
from rdi.thresholds.policy import Policy

Judge = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
"""x_adv_MCHW -> (loss_M with graph, share of exits fooled_M in [0, 1]); called `eot` times for every iterate."""
Narrow = Callable[[torch.Tensor], None]
"""Rows (int64, ascending) of the batch that go on -> nothing; the judge is called with these only from then on."""


@dataclass
class Best:
    """The best iterate so far of every sample: success first, loss second.

    x_adv: MCHW.
    fooled: share of the goal reached, _M in [0, 1].
    loss: _M.
    """

    x_adv: torch.Tensor
    fooled: torch.Tensor
    loss: torch.Tensor

    def join(self, other: Best) -> None:
        """Take over the result of another start where that gives up no exit already fooled.

        That is: as `update` where no exit was fooled so far, and whatever fools all exits. Which exits answer is for a
        policy to say that this attack does not know: an image that fools one exit may fool the policy, and one that
        fools two others may not.
        """
        before = Best(self.x_adv, self.fooled, self.loss)
        self.update(other)
        kept = (before.fooled > 0) & (other.fooled < 1)
        self.x_adv = torch.where(kept[:, None, None, None], before.x_adv, self.x_adv)
        self.fooled = torch.where(kept, before.fooled, self.fooled)
        self.loss = torch.where(kept, before.loss, self.loss)

    def update(self, other: Best, rows: torch.Tensor | None = None) -> None:
        """Take over the samples of `other` that beat what is held.

        rows: where they are held, None = all in order.
        """
        if rows is not None:
            held = Best(take(self.x_adv, rows), self.fooled[rows], self.loss[rows])
            held.update(other)
            self.x_adv = self.x_adv.index_copy(0, rows, held.x_adv)
            self.fooled = self.fooled.index_copy(0, rows, held.fooled)
            self.loss = self.loss.index_copy(0, rows, held.loss)
            return
        better = (other.fooled > self.fooled) | ((other.fooled == self.fooled) & (other.loss > self.loss))
        self.x_adv = torch.where(better[:, None, None, None], other.x_adv, self.x_adv)
        self.fooled = torch.where(better, other.fooled, self.fooled)
        self.loss = torch.where(better, other.loss, self.loss)


@dataclass(kw_only=True)
class GradientAttack(Attack):
    """Iterated gradient ascent inside the ball; the best iterate per sample is kept.

    PGD by default. FGSM is steps=1, step_size=eps, random_start=False (it stays in the ball; the official code reaches
    2 eps).

    eps, norm: of the ball, as of Attack.
    steps: gradient steps per start, at least 1.
    step_size: length of a step in the norm of the ball, pixel units; needed by the default rule.
    restarts: number of starts, at least 1.
    random_start: start uniformly in the ball, clipped to [0, 1], rather than at the image.
    rule: step rule; None: Sign(step_size), that is PGD.
    eot: draws of what is random in the network or its policy that loss, gradient and success of a step are averaged
        over, at least 1 (expectation over transformation, Athalye et al., ICML 2018); each costs a pass.
    keep: "best" iterate per sample (success first, loss second) or "last" (as the official code); the attacks on one
        objective also "policy", the best by whether the deployed policy is wrong, then as "best".
    Raises UserError for values out of range.
    """

    steps: int
    step_size: float | None = None
    restarts: int = 1
    random_start: bool = True
    rule: StepRule | None = None
    keep: str = "best"
    eot: int = added(1)
    KEEPS: ClassVar[tuple[str, ...]] = ("best", "last")

    def __post_init__(self) -> None:
        super().__post_init__()
        integer("attack.steps", self.steps, 1)
        integer("attack.eot", self.eot, 1)
        integer("attack.restarts", self.restarts, 1)
        choice("attack.keep", self.keep, self.KEEPS)
        if not isinstance(self.random_start, bool):
            raise UserError(f"attack.random_start must be true or false, got {self.random_start!r}")
        self._step = self._step_rule()

    def brief(self) -> Attack:
        """Return the attack with one step from one start, on one draw."""
        return replace(self, steps=1, restarts=1, eot=1)

    def _step_rule(self) -> StepRule:
        if self.rule is not None:
            return self.rule
        if self.step_size is None:
            raise UserError("attack.step_size is missing: give it in pixel units, for example step_size=2/255")
        distance("attack.step_size", self.step_size, self.norm, open_low=True)
        return Sign(self.step_size)

    def start(self, x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Draw one starting point x_NCHW per image: uniform noise in the ball, clipped, or the image itself."""
        return self.ball.start(x, generator) if self.random_start else x

    def restarted(self, judge: Callable[[], Judge], x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW: the best iterate per sample over the ascents from all starts.

        judge: makes the judge of each ascent.
        """
        best = self.ascend(judge(), self.start(x, generator), x)
        for _ in range(self.restarts - 1):
            best.join(self.ascend(judge(), self.start(x, generator), x))
        return best.x_adv

    def ascend(self, judge: Judge, start: torch.Tensor, x: torch.Tensor, narrow: Narrow | None = None) -> Best:
        """Run the steps from `start`_MCHW in the ball around `x`_MCHW; the best or the last iterate per sample.

        narrow: makes a sample leave the batch once it is fully fooled; called with the rows of the batch that go on,
        for the judge to forget the others. Not with keep="last". None: all samples make all steps.
        """
        best: Best | None = None
        rows: torch.Tensor | None = None
        ball = self.ball
        walk = self._step.walk(x, ball, self.steps)
        x_adv = start.detach()
        for step in range(self.steps):
            loss, fooled, grad = self._slope(judge, x_adv)
            if self.keep != "last":
                iterate = Best(x_adv, fooled, loss)
                if best is None:
                    best = iterate
                else:
                    best.update(iterate, rows)
            x_adv = ball.project(walk.step(x_adv, loss, grad, step), x)
            if narrow is not None and best is not None and len(on := (fooled < 1).nonzero()[:, 0]) < len(fooled):
                rows = on if rows is None else rows[on]
                if len(rows) == 0:
                    return best
                narrow(on)
                walk.narrow(on)
                x_adv, x = take(x_adv, on), take(x, on)
        if self.keep == "last" and self.restarts == 1:
            # nothing to compare the last iterate with, so its verdict is not worth a forward pass
            return Best(x_adv, x_adv.new_zeros(len(x)), x_adv.new_zeros(len(x)))
        with torch.no_grad():
            losses, shares = zip(*(judge(x_adv) for _ in range(self.eot)), strict=True)
        iterate = Best(x_adv, _mean(shares), _mean(losses))
        if best is None:
            return iterate
        best.update(iterate, rows)
        return best

    def _slope(self, judge: Judge, x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return loss_M, share of exits fooled_M and gradient_MCHW at x_adv_MCHW, means over `eot` draws."""
        found = []
        for _ in range(self.eot):
            # a graph of its own for every draw, so that one is in memory at once
            leaf = x_adv.detach().requires_grad_(True)
            loss, fooled = judge(leaf)
            if loss.shape != leaf.shape[:1]:
                raise UserError(f"an objective must return a number per image, ({len(leaf)},), not {tuple(loss.shape)}")
            found.append((loss.detach(), fooled, input_gradient(loss.sum(), leaf)))
        losses, shares, grads = zip(*found, strict=True)
        return _mean(losses), _mean(shares), _mean(grads)


def _mean(draws: Sequence[torch.Tensor]) -> torch.Tensor:
    return draws[0] if len(draws) == 1 else torch.stack(tuple(draws)).mean(dim=0)


@dataclass(kw_only=True)
class ObjectiveAttack(GradientAttack):
    """A gradient attack on one objective; runs only the prefix of the network that the objective needs.

    loss: of an exit, "ce" cross-entropy or "dlr" (Croce & Hein 2020).
    policy: the deployed one, which `for_policy` gives to an attack with keep="policy"; all exits run then.
    Raises UserError for another loss.
    """

    loss: str = added("ce")
    policy: Policy | None = field(default=None, metadata={"added": True})
    KEEPS: ClassVar[tuple[str, ...]] = ("best", "last", "policy")

    def __post_init__(self) -> None:
        super().__post_init__()
        loss_named(self.loss)

    def for_policy(self, policy: Policy) -> Attack:
        """Return the attack that keeps what fools `policy` where keep="policy", else itself."""
        return replace(self, policy=policy) if self.keep == "policy" else self

    @abstractmethod
    def objective(self) -> Objective:
        """Return the objective to climb."""

    def fooled(self, logits_NKC: torch.Tensor, y_N: torch.Tensor) -> torch.Tensor:
        """Return how far each sample is fooled at the exits of the objective, in [0, 1]."""
        return share_fooled(logits_NKC, y_N)

    def run(self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Craft x_adv_NCHW: the best iterate per sample, over all restarts."""
        objective = self.objective()
        exits = objective.exits(model.exits)
        policy = bound_policy(self.policy, model, type(self).__name__) if self.keep == "policy" else None

        def judge(x_adv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            if policy is None:
                logits = model.logits_at(x_adv, exits).float()
                return objective(logits, y), self.fooled(logits.detach(), y)
            logits = model(x_adv).float()
            held = logits.detach()
            wrong = policy.predict(held, policy.choose(held)) != y
            # below 1 as long as the policy is right, however many exits are wrong
            return objective(logits[:, exits], y), torch.where(wrong, 1.0, share_fooled(held, y) / 2)

        return self.restarted(lambda: judge, x, generator)


@dataclass(kw_only=True)
class ExitAttack(ObjectiveAttack):
    """An attack on what one exit answers. Authors write `objective_at`.

    exit: 0-based, -1 the last; in a suite "each" runs one attack per exit.
    Raises UserError for another exit.
    """

    exit: int | str

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.exit != "each":
            self.objective()

    @abstractmethod
    def objective_at(self, exit: int) -> Objective:
        """Return the objective of one exit. Raises UserError for one that there cannot be."""

    def objective(self) -> Objective:
        """Return the objective of `exit`. Raises UserError for exit="each"."""
        if self.exit == "each":
            raise UserError("attack.exit=each is for suites; choose one exit, as attack.exit=0")
        return self.objective_at(self.exit)  # type: ignore[arg-type]

    def per_exit(self, exits: int) -> dict[str, Attack]:
        """Return one attack per exit for exit="each", else itself."""
        if self.exit != "each":
            return {"": self}
        return {f"_exit{k}": replace(self, exit=k) for k in range(exits)}


@dataclass(kw_only=True)
class SingleExit(ExitAttack):
    """The paper's single attack: the loss of one exit."""

    def objective_at(self, exit: int) -> Objective:
        """Return the loss of one exit."""
        return OneExit(exit, self.loss)


@dataclass(kw_only=True)
class MainExit(ObjectiveAttack):
    """The loss of the last exit, the full network (official `ifgm_main`)."""

    def objective(self) -> Objective:
        """Return the loss of the last exit."""
        return OneExit(-1, self.loss)


@dataclass(kw_only=True)
class Average(ObjectiveAttack):
    """The paper's average attack: the mean of the losses of all exits (official `ifgm_branchy`)."""

    def objective(self) -> Objective:
        """Return the mean loss of all exits."""
        return MeanOfExits(self.loss)
