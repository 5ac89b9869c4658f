"""The stages one after the other on one composed config; what is finished is not done again."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rdi import threats
from rdi.banks import CLEAN
from rdi.checks import choice, integer
from rdi.config import build
from rdi.data import DataSet
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.folders import RunFolder, report_folder
from rdi.logs import log_to
from rdi.records import Manifest, read
from rdi.runs import front, names, page, preflight, verdict
from rdi.runs.attack import aimed, attack_run, build_suite
from rdi.runs.folder import Run
from rdi.runs.identity import default_name, difference, identity
from rdi.runs.options import Attack, Evaluate, Pareto
from rdi.runs.options import Run as Options
from rdi.runs.outcome import Outcome
from rdi.runs.train import Check, train
from rdi.storage import read_json, sha256, write_json

logger = logging.getLogger("rdi")
DRAWN = ".drawn.json"
"""Record of a report's inputs, written last: a report without it, or of other files, is drawn again."""
STAGES = ("train", "attack", "evaluate", "pareto", "report")


@dataclass(frozen=True)
class Job:
    """One `rdi run`.

    options: of the command; config: the same, resolved, which the run's identity is made of.
    choices: config group -> choice.
    changed: the user named something of what is trained; typed_rule: of the threshold rule.
    data_root: folder of the images, as the user says today; None: where they are found.
    """

    options: Options
    config: dict[str, Any]
    choices: dict[str, str]
    changed: bool
    typed_rule: bool
    data_root: str | None

    @cached_property
    def folder(self) -> RunFolder:
        """The run folder."""
        return RunFolder(self.options.run or default_name(self.config, self.choices))

    @property
    def out(self) -> Path:
        """The folder of the report. Raises UserError for a run that no report can be called by."""
        return report_folder(self.folder.name, "the name of the run folder")

    @property
    def drawing(self) -> list[str]:
        """The stages that draw, of those that are asked for."""
        return [stage for stage in ("pareto", "report") if stage in self.options.stages]


def run_stages(job: Job) -> Generator[str, None, Outcome]:
    """Run the stages that the options list, in their natural order; what they say, and what came of the run."""
    options, folder = job.options, job.folder
    if unknown := [stage for stage in options.stages if stage not in STAGES]:
        raise UserError(f"stages may be {', '.join(STAGES)}; got {unknown[0]!r}")
    integer("ratios", options.ratios, 2)
    if choice("split", options.split, verdict.JUDGED) != "test" and job.drawing:
        raise UserError("fronts and pages are of the test images: add 'stages=[train,attack,evaluate]', or split=test")
    if job.drawing:
        _ = job.out  # before hours of work, not after
    if "train" not in options.stages:
        folder.read_finished()
    with folder.hold():
        if not folder.started() and "train" in options.stages:
            logger.info("%s", announced(folder, job.choices, typed=job.changed))
        before = made(folder, options.split)
        outcome = yield from _stages(job)
        outcome.skipped = made(folder, options.split) == before
    return outcome


def announced(folder: RunFolder, chosen: Mapping[str, str], *, typed: bool) -> str:
    """Describe the training of a new run, so that a mistyped name is noticed before it.

    typed: whether the user named something of what is trained.
    """
    what = ", ".join(f"{group}={chosen[group]}" for group in ("data", "backbone", "defense", "attack"))
    near = [] if typed else names.near(folder.path)
    return (
        f"{folder.path} is a new run: training begins with {what}"
        + ("" if typed else ", as in the demo, since nothing else was named")
        + (f"; if you meant {near[0]}, stop with Ctrl-C" if near else "")
    )


def made(folder: RunFolder, split: str) -> dict[Path, int]:
    """Return what took long to make, with the time it was made: the weights and the banks of a split."""
    found = [folder.done, *(path / "manifest.json" for path in folder.banks(split).values())]
    return {path: path.stat().st_mtime_ns for path in found if path.is_file()}


