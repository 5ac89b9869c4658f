"""wandb, the only module that knows it: offline unless the user is logged in, and never in the way of a run."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rdi.checks import choice, number

logger = logging.getLogger("rdi")
MODES = ("auto", "offline", "online")


class Log(ABC):
    """Where one stage of one run sends its numbers."""

    @abstractmethod
    def log(self, line: Mapping[str, Any], step: int) -> None:
        """Scalars and per-exit lists of one training step."""

    @abstractmethod
    def summary(self, values: Mapping[str, Any]) -> None:
        """Final values of the stage."""

    @abstractmethod
    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """A table, one row a point."""

    @abstractmethod
    def scatter(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, x: str, y: str) -> None:
        """A chart of two of the columns of a table, one dot a row; rows without a number in one of them left out."""


class Tracking(ABC):
    """Opens a Log for a stage; `with` closes it, whatever happens inside."""

    @abstractmethod
    def start(
        self, folder: Path, stage: str, config: Mapping[str, Any], group: str | None = None
    ) -> contextlib.AbstractContextManager[Log]:
        """folder: of the run or report, its name becomes the run's name. stage: becomes the job type.

        group: that the run belongs to, unless the user chose one.
        """


class _NoLog(Log):
    def log(self, line: Mapping[str, Any], step: int) -> None:
        """Nothing."""

    def summary(self, values: Mapping[str, Any]) -> None:
        """Nothing."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Nothing."""

    def scatter(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, x: str, y: str) -> None:
        """Nothing."""


class NoTracking(Tracking):
    """`tracking=none`: nothing is sent anywhere; the run folder still holds everything."""

    @contextmanager
    def start(self, folder: Path, stage: str, config: Mapping[str, Any], group: str | None = None) -> Iterator[Log]:
        """See Tracking."""
        yield _NoLog()


class Wandb(Tracking):
    """Weights & Biases. Its files lie in the run's own folder.

    mode: "auto" = online with a stored or given key, else offline, without a prompt; an online server that does not
    answer within `timeout` seconds means offline too. project, group, tags: wandb's own.
    """

    def __init__(
        self,
        *,
        project: str = "rdi",
        mode: str = "auto",
        group: str | None = None,
        tags: Sequence[str] = (),
        timeout: float = 15.0,
    ) -> None:
        self.project, self.group, self.tags = project, group, list(tags)
        self.mode = choice("tracking.mode", mode, MODES)
        self.timeout = number("tracking.timeout", timeout, 1, 600)

    @contextmanager
    def start(self, folder: Path, stage: str, config: Mapping[str, Any], group: str | None = None) -> Iterator[Log]:
        """See Tracking. A failure of wandb is logged and the stage goes on without it."""
        run = None
        # of this stage alone: the next job of a multirun has another folder
        given = {name: os.environ.get(name) for name in ("WANDB_SILENT", "WANDB_DATA_DIR", "WANDB_CACHE_DIR")}
        failed = True
        try:
            with _spared("wandb is off for this stage"):
                run = self._init(folder.resolve(), stage, config, self.group or group)
            yield _NoLog() if run is None else _WandbLog(run)
            failed = False
        finally:
            if run is not None:
                with _spared("wandb did not end well"):
                    run.finish(exit_code=1 if failed else 0)
            for name, value in given.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def _init(self, folder: Path, stage: str, config: Mapping[str, Any], group: str | None) -> Any:
        # before the import: wandb reads these once; by default it would fill the user's home
        os.environ.setdefault("WANDB_SILENT", "true")
        os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb"))
        (folder / "wandb").mkdir(parents=True, exist_ok=True)
        import wandb

        settings: dict[str, Any] = {
            "project": self.project,
            "group": group,
            "tags": self.tags or None,
            "name": folder.name,
            "job_type": stage,
            "dir": str(folder),
            "config": dict(config),
            # the same folder and stage are the same wandb run, also after an interruption
            "id": hashlib.sha256(f"{folder}/{stage}".encode()).hexdigest()[:16],
            "resume": "allow",
        }
        quiet = {"console": "off", "x_disable_stats": True, "silent": True}
        if self.mode == "online" or (self.mode == "auto" and wandb.login(prompt=False, verify=False)):
            try:
                return wandb.init(
                    mode="online", settings=wandb.Settings(init_timeout=self.timeout, **quiet), **settings
                )
            except (wandb.errors.CommError, wandb.errors.UsageError) as error:
                logger.warning("wandb is not reachable (%s): logging offline", str(error).splitlines()[0])
        settings.pop("resume")  # has no effect offline and warns
        return wandb.init(mode="offline", settings=wandb.Settings(**quiet), **settings)


class _WandbLog(Log):
    def __init__(self, run: Any) -> None:
        self.run = run

    def log(self, line: Mapping[str, Any], step: int) -> None:
        """See Log; a list becomes one scalar per exit."""
        with _spared("wandb missed a line"):
            self.run.log(flat(line), step=step)

    def summary(self, values: Mapping[str, Any]) -> None:
        """See Log."""
        with _spared("wandb missed the summary"):
            self.run.summary.update(flat(values))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """See Log."""
        import wandb

        with _spared("wandb missed a table"):
            self.run.log({name: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def scatter(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, x: str, y: str) -> None:
        """See Log."""
        import wandb

        at = (columns.index(x), columns.index(y))
        whole = [list(row) for row in rows if all(row[k] is not None for k in at)]
        with _spared("wandb missed a chart"):
            table = wandb.Table(columns=list(columns), data=whole)
            self.run.log({name: wandb.plot.scatter(table, x, y, title=name)})


@contextmanager
def _spared(what: str) -> Iterator[None]:
    """Inside, a failure of wandb is a line in the log and no more: the run folder holds everything anyway."""
    try:
        yield
    except Exception as error:
        logger.warning("%s: %s", what, str(error).splitlines()[0] if str(error) else type(error).__name__)


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """{"a": [1, 2]} -> {"a/exit0": 1, "a/exit1": 2}; other values as they are."""
    result: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, list | tuple):
            result |= {f"{name}/exit{k}": item for k, item in enumerate(value)}
        else:
            result[name] = value
    return result
