"""`rdi train`: train one network into a run folder, or go on with one."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from rdi import signals
from rdi.cli import _edge, _hydra
from rdi.cli._outcome import Outcome
from rdi.compression import Compression
from rdi.compression.base import Parts
from rdi.config import build
from rdi.data import DataSet
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.folders import RunFolder
from rdi.optim import Recipe
from rdi.records import Manifest, Selection, read, write
from rdi.runs import beginning, compressed, datasets, devices, lineage, networks, preflight, provenance, weights
from rdi.runs.evaluate import calibrate
from rdi.runs.folder import Run
from rdi.runs.identity import UNCOMPRESSED, identity, of_machine, science
from rdi.storage import read_sealed, sha256, write_bytes, write_sealed
from rdi.tracking import Wandb
from rdi.training import Settings, fit, postfix

logger = logging.getLogger("rdi")


Check = Callable[[MultiExitNet, DataSet], None]
"""More to check of the network and the data before the training starts; raises UserError."""


def run(cfg: DictConfig) -> Outcome:
    """Train what `cfg` describes."""
    config, chosen = _edge.resolved(cfg), _edge.choices()
    folder = RunFolder(config["run"] or default_name(config, chosen))
    with folder.hold():
        if config["run"] and not typed() and not folder.started() and not folder.foreign():
            raise UserError(
                f"there is no run {folder.path} to go on with; to train one say what, for example `rdi train "
                f"run={folder.path} data=digits backbone=smallcnn`"
            )
        trained = train(folder, config, chosen)
    return Outcome(str(folder.path), skipped=not trained)


def train(
    folder: RunFolder, config: dict[str, Any], choices: dict[str, str], check: Check = lambda net, data: None
) -> bool:
    """Train into the run folder; False when a job of a sweep finds its very experiment finished there.

    Raises UserError when the folder is finished or holds another experiment.
    """
    manifest = previous(folder, config)
    if manifest is not None and folder.finished():
        if _edge.multirun() and manifest.identity == identity(config):
            logger.info("%s is finished: skipped", folder.path)
            return False
        raise UserError(
            f"{folder.path} is finished already and stays as it is: choose another run=..., "
            "or replace it with overwrite=true"
        )
    root = _edge.typed_root(config)
    if manifest is not None:
        config, choices = continued(manifest, config), manifest.choices
    where = devices.select(config["device"], config["threads"])
    source = datasets.source(config)
    data = source.load() if manifest is None else datasets.load(config, manifest.data.fingerprint, root=root)
    net = networks.model(config, data.shape, data.classes, config["seed"])
    compression = build(config["compression"], "compression")
    if manifest is None:
        start = compressed.begin(net, compression, data, config)
    else:
        networks.narrow(net, manifest.widths)
    defense = build(config["defense"], "defense")
    recipe = build(config["optim"], "optim")
    settings = Settings(
        seed=config["seed"],
        precision=config["precision"],
        channels_last=config["channels_last"],
        augment=source.augment,
        evaluations=config["evaluations"],
        calibration_samples=config["calibration_samples"],
        keep=config["keep"],
    )
    rule = build(config["threshold"], "threshold")
    tracking: Wandb = build(config["tracking"], "tracking")
    preflight.training(net, defense, rule, recipe, settings, data, where)
    check(net, data)
    if manifest is not None:
        datasets.restore_splits(folder, manifest, data)
    else:
        manifest = beginning.begin(
            "train", folder, config, choices, net, data, where, start.inputs, start.widths, start.seen
        )
    _hydra.log_to(folder.log)
    with signals.stop_on_signals() as stop, tracking.start(folder.path, "run", config) as log:
        # inside: who reads this line and stops the training finds its state saved
        _introduce(folder, manifest, data, recipe, where)
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
                compression=compression,
                stop=stop,
            )
        except Interrupted as error:
            raise Interrupted(f"{error}; go on with `rdi train run={folder.path}`") from None
        ended = finish(folder, manifest, selection, compression, time.perf_counter() - began)
        log.summary(asdict(selection))
    net = networks.network(folder, ended, where)
    calibrate(Run.of(folder, ended, net, data, where), rule, choices["threshold"], config["threshold"])
    # last of all: a run that is done is whole
    write_bytes(folder.done, b"")
    folder.resume.unlink(missing_ok=True)
    logger.info(
        "%s: trained; kept the %s weights (step %d, held-out accuracy %.1f %%). Next: rdi attack run=%s",
        folder.path,
        selection.kept,
        selection.best_step if selection.kept == "best" else selection.last_step,
        100 * (selection.best_score if selection.kept == "best" else selection.last_score),
        folder.path,
    )
    return True


def continued(manifest: Manifest, config: dict[str, Any]) -> dict[str, Any]:
    """The config that a run was started with, on today's machine; a bare `rdi train run=...` is enough to go on."""
    today = {key: config[key] for key in ("run", "device", "threads", "tracking")}
    # absent from the manifests of versions without compression
    return {"compression": config["compression"], **manifest.config, **today}


