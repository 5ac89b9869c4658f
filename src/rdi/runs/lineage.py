"""Keep account of the images that a run's weights were trained on, by it or by its start; none may be held out.

Only weights carry this on. A transfer attack reads another run's weights too, and may: it crafts with them, and images
that its surrogate has seen cannot raise the accuracy that is measured.
"""

from __future__ import annotations

import contextlib
import logging
from typing import Any

import numpy as np

from rdi.data import DataSet
from rdi.data.leaks import held_out_overlap, train_overlap
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import Manifest, read
from rdi.runs import datasets
from rdi.runs.identity import identity_fields, start_of
from rdi.storage import read_arrays, write_arrays

logger = logging.getLogger("rdi")
NONE = np.zeros(0, np.uint64)


def say(data: DataSet) -> None:
    """Say what a user should know of the images before they are trained on, a line each."""
    if data.memory is not None:
        logger.info(data.memory)
    for note in data.notes:
        logger.warning(note)
    for name, count in train_overlap(data).items():
        logger.warning(
            "%d of the %d %s images are, pixel by pixel, in the training split too", count, len(data.split(name)), name
        )


def save(folder: RunFolder, data: DataSet, before: np.ndarray) -> None:
    """Store the keys of the images that a new run will have been trained on. before: those of what it starts from."""
    keys = np.union1d(data.keys("train"), before)
    write_arrays(folder.trained_on, {"keys": keys})


def restore(folder: RunFolder, manifest: Manifest) -> None:
    """Store the keys of a run again that was killed before it had stored them, while all that they come from is there.

    What cannot be told now could not be told later either, and who asks then is told why.
    """
    if not folder.trained_on.exists():
        with contextlib.suppress(UserError):
            write_arrays(folder.trained_on, {"keys": trained_on(folder, manifest)})


def trained_on(folder: RunFolder, manifest: Manifest) -> np.ndarray:
    """Return the keys (rdi.data.identity) of the images that the weights of a run have been trained on.

    Where the file is missing or damaged they are made again, of the run's data and of what it started from. Raises
    UserError when those are not there.
    """
    try:
        keys = read_arrays(folder.trained_on, "delete it")["keys"]
    except (UserError, KeyError):
        keys = np.zeros(0)
    if keys.dtype == np.uint64 and keys.ndim == 1 and len(keys):
        return keys
    keys = np.unique(datasets.run_data(folder, manifest).keys("train"))
    start = start_of(manifest.config)
    if start is None:
        return keys
    before = RunFolder(start)
    return np.union1d(keys, trained_on(before, read(before.manifest, Manifest)))


def refuse_leak(data: DataSet, config: dict[str, Any], start: RunFolder, manifest: Manifest) -> np.ndarray:
    """Return the images that `start` was trained on. Raises UserError if a run of `config` holds out some of them."""
    try:
        seen = trained_on(start, manifest)
    except UserError as error:
        raise UserError(f"which images start={start.path} was trained on cannot be told: {error}") from None
    if found := held_out_overlap(data, seen):
        parts = [f"{count} of the {len(data.split(name))} {name} images" for name, count in found.items()]
        old, new = (one["data"] for one in (identity_fields(manifest.config), identity_fields(config)))
        options = [f"data.{key}={old.get(key)} there, {new.get(key)} here" for key in old if old[key] != new.get(key)]
        raise UserError(
            f"start={start.path} was trained on {' and '.join(parts)} of this run: take the data options "
            f"of {start.path}{f' ({options[0]})' if options else ''}, or another start"
        )
    return seen
