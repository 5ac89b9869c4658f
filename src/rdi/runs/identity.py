"""Identity of a training: the part of a config that determines what is trained, and its hash."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from rdi.checks import LINF
from rdi.config import canonised
from rdi.text import first_difference

NOT_SCIENCE = {
    "run",
    "sweep",
    "device",
    "threads",
    "ranks",
    "recompute",
    "trust",
    "tracking",
    "overwrite",
    "suite",
    "samples",
    "split",
    "batch_size",
    "engine",
    "stages",
    "ratios",
}
"""Options that do not change what is trained, left out of a run's identity."""
MACHINE_DATA = ("root", "download", "memory", "workers")
"""Options of a data node that do not change what is trained."""
UNCOMPRESSED = {"_target_": "rdi.compression.NoCompression"}
"""The compression of every run from before there was a choice; it is left out too, so that they keep their identity."""

UNGATED = {"_target_": "rdi.gates.NoGates"}
"""The gates of every run from before there was a choice, likewise."""

SYNCHRONISED = "synchronised"
"""The batchnorm by which the number of ranks changes nothing; it is left out likewise."""


YOUNGER = {"norm": LINF, "eot": 1}
"""Options of attacks and threat models that came later -> the value by which nothing changes; it is left out."""


YOUNGER_RECIPE = (("accumulate", 1), ("average", None), ("decay_vectors", True))
"""Options of training recipes, likewise."""


def _without_younger(node: Any) -> Any:
    """Return a node without the options of YOUNGER that have their value there."""
    if isinstance(node, dict):
        kept = {key: value for key, value in node.items() if key not in YOUNGER or value != YOUNGER[key]}
        return {key: _without_younger(value) for key, value in kept.items()}
    return [_without_younger(one) for one in node] if isinstance(node, list) else node


def identity_fields(config: dict[str, Any]) -> dict[str, Any]:
    """Return the options that identify a training, without what younger options leave as it was before them."""
    found = {key: _without_younger(canonised(value)) for key, value in config.items() if key not in NOT_SCIENCE}
    if found.get("start") is None or found.get("compression", {}).get("start") is not None:
        # a compression names its start itself
        found.pop("start", None)
    if found.get("compression") == UNCOMPRESSED:
        del found["compression"]
    if found.get("gates") == UNGATED:
        del found["gates"]
    if found.get("batchnorm") == SYNCHRONISED:
        del found["batchnorm"]
    if isinstance(optim := found.get("optim"), dict):
        found["optim"] = {key: value for key, value in optim.items() if (key, value) not in YOUNGER_RECIPE}
    found["data"] = {key: value for key, value in found["data"].items() if key not in MACHINE_DATA}
    if found["data"].get("validation") == 0:
        del found["data"]["validation"]
    if found["data"].get("fit") == "squash":
        del found["data"]["fit"]
    return found


def identity(config: dict[str, Any]) -> str:
    """Hash of all that determines what is trained; the same fields on another machine give the same identity."""
    return hashlib.sha256(json.dumps(identity_fields(config), sort_keys=True).encode()).hexdigest()[:16]


def start_of(config: dict[str, Any]) -> str | None:
    """Return the run folder whose weights a training of `config` begins with; None: random weights."""
    return config.get("compression", {}).get("start") or config.get("start")


def outside_identity(key: str) -> bool:
    """Return whether the option `key` (dotted) is left out of a run's identity."""
    return key.split(".")[0] in NOT_SCIENCE or key in [f"data.{name}" for name in MACHINE_DATA]


def default_name(config: dict[str, Any], choices: dict[str, str]) -> str:
    """Return runs/<data>-<backbone>-<defense>[-<attack>][-<compression>][-<gates>]-<identity>, equal for equals."""
    parts = [choices["data"], choices["backbone"], choices["defense"]]
    if "attack" in config["defense"]:
        parts.append(choices["attack"])
    if config["compression"] != UNCOMPRESSED:
        parts.append(choices["compression"])
    if config["gates"] != UNGATED:
        parts.append(choices["gates"])
    return f"runs/{'-'.join(parts)}-{identity(config)[:8]}"


def difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Return the first option in which two configs train something else, as `key: old -> new`; empty for the same."""
    return first_difference(identity_fields(old), identity_fields(new))
