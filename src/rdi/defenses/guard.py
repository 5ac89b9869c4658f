"""Detection of catastrophic overfitting to the single step: the rule alone, without networks and attacks."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rdi.checks import integer, number

LEARNED = 0.1
"""An exit can fall once it had learned something: this share of the way from guessing to always right."""
HIGH, NONE = 0.5, 0.2
"""Accuracy under the single step from which an exit is good; share of it below which the many steps have overcome it.
"""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """State of a guard, plain values, so that it survives an interruption bit for bit.

    step: training steps taken.
    recover_until: step up to which the multi-step attack trains.
    triggers: collapses so far.
    multi_step, single_step: accuracies per exit at the last check, in [0, 1]; () before the first.
    running: per exit, a moving mean of multi_step that starts anew at every trigger.
    best: per exit, the largest value of running.
    """

    step: int = 0
    recover_until: int = 0
    triggers: int = 0
    multi_step: tuple[float, ...] = ()
    single_step: tuple[float, ...] = ()
    running: tuple[float, ...] = ()
    best: tuple[float, ...] = ()

    @property
    def recovering(self) -> bool:
        """Return whether the next step trains with the multi-step attack."""
        return self.step < self.recover_until


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Detects catastrophic overfitting and decides how long to train with the multi-step attack (Li et al. 2020).

    Exits are judged one by one: in a mean over seven, the collapse of two could go unnoticed.

    every: steps between two checks.
    images: number of images of the batch that a check attacks.
    ratio: an exit has collapsed when its running multi-step accuracy is below ratio * its best one, or when it
        withstands the single step and hardly ever the multi-step attack.
    recover_steps: length of the first recovery; every further one is twice as long as the one before.
    Raises UserError for values out of range.
    """

    every: int = 50
    images: int = 64
    ratio: float = 0.6
    recover_steps: int = 100

    def __post_init__(self) -> None:
        integer("defense.guard_every", self.every, 1)
        integer("defense.guard_images", self.images, 1)
        number("defense.guard_ratio", self.ratio, 0, 1)
        integer("defense.recover_steps", self.recover_steps, 1)

    def due(self, watch: Watch) -> bool:
        """Return whether a check is due before the next step."""
        return watch.step % self.every == 0

    def observe(self, watch: Watch, multi_step: list[float], single_step: list[float], classes: int) -> Watch:
        """Return the state after a check. While recovering nothing is judged, only remembered.

        watch: the state before; a collapse adds one to `triggers`.
        multi_step, single_step: accuracy per exit under the multi-step attack and under the single step, in [0, 1].
        classes: number of classes, for the accuracy of guessing.
        """
        # half of the past: one batch is few images, and a real collapse shows within a look or two all the same
        past = watch.running or multi_step
        running = [(old + new) / 2 for old, new in zip(past, multi_step, strict=True)]
        best = [max(old, new) for old, new in zip(watch.best or running, running, strict=True)]
        state = replace(
            watch,
            multi_step=tuple(multi_step),
            single_step=tuple(single_step),
            running=tuple(running),
            best=tuple(best),
        )
        if watch.recovering or not self.collapsed(state, classes):
            return state
        return replace(
            state,
            recover_until=watch.step + self.recover_steps * 2**watch.triggers,
            triggers=watch.triggers + 1,
            running=(),
        )

    def collapsed(self, watch: Watch, classes: int) -> bool:
        """Return whether any exit had collapsed at the last check.

        watch: the state.
        classes: number of classes.
        """
        learned = (1 + (classes - 1) * LEARNED) / classes
        return any(
            (best > learned and running < self.ratio * best) or (single >= HIGH and multi < NONE * single)
            for multi, single, running, best in zip(
                watch.multi_step, watch.single_step, watch.running, watch.best, strict=True
            )
        )
