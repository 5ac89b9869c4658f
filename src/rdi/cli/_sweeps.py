"""Sweeps: the files of sweeps/ as the config group `sweep`, and what several jobs come to, in a few lines."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

from rdi import tracking
from rdi.cli._console import one_line
from rdi.errors import UserError
from rdi.packaged import packaged
from rdi.runs.finished import Sweep
from rdi.runs.outcome import Outcome

logger = logging.getLogger("rdi")
GO_ON = "the same command again goes on with the rest and skips what is finished"


class SweepFailed(UserError):
    """Some jobs failed, the others finished. bug: whether one of them failed for another reason than a mistake."""

    bug = False


def register(conf: Path) -> None:
    """Make every file of sweeps/ a choice of the group `sweep`, and our grid the default sweeper. Safe to call twice.

    conf: the conf/ folder. sweeps/ cannot join the search path: its neighbours would become groups. Our grid REPLACES
    Hydra's `basic` sweeper, because a sweeper named in a primary config cannot be overridden by a sweep file.
    """
    store = ConfigStore.instance()
    if "sweep" in store.repo:
        return
    for path in sorted(packaged("sweeps").glob("*.yaml")):
        store.store(group="sweep", name=path.stem, node=OmegaConf.load(path), package="_global_", provider="sweeps")
    Plugins.instance()  # Hydra's sweeper stores itself when it is found: before ours
    grid = OmegaConf.load(conf / "hydra" / "sweeper" / "grid.yaml")
    store.store(group="hydra/sweeper", name="basic", node=grid, provider="rdi")


class UserConf(SearchPathPlugin):
    """Puts RDI_CONF_DIR in front of the search path."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the user's own folder of configs to Hydra's search path."""
        if folder := os.environ.get("RDI_CONF_DIR"):
            search_path.prepend("user", f"file://{Path(folder).expanduser().resolve()}")


def register_user_conf() -> None:
    """Make the folder known to Hydra. Safe to call twice. Raises UserError when RDI_CONF_DIR is no folder."""
    folder = os.environ.get("RDI_CONF_DIR")
    if folder and not Path(folder).expanduser().is_dir():
        raise UserError(f"RDI_CONF_DIR={folder} is not a folder: create it, or unset RDI_CONF_DIR")
    if UserConf not in Plugins.instance().discover(SearchPathPlugin):
        Plugins.instance().register(UserConf)


def of(hydra: Any) -> Sweep:
    """What the jobs of a sweep have in common. hydra: Hydra's own part of its config, or of that of one of its jobs."""
    conf = tuple(str(source.path) for source in hydra.runtime.config_sources if source.schema == "file")
    return Sweep(
        command=str(hydra.job.config_name),
        name=str(hydra.job.name),
        place=Path(str(hydra.sweep.dir)),
        conf=conf,
        sweeps=str(packaged("sweeps")),
    )


def varied(jobs: Sequence[Sequence[str]]) -> list[str]:
    """Return what tells each job from the others: the overrides that not all of them have."""
    shared = set.intersection(*map(set, jobs)) if len(jobs) > 1 else set()
    return [" ".join(word for word in job if word not in shared) for job in jobs]


def launch(
    launcher: Launcher, jobs: Sequence[Sequence[str]], first: int, before: Sequence[Outcome | None] = ()
) -> list[JobReturn]:
    """Run the jobs, `first` the number of the first one. Raises UserError when the launcher itself gives up.

    before: what each came to in an earlier call; only those without an outcome run.
    """
    known = [*before] or [None] * len(jobs)
    left = [job for job, outcome in zip(jobs, known, strict=True) if outcome is None]
    try:
        with _submission_said(launcher):
            ran = iter(launcher.launch(left, initial_job_idx=first) if left else ())
        results = [
            next(ran) if outcome is None else _returned(job, outcome) for job, outcome in zip(jobs, known, strict=True)
        ]
        note_tracked([result._return_value for result in results])
        return results
    except KeyboardInterrupt:
        logger.warning("the sweep was stopped: %s", GO_ON)
        raise
    except UserError:
        raise
    except Exception as error:
        name = type(launcher).__name__
        if 'detect "srun"' in str(error):  # submitit's, a plain RuntimeError
            raise UserError(f"{one_line(error)} Submit from its login node; submitit_local runs jobs here") from error
        if not (isinstance(error, BrokenExecutor) or type(error).__module__.partition(".")[0] in ("submitit", "ray")):
            raise
        raise UserError(
            f"{name} lost a job ({type(error).__name__}: {one_line(error)}), and what became of the others is in their "
            f"run folders: {GO_ON}"
        ) from error


