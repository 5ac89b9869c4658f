"""Frozen dataclasses <-> strict JSON, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError, ValidationInfo

from rdi.checks import NORMS
from rdi.errors import UserError
from rdi.storage import read_json, write_json
from rdi.trust import check_config, check_node, check_values

STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
Plain = bool | int | float | str | None
ROUNDING = 1e-9
"""What sums of shares may be beyond their range."""


def _checked_fraction(value: float) -> float:
    if not -ROUNDING <= value <= 1 + ROUNDING:
        raise ValueError(f"must be in [0, 1], got {value:g}")
    return value


Fraction = Annotated[float, AfterValidator(_checked_fraction)]
Saving = Annotated[float, Field(ge=-1e6, le=1)]
"""Share of a cost that is saved, below 0 where it is exceeded."""
Amount = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=0)]
Several = Annotated[int, Field(ge=1)]


def _checked_norm(norm: str) -> str:
    if norm not in NORMS:
        raise ValueError(f"must be one of {', '.join(NORMS)}, got {norm!r}")
    return norm


def _checked_settings(settings: dict[str, Plain]) -> dict[str, Plain]:
    """Check the ball in the settings of an attack: names and worst cases hang on it."""
    eps, norm = settings.get("eps"), settings.get("norm")
    if eps is not None and (isinstance(eps, bool) or not isinstance(eps, int | float) or eps < 0):
        raise ValueError(f"eps must be a number of at least 0, got {eps!r}")
    if "norm" in settings:
        _checked_norm(str(norm))
    return settings


Norm = Annotated[str, AfterValidator(_checked_norm)]
Settings = Annotated[dict[str, Plain], AfterValidator(_checked_settings)]
"""Options of an attack; {} of clean images."""


def _checked_config(config: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Check the config of a record that is read; one that is being made is the user's own."""
    if info.context is not None:
        with said_of(info.context["file"]):
            check_config(config)
    return config


def _checked_rule(node: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """Check the stored node of a rule as `_checked_config` does a config."""
    if info.context is not None:
        with said_of(info.context["file"]):
            check_node(node, str(info.field_name), "threshold")
    return node


@contextmanager
def said_of(file: Path) -> Iterator[None]:
    """Inside, name the file in errors."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


Config = Annotated[dict[str, Any], AfterValidator(_checked_config)]
"""A resolved config. Whoever reads it from a record may build its nodes: they were checked (rdi.trust)."""
RuleNode = Annotated[dict[str, Any], AfterValidator(_checked_rule)]
"""The node of a threshold rule or of an exit policy; checked likewise."""


Record = TypeVar("Record")


_adapters: dict[type, TypeAdapter[Any]] = {}


def adapter(kind: type) -> TypeAdapter[Any]:
    """Return what reads and writes records of a kind."""
    if kind not in _adapters:
        _adapters[kind] = TypeAdapter(kind)
    return _adapters[kind]


def to_dict(record: object) -> dict[str, Any]:
    """Plain dictionary of a record, ready for JSON."""
    result: dict[str, Any] = adapter(type(record)).dump_python(record, mode="json")
    return result


def write(path: Path, record: object) -> None:
    """Write a record (or a plain dictionary) as JSON, atomically. NaN and infinity are ValueErrors.

    Raises UserError for text that `read` would refuse.
    """
    content = record if isinstance(record, dict) else to_dict(record)
    check_values(content, numbers=False)
    write_json(path, content)


def read(path: Path, kind: type[Record]) -> Record:
    """Read a record. Raises UserError for a missing or damaged file, unknown or missing keys and wrong types.

    And for one that holds what rdi never writes into one, code to be called first of all: see rdi.trust.
    """
    try:
        content = read_json(path)
        with said_of(path):
            check_values(content)
        # as text again: strict validation takes a JSON list for a tuple, a Python list it does not
        record: Record = adapter(kind).validate_json(json.dumps(content), strict=True, context={"file": path})
    except (ValidationError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged ({_flaw(error)}), not a valid {kind.__name__}: restore it, or delete what it belongs "
            "to and make that again"
        ) from error
    return record


def _flaw(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(str(part) for part in first['loc']) or 'file'}: {first['msg'].removeprefix('Value error, ')}"
    return "nested too deeply"
