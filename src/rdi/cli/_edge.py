"""Between Hydra and values: the config of this job without interpolations, and what the user typed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rdi.errors import UserError
from rdi.runs import names
from rdi.runs.identity import outside_identity
from rdi.runs.limits import refuse_threat, refuse_values

if TYPE_CHECKING:  # torch with it, which `rdi list` does without
    from rdi.runs.folder import Run

Options = TypeVar("Options")
READERS = ("attack", "evaluate", "certify", "health", "pareto", "report", "bench", "export")
"""Commands that need a run that is there."""
OTHERS = ("start", "compression.start", "attack.surrogate")
"""Further options that name a run that must be there."""
GRID = "RDI_GRID"
"""Variable that names the sweep to its jobs, where it has no name of its own (hydra.job.env_set)."""


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """Plain dictionary with every interpolation replaced. Raises UserError for one that cannot be."""
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UserError(str(error).splitlines()[0]) from error
    assert isinstance(plain, dict), "primary configs are mappings"
    refuse_values(plain)
    tracking = plain.get("tracking")
    if isinstance(tracking, dict) and tracking.get("group", "") is None and multirun():
        tracking["group"] = HydraConfig.get().job.env_set.get(GRID)
    return {str(key): value for key, value in plain.items()}


def options(cfg: DictConfig, kind: type[Options]) -> Options:
    """`cfg` as the typed options of its command, interpolations replaced. Raises UserError as `resolved` does."""
    plain = resolved(cfg)
    found = OmegaConf.to_object(cfg)
    assert isinstance(found, kind), "primary configs are typed"
    if "tracking" in plain:
        vars(found)["tracking"] = plain["tracking"]
    return found


def named(command: str, cfg: DictConfig) -> DictConfig:
    """`cfg` with every run that it names as a path. Raises UserError for a name that fits two, or none where one must.

    Options that are no text are left to their own checks.
    """
    for key in ("run", *OTHERS):
        if isinstance(value := OmegaConf.select(cfg, key, throw_on_missing=False), str):
            needed = command in READERS or key in OTHERS
            OmegaConf.update(cfg, key, str(names.path(value, key, needed=needed)))
    if isinstance(runs := OmegaConf.select(cfg, "runs", throw_on_missing=False), ListConfig) and command in READERS:
        cfg.runs = [str(names.path(one, "runs")) if isinstance(one, str) else one for one in runs]
    return cfg


def opened(cfg: DictConfig) -> Run:
    """Open the finished run that `cfg` names, on the machine that it names."""
    from rdi.runs.folder import Run

    return Run.open(cfg.run, cfg.get("device", "auto"), threads=cfg.get("threads"), data_root=typed_root(cfg))


def fill_threat(cfg: DictConfig, run: Run) -> None:
    """Fill in what the user left open of the threat model, as the run was trained: attacks refer to it.

    Raises UserError for another norm than the run's without a radius and a step in it.
    """
    from rdi.threats import trained

    own = trained(run.manifest)
    if cfg.threat.norm is None:
        cfg.threat.norm = own.norm
    elif cfg.threat.norm != own.norm and None in (cfg.threat.eps, cfg.threat.step_size):
        raise UserError(
            f"the run's eps {own.size} and its step_size mean nothing in {cfg.threat.norm}: give threat.eps=... and "
            f"threat.step_size=... with threat.norm={cfg.threat.norm}"
        )
    refuse_threat(cfg.threat)
    for key in ("eps", "step_size", "test_steps"):
        if cfg.threat[key] is None:
            cfg.threat[key] = run.manifest.config["threat"][key]
    if "steps" in cfg.threat and (cfg.threat.steps is None or ("threat" in choices() and not typed("threat.steps"))):
        cfg.threat.steps = cfg.threat.test_steps


def refuse_foreign_radius(cfg: DictConfig, words: Sequence[str]) -> None:
    """Raise UserError where a norm was typed, and the radius and the step beside it were chosen in another norm.

    words: what was typed. Of a finished run the threat model is filled in, and refused, by `fill_threat`.
    """
    typed = dict(word.lstrip("+").partition("=")[::2] for word in words)
    for key, norm in typed.items():
        at, _, last = key.rpartition(".")
        whole = at == "threat"
        if last != "norm" or not at or (not whole and norm == cfg.threat.norm):
            continue
        there = [name for name in ("eps", "step_size") if OmegaConf.select(cfg, f"{at}.{name}") is not None]
        if missing := [f"{at}.{name}=..." for name in there if f"{at}.{name}" not in typed]:
            raise UserError(
                f"{key}={norm} needs {' and '.join(missing)} as well: those that are there were chosen in another norm"
                + ("; or choose threat=..., as threat=l2_05" if whole else "")
            )


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
    """Return whether this job is one of several; False where a config is composed without a job."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def typed(*beginnings: str) -> bool:
    """Return whether the user typed an option that begins with one of these, to set, add or delete it."""
    return any(word.lstrip("+~").startswith(beginnings) for word in overrides())


def typed_rule() -> bool:
    """Return whether the user changed an option of the threshold rule, or the rule inside a rule."""
    return typed("threshold.", "threshold@")


def changed() -> bool:
    """Return whether the user typed something of what is trained."""
    return any(not outside_identity(word.split("=")[0].lstrip("+~")) for word in overrides())


def untrained(cfg: DictConfig) -> None:
    """Raise UserError when the user typed a recipe, which data sets and networks bring along: nothing is trained.

    So it does for a radius that was chosen in another norm than the one typed.
    """
    if word := next((word for word in overrides() if re.match(r"[+~]*optim\b", word)), None):
        raise UserError(f"nothing is trained here, so {word} has no effect: leave it out")
    refuse_foreign_radius(cfg, overrides())


def typed_root(cfg: DictConfig) -> str | None:
    """The data.root that the user typed for this command, if any."""
    root: str | None = cfg.data.root if typed("data.root=") else None
    return root
