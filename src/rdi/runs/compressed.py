"""Compression at the two ends of a training: the weights and widths it begins with, the size it ends with."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rdi import macs
from rdi.compression import Compression, NoCompression, layer_weights, measure
from rdi.data import DataSet
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.exits.attach import adopt
from rdi.folders import RunFolder
from rdi.records import Manifest, read, write
from rdi.report import sizes
from rdi.runs import lineage, networks, weights
from rdi.runs.folder import Run
from rdi.runs.identity import start_of
from rdi.storage import sha256, write_bytes

logger = logging.getLogger("rdi")
CPU = torch.device("cpu")
REMEDY = "delete {} to start this run from its first step"
"""Advice about damaged weights that a training can make again. {}: its saved state."""


@dataclass(frozen=True)
class Start:
    """The beginning of a training: widths and inputs for the manifest, and the keys of the images seen before."""

    widths: dict[str, int]
    inputs: dict[str, str]
    seen: np.ndarray


def refuse_gates(compression: Compression, *, gated: bool) -> None:
    """Raise UserError where a network with gates would be compressed."""
    if gated and not isinstance(compression, NoCompression):
        raise UserError("gates and compression do not go together: choose gates=none or compression=none")


def begin(net: MultiExitNet, compression: Compression, data: DataSet, config: dict[str, Any]) -> Start:
    """Load the weights to start from, and narrow `net` in place.

    Raises UserError for a start without weights, of another network or trained on images that are held out here, and
    for limits that do not fit.
    """
    start = start_of(config)
    if config.get("start") not in (None, start):
        raise UserError(f"two runs to start from, compression.start={start} and start={config['start']}: give one")
    inputs, seen = load_start(net, start, data, config) if start else ({}, lineage.NONE)
    compression.budget(net)
    return Start(compression.shrink(net, data.shape), inputs, seen)


def begin_again(
    net: MultiExitNet, compression: Compression, data: DataSet, config: dict[str, Any], manifest: Manifest
) -> Start:
    """Do what `begin` did for a run that has no saved state yet.

    Raises UserError for what `begin` refuses, and where the weights to start from are no longer what they were.
    """
    start = begin(net, compression, data, config)
    if changed := next((name for name, digest in start.inputs.items() if manifest.inputs.get(name) != digest), None):
        raise UserError(
            f"{changed}, which this run starts from, is not what it was when the run began: put it back, or begin anew "
            "with the options of this run and overwrite=true"
        )
    return start


def load_start(
    net: MultiExitNet, start: str, data: DataSet, config: dict[str, Any]
) -> tuple[dict[str, str], np.ndarray]:
    """Give `net` the weights of the run `start` -> name and sha256 of their file, keys of its images.

    Those of its checkpoint, or of its last evaluation where it was stopped before its end.
    """
    folder = RunFolder(start)
    try:
        if folder.started() and not folder.finished():
            manifest, trained = stopped(folder)
            file = folder.last
        else:
            opened = Run.open(start, "cpu")
            manifest, trained = opened.manifest, opened.network
            file = folder.checkpoint
        digest = sha256(file)
    except UserError as error:
        raise UserError(f"start: {error}") from None
    try:
        # gates have no counterpart in a network without: they begin anew on its weights
        taking = net if trained.gated else net.plain()
        if adopt(taking, trained):
            if net.exits > 1:
                logger.info("start=%s has no exits: the heads of the first %d begin anew", start, net.exits - 1)
            else:
                logger.info("start=%s has early exits and this network has none: their heads are left out", start)
    except RuntimeError as error:
        narrowed = ", narrowed" if manifest.widths else ""
        raise UserError(
            f"start={start} is another network (backbone {manifest.choices['backbone']}, exits "
            f"{manifest.choices['exits']}, data {manifest.data.name}{narrowed}; {weights.first_mismatch(error)}): "
            "choose the same backbone, exits and kind of data here"
        ) from None
    seen = lineage.refuse_leak(data, config, folder, manifest)
    return {f"{folder.name}/{file.name}": digest}, seen


def stopped(folder: RunFolder) -> tuple[Manifest, MultiExitNet]:
    """Return the manifest and the network of a training that was stopped, as its last evaluation found it.

    Raises UserError for one that was stopped before its first evaluation, and for damage.
    """
    folder.check_places()
    manifest = read(folder.manifest, Manifest)
    networks.check_identity(folder, manifest)
    if not folder.last.is_file():
        raise UserError(
            f"{folder.path} was stopped before its first evaluation and has no weights yet: go on with "
            f"`rdi train run={folder.path}`"
        )
    net = networks.model(manifest.config, manifest.data.shape, len(manifest.data.class_names), manifest.seed)
    networks.narrow(net, manifest.widths)
    weights.load_weights(folder.last, net)
    return manifest, net


def finish(folder: RunFolder, manifest: Manifest, compression: Compression, chosen: Path) -> Manifest:
    """Store the size of the run's checkpoint, made of the weights `chosen`, and give the manifest its costs."""
    if isinstance(compression, NoCompression):
        return manifest
    net = networks.network(folder, manifest, CPU)
    dense = networks.model(manifest.config, manifest.data.shape, len(manifest.data.class_names), manifest.seed)
    parts: dict[str, Any] = {}
    if factors(chosen).is_file():
        parts = weights.read_tensors(factors(chosen), REMEDY.format(folder.resume))
        write_bytes(folder.factors, factors(chosen).read_bytes())
    size = measure(compression, dense, net, parts, macs.count(dense, manifest.data.shape))
    write(folder.size, size)
    if empty := [name for name, weight in layer_weights(net).items() if not weight.count_nonzero()]:
        logger.warning(
            "%s: no weight is left in %s, whose output is now the same for every image: raise compression.ratio",
            folder.path,
            ", ".join(empty),
        )
    costs = macs.count(net, manifest.data.shape, sparse=True)
    logger.info("%s: %s", folder.path, sizes.describe(size, costs))
    return replace(manifest, costs=costs)


def factors(weights: Path) -> Path:
    """Return where the stored parts of the weights file `weights` lie, if it has some."""
    return weights.with_name(f"{weights.stem}.factors{weights.suffix}")
