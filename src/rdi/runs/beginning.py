"""Begin a run folder, and empty one that is to be replaced."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import torch

from rdi import macs
from rdi.config import canonised
from rdi.data import DataSet
from rdi.exits import MultiExitNet
from rdi.folders import RunFolder
from rdi.locks import LOCK
from rdi.records import Manifest, write
from rdi.runs import datasets, lineage, provenance
from rdi.runs.identity import identity
from rdi.storage import arrays_digest


def remove_run(folder: RunFolder) -> None:
    """Empty a run folder but for its lock; the marker goes first, so that a failed deletion leaves no finished run."""
    folder.done.unlink(missing_ok=True)
    for entry in folder.path.iterdir():
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def begin(
    command: str,
    folder: RunFolder,
    config: dict[str, Any],
    choices: dict[str, str],
    net: MultiExitNet,
    data: DataSet,
    device: torch.device,
    inputs: dict[str, str] | None = None,
    widths: dict[str, int] | None = None,
    seen: np.ndarray = lineage.NONE,
) -> Manifest:
    """Write the manifest and the splits of a new run, in place of an older one that may go.

    inputs: name -> sha256 of the files that it is made from, apart from the data. widths: see Manifest.
    seen: keys of the images that its first weights were trained on.
    """
    manifest = Manifest(
        command=command,
        config=canonised(datasets.stored(config)),
        choices=choices,
        identity=identity(config),
        seed=config["seed"],
        environment=provenance.environment(device),
        data=datasets.info(data),
        exits=net.exits,
        parameters=sum(parameter.numel() for parameter in net.parameters()),
        costs=macs.count(net, data.shape),
        inputs=inputs or {},
        started=provenance.now(),
        ended=None,
        seconds=None,
        selection=None,
        checkpoint_sha256=None,
        widths=widths or {},
        splits_sha256=arrays_digest(data.indices()),
    )
    if folder.started():
        remove_run(folder)
    # a kill between the two costs nothing: the splits are made again from the seed
    write(folder.manifest, manifest)
    datasets.save_splits(folder, data.indices())
    lineage.save(folder, data, seen)
    return manifest
