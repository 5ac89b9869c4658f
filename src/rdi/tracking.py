"""wandb, the only module that knows it: offline unless the user is logged in, and never in the way of a run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import shlex
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from rdi.checks import choice, number
from rdi.errors import UserError

logger = logging.getLogger("rdi")
MODES = ("auto", "offline", "online", "disabled")
VARIABLES = {
    "project": "WANDB_PROJECT",
    "group": "WANDB_RUN_GROUP",
    "tags": "WANDB_TAGS",
    "name": "WANDB_NAME",
    "job_type": "WANDB_JOB_TYPE",
    "dir": "WANDB_DIR",
    "id": "WANDB_RUN_ID",
    "resume": "WANDB_RESUME",
}
"""Arguments of wandb.init -> the environment variable that comes before ours, as an argument would overrule it."""
OURS = ("WANDB_SILENT", "WANDB_DATA_DIR", "WANDB_CACHE_DIR")
"""Variables that a stage sets where the user has not, and takes back."""
PATIENCE = 60.0
"""Seconds that a stage which is done waits for wandb."""
MOST_ROWS = 10_000
"""Rows that wandb takes of a table."""

_offline: dict[Path, None] = {}


class Log:
    """Log of one stage of a run in wandb. Its calls return at once and never fail; without `tell` they do nothing."""

    def __init__(self, step: int = 0, tell: Callable[[str, Callable[[Any], None]], None] | None = None) -> None:
        """Start at a step.

        step: the first that the run has not had yet.
        tell: takes what to say on failure, and a call on the run.
        """
        self.step = step
        self._submit = tell

    def _say(self, missed: str, call: Callable[[Any], None]) -> None:
        if self._submit is not None:
            self._submit(missed, call)

    def log(self, line: Mapping[str, Any], step: int) -> None:
        """Log the scalars of one training step; a list becomes one scalar per exit."""
        self.step, values = max(self.step, step + 1), flat(line)
        self._say("wandb missed a line", lambda run: run.log(values, step=step))

    def summary(self, values: Mapping[str, Any]) -> None:
        """Log the final values of the stage; lists as in `log`."""
        given = flat(values)
        self._say("wandb missed the summary", lambda run: run.summary.update(given))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Log a table, one row a point; the first MOST_ROWS of them."""
        given, step = [list(row) for row in rows[:MOST_ROWS]], self.step

        def call(run: Any) -> None:
            import wandb

            run.log({name: wandb.Table(columns=list(columns), data=given)}, step=step)

        self._say("wandb missed a table", call)

    def scatter(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]], *, x: str, y: str) -> None:
        """Log a chart of two columns of a table, one dot a row; rows without a number in one of them are left out."""
        at, step = (columns.index(x), columns.index(y)), self.step
        whole = [list(row) for row in rows if all(row[k] is not None for k in at)][:MOST_ROWS]

        def call(run: Any) -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=whole)
            run.log({name: wandb.plot.scatter(table, x, y, title=name)}, step=step)

        self._say("wandb missed a chart", call)


