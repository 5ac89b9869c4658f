"""Train one network into a run folder, or go on with one."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from rdi import signals
from rdi.compression import Compression
from rdi.config import build
from rdi.data import DataSet
from rdi.errors import Interrupted, UserError
from rdi.exits import MultiExitNet
from rdi.folders import RunFolder
from rdi.gates import Gates
from rdi.logs import log_to
from rdi.optim import Recipe
from rdi.ranks import Ranks, current
from rdi.records import Manifest, Selection, read, write
from rdi.runs import beginning, compressed, datasets, devices, lineage, networks, preflight, provenance, weights
from rdi.runs.evaluate import calibrate
from rdi.runs.folder import Run
from rdi.runs.identity import difference, identity
from rdi.runs.store import FolderStore, ReadStore
from rdi.storage import sha256, write_bytes
from rdi.tracking import Wandb
from rdi.training import fit, refuse_average
from rdi.training_settings import Settings

logger = logging.getLogger("rdi")


Check = Callable[[MultiExitNet, DataSet], None]
"""More to check of the network and the data before the training starts; raises UserError."""


def train(
    folder: RunFolder,
    config: dict[str, Any],
    choices: dict[str, str],
    *,
    changed: bool,
    skip_finished: bool,
    data_root: str | None,
    check: Check = lambda net, data: None,
) -> bool:
    """Train into the run folder, or go on there; False where it was skipped.

    config: resolved, of a whole training.
    choices: config group -> chosen file.
    changed: the user named something of what is trained; without it an unfinished run goes on as it began.
    skip_finished: skip a folder that holds this very experiment, finished, instead of refusing it.
    data_root: folder of the images, as the user says today; None: as the config says, or where they are found.
    Other ranks, if there are any, `serve`.
    Raises UserError when the folder is finished or holds another experiment.
    """
    ranks = current()
    manifest = previous(folder, config, changed)
    if manifest is not None and folder.finished():
        if skip_finished and manifest.identity == identity(config):
            logger.info("%s is finished: skipped", folder.path)
            return False
        raise UserError(
            f"{folder.path} is finished already and stays as it is: choose another run=..., "
            "or replace it with overwrite=true"
        )
    if manifest is not None:
        config, choices = continued(manifest, config), manifest.choices
    device = devices.select(config["device"], config["threads"])
    # first what needs no images, which may have to be fetched
    source, settings = datasets.source(config), settings_of(config)
    compression = build(config["compression"], "compression")
    gates = networks.gates_of(config)
    compressed.refuse_gates(compression, gated=isinstance(gates, Gates))
    defense = build(config["defense"], "defense")
    recipe = build(config["optim"], "optim")
    refuse_average(recipe, compression)
    rule = build(config["threshold"], "threshold")
    tracking: Wandb = build(config["tracking"], "tracking")
    data = source.load() if manifest is None else datasets.load(config, manifest.data.fingerprint, root=data_root)
    net = networks.model(config, data.shape, data.classes, config["seed"])
    if manifest is None:
        start = compressed.begin(net, compression, data, config)
        widths = start.widths
    elif folder.resume.is_file():
        networks.narrow(net, widths := manifest.widths)
    else:
        widths = compressed.begin_again(net, compression, data, config, manifest).widths
    preflight.training(net, defense, recipe, settings, data, device, ranks.count, gates)
    preflight.thresholds(net, rule, data, device)
    check(net, data)
    ranks.call(assist, str(folder.path), config, data.fingerprint, data_root, widths, net.state_dict())
    with ranks.agreed():
        pass  # a rank that cannot begin says so here
    if manifest is not None:
        datasets.restore_splits(folder, manifest, data)
        lineage.restore(folder, manifest)
    else:
        manifest = beginning.begin(
            "train", folder, config, choices, net, data, device, start.inputs, start.widths, start.seen
        )
    log_to(folder.log)
    with signals.stop_on_signals(patient=not ranks.alone) as stop, tracking.start(folder.path, "run", config) as log:
        # inside: who reads this line and stops the training finds its state saved
        _introduce(folder, manifest, data, recipe, device, ranks)
        store = FolderStore(folder, log.log)
        # torch's default generator feeds dropout; it belongs to this job, not to the library
        torch.manual_seed(config["seed"])
        try:
            selection = fit(
                net.to(device),
                defense,
                data.train.to(device),
                data.calibration.to(device),
                recipe,
                settings,
                store,
                compression=compression,
                gates=gates,
                stop=stop,
                ranks=ranks,
            )
        except Interrupted as error:
            raise Interrupted(f"{error}; go on with `rdi train run={folder.path}`") from None
        ended = finish(folder, manifest, selection, compression, store.seconds())
        log.summary(asdict(selection))
    net = networks.network(folder, ended, device)
    calibrate(Run.of(folder, ended, net, data, device), rule, choices["threshold"], config["threshold"])
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


def assist(
    ranks: Ranks,
    stop: Callable[[], bool],
    path: str,
    config: dict[str, Any],
    fingerprint: str,
    root: str | None,
    widths: dict[str, int],
    weights: dict[str, torch.Tensor],
) -> None:
    """Take part in a training that the leading rank has prepared. weights, widths: of the network as it begins."""
    with ranks.agreed():
        device = devices.select(config["device"], config["threads"])
        data = datasets.load(config, fingerprint, root=root)
        net = networks.model(config, data.shape, data.classes, config["seed"])
        networks.narrow(net, widths)
        net.load_state_dict(weights)
        compression = build(config["compression"], "compression")
    torch.manual_seed(config["seed"])
    fit(
        net.to(device),
        build(config["defense"], "defense"),
        data.train.to(device),
        data.calibration.to(device),
        build(config["optim"], "optim"),
        settings_of(config),
        ReadStore(RunFolder(path)),
        compression=compression,
        gates=networks.gates_of(config),
        stop=stop,
        ranks=ranks,
    )


def settings_of(config: dict[str, Any]) -> Settings:
    """Read the settings of a training out of its config."""
    return Settings(
        seed=config["seed"],
        precision=config["precision"],
        channels_last=config["channels_last"],
        augment=datasets.source(config).augment,
        evaluations=config["evaluations"],
        calibration_samples=config["calibration_samples"],
        keep=config["keep"],
        batchnorm=config["batchnorm"],
        recompute=config["recompute"],
    )


def continued(manifest: Manifest, config: dict[str, Any]) -> dict[str, Any]:
    """Return the config that a run was started with, on today's machine: `rdi train run=...` is enough to go on."""
    today = {key: config[key] for key in ("run", "device", "threads", "ranks", "tracking")}
    # absent from the manifests of versions without compression or gates, or of one process
    young = {key: config[key] for key in ("compression", "gates", "batchnorm", "recompute")}
    return {**young, **manifest.config, **today}


def previous(folder: RunFolder, config: dict[str, Any], changed: bool) -> Manifest | None:
    """Read what lies in the folder, if it may be continued; None for a new start.

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
    if changed and manifest.identity != identity(config):
        raise UserError(
            f"{folder.path} was started with other settings ({difference(manifest.config, config)}): go on with "
            f"`rdi train run={folder.path}` alone, or choose another run=..."
        )
    return manifest


def _introduce(
    folder: RunFolder, manifest: Manifest, data: DataSet, recipe: Recipe, device: torch.device, ranks: Ranks
) -> None:
    """Say what is about to be trained, and on what."""
    lineage.say(data)
    logger.info(
        "%s: %s, %d exits, %s parameters, %s (%d train, %d calibration, %d test), %d steps of %d images, seed %d, %s%s",
        folder.path,
        manifest.backbone,
        manifest.exits,
        f"{manifest.parameters:,}",
        data.name,
        len(data.train),
        len(data.calibration),
        len(data.test),
        recipe.steps(len(data.train)),
        recipe.batch_size,
        manifest.seed,
        device,
        "" if ranks.alone else f", {ranks.count} ranks",
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
