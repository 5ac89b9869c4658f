"""`hydra/sweeper=grid`, the default: every combination; one failed job does not hide how the others ended."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Override
from hydra.core.utils import JobReturn
from omegaconf import OmegaConf
from tqdm import tqdm

from hydra_plugins.rdi_sweepers._base import Launching
from rdi.checks import integer
from rdi.cli import _sweeps
from rdi.cli._console import say
from rdi.cli._edge import GRID
from rdi.errors import UserError
from rdi.runs.identity import NOT_SCIENCE
from rdi.runs.outcome import following, ranking

TRAINING = ("train", "run")
"""Commands whose jobs make runs, which wandb shows as one group; those that come later leave them in it."""


class Grid(Launching):
    """Every combination of values, of several grids side by side, with an honest end.

    params: option -> values, as on the command line, crossed with one another. grids: further such grids, each
    crossed with `params` and run after the other; what one of them sets, no other one needs. What the user types
    replaces an option of either. max_batch_size: jobs handed to the launcher at once; None = all.
    """

    def __init__(
        self,
        params: Mapping[str, Any] | None = None,
        grids: Sequence[Mapping[str, Any]] | None = None,
        max_batch_size: int | None = None,
    ) -> None:
        self.params, self.grids = dict(params or {}), [dict(grid) for grid in grids or [{}]]
        self.size = None if max_batch_size is None else integer("hydra.sweeper.max_batch_size", max_batch_size, 1)

    def run_jobs(self, arguments: list[str]) -> Any:
        """Run all jobs and say how they ended. Raises SweepFailed when some failed."""
        jobs = self.jobs(arguments)
        if self.config.hydra.job.name in TRAINING:
            refuse_one_folder(jobs)
        before = _sweeps.of(self.config.hydra).outcomes(jobs)
        left = [job for job, outcome in zip(jobs, before, strict=True) if outcome is None]
        # Hydra composes every one, which of hundreds takes minutes
        for job in tqdm(left, desc="checking the options", unit="job", disable=None, delay=2, dynamic_ncols=True):
            self.validate_batch_is_legal([job])
        if self.config.hydra.job.name in TRAINING and not OmegaConf.select(self.config, "sweep"):
            name = named(self.config.hydra.job.name, jobs)
            # what jobs are composed with beside their own words, in every launcher's processes
            self.config.hydra.overrides.hydra.append(f"+hydra.job.env_set.{GRID}={name}")
        results: list[JobReturn] = []
        size = self.size or len(jobs)
        for first in range(0, len(jobs), size):
            part = slice(first, first + size)
            results += _sweeps.launch(self.launcher, jobs[part], first, before[part])
        title = OmegaConf.select(self.config, "sweep") or "sweep"
        outcomes = [result._return_value for result in results]
        if table := ranking(_sweeps.varied(jobs), outcomes):
            say(table)
        if command := following(str(self.config.hydra.job.name), outcomes, title):
            say(f"\nnext:\n  {command}")
        _sweeps.conclude(title, jobs, results)
        return results

    def jobs(self, arguments: list[str]) -> list[list[str]]:
        """The overrides of every job, equal jobs once. Raises UserError for values that cannot be enumerated."""
        found: dict[tuple[str, ...], None] = {}
        for grid in self.grids:
            words = [*(f"{key}={value}" for key, value in {**self.params, **grid}.items()), *arguments]
            options: dict[str, list[str]] = {}
            for override in self.parse(words):
                options[override.get_key_element()] = listed(override)
            found |= {job: None for job in itertools.product(*options.values())}
        return [list(job) for job in found]


def named(command: str, jobs: Sequence[Sequence[str]]) -> str:
    """A name for a grid that has none: the same for the same jobs, so that a second call goes on in its group."""
    return f"{command}-{hashlib.sha256(json.dumps(sorted(map(sorted, jobs))).encode()).hexdigest()[:8]}"


def refuse_one_folder(jobs: Sequence[Sequence[str]]) -> None:
    """Raise UserError for several trainings in one run folder: all but the first would fail, when it is done."""
    common = set(jobs[0]).intersection(*jobs)
    words = [word for word in jobs[0] if word in common and word.startswith("run=") and "${" not in word]
    options = {word.lstrip("+~").partition("=")[0].partition(".")[0] for job in jobs for word in {*job} - common}
    if words and options - NOT_SCIENCE:
        raise UserError(
            f"{len(jobs)} trainings cannot share the folder {words[-1]}: leave it out, or tell them apart, as by "
            f"'{words[-1]}-${{seed}}'"
        )


def listed(override: Override) -> list[str]:
    """An override with several values as one override each. Raises UserError for values without an end."""
    line = str(override.input_line)
    if not override.is_sweep_override():
        return [line]
    if override.is_interval_sweep():
        raise UserError(f"{line} has no end of values: list some, or search with hydra/sweeper=tune")
    if override.key_or_group == "sweep":
        raise UserError("one sweep at a time: a sweep over sweeps would run none of their grids")
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
