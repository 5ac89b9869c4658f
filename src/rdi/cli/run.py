"""`rdi run`: the stages one after the other on one composed config; what is finished is not done again."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from rdi import threats
from rdi.banks import CLEAN
from rdi.checks import choice, integer
from rdi.cli import _edge, _hydra, _names, attack, evaluate, pareto, report, train
from rdi.cli._outcome import Outcome, objectives
from rdi.config import build
from rdi.data import DataSet
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.folders import RunFolder, report_folder
from rdi.records import Manifest, read
from rdi.runs import preflight
from rdi.runs.attack import aimed, run_suite
from rdi.runs.evaluate import threshold_name
from rdi.runs.folder import Run
from rdi.runs.identity import default_name, difference, identity
from rdi.runs.train import Check
from rdi.storage import read_json, sha256, write_json
from rdi.tracking import Wandb

logger = logging.getLogger("rdi")
DRAWN = ".drawn.json"
"""What a report was made of, written last: a report without it, or of other files, is drawn again."""
STAGES = ("train", "attack", "evaluate", "pareto", "report")


def run(cfg: DictConfig) -> Outcome:
    """Run the stages that `cfg` lists, in their natural order."""
    config = _edge.resolved(cfg)
    chosen = _edge.choices()
    if unknown := [stage for stage in config["stages"] if stage not in STAGES]:
        raise UserError(f"stages may be {', '.join(STAGES)}; got {unknown[0]!r}")
    integer("ratios", config["ratios"], 2)
    if choice("split", config["split"], evaluate.JUDGED) != "test" and {"pareto", "report"} & {*config["stages"]}:
        raise UserError("fronts and pages are of the test images: add 'stages=[train,attack,evaluate]', or split=test")
    folder = RunFolder(config["run"] or default_name(config, chosen))
    if {"pareto", "report"} & {*config["stages"]}:
        report_folder(folder.name, "the name of the run folder")  # before hours of work, not after
    if "train" not in config["stages"]:
        folder.read_finished()
    with folder.hold():
        if not folder.started() and "train" in config["stages"]:
            logger.info("%s", announced(folder, chosen, typed=train.changed()))
        before = made(folder, config["split"])
        measured, policy = stages(folder, config, chosen)
        skipped = made(folder, config["split"]) == before
        return Outcome(str(folder.path), skipped, measured, config["split"], policy)


def announced(folder: RunFolder, chosen: Mapping[str, str], *, typed: bool) -> str:
    """What is about to be trained where there is no run yet: a mistyped name is no reason to notice only later.

    typed: whether the user named something of what is trained.
    """
    what = ", ".join(f"{group}={chosen[group]}" for group in ("data", "backbone", "defense", "attack"))
    near = [] if typed else _names.near(folder.path)
    return (
        f"{folder.path} is a new run: training begins with {what}"
        + ("" if typed else ", as in the demo, since nothing else was named")
        + (f"; if you meant {near[0]}, stop with Ctrl-C" if near else "")
    )


def made(folder: RunFolder, split: str) -> dict[Path, int]:
    """Return what took long to make, with the time it was made: the weights and the banks of a split."""
    found = [folder.done, *(path / "manifest.json" for path in folder.banks(split).values())]
    return {path: path.stat().st_mtime_ns for path in found if path.is_file()}


def stages(folder: RunFolder, config: dict[str, Any], chosen: dict[str, str]) -> tuple[tuple[float, ...], str]:
    """The stages of `config`; the objectives that they measured, and the name of the thresholds in force then.

    The suite is built and tried before the training, so that a typo costs nothing.
    """
    measured: tuple[float, ...] = ()
    name = ""
    split = config["split"]
    before = made(folder, split)
    suite = attack.build_suite(config["suite"])

    def check(net: MultiExitNet, data: DataSet) -> None:
        if "attack" in config["stages"]:
            device = next(net.parameters()).device
            policy = preflight.thresholds(net, build(config["threshold"], "threshold"), data, device)
            own = threats.Threat(config["threat"]["eps"])
            bound = aimed(suite, policy, chosen["threshold"], net.exits, own)
            preflight.suite(net, bound, data.split(split), samples=config["samples"], batch_size=config["batch_size"])

    if "train" in config["stages"]:
        train_once(folder, config, chosen, check)
    if "attack" in config["stages"]:
        opened = Run.open(folder.path, config["device"], threads=config["threads"], data_root=_edge.typed_root(config))
        _hydra.log_to(folder.log)
        opened.load()
        how = attack.crafting({**config, "overwrite": False, "label": None}, opened.manifest.seed)
        tracking: Wandb = build(config["tracking"], "tracking")
        with tracking.start(folder.path, "run", opened.manifest.config) as log:
            run_suite(opened, suite, how, config["samples"], split=split)
            log.summary(attack.summary(folder, split))
    if "evaluate" in config["stages"]:
        name = threshold_name(chosen["threshold"], config["threshold"], folder.read_finished(), _edge.typed_rule())
        judged = folder.evaluation(name, split, CLEAN).is_file()
        own = evaluate.fitted(folder, config, chosen["threshold"])[0]
        measured = objectives(own.records, own.worst)
        before = before if judged else {}
    if made(folder, split) == before and drawn(folder, config):
        logger.info("reports/%s is drawn already", folder.name)
    else:
        draw(folder, config)
    return measured, name


def drawn(folder: RunFolder, config: dict[str, Any]) -> bool:
    """Return whether the pictures and the page that `config` asks for are there, made of the present files."""
    out = report_folder(folder.name, "the name of the run folder")
    if not {"pareto", "report"} & {*config["stages"]}:
        return True
    try:
        noted = read_json(out / DRAWN)
        return bool(
            noted["of"] == sources(folder, config)
            and noted["files"]
            and all(sha256(out / name) == content for name, content in noted["files"].items())
        )
    except (OSError, UserError, LookupError, TypeError, AttributeError):
        return False


def sources(folder: RunFolder, config: dict[str, Any]) -> dict[str, Any]:
    """All that pictures and page are made of: the options that shape them, and the hash of every file they read."""
    patterns = ("manifest.json", "size.json", "thresholds/*.json", "evals/*.json", "banks/*/*.*", "gallery/*.*")
    files = sorted(path for pattern in patterns for path in folder.path.glob(pattern) if path.is_file())
    return {
        "stages": [stage for stage in ("pareto", "report") if stage in config["stages"]],
        "ratios": config["ratios"],
        "files": {path.relative_to(folder.path).as_posix(): sha256(path) for path in files},
    }


def draw(folder: RunFolder, config: dict[str, Any]) -> None:
    """The front and the page, as far as `config` asks for them."""
    out = report_folder(folder.name, "the name of the run folder")
    (out / DRAWN).unlink(missing_ok=True)
    drawing = {"name": folder.name, "ratios": config["ratios"], "reference_macs": None, "threat": {"eps": None}}
    if "pareto" in config["stages"]:
        found = pareto.draw([folder], {**drawing, "tracking": config["tracking"]})
    if "report" in config["stages"]:
        if "pareto" not in config["stages"]:
            found = pareto.compute([folder], drawing)
            pareto.write(found)
        report.make(found, [folder])
    if out.is_dir():
        made = {path.name: sha256(path) for path in sorted(out.iterdir()) if path.is_file()}
        write_json(out / DRAWN, {"of": sources(folder, config), "files": made})


def train_once(folder: RunFolder, config: dict[str, Any], chosen: dict[str, str], check: Check) -> None:
    """Train unless the folder holds this very experiment, finished. Raises UserError when it holds another one."""
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
        train.train(folder, config, chosen, check)
    except Interrupted as error:
        raise Interrupted(f"{error}, or with the same `rdi run` command") from None