class Wandb:
    """Weights & Biases: all stages of a run folder are one wandb run, whose id and files lie in the folder.

    project, group, tags: wandb's own.
    mode: "auto" = online with a stored or given key, else offline, without a prompt; "offline", "online", "disabled".
    timeout: seconds after which a server that does not answer means offline. wandb's environment variables (WANDB_MODE,
        WANDB_PROJECT, WANDB_DIR, ...) come before these, but turn nothing on.
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
        if not 0 < len(project) <= 128 or set(project) & set("/\\#?%:"):
            raise UserError(f"tracking.project must be 1 to 128 characters, none of /\\#?%:, got {project!r}")
        self.project, self.group, self.tags = project, group, list(tags)
        self.mode = choice("tracking.mode", mode, MODES)
        self.timeout = number("tracking.timeout", timeout, 1, 600)

    @contextmanager
    def start(self, folder: Path, stage: str, config: Mapping[str, Any], group: str | None = None) -> Iterator[Log]:
        """Open the Log of a stage, closed at the end whatever happens inside; a failing wandb is a line in the log.

        folder: of the run or report, it names the wandb run.
        stage: its job type.
        group: unless the user chose one.
        """
        mode = os.environ.get("WANDB_MODE") or self.mode
        if "disabled" in (mode, self.mode):
            yield Log()
            return
        given = {name: os.environ.get(name) for name in OURS}
        folder = folder.resolve()
        state = folder / "wandb" / "rdi.json"
        worker: _Worker | None = None
        failed = True
        try:
            log = Log()
            with _spared("wandb is off for this stage"):
                # before the import: wandb reads these once; by default it would fill the user's home
                os.environ.setdefault("WANDB_SILENT", "true")
                os.environ.setdefault("WANDB_DATA_DIR", str(folder / "wandb"))
                os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb"))
                stored = _stored(state)
                settings = self._settings(folder, stage, config, group, stored["id"])
                worker = _Worker(lambda: _init(mode, self.timeout, settings))
                log = Log(stored["step"], worker.tell)
            yield log
            failed = False
        finally:
            if worker is not None:
                with contextlib.suppress(OSError):  # the folder may be gone by now
                    _store(state, {"id": stored["id"], "step": log.step})
                worker.finish(1 if failed else 0)
            for name, value in given.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value

    def _settings(
        self, folder: Path, stage: str, config: Mapping[str, Any], group: str | None, identifier: str
    ) -> dict[str, Any]:
        """Arguments of wandb.init, without those that the environment gives."""
        settings = {
            "project": self.project,
            "group": self.group or group,
            "tags": self.tags or None,
            "name": folder.name,
            "job_type": stage,
            "dir": str(folder),
            "id": identifier,
            "resume": "allow",
        }
        return {"config": dict(config)} | {
            key: value for key, value in settings.items() if not os.environ.get(VARIABLES[key])
        }


class NoTracking(Wandb):
    """`tracking=none`: nothing is sent anywhere; the run folder still holds everything."""

    def __init__(self) -> None:
        super().__init__(mode="disabled")


def _init(mode: str, timeout: float, settings: dict[str, Any]) -> Any:
    """The wandb run, online or offline."""
    import wandb

    quiet = {"console": "off", "x_disable_stats": True, "silent": True}
    if mode == "online" or (mode == "auto" and wandb.login(prompt=False, verify=False)):
        try:
            return wandb.init(mode="online", settings=wandb.Settings(init_timeout=timeout, **quiet), **settings)
        except (wandb.errors.CommError, wandb.errors.UsageError) as error:
            logger.warning("wandb is not reachable (%s): logging offline", str(error).splitlines()[0])
    settings = {key: value for key, value in settings.items() if key != "resume"}  # no effect offline, and a warning
    run = wandb.init(
        mode="offline" if mode in MODES else mode,  # type: ignore[arg-type]
        settings=wandb.Settings(**quiet),
        **settings,
    )
    if place := getattr(run, "dir", None):
        note(Path(place).parents[1])  # .../wandb/offline-run-X/files
    return run


class _Worker:
    """A thread that does all that wandb is asked for, in order, so that a wandb that hangs holds up nobody."""

    def __init__(self, begin: Callable[[], Any]) -> None:
        self.calls: SimpleQueue[tuple[str, Callable[[Any], None]] | int] = SimpleQueue()
        self.thread = threading.Thread(target=self._work, args=(begin,), daemon=True, name="wandb")
        self.thread.start()

    def tell(self, missed: str, call: Callable[[Any], None]) -> None:
        """Have `call(run)` made; missed: what to say if it fails."""
        self.calls.put((missed, call))

    def finish(self, code: int) -> None:
        """End the run with this exit code, when all calls are made, and wait for it."""
        self.calls.put(code)
        self.thread.join(PATIENCE)
        if self.thread.is_alive():
            logger.warning("wandb does not answer: left alone after %.0f s; the run folder holds everything", PATIENCE)

    def _work(self, begin: Callable[[], Any]) -> None:
        run = None
        with _spared("wandb is off for this stage"):
            run = begin()
            _drop_links_out(run)
        while not isinstance(asked := self.calls.get(), int):
            if run is not None:
                with _spared(asked[0]):
                    asked[1](run)
        if run is not None:
            with _spared("wandb did not end well"):
                run.finish(exit_code=asked)
                _drop_links_out(run)


def _drop_links_out(run: Any) -> None:
    """Remove links from the logs of a wandb run to outside its run folder, which commands refuse to write through.

    wandb links each run to the log of its service, which lies in the folder of the first run of this process.
    """
    if (place := getattr(run, "dir", None)) is None:
        return
    logs = Path(place).parent / "logs"  # <folder>/wandb/offline-run-X/files
    root = logs.resolve().parents[2]
    for path in logs.glob("*"):
        if path.is_symlink() and root not in path.resolve().parents:
            path.unlink()


def _stored(path: Path) -> dict[str, Any]:
    """Id of the folder's wandb run and its first free step; made up, and stored, for a folder without one."""
    try:
        found = json.loads(path.read_text())
        return {"id": str(found["id"]), "step": int(found["step"])}
    except (OSError, ValueError, LookupError, TypeError):
        made = {"id": secrets.token_hex(8), "step": 0}
        path.parent.mkdir(parents=True, exist_ok=True)
        _store(path, made)
        return made


def _store(path: Path, content: Mapping[str, Any]) -> None:
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content))
    part.replace(path)


def note(folder: Path) -> None:
    """Remember a `wandb` folder for `left_offline`; also one that another process wrote into."""
    _offline[folder.resolve()] = None


def left_offline() -> list[Path]:
    """Return the `wandb` folders noted since the last call."""
    found = list(_offline)
    _offline.clear()
    return found


def upload_command(folders: Iterable[Path]) -> str | None:
    """Return the one command that uploads all that lies offline in these `wandb` folders; None for nothing.

    What is uploaded already is skipped by wandb, and the stages of a run are sent in their order.
    """
    places = [os.path.relpath(folder) for folder in folders if any(folder.glob("offline-run-*/run-*.wandb"))]
    if not places:
        return None
    if len(places) == 1:
        return f"wandb sync {shlex.quote(places[0])}/offline-run-*"
    tops = dict.fromkeys(os.path.dirname(os.path.dirname(place)) or "." for place in places)
    return f"find {' '.join(map(shlex.quote, tops))} -name 'offline-run-*' -exec wandb sync {{}} +"


@contextmanager
def _spared(what: str) -> Iterator[None]:
    """Inside, a failure of wandb is a line in the log and no more: the run folder holds everything anyway."""
    try:
        yield
    except Exception as error:
        logger.warning("%s: %s", what, str(error).splitlines()[0] if str(error) else type(error).__name__)


def flat(line: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten lists, {"a": [1, 2]} -> {"a/exit0": 1, "a/exit1": 2}; other values stay as they are."""
    result: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, list | tuple):
            result |= {f"{name}/exit{k}": item for k, item in enumerate(value)}
        else:
            result[name] = value
    return result
