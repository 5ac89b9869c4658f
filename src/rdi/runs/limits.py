"""The largest values of options: what is beyond is a slip of the keyboard, or no record could hold it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rdi.checks import LARGEST, NORMS, choice, distance, integer
from rdi.errors import UserError

MOST = {
    "seed": 2**63 - 1,
    "threads": 2**15,
    "ranks": 2**15,
    "ratios": 10_000,
    "steps": 1_000_000,
    "test_steps": 1_000_000,
    "restarts": 1_000_000,
    "queries": 1_000_000_000,
    "repeats": 1_000_000,
}
"""Option -> beyond this it is a slip of the keyboard, or more than the program can count."""


def refuse_values(value: Any, at: str = "") -> None:
    """Raise UserError for a number that is not finite or absurd, anywhere in a config: records could not hold it."""
    if isinstance(value, dict):
        for key, item in value.items():
            refuse_values(item, f"{at}.{key}" if at else str(key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            refuse_values(item, f"{at}[{index}]")
    elif isinstance(value, float) and not abs(value) <= LARGEST:
        raise UserError(f"{at} must be a finite number between {-LARGEST:g} and {LARGEST:g}, got {value}")
    elif isinstance(value, int) and value > (most := MOST.get(at.rpartition(".")[2], 2**63 - 1)):
        raise UserError(f"{at} must be at most {most}, got {value}")
    elif isinstance(value, int) and value < -(2**63):
        raise UserError(f"{at} must be at least {-(2**63)}, got {value}")


def refuse_threat(threat: Mapping[str, Any]) -> None:
    """Raise UserError for a threat model out of range, under the names that were typed; fronts know eps and norm.

    Where no norm is given that of a finished run counts, and so its range (rdi.threats.asked).
    """
    if threat["norm"] is not None:
        choice("threat.norm", threat["norm"], tuple(NORMS))
        for name in ("eps", "step_size"):
            if threat.get(name) is not None:
                distance(f"threat.{name}", threat[name], threat["norm"], open_low=name == "step_size")
    for name in ("steps", "test_steps"):
        if threat.get(name) is not None:
            integer(f"threat.{name}", threat[name], 1)
