"""Range checks for constructor arguments, with errors that say what to type."""

from __future__ import annotations

import math
from numbers import Integral, Real
from pathlib import Path
from typing import TypeVar

from rdi.errors import UserError

T = TypeVar("T")
LINF = "linf"
NORMS = {LINF: "L-infinity", "l2": "L2", "l1": "L1"}
"""Norm of a threat model, as options name it -> as people write it."""
PIXELS = ("eps", "step_size")
"""Options that others give in levels of 255."""
LARGEST = 1e30
"""Largest number that is accepted: beyond this float32 overflows in the first product."""


def number(name: str, value: object, low: float, high: float, *, open_low: bool = False) -> float:
    """Return `value` as a float in [low, high] (or (low, high]), at most LARGEST in size. Raises UserError."""
    bounds = f"{'(' if open_low else '['}{low:g}, {high:g}]".replace("inf]", "inf)")
    if isinstance(value, bool) or not isinstance(value, Real):
        hint = ""
        if isinstance(value, str) and value.endswith("/255"):
            hint = f"; for n/255 write '{name}=${{px:{value.removesuffix('/255')}}}' on the command line"
        raise UserError(f"{name} must be a number in {bounds}, got {value!r}{hint}")
    result = float(value)
    absurd = not abs(result) <= LARGEST  # NaN, too
    if absurd or result < low or result > high or (open_low and result == low):
        hint = ""
        if high == 1 and 1 < result <= 255 and name.rpartition(".")[2] in PIXELS:
            hint = f": pixels are in [0, 1]; for {value:g}/255 write {name}='${{px:{value:g}}}'"
        raise UserError(f"{name} must be in {bounds}, got {value!r}{hint}")
    return result


def distance(name: str, value: object, norm: str = LINF, *, open_low: bool = False) -> float:
    """Return the size of a perturbation as a float: in [0, 1] in L-infinity, at least 0 in other norms.

    norm: one of NORMS; open_low: refuse 0. Raises UserError.
    """
    return number(name, value, 0, 1 if norm == LINF else math.inf, open_low=open_low)


def integer(name: str, value: object, low: int, high: int | None = None) -> int:
    """Return `value` as an int in [low, high]. Raises UserError."""
    bounds = f"at least {low}" if high is None else f"in [{low}, {high}]"
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise UserError(f"{name} must be a whole number {bounds}, got {value!r}")
    value = int(value)
    if value < low or (high is not None and value > high):
        raise UserError(f"{name} must be {bounds}, got {value!r}")
    return value


def choice(name: str, value: object, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`. Raises UserError."""
    if value not in choices:
        raise UserError(f"{name} must be one of {', '.join(choices)}; got {value!r}")
    return str(value)


def flag(name: str, value: object) -> bool:
    """Return `value` if it is True or False. Raises UserError."""
    if not isinstance(value, bool):
        raise UserError(f"{name} must be true or false, got {value!r}")
    return value


def instance(name: str, value: object, kind: type[T], example: str) -> T:
    """Return `value` if it is an object of the class `kind`. Raises UserError, with an example of one."""
    if not isinstance(value, kind):
        given = f"the class {value.__name__} itself" if isinstance(value, type) else type(value).__name__
        wanted = f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
        raise UserError(f"{name} must be {wanted}, got {given}: give one, as {example}")
    return value


def image_shape(value: object) -> tuple[int, int, int]:
    """Return `value` if it is (C, H, W) of an image. Raises UserError."""
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise UserError(f"shape must be (C, H, W) of an image, got {value}")
    channels, height, width = (integer("shape", one, 1) for one in value)
    return channels, height, width


def text(name: str, value: object) -> str:
    """Return `value` if it is text of printable characters, at least one. Raises UserError."""
    if not isinstance(value, str):
        hint = f"; quote what looks like a number: {name}=\"'{value}'\"" if isinstance(value, Real) else ""
        raise UserError(f"{name} must be text, got {value!r}{hint}")
    if not value or not value.isprintable():
        raise UserError(f"{name} must be text of printable characters, got {value!r}")
    return value


def directory(name: str, value: object) -> Path:
    """Return the path that `value` names, a leading ~ replaced. Raises UserError."""
    try:
        return Path(text(name, value)).expanduser()
    except RuntimeError as error:
        raise UserError(f"{name}={value}: there is no home folder to put for ~; write the whole path") from error
