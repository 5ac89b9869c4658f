"""Check what commands count on in a run's manifest, and that its parts agree: once, when it is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rdi.checks import LINF, NORMS
from rdi.errors import UserError

NODES = ("backbone", "exits", "data", "threshold")
"""Groups that every run was made from."""
TRAINED_BY = ("attack", "defense", "optim")
"""Groups that a trained one was made from besides; an imported one was not."""


def check(manifest: Any) -> None:
    """Raise UserError, naming the key, for a manifest that lacks what it must have or contradicts itself."""
    config, choices = manifest.config, manifest.choices
    for key in NODES if manifest.command == "import" else (*NODES, *TRAINED_BY):
        if not isinstance(config.get(key), Mapping):
            raise UserError(f"config.{key} is {_said(config, key)}, not a node with a _target_")
        if not choices.get(key):
            raise UserError(f"choices.{key} is {_said(choices, key)}, not the name of a choice")
    if not _is(config.get("seed"), int):
        raise UserError(f"config.seed is {_said(config, 'seed')}, not a whole number")
    _check_threat(config.get("threat"))
    tracking = config.get("tracking")
    if isinstance(tracking, Mapping) and not isinstance(tracking.get("group"), str | None):
        raise UserError(f"config.tracking.group is {_said(tracking, 'group')}, not a text")
    _check_data(manifest)
    if manifest.exits < 1:
        raise UserError(f"exits is {manifest.exits}: a network has at least 1")
    check_costs("costs", manifest, manifest.costs)


def check_costs(at: str, manifest: Any, costs: Any) -> None:
    """Raise UserError for costs that are not of a network with as many exits, or below 0."""
    for key in ("macs", "macs_paper"):
        if len(values := getattr(costs, key)) != manifest.exits:
            raise UserError(f"{at}.{key} lists {len(values)} numbers, and the network has {manifest.exits} exits")
        _positive(f"{at}.{key}", values)
    _positive(f"{at}.macs_plain", [costs.macs_plain])
    _positive(f"{at}.macs_plain_paper", [costs.macs_plain_paper])


def _positive(at: str, values: Iterable[int]) -> None:
    if (least := min(values)) < 1:
        raise UserError(f"{at} says {least}: no network costs less than 1")


def _check_threat(threat: Any) -> None:
    """The threat model that a run was made for."""
    if not isinstance(threat, Mapping):
        raise UserError("config.threat is no mapping")
    for key, kind, words in (
        ("eps", int | float, "a number"),
        ("step_size", int | float, "a number"),
        ("steps", int, "a whole number"),
        ("test_steps", int, "a whole number"),
    ):
        if not _is(threat.get(key), kind) or threat[key] < 0:
            raise UserError(f"config.threat.{key} is {_said(threat, key)}, not {words} of at least 0")
    if str(threat.get("norm", LINF)) not in NORMS:
        raise UserError(f"config.threat.norm is {_said(threat, 'norm')}, not one of {', '.join(NORMS)}")
    if extra := sorted(set(threat) - {"eps", "norm", "step_size", "steps", "test_steps"}):
        raise UserError(f"config.threat.{extra[0]} is nothing that a threat model has")


def _check_data(manifest: Any) -> None:
    data = manifest.data
    if min(data.shape) < 1:
        raise UserError(f"data.shape is {list(data.shape)}: no image has such a size")
    if not data.class_names:
        raise UserError("data.class_names is empty")
    for split in ("test", "calibration"):
        if split not in data.samples:
            raise UserError(f"data.samples.{split} is missing")
    for split, count in data.samples.items():
        if count < 0:
            raise UserError(f"data.samples.{split} is {count}")


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _said(tree: Mapping[str, Any], key: str) -> str:
    return "missing" if key not in tree else repr(tree[key])[:100]
