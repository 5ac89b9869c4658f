"""Between configs and values: resolve, run folders by name, identity, environment."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import platform
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rdi.config import canonised
from rdi.errors import UserError
from rdi.memory import keep_freed_memory
from rdi.records import Environment

NOT_SCIENCE = {
    "run",
    "sweep",
    "device",
    "threads",
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
MACHINE_DATA = ("root", "download")
"""The same of a data node."""
UNCOMPRESSED = {"_target_": "rdi.compression.NoCompression"}
"""The compression of every run from before there was a choice; it is left out too, so that they keep their identity."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain dictionary with every interpolation replaced. Raises UserError for one that cannot be."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    assert isinstance(plain, dict), "primary configs are mappings"
    refuse_infinite(plain, "")
    return {str(key): value for key, value in plain.items()}


def refuse_infinite(node: Any, at: str) -> None:
    """Raise UserError for a number that no record can hold, before hours are spent on what cannot be stored."""
    if isinstance(node, float) and not math.isfinite(node):
        raise UserError(f"{at} must be a finite number, got {node}")
    if isinstance(node, dict):
        for key, value in node.items():
            refuse_infinite(value, f"{at}.{key}" if at else str(key))
    if isinstance(node, list):
        for index, value in enumerate(node):
            refuse_infinite(value, f"{at}[{index}]")


def choices() -> dict[str, str]:
    """Config group -> chosen file, of this job; Hydra's own groups left out."""
    runtime = HydraConfig.get().runtime.choices
    return {
        str(group): str(name)
        for group, name in runtime.items()
        if name is not None and not str(group).startswith("hydra/") and "@" not in str(group)
    }


def overrides() -> list[str]:
    """What the user typed, apart from Hydra's own options."""
    return list(HydraConfig.get().overrides.task)


def multirun() -> bool:
    """Whether this job is one of several."""
    return HydraConfig.get().mode == RunMode.MULTIRUN


def science(config: dict[str, Any]) -> dict[str, Any]:
    """What of a config determines what is trained; without what younger options leave as it was before them."""
    found = {key: canonised(value) for key, value in config.items() if key not in NOT_SCIENCE}
    if found.get("compression") == UNCOMPRESSED:
        del found["compression"]
    found["data"] = {key: value for key, value in found["data"].items() if key not in MACHINE_DATA}
    if found["data"].get("validation") == 0:
        del found["data"]["validation"]
    return found


def identity(config: dict[str, Any]) -> str:
    """Hash of all that determines what is trained; the same science on another machine has the same identity."""
    return hashlib.sha256(json.dumps(science(config), sort_keys=True).encode()).hexdigest()[:16]


def untrained(config: dict[str, Any], chosen: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """`config` and the choices without the recipe that data sets and networks bring along: nothing is trained.

    Raises UserError when the user typed one.
    """
    if typed := next((word for word in overrides() if re.match(r"[+~]*optim\b", word)), None):
        raise UserError(f"nothing is trained here, so {typed} has no effect: leave it out")
    config.pop("optim")
    chosen.pop("optim", None)
    return config, chosen


def of_machine(key: str) -> bool:
    """Whether the option `key` (dotted) is left out of a run's identity."""
    return key.split(".")[0] in NOT_SCIENCE or key in [f"data.{name}" for name in MACHINE_DATA]


def device(name: str, threads: int | None) -> torch.device:
    """The torch device for `name` ("auto": CUDA where there is one), with the CPU's threads set.

    Raises UserError when it does not exist.
    """
    if threads is not None:
        if threads < 1:
            raise UserError(f"threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        if chosen.type == "cpu":
            keep_freed_memory()
        torch.ones(1, device=chosen).item()  # of "meta", nothing can be had
        torch.Generator(chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device={name} is not here ({str(error).splitlines()[0]}); use device=auto or device=cpu"
        ) from error
    return chosen


def environment(where: torch.device) -> Environment:
    """Versions, device and commit, for records."""
    packages = ("rdi", "torch", "torchvision", "numpy", "hydra-core", "fvcore", "wandb")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit, dirty = _commit()
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else platform.processor() or platform.machine()
    return Environment(
        versions=versions,
        device=f"{where.type}: {name}",
        threads=torch.get_num_threads(),
        commit=commit,
        dirty=dirty,
    )


def _commit() -> tuple[str | None, bool | None]:
    """Commit of the checkout that this code lies in, and whether it has changes; (None, None) outside one."""
    source = Path(__file__).resolve().parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(source), *words], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", __file__) is None:
        return None, None
    commit = git("rev-parse", "HEAD")
    status = git("status", "--porcelain", "--untracked-files=no")
    return commit, None if status is None else bool(status)


def now() -> str:
    """UTC time, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
