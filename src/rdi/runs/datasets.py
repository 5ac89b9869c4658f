"""The images of a run: known by their fingerprint, not by their place, and cut into splits as the run cut them."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from rdi.config import build
from rdi.data.base import SPLITS, DataSet, Source
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import DataInfo, Manifest
from rdi.storage import arrays_digest, read_arrays, write_arrays
from rdi.text import is_visible, visible

logger = logging.getLogger("rdi")
DEFAULT = "data"
"""Folder that the files of conf/data name without RDI_DATA."""


def stored(config: dict[str, Any]) -> dict[str, Any]:
    """Return `config` as a manifest keeps it: the images are found from any working directory."""
    data = dict(config["data"])
    if isinstance(data.get("root"), str):
        data["root"] = os.path.abspath(os.path.expanduser(data["root"]))
    return {**config, "data": data}


def load(
    config: dict[str, Any], expected: str, indices: dict[str, np.ndarray] | None = None, root: str | None = None
) -> DataSet:
    """Load the data set of a run: `config` and fingerprint as in its manifest, cut by `indices` or as its seed says.

    Looked for in `root`, the user's word, alone; without it in RDI_DATA and where the run found it. Only if it is in
    none of them it is downloaded, and never to a place that the run folder chose: to `root`, RDI_DATA, or where
    conf/data looks. Raises UserError that names the places.
    """
    node = config["data"]
    if "root" not in node:
        return _load(node, indices, expected)
    places = dict.fromkeys(_places(node, root))  # of a damaged manifest anything may be among them
    failures = {}
    for place in places:
        here = {**node, "root": place, **({"download": False} if "download" in node else {})}
        try:
            return _load(here, indices, expected)
        except UserError as error:
            failures[place] = error
    if node.get("download"):
        mine = root or os.environ.get("RDI_DATA") or DEFAULT
        try:
            return _load({**node, "root": mine}, indices, expected)
        except UserError as error:
            failures[mine] = error
    if len(failures) == 1:
        raise next(iter(failures.values()))
    reasons = "; ".join(f"in {place}: {error}" for place, error in failures.items())
    raise UserError(f"looked for the images of the run in {' and in '.join(map(str, failures))}; {reasons}")


def _load(node: dict[str, Any], indices: dict[str, np.ndarray] | None, expected: str) -> DataSet:
    source: Source = build(node, "data")
    return source.load(indices, expected=expected)


def places(config: dict[str, Any], root: str | None = None) -> list[str]:
    """Return the folders that files of a data set are looked for in; of one that is embedded too.

    root: the user's word, which counts alone.
    """
    return list(dict.fromkeys(_places({"root": DEFAULT, **config["data"]}, root)))


def _places(node: dict[str, Any], root: str | None) -> list[str]:
    if root is not None:
        return [root]
    given = os.environ.get("RDI_DATA")
    return [*([given] if given else []), node["root"], *([DEFAULT] if os.path.isdir(DEFAULT) else [])]


def source(config: dict[str, Any]) -> Source:
    """Build the data source of a config."""
    built: Source = build(config["data"], "data")
    return built


def info(data: DataSet) -> DataInfo:
    """Return what a manifest says of a data set. Raises UserError for a class that no table could show."""
    for name in data.class_names:
        if not is_visible(name):
            raise UserError(f"the class '{visible(name)}' has control characters in its name: rename its folder")
    return DataInfo(
        name=data.name,
        shape=data.shape,
        class_names=data.class_names,
        samples=data.samples(),
        fingerprint=data.fingerprint,
    )


def run_data(folder: RunFolder, manifest: Manifest, root: str | None = None) -> DataSet:
    """Load the data set of a run, cut as the run cut it. Raises UserError if its images are others."""
    expected = manifest.data.fingerprint
    if folder.splits.exists():
        return load(manifest.config, expected, read_splits(folder, manifest), root)
    data = load(manifest.config, expected, None, root)
    restore_splits(folder, manifest, data)
    return data


def read_splits(folder: RunFolder, manifest: Manifest) -> dict[str, np.ndarray]:
    """Read which image of the source is in which split. Raises UserError unless they are those of the manifest."""
    remedy = "delete it, and the next command makes it again from the seed"
    indices = read_arrays(folder.splits, remedy)
    samples = {name: rows.size for name, rows in indices.items() if rows.size}
    rows = all(one.ndim == 1 and one.dtype == np.int64 for one in indices.values())
    named = set(indices) <= set(SPLITS) and samples == manifest.data.samples
    if not (rows and named and _disjoint(indices) and _as_recorded(indices, manifest)):
        raise UserError(f"{folder.splits} is damaged (these are not the splits that the manifest names): {remedy}")
    return indices


def restore_splits(folder: RunFolder, manifest: Manifest, data: DataSet) -> None:
    """Store the splits again if they are missing. data: cut by the seed. Raises UserError if they came out others."""
    if folder.splits.exists():
        return
    if data.samples() != manifest.data.samples or not _as_recorded(data.indices(), manifest):
        raise UserError(
            f"{folder.splits} is missing, and the seed gives other splits than the run had: restore it or train again"
        )
    save_splits(folder, data.indices())
    logger.info("%s was missing: made again from the seed", folder.splits)


def save_splits(folder: RunFolder, indices: Mapping[str, np.ndarray]) -> None:
    """Store which image of the source went into which split."""
    write_arrays(folder.splits, indices)


def _disjoint(indices: Mapping[str, np.ndarray]) -> bool:
    """Return whether no image is in two splits, or twice in one, and none has a number below 0."""
    rows = np.concatenate([*indices.values()])
    return len(np.unique(rows)) == len(rows) and bool((rows >= 0).all())


def _as_recorded(indices: Mapping[str, np.ndarray], manifest: Manifest) -> bool:
    return manifest.splits_sha256 in (None, arrays_digest(indices))