def conclude(title: str, jobs: Sequence[Sequence[str]], results: Sequence[JobReturn]) -> None:
    """Say how many jobs finished, were finished before, or failed and why. Raises SweepFailed if any failed."""
    outcomes = [result._return_value for result in results if result.status == JobStatus.COMPLETED]
    skipped = sum(isinstance(outcome, Outcome) and outcome.skipped for outcome in outcomes)
    failed = [
        (number, words, result._return_value)
        for number, (words, result) in enumerate(zip(varied(jobs), results, strict=True))
        if result.status != JobStatus.COMPLETED
    ]
    parts = [f"{len(outcomes)} of {len(results)} jobs are finished"]
    if skipped:
        parts.append(f"{skipped} of {len(results)} were finished before: skipped")
    if failed:
        parts.append(f"{len(failed)} failed:")
    logger.info("%s: %s", title, ", ".join(parts))
    for number, words, error in failed:
        logger.info("  job %d (%s): %s", number, words, reason(error))
    if failed:
        first = failed[0][2]
        failure = SweepFailed(f"{len(failed)} of {len(results)} jobs failed, the first: {reason(first)}; {GO_ON}")
        failure.bug = any(not isinstance(error, UserError) for _, _, error in failed)
        raise failure from first


@contextmanager
def _submission_said(launcher: Launcher) -> Iterator[None]:
    """Inside, say where jobs went as soon as submitit has them: its launcher is silent until the last one has ended."""
    if "submitit" not in type(launcher).__module__:
        yield
        return
    import submitit

    submit = submitit.AutoExecutor.map_array

    def told(self: Any, *arguments: Any) -> Any:
        jobs = submit(self, *arguments)
        ids = [str(job.job_id) for job in jobs]
        shown = ", ".join(ids) if len(ids) < 5 else f"{ids[0]} to {ids[-1]}"
        logs = os.path.relpath(jobs[0].paths.stdout.parent)
        logger.info("submitted %d jobs (%s): %s; logs in %s", len(ids), self.cluster, shown, logs)
        return jobs

    submitit.AutoExecutor.map_array = told  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        submitit.AutoExecutor.map_array = submit  # type: ignore[method-assign]


def _returned(job: Sequence[str], outcome: Outcome) -> JobReturn:
    """A job that need not run."""
    result = JobReturn(overrides=list(job), status=JobStatus.COMPLETED)
    result.return_value = outcome
    return result


def note_tracked(outcomes: Sequence[Any]) -> None:
    """Have the command that uploads them said of the runs that other processes tracked offline."""
    for one in outcomes:
        if isinstance(one, Outcome) and not one.skipped:
            tracking.note(Path(one.folder) / "wandb")


def ended(result: JobReturn) -> Any:
    """Return what a job came to: what it returned, or in words why it failed."""
    outcome = result._return_value
    return outcome if result.status == JobStatus.COMPLETED else reason(outcome)


def reason(error: Any) -> str:
    """Why a job failed, in one line; a mistake of the user as it says itself, anything else with its type."""
    if isinstance(error, UserError):
        return one_line(error)
    return f"{type(error).__name__}: {one_line(error)}" if isinstance(error, BaseException) else str(error)
