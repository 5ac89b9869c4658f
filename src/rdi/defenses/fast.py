"""Adversarial training with a single gradient step per batch (N-FGSM), under a guard against its collapse."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, replace
from typing import Any

import torch

from rdi import seeds
from rdi.attacks.base import Attack, crafting
from rdi.attacks.gradient import GradientAttack
from rdi.checks import LINF, distance, integer, number
from rdi.defenses.adversarial import Adversarial
from rdi.defenses.base import Logs, accuracy_per_exit
from rdi.defenses.guard import Guard, Watch
from rdi.errors import UserError
from rdi.exits.net import MultiExitNet

logger = logging.getLogger("rdi")


class Fast(Adversarial):
    """Adversarial's hybrid loss on images of one gradient step, N-FGSM, with a guard against catastrophic overfitting.

    Uniform noise is added to the images, clipped to [0, 1] only; from there one step along the sign of the gradient, in
    an L2 or L1 ball along its steepest ascent, not projected back: that images leave the eps ball is what keeps the
    single step honest. noise=0 is FGSM training (Goodfellow et al. 2015), which collapses; noise=2 is published for
    8/255, while on MNIST at eps 0.3 it drowns the digits and 1 is right. The objective, and so the form (single, main,
    average, max_avg), is that of `attack`.

    The guard attacks part of a batch from time to time. Where an exit has collapsed, a warning says so and the next
    steps train with the multi-step attack, then the single step returns (Li et al. 2020, "Towards Understanding Fast
    Adversarial Training"). Only these checks wait for the device; without a collapse they change no bit of the
    training. The logs have the accuracies per exit at the last check, and the number of collapses (guard_triggers).

    attack: a gradient attack of at least two steps. It judges the calibration split, so that keep=best picks weights by
        their multi-step accuracy (Rice et al. 2020), it guards, and it trains recoveries.
    noise: half width of the noise, in units of eps, >= 0.
    step: length of the step, in units of eps, > 0.
    guard_every: steps between two checks; None: no guard.
    guard_images: images of the batch that a check attacks.
    guard_steps: most steps of guard and recovery, at least 2; they get longer so that the reach is the attack's.
    guard_ratio: an exit has collapsed below this share of its best multi-step accuracy, as of Guard.ratio.
    recover_steps: length of the first recovery; every further one is twice as long as the one before.
    Raises UserError for values out of range.
    Source: de Jorge et al., NeurIPS 2022, "Make Some Noise".
    """

    def __init__(
        self,
        *,
        attack: Attack,
        noise: float = 2.0,
        step: float = 1.0,
        guard_every: int | None = 50,
        guard_images: int = 64,
        guard_steps: int = 10,
        guard_ratio: float = 0.6,
        recover_steps: int = 100,
        **settings: Any,
    ) -> None:
        super().__init__(attack=attack, **settings)
        if not isinstance(attack, GradientAttack):
            raise UserError(
                f"defense=fast takes one step of a gradient attack, and {type(attack).__name__} is none: "
                "choose another attack=..., or defense=adversarial"
            )
        if attack.steps < 2:
            raise UserError(
                "defense=fast makes its single step itself and judges by the attack, which needs at least 2 steps: "
                "choose for example attack=max_avg, or attack.steps=10"
            )
        distance("attack.eps", attack.eps, attack.norm, open_low=True)
        self.attack: GradientAttack = attack
        self.noise = number("defense.noise", noise, 0, math.inf)
        self.step = number("defense.step", step, 0, math.inf, open_low=True)
        self.guard_steps = integer("defense.guard_steps", guard_steps, 2)
        self.guard_every, self.guard_images = guard_every, guard_images
        self.guard_ratio, self.recover_steps = guard_ratio, recover_steps
        guard = Guard(
            every=1 if guard_every is None else guard_every,
            images=guard_images,
            ratio=guard_ratio,
            recover_steps=recover_steps,
        )
        self.guard = None if guard_every is None else guard
        self.watch = Watch()

    def state(self) -> dict[str, Any]:
        """Return the state of the guard as plain values."""
        return asdict(self.watch)

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore the state of a guard."""
        self.watch = Watch(**state)

    def loss(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> tuple[torch.Tensor, Logs]:
        """Return the hybrid loss on images of one step, after the guard's check where one is due."""
        if self.guard is not None and self.parts.first and self.guard.due(self.watch):
            self._check(self.guard, model, x, y, generator)
        loss, logs = super().loss(model, x, y, generator)
        before = self.watch
        # a new object: a copy of this defense keeps what it had
        self.watch = replace(before, step=before.step + self.parts.over())
        if before.recovering and not self.watch.recovering:
            logger.info("back to the single step after step %d", self.watch.step)
        if self.guard is not None:
            logs["guard_accuracy"] = torch.tensor(self.watch.multi_step)
            logs["guard_single_step_accuracy"] = torch.tensor(self.watch.single_step)
            logs["guard_triggers"] = torch.tensor(self.watch.triggers)
        return loss, logs

    def training_images(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Craft x_adv_NCHW by one step, or by the multi-step attack during a recovery."""
        if self.watch.recovering:
            return self.craft(self.multi_step(), model, x, y, generator)
        return self.single_step_images(model, x, y, generator)

    def single_step_images(
        self, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> torch.Tensor:
        """Craft x_adv_NCHW in [0, 1] by N-FGSM, up to (noise + step) * eps away from x_NCHW."""
        noisy = (x + self.attack.ball.noise(x, generator, self.noise)).clamp_(0, 1)
        size = self.shortened(self.step * self.attack.eps)
        attack = replace(
            self.attack, steps=1, restarts=1, step_size=size, eps=size, random_start=False, keep="last", rule=None
        )
        return self.craft(attack, model, noisy, y, generator)

    def multi_step(self) -> GradientAttack:
        """Return the attack that guards and trains recoveries: `attack` with at most guard_steps steps of one start."""
        steps, size = self.attack.steps, self.attack.step_size
        if steps <= self.guard_steps:
            return replace(self.attack, restarts=1)
        longer = None if size is None else self.shortened(size * steps / self.guard_steps)
        return replace(self.attack, restarts=1, steps=self.guard_steps, step_size=longer)

    def shortened(self, size: float) -> float:
        """Return the length of a step: beyond 1 one in L-infinity only meets the pixel range."""
        return min(1.0, size) if self.attack.norm == LINF else size

    def _check(
        self, guard: Guard, model: MultiExitNet, x: torch.Tensor, y: torch.Tensor, generator: torch.Generator
    ) -> None:
        """Attack a part of the batch and draw the conclusions for the next steps; waits for the device."""
        share = self.share(len(x)).first(guard.images)
        seen = share.size
        # a rank without one of these images looks at one of its own, which does not count
        x, y = x[: max(seen, 1)], y[: max(seen, 1)]
        # a stream of its own leaves the training's noise as it would be without a guard
        stream = share.generator(seeds.generator(x.device, generator.initial_seed(), "guard"))
        attack = self.multi_step()
        adversarial = [self.craft(attack, model, x, y, stream), self.single_step_images(model, x, y, stream)]
        with torch.no_grad(), crafting(model), torch.autocast(x.device.type, enabled=False):
            logits = [share.gather(model(images)[:seen]) for images in adversarial]
        y = share.gather(y[:seen])
        multi, single = torch.stack([accuracy_per_exit(logits_NEC, y) for logits_NEC in logits]).tolist()
        before = self.watch
        self.watch = guard.observe(before, multi, single, classes=logits[0].shape[2])
        if self.watch.triggers > before.triggers:
            logger.warning(
                "catastrophic overfitting after step %d (number %d): under %d steps the exits are right on %s %% of "
                "the images (moving mean at best %s %%), under the single step on %s %%. "
                "Training with %d steps up to step %d",
                before.step,
                self.watch.triggers,
                attack.steps,
                percent(self.watch.multi_step),
                percent(self.watch.best),
                percent(self.watch.single_step),
                attack.steps,
                self.watch.recover_until,
            )


def percent(values: tuple[float, ...]) -> str:
    """Format shares in [0, 1] as 12/34/56."""
    return "/".join(f"{100 * value:.0f}" for value in values)