def default_name(config: dict[str, Any], choices: dict[str, str]) -> str:
    """runs/<data>-<backbone>-<defense>[-<attack>][-<compression>]-<identity>: equal settings name the same folder."""
    parts = [choices["data"], choices["backbone"], choices["defense"]]
    if "attack" in config["defense"]:
        parts.append(choices["attack"])
    if config["compression"] != UNCOMPRESSED:
        parts.append(choices["compression"])
    return f"runs/{'-'.join(parts)}-{identity(config)[:8]}"


def previous(folder: RunFolder, config: dict[str, Any]) -> Manifest | None:
    """What lies in the folder, if it may be continued; None for a new start.

    Raises UserError when it is no run or another experiment.
    """
    if folder.foreign():
        raise UserError(f"{folder.path} exists and is not a run folder: choose another run=...")
    if not folder.started() or config["overwrite"]:
        return None
    manifest = read(folder.manifest, Manifest)
    if folder.finished():
        return manifest
    if manifest.command != "train":
        raise UserError(f"{folder.path} is an unfinished `rdi {manifest.command}`: replace it with overwrite=true")
    networks.check_identity(folder, manifest)
    if typed() and manifest.identity != identity(config):
        raise UserError(
            f"{folder.path} was started with other settings ({difference(manifest.config, config)}): go on with "
            f"`rdi train run={folder.path}` alone, or choose another run=..."
        )
    return manifest


def typed() -> list[str]:
    """What was typed of the options that determine what is trained."""
    return [word for word in _edge.overrides() if not of_machine(word.split("=")[0].lstrip("+~"))]


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """The first option in which two configs train something else, as `key: old -> new`; empty for the same."""
    return first_difference(science(old), science(new))


def first_difference(old: Any, new: Any, where: str = "") -> str:
    """The first entry in which two nested dictionaries differ, as `key: old -> new`."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if found := first_difference(old.get(key), new.get(key), f"{where}.{key}" if where else key):
                return found
        return ""
    return "" if old == new else f"{where}: {old} -> {new}"


def _introduce(folder: RunFolder, manifest: Manifest, data: DataSet, recipe: Recipe, where: torch.device) -> None:
    """Say what is about to be trained, and on what."""
    lineage.say(data)
    logger.info(
        "%s: %s, %d exits, %s parameters, %s (%d train, %d calibration, %d test), %d steps of %d images, seed %d, %s",
        folder.path,
        manifest.choices["backbone"],
        manifest.exits,
        f"{manifest.parameters:,}",
        data.name,
        len(data.train),
        len(data.calibration),
        len(data.test),
        recipe.steps(len(data.train)),
        recipe.batch_size,
        manifest.seed,
        where,
    )


def finish(
    folder: RunFolder, manifest: Manifest, selection: Selection, compression: Compression, seconds: float
) -> Manifest:
    """Make the chosen weights the checkpoint, store their size, then complete the manifest and return it."""
    chosen = folder.best if selection.kept == "best" else folder.last
    weights.read_tensors(chosen, compressed.REMEDY.format(folder.resume))
    write_bytes(folder.checkpoint, chosen.read_bytes())
    ended = dataclasses.replace(
        manifest,
        ended=provenance.now(),
        seconds=seconds,
        selection=selection,
        checkpoint_sha256=sha256(folder.checkpoint),
    )
    ended = compressed.finish(folder, ended, compression, chosen)
    write(folder.manifest, ended)
    return ended


def _step(line: str) -> float:
    """Step of a line of train.jsonl; infinite, so that it is dropped, for one that is damaged."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf


class FolderStore:
    """training.Store in a run folder, echoing every line to the log and to the tracker."""

    def __init__(self, folder: RunFolder, track: Any) -> None:
        self.folder, self.track = folder, track

    def load_state(self, device: torch.device) -> dict[str, Any] | None:
        """See training.Store. Raises UserError for a damaged file."""
        if not self.folder.resume.is_file():
            return None
        remedy = "delete it to start this run from its first step"
        content = io.BytesIO(read_sealed(self.folder.resume, remedy))
        try:
            state: dict[str, Any] = torch.load(content, map_location=device, weights_only=True)
        except Exception as error:
            raise UserError(f"{self.folder.resume} cannot be read: {remedy}") from error
        if state["best_step"] > 0:
            for path in (self.folder.best, self.folder.last):
                weights.read_tensors(path, compressed.REMEDY.format(self.folder.resume))
        logger.info("going on at step %d", state["step"])
        return state

    def save_state(self, state: dict[str, Any]) -> None:
        """See training.Store."""
        # through memory: on a full disk torch's own writer hides the reason
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_sealed(self.folder.resume, buffer.getvalue())

    def save_weights(self, which: str, model: MultiExitNet, parts: Parts) -> None:
        """See training.Store."""
        path: Path = getattr(self.folder, which)
        weights.save_weights(path, model)
        if parts:
            weights.save_tensors(compressed.factors(path), parts)

    def log(self, line: dict[str, Any], step: int) -> None:
        """See training.Store."""
        old = self.folder.progress.read_text().splitlines() if self.folder.progress.is_file() else []
        kept = [text for text in old if _step(text) < step]
        text = "\n".join([*kept, json.dumps(line, allow_nan=False)]) + "\n"
        write_bytes(self.folder.progress, text.encode())
        logger.info("step %d  epoch %.1f  %.0f s  %s", step, line["epoch"], line["seconds"], postfix(line))
        self.track(line, step)
