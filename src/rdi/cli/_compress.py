"""Compression at the two ends of a training: the weights and widths it begins with, the size it ends with."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from rdi import macs
from rdi.cli import _assemble
from rdi.compression import Compression, NoCompression, layer_weights, measure
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.folders import RunFolder
from rdi.records import Costs, Manifest, write
from rdi.report import sizes
from rdi.storage import write_bytes

logger = logging.getLogger("rdi")
CPU = torch.device("cpu")


def begin(net: MultiExitNet, compression: Compression, shape: Sequence[int]) -> tuple[dict[str, int], dict[str, str]]:
    """Load the weights to start from, narrow `net` in place -> widths and inputs for the manifest.

    Raises UserError for a start that is not finished or another network, and for limits that do not fit.
    """
    inputs = load_start(net, compression.start) if compression.start else {}
    compression.budget(net)
    return compression.shrink(net, shape), inputs


def load_start(net: MultiExitNet, start: str) -> dict[str, str]:
    """Give `net` the weights of the finished run `start` -> name and sha256 of their file."""
    folder = RunFolder(start)
    try:
        manifest, trained = _assemble.load_run(folder, CPU)
    except UserError as error:
        raise UserError(f"compression.start: {error}") from None
    try:
        net.load_state_dict(trained.state_dict())
    except RuntimeError as error:
        narrowed = ", narrowed" if manifest.widths else ""
        raise UserError(
            f"compression.start={start} is another network (backbone {manifest.choices['backbone']}, exits "
            f"{manifest.choices['exits']}, data {manifest.data.name}{narrowed}; {_assemble.first_mismatch(error)}): "
            "choose the same backbone, exits and kind of data here"
        ) from None
    assert manifest.checkpoint_sha256 is not None, "a finished run names its weights"
    return {f"{folder.name}/{folder.checkpoint.name}": manifest.checkpoint_sha256}


def finish(folder: RunFolder, manifest: Manifest, compression: Compression, chosen: Path) -> Manifest:
    """Store the size of the run's checkpoint, made of the weights `chosen`, and give the manifest its costs."""
    if isinstance(compression, NoCompression):
        return manifest
    net = _assemble.network(folder, manifest, CPU)
    dense = _assemble.model(manifest.config, manifest.data.shape, len(manifest.data.class_names), manifest.seed)
    parts: dict[str, Any] = {}
    if factors(chosen).is_file():
        write_bytes(folder.factors, factors(chosen).read_bytes())
        parts = load_file(folder.factors)
    size = measure(compression, dense, net, parts, macs.count(dense, manifest.data.shape))
    write(folder.size, size)
    if empty := [name for name, weight in layer_weights(net).items() if not weight.count_nonzero()]:
        logger.warning(
            "%s: no weight is left in %s, whose output is now the same for every image: raise compression.ratio",
            folder.path,
            ", ".join(empty),
        )
    costs = Costs(**asdict(macs.count(net, manifest.data.shape, sparse=True)))
    logger.info("%s: %s", folder.path, sizes.describe(size, costs))
    return replace(manifest, costs=costs)


def factors(weights: Path) -> Path:
    """Where the stored parts of the weights file `weights` lie, if it has some."""
    return weights.with_name(f"{weights.stem}.factors{weights.suffix}")
