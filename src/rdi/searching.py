"""A search over settings for several objectives, by ask and tell; its whole state is one sqlite file.

Optuna (Akiba et al., KDD 2019) chooses the trials and keeps the file: an extra, imported when a search begins.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from rdi.checks import choice
from rdi.errors import UserError, extra
from rdi.pareto import non_dominated
from rdi.seeds import derive
from rdi.text import first_difference, visible

DIRECTIONS = ("maximize", "minimize")
SAMPLERS = {"tpe": "TPESampler", "nsga2": "NSGAIISampler", "random": "RandomSampler"}
"""Name here -> class in optuna.samplers."""
COMPLETE, FAILED, KILLED = "complete", "failed", "killed"
"""States of a trial that ended; one that was killed is run again as another trial."""
STUDY = "study"


@dataclass(frozen=True)
class Choices:
    """One of these texts."""

    options: tuple[str, ...]


@dataclass(frozen=True)
class Interval:
    """A number in [low, high].

    step: distance of the values allowed, None = any.
    log: even on a logarithmic scale.
    """

    low: float
    high: float
    step: float | None = None
    log: bool = False
    whole: bool = False


Space = Mapping[str, Choices | Interval]
"""Option -> what it may be."""


@dataclass(frozen=True)
class Trial:
    """One point of the space.

    values: one per objective, None unless it is complete.
    seconds: None while it runs.
    split: whose images values are of.
    test: the same objectives of the test images, None where nobody measured them.
    policy: name of the thresholds that it was judged by.
    """

    number: int
    params: dict[str, Any]
    state: str
    values: tuple[float, ...] | None
    run: str
    reason: str
    seconds: float | None
    on_front: bool = False
    split: str = "test"
    test: tuple[float, ...] | None = None
    policy: str = ""

    @property
    def on_test(self) -> tuple[float, ...] | None:
        """The objectives of the test images, whether the search looked at them or not."""
        return self.values if self.split == "test" else self.test


def optuna() -> Any:
    """Import the package. Raises UserError when it is not installed."""
    with extra("search", "a search needs Optuna"):
        import optuna as package
    package.logging.set_verbosity(package.logging.WARNING)
    return package


class Search:
    """Trials asked for one after the other, told how they ended, and kept in a file that another process goes on with.

    file: sqlite, made if need be; its folder exists, and one process at a time uses it.
    objectives: name -> one of DIRECTIONS.
    settings: what else the values depend on, as JSON.
    sampler: a key of SAMPLERS.
    seed: of its random numbers.
    Raises UserError when the file holds a search for something else.
    """

    def __init__(
        self,
        file: Path,
        objectives: Mapping[str, str],
        space: Space,
        settings: Mapping[str, Any],
        sampler: str = "tpe",
        seed: int = 0,
    ) -> None:
        if not objectives:
            raise UserError("a search needs an objective")
        if not space:
            raise UserError("a search needs a space: give at least one option as interval(low,high), range or choice")
        for name, direction in objectives.items():
            choice(f"the direction of {name}", direction, DIRECTIONS)
        choice("sampler", sampler, tuple(SAMPLERS))
        package = optuna()
        self.file, self.objectives = file, dict(objectives)
        self.distributions = {key: _distribution(package, key, values) for key, values in space.items()}
        self.study = package.create_study(
            storage=f"sqlite:///{file}", study_name=STUDY, directions=list(objectives.values()), load_if_exists=True
        )
        # the order of the objectives is that of the stored values
        directions = [f"{name} {direction}" for name, direction in objectives.items()]
        options = {key: repr(space[key]) for key in sorted(space)}
        self._check({**settings, "objectives": directions, "space": options})
        self.open: dict[int, Any] = {}
        self._sampler, self._seed = getattr(package.samplers, SAMPLERS[sampler]), seed

    def _check(self, settings: dict[str, Any]) -> None:
        """Raise UserError unless the file was begun with these settings."""
        stored = self.study.user_attrs.get("settings")
        if stored is None:
            self.study.set_user_attr("settings", settings)
            return
        if found := first_difference(stored, settings):
            raise UserError(
                f"{self.file} was begun with other settings ({found}): give them as they were, or choose another "
                "hydra.sweeper.study=NAME"
            )

    def _refuse_foreign(self, params: Mapping[str, Any]) -> None:
        """Raise UserError for a stored point outside this space: points are typed again, as options of jobs."""
        for key, value in params.items():
            known = self.distributions.get(key)
            options = getattr(known, "choices", None)
            inside = known is not None and (
                value in options
                if options is not None
                else isinstance(value, int | float) and known.low <= value <= known.high
            )
            if not inside:
                raise UserError(
                    f"{self.file} holds a trial with {visible(f'{key}={value}')[:200]}, which this search cannot have "
                    "proposed: choose another hydra.sweeper.study=NAME"
                )

    def recover(self) -> int:
        """Mark the trials that a killed process left running, and queue them again; how many there were."""
        states = optuna().trial.TrialState
        left = self.study.get_trials(states=(states.RUNNING,))
        for trial in left:
            self._refuse_foreign(trial.params)
        if left:
            numbers = [trial.number for trial in left]
            self.study.set_user_attr("killed", [*self.study.user_attrs.get("killed", []), *numbers])
        for trial in left:
            self.study.tell(trial.number, state=states.FAIL)
            self.study.enqueue_trial(trial.params)
        return len(left)

    def ended(self) -> int:
        """Count the trials that ended by themselves, complete or failed."""
        return sum(trial.state != KILLED for trial in self.trials())

    def ask(self) -> tuple[int, dict[str, Any]]:
        """Return number and point of the next trial."""
        # seeded by what was asked before, and not by what one process drew: a search that was killed proposes what
        # an unbroken one would; those run again count once
        killed = self.study.user_attrs.get("killed", [])
        waiting = optuna().trial.TrialState.WAITING
        asked = [one for one in self.study.get_trials(deepcopy=False) if one.state != waiting]
        place = sum(one.number not in killed for one in asked)
        self.study.sampler = self._sampler(seed=derive(self._seed, "trial", place) % 2**32)
        trial = self.study.ask(self.distributions)
        self.open[trial.number] = trial
        return trial.number, dict(trial.params)

    def tell(self, number: int, values: tuple[float, ...], run: str, split: str = "test", policy: str = "") -> None:
        """Record a complete trial.

        values: one per objective.
        run: the folder that they were measured in, on `split`.
        policy: name of the thresholds that they were judged by.
        """
        trial = self.open.pop(number)
        trial.set_user_attr("run", run)
        trial.set_user_attr("split", split)
        trial.set_user_attr("policy", policy)
        self.study.tell(trial, values=list(values))

    def judged(self, number: int, values: tuple[float, ...]) -> None:
        """Keep what a complete trial reaches on the test images; the search never looks at it."""
        self.study.set_user_attr("test", {**self.study.user_attrs.get("test", {}), str(number): list(values)})

    def fail(self, number: int, reason: str) -> None:
        """Record a failed trial; the search goes on."""
        trial = self.open.pop(number)
        trial.set_user_attr("reason", reason)
        self.study.tell(trial, state=optuna().trial.TrialState.FAIL)

    def trials(self) -> list[Trial]:
        """Return all that ended, by number, those on the front marked."""
        killed = set(self.study.user_attrs.get("killed", []))
        judged = self.study.user_attrs.get("test", {})
        found = []
        for trial in self.study.get_trials(deepcopy=False):
            self._refuse_foreign(trial.params)
            if not trial.state.is_finished():
                continue
            complete = trial.values is not None
            found.append(
                Trial(
                    number=trial.number,
                    params=dict(trial.params),
                    state=COMPLETE if complete else KILLED if trial.number in killed else FAILED,
                    values=tuple(trial.values) if complete else None,
                    run=trial.user_attrs.get("run", ""),
                    reason=trial.user_attrs.get("reason", ""),
                    seconds=_seconds(trial.datetime_start, trial.datetime_complete),
                    split=trial.user_attrs.get("split", "test"),
                    policy=trial.user_attrs.get("policy", ""),
                    test=tuple(judged[str(trial.number)]) if str(trial.number) in judged else None,
                )
            )
        whole = [trial for trial in found if trial.values is not None]
        if not whole:
            return found
        up = tuple(direction == "maximize" for direction in self.objectives.values())
        kept = non_dominated(np.array([trial.values for trial in whole], dtype=float), up)
        front = {trial.number for trial, stays in zip(whole, kept, strict=True) if stays}
        return [replace(trial, on_front=trial.number in front) for trial in found]


def _distribution(package: Any, key: str, values: Choices | Interval) -> Any:
    """Optuna's form of an option's values. Raises UserError for an interval that is empty or has no logarithm."""
    if isinstance(values, Choices):
        return package.distributions.CategoricalDistribution(values.options)
    kind = package.distributions.IntDistribution if values.whole else package.distributions.FloatDistribution
    step = values.step if values.step is not None else (1 if values.whole else None)
    try:
        return kind(values.low, values.high, log=values.log, step=step)
    except ValueError as error:
        raise UserError(f"{key}: {str(error).splitlines()[0]}") from error


def _seconds(start: datetime | None, end: datetime | None) -> float | None:
    return None if start is None or end is None else (end - start).total_seconds()
