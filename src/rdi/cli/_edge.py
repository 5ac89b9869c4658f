"""Between Hydra and values: the config of this job without interpolations, and what the user typed."""

from __future__ import annotations

import math
import re
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rdi.errors import UserError

GRID = "RDI_GRID"
"""Variable that names the sweep to its jobs, where it has no name of its own (hydra.job.env_set)."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain dictionary with every interpolation replaced. Raises UserError for one that cannot be."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    assert isinstance(plain, dict), "primary configs are mappings"
    refuse_infinite(plain, "")
    tracking = plain.get("tracking")
    if isinstance(tracking, dict) and tracking.get("group", "") is None and multirun():
        tracking["group"] = HydraConfig.get().job.env_set.get(GRID)
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
    """Return what the user typed, apart from Hydra's own options."""
    return list(HydraConfig.get().overrides.task)


def multirun() -> bool:
    """Return whether this job is one of several."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def typed(*beginnings: str) -> bool:
    """Return whether the user typed an option that begins with one of these, to set, add or delete it."""
    return any(word.lstrip("+~").startswith(beginnings) for word in overrides())


def typed_rule() -> bool:
    """Return whether the user changed an option of the threshold rule, or the rule inside a rule."""
    return typed("threshold.", "threshold@")


def untrained(config: dict[str, Any], chosen: dict[str, str]) -> tuple[dict[str, Any], dict[str, str]]:
    """`config` and the choices without the recipe that data sets and networks bring along: nothing is trained.

    Raises UserError when the user typed one.
    """
    if word := next((word for word in overrides() if re.match(r"[+~]*optim\b", word)), None):
        raise UserError(f"nothing is trained here, so {word} has no effect: leave it out")
    config.pop("optim")
    chosen.pop("optim", None)
    return config, chosen


def typed_root(config: dict[str, Any]) -> str | None:
    """The data.root that the user typed for this command, if any."""
    if not any(word.lstrip("+").startswith("data.root=") for word in overrides()):
        return None
    root: str = config["data"]["root"]
    return root