def _stages(job: Job) -> Generator[str, None, Outcome]:
    """The stages; the suite is built and tried before the training, so that a typo costs nothing."""
    options, folder, split = job.options, job.folder, job.options.split
    outcome = Outcome(str(folder.path), False, (), split)
    before = made(folder, split)
    suite = build_suite(options.suite)

    def check(net: MultiExitNet, data: DataSet) -> None:
        if "attack" in options.stages:
            device = next(net.parameters()).device
            policy = preflight.thresholds(net, build(options.threshold, "threshold"), data, device)
            bound = aimed(suite, policy, job.choices["threshold"], net.exits, threats.configured(vars(options.threat)))
            preflight.suite(net, bound, data.split(split), samples=options.samples, batch_size=options.batch_size)

    if "train" in options.stages:
        train_once(job, check)
    run = Run.open(folder.path, options.device, threads=options.threads, data_root=job.data_root)
    log_to(folder.log)
    if "attack" in options.stages:
        how = {key: getattr(options, key) for key in ("split", "samples", "batch_size", "engine", "tracking")}
        attack_run(run, suite, Attack(**how))
    if "evaluate" in options.stages:
        judging = Evaluate(threshold=options.threshold, split=split, tracking=options.tracking)
        thresholds = verdict.thresholds(run, judging, job.choices["threshold"], typed=job.typed_rule)
        judged = folder.evaluation(thresholds.name, split, CLEAN).is_file()
        found = verdict.evaluate(run, thresholds, judging)
        yield verdict.text(run, thresholds, found, split)
        outcome = verdict.outcome(run, found)
        before = before if judged else {}
    if made(folder, split) == before and drawn(job):
        logger.info("reports/%s is drawn already", folder.name)
    else:
        yield from draw(run, job)
    return outcome


def drawn(job: Job) -> bool:
    """Return whether the pictures and the page that are asked for are there, made of the present files."""
    if not job.drawing:
        return True
    try:
        noted = read_json(job.out / DRAWN)
        return bool(
            noted["of"] == sources(job)
            and noted["files"]
            and all(sha256(job.out / name) == content for name, content in noted["files"].items())
        )
    except (OSError, UserError, LookupError, TypeError, AttributeError):
        return False


def sources(job: Job) -> dict[str, Any]:
    """Return all that pictures and page are made of: the options that shape them, and the hash of every file."""
    patterns = (
        *("manifest.json", "size.json", "thresholds/*.json", "evals/*.json", "banks/*/*.*", "gallery/*.*"),
        *("bounds/*.*", "certificates/*.json", "corrupted/*/*.*", "corruptions/*.json"),
    )
    root = job.folder.path
    files = sorted(path for pattern in patterns for path in root.glob(pattern) if path.is_file())
    return {
        "stages": job.drawing,
        "ratios": job.options.ratios,
        "files": {path.relative_to(root).as_posix(): sha256(path) for path in files},
    }


def draw(run: Run, job: Job) -> Generator[str, None, None]:
    """Draw the front and the page, as far as they are asked for."""
    (job.out / DRAWN).unlink(missing_ok=True)
    shape = Pareto(name=run.folder.name, ratios=job.options.ratios, tracking=job.options.tracking)
    if "pareto" in job.drawing:
        found = front.draw([run], shape)
        yield front.text(found)
    if "report" in job.drawing:
        if "pareto" not in job.drawing:
            found = front.compute([run], shape)
            front.write(found)
        yield page.write(found, page.read([run], found))
    if job.out.is_dir():
        files = {path.name: sha256(path) for path in sorted(job.out.iterdir()) if path.is_file()}
        write_json(job.out / DRAWN, {"of": sources(job), "files": files})


def train_once(job: Job, check: Check) -> None:
    """Train unless the folder holds this very experiment, finished. Raises UserError when it holds another one."""
    folder, config = job.folder, job.config
    if folder.started() and not config["overwrite"]:
        stored = read(folder.manifest, Manifest)
        if stored.identity != identity(config):
            state = "is finished" if folder.finished() else "was started"
            raise UserError(
                f"{folder.path} {state} with other settings ({difference(stored.config, config)}): "
                "choose another run=..., or replace it with overwrite=true"
            )
        if folder.finished():
            logger.info("%s is trained already", folder.path)
            return
    try:
        root = job.data_root
        train(folder, config, job.choices, changed=job.changed, skip_finished=False, data_root=root, check=check)
    except Interrupted as error:
        raise Interrupted(f"{error}, or with the same `rdi run` command") from None
