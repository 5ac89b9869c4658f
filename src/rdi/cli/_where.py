"""Where the images of a run are today: they are known by their fingerprint, not by their place."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from rdi.cli import _edge
from rdi.config import build
from rdi.data import DataSet, Source
from rdi.errors import UserError

DEFAULT = "data"
"""Where the files of conf/data look without RDI_DATA."""


def typed_root(config: dict[str, Any]) -> str | None:
    """The data.root that the user typed for this command, if any."""
    if not any(word.lstrip("+").startswith("data.root=") for word in _edge.overrides()):
        return None
    root: str = config["data"]["root"]
    return root


def stored(config: dict[str, Any]) -> dict[str, Any]:
    """`config` as a manifest keeps it: the images are found from any working directory."""
    data = dict(config["data"])
    if isinstance(data.get("root"), str):
        data["root"] = os.path.abspath(os.path.expanduser(data["root"]))
    return {**config, "data": data}


def load(
    config: dict[str, Any], expected: str, indices: dict[str, np.ndarray] | None = None, root: str | None = None
) -> DataSet:
    """The data set of a run: `config` and fingerprint as in its manifest, cut by `indices` or as its seed says.

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


def _places(node: dict[str, Any], root: str | None) -> list[str]:
    if root is not None:
        return [root]
    given = os.environ.get("RDI_DATA")
    return [*([given] if given else []), node["root"], *([DEFAULT] if os.path.isdir(DEFAULT) else [])]
