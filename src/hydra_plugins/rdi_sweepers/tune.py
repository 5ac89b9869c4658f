"""`hydra/sweeper=tune`: a search over settings by ask and tell, that goes on where it was stopped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from hydra_plugins.rdi_sweepers._base import Launching
from rdi.checks import choice, integer
from rdi.config import build
from rdi.errors import UserError
from rdi.runs.outcome import OBJECTIVES


class Tune(Launching):
    """A search for several objectives at once, one job a trial.

    params: option -> interval(low,high), tag(log, interval(low,high)), int(interval(low,high)), range(low,high,step)
    or choices; what the user types replaces one or adds to them. objectives: some of OBJECTIVES -> direction.
    n_trials: to reach, those of earlier calls included. n_jobs: trials proposed and launched together. study: name
    of the folder in reports/ that holds study.db and the tables. sampler, seed: see rdi.searching.Search.
    """

    def __init__(
        self,
        params: Mapping[str, Any] | None,
        objectives: Mapping[str, str],
        n_trials: int,
        n_jobs: int,
        study: str | None,
        sampler: str,
        seed: int,
    ) -> None:
        self.params, self.objectives = dict(params or {}), dict(objectives)
        for name in self.objectives:
            choice("an objective", name, OBJECTIVES)
        self.n_trials = integer("hydra.sweeper.n_trials", n_trials, 1)
        self.n_jobs = integer("hydra.sweeper.n_jobs", n_jobs, 1)
        self.study, self.sampler = study, sampler
        self.seed = integer("hydra.sweeper.seed", seed, 0)

    def run_jobs(self, arguments: list[str]) -> Any:
        """Run trials until there are `n_trials`, judge their front on the test images, print and write both."""
        from rdi.cli import _search, _sweeps
        from rdi.cli._console import say
        from rdi.folders import report_folder
        from rdi.locks import hold
        from rdi.runs import search as stage
        from rdi.searching import Search

        name = self.study or OmegaConf.select(self.config, "sweep")
        if not name:
            raise UserError("a search needs a name: give sweep=... or hydra.sweeper.study=NAME")
        typed = [*(f"{key}={value}" for key, value in self.params.items()), *arguments]
        space, fixed = _search.split(self.parse(typed))
        self.validate_batch_is_legal([[*fixed, *stage.example(space)]])
        tracking = build(OmegaConf.to_container(self.config.tracking, resolve=True), "tracking")
        out = report_folder(str(name), "hydra.sweeper.study")
        with hold(out):
            settings = {"command": str(self.config.hydra.job.name), "options": stage.lasting(fixed)}
            search = Search(out / "study.db", self.objectives, space, settings, self.sampler, self.seed)

            finished = _sweeps.of(self.config.hydra)

            def launch(jobs: Sequence[Sequence[str]], first: int) -> list[Any]:
                ended = _sweeps.launch(self.launcher, jobs, first, finished.outcomes(jobs))
                return [_sweeps.ended(result) for result in ended]

            stage.go_on(search, name, out, fixed, self.n_trials, self.n_jobs, launch)
            stage.judge(search, fixed, self.n_jobs, launch)
            options = {"sampler": self.sampler, "seed": self.seed, "n_trials": self.n_trials}
            shown = {key: repr(values) for key, values in space.items()}
            say(stage.conclude(search, name, out, tracking, {**settings, **options, "space": shown}))
        return None
