"""`rdi train`: train one network into a run folder, or go on with one."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from rdi import macs
from rdi.cli import _assemble, _edge, _hydra, _stages
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.records import Costs, Manifest, RunFolder, Selection, atomic, read, sha256, write
from rdi.tracking import Tracking
from rdi.training import Settings, fit, postfix

logger = logging.getLogger("rdi")


def run(cfg: DictConfig) -> None:
    """Train what `cfg` describes."""
    config = _edge.resolved(cfg)
    train(config, _edge.choices())


def train(config: dict[str, Any], choices: dict[str, str]) -> RunFolder:
    """Train into the run folder and return it. Raises UserError when it is finished or holds another experiment."""
    folder = RunFolder(config["run"] or default_name(config, choices))
    manifest = previous(folder, config)
    if manifest is not None and folder.finished():
        if _edge.multirun():
            logger.info("%s is finished: skipped", folder.path)
            return folder
        raise UserError(
            f"{folder.path} is finished already and stays as it is: choose another run=..., "
            "or replace it with overwrite=true"
        )
    if manifest is not None:
        # a bare `rdi train run=...` goes on with what the folder was started with
        config = {
            **manifest.config,
            "run": config["run"],
            **{k: config[k] for k in ("device", "threads", "tracking")},
        }
        choices = manifest.choices
    where = _edge.device(config["device"], config["threads"])
    data = _assemble.source(config).load()
    net = _assemble.model(config, data.shape, data.classes, config["seed"])
    defense = _edge.build(config["defense"])
    recipe = _edge.build(config["optim"])
    settings = Settings(
        seed=config["seed"],
        precision=config["precision"],
        channels_last=config["channels_last"],
        augment=config["data"]["augment"],
        evaluations=config["evaluations"],
        calibration_samples=config["calibration_samples"],
        keep=config["keep"],
    )
    rule = _edge.build(config["threshold"])
    if manifest is None:
        manifest = Manifest(
            command="train",
            config=config,
            choices=choices,
            identity=_edge.identity(config),
            seed=config["seed"],
            environment=_edge.environment(where),
            data=_assemble.data_info(data),
            exits=net.exits,
            parameters=sum(parameter.numel() for parameter in net.parameters()),
            costs=Costs(**asdict(macs.count(net, data.shape))),
            inputs={},
            started=_edge.now(),
            ended=None,
            seconds=None,
            selection=None,
            checkpoint_sha256=None,
        )
        write(folder.manifest, manifest)
        save_splits(folder, data.indices())
    elif data.fingerprint != manifest.data.fingerprint:
        raise UserError(f"the images of {data.name} changed since {folder.path} was started: choose another run=...")
    _hydra.log_to(folder.log)
    steps = recipe.steps(len(data.train))
    logger.info(
        "%s: %s, %d exits, %s parameters, %s (%d train, %d calibration, %d test), %d steps of %d images, seed %d, %s",
        folder.path,
        choices["backbone"],
        net.exits,
        f"{manifest.parameters:,}",
        data.name,
        len(data.train),
        len(data.calibration),
        len(data.test),
        steps,
        recipe.batch_size,
        config["seed"],
        where,
    )
    tracking: Tracking = _edge.build(config["tracking"])
    with tracking.start(folder.path, "train", config) as log, _edge.stop_on_signals() as stop:
        store = FolderStore(folder, log.log)
        # torch's default generator feeds dropout; it belongs to this job, not to the library
        torch.manual_seed(config["seed"])
        began = time.perf_counter()
        try:
            selection = fit(
                net.to(where),
                defense,
                data.train.to(where),
                data.calibration.to(where),
                recipe,
                settings,
                store,
                stop=stop,
            )
        except Interrupted as error:
            raise Interrupted(f"{error}; go on with `rdi train run={folder.path}`") from None
        finish(folder, manifest, selection, time.perf_counter() - began)
        log.summary(asdict(selection))
    _, net = _assemble.load_run(folder, where)
    _stages.calibrate(folder, net, data, rule, choices["threshold"], config["threshold"], where)
    logger.info(
        "%s: trained; kept the %s weights (step %d, held-out accuracy %.1f %%). Next: rdi attack run=%s",
        folder.path,
        selection.kept,
        selection.best_step if selection.kept == "best" else selection.last_step,
        100 * (selection.best_score if selection.kept == "best" else selection.last_score),
        folder.path,
    )
    return folder


def default_name(config: dict[str, Any], choices: dict[str, str]) -> str:
    """runs/<data>-<backbone>-<defense>[-<attack>]-<identity>: the same settings always name the same folder."""
    parts = [choices["data"], choices["backbone"], choices["defense"]]
    if "attack" in config["defense"]:
        parts.append(choices["attack"])
    return f"runs/{'-'.join(parts)}-{_edge.identity(config)[:8]}"


def previous(folder: RunFolder, config: dict[str, Any]) -> Manifest | None:
    """What lies in the folder, if it may be continued. Raises UserError when it is another experiment."""
    if config["overwrite"] and folder.started():
        _stages.remove_run(folder)
    if not folder.started():
        if folder.path.is_file() or (folder.path.is_dir() and any(folder.path.iterdir())):
            raise UserError(f"{folder.path} exists and is not a run folder: choose another run=...")
        return None
    manifest = read(folder.manifest, Manifest)
    typed = [word for word in _edge.overrides() if word.split("=")[0].lstrip("+~") not in _edge.NOT_SCIENCE]
    if typed and manifest.identity != _edge.identity(config) and not folder.finished():
        raise UserError(
            f"{folder.path} was started with other settings ({first_difference(manifest.config, config)}): go on with "
            f"`rdi train run={folder.path}` alone, or choose another run=..."
        )
    return manifest


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """The first option in which two configs differ, as `key: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if not where and key in _edge.NOT_SCIENCE:
                continue
            if found := first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else key):
                return found
        return ""
    return "" if old == new else f"{where}: {old} -> {new}"


def save_splits(folder: RunFolder, indices: dict[str, np.ndarray]) -> None:
    """Store which image of the source went into which split."""
    atomic(folder.splits, lambda stream: np.savez(stream, **indices))  # type: ignore[arg-type]


def finish(folder: RunFolder, manifest: Manifest, selection: Selection, seconds: float) -> None:
    """Make the chosen weights the checkpoint, complete the manifest, and mark the run done, in this order."""
    chosen = folder.best if selection.kept == "best" else folder.last
    atomic(folder.checkpoint, lambda stream: stream.write(chosen.read_bytes()))
    ended = Manifest(
        **{
            **{name: getattr(manifest, name) for name in manifest.__dataclass_fields__},
            "ended": _edge.now(),
            "seconds": seconds,
            "selection": selection,
            "checkpoint_sha256": sha256(folder.checkpoint),
        }
    )
    write(folder.manifest, ended)
    folder.resume.unlink(missing_ok=True)
    atomic(folder.done, lambda stream: None)


class FolderStore:
    """training.Store in a run folder, echoing every line to the log and to the tracker."""

    def __init__(self, folder: RunFolder, track: Any) -> None:
        self.folder, self.track = folder, track

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """See training.Store. Raises UserError for a damaged file."""
        if not self.folder.resume.is_file():
            return None
        try:
            state: dict[str, Any] = torch.load(self.folder.resume, map_location=device, weights_only=True)
        except Exception as error:
            raise UserError(
                f"{self.folder.resume} is damaged: delete it to start this run from its first step"
            ) from error
        logger.info("going on at step %d", state["step"])
        return state

    def save_state(self, state: dict[str, Any]) -> None:
        """See training.Store."""
        atomic(self.folder.resume, lambda stream: torch.save(state, stream))

    def save_weights(self, which: str, model: MultiExitNet) -> None:
        """See training.Store."""
        path: Path = getattr(self.folder, which)
        _assemble.save_weights(path, model, {"format": "pt", "which": which})

    def log(self, line: dict[str, Any], step: int) -> None:
        """See training.Store."""
        old = self.folder.progress.read_text().splitlines() if self.folder.progress.is_file() else []
        kept = [text for text in old if json.loads(text)["step"] < step]
        text = "\n".join([*kept, json.dumps(line, allow_nan=False)]) + "\n"
        atomic(self.folder.progress, lambda stream: stream.write(text.encode()))
        logger.info("step %d  epoch %.1f  %.0f s  %s", step, line["epoch"], line["seconds"], postfix(line))
        self.track(line, step)
